// Elements in 32-bit registers: taking one out, making a register of several. Arithmetic is fp32, int32 for integers.
#pragma once

#include "ptx_data.cuh"

namespace tk {

// get(word, i): element i of a register; make(values): a register of per_word values, rounded to nearest even (tf32:
// ties away from zero), 8-bit types saturated.
template <class T>
struct packed {
  using word = typename element<T>::word;
  using compute = typename element<T>::compute;
  static constexpr int count = element<T>::per_word;

  TK_DEVICE static compute get(word w, int i) {
    if constexpr (is_16bit<T>) {
      return i == 0 ? ptx::low<T>(w) : ptx::high<T>(w);
    } else if constexpr (is_fp8<T>) {
      const u32 halves = ptx::widen<T>(static_cast<unsigned short>(i < 2 ? w & 0xffffu : w >> 16));
      return i % 2 == 0 ? ptx::low<fp16>(halves) : ptx::high<fp16>(halves);
    } else if constexpr (is_int8<T>) {
      return static_cast<int>(static_cast<T>(w >> (8 * i) & 0xffu));
    } else {
      return w;
    }
  }
  TK_DEVICE static int clamp(int value) {  // to the range of an 8-bit integer
    constexpr int least = is_same<T, int8> ? -128 : 0;
    return ::min(::max(value, least), least + 255);
  }
  TK_DEVICE static word make(const compute (&v)[count]) {
    if constexpr (is_16bit<T>) {
      return ptx::pack<T>(v[0], v[1]);
    } else if constexpr (is_fp8<T>) {
      return ptx::pack<T>(v[0], v[1]) | ptx::pack<T>(v[2], v[3]) << 16;
    } else if constexpr (is_int8<T>) {
      u32 w = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) w |= (static_cast<u32>(clamp(v[i])) & 0xffu) << (8 * i);
      return w;
    } else if constexpr (is_same<T, tf32>) {
      return ptx::to_tf32(v[0]);
    } else {
      return v[0];
    }
  }
};

namespace detail {

// The bits of a register.
TK_DEVICE void set_word(u32& x, u32 bits) { x = bits; }
TK_DEVICE void set_word(float& x, u32 bits) { x = __uint_as_float(bits); }
TK_DEVICE u32 word_bits(u32 x) { return x; }
TK_DEVICE u32 word_bits(float x) { return __float_as_uint(x); }

}  // namespace detail

// One element in memory as a value, and back.
template <class T>
TK_DEVICE typename element<plain<T>>::compute read(const T* at) {
  using U = plain<T>;
  if constexpr (is_16bit<U>)
    return ptx::to_float<U>(at->bits);
  else if constexpr (is_fp8<U>)
    return ptx::low<fp16>(ptx::widen<U>(at->bits));
  else if constexpr (is_same<U, tf32>)
    return at->value;
  else
    return *at;
}
template <class T>
TK_DEVICE void write(T* at, typename element<T>::compute value) {
  if constexpr (is_16bit<T>)
    at->bits = static_cast<unsigned short>(ptx::pack<T>(value, 0.0f));
  else if constexpr (is_fp8<T>)
    at->bits = static_cast<unsigned char>(ptx::pack<T>(value, 0.0f));
  else if constexpr (is_same<T, tf32>)
    at->value = ptx::to_tf32(value);
  else if constexpr (is_int8<T>)
    *at = static_cast<T>(packed<T>::clamp(value));
  else
    *at = value;
}

// A value of one compute type as another: float to int rounds to nearest even.
template <class To, class From>
TK_DEVICE To value_as(From value) {
  if constexpr (is_same<To, int> && is_same<From, float>)
    return __float2int_rn(value);
  else
    return static_cast<To>(value);
}

}  // namespace tk
