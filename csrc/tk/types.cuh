// 16-bit floats and their packed pairs. They are storage only: arithmetic is fp32. No CUDA header is needed for them,
// which keeps kernels compiling with the smallest set of toolkit packages.
#pragma once

#include "layout.h"

namespace tk {

#define TK_DEVICE __device__ __forceinline__

struct bf16 {
  unsigned short bits;
};
struct fp16 {
  unsigned short bits;
};

template <class T>
constexpr bool is_16bit = false;
template <>
constexpr bool is_16bit<bf16> = true;
template <>
constexpr bool is_16bit<fp16> = true;
template <>
constexpr bool is_16bit<const bf16> = true;
template <>
constexpr bool is_16bit<const fp16> = true;

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

}  // namespace tk
