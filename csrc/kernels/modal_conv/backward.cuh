// modal_conv's backward, all of it: with v = pre u, g = post dy and, per channel and mode,
//   x_t = p x_{t-1} + v_t,   lambda_t = conj(R) g_t + conj(p) lambda_{t+1}          (L before t: conj(p) lambda_{t+1})
//   dpost = dy (Re sum R x + skip v),  dv = Re sum lambda + skip g,  du = pre dv,  dpre = u dv
//   dR = sum g_t conj(x_t),  dp = sum lambda_t conj(x_{t-1}),  dskip = sum v g
//
// in   u, pre, dy, post [B,H,L] bf16, fp16 or f32, samples side by side, any pitch and length; poles, residues [H,S];
//      the state before the first sample, and the gradient of that after the last chunk (whole chunks only)
// out  du, dpre, dpost; the gradient of the state before (double); shares [segments B, H, S], [.., H] of the parameters'
//      gradients, added by whoever asked
// blocks  a chunk of 64 samples is four blocks of 16, which with P = p^16 pass their states on in the lane: block c finds
//      x_c and leaves x_{c+1} = P x_c + A_c, backwards L_{c-1} = conj(P) L_c + conj(R) G_c. With i, j, k < 16, in a block
//      A = sum p^{15-j} v_j          y_i  = Re R p^{i+1} x + (v T)_i      T_ji = h_{i-j}, j <= i: Toeplitz, 16 x 16
//      G = sum conj(p^{i+1}) g_i     dv_j = Re conj(p)^{15-j} L + (g T^t)_j
//      dR = sum conj(x) G                                                                + sum_k conj(p^k) c_k
//      dp = sum 16 conj(p^15) L conj(x) + L conj(A') + conj(R x) G'   + conj(R) sum_k k conj(p^{k-1}) c_k
//      A' = sum (15-j) p^{14-j} v_j, G' = sum (i+1) conj(p^i) g_i, c_k = sum v_j g_{j+k} (v^t g along its diagonals)
//      so five tables of 16 x 16 serve it all, each for its product and its transpose: near (p^{15-j}), far (conj(p^{i+1})),
//      their slopes, T. The rows of mma.sync are 16 chunks, as in conv.cuh; chunks pass states on by its scan
// CTA  one warp: a segment of tiles of one (batch, channel), twice. Forwards through u and pre, to find each tile's state,
//      which goes to memory (8 S bytes of 14 KB); then backwards through all four, where everything comes out. The tiles
//      that the first sweep read last are still in shared memory when the second begins with them: `kept` of them
// data gl --cp.async--> tiles, one ahead --> registers by blocks, cut into pieces of bf16 --> products. wait_loads,
//      __syncwarp: they are there for all lanes; __syncwarp at the end: all have read, the tile may be filled again.
//      Outputs leave through the tiles of what they are multiplied by
// segments  where channels are few: a launch before (`only_local`) leaves what each adds to the states, both ways
// precision  as conv.cuh: products of 2 pieces (f32: 3), sums f32, states from tile to tile double
// cost elements a sample: 7 where a segment fits in `kept` tiles, else 9 - 2 kept / tiles (without gates 3 and 4);
//      4 more before segments. Products of 40 blocks: 320 flops (8 modes; each further 8: 224), three times (f32: six)
#pragma once

#include "conv.cuh"

namespace tkpy::modal_conv {

template <class T>
struct Backward {
  static constexpr int Parts = parts_of(sizeof(T)), kBlock = 16, kBlocks = kChunk / kBlock;
  using Tile = st<T, kRows, kChunk>;
  using Sum = rt_fl<16, 16>;  // chunks x 16 samples, or x real and imaginary parts of 8 modes
  using Operand = rt_bf<16, 16>[Parts];
  using Table = st<bf16, 16, 16>[Parts];

  struct Group {
    Table near, far, near_slope, far_slope;  // samples x modes
    Strides forth, rear;
    float2 residue[kGroup], step[kGroup];  // R, p^16
    float4 sum[4][32];  // a lane's shares, for modes lane % 4 and + 4, of conj(x) G, conj(x) G', L conj(x), L conj(A')
  };
  struct Shared {
    Table toeplitz;
    float h[kBlock], c[kBlock];
    float4 lags[2][32];  // v^t g, a lane's part
    Group group[1];
  };
  static_assert(sizeof(Group) == backward_group_bytes(sizeof(T)) &&
                    4 * sizeof(Tile) + sizeof(Shared) == backward_bytes(sizeof(T), 0, 1) && sizeof(Powers) <= 6 * sizeof(Tile),
                "the launcher asks for backward_bytes()");

