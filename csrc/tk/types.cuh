// Element types. 8- and 16-bit floats are storage only: arithmetic is fp32. No CUDA header is needed for them, which
// keeps kernels compiling with the smallest set of toolkit packages.
#pragma once

#include "layout.h"

namespace tk {

#define TK_DEVICE __device__ __forceinline__

struct bf16 {  // the upper half of a binary32
  unsigned short bits;
};
struct fp16 {  // binary16
  unsigned short bits;
};
struct e4m3 {  // finite: 448 is the largest, there is no infinity
  unsigned char bits;
};
struct e5m2 {  // the upper half of a binary16
  unsigned char bits;
};
struct tf32 {  // a float of which the matrix unit reads 19 bits
  float value;
};
using int8 = signed char;  // operands of products only
using uint8 = unsigned char;

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <class T>
struct without_const {
  using type = T;
};
template <class T>
struct without_const<const T> {
  using type = T;
};
template <class T>
using plain = typename without_const<T>::type;

template <class T>
constexpr bool is_16bit = is_same<plain<T>, bf16> || is_same<plain<T>, fp16>;
template <class T>
constexpr bool is_fp8 = is_same<plain<T>, e4m3> || is_same<plain<T>, e5m2>;
template <class T>
constexpr bool is_32bit = is_same<plain<T>, float> || is_same<plain<T>, int> || is_same<plain<T>, tf32>;
template <class T>
constexpr bool is_int8 = is_same<plain<T>, int8> || is_same<plain<T>, uint8>;
template <class T>
constexpr bool is_element = is_32bit<T> || is_16bit<T> || is_fp8<T> || is_int8<T>;
// Of one size and meaning: bits may be copied.
template <class A, class B>
constexpr bool same_bits = is_same<plain<A>, plain<B>> ||
                           ((is_same<plain<A>, float> || is_same<plain<A>, tf32>) &&
                            (is_same<plain<B>, float> || is_same<plain<B>, tf32>));

template <bool Condition, class A, class B>
struct choose {
  using type = A;
};
template <class A, class B>
struct choose<false, A, B> {
  using type = B;
};

// How a lane holds elements of type T: `per_word` of them in one 32-bit register (word), in runs of `run` neighbours.
// compute: the type in which they are reckoned with.
template <class T>
struct element {
  using word = u32;
  using compute = typename choose<is_int8<T>, int, float>::type;
  static constexpr int per_word = 4 / static_cast<int>(sizeof(T)), run = per_word;
};
template <>
struct element<float> {
  using word = float;
  using compute = float;
  static constexpr int per_word = 1, run = 2;
};
template <>
struct element<int> {
  using word = int;
  using compute = int;
  static constexpr int per_word = 1, run = 2;
};
template <>
struct element<tf32> {
  using word = float;
  using compute = float;
  static constexpr int per_word = 1, run = 1;
};

}  // namespace tk
