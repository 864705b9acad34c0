// What the kernels of wkv5 share: which tokens a CTA has, powers of decays, operands in parts of bf16, chunks on their way
// from global memory, states in it.
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::wkv5 {

using namespace tk;

using Tile = rt_fl<16, 16>;  // element e of a lane: at tile_row(e), tile_col(e)
TK_DEVICE int tile_row(int e) { return lane_index() / 4 + 8 * (e / 2 % 2); }
TK_DEVICE int tile_col(int e) { return 8 * (e / 4) + 2 * (lane_index() % 4) + e % 2; }

// ---- Tokens --------------------------------------------------------------------------------------------------------
struct Task {
  int sequence, segment, segments;  // of the sequence's
  int batch, first, tokens;         // where the segment lies
  TK_DEVICE int chunks() const { return (tokens + kChunk - 1) / kChunk; }
  TK_DEVICE bool last() const { return segment == segments - 1; }
};

// Offsets are the caller's: whatever they are, what is written lies inside.
TK_DEVICE int offset_of(const Params& p, int i) { return min(max(p.cu_seqlens[i], 0), p.length); }
TK_DEVICE int first_slot(const Params& p, int i) {
  return p.cu_seqlens ? offset_of(p, i) / p.segment + i : i * p.segments;
}
TK_DEVICE int tokens_of(const Params& p, int i) {
  return p.cu_seqlens ? max(offset_of(p, i + 1) - offset_of(p, i), 0) : p.length;
}
TK_DEVICE int segments_of(const Params& p, int i) { return max((tokens_of(p, i) + p.segment - 1) / p.segment, 1); }

TK_DEVICE bool find(Task& t, const Params& p, int slot) {
  if (p.cu_seqlens) {
    int low = 0, high = p.sequences - 1;  // the last sequence that begins at or before the slot
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_slot(p, middle) <= slot)
        low = middle;
      else
        high = middle - 1;
    }
    t.sequence = low;
  } else {
    t.sequence = slot / p.segments;
  }
  t.segment = slot - first_slot(p, t.sequence);
  t.segments = segments_of(p, t.sequence);
  if (t.segment >= t.segments) return false;
  const int before = t.segment * p.segment;
  t.batch = p.cu_seqlens ? 0 : t.sequence;
  t.first = (p.cu_seqlens ? offset_of(p, t.sequence) : 0) + before;
  t.tokens = min(tokens_of(p, t.sequence) - before, p.segment);
  return true;
}

// ---- Decays --------------------------------------------------------------------------------------------------------
// w = 2^-rate; channels beyond the head have w = 1. 2^-1e4 is 0, and 0 * 1e4 is not NaN.
TK_DEVICE float rate_of(const Params& p, int head, int channel) {
  if (channel >= p.size) return 0.0f;
  const float rate = fn::exp(p.w[head * p.size + channel]) * fn::log2e;
  return rate > 1e4f ? 1e4f : rate;
}
TK_DEVICE float bonus_of(const Params& p, int head, int channel) {
  return channel < p.size ? p.u[head * p.size + channel] : 0.0f;
}
// Of all channels, in shared memory; a barrier follows.
template <int N>
struct Rates {
  float rate[N], u[N];
  TK_DEVICE void begin(const Params& p, int head) {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= N) return;
    rate[i] = rate_of(p, head, i);
    u[i] = bonus_of(p, head, i);
  }
};
// w^n; w^0 = 1 whatever w is.
TK_DEVICE float power(float rate, int n) { return fn::exp2(-rate * static_cast<float>(n)); }
// w^n - 1, to the last bits where w^n is close to 1: thousands of chunks multiply a state by it.
TK_DEVICE float fade_of(float rate, int n) {
  const float x = rate * static_cast<float>(n) * fn::ln2;
  float series = 1.0f;
#pragma unroll
  for (int i = 7; i > 1; --i) series = 1.0f - x / static_cast<float>(i) * series;
  return x < 0.5f ? -x * series : power(rate, n) - 1.0f;
}

// ---- Operands ------------------------------------------------------------------------------------------------------
// The sum of `Count` tiles of bf16. Two hold 16 bits of a float's fraction, over its whole range, and all of an fp16.
template <int Count>
struct Parts {
  rt_bf<16, 16> part[Count];
};
template <class T>
constexpr int raw_parts = is_same<T, bf16> ? 1 : 2;

