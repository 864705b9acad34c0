// Host side of token_shift: forward is one launch; backward two, of which the second adds the CTAs' shares of the
// gradient of the mixes.
#include "host.h"
#include "shift_params.h"

namespace tkpy::rows {

namespace {

// Collects what the launch touches, and bits of the addresses of its rows.
struct Shift {
  Checks checks;
  ShiftParams p{};
  std::vector<View> views;
  std::uintptr_t bits = 0;
  const View& x;

  Shift(const char* op, const View& input) : checks(op, input), x(input) {}

  void* add(const char* what, const View& v, std::initializer_list<std::int64_t> shape, bool written) {
    const int last = v.rank - 1;
    checks.that(has_shape(v, shape) && v.dtype == x.dtype && v.device == x.device, what, "its shape, x's type and device", v);
    checks.that(v.stride[last] == 1 || v.shape[last] == 1 || v.elements() == 0, what, "contiguous channels", v);
    views.push_back(written ? v : v.read_only());
    bits |= reinterpret_cast<std::uintptr_t>(v.data);
    for (int i = 0; i < last; ++i)
      if (v.shape[i] > 1) bits |= static_cast<std::uintptr_t>(v.stride[i] * dtype_bytes(v.dtype));
    return v.data;
  }

  // Everything but the direction's own.
  void prepare(const View& mix, const Optional& last, const View& y, std::int64_t tokens, bool back) {
    checks.that(x.rank == 3 && is_float(x.dtype), "x", "three dimensions of bf16, f16 or f32", x);
    checks.that(x.shape[1] < std::int64_t{1} << 30 && x.shape[2] < std::int64_t{1} << 30, "x", "fewer than 2^30 tokens and channels", x);
    checks.that(mix.rank == 2 && mix.shape[0] >= 1 && mix.shape[0] <= kMostMixes && (mix.dtype == x.dtype || mix.dtype == DType::f32),
                "mix", "1 to 16 rows of x's type or f32", mix);
    if (tokens < 1) throw std::invalid_argument("token_shift: tokens: need at least 1, got " + std::to_string(tokens));
    const std::int64_t batches = x.shape[0], length = x.shape[1], channels = x.shape[2], mixes = mix.shape[0];
    const auto size = dtype_bytes(x.dtype);
    p.x = add("x", x, {batches, length, channels}, false);
    p.x_batch = x.stride[0], p.x_token = x.stride[1];
    p.y = add(back ? "dy" : "y", y, {mixes, batches, length, channels}, !back);
    checks.that(contiguous(y), back ? "dy" : "y", "contiguous elements", y);
    if (last) {
      p.last = add("last", *last, {batches, channels}, false);
      p.last_batch = last->stride[0];
    }
    p.mix = checks.vector("mix", mix, mixes * channels, true, x.dtype, false);
    views.push_back(mix.read_only());
    bits |= static_cast<std::uintptr_t>(channels * size);
    const int width = 16 / size;
    p.mix_grain = vector_grain(mix, channels, width);
    const auto chunks = static_cast<unsigned>((channels + width - 1) / width);
    while (p.lane_bits < 5 && 1u << p.lane_bits < chunks) ++p.lane_bits;
    p.across = (chunks + (1u << p.lane_bits) - 1) >> p.lane_bits;
    p.runs = static_cast<unsigned>((length + tokens - 1) / tokens);
    checks.that(batches * p.runs * p.across < std::int64_t{1} << 31, "x", "fewer than 2^31 CTAs' work", x);
    p.rows = static_cast<unsigned>(batches * p.runs);
    p.plane = batches * length * channels;
    p.length = static_cast<int>(length);
    p.tokens = static_cast<int>(std::min(tokens, std::int64_t{1} << 30));
    p.channels = static_cast<int>(channels);
    p.mixes = static_cast<int>(mixes);
  }

  // CTAs one after the other along the runs: each has a share of dmix.
  std::int64_t shares() const {
    const std::int64_t teams = kShiftThreads >> p.lane_bits;
    return (p.rows + teams - 1) / teams;
  }

  void launch(Machine& machine, void* stream, const char* module, const std::string& name, std::uint32_t shared) {
    p.grain = grain_of(bits);
    machine.launch(machine.kernel(module, name),
                   {.grid = {static_cast<std::uint32_t>(shares() * p.across)},
                    .block = {kShiftThreads},
                    .cluster = {},
                    .shared = shared,
                    .params = runtime::bytes_of(p),
                    .views = views,
                    .stream = stream,
                    .device = x.device});
  }
};

std::string forward(Machine& machine, void* stream, const View& x, const View& mix, const Optional& last, const View& y,
                    std::int64_t tokens) {
  Shift shift("shift_forward", x);
  shift.prepare(mix, last, y, tokens, false);
  const std::string name = std::string("rows_shift_forward_") + type_name(x.dtype);
  if (x.elements() != 0) shift.launch(machine, stream, "rows_shift_forward", name, 0);
  return name;
}

std::string backward(Machine& machine, void* stream, const View& x, const View& mix, const Optional& last, const View& dy,
                     const View& dx, const Optional& dlast, const View& partial, const Optional& dmix, std::int64_t tokens) {
  Shift shift("shift_backward", x);
  shift.prepare(mix, last, dy, tokens, true);
  ShiftParams& p = shift.p;
  p.dx = shift.add("dx", dx, {x.shape[0], x.shape[1], x.shape[2]}, true);
  shift.checks.that(contiguous(dx), "dx", "contiguous elements", dx);
  if (dlast) {
    p.dlast = shift.add("dlast", *dlast, {x.shape[0], x.shape[2]}, true);
    shift.checks.that(contiguous(*dlast), "dlast", "contiguous elements", *dlast);
  }
  const std::int64_t shares = shift.shares(), columns = mix.elements();
  shift.checks.that(has_shape(partial, {1, shares, columns}) && partial.dtype == DType::f32 && contiguous(partial) &&
                        partial.device == x.device && columns < std::int64_t{1} << 31 && shares < std::int64_t{1} << 31,
                    "partial", "[1, the CTAs along the runs, mixes * channels] contiguous f32", partial);
  p.partial = static_cast<float*>(partial.data);
  p.partial_grain = vector_grain(partial, p.channels, 16 / dtype_bytes(x.dtype));
  shift.views.push_back(partial);
  const std::string name = std::string("rows_shift_backward_") + type_name(x.dtype);
  if (x.elements() == 0) return name;
  const auto width = static_cast<std::uint32_t>(16 / dtype_bytes(x.dtype));
  shift.launch(machine, stream, "rows_shift_backward", name, static_cast<std::uint32_t>(p.mixes) * width * kShiftThreads * 4);
  sum_shares("shift_backward", machine, stream, partial, {dmix, std::nullopt}, columns);
  return name;
}

const runtime::Launcher shift_forward("shift_forward", forward, {"x", "mix", "last", "y", "tokens"});
const runtime::Launcher shift_backward("shift_backward", backward,
                                       {"x", "mix", "last", "dy", "dx", "dlast", "partial", "dmix", "tokens"});

}  // namespace

}  // namespace tkpy::rows
