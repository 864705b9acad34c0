// What the host sides of fft_conv's kernels share: checks of tensors, launches of one dimension.
#pragma once

#include <limits>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::fft_conv {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

inline void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds)
    throw std::invalid_argument(std::string("fft_conv: ") + what + ": need " + needed + ", got " + got.describe());
}

// The plan of a spectrum or of tables: by its number of points.
inline int plan_of(std::int64_t points, const View& tables) {
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

inline void check_rows(const char* what, const View& v, const View& u) {
  check(v.rank == 3 && (v.dtype == DType::bf16 || v.dtype == DType::f16) && v.dtype == u.dtype, what,
        "three dimensions of bf16 or f16, the type of u", v);
  check(std::equal(v.shape, v.shape + 3, u.shape) && v.device == u.device, what, "the shape and device of u", v);
  check(v.elements() == 0 || v.shape[2] == 1 || v.stride[2] == 1, what, "contiguous samples", v);
}
inline void check_dense(const char* what, const View& v, DType dtype, std::int64_t elements, const View& u) {
  check(v.dtype == dtype && v.elements() == elements && v.extent() == elements * dtype_bytes(dtype) && v.device == u.device,
        what, std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of u", v);
}

inline Rows rows_of(const View& v) {
  const bool vectors = reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0 && (v.shape[0] == 1 || v.stride[0] % 8 == 0) &&
                       (v.shape[1] == 1 || v.stride[1] % 8 == 0);
  return {v.data, v.stride[0], v.stride[1], vectors};
}
inline Rows rows_of(const Optional& v) { return v ? rows_of(*v) : Rows{}; }
inline const float* floats_of(const Optional& v) { return v ? static_cast<const float*>(v->data) : nullptr; }

// What a convolution of whole rows takes but for its filter, ConvParams or ClusterParams.
template <class P>
P conv_params(const View& u, const Optional& pre, const Optional& post, const Optional& post2, const View& out,
              const Optional& out2, const View& tables, bool correlate) {
  P p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.post = rows_of(post);
  p.post2 = rows_of(post2);
  p.out = rows_of(out);
  p.out2 = rows_of(out2);
  p.tables = tables.data;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.half = u.dtype == DType::f16;
  p.correlate = correlate;
  return p;
}

inline void check_optional_rows(std::initializer_list<std::pair<const char*, const Optional*>> all, const View& u) {
  for (const auto& [name, v] : all)
    if (*v) check_rows(name, **v, u);
}

// The plan of a spectrum [channels, points, 2] for rows of u.
inline int check_spectrum(const View& u, const View& spectrum, const View& tables) {
  check(u.shape[0] > 0 && u.shape[1] > 0 && u.shape[2] > 0, "u", "at least one sample", u);
  check(spectrum.rank == 3 && spectrum.shape[0] == u.shape[1], "spectrum", "[channels, points, 2]", spectrum);
  const int plan = plan_of(spectrum.shape[1], tables);
  check_dense("spectrum", spectrum, DType::f32, 2 * u.shape[1] * spectrum.shape[1], u);
  check(u.shape[2] <= spectrum.shape[1], "u", "at most as many samples as points", u);
  return plan;
}

// Filters of SpectrumParams or LongFilterParams.
template <class P>
void set_taps(P& p, const View& k, const Optional& k_reverse, const Optional& skip, std::int64_t used, std::int64_t used_reverse) {
  p.k = floats_of(k);
  p.k_reverse = floats_of(k_reverse);
  p.skip = floats_of(skip);
  p.taps = static_cast<int>(k.shape[1]);
  p.taps_reverse = k_reverse ? static_cast<int>(k_reverse->shape[1]) : 0;
  p.used = static_cast<int>(used);
  p.used_reverse = static_cast<int>(used_reverse);
}

// The taps of filters for circles of so many points.
inline SpectrumParams filter_params(const View& k, const Optional& k_reverse, const Optional& skip, std::int64_t used,
                                    std::int64_t used_reverse, std::int64_t points) {
  const std::int64_t channels = k.shape[0];
  check(k.rank == 2 && channels > 0, "k", "at least one channel", k);
  check_dense("k", k, DType::f32, channels * k.shape[1], k);
  check(used >= 0 && used <= k.shape[1] && used <= points, "k", "the taps that count", k);
  check(used_reverse >= 0 && used_reverse < points, "k_reverse", "the taps that count", k);
  if (used_reverse > 0) {
    const View missing{};
    const View& reverse = k_reverse ? *k_reverse : missing;
    check(reverse.rank == 2 && reverse.shape[0] == channels && used_reverse <= reverse.shape[1], "k_reverse",
          "the taps that count", reverse);
    check_dense("k_reverse", reverse, DType::f32, channels * reverse.shape[1], k);
  }
  if (skip) check_dense("skip", *skip, DType::f32, channels, k);
  SpectrumParams p{};
  set_taps(p, k, k_reverse, skip, used, used_reverse);
  return p;
}

// What all gradients of rows that stay on the chip take, of up to `points` samples; `shares` parts of the batch, of which
// clusters sum.
inline BackwardParams backward_params(const View& u, const Optional& pre, const View& dy, const Optional& post,
                                      const Optional& du, const Optional& dpre, const Optional& dpost, const View& dk,
                                      const View& dk_reverse, const Optional& spectrum, const View& tables,
                                      std::int64_t points, int cluster) {
  check_rows("u", u, u);
  check_rows("dy", dy, u);
  check_optional_rows({{"pre", &pre}, {"post", &post}, {"du", &du}, {"dpre", &dpre}, {"dpost", &dpost}}, u);
  check(u.elements() > 0 && u.shape[2] <= points, "u", "at least one sample and at most as many as points", u);
  for (const auto& [name, v] : {std::pair{"dk", &dk}, {"dk_reverse", &dk_reverse}}) {
    check(v->rank == 3 && v->shape[0] == dk.shape[0] && v->shape[0] >= 1 && v->shape[1] == u.shape[1] && v->shape[2] <= points,
          name, "[groups, channels, taps]", *v);
    check_dense(name, *v, DType::f32, v->elements(), u);
  }
  BackwardParams p{};
  p.u = rows_of(u);
  p.pre = rows_of(pre);
  p.dy = rows_of(dy);
  p.post = rows_of(post);
  p.du = rows_of(du);
  p.dpre = rows_of(dpre);
  p.dpost = rows_of(dpost);
  p.dk = static_cast<float*>(dk.data);
  p.dk_reverse = static_cast<float*>(dk_reverse.data);
  p.used = static_cast<int>(dk.shape[2]);
  p.used_reverse = static_cast<int>(dk_reverse.shape[2]);
  p.spectrum = spectrum ? spectrum->data : nullptr;
  p.tables = tables.data;
  p.half = u.dtype == DType::f16;
  p.batch = static_cast<int>(u.shape[0]);
  p.channels = static_cast<int>(u.shape[1]);
  p.length = static_cast<int>(u.shape[2]);
  p.shares = static_cast<int>(dk.shape[0]) * cluster;
  p.cluster = cluster;
  return p;
}

// CTAs in one dimension, `cluster` of them together.
struct Grid {
  std::int64_t blocks;
  int threads, shared;
  int cluster = 1;
};

template <class P>
runtime::LaunchSpec spec_of(void* stream, const Grid& grid, const P& params, const std::vector<View>& views, int device) {
  if (grid.blocks > std::numeric_limits<int>::max())
    throw std::invalid_argument("fft_conv: need fewer than 2^31 blocks, got " + std::to_string(grid.blocks));
  return {.grid = {static_cast<std::uint32_t>(grid.blocks), 1, 1},
          .block = {static_cast<std::uint32_t>(grid.threads), 1, 1},
          .cluster = {static_cast<std::uint32_t>(grid.cluster), 1, 1},
          .shared = static_cast<std::uint32_t>(grid.shared),
          .params = runtime::bytes_of(params),
          .views = views,
          .stream = stream,
          .device = device};
}
template <class P>
std::string run(Machine& machine, void* stream, const char* module, const std::string& name, const Grid& grid, const P& params,
                const std::vector<View>& views, int device) {
  machine.launch(machine.kernel(module, name), spec_of(stream, grid, params, views, device));
  return name;
}
// As many clusters as run at once, or as there are tasks; `grid` has no blocks yet.
template <class P>
std::string run_clusters(Machine& machine, void* stream, const char* module, const std::string& name, std::int64_t tasks,
                         Grid grid, const P& params, const std::vector<View>& views, int device) {
  const runtime::Kernel& kernel = machine.kernel(module, name);
  const int at_once = machine.resident_clusters(kernel, spec_of(stream, grid, params, views, device));
  grid.blocks = grid.cluster * std::min<std::int64_t>(tasks, at_once);
  machine.launch(kernel, spec_of(stream, grid, params, views, device));
  return name;
}
// The name of a kernel by the points of its plan.
inline std::string name_of(const char* stem, int plan) {
  return std::string(stem) + "_" + std::to_string(kPlans[plan].points());
}

// Views that are there, those of inputs read only.
inline std::vector<View> views_of(std::initializer_list<Optional> in, std::initializer_list<Optional> out) {
  std::vector<View> views;
  for (const Optional& v : in)
    if (v) views.push_back(v->read_only());
  for (const Optional& v : out)
    if (v) views.push_back(*v);
  return views;
}

// Clusters of CTAs that sum: as many as a portable one holds, and what each keeps where registers do not.
inline void check_sums(int cluster, const Optional& scratch, int plan, std::int64_t blocks, const View& u) {
  if (cluster < 1 || cluster > kMostCluster)
    throw std::invalid_argument("fft_conv: need a cluster of 1 to 8, got " + std::to_string(cluster));
  const std::int64_t points = kPlans[plan].points();
  if (points > kInRegisters) {
    const View missing{};
    check_dense("scratch", scratch ? *scratch : missing, DType::f32, 4 * blocks * points, u);
  }
}

}  // namespace tkpy::fft_conv
