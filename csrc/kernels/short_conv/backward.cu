// short_conv backward: gz = dy act'(z),  dx[c,t] = sum_l w[c,K-1-l] gz[c,t+l],  dw[c,K-1-l] = sum gz[c,t] x[c,t-l],  db = sum gz
// in   x, w, bias, initial state as forward | dy [B,C,L], times beside each other | gradient of the final state
// out  dx [B,C,L], that of the initial state (dx of the K-1 samples before the first), both contiguous; shares of dw and db
// kernels  short_conv_backward_<type>_times, .._channels    by the layout of x, as forward
// grid  as forward, but a team goes through its run from the end: gz of what comes after its last times is the neighbour's,
//       which has it in registers (of the step before), so z is formed once. Where a run ends within a sequence, gz of the
//       K - 1 samples after it is formed again. Sums of dw and db are each thread's own until the run is done; they lie in
//       registers or, in the kernels that turn x, in shared memory. rows_norm_sum adds the shares of runs: no atomics
// precision  fp32; dx rounded once      limits  as forward
// cost  bytes x + dy + dx, each once, 2 (K - 1) samples more a run, 4 (K + 1) bytes a channel and run; 6 K flops an element
#include "turned.cuh"

namespace tkpy::short_conv {

template <class T>
struct Backward : Part<T> {
  using Part<T>::p, Part<T>::start, Part<T>::stop, Part<T>::from, Part<T>::to, Part<T>::carried;
  static constexpr int kSteps = 2, kSums = kMostTaps + 1, kLater = kMostTaps - 1;
  int reach;  // end of what the part's gradients need of x and dy

  TK_DEVICE explicit Backward(const Params& params) : Part<T>(params), reach(0) {}

  TK_DEVICE bool enter(int number) {
    if (!Part<T>::enter(number)) return false;
    reach = min(stop, to + carried);
    if (p.dinitial != nullptr) this->include_state();
    return true;
  }

