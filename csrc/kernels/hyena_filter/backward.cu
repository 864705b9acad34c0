// hyena_filter_backward: every gradient of the taps' network in one pass over the gradient of the taps.
//
//   g = dtaps exp(-|decay| t);  dW_out = g h_N^T, dh_N = W_out^T g;  with z = W_out h_N: ddecay = -sign(decay) (g z) t,
//   dt = -|decay|^T (g z).  da_n = f dh_n cos(f a_n);  dW_n = da_n h_{n-1}^T, db_n = da_n 1, dh_{n-1} = W_n^T da_n,
//   h_{-1} = x;  df = sum of dh_n cos(f a_n) a_n.  h_n = sin(f a_n) and a_n are formed again. Sums are over lags.
//
// data flow  a step is 64 lags for each CTA of a cluster (512 for 8). A CTA goes through the network (products of
//           network.cuh) and keeps its sums a_n: 32 floats a thread and layer, in shared memory, from the fourth layer on in
//           global. By rounds of 128 channels it reads g, forms z (where decay or times want it), adds to dh_N in registers,
//           and makes dW_out of the round; then goes back through the layers, and makes dW_n of each.
// outer     dW [128 x W] = r [128 x 64 lags] h^T: r is operand A out of the registers of the result, h [W x 64 lags] lies
//           in `straight`, lags along its rows. It is spread over a CTA's threads; the CTAs of a cluster add theirs up: each
//           owns some of the columns, gets those of all into `turned`, where B of the last product has done its work,
//           and adds the sum, cluster rank by cluster rank, to the gradient.
// turns     To a round's or layer's gradients the steps add in their order, each CTA after that of its rank in the step
//           before: progress[step][rank] in global memory says to how many that one has. Sums of rows (biases, frequency,
//           decay) go to the rank's share in the same turn; rows_norm_sum adds the ranks' up. So the order of every sum is
//           fixed by the shapes, whoever takes which step. A cluster takes the lowest step that none has: it waits only for
//           lower ones, which run or have ended, so however few clusters fit (an H100 holds 15 of eight, not 16), one goes on
// barriers  a step's number: cluster barriers before rank 0 writes it into every `turned` (all are done there), and after.
//           `turned` and `straight`: __syncthreads before put or turn, unless a turn has ended since the last read, and in
//           publish, after it. Each is of all 256 threads; threads that have no rows take part.
//           cluster 1: every CTA is done with `turned`; all arrive after the product, wait after the first outer one.
//           cluster 2: every part has come. The next put overwrites parts that only this CTA reads.
//           a turn: thread 0 waits for progress (acquire), __syncthreads, all add, __syncthreads, thread 0 passes it on
//           (release).
// precision network.cuh; sums over lags fp32
// limits    E, W <= 128; an infinite weight gives NaN (its lo part does)
// cost      flops 6 L W (E + N W + D), of which 2 L W D for decay and times; tensor cores do three times that. At 2,048 tf32
//           flops a cycle one of the three products of a round takes 3,072; adding parts up moves 64 KB to other SMs. Bytes
//           4 D L, weights and their gradients once; the gradients are read and written again by every step, in L2. For 8,192
//           lags, D = 768, W = 128 that is 26 MB, 8 us at 3.35 TB/s, and 19 Gflop, 39 us of the tensor cores at 494 Tflop/s.
//           A turn goes on in three trips to L2 (release, acquire, load) and some barriers, an assumed 2,000 clocks: of steps that
//           start together each ends that much after the one before, the last of 16 by an eighth of the 247,000 that the model
//           of time predicts for a step, most of them latency of arithmetic between products: 8 warps an SM.
//           224 KB of shared memory: one CTA an SM
#include "network.cuh"