template <int Count>
TK_DEVICE void split(Parts<Count>& dst, const Tile& src) {
  copy(dst.part[0], src);
  if constexpr (Count == 2) {
    Tile rest;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const u32 two = dst.part[0].x[0][e / 2];
      rest.x[0][e] = src.x[0][e] - __uint_as_float(e % 2 ? two & 0xffff0000u : two << 16);
    }
    copy(dst.part[1], rest);
  }
}
// Data as they are, exactly.
TK_DEVICE void split(Parts<1>& dst, const rt_bf<16, 16>& src) { dst.part[0] = src; }
TK_DEVICE void split(Parts<2>& dst, const rt_hf<16, 16>& src) {
  Tile wide;
  copy(wide, src);
  split(dst, wide);
}
// d += a b^t, to the last bit that the parts have: 2^-16 of the operands where either has two.
template <int A, int B>
TK_DEVICE void multiply(Tile& d, const Parts<A>& a, const Parts<B>& b) {
#pragma unroll
  for (int i = 0; i < A; ++i)
#pragma unroll
    for (int j = 0; j < B; ++j)
      if (i + j < 2) mma_ABt(d, a.part[i], b.part[j]);
}

// 16 x 16 of a tile in shared memory, transposed.
template <class T, class Shared>
TK_DEVICE void load_transposed(rt<T, 16, 16>& dst, const Shared& src, int row, int col) {
  rt<T, 16, 16, Layout::col> turned;
  load(turned, src, row, col);
  transpose(dst, turned);
}

// The level L = 1, 2, 4, 8 at which tokens `late` > `early` of a chunk meet: late is in an odd block of L tokens, early in
// the even one before it. 0 where late <= early.
TK_DEVICE int level_of(int late, int early) {
  return late > early ? 1 << (31 - __clz(static_cast<unsigned>(late ^ early))) : 0;
}

// ---- Chunks on their way -------------------------------------------------------------------------------------------
template <class T, int N, int Tensors>
struct Slot {
  st<T, kChunk, N> x[Tensors];
};

// Where chunk `step` of a segment goes.
TK_DEVICE ring<kStages> place_of(int step) {
  const u32 at = static_cast<u32>(step);
  return {static_cast<int>(at % kStages), at / kStages % 2};
}

// The chunks of a segment, first to last or last to first, through a ring of slots; warp 0 fills it.
template <class T, int N, int Tensors>
struct Feed {
  using Chunk = Slot<T, N, Tensors>;
  Chunk* slots;
  channel<kStages>* filled;
  const Params& p;
  int tensors[Tensors];  // which of the data; backwards those that they change places with
  Task task;
  int head;
  bool backwards;
  int filled_chunks = 0;

  // Chunks end where the segment does, so that its first one may be a tail: n tokens in its last rows.
  TK_DEVICE int after(int step) const { return backwards ? step : task.chunks() - 1 - step; }  // chunks
  TK_DEVICE int tokens(int step) const { return min(task.tokens - kChunk * after(step), kChunk); }
  TK_DEVICE int first(int step) const { return task.first + task.tokens - kChunk * (after(step) + 1); }  // of the rows

  // One chunk more, where there is one: by warp 0, once every warp has done with the chunk that it replaces.
  TK_DEVICE void fill() {
    if (filled_chunks >= task.chunks()) return;
    if (lane_index() == 0) {
      const ring<kStages> at = place_of(filled_chunks);
      acquire(*filled, at);
      mbarrier& bar = filled->full[at.slot];
      arrive_expect(bar, Tensors * st<T, kChunk, N>::bytes);
#pragma unroll
      for (int i = 0; i < Tensors; ++i)
        load(slots[at.slot].x[i], gl<st<T, kChunk, N>, 4>(p.data[tensors[i] ^ (backwards ? 1 : 0)]),
             {task.batch, first(filled_chunks), head, 0}, bar);
    }
    __syncwarp();
    ++filled_chunks;
  }
  // What lies before the tokens of a tail is another's, or not known: all warps make it zero.
  TK_DEVICE void clean(Chunk& chunk, int n) const {
    if (n == kChunk) return;
    constexpr int pieces = N / 8;  // of a row; at most 15 rows are fewer than there are threads
    const int piece = static_cast<int>(threadIdx.x);
    if (piece < (kChunk - n) * pieces) {
#pragma unroll
      for (int i = 0; i < Tensors; ++i)
        *reinterpret_cast<uint4*>(&chunk.x[i].at(piece / pieces, piece % pieces * 8)) = {};
    }
    publish_tile();  // TMA writes there again
    __syncthreads();
  }
  // Before the first step, which is 1 - kStages: steps below 0 only fill, all slots but one. Slots may hold what a Stage
  // left there: publish_barriers tells TMA, and it has been read when all meet.
  TK_DEVICE void begin(int warps) {
    if (threadIdx.x == 0) {
      init(*filled, 1, warps);
      publish_barriers();
    }
    __syncthreads();
  }
};

