// time_mix_step: one token of RWKV-5's time mix before its output projection, per head, with d = exp(-exp(w))
//   x_m = mix[m] x + (1 - mix[m]) last,  m = r k v g;   r k v g = W_m x_m
//   y = r (S + diag(u) k v^T),  S' = diag(d) S + k v^T,  z = (weight (y - mean(y)) / sqrt(var(y) + eps) + bias) silu(g)
// in   x last [B,C] bf16 or fp16 | mix [4,C], weight bias [H,N] f32 or x's type | W_m [H N,C] x's type | w u [H,N] f32 |
//      S [B,H,N,N] f32      out  z [B,H,N] x's type, S' [B,H,N,N] f32
// grid  a cluster of up to 8 CTAs a head, as many as fill the device: each has a slice of C, and a stretch of S's rows
// data  weights: global -> registers, 16 bytes a lane: eight neighbouring channels of row lane / 4, and of that eight below,
//         are operand A of two mma.sync m16n8k16 under a permutation of the channels, in which the mixed rows are read as
//         well. 16 such loads a lane are under way at any time, 64 KB an SM, the first before anything else
//       S: global -> registers, 8 times 16 bytes a thread, asked for before the products, then again as each is used
//       x, last: mixed in float, rounded to x's type -> mixed [4][B][chunk] in shared memory, operand B: B rows of its 8 or 16
//       sums [4][B][N] of a CTA's slice -> shared memory, read by all CTAs of the cluster: r k of their rows of S, all of v
//       y: over a thread's rows, lanes (shuffles), warps (shared memory), CTAs (of the cluster): row b by a warp of CTA
//         b % ranks, which norms and gates
// warps  8: two for each projection, each with half of the head's rows of it
// barriers  __syncthreads around each chunk's mixed rows; where r k v are there; where the warps' shares of y are there
//       cluster 1: all sums are there. cluster 2: all y are there. cluster 3: nobody reads here any more
// precision  products of what is rounded to x's type, sums and all else fp32: r k v g are not rounded; the variance about the
//       mean; z rounded once. Sums in an order that the number of CTAs fixes
// limits  N <= 128, B <= 16; rows of C % 8 != 0 (states: N % 4 != 0) or at odd addresses move element by element
// cost  bytes 8 H N C of weights and 8 B H N^2 of states, once: 33.5 MB and 1 MB at C = 2,048, H = 32, B = 1, 10 us at 3.35
//       TB/s; x, last and mix once a head out of L2. flops 8 B H N C, of which tensor cores do 8 / B (16 / B) times that:
//       8 x 512 flops a clock and SM, for the 15 bytes of weights that come in one, are enough for 34 columns
#include "kernels/rows/rows.cuh"
#include "params.h"
#include "tk/ptx_micro.cuh"

namespace tkpy::time_mix_step {

using namespace tk;

template <class T, int W>
struct TimeMix {
  static constexpr int kTiles = W / 32;             // of 16 rows of weights in a warp
  static constexpr int kAhead = 8 / kTiles;         // steps of 32 channels that are under way
  static constexpr int kQuads = W / 4, kStride = kThreads / kQuads;  // rows of S that a CTA has at once
  static constexpr int kStates = 8;                 // pieces of S that a thread has under way
  static constexpr int kEach = W / 32;              // channels of y in a lane at the end

  struct Sums {
    alignas(16) float of[kProjections][kMostBatch][pitch_of(W)];
  };
  struct After {  // in the place of the mixed rows
    float r[kMostBatch][W], k[kMostBatch][W], v[kMostBatch][W], y[kMostBatch][W];
    float part[kMostBatch][kWarps][W];
    float decay[W], bonus[W];
  };
  static_assert(sizeof(Sums) == sums_bytes(W) && sizeof(After) == after_bytes(W), "the launcher asks for so many bytes");

  struct Weights {  // rows g and g + 8 of each tile
    uint4 of[kTiles][2];
  };
  using Totals = float[kTiles][kMostBatch / 8][4];
  struct State {
    float x[4];
  };

  const Params& p;
  Sums& sums;
  unsigned char* const memory;  // the mixed rows, then After
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index(), lane = lane_index();
  const int rank = static_cast<int>(ptx::cluster_rank()), head = static_cast<int>(blockIdx.x) / p.ranks;
  // The slice of the channels.
  const int begin = min(rank * p.slice, p.channels), end = min(begin + p.slice, p.channels);
  // This warp's rows of weights: of one projection, `first` the one of this lane.
  const int projection = warp / 2, first = warp % 2 * (W / 2) + lane / 4;
  const T* const weights = static_cast<const T*>(p.weights[projection]) + (1ll * head * p.size + first) * p.pitch[projection];
  // The stretch of S's rows, in passes of kStride rows; the columns of this thread, and its first row of the stretch.
  const int rows = (p.size + p.ranks - 1) / p.ranks, row0 = rank * rows, passes = (rows + kStride - 1) / kStride;
  const int col = thread % kQuads * 4, row = thread / kQuads;

