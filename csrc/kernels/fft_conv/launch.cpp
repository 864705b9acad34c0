// Host side of fft_conv for rows that a CTA holds: which kernel serves a call, and the launches.
#include "host.h"

namespace tkpy::fft_conv {

namespace {

// out = post conv(pre u), out2 the same with post2; correlate: by the adjoint of conv.
std::string convolve(Machine& machine, void* stream, const View& u, const Optional& pre, const Optional& post,
                     const Optional& post2, const View& out, const Optional& out2, const View& spectrum, const View& tables,
                     bool correlate) {
  check_rows("u", u, u);
  check_rows("out", out, u);
  check_optional_rows({{"pre", &pre}, {"post", &post}, {"post2", &post2}, {"out2", &out2}}, u);
  const int plan = check_spectrum(u, spectrum, tables);
  auto p = conv_params<ConvParams>(u, pre, post, post2, out, out2, tables, correlate);
  p.spectrum = spectrum.data;
  const Grid grid{u.shape[0] * u.shape[1], kPlans[plan].threads(), kPlans[plan].shared_bytes()};
  return run(machine, stream, "fft_conv", name_of("fft_conv", plan), grid, p,
             views_of({u, pre, post, post2, spectrum, tables}, {out, out2}), u.device);
}

std::string spectrum(Machine& machine, void* stream, const View& k, const Optional& k_reverse, const Optional& skip,
                     std::int64_t used, std::int64_t used_reverse, const View& out, const View& tables) {
  check(out.rank == 3 && k.rank == 2 && out.shape[0] == k.shape[0], "spectrum", "[channels, points, 2]", out);
  const int plan = plan_of(out.shape[1], tables);
  const std::int64_t channels = k.shape[0], points = out.shape[1];
  SpectrumParams p = filter_params(k, k_reverse, skip, used, used_reverse, points);
  check_dense("spectrum", out, DType::f32, 2 * channels * points, k);
  p.spectrum = out.data;
  p.tables = tables.data;
  const Grid grid{channels, kPlans[plan].threads(), kPlans[plan].shared_bytes()};
  return run(machine, stream, "fft_conv_spectrum", name_of("fft_conv_spectrum", plan), grid, p,
             views_of({k, k_reverse, skip, tables}, {out}), k.device);
}

// du, dpre and dpost, those that are there, and dk and dk_reverse of a group of shares of the batch each.
std::string backward(Machine& machine, void* stream, const View& u, const Optional& pre, const View& dy, const Optional& post,
                     const Optional& du, const Optional& dpre, const Optional& dpost, const View& dk, const View& dk_reverse,
                     const Optional& spectrum, const Optional& scratch, std::int64_t points, int cluster,
                     const View& tables) {
  const int plan = plan_of(points, tables);
  if (du || dpre || dpost) {
    const View missing{};
    check_spectrum(u, spectrum ? *spectrum : missing, tables);
    check(spectrum->shape[1] == points, "spectrum", std::to_string(points) + " points", *spectrum);
  }
  auto p = backward_params(u, pre, dy, post, du, dpre, dpost, dk, dk_reverse, spectrum, tables, points, cluster);
  const std::int64_t blocks = std::int64_t{p.shares} * p.channels;
  check_sums(cluster, scratch, plan, blocks, u);
  p.scratch = scratch ? scratch->data : nullptr;
  const Grid grid{blocks, kPlans[plan].threads(), backward_shared_bytes(kPlans[plan]), cluster};
  return run(machine, stream, "fft_conv_backward", name_of("fft_conv_backward", plan), grid, p,
             views_of({u, pre, dy, post, spectrum, tables}, {du, dpre, dpost, dk, dk_reverse, scratch}), u.device);
}

const runtime::Launcher registered_convolve("fft_conv", convolve,
                                            {"u", "pre", "post", "post2", "out", "out2", "spectrum", "tables", "correlate"});
const runtime::Launcher registered_spectrum("fft_conv_spectrum", spectrum,
                                            {"k", "k_reverse", "skip", "used", "used_reverse", "spectrum", "tables"});
const runtime::Launcher registered_backward("fft_conv_backward", backward,
                                            {"u", "pre", "dy", "post", "du", "dpre", "dpost", "dk", "dk_reverse", "spectrum",
                                             "scratch", "points", "cluster", "tables"});

}  // namespace

}  // namespace tkpy::fft_conv
