// Host side of the attention backward: which kernels serve a call, and the call itself: rows, the main kernel, dq.
#include <algorithm>
#include <vector>

#include "kernels/attention_forward/checks.h"
#include "kernels/block_lists/checks.h"
#include "params.h"

namespace tkpy::attention_backward {

namespace {

using attention::Checks;
using attention::data_of;
using attention::heads_first;
using attention::kLongest;
using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

struct Call {
  View q, k, v, z, dout, lse;
  Optional dlse, out_scale, kv_head_map, cu_seqlens_q, cu_seqlens_k;
  View dq, dk, dv;
  Optional dz, delta;
  View stats, dq_sum;
  Optional turns;
  double scale;
  std::int64_t left, right;
  double softcap;
  std::optional<block_lists::Tensors> by_keys = {}, by_queries = {};
  bool packed() const { return cu_seqlens_q.has_value(); }
};

constexpr std::int64_t kWidest = 256;

const Shape& shape_for(const Call& call) {
  const std::int64_t dim = call.q.shape[call.q.rank - 1], dim_v = call.v.shape[call.v.rank - 1];
  const auto serves = [&](const Shape& shape) {
    return shape.dim >= dim && shape.dim_v() >= dim_v && (shape.mask == 0 || 8 * shape.mask == call.by_keys->block);
  };
  // The last takes all that is not refused.
  return call.by_keys ? *std::ranges::find_if(kBlockShapes, serves) : *std::ranges::find_if(kShapes, serves);
}

// Of all heads: query tiles, or tiles of keys (params.h).
std::int64_t tiles_of(const Call& call, std::int64_t rows, std::int64_t size) {
  return call.packed() ? rows / size + call.cu_seqlens_q->elements() - 1 : (rows + size - 1) / size;
}

void check_like(const Checks& check, const char* what, const View& v, const View& other, const char* needed) {
  check.tensor(what, v);
  check(std::equal(other.shape, other.shape + other.rank, v.shape), what, needed, v);
}

void check_gradient(const Checks& check, const char* what, const View& v, const View& other) {
  check_like(check, what, v, other, "the shape of what it is the gradient of, contiguous");
  check(attention::contiguous(v), what, "the shape of what it is the gradient of, contiguous", v);
}

void check_call(const Call& call) {
  const Checks check{"attention_backward", call.q, call.packed(), kWidest};
  check.operands(call.k, call.v, call.kv_head_map.has_value());
  check.output("z", call.z, call.v);
  check_like(check, "dout", call.dout, call.z, "the shape of z");
  check_gradient(check, "dq", call.dq, call.q);
  check_gradient(check, "dk", call.dk, call.k);
  check_gradient(check, "dv", call.dv, call.v);
  check(call.dz.has_value() == call.out_scale.has_value(), "dz", "given with out_scale, and only then", call.z);
  if (call.dz) check_gradient(check, "dz", *call.dz, call.z);
  const View q = heads_first(call.q);
  const std::int64_t heads = q.shape[1], rows = q.shape[0] * heads * q.shape[2];
  check.offsets(call.cu_seqlens_q, call.cu_seqlens_k);
  check.extra("lse", call.lse, DType::f32, rows);
  check.extra("dlse", call.dlse, DType::f32, rows);
  check.extra("delta", call.delta, DType::f32, rows);
  check.extra("out_scale", call.out_scale, DType::f32, heads * call.v.shape[call.v.rank - 1]);
  check.extra("kv_head_map", call.kv_head_map, DType::i32, heads);
  if (call.by_keys) {
    call.by_keys->check(check, q.shape[0], heads, heads_first(call.k).shape[2]);
    call.by_queries->check(check, q.shape[0], heads, q.shape[2]);
  }
  const Shape& shape = shape_for(call);
  const std::int64_t tiles = q.shape[0] * heads * tiles_of(call, q.shape[2], shape.rows);
  check.extra("stats", call.stats, DType::f32, tiles * 2 * shape.rows);
  check.extra("dq_sum", call.dq_sum, DType::f32, tiles * 2 * shape.part());
  check.extra("turns", call.turns, DType::i32, tiles * 2);
}

void describe_tensors(Machine& machine, const Call& call, const Shape& shape, Params& p) {
  const auto encode = [&](const View& v, int rows, int panel) {
    const std::uint32_t box[4] = {1, 1, static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(panel)};
    return machine.encode(runtime::tensor_map_of(heads_first(v), box, 2 * panel));
  };
  const auto of_keys = [&](const View& v) { return encode(v, shape.keys, shape.key_panel()); };
  const auto of_queries = [&](const View& v) { return encode(v, shape.rows, shape.panel()); };
  p.k = of_keys(call.k);
  p.v = of_keys(call.v);
  p.dk = of_keys(call.dk);
  p.dv = of_keys(call.dv);
  const bool any = call.q.elements() > 0;  // without queries none is ever loaded
  p.q = any ? of_queries(call.q) : p.k;
  p.dz = any ? of_queries(call.dz ? *call.dz : call.dout) : p.v;
}

void describe_data(const Call& call, Params& p) {
  p.dk_data = call.dk.data;
  p.dv_data = call.dv.data;
  p.dq_data = call.dq.data;
  p.stats = static_cast<float*>(call.stats.data);
  p.dq_sum = static_cast<float*>(call.dq_sum.data);
  p.turns = data_of<unsigned>(call.turns);
  p.z = call.z.data;
  p.dout = call.dout.data;
  p.dz_data = data_of(call.dz);
  p.lse = static_cast<const float*>(call.lse.data);
  p.dlse = data_of<float>(call.dlse);
  p.delta = data_of<float>(call.delta);
  p.out_scale = data_of<float>(call.out_scale);
  p.kv_head_map = data_of<int>(call.kv_head_map);
  p.cu_seqlens_q = data_of<int>(call.cu_seqlens_q);
  p.cu_seqlens_k = data_of<int>(call.cu_seqlens_k);
}

BlockParams params_of(const Call& call, const Shape& shape) {
  BlockParams p{};
  describe_data(call, p);
  if (call.by_keys) {
    p.by_keys = call.by_keys->lists();
    p.by_queries = call.by_queries->lists();
  }
  const View q = heads_first(call.q), k = heads_first(call.k), v = heads_first(call.v), dout = heads_first(call.dout);
  p.dout_stride[0] = dout.stride[0];
  p.dout_stride[1] = dout.stride[2];
  p.dout_stride[2] = dout.stride[1];
  p.sequences = static_cast<int>(call.packed() ? call.cu_seqlens_q->elements() - 1 : q.shape[0]);
  p.heads = static_cast<int>(q.shape[1]);
  p.kv_heads = static_cast<int>(k.shape[1]);
  p.group = std::max(1, p.heads / std::max(1, p.kv_heads));
  p.seq_q = static_cast<int>(q.shape[2]);
  p.seq_k = static_cast<int>(k.shape[2]);
  p.dim = static_cast<int>(q.shape[3]);
  p.dim_v = static_cast<int>(v.shape[3]);
  p.rows = shape.rows;
  p.q_tiles = static_cast<int>(tiles_of(call, p.seq_q, shape.rows));
  p.k_tiles = static_cast<int>(tiles_of(call, p.seq_k, shape.keys));
  // Of the query heads of a pair: q, dz, and dq in fp32.
  const std::int64_t bytes = std::max<std::int64_t>(1, std::int64_t{p.group} * p.seq_q * 8 * shape.dim);
  const std::int64_t pairs = std::max<std::int64_t>(1, (call.packed() ? 1 : q.shape[0]) * p.kv_heads);
  p.pairs_at_once = static_cast<int>(std::clamp<std::int64_t>(attention::kBytesInL2 / bytes, 1, pairs));
  p.left = static_cast<int>(std::min(call.left, kLongest));
  p.right = static_cast<int>(std::min(call.right, kLongest));
  constexpr double log2e = 1.4426950408889634;
  p.scale = static_cast<float>(call.scale);
  p.scale_log2 = static_cast<float>(call.scale * log2e);
  p.cap_outer = static_cast<float>(call.softcap * log2e);
  p.cap_inner = static_cast<float>(call.softcap != 0.0 ? call.scale / call.softcap : call.scale * log2e);
  return p;
}

std::string launch(Machine& machine, void* stream, const Call& call) {
  check_call(call);
  const Shape& shape = shape_for(call);
  const std::string type = call.q.dtype == DType::bf16 ? "bf16" : "fp16";
  std::string size = std::to_string(shape.dim);
  if (shape.narrow_v) size += "x" + std::to_string(shape.narrow_v);
  if (call.by_keys) size += shape.wide() ? "_blocks" : "_blocks" + std::to_string(call.by_keys->block);
  const std::string prefix = "attention_backward_" + type + "_" + size, module = "attention_backward_hd" + size;
  const bool capped = shape.always_capped || attention::is_capped(call.scale, call.softcap);
  const std::string name = prefix + (capped ? "_capped" : "_plain");
  BlockParams p = params_of(call, shape);
  const std::int64_t batch = call.packed() ? 1 : p.sequences, queries = batch * p.heads * p.q_tiles;
  const std::int64_t tasks = call.k.elements() > 0 ? batch * p.kv_heads * p.k_tiles : 0, most = std::max(queries, tasks);
  if (most >= kLongest)
    throw std::invalid_argument("attention_backward: need fewer than 2^30 tiles, got " + std::to_string(most));
  if (tasks > 0) describe_tensors(machine, call, shape, p);
  std::vector<View> views = {call.q.read_only(), call.k.read_only(), call.v.read_only(),    call.z.read_only(),
                             call.dout.read_only(), call.lse.read_only(), call.dq, call.dk, call.dv,
                             call.stats, call.dq_sum};
  for (const auto* extra : {&call.dlse, &call.out_scale, &call.kv_head_map, &call.cu_seqlens_q, &call.cu_seqlens_k})
    if (*extra) views.push_back((*extra)->read_only());
  for (const auto* extra : {&call.dz, &call.delta, &call.turns})
    if (*extra) views.push_back(**extra);
  if (call.by_keys) {
    call.by_keys->add_to(views);
    call.by_queries->add_to(views);
  }
  const auto run = [&](const std::string& where, const std::string& kernel, std::int64_t grid, int block, int shared, bool listed = false,
                       bool in_turn = false) {
    if (grid == 0) return;
    machine.launch(machine.kernel(where, kernel), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
                                                   .block = {static_cast<std::uint32_t>(block), 1, 1},
                                                   .cluster = {},
                                                   .shared = static_cast<std::uint32_t>(shared),
                                                   .params = listed ? runtime::bytes_of(p) : runtime::bytes_of<Params>(p),
                                                   .views = views,
                                                   .stream = stream,
                                                   .device = call.q.device,
                                                   .cooperative = in_turn});
  };
  run("attention_backward_rows", "attention_backward_rows_" + type, queries, 256, 0);
  const auto ctas = std::min<std::int64_t>(tasks, machine.multiprocessors(call.q.device));
  // In turn, a CTA waits for others, of any number: all must be resident, or the launch is refused.
  run(module, name, ctas, Shape::kThreads, shape.shared_bytes(), call.by_keys.has_value(), p.turns != nullptr);
  run(module, prefix + "_dq", queries, 256, 0);
  return name;
}

std::string from_python(Machine& machine, void* stream, const View& q, const View& k, const View& v, const View& z,
                        const View& dout, const View& lse, const Optional& dlse, const Optional& out_scale,
                        const Optional& kv_head_map, const Optional& cu_seqlens_q, const Optional& cu_seqlens_k,
                        const View& dq, const View& dk, const View& dv, const Optional& dz, const Optional& delta,
                        const View& stats, const View& dq_sum, const Optional& turns, double scale, std::int64_t left,
                        std::int64_t right, double softcap) {
  return launch(machine, stream, {q, k, v, z, dout, lse, dlse, out_scale, kv_head_map, cu_seqlens_q, cu_seqlens_k, dq, dk, dv,
                                  dz, delta, stats, dq_sum, turns, scale, left, right, softcap});
}

const runtime::Launcher registered("attention_backward", from_python,
                                   {"q", "k", "v", "z", "dout", "lse", "dlse", "out_scale", "kv_head_map", "cu_seqlens_q",
                                    "cu_seqlens_k", "dq", "dk", "dv", "dz", "delta", "stats", "dq_sum", "turns", "scale",
                                    "left", "right", "softcap"});

std::string by_blocks(Machine& machine, void* stream, const View& q, const View& k, const View& v, const View& z,
                      const View& dout, const View& lse, const Optional& dlse, const Optional& out_scale,
                      const Optional& kv_head_map, const View& full_count, const View& full_index, const View& partial_count,
                      const View& partial_index, const View& partial_slot, const View& masks, const View& full_count_t,
                      const View& full_index_t, const View& partial_count_t, const View& partial_index_t,
                      const View& partial_slot_t, std::int64_t block, const View& dq, const View& dk, const View& dv,
                      const Optional& dz, const Optional& delta, const View& stats, const View& dq_sum, const Optional& turns,
                      double scale, std::int64_t left, std::int64_t right, double softcap) {
  return launch(machine, stream, {q, k, v, z, dout, lse, dlse, out_scale, kv_head_map, {}, {}, dq, dk, dv, dz, delta, stats,
                                  dq_sum, turns, scale, left, right, softcap,
                                  block_lists::Tensors{full_count_t, full_index_t, partial_count_t, partial_index_t, partial_slot_t, masks, block},
                                  block_lists::Tensors{full_count, full_index, partial_count, partial_index, partial_slot, masks, block}});
}

const runtime::Launcher registered_blocks("attention_backward_blocks", by_blocks,
                                          {"q", "k", "v", "z", "dout", "lse", "dlse", "out_scale", "kv_head_map",
                                           "full_count", "full_index", "partial_count", "partial_index", "partial_slot", "masks",
                                           "full_count_t", "full_index_t", "partial_count_t", "partial_index_t",
                                           "partial_slot_t", "block", "dq", "dk", "dv", "dz", "delta", "stats", "dq_sum",
                                           "turns", "scale", "left", "right", "softcap"});

}  // namespace

}  // namespace tkpy::attention_backward
