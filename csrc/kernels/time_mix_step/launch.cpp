// Host side of time_mix_step: checks, the kernel for the head size, how many CTAs a head has, the one launch.
#include <limits>

#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::time_mix_step {

namespace {

using rows::Optional;
using runtime::DType;
using runtime::Machine;
using runtime::View;

constexpr std::int64_t kMostChannels = std::int64_t{1} << 24;

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

int width_for(std::int64_t size) {
  for (const int width : kWidths)
    if (size <= width) return width;
  return 0;
}

bool aligned(std::uintptr_t bits) { return bits % 16 == 0; }
std::uintptr_t address(const void* of) { return reinterpret_cast<std::uintptr_t>(of); }

// Slices of the channels for so many CTAs, and the shared memory that they take.
std::uint32_t cut(Params& p, int width, int ranks) {
  p.ranks = ranks;
  p.slice = static_cast<int>(round_up((p.channels + ranks - 1) / ranks, kPiece));
  const int most = (kChunkBytes / mixed_bytes(p.batch, 0) * kSkew - kSkew) / kChunk * kChunk;
  p.chunk = static_cast<int>(std::min<std::int64_t>(round_up(p.slice, kChunk), most));
  return static_cast<std::uint32_t>(sums_bytes(width) + std::max(mixed_bytes(p.batch, p.chunk), after_bytes(width)));
}

std::string step(Machine& machine, void* stream, const View& x, const Optional& last, const View& mix, const View& receptance,
                 const View& key, const View& value, const Optional& gate, const View& w, const View& u,
                 const Optional& weight, const Optional& bias, const Optional& initial, const View& z, const View& final,
                 double eps) {
  rows::Checks checks("time_mix_step", x);
  checks.that(x.rank == 2 && (x.dtype == DType::bf16 || x.dtype == DType::f16), "x", "two dimensions of bf16 or f16", x);
  checks.that(w.rank == 2, "w", "a row for each head", w);
  const std::int64_t batch = x.shape[0], channels = x.shape[1], heads = w.shape[0], size = w.shape[1];
  const int width = width_for(size);
  checks.that(width > 0, "w", "heads of at most 128 channels", w);
  checks.that(batch <= kMostBatch && channels < kMostChannels, "x", "at most 16 rows of fewer than 2^24 channels", x);
  checks.that(heads <= std::numeric_limits<int>::max() / kMostCluster, "w", "fewer than 2^28 heads", w);
  if (!(eps >= 0.0))
    throw std::invalid_argument("time_mix_step: eps: need a number that is not negative, got " + std::to_string(eps));
  Params p{};
  p.batch = static_cast<int>(batch);
  p.channels = static_cast<int>(channels);
  p.heads = static_cast<int>(heads);
  p.size = static_cast<int>(size);
  p.projections = gate ? kProjections : kProjections - 1;
  p.eps = static_cast<float>(eps);
  p.x = checks.vector("x", x, batch * channels, false, x.dtype, false).data;
  p.last = checks.vector("last", last, batch * channels, false, x.dtype, false).data;
  const auto own = [&](const char* what, const Optional& v, std::int64_t elements) {
    checks.that(!v || v->dtype == x.dtype || v->dtype == DType::f32, what, "x's type or f32", v.value_or(x));
    return checks.vector(what, v, elements, true, x.dtype, false);
  };
  p.mix = own("mix", mix, p.projections * channels);
  const std::pair<const char*, Optional> weights[] = {{"receptance", receptance}, {"key", key}, {"value", value}, {"gate", gate}};
  for (int i = 0; i < p.projections; ++i) {
    const auto& [name, matrix] = weights[i];
    const rows::Matrix found = checks.matrix(name, matrix, heads * size, channels, x.dtype, false);
    p.weights[i] = found.data;
    p.pitch[i] = found.pitch;
  }
  p.whole = checks.grain() == 16 && aligned(address(p.x) | address(p.last) | address(p.mix.data));
  p.w = checks.data<const float>("w", w, heads * size, DType::f32, false);
  p.u = checks.data<const float>("u", u, heads * size, DType::f32, false);
  p.weight = own("weight", weight, heads * size);
  p.bias = own("bias", bias, heads * size);
  p.initial = checks.data<const float>("initial", initial, batch * heads * size * size, DType::f32, false);
  p.final = checks.data<float>("final", final, batch * heads * size * size, DType::f32, true);
  p.z = const_cast<void*>(checks.vector("z", z, batch * heads * size, false, x.dtype, true).data);
  p.whole_states = size % 4 == 0 && aligned(address(p.initial) | address(p.final));
  const std::string name = std::string("time_mix_step_") + rows::type_name(x.dtype) + "_" + std::to_string(width);
  if (z.elements() == 0) return name;

  // As many CTAs a head as the device holds of all heads at once.
  const runtime::Kernel& kernel = machine.kernel("time_mix_step", name);
  runtime::LaunchSpec spec{.grid = {}, .block = {kThreads}, .cluster = {}, .views = checks.views(), .stream = stream, .device = x.device};
  int ranks = static_cast<int>(std::clamp<std::int64_t>(machine.multiprocessors(x.device) / heads, 1, kMostCluster));
  for (;; --ranks) {
    spec.cluster = {static_cast<std::uint32_t>(ranks)};
    spec.shared = cut(p, width, ranks);
    if (ranks == 1 || machine.resident_clusters(kernel, spec) >= heads) break;
  }
  spec.grid = {static_cast<std::uint32_t>(heads * ranks)};
  spec.params = runtime::bytes_of(p);
  machine.launch(kernel, spec);
  return name;
}

const runtime::Launcher registered("time_mix_step", step,
                                   {"x", "last", "mix", "receptance", "key", "value", "gate", "w", "u", "weight", "bias",
                                    "initial", "z", "final", "eps"});

}  // namespace

}  // namespace tkpy::time_mix_step
