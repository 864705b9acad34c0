// Gradients of rms_norm, layer_norm: z = residual + dropout(x),  n = (z - mean) r,  y = weight n + bias,  g = weight dy
//   layer  d = r (g - sum g / D - n sum (g n) / D) + dz
//   rms    d = g r - z (sum (g z) / D) r^2 / root + dz,   root = 1 / r, or sqrt(sum z^2 / D): the derivative of 1 / r
//   dresidual = d,  dx = dropout(d) by the mask of the forward;   dweight = sum over rows of dy n,  dbias = of dy
// in   z [M,D] (x where the forward made none), dy [M,D] x's type, dz [M,D] z's type or none | weight [D] f32 or x's type
//      mean, r [M] f32 (layer) | seed int64        out  dx [M,D], dresidual [M,D] z's type | partial [2][CTAs][D] f32
// kernels  rows_<rms|layer>_norm_backward_<type of x>_<type of z>, rows_norm_sum
// grid  as forward: a team of threads (rows.cuh) takes every n-th row, the next one's elements are on their way; the team
//       sums the gradients of the parameters for its columns in registers, the CTA's teams then add theirs in order, and
//       rows_norm_sum adds the CTAs' shares in order: the same call gives the same bits
// wide  rows of more columns than a CTA holds go by stretches: z and dy are read twice, the second time out of L2, and
//       the sums stand in the CTA's share of `partial`, where each element is one thread's own
// precision  fp32; dx and dresidual rounded once      limits  as forward
// cost  bytes M D (z + dy + dz + dx + dresidual), each once, and 16 bytes a column and CTA; about 14 flops an element
#include "dropout.cuh"

namespace tkpy::rows {

template <class T, class R, bool Layer>
struct NormBackward {
  static constexpr int N = chunk_width<T>, V = kElements / N, sums = Layer ? 2 : 1;
  using Values = float[V][N];
  struct Fetched {
    raw<R, N> z[V];
    raw<T, N> dy[V];
    float mean, r;
  };

  const NormParams& p;
  Team team;
  Dropout dropout;

  TK_DEVICE explicit NormBackward(const NormParams& params) : p(params), team(params.lanes), dropout(params) {}

  TK_DEVICE int limit(long long row) const { return row < p.rows ? p.columns : 0; }
  TK_DEVICE int column(int base, int k) const { return team.column<N>(base, k); }

