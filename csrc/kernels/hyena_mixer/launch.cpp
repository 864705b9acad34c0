// Host side of hyena_mixer: checks, tiles and segments, one or two launches each way.
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

// What both ways read.
void set_inputs(Params& p, rows::Checks& checks, const View& z, const View& weight, const Optional& bias, const View& poles,
                const View& residues, const Optional& skip, const Optional& before, const Optional& start, std::int64_t groups,
                std::int64_t segment_tiles) {
  check_sizes(checks, z, weight, poles, groups);
  const std::int64_t batch = z.shape[0], width = z.shape[2] / 3, taps = weight.shape[1], modes = poles.shape[1];
  place(p, z, groups);
  set_convolution(p, z, modes, segment_tiles);
  p.taps = static_cast<int>(taps);
  p.before = checks.vector("before", before, batch * 3 * width * (taps - 1), false, z.dtype, false).data;
  for (const Optional& each : {Optional(weight), bias})
    checks.that(!each || each->dtype == z.dtype || each->dtype == DType::f32, "weight, bias", "z's type or f32", each.value_or(z));
  p.weight = checks.vector("weight", weight, 3 * width * taps, true, z.dtype, false);
  p.bias = checks.vector("bias", bias, 3 * width, true, z.dtype, false);
  p.conv.skip = checks.data<float>("skip", skip, width, DType::f32, false);
  p.conv.poles = complex<Complex>(checks, "poles", poles, width * modes, DType::f32, false);
  p.conv.residues = complex<Complex>(checks, "residues", residues, width * modes, DType::f32, false);
  p.conv.start = complex<Complex>(checks, "start", start, batch * width * modes, DType::f32, false);
}

template <class P>
void run(Machine& machine, void* stream, const char* kind, const View& z, const P& params, std::int64_t grid, int shared,
         std::vector<View> views) {
  if (grid > std::numeric_limits<int>::max())
    throw std::invalid_argument("hyena_mixer: need fewer than 2^31 blocks, got " + std::to_string(grid));
  views.push_back(z.read_only());
  machine.launch(machine.kernel(z.dtype == DType::f32 ? std::string(kind) + "_f32" : kind,
                                std::string(kind) + "_" + rows::type_name(z.dtype)),
                 {.grid = {static_cast<std::uint32_t>(grid)},
                  .block = {static_cast<std::uint32_t>(32 * channels_of(dtype_bytes(z.dtype)))},
                  .cluster = {},
                  .shared = static_cast<std::uint32_t>(shared),
                  .params = runtime::bytes_of(params),
                  .views = std::move(views),
                  .stream = stream,
                  .device = z.device});
}

std::string mixer(Machine& machine, void* stream, const View& z, const View& weight, const Optional& bias, const View& poles,
                  const View& residues, const Optional& skip, const Optional& before, const Optional& start, const View& y,
                  const Optional& after, const Optional& end, const Optional& local, std::int64_t groups,
                  std::int64_t segment_tiles) {
  rows::Checks checks("hyena_mixer", z);
  Params p{};
  set_inputs(p, checks, z, weight, bias, poles, residues, skip, before, start, groups, segment_tiles);
  const std::int64_t batch = z.shape[0], length = z.shape[1], width = z.shape[2] / 3, taps = weight.shape[1], modes = poles.shape[1];
  const std::int64_t states = batch * width * modes;
  p.y = const_cast<void*>(checks.vector("y", y, batch * length * width, false, z.dtype, true).data);
  p.grain = rows::grain_of(reinterpret_cast<std::uintptr_t>(p.y) | static_cast<std::uintptr_t>(width * dtype_bytes(z.dtype)));
  p.after = const_cast<void*>(checks.vector("after", after, batch * 3 * width * (taps - 1), false, z.dtype, true).data);
  p.end = complex<Complex>(checks, "end", end, states, DType::f32, true);
  p.conv.local = complex<WideComplex>(checks, "local", local, (p.conv.segments - 1) * states, DType::f64, true);
  checks.that(p.conv.segments <= 1 || modes == 0 || local, "local", "a state for each segment but the last", z);

  const std::string kernel = std::string("hyena_mixer_") + rows::type_name(z.dtype);
  if (z.elements() == 0) return kernel;
  const int shared = shared_bytes(dtype_bytes(z.dtype), p.conv.groups);
  if (p.conv.segments > 1 && modes > 0) {
    Params first = p;
    first.conv.only_local = 1;
    run(machine, stream, "hyena_mixer", z, first, (p.conv.segments - 1) * batch * p.blocks, shared, checks.views());
  }
  run(machine, stream, "hyena_mixer", z, p, p.conv.segments * batch * p.blocks, shared, checks.views());
  return kernel;
}