// ---- Global memory -------------------------------------------------------------------------------------------------
// 16 x 16 of an output, the tokens of a chunk: 32 bytes each, through a warp's own piece of shared memory. The warp meets
// between two calls.
template <class T, class Feed>
TK_DEVICE void write_rows(void* out, const Params& p, const Feed& feed, int step, int col, const Tile& x,
                          st<T, 16, 16>& scratch) {
  rt<T, 16, 16> narrow;
  copy(narrow, x);
  store(scratch, narrow);
  __syncwarp();
  const int row = lane_index() / 2, at = col + 8 * (lane_index() % 2);
  const uint4 piece = *reinterpret_cast<const uint4*>(&scratch.at(row, 8 * (lane_index() % 2)));
  if (row >= kChunk - feed.tokens(step) && at < p.size) {
    const long long token = static_cast<long long>(feed.task.batch) * p.length + feed.first(step) + row;
    *reinterpret_cast<uint4*>(static_cast<T*>(out) + (token * p.heads + feed.head) * p.size + at) = piece;
  }
}

// Where matrix `index` of [.., H, N, N] begins.
TK_DEVICE long long matrix_at(const Params& p, int index, int head) {
  return (static_cast<long long>(index) * p.heads + head) * p.size * p.size;
}
// A matrix of fp32, zero beyond the head, on its way between global memory and the tiles of warps: where chunks are before
// the first and after the last of them. All threads call, and meet.
template <int N>
struct Stage {
  float x[N][N + 8];  // two rows of tiles in different banks

  // f(row, column) for every four elements: 8 rows at a time.
  template <class F>
  TK_DEVICE static void each_four(F f) {
    const int row = static_cast<int>(threadIdx.x) / (N / 4), col = static_cast<int>(threadIdx.x) % (N / 4) * 4;
#pragma unroll 4
    for (int i = 0; i < N; i += 8) f(row + i, col);
  }
  // Tile c of a warp: rows from `mine` on, columns 16 c .. Turned: columns from `mine` on and rows 16 c .., transposed.
  template <bool Turned, class F>
  TK_DEVICE void each_pair(int mine, int c, F f) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const int i = mine + tile_row(e), j = 16 * c + tile_col(e);
      if constexpr (Turned)
        f(e, x[j][i], x[j + 1][i]);
      else
        f(e, x[i][j], x[i][j + 1]);
    }
  }
  // Zeros where there is no matrix.
  template <bool Turned = false>
  TK_DEVICE void read(Tile (&dst)[N / 16], const float* from, int size, int mine) {
    __syncthreads();
    each_four([&](int row, int col) {
      const bool inside = from && row < size && col < size;
      *reinterpret_cast<float4*>(&x[row][col]) =
          inside ? *reinterpret_cast<const float4*>(from + row * size + col) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    });
    __syncthreads();
#pragma unroll
    for (int c = 0; c < N / 16; ++c)
      each_pair<Turned>(mine, c, [&](int e, float first, float second) {
        dst[c].x[0][e] = first;
        dst[c].x[0][e + 1] = second;
      });
  }
  template <bool Turned = false>
  TK_DEVICE void write(float* to, const Tile (&src)[N / 16], int size, int mine) {
    __syncthreads();
#pragma unroll
    for (int c = 0; c < N / 16; ++c)
      each_pair<Turned>(mine, c, [&](int e, float& first, float& second) {
        first = src[c].x[0][e];
        second = src[c].x[0][e + 1];
      });
    __syncthreads();
    each_four([&](int row, int col) {
      if (row < size && col < size)
        *reinterpret_cast<float4*>(to + row * size + col) = *reinterpret_cast<const float4*>(&x[row][col]);
    });
  }
};

}  // namespace tkpy::wkv5
