// Host side of attention_decode: which kernel serves a call, and the one or two launches.
#include <algorithm>
#include <limits>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::attention_decode {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

constexpr std::int64_t kLongest = std::int64_t{1} << 30;  // keys of a sequence, bounds of a window
constexpr std::int64_t kGrid = 65535;                     // of the second and third dimension

struct Call {
  View q, k, v, out, lse, seqlens;
  Optional partial_out, partial_lse, block_table, starts, sinks, kv_head_map;
  double scale;
  std::int64_t left, right;
  double softcap;
  std::int64_t splits() const { return partial_out ? partial_out->shape[0] : 1; }
};

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds)
    throw std::invalid_argument(std::string("attention_decode: ") + what + ": need " + needed + ", got " + got.describe());
}

void check_tensor(const char* what, const View& v, const Call& call) {
  check(v.rank == 4, what, "four dimensions", v);
  check(v.dtype == call.q.dtype && (v.dtype == DType::bf16 || v.dtype == DType::f16), what, "bf16 or f16, that of q", v);
  check(v.device == call.q.device, what, "the device of q", v);
  check(v.shape[3] >= 8 && v.shape[3] <= 256 && v.shape[3] % 8 == 0, what, "8 to 256 columns, a multiple of 8", v);
  check(v.shape[0] < kLongest && v.shape[1] < kLongest && v.shape[2] < kLongest, what, "sizes below 2^30", v);
  if (v.elements() == 0) return;
  bool fits = v.stride[3] == 1 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int d = 0; d < 3; ++d) fits = fits && (v.shape[d] == 1 || (v.stride[d] >= 0 && v.stride[d] % 8 == 0));
  check(fits, what, "columns contiguous, and the address and every other stride a multiple of 16 bytes", v);
}