  const BackwardParams& p;
  Tile* const tiles;  // two pairs of dy and post, `kept` pairs of u and pre; scratch before and after
  Shared& shared;
  const int b, channel, segment;
  const int begin = segment * p.segment_tiles, end = min(begin + p.segment_tiles, p.tiles);

  // ---- Tables -----------------------------------------------------------------------------------------------------
  // The element of row r and column 2 m is the real part of f(r, m), that of column 2 m + 1 the imaginary part.
  template <class F>
  TK_DEVICE static void make(Table& to, F f) {
    Sum whole;
    zero(whole);
    map_at(whole, whole, [&](int row, int col, float) {
      const float2 x = f(row, col / 2);
      return col % 2 ? x.y : x.x;
    });
    keep(to, whole);
  }
  TK_DEVICE static void keep(Table& to, const Sum& whole) {
    Operand piece;
    cut(piece, whole);
#pragma unroll
    for (int i = 0; i < Parts; ++i) store(to[i], piece[i]);
  }
  TK_DEVICE static float2 times(float factor, float2 x) { return make_float2(factor * x.x, factor * x.y); }

  TK_DEVICE void make_group(Group& group, Powers& powers, double& h, int first) const {
    const int lane = lane_index();
#pragma unroll 1
    for (int m = 0; m < kGroup; ++m) {
      const bool live = first + m < p.modes;
      const long long at = static_cast<long long>(channel) * p.modes + first + m;
      const float2 pole = load(p.poles, at, live), residue = load(p.residues, at, live);
      double2 reach;
      raise(powers, group.rear, m, wide(conj(pole)), reach);
      raise(powers, group.forth, m, wide(pole), reach);
      h += (wide(residue) * reach).x;
      if (lane == kBlock) group.step[m] = narrow(reach), group.residue[m] = residue;
    }
    __syncwarp();
    make(group.near, [&](int j, int m) { return powers.of[m][15 - j]; });
    make(group.far, [&](int i, int m) { return conj(powers.of[m][i + 1]); });
    make(group.near_slope, [&](int j, int m) { return times(static_cast<float>(15 - j), powers.of[m][max(14 - j, 0)]); });
    make(group.far_slope, [&](int i, int m) { return times(static_cast<float>(i + 1), conj(powers.of[m][i])); });
#pragma unroll
    for (int i = 0; i < 4; ++i) group.sum[i][lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncwarp();
  }
  TK_DEVICE void make_tables() const {
    Powers& powers = *reinterpret_cast<Powers*>(tiles);
    double h = 0.0;
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) make_group(shared.group[g], powers, h, kGroup * g);
    if (p.skip && lane_index() == 0) h += p.skip[channel];
    if (lane_index() < kBlock) shared.h[lane_index()] = static_cast<float>(h);
    __syncwarp();
    Sum whole;
    zero(whole);
    map_at(whole, whole, [&](int j, int i, float) { return i >= j ? shared.h[i - j] : 0.0f; });
    keep(shared.toeplitz, whole);
    shared.lags[0][lane_index()] = shared.lags[1][lane_index()] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncwarp();
  }

  // ---- Products and states ----------------------------------------------------------------------------------------
  // d += a table, d += a table^t, up to the products of two small pieces.
  TK_DEVICE static void multiply(Sum& d, const Operand& a, const Table& table) {
#pragma unroll
    for (int j = 0; j < Parts; ++j) {
      BlockPiece right;
      load(right, table[j]);
#pragma unroll
      for (int i = 0; i + j < Parts; ++i) mma_AB(d, a[i], right);
    }
  }
  TK_DEVICE static void multiply_transposed(Sum& d, const Operand& a, const Table& table) {
#pragma unroll
    for (int j = 0; j < Parts; ++j) {
      rt_bf<16, 16> right;
      load(right, table[j]);
#pragma unroll
      for (int i = 0; i + j < Parts; ++i) mma_ABt(d, a[i], right);
    }
  }
  // lags += v^t g
  TK_DEVICE static void correlate(Sum& lags, const Operand& v, const Operand& g) {
    BlockPiece right[Parts];
#pragma unroll
    for (int j = 0; j < Parts; ++j) swap_layout(right[j], g[j]);
#pragma unroll
    for (int i = 0; i < Parts; ++i) {
      BlockPiece left;
      swap_layout(left, v[i]);
#pragma unroll
      for (int j = 0; i + j < Parts; ++j) mma_AtB(lags, left, right[j]);
    }
  }

