#include "launch.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "runtime/launcher.h"

namespace tkpy::gemm {

// PyTorch calls an empty slice contiguous, whatever strides it has kept.
bool contiguous(const runtime::View& v, int d) { return v.stride[d] == 1 || v.shape[d] == 1 || v.elements() == 0; }

using runtime::DType;
using runtime::View;

Stored stored(const View& v) {
  Stored s;
  s.transposed = !contiguous(v, 1);
  const int along = s.transposed ? 0 : 1, across = 1 - along;
  s.rows = v.shape[across];
  s.cols = v.shape[along];
  // Where there is one row only, its pitch is never used: take one that suits TMA.
  const std::int64_t pitch = s.rows == 1 ? (s.cols + 7) / 8 * 8 : v.stride[across];
  s.blocks = {v.data, pitch, pitch, std::numeric_limits<long long>::max(), 1, false};
  s.tma = v.shape[0] > 0 && v.shape[1] > 0 && aligned_for_tma(v.data, pitch);
  return s;
}

namespace {

Problem problem(const Arguments& x) {
  Problem made;
  made.a = stored(x.a);
  made.b = stored(x.b);
  made.dtype = x.a.dtype;
  made.stream = x.stream;
  made.device = x.a.device;
  return made;
}

std::string need(const char* what, const std::string& needed, const View& got) {
  return std::string(what) + ": need " + needed + ", got " + got.describe();
}

std::string shape(std::int64_t rows, std::int64_t cols) {
  std::string text = "[";
  return text.append(std::to_string(rows)).append(", ").append(std::to_string(cols)).append("]");
}

std::string refused_matrix(const char* what, const View& v, std::int64_t rows, std::int64_t cols, const View& like) {
  if (v.rank != 2 || v.shape[0] != rows || v.shape[1] != cols) return need(what, std::string("shape ").append(shape(rows, cols)), v);
  if (v.dtype != like.dtype) return need(what, std::string("dtype ") + runtime::dtype_name(like.dtype), v);
  if (v.device != like.device) return std::string(what) + ": need the device of a";
  return "";
}

std::string refused_rows(const char* what, const View& v) {
  return contiguous(v, 1) ? "" : need(what, "contiguous rows", v);
}

tk::tensor_map map_of(runtime::Machine& machine, const Problem& x, const Stored& s, std::uint32_t rows) {
  View v;
  v.data = s.blocks.data;
  v.device = x.device;
  v.dtype = x.dtype;
  v.rank = 3;
  const std::int64_t shape[] = {s.groups, s.rows, s.cols}, stride[] = {s.blocks.block, s.blocks.pitch, 1};
  std::copy_n(shape, 3, v.shape);
  std::copy_n(stride, 3, v.stride);
  return machine.encode(runtime::tensor_map_of(v, std::array<std::uint32_t, 3>{1, rows, 64}, 128));
}

}  // namespace

std::string refusal(const Arguments& x) {
  if (x.a.rank != 2) return need("a", "two dimensions", x.a);
  if (x.b.rank != 2) return need("b", "two dimensions", x.b);
  if (x.a.dtype != DType::bf16 && x.a.dtype != DType::f16) return need("a", "dtype bf16 or f16", x.a);
  const std::int64_t m = x.a.shape[0], k = x.a.shape[1], n = x.b.shape[1];
  if (std::max({m, n, k}) >= (std::int64_t{1} << 31) - 512) return "sizes must be below 2^31 - 512";
  if (std::string why = refused_matrix("b", x.b, k, n, x.a); !why.empty()) return why;
  if (std::string why = refused_matrix("out", x.out, m, n, x.a); !why.empty()) return why;
  if (std::string why = refused_rows("out", x.out); !why.empty()) return why;
  for (const auto& [what, v] : {std::pair{"a", &x.a}, {"b", &x.b}})
    if (!contiguous(*v, 0) && !contiguous(*v, 1)) return need(what, "one contiguous dimension", *v);
  if (x.bias.defined() && (x.bias.rank != 1 || x.bias.shape[0] != n || !contiguous(x.bias, 0) ||
                           x.bias.dtype != x.a.dtype || x.bias.device != x.a.device))
    return need("bias", "a contiguous vector of " + std::to_string(n) + " and the dtype of a", x.bias);
  if (x.residual.defined()) {
    if (std::string why = refused_matrix("residual", x.residual, m, n, x.a); !why.empty()) return why;
    return refused_rows("residual", x.residual);
  }
  return "";
}

bool aligned_for_tma(const void* data, std::int64_t pitch) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && pitch > 0 && pitch % 8 == 0 &&
         pitch < (std::int64_t{1} << 39);
}

namespace {

// Both products of a tile at once, of 128 columns each.
bool gated(const Problem& x) { return x.gating == Gating::shared || x.gating == Gating::two; }

bool by_tma(const Problem& x) {
  const bool second = gated(x) || x.gating == Gating::pair;
  return x.a.tma && x.b.tma && (!second || x.b2.tma);
}

}  // namespace

