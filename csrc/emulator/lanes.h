// Loops over the 32 lanes of a row. Included by the files that are compiled once per instruction set: everything here has
// internal linkage, and the standard headers come before the pragma, so no shared template is compiled for AVX2.
#pragma once

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "alu.h"
#include "machine.h"

#ifndef TK_ISA
#define TK_ISA base
#endif

#ifdef TK_ISA_V3
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#endif

#if defined(__clang__)
#define TK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define TK_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define TK_INLINE __attribute__((always_inline))

namespace tkpy::emulator::TK_ISA {
namespace {

template <class T>
using Storage = std::conditional_t<sizeof(T) == 8, u64, u32>;

template <class T>
TK_INLINE inline T unpack(Storage<T> bits) {
  if constexpr (std::is_integral_v<T>) return static_cast<T>(bits);
  else return std::bit_cast<T>(bits);
}

template <class T>
TK_INLINE inline Storage<T> pack(T value) {
  if constexpr (std::is_integral_v<T>) return static_cast<std::make_unsigned_t<T>>(value);
  else return std::bit_cast<Storage<T>>(value);
}

// d[i] = fn(i) for the lanes of `mask`. fn must be safe for every lane. Rows never overlap partially (see program.h).
template <class S, class Fn>
TK_INLINE inline void each(S* d, u32 mask, Fn fn) {
  if (mask == kFullMask) {
    TK_INDEPENDENT
    for (u32 i = 0; i < kLanes; ++i) d[i] = fn(i);
  } else {
    TK_INDEPENDENT
    for (u32 i = 0; i < kLanes; ++i) {
      const S value = fn(i);
      d[i] = (mask >> i & 1) ? value : d[i];
    }
  }
}

// For functions too dear to compute for idle lanes.
template <class Fn>
TK_INLINE inline void each_active(u32 mask, Fn fn) {
  while (mask) {
    fn(static_cast<u32>(std::countr_zero(mask)));
    mask &= mask - 1;
  }
}

template <class T, class F>
void unary(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  each(x.row<S>(op.d[0]), mask, [=](u32 i) TK_INLINE { return pack<T>(F::apply(unpack<T>(a[i]))); });
}

template <class T, class F>
void binary(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  each(x.row<S>(op.d[0]), mask,
       [=](u32 i) TK_INLINE { return pack<T>(F::apply(unpack<T>(a[i]), unpack<T>(b[i]))); });
}

template <class T, class F>
void ternary(Exec& x, const Op& op, u32 mask) {
  using S = Storage<T>;
  const S* a = x.row<S>(op.s[0]);
  const S* b = x.row<S>(op.s[1]);
  const S* c = x.row<S>(op.s[2]);
  each(x.row<S>(op.d[0]), mask, [=](u32 i) TK_INLINE {
    return pack<T>(F::apply(unpack<T>(a[i]), unpack<T>(b[i]), unpack<T>(c[i])));
  });
}


#define TK_PICK_INT(SHAPE, FUNCTOR, TYPE)          \
  switch (TYPE) {                                  \
    case Type::u16: return SHAPE<u16, FUNCTOR>;    \
    case Type::s16: return SHAPE<i16, FUNCTOR>;    \
    case Type::u32: return SHAPE<u32, FUNCTOR>;    \
    case Type::s32: return SHAPE<i32, FUNCTOR>;    \
    case Type::u64: return SHAPE<u64, FUNCTOR>;    \
    case Type::s64: return SHAPE<i64, FUNCTOR>;    \
    default: return nullptr;                       \
  }

#define TK_PICK_BITS(SHAPE, FUNCTOR, TYPE)                                              \
  switch (type_bits(TYPE)) {                                                            \
    case 16: return SHAPE<u16, FUNCTOR>;                                                \
    case 32: return SHAPE<u32, FUNCTOR>;                                                \
    case 64: return SHAPE<u64, FUNCTOR>;                                                \
    default: return nullptr;                                                            \
  }

}  // namespace
}  // namespace tkpy::emulator::TK_ISA
