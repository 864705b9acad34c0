// rotary: y[i] = x[i] cos a - x[i + D/2] sin a,  y[i + D/2] = x[i + D/2] cos a + x[i] sin a,  a = p / scaling base^(-2i/D)
// in   x [B,S,H,D] bf16, fp16 or f32, elements of a head contiguous | positions [B,S] or [S] int32 or int64
// out  y as x, contiguous        backward: the gradient turned back, by the same kernel
// kernels  rows_rotary_<type of x>
// grid  as many CTAs as stay on the GPU. A thread's unit is 16 bytes of pairs of one token in 8 heads: their angles are
//       formed once, 4 heads are on their way together. Neighbouring threads have neighbouring pairs, then heads
// precision  angles in float64 and in turns, so that taking off the whole ones is exact; cosine and sine in fp32 of what
//            is left, right for any int64 position below 2^53; products in fp32, y rounded once
// limits  D <= 512; any strides: heads or halves that do not begin at multiples of 16 bytes move in smaller pieces
// cost  bytes x + y, each once; 3 flops an element, 3 float64 operations for a pair, a token and 8 heads
#include "rotary_params.h"
#include "rows.cuh"

namespace tkpy::rows {

template <class T>
struct Rotary {
  static constexpr int N = chunk_width<T>, at_once = 4;
  const RotaryParams& p;

  TK_DEVICE double position(unsigned batch, unsigned token) const {
    const long long at = batch * p.position_batch + token * p.position_token;
    return p.long_positions ? static_cast<double>(static_cast<const long long*>(p.positions)[at])
                            : static_cast<double>(static_cast<const int*>(p.positions)[at]);
  }
  TK_DEVICE void angles(float (&cosine)[N], float (&sine)[N], double place, int pair) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const double turns = place * p.turns[pair + i];
      sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine[i], &cosine[i]);
      sine[i] *= p.direction;
    }
  }
  TK_DEVICE void turn(const T* x, T* y, const float (&cosine)[N], const float (&sine)[N], int pair, int head) const {
    raw<T, N> left[at_once], right[at_once];
#pragma unroll
    for (int h = 0; h < at_once; ++h) {
      const int limit = head + h < p.heads ? p.half : 0;
      left[h].load(x + h * p.x_head, pair, limit, p.grain);
      right[h].load(x + h * p.x_head + p.half, pair, limit, p.grain);
    }
#pragma unroll
    for (int h = 0; h < at_once; ++h) {
      const int limit = head + h < p.heads ? p.half : 0;
      float a[N], b[N], first[N], second[N];
      left[h].get(a);
      right[h].get(b);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        first[i] = fmaf(a[i], cosine[i], -b[i] * sine[i]);
        second[i] = fmaf(b[i], cosine[i], a[i] * sine[i]);
      }
      left[h].put(first);
      right[h].put(second);
      left[h].store(y + h * 2 * p.half, pair, limit, p.grain);
      right[h].store(y + h * 2 * p.half + p.half, pair, limit, p.grain);
    }
  }

  TK_DEVICE void run() const {
    for (unsigned unit = blockIdx.x * kRotaryThreads + threadIdx.x; unit < p.units; unit += gridDim.x * kRotaryThreads) {
      const unsigned row = unit / p.chunks, place = row / p.blocks, batch = place / p.length, token = place % p.length;
      const int pair = static_cast<int>(unit % p.chunks) * N, first = static_cast<int>(row % p.blocks) * kRotaryHeads;
      const T* x = static_cast<const T*>(p.x) + batch * p.x_batch + token * p.x_token;
      T* y = static_cast<T*>(p.y) + static_cast<long long>(place) * p.heads * (2 * p.half);
      float cosine[N], sine[N];
      angles(cosine, sine, position(batch, token) / p.scaling, pair);
      for (int head = first; head < min(first + kRotaryHeads, p.heads); head += at_once)
        turn(x + head * p.x_head, y + static_cast<long long>(head) * (2 * p.half), cosine, sine, pair, head);
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_ROTARY(T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kRotaryThreads)                                   \
      rows_rotary_##T(const __grid_constant__ tkpy::rows::RotaryParams p) {                                  \
    tkpy::rows::Rotary<tkpy::rows::T>{p}.run();                                                              \
  }
TKPY_ROTARY(bf16)
TKPY_ROTARY(fp16)
TKPY_ROTARY(f32)
