// Host side of fft_conv for rows longer than a CTA holds: outer * inner points through `work` in global memory, or on the
// CTAs of a cluster.
#include "host.h"

namespace tkpy::fft_conv {

namespace {

// [batch or groups, channels, outer, 2, inner]
void check_work(const char* what, const View& v, const View& other) {
  check(v.rank == 5 && v.shape[3] == 2 && v.elements() > 0, what, "[rows, channels, outer, 2, inner]", v);
  const std::int64_t outer = v.shape[2], inner = v.shape[4];
  check(inner == 2048 || inner == 4096 || inner == 16384, what, "an inner size of 2048, 4096 or 16384", v);
  check(outer % 16 == 0 && outer >= 16 && outer <= kMostOuter, what, "an outer size of 16, 32 .. 256", v);
  check_dense(what, v, DType::f32, v.elements(), other);
}
void check_matrix(const char* what, const View& v, std::int64_t outer, bool complex, const View& other) {
  check_dense(what, v, DType::i32, (complex ? 4 : 2) * outer * outer, other);
}
void check_taps(const char* what, const View& v, std::int64_t used, const View& work) {
  check(v.rank == 2 && v.shape[0] == work.shape[1] && used >= 0 && used <= v.shape[1] &&
            used <= work.shape[2] * work.shape[4],
        what, "[channels, taps], at least those that count", v);
  check_dense(what, v, DType::f32, v.elements(), work);
}
void check_long_spectrum(const View& v, const View& work) {
  check_dense("spectrum", v, DType::f32, work.elements() / work.shape[0], work);
}

// Of a pass over n0: a CTA to a strip of columns.
template <class P>
void run_outer(Machine& machine, void* stream, const char* module, const char* name, std::int64_t rows, bool complex,
               const P& p, const std::vector<View>& views, int device) {
  const Grid grid{rows * (p.inner / kOuterColumns), 32 * kOuterWarps, outer_shared_bytes(p.outer, complex)};
  run(machine, stream, module, name, grid, p, views, device);
}

template <class P>
P params_of(const View& work) {
  P p{};
  p.work = static_cast<float*>(work.data);
  p.batch = static_cast<int>(work.shape[0]);
  p.channels = static_cast<int>(work.shape[1]);
  p.outer = static_cast<int>(work.shape[2]);
  p.inner = static_cast<int>(work.shape[4]);
  p.half_turn = 0.5f / static_cast<float>(work.shape[2] * work.shape[4]);
  return p;
}
LongParams rows_params(const View& u, const View& work, const View& matrix) {
  check_rows("u", u, u);
  check_work("work", work, u);
  check(work.shape[0] == u.shape[0] && work.shape[1] == u.shape[1], "work", "the rows of u", work);
  check(u.shape[2] > 0 && u.shape[2] <= work.shape[2] * work.shape[4], "u", "at least one sample and at most as many as points",
        u);
  check_matrix("matrix", matrix, work.shape[2], false, u);
  LongParams p = params_of<LongParams>(work);
  p.matrix = matrix.data;
  p.length = static_cast<int>(u.shape[2]);
  p.half = u.dtype == DType::f16;
  return p;
}

// u and pre to work.
std::string rows_to_work(Machine& machine, void* stream, const View& u, const Optional& pre, const View& work,
                         const View& matrix) {
  LongParams p = rows_params(u, work, matrix);
  check_optional_rows({{"pre", &pre}}, u);
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  run_outer(machine, stream, "fft_conv_long", "fft_conv_long_in", u.shape[0] * u.shape[1], false, p,
            views_of({u, pre, matrix}, {work}), u.device);
  return "fft_conv_long_in";
}

// Work of rows to that of their convolutions, or correlations.
std::string inner(Machine& machine, void* stream, const View& work, const View& spectrum, const View& tables,
                  bool correlate) {
  check_work("work", work, work);
  const int plan = plan_of(work.shape[4], tables);
  check_long_spectrum(spectrum, work);
  LongParams p = params_of<LongParams>(work);
  p.spectrum = spectrum.data;
  p.tables = tables.data;
  p.correlate = correlate;
  const Grid grid{work.shape[0] * work.shape[1] * work.shape[2], kPlans[plan].threads(), kPlans[plan].shared_bytes()};
  return run(machine, stream, "fft_conv_long", name_of("fft_conv_long_inner", plan), grid, p,
             views_of({spectrum, tables}, {work}), work.device);
}

// Work to out by post, and to out2 by post2.
std::string work_to_rows(Machine& machine, void* stream, const View& work, const View& matrix, const Optional& post,
                         const Optional& post2, const View& out, const Optional& out2) {
  LongParams p = rows_params(out, work, matrix);
  check_optional_rows({{"post", &post}, {"post2", &post2}, {"out2", &out2}}, out);
  p.post = rows_of(post);
  p.post2 = rows_of(post2);
  p.out = rows_of(out);
  p.out2 = rows_of(out2);
  run_outer(machine, stream, "fft_conv_long", "fft_conv_long_out", out.shape[0] * out.shape[1], true, p,
            views_of({work, matrix, post, post2}, {out, out2}), out.device);
  return "fft_conv_long_out";
}

// out = post conv(pre u), out2 the same with post2, by as many clusters as run at once, whose CTAs hold `points` each;
// correlate: by the adjoint of conv. Of a spectrum, or of k, whose spectrum is then left in it where it is given too.
std::string convolve_on_clusters(Machine& machine, void* stream, const View& u, const Optional& pre, const Optional& post,
                                 const Optional& post2, const View& out, const Optional& out2, const Optional& spectrum,
                                 const Optional& k, const Optional& k_reverse, const Optional& skip, std::int64_t used,
                                 std::int64_t used_reverse, std::int64_t points, const View& tables, bool correlate) {
  check_rows("u", u, u);
  check_rows("out", out, u);
  check_optional_rows({{"pre", &pre}, {"post", &post}, {"post2", &post2}, {"out2", &out2}}, u);
  check(points == 4096 || points == 8192, "points", "4096 or 8192 a CTA of a cluster", tables);
  const int plan = plan_of(points, tables);
  check(u.elements() > 0 && u.shape[2] <= kRowCluster * points, "u", "at least one sample and at most as many as points", u);
  if (spectrum || !k) {
    const View missing{};
    const View& v = spectrum ? *spectrum : missing;
    check(v.rank == 4 && v.shape[0] == u.shape[1] && v.shape[1] == kRowCluster && v.shape[2] == points, "spectrum",
          "[channels, 8, points, 2]", v);
    check_dense("spectrum", v, DType::f32, 2 * u.shape[1] * kRowCluster * points, u);
  }
  auto p = conv_params<ClusterParams>(u, pre, post, post2, out, out2, tables, correlate);
  if (k) {
    check(k->shape[0] == u.shape[1] && k->device == u.device, "k", "the channels and the device of u", *k);
    p.filter = filter_params(*k, k_reverse, skip, used, used_reverse, kRowCluster * points);
    p.filter.spectrum = spectrum ? spectrum->data : nullptr;
  } else {
    p.spectrum = spectrum->data;
  }
  const Plan& of = kPlans[plan];
  const Optional none, &given = k ? none : spectrum, &left = k ? spectrum : none;
  return run_clusters(machine, stream, "fft_conv_cluster", name_of("fft_conv_cluster", plan), u.shape[0] * u.shape[1],
                      {0, of.threads(), row_cluster_bytes(of), kRowCluster}, p,
                      views_of({u, pre, post, post2, given, k, k_reverse, skip, tables}, {out, out2, left}), u.device);
}

// du, dpre and dpost, those that are there, for which k is, and dk and dk_reverse of a part of the batch each, by clusters
// whose CTAs hold `points` each.
std::string backward_on_clusters(Machine& machine, void* stream, const View& u, const Optional& pre, const View& dy,
                                 const Optional& post, const Optional& du, const Optional& dpre, const Optional& dpost,
                                 const View& dk, const View& dk_reverse, const Optional& k, const Optional& k_reverse,
                                 const Optional& skip, std::int64_t used, std::int64_t used_reverse, std::int64_t points,
                                 const View& tables) {
  check(points == 4096 || points == 8192, "points", "4096 or 8192 a CTA of a cluster", tables);
  const int plan = plan_of(points, tables);
  auto p = backward_params(u, pre, dy, post, du, dpre, dpost, dk, dk_reverse, {}, tables, kRowCluster * points, 1);
  if (du || dpre || dpost) {
    const View missing{}, &taps = k ? *k : missing;
    p.filter = filter_params(taps, k_reverse, skip, used, used_reverse, kRowCluster * points);
    check(taps.shape[0] == u.shape[1] && taps.device == u.device, "k", "the channels and the device of u", taps);
  }
  const Grid grid{std::int64_t{p.shares} * p.channels * kRowCluster, kPlans[plan].threads(),
                  cluster_backward_bytes(kPlans[plan]), kRowCluster};
  return run(machine, stream, "fft_conv_cluster_backward", name_of("fft_conv_cluster_backward", plan), grid, p,
             views_of({u, pre, dy, post, k, k_reverse, skip, tables}, {du, dpre, dpost, dk, dk_reverse}), u.device);
}

std::string spectrum_long(Machine& machine, void* stream, const View& k, const Optional& k_reverse, const Optional& skip,
                          std::int64_t used, std::int64_t used_reverse, const View& work, const View& out,
                          const View& matrix, const View& tables) {
  check_work("work", work, k);
  check(work.shape[0] == 1, "work", "one row", work);
  const int plan = plan_of(work.shape[4], tables);
  check_taps("k", k, used, work);
  const View missing{};
  if (used_reverse != 0) check_taps("k_reverse", k_reverse ? *k_reverse : missing, used_reverse, work);
  if (skip) check_dense("skip", *skip, DType::f32, work.shape[1], k);
  check_long_spectrum(out, work);
  check_matrix("matrix", matrix, work.shape[2], true, k);
  LongFilterParams p = params_of<LongFilterParams>(work);
  set_taps(p, k, k_reverse, skip, used, used_reverse);
  p.spectrum = out.data;
  p.matrix = matrix.data;
  p.tables = tables.data;
  const std::vector<View> views = views_of({k, k_reverse, skip, matrix, tables}, {work, out});
  const Grid grid{std::int64_t{p.channels} * p.outer, kPlans[plan].threads(), kPlans[plan].shared_bytes()};
  run_outer(machine, stream, "fft_conv_long_filter", "fft_conv_long_filter_in", p.channels, true, p, views, k.device);
  return run(machine, stream, "fft_conv_long_filter", name_of("fft_conv_long_filter_values", plan), grid, p, views, k.device);
}

// The inner rows of the gradients: sums [groups, ..] of the rows of v_work and g_work, and these in place where wanted.
std::string backward_long(Machine& machine, void* stream, const View& v_work, const View& g_work, const View& sums,
                          const Optional& spectrum, bool wants_v, bool wants_g, const Optional& scratch, int cluster,
                          const View& tables) {
  check_work("v_work", v_work, v_work);
  check_work("g_work", g_work, v_work);
  check_work("sums", sums, v_work);
  check(std::equal(g_work.shape, g_work.shape + 5, v_work.shape), "g_work", "the shape of v_work", g_work);
  check(std::equal(sums.shape + 1, sums.shape + 5, v_work.shape + 1), "sums", "the shape of v_work but for the rows", sums);
  const int plan = plan_of(sums.shape[4], tables);
  const std::int64_t rows = sums.shape[1] * sums.shape[2], blocks = sums.shape[0] * cluster * rows;
  const View missing{};
  if (wants_v || wants_g) check_long_spectrum(spectrum ? *spectrum : missing, v_work);
  check_sums(cluster, scratch, plan, blocks, v_work);
  LongBackwardParams p{};
  p.v_work = static_cast<float*>(v_work.data);
  p.g_work = static_cast<float*>(g_work.data);
  p.sums = static_cast<float*>(sums.data);
  p.spectrum = spectrum ? spectrum->data : nullptr;
  p.scratch = scratch ? scratch->data : nullptr;
  p.tables = tables.data;
  p.wants_v = wants_v;
  p.wants_g = wants_g;
  p.batch = static_cast<int>(v_work.shape[0]);
  p.rows = static_cast<int>(rows);
  p.shares = static_cast<int>(sums.shape[0] * cluster);
  p.cluster = cluster;
  p.scale = 1.0f / static_cast<float>(sums.shape[2] * sums.shape[4]);
  const Grid grid{blocks, kPlans[plan].threads(), backward_shared_bytes(kPlans[plan]), cluster};
  return run(machine, stream, "fft_conv_long_backward", name_of("fft_conv_long_backward", plan), grid, p,
             views_of({spectrum, tables}, {v_work, g_work, sums, scratch}), sums.device);
}

std::string work_to_taps(Machine& machine, void* stream, const View& work, const View& dk, const View& dk_reverse,
                         const View& matrix) {
  check_work("work", work, work);
  check(work.shape[0] == 1, "work", "one row", work);
  check_taps("dk", dk, dk.shape[1], work);
  check_taps("dk_reverse", dk_reverse, dk_reverse.shape[1], work);
  check_matrix("matrix", matrix, work.shape[2], true, work);
  LongFilterParams p = params_of<LongFilterParams>(work);
  p.dk = static_cast<float*>(dk.data);
  p.dk_reverse = static_cast<float*>(dk_reverse.data);
  p.used = static_cast<int>(dk.shape[1]);
  p.used_reverse = static_cast<int>(dk_reverse.shape[1]);
  p.matrix = matrix.data;
  run_outer(machine, stream, "fft_conv_long_filter", "fft_conv_long_filter_out", p.channels, true, p,
            views_of({work, matrix}, {dk, dk_reverse}), work.device);
  return "fft_conv_long_filter_out";
}

const runtime::Launcher registered_rows("fft_conv_long_rows", rows_to_work, {"u", "pre", "work", "matrix"});
const runtime::Launcher registered_inner("fft_conv_long_inner", inner, {"work", "spectrum", "tables", "correlate"});
const runtime::Launcher registered_out("fft_conv_long_out", work_to_rows, {"work", "matrix", "post", "post2", "out", "out2"});
const runtime::Launcher registered_cluster("fft_conv_cluster", convolve_on_clusters,
                                           {"u", "pre", "post", "post2", "out", "out2", "spectrum", "k", "k_reverse", "skip",
                                            "used", "used_reverse", "points", "tables", "correlate"});
const runtime::Launcher registered_spectrum("fft_conv_long_spectrum", spectrum_long,
                                            {"k", "k_reverse", "skip", "used", "used_reverse", "work", "spectrum", "matrix",
                                             "tables"});
const runtime::Launcher registered_backward("fft_conv_long_backward", backward_long,
                                            {"v_work", "g_work", "sums", "spectrum", "wants_v", "wants_g", "scratch",
                                             "cluster", "tables"});
const runtime::Launcher registered_cluster_backward("fft_conv_cluster_backward", backward_on_clusters,
                                                    {"u", "pre", "dy", "post", "du", "dpre", "dpost", "dk", "dk_reverse",
                                                     "k", "k_reverse", "skip", "used", "used_reverse", "points", "tables"});
const runtime::Launcher registered_taps("fft_conv_long_taps", work_to_taps, {"work", "dk", "dk_reverse", "matrix"});

}  // namespace

}  // namespace tkpy::fft_conv
