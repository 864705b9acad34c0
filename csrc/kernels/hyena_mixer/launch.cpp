// Host side of hyena_mixer: checks, tiles and segments, one or two launches.
#include <algorithm>
#include <limits>

#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::hyena_mixer {

namespace {

using modal_conv::Complex;
using modal_conv::WideComplex;
using rows::Optional;
using runtime::DType;
using runtime::Machine;
using runtime::View;

constexpr std::int64_t kMost = std::int64_t{1} << 29, kMostChannels = std::int64_t{1} << 25;

// `count` complex numbers, as contiguous pairs.
template <class C>
C* complex(rows::Checks& checks, const char* what, const Optional& v, std::int64_t count, DType dtype, bool written) {
  return reinterpret_cast<C*>(checks.data<unsigned char>(what, v, 2 * count, dtype, written));
}

void check_sizes(const rows::Checks& checks, const View& z, const View& weight, const View& poles, std::int64_t groups) {
  checks.that(z.rank == 3 && rows::is_float(z.dtype) && z.shape[2] % 3 == 0, "z", "[B, L, 3 W] of bf16, f16 or f32", z);
  checks.that(z.shape[0] < kMost && z.shape[1] < kMost && z.shape[2] < kMostChannels, "z", "sizes below 2^29, 2^29 and 2^25", z);
  checks.that(z.stride[2] == 1 || z.shape[2] <= 1, "z", "channels side by side", z);
  checks.that(weight.rank == 2 && weight.shape[0] == z.shape[2] && weight.shape[1] >= 1 && weight.shape[1] <= kMostTaps, "weight",
              "a row of 1 to " + std::to_string(kMostTaps) + " taps for each channel of z", weight);
  checks.that(poles.rank == 3 && 3 * poles.shape[0] == z.shape[2] && poles.shape[1] <= modal_conv::kMostModes, "poles",
              "a row of at most " + std::to_string(modal_conv::kMostModes) + " complex numbers for each three channels of z", poles);
  if (groups < 1 || z.shape[2] / 3 % groups != 0)
    throw std::invalid_argument("hyena_mixer: groups: need a divisor of the width " + std::to_string(z.shape[2] / 3) + ", got " +
                                std::to_string(groups));
}

// Where channels of z lie, and whether 16 bytes of them can be read at once.
void place(Params& p, const View& z, std::int64_t groups) {
  const int bytes = dtype_bytes(z.dtype), each = channels_of(bytes);
  const std::int64_t width = z.shape[2] / 3;
  p.z = z.data;
  p.z_batch = z.stride[0];
  p.z_time = z.stride[1];
  p.part = static_cast<int>(width / groups);
  p.blocks = static_cast<int>((width + each - 1) / each);
  const std::int64_t pitches = (z.shape[0] > 1 ? z.stride[0] : 0) | (z.shape[1] > 1 ? z.stride[1] : 0);
  p.vectors = p.part % each == 0 && reinterpret_cast<std::uintptr_t>(z.data) % kRowBytes == 0 && pitches % each == 0;
}

void set_convolution(Params& p, const View& z, std::int64_t modes, std::int64_t segment_tiles) {
  p.length = static_cast<int>(z.shape[1]);
  p.conv.batch = static_cast<int>(z.shape[0]);
  p.conv.channels = static_cast<int>(z.shape[2] / 3);
  p.conv.modes = static_cast<int>(modes);
  p.conv.groups = std::max((p.conv.modes + modal_conv::kGroup - 1) / modal_conv::kGroup, 1);
  p.conv.chunks = (p.length + modal_conv::kChunk - 1) / modal_conv::kChunk;
  p.conv.tiles = (p.length + kSamples - 1) / kSamples;
  p.conv.segment_tiles = static_cast<int>(std::clamp<std::int64_t>(segment_tiles, 1, std::max(p.conv.tiles, 1)));
  p.conv.segments = (p.conv.tiles + p.conv.segment_tiles - 1) / p.conv.segment_tiles;
}

std::string mixer(Machine& machine, void* stream, const View& z, const View& weight, const Optional& bias, const View& poles,
                  const View& residues, const Optional& skip, const Optional& before, const Optional& start, const View& y,
                  const Optional& after, const Optional& end, const Optional& local, std::int64_t groups,
                  std::int64_t segment_tiles) {
  rows::Checks checks("hyena_mixer", z);
  check_sizes(checks, z, weight, poles, groups);
  const std::int64_t batch = z.shape[0], length = z.shape[1], width = z.shape[2] / 3, taps = weight.shape[1], modes = poles.shape[1];
  const std::int64_t states = batch * width * modes;
  Params p{};
  place(p, z, groups);
  set_convolution(p, z, modes, segment_tiles);
  p.taps = static_cast<int>(taps);
  p.y = const_cast<void*>(checks.vector("y", y, batch * length * width, false, z.dtype, true).data);
  p.grain = rows::grain_of(reinterpret_cast<std::uintptr_t>(p.y) | static_cast<std::uintptr_t>(width * dtype_bytes(z.dtype)));
  p.before = checks.vector("before", before, batch * 3 * width * (taps - 1), false, z.dtype, false).data;
  p.after = const_cast<void*>(checks.vector("after", after, batch * 3 * width * (taps - 1), false, z.dtype, true).data);
  for (const Optional& each : {Optional(weight), bias})
    checks.that(!each || each->dtype == z.dtype || each->dtype == DType::f32, "weight, bias", "z's type or f32", each.value_or(z));
  p.weight = checks.vector("weight", weight, 3 * width * taps, true, z.dtype, false);
  p.bias = checks.vector("bias", bias, 3 * width, true, z.dtype, false);
  p.conv.skip = checks.data<float>("skip", skip, width, DType::f32, false);
  p.conv.poles = complex<Complex>(checks, "poles", poles, width * modes, DType::f32, false);
  p.conv.residues = complex<Complex>(checks, "residues", residues, width * modes, DType::f32, false);
  p.conv.start = complex<Complex>(checks, "start", start, states, DType::f32, false);
  p.end = complex<Complex>(checks, "end", end, states, DType::f32, true);
  p.conv.local = complex<WideComplex>(checks, "local", local, (p.conv.segments - 1) * states, DType::f64, true);
  checks.that(p.conv.segments <= 1 || modes == 0 || local, "local", "a state for each segment but the last", z);

  const std::string type = rows::type_name(z.dtype), kernel = "hyena_mixer_" + type;
  if (z.elements() == 0) return kernel;
  std::vector<View> views = checks.views();
  views.push_back(z.read_only());
  const int bytes = dtype_bytes(z.dtype);
  const auto run = [&](const Params& params, std::int64_t segments) {
    const std::int64_t grid = segments * batch * p.blocks;
    if (grid > std::numeric_limits<int>::max())
      throw std::invalid_argument("hyena_mixer: need fewer than 2^31 blocks, got " + std::to_string(grid));
    machine.launch(machine.kernel(z.dtype == DType::f32 ? "hyena_mixer_f32" : "hyena_mixer", kernel),
                   {.grid = {static_cast<std::uint32_t>(grid)},
                    .block = {static_cast<std::uint32_t>(32 * channels_of(bytes))},
                    .cluster = {},
                    .shared = static_cast<std::uint32_t>(shared_bytes(bytes, p.conv.groups)),
                    .params = runtime::bytes_of(params),
                    .views = views,
                    .stream = stream,
                    .device = z.device});
  };
  if (p.conv.segments > 1 && modes > 0) {
    Params first = p;
    first.conv.only_local = 1;
    run(first, p.conv.segments - 1);
  }
  run(p, p.conv.segments);
  return kernel;
}

const runtime::Launcher registered("hyena_mixer", mixer,
                                   {"z", "weight", "bias", "poles", "residues", "skip", "before", "start", "y", "after", "end",
                                    "local", "groups", "segment_tiles"});

}  // namespace

}  // namespace tkpy::hyena_mixer