namespace tkpy::hyena_filter {

// B of the outer products; column: lag.
struct Straight {
  st<tf32, kWidth, kLags> hi, lo;
};
struct Shared {
  Turned turned;
  Straight straight;
  float kept[kKept][kTile];
};
static_assert(sizeof(Shared) == kBackwardBytes && sizeof(Turned) == 4 * kWidth * kWidth);

// What a CTA is to its cluster, which 512 lags they have, how many gradients they have added to; and to how many the CTA
// of this rank in the step before, as far as thread 0 has seen.
struct Team {
  int rank, size, log, step, added;  // size: 2^log
  u32 seen;
  TK_DEVICE bool fresh() const { return step == 0; }
};

// The next step, for a cluster together. Numbers are given out as clusters come for them, so whoever has a lower one runs
// already: that others wait for it is safe, however few clusters fit.
TK_DEVICE void take_step(const Params& p, Shared& s, Team& team) {
  team.added = 0;
  team.seen = 0;
  if (!p.progress) {
    ++team.step;
    return;
  }
  uint4* number = reinterpret_cast<uint4*>(&s.turned);
  cluster_sync();
  if (team.rank == 0 && threadIdx.x == 0) {
    const u32 next = atomicAdd(p.progress, 1);
    for (int rank = 0; rank < team.size; ++rank)
      ptx::st_cluster_v4(ptx::mapa(ptx::shared_address(number), rank), make_uint4(next, 0, 0, 0));
  }
  cluster_sync();
  team.step = static_cast<int>(number->x);
}

// Between these a CTA adds to a gradient, when that of its rank in the step before has done so.
TK_DEVICE u32* progress(const Params& p, const Team& team, int step) { return p.progress + 1 + step * team.size + team.rank; }
TK_DEVICE void begin_turn(const Params& p, Team& team) {
  if (team.step == 0) return;
  if (threadIdx.x == 0)
    while (team.seen <= team.added) team.seen = ptx::ld_acquire_gpu(progress(p, team, team.step - 1));
  __syncthreads();
}
TK_DEVICE void end_turn(const Params& p, Team& team) {
  ++team.added;
  __syncthreads();
  if (p.progress && threadIdx.x == 0) pass_turn(progress(p, team, team.step));
}

// b = a^t.
TK_DEVICE void turn(Turned& b, const Straight& a) {
  const Places from(a.hi);
  const Places to(b.hi);
#pragma unroll
  for (int e = 0; e < Result::elements; ++e) {
    ptx::st_shared(to[e], ptx::ld_shared(from[e]));
    ptx::st_shared(to[e] + sizeof(b.hi), ptx::ld_shared(from[e] + sizeof(a.hi)));
  }
}

// The sums of layer n: every thread's own elements.
TK_DEVICE float* kept(const Params& p, Shared& s, int n) {
  if (n < kKept) return s.kept[n] + threadIdx.x;
  return p.deep + (1ll * blockIdx.x * (p.layers + 1 - kKept) + n - kKept) * kTile + threadIdx.x;
}
TK_DEVICE void keep(const Params& p, Shared& s, const Result& a, int n) {
  float* to = kept(p, s, n);
#pragma unroll
  for (int e = 0; e < Result::elements; ++e) to[kThreads * e] = a.x[0][e];
}
TK_DEVICE void recall(const Params& p, Shared& s, Result& a, int n) {
  const float* from = kept(p, s, n);
#pragma unroll
  for (int e = 0; e < Result::elements; ++e) a.x[0][e] = from[kThreads * e];
}

// Adds to the share of the CTAs of this rank.
TK_DEVICE void add_rows(float* share, int length, const Result::per_row& x, int first, const Team& team) {
#pragma unroll
  for (int k = 0; k < Result::per_row::slots; ++k) {
    const int i = first + Result::per_row::index(k);
    if (Result::per_row::owns() && i < length) share[i] = team.fresh() ? x.x[k] : share[i] + x.x[k];
  }
}

// Half of the columns of a sum to the CTAs that own them: elements 4 q .. 4 q + 3 to CTA q % size, each thread's beside
// those of its neighbours.
TK_DEVICE u32 slot(const Team& team, int half, int rank, int j) {
  return (half * 8 + (rank << 3 - team.log) + j) * kThreads + threadIdx.x;
}
TK_DEVICE void send(Shared& s, const Result& sum, int half, const Team& team) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const u32 to = ptx::shared_address(&s.turned) + 16 * slot(team, half, team.rank, q >> team.log);
    ptx::st_cluster_v4(ptx::mapa(to, q & team.size - 1),
                       make_uint4(__float_as_uint(sum.x[0][4 * q]), __float_as_uint(sum.x[0][4 * q + 1]),
                                  __float_as_uint(sum.x[0][4 * q + 2]), __float_as_uint(sum.x[0][4 * q + 3])));
  }
}

