// What the launchers of the attention kernels check of their tensors, and how tensor maps see them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "runtime/launcher.h"

namespace tkpy::attention {

using runtime::DType;
using runtime::View;

constexpr std::int64_t kLongest = std::int64_t{1} << 30;    // rows, and bounds of a window
constexpr std::int64_t kBytesInL2 = std::int64_t{32} << 20;  // what may be expected to stay in L2

// [B, S, H, D] or packed [S, H, D] as the maps see it, [B, H, S, D]; strides of single rows are never used, and made fit.
inline View heads_first(const View& v) {
  View out = v;
  out.rank = 4;
  const int at = v.rank - 3;
  out.shape[0] = at ? v.shape[0] : 1;
  out.stride[0] = at ? v.stride[0] : 0;
  const int from[3] = {at + 1, at, at + 2};
  for (int d = 0; d < 3; ++d) {
    out.shape[d + 1] = v.shape[from[d]];
    out.stride[d + 1] = v.stride[from[d]];
  }
  for (int d = 0; d < 3; ++d)
    if (out.shape[d] == 1) out.stride[d] = (out.shape[3] + 7) / 8 * 8;
  return out;
}

// Rows after rows, in the order of the dimensions.
inline bool contiguous(const View& v) {
  std::int64_t step = 1;
  for (int d = v.rank - 1; d >= 0; step *= v.shape[d--])
    if (v.shape[d] != 1 && v.stride[d] != step) return v.elements() == 0;
  return true;
}

struct Checks {
  const char* kernel;
  View q;
  bool packed;
  std::int64_t widest;

  void operator()(bool holds, const char* what, const std::string& needed, const View& got) const {
    if (!holds)
      throw std::invalid_argument(std::string(kernel) + ": " + what + ": need " + needed + ", got " + got.describe());
  }

  void tensor(const char* what, const View& v) const {
    (*this)(v.rank == (packed ? 3 : 4), what, packed ? "three dimensions" : "four dimensions", v);
    (*this)(v.dtype == q.dtype && (v.dtype == DType::bf16 || v.dtype == DType::f16), what, "bf16 or f16, that of q", v);
    (*this)(v.device == q.device, what, "the device of q", v);
    const View seen = heads_first(v);
    (*this)(seen.shape[3] >= 8 && seen.shape[3] <= widest && seen.shape[3] % 8 == 0, what,
            "8 to " + std::to_string(widest) + " columns, a multiple of 8", v);
    (*this)(seen.shape[2] < kLongest && seen.shape[1] < kLongest && seen.shape[0] < kLongest, what, "sizes below 2^30", v);
    if (v.elements() == 0) return;
    bool fits = v.stride[v.rank - 1] == 1 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
    for (int d = 0; d < 3; ++d) fits = fits && seen.stride[d] > 0 && seen.stride[d] % 8 == 0;
    (*this)(fits, what, "columns contiguous, and the address and every other stride a multiple of 16 bytes", v);
  }

  // q, k and v of one call; `mapped`: a kv_head_map says which key head a query head uses.
  void operands(const View& k, const View& v, bool mapped) const {
    tensor("q", q);
    tensor("k", k);
    tensor("v", v);
    const View of_q = heads_first(q), of_k = heads_first(k), of_v = heads_first(v);
    (*this)(of_k.shape[0] == of_q.shape[0] && of_k.shape[3] == of_q.shape[3], "k", "the batch and columns of q", k);
    (*this)(std::equal(of_k.shape, of_k.shape + 3, of_v.shape), "v", "the rows of k", v);
    (*this)(mapped || (of_k.shape[1] > 0 && of_q.shape[1] % of_k.shape[1] == 0), "k", "heads that divide those of q", k);
  }

  // An output of the forward: the rows of q, the columns of v.
  void output(const char* what, const View& out, const View& v) const {
    tensor(what, out);
    const bool fits = std::equal(q.shape, q.shape + q.rank - 1, out.shape) && out.shape[out.rank - 1] == v.shape[v.rank - 1];
    (*this)(fits && contiguous(out), what, "the rows of q and the columns of v, contiguous", out);
  }

  void extra(const char* what, const std::optional<View>& v, DType dtype, std::int64_t elements) const {
    if (!v) return;
    (*this)(v->dtype == dtype && v->elements() == elements && contiguous(*v) && v->device == q.device,
            what, std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of q", *v);
  }

  // Offsets of packed sequences.
  void offsets(const std::optional<View>& of_q, const std::optional<View>& of_k) const {
    if (!packed) return;
    const std::int64_t count = of_q->elements();
    (*this)(count >= 1 && of_k, "cu_seqlens_q", "at least one offset, and cu_seqlens_k", *of_q);
    extra("cu_seqlens_q", of_q, DType::i32, count);
    extra("cu_seqlens_k", of_k, DType::i32, count);
  }
};

template <class T = void>
T* data_of(const std::optional<View>& v) {
  return v ? static_cast<T*>(v->data) : nullptr;
}

// Scores are positive multiples of q k^T, as the plain kernels need it: 2^(c s) is then taken of s itself.
inline bool is_capped(double scale, double softcap) {
  return softcap != 0.0 || !(scale * 1.4426950408889634 >= std::numeric_limits<float>::min());
}

}  // namespace tkpy::attention
