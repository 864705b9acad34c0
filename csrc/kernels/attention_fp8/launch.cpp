// Host side of the fp8 attention forward: which kernel serves a call, and the call itself.
#include <algorithm>

#include "kernels/attention_forward/checks.h"
#include "params.h"
#include "tk/layout.h"

namespace tkpy::attention_fp8 {

namespace {

using attention::data_of;
using attention::heads_first;
using attention::kLongest;
using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

struct Call {
  View q, k, v, out, lse, descale_q, descale_k, descale_v;
  Optional sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k;
  double scale;
  std::int64_t left, right;
  double softcap;
  std::int64_t max_seqlen_q;
  bool packed() const { return cu_seqlens_q.has_value(); }
  std::int64_t sequences() const { return packed() ? cu_seqlens_q->elements() - 1 : q.shape[0]; }
  // Scales of a head for so many rows, of a batch entry or of all sequences together.
  std::int64_t blocks_of(std::int64_t rows) const { return packed() ? rows / kBlock + sequences() : (rows + kBlock - 1) / kBlock; }
};

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds) throw std::invalid_argument(std::string("attention_fp8: ") + what + ": need " + needed + ", got " + got.describe());
}

void check_tensor(const char* what, const View& v, const Call& call, DType dtype) {
  const int rank = call.packed() ? 3 : 4;
  check(v.rank == rank && v.dtype == dtype && v.device == call.q.device, what,
        std::string(rank == 3 ? "three" : "four") + " dimensions of " + dtype_name(dtype) + " on the device of q", v);
  const int step = 16 / dtype_bytes(dtype);
  const std::int64_t width = v.shape[rank - 1];
  check(width >= 16 && width <= kWidest && width % 16 == 0, what, "16 to " + std::to_string(kWidest) + " columns, a multiple of 16", v);
  check(*std::max_element(v.shape, v.shape + rank) < kLongest, what, "sizes below 2^30", v);
  if (v.elements() == 0) return;
  bool fits = v.stride[rank - 1] == 1 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int d = 0; d < rank - 1; ++d) fits = fits && (v.shape[d] == 1 || (v.stride[d] > 0 && v.stride[d] % step == 0));
  check(fits, what, "columns contiguous, and the address and every other stride a multiple of 16 bytes", v);
}

