// Host side of the attention forward: which kernel serves a call, and the call itself.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "kernels/block_lists/checks.h"
#include "params.h"
#include "tk/layout.h"

namespace tkpy::attention_forward {

namespace {

using attention::Checks;
using attention::data_of;
using attention::heads_first;
using attention::kLongest;
using runtime::DType;
using runtime::Machine;
using runtime::View;

struct Call {
  View q, k, v, out, lse;
  std::optional<View> plain, sinks, out_scale, out_bias, kv_head_map, cu_seqlens_q, cu_seqlens_k;
  double scale;
  std::int64_t left, right;
  double softcap;
  std::int64_t max_seqlen_q;
  std::optional<block_lists::Tensors> blocks = {};
  bool packed() const { return cu_seqlens_q.has_value(); }
};

void check_call(const Call& call) {
  const Checks check{"attention_forward", call.q, call.packed(), 256};
  check.operands(call.k, call.v, call.kv_head_map.has_value());
  check.output("out", call.out, call.v);
  if (call.plain) check.output("plain", *call.plain, call.v);
  const View q = heads_first(call.q);
  const std::int64_t heads = q.shape[1], columns = heads * call.v.shape[call.v.rank - 1];
  check.extra("lse", call.lse, DType::f32, q.shape[0] * heads * q.shape[2]);
  check.extra("sinks", call.sinks, DType::f32, heads);
  check.extra("out_scale", call.out_scale, DType::f32, columns);
  check.extra("out_bias", call.out_bias, DType::f32, columns);
  check.extra("kv_head_map", call.kv_head_map, DType::i32, heads);
  check.offsets(call.cu_seqlens_q, call.cu_seqlens_k);
  if (call.blocks) call.blocks->check(check, q.shape[0], heads, q.shape[2]);
}

// A shape and the part of its module's and kernels' names.
struct Choice {
  const Shape& shape;
  std::string module, name;
};

Choice choose(const Call& call) {
  const std::int64_t dim = call.q.shape[call.q.rank - 1], dim_v = call.v.shape[call.v.rank - 1];
  const Shape* shape = kShapes;
  if (call.blocks) shape = kBlockShapes + (call.blocks->block == 64 ? kWidths : 0);
  while (shape->dim < dim || shape->dim_v < dim_v) ++shape;  // the last takes all that is not refused
  const std::string width = std::to_string(shape->dim), of_values = "x" + std::to_string(shape->dim_v);
  const std::string lists = call.blocks ? "_blocks" + std::to_string(call.blocks->block) : "";
  return {*shape, "attention_forward_hd" + width + lists, width + (shape->dim_v == shape->dim ? "" : of_values) + lists};
}

void describe_tensors(Machine& machine, const Call& call, const Shape& shape, Params& p) {
  const auto encode = [&](const View& v, std::uint32_t rows, int width) {
    const int swizzle = tk::widest_swizzle(2 * width);  // the tile's own
    const std::uint32_t box[4] = {1, 1, rows, static_cast<std::uint32_t>(swizzle / 2)};
    return machine.encode(runtime::tensor_map_of(heads_first(v), box, swizzle));
  };
  const auto keys = static_cast<std::uint32_t>(shape.keys);
  p.q = encode(call.q, 64, shape.dim);
  p.out = encode(call.out, 64, shape.dim_v);
  p.plain = call.plain ? encode(*call.plain, 64, shape.dim_v) : p.out;
  const bool any = call.k.elements() > 0;  // without keys no block is ever loaded
  p.k = any ? encode(call.k, keys, shape.dim) : p.q;
  p.v = any ? encode(call.v, keys, shape.dim_v) : p.q;
  p.out_data = call.out.data;
  p.plain_data = call.plain ? call.plain->data : nullptr;
  p.lse = static_cast<float*>(call.lse.data);
  p.sinks = data_of<float>(call.sinks);
  p.out_scale = data_of<float>(call.out_scale);
  p.out_bias = data_of<float>(call.out_bias);
  p.kv_head_map = data_of<int>(call.kv_head_map);
  p.cu_seqlens_q = data_of<int>(call.cu_seqlens_q);
  p.cu_seqlens_k = data_of<int>(call.cu_seqlens_k);
}

BlockParams params_of(Machine& machine, const Call& call, const Shape& shape) {
  BlockParams p{};
  if (call.blocks) p.lists = call.blocks->lists();
  describe_tensors(machine, call, shape, p);
  const View q = heads_first(call.q), k = heads_first(call.k), v = heads_first(call.v);
  p.sequences = static_cast<int>(call.packed() ? call.cu_seqlens_q->elements() - 1 : q.shape[0]);
  p.heads = static_cast<int>(q.shape[1]);
  p.group = std::max(1, p.heads / static_cast<int>(std::max<std::int64_t>(1, k.shape[1])));
  p.seq_q = static_cast<int>(q.shape[2]);
  p.seq_k = static_cast<int>(k.shape[2]);
  p.dim_v = static_cast<int>(v.shape[3]);
  const int rows = shape.rows(), whole = (p.seq_q + rows - 1) / rows;
  p.tiles = whole;
  if (call.packed()) {  // each sequence adds at most one tile that is not full; none has more than the longest
    p.tiles += p.sequences;
    if (call.max_seqlen_q >= 0) {
      const std::int64_t most = std::min<std::int64_t>(call.max_seqlen_q, p.seq_q);
      p.tiles = static_cast<int>(std::min<std::int64_t>(p.tiles, (most + rows - 1) / rows * p.sequences));
    }
  }
  const std::int64_t bytes = std::max<std::int64_t>(1, 2 * k.shape[2] * (k.shape[3] + v.shape[3]));  // of one key head
  p.heads_at_once = static_cast<int>(std::clamp<std::int64_t>(attention::kBytesInL2 / bytes, 1, kLongest) * (call.kv_head_map ? 1 : p.group));
  p.heads_at_once = static_cast<int>(std::min<std::int64_t>(p.heads_at_once, std::int64_t{p.sequences} * p.heads));
  p.left = static_cast<int>(std::min(call.left, kLongest));
  p.right = static_cast<int>(std::min(call.right, kLongest));
  p.scale_log2 = static_cast<float>(call.scale * 1.4426950408889634);
  p.cap_outer = static_cast<float>(call.softcap * 1.4426950408889634);
  p.cap_inner = static_cast<float>(call.softcap != 0.0 ? call.scale / call.softcap : call.scale * 1.4426950408889634);
  return p;
}

std::string launch(Machine& machine, void* stream, const Call& call) {
  check_call(call);
  const auto [shape, module, size] = choose(call);
  const bool capped = shape.always_capped || attention::is_capped(call.scale, call.softcap);
  const std::string name = std::string("attention_forward_") + (call.q.dtype == DType::bf16 ? "bf16_" : "fp16_") +
                           size + (capped ? "_capped" : "_plain");
  if (call.out.elements() == 0) return name;
  const BlockParams p = params_of(machine, call, shape);
  const std::int64_t tasks = std::int64_t{call.packed() ? 1 : p.sequences} * p.heads * p.tiles;
  if (tasks >= std::numeric_limits<int>::max() / 2)
    throw std::invalid_argument("attention_forward: need fewer than 2^30 query tiles, got " + std::to_string(tasks));
  std::vector<View> views = {call.q.read_only(), call.k.read_only(), call.v.read_only(), call.out, call.lse};
  if (call.plain) views.push_back(*call.plain);
  for (const auto* extra : {&call.sinks, &call.out_scale, &call.out_bias, &call.kv_head_map, &call.cu_seqlens_q, &call.cu_seqlens_k})
    if (*extra) views.push_back((*extra)->read_only());
  if (call.blocks) call.blocks->add_to(views);
  const auto grid = std::min<std::int64_t>(tasks, std::int64_t{shape.ctas} * machine.multiprocessors(call.q.device));
  machine.launch(machine.kernel(module, name), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
                                                        .block = {static_cast<std::uint32_t>(shape.threads()), 1, 1},
                                                        .cluster = {},
                                                        .shared = static_cast<std::uint32_t>(shape.shared_bytes()),
                                                        .params = call.blocks ? runtime::bytes_of(p) : runtime::bytes_of<Params>(p),
                                                        .views = views,
                                                        .stream = stream,
                                                        .device = call.q.device});
  return name;
}

using Optional = std::optional<View>;

std::string from_python(Machine& machine, void* stream, const View& q, const View& k, const View& v, const View& out,
                        const View& lse, const Optional& plain, const Optional& sinks, const Optional& out_scale,
                        const Optional& out_bias, const Optional& kv_head_map, const Optional& cu_seqlens_q,
                        const Optional& cu_seqlens_k, double scale, std::int64_t left, std::int64_t right, double softcap,
                        std::int64_t max_seqlen_q) {
  return launch(machine, stream, {q, k, v, out, lse, plain, sinks, out_scale, out_bias, kv_head_map, cu_seqlens_q,
                                  cu_seqlens_k, scale, left, right, softcap, max_seqlen_q});
}

const runtime::Launcher registered("attention_forward", from_python,
                                   {"q", "k", "v", "out", "lse", "plain", "sinks", "out_scale", "out_bias", "kv_head_map",
                                    "cu_seqlens_q", "cu_seqlens_k", "scale", "left", "right", "softcap", "max_seqlen_q"});

std::string by_blocks(Machine& machine, void* stream, const View& q, const View& k, const View& v, const View& out,
                      const View& lse, const Optional& plain, const Optional& sinks, const Optional& out_scale,
                      const Optional& out_bias, const Optional& kv_head_map, const View& full_count, const View& full_index,
                      const View& partial_count, const View& partial_index, const View& partial_slot, const View& masks,
                      std::int64_t block, double scale, std::int64_t left, std::int64_t right, double softcap) {
  return launch(machine, stream, {q, k, v, out, lse, plain, sinks, out_scale, out_bias, kv_head_map, {}, {}, scale, left,
                                  right, softcap, -1,
                                  block_lists::Tensors{full_count, full_index, partial_count, partial_index, partial_slot, masks, block}});
}

const runtime::Launcher registered_blocks("attention_forward_blocks", by_blocks,
                                          {"q", "k", "v", "out", "lse", "plain", "sinks", "out_scale", "out_bias",
                                           "kv_head_map", "full_count", "full_index", "partial_count", "partial_index",
                                           "partial_slot", "masks", "block", "scale", "left", "right", "softcap"});

}  // namespace

}  // namespace tkpy::attention_forward
