// Lists of blocks, from tensors to kernels: what the launchers of the attention kernels check of them.
#pragma once

#include "kernels/attention_forward/checks.h"
#include "lists.h"

namespace tkpy::block_lists {

using runtime::DType;
using runtime::View;

// The tensors of a BlockMask, by rows of queries or, transposed, of keys.
struct Tensors {
  View full_count, full_index, partial_count, partial_index, partial_slot, masks;
  std::int64_t block;

  void check(const attention::Checks& check, std::int64_t batch, std::int64_t heads, std::int64_t length) const {
    check(block == 64 || block == 128, "block", "64 or 128, but " + std::to_string(block) + " was given with the lists", full_count);
    const View& count = full_count;
    const std::int64_t rows = (length + block - 1) / block;
    check(count.rank == 3 && (count.shape[0] == 1 || count.shape[0] == batch) &&
              (count.shape[1] == 1 || count.shape[1] == heads) && count.shape[2] == rows,
          "full_count", "[1 or batch, 1 or heads, " + std::to_string(rows) + "]", count);
    const std::int64_t all = count.shape[0] * count.shape[1] * rows;
    check(all < attention::kLongest, "full_count", "fewer than 2^30 rows of blocks", count);
    const auto counts = [&](const char* what, const View& v) { check.extra(what, v, DType::i32, all); };
    const auto entries = [&](const char* what, const View& v, const View& like) {
      check(v.rank == 4 && like.rank == 4, what, "four dimensions", v);
      check.extra(what, v, DType::i32, all * like.shape[3]);
    };
    counts("full_count", full_count);
    counts("partial_count", partial_count);
    entries("full_index", full_index, full_index);
    entries("partial_index", partial_index, partial_index);
    entries("partial_slot", partial_slot, partial_index);
    check(masks.rank == 3 && masks.shape[1] == block && masks.shape[2] == block / 8 &&
              reinterpret_cast<std::uintptr_t>(masks.data) % 16 == 0,
          "masks", "[slots, block, block / 8] at a multiple of 16 bytes", masks);
    check.extra("masks", masks, DType::u8, masks.elements());
  }

  Lists lists() const {
    const auto ints = [](const View& v) { return static_cast<const int*>(v.data); };
    const int rows = static_cast<int>(full_count.shape[2]), heads = static_cast<int>(full_count.shape[1]);
    return {.full_count = ints(full_count),
            .partial_count = ints(partial_count),
            .full_index = ints(full_index),
            .partial_index = ints(partial_index),
            .partial_slot = ints(partial_slot),
            .masks = static_cast<const unsigned char*>(masks.data),
            .most_full = static_cast<int>(full_index.shape[3]),
            .most_partial = static_cast<int>(partial_index.shape[3]),
            .of_batch = full_count.shape[0] > 1 ? rows * heads : 0,
            .of_head = heads > 1 ? rows : 0,
            .block = static_cast<int>(block)};
  }

  void add_to(std::vector<View>& views) const {
    for (const View* v : {&full_count, &full_index, &partial_count, &partial_index, &partial_slot, &masks})
      views.push_back(v->read_only());
  }
};

}  // namespace tkpy::block_lists
