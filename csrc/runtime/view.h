// A tensor as host code sees it: where, what, how large. Whoever made it keeps it alive.
#pragma once

#include <cstdint>
#include <string>

namespace tkpy::runtime {

enum class DType : std::uint8_t { u8, i8, i16, i32, i64, f16, bf16, f32, f64, e4m3, e5m2 };

constexpr int dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::u8:
    case DType::i8:
    case DType::e4m3:
    case DType::e5m2:
      return 1;
    case DType::i16:
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::i32:
    case DType::f32:
      return 4;
    case DType::i64:
    case DType::f64:
      return 8;
  }
  return 0;
}

const char* dtype_name(DType dtype);

constexpr int kMaxRank = 8;

struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::int64_t shape[kMaxRank] = {};
  std::int64_t stride[kMaxRank] = {};  // in elements
  int device = -1;                     // ordinal of the CUDA device; -1: host memory
  bool writable = true;

  bool defined() const { return data != nullptr; }
  View read_only() const {
    View same = *this;
    same.writable = false;
    return same;
  }
  std::int64_t elements() const;
  // Bytes from `data` to the end of the last element; strides must not be negative.
  std::int64_t extent() const;
  std::string describe() const;  // "bf16[3, 5] stride [5, 1]"
};

}  // namespace tkpy::runtime
