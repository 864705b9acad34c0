// modal_conv: y_t = post (Re sum_s R x_t + skip v_t), x_t = p x_{t-1} + v_t, v = gate x         per (batch, channel), no FFT
//
// in   x, gate, post [B,H,L] bf16, fp16 or f32, samples side by side, any pitch; poles, residues [H,S] complex64
// out  y in their type; the state after the last chunk [B,H,S] in double
// blocks  a chunk of 64 samples is four blocks of 16, which with P = p^16 pass their states on in the lane; a block finds x
//      and leaves P x + A. With j, i < 16, h_k = Re sum R p^k (+ skip at 0), in a block
//      A = sum p^{15-j} v_j          y_i = Re R p^{i+1} x + (v T)_i          T_ji = h_{i-j}, j <= i: Toeplitz
//      so three tables of 16 x 16 serve a channel of 8 modes: near (p^{15-j}), far (R p^{i+1}), T; each further 8 modes
//      have a near and a far of their own. The rows of mma.sync are 16 chunks (1024 samples, a tile), so the products are
//      dense whatever the batch is
// CTA  one warp on its own: a segment of tiles of one (batch, channel), in order. Nothing is shared between warps, so
//      nothing waits but for memory
// on an SM  S <= 8, 16 bits: 128 registers let 16 warps on it (4 on a quarter, of 16,384), 10.9 KB of shared memory with
//      the 1 KB that the system takes let 20; f32: 168 and 18.4 KB, 12 by either. S = 32: 19.5 and 30 KB, 11 and 7
// data gl --cp.async--> x, gate, post tiles --> registers, half a tile at a time, cut by blocks into pieces of bf16 -->
//      products, once a group. x and gate of the next tile are fetched when the last group has read these, post once it is
//      used. wait_loads<1>, __syncwarp: they are there for all lanes; __syncwarp (in the scan): all lanes have read, the
//      tile may be filled again
// scan within a tile by shuffles (Kogge and Stone 1973) in fp32, from tile to tile in double: q^n, q = p^64, is never
//      multiplied up from a rounded q, so the phase holds over millions of samples
// segments  where channels are few: a first pass (`only_local`) leaves what each segment adds to the state, the second
//      folds what lies before its own
// precision  16-bit samples: products of 2 pieces each (v exactly for bf16, h to 2^-17), f32: of 3 pieces; sums f32
// limits  whole chunks (the rest: steps.cu), S <= 32; S is filled up to a multiple of 8
// cost  a sample: 4 elements moved (u, two gates, y), products of 32 + 64 ceil(S / 8) flops, three times (six for f32)
#pragma once

#include "tables.cuh"

namespace tkpy::modal_conv {

template <class T>
TK_DEVICE view<const T> samples(const Signal& x, int b, int h, int chunks) {
  return {static_cast<const T*>(x.data) + b * x.batch + h * x.channel, chunks, kChunk, kChunk};
}

// Columns `first` .. of a tile, times those of another (if there), as float32.
template <class T, int Cols>
TK_DEVICE void product(rt_fl<16, Cols>& v, const st<T, 16, kChunk>& x, const st<T, 16, kChunk>& gate, bool gated, int first) {
  rt<T, 16, Cols> part;
  load(part, x, 0, first);
  copy(v, part);
  if (!gated) return;
  load(part, gate, 0, first);
  mul(v, v, part);
}

// y of a tile, times a gate that lies in `tile`, goes out through that tile.
template <class T>
TK_DEVICE void write(const Signal& to, const rt_fl<16, 16> (&y)[4], st<T, 16, kChunk>& tile, bool gated, int b, int channel,
                     int chunks, int row) {
#pragma unroll
  for (int first = 0; first < kChunk; first += kChunk / 2) {
    rt<T, 16, kChunk / 2> part;
    if (gated) load(part, tile, 0, first);
    rt_fl<16, kChunk / 2> out;
#pragma unroll
    for (int i = 0; i < 16; ++i) out.x[0][i] = y[first / 16 + i / 8].x[0][i % 8];
    if (gated) mul(out, out, part);
    copy(part, out);
    __syncwarp();
    store(tile, part, 0, first);
  }
  __syncwarp();
  const view<const T> at = samples<T>(to, b, channel, chunks);
  store(view<T>{const_cast<T*>(at.data), at.rows, at.cols, at.row_stride}, tile, row, 0);
}

template <class T>
struct Conv {
  static constexpr int Parts = parts_of(sizeof(T));
  static constexpr int kBlocks = kChunk / kBlock, kHalf = kChunk / 2;
  using Tile = st<T, kRows, kChunk>;
  using Sum = rt_fl<16, 16>;  // chunks x 16 samples, or x real and imaginary parts of 8 modes
  using Half = rt_fl<16, kHalf>;

