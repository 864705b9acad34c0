// Host side of merge_state: one launch each way.
#include "host.h"
#include "merge_params.h"

namespace tkpy::rows {

namespace {

struct MergeLaunch {
  Checks checks;
  MergeParams p{};
  std::vector<View> views;
  std::uintptr_t bits = 0;
  const View& x;  // out1

  MergeLaunch(const char* op, const View& first) : checks(op, first), x(first) {
    checks.that(x.rank == 4 && is_float(x.dtype), "out1", "four dimensions of bf16, f16 or f32", x);
    checks.that(x.shape[1] < std::int64_t{1} << 30 && x.shape[2] < std::int64_t{1} << 30 && x.shape[3] <= kWidestMerge, "out1",
                "fewer than 2^30 tokens and heads, at most 4096 channels", x);
    bits |= static_cast<std::uintptr_t>(x.shape[3] * dtype_bytes(x.dtype));
  }

  // [batch, token, head, element], the elements of a row contiguous.
  PerHead rows(const char* what, const Optional& v, bool written) {
    if (!v) return {};
    checks.that(has_shape(*v, {x.shape[0], x.shape[1], x.shape[2], x.shape[3]}) && v->dtype == x.dtype && v->device == x.device,
                what, "out1's shape, type and device", *v);
    checks.that(v->stride[3] == 1 || v->shape[3] <= 1 || v->elements() == 0, what, "contiguous channels", *v);
    views.push_back(written ? *v : v->read_only());
    bits |= reinterpret_cast<std::uintptr_t>(v->data);
    for (int i = 0; i < 3; ++i)
      if (v->shape[i] > 1) bits |= static_cast<std::uintptr_t>(v->stride[i] * dtype_bytes(v->dtype));
    return {v->data, v->stride[0], v->stride[1], v->stride[2]};
  }
  // [batch, head, token] of f32.
  PerHead numbers(const char* what, const Optional& v, bool written) {
    if (!v) return {};
    checks.that(has_shape(*v, {x.shape[0], x.shape[2], x.shape[1]}) && v->dtype == DType::f32 && v->device == x.device, what,
                "an f32 for each sequence, head and token of out1", *v);
    views.push_back(written ? *v : v->read_only());
    return {v->data, v->stride[0], v->stride[2], v->stride[1]};
  }
  void parts(const View& lse1, const View& out2, const View& lse2) {
    p.out[0] = rows("out1", x, false), p.out[1] = rows("out2", out2, false);
    p.lse[0] = numbers("lse1", lse1, false), p.lse[1] = numbers("lse2", lse2, false);
  }
  std::string launch(Machine& machine, void* stream, const std::string& module) {
    const std::string name = module + "_" + type_name(x.dtype);
    p.length = static_cast<int>(x.shape[1]);
    p.heads = static_cast<int>(x.shape[2]);
    p.size = static_cast<int>(x.shape[3]);
    p.lanes = lanes_for(p.size, kMostMergeThreads);
    p.grain = grain_of(bits);
    const int block = p.lanes <= 32 ? kThreads : p.lanes, teams = block / p.lanes;
    p.blocks = static_cast<unsigned>((p.length + teams - 1) / teams);
    const std::int64_t ctas = x.shape[0] * p.blocks * p.heads;
    checks.that(ctas < std::int64_t{1} << 31, "out1", "fewer than 2^31 CTAs' work", x);
    if (ctas == 0) return name;
    machine.launch(machine.kernel(module, name),
                   {.grid = {static_cast<std::uint32_t>(ctas)},
                    .block = {static_cast<std::uint32_t>(block)},
                    .cluster = {},
                    .params = runtime::bytes_of(p),
                    .views = views,
                    .stream = stream,
                    .device = x.device});
    return name;
  }
};

std::string forward(Machine& machine, void* stream, const View& out1, const View& lse1, const View& out2, const View& lse2,
                    const View& out, const View& lse) {
  MergeLaunch merge("merge_forward", out1);
  merge.parts(lse1, out2, lse2);
  merge.p.merged = merge.rows("out", out, true);
  merge.p.merged_lse = merge.numbers("lse", lse, true);
  return merge.launch(machine, stream, "rows_merge_forward");
}

std::string backward(Machine& machine, void* stream, const View& out1, const View& lse1, const View& out2, const View& lse2,
                     const Optional& dout, const Optional& dlse, const Optional& dout1, const Optional& dlse1,
                     const Optional& dout2, const Optional& dlse2) {
  MergeLaunch merge("merge_backward", out1);
  merge.parts(lse1, out2, lse2);
  merge.p.dy = merge.rows("dout", dout, false);
  merge.p.dlse = merge.numbers("dlse", dlse, false);
  merge.p.dout[0] = merge.rows("dout1", dout1, true), merge.p.dout[1] = merge.rows("dout2", dout2, true);
  merge.p.dpart_lse[0] = merge.numbers("dlse1", dlse1, true), merge.p.dpart_lse[1] = merge.numbers("dlse2", dlse2, true);
  return merge.launch(machine, stream, "rows_merge_backward");
}

const runtime::Launcher merge_forward("merge_forward", forward, {"out1", "lse1", "out2", "lse2", "out", "lse"});
const runtime::Launcher merge_backward("merge_backward", backward,
                                       {"out1", "lse1", "out2", "lse2", "dout", "dlse", "dout1", "dlse1", "dout2", "dlse2"});

}  // namespace

}  // namespace tkpy::rows
