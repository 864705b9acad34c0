// modal_conv's gradients of poles, residues and skip, from what the forward and the reverse pass (conv.cuh) have found at
// the start and end of each tile: X before and L after each chunk (L_i = dy / dx_63 of a chunk by all later samples).
// With x_i = p^{i+1} X + sum_{j<=i} p^{i-j} v_j, lambda_i = conj(p)^{63-i} L + conj(R) sum_{k>=i} conj(p)^{k-i} g_k in a chunk
//
//   dR = sum g_i conj(x_i)             = sum_chunks conj(X) G                                      + sum_k conj(p^k) c_k
//   dp = sum lambda_i conj(x_{i-1})    = sum_chunks 64 conj(p^63) L conj(X) + L conj(V') + conj(R X) G'
//                                                                                    + conj(R) sum_k k conj(p^{k-1}) c_k
//   dskip = c_0
//   G = sum_i conj(p^{i+1}) g_i, G' = sum_i (i+1) conj(p^i) g_i, V' = sum_j (63-j) p^{62-j} v_j, c_k = sum v_j g_{j+k}
//
// in   u, pre, dy, post [B,H,L]; v = pre u, g = post dy      out  shares [shares,H,S], [shares,H], added by whoever asked
// CTA  one warp: a share of the tiles of one channel, and eight modes. Tiles do not depend on each other
// c    4 x 4 blocks of v^t g, added along the diagonals of blocks as they come (what depends on i - j only): K is chunks
// data gl --cp.async--> four tiles --> registers, the next ones are fetched at once; wait_loads, __syncwarp as in conv.cuh
// cost a sample: 4 elements read, products of 208 flops, three times (six for f32)
#pragma once

#include "conv.cuh"

namespace tkpy::modal_conv {

template <class T>
struct Gradient {
  static constexpr int Parts = parts_of(sizeof(T));
  using Tile = st<T, 16, kChunk>;
  using Samples = rt_bf<16, kChunk>[Parts];

  struct Shared {
    Fragments<Parts> into[4], into_slope[4], back[4], back_slope[4];  // of v to X and V', of g to G and G'
    Strides forth, rear;
  };
  struct Sums {  // at the end, in the tiles' place, behind the powers
    float2 of[4][kGroup];  // of conj(X) G, L conj(X), L conj(V'), conj(X) G'
    float c[kChunk + 1];
    float lags[16][kChunk];
  };
  static_assert(4 * sizeof(Tile) + sizeof(Shared) == gradient_bytes(sizeof(T)) &&
                    sizeof(Powers) + sizeof(Sums) <= 4 * sizeof(Tile) + sizeof(Shared),
                "the launcher asks for gradient_bytes()");

  TK_DEVICE static void make_tables(Shared& shared, Powers& powers, const GradientParams& p, int channel, int first) {
    double2 reach[2];
#pragma unroll 1
    for (int m = 0; m < kGroup; ++m) {
      const bool live = first + m < p.modes;
      const long long at = static_cast<long long>(channel) * p.modes + first + m;
      const double2 pole = wide(load(p.poles, at, live));
      if (lane_index() == 0) powers.residue[m] = load(p.residues, at, live);
      raise<true>(powers, shared.rear, m, make_double2(pole.x, -pole.y), reach);
      raise<false>(powers, shared.forth, m, pole, reach);
    }
    __syncwarp();
    // Column 2 m is the real part of mode m, column 2 m + 1 the imaginary part, of g's tables that of the conjugate.
    const auto table = [&](Fragments<Parts>& to, bool adjoint, auto exponent, auto factor) {
      keep(to, [&](int row, int col) {
        const int e = exponent(row);
        const float2 x = powers.of[col / 2][e < 0 ? 0 : e];
        return factor(row) * (col % 2 == 0 ? x.x : adjoint ? -x.y : x.y);
      });
    };
#pragma unroll 1
    for (int c = 0; c < 4; ++c) {
      table(shared.into[c], false, [&](int row) { return 63 - 16 * c - row; }, [](int) { return 1.0f; });
      table(shared.into_slope[c], false, [&](int row) { return 62 - 16 * c - row; },
            [&](int row) { return static_cast<float>(63 - 16 * c - row); });
      table(shared.back[c], true, [&](int row) { return 16 * c + row + 1; }, [](int) { return 1.0f; });
      table(shared.back_slope[c], true, [&](int row) { return 16 * c + row; },
            [&](int row) { return static_cast<float>(16 * c + row + 1); });
    }
    __syncwarp();
  }

