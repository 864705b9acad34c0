// hyena_mixer's backward, all of it. With a, c, v the filtered x2, x1, v, u = c v, g = a dy and y before its gate:
//   du, y and the gradients of poles, residues, skip and state    from u, g: modal_conv/backward.cuh
//   da = dy y,   dc = v du,   dv = c du
//   dz_t = sum_l w_{K-1-l} d_{t+l} (+ the gradient of the last inputs),  dw_{K-1-l} = sum d_t z_{t-l},  dbias = sum d_t
//      with d = da, dc, dv for the three parts of z, d = 0 past the end; dz of t < 0 is that of the inputs before
// in   z [B,L,3W], dy [B,L,W] bf16, fp16 or f32, channels side by side; filters, inputs before, poles, residues, skip and
//      states as the forward; the gradients of the last inputs and (whole chunks only) of the state after the last sample
// out  dz [B,L,3W]; that of the state before, in double; shares [segments B, ..] of the parameters' gradients, added by
//      whoever asked; dz of the samples before each segment, and what a segment itself adds to its last K-1, in fp32
// why  one op after the other filter again (3 + 3 elements a sample and channel), copy the split (3 + 3), go back through
//      the long convolution (3 + 1 + 3, u and gate twice) and the split (3 + 3), and through the filter (3 + 3 + 3): over
//      20 even without copies; this moves 3 + 1 + 3, and z's x1 and v twice: 9, of which the ideal has 7
// CTA  as mixer.cuh: 16 bytes of channels, a warp for each; a segment of tiles of 1024 samples, twice. Forwards, only for
//      the states that each tile finds (to memory: 8 S bytes of 14 KB); then from the last tile to the first:
//      A  all threads: rows of x2, dy -> g, rows of x1, v -> u, fp32, with a channel's samples side by side
//      B  a warp its channel: modal_conv's products; du takes the place of u, y of g
//      C  all threads, once for x2 and once for x1 and v: d of the filters (da in y's place; dc, dv in y's and du's), then,
//         with everyone's d there, dz and the sums of dw and dbias. d of the first K-1 samples stays for the tile before
// data z, dy --cp.async--> rows[x2, x1, v, dy]. x2 and dy of the next tile are on their way while x1 and v are in C, those
//      during its x2's A. Forwards, pairs of rows take turns, and end where the other sweep begins: its first x1 and v
// barriers  top: x2 and dy (then: x1 and v) have landed for all, work has been read      after A: work is whole
//           after B: du and y are whole      within C: d is whole; rows that were read may be fetched over
// sums  of dw: a thread's four samples in registers, a warp's by shuffles, then added to the warp's own in shared memory;
//      the warps' at the end. In fixed order, as all else: same call, same bits
// segments  where channels are few: a launch before (`only_local`) leaves what each adds to the states, both ways. What
//      crosses a border of dz is left in `borders`
// precision  as mixer.cuh and modal_conv/backward.cuh: u, g, d fp32, products of 2 pieces (f32: 3); dz rounded once
// limits  S <= 8, K <= 8; rows that are not 16 bytes aligned are moved element by element
// cost  a sample and channel: 9 elements moved, 13 K + 8 fp32 operations, modal_conv's products (320 flops, three times)
#pragma once

#include "filters.cuh"
#include "kernels/modal_conv/backward.cuh"

namespace tkpy::hyena_mixer {

template <class T>
struct MixerBackward {
  using Inputs = Filters<T>;
  using Modal = modal_conv::Backward<T>;
  using Whole = st<float, modal_conv::kRows, modal_conv::kChunk>;  // chunks x samples of a channel
  using Piece = st<bf16, modal_conv::kRows, modal_conv::kChunk>;
  using Row = typename Inputs::Row;
  using Filter = typename Inputs::Filter;
  static constexpr int kChannels = Inputs::kChannels, kThreads = Inputs::kThreads, kRun = Inputs::kRun;
  static constexpr int kDy = 3;                     // the place of dy's rows, beside those of the three parts
  enum Which : int { kForth, kRear };               // work: u, later du and dv; g, later y and d of x2 or x1
  struct alignas(1024) Work {                       // the pieces of a tile, or all of it
    unsigned char bytes[work_bytes(sizeof(T))];
    TK_DEVICE Whole& whole() { return *reinterpret_cast<Whole*>(bytes); }
    TK_DEVICE Piece& piece(int i) { return reinterpret_cast<Piece*>(bytes)[i]; }
  };
  using Values = float[kRun][kChannels];

