// Host side of the fp8 attention forward: which kernel serves a call, and the call itself.
#include <algorithm>

#include "kernels/attention_forward/checks.h"
#include "params.h"

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
  Optional sinks, kv_head_map, out_scale, out_bias;
  double scale;
  std::int64_t left, right;
  double softcap;
};

std::int64_t blocks_of(std::int64_t rows) { return (rows + kBlock - 1) / kBlock; }

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds) throw std::invalid_argument(std::string("attention_fp8: ") + what + ": need " + needed + ", got " + got.describe());
}

void check_tensor(const char* what, const View& v, const View& q, DType dtype) {
  check(v.rank == 4 && v.dtype == dtype && v.device == q.device, what,
        std::string("four dimensions of ") + dtype_name(dtype) + " on the device of q", v);
  const int step = 16 / dtype_bytes(dtype);
  check(v.shape[3] >= 16 && v.shape[3] <= 128 && v.shape[3] % 16 == 0, what, "16 to 128 columns, a multiple of 16", v);
  check(*std::max_element(v.shape, v.shape + 3) < kLongest, what, "sizes below 2^30", v);
  if (v.elements() == 0) return;
  bool fits = v.stride[3] == 1 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
  for (int d = 0; d < 3; ++d) fits = fits && (v.shape[d] == 1 || (v.stride[d] > 0 && v.stride[d] % step == 0));
  check(fits, what, "columns contiguous, and the address and every other stride a multiple of 16 bytes", v);
}

void check_numbers(const char* what, const View& v, const View& q, std::int64_t elements, DType dtype = DType::f32) {
  check(v.dtype == dtype && v.elements() == elements && attention::contiguous(v) && v.device == q.device, what,
        std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of q", v);
}

void check(const Call& call) {
  const View &q = call.q, &k = call.k, &v = call.v;
  check_tensor("q", q, q, DType::e4m3);
  check_tensor("k", k, q, DType::e4m3);
  check_tensor("v", v, q, DType::e4m3);
  check_tensor("out", call.out, q, DType::bf16);
  check(k.shape[0] == q.shape[0] && k.shape[3] == q.shape[3], "k", "the batch and columns of q", k);
  check(std::equal(k.shape, k.shape + 3, v.shape), "v", "the rows of k", v);
  check(k.shape[2] > 0 && (call.kv_head_map || q.shape[2] % k.shape[2] == 0), "k", "heads that divide those of q", k);
  check(std::equal(q.shape, q.shape + 3, call.out.shape) && call.out.shape[3] == v.shape[3] && attention::contiguous(call.out),
        "out", "the rows of q and the columns of v, contiguous", call.out);
  check_numbers("lse", call.lse, q, q.shape[0] * q.shape[1] * q.shape[2]);
  check_numbers("descale_q", call.descale_q, q, q.shape[0] * q.shape[2] * blocks_of(q.shape[1]));
  for (const auto& [name, scales] : {std::pair{"descale_k", &call.descale_k}, std::pair{"descale_v", &call.descale_v}})
    check_numbers(name, *scales, q, k.shape[0] * k.shape[2] * blocks_of(k.shape[1]));
  if (call.sinks) check_numbers("sinks", *call.sinks, q, q.shape[2]);
  if (call.kv_head_map) check_numbers("kv_head_map", *call.kv_head_map, q, q.shape[2], DType::i32);
  for (const auto& [name, moved] : {std::pair{"out_scale", &call.out_scale}, std::pair{"out_bias", &call.out_bias}})
    if (*moved) check_numbers(name, **moved, q, q.shape[2] * v.shape[3]);
}

// Strides of single rows are never used, and made fit.
tk::tensor_map encode(Machine& machine, const View& v, std::uint32_t rows, std::uint32_t columns) {
  View seen = heads_first(v);
  for (int d = 0; d < 3; ++d)
    if (seen.shape[d] == 1) seen.stride[d] = (seen.shape[3] + 15) / 16 * 16;
  const std::uint32_t box[4] = {1, 1, rows, columns};
  return machine.encode(runtime::tensor_map_of(seen, box, static_cast<int>(columns) * dtype_bytes(v.dtype)));
}

Params params_of(Machine& machine, const Call& call, const Shape& shape) {
  const View &q = call.q, &k = call.k;
  const auto width = static_cast<std::uint32_t>(shape.dim);
  Params p{};
  p.q = encode(machine, q, 64, width);
  p.out = encode(machine, call.out, 64, 64);
  const bool any = k.elements() > 0;  // without keys no block is ever loaded
  p.k = any ? encode(machine, k, kBlock, width) : p.q;
  p.v = any ? encode(machine, call.v, kBlock, width) : p.q;
  p.out_data = call.out.data;
  p.lse = static_cast<float*>(call.lse.data);
  p.sinks = data_of<float>(call.sinks);
  p.kv_head_map = data_of<int>(call.kv_head_map);
  p.out_scale = data_of<float>(call.out_scale);
  p.out_bias = data_of<float>(call.out_bias);
  p.descale_q = static_cast<const float*>(call.descale_q.data);
  p.descale_k = static_cast<const float*>(call.descale_k.data);
  p.descale_v = static_cast<const float*>(call.descale_v.data);
  p.sequences = static_cast<int>(q.shape[0]);
  p.heads = static_cast<int>(q.shape[2]);
  p.kv_heads = static_cast<int>(k.shape[2]);
  p.group = std::max(1, p.heads / p.kv_heads);
  p.seq_q = static_cast<int>(q.shape[1]);
  p.seq_k = static_cast<int>(k.shape[1]);
  p.dim_v = static_cast<int>(call.v.shape[3]);
  p.tiles = p.q_blocks = static_cast<int>(blocks_of(p.seq_q));
  p.k_blocks = static_cast<int>(blocks_of(p.seq_k));
  const std::int64_t bytes = std::max<std::int64_t>(1, k.shape[1] * (k.shape[3] + p.dim_v));  // of one key head
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
  const Shape& shape = kShapes[std::max(call.q.shape[3], call.v.shape[3]) > kShapes[0].dim ? 1 : 0];
  const std::string name = "attention_fp8_" + std::to_string(shape.dim);
  if (call.out.elements() == 0) return name;
  const Params p = params_of(machine, call, shape);
  const std::int64_t tasks = std::int64_t{p.sequences} * p.heads * p.tiles;
  if (tasks >= kLongest)
    throw std::invalid_argument("attention_fp8: need fewer than 2^30 query tiles, got " + std::to_string(tasks));
  std::vector<View> views = {call.out, call.lse};
  for (const View* v : {&call.q, &call.k, &call.v, &call.descale_q, &call.descale_k, &call.descale_v})
    views.push_back(v->read_only());
  for (const auto* extra : {&call.sinks, &call.kv_head_map, &call.out_scale, &call.out_bias})
    if (*extra) views.push_back((*extra)->read_only());
  const auto grid = std::min<std::int64_t>(tasks, machine.multiprocessors(call.q.device));
  machine.launch(machine.kernel("attention_fp8", name), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
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
                        const Optional& out_bias, double scale, std::int64_t left, std::int64_t right, double softcap) {
  return launch(machine, stream, {q, k, v, out, lse, descale_q, descale_k, descale_v, sinks, kv_head_map, out_scale, out_bias,
                                  scale, left, right, softcap});
}

const runtime::Launcher registered("attention_fp8", from_python,
                                   {"q", "k", "v", "out", "lse", "descale_q", "descale_k", "descale_v", "sinks",
                                    "kv_head_map", "out_scale", "out_bias", "scale", "left", "right", "softcap"});

}  // namespace

}  // namespace tkpy::attention_fp8
