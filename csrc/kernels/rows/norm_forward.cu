// rms_norm, layer_norm: z = residual + dropout(x),  y = weight (z - mean) r + bias                          per row
//   layer  mean = sum z / D,  r = 1 / sqrt(sum (z - mean)^2 / D + eps)
//   rms    mean = 0,  r = 1 / sqrt(sum z^2 / D + eps), or 1 / (sqrt(sum z^2 / D) + eps)
// in   x [M,D] bf16, fp16 or f32 | residual [M,D] x's type or f32 | weight, bias [D] of any of the three | seed int64
// out  y [M,D] x's type | z [M,D] the residual's type, with a residual or dropout | mean, r [M] f32 (layer)
// kernels  rows_<rms|layer>_norm_forward_<type of x>_<type of z>
// grid  as many CTAs as stay on the GPU; a team of threads (rows.cuh) takes every n-th row. Weight and bias stay in
//       registers, so do 16 elements of the row in each thread, while the next row's are on their way
// wide  rows of more than 512 * 16 columns go by stretches: moments merged as they come (Chan, Golub and LeVeque 1979,
//       eq. 2.1), then z read again, out of L2
// precision  fp32; z rounded to its type before the statistics, so that y is the norm of what is returned; the variance
//            about the mean (no cancellation); y rounded once
// limits  D < 2^30, any pitch; rows that do not begin at multiples of 16 bytes move in smaller pieces (rows.cuh)
// cost  bytes M D (x + residual + z + y), each once; about 10 flops an element (and 20 integer operations of dropout)
#include "dropout.cuh"

namespace tkpy::rows {

template <class T, class R, bool Layer>
struct NormForward {
  static constexpr int N = chunk_width<T>, V = kElements / N;
  using Values = float[V][N];
  struct Fetched {
    raw<T, N> x[V];
    raw<R, N> residual[V];
  };

  const NormParams& p;
  Team team;
  Dropout dropout;

  TK_DEVICE explicit NormForward(const NormParams& params) : p(params), team(params.lanes), dropout(params) {}

  // Columns of a row that exists.
  TK_DEVICE int limit(long long row) const { return row < p.rows ? p.columns : 0; }
  TK_DEVICE int column(int base, int k) const { return team.column<N>(base, k); }

