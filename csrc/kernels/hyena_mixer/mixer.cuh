// hyena_mixer: a Hyena layer between its projections, z = [x2 | x1 | v] per group of channels
//   x2, x1, v <- bias + sum_j weight_j z_{t-(K-1)+j}          causal filters of a few taps
//   x_t = p x_{t-1} + x1 v,   y = x2 (Re sum_s R x_t + D x1 v)   S complex states a channel: modal_conv/conv.cuh
// in   z [B,L,3W] bf16, fp16 or f32, channels side by side; the K-1 inputs before [B,3W,K-1]; weight [3W,K], bias [3W] of
//      z's type or f32; p R [W,S] and the state before [B,W,S] complex64; D [W] f32
// out  y [B,L,W]; the last inputs; the state after the last sample
// why  samples of a channel lie 6 W bytes apart, and the products want them side by side. Short filter, split and modal
//      convolution one after the other move 3 + 3, 3 + 3 (the split copies) and 3 + 1 elements a sample and channel, and
//      leave y with samples side by side, which the next projection turns once more (1 + 1); this moves 3 + 1
// CTA  16 bytes of neighbouring channels (8, of f32 4), a warp for each; a segment of tiles of 1024 samples, in order:
//      A  all threads: rows of x1 and v (16 bytes a sample) -> filters -> x1 v, fp32, with a channel's samples side by side
//      B  a warp its channel: Toeplitz products, states and scan as in modal_conv; y takes the place of x1 v
//      C  all threads: rows of x2 -> filter -> times y -> rows of the output
// data z --cp.async--> rows[x2, x1, v], K-1 rows of halo before each tile. x1 and v of the next tile are on their way
//      during B and C, x2 during A and B
// barriers  top: x1 and v have landed for all; work and x2 of the tile before have been read (filters are there; powers,
//           which lie where x2 will, are no longer needed)
//           after A: work is whole, x1 and v may be fetched over          before C: y is whole, x2 has landed for all
// banks   a thread filters four samples in a row, so that it writes 16 bytes a channel; row r lies in place
//         r ^ (r / 4 mod 8), where eight threads' rows are in different banks
// on an SM  16-bit samples: work 32 KB, rows 48.4, filters 0.8, tables 8 x (1 + 2.9 for each 8 modes) KB. S <= 8: 113 KB,
//         two CTAs (16 warps of at most 128 registers); up to S = 32, 182 KB: one. f32: 16 + 48.4 + 0.4 + 4 x (1.5 + 3.9 ..)
//         KB, two CTAs of 4 warps up to S = 16, 102 KB
// segments  where channels are few: modal_conv's two passes; the first reads x1 and v
// precision  filters and gates fp32, nothing rounded between them; the rest is modal_conv's. The end: the state that the
//      last chunk finds, taken on through its samples in double
// limits  S <= 32 and K <= 8; groups and pitches that do not allow 16 bytes a row are read element by element
// cost  a sample and channel: 4 elements moved, 6 K + 4 flops, and modal_conv's products; two CTAs share each sector of z.
//      With K = 3, which has code of its own, and S <= 8: 60 instructions of a warp (PTX) for 32 samples of a channel
#pragma once

#include "kernels/modal_conv/conv.cuh"
#include "filters.cuh"

namespace tkpy::hyena_mixer {

template <class T>
struct Mixer {
  using Inputs = Filters<T>;
  using Conv = modal_conv::Conv<T>;
  using Work = st<float, modal_conv::kRows, modal_conv::kChunk>;  // chunks x samples of a channel
  static constexpr int kChannels = Inputs::kChannels, kThreads = Inputs::kThreads, kRun = Inputs::kRun;
  using Row = typename Inputs::Row;

  struct Shared {
    Work work[kChannels];
    typename Inputs::Rows row[3];
    typename Inputs::Filter filter[3];
  };  // and behind it, for each channel, Conv::Shared with its groups
  static_assert(sizeof(Shared) == fixed_bytes(sizeof(T)), "the launcher asks for shared_bytes()");
  static_assert(kChannels * sizeof(modal_conv::Powers) <= sizeof(Shared::row) / 3, "powers lie where rows of x2 will");