// The parts that came, added in the order of ranks, to the gradient, which is read ahead of any write.
TK_DEVICE void collect(const Shared& s, const view<float>& gradient, int row, const Team& team) {
  const float4* parts = reinterpret_cast<const float4*>(&s.turned);
  const int first = row + first_row() + Result::corner_row(), corner = Result::corner_col();
  float* const begin[2] = {gradient.at(first, corner), gradient.at(first + 8, corner)};
  for (int col = 8 * team.rank; col < gradient.cols; col += 8 * team.size) {
    float before[4] = {}, sum[4] = {};
    bool inside[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      inside[i] = first + Result::row_step(0, i) < gradient.rows && corner + col + Result::col_step(0, i) < gradient.cols;
      if (inside[i] && !team.fresh()) before[i] = begin[i / 2][col + i % 2];
    }
    for (int rank = 0; rank < team.size; ++rank) {
      const float4 part = parts[slot(team, col / kLags, rank, col % kLags / 8 >> team.log)];
      sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (inside[i]) begin[i / 2][col + i % 2] = before[i] + sum[i];
  }
}

// Parts of gradient [128 rows from `row` on x at most 128], r straight^t, to the CTAs that own them; 64 columns at a time.
TK_DEVICE void outer(Shared& s, const Result& r, const view<float>& gradient, int row, const Team& team) {
  const bool some = row + 64 * warpgroup_index() < gradient.rows;
  cluster_arrive();
#pragma unroll 1
  for (int half = 0; half == 0 || 64 * half < gradient.cols; ++half) {
    Result sum;
    zero(sum);
#pragma unroll
    for (int k = 0; some && k < kLags; k += 32) {
      Operand hi, lo;
      split(hi, lo, r, k);
      const auto b_hi = subtile<64, 32>(s.straight.hi, 64 * half, k), b_lo = subtile<64, 32>(s.straight.lo, 64 * half, k);
      mma_fence();
      mma_ABt(sum, hi, b_hi);
      mma_ABt(sum, hi, b_lo);
      mma_ABt(sum, lo, b_hi);
      mma_commit();
      mma_wait(sum);
    }
    if (half == 0) cluster_wait();
    send(s, sum, half, team);
  }
  cluster_sync();
}

// The layers again: h_N in turned and straight.
TK_DEVICE void forward(const Params& p, Shared& s, int lag) {
  Result d;
  load_features(p, d, lag);
  for (int n = 0; n <= p.layers; ++n) {
    __syncthreads();
    put(s.turned, d);
    publish();
    zero(d);
    product(d, s.turned, layer(p, n), 0, 0, n == 0 ? p.features_n : p.width);
    Result::per_row b;
    load(b, bias(p, n), first_row());
    add(d, d, b);
    keep(p, s, d, n);
    sine(p, d);
  }
  __syncthreads();
  put(s.turned, d);
  put(s.straight, d);
  publish();
}

// What decay and times get of a round: `flow`, z when called, becomes g z.
TK_DEVICE void window_gradients(const Params& p, Result& flow, Result::per_row& ddecay, Result::per_col& dtime, const Result& g,
                                const Window& window, int channel) {
  Result part;
  mul(flow, flow, g);
  mul(part, flow, window.rate);
  col_sum(dtime, part, dtime);
  if (!p.ddecay) return;
  Result::per_row sign;
  mul(part, flow, window.time);
  row_sum(ddecay, part);
  load(sign, vec_view<const float>{p.decay, p.channels}, channel + first_row());
  map(ddecay, ddecay, sign, [](float x, float decay) { return decay > 0.0f ? -x : decay < 0.0f ? x : 0.0f * x; });
}

// Channels in rounds; dh: of the last layer's sines.
TK_DEVICE void channels(const Params& p, Shared& s, Result& dh, Result::per_col& dtime, int lag, Team& team) {
  const view<const float> dtaps{p.taps, p.channels, p.lags, p.lags};
  const view<float> doutput{p.doutput, p.channels, p.width, p.width};
  Result g, next;
  load(next, dtaps, first_row(), lag);
  for (int channel = 0; channel < p.channels; channel += kWidth) {
    g = next;
    const Window window(p, channel, lag);
    window.apply(g);
    Result::per_row ddecay;
    if (p.dtimes || p.ddecay) {
      if (channel > 0) {
        turn(s.turned, s.straight);
        publish();
      }
      Result z;
      zero(z);
      product(z, s.turned, output(p), channel, 0, p.width);
      window_gradients(p, z, ddecay, dtime, g, window, channel);
    }
    load(next, dtaps, channel + kWidth + first_row(), lag);  // while the tensor cores have this round
    if (p.dvectors) {
      __syncthreads();
      put(s.turned, g);
      publish();
      product(dh, s.turned, output(p).transposed(), 0, channel, min(kWidth, p.channels - channel));
    }
    if (p.doutput) outer(s, g, doutput, channel, team);
    begin_turn(p, team);
    if (p.ddecay) add_rows(p.ddecay + 1ll * team.rank * p.channels, p.channels, ddecay, channel + first_row(), team);
    if (p.doutput) collect(s, doutput, channel, team);
    end_turn(p, team);
  }
}

// d, the gradient of layer n's sines, becomes that of its sums, whose rows add up to the bias's.
TK_DEVICE void through_sine(const Params& p, Shared& s, Result& d, Result::per_row& dbias, Result::per_row& dfrequency, int n) {
  Result a, slope;
  Result::per_row frequency, sum;
  load(frequency, vec_view<const float>{p.frequency, p.width}, first_row());
  recall(p, s, a, n);
  mul(slope, a, frequency);
  map(slope, slope, [](float phase) { return circular(phase, 1); });
  mul(d, d, slope);
  mul(a, a, d);
  row_sum(sum, a);
  add(dfrequency, dfrequency, sum);
  mul(d, d, frequency);
  row_sum(dbias, d);
}

// Back through the layers.
TK_DEVICE void layers(const Params& p, Shared& s, Result& d, int lag, Team& team) {
  float* dvectors = p.dvectors + 1ll * team.rank * (p.layers + 2) * p.width;
  Result::per_row dbias, dfrequency;
  zero(dfrequency);
  for (int n = p.layers; n >= 0; --n) {
    through_sine(p, s, d, dbias, dfrequency, n);
    Result h;
    if (n > 0) {
      recall(p, s, h, n - 1);
      sine(p, h);
    } else {
      load_features(p, h, lag);
    }
    put(s.turned, d);
    put(s.straight, h);
    publish();
    Result before;
    zero(before);
    if (n > 0 || p.dfeatures) product(before, s.turned, layer(p, n).transposed(), 0, 0, p.width);
    const int cols = n > 0 ? p.width : p.features_n;
    const view<float> dweights{n == 0 ? p.dinput : p.dhidden ? p.dhidden + (n - 1ll) * p.width * p.width : nullptr,
                               p.width, cols, cols};
    if (dweights.data) outer(s, d, dweights, 0, team);
    begin_turn(p, team);
    add_rows(dvectors + n * p.width, p.width, dbias, first_row(), team);
    if (n == 0) add_rows(dvectors + (p.layers + 1ll) * p.width, p.width, dfrequency, first_row(), team);
    if (dweights.data) collect(s, dweights, 0, team);
    end_turn(p, team);
    d = before;
  }
  if (p.dfeatures) store(view<float>{p.dfeatures, p.features_n, p.lags, 1, p.features_n}, d, first_row(), lag);
}

// Over the warps, each with 16 of the rows.
TK_DEVICE void store_times(const Params& p, Shared& s, const Result::per_col& dtime, int lag) {
  float *parts = reinterpret_cast<float*>(&s.turned), *own = parts + kLags * warp_index();
  __syncthreads();
#pragma unroll
  for (int k = 0; k < Result::per_col::slots; ++k)
    if (Result::per_col::owns()) own[Result::per_col::index(k)] = dtime.x[k];
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kLags || lag + i >= p.lags) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += parts[kLags * w + i];
  p.dtimes[lag + i] = -sum;
}

TK_DEVICE void backward(const Params& p, Shared& s) {
  Team team{cluster_rank(), p.team, 31 - __clz(p.team), -1, 0, 0};
  for (take_step(p, s, team); 1ll * team.step * team.size * kLags < p.lags; take_step(p, s, team)) {
    const int lag = (team.step * team.size + team.rank) * kLags;
    forward(p, s, lag);
    Result d;
    Result::per_col dtime;
    zero(d);
    zero(dtime);
    channels(p, s, d, dtime, lag, team);
    if (p.dvectors) layers(p, s, d, lag, team);
    if (p.dtimes) store_times(p, s, dtime, lag);
  }
}

}  // namespace tkpy::hyena_filter

#define TKPY_HYENA_FILTER(NAME)                                                              \
  extern "C" __global__ void __launch_bounds__(tkpy::hyena_filter::kThreads, 1)              \
      hyena_filter_##NAME(const __grid_constant__ tkpy::hyena_filter::Params p) {            \
    extern __shared__ __align__(1024) unsigned char memory[];                                \
    tkpy::hyena_filter::NAME(p, *reinterpret_cast<tkpy::hyena_filter::Shared*>(memory));     \
  }
TKPY_HYENA_FILTER(backward)