  TK_DEVICE void fetch(Fetched& f, long long row, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      f.x[k].load(row_of<const T>(p.x, row), column(base, k), limit(row), p.grain);
      if (p.residual.data) f.residual[k].load(row_of<const R>(p.residual, row), column(base, k), limit(row), p.grain);
    }
  }
  // z of a stretch, rounded, and stored if it is another thing than x.
  TK_DEVICE void join(Values& v, Fetched& f, long long row, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      f.x[k].get(v[k]);
      if (!p.z.data) continue;
      dropout.apply(v[k], row, column(base, k));
      if (p.residual.data) {
        float before[N];
        f.residual[k].get(before);
#pragma unroll
        for (int i = 0; i < N; ++i) v[k][i] += before[i];
      }
      raw<R, N> z;
      z.put(v[k]);
      z.get(v[k]);
      z.store(row_of<R>(p.z, row), column(base, k), limit(row), p.grain);
    }
  }
  TK_DEVICE void reload(Values& v, long long row, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (p.z.data) {
        raw<R, N> z;
        z.load(row_of<const R>(p.z, row), column(base, k), limit(row), p.grain);
        z.get(v[k]);
      } else {
        raw<T, N> x;
        x.load(row_of<const T>(p.x, row), column(base, k), limit(row), p.grain);
        x.get(v[k]);
      }
    }
  }
  TK_DEVICE void load_parameters(Values& w, Values& b, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      parameters<T>(w[k], p.weight, column(base, k), p.columns, 1.0f);
      if constexpr (Layer) parameters<T>(b[k], p.bias, column(base, k), p.columns, 0.0f);
    }
  }

  // Mean and sum of squares about it of the stretches so far; of rms the thread's own squares.
  struct Moments {
    float mean = 0.0f, squares = 0.0f;
  };
  TK_DEVICE void merge(Moments& m, const Values& v, int base) {
    if constexpr (!Layer) {
#pragma unroll
      for (int k = 0; k < V; ++k)
#pragma unroll
        for (int i = 0; i < N; ++i) m.squares = fmaf(v[k][i], v[k][i], m.squares);
      return;
    }
    const float before = static_cast<float>(base), count = static_cast<float>(min(team.span, p.columns - base));
    float sum[1] = {0.0f}, squares[1] = {0.0f};
#pragma unroll
    for (int k = 0; k < V; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) sum[0] += v[k][i];
    team.sum(sum);
    const float here = sum[0] / count;
#pragma unroll
    for (int k = 0; k < V; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float centred = column(base, k) + i < p.columns ? v[k][i] - here : 0.0f;
        squares[0] = fmaf(centred, centred, squares[0]);
      }
    team.sum(squares);
    const float delta = here - m.mean, share = count / (before + count);
    m.squares += squares[0] + delta * delta * before * share;
    m.mean += delta * share;
  }
  TK_DEVICE float inverse(const Moments& m) {
    float squares[1] = {m.squares};
    if constexpr (!Layer) team.sum(squares);
    const float variance = squares[0] / static_cast<float>(p.columns);
    return Layer || p.inside ? 1.0f / sqrtf(variance + p.eps) : 1.0f / (sqrtf(variance) + p.eps);
  }

  TK_DEVICE void write(const Values& v, const Values& w, const Values& b, float mean, float r, long long row, int base) const {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float y[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float normal = (Layer ? v[k][i] - mean : v[k][i]) * r;
        y[i] = Layer ? fmaf(normal, w[k][i], b[k][i]) : normal * w[k][i];
      }
      raw<T, N> out;
      out.put(y);
      out.store(row_of<T>(p.y, row), column(base, k), limit(row), p.grain);
    }
  }

  TK_DEVICE void run() {
    const bool whole = p.columns <= team.span;
    const long long stride = static_cast<long long>(gridDim.x) * team.teams;
    long long row = static_cast<long long>(blockIdx.x) * team.teams + team.index;
    Values v, w, b;
    Fetched next;
    fetch(next, row, 0);
    if (whole) load_parameters(w, b, 0);
    for (; p.rows > row - team.index; row += stride) {
      Moments moments;
      for (int base = 0; base < p.columns; base += team.span) {
        join(v, next, row, base);
        const bool last = base + team.span >= p.columns;
        fetch(next, last ? row + stride : row, last ? 0 : base + team.span);  // under way while this one is summed
        merge(moments, v, base);
      }
      const float r = inverse(moments);
      for (int base = 0; base < p.columns; base += team.span) {
        if (!whole) {
          reload(v, row, base);
          load_parameters(w, b, base);
        }
        write(v, w, b, moments.mean, r, row, base);
      }
      if (Layer && team.lane == 0 && row < p.rows) {
        p.mean[row] = moments.mean;
        p.rstd[row] = r;
      }
    }
  }
};

}  // namespace tkpy::rows

#define TKPY_NORM(NAME, LAYER, T, R)                                                       \
  extern "C" __global__ void __launch_bounds__(tkpy::rows::kMostThreads)                   \
      rows_##NAME##_norm_forward_##T##_##R(const __grid_constant__ tkpy::rows::NormParams p) {    \
    tkpy::rows::NormForward<tkpy::rows::T, tkpy::rows::R, LAYER>(p).run();               \
  }
#define TKPY_NORMS(T, R)     \
  TKPY_NORM(rms, false, T, R) \
  TKPY_NORM(layer, true, T, R)
TKPY_NORMS(bf16, bf16)
TKPY_NORMS(bf16, f32)
TKPY_NORMS(fp16, fp16)
TKPY_NORMS(fp16, f32)
TKPY_NORMS(f32, f32)
