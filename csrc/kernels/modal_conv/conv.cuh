// modal_conv: y_t = post (Re sum_s R x_t + skip v_t), x_t = p x_{t-1} + v_t, v = gate x         per (batch, channel), no FFT
//
// in   x, gate, post [B,H,L] bf16, fp16 or f32, samples side by side, any pitch; poles, residues [H,S] complex64
// out  y in their type; the state after the last chunk [B,H,S] in double
// of a channel, with samples as (chunks x 64), h_k = Re sum R p^k (+ skip at 0) and q = p^64:
//      y = v T + X W     T_ji = h_{i-j}, j <= i: four 16 x 16 blocks serve all 64 x 64 (a Toeplitz matrix)
//      X' = q X + v V    V_j = p^{63-j}, W_i = R p^{i+1}
//      the rows of mma.sync are 16 chunks (1024 samples), so the products are dense whatever the batch is
// CTA  one warp on its own: a segment of tiles of one (batch, channel), in order. Nothing is shared between warps, so
//      nothing waits but for memory, and 9 to 12 of them are on an SM
// data gl --cp.async--> x, gate, post tiles --> registers, cut into pieces of bf16 --> products; x and gate of the next
//      tile are fetched once these are in registers, post once it is used. wait_loads<1>, __syncwarp: they are there for
//      all lanes; __syncwarp: all lanes have read, the tile may be filled again
// scan within a tile by shuffles (Kogge and Stone 1973) in fp32, from tile to tile in double: q^n is never multiplied up
//      from a rounded q, so the phase holds over millions of samples
// segments  where channels are few: a first pass (`only_local`) leaves what each segment adds to the state, the second
//      folds what lies before its own
// precision  16-bit samples: products of 2 pieces each (v exactly for bf16, h to 2^-17), f32: of 3 pieces; sums f32
// limits  whole chunks (the rest: steps.cu), S <= 32; S is filled up to a multiple of 8
// cost  a sample: 4 elements moved (u, two gates, y), products of 80 + 64 ceil(S / 8) flops, three times (six for f32)
#pragma once

#include "tables.cuh"

namespace tkpy::modal_conv {

template <class T>
TK_DEVICE view<const T> samples(const Signal& x, int b, int h, int chunks) {
  return {static_cast<const T*>(x.data) + b * x.batch + h * x.channel, chunks, kChunk, kChunk};
}

// A tile times another (if there) as float32.
template <class T>
TK_DEVICE void product(rt_fl<16, kChunk>& v, const st<T, 16, kChunk>& x, const st<T, 16, kChunk>& gate, bool gated) {
  rt<T, 16, kChunk> part;
  load(part, x);
  copy(v, part);
  if (!gated) return;
  load(part, gate);
  mul(v, v, part);
}

// y of a tile, times a gate that lies in `tile`, goes out through that tile.
template <class T>
TK_DEVICE void write(const Signal& to, const rt_fl<16, 16> (&y)[4], st<T, 16, kChunk>& tile, bool gated, int b, int channel,
                     int chunks, int row) {
  rt<T, 16, kChunk> part;
  if (gated) load(part, tile);
  rt_fl<16, kChunk> out;
#pragma unroll
  for (int c = 0; c < 4; ++c)
#pragma unroll
    for (int e = 0; e < 8; ++e) out.x[0][8 * c + e] = y[c].x[0][e];
  if (gated) mul(out, out, part);
  copy(part, out);
  __syncwarp();
  store(tile, part);
  __syncwarp();
  const view<const T> at = samples<T>(to, b, channel, chunks);
  store(view<T>{const_cast<T*>(at.data), at.rows, at.cols, at.row_stride}, tile, row, 0);
}

template <class T>
struct Conv {
  static constexpr int Parts = parts_of(sizeof(T));
  using Tile = st<T, 16, kChunk>;

  struct Group {
    Fragments<Parts> into[4], out_of[4];
    Strides strides;
  };
  struct Shared {  // of it, `groups` groups
    Fragments<Parts> toeplitz[4];
    float h[kChunk];
    Group group[1];
  };
  static_assert(sizeof(Group) == group_bytes(sizeof(T)) && sizeof(Powers) <= 3 * sizeof(Tile) &&
                    3 * sizeof(Tile) + sizeof(Shared) == conv_bytes(sizeof(T), 1),
                "the launcher asks for conv_bytes()");