// What the convolution needs beside the forward's parameters.
void set_backward(modal_conv::BackwardParams& c, rows::Checks& checks, const Params& mix, const Optional& dend,
                  const Optional& starts, const Optional& local, const Optional& dstart, const Optional& dpoles,
                  const Optional& dresidues, const Optional& dskip, const View& z) {
  const modal_conv::Params& f = mix.conv;
  const std::int64_t states = std::int64_t{f.batch} * f.channels * f.modes;
  c.poles = f.poles, c.residues = f.residues, c.skip = f.skip, c.start = f.start;
  c.batch = f.batch, c.channels = f.channels, c.modes = f.modes, c.groups = 1;
  c.length = mix.length, c.chunks = f.chunks, c.tiles = f.tiles;
  c.segments = f.segments, c.segment_tiles = f.segment_tiles;
  c.parameters = dpoles.has_value();
  c.forth = 1;
  checks.that(dresidues.has_value() == dpoles.has_value() && dskip.has_value() == dpoles.has_value(), "dpoles",
              "dresidues and dskip beside it", z);
  checks.that(!dend || mix.length % modal_conv::kChunk == 0, "z",
              "whole chunks of 64 samples where the last state has a gradient", z);
  checks.that(starts.has_value(), "starts", "a state for each tile", z);
  checks.that(f.segments <= 1 || local, "local", "two states for each segment", z);
  c.end = complex<Complex>(checks, "dend", dend, states, DType::f32, false);
  c.starts = complex<Complex>(checks, "starts", starts, f.tiles * states, DType::f32, true);
  c.local = complex<WideComplex>(checks, "local", local, 2 * f.segments * states, DType::f64, true);
  c.dstart = complex<WideComplex>(checks, "dstart", dstart, states, DType::f64, true);
  const std::int64_t shares = std::int64_t{f.segments} * f.batch * f.channels;
  c.dpoles = complex<Complex>(checks, "dpoles", dpoles, shares * f.modes, DType::f32, true);
  c.dresidues = complex<Complex>(checks, "dresidues", dresidues, shares * f.modes, DType::f32, true);
  c.dskip = checks.data<float>("dskip", dskip, shares, DType::f32, true);
}

// dy and dz, and whether 16 bytes of their rows move at once.
void set_rows(BackwardParams& p, rows::Checks& checks, const View& z, const View& dy, const View& dz) {
  const std::int64_t width = z.shape[2] / 3, bytes = dtype_bytes(z.dtype);
  checks.that(dy.rank == 3 && dy.dtype == z.dtype && dy.device == z.device && dy.shape[0] == z.shape[0] &&
                  dy.shape[1] == z.shape[1] && dy.shape[2] == width && (dy.stride[2] == 1 || width == 1),
              "dy", "[B, L, W] of z's type, channels side by side", dy);
  p.dy = dy.data;
  p.dy_batch = dy.stride[0];
  p.dy_time = dy.stride[1];
  p.dz = const_cast<void*>(checks.vector("dz", dz, z.elements(), false, z.dtype, true).data);
  const auto aligned = [&](const void* data, std::int64_t pitches) {
    return reinterpret_cast<std::uintptr_t>(data) % kRowBytes == 0 && pitches * bytes % kRowBytes == 0;
  };
  p.dy_vectors = aligned(dy.data, (dy.shape[0] > 1 ? dy.stride[0] : 0) | (dy.shape[1] > 1 ? dy.stride[1] : 0)) &&
                 aligned(nullptr, width);
  p.dz_vectors = aligned(dz.data, p.mix.part);
}

