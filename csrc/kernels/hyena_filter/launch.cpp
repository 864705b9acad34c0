// Host side of hyena_filter: checks, and the launch of either kernel.
#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::hyena_filter {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds) throw std::invalid_argument(std::string("hyena_filter: ") + what + ": need " + needed + ", got " + got.describe());
}

float* contiguous(const char* what, const View& v, std::initializer_list<std::int64_t> shape, const View& features) {
  std::string needed = "contiguous f32 on the device of features, of shape (";
  for (const std::int64_t size : shape) needed += std::to_string(size) + ", ";
  check(v.dtype == DType::f32 && v.device == features.device && v.extent() == 4 * v.elements() &&
            std::equal(shape.begin(), shape.end(), v.shape, v.shape + v.rank),
        what, needed + ")", v);
  return static_cast<float*>(v.data);
}

struct Call {
  View features, times, input, input_bias, hidden, hidden_bias, frequency, output, decay;
};

// `turned`: the weights are the transposes that the backward reads.
Params params_of(const Call& c, bool turned) {
  const View& x = c.features;
  check(x.rank == 2 && x.dtype == DType::f32, "features", "two dimensions of f32", x);
  check(c.hidden.rank == 3, "hidden_weight", "three dimensions", c.hidden);
  const std::int64_t lags = x.shape[0], e = x.shape[1], layers = c.hidden.shape[0], w = c.frequency.shape[0], d = c.decay.shape[0];
  check(e <= kWidth && w <= kWidth, "input_weight", "at most 128 features and a network at most 128 wide", c.input);
  check(lags < (1ll << 30) && d < (1ll << 30), "features", "fewer than 2^30 lags and channels", x);
  Params p{};
  p.features = static_cast<const float*>(x.data);
  p.feature_stride[0] = x.stride[0];
  p.feature_stride[1] = x.stride[1];
  p.times = contiguous("times", c.times, {lags}, x);
  p.input = turned ? contiguous("input_weight", c.input, {e, w}, x) : contiguous("input_weight", c.input, {w, e}, x);
  p.input_bias = contiguous("input_bias", c.input_bias, {w}, x);
  p.hidden = contiguous("hidden_weight", c.hidden, {layers, w, w}, x);
  p.hidden_bias = contiguous("hidden_bias", c.hidden_bias, {layers, w}, x);
  p.frequency = contiguous("frequency", c.frequency, {w}, x);
  p.output = turned ? contiguous("output_weight", c.output, {w, d}, x) : contiguous("output_weight", c.output, {d, w}, x);
  p.decay = contiguous("decay", c.decay, {d}, x);
  p.lags = static_cast<int>(lags);
  p.features_n = static_cast<int>(e);
  p.width = static_cast<int>(w);
  p.layers = static_cast<int>(layers);
  p.channels = static_cast<int>(d);
  return p;
}

std::uint32_t tiles(const Params& p) { return static_cast<std::uint32_t>((p.lags + kLags - 1) / kLags); }

std::string launch(Machine& machine, void* stream, const std::string& kernel, const Params& p, const Call& c,
                   std::initializer_list<View> others) {
  if (p.lags == 0) return kernel;
  std::vector<View> views = others;
  for (const View* v : {&c.features, &c.times, &c.input, &c.input_bias, &c.hidden, &c.hidden_bias, &c.frequency, &c.output, &c.decay})
    views.push_back(v->read_only());
  machine.launch(machine.kernel("hyena_filter", kernel), {.grid = {tiles(p), 1, 1},
                                                          .block = {kThreads, 1, 1},
                                                          .cluster = {},
                                                          .shared = kSharedBytes,
                                                          .params = runtime::bytes_of(p),
                                                          .views = views,
                                                          .stream = stream,
                                                          .device = c.features.device});
  return kernel;
}

// Writes taps, or (without) sums.
std::string forward(Machine& machine, void* stream, const View& features, const View& times, const View& input,
                    const View& input_bias, const View& hidden, const View& hidden_bias, const View& frequency,
                    const View& output, const View& decay, const Optional& taps, const Optional& sums) {
  const Call c{features, times, input, input_bias, hidden, hidden_bias, frequency, output, decay};
  Params p = params_of(c, false);
  check(taps.has_value() != sums.has_value(), "taps", "taps or sums, not both", taps ? *taps : features);
  if (taps) p.taps = contiguous("taps", *taps, {p.channels, p.lags}, features);
  else p.sums = contiguous("sums", *sums, {p.layers + 1, p.width, p.lags}, features);
  return launch(machine, stream, "hyena_filter_forward", p, c, {taps ? *taps : *sums});
}

std::string backward(Machine& machine, void* stream, const View& features, const View& times, const View& input,
                     const View& input_bias, const View& hidden, const View& hidden_bias, const View& frequency,
                     const View& output, const View& decay, const View& dtaps, const View& sums, const View& dsums,
                     const View& dfeatures, const View& shares) {
  const Call c{features, times, input, input_bias, hidden, hidden_bias, frequency, output, decay};
  Params p = params_of(c, true);
  p.taps = contiguous("dtaps", dtaps, {p.channels, p.lags}, features);
  p.sums = contiguous("sums", sums, {p.layers + 1, p.width, p.lags}, features);
  p.dsums = contiguous("dsums", dsums, {p.layers + 1, p.width, p.lags}, features);
  p.dfeatures = contiguous("dfeatures", dfeatures, {p.features_n, p.lags}, features);
  p.shares = contiguous("shares", shares, {tiles(p), p.width}, features);
  return launch(machine, stream, "hyena_filter_backward", p, c, {dtaps.read_only(), sums.read_only(), dsums, dfeatures, shares});
}

const runtime::Launcher forwards("hyena_filter", forward,
                                 {"features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias", "frequency",
                                  "output_weight", "decay", "taps", "sums"});
const runtime::Launcher backwards("hyena_filter_backward", backward,
                                  {"features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias",
                                   "frequency", "output_weight", "decay", "dtaps", "sums", "dsums", "dfeatures", "shares"});

}  // namespace

}  // namespace tkpy::hyena_filter
