// Host side of monarch_multiply: checks, how a tile is cut, and the launch of each kernel.
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

void check_rows(const char* what, const View& v, std::int64_t rows, std::int64_t width, const View& x) {
  check(v.rank == 2 && v.dtype == x.dtype && v.device == x.device && v.shape[0] == rows && v.shape[1] == width &&
            v.stride[1] == 1 && v.stride[0] % 8 == 0 && aligned(v),
        what, std::to_string(rows) + " 16-byte aligned rows of " + std::to_string(width) + " contiguous channels", v);
}

const char* type_name(const View& x) {
  check(x.rank == 2 && (x.dtype == DType::bf16 || x.dtype == DType::f16), "x", "two dimensions of bf16 or f16", x);
  return x.dtype == DType::bf16 ? "bf16" : "fp16";
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
  const std::string kernel = std::string("monarch_") + (backward ? "backward_" : "forward_") + type_name(in);
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
  check_rows("x", in, rows, width, in);
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

// sums [shares, blocks, out, in] of a^T b; `strided`: of the second factor.
std::string gradient(Machine& machine, void* stream, const View& a, const View& b, const View& sums, bool strided) {
  const std::string kernel = std::string("monarch_gradient_") + (strided ? "strided_" : "consecutive_") + type_name(a);
  check(sums.rank == 4 && sums.dtype == DType::f32 && sums.device == a.device && sums.extent() == 4 * sums.elements() &&
            sums.elements() > 0 && aligned(sums) && sums.shape[0] < 65536,
        "sums", "contiguous f32 [shares, blocks, out, in], fewer than 65536 shares", sums);
  const std::int64_t shares = sums.shape[0], blocks = sums.shape[1], out = sums.shape[2], in = sums.shape[3];
  check(out % 8 == 0 && in % 8 == 0 && (!strided || blocks % 8 == 0), "sums", "sizes that are multiples of 8", sums);
  const std::int64_t rows = a.shape[0], tiles = share_of(blocks, 8) * share_of(out, kSide) * share_of(in, kSide);
  check(rows < (1ll << 30) && std::max({blocks, out, in, tiles}) < (1ll << 30), "dy", "fewer than 2^30 rows, channels, tiles", a);
  check_rows("dy", a, rows, blocks * out, a);
  check_rows("x", b, rows, blocks * in, a);
  Gradient p{.a = a.data, .b = b.data, .sums = static_cast<float*>(sums.data), .a_pitch = a.stride[0], .b_pitch = b.stride[0],
             .rows = static_cast<int>(rows), .share_rows = 0, .blocks = static_cast<int>(blocks),
             .out = static_cast<int>(out), .in = static_cast<int>(in)};
  p.share_rows = static_cast<int>(share_of(share_of(p.rows, static_cast<int>(shares)), kStepRows)) * kStepRows;
  const std::vector<View> views = {a.read_only(), b.read_only(), sums};
  machine.launch(machine.kernel("monarch_gradient", kernel),
                 {.grid = {static_cast<std::uint32_t>(tiles), static_cast<std::uint32_t>(shares), 1},
                  .block = {kThreads, 1, 1},
                  .cluster = {},
                  .shared = kGradientShared,
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = a.device});
  return kernel;
}

// dx, and sums [shares, k, q, p] and [shares, l, r, s], a share a cluster; the sums of one factor alone are half.cu's, which
// makes dx with those of the first.
std::string whole(Machine& machine, void* stream, const View& dy, const View& x, const View& w1, const View& w2t,
                  const Optional& dx, const Optional& of_first, const Optional& of_second) {
  Whole p{};
  const std::string type = type_name(x);
  p.first = factor("w1", w1, x);
  p.second = factor("w2", w2t, x);
  const bool both = of_first && of_second;
  const int side = both ? kWholeSide : kHalfSide;
  const auto suits = [&](const Factor& f) { return f.out % 16 == 0 && f.in % 16 == 0 && std::max(f.out, f.in) <= side; };
  const std::string sizes = "blocks of multiples of 16 up to " + std::to_string(side);
  check(suits(p.first), "w1", sizes, w1);
  p.ranks = p.second.blocks / 8;
  check(suits(p.second) && p.second.blocks % 8 == 0 && p.ranks <= kMostRanks &&
            share_of(p.first.blocks, p.ranks) <= kWarps && p.first.blocks * p.first.out == p.second.blocks * p.second.out,
        "w2", "8, 16, .. 64 " + sizes + ", as many as w1 has at least and of as many channels in the middle", w2t);
  const std::int64_t rows = x.shape[0], width = 1ll * p.first.blocks * p.first.in;
  check(rows > 0 && rows < (1ll << 30), "x", "1 to 2^30 - 1 rows", x);
  check_rows("x", x, rows, width, x);
  check_rows("dy", dy, rows, 1ll * p.second.blocks * p.second.in, x);
  check(of_first || of_second, "the sums", "those of w1 or of w2", x);
  check(of_first || !dx, "dx", "the sums of w1 beside it", x);
  if (dx) p.dx = contiguous("dx", *dx, {rows, width}, x);
  const std::int64_t clusters = (of_first ? *of_first : *of_second).shape[0];
  const auto shares = [&](const char* what, const View& v, const Factor& f) {
    check(v.rank == 4 && v.dtype == DType::f32 && v.device == x.device && v.extent() == 4 * v.elements() && aligned(v) &&
              v.shape[0] > 0 && v.shape[0] == clusters && v.shape[0] <= share_of(static_cast<int>(rows), kWholeRows) &&
              v.shape[1] == f.blocks && v.shape[2] == f.out && v.shape[3] == f.in,
          what, "contiguous f32 [shares, blocks, out, in], as many of both and no more than tiles", v);
    return static_cast<float*>(v.data);
  };
  std::vector<View> views = {dy.read_only(), x.read_only(), w1.read_only(), w2t.read_only()};
  if (of_first) p.of_first = shares("the sums of w1", *of_first, p.first);
  if (of_second) p.of_second = shares("the sums of w2", *of_second, p.second);
  for (const Optional& v : {dx, of_first, of_second})
    if (v) views.push_back(*v);
  p.x = x.data;
  p.dy = dy.data;
  p.x_pitch = x.stride[0];
  p.dy_pitch = dy.stride[0];
  p.rows = static_cast<int>(rows);
  const bool wide = std::max({p.first.out, p.first.in, p.second.out, p.second.in}) > 32;
  const std::string half = of_first ? "monarch_half_first_" : "monarch_half_second_";
  const std::string kernel = (both ? std::string("monarch_whole_") + (wide ? "48_" : "32_") : half) + type;
  const auto cluster = static_cast<std::uint32_t>(p.ranks);
  machine.launch(machine.kernel(both ? "monarch_whole" : "monarch_half", kernel),
                 {.grid = {static_cast<std::uint32_t>(clusters) * cluster, 1, 1},
                  .block = {kThreads, 1, 1},
                  .cluster = {cluster, 1, 1},
                  .shared = static_cast<std::uint32_t>(whole_bytes(p)),
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = x.device});
  return kernel;
}

// y without h, for blocks whose factors stay in shared memory.
std::string product(Machine& machine, void* stream, const View& x, const View& w1, const View& w2, const View& y) {
  const std::string kernel = std::string("monarch_product_") + type_name(x);
  Product p{};
  p.first = factor("w1", w1, x);
  p.second = factor("w2", w2, x);
  const auto suits = [](const Factor& f) { return f.out % 16 == 0 && f.in % 16 == 0 && std::max(f.out, f.in) <= kHalfSide; };
  check(suits(p.first), "w1", "blocks of multiples of 16 up to 64", w1);
  p.ranks = p.second.blocks / 8;
  check(suits(p.second) && p.second.blocks % 8 == 0 && p.ranks <= kMostRanks &&
            share_of(p.first.blocks, p.ranks) <= kWarps && p.first.blocks * p.first.out == p.second.blocks * p.second.in,
        "w2", "8, 16, .. 64 blocks of multiples of 16 up to 64, as many as w1 has at least and of its channels", w2);
  const std::int64_t rows = x.shape[0];
  check(rows > 0 && rows < (1ll << 30), "x", "1 to 2^30 - 1 rows", x);
  check_rows("x", x, rows, 1ll * p.first.blocks * p.first.in, x);
  p.y = contiguous("y", y, {rows, 1ll * p.second.blocks * p.second.out}, x);
  p.x = x.data;
  p.x_pitch = x.stride[0];
  p.rows = static_cast<int>(rows);
  const auto cluster = static_cast<std::uint32_t>(p.ranks);
  const std::vector<View> views = {x.read_only(), w1.read_only(), w2.read_only(), y};
  runtime::LaunchSpec spec{.grid = {},  // how many clusters the device tells
                           .block = {kThreads, 1, 1},
                           .cluster = {cluster, 1, 1},
                           .shared = static_cast<std::uint32_t>(product_bytes(p)),
                           .params = runtime::bytes_of(p),
                           .views = views,
                           .stream = stream,
                           .device = x.device};
  const runtime::Kernel& found = machine.kernel("monarch_product", kernel);
  const std::int64_t clusters = std::min<std::int64_t>(share_of(p.rows, kWholeRows), machine.resident_clusters(found, spec));
  spec.grid = {static_cast<std::uint32_t>(clusters) * cluster, 1, 1};
  machine.launch(found, spec);
  return kernel;
}

const runtime::Launcher products("monarch_product", product, {"x", "w1", "w2", "y"});
const runtime::Launcher forwards("monarch", forward, {"x", "w1", "w2", "middle", "y", "tile", "ranks"});
const runtime::Launcher backwards("monarch_backward", backward, {"dy", "w1t", "w2t", "dmiddle", "dx", "tile", "ranks"});
const runtime::Launcher wholes("monarch_whole", whole, {"dy", "x", "w1", "w2t", "dx", "of_first", "of_second"});
const runtime::Launcher gradients("monarch_gradient", gradient, {"dy", "x", "sums", "strided"});

}  // namespace

}  // namespace tkpy::monarch
