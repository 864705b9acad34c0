// Host side of hyena_step: checks, the kernel for the number of modes, CTAs over channels and rows.
#include <algorithm>
#include <limits>

#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::hyena_step {

namespace {

using rows::Optional;
using runtime::DType;
using runtime::Machine;
using runtime::View;

constexpr int kResident = 8;  // CTAs of a multiprocessor that has channels of up to 8 modes
constexpr std::int64_t kMost = std::int64_t{1} << 28;

// `count` complex numbers, as contiguous pairs.
template <class C>
C* complex(rows::Checks& checks, const char* what, const Optional& v, std::int64_t count, bool written) {
  float* data = checks.data<float>(what, v, 2 * count, DType::f32, written);
  if (data != nullptr)
    checks.that(reinterpret_cast<std::uintptr_t>(data) % 8 == 0, what, "an address that is a multiple of 8", *v);
  return reinterpret_cast<C*>(data);
}

void check_sizes(const rows::Checks& checks, const View& z, const View& weight, const View& poles, std::int64_t groups) {
  checks.that(z.rank == 2 && rows::is_float(z.dtype) && z.shape[1] % 3 == 0, "z", "[B, 3 W] of bf16, f16 or f32", z);
  checks.that(z.shape[0] < kMost && z.shape[1] < kMost / kMostTaps, "z", "sizes below 2^28 and 2^25", z);
  checks.that(weight.rank == 2 && weight.shape[0] == z.shape[1] && weight.shape[1] >= 1 && weight.shape[1] <= kMostTaps, "weight",
              "a row of 1 to " + std::to_string(kMostTaps) + " taps for each channel of z", weight);
  checks.that(poles.rank == 3 && 3 * poles.shape[0] == z.shape[1] && poles.shape[1] <= kMostModes, "poles",
              "a row of at most " + std::to_string(kMostModes) + " complex numbers for each three channels of z", poles);
  if (groups < 1 || z.shape[1] / 3 % groups != 0)
    throw std::invalid_argument("hyena_step: groups: need a divisor of the width " + std::to_string(z.shape[1] / 3) + ", got " +
                                std::to_string(groups));
}

std::string step(Machine& machine, void* stream, const View& z, const View& weight, const Optional& bias, const View& poles,
                 const View& residues, const Optional& skip, const Optional& before, const Optional& start, const View& y,
                 const View& after, const View& end, std::int64_t groups) {
  rows::Checks checks("hyena_step", z);
  check_sizes(checks, z, weight, poles, groups);
  const std::int64_t batch = z.shape[0], width = z.shape[1] / 3, taps = weight.shape[1], modes = poles.shape[1];
  Params p{};
  p.z = checks.vector("z", z, batch * 3 * width, false, z.dtype, false).data;
  p.y = const_cast<void*>(checks.vector("y", y, batch * width, false, z.dtype, true).data);
  p.before = checks.vector("before", before, batch * 3 * width * (taps - 1), false, z.dtype, false).data;
  p.after = const_cast<void*>(checks.vector("after", after, batch * 3 * width * (taps - 1), false, z.dtype, true).data);
  const Optional given[] = {weight, bias, skip};
  for (const Optional& each : given)
    checks.that(!each || each->dtype == z.dtype || each->dtype == DType::f32, "weight, bias, skip", "z's type or f32", each.value_or(z));
  p.weight = checks.vector("weight", weight, 3 * width * taps, true, z.dtype, false);
  p.bias = checks.vector("bias", bias, 3 * width, true, z.dtype, false);
  p.skip = checks.vector("skip", skip, width, true, z.dtype, false);
  p.poles = complex<const Complex>(checks, "poles", poles, width * modes, false);
  p.residues = complex<const Complex>(checks, "residues", residues, width * modes, false);
  p.start = complex<const Complex>(checks, "start", start, batch * width * modes, false);
  p.end = complex<Complex>(checks, "end", end, batch * width * modes, true);
  p.batch = static_cast<int>(batch);
  p.width = static_cast<int>(width);
  p.part = static_cast<int>(width / groups);
  p.taps = static_cast<int>(taps);
  p.modes = static_cast<int>(modes);
  std::uintptr_t addresses = 0;
  for (const Complex* each : {p.poles, p.residues, p.start, static_cast<const Complex*>(p.end)})
    addresses |= reinterpret_cast<std::uintptr_t>(each);
  p.pairs = modes % 2 == 0 && addresses % 16 == 0;
  const std::string name = std::string("hyena_step_") + rows::type_name(z.dtype) + (modes <= 8 ? "_8" : "_32");
  if (z.elements() == 0) return name;
  const std::int64_t tiles = (width + kChannels - 1) / kChannels;
  const std::int64_t wanted = std::max<std::int64_t>(1, std::int64_t{machine.multiprocessors(z.device)} * kResident / tiles);
  machine.launch(machine.kernel("hyena_step", name),
                 {.grid = {static_cast<std::uint32_t>(tiles), static_cast<std::uint32_t>(std::min({batch, wanted, std::int64_t{65535}}))},
                  .block = {kThreads},
                  .cluster = {},
                  .params = runtime::bytes_of(p),
                  .views = checks.views(),
                  .stream = stream,
                  .device = z.device});
  return name;
}

const runtime::Launcher registered("hyena_step", step,
                                   {"z", "weight", "bias", "poles", "residues", "skip", "before", "start", "y", "after", "end",
                                    "groups"});

}  // namespace

}  // namespace tkpy::hyena_step
