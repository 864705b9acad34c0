// Host side of wkv5_step: checks, the kernel for the head size, a CTA a row and head.
#include <limits>

#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::wkv5_step {

namespace {

using rows::Optional;
using runtime::DType;
using runtime::Machine;
using runtime::View;

int width_for(std::int64_t size) {
  for (const int width : kWidths)
    if (size <= width) return width;
  return 0;
}

std::string step(Machine& machine, void* stream, const View& r, const View& k, const View& v, const View& w, const View& u,
                 const Optional& weight, const Optional& bias, const Optional& gate, const Optional& initial,
                 const View& y, const View& final, double eps) {
  rows::Checks checks("wkv5_step", r);
  checks.that(r.rank == 3 && rows::is_float(r.dtype), "r", "three dimensions of bf16, f16 or f32", r);
  const std::int64_t units = r.shape[0] * r.shape[1], heads = r.shape[1], size = r.shape[2], count = units * size;
  const int width = width_for(size);
  checks.that(width > 0, "r", "heads of at most 128 channels", r);
  checks.that(units <= std::numeric_limits<int>::max(), "r", "fewer than 2^31 rows of heads", r);
  if (!(eps >= 0.0)) throw std::invalid_argument("wkv5_step: eps: need a number that is not negative, got " + std::to_string(eps));
  Params p{};
  p.r = checks.vector("r", r, count, false, r.dtype, false).data;
  p.k = checks.vector("k", k, count, false, r.dtype, false).data;
  p.v = checks.vector("v", v, count, false, r.dtype, false).data;
  p.gate = checks.vector("gate", gate, count, false, r.dtype, false).data;
  p.y = const_cast<void*>(checks.vector("y", y, count, false, r.dtype, true).data);
  p.w = checks.data<const float>("w", w, heads * size, DType::f32, false);
  p.u = checks.data<const float>("u", u, heads * size, DType::f32, false);
  for (const Optional* each : {&weight, &bias})
    checks.that(!*each || (*each)->dtype == r.dtype || (*each)->dtype == DType::f32, "weight, bias", "r's type or f32",
                each->value_or(r));
  p.weight = checks.vector("weight", weight, heads * size, true, r.dtype, false);
  p.bias = checks.vector("bias", bias, heads * size, true, r.dtype, false);
  p.initial = checks.data<const float>("initial", initial, count * size, DType::f32, false);
  p.final = checks.data<float>("final", final, count * size, DType::f32, true);
  p.heads = static_cast<int>(heads);
  p.size = static_cast<int>(size);
  const auto addresses = reinterpret_cast<std::uintptr_t>(p.initial) | reinterpret_cast<std::uintptr_t>(p.final);
  p.whole = size % kColumns == 0 && addresses % 16 == 0;
  p.eps = static_cast<float>(eps);
  const std::string name = std::string("wkv5_step_") + rows::type_name(r.dtype) + "_" + std::to_string(width);
  if (r.elements() == 0) return name;
  machine.launch(machine.kernel("wkv5_step", name), {.grid = {static_cast<std::uint32_t>(units)},
                                                     .block = {static_cast<std::uint32_t>(threads_of(width))},
                                                     .cluster = {},
                                                     .params = runtime::bytes_of(p),
                                                     .views = checks.views(),
                                                     .stream = stream,
                                                     .device = r.device});
  return name;
}

const runtime::Launcher registered("wkv5_step", step,
                                   {"r", "k", "v", "w", "u", "weight", "bias", "gate", "initial", "y", "final", "eps"});

}  // namespace

}  // namespace tkpy::wkv5_step
