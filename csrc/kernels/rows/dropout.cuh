// Dropout whose mask is a function of a key and of the element's place: computed again where it is needed, never stored.
// Element (row, col) has word col % 4 of Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as
// easy as 1, 2, 3") with the counter (col / 4, row, row >> 32, 0); it is dropped where that word is below p 2^32.
#pragma once

#include "rows.cuh"

namespace tkpy::rows {

struct Dropout {
  unsigned threshold;
  float scale;
  u32 key[2] = {};

  TK_DEVICE explicit Dropout(const NormParams& p) : threshold(p.threshold), scale(p.scale) {
    if (threshold == 0) return;
    const auto seed = static_cast<unsigned long long>(*p.seed);
    key[0] = static_cast<u32>(seed);
    key[1] = static_cast<u32>(seed >> 32);
  }

  TK_DEVICE void words(u32 (&x)[4], long long row, int quad) const {
    u32 k0 = key[0], k1 = key[1];
    x[0] = static_cast<u32>(quad);
    x[1] = static_cast<u32>(row);
    x[2] = static_cast<u32>(static_cast<unsigned long long>(row) >> 32);
    x[3] = 0u;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const u32 high0 = __umulhi(0xD2511F53u, x[0]), low0 = 0xD2511F53u * x[0];
      const u32 high1 = __umulhi(0xCD9E8D57u, x[2]), low1 = 0xCD9E8D57u * x[2];
      x[0] = high1 ^ x[1] ^ k0;
      x[1] = low1;
      x[2] = high0 ^ x[3] ^ k1;
      x[3] = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }

  // Drops and scales elements `col` (a multiple of 4) and on of a row.
  template <int N>
  TK_DEVICE void apply(float (&v)[N], long long row, int col) const {
    if (threshold == 0) return;
    u32 x[4];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i % 4 == 0) words(x, row, (col + i) / 4);
      v[i] = x[i % 4] < threshold ? 0.0f : v[i] * scale;
    }
  }
};

}  // namespace tkpy::rows