  struct Shared {
    Work work[kChannels][2];
    typename Inputs::Rows row[4];
    typename Modal::Shared tables[kChannels];
    Filter filter[3];
    float later[2][3][kChannels][kMostTaps];        // d of a tile's first samples, by turns of tiles
    float sum[kChannels][3][kMostTaps + 1][kChannels];  // of each warp: dw by lags, dbias
  };
  static_assert(sizeof(Shared) == backward_shared_bytes(sizeof(T)), "the launcher asks for backward_shared_bytes()");
  static_assert(sizeof(modal_conv::Powers) <= sizeof(Work[2]), "a warp's powers lie where its work will");

  const BackwardParams& p;
  Shared& shared;
  const int b, first, segment;
  const int channel = min(first + warp_index(), p.conv.channels - 1);
  TK_DEVICE bool live() const { return first + warp_index() < p.conv.channels; }
  const Inputs inputs{p.mix, shared.row, shared.filter, b, first};
  const Modal modal{p.conv, reinterpret_cast<typename Modal::Tile*>(shared.work[warp_index()]), shared.tables[warp_index()],
                    b, channel, segment};
  const int begin = modal.begin, end = modal.end, taps = p.mix.taps, kept = taps - 1;

  // ---- Rows and work ----------------------------------------------------------------------------------------------
  TK_DEVICE void fetch_dy(int slot, int tile) const {
    const T* const from = static_cast<const T*>(p.dy) + b * p.dy_batch + inputs.asked(p.dy_vectors);
    inputs.fetch(shared.row[slot], from, p.dy_time, p.dy_vectors, tile);
  }
  // What u, or g, of a tile is made of; `other`: to the rows of the other pair.
  TK_DEVICE void fetch(Which which, int tile, int other) const {
#pragma unroll 1
    for (int k = 0; k < 2; ++k) {
      const int slot = which == kForth ? kX1 + k : kDy * k;  // x1, v or x2, dy
      if (slot == kDy)
        fetch_dy(slot ^ other, tile);
      else
        inputs.fetch(slot, slot ^ other, tile);
    }
  }
  TK_DEVICE void get_dy(Values& to, int slot, int at) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) inputs.row(slot, kHalo + at + i).get(to[i]);
  }
  template <class Tile>
  TK_DEVICE static u32 place_of(const Tile& tile, int at) {
    return tile.address(at / modal_conv::kChunk, at % modal_conv::kChunk);
  }
  TK_DEVICE u32 work_at(Which which, int e, int at) const { return place_of(shared.work[e][which].whole(), at); }
  TK_DEVICE static void get(float* to, u32 address) {
    const uint4 x = ptx::ld_shared_v4(address);
    to[0] = __uint_as_float(x.x), to[1] = __uint_as_float(x.y), to[2] = __uint_as_float(x.z), to[3] = __uint_as_float(x.w);
  }
  TK_DEVICE static void put(u32 address, const float* x) {
    ptx::st_shared_v4(address, make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])));
  }
  template <class F>
  TK_DEVICE static void each_run(F f) {
#pragma unroll 1
    for (int at = kRun * static_cast<int>(threadIdx.x); at < kSamples; at += kRun * kThreads) f(at);
  }

  // ---- A, and d of C: products of what the rows and work have ---------------------------------------------------------
  // Pieces of x times y, of which u (or g) is the sum.
  TK_DEVICE void leave_pieces(Which to, int at, const Values& x, const Values& y) const {
#pragma unroll
    for (int e = 0; e < kChannels; ++e) {
      float rest[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) rest[i] = x[i][e] * y[i][e];
#pragma unroll
      for (int k = 0; k < Modal::Parts; ++k) {
        const u32 low = ptx::pack<bf16>(rest[0], rest[1]), high = ptx::pack<bf16>(rest[2], rest[3]);
        ptx::st_shared_v2(place_of(shared.work[e][to].piece(k), at), __uint_as_float(low), __uint_as_float(high));
#pragma unroll
        for (int i = 0; i < kRun; ++i) rest[i] -= packed<bf16>::get(i < 2 ? low : high, i % 2);
      }
    }
  }
  // Work `to` of all channels becomes x times y.
  TK_DEVICE void leave(Which to, int at, const Values& x, const Values& y) const {
#pragma unroll
    for (int e = 0; e < kChannels; ++e) {
      float product[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) product[i] = x[i][e] * y[i][e];
      put(work_at(to, e, at), product);
    }
  }
  TK_DEVICE void get_work(Values& to, Which from, int at) const {
#pragma unroll
    for (int e = 0; e < kChannels; ++e) {
      float four[kRun];
      get(four, work_at(from, e, at));
#pragma unroll
      for (int i = 0; i < kRun; ++i) to[i][e] = four[i];
    }
  }
  // u = c v, or g = a dy, of a tile.
  TK_DEVICE void gate(Which which, int other) const {
    const int part = which == kForth ? kX1 : kX2;
    each_run([&](int at) {
      Values x, y;
      inputs.apply(x, part, part ^ other, at);
      if (which == kForth)
        inputs.apply(y, kV, kV ^ other, at);
      else
        get_dy(y, kDy ^ other, at);
      leave_pieces(which, at, x, y);
    });
  }
  TK_DEVICE void behind_x2() const {
    each_run([&](int at) {
      Values x, y;
      get_dy(x, kDy, at);
      get_work(y, kRear, at);
      leave(kRear, at, x, y);
    });
  }
  TK_DEVICE void behind_x1_and_v() const {
    each_run([&](int at) {
      Values x, du;
      get_work(du, kForth, at);
#pragma unroll 1
      for (int part = kV; part >= kX1; --part) {
        inputs.apply(x, part, part, at);
        leave(part == kV ? kRear : kForth, at, x, du);
      }
    });
  }

  // ---- C: through a filter ----------------------------------------------------------------------------------------
  TK_DEVICE float after(int part, int e, int t) const {
    const int k = t - (p.mix.length - kept), c = first + e;
    if (!p.dafter || k < 0 || c >= p.conv.channels) return 0.0f;
    return read(static_cast<const T*>(p.dafter) + (static_cast<long long>(b) * 3 * p.conv.channels + inputs.input(part, c)) * kept + k);
  }
  TK_DEVICE float* border(int side, int part, int e) const {
    const long long row = (static_cast<long long>(side) * p.conv.segments + segment) * p.conv.batch + b;
    return p.borders + (row * 3 * p.conv.channels + inputs.input(part, first + e)) * kept;
  }
  TK_DEVICE void write(int part, int tile, int at, Values& dz) const {
    const int last = min(kSamples * end, p.mix.length);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int t = kSamples * tile + at + i;
      if (t >= p.mix.length) break;
      if (t >= last - kept) {
#pragma unroll
        for (int e = 0; e < kChannels; ++e) {
          dz[i][e] += after(part, e, t);
          if (end < p.conv.tiles && first + e < p.conv.channels) border(1, part, e)[t - (last - kept)] = dz[i][e];
        }
      }
      T* const to = static_cast<T*>(p.dz) + (static_cast<long long>(b) * p.mix.length + t) * 3 * p.conv.channels;
      if (p.dz_vectors) {
        Row row;
        row.put(dz[i]);
        row.store(to + inputs.input(part, first), 0, kChannels, 16);
      } else {
#pragma unroll
        for (int e = 0; e < kChannels; ++e)
          if (first + e < p.conv.channels) tk::write(to + inputs.input(part, first + e), dz[i][e]);
      }
    }
  }
  // Sums over the lanes: lane l has that of channel l / (32 / channels).
  TK_DEVICE static float joined(float (&x)[kChannels]) {
    int step = 16;
#pragma unroll
    for (int n = kChannels / 2; n >= 1; n /= 2, step /= 2) {
      const bool upper = lane_index() & step;
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const float given = upper ? x[k] : x[k + n], held = upper ? x[k + n] : x[k];
        x[k] = held + __shfl_xor_sync(0xffffffffu, given, step);
      }
    }