  const Params& p;
  Shared& shared;
  const int b, first, segment;  // the sequence, the first channel
  const int kept = p.taps - 1;
  const Inputs inputs{p, shared.row, shared.filter, b, first};

  // A warp's channel, where there is none the last, and its tables: asked for by whole warps (warp_index).
  TK_DEVICE bool live() const { return first + warp_index() < p.conv.channels; }
  TK_DEVICE int channel() const { return min(first + warp_index(), p.conv.channels - 1); }
  TK_DEVICE typename Conv::Shared& tables() const {
    const int bytes = sizeof(typename Conv::Shared) + (p.conv.groups - 1) * sizeof(typename Conv::Group);
    return *reinterpret_cast<typename Conv::Shared*>(reinterpret_cast<unsigned char*>(&shared + 1) + warp_index() * bytes);
  }

  TK_DEVICE u32 work_at(int e, int at) const {
    return shared.work[e].address(at / modal_conv::kChunk, at % modal_conv::kChunk);
  }
  // A: x1 v of a tile. Past the end it is finite, and reaches nothing that is kept.
  TK_DEVICE void gate() const {
#pragma unroll 1
    for (int at = kRun * static_cast<int>(threadIdx.x); at < kSamples; at += kRun * kThreads) {
      float x1[kRun][kChannels], v[kRun][kChannels];
      inputs.apply(x1, kX1, kX1, at);
      inputs.apply(v, kV, kV, at);
#pragma unroll
      for (int e = 0; e < kChannels; ++e) {
        u32 word[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) word[i] = __float_as_uint(x1[i][e] * v[i][e]);
        ptx::st_shared_v4(work_at(e, at), make_uint4(word[0], word[1], word[2], word[3]));
      }
    }
  }
  // C: x2 y of a tile.
  TK_DEVICE void write(int tile) const {
#pragma unroll 1
    for (int at = kRun * static_cast<int>(threadIdx.x); at < kSamples; at += kRun * kThreads) {
      float out[kRun][kChannels];
      inputs.apply(out, kX2, kX2, at);
#pragma unroll
      for (int e = 0; e < kChannels; ++e) {
        const uint4 y = ptx::ld_shared_v4(work_at(e, at));
        const u32 word[kRun] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < kRun; ++i) out[i][e] *= __uint_as_float(word[i]);
      }
      const int left = p.length - (kSamples * tile + at);
      T* to = static_cast<T*>(p.y) + (static_cast<long long>(b) * p.length + kSamples * tile + at) * p.conv.channels;
      Row row[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) row[i].put(out[i]);
      if (p.grain == kRowBytes) {
#pragma unroll
        for (int i = 0; i < kRun && i < left; ++i) row[i].store(to + i * p.conv.channels, first, p.conv.channels, kRowBytes);
      } else {
#pragma unroll 1
        for (int i = 0; i < kRun && i < left; ++i, to += p.conv.channels) {
          row[0].store(to, first, p.conv.channels, p.grain);
#pragma unroll
          for (int k = 1; k < kRun; ++k) row[k - 1] = row[k];  // the next one's turn
        }
      }
    }
  }