  TK_DEVICE After& after() const { return *reinterpret_cast<After*>(memory); }
  TK_DEVICE static float shared(const float& x) { return ptx::ld_shared(ptx::shared_address(&x)); }
  TK_DEVICE int pitch() const { return p.chunk + kSkew; }
  TK_DEVICE u32 mixed(int of, int b, int channel) const {
    return ptx::shared_address(reinterpret_cast<T*>(memory) + (of * p.batch + b) * pitch() + channel);
  }

  // Eight neighbours of a row; 0 past the end of the slice.
  TK_DEVICE uint4 eight(const T* from, int channel) const {
    if (channel >= end) return make_uint4(0, 0, 0, 0);
    if (p.whole) return ptx::ld_global_v4(from + channel);
    const auto* bits = reinterpret_cast<const unsigned short*>(from) + channel;
    u32 word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      word[i] = channel + 2 * i < end ? bits[2 * i] : 0u;
      word[i] |= channel + 2 * i + 1 < end ? static_cast<u32>(bits[2 * i + 1]) << 16 : 0u;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
  TK_DEVICE static void widen(float (&y)[8], const uint4& x) {
    const u32 word[] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) y[2 * i] = ptx::low<T>(word[i]), y[2 * i + 1] = ptx::high<T>(word[i]);
  }

  // Step i of the slice: 32 channels.
  TK_DEVICE void fetch(Weights& a, int i) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int down = 16 * m + 8 * half;
        a.of[m][half] = first + down < p.size ? eight(weights + down * p.pitch[projection], begin + 32 * i + lane % 4 * 8)
                                              : make_uint4(0, 0, 0, 0);
      }
  }
  // Step i of the chunk.
  TK_DEVICE void multiply(Totals& total, const Weights& a, int i) const {
#pragma unroll
    for (int n = 0; n < kMostBatch / 8; ++n) {
      if (8 * n >= p.batch) continue;
      const int b = 8 * n + lane / 4;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (b < p.batch) x = ptx::ld_shared_v4(mixed(projection, b, 32 * i + lane % 4 * 8));
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const uint4 &upper = a.of[m][0], &lower = a.of[m][1];
        ptx::mma<ptx::mma_form<float, T, T>>(total[m][n], {upper.x, lower.x, upper.y, lower.y}, x.x, x.y);
        ptx::mma<ptx::mma_form<float, T, T>>(total[m][n], {upper.z, lower.z, upper.w, lower.w}, x.z, x.w);
      }
    }
  }

  // Eight mixes, from element `at` of them on.
  TK_DEVICE void mixes(float (&y)[8], int of, int channel) const {
    const long long at = 1ll * of * p.channels;
    if (p.whole && p.mix.kind == rows::kF32) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(p.mix.data) + at + channel + i);
        y[i] = four.x, y[i + 1] = four.y, y[i + 2] = four.z, y[i + 3] = four.w;
      }
    } else if (p.mix.kind == rows::kF32) {
      rows::parameters<T>(y, {static_cast<const float*>(p.mix.data) + at, p.mix.kind}, channel, end, 0.0f);
    } else {
      widen(y, eight(static_cast<const T*>(p.mix.data) + at, channel));
    }
  }
  // `span` channels of the slice from `from` on, mixed; zeros past its end. Threads have eight channels of some rows.
  TK_DEVICE void mix(int from, int span) const {
    const int pieces = span / 8, teams = max(1, min(p.batch, kThreads / pieces));
    for (int i = thread; i < teams * pieces; i += kThreads) {
      const int piece = i % pieces, channel = begin + from + 8 * piece;
      float share[kProjections][8];
#pragma unroll
      for (int of = 0; of < kProjections; ++of)
        if (channel < end && of < p.projections) mixes(share[of], of, channel);
      for (int b = i / pieces; b < p.batch; b += teams) {
        float now[8], before[8];
        widen(now, eight(static_cast<const T*>(p.x) + 1ll * b * p.channels, channel));
        widen(before, p.last ? eight(static_cast<const T*>(p.last) + 1ll * b * p.channels, channel) : make_uint4(0, 0, 0, 0));
#pragma unroll
        for (int of = 0; of < kProjections; ++of) {
          if (of >= p.projections) continue;
          float y[8];
#pragma unroll
          for (int e = 0; e < 8; ++e)
            y[e] = channel + e < end ? fmaf(share[of][e], now[e], (1.0f - share[of][e]) * before[e]) : 0.0f;
          ptx::st_shared_v4(mixed(of, b, 8 * piece), make_uint4(ptx::pack<T>(y[0], y[1]), ptx::pack<T>(y[2], y[3]),
                                                                ptx::pack<T>(y[4], y[5]), ptx::pack<T>(y[6], y[7])));
        }
      }
    }
  }

  // The slice's products, from the first steps under way on, to `sums`.
  TK_DEVICE void project(Weights (&under_way)[kAhead]) const {
    Totals total = {};
    for (int from = 0; from < end - begin; from += p.chunk) {
      const int span = min(p.chunk, (end - begin - from + 32 * kAhead - 1) / (32 * kAhead) * (32 * kAhead));
      if (from > 0) __syncthreads();
      mix(from, span);
      __syncthreads();
      if (projection >= p.projections) continue;
      for (int i = 0; i < span / 32; i += kAhead)
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          multiply(total, under_way[j], i + j);
          fetch(under_way[j], from / 32 + i + j + kAhead);
        }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kMostBatch / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int b = 8 * n + lane % 4 * 2 + e % 2;
          if (b < p.batch) sums.of[projection][b][first + 16 * m + e / 2 * 8] = total[m][n][e];
        }
  }

  // What CTAs have at the same address, added in their order.
  TK_DEVICE float of_all(const float& here) const {
    const u32 address = ptx::shared_address(&here);
    float part[kMostCluster], sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kMostCluster; ++r)
      part[r] = r < p.ranks ? __uint_as_float(ptx::load_cluster_u32(ptx::mapa(address, static_cast<u32>(r)))) : 0.0f;
