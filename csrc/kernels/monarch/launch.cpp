// Host side of monarch_multiply: checks, how a tile is cut, and the launch of either kernel.
#include <string>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::monarch {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds)
    throw std::invalid_argument(std::string("monarch_multiply: ") + what + ": need " + needed + ", got " + got.describe());
}

bool aligned(const View& v) { return reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0; }

// Contiguous, of x's type and device.
void* contiguous(const char* what, const View& v, std::initializer_list<std::int64_t> shape, const View& x) {
  std::string needed = "contiguous, 16-byte aligned, with the dtype and device of the first, of shape (";
  for (const std::int64_t size : shape) needed += std::to_string(size) + ", ";
  check(v.dtype == x.dtype && v.device == x.device && v.extent() == runtime::dtype_bytes(v.dtype) * v.elements() &&
            aligned(v) && std::equal(shape.begin(), shape.end(), v.shape, v.shape + v.rank),
        what, needed + ")", v);
  return v.data;
}

// Blocks of multiples of 8.
Factor factor(const char* what, const View& w, const View& x) {
  check(w.rank == 3 && w.shape[0] > 0 && w.shape[1] > 0 && w.shape[2] > 0 && w.shape[1] % 8 == 0 && w.shape[2] % 8 == 0,
        what, "three dimensions, blocks of multiples of 8", w);
  for (int d = 0; d < 3; ++d) check(w.shape[d] < (1ll << 24), what, "sizes below 2^24", w);
  contiguous(what, w, {w.shape[0], w.shape[1], w.shape[2]}, x);
  return {w.data, static_cast<int>(w.shape[0]), static_cast<int>(w.shape[1]), static_cast<int>(w.shape[2])};
}

// The tallest tile of which there is one for every multiprocessor (short rows are many CTAs), in the smallest cluster
// that holds it; clusters of eight, which leave runs of 16 bytes in global memory where a factor has 64 blocks, last.
bool cut(Params& p, bool backward, int multiprocessors) {
  for (const int most : {4, kMostRanks})
    for (p.tile = kMostRows; p.tile >= 16; p.tile /= 2)
      for (p.ranks = 1; p.ranks <= most; p.ranks *= 2) {
        if (shared_bytes(p, backward) > kMostShared) continue;
        const long long ctas = share_of(p.rows, p.tile) * p.ranks;
        if (p.tile == 16 || ctas >= multiprocessors) return true;
      }
  return false;
}

std::string launch(Machine& machine, void* stream, bool backward, const View& in, const View& first, const View& second,
                   const Optional& middle, const View& out, std::int64_t tile, std::int64_t ranks) {
  check(in.rank == 2 && (in.dtype == DType::bf16 || in.dtype == DType::f16), "x", "two dimensions of bf16 or f16", in);
  Params p{};
  p.first = factor("w1", first, in);
  p.second = factor("w2", second, in);
  check(second.shape[0] % 8 == 0, "w2", "a multiple of 8 blocks", second);
  const std::int64_t rows = in.shape[0];
  const std::int64_t of_first = first.shape[0] * first.shape[backward ? 2 : 1];
  const std::int64_t of_second = second.shape[0] * second.shape[backward ? 1 : 2];
  check(of_first == of_second, "w2", "a middle of " + std::to_string(of_first) + " channels", second);
  const std::int64_t width = backward ? second.shape[0] * second.shape[2] : first.shape[0] * first.shape[2];
  const std::int64_t wide = backward ? first.shape[0] * first.shape[1] : second.shape[0] * second.shape[1];
  check(rows < (1ll << 30) && std::max({width, wide, of_first}) < (1ll << 30), "x", "fewer than 2^30 rows and channels", in);
  check(in.shape[1] == width && in.stride[1] == 1 && in.stride[0] % 8 == 0 && aligned(in), "x",
        "16-byte aligned rows of " + std::to_string(width) + " contiguous channels", in);
  p.in = in.data;
  p.in_pitch = in.stride[0];
  if (middle) p.middle = contiguous("middle", *middle, {rows, of_first}, in);
  p.out = contiguous("out", out, {rows, wide}, in);
  p.rows = static_cast<int>(rows);
  p.tile = static_cast<int>(tile);
  p.ranks = static_cast<int>(ranks);
  const bool given = tile > 0;
  const bool fits = given ? (tile == 16 || tile == 32 || tile == kMostRows) && ranks > 0 && ranks <= kMostRanks &&
                                shared_bytes(p, backward) <= kMostShared
                          : cut(p, backward, machine.multiprocessors(in.device));
  check(fits, "x", "rows of which 16 fit into the shared memory of a cluster", in);
  const std::string kernel =
      std::string("monarch_") + (backward ? "backward_" : "forward_") + (in.dtype == DType::bf16 ? "bf16" : "fp16");
  if (rows == 0) return kernel;
  std::vector<View> views = {in.read_only(), first.read_only(), second.read_only(), out};
  if (middle) views.push_back(*middle);
  const auto cluster = static_cast<std::uint32_t>(p.ranks);
  machine.launch(machine.kernel("monarch", kernel),
                 {.grid = {static_cast<std::uint32_t>(share_of(p.rows, p.tile)) * cluster, 1, 1},
                  .block = {kThreads, 1, 1},
                  .cluster = {cluster, 1, 1},
                  .shared = static_cast<std::uint32_t>(shared_bytes(p, backward)),
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = in.device});
  return kernel;
}

// tile and ranks 0: chosen here.
std::string forward(Machine& machine, void* stream, const View& x, const View& w1, const View& w2, const Optional& middle,
                    const View& y, std::int64_t tile, std::int64_t ranks) {
  return launch(machine, stream, false, x, w1, w2, middle, y, tile, ranks);
}

// w1t and w2t: every block transposed.
std::string backward(Machine& machine, void* stream, const View& dy, const View& w1t, const View& w2t,
                     const Optional& dmiddle, const View& dx, std::int64_t tile, std::int64_t ranks) {
  return launch(machine, stream, true, dy, w1t, w2t, dmiddle, dx, tile, ranks);
}

const runtime::Launcher forwards("monarch", forward, {"x", "w1", "w2", "middle", "y", "tile", "ranks"});
const runtime::Launcher backwards("monarch_backward", backward, {"dy", "w1t", "w2t", "dmiddle", "dx", "tile", "ranks"});

}  // namespace

}  // namespace tkpy::monarch
