// Host side of short_conv: forward is one launch; backward three, of which two add the runs' shares of the gradients of
// weight and bias.
#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::short_conv {

namespace {

using namespace rows;

struct Call {
  Checks checks;
  Params p{};
  std::vector<View> views;
  const View& x;
  std::int64_t size;

  Call(const char* op, const View& input) : checks(op, input), x(input), size(dtype_bytes(input.dtype)) {}

  // `sequences`: of states one for each, of other signals x's rows.
  Signal signal(const char* what, const View& v, std::int64_t sequences, std::int64_t times, bool written) {
    checks.that(has_shape(v, {sequences, x.shape[1], times}) && v.dtype == x.dtype && v.device == x.device, what,
                "x's sequences and channels, its length or taps - 1, its type and device", v);
    if (written) checks.that(contiguous(v), what, "contiguous elements", v);
    views.push_back(written ? v : v.read_only());
    return {v.data, v.stride[0], v.stride[1], v.stride[2]};
  }
  Signal rows(const char* what, const View& v, bool written) { return signal(what, v, x.shape[0], x.shape[2], written); }
  Signal state(const char* what, const Optional& v, bool written) {
    return v && v->elements() != 0 ? signal(what, *v, p.sequences, p.taps - 1, written) : Signal{};
  }
  Vector parameter(const char* what, const View& v, std::int64_t elements) {
    const Vector found = checks.vector(what, v, elements, v.dtype == DType::f32, x.dtype, false);
    views.push_back(v.read_only());
    return found;
  }

  // Whether channels, and not times, are beside each other.
  bool turned() const { return x.stride[2] != 1 && x.shape[2] > 1; }

  // Everything but the direction's own; `out` is what is written in x's shape.
  void prepare(const View& weight, const Optional& bias, const Optional& initial, const Optional& bounds, const View& out,
               std::int64_t tokens, bool silu) {
    checks.that(x.rank == 3 && is_float(x.dtype), "x", "three dimensions of bf16, f16 or f32", x);
    checks.that(x.shape[1] < std::int64_t{1} << 28 && x.shape[2] < std::int64_t{1} << 30, "x",
                "fewer than 2^28 channels and 2^30 times", x);
    checks.that(weight.rank == 2 && weight.shape[0] == x.shape[1] && weight.shape[1] >= 1 && weight.shape[1] <= kMostTaps, "weight",
                "1 to 8 taps for each channel", weight);
    checks.that(!turned() || x.stride[1] == 1 || x.shape[1] == 1, "x", "times or channels beside each other", x);
    if (tokens < kBlock || tokens % kBlock != 0)
      throw std::invalid_argument("short_conv: tokens: need a multiple of 64, got " + std::to_string(tokens));
    const std::int64_t channels = x.shape[1], length = x.shape[2];
    p.taps = static_cast<int>(weight.shape[1]);
    p.x = rows("x", x, false);
    p.sequences = static_cast<int>(x.shape[0]);
    if (bounds) {
      checks.that(x.shape[0] == 1, "x", "one row where there are offsets", x);
      checks.that(bounds->rank == 1 && bounds->shape[0] >= 2 && bounds->shape[0] < std::int64_t{1} << 31 &&
                      bounds->dtype == DType::i32 && contiguous(*bounds) && bounds->device == x.device,
                  "cu_seqlens", "two or more contiguous elements of i32 on the device of x", *bounds);
      p.bounds = static_cast<const int*>(bounds->data);
      p.sequences = static_cast<int>(bounds->shape[0] - 1);
      views.push_back(bounds->read_only());
    }
    p.initial = state("initial_state", initial, false);
    p.weight = parameter("weight", weight, weight.elements());
    if (bias) p.bias = parameter("bias", *bias, channels);
    p.batches = static_cast<int>(x.shape[0]);
    p.channels = static_cast<int>(channels);
    p.length = static_cast<int>(length);
    p.tokens = static_cast<int>(std::min(tokens, std::int64_t{1} << 30));
    p.runs = static_cast<int>((length + tokens - 1) / tokens);
    p.lanes = 1;
    while (p.lanes < 32 && p.lanes * kTimes < std::min<std::int64_t>(length + kTimes, tokens)) p.lanes *= 2;
    const int together = turned() ? kTurnLanes * 16 / static_cast<int>(size) : 32 / p.lanes;
    p.groups = static_cast<int>((channels + together - 1) / together);
    p.silu = silu;
    const auto address = reinterpret_cast<std::uintptr_t>(out.data);
    p.shifted = bounds || length % kTimes != 0 || address / static_cast<std::uintptr_t>(size) % kTimes != 0;
    const auto bytes = [&](std::int64_t elements) { return static_cast<std::uintptr_t>(elements * size); };
    p.grain = grain_of(reinterpret_cast<std::uintptr_t>(x.data) | bytes(channels) | bytes(x.shape[0] > 1 ? x.stride[0] : 0) |
                       bytes(x.stride[2]));
  }

