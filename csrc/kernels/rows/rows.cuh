// Rows of a matrix in registers: who holds which elements, loads and stores of 16 bytes, sums over a row.
//   team     the `lanes` threads that share a row: a power of two up to 32, several teams to a warp, or whole warps, one
//            team to a CTA. Each thread has kElements elements of a stretch of lanes * kElements columns
//   chunk    16 bytes of x's type, N elements; neighbouring threads have neighbouring chunks. Chunks move as 16 bytes
//            where all rows of all matrices begin at multiples of them (`grain`), else as words of 4 bytes or one by one
//   raw<T, N>   N elements as they came from memory: what is under way takes no more registers than it has bits
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::rows {

using namespace tk;
using f32 = float;  // as the names of kernels have it

template <class T>
constexpr int chunk_width = 16 / static_cast<int>(sizeof(T));

struct Team {
  int lanes, lane;   // of the team
  int index, teams;  // this team of the CTA's
  int span;          // columns of a stretch

  TK_DEVICE explicit Team(int team_lanes) : lanes(team_lanes) {
    const int thread = static_cast<int>(threadIdx.x);
    lane = thread % lanes;
    index = thread / lanes;
    teams = static_cast<int>(blockDim.x) / lanes;
    span = lanes * kElements;
  }

  // First column of this thread's chunk k of the stretch at `base`.
  template <int N>
  TK_DEVICE int column(int base, int k) const {
    return base + (k * lanes + lane) * N;
  }

  // Sums over the team, the same bits in all of its threads. Every thread of the CTA calls it.
  template <int Count>
  TK_DEVICE void sum(float (&v)[Count]) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      if (step < lanes)
#pragma unroll
        for (int i = 0; i < Count; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], step);
    if (lanes <= 32) return;
    // Two buffers: who writes one again has passed the barrier after its last use.
    __shared__ float shares[2][Count][kMostThreads / 32];
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (lane_index() == 0)
#pragma unroll
      for (int i = 0; i < Count; ++i) shares[turn_][i][warp] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Count; ++i) v[i] = shares[turn_][i][0];
    for (int w = 1; w < lanes / 32; ++w)
#pragma unroll
      for (int i = 0; i < Count; ++i) v[i] += shares[turn_][i][w];
    turn_ ^= 1;
  }

 private:
  int turn_ = 0;
};

template <class T, int N>
struct raw {
  static constexpr int words = N * static_cast<int>(sizeof(T)) / 4, per_word = 4 / static_cast<int>(sizeof(T));
  static_assert(words % 4 == 0, "a chunk is a multiple of 16 bytes");
  u32 word[words];

  TK_DEVICE void clear() {
#pragma unroll
    for (u32& w : word) w = 0u;
  }
  // Elements from `col` on of a row; those from column `columns` on are 0.
  TK_DEVICE void load(const T* row, int col, int columns, int grain) {
    clear();
    if (col >= columns) return;
    const T* from = row + col;
    if (grain == 16) {
#pragma unroll
      for (int i = 0; i < words; i += 4) {
        const uint4 x = ptx::ld_global_v4(from + i * per_word);
        word[i] = x.x;
        word[i + 1] = x.y;
        word[i + 2] = x.z;
        word[i + 3] = x.w;
      }
    } else if (grain == 4 || sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < words; ++i)
        if (col + i * per_word < columns) word[i] = *reinterpret_cast<const u32*>(from + i * per_word);
    } else if constexpr (is_16bit<T>) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (col + i < columns) word[i / 2] |= static_cast<u32>(from[i].bits) << (i % 2 * 16);
    }
  }
  TK_DEVICE void get(float (&v)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (is_16bit<T>)
        v[i] = packed<T>::get(word[i / 2], i % 2);
      else
        v[i] = __uint_as_float(word[i]);
    }
  }
  TK_DEVICE void put(const float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < words; ++i) {
      if constexpr (is_16bit<T>)
        word[i] = ptx::pack<T>(v[2 * i], v[2 * i + 1]);
      else
        word[i] = __float_as_uint(v[i]);
    }
  }
  TK_DEVICE void store(T* row, int col, int columns, int grain) const {
    if (col >= columns) return;
    T* to = row + col;
    if (grain == 16) {
#pragma unroll
      for (int i = 0; i < words; i += 4)
        ptx::st_global_v4(to + i * per_word, make_uint4(word[i], word[i + 1], word[i + 2], word[i + 3]));
    } else if (grain == 4 || sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < words; ++i)
        if (col + i * per_word < columns) *reinterpret_cast<u32*>(to + i * per_word) = word[i];
    } else if constexpr (is_16bit<T>) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (col + i < columns) to[i].bits = static_cast<unsigned short>(word[i / 2] >> (i % 2 * 16));
    }
  }
};

template <class T>
TK_DEVICE T* row_of(const Matrix& m, long long row) {
  return static_cast<T*>(m.data) + row * m.pitch;
}

// Elements from `col` on of a vector of float or of T, `missing` where there is no vector.
template <class T, int N>
TK_DEVICE void parameters(float (&v)[N], const Vector& from, int col, int columns, float missing) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = missing;
    if (from.data == nullptr || col + i >= columns) continue;
    v[i] = from.kind == kF32 ? static_cast<const float*>(from.data)[col + i] : read(static_cast<const T*>(from.data) + col + i);
  }
}
TK_DEVICE void write_kind(void* to, int kind, long long i, float value) {
  if (kind == kF32)
    static_cast<float*>(to)[i] = value;
  else if (kind == kBf16)
    write(static_cast<bf16*>(to) + i, value);
  else
    write(static_cast<fp16*>(to) + i, value);
}

}  // namespace tkpy::rows