#pragma unroll
    for (; step >= 1; step /= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], step);
    return x[0];
  }
  // dz of a part, from d in work `from`.
  TK_DEVICE void filter_back(int part, Which from, int tile) const {
    each_run([&](int at) {
      Values dz;
#pragma unroll
      for (int e = 0; e < kChannels; ++e) {
        float d[kRun + kMostTaps];
        get(d, work_at(from, e, at));
        if (at < kMostTaps) put(ptx::shared_address(&shared.later[tile & 1][part][e][at]), d);
#pragma unroll
        for (int k = kRun; k < kRun + kMostTaps; k += kRun)
          get(&d[k], at + k < kSamples ? work_at(from, e, at + k)
                                       : ptx::shared_address(&shared.later[~tile & 1][part][e][at + k - kSamples]));
#pragma unroll
        for (int i = 0; i < kRun; ++i) dz[i][e] = 0.0f;
#pragma unroll
        for (int lag = 0; lag < kMostTaps; ++lag) {
          if (lag >= taps) break;
          const float tap = shared.filter[part].tap[kept - lag][e];
#pragma unroll
          for (int i = 0; i < kRun; ++i) dz[i][e] = fmaf(tap, d[i + lag], dz[i][e]);
        }
      }
      write(part, tile, at, dz);
    });
  }
  // The sums of a part's filter over a tile: of d_t z_{t-lag}, and (lag = taps) of d_t.
  TK_DEVICE void sum_products(int part, Which from) const {
    float(*const own)[kChannels] = shared.sum[warp_index()][part];
    each_run([&](int at) {
      Values d;
      get_work(d, from, at);
#pragma unroll 1
      for (int lag = 0; lag <= taps; ++lag) {
        float sum[kChannels] = {};
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          float z[kChannels];
          inputs.row(part, kHalo + at + i - min(lag, kept)).get(z);
#pragma unroll
          for (int e = 0; e < kChannels; ++e) sum[e] = fmaf(d[i][e], lag < taps ? z[e] : 1.0f, sum[e]);
        }
        constexpr int lanes = 32 / kChannels;
        const float whole = joined(sum);
        if (lane_index() % lanes == 0) own[lag][lane_index() / lanes] += whole;
        __syncwarp();
      }
    });
  }

  // ---- What is left at the end ------------------------------------------------------------------------------------
  // Of each part, channel and k < count: f(part, e, k), dealt out to all threads; channels that are there.
  template <class F>
  TK_DEVICE void each_left(int count, F f) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kChannels * count; i += kThreads) {
      const int k = i % count, e = i / count % kChannels;
      if (first + e < p.conv.channels) f(i / count / kChannels, e, k);
    }
  }
  // dz of the K - 1 samples before this segment, as far as it is this segment's.
  TK_DEVICE void leave_border() const {
    each_left(kept, [&](int part, int e, int k) {
      const int back = kept - k;  // how far before the first sample
      float dz = segment == 0 ? after(part, e, -back) : 0.0f;
#pragma unroll 1
      for (int lag = back; lag < taps; ++lag)
        dz = fmaf(shared.filter[part].tap[kept - lag][e], shared.later[begin & 1][part][e][lag - back], dz);
      border(0, part, e)[k] = dz;
    });
  }
  TK_DEVICE void leave_sums() const {
    const long long share = segment * p.conv.batch + b;
    each_left(taps + 1, [&](int part, int e, int k) {
      float sum = 0.0f;
#pragma unroll 1
      for (int warp = 0; warp < kChannels; ++warp) sum += shared.sum[warp][part][k][e];
      const long long at = share * 3 * p.conv.channels + inputs.input(part, first + e);
      if (k < taps)
        p.dweight[at * taps + kept - k] = sum;
      else
        p.dbias[at] = sum;
    });
  }

  // ---- The CTA ----------------------------------------------------------------------------------------------------
  TK_DEVICE auto from_work() const {
    return [this](typename Modal::Operand& to, int signal, int c) {
#pragma unroll
      for (int i = 0; i < Modal::Parts; ++i)
        tk::load(to[i], shared.work[warp_index()][signal == 0 ? kForth : kRear].piece(i), 0, Modal::kBlock * c);
    };
  }
  // The states alone, of u forwards or of g backwards. The last tile forwards stays in its rows.
  TK_DEVICE void sweep(Which which) const {
    const int count = end - begin;
#pragma unroll 1
    for (int n = -1; n < count; ++n) {
      const int tile = which == kForth ? begin + n : end - 1 - n, other = (count - 1 - n) & 1;
      if (n + 1 < count) fetch(which, which == kForth ? tile + 1 : tile - 1, other ^ 1);
      commit_loads();
      if (n < 0) continue;
      wait_loads<1>();
      __syncthreads();
      if (!p.conv.only_local) {
        if (live()) modal.leave_starts(tile);
        if (n + 1 == count) break;
      }
      gate(which, other);
      __syncthreads();
      if (which == kForth)
        modal.template pass<false>(tile, from_work());
      else
        modal.template pass<true>(tile, from_work());
    }
  }
  // B of a tile.
  TK_DEVICE void convolve(int tile) const {
    if (live()) modal.find_starts(tile);
    typename Modal::Sum y[Modal::kBlocks], du[Modal::kBlocks];
#pragma unroll
    for (int c = 0; c < Modal::kBlocks; ++c) zero(y[c]), zero(du[c]);
    modal.add(y, du, 0, tile, from_work());
    __syncwarp();
#pragma unroll
    for (int c = 0; c < Modal::kBlocks; ++c) {
      store(shared.work[warp_index()][kForth].whole(), du[c], 0, Modal::kBlock * c);
      store(shared.work[warp_index()][kRear].whole(), y[c], 0, Modal::kBlock * c);
    }
  }
  TK_DEVICE void run() const {
    modal.make_tables();
    modal.find_carries();
    inputs.fetch_filters();
    float* const zeros = &shared.later[0][0][0][0];
    constexpr int kZeros = (sizeof(shared.later) + sizeof(shared.sum)) / sizeof(float);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kZeros; i += kThreads) zeros[i] = 0.0f;
    __syncthreads();
    const bool local = p.conv.only_local;