#pragma unroll
    for (int r = 0; r < kMostCluster; ++r) sum += part[r];
    return sum;
  }
  // r and k of this CTA's rows of S, zeros below them; all of v; decay and bonus.
  TK_DEVICE void collect() const {
    After& s = after();
    for (int i = thread; i < 3 * p.batch * W; i += kThreads) {
      const int n = i % W, of = i / W % 3, b = i / W / 3;
      if (of == 2)
        s.v[b][n] = of_all(sums.of[2][b][n]);
      else
        (of == 0 ? s.r : s.k)[b][n] = n < rows && row0 + n < p.size ? of_all(sums.of[of][b][row0 + n]) : 0.0f;
    }
    if (thread >= W) return;
    const bool some = thread < rows && row0 + thread < p.size;
    const long long at = 1ll * head * p.size + row0 + thread;
    s.decay[thread] = some ? expf(-expf(p.w[at])) : 0.0f;
    s.bonus[thread] = some ? p.u[at] : 0.0f;
  }

  // Piece i of this thread's: pass i % passes of row i / passes of the batch.
  TK_DEVICE bool inside(int i) const {
    const int at = row + i % passes * kStride;
    return i < p.batch * passes && at < rows && row0 + at < p.size && col < p.size;
  }
  TK_DEVICE long long place(int i) const {
    return ((1ll * (i / passes) * p.heads + head) * p.size + row0 + row + i % passes * kStride) * p.size + col;
  }
  TK_DEVICE void fetch(State& state, int i) const {
    state = {};
    if (!p.initial || !inside(i)) return;
    const float* from = p.initial + place(i);
    if (p.whole_states) {
      const uint4 four = ptx::ld_global_v4(from);
      state = {__uint_as_float(four.x), __uint_as_float(four.y), __uint_as_float(four.z), __uint_as_float(four.w)};
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (col + j < p.size) state.x[j] = from[j];
    }
  }
  TK_DEVICE void leave(const State& state, int i) const {
    if (!inside(i)) return;
    float* to = p.final + place(i);
    if (p.whole_states) {
      ptx::st_global_v4(to, make_uint4(__float_as_uint(state.x[0]), __float_as_uint(state.x[1]), __float_as_uint(state.x[2]),
                                       __float_as_uint(state.x[3])));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (col + j < p.size) to[j] = state.x[j];
    }
  }

  // S' of piece i, whose share of y is added.
  TK_DEVICE void recur(float (&y)[4], State& state, int i) const {
    const After& s = after();
    const int b = i / passes, at = row + i % passes * kStride;
    const float r = shared(s.r[b][at]), k = shared(s.k[b][at]), decay = shared(s.decay[at]), bonus = r * shared(s.bonus[at]) * k;
    const uint4 four = ptx::ld_shared_v4(ptx::shared_address(&s.v[b][col]));
    const u32 v[] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      y[j] = fmaf(r, state.x[j], fmaf(bonus, __uint_as_float(v[j]), y[j]));
      state.x[j] = fmaf(decay, state.x[j], k * __uint_as_float(v[j]));
    }
    leave(state, i);
  }
  // Shares of y: over the lanes that have the same columns, one of which leaves the sum.
  TK_DEVICE void share(float (&y)[4], int b) const {
#pragma unroll
    for (int step = kQuads; step < 32; step *= 2)
#pragma unroll
      for (float& each : y) each += __shfl_xor_sync(0xffffffffu, each, step);
    if (lane < kQuads)
      ptx::st_shared_v4(ptx::shared_address(&after().part[b][warp][col]),
                        make_uint4(__float_as_uint(y[0]), __float_as_uint(y[1]), __float_as_uint(y[2]), __float_as_uint(y[3])));
#pragma unroll
    for (float& each : y) each = 0.0f;
  }
  TK_DEVICE void recurrence(State (&under_way)[kStates]) const {
    float y[4] = {};
    for (int i = 0; i < p.batch * passes; i += kStates)
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        if (i + j >= p.batch * passes) continue;
        recur(y, under_way[j], i + j);
        if ((i + j) % passes == passes - 1) share(y, (i + j) / passes);
        fetch(under_way[j], i + j + kStates);
      }
  }
  TK_DEVICE void join_warps() const {
    After& s = after();
    for (int i = thread; i < p.batch * W; i += kThreads) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += s.part[i / W][w][i % W];
      s.y[i / W][i % W] = sum;
    }
  }

  TK_DEVICE static float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
  }
  TK_DEVICE rows::Vector of_head(const rows::Vector& x) const {
    const long long bytes = 1ll * head * p.size * (x.kind == rows::kF32 ? 4 : static_cast<int>(sizeof(T)));
    return {x.data ? static_cast<const char*>(x.data) + bytes : nullptr, x.kind};
  }
  TK_DEVICE float parameter(const rows::Vector& x, int n, float missing) const {
    float y[1];
    rows::parameters<T>(y, of_head(x), n, p.size, missing);
    return y[0];
  }
  // A warp: row b of the batch, every 32nd channel a lane's.
  TK_DEVICE void finish(int b) const {
    float y[kEach], gate[kEach], weight[kEach], bias[kEach], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int n = lane + 32 * e;
      weight[e] = parameter(p.weight, n, 1.0f);
      bias[e] = parameter(p.bias, n, 0.0f);
      y[e] = of_all(after().y[b][n]);
      gate[e] = p.projections == kProjections ? fn::silu(of_all(sums.of[3][b][n])) : 1.0f;
      sum += y[e];
    }
    const float mean = warp_sum(sum) / static_cast<float>(p.size);
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      y[e] = lane + 32 * e < p.size ? y[e] - mean : 0.0f;
      squares = fmaf(y[e], y[e], squares);
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.size) + p.eps);
#pragma unroll
    for (int e = 0; e < kEach; ++e)
      if (lane + 32 * e < p.size)
        write(static_cast<T*>(p.z) + (1ll * b * p.heads + head) * p.size + lane + 32 * e,
              fmaf(y[e] * inverse, weight[e], bias[e]) * gate[e]);
    __syncwarp();  // lanes past the head have been ahead, and cluster barriers are of whole warps
  }

  TK_DEVICE void run() const {
    Weights weights_under_way[kAhead];
    State states_under_way[kStates];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (projection < p.projections) fetch(weights_under_way[j], j);
#pragma unroll
    for (int j = 0; j < kStates; ++j) fetch(states_under_way[j], j);
    project(weights_under_way);
    cluster_sync();
    collect();
    __syncthreads();
    recurrence(states_under_way);
    __syncthreads();
    join_warps();
    cluster_sync();
    for (int b = rank + warp * p.ranks; b < p.batch; b += kWarps * p.ranks) finish(b);
    cluster_sync();
  }
};

template <class T, int W>
TK_DEVICE void time_mix_step(const Params& p) {
  extern __shared__ __align__(128) unsigned char memory[];
  TimeMix<T, W>{p, *reinterpret_cast<typename TimeMix<T, W>::Sums*>(memory), memory + sizeof(typename TimeMix<T, W>::Sums)}.run();
}

}  // namespace tkpy::time_mix_step

#define TKPY_TIME_MIX_STEP(T, W)                                                  \
  extern "C" __global__ void __launch_bounds__(tkpy::time_mix_step::kThreads, 1)  \
      time_mix_step_##T##_##W(const __grid_constant__ tkpy::time_mix_step::Params p) { \
    tkpy::time_mix_step::time_mix_step<tk::T, W>(p);                              \
  }
#define TKPY_TIME_MIX_STEPS(T) TKPY_TIME_MIX_STEP(T, 32) TKPY_TIME_MIX_STEP(T, 64) TKPY_TIME_MIX_STEP(T, 128)
TKPY_TIME_MIX_STEPS(bf16)
TKPY_TIME_MIX_STEPS(fp16)