void check_extra(const char* what, const Optional& v, DType dtype, std::int64_t elements, const Call& call) {
  if (!v) return;
  check(v->dtype == dtype && v->elements() == elements && v->extent() == elements * dtype_bytes(dtype) &&
            v->device == call.q.device,
        what, std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of q", *v);
}

void check(const Call& call) {
  const View &q = call.q, &k = call.k, &v = call.v, &out = call.out;
  check_tensor("q", q, call);
  check_tensor("k_cache", k, call);
  check_tensor("v_cache", v, call);
  check_tensor("out", out, call);
  check(k.shape[3] == q.shape[3], "k_cache", "the columns of q", k);
  check(std::equal(k.shape, k.shape + 3, v.shape), "v_cache", "the rows of k_cache", v);
  check(std::equal(q.shape, q.shape + 3, out.shape) && out.shape[3] == v.shape[3] && out.extent() == 2 * out.elements(),
        "out", "the rows of q and the columns of v_cache, contiguous", out);
  const std::int64_t batch = q.shape[0], heads = q.shape[2], rows = batch * q.shape[1] * heads;
  check(k.shape[2] > 0 && (call.kv_head_map || heads % k.shape[2] == 0), "k_cache", "heads that divide those of q", k);
  check(batch <= kGrid && heads <= kGrid, "q", "at most 65535 sequences and heads", q);
  check_extra("lse", call.lse, DType::f32, rows, call);
  check_extra("seqlens", call.seqlens, DType::i32, batch, call);
  check_extra("starts", call.starts, DType::i32, batch, call);
  check_extra("sinks", call.sinks, DType::f32, heads, call);
  check_extra("kv_head_map", call.kv_head_map, DType::i32, heads, call);
  check_extra("partial_lse", call.partial_lse, DType::f32, call.splits() * rows, call);
  check_extra("partial_out", call.partial_out, DType::f32, call.splits() * rows * v.shape[3], call);
  check(call.partial_out.has_value() == call.partial_lse.has_value() && call.splits() >= 1, "partial_lse",
        "as many splits as partial_out", call.lse);
  if (!call.block_table) {
    check(k.shape[0] == batch, "k_cache", "a row for each sequence of q where there is no block_table", k);
    return;
  }
  const View& table = *call.block_table;
  check(table.rank == 2 && table.shape[0] == batch, "block_table", "a row for each sequence of q", table);
  check_extra("block_table", call.block_table, DType::i32, table.elements(), call);
  check(table.shape[1] * k.shape[1] < kLongest, "block_table", "fewer than 2^30 keys a sequence", table);
}

template <class T>
T* data_of(const Optional& v) {
  return v ? static_cast<T*>(v->data) : nullptr;
}

Strides strides_of(const View& v) { return {v.stride[0], v.stride[1], v.stride[2]}; }

Params params_of(const Call& call) {
  Params p{};
  p.q = call.q.data;
  p.k = call.k.data;
  p.v = call.v.data;
  p.q_at = strides_of(call.q);
  p.k_at = strides_of(call.k);
  p.v_at = strides_of(call.v);
  p.out = call.out.data;
  p.lse = static_cast<float*>(call.lse.data);
  p.partial_out = data_of<float>(call.partial_out);
  p.partial_lse = data_of<float>(call.partial_lse);
  p.seqlens = static_cast<const int*>(call.seqlens.data);
  p.starts = data_of<int>(call.starts);
  p.block_table = data_of<int>(call.block_table);
  p.sinks = data_of<float>(call.sinks);
  p.kv_head_map = data_of<int>(call.kv_head_map);
  p.batch = static_cast<int>(call.q.shape[0]);
  p.seq_q = static_cast<int>(call.q.shape[1]);
  p.heads = static_cast<int>(call.q.shape[2]);
  p.dim = static_cast<int>(call.q.shape[3]);
  p.dim_v = static_cast<int>(call.v.shape[3]);
  p.kv_heads = static_cast<int>(call.k.shape[2]);
  p.group = call.kv_head_map ? 1 : p.heads / p.kv_heads;
  p.row_tiles = (p.group * p.seq_q + kRows - 1) / kRows;
  p.splits = static_cast<int>(call.splits());
  p.pages = static_cast<int>(call.k.shape[0]);
  p.page = static_cast<int>(call.k.shape[1]);
  p.table_width = static_cast<int>(call.block_table ? call.block_table->shape[1] : 1);
  p.capacity = p.pages == 0 ? 0 : p.page * p.table_width;
  p.left = static_cast<int>(std::min(call.left, kLongest));
  p.right = static_cast<int>(std::min(call.right, kLongest));
  constexpr double log2e = 1.4426950408889634;
  p.outer = static_cast<float>(call.softcap * log2e);
  p.inner = static_cast<float>(call.softcap != 0.0 ? call.scale / call.softcap : call.scale * log2e);
  return p;
}

std::string launch(Machine& machine, void* stream, const Call& call) {
  check(call);
  constexpr const char* sizes[] = {"64", "128", "192x128", "256"};
  std::size_t index = 0;
  while (kShapes[index].dim < call.q.shape[3] || kShapes[index].dim_v < call.v.shape[3]) ++index;
  const std::string type = call.q.dtype == DType::bf16 ? "bf16" : "fp16", name = "attention_decode_" + type + "_" + sizes[index];
  if (call.out.elements() == 0) return name;
  const Params p = params_of(call);
  std::vector<View> views = {call.q.read_only(), call.k.read_only(), call.v.read_only(), call.out, call.lse, call.seqlens.read_only()};
  for (const Optional* extra : {&call.block_table, &call.starts, &call.sinks, &call.kv_head_map})
    if (*extra) views.push_back((*extra)->read_only());
  for (const Optional* extra : {&call.partial_out, &call.partial_lse})
    if (*extra) views.push_back(**extra);
  const auto run = [&](const std::string& kernel, std::int64_t x, int y, int z, int shared) {
    if (x > std::numeric_limits<int>::max())
      throw std::invalid_argument("attention_decode: need fewer than 2^31 blocks, got " + std::to_string(x));
    machine.launch(machine.kernel("attention_decode", kernel),
                   {.grid = {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(y), static_cast<std::uint32_t>(z)},
                    .block = {32 * kWarps, 1, 1},
                    .cluster = {},
                    .shared = static_cast<std::uint32_t>(shared),
                    .params = runtime::bytes_of(p),
                    .views = views,
                    .stream = stream,
                    .device = call.q.device});
  };
  run(name, std::int64_t{p.row_tiles} * p.splits, p.heads / p.group, p.batch, kShapes[index].shared_bytes());
  const std::int64_t rows = std::int64_t{p.batch} * p.seq_q * p.heads;
  if (p.splits > 1) run("attention_combine_" + type, (rows + kWarps - 1) / kWarps, 1, 1, 0);
  return name;
}

std::string from_python(Machine& machine, void* stream, const View& q, const View& k_cache, const View& v_cache,
                        const View& out, const View& lse, const View& seqlens, const Optional& partial_out,
                        const Optional& partial_lse, const Optional& block_table, const Optional& starts,
                        const Optional& sinks, const Optional& kv_head_map, double scale, std::int64_t left,
                        std::int64_t right, double softcap) {
  return launch(machine, stream, {q, k_cache, v_cache, out, lse, seqlens, partial_out, partial_lse, block_table, starts, sinks,
                                  kv_head_map, scale, left, right, softcap});
}

const runtime::Launcher registered("attention_decode", from_python,
                                   {"q", "k_cache", "v_cache", "out", "lse", "seqlens", "partial_out", "partial_lse",
                                    "block_table", "starts", "sinks", "kv_head_map", "scale", "left", "right", "softcap"});

}  // namespace

}  // namespace tkpy::attention_decode