  // A lane has chunks g and g + 8 (half) of modes lane % 4 and lane % 4 + 4 (m).
  TK_DEVICE static float2 at(const Sum& x, int m, int half) {
    return make_float2(x.x[0][4 * m + 2 * half], x.x[0][4 * m + 2 * half + 1]);
  }
  template <class F>
  TK_DEVICE static void fill(Sum& x, F f) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 value = f(m, half);
        x.x[0][4 * m + 2 * half] = value.x;
        x.x[0][4 * m + 2 * half + 1] = value.y;
      }
  }
  struct Modes {  // of a lane
    float2 residue[2], step[2];
  };
  TK_DEVICE static Modes modes_of(const Group& group) {
    const int t = lane_index() % 4;
    return {{group.residue[t], group.residue[t + 4]}, {group.step[t], group.step[t + 4]}};
  }

  // ---- Signals ----------------------------------------------------------------------------------------------------
  TK_DEVICE Tile& tile(int signal, int i) const {
    return signal < 2 ? tiles[4 + 2 * (i % p.kept) + signal] : tiles[2 * (i % 2) + signal - 2];
  }
  TK_DEVICE int chunks_of(int i) const { return min(kRows, p.chunks - kRows * i); }
  // Signals first .. last - 1 of tile i.
  TK_DEVICE void fetch(int first, int last, int i) const {
#pragma unroll 1
    for (int s = first; s < last; ++s)
      if (p.in[s].data) load_async(tile(s, i), samples<T>(p.in[s], b, channel, p.length / kChunk), kRows * i, 0);
  }
  // Calls f(place in the tile, sample) for the samples of a last chunk that is not whole, if it is in tile i.
  template <class F>
  TK_DEVICE void each_left(int i, F f) const {
    const int row = p.length / kChunk - kRows * i;
    if (row >= kRows || p.length % kChunk == 0) return;
#pragma unroll 1
    for (int k = lane_index(); k < p.length % kChunk; k += 32) f(row, k, p.length / kChunk * kChunk + k);
    __syncwarp();
  }
  TK_DEVICE T* signal(const Signal& x) const { return static_cast<T*>(x.data) + b * x.batch + channel * x.channel; }
  // The loads have landed; those samples are added.
  TK_DEVICE void complete(int first, int i) const {
#pragma unroll 1
    for (int s = first; s < first + 2; ++s)
      if (p.in[s].data) each_left(i, [&](int row, int k, int t) { tile(s, i).at(row, k) = signal(p.in[s])[t]; });
  }
  TK_DEVICE void leave(int output, const Sum (&y)[kBlocks], Tile& through, bool gated, int i) const {
    const Signal& to = p.out[output];
    if (!to.data) return;
    write<T>(to, y, through, gated, b, channel, p.length / kChunk, kRows * i);
    each_left(i, [&](int row, int k, int t) { signal(to)[t] = through.at(row, k); });
  }

  // Block c of v (of g, from signal 2 on).
  TK_DEVICE void form(Operand& to, int signal, int i, int c) const {
    rt<T, 16, kBlock> part;
    Sum whole;
    load(part, tile(signal, i), 0, kBlock * c);
    copy(whole, part);
    if (p.in[signal + 1].data) {
      load(part, tile(signal + 1, i), 0, kBlock * c);
      mul(whole, whole, part);
    }
    cut(to, whole);
  }

  TK_DEVICE auto from_tiles(int i) const {
    return [this, i](Operand& to, int signal, int c) { form(to, signal, i, c); };
  }

  // ---- Carried states: a lane has one mode --------------------------------------------------------------------------
  TK_DEVICE long long state_at(int outer) const {
    return ((static_cast<long long>(outer) * p.batch + b) * p.channels + channel) * p.modes;
  }
  template <class F>
  TK_DEVICE void each_mode(F f) const {
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g)
      if (lane_index() < kGroup && kGroup * g + lane_index() < p.modes) f(shared.group[g], kGroup * g + lane_index());
    __syncwarp();
  }
  TK_DEVICE double2 folded(double2 state, int s, int mode, double2 factor) const {
    const WideComplex& local = p.local[state_at(s) + mode];
    return factor * state + make_double2(local.re, local.im);
  }
  // What this segment finds at its start and at its end: the whole's, carried over the segments between.
  TK_DEVICE void find_carries() const {
    const int lane = lane_index(), each = kRows * p.segment_tiles;
#pragma unroll 1
    for (int g = 0; g < p.groups && lane < kGroup; ++g)
      shared.group[g].forth.carry[lane] = shared.group[g].rear.carry[lane] = make_double2(0.0, 0.0);
    __syncwarp();
    if (p.only_local) return;
    each_mode([&](Group& group, int mode) {
      const double2 pole = wide(load(p.poles, static_cast<long long>(channel) * p.modes + mode, true));
      double2 forth = wide(load(p.start, state_at(0) + mode, p.start)), rear = wide(load(p.end, state_at(0) + mode, p.end));
      const double2 factor = p.segments > 1 ? power(pole, kChunk * each) : pole;
#pragma unroll 1
      for (int s = 0; s < segment; ++s) forth = folded(forth, s, mode, factor);
      double2 back = segment + 1 < p.segments ? power(pole, kChunk * (p.chunks - (p.segments - 1) * each)) : pole;
#pragma unroll 1
      for (int s = p.segments - 1; s > segment; --s) {
        rear = folded(rear, p.segments + s, mode, make_double2(back.x, -back.y));
        back = factor;
      }
      group.forth.carry[lane] = forth;
      group.rear.carry[lane] = rear;
    });
  }
  TK_DEVICE void leave_carry(WideComplex* to, Strides Group::*strides, int outer) const {
    each_mode([&](Group& group, int mode) {
      const double2 x = (group.*strides).carry[lane_index()];
      to[state_at(outer) + mode] = {x.x, x.y};
    });
  }
  TK_DEVICE void leave_starts(int i) const {
    each_mode([&](Group& group, int mode) {
      const float2 x = narrow(group.forth.carry[lane_index()]);
      p.starts[state_at(i) + mode] = {x.x, x.y};
    });
  }
  TK_DEVICE void find_starts(int i) const {
    each_mode([&](Group& group, int mode) { group.forth.carry[lane_index()] = wide(load(p.starts, state_at(i) + mode, true)); });
  }

  // ---- The first sweep ----------------------------------------------------------------------------------------------
  // The carried states of v, or (Reverse) of g, over tile i, whose blocks `form` makes.
  template <bool Reverse, class Form>
  TK_DEVICE void pass(int i, Form form) const {
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) {
      Group& group = shared.group[g];
      const Modes modes = modes_of(group);
      Sum states;
      zero(states);
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        Operand x;
        form(x, Reverse ? 2 : 0, Reverse ? kBlocks - 1 - k : k);
        fill(states, [&](int m, int half) { return (Reverse ? conj(modes.step[m]) : modes.step[m]) * at(states, m, half); });
        multiply(states, x, Reverse ? group.far : group.near);
      }
      if constexpr (Reverse) fill(states, [&](int m, int half) { return conj(modes.residue[m]) * at(states, m, half); });
      scan<Reverse>(states, Reverse ? group.rear : group.forth, Reverse ? kRows - chunks_of(i) : 0);  // __syncwarp in it
    }
  }
  // The states alone, of v forwards or (Reverse) of g backwards, through this segment's tiles.
  template <bool Reverse>
  TK_DEVICE void sweep() const {
    constexpr int signals = Reverse ? 2 : 0;
    const auto order = [&](int n) { return Reverse ? end - 1 - n : begin + n; };
#pragma unroll 1
    for (int n = -1; n < end - begin; ++n) {
      const int i = order(n);
      if (n + 1 < end - begin) fetch(signals, signals + 2, order(n + 1));
      commit_loads();
      if (n < 0) continue;
      wait_loads<1>();
      __syncwarp();
      complete(signals, i);
      if (!p.only_local) leave_starts(i);
      if (!p.only_local && n + 1 == end - begin) break;  // nobody asks for the state after it
      pass<Reverse>(i, from_tiles(i));
    }
  }

  // ---- The second sweep ---------------------------------------------------------------------------------------------
  TK_DEVICE static void grow(float4& sum, float x, float y, float z, float w) {
    const float4 old = load(sum);
    sum = make_float4(old.x + x, old.y + y, old.z + z, old.w + w);
  }
  // The lane's shares from `first` on take in two more sums, which begin anew.
  TK_DEVICE static void grow(Group& group, int first, float2 (&sums)[2][2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      grow(group.sum[first + k][lane_index()], sums[k][0].x, sums[k][0].y, sums[k][1].x, sums[k][1].y);
      sums[k][0] = sums[k][1] = make_float2(0.0f, 0.0f);
    }
  }

  // One group's shares of a tile's y and dv, and of the parameters' gradients; of the first group also what needs no state.
  // Blocks are formed (0: of v, 2: of g) again where they are needed again: with all that is carried they would not fit into registers.
  template <class Form>
  TK_DEVICE void add(Sum (&y)[kBlocks], Sum (&dv)[kBlocks], int g, int i, Form form) const {
    Group& group = shared.group[g];
    const Modes modes = modes_of(group);
    Sum x, slope, found[kBlocks], adjoint[kBlocks];  // A, later x, of each block; G
    zero(x);
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) zero(found[c]);
    if (p.forth) {
      const bool correlated = g == 0 && p.parameters;
      Sum lags;
      zero(lags);
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        Operand v;
        form(v, 0, c);
        if (g == 0) multiply(y[c], v, shared.toeplitz);
        multiply(found[c], v, group.near);
        if (correlated) {
          Operand dy;
          form(dy, 2, c);
          correlate(lags, v, dy);
        }
        fill(x, [&](int m, int half) { return madd(modes.step[m], at(x, m, half), at(found[c], m, half)); });
      }
      if (correlated) {
#pragma unroll
        for (int k = 0; k < 2; ++k)
          grow(shared.lags[k][lane_index()], lags.x[0][4 * k], lags.x[0][4 * k + 1], lags.x[0][4 * k + 2], lags.x[0][4 * k + 3]);
      }
      scan<false>(x, group.forth, 0);
    }
    float2 sums[2][2] = {};
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      Operand dy, read;
      form(dy, 2, c);
      if (g == 0) multiply_transposed(dv[c], dy, shared.toeplitz);
      zero(adjoint[c]);
      multiply(adjoint[c], dy, group.far);
      if (!p.forth) continue;
      zero(slope);
      if (p.parameters) multiply(slope, dy, group.far_slope);
      Sum next;
      fill(next, [&](int m, int half) { return modes.residue[m] * at(x, m, half); });
      cut(read, next);
      multiply_transposed(y[c], read, group.far);
      fill(next, [&](int m, int half) {
        const float2 here = at(x, m, half);
        sums[0][m] = madd(conj(here), at(adjoint[c], m, half), sums[0][m]);
        sums[1][m] = madd(conj(here), at(slope, m, half), sums[1][m]);
        return madd(modes.step[m], here, at(found[c], m, half));
      });
      found[c] = x;
      x = next;
    }
    grow(group, 0, sums);
    Sum l;
    zero(l);
