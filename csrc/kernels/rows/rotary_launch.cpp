// Host side of rotary: one launch, which the backward makes with the angles reversed.
#include <cmath>
#include <numbers>

#include "host.h"
#include "rotary_params.h"

namespace tkpy::rows {

namespace {

constexpr int kResident = 640;  // threads of a multiprocessor: what 96 registers each leave room for

// Bytes that every half of every head begins at a multiple of.
int halves_grain(const View& x, const View& y) {
  const auto size = static_cast<std::uintptr_t>(dtype_bytes(x.dtype));
  std::uintptr_t bits = reinterpret_cast<std::uintptr_t>(x.data) | reinterpret_cast<std::uintptr_t>(y.data) |
                        static_cast<std::uintptr_t>(x.shape[3] / 2) * size;
  for (int i = 0; i < 3; ++i)
    if (x.shape[i] > 1) bits |= static_cast<std::uintptr_t>(x.stride[i]) * size;
  return grain_of(bits);
}

void check(const Checks& checks, const View& x, const View& positions, const View& y, double base, double scaling) {
  checks.that(x.rank == 4 && is_float(x.dtype), "x", "four dimensions of bf16, f16 or f32", x);
  checks.that(x.shape[3] % 2 == 0 && x.shape[3] <= 2 * kMostPairs, "x", "an even last dimension up to 512", x);
  checks.that(x.stride[3] == 1 || x.elements() == 0, "x", "contiguous elements of a head", x);
  checks.that(y.rank == 4 && std::equal(y.shape, y.shape + 4, x.shape) && y.dtype == x.dtype && y.device == x.device &&
                  contiguous(y),
              "y", "x's shape and type, contiguous", y);
  checks.that(positions.rank == 2 && positions.shape[0] == x.shape[0] && positions.shape[1] == x.shape[1] &&
                  (positions.dtype == DType::i32 || positions.dtype == DType::i64) && positions.device == x.device,
              "positions", "one i32 or i64 for each token", positions);
  if (!(base > 0.0 && scaling > 0.0)) throw std::invalid_argument("rotary: base, scaling: need numbers above 0");
}

std::string rotary(Machine& machine, void* stream, const View& x, const View& positions, const View& y, double base,
                   double scaling, bool back) {
  Checks checks("rotary", x);
  check(checks, x, positions, y, base, scaling);
  const std::string name = std::string("rows_rotary_") + type_name(x.dtype);
  if (x.elements() == 0) return name;
  RotaryParams p{};
  p.x = x.data;
  p.y = y.data;
  p.positions = positions.data;
  p.x_batch = x.stride[0], p.x_token = x.stride[1], p.x_head = x.stride[2];
  p.position_batch = positions.stride[0], p.position_token = positions.stride[1];
  p.half = static_cast<int>(x.shape[3] / 2);
  p.heads = static_cast<int>(x.shape[2]);
  p.length = static_cast<unsigned>(x.shape[1]);
  const int width = 16 / static_cast<int>(dtype_bytes(x.dtype));
  p.chunks = static_cast<unsigned>((p.half + width - 1) / width);
  p.blocks = static_cast<unsigned>((p.heads + kRotaryHeads - 1) / kRotaryHeads);
  const std::int64_t units = x.shape[0] * x.shape[1] * p.blocks * p.chunks;
  checks.that(units < std::int64_t{1} << 31, "x", "fewer than 2^31 threads' work", x);
  p.units = static_cast<unsigned>(units);
  p.grain = halves_grain(x, y);
  p.long_positions = positions.dtype == DType::i64;
  p.direction = back ? -1.0f : 1.0f;
  p.scaling = scaling;
  for (int i = 0; i < p.half; ++i) p.turns[i] = std::pow(base, -static_cast<double>(i) / p.half) / (2.0 * std::numbers::pi);
  const std::int64_t ctas = ctas_for((units + kRotaryThreads - 1) / kRotaryThreads, machine.multiprocessors(x.device),
                                     kRotaryThreads, kResident);
  const std::vector<View> views = {x.read_only(), positions.read_only(), y};
  machine.launch(machine.kernel("rows_rotary", name),
                 {.grid = {static_cast<std::uint32_t>(ctas)},
                  .block = {kRotaryThreads},
                  .cluster = {},
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = x.device});
  return name;
}

const runtime::Launcher registered("rotary", rotary, {"x", "positions", "y", "base", "scaling", "back"});

}  // namespace

}  // namespace tkpy::rows
