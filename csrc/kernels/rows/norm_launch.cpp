// Host side of rms_norm and layer_norm: forward is one launch; backward two, of which the second adds the CTAs' shares of
// the gradients of weight and bias.
#include <cmath>

#include "host.h"

namespace tkpy::rows {

namespace {

struct Common {
  std::int64_t rows, columns;
  double eps;
  bool inside;
  double dropout;
};

void check_numbers(const Checks& checks, const View& x, const Common& c) {
  checks.that(x.rank == 2 && is_float(x.dtype), "x", "two dimensions of bf16, f16 or f32", x);
  checks.that(c.columns < std::int64_t{1} << 30, "x", "fewer than 2^30 columns", x);
  if (!(c.dropout >= 0.0 && c.dropout < 1.0))
    throw std::invalid_argument("norm: dropout: need a number from 0 to below 1, got " + std::to_string(c.dropout));
}

NormParams common(const Common& c, int lanes) {
  NormParams p{};
  p.rows = c.rows;
  p.columns = static_cast<int>(c.columns);
  p.lanes = lanes;
  p.eps = static_cast<float>(c.eps);
  p.inside = c.inside;
  p.threshold = static_cast<unsigned>(std::min(std::floor(c.dropout * 4294967296.0), 4294967295.0));
  p.scale = static_cast<float>(1.0 / (1.0 - c.dropout));
  return p;
}

int block_of(int lanes) { return lanes <= 32 ? kThreads : lanes; }

void check_seed(const Checks& checks, const View& x, const Optional& seed, const Common& c) {
  checks.that(c.dropout == 0.0 || seed.has_value(), "seed", "one i64 where there is dropout", x);
}

std::string forward(Machine& machine, void* stream, const View& x, const Optional& residual, const Optional& weight,
                    const Optional& bias, const Optional& seed, const View& y, const Optional& z, const Optional& mean,
                    const Optional& rstd, double eps, bool inside, double dropout) {
  Checks checks("norm_forward", x);
  const Common c{x.shape[0], x.shape[1], eps, inside, dropout};
  check_numbers(checks, x, c);
  check_seed(checks, x, seed, c);
  const DType stream_type = residual ? residual->dtype : x.dtype;
  checks.that(stream_type == x.dtype || stream_type == DType::f32, "residual", "x's type or f32", residual.value_or(x));
  const bool joined = residual || dropout > 0.0, layer = mean.has_value();
  checks.that(joined == z.has_value(), "z", "it with a residual or dropout, and only then", z.value_or(x));
  checks.that(layer == rstd.has_value() && (layer || !bias), "mean", "mean and rstd, or neither and no bias", mean.value_or(x));
  const int lanes = lanes_for(c.columns, kMostThreads);
  NormParams p = common(c, lanes);
  p.x = checks.matrix("x", x, c.rows, c.columns, x.dtype, false);
  p.residual = checks.matrix("residual", residual, c.rows, c.columns, stream_type, false);
  p.y = checks.matrix("y", y, c.rows, c.columns, x.dtype, true);
  p.z = checks.matrix("z", z, c.rows, c.columns, stream_type, true);
  p.grain = checks.grain();
  for (const Optional* v : {&weight, &bias})
    checks.that(!*v || (*v)->dtype == x.dtype || (*v)->dtype == DType::f32, "weight, bias", "x's type or f32", v->value_or(x));
  p.weight = checks.vector("weight", weight, c.columns, true, x.dtype, false);
  p.bias = checks.vector("bias", bias, c.columns, true, x.dtype, false);
  p.mean = checks.data<float>("mean", mean, c.rows, DType::f32, true);
  p.rstd = checks.data<float>("rstd", rstd, c.rows, DType::f32, true);
  p.seed = checks.data<const long long>("seed", seed, 1, DType::i64, false);
  const std::string name = std::string(layer ? "rows_layer" : "rows_rms") + "_norm_forward_" + type_name(x.dtype) + "_" + type_name(stream_type);
  if (x.elements() == 0) return name;
  const int block = block_of(lanes), teams = block / lanes;
  const std::int64_t ctas = ctas_for((c.rows + teams - 1) / teams, machine.multiprocessors(x.device), block, 512);
  machine.launch(machine.kernel("rows_norm_forward", name),
                 {.grid = {static_cast<std::uint32_t>(ctas)},
                  .block = {static_cast<std::uint32_t>(block)},
                  .cluster = {},
                  .params = runtime::bytes_of(p),
                  .views = checks.views(),
                  .stream = stream,
                  .device = x.device});
  return name;
}

std::string backward(Machine& machine, void* stream, const View& dy, const View& z, const Optional& dz, const Optional& weight,
                     const Optional& mean, const Optional& rstd, const Optional& seed, const View& dx, const Optional& dresidual,
                     const View& partial, const Optional& dweight, const Optional& dbias, double eps, bool inside,
                     double dropout) {
  Checks checks("norm_backward", dy);
  const Common c{dy.shape[0], dy.shape[1], eps, inside, dropout};
  check_numbers(checks, dy, c);
  check_seed(checks, dy, seed, c);
  const bool layer = mean.has_value();
  checks.that(z.dtype == dy.dtype || z.dtype == DType::f32, "z", "dy's type or f32", z);
  checks.that(layer == rstd.has_value() && (layer || !dbias), "mean", "mean and rstd, or neither and no dbias", mean.value_or(dy));
  checks.that(partial.rank == 3 && partial.dtype == DType::f32 && partial.shape[0] == (layer ? 2 : 1) &&
                  partial.shape[2] == c.columns && partial.shape[1] < 1 << 20 && partial.extent() == 4 * partial.elements(),
              "partial", "[1 (layer: 2), CTAs, columns] contiguous f32", partial);
  const int lanes = lanes_for(c.columns, kMostThreadsBackward);
  NormParams p = common(c, lanes);
  p.dy = checks.matrix("dy", dy, c.rows, c.columns, dy.dtype, false);
  p.z = checks.matrix("z", z, c.rows, c.columns, z.dtype, false);
  p.dz = checks.matrix("dz", dz, c.rows, c.columns, z.dtype, false);
  p.dx = checks.matrix("dx", dx, c.rows, c.columns, dy.dtype, true);
  p.dresidual = checks.matrix("dresidual", dresidual, c.rows, c.columns, z.dtype, true);
  p.grain = checks.grain();
  checks.that(!weight || weight->dtype == dy.dtype || weight->dtype == DType::f32, "weight", "dy's type or f32", weight.value_or(dy));
  p.weight = checks.vector("weight", weight, c.columns, true, dy.dtype, false);
  p.mean = checks.data<float>("mean", mean, c.rows, DType::f32, false);
  p.rstd = checks.data<float>("rstd", rstd, c.rows, DType::f32, false);
  p.seed = checks.data<const long long>("seed", seed, 1, DType::i64, false);
  p.partial = static_cast<float*>(partial.data);
  const std::string name = std::string(layer ? "rows_layer" : "rows_rms") + "_norm_backward_" + type_name(dy.dtype) + "_" + type_name(z.dtype);
  if (dy.elements() == 0 || partial.shape[1] == 0) return name;
  std::vector<View> views = checks.views();
  views.push_back(partial);
  machine.launch(machine.kernel("rows_norm_backward", name),
                 {.grid = {static_cast<std::uint32_t>(partial.shape[1])},
                  .block = {static_cast<std::uint32_t>(block_of(lanes))},
                  .cluster = {},
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = dy.device});
  sum_shares("norm_backward", machine, stream, partial, {dweight, dbias}, c.columns);
  return name;
}

const runtime::Launcher norm_forward("norm_forward", forward,
                                     {"x", "residual", "weight", "bias", "seed", "y", "z", "mean", "rstd", "eps", "inside",
                                      "dropout"});
const runtime::Launcher norm_backward("norm_backward", backward,
                                      {"dy", "z", "dz", "weight", "mean", "rstd", "seed", "dx", "dresidual", "partial",
                                       "dweight", "dbias", "eps", "inside", "dropout"});

}  // namespace

}  // namespace tkpy::rows
