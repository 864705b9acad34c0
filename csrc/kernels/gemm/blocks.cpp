// Many products by one launch of the GEMM: out_g = a_g b_g + bias for every block g.
//   a, b, out   matrices of channels (two dimensions: rows and channels, which hold one block for each group, in an
//               order of its own), or one matrix a group (three dimensions)
//   forward     a [M, channels], b [groups, K, N], out [M, channels]
//   gradient    a [channels, K], b [K, channels], out [groups, M, N]; or fp32 sums over shares of K, [shares, groups, M, N]
// Channels beyond the last read as 0 and are not written.
#include <limits>
#include <vector>

#include "launch.h"
#include "runtime/launcher.h"

namespace tkpy::gemm {

namespace {

using runtime::DType;
using runtime::View;

constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 512;
constexpr long long kNoEnd = std::numeric_limits<long long>::max();

[[noreturn]] void refuse(const char* what, const std::string& needed, const View& got) {
  throw std::invalid_argument(std::string("gemm_blocks: ") + what + ": need " + needed + ", got " + got.describe());
}

}  // namespace

// Blocks of `width` of the columns of [rows, channels].
Stored channels(const char* what, const View& v, int along, std::int64_t groups, std::int64_t width,
                std::string_view order) {
  if (order != "consecutive" && order != "interleaved" && order != "shuffled")
    throw std::invalid_argument(std::string("gemm_blocks: ") + what +
                                "_order: need consecutive, interleaved or shuffled, got " + std::string(order));
  const std::int64_t count = v.shape[along], rows = v.shape[1 - along];
  if (!contiguous(v, along)) refuse(what, "contiguous channels", v);
  if (count > groups * width) refuse(what, "at most " + std::to_string(groups * width) + " channels", v);
  const bool strided = order == "interleaved";
  const std::int64_t pitch = rows == 1 ? (count + 7) / 8 * 8 : v.stride[1 - along];
  Stored s{.blocks = {v.data, pitch, strided ? 1 : width, count, strided ? static_cast<int>(groups) : 1,
                      order == "shuffled"},
           .groups = groups, .rows = rows, .cols = width};
  s.tma = order == "consecutive" && count == groups * width && width % 8 == 0 && width > 0 && rows > 0 &&
          aligned_for_tma(v.data, pitch);
  return s;
}

// One matrix a group.
Stored matrices(const char* what, const View& v) {
  Stored s;
  s.transposed = !contiguous(v, 2);
  const int along = s.transposed ? 1 : 2, across = 3 - along;
  if (!contiguous(v, along)) refuse(what, "one contiguous dimension", v);
  s.groups = v.shape[0];
  s.rows = v.shape[across];
  s.cols = v.shape[along];
  const std::int64_t pitch = s.rows == 1 ? (s.cols + 7) / 8 * 8 : v.stride[across];
  const std::int64_t block = s.groups == 1 ? pitch : v.stride[0];
  s.blocks = {v.data, pitch, block, kNoEnd, 1, false};
  s.tma = v.elements() > 0 && aligned_for_tma(v.data, pitch) && aligned_for_tma(v.data, block);
  return s;
}

namespace {

void check_types(const View& a, const View& b, const View& out, const std::optional<View>& bias) {
  if (a.dtype != DType::bf16 && a.dtype != DType::f16) refuse("a", "dtype bf16 or f16", a);
  if (b.dtype != a.dtype) refuse("b", "the dtype of a", b);
  if (out.dtype != (out.rank == 4 ? DType::f32 : a.dtype)) refuse("out", "the dtype of a, or f32 for shares", out);
  if (b.device != a.device || out.device != a.device || (bias && bias->device != a.device))
    throw std::invalid_argument("gemm_blocks: need all tensors on one device");
  for (const View* v : {&a, &b, &out})
    for (int d = 0; d < v->rank; ++d)
      if (v->shape[d] >= kMost) refuse("sizes", "less than 2^31 - 512", *v);
}

// y = x W^T, dx = dy W.
Problem forward(const View& a, const View& b, const View& out, const std::optional<View>& bias, std::string_view a_order,
                std::string_view out_order) {
  if (a.rank != 2 || out.shape[0] != a.shape[0]) refuse("out", "the rows of a", out);
  Problem x;
  x.b = matrices("b", b);
  x.a = channels("a", a, 1, b.shape[0], b.shape[1], a_order);
  const Stored c = channels("out", out, 1, b.shape[0], b.shape[2], out_order);
  if (bias) {
    if (bias->rank != 1 || bias->shape[0] != out.shape[1] || !contiguous(*bias, 0) || bias->dtype != a.dtype)
      refuse("bias", "a contiguous vector of " + std::to_string(out.shape[1]) + " and the dtype of a", *bias);
    x.params.bias = bias->data;
  }
  x.params.m = static_cast<int>(a.shape[0]);
  x.params.k = static_cast<int>(b.shape[1]);
  x.params.n = static_cast<int>(b.shape[2]);
  x.params.out = c.blocks;
  x.params.shares = 1;
  x.params.share_depth = x.params.k;
  return x;
}

// dW = dy^T x.
Problem gradient(const View& a, const View& b, const View& out, std::string_view a_order, std::string_view b_order) {
  const bool parted = out.rank == 4;
  const std::int64_t* shape = out.shape + parted;
  const std::int64_t* stride = out.stride + parted;
  if (a.rank != 2 || b.rank != 2 || a.shape[1] != b.shape[0]) refuse("b", "as many rows as a has columns", b);
  if (stride[2] != 1 && shape[2] > 1) refuse("out", "contiguous rows", out);
  Problem x;
  x.a = channels("a", a, 0, shape[0], shape[1], a_order);
  x.a.transposed = true;
  x.b = channels("b", b, 1, shape[0], shape[2], b_order);
  x.params.m = static_cast<int>(shape[1]);
  x.params.n = static_cast<int>(shape[2]);
  x.params.k = static_cast<int>(b.shape[0]);
  x.params.out = {out.data, stride[1], stride[0], kNoEnd, 1, false};
  x.params.out_float = parted;
  x.params.out_share = parted ? out.stride[0] : 0;
  x.params.shares = parted ? static_cast<int>(out.shape[0]) : 1;
  const std::int64_t depth = (b.shape[0] + x.params.shares - 1) / x.params.shares;
  x.params.share_depth = static_cast<int>((depth + kTileDepth - 1) / kTileDepth * kTileDepth);
  return x;
}

std::string launch_blocks(runtime::Machine& machine, void* stream, const View& a, const View& b, const View& out,
                          const std::optional<View>& bias, std::string_view a_order, std::string_view b_order,
                          std::string_view out_order) {
  check_types(a, b, out, bias);
  if (out.rank != (b.rank == 3 ? 2 : 3) && !(b.rank == 2 && out.rank == 4))
    refuse("out", b.rank == 3 ? "two dimensions" : "three dimensions, or four for shares", out);
  Problem x = b.rank == 3 ? forward(a, b, out, bias, a_order, out_order) : gradient(a, b, out, a_order, b_order);
  x.params.groups = static_cast<int>(b.rank == 3 ? b.shape[0] : out.shape[out.rank - 3]);
  x.dtype = a.dtype;
  x.stream = stream;
  x.device = a.device;
  std::vector<View> views = {a.read_only(), b.read_only(), out};
  if (bias) views.push_back(bias->read_only());
  x.views = views;
  const std::string name = kernel_name(x);
  if (out.elements() > 0) launch(machine, x);
  return name;
}

const runtime::Launcher registered("gemm_blocks", launch_blocks,
                                   {"a", "b", "out", "bias", "a_order", "b_order", "out_order"});

}  // namespace

}  // namespace tkpy::gemm
