// Rows of samples in global memory: chunks of 8, masked at the end, of rows that may begin anywhere.
#pragma once

#include "transform.cuh"

namespace tkpy::fft_conv {

// bf16 or fp16, which the call says: the branch is uniform, and one kernel serves both.
struct Row {
  unsigned short* data;  // null: the tensor is absent
  int length;
  bool vectors, half;

  TK_DEVICE Row(const Rows& rows, int batch, int channel, int samples, bool is_half)
      : data(rows.data ? static_cast<unsigned short*>(const_cast<void*>(rows.data)) + batch * rows.batch +
                             channel * rows.channel
                       : nullptr),
        length(samples),
        vectors(rows.vectors != 0),
        half(is_half) {}

  // Samples n .. n + 7, zero past the end; n is a multiple of 8. As they lie in memory: several loads may be under way.
  TK_DEVICE uint4 words(int n) const {
    if (vectors && n + 8 <= length) return ptx::ld_global_v4(data + n);
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 low = n + 2 * i < length ? data[n + 2 * i] : 0u;
      pairs[i] = low | (n + 2 * i + 1 < length ? static_cast<u32>(data[n + 2 * i + 1]) << 16 : 0u);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  TK_DEVICE void floats(float (&x)[8], uint4 words) const {
    const u32 pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = half ? ptx::low<fp16>(pairs[i]) : ptx::low<bf16>(pairs[i]);
      x[2 * i + 1] = half ? ptx::high<fp16>(pairs[i]) : ptx::high<bf16>(pairs[i]);
    }
  }
  TK_DEVICE void load(float (&x)[8], int n) const { floats(x, words(n)); }
  TK_DEVICE void store(const float (&x)[8], int n) const {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = half ? ptx::pack<fp16>(x[2 * i], x[2 * i + 1]) : ptx::pack<bf16>(x[2 * i], x[2 * i + 1]);
    if (vectors && n + 8 <= length) {
      ptx::st_global_v4(data + n, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (n + i < length) data[n + i] = static_cast<unsigned short>(pairs[i / 2] >> (i % 2 * 16));
    }
  }
};

// pre u, or u.
struct Gated {
  Row u, gate;
  TK_DEVICE void load(float (&x)[8], int n) const {
    u.load(x, n);
    if (gate.data == nullptr) return;
    float g[8];
    gate.load(g, n);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= g[i];
  }
  // Several rows of 8 samples, from at(i) on, all under way at once.
  template <int N, class At>
  TK_DEVICE void load(float (&x)[N][8], At at) const {
    uint4 words[N], gates[N] = {};  // not left open: in a loop ptxas would keep what is not set from one turn to the next
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = u.words(at(i));
    if (gate.data)
#pragma unroll
      for (int i = 0; i < N; ++i) gates[i] = gate.words(at(i));
    if (u.half)
      of_words<fp16>(x, words, gates);
    else
      of_words<bf16>(x, words, gates);
  }
  template <class T, int N>
  TK_DEVICE void of_words(float (&x)[N][8], const uint4 (&words)[N], const uint4 (&gates)[N]) const {
    const auto times_gate = [&](float* to, u32 pair, u32 of_gate) {
      to[0] = ptx::low<T>(pair), to[1] = ptx::high<T>(pair);
      if (gate.data) to[0] *= ptx::low<T>(of_gate), to[1] *= ptx::high<T>(of_gate);
    };
#pragma unroll
    for (int i = 0; i < N; ++i) {
      times_gate(x[i], words[i].x, gates[i].x);
      times_gate(x[i] + 2, words[i].y, gates[i].y);
      times_gate(x[i] + 4, words[i].z, gates[i].z);
      times_gate(x[i] + 6, words[i].w, gates[i].w);
    }
  }
};

// out = gate x, or x.
TK_DEVICE void store_gated(const Row& out, const Row& gate, const float (&x)[8], int n) {
  float y[8];
  if (gate.data) gate.load(y, n);
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i] = gate.data ? y[i] * x[i] : x[i];
  out.store(y, n);
}

}  // namespace tkpy::fft_conv
