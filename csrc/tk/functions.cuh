// Functions of one value, for maps: fp32, branch-free where it matters, a few instructions. Errors are relative unless
// said otherwise; subnormal arguments and results of the approximations are zero.
#pragma once

#include "ptx_data.cuh"

namespace tk::fn {

constexpr float log2e = 1.44269504f, ln2 = 0.693147181f;
constexpr float infinity = __builtin_huge_valf();

TK_DEVICE float exp2(float x) { return ptx::ex2(x); }         // 2^x, 2^-22
TK_DEVICE float exp(float x) { return ptx::ex2(log2e * x); }  // e^x, 2^-22 + |x| 2^-23
TK_DEVICE float log2(float x) { return ptx::lg2(x); }         // log2 x, absolute 2^-22 near 1
TK_DEVICE float log(float x) { return ln2 * ptx::lg2(x); }    // ln x, absolute 2^-22 near 1
TK_DEVICE float rcp(float x) { return ptx::rcp(x); }          // 1 / x, 1 ulp
TK_DEVICE float rsqrt(float x) { return ptx::rsqrt(x); }      // 1 / sqrt x, 2^-22
TK_DEVICE float sqrt(float x) { return ptx::sqrt(x); }        // sqrt x, 2^-22
TK_DEVICE float tanh(float x) { return tanhf(x); }            // tanh x, 2 ulp
TK_DEVICE float tanh_fast(float x) { return ptx::tanh(x); }   // tanh x, one instruction, 2^-11
TK_DEVICE float erf(float x) { return erff(x); }              // erf x, 2 ulp
TK_DEVICE float sigmoid(float x) { return ptx::rcp(1.0f + ptx::ex2(-log2e * x)); }  // 1 / (1 + e^-x)

// x - 2 pi n by two parts of 2 pi, into the range where the hardware's sine has an absolute error of 2^-20.
TK_DEVICE float into_period(float x) {
  const float n = rintf(0.159154943f * x);
  return fmaf(n, 1.74845553e-7f, fmaf(n, -6.28318548f, x));
}
TK_DEVICE float sin(float x) { return ptx::sin(into_period(x)); }  // sin x
TK_DEVICE float cos(float x) { return ptx::cos(into_period(x)); }  // cos x

template <class T>
TK_DEVICE T square(T x) {  // x^2
  return x * x;
}
TK_DEVICE float pow(float x, float power) { return ptx::ex2(power * ptx::lg2(x)); }  // x^power for x >= 0
TK_DEVICE float abs(float x) { return fabsf(x); }  // |x|
TK_DEVICE int abs(int x) { return x < 0 ? -x : x; }
template <class T>
TK_DEVICE T neg(T x) {  // -x
  return -x;
}
template <class T>
TK_DEVICE T relu(T x) {  // max(x, 0); NaN stays NaN
  return x < T(0) ? T(0) : x;
}
template <class T>
TK_DEVICE T relu_squared(T x) {  // max(x, 0)^2
  return x < T(0) ? T(0) : x * x;
}
TK_DEVICE float silu(float x) { return x * sigmoid(x); }                              // x / (1 + e^-x)
TK_DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(0.70710678f * x)); }  // x Phi(x)
TK_DEVICE float gelu_tanh(float x) {  // x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}

template <class T>
TK_DEVICE T add(T x, T y) {
  return x + y;
}
template <class T>
TK_DEVICE T sub(T x, T y) {
  return x - y;
}
template <class T>
TK_DEVICE T mul(T x, T y) {
  return x * y;
}
TK_DEVICE float div(float x, float y) { return __fdividef(x, y); }  // 2 ulp; 0 for |y| > 2^126
TK_DEVICE float max(float x, float y) { return fmaxf(x, y); }       // the other one where one is NaN
TK_DEVICE float min(float x, float y) { return fminf(x, y); }
TK_DEVICE int max(int x, int y) { return x > y ? x : y; }
TK_DEVICE int min(int x, int y) { return x < y ? x : y; }
TK_DEVICE float fma(float x, float y, float z) { return fmaf(x, y, z); }
TK_DEVICE int fma(int x, int y, int z) { return x * y + z; }

}  // namespace tk::fn
