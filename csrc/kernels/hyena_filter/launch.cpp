// Host side of hyena_filter: checks, the launch of either kernel, and of the sums of what the backward's CTAs leave.
#include "kernels/rows/host.h"
#include "params.h"

namespace tkpy::hyena_filter {

namespace {

using namespace rows;

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

Params params_of(const Call& c) {
  const View& x = c.features;
  check(x.rank == 2 && x.dtype == DType::f32, "features", "two dimensions of f32", x);
  check(c.hidden.rank == 3, "hidden_weight", "three dimensions", c.hidden);
  const std::int64_t lags = x.shape[0], e = x.shape[1], layers = c.hidden.shape[0], w = c.frequency.shape[0], d = c.decay.shape[0];
  check(e <= kWidth && w <= kWidth, "input_weight", "at most 128 features and a network at most 128 wide", c.input);
  check(lags < (1ll << 30) && d < (1ll << 24), "decay", "fewer than 2^30 lags and 2^24 channels", c.decay);
  Params p{};
  p.features = static_cast<const float*>(x.data);
  p.feature_stride[0] = x.stride[0];
  p.feature_stride[1] = x.stride[1];
  p.times = contiguous("times", c.times, {lags}, x);
  p.input = contiguous("input_weight", c.input, {w, e}, x);
  p.input_bias = contiguous("input_bias", c.input_bias, {w}, x);
  p.hidden = contiguous("hidden_weight", c.hidden, {layers, w, w}, x);
  p.hidden_bias = contiguous("hidden_bias", c.hidden_bias, {layers, w}, x);
  p.frequency = contiguous("frequency", c.frequency, {w}, x);
  p.output = contiguous("output_weight", c.output, {d, w}, x);
  p.decay = contiguous("decay", c.decay, {d}, x);
  p.lags = static_cast<int>(lags);
  p.features_n = static_cast<int>(e);
  p.width = static_cast<int>(w);
  p.layers = static_cast<int>(layers);
  p.channels = static_cast<int>(d);
  return p;
}

std::vector<View> read(const Call& c) {
  std::vector<View> views;
  for (const View* v : {&c.features, &c.times, &c.input, &c.input_bias, &c.hidden, &c.hidden_bias, &c.frequency, &c.output, &c.decay})
    views.push_back(v->read_only());
  return views;
}

std::string forward(Machine& machine, void* stream, const View& features, const View& times, const View& input,
                    const View& input_bias, const View& hidden, const View& hidden_bias, const View& frequency,
                    const View& output, const View& decay, const View& taps) {
  const Call c{features, times, input, input_bias, hidden, hidden_bias, frequency, output, decay};
  Params p = params_of(c);
  p.taps = contiguous("taps", taps, {p.channels, p.lags}, features);
  std::vector<View> views = read(c);
  views.push_back(taps);
  const std::string name = "hyena_filter_forward";
  if (p.lags > 0)
    machine.launch(machine.kernel(name, name), {.grid = {static_cast<std::uint32_t>((p.lags + kLags - 1) / kLags)},
                                                .block = {kThreads},
                                                .cluster = {},
                                                .shared = kForwardBytes,
                                                .params = runtime::bytes_of(p),
                                                .views = views,
                                                .stream = stream,
                                                .device = features.device});
  return name;
}

// What is wanted of the backward: all whole but those of vectors, whose shares are then added up.
std::string backward(Machine& machine, void* stream, const View& features, const View& times, const View& input,
                     const View& input_bias, const View& hidden, const View& hidden_bias, const View& frequency,
                     const View& output, const View& decay, const View& dtaps, const Optional& dfeatures, const Optional& dtimes,
                     const Optional& dinput, const Optional& dhidden, const Optional& doutput,
                     const Optional& dvector_shares, const Optional& ddecay_shares, const Optional& deep,
                     const Optional& dvectors, const Optional& ddecay, const Optional& progress, std::int64_t clusters,
                     std::int64_t team) {
  const Call c{features, times, input, input_bias, hidden, hidden_bias, frequency, output, decay};
  Params p = params_of(c);
  if (clusters < 1 || clusters > (1 << 20) || team < 1 || team > kMostCluster || (team & (team - 1)) != 0)
    throw std::invalid_argument("hyena_filter: need one or more clusters of 1, 2, 4 or 8 CTAs, got " + std::to_string(clusters) +
                                " of " + std::to_string(team));
  std::vector<View> views = read(c);
  const auto written = [&](const char* what, const Optional& v, std::initializer_list<std::int64_t> shape) -> float* {
    if (!v) return nullptr;
    views.push_back(*v);
    return contiguous(what, *v, shape, features);
  };
  const std::int64_t ctas = clusters * team, steps = (p.lags + team * kLags - 1) / (team * kLags), beyond = std::max(0, p.layers + 1 - kKept);
  p.taps = contiguous("dtaps", dtaps, {p.channels, p.lags}, features);
  views.push_back(dtaps.read_only());
  p.dfeatures = written("dfeatures", dfeatures, {p.lags, p.features_n});
  p.dtimes = written("dtimes", dtimes, {p.lags});
  p.dinput = written("dinput", dinput, {p.width, p.features_n});
  p.dhidden = written("dhidden", dhidden, {p.layers, p.width, p.width});
  p.doutput = written("doutput", doutput, {p.channels, p.width});
  p.dvectors = written("dvector_shares", dvector_shares, {1, team, p.layers + 2, p.width});
  p.ddecay = written("ddecay_shares", ddecay_shares, {1, team, p.channels});
  p.deep = written("deep", deep, {ctas, beyond, kTile});
  if (progress) {
    check(progress->dtype == DType::i32 && progress->device == features.device && progress->rank == 1 &&
              progress->extent() == 4 * progress->elements() && progress->elements() == 1 + steps * team,
          "progress", "contiguous i32 zeros on the device of features, one and one for each CTA of each step", *progress);
    views.push_back(*progress);
    p.progress = static_cast<unsigned*>(progress->data);
  }
  check(p.progress != nullptr || steps <= 1, "progress", "it where lags take more than one step", features);
  p.team = static_cast<int>(team);
  check(beyond == 0 || p.deep != nullptr, "deep", "room for the sums of more than two hidden layers", hidden);
  check((!p.dfeatures && !p.dinput && !p.dhidden) || p.dvectors != nullptr, "dvector_shares",
        "shares of the vectors for any gradient within the network", features);
  const std::string name = "hyena_filter_backward";
  if (p.lags == 0) return name;
  machine.launch(machine.kernel(name, name), {.grid = {static_cast<std::uint32_t>(ctas)},
                                              .block = {kThreads},
                                              .cluster = {static_cast<std::uint32_t>(team)},
                                              .shared = kBackwardBytes,
                                              .params = runtime::bytes_of(p),
                                              .views = views,
                                              .stream = stream,
                                              .device = features.device});
  const std::pair<const Optional*, const Optional*> sums[] = {{&dvector_shares, &dvectors}, {&ddecay_shares, &ddecay}};
  for (const auto& [shares, out] : sums) {
    if (!*out) continue;
    check(shares->has_value() && (*out)->elements() == (*shares)->elements() / (*shares)->shape[1], "shares",
          "shares of every gradient, of its size", **out);
    if ((*out)->elements() > 0) sum_shares("hyena_filter", machine, stream, **shares, {*out, std::nullopt}, (*out)->elements());
  }
  return name;
}

const runtime::Launcher forwards("hyena_filter_forward", forward,
                                 {"features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias", "frequency",
                                  "output_weight", "decay", "taps"});
const runtime::Launcher backwards("hyena_filter_backward", backward,
                                  {"features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias",
                                   "frequency", "output_weight", "decay", "dtaps", "dfeatures", "dtimes", "dinput", "dhidden", "doutput",
                                   "dvector_shares", "ddecay_shares", "deep", "dvectors", "ddecay", "progress", "clusters",
                                   "team"});

}  // namespace

}  // namespace tkpy::hyena_filter
