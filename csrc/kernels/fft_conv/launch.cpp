// Host side of fft_conv: which kernel serves a call, and the launches.
#include <limits>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::fft_conv {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds)
    throw std::invalid_argument(std::string("fft_conv: ") + what + ": need " + needed + ", got " + got.describe());
}

// The plan of a spectrum or of tables: by its number of points.
int plan_of(std::int64_t points, const View& tables) {
  for (int i = 0; i < static_cast<int>(std::size(kPlans)); ++i) {
    if (kPlans[i].points() != points) continue;
    check(tables.rank == 1 && tables.dtype == DType::i32 && tables.stride[0] == 1 &&
              tables.shape[0] == 4 * std::int64_t{Tables(kPlans[i]).end} &&
              reinterpret_cast<std::uintptr_t>(tables.data) % 16 == 0,
          "tables", std::to_string(4 * Tables(kPlans[i]).end) + " contiguous numbers of i32 at a multiple of 16 bytes", tables);
    return i;
  }
  throw std::invalid_argument("fft_conv: need 256, 1024, 2048, 4096, 8192 or 16384 points, got " + std::to_string(points));
}

void check_rows(const char* what, const View& v, const View& u) {
  check(v.rank == 3 && (v.dtype == DType::bf16 || v.dtype == DType::f16) && v.dtype == u.dtype, what,
        "three dimensions of bf16 or f16, the type of u", v);
  check(std::equal(v.shape, v.shape + 3, u.shape) && v.device == u.device, what, "the shape and device of u", v);
  check(v.elements() == 0 || v.shape[2] == 1 || v.stride[2] == 1, what, "contiguous samples", v);
}
void check_dense(const char* what, const View& v, DType dtype, std::int64_t elements, const View& u) {
  check(v.dtype == dtype && v.elements() == elements && v.extent() == elements * dtype_bytes(dtype) && v.device == u.device,
        what, std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of u", v);
}

Rows rows_of(const View& v) {
  const bool vectors = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && (v.shape[0] == 1 || v.stride[0] % 8 == 0) &&
                       (v.shape[1] == 1 || v.stride[1] % 8 == 0);
  return {v.data, v.stride[0], v.stride[1], vectors};
}
Rows rows_of(const Optional& v) { return v ? rows_of(*v) : Rows{}; }

// A launch of `name` for a plan, a CTA to each of `blocks`.
template <class P>
std::string run(Machine& machine, void* stream, const char* module, int plan, std::int64_t blocks, const P& params,
                std::vector<View> views, int device) {
  if (blocks > std::numeric_limits<int>::max())
    throw std::invalid_argument("fft_conv: need fewer than 2^31 rows, got " + std::to_string(blocks));
  const std::string name = std::string(module) + "_" + std::to_string(kPlans[plan].points());
  machine.launch(machine.kernel(module, name), {.grid = {static_cast<std::uint32_t>(blocks), 1, 1},
                                                .block = {static_cast<std::uint32_t>(kPlans[plan].threads()), 1, 1},
                                                .cluster = {},
                                                .shared = static_cast<std::uint32_t>(kPlans[plan].shared_bytes()),
                                                .params = runtime::bytes_of(params),
                                                .views = views,
                                                .stream = stream,
                                                .device = device});
  return name;
}

// out = post (conv(pre u) + skip pre u), out2 the same with post2; correlate: by the adjoint of conv.
std::string convolve(Machine& machine, void* stream, const View& u, const Optional& pre, const Optional& post,
                     const Optional& post2, const View& out, const Optional& out2, const Optional& skip,
                     const View& spectrum, const View& tables, bool correlate) {
  check_rows("u", u, u);
  for (const auto& [name, v] : {std::pair{"pre", &pre}, {"post", &post}, {"post2", &post2}, {"out2", &out2}})
    if (*v) check_rows(name, **v, u);
  check_rows("out", out, u);
  check(u.shape[0] > 0 && u.shape[1] > 0 && u.shape[2] > 0, "u", "at least one sample", u);
  check(spectrum.rank == 3 && spectrum.shape[0] == u.shape[1], "spectrum", "[channels, points, 2]", spectrum);
  const int plan = plan_of(spectrum.shape[1], tables);
  check_dense("spectrum", spectrum, DType::f32, 2 * u.shape[1] * spectrum.shape[1], u);
  check(u.shape[2] <= spectrum.shape[1], "u", "at most as many samples as points", u);
  if (skip) check_dense("skip", *skip, DType::f32, u.shape[1], u);
  ConvParams p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.post = rows_of(post);
  p.post2 = rows_of(post2);
  p.out = rows_of(out);
  p.out2 = rows_of(out2);
  p.skip = skip ? static_cast<const float*>(skip->data) : nullptr;
  p.spectrum = spectrum.data;
  p.tables = tables.data;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.half = u.dtype == DType::f16;
  p.correlate = correlate;
  std::vector<View> views = {u.read_only(), spectrum.read_only(), tables.read_only(), out};
  for (const Optional* v : {&pre, &post, &post2, &skip})
    if (*v) views.push_back((*v)->read_only());
  if (out2) views.push_back(*out2);
  return run(machine, stream, "fft_conv", plan, u.shape[0] * u.shape[1], p, std::move(views), u.device);
}

std::string spectrum(Machine& machine, void* stream, const View& k, const Optional& k_reverse, std::int64_t used,
                     std::int64_t used_reverse, const View& out, const View& tables) {
  check(out.rank == 3 && k.rank == 2 && out.shape[0] == k.shape[0], "spectrum", "[channels, points, 2]", out);
  const int plan = plan_of(out.shape[1], tables);
  const std::int64_t channels = k.shape[0], points = out.shape[1];
  check(channels > 0, "k", "at least one channel", k);
  check_dense("k", k, DType::f32, channels * k.shape[1], k);
  check_dense("spectrum", out, DType::f32, 2 * channels * points, k);
  check(used >= 0 && used <= k.shape[1] && used <= points, "k", "the taps that count", k);
  check(used_reverse >= 0 && used_reverse < points, "k_reverse", "the taps that count", k);
  if (used_reverse > 0) {
    const View missing{};
    const View& reverse = k_reverse ? *k_reverse : missing;
    check(reverse.rank == 2 && reverse.shape[0] == channels && used_reverse <= reverse.shape[1], "k_reverse",
          "the taps that count", reverse);
    check_dense("k_reverse", reverse, DType::f32, channels * reverse.shape[1], k);
  }
  SpectrumParams p{};
  p.k = static_cast<const float*>(k.data);
  p.k_reverse = k_reverse ? static_cast<const float*>(k_reverse->data) : nullptr;
  p.taps = static_cast<int>(k.shape[1]);
  p.taps_reverse = k_reverse ? static_cast<int>(k_reverse->shape[1]) : 0;
  p.used = static_cast<int>(used);
  p.used_reverse = static_cast<int>(used_reverse);
  p.spectrum = out.data;
  p.tables = tables.data;
  std::vector<View> views = {k.read_only(), tables.read_only(), out};
  if (k_reverse) views.push_back(k_reverse->read_only());
  return run(machine, stream, "fft_conv_spectrum", plan, channels, p, std::move(views), k.device);
}

// dk and dk_reverse of a share of the batch each; scratch is needed where kPlans keeps no values in registers.
std::string gradient(Machine& machine, void* stream, const View& u, const Optional& pre, const View& dy, const Optional& post,
                     const View& dk, const Optional& dk_reverse, const Optional& scratch, std::int64_t points,
                     const View& tables) {
  check_rows("u", u, u);
  check_rows("dy", dy, u);
  for (const auto& [name, v] : {std::pair{"pre", &pre}, {"post", &post}})
    if (*v) check_rows(name, **v, u);
  const int plan = plan_of(points, tables);
  check(u.shape[0] > 0 && u.shape[1] > 0 && u.shape[2] > 0 && u.shape[2] <= points, "u",
        "at least one sample and at most as many as points", u);
  const auto check_taps = [&](const char* what, const View& v) {
    check(v.rank == 3 && v.shape[0] == dk.shape[0] && v.shape[0] >= 1 && v.shape[1] == u.shape[1] && v.shape[2] <= points,
          what, "[shares, channels, taps]", v);
    check_dense(what, v, DType::f32, v.elements(), u);
  };
  check_taps("dk", dk);
  if (dk_reverse) check_taps("dk_reverse", *dk_reverse);
  const std::int64_t blocks = dk.shape[0] * u.shape[1];
  if (points > kInRegisters) {
    const View missing{};
    check_dense("scratch", scratch ? *scratch : missing, DType::f32, 4 * blocks * points, u);
  }
  GradientParams p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.dy = rows_of(dy);
  p.post = rows_of(post);
  p.dk = static_cast<float*>(dk.data);
  p.used = static_cast<int>(dk.shape[2]);
  if (dk_reverse) {
    p.dk_reverse = static_cast<float*>(dk_reverse->data);
    p.used_reverse = static_cast<int>(dk_reverse->shape[2]);
  }
  p.scratch = scratch ? scratch->data : nullptr;
  p.tables = tables.data;
  p.half = u.dtype == DType::f16;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.shares = static_cast<int>(dk.shape[0]);
  std::vector<View> views = {u.read_only(), dy.read_only(), tables.read_only(), dk};
  for (const Optional* v : {&pre, &post})
    if (*v) views.push_back((*v)->read_only());
  for (const Optional* v : {&dk_reverse, &scratch})
    if (*v) views.push_back(**v);
  return run(machine, stream, "fft_conv_gradient", plan, blocks, p, std::move(views), u.device);
}

// ---- Rows of outer * inner points ----------------------------------------------------------------------------------
void check_factors(const char* what, const View& v, std::int64_t outer, std::int64_t inner) {
  check(inner == 2048 || inner == 4096 || inner == 16384, what, "an inner size of 2048, 4096 or 16384", v);
  check(outer % 16 == 0 && outer >= 16 && outer <= kMostOuter, what, "an outer size of 16, 32 .. 256", v);
}
// [batch or shares, channels, outer, 2, inner]
void check_work(const char* what, const View& v, const View& other) {
  check(v.rank == 5 && v.shape[3] == 2 && v.elements() > 0, what, "[rows, channels, outer, 2, inner]", v);
  check_factors(what, v, v.shape[2], v.shape[4]);
  check_dense(what, v, DType::f32, v.elements(), other);
}
void check_matrix(const char* what, const View& v, std::int64_t outer, bool complex, const View& other) {
  check_dense(what, v, DType::i32, (complex ? 4 : 2) * outer * outer, other);
}

template <class P>
void run_long(Machine& machine, void* stream, const char* module, const std::string& name, std::int64_t blocks, int threads,
              int shared, const P& params, const std::vector<View>& views, int device) {
  if (blocks > std::numeric_limits<int>::max())
    throw std::invalid_argument("fft_conv: need fewer than 2^31 blocks, got " + std::to_string(blocks));
  machine.launch(machine.kernel(module, name), {.grid = {static_cast<std::uint32_t>(blocks), 1, 1},
                                                .block = {static_cast<std::uint32_t>(threads), 1, 1},
                                                .cluster = {},
                                                .shared = static_cast<std::uint32_t>(shared),
                                                .params = runtime::bytes_of(params),
                                                .views = views,
                                                .stream = stream,
                                                .device = device});
}
// Of a pass over n0: a CTA to a strip of columns.
template <class P>
void run_outer(Machine& machine, void* stream, const char* module, const char* name, std::int64_t rows, bool complex,
               const P& p, const std::vector<View>& views, int device) {
  run_long(machine, stream, module, name, rows * (p.inner / kOuterColumns), 32 * kOuterWarps,
           outer_shared_bytes(p.outer, complex), p, views, device);
}

// u and pre to work alone: what the gradients of the filters begin with.
std::string rows_to_work(Machine& machine, void* stream, const View& u, const Optional& pre, const View& work,
                         const View& matrix) {
  check_rows("u", u, u);
  if (pre) check_rows("pre", *pre, u);
  check_work("work", work, u);
  check(work.shape[0] == u.shape[0] && work.shape[1] == u.shape[1], "work", "the rows of u", work);
  check(u.shape[2] <= work.shape[2] * work.shape[4], "u", "at most as many samples as points", u);
  check_matrix("matrix", matrix, work.shape[2], false, u);
  LongParams p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.work = static_cast<float*>(work.data);
  p.matrix = matrix.data;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.half = u.dtype == DType::f16;
  p.outer = static_cast<int>(work.shape[2]);
  p.inner = static_cast<int>(work.shape[4]);
  p.half_turn = 0.5f / static_cast<float>(work.shape[2] * work.shape[4]);
  std::vector<View> views = {u.read_only(), matrix.read_only(), work};
  if (pre) views.push_back(pre->read_only());
  run_outer(machine, stream, "fft_conv_long", "fft_conv_long_in", u.shape[0] * u.shape[1], false, p, views, u.device);
  return "fft_conv_long_in";
}

LongFilterParams filter_params(const View& work) {
  LongFilterParams p{};
  p.work = static_cast<float*>(work.data);
  p.batch = 1;
  p.shares = 1;
  p.channels = static_cast<int>(work.shape[1]);
  p.outer = static_cast<int>(work.shape[2]);
  p.inner = static_cast<int>(work.shape[4]);
  p.half_turn = 0.5f / static_cast<float>(work.shape[2] * work.shape[4]);
  return p;
}

void check_taps(const char* what, const View& v, std::int64_t used, const View& work) {
  check(v.rank == 2 && v.shape[0] == work.shape[1] && used >= 0 && used <= v.shape[1] &&
            used <= work.shape[2] * work.shape[4],
        what, "[channels, taps], at least those that count", v);
  check_dense(what, v, DType::f32, v.elements(), work);
}

std::string spectrum_long(Machine& machine, void* stream, const View& k, const Optional& k_reverse, std::int64_t used,
                          std::int64_t used_reverse, const View& work, const View& out, const View& matrix,
                          const View& tables) {
  check_work("work", work, k);
  check(work.shape[0] == 1, "work", "one row", work);
  const int plan = plan_of(work.shape[4], tables);
  check_taps("k", k, used, work);
  const View missing{};
  if (used_reverse != 0) check_taps("k_reverse", k_reverse ? *k_reverse : missing, used_reverse, work);
  check_dense("spectrum", out, DType::f32, work.elements(), k);
  check_matrix("matrix", matrix, work.shape[2], true, k);
  LongFilterParams p = filter_params(work);
  p.k = static_cast<const float*>(k.data);
  p.k_reverse = k_reverse ? static_cast<const float*>(k_reverse->data) : nullptr;
  p.taps = static_cast<int>(k.shape[1]);
  p.taps_reverse = k_reverse ? static_cast<int>(k_reverse->shape[1]) : 0;
  p.used = static_cast<int>(used);
  p.used_reverse = static_cast<int>(used_reverse);
  p.spectrum = out.data;
  p.matrix = matrix.data;
  p.tables = tables.data;
  std::vector<View> views = {k.read_only(), matrix.read_only(), tables.read_only(), work, out};
  if (k_reverse) views.push_back(k_reverse->read_only());
  const char* module = "fft_conv_long_filter";
  const std::string values = "fft_conv_long_filter_values_" + std::to_string(p.inner);
  run_outer(machine, stream, module, "fft_conv_long_filter_in", p.channels, true, p, views, k.device);
  run_long(machine, stream, module, values, std::int64_t{p.channels} * p.outer, kPlans[plan].threads(),
           kPlans[plan].shared_bytes(), p, views, k.device);
  return values;
}

// work [shares, ..]: sums over a share of the rows of v_work and g_work each; scratch as in `gradient`.
std::string gradient_long(Machine& machine, void* stream, const View& v_work, const View& g_work, const View& work,
                          const Optional& scratch, const View& tables) {
  check_work("v_work", v_work, v_work);
  check_work("g_work", g_work, v_work);
  check_work("work", work, v_work);
  check(std::equal(g_work.shape, g_work.shape + 5, v_work.shape), "g_work", "the shape of v_work", g_work);
  check(std::equal(work.shape + 1, work.shape + 5, v_work.shape + 1), "work", "the shape of v_work but for the rows", work);
  const int plan = plan_of(work.shape[4], tables);
  const std::int64_t blocks = work.shape[0] * work.shape[1] * work.shape[2];
  if (work.shape[4] > kInRegisters) {
    const View missing{};
    check_dense("scratch", scratch ? *scratch : missing, DType::f32, 2 * work.elements(), v_work);
  }
  LongFilterParams p = filter_params(work);
  p.v_work = static_cast<const float*>(v_work.data);
  p.g_work = static_cast<const float*>(g_work.data);
  p.scratch = scratch ? scratch->data : nullptr;
  p.tables = tables.data;
  p.batch = static_cast<int>(v_work.shape[0]);
  p.shares = static_cast<int>(work.shape[0]);
  std::vector<View> views = {v_work.read_only(), g_work.read_only(), tables.read_only(), work};
  if (scratch) views.push_back(*scratch);
  const std::string name = "fft_conv_long_filter_sum_" + std::to_string(p.inner);
  run_long(machine, stream, "fft_conv_long_filter", name, blocks, kPlans[plan].threads(), kPlans[plan].shared_bytes(), p,
           views, work.device);
  return name;
}

std::string work_to_taps(Machine& machine, void* stream, const View& work, const View& dk, const View& dk_reverse,
                         const View& matrix) {
  check_work("work", work, work);
  check(work.shape[0] == 1, "work", "one row", work);
  check_taps("dk", dk, dk.shape[1], work);
  check_taps("dk_reverse", dk_reverse, dk_reverse.shape[1], work);
  check_matrix("matrix", matrix, work.shape[2], true, work);
  LongFilterParams p = filter_params(work);
  p.dk = static_cast<float*>(dk.data);
  p.dk_reverse = static_cast<float*>(dk_reverse.data);
  p.used = static_cast<int>(dk.shape[1]);
  p.used_reverse = static_cast<int>(dk_reverse.shape[1]);
  p.matrix = matrix.data;
  const std::vector<View> views = {work.read_only(), matrix.read_only(), dk, dk_reverse};
  run_outer(machine, stream, "fft_conv_long_filter", "fft_conv_long_filter_out", p.channels, true, p, views, work.device);
  return "fft_conv_long_filter_out";
}

// What `convolve` does, in three launches through `work`.
std::string convolve_long(Machine& machine, void* stream, const View& u, const Optional& pre, const Optional& post,
                          const Optional& post2, const View& out, const Optional& out2, const Optional& skip,
                          const View& spectrum, const View& work, const View& matrix_in, const View& matrix_out,
                          const View& tables, bool correlate) {
  check_rows("u", u, u);
  for (const auto& [name, v] : {std::pair{"pre", &pre}, {"post", &post}, {"post2", &post2}, {"out2", &out2}})
    if (*v) check_rows(name, **v, u);
  check_rows("out", out, u);
  check(u.elements() > 0, "u", "at least one sample", u);
  check(spectrum.rank == 4 && spectrum.shape[0] == u.shape[1], "spectrum", "[channels, outer, inner, 2]", spectrum);
  const std::int64_t rows = u.shape[0] * u.shape[1], outer = spectrum.shape[1], inner = spectrum.shape[2];
  const int plan = plan_of(inner, tables);
  check_factors("spectrum", spectrum, outer, inner);
  check_dense("spectrum", spectrum, DType::f32, 2 * u.shape[1] * outer * inner, u);
  check_dense("work", work, DType::f32, 2 * rows * outer * inner, u);
  check(u.shape[2] <= outer * inner, "u", "at most as many samples as points", u);
  check_matrix("matrix_in", matrix_in, outer, false, u);
  check_matrix("matrix_out", matrix_out, outer, false, u);
  if (skip) check_dense("skip", *skip, DType::f32, u.shape[1], u);
  LongParams p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.post = rows_of(post);
  p.post2 = rows_of(post2);
  p.out = rows_of(out);
  p.out2 = rows_of(out2);
  p.skip = skip ? static_cast<const float*>(skip->data) : nullptr;
  p.work = static_cast<float*>(work.data);
  p.spectrum = spectrum.data;
  p.tables = tables.data;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.half = u.dtype == DType::f16;
  p.correlate = correlate;
  p.outer = static_cast<int>(outer);
  p.inner = static_cast<int>(inner);
  p.half_turn = 0.5f / static_cast<float>(outer * inner);
  std::vector<View> views = {u.read_only(),          spectrum.read_only(),   tables.read_only(), out, work,
                             matrix_in.read_only(), matrix_out.read_only()};
  for (const Optional* v : {&pre, &post, &post2, &skip})
    if (*v) views.push_back((*v)->read_only());
  if (out2) views.push_back(*out2);
  const char* module = "fft_conv_long";
  const std::string middle = "fft_conv_long_inner_" + std::to_string(inner);
  p.matrix = matrix_in.data;
  run_outer(machine, stream, module, "fft_conv_long_in", rows, false, p, views, u.device);
  run_long(machine, stream, module, middle, rows * outer, kPlans[plan].threads(), kPlans[plan].shared_bytes(), p, views,
           u.device);
  p.matrix = matrix_out.data;
  run_outer(machine, stream, module, "fft_conv_long_out", rows, true, p, views, u.device);
  return middle;
}

const runtime::Launcher registered_convolve("fft_conv", convolve,
                                            {"u", "pre", "post", "post2", "out", "out2", "skip", "spectrum", "tables",
                                             "correlate"});
const runtime::Launcher registered_long("fft_conv_long", convolve_long,
                                        {"u", "pre", "post", "post2", "out", "out2", "skip", "spectrum", "work",
                                         "matrix_in", "matrix_out", "tables", "correlate"});
const runtime::Launcher registered_rows("fft_conv_long_rows", rows_to_work, {"u", "pre", "work", "matrix"});
const runtime::Launcher registered_long_spectrum("fft_conv_long_spectrum", spectrum_long,
                                                 {"k", "k_reverse", "used", "used_reverse", "work", "spectrum", "matrix",
                                                  "tables"});
const runtime::Launcher registered_long_gradient("fft_conv_long_gradient", gradient_long,
                                                 {"v_work", "g_work", "work", "scratch", "tables"});
const runtime::Launcher registered_taps("fft_conv_long_taps", work_to_taps, {"work", "dk", "dk_reverse", "matrix"});
const runtime::Launcher registered_spectrum("fft_conv_spectrum", spectrum,
                                            {"k", "k_reverse", "used", "used_reverse", "spectrum", "tables"});
const runtime::Launcher registered_gradient("fft_conv_gradient", gradient,
                                            {"u", "pre", "dy", "post", "dk", "dk_reverse", "scratch", "points", "tables"});

}  // namespace

}  // namespace tkpy::fft_conv