  // ---- States -----------------------------------------------------------------------------------------------------
  // A group's states after the last sample: x has what the chunks (rows) of the last tile find. A lane takes one mode.
  TK_DEVICE void leave_end(const rt_fl<16, 16>& x, const Work& work, int channel, int group) const {
    const int lane = lane_index(), mode = modal_conv::kGroup * group + lane, row = (p.conv.chunks - 1) % modal_conv::kRows, half = row / 8;
    float2 found[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float2 mine = half ? make_float2(x.x[0][4 * m + 2], x.x[0][4 * m + 3]) : make_float2(x.x[0][4 * m], x.x[0][4 * m + 1]);
      found[m] = modal_conv::shuffle(mine, row % 8 * 4 + lane % 4);
    }
    if (lane >= modal_conv::kGroup || mode >= p.conv.modes) return;
    double2 state = modal_conv::wide(lane < 4 ? found[0] : found[1]);
    const double2 pole = modal_conv::wide(modal_conv::load(p.conv.poles, static_cast<long long>(channel) * p.conv.modes + mode, true));
    const int samples = p.length - modal_conv::kChunk * (p.conv.chunks - 1);
#pragma unroll 1
    for (int j = 0; j < samples; ++j) {
      using modal_conv::operator*, modal_conv::operator+;
      state = pole * state + make_double2(ptx::ld_shared(work.address(row, j)), 0.0);
    }
    p.end[Conv::state_at(p.conv, 0, b, channel) + mode] = {static_cast<float>(state.x), static_cast<float>(state.y)};
  }
  TK_DEVICE void leave_inputs() const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kChannels * kept; i += kThreads) {
      const int k = i % kept, c = first + i / kept % kChannels, channel = inputs.input(i / kept / kChannels, c);
      if (c >= p.conv.channels) continue;
      static_cast<T*>(p.after)[(static_cast<long long>(b) * 3 * p.conv.channels + channel) * kept + k] = inputs.sample(p.length - kept + k, channel);
    }
  }

  // B: y of a warp's channel before its gate in the place of x1 v, if `speaks`; its states.
  TK_DEVICE void convolve(int tile, bool speaks) const {
    Work& work = shared.work[warp_index()];
    typename Conv::Sum y[Conv::kBlocks];
    Conv::convolve(
        y, tables(), p.conv.groups, speaks, [&](typename Conv::Half& v, int at) { tk::load(v, work, 0, at); },
        [&](int g, const typename Conv::Sum& x) {
          if (speaks && p.end && live() && tile == p.conv.tiles - 1) leave_end(x, work, channel(), g);
        });
    if (!speaks) return;
    rt_fl<16, modal_conv::kChunk> whole;
#pragma unroll
    for (int c = 0; c < Conv::kBlocks; ++c)
#pragma unroll
      for (int e = 0; e < 8; ++e) whole.x[0][8 * c + e] = y[c].x[0][e];
    __syncwarp();
    store(work, whole);
  }

  TK_DEVICE void run() const {
    const bool speaks = !p.conv.only_local;
    const int begin = segment * p.conv.segment_tiles, end = min(begin + p.conv.segment_tiles, p.conv.tiles);
    Conv::make_tables(tables(), reinterpret_cast<modal_conv::Powers*>(shared.row[kX2])[warp_index()], p.conv, channel());
    Conv::find_carry(tables(), p.conv, segment, b, channel());
    inputs.fetch_filters();
#pragma unroll 1
    for (int tile = begin - 1; tile < end; ++tile) {
      const bool here = tile >= begin;  // else: only ask for the first
      if (here) {
        wait_loads<0>();
        __syncthreads();
        if (speaks) inputs.fetch(kX2, kX2, tile);
        commit_loads();
        gate();
        __syncthreads();
      }
#pragma unroll 1
      for (int part = kX1; part <= kV && tile + 1 < end; ++part) inputs.fetch(part, part, tile + 1);
      commit_loads();
      if (!here) continue;
      convolve(tile, speaks);
      if (!speaks) continue;
      wait_loads<1>();
      __syncthreads();
      write(tile);
    }
    wait_loads<0>();
    if (!speaks && live()) Conv::leave_carry(p.conv.local, tables(), p.conv, segment, b, channel());
    if (speaks && p.after && end == p.conv.tiles) leave_inputs();
  }
};

template <class T>
TK_DEVICE void mix(const Params& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const int block = static_cast<int>(blockIdx.x) % p.blocks, outer = static_cast<int>(blockIdx.x) / p.blocks;
  Mixer<T>{p, *reinterpret_cast<typename Mixer<T>::Shared*>(memory), outer % p.conv.batch, Mixer<T>::kChannels * block,
           outer / p.conv.batch}
      .run();
}

}  // namespace tkpy::hyena_mixer
