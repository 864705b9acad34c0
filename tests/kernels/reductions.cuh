// Reductions, scans and masks as kernels, for test_reductions.py, which appends the list of them.
#include "tk/tk.cuh"

using namespace tk;

template <class Tile, class T>
TK_DEVICE void fetch(Tile& tile, const T* x) {
  load(tile, view<const T>{x, Tile::rows, Tile::cols, Tile::cols}, 0, 0);
}
template <class T, class Tile>
TK_DEVICE void write_out(T* y, const Tile& tile) {
  store(view<T>{y, Tile::rows, Tile::cols, Tile::cols}, tile, 0, 0);
}

#define BY_OPERATION(LINE)             \
  if (op == 0) LINE##_sum(v, tile);    \
  if (op == 1) LINE##_max(v, tile);    \
  if (op == 2) LINE##_min(v, tile);    \
  if (op == 3) LINE##_prod(v, tile);   \
  if (op == 4) LINE##_sum(v, tile, v); \
  if (op == 5) LINE##_max(v, tile, v); \
  if (op == 6) LINE##_min(v, tile, v); \
  if (op == 7) LINE##_prod(v, tile, v);
// per_row and per_col hold what `op` starts from, and get its result; all gets one number for each lane.
template <class T, class V, int Rows, int Cols, Layout L>
TK_DEVICE void reductions(const T* x, V* per_row, V* per_col, V* all, int op) {
  using Tile = rt<T, Rows, Cols, L>;
  Tile tile;
  fetch(tile, x);
  {
    typename Tile::per_row v;
    load(v, vec_view<const V>{per_row, Rows});
    BY_OPERATION(row)
    store(vec_view<V>{per_row, Rows}, v);
  }
  {
    typename Tile::per_col v;
    load(v, vec_view<const V>{per_col, Cols});
    BY_OPERATION(col)
    store(vec_view<V>{per_col, Cols}, v);
  }
  V one = 0;
  if (op == 0) one = sum(tile);
  if (op == 1) one = max(tile);
  if (op == 2) one = min(tile);
  if (op == 3) one = prod(tile);
  all[lane_index()] = one;
}
#define REDUCE(NAME, T, V, ROWS, COLS, L)                                                                     \
  extern "C" __global__ void __launch_bounds__(32) NAME(const T* x, V* per_row, V* per_col, V* all, int op) { \
    reductions<T, V, ROWS, COLS, Layout::L>(x, per_row, per_col, all, op);                                    \
  }

// Each of four warps holds 16 of 64 rows; two warpgroups at once, on barriers 1 and 2.
extern "C" __global__ void __launch_bounds__(256) columns_of_a_warpgroup(const float* x, float* y, int op) {
  __shared__ sv<float, 4 * 40> scratch[2];
  const int part = warpgroup_index();
  rt_fl<16, 40> tile;
  rt_fl<16, 40>::per_col v;
  load<warpgroup>(tile, view<const float>{x + part * 64 * 40, 64, 40, 40}, 0, 0);
  for (int again = 0; again < 2; ++again) {  // scratch is used twice
    if (op == 0) col_sum<warpgroup>(v, tile, scratch[part], 1 + part);
    if (op == 1) col_max<warpgroup>(v, tile, scratch[part], 1 + part);
    if (op == 2) col_min<warpgroup>(v, tile, scratch[part], 1 + part);
  }
  if (warp_index() % 4 == 2) store(vec_view<float>{y + part * 40, 40}, v);
}

