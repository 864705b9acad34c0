// What the launchers of the row kernels share: checks, views as parameters, how many CTAs, sums of shares.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::rows {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

inline const char* type_name(DType dtype) {
  return dtype == DType::bf16 ? "bf16" : dtype == DType::f16 ? "fp16" : "f32";
}
inline int kind_of(DType dtype) { return dtype == DType::bf16 ? kBf16 : dtype == DType::f16 ? kF16 : kF32; }
inline bool is_float(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32; }

// Without gaps, the last dimension fastest.
inline bool contiguous(const View& v) {
  std::int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    if (v.shape[i] > 1 && v.stride[i] != stride) return v.elements() == 0;  // whose slices keep their strides
    stride *= std::max<std::int64_t>(1, v.shape[i]);
  }
  return true;
}
// Bytes of an access that all these addresses and steps allow.
inline int grain_of(std::uintptr_t bits) { return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2; }

inline bool has_shape(const View& v, std::initializer_list<std::int64_t> shape) {
  return v.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), v.shape);
}

// Bytes of an access to a vector of parameters whose rows have `columns`: a thread takes `width` of them.
inline int vector_grain(const View& v, std::int64_t columns, int width) {
  const auto bits = reinterpret_cast<std::uintptr_t>(v.data) | static_cast<std::uintptr_t>(columns * dtype_bytes(v.dtype));
  return std::min(grain_of(bits), columns % width == 0 ? 16 : 4);
}

// Checks of one op, which its messages name; it also keeps the views that a launch may touch.
class Checks {
 public:
  Checks(const char* op, const View& first) : op_(op), first_(first) {}

  void that(bool holds, const char* what, const std::string& needed, const View& got) const {
    if (!holds) throw std::invalid_argument(std::string(op_) + ": " + what + ": need " + needed + ", got " + got.describe());
  }
  // Rows of contiguous elements.
  Matrix matrix(const char* what, const Optional& v, std::int64_t rows, std::int64_t columns, DType dtype, bool written) {
    if (!v) return {};
    that(v->rank == 2 && v->shape[0] == rows && v->shape[1] == columns, what,
         std::to_string(rows) + " rows of " + std::to_string(columns), *v);
    that(v->dtype == dtype && v->device == first_.device, what,
         std::string(runtime::dtype_name(dtype)) + " on the device of " + "the first", *v);
    that((v->stride[1] == 1 || columns == 1) && (v->stride[0] >= columns || rows <= 1), what, "contiguous rows", *v);
    views_.push_back(written ? *v : v->read_only());
    const auto address = reinterpret_cast<std::uintptr_t>(v->data);
    const auto pitch = static_cast<std::uintptr_t>(rows > 1 ? v->stride[0] : 0) * static_cast<std::uintptr_t>(dtype_bytes(dtype));
    const auto width = static_cast<std::uintptr_t>(columns) * static_cast<std::uintptr_t>(dtype_bytes(dtype));
    bits_ |= address | pitch | width;
    return {v->data, v->stride[0]};
  }
  // `elements` of them, contiguous.
  Vector vector(const char* what, const Optional& v, std::int64_t elements, bool any_type, DType dtype, bool written) {
    if (!v) return {};
    that((any_type ? is_float(v->dtype) : v->dtype == dtype) && v->elements() == elements && contiguous(*v) && v->device == first_.device,
         what, std::to_string(elements) + " contiguous elements of " + runtime::dtype_name(dtype) + " on the device of the first", *v);
    views_.push_back(written ? *v : v->read_only());
    return {v->data, kind_of(v->dtype)};
  }
  template <class T>
  T* data(const char* what, const Optional& v, std::int64_t elements, DType dtype, bool written) {
    return static_cast<T*>(const_cast<void*>(vector(what, v, elements, false, dtype, written).data));
  }
  // Bytes that every row of every matrix so far begins at a multiple of.
  int grain() const { return grain_of(bits_); }
  const std::vector<View>& views() const { return views_; }

 private:
  const char* op_;
  const View& first_;
  std::vector<View> views_;
  std::uintptr_t bits_ = 0;
};

// CTAs for `units` of work: no more than stay on the GPU with `threads` threads each.
inline std::int64_t ctas_for(std::int64_t units, int multiprocessors, int threads, int resident_threads) {
  return std::max<std::int64_t>(1, std::min<std::int64_t>(units, std::int64_t{multiprocessors} * std::max(1, resident_threads / threads)));
}

// outs[i] = sum over r of partial[i][r], of which each has `columns` elements; in order.
inline void sum_shares(const char* op, Machine& machine, void* stream, const View& partial, const Optional (&outs)[2],
                       std::int64_t columns) {
  if (!outs[0] && !outs[1]) return;
  SumParams p{};
  std::vector<View> views = {partial.read_only()};
  Checks checks(op, partial);
  for (int i = 0; i < 2; ++i) {
    if (!outs[i]) continue;
    const Vector v = checks.vector(i == 0 ? "dweight" : "dbias", outs[i], columns, true, outs[i]->dtype, true);
    p.out[i] = const_cast<void*>(v.data);
    p.kind[i] = v.kind;
    views.push_back(*outs[i]);
  }
  p.partial = static_cast<const float*>(partial.data);
  p.rows = static_cast<int>(partial.shape[1]);
  p.columns = static_cast<int>(columns);
  machine.launch(machine.kernel("rows_norm_backward", "rows_norm_sum"),
                 {.grid = {static_cast<std::uint32_t>((columns + kSumColumns - 1) / kSumColumns),
                           static_cast<std::uint32_t>(partial.shape[0])},
                  .block = {kSumThreads},
                  .cluster = {},
                  .params = runtime::bytes_of(p),
                  .views = views,
                  .stream = stream,
                  .device = partial.device});
}

}  // namespace tkpy::rows