  // ---- Tables -----------------------------------------------------------------------------------------------------
  TK_DEVICE static void make_group(Group& group, Powers& powers, double (&h)[2], const Params& p, int channel, int first) {
#pragma unroll 1
    for (int m = 0; m < kGroup; ++m) {
      const bool live = first + m < p.modes;
      const long long at = static_cast<long long>(channel) * p.modes + first + m;
      const float2 pole = load(p.poles, at, live), residue = load(p.residues, at, live);
      double2 reach[2];
      raise<false>(powers, group.strides, m, wide(pole), reach);
#pragma unroll
      for (int i = 0; i < 2; ++i) h[i] += (wide(residue) * reach[i]).x;
      if (lane_index() == 0) powers.residue[m] = residue;
    }
    __syncwarp();
    // One of the two tables has the residues, which are 0 for modes that do not exist.
    const auto entry = [&](int mode, int exponent, bool weighted) {
      return (weighted ? powers.residue[mode] : make_float2(1.0f, 0.0f)) * powers.of[mode][exponent];
    };
#pragma unroll 1
    for (int c = 0; c < 4; ++c) {
      keep(group.into[c], [&](int row, int col) {
        const int j = 16 * c + row;
        const float2 x = entry(col / 2, 63 - j, false);
        return col % 2 ? x.y : x.x;
      });
      keep(group.out_of[c], [&](int row, int col) {
        const int i = 16 * c + col;
        const float2 x = entry(row / 2, i + 1, true);
        return row % 2 ? -x.y : x.x;
      });
    }
    __syncwarp();
  }

  TK_DEVICE static void make_tables(Shared& shared, Powers& powers, const Params& p, int channel) {
    double h[2] = {};
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) make_group(shared.group[g], powers, h, p, channel, kGroup * g);
    if (p.skip && lane_index() == 0) h[0] += p.skip[channel];
    shared.h[lane_index()] = static_cast<float>(h[0]);
    shared.h[lane_index() + 32] = static_cast<float>(h[1]);
    __syncwarp();
#pragma unroll 1
    for (int d = 0; d < 4; ++d)
      keep(shared.toeplitz[d], [&](int row, int col) {
        const int lag = 16 * d + col - row;
        return lag >= 0 ? shared.h[lag] : 0.0f;
      });
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

  // ---- The CTA ----------------------------------------------------------------------------------------------------
  // y of a tile's samples alone.
  TK_DEVICE static void convolve(rt_fl<16, 16> (&y)[4], const rt_bf<16, kChunk> (&v)[Parts], const Shared& shared) {
#pragma unroll
    for (int c = 0; c < 4; ++c) zero(y[c]);
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      BlockPiece b[Parts];
      load(b, shared.toeplitz[d]);
#pragma unroll
      for (int c = 0; c + d < 4; ++c) {
        rt_bf<16, 16> a[Parts];
        block_of(a, v, c);
        multiply(y[c + d], a, b);
      }
    }
  }

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
      rt_bf<16, kChunk> v[Parts];
      {
        wait_loads<1>();
        __syncwarp();
        rt_fl<16, kChunk> whole;
        product(whole, tiles[0], tiles[1], p.in[1].data != nullptr);
        cut(v, whole);
        __syncwarp();
        fetch(0, 2, i + 1);
      }
      rt_fl<16, 16> y[4];
      if (speaks) convolve(y, v, shared);
#pragma unroll 1
      for (int g = 0; g < p.groups; ++g) {
        Group& group = shared.group[g];
        rt_fl<16, 16> states;
        into_states(states, v, group.into);
        scan<false>(states, group.strides, 0);
        if (p.end && !p.only_local && chunks < kRows) leave_end(states, p, chunks, b, channel, kGroup * g);
        if (!speaks) continue;
        rt_bf<16, 16> piece[Parts];
        cut(piece, states);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          BlockPiece b[Parts];
          load(b, group.out_of[c]);
          multiply(y[c], piece, b);
        }
      }
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