// op: 0 cumsum, 1 decay a number, 2 per_row, 3 per_col, 4 a tile; states go in and come out.
template <Direction D, class Tile, class Rows, class Cols>
TK_DEVICE void scan_rows(Tile& y, const Tile& x, const Tile& decays, const Rows& r, const Cols& c, float number,
                         Rows& state, int op) {
  if (op == 0) row_cumsum<D>(y, x, state);
  if (op == 1) row_decay_scan<D>(y, x, number, state);
  if (op == 2) row_decay_scan<D>(y, x, r, state);
  if (op == 3) row_decay_scan<D>(y, x, c, state);
  if (op == 4) row_decay_scan<D>(y, x, decays, state);
  if (op == 5) row_cumsum<D>(y, x);
  if (op == 6) row_decay_scan<D>(y, x, decays);
}
template <Direction D, class Tile, class Rows, class Cols>
TK_DEVICE void scan_cols(Tile& y, const Tile& x, const Tile& decays, const Rows& r, const Cols& c, float number,
                         Cols& state, int op) {
  if (op == 0) col_cumsum<D>(y, x, state);
  if (op == 1) col_decay_scan<D>(y, x, number, state);
  if (op == 2) col_decay_scan<D>(y, x, r, state);
  if (op == 3) col_decay_scan<D>(y, x, c, state);
  if (op == 4) col_decay_scan<D>(y, x, decays, state);
  if (op == 5) col_cumsum<D>(y, x);
  if (op == 6) col_decay_scan<D>(y, x, decays);
}
template <class T, int Rows, int Cols, Layout L, Direction D>
TK_DEVICE void scans(const T* x, const T* d, T* by_row, T* by_col, float* row_state, float* col_state, int op) {
  using Tile = rt<T, Rows, Cols, L>;
  Tile tile, decays, out;
  typename Tile::per_row rows, state_r;
  typename Tile::per_col cols, state_c;
  fetch(tile, x);
  fetch(decays, d);
  load(rows, vec_view<const T>{d, Rows, Cols});
  load(cols, vec_view<const T>{d, Cols});
  load(state_r, vec_view<const float>{row_state, Rows});
  load(state_c, vec_view<const float>{col_state, Cols});
  const float number = read(d);
  scan_rows<D>(out, tile, decays, rows, cols, number, state_r, op);
  write_out(by_row, out);
  scan_cols<D>(out, tile, decays, rows, cols, number, state_c, op);
  write_out(by_col, out);
  store(vec_view<float>{row_state, Rows}, state_r);
  store(vec_view<float>{col_state, Cols}, state_c);
}
#define SCAN(NAME, T, ROWS, COLS, L, D)                                                                            \
  extern "C" __global__ void __launch_bounds__(32)                                                                 \
      NAME(const T* x, const T* d, T* by_row, T* by_col, float* row_state, float* col_state, int op) {             \
    scans<T, ROWS, COLS, Layout::L, Direction::D>(x, d, by_row, by_col, row_state, col_state, op);                 \
  }

template <class T, int Rows, int Cols, Layout L, class Scope>
TK_DEVICE void masks(const T* x, T* y, int op, int p, int q, int r) {
  constexpr int height = Scope::warps * Rows;
  rt<T, Rows, Cols, L> in, out;
  load<Scope>(in, view<const T>{x, height, Cols, Cols}, 0, 0);
  if (op == 0) mask_causal<Scope>(out, in, p, -5);
  if (op == 1) mask_upper<Scope>(out, in, p, -5);
  if (op == 2) mask_window<Scope>(out, in, p, q, r, -5);
  if (op == 3) mask_bounds<Scope>(out, in, p, q, -5);
  if (op == 4) mask_blocks<8, 16, Cols / 16, Scope>(out, in, 0xa5a5a5a5a5a5a5a5ull >> p, -5);
  if (op == 5) mask<Scope>(out, in, [=](int row, int col) { return (row + col) % 3 == p; }, -5);
  if (op == 6) mask_causal<Scope>(out, in, p);
  store<Scope>(view<T>{y, height, Cols, Cols}, out, 0, 0);
}
#define MASK(NAME, T, ROWS, COLS, L, WARPS)                                                                \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) NAME(const T* x, T* y, int op, int p, int q, int r) { \
    masks<T, ROWS, COLS, Layout::L, group<WARPS>>(x, y, op, p, q, r);                                      \
  }
