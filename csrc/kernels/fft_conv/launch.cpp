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

// The same for rows of outer * inner points, in three launches through `work`.
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
  check(inner == 2048 || inner == 4096 || inner == 16384, "spectrum", "an inner size of 2048, 4096 or 16384", spectrum);
  check(outer % 16 == 0 && outer >= 16 && outer <= kMostOuter, "spectrum", "an outer size of 16, 32 .. 256", spectrum);
  check_dense("spectrum", spectrum, DType::f32, 2 * u.shape[1] * outer * inner, u);
  check_dense("work", work, DType::f32, 2 * rows * outer * inner, u);
  check(u.shape[2] <= outer * inner, "u", "at most as many samples as points", u);
  check_dense("matrix_in", matrix_in, DType::i32, 2 * outer * outer, u);
  check_dense("matrix_out", matrix_out, DType::i32, 2 * outer * outer, u);
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
  const auto launch = [&](const std::string& name, std::int64_t blocks, int threads, int shared, const View& matrix) {
    if (blocks > std::numeric_limits<int>::max())
      throw std::invalid_argument("fft_conv: need fewer than 2^31 blocks, got " + std::to_string(blocks));
    p.matrix = matrix.data;
    machine.launch(machine.kernel("fft_conv_long", name), {.grid = {static_cast<std::uint32_t>(blocks), 1, 1},
                                                           .block = {static_cast<std::uint32_t>(threads), 1, 1},
                                                           .cluster = {},
                                                           .shared = static_cast<std::uint32_t>(shared),
                                                           .params = runtime::bytes_of(p),
                                                           .views = views,
                                                           .stream = stream,
                                                           .device = u.device});
  };
  const std::int64_t strips = rows * (inner / kOuterColumns);
  const std::string middle = "fft_conv_long_inner_" + std::to_string(inner);
  launch("fft_conv_long_in", strips, 32 * kOuterWarps, outer_shared_bytes(p.outer, false), matrix_in);
  launch(middle, rows * outer, kPlans[plan].threads(), kPlans[plan].shared_bytes(), matrix_in);
  launch("fft_conv_long_out", strips, 32 * kOuterWarps, outer_shared_bytes(p.outer, true), matrix_out);
  return middle;
}

const runtime::Launcher registered_convolve("fft_conv", convolve,
                                            {"u", "pre", "post", "post2", "out", "out2", "skip", "spectrum", "tables",
                                             "correlate"});
const runtime::Launcher registered_long("fft_conv_long", convolve_long,
                                        {"u", "pre", "post", "post2", "out", "out2", "skip", "spectrum", "work",
                                         "matrix_in", "matrix_out", "tables", "correlate"});
const runtime::Launcher registered_spectrum("fft_conv_spectrum", spectrum,
                                            {"k", "k_reverse", "used", "used_reverse", "spectrum", "tables"});
const runtime::Launcher registered_gradient("fft_conv_gradient", gradient,
                                            {"u", "pre", "dy", "post", "dk", "dk_reverse", "scratch", "points", "tables"});

}  // namespace

}  // namespace tkpy::fft_conv