  std::string launch(Machine& machine, void* stream, const char* module, int sums) {
    const std::string name = std::string(module) + "_" + type_name(x.dtype) + (turned() ? "_channels" : "_times");
    const std::int64_t warps = std::int64_t{p.batches} * p.runs * p.groups;
    checks.that(warps < std::int64_t{1} << 31, "x", "fewer than 2^31 warps' work", x);
    constexpr int each = kThreads / 32;
    p.warp_bytes = turned_bytes(static_cast<int>(size), sums);
    if (x.elements() != 0)
      machine.launch(machine.kernel(module, name),
                     {.grid = {static_cast<std::uint32_t>((warps + each - 1) / each)},
                      .block = {kThreads},
                      .cluster = {},
                      .shared = turned() ? static_cast<std::uint32_t>(each * p.warp_bytes) : 0,
                      .params = runtime::bytes_of(p),
                      .views = views,
                      .stream = stream,
                      .device = x.device});
    return name;
  }
};

std::string forward(Machine& machine, void* stream, const View& x, const View& weight, const Optional& bias,
                    const Optional& initial, const Optional& bounds, const View& y, const Optional& final,
                    std::int64_t tokens, bool silu) {
  Call call("short_conv_forward", x);
  call.prepare(weight, bias, initial, bounds, y, tokens, silu);
  call.p.y = call.rows("y", y, true);
  call.p.final = call.state("final_state", final, true).data;
  return call.launch(machine, stream, "short_conv_forward", 0);
}

float* shares_of(Call& call, const char* what, const Optional& v, std::int64_t columns) {
  if (!v) return nullptr;
  const std::int64_t rows = std::int64_t{call.p.batches} * call.p.runs;
  call.checks.that(has_shape(*v, {1, rows, columns}) && v->dtype == DType::f32 && contiguous(*v) && v->device == call.x.device &&
                       columns < std::int64_t{1} << 31 && rows < std::int64_t{1} << 31,
                   what, "[1, sequences * runs, channels or their taps] contiguous f32", *v);
  call.views.push_back(*v);
  return static_cast<float*>(v->data);
}

std::string backward(Machine& machine, void* stream, const View& x, const View& weight, const Optional& bias,
                     const Optional& initial, const Optional& bounds, const View& dy, const Optional& dfinal, const View& dx,
                     const Optional& dinitial,
                     const Optional& dweight_shares, const Optional& dbias_shares, const Optional& dweight,
                     const Optional& dbias, std::int64_t tokens, bool silu) {
  Call call("short_conv_backward", x);
  call.prepare(weight, bias, initial, bounds, dx, tokens, silu);
  Params& p = call.p;
  p.y = call.rows("dy", dy, false);
  call.checks.that(dy.stride[2] == 1 || dy.shape[2] <= 1, "dy", "times beside each other", dy);
  p.dfinal = call.state("dfinal_state", dfinal, false);
  p.dx = call.rows("dx", dx, true);
  p.dinitial = call.state("dinitial_state", dinitial, true).data;
  p.dweight = shares_of(call, "dweight_shares", dweight_shares, weight.elements());
  p.dbias = shares_of(call, "dbias_shares", dbias_shares, x.shape[1]);
  if ((p.dweight == nullptr) != (p.dbias == nullptr))
    throw std::invalid_argument("short_conv_backward: need shares of both weight and bias, or of none");
  const std::string name = call.launch(machine, stream, "short_conv_backward", p.taps + 1);
  if (p.dweight == nullptr || x.elements() == 0) return name;
  sum_shares("short_conv_backward", machine, stream, *dweight_shares, {dweight, std::nullopt}, weight.elements());
  sum_shares("short_conv_backward", machine, stream, *dbias_shares, {dbias, std::nullopt}, x.shape[1]);
  return name;
}

const runtime::Launcher short_conv_forward("short_conv_forward", forward,
                                           {"x", "weight", "bias", "initial_state", "cu_seqlens", "y", "final_state", "tokens", "silu"});
const runtime::Launcher short_conv_backward("short_conv_backward", backward,
                                            {"x", "weight", "bias", "initial_state", "cu_seqlens", "dy", "dfinal_state", "dx", "dinitial_state",
                                             "dweight_shares", "dbias_shares", "dweight", "dbias", "tokens", "silu"});

}  // namespace

}  // namespace tkpy::short_conv
