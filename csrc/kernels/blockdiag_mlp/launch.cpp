// Host side of the fused blockdiag_mlp: checks, the width of the kernel, tensor maps, and the launch.
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/gemm/launch.h"
#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::blockdiag_mlp {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;

constexpr std::int64_t kMost = std::int64_t{1} << 30;

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds)
    throw std::invalid_argument(std::string("blockdiag_mlp: ") + what + ": need " + needed + ", got " + got.describe());
}

// [groups, rows, cols] with contiguous columns, as TMA reads it.
tk::tensor_map map_of(Machine& machine, const char* what, View v, std::uint32_t rows) {
  check(gemm::contiguous(v, 2), what, "a contiguous last dimension", v);
  for (int d = 0; d < 2; ++d)
    if (v.shape[d] == 1) v.stride[d] = (v.shape[2] + 7) / 8 * 8;  // never used: one that suits TMA
  check(gemm::aligned_for_tma(v.data, v.stride[0]) && gemm::aligned_for_tma(v.data, v.stride[1]), what,
        "rows on multiples of 16 bytes", v);
  return machine.encode(runtime::tensor_map_of(v, std::array<std::uint32_t, 3>{1, rows, 64}, 128));
}

// x [rows, blocks c], gated [2 blocks, i, c], wo [blocks, o, i], bias [blocks o] or none, y [rows, blocks o] contiguous;
// gate and value, which the backward wants, [rows, blocks i] or none.
std::string launch(Machine& machine, void* stream, const View& x, const View& gated, const View& wo,
                   const std::optional<View>& bias, const View& y, const std::optional<View>& gate,
                   const std::optional<View>& value, std::string_view activation) {
  check(x.rank == 2 && (x.dtype == DType::bf16 || x.dtype == DType::f16), "x", "two dimensions of bf16 or f16", x);
  check(wo.rank == 3 && wo.shape[0] > 0, "wo", "three dimensions, at least one block", wo);
  check(gated.rank == 3 && gated.shape[0] == 2 * wo.shape[0] && gated.shape[1] == wo.shape[2], "gated",
        "two half-blocks of " + std::to_string(wo.shape[2]) + " rows for each block of wo", gated);
  const std::int64_t rows = x.shape[0], blocks = wo.shape[0], out = wo.shape[1], hidden = wo.shape[2], in = gated.shape[2];
  const auto fits = [](std::int64_t size, std::int64_t most) { return size > 0 && size % 8 == 0 && size <= most; };
  check(fits(hidden, kMost) && fits(out, kMostWidth), "wo", "multiples of 8 channels, at most 256 outputs", wo);
  check(fits(in, kMostWidth), "gated", "a multiple of 8 inputs, at most 256", gated);
  check(x.shape[1] == blocks * in && rows < kMost && blocks * std::max({in, out, hidden}) < kMost, "x",
        std::to_string(blocks * in) + " channels, rows and channels below 2^30", x);
  check(y.rank == 2 && y.shape[0] == rows && y.shape[1] == blocks * out && y.extent() == 2 * y.elements() &&
            reinterpret_cast<std::uintptr_t>(y.data) % 16 == 0,
        "y", "the rows of x, contiguous, on a multiple of 16 bytes", y);
  for (const auto& [what, v] : {std::pair{"gated", &gated}, {"wo", &wo}, {"y", &y}})
    check(v->dtype == x.dtype && v->device == x.device, what, "the dtype and device of x", *v);
  if (bias)
    check(bias->rank == 1 && bias->shape[0] == y.shape[1] && gemm::contiguous(*bias, 0) && bias->dtype == x.dtype &&
              bias->device == x.device && reinterpret_cast<std::uintptr_t>(bias->data) % 4 == 0,
          "bias", "a contiguous vector of y's channels on a multiple of 4 bytes, with the dtype and device of x", *bias);
  check(gate.has_value() == value.has_value(), "value", "it where there is a gate, and only there", y);
  for (const std::optional<View>* v : {&gate, &value}) {
    if (!*v) continue;
    const View& kept = **v;
    check(kept.rank == 2 && kept.shape[0] == rows && kept.shape[1] == blocks * hidden && kept.dtype == x.dtype &&
              kept.device == x.device && std::max(in, out) <= kMostKept,
          "gate and value",
          "the rows, dtype and device of x, " + std::to_string(blocks * hidden) + " channels, blocks of at most 192", kept);
    check(gemm::contiguous(kept, 1) && kept.stride[0] == gate->stride[0] && kept.stride[0] % 8 == 0 &&
              reinterpret_cast<std::uintptr_t>(kept.data) % 16 == 0,
          "gate and value", "contiguous rows on multiples of 16 bytes, as far apart in both", kept);
  }
  const int width = *std::find_if(std::begin(kWidths), std::end(kWidths),
                                  [&](int most) { return most >= std::max(in, out); });
  const std::string kernel = std::string("blockdiag_mlp_") + (x.dtype == DType::bf16 ? "bf16_" : "fp16_") + std::to_string(width);
  Params p{};
  p.activation = gemm::activation_from_name(activation);
  if (rows == 0) return kernel;
  View by_block = x;
  by_block.rank = 3;
  by_block.shape[0] = blocks;
  by_block.stride[0] = in;
  for (int d = 0; d < 2; ++d) {
    by_block.shape[1 + d] = d == 0 ? rows : in;
    by_block.stride[1 + d] = x.stride[d];
  }
  p.x = map_of(machine, "x", by_block, 64);
  p.gated = map_of(machine, "gated", gated, 32);
  p.wo = map_of(machine, "wo", wo, 32);
  p.bias = bias ? bias->data : nullptr;
  p.y = y.data;
  p.gate = gate ? gate->data : nullptr;
  p.value = gate ? value->data : nullptr;
  p.kept_pitch = gate ? gate->stride[0] : 0;
  p.rows = static_cast<int>(rows);
  p.blocks = static_cast<int>(blocks);
  p.hidden = static_cast<int>(hidden);
  p.out = static_cast<int>(out);
  const std::int64_t tiles = (rows + kCluster * kTileRows - 1) / (kCluster * kTileRows) * blocks;
  check(tiles < kMost, "x", "fewer than 2^30 tiles of 256 rows and a block", x);
  const std::int64_t clusters = std::min<std::int64_t>(tiles, std::max(1, machine.multiprocessors(x.device) / kCluster));
  std::vector<View> views = {x.read_only(), gated.read_only(), wo.read_only(), y};
  if (bias) views.push_back(bias->read_only());
  if (gate) views.insert(views.end(), {*gate, *value});
  machine.launch(machine.kernel("blockdiag_mlp", kernel),
                 {.grid = {static_cast<std::uint32_t>(clusters * kCluster), 1, 1},
                  .block = {kThreads, 1, 1},
                  .cluster = {kCluster, 1, 1},
                  .shared = shared_bytes(width),
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = x.device});
  return kernel;
}

const runtime::Launcher registered("blockdiag_mlp", launch, {"x", "gated", "wo", "bias", "y", "gate", "value", "activation"});

}  // namespace

}  // namespace tkpy::blockdiag_mlp