void check_numbers(const char* what, const Optional& v, const View& q, std::int64_t elements, DType dtype = DType::f32) {
  if (!v) return;
  check(v->dtype == dtype && v->elements() == elements && attention::contiguous(*v) && v->device == q.device, what,
        std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of q", *v);
}

void check(const Call& call) {
  check_tensor("q", call.q, call, DType::e4m3);
  check_tensor("k", call.k, call, DType::e4m3);
  check_tensor("v", call.v, call, DType::e4m3);
  check_tensor("out", call.out, call, DType::bf16);
  const View q = heads_first(call.q), k = heads_first(call.k), v = heads_first(call.v), out = heads_first(call.out);
  const std::int64_t heads = q.shape[1], kv_heads = k.shape[1];
  check(k.shape[0] == q.shape[0] && k.shape[3] == q.shape[3], "k", "the batch and columns of q", call.k);
  check(std::equal(k.shape, k.shape + 3, v.shape), "v", "the rows of k", call.v);
  check(kv_heads > 0 && (call.kv_head_map || heads % kv_heads == 0), "k", "heads that divide those of q", call.k);
  check(std::equal(q.shape, q.shape + 3, out.shape) && out.shape[3] == v.shape[3] && attention::contiguous(call.out), "out",
        "the rows of q and the columns of v, contiguous", call.out);
  if (call.packed()) {
    const std::int64_t offsets = call.cu_seqlens_q->elements();
    check(offsets >= 1 && call.cu_seqlens_k, "cu_seqlens_q", "at least one offset, and cu_seqlens_k", *call.cu_seqlens_q);
    check_numbers("cu_seqlens_q", call.cu_seqlens_q, q, offsets, DType::i32);
    check_numbers("cu_seqlens_k", call.cu_seqlens_k, q, offsets, DType::i32);
  }
  check_numbers("lse", call.lse, q, q.shape[0] * heads * q.shape[2]);
  check_numbers("descale_q", call.descale_q, q, q.shape[0] * heads * call.blocks_of(q.shape[2]));
  check_numbers("descale_k", call.descale_k, q, k.shape[0] * kv_heads * call.blocks_of(k.shape[2]));
  check_numbers("descale_v", call.descale_v, q, k.shape[0] * kv_heads * call.blocks_of(k.shape[2]));
  check_numbers("sinks", call.sinks, q, heads);
  check_numbers("kv_head_map", call.kv_head_map, q, heads, DType::i32);
  check_numbers("out_scale", call.out_scale, q, heads * v.shape[3]);
  check_numbers("out_bias", call.out_bias, q, heads * v.shape[3]);
}

// Strides of single rows are never used, and made fit.
tk::tensor_map encode(Machine& machine, const View& v, std::uint32_t rows, int columns) {
  View seen = heads_first(v);
  for (int d = 0; d < 3; ++d)
    if (seen.shape[d] == 1) seen.stride[d] = (seen.shape[3] + 15) / 16 * 16;
  const int swizzle = tk::widest_swizzle(columns * dtype_bytes(v.dtype));  // the tile's own
  const std::uint32_t box[4] = {1, 1, rows, static_cast<std::uint32_t>(swizzle / dtype_bytes(v.dtype))};
  return machine.encode(runtime::tensor_map_of(seen, box, swizzle));
}

Params params_of(Machine& machine, const Call& call, const Shape& shape) {
  const View q = heads_first(call.q), k = heads_first(call.k);
  Params p{};
  p.q = encode(machine, call.q, 64, shape.dim);
  p.out = encode(machine, call.out, 64, shape.out_columns());
  const bool any = call.k.elements() > 0;  // without keys no block is ever loaded
  p.k = any ? encode(machine, call.k, kBlock, shape.dim) : p.q;
  p.v = any ? encode(machine, call.v, kBlock, shape.dim_v) : p.q;
  p.out_data = call.out.data;
  p.lse = static_cast<float*>(call.lse.data);
  p.sinks = data_of<float>(call.sinks);
  p.kv_head_map = data_of<int>(call.kv_head_map);
  p.out_scale = data_of<float>(call.out_scale);
  p.out_bias = data_of<float>(call.out_bias);
  p.descale_q = static_cast<const float*>(call.descale_q.data);
  p.descale_k = static_cast<const float*>(call.descale_k.data);
  p.descale_v = static_cast<const float*>(call.descale_v.data);
  p.cu_seqlens_q = data_of<int>(call.cu_seqlens_q);
  p.cu_seqlens_k = data_of<int>(call.cu_seqlens_k);
  p.sequences = static_cast<int>(call.sequences());
  p.heads = static_cast<int>(q.shape[1]);
  p.kv_heads = static_cast<int>(k.shape[1]);
  p.group = std::max(1, p.heads / p.kv_heads);
  p.seq_q = static_cast<int>(q.shape[2]);
  p.seq_k = static_cast<int>(k.shape[2]);
  p.dim_v = static_cast<int>(call.v.shape[call.v.rank - 1]);
  p.tiles = p.q_blocks = static_cast<int>(call.blocks_of(p.seq_q));  // packed, both are bounds
  p.k_blocks = static_cast<int>(call.blocks_of(p.seq_k));
  if (call.packed() && call.max_seqlen_q >= 0) {  // no sequence has more tiles than the longest
    const std::int64_t most = std::min<std::int64_t>(call.max_seqlen_q, p.seq_q);
    p.tiles = static_cast<int>(std::min<std::int64_t>(p.tiles, (most + kBlock - 1) / kBlock * p.sequences));
  }
  const std::int64_t bytes = std::max<std::int64_t>(1, k.shape[2] * (k.shape[3] + p.dim_v));  // of one key head
  const std::int64_t heads = std::clamp<std::int64_t>(attention::kBytesInL2 / bytes, 1, kLongest) * (p.kv_head_map ? 1 : p.group);
  p.heads_at_once = static_cast<int>(std::min<std::int64_t>(heads, std::int64_t{p.sequences} * p.heads));
  p.left = static_cast<int>(std::min(call.left, kLongest));
  p.right = static_cast<int>(std::min(call.right, kLongest));
  constexpr double log2e = 1.4426950408889634;
  p.scale_log2 = static_cast<float>(call.scale * log2e);
  p.cap_outer = static_cast<float>(call.softcap * log2e);
  p.cap_inner = static_cast<float>(call.softcap != 0.0 ? call.scale / call.softcap : call.scale * log2e);
  return p;
}

std::string launch(Machine& machine, void* stream, const Call& call) {
  check(call);
  const std::int64_t dim = call.q.shape[call.q.rank - 1], dim_v = call.v.shape[call.v.rank - 1];
  const Shape& shape = *std::find_if(std::begin(kShapes), std::end(kShapes),  // the last takes all that is not refused
                                     [&](const Shape& s) { return s.dim >= dim && s.dim_v >= dim_v; });
  const std::string width = std::to_string(shape.dim), of_values = "x" + std::to_string(shape.dim_v);
  const std::string name = "attention_fp8_" + (shape.dim_v == shape.dim ? width : width + of_values);
  if (call.out.elements() == 0) return name;
  const Params p = params_of(machine, call, shape);
  const std::int64_t tasks = std::int64_t{call.packed() ? 1 : p.sequences} * p.heads * p.tiles;
  if (tasks >= kLongest)
    throw std::invalid_argument("attention_fp8: need fewer than 2^30 query tiles, got " + std::to_string(tasks));
  std::vector<View> views = {call.out, call.lse};
  for (const View* v : {&call.q, &call.k, &call.v, &call.descale_q, &call.descale_k, &call.descale_v})
    views.push_back(v->read_only());
  for (const auto* extra : {&call.sinks, &call.kv_head_map, &call.out_scale, &call.out_bias, &call.cu_seqlens_q, &call.cu_seqlens_k})
    if (*extra) views.push_back((*extra)->read_only());
  const auto grid = std::min<std::int64_t>(tasks, machine.multiprocessors(call.q.device));
  machine.launch(machine.kernel("attention_fp8_hd" + width, name), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
                                                         .block = {Shape::kThreads, 1, 1},
                                                         .cluster = {},
                                                         .shared = static_cast<std::uint32_t>(shape.shared_bytes()),
                                                         .params = runtime::bytes_of(p),
                                                         .views = views,
                                                         .stream = stream,
                                                         .device = call.q.device});
  return name;
}

std::string from_python(Machine& machine, void* stream, const View& q, const View& k, const View& v, const View& out,
                        const View& lse, const View& descale_q, const View& descale_k, const View& descale_v,
                        const Optional& sinks, const Optional& kv_head_map, const Optional& out_scale,
                        const Optional& out_bias, const Optional& cu_seqlens_q, const Optional& cu_seqlens_k, double scale,
                        std::int64_t left, std::int64_t right, double softcap, std::int64_t max_seqlen_q) {
  return launch(machine, stream, {q, k, v, out, lse, descale_q, descale_k, descale_v, sinks, kv_head_map, out_scale, out_bias,
                                  cu_seqlens_q, cu_seqlens_k, scale, left, right, softcap, max_seqlen_q});
}

const runtime::Launcher registered("attention_fp8", from_python,
                                   {"q", "k", "v", "out", "lse", "descale_q", "descale_k", "descale_v", "sinks",
                                    "kv_head_map", "out_scale", "out_bias", "cu_seqlens_q", "cu_seqlens_k", "scale", "left", "right",
                                    "softcap", "max_seqlen_q"});

}  // namespace

}  // namespace tkpy::attention_fp8