  TK_DEVICE void fetch(Fetched& f, long long row, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      f.z[k].load(row_of<const R>(p.z, row), column(base, k), limit(row), p.grain);
      f.dy[k].load(row_of<const T>(p.dy, row), column(base, k), limit(row), p.grain);
    }
    f.mean = f.r = 0.0f;
    if (!Layer || row >= p.rows) return;
    f.mean = p.mean[row];
    f.r = p.rstd[row];
  }
  TK_DEVICE void load_weight(Values& w, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) parameters<T>(w[k], p.weight, column(base, k), p.columns, 1.0f);
  }
  // z (layer: normalised) and dy of chunk k.
  TK_DEVICE static void take(float (&n)[N], float (&dy)[N], const Fetched& f, int k) {
    f.z[k].get(n);
    f.dy[k].get(dy);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if constexpr (Layer) n[i] = (n[i] - f.mean) * f.r;
  }
  // This thread's part of (sum g, sum g n), or of (sum z^2, sum g z).
  TK_DEVICE static void accumulate(float (&total)[2], const Fetched& f, const Values& w) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float n[N], dy[N];
      take(n, dy, f, k);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float g = w[k][i] * dy[i];
        total[0] += Layer ? g : n[i] * n[i];
        total[1] = fmaf(g, n[i], total[1]);
      }
    }
  }
  // d = r g - slope n - shift, and n = r z of rms.
  struct Coefficients {
    float r, slope, shift;
  };
  TK_DEVICE Coefficients coefficients(const float (&total)[2], float r) const {
    const float first = total[0] / static_cast<float>(p.columns), along = total[1] / static_cast<float>(p.columns);
    if constexpr (Layer) return {r, r * along, r * first};
    const float root = sqrtf(p.inside ? first + p.eps : first), denominator = p.inside ? root : root + p.eps;
    // `along` is at most root times the rms of g; a third power of the root would leave float32's range.
    return {1.0f / denominator, along / fmaxf(root, 1e-30f) / (denominator * denominator), 0.0f};
  }

  TK_DEVICE void write(const Fetched& f, const Values& w, const Coefficients& c, const raw<R, N> (&dz)[V], long long row,
                       int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float n[N], dy[N], d[N];
      take(n, dy, f, k);
      dz[k].get(d);
#pragma unroll
      for (int i = 0; i < N; ++i) d[i] += fmaf(c.r * w[k][i], dy[i], -fmaf(c.slope, n[i], c.shift));
      const int col = column(base, k);
      if (p.dresidual.data) {
        raw<R, N> out;
        out.put(d);
        out.store(row_of<R>(p.dresidual, row), col, limit(row), p.grain);
      }
      dropout.apply(d, row, col);
      raw<T, N> out;
      out.put(d);
      out.store(row_of<T>(p.dx, row), col, limit(row), p.grain);
    }
  }

  TK_DEVICE float* share(int which) const {
    return p.partial + (static_cast<long long>(which) * gridDim.x + blockIdx.x) * p.columns;
  }
  // f(k, i, dy n, dy): a row's part of the gradients of the parameters.
  template <class F>
  TK_DEVICE void contributions(const Fetched& f, const Coefficients& c, F function) const {
    const float factor = Layer ? 1.0f : c.r;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float n[N], dy[N];
      take(n, dy, f, k);
#pragma unroll
      for (int i = 0; i < N; ++i) function(k, i, dy[i] * n[i] * factor, dy[i]);
    }
  }
  // Added to this CTA's share in memory, which the first row begins.
  TK_DEVICE void add_to_share(const Fetched& f, const Coefficients& c, int base, bool first) const {
    contributions(f, c, [&](int k, int i, float dw, float db) {
      const int col = column(base, k) + i;
      if (col >= p.columns) return;
      share(0)[col] = first ? dw : share(0)[col] + dw;
      if constexpr (Layer) share(1)[col] = first ? db : share(1)[col] + db;
    });
  }
  // The teams of a CTA add what they have, one after the other.
  TK_DEVICE void leave(const float (&sum)[sums][V][N]) const {
    for (int turn = 0; turn < team.teams; ++turn) {
      if (turn == team.index) {
#pragma unroll
        for (int which = 0; which < sums; ++which)
#pragma unroll
          for (int k = 0; k < V; ++k)
#pragma unroll
            for (int i = 0; i < N; ++i) {
              const int col = column(0, k) + i;
              if (col >= p.columns) continue;
              float* to = share(which) + col;
              *to = turn == 0 ? sum[which][k][i] : *to + sum[which][k][i];
            }
      }
      if (team.teams > 1) __syncthreads();
    }
  }

  TK_DEVICE void run() {
    const bool whole = p.columns <= team.span;
    const long long stride = static_cast<long long>(gridDim.x) * team.teams;
    const long long first = static_cast<long long>(blockIdx.x) * team.teams + team.index;
    float sum[sums][V][N] = {};
    Values w;
    Fetched now, next;
    fetch(next, first, 0);
    load_weight(w, 0);
    for (long long row = first; p.rows > row - team.index; row += stride) {
      float total[2] = {0.0f, 0.0f};
      for (int base = 0; base < p.columns; base += team.span) {
        now = next;
        const bool last = base + team.span >= p.columns;
        fetch(next, whole ? row + stride : row, last ? 0 : base + team.span);  // under way while this one is summed
        if (!whole) load_weight(w, base);
        accumulate(total, now, w);
      }
      team.sum(total);
      const Coefficients c = coefficients(total, now.r);
      for (int base = 0; base < p.columns; base += team.span) {
        raw<R, N> dz[V];
#pragma unroll
        for (int k = 0; k < V; ++k) {
          dz[k].clear();
          if (p.dz.data) dz[k].load(row_of<const R>(p.dz, row), column(base, k), limit(row), p.grain);
        }
        if (!whole) {
          now = next;
          const bool last = base + team.span >= p.columns;
          fetch(next, last ? row + stride : row, last ? 0 : base + team.span);
          load_weight(w, base);
        }
        write(now, w, c, dz, row, base);
        if (whole) {
          contributions(now, c, [&](int k, int i, float dw, float db) {
            sum[0][k][i] += dw;
            if constexpr (Layer) sum[1][k][i] += db;
          });
        } else {
          add_to_share(now, c, base, row == first);
        }
      }
    }
    if (whole) leave(sum);
  }
};

TK_DEVICE void sum_shares(const SumParams& p) {
  __shared__ float part[kSumThreads / 32][kSumColumns];
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / 32, col = static_cast<int>(blockIdx.x) * kSumColumns + lane;
  const int which = static_cast<int>(blockIdx.y);
  const float* from = p.partial + static_cast<long long>(which) * p.rows * p.columns + col;
  float sum = 0.0f;
  if (col < p.columns) {
#pragma unroll 4
    for (int row = warp; row < p.rows; row += kSumThreads / 32) sum += from[static_cast<long long>(row) * p.columns];
  }
  part[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || col >= p.columns || p.out[which] == nullptr) return;
#pragma unroll
  for (int w = 1; w < kSumThreads / 32; ++w) sum += part[w][lane];
  write_kind(p.out[which], p.kind[which], col, sum);
}

}  // namespace tkpy::rows

#define TKPY_NORM(NAME, LAYER, T, R)                                                        \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostThreadsBackward)            \
      rows_##NAME##_norm_backward_##T##_##R(const __grid_constant__ tkpy::rows::NormParams p) {    \
    tkpy::rows::NormBackward<tkpy::rows::T, tkpy::rows::R, LAYER>(p).run();               \
  }
#define TKPY_NORMS(T, R)      \
  TKPY_NORM(rms, false, T, R) \
  TKPY_NORM(layer, true, T, R)
TKPY_NORMS(bf16, bf16)
TKPY_NORMS(bf16, f32)
TKPY_NORMS(fp16, fp16)
TKPY_NORMS(fp16, f32)
TKPY_NORMS(f32, f32)

extern "C" __global__ void __launch_bounds__(tkpy::rows::kSumThreads)
    rows_norm_sum(const __grid_constant__ tkpy::rows::SumParams p) {
  tkpy::rows::sum_shares(p);
}