#pragma unroll
    for (int c = kBlocks - 1; c >= 0; --c) {
      fill(adjoint[c], [&](int m, int half) { return conj(modes.residue[m]) * at(adjoint[c], m, half); });
      fill(l, [&](int m, int half) { return madd(conj(modes.step[m]), at(l, m, half), at(adjoint[c], m, half)); });
    }
    scan<true>(l, group.rear, kRows - chunks_of(i));
#pragma unroll
    for (int c = kBlocks - 1; c >= 0; --c) {
      Operand piece;
      cut(piece, l);
      multiply_transposed(dv[c], piece, group.near);
      zero(slope);
      if (p.parameters) {
        Operand v;
        form(v, 0, c);
        multiply(slope, v, group.near_slope);
      }
      const Modes again = modes_of(group);
      fill(l, [&](int m, int half) {
        const float2 here = at(l, m, half);
        sums[0][m] = madd(here, conj(at(found[c], m, half)), sums[0][m]);
        sums[1][m] = madd(here, conj(at(slope, m, half)), sums[1][m]);
        return madd(conj(again.step[m]), here, at(adjoint[c], m, half));
      });
    }
    grow(group, 2, sums);
  }

  // The lanes' sums joined, and from them this segment's share of the gradients.
  TK_DEVICE void finish() const {
    const int lane = lane_index(), share = segment * p.batch + b;
    float* const memory = reinterpret_cast<float*>(tiles);
#pragma unroll
    for (int e = 0; e < 8; ++e) memory[16 * Sum::row(0, e) + Sum::col(0, e)] = reinterpret_cast<const float*>(&shared.lags[e / 4][lane])[e % 4];
    __syncwarp();
    if (lane < kBlock) {
      float sum = 0.0f;
#pragma unroll 1
      for (int r = 0; r + lane < kBlock; ++r) sum += memory[16 * r + r + lane];
      shared.c[lane] = sum;
      if (lane == 0) p.dskip[static_cast<long long>(share) * p.channels + channel] = sum;
    }
    __syncwarp();
    each_mode([&](Group& group, int mode) {
      float2 of[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        of[k] = make_float2(0.0f, 0.0f);
#pragma unroll 1
        for (int other = lane % 4; other < 32; other += 4) of[k] = of[k] + mode_of(load(group.sum[k][other]), lane / 4);
      }
      const float2 residue = group.residue[lane];
      const double2 pole = wide(load(p.poles, static_cast<long long>(channel) * p.modes + mode, true));
      double2 value = make_double2(0.0, 0.0), slope = value;  // sum_k c_k p^k and its derivative, by Horner's rule
#pragma unroll 1
      for (int k = kBlock - 1; k >= 0; --k) {
        slope = pole * slope + value;
        value = pole * value + make_double2(shared.c[k], 0.0);
      }
      const float2 far = times(16.0f, conj(narrow(power(pole, kBlock - 1))));
      const float2 dresidue = of[0] + conj(narrow(value));
      const float2 dpole = far * of[2] + of[3] + conj(residue) * (of[1] + conj(narrow(slope)));
      const long long to = (static_cast<long long>(share) * p.channels + channel) * p.modes + mode;
      p.dresidues[to] = {dresidue.x, dresidue.y};
      p.dpoles[to] = {dpole.x, dpole.y};
    });
  }

  TK_DEVICE void run() const {
    make_tables();
    find_carries();
    if (p.forth && !(p.only_local && segment + 1 == p.segments)) sweep<false>();
    if (p.only_local) {
      if (p.forth && segment + 1 < p.segments) leave_carry(p.local, &Group::forth, segment);
      if (segment > 0) {
        sweep<true>();
        leave_carry(p.local, &Group::rear, p.segments + segment);
      }
      return;
    }
#pragma unroll 1
    for (int i = end; i >= begin; --i) {
      const int next = i - 1;
      if (next >= begin) fetch(p.forth && next >= end - p.kept ? 2 : 0, 4, next);  // u and pre, unless they are still there
      commit_loads();
      if (i == end) continue;
      if (p.forth) find_starts(i);
      wait_loads<1>();
      __syncwarp();
      complete(2, i);
      complete(0, i);
      Sum y[kBlocks], dv[kBlocks];
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) zero(y[c]), zero(dv[c]);
#pragma unroll 1
      for (int g = 0; g < p.groups; ++g) add(y, dv, g, i, from_tiles(i));
      __syncwarp();
      leave(2, y, tile(2, i), true, i);
#pragma unroll 1
      for (int s = 0; s < 2; ++s) leave(s, dv, tile(1 - s, i), s == 1 || p.in[1].data, i);
      __syncwarp();
    }
    if (p.parameters) finish();
    if (p.dstart && segment == 0) leave_carry(p.dstart, &Group::rear, 0);
  }
};

template <class T>
TK_DEVICE void backward(const BackwardParams& p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  using Kernel = Backward<T>;
  typename Kernel::Tile* const tiles = reinterpret_cast<typename Kernel::Tile*>(memory);
  const int outer = static_cast<int>(blockIdx.x) / p.channels;
  Kernel{p, tiles, *reinterpret_cast<typename Kernel::Shared*>(&tiles[4 + 2 * p.kept]), outer % p.batch,
         static_cast<int>(blockIdx.x) % p.channels, outer / p.batch}
      .run();
}

}  // namespace tkpy::modal_conv