  // gz from dy, 0 where that is: outside the sequence.
  TK_DEVICE void through_activation(float (&g)[kTimes], const float (&x)[2 * kTimes], const Taps& taps) const {
    if (!p.silu) return;
    float z[kTimes];
    convolve(z, x, taps, p.taps);
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      const float gate = fn::sigmoid(z[i]);
      g[i] *= gate * fmaf(z[i], 1.0f - gate, 1.0f);
    }
  }
  // Products of the run's own times only.
  TK_DEVICE void add(float (&sum)[kSums], const float (&g)[kTimes], const float (&x)[2 * kTimes], int t) const {
    const int lo = max(from, start);
    if (p.dweight == nullptr || t >= to || t + kTimes <= lo) return;
    if (t >= lo && t + kTimes <= to)
      add_products(sum, g, x, [](int) { return true; });
    else
      add_products(sum, g, x, [&](int i) { return t + i >= lo && t + i < to; });
  }
  template <class F>
  TK_DEVICE void add_products(float (&sum)[kSums], const float (&g)[kTimes], const float (&x)[2 * kTimes], F counts) const {
#pragma unroll
    for (int i = 0; i < kTimes; ++i)
      if (counts(i)) sum[kMostTaps] += g[i];
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) {
      if (lag >= p.taps) break;
#pragma unroll
      for (int i = 0; i < kTimes; ++i)
        if (counts(i)) sum[lag] = fmaf(g[i], x[kTimes + i - lag], sum[lag]);
    }
  }
  TK_DEVICE void input_gradient(float (&d)[kTimes], const float (&g)[kTimes], const float (&later)[kLater], const Taps& taps) const {
#pragma unroll
    for (int i = 0; i < kTimes; ++i) d[i] = 0.0f;
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) {
      if (lag >= p.taps) break;
#pragma unroll
      for (int i = 0; i < kTimes; ++i) d[i] = fmaf(taps.w[lag], i + lag < kTimes ? g[i + lag] : later[i + lag - kTimes], d[i]);
    }
  }
  // The final state is the last inputs as they are.
  TK_DEVICE void add_final(float (&d)[kTimes], int t, int channel) const {
    const int kept = stop - carried;
    if (p.dfinal.data == nullptr || t >= stop || t + kTimes <= kept) return;
    const T* state = row_of<T>(p.dfinal, this->sequence, channel);
#pragma unroll
    for (int i = 0; i < kTimes; ++i)
      if (t + i >= kept && t + i < stop) d[i] += read(state + (t + i - kept) * p.dfinal.time);
  }
  TK_DEVICE void write(const float (&d)[kTimes], int t, int channel) const {
    Chunk<T> out;
    out.put(d);
    put(out, row_of<T>(p.dx, this->batch, channel), t, max(from, start), to, true);
    const int before = start - carried;
    if (p.dinitial != nullptr && from < start && t < start)
      put(out, this->state_row(p.dinitial, channel, before), t, before, start, false);
  }

  // One step of a team. `old`: the thread's own gz of the step before, which is later in time.
  TK_DEVICE void step(const Team& team, const Taps& taps, const Chunk<T>& before, const Chunk<T>& here, const Chunk<T>& dy,
                      float (&sum)[kSums], float (&old)[kLater], int t, int channel) const {
    float x[2 * kTimes], g[kTimes], later[kLater], d[kTimes];
    window(x, before, here);
    dy.get(g);
    through_activation(g, x, taps);
#pragma unroll
    for (int k = 0; k < kLater; ++k) {
      later[k] = old[k];
      if (k < carried) later[k] = team.after(team.time == 0 ? old[k] : g[k]);
      old[k] = g[k];
    }
    if (channel >= p.channels) return;
    add(sum, g, x, t);
    input_gradient(d, g, later, taps);
    add_final(d, t, channel);
    write(d, t, channel);
  }
  TK_DEVICE void leave(const Team& team, const float (&sum)[kSums], int channel) const {
    if (p.dweight == nullptr) return;
    const long long at = (static_cast<long long>(this->batch) * p.runs + this->run) * p.channels + channel;
    const bool writes = team.time == 0 && channel < p.channels;
#pragma unroll
    for (int lag = 0; lag < kMostTaps; ++lag) {
      if (lag >= p.taps) break;
      const float total = team.sum(sum[lag]);
      if (writes) p.dweight[at * p.taps + p.taps - 1 - lag] = total;
    }
    const float total = team.sum(sum[kMostTaps]);
    if (writes) p.dbias[at] = total;
  }

  TK_DEVICE void walk_times(const Team& team, const Taps& taps, float (&sum)[kSums], int channel) const {
    const bool real = channel < p.channels;
    const T *x = row_of<T>(p.x, this->batch, channel), *dy = row_of<T>(p.y, this->batch, channel);
    const int base = from - this->phase(row_of<T>(p.dx, this->batch, channel)), hi = real ? reach : start;
    const int span = p.lanes * kTimes, steps = __reduce_max_sync(0xffffffffu, (to - base + span - 1) / span);
    const int first = to < stop ? steps : steps - 1;  // what is after the run, too
    const bool x_aligned = aligned_at(x + base), dy_aligned = aligned_at(dy + base);
    const auto get = [&](Chunk<T>& c, int step) {
      const int t = base + step * span + team.time * kTimes;
      const bool needed = step >= 0 || (step == -1 && team.time + 1 == team.count);
      fetch(c, x, t, start, needed ? hi : start, x_aligned);
      this->add_state(c, t, channel);
    };
    float old[kLater] = {};
    Chunk<T> here, next_x[kSteps] = {}, next_dy[kSteps] = {};
    get(here, first);
    for (int last = first + kSteps; last >= 0; last -= kSteps) {
      Chunk<T> earlier[kSteps], gradient[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        earlier[i] = next_x[i];
        gradient[i] = next_dy[i];
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {  // under way while these are worked on
        const int at = last - kSteps - i;
        get(next_x[i], at - 1);
        fetch(next_dy[i], dy, base + at * span + team.time * kTimes, start, at >= 0 ? hi : start, dy_aligned);
      }
      if (last > first) continue;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (last - i < 0) continue;
        Chunk<T> before;
#pragma unroll
        for (int w = 0; w < here.words; ++w)
          before.word[w] = team.before(team.time + 1 == team.count ? earlier[i].word[w] : here.word[w]);
        step(team, taps, before, here, gradient[i], sum, old, base + (last - i) * span + team.time * kTimes, channel);
        here = earlier[i];
      }
    }
  }
  TK_DEVICE void run_times() {
    const Team team(1, p.lanes);
    const int channel = this->group * (32 / p.lanes) + static_cast<int>(lane_index()) / p.lanes;
    Taps taps;
    float sum[kSums] = {};
    load_taps<T>(taps, p, channel);
    for (int number = this->first_sequence(); enter(number); ++number)
      if (from < to) walk_times(team, taps, sum, channel);
    if (this->batch < p.batches) leave(team, sum, channel);
  }

  TK_DEVICE void row(const Turned<T>& turned, const Team& team, const Chunk<T>& dy, int i, int chunk, int t, int phase,
                     bool last) const {
    Taps taps;
    Chunk<T> before, here;
    float sum[kSums] = {}, old[kLater] = {};
    turned.get_taps(taps, i);
    turned.get_window(before, here, i, chunk, phase, p.shifted);
    float* own = turned.row(i) + kMostTaps + 1;
    if (team.time == 0 && !last)
#pragma unroll
      for (int k = 0; k < kLater; ++k) old[k] = own[k];
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (k < p.taps || k == kMostTaps) sum[k] = *turned.sum(min(k, p.taps), i);
    step(team, taps, before, here, dy, sum, old, t, turned.channel(i));
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (k < p.taps || k == kMostTaps) *turned.sum(min(k, p.taps), i) = sum[k];
    if (team.time == 0)
#pragma unroll
      for (int k = 0; k < kLater; ++k) own[k] = old[k];
  }
  TK_DEVICE void leave_rows(const Turned<T>& turned, const Team& team) const {
#pragma unroll 1
    for (int i = 0; i < turned.R; ++i) {
      float sum[kSums] = {};
#pragma unroll
      for (int k = 0; k < kSums; ++k)
        if (k < p.taps || k == kMostTaps) sum[k] = *turned.sum(min(k, p.taps), i);
      leave(team, sum, turned.channel(i));
    }
  }
  TK_DEVICE void walk_channels(Turned<T>& turned, const Team& team) const {
    const int blocks = turned.blocks(), first = to < stop ? blocks : blocks - 1;  // what is after the run, too
    turned.send(first, reach);
    turned.receive(first);
    turned.send(first - 1, reach);
    for (int block = first; block >= 0; --block) {
      turned.receive(block - 1);
      if (block > 0) turned.send(block - 2, reach);  // under way while this one is worked on
      Chunk<T> next = {};
#pragma unroll 1
      for (int i = -1; i < turned.R; ++i) {
        const Chunk<T> dy = next;
        const auto place = [&](int at) {
          return this->phase(row_of<T>(p.dx, this->batch, turned.channel(at)));
        };
        const int chunk = block * kTimeLanes + turned.time, t = from + chunk * kTimes;
        if (i + 1 < turned.R) {
          const int channel = turned.channel(i + 1), at = t - place(i + 1);
          const T* from_row = row_of<T>(p.y, this->batch, channel);
          fetch(next, from_row, at, start, channel < p.channels ? reach : start, aligned_at(from_row + at));
        }
        if (i >= 0) row(turned, team, dy, i, chunk, t - place(i), place(i), block == first);
      }
      __syncwarp();  // before its slots are written again
    }
  }
  TK_DEVICE void run_channels(unsigned char* shared) {
    const Team team(kTurnLanes, 32);
    Turned<T> turned(*this, shared + threadIdx.x / 32 * p.warp_bytes);
    turned.load_parameters();
    for (int k = 0; k < turned.R * (p.taps + 1); ++k) turned.sum(0, 0)[k * 32] = 0.0f;
    for (int number = this->first_sequence(); enter(number); ++number)
      if (from < to) walk_channels(turned, team);
    if (this->batch < p.batches) leave_rows(turned, team);
  }
};

}  // namespace tkpy::short_conv

#define TKPY_SHORT_CONV(T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(tkpy::short_conv::kThreads, sizeof(tkpy::short_conv::T) == 4 ? 2 : 3) \
      short_conv_backward_##T##_times(const __grid_constant__ tkpy::short_conv::Params p) {                 \
    tkpy::short_conv::Backward<tkpy::short_conv::T>(p).run_times();                                         \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(tkpy::short_conv::kThreads, 3)                               \
      short_conv_backward_##T##_channels(const __grid_constant__ tkpy::short_conv::Params p) {              \
    extern __shared__ uint4 shared[];                                                                       \
    tkpy::short_conv::Backward<tkpy::short_conv::T>(p).run_channels(reinterpret_cast<unsigned char*>(shared)); \
  }
TKPY_SHORT_CONV(bf16)
TKPY_SHORT_CONV(fp16)
TKPY_SHORT_CONV(f32)