std::string backward(Machine& machine, void* stream, const View& z, const View& weight, const Optional& bias,
                     const View& poles, const View& residues, const Optional& skip, const Optional& before,
                     const Optional& start, const View& dy, const Optional& dafter, const Optional& dend, const View& dz,
                     const View& borders, const Optional& starts, const Optional& local, const Optional& dstart,
                     const Optional& dpoles, const Optional& dresidues, const Optional& dskip,
                     const Optional& dweight_shares, const Optional& dbias_shares, const Optional& dweight,
                     const Optional& dbias, std::int64_t groups, std::int64_t segment_tiles) {
  rows::Checks checks("hyena_mixer_backward", z);
  checks.that(poles.shape[1] <= modal_conv::kGroup, "poles", "a row of at most 8 complex numbers for each three channels of z", poles);
  BackwardParams p{};
  set_inputs(p.mix, checks, z, weight, bias, poles, residues, skip, before, start, groups, segment_tiles);
  set_backward(p.conv, checks, p.mix, dend, starts, local, dstart, dpoles, dresidues, dskip, z);
  set_rows(p, checks, z, dy, dz);
  const std::int64_t shares = std::int64_t{p.conv.segments} * p.conv.batch, filters = z.shape[2], taps = p.mix.taps;
  p.dafter = checks.vector("dafter", dafter, p.conv.batch * filters * (taps - 1), false, z.dtype, false).data;
  p.borders = checks.data<float>("borders", borders, 2 * shares * filters * (taps - 1), DType::f32, true);
  checks.that(dweight_shares.has_value() == dbias_shares.has_value(), "dweight_shares", "dbias_shares beside it", z);
  p.dweight = checks.data<float>("dweight_shares", dweight_shares, shares * filters * taps, DType::f32, true);
  p.dbias = checks.data<float>("dbias_shares", dbias_shares, shares * filters, DType::f32, true);
  const std::string kernel = std::string("hyena_mixer_backward_") + rows::type_name(z.dtype);
  if (z.elements() == 0) return kernel;
  std::vector<View> views = checks.views();
  views.push_back(dy.read_only());
  const int shared = backward_shared_bytes(dtype_bytes(z.dtype));
  const std::int64_t grid = shares * p.mix.blocks;
  if (p.conv.segments > 1 && p.conv.modes > 0) {
    BackwardParams first = p;
    first.conv.only_local = 1;
    run(machine, stream, "hyena_mixer_backward", z, first, grid, shared, views);
  }
  run(machine, stream, "hyena_mixer_backward", z, p, grid, shared, views);
  if (!dweight_shares) return kernel;
  rows::sum_shares("hyena_mixer_backward", machine, stream, *dweight_shares, {dweight, std::nullopt}, filters * taps);
  rows::sum_shares("hyena_mixer_backward", machine, stream, *dbias_shares, {dbias, std::nullopt}, filters);
  return kernel;
}

const runtime::Launcher backward_registered("hyena_mixer_backward", backward,
                                            {"z", "weight", "bias", "poles", "residues", "skip", "before", "start", "dy",
                                             "dafter", "dend", "dz", "borders", "starts", "local", "dstart", "dpoles",
                                             "dresidues", "dskip", "dweight_shares", "dbias_shares", "dweight", "dbias",
                                             "groups", "segment_tiles"});
const runtime::Launcher registered("hyena_mixer", mixer,
                                   {"z", "weight", "bias", "poles", "residues", "skip", "before", "start", "y", "after", "end",
                                    "local", "groups", "segment_tiles"});

}  // namespace

}  // namespace tkpy::hyena_mixer
