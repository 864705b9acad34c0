// Host side of the kernels that build lists of blocks: checks, and two launches.
#include <algorithm>
#include <stdexcept>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::block_lists {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

void need(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds) throw std::invalid_argument(std::string("block_lists: ") + what + ": need " + needed + ", got " + got.describe());
}

// The elements of a contiguous tensor, which a wrong number of is refused.
void check(const char* what, const View& v, DType dtype, std::int64_t elements) {
  std::int64_t step = 1;
  bool contiguous = true;
  for (int d = v.rank - 1; d >= 0; step *= v.shape[d--]) contiguous = contiguous && (v.shape[d] == 1 || v.stride[d] == step);
  need(v.dtype == dtype && v.elements() == elements && (contiguous || elements == 0), what,
       std::to_string(elements) + " contiguous elements of " + dtype_name(dtype), v);
}

OutLists lists_of(const View& full_count, const View& full_index, const View& partial_count, const View& partial_index,
                  const View& partial_slot, std::int64_t rows, std::int64_t most, bool causal) {
  const auto ints = [](const View& v) { return static_cast<int*>(v.data); };
  need(full_index.rank == 4 && partial_index.rank == 4, "full_index", "four dimensions, as partial_index", full_index);
  const std::int64_t fulls = full_index.shape[3], partials = partial_index.shape[3];
  check("full_count", full_count, DType::i32, rows);
  check("partial_count", partial_count, DType::i32, rows);
  check("full_index", full_index, DType::i32, rows * fulls);
  check("partial_index", partial_index, DType::i32, rows * partials);
  check("partial_slot", partial_slot, DType::i32, rows * partials);
  need(fulls >= most, "full_index", "room for " + std::to_string(most) + " blocks a row", full_index);
  need(!causal || partials >= 2, "partial_index", "room for 2 blocks a row", partial_index);
  return {ints(full_count), ints(partial_count), ints(full_index), ints(partial_index), ints(partial_slot),
          static_cast<int>(fulls), static_cast<int>(partials)};
}

std::string from_python(Machine& machine, void* stream, const View& table, const View& full_count, const View& full_index,
                        const View& partial_count, const View& partial_index, const View& partial_slot, const View& masks,
                        const View& full_count_t, const View& full_index_t, const View& partial_count_t,
                        const View& partial_index_t, const View& partial_slot_t, const View& state, std::int64_t seq_q,
                        std::int64_t seq_k, std::int64_t block, std::int64_t most, bool causal) {
  need(block == 64 || block == 128, "block", "64 or 128 with the table", table);
  const std::int64_t q_blocks = (seq_q + block - 1) / block, k_blocks = (seq_k + block - 1) / block;
  const bool scored = table.dtype == DType::f32;
  need(seq_q >= 0 && seq_q < (1 << 30) && seq_k >= 0 && seq_k < (1 << 30), "table", "lengths below 2^30", table);
  need(table.rank == 4 && table.shape[2] == q_blocks && table.shape[3] == k_blocks && most >= 0, "table",
       "[B, H, " + std::to_string(q_blocks) + ", " + std::to_string(k_blocks) + "]", table);
  const std::int64_t pairs = table.shape[0] * table.shape[1], blocks = pairs * q_blocks * k_blocks;
  need(pairs * std::max<std::int64_t>(q_blocks, k_blocks) < (std::int64_t{1} << 30), "table", "fewer than 2^30 rows", table);
  check("table", table, scored ? DType::f32 : DType::u8, blocks);
  check("state", state, DType::u8, blocks);
  check("masks", masks, DType::u8, 2 * block * block / 8);
  Params p{};
  if (scored)
    p.scores = static_cast<const float*>(table.data);
  else
    p.table = static_cast<const unsigned char*>(table.data);
  p.by_queries = lists_of(full_count, full_index, partial_count, partial_index, partial_slot, pairs * q_blocks,
                          scored ? std::min(most, k_blocks) : k_blocks, causal);
  p.by_keys = lists_of(full_count_t, full_index_t, partial_count_t, partial_index_t, partial_slot_t, pairs * k_blocks,
                       q_blocks, causal);
  p.state = static_cast<unsigned char*>(state.data);
  p.masks = static_cast<unsigned char*>(masks.data);
  p.pairs = static_cast<int>(pairs);
  p.q_blocks = static_cast<int>(q_blocks);
  p.k_blocks = static_cast<int>(k_blocks);
  p.seq_q = static_cast<int>(seq_q);
  p.seq_k = static_cast<int>(seq_k);
  p.block = static_cast<int>(block);
  p.most = static_cast<int>(std::min(most, k_blocks));
  p.causal = causal;
  const View views[] = {table.read_only(), full_count,   full_index,      partial_count,   partial_index,  partial_slot, masks,
                        full_count_t,      full_index_t, partial_count_t, partial_index_t, partial_slot_t, state};
  const auto run = [&](const char* name, std::int64_t grid) {
    if (grid == 0) return;
    machine.launch(machine.kernel("block_lists", name), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
                                                         .block = {256, 1, 1},
                                                         .cluster = {},
                                                         .shared = 0,
                                                         .params = runtime::bytes_of(p),
                                                         .views = views,
                                                         .stream = stream,
                                                         .device = table.device});
  };
  run("block_lists_rows", std::max<std::int64_t>(1, (pairs * q_blocks + 7) / 8));  // element masks in any case
  run("block_lists_columns", pairs * ((k_blocks + 31) / 32));
  return "block_lists_rows";
}

const runtime::Launcher registered("block_lists", from_python,
                                   {"table", "full_count", "full_index", "partial_count", "partial_index", "partial_slot",
                                    "masks", "full_count_t", "full_index_t", "partial_count_t", "partial_index_t",
                                    "partial_slot_t", "state", "seq_q", "seq_k", "block", "most", "causal"});

}  // namespace

}  // namespace tkpy::block_lists