#pragma unroll 1
    for (int rear = 0; rear <= local; ++rear) {
      if (local && segment == (rear ? 0 : p.conv.segments - 1)) continue;  // nobody asks what it adds to the states there
      sweep(rear ? kRear : kForth);
      if (local && live())
        modal.leave_carry(p.conv.local, rear ? &Modal::Group::rear : &Modal::Group::forth, rear * p.conv.segments + segment);
    }
    if (local) return;
    fetch(kRear, end - 1, 0);
    commit_loads();
    commit_loads();  // x1 and v: there already
#pragma unroll 1
    for (int tile = end - 1; tile >= begin; --tile) {
      wait_loads<1>();
#pragma unroll 1
      for (int which = kRear; which >= kForth; --which) {
        if (which == kForth) wait_loads<0>();
        __syncthreads();
        gate(which == kRear ? kRear : kForth, 0);
      }
      __syncthreads();
      convolve(tile);
      __syncthreads();
#pragma unroll 1
      for (int part = kX2; part <= kV; ++part) {
        if (part == kX2) behind_x2();
        if (part == kX1) behind_x1_and_v();
        __syncthreads();
        filter_back(part, part == kV ? kForth : kRear, tile);
        if (p.dweight) sum_products(part, part == kV ? kForth : kRear);
        if (part == kX1) continue;
        __syncthreads();
        if (tile > begin) fetch(part == kX2 ? kRear : kForth, tile - 1, 0);
        commit_loads();
      }
    }
    leave_border();
    if (p.dweight) leave_sums();
    if (!live()) return;
    if (p.conv.parameters) modal.finish();
    if (p.conv.dstart && segment == 0) modal.leave_carry(p.conv.dstart, &Modal::Group::rear, 0);
  }
};

template <class T>
TK_DEVICE void mix_backward(const BackwardParams& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const int block = static_cast<int>(blockIdx.x) % p.mix.blocks, outer = static_cast<int>(blockIdx.x) / p.mix.blocks;
  MixerBackward<T>{p, *reinterpret_cast<typename MixerBackward<T>::Shared*>(memory), outer % p.conv.batch,
                   MixerBackward<T>::kChannels * block, outer / p.conv.batch}
      .run();
}

}  // namespace tkpy::hyena_mixer
