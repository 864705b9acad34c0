// Host side of group_norm: forward is one launch; backward two, of which the second adds the teams' shares of the
// gradients of weight and bias.
#include "head_norm_params.h"
#include "host.h"

namespace tkpy::rows {

namespace {

struct HeadNormLaunch {
  Checks checks;
  HeadNormParams p{};
  std::vector<View> views;
  std::uintptr_t bits = 0;
  const View& x;
  std::int64_t rows, heads, size;

  HeadNormLaunch(const char* op, const View& input) : checks(op, input), x(input) {
    checks.that(x.rank == 3 && is_float(x.dtype), "x", "three dimensions of bf16, f16 or f32", x);
    rows = x.shape[0], heads = x.shape[1], size = x.shape[2];
    checks.that(heads < std::int64_t{1} << 30 && size <= kWidestHead, "x", "fewer than 2^30 heads of at most 4096 channels", x);
    bits |= static_cast<std::uintptr_t>(size * dtype_bytes(x.dtype));
  }

  void* matrix(const char* what, const Optional& v, bool written) {
    if (!v) return nullptr;
    checks.that(has_shape(*v, {rows, heads, size}) && v->dtype == x.dtype && v->device == x.device && contiguous(*v), what,
                "x's shape, type and device, contiguous", *v);
    views.push_back(written ? *v : v->read_only());
    bits |= reinterpret_cast<std::uintptr_t>(v->data);
    return v->data;
  }
  Vector parameter(const char* what, const Optional& v) {
    checks.that(!v || v->dtype == x.dtype || v->dtype == DType::f32, what, "x's type or f32", v.value_or(x));
    return checks.vector(what, v, heads * size, true, x.dtype, false);
  }

  // What both directions have; then the launch.
  void prepare(const Optional& gate, const Optional& weight, const Optional& bias, const View& mean, const View& rstd,
               std::int64_t splits, double eps, bool back) {
    if (splits < 1) throw std::invalid_argument("group_norm: splits: need at least 1, got " + std::to_string(splits));
    p.x = matrix("x", x, false);
    p.gate = matrix("gate", gate, false);
    p.weight = parameter("weight", weight);
    p.bias = parameter("bias", bias);
    p.mean = checks.data<float>("mean", mean, rows * heads, DType::f32, !back);
    p.rstd = checks.data<float>("rstd", rstd, rows * heads, DType::f32, !back);
    p.rows = rows;
    p.splits = splits;
    p.heads = static_cast<int>(heads);
    p.size = static_cast<int>(size);
    p.lanes = lanes_for(size, kMostHeadThreads);
    p.eps = static_cast<float>(eps);
  }
  void launch(Machine& machine, void* stream, const char* module, const std::string& name) {
    p.grain = grain_of(bits);
    views.insert(views.end(), checks.views().begin(), checks.views().end());
    const int block = p.lanes <= 32 ? kThreads : p.lanes, teams = block / p.lanes;
    const std::int64_t ctas = (p.splits * heads + teams - 1) / teams;
    checks.that(ctas < std::int64_t{1} << 31, "x", "fewer than 2^31 CTAs' work", x);
    machine.launch(machine.kernel(module, name),
                   {.grid = {static_cast<std::uint32_t>(ctas)},
                    .block = {static_cast<std::uint32_t>(block)},
                    .cluster = {},
                    .params = runtime::bytes_of(p),
                    .views = views,
                    .stream = stream,
                    .device = x.device});
  }
};

std::string forward(Machine& machine, void* stream, const View& x, const Optional& weight, const Optional& bias,
                    const Optional& gate, const View& y, const View& mean, const View& rstd, std::int64_t splits, double eps) {
  HeadNormLaunch head("head_norm_forward", x);
  head.prepare(gate, weight, bias, mean, rstd, splits, eps, false);
  head.p.y = head.matrix("y", y, true);
  const std::string name = std::string("rows_head_norm_forward_") + type_name(x.dtype);
  if (x.elements() != 0) head.launch(machine, stream, "rows_head_norm_forward", name);
  return name;
}

std::string backward(Machine& machine, void* stream, const View& x, const Optional& weight, const Optional& bias,
                     const Optional& gate, const View& mean, const View& rstd, const View& dy, const View& dx,
                     const Optional& dgate, const View& partial, const Optional& dweight, const Optional& dbias) {
  HeadNormLaunch head("head_norm_backward", x);
  head.checks.that(partial.rank == 3 && has_shape(partial, {2, partial.shape[1], head.heads * head.size}) &&
                       partial.dtype == DType::f32 && contiguous(partial) && partial.device == x.device &&
                       partial.elements() < std::int64_t{1} << 40 && partial.shape[1] < 1 << 30,
                   "partial", "[2, splits, heads * channels] contiguous f32", partial);
  head.prepare(gate, weight, bias, mean, rstd, partial.shape[1], 0.0, true);
  HeadNormParams& p = head.p;
  p.dy = head.matrix("dy", dy, false);
  p.dx = head.matrix("dx", dx, true);
  head.checks.that(!dgate || gate, "dgate", "it with a gate, and only then", dgate.value_or(x));
  p.dgate = head.matrix("dgate", dgate, true);
  p.partial = static_cast<float*>(partial.data);
  p.partial_grain = vector_grain(partial, head.size, 16 / dtype_bytes(x.dtype));
  head.views.push_back(partial);
  const std::string name = std::string("rows_head_norm_backward_") + type_name(x.dtype);
  if (x.elements() == 0) return name;
  head.launch(machine, stream, "rows_head_norm_backward", name);
  sum_shares("head_norm_backward", machine, stream, partial, {dweight, dbias}, head.heads * head.size);
  return name;
}

const runtime::Launcher head_norm_forward("head_norm_forward", forward,
                                          {"x", "weight", "bias", "gate", "y", "mean", "rstd", "splits", "eps"});
const runtime::Launcher head_norm_backward("head_norm_backward", backward,
                                           {"x", "weight", "bias", "gate", "mean", "rstd", "dy", "dx", "dgate", "partial",
                                            "dweight", "dbias"});

}  // namespace

}  // namespace tkpy::rows