  struct Group {
    Fragments<Parts> near, far;  // p^{15-j}, R p^{i+1}
    Strides strides;
    float2 step[kGroup];  // p^16
  };
  struct Shared {  // of it, `groups` groups
    Fragments<Parts> toeplitz;
    Group group[1];
  };
  static_assert(sizeof(Group) == group_bytes(sizeof(T)) && sizeof(Powers) <= 3 * sizeof(Tile) &&
                    3 * sizeof(Tile) + sizeof(Shared) == conv_bytes(sizeof(T), 1),
                "the launcher asks for conv_bytes()");

  // ---- Tables -----------------------------------------------------------------------------------------------------
  TK_DEVICE static void make_group(Group& group, Powers& powers, double& h, const Params& p, int channel, int first) {
#pragma unroll 1
    for (int m = 0; m < kGroup; ++m) {
      const bool live = first + m < p.modes;
      const long long at = static_cast<long long>(channel) * p.modes + first + m;
      const float2 pole = load(p.poles, at, live), residue = load(p.residues, at, live);
      double2 reach;
      raise(powers, group.strides, m, wide(pole), reach);
      h += (wide(residue) * reach).x;
      if (lane_index() == kBlock) group.step[m] = narrow(reach), powers.residue[m] = residue;
    }
    __syncwarp();
    // One of the two tables has the residues, which are 0 for modes that do not exist.
    keep(group.near, [&](int j, int col) {
      const float2 x = powers.of[col / 2][kBlock - 1 - j];
      return col % 2 ? x.y : x.x;
    });
    keep(group.far, [&](int row, int i) {
      const float2 x = powers.residue[row / 2] * powers.of[row / 2][i + 1];
      return row % 2 ? -x.y : x.x;
    });
    __syncwarp();
  }

  TK_DEVICE static void make_tables(Shared& shared, Powers& powers, const Params& p, int channel) {
    double h = 0.0;
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) make_group(shared.group[g], powers, h, p, channel, kGroup * g);
    if (p.skip && lane_index() == 0) h += p.skip[channel];
    if (lane_index() < kBlock) powers.h[lane_index()] = static_cast<float>(h);
    __syncwarp();
    keep(shared.toeplitz, [&](int j, int i) { return i >= j ? powers.h[i - j] : 0.0f; });
    __syncwarp();
  }

  // ---- States -----------------------------------------------------------------------------------------------------
  TK_DEVICE static int chunks_of(const Params& p, int tile) { return min(kRows, p.chunks - kRows * tile); }
  TK_DEVICE static long long state_at(const Params& p, int outer, int b, int channel) {
    return ((static_cast<long long>(outer) * p.batch + b) * p.channels + channel) * p.modes;
  }

  // The states that this segment finds: the first one's, carried over the segments before. A lane has one mode.
  TK_DEVICE static void find_carry(Shared& shared, const Params& p, int segment, int b, int channel) {
    const int lane = lane_index();
#pragma unroll 1
    for (int g = 0; g < p.groups && lane < kGroup; ++g) {
      const int mode = kGroup * g + lane;
      Strides& strides = shared.group[g].strides;
      double2 state = make_double2(0.0, 0.0);
      if (mode < p.modes && !p.only_local) {
        if (p.start) state = wide(load(p.start, state_at(p, 0, b, channel) + mode, true));
        const double2 pole = wide(load(p.poles, static_cast<long long>(channel) * p.modes + mode, true));
        const double2 factor = segment > 0 ? power(pole, kChunk * kRows * p.segment_tiles) : pole;
#pragma unroll 1
        for (int s = 0; s < segment; ++s) {
          const WideComplex& local = p.local[state_at(p, s, b, channel) + mode];
          state = factor * state + make_double2(local.re, local.im);
        }
      }
      strides.carry[lane] = state;
    }
    __syncwarp();
  }