  // lags[d] += sum over the blocks a of v_a^t g_{a+d}.
  TK_DEVICE static void correlate(rt_fl<16, 16> (&lags)[4], const Samples& v, const Samples& g) {
    rt<bf16, 16, 16, Layout::col> right[4][Parts];
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int i = 0; i < Parts; ++i) {
        rt_bf<16, 16> rows;
        columns(rows, g[i], 16 * a);
        swap_layout(right[a][i], rows);
      }
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int i = 0; i < Parts; ++i) {
        rt_bf<16, 16> rows;
        rt<bf16, 16, 16, Layout::col> left;
        columns(rows, v[i], 16 * a);
        swap_layout(left, rows);
#pragma unroll
        for (int d = 0; a + d < 4; ++d)
#pragma unroll
          for (int j = 0; i + j < Parts; ++j) mma_AtB(lags[d], left, right[a + d][j]);
      }
  }

  TK_DEVICE static float2 at(const rt_fl<16, 16>& x, int m, int half) {
    return make_float2(x.x[0][4 * m + 2 * half], x.x[0][4 * m + 2 * half + 1]);
  }

  // One tile's shares of the sums over chunks.
  TK_DEVICE static void add_states(float2 (&sums)[4][2], const Samples& v, const Samples& g, Shared& shared,
                                   const float2 (&residues)[2], int missing) {
    rt_fl<16, 16> x, back, after, slope;
    into_states(x, v, shared.into);
    scan<false>(x, shared.forth, 0);
    into_states(back, g, shared.back);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 weighted = conj(residues[m]) * at(back, m, half);
        after.x[0][4 * m + 2 * half] = weighted.x;
        after.x[0][4 * m + 2 * half + 1] = weighted.y;
        sums[0][m] = sums[0][m] + conj(at(x, m, half)) * at(back, m, half);
      }
    scan<true>(after, shared.rear, missing);
    into_states(slope, v, shared.into_slope);
    into_states(back, g, shared.back_slope);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sums[1][m] = sums[1][m] + at(after, m, half) * conj(at(x, m, half));
        sums[2][m] = sums[2][m] + at(after, m, half) * conj(at(slope, m, half));
        sums[3][m] = sums[3][m] + conj(at(x, m, half)) * at(back, m, half);
      }
  }

  // The lanes' sums joined, and from them the gradients.
  TK_DEVICE static void finish(const GradientParams& p, unsigned char* memory, Strides& strides, float2 (&sums)[4][2],
                               const rt_fl<16, 16> (&lags)[4], int share, int channel, int first) {
    Powers& powers = *reinterpret_cast<Powers*>(memory);
    Sums& all = *reinterpret_cast<Sums*>(memory + sizeof(Powers));
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int bit = 4; bit < 32; bit *= 2) sums[i][m] = sums[i][m] + shuffle(sums[i][m], lane ^ bit);
        if (lane < 4) all.of[i][lane + 4 * m] = sums[i][m];
      }
#pragma unroll
    for (int d = 0; d < 4; ++d)
#pragma unroll
      for (int e = 0; e < 8; ++e) all.lags[rt_fl<16, 16>::row(0, e)][16 * d + rt_fl<16, 16>::col(0, e)] = lags[d].x[0][e];
    __syncwarp();
#pragma unroll
    for (int k = lane; k < kChunk; k += 32) {
      float sum = 0.0f;
#pragma unroll 1
      for (int r = 0; r < 16 && r + k < kChunk; ++r) sum += all.lags[r][r + k];
      all.c[k] = sum;
    }
    if (lane == 0) all.c[kChunk] = 0.0f;
    __syncwarp();
    if (lane == 0 && first == 0 && p.dskip) p.dskip[static_cast<long long>(share) * p.channels + channel] = all.c[0];