std::string kernel_name(const Problem& x) {
  const std::string type = x.dtype == DType::bf16 ? "bf16" : "fp16", route = by_tma(x) ? "_tma" : "_generic";
  if (gated(x)) return "gemm_gated_" + type + (x.gating == Gating::two ? "_two" : "_shared") + route;
  if (x.gating == Gating::slopes) return "gemm_gated_" + type + "_slopes" + route;
  return "gemm_" + type + (x.a.transposed ? "_km" : "_mk") + (x.b.transposed ? "_nk" : "_kn") + route;
}

std::string kernel_name(const Arguments& x) { return kernel_name(problem(x)); }

void launch(runtime::Machine& machine, const Problem& x) {
  Params params = x.params;
  if (by_tma(x)) {
    // A: each consumer's 64 rows, 64 deep. B: half of a cluster's columns; one box is 64 columns of a panel, or the
    // rows of a half.
    params.a = map_of(machine, x, x.a, 64);
    params.b = map_of(machine, x, x.b, x.b.transposed ? kTileCols / kCluster : kTileDepth);
  }
  if (by_tma(x) && (gated(x) || params.pair))
    params.b2 = map_of(machine, x, x.b2, x.b2.transposed ? kTileCols / kCluster : kTileDepth);
  params.a_data = x.a.blocks;
  params.b2_data = x.b2.blocks;
  params.b_data = x.b.blocks;
  const auto ceil_div = [](std::int64_t value, std::int64_t by) { return (value + by - 1) / by; };
  const std::int64_t tiles = ceil_div(params.m, kCluster * kTileRows) * ceil_div(params.n, gated(x) ? kTileCols / 2 : kTileCols) *
                             params.groups * params.shares;
  const std::int64_t clusters =
      std::min<std::int64_t>(tiles, std::max(1, machine.multiprocessors(x.device) / kCluster));
  runtime::LaunchSpec spec;
  spec.grid = {static_cast<std::uint32_t>(clusters * kCluster), 1, 1};
  spec.block = {kThreads, 1, 1};
  spec.cluster = {kCluster, 1, 1};
  spec.shared = x.gating == Gating::two ? kGatedSharedBytes : kSharedBytes;
  spec.params = runtime::bytes_of(params);
  spec.views = x.views;
  spec.stream = x.stream;
  spec.device = x.device;
  const bool plain = x.gating == Gating::none || x.gating == Gating::pair;
  machine.launch(machine.kernel(plain ? "gemm" : "gemm_gated", kernel_name(x)), spec);
}

void launch(runtime::Machine& machine, const Arguments& x) {
  if (const std::string why = refusal(x); !why.empty()) throw std::invalid_argument("gemm: " + why);
  if (x.out.elements() == 0) return;
  Problem made = problem(x);
  Params& params = made.params;
  params.m = static_cast<int>(x.a.shape[0]);
  params.k = static_cast<int>(x.a.shape[1]);
  params.n = static_cast<int>(x.b.shape[1]);
  params.groups = params.shares = 1;
  params.share_depth = params.k;
  params.bias = x.bias.data;
  params.residual = x.residual.data;
  params.residual_pitch = x.residual.defined() ? x.residual.stride[0] : 0;
  params.out = {x.out.data, x.out.stride[0], 0, params.n, 1, false};
  params.activation = x.activation;
  std::vector<View> views = {x.a.read_only(), x.b.read_only(), x.out};
  for (const View* extra : {&x.bias, &x.residual})
    if (extra->defined()) views.push_back(extra->read_only());
  made.views = views;
  launch(machine, made);
}

Activation activation_from_name(std::string_view name) {
  constexpr std::array<std::string_view, 6> names = {"none", "gelu", "gelu_tanh", "silu", "relu", "relu_squared"};
  const auto* const found = std::find(names.begin(), names.end(), name);
  if (found == names.end())
    throw std::invalid_argument("gemm: activation must be none, gelu, gelu_tanh, silu, relu or relu_squared, got " +
                                std::string(name));
  return static_cast<Activation>(found - names.begin());
}

namespace {

std::string from_python(runtime::Machine& machine, void* stream, const View& a, const View& b, const View& out,
                        const std::optional<View>& bias, const std::optional<View>& residual,
                        std::string_view activation) {
  const Arguments x = {.a = a,
                       .b = b,
                       .out = out,
                       .bias = bias.value_or(View{}),
                       .residual = residual.value_or(View{}),
                       .activation = activation_from_name(activation),
                       .stream = stream};
  launch(machine, x);
  return kernel_name(x);
}

const runtime::Launcher registered("gemm", from_python, {"a", "b", "out", "bias", "residual", "activation"});

}  // namespace

}  // namespace tkpy::gemm
