// short_conv: y[c,t] = act(bias[c] + sum_j w[c,j] x[c,t-(K-1)+j]),  before x lies the state, or 0                per sequence
// in   x [B,C,L] bf16, fp16 or f32 | w [C,K], bias [C] x's type or f32 | initial state [B,C,K-1] | offsets of packed sequences
// out  y [B,C,L] contiguous, the last K-1 inputs
// kernels  short_conv_forward_<type>_times    times of x beside each other: a thread has 16 bytes of a channel, the samples
//                                             before come from the neighbour's registers (the lane of the step before);
//                                             4 steps are worked on while the next 4 are on their way
//          short_conv_forward_<type>_channels channels of x beside each other: blocks of 64 times are turned by way of a
//                                             warp's own shared memory (turned.cuh), the next one on its way meanwhile
// grid  a warp has a run of one or several channels, of packed sequences one after the other; warps share nothing
// precision  fp32; y rounded once      limits  K <= 8, any L and C (conv.cuh)
// cost  bytes x + y, each once, K - 1 samples more a run; 2 K flops an element
#include "turned.cuh"

namespace tkpy::short_conv {

template <class T>
struct Forward : Part<T> {
  using Part<T>::p, Part<T>::start, Part<T>::stop, Part<T>::from, Part<T>::to, Part<T>::carried;
  static constexpr int kSteps = 4;

  TK_DEVICE explicit Forward(const Params& params) : Part<T>(params) {}

  // Where there is something to do. A final state has older samples than the sequence where that is short.
  TK_DEVICE bool enter(int number) {
    if (!Part<T>::enter(number)) return false;
    if (p.final != nullptr && stop - start < carried) this->include_state();
    return true;
  }

  TK_DEVICE void write(const Taps& taps, const Chunk<T>& before, const Chunk<T>& here, int t, int channel) const {
    if (channel >= p.channels) return;
    float x[2 * kTimes], z[kTimes];
    window(x, before, here);
    convolve(z, x, taps, p.taps);
    if (p.silu)
#pragma unroll
      for (float& v : z) v = fn::silu(v);
    Chunk<T> out;
    out.put(z);
    put(out, row_of<T>(p.y, this->batch, channel), t, max(from, start), to, true);
    const int kept = stop - carried;
    if (p.final != nullptr && t + kTimes > kept)
      put(here, this->state_row(p.final, channel, kept), t, max(from, kept), to, false);
  }

  TK_DEVICE void walk_times(const Team& team, const Taps& taps, int channel) const {
    const bool real = channel < p.channels;
    const T* x = row_of<T>(p.x, this->batch, channel);
    const int base = from - this->phase(row_of<T>(p.y, this->batch, channel)), hi = real ? min(stop, to) : start;
    const int span = p.lanes * kTimes, steps = __reduce_max_sync(0xffffffffu, (to - base + span - 1) / span);
    const bool aligned = aligned_at(x + base);
    const auto get = [&](Chunk<T>& c, int step) {
      const int t = base + step * span + team.time * kTimes;
      fetch(c, x, t, start, step < 0 && team.time + 1 < team.count ? start : hi, aligned);
      this->add_state(c, t, channel);
    };
    Chunk<T> old, next[kSteps] = {};
    get(old, -1);
    for (int step = -kSteps; step < steps; step += kSteps) {
      Chunk<T> here[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) here[i] = next[i];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) get(next[i], step + kSteps + i);  // under way while these are worked on
      if (step < 0) continue;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        Chunk<T> before;
#pragma unroll
        for (int w = 0; w < old.words; ++w) before.word[w] = team.before(team.time + 1 == team.count ? old.word[w] : here[i].word[w]);
        old = here[i];
        write(taps, before, here[i], base + (step + i) * span + team.time * kTimes, channel);
      }
    }
  }
  TK_DEVICE void run_times() {
    const Team team(1, p.lanes);
    const int channel = this->group * (32 / p.lanes) + static_cast<int>(lane_index()) / p.lanes;
    Taps taps;
    load_taps<T>(taps, p, channel);
    for (int number = this->first_sequence(); enter(number); ++number)
      if (from < to) walk_times(team, taps, channel);
  }

  TK_DEVICE void walk_channels(Turned<T>& turned) const {
    turned.send(-1, to);
    turned.receive(-1);
    turned.send(0, to);
    const int blocks = turned.blocks();
    for (int block = 0; block < blocks; ++block) {
      turned.receive(block);
      if (block + 1 < blocks) turned.send(block + 1, to);  // under way while this one is worked on
#pragma unroll 1
      for (int i = 0; i < turned.R; ++i) {
        const int channel = turned.channel(i), chunk = block * kTimeLanes + turned.time;
        const int phase = this->phase(row_of<T>(p.y, this->batch, channel));
        Taps taps;
        Chunk<T> before, here;
        turned.get_taps(taps, i);
        turned.get_window(before, here, i, chunk, phase, p.shifted);
        write(taps, before, here, from + chunk * kTimes - phase, channel);
      }
      __syncwarp();  // before its slots are written again
    }
  }
  TK_DEVICE void run_channels(unsigned char* shared) {
    Turned<T> turned(*this, shared + threadIdx.x / 32 * p.warp_bytes);
    turned.load_parameters();
    for (int number = this->first_sequence(); enter(number); ++number)
      if (from < to) walk_channels(turned);
  }
};

}  // namespace tkpy::short_conv

#define TKPY_SHORT_CONV(T)                                                                                  \
  extern "C" __global__ void __launch_bounds__(tkpy::short_conv::kThreads, sizeof(tkpy::short_conv::T) == 4 ? 3 : 4) \
      short_conv_forward_##T##_times(const __grid_constant__ tkpy::short_conv::Params p) {                  \
    tkpy::short_conv::Forward<tkpy::short_conv::T>(p).run_times();                                          \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(tkpy::short_conv::kThreads, 3)                               \
      short_conv_forward_##T##_channels(const __grid_constant__ tkpy::short_conv::Params p) {               \
    extern __shared__ uint4 shared[];                                                                       \
    tkpy::short_conv::Forward<tkpy::short_conv::T>(p).run_channels(reinterpret_cast<unsigned char*>(shared)); \
  }
TKPY_SHORT_CONV(bf16)
TKPY_SHORT_CONV(fp16)
TKPY_SHORT_CONV(f32)