#pragma unroll 1
    for (int m = 0; m < kGroup && first + m < p.modes; ++m) {
      const long long mode = static_cast<long long>(channel) * p.modes + first + m;
      const float2 residue = load(p.residues, mode, true);
      double2 reach[2];
      raise<false>(powers, strides, m, wide(load(p.poles, mode, true)), reach);
      double2 value = make_double2(0.0, 0.0), slope = value;  // sum_k p^k c_k, sum_k k p^{k-1} c_k
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = lane + 32 * i;
        value = value + reach[i] * make_double2(all.c[k], 0.0);
        slope = slope + reach[i] * make_double2((k + 1) * all.c[k + 1], 0.0);
      }
#pragma unroll
      for (int bit = 1; bit < 32; bit *= 2) {
        const auto other = [&](double x) { return __shfl_xor_sync(0xffffffffu, x, bit); };
        value = value + make_double2(other(value.x), other(value.y));
        slope = slope + make_double2(other(slope.x), other(slope.y));
      }
      if (lane != 31) continue;  // which has p^63
      const float2 far = make_float2(64.0f, 0.0f) * conj(narrow(reach[1]));
      const float2 dresidue = all.of[0][m] + conj(narrow(value));
      const float2 dpole = far * all.of[1][m] + all.of[2][m] + conj(residue) * (all.of[3][m] + conj(narrow(slope)));
      const long long to = static_cast<long long>(share) * p.channels * p.modes + mode;
      p.dresidues[to] = {dresidue.x, dresidue.y};
      p.dpoles[to] = {dpole.x, dpole.y};
    }
  }

  TK_DEVICE static void run(const GradientParams& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Tile* const tiles = reinterpret_cast<Tile*>(memory);
    Shared& shared = *reinterpret_cast<Shared*>(&tiles[4]);
    const int channel = static_cast<int>(blockIdx.x) % p.channels, outer = static_cast<int>(blockIdx.x) / p.channels;
    const int first = kGroup * (outer % p.groups), share = outer / p.groups, lane = lane_index();
    make_tables(shared, *reinterpret_cast<Powers*>(memory), p, channel, first);
    float2 residues[2], sums[4][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int mode = first + lane % 4 + 4 * m;
      residues[m] = load(p.residues, static_cast<long long>(channel) * p.modes + mode, mode < p.modes);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i][m] = make_float2(0.0f, 0.0f);
    }
    rt_fl<16, 16> lags[4];
#pragma unroll
    for (int d = 0; d < 4; ++d) zero(lags[d]);

    const int begin = share * p.share_tiles, end = min(begin + p.share_tiles, p.batch * p.tiles);
    const auto fetch = [&](int i) {
#pragma unroll 1
      for (int s = 0; s < 4; ++s)
        if (p.in[s].data && i < end)
          load_async(tiles[s], samples<T>(p.in[s], i / p.tiles, channel, p.chunks), kRows * (i % p.tiles), 0);
      commit_loads();
    };
    fetch(begin);
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const int b = i / p.tiles, tile = i % p.tiles;
      if (lane < kGroup) {
        const int mode = first + lane;
        const long long at = ((static_cast<long long>(tile) * p.batch + b) * p.channels + channel) * p.modes + mode;
        shared.forth.carry[lane] = wide(load(p.starts, at, mode < p.modes));
        shared.rear.carry[lane] = wide(load(p.ends, at, mode < p.modes));
      }
      Samples v, g;
      wait_loads<0>();
      __syncwarp();
      rt_fl<16, kChunk> whole;
      product(whole, tiles[0], tiles[1], p.in[1].data != nullptr);
      cut(v, whole);
      product(whole, tiles[2], tiles[3], p.in[3].data != nullptr);
      cut(g, whole);
      __syncwarp();
      fetch(i + 1);
      add_states(sums, v, g, shared, residues, kRows - min(kRows, p.chunks - kRows * tile));
      correlate(lags, v, g);
    }
    finish(p, memory, shared.forth, sums, lags, share, channel, first);
  }
};

}  // namespace tkpy::modal_conv