  // The state after the last chunk of all: what is carried, or found by the first row that holds no chunk.
  TK_DEVICE static void leave_end(const rt_fl<16, 16>& x, const Params& p, int chunks, int b, int channel, int first) {
    const int t = lane_index() % 4, half = chunks / 8 % 2;
    if (lane_index() / 4 != chunks % 8) return;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int mode = first + t + 4 * m;
      const float re = half ? x.x[0][4 * m + 2] : x.x[0][4 * m], im = half ? x.x[0][4 * m + 3] : x.x[0][4 * m + 1];
      if (mode < p.modes) p.end[state_at(p, 0, b, channel) + mode] = {re, im};
    }
  }
  TK_DEVICE static void leave_carry(WideComplex* to, const Shared& shared, const Params& p, int outer, int b, int channel) {
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) {
      const int mode = kGroup * g + lane_index();
      if (lane_index() >= kGroup || mode >= p.modes) continue;
      const double2 x = shared.group[g].strides.carry[lane_index()];
      to[state_at(p, outer, b, channel) + mode] = {x.x, x.y};
    }
  }

  // ---- A tile -----------------------------------------------------------------------------------------------------
  // x = p^16 x + what a block adds, of the chunks and modes that a lane has.
  TK_DEVICE static void advance(Sum& x, const float2 (&step)[2], const Sum& added) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) {
      const auto pair = [e](const Sum& of) { return make_float2(of.x[0][e], of.x[0][e + 1]); };
      const float2 next = madd(step[e / 4], pair(x), pair(added));
      x.x[0][e] = next.x;
      x.x[0][e + 1] = next.y;
    }
  }

  // y of a tile if it `speaks`. form(v, first) gives samples first .. first + 31 of its chunks, once a group; found(g, x)
  // is told the states of group g that the chunks find, when all lanes have these samples of the group.
  template <class Form, class Found>
  TK_DEVICE static void convolve(Sum (&y)[kBlocks], Shared& shared, int groups, bool speaks, Form form, Found found) {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) zero(y[c]);
#pragma unroll 1
    for (int g = 0; g < groups; ++g) {
      Group& group = shared.group[g];
      Sum added[kBlocks];
      {
        BlockPiece near[Parts];
        load(near, group.near);
#pragma unroll
        for (int first = 0; first < kChunk; first += kHalf) {
          Half v;
          form(v, first);
#pragma unroll
          for (int c = first / kBlock; c < (first + kHalf) / kBlock; ++c) {
            Sum block;
            columns(block, v, kBlock * c - first);
            rt_bf<16, 16> piece[Parts];
            cut(piece, block);
            if (g == 0 && speaks) {
              BlockPiece toeplitz[Parts];
              load(toeplitz, shared.toeplitz);
              multiply(y[c], piece, toeplitz);
            }
            zero(added[c]);
            multiply(added[c], piece, near);
          }
        }
      }
      const int t = lane_index() % 4;
      const float2 step[2] = {group.step[t], group.step[t + 4]};
      Sum x = added[0];
#pragma unroll
      for (int c = 1; c < kBlocks; ++c) advance(x, step, added[c]);
      scan<false>(x, group.strides, 0);  // __syncwarp in it
      found(g, x);
      if (!speaks) continue;
      BlockPiece far[Parts];
      load(far, group.far);
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        rt_bf<16, 16> piece[Parts];
        cut(piece, x);
        multiply(y[c], piece, far);
        if (c + 1 < kBlocks) advance(x, step, added[c]);
      }
    }
  }

  // ---- The CTA ----------------------------------------------------------------------------------------------------
  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Tile* const tiles = reinterpret_cast<Tile*>(memory);
    Shared& shared = *reinterpret_cast<Shared*>(&tiles[3]);
    const int channel = static_cast<int>(blockIdx.x) % p.channels, outer = static_cast<int>(blockIdx.x) / p.channels;
    const int b = outer % p.batch, segment = outer / p.batch;
    make_tables(shared, *reinterpret_cast<Powers*>(memory), p, channel);
    find_carry(shared, p, segment, b, channel);

    const int begin = segment * p.segment_tiles, end = min(begin + p.segment_tiles, p.tiles);
    const bool speaks = p.out.data && !p.only_local;
    // Signals first .. last - 1 of tile i.
    const auto fetch = [&](int first, int last, int i) {
#pragma unroll 1
      for (int s = first; s < last; ++s)
        if (p.in[s].data && i < end) load_async(tiles[s], samples<T>(p.in[s], b, channel, p.chunks), kRows * i, 0);
      commit_loads();
    };
    fetch(0, 2, begin);
    fetch(2, 3, begin);
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const int row = kRows * i, chunks = min(kRows, p.chunks - row);
      wait_loads<1>();
      __syncwarp();
      Sum y[kBlocks];
      convolve(
          y, shared, p.groups, speaks,
          [&](Half& v, int first) { product(v, tiles[0], tiles[1], p.in[1].data != nullptr, first); },
          [&](int g, const Sum& x) {
            if (g + 1 == p.groups) fetch(0, 2, i + 1);
            if (p.end && !p.only_local && chunks < kRows) leave_end(x, p, chunks, b, channel, kGroup * g);
          });
      wait_loads<1>();
      __syncwarp();
      if (speaks) write<T>(p.out, y, tiles[2], p.in[2].data != nullptr, b, channel, p.chunks, row);
      __syncwarp();
      fetch(2, 3, i + 1);
    }
    wait_loads<0>();
    const bool whole = p.chunks % kRows == 0;
    if (p.only_local) leave_carry(p.local, shared, p, segment, b, channel);
    if (!p.only_local && p.end && end == p.tiles && whole) leave_carry(p.end, shared, p, 0, b, channel);
  }
};

}  // namespace tkpy::modal_conv
