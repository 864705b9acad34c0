// Gated products by one launch of the GEMM: out_g = act(x b1_g^T) * (x' b2_g^T) for every group g.
//   x [M, channels], b1 and b2 [groups, N, K], out [M, groups N]
//   one group    x' = x: K channels
//   halves       groups are half-blocks of x's channels: the gate of group g is made of block g / 2, its value of block
//                (groups + g) / 2. Channels beyond the last read as 0
#include <algorithm>
#include <vector>

#include "launch.h"
#include "runtime/launcher.h"

namespace tkpy::gemm {

namespace {

using runtime::DType;
using runtime::View;

[[noreturn]] void refuse(const char* what, const std::string& needed, const View& got) {
  throw std::invalid_argument(std::string("gemm_gated: ") + what + ": need " + needed + ", got " + got.describe());
}

void check(const View& x, const View& b1, const View& b2, const View& out, bool halves) {
  if (x.rank != 2 || (x.dtype != DType::bf16 && x.dtype != DType::f16)) refuse("x", "two dimensions, bf16 or f16", x);
  for (const auto& [what, v] : {std::pair{"b1", &b1}, {"b2", &b2}}) {
    if (v->rank != 3 || v->dtype != x.dtype || v->device != x.device)
      refuse(what, "three dimensions, the dtype and device of x", *v);
    if (!contiguous(*v, 2)) refuse(what, "a contiguous last dimension", *v);
    if (!std::equal(v->shape, v->shape + 3, b1.shape)) refuse(what, "the shape of b1", *v);
    for (int d = 0; d < 3; ++d)
      if (v->shape[d] * std::max<std::int64_t>(v->shape[0], 1) >= (std::int64_t{1} << 31) - 512)
        refuse(what, "less than 2^31 - 512 channels", *v);
  }
  if (!halves && b1.shape[0] != 1) refuse("b1", "one group", b1);
  if (out.rank != 2 || out.dtype != x.dtype || out.device != x.device || out.shape[0] != x.shape[0] ||
      out.shape[1] != b1.shape[0] * b1.shape[1])
    refuse("out", "the rows, dtype and device of x, and groups x N columns", out);
  if (x.shape[0] >= (std::int64_t{1} << 31) - 512) refuse("x", "less than 2^31 - 512 rows", x);
}

Stored weights(const char* what, const View& v) {
  Stored s = matrices(what, v);
  s.transposed = true;  // stored N x K
  return s;
}

std::string launch_gated(runtime::Machine& machine, void* stream, const View& x, const View& b1, const View& b2,
                         const View& out, bool halves, std::string_view activation) {
  check(x, b1, b2, out, halves);
  Problem made;
  const std::int64_t groups = b1.shape[0];
  made.gating = halves ? Gating::two : Gating::shared;
  made.a = channels("x", x, 1, groups, b1.shape[2], "consecutive");
  made.b = weights("b1", b1);
  made.b2 = weights("b2", b2);
  Params& params = made.params;
  params.m = static_cast<int>(x.shape[0]);
  params.n = static_cast<int>(b1.shape[1]);
  params.k = params.share_depth = static_cast<int>(b1.shape[2]);
  params.groups = static_cast<int>(groups);
  params.shares = 1;
  params.out = channels("out", out, 1, groups, b1.shape[1], "consecutive").blocks;
  params.activation = activation_from_name(activation);
  const std::vector<View> views = {x.read_only(), b1.read_only(), b2.read_only(), out};
  made.views = views;
  made.dtype = x.dtype;
  made.stream = stream;
  made.device = x.device;
  const std::string name = kernel_name(made);
  if (out.elements() > 0) launch(machine, made);
  return name;
}

const runtime::Launcher registered("gemm_gated", launch_gated, {"x", "b1", "b2", "out", "halves", "activation"});

}  // namespace

}  // namespace tkpy::gemm
