// Moves between global memory, shared memory and registers as kernels, for test_moves.py, which appends the list of
// them. Where a register tile's elements lie is written out element by element, by the fragment laws of layout.h.
#include "tk/tk.cuh"

using namespace tk;

template <class Scope, class Tile, class T>
TK_DEVICE void scatter(T* dst, const Tile& tile) {
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int e = 0; e < Tile::elements; ++e)
      write(dst + group_row<Scope, Tile>(b, e) * Tile::cols + Tile::col(b, e),
            value_as<typename element<T>::compute>(tile.get(b, e)));
}

// x from (row, col) on -> st -> rt -> registers written out; rt -> another st -> y from (row, col) on.
template <class T, int Rows, int Cols, Layout L, int Swizzle, class Scope>
TK_DEVICE void stage(const T* x, const T* fill, T* registers, T* y, int rows, int cols, int pitch, int row, int col) {
  __shared__ st<T, Scope::warps * Rows, Cols, Swizzle> in, out;
  load<Scope>(in, view<const T>{x, rows, cols, pitch}, row, col, *fill);
  __syncthreads();
  rt<T, Rows, Cols, L> tile;
  load<Scope>(tile, in);
  scatter<Scope>(registers, tile);
  store<Scope>(out, tile);
  __syncthreads();
  store<Scope>(view<T>{y, rows, cols, pitch}, out, row, col);
}
#define STAGE(NAME, T, ROWS, COLS, L, SWIZZLE, WARPS)                                                                \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
      NAME(const T* x, const T* fill, T* registers, T* y, int rows, int cols, int pitch, int row, int col) {         \
    stage<T, ROWS, COLS, Layout::L, SWIZZLE, group<WARPS>>(x, fill, registers, y, rows, cols, pitch, row, col);      \
  }

// x -> rt of type D, written out -> y, converted back.
#define DIRECT(NAME, T, D, ROWS, COLS, L, WARPS)                                                                     \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
      NAME(const T* x, D* registers, T* y, int rows, int cols, int pitch, int row, int col) {                        \
    rt<D, ROWS, COLS, Layout::L> tile;                                                                               \
    load<group<WARPS>>(tile, view<const T>{x, rows, cols, pitch}, row, col, 3);                                      \
    scatter<group<WARPS>>(registers, tile);                                                                          \
    store<group<WARPS>>(view<T>{y, rows, cols, pitch}, tile, row, col);                                              \
  }

// x[rows, cols], stored with strides, -> st by cp.async -> y.
#define ASYNC(NAME, T, ROWS, COLS, SWIZZLE, WARPS)                                                                   \
  extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
      NAME(const T* x, T* y, int rows, int cols, int pitch, int step, int row, int col) {                            \
    __shared__ st<T, ROWS, COLS, SWIZZLE> tile;                                                                      \
    load_async<group<WARPS>>(tile, view<const T>{x, rows, cols, pitch, step}, row, col);                             \
    commit_loads();                                                                                                  \
    wait_loads();                                                                                                    \
    __syncthreads();                                                                                                 \
    store<group<WARPS>>(view<T>{y, ROWS, COLS, COLS}, tile, 0, 0);                                                   \
  }

// Of a whole 64 x 128 tile: a part is read into registers, another one is overwritten with it, a third is loaded from
// global memory.
template <class T, int Rows, int Cols, Layout L, int Swizzle>
TK_DEVICE void parts(const T* x, const T* small, T* registers, T* y, T* z, int row, int col, int to_row, int to_col) {
  __shared__ st<T, 64, 128, Swizzle> tile;
  load(tile, view<const T>{x, 64, 128, 128}, 0, 0);
  __syncwarp();
  rt<T, Rows, Cols, L> values;
  load(values, subtile<Rows, Cols>(tile, row, col));
  scatter<warp>(registers, values);
  store(view<T>{z, Rows, Cols, Cols}, subtile<Rows, Cols>(tile, row, col), 0, 0);
  __syncwarp();
  store(subtile<Rows, Cols>(tile, to_row, to_col), values);
  __syncwarp();
  load(subtile<16, 16>(tile, 0, 0), view<const T>{small, 16, 16, 16}, 0, 0);
  __syncwarp();
  store(view<T>{y, 64, 128, 128}, tile, 0, 0);
}
#define PARTS(NAME, T, ROWS, COLS, L, SWIZZLE)                                                                       \
  extern "C" __global__ void __launch_bounds__(32)                                                                   \
      NAME(const T* x, const T* small, T* registers, T* y, T* z, int row, int col, int to_row, int to_col) {         \
    parts<T, ROWS, COLS, Layout::L, SWIZZLE>(x, small, registers, y, z, row, col, to_row, to_col);                   \
  }

// The other layout, back again, and both transposes.
template <class T, int Rows, int Cols>
TK_DEVICE void turn(const T* x, T* other_layout, T* back, T* same_layout, T* relabelled, T* of_column) {
  rt<T, Rows, Cols> row_tile, again;
  rt<T, Rows, Cols, Layout::col> col_tile;
  load(row_tile, view<const T>{x, Rows, Cols, Cols}, 0, 0);
  swap_layout(col_tile, row_tile);
  scatter<warp>(other_layout, col_tile);
  swap_layout(again, col_tile);
  scatter<warp>(back, again);
  rt<T, Cols, Rows> turned;
  transpose(turned, row_tile);
  scatter<warp>(same_layout, turned);
  rt<T, Cols, Rows, Layout::col> free;
  transpose(free, row_tile);
  scatter<warp>(relabelled, free);
  transpose(free, col_tile);
  scatter<warp>(of_column, free);
}
#define TURN(NAME, T, ROWS, COLS)                                                                                    \
  extern "C" __global__ void __launch_bounds__(32) NAME(const T* x, T* a, T* b, T* c, T* d, T* e) {                  \
    turn<T, ROWS, COLS>(x, a, b, c, d, e);                                                                           \
  }

#define CONVERT(NAME, A, B, ROWS, COLS, L)                                                                           \
  extern "C" __global__ void __launch_bounds__(32) NAME(const A* x, B* y) {                                          \
    rt<A, ROWS, COLS, Layout::L> from;                                                                               \
    rt<B, ROWS, COLS, Layout::L> to;                                                                                 \
    load(from, view<const A>{x, ROWS, COLS, COLS}, 0, 0);                                                            \
    copy(to, from);                                                                                                  \
    scatter<warp>(y, to);                                                                                            \
  }

// A vector of floats from memory of T into one spread, copied into another, out to shared and global memory.
template <class T, int Length, Spread A, Spread B, int Run>
TK_DEVICE void vectors(const T* x, T* y, float* z, int length, int first) {
  __shared__ sv<T, Length> in;
  __shared__ sv<float, Length> out;
  rv<float, Length, A, Run> a, again;
  rv<float, Length, B, Run> b;
  load(a, vec_view<const T>{x, length}, first, -1.0f);
  load(in, vec_view<const T>{x, length}, first);
  copy(b, a);
  store(out, b);
  store(vec_view<T>{y, length}, b, first);
  __syncwarp();
  load(again, in);
  load(b, out);
  copy(a, b);
  add(a, a, again);
  __syncwarp();
  store(out, a);
  __syncwarp();
  store(vec_view<float>{z, Length}, out);
}
#define VECTORS(NAME, T, LENGTH, A, B, RUN)                                                                          \
  extern "C" __global__ void __launch_bounds__(32) NAME(const T* x, T* y, float* z, int length, int first) {         \
    vectors<T, LENGTH, Spread::A, Spread::B, RUN>(x, y, z, length, first);                                           \
  }

// D = A B with A and B sub-tiles of larger ones, from (row, col) on, in shared memory and A from there in registers.
template <class T, Major MajorA, Major MajorB, int Swizzle>
TK_DEVICE void product_of_parts(const T* a, const T* b, float* d, int a_row, int a_col, int b_row, int b_col) {
  __shared__ st<T, 96, 128, Swizzle> a_tile, b_tile;
  load<warpgroup>(a_tile, view<const T>{a, 96, 128, 128}, 0, 0);
  load<warpgroup>(b_tile, view<const T>{b, 96, 128, 128}, 0, 0);
  publish_tile();
  __syncthreads();
  constexpr bool at = MajorA == Major::mn, bt = MajorB == Major::mn;
  const auto part_a = subtile<at ? 32 : 64, at ? 64 : 32>(a_tile, a_row, a_col);
  const auto half = subtile<at ? 16 : 64, at ? 64 : 16>(part_a, at ? 16 : 0, at ? 0 : 16);  // its second 16 of K
  const auto part_b = subtile<bt ? 32 : 64, bt ? 64 : 32>(b_tile, b_row, b_col);
  const auto half_b = subtile<bt ? 16 : 64, bt ? 64 : 16>(part_b, bt ? 16 : 0, bt ? 0 : 16);
  rt_fl<16, 64> result;
  mma_fence();
  mma<MajorA, MajorB>(result, part_a, part_b, false);
  mma<MajorA, MajorB>(result, half, half_b);  // once more: D counts the second half twice
  mma_commit();
  mma_wait();
  store<warpgroup>(view<float>{d, 64, 64, 64}, result, 0, 0);
}
#define PRODUCT_OF_PARTS(NAME, T, A, B, SWIZZLE)                                                                     \
  extern "C" __global__ void __launch_bounds__(128)                                                                  \
      NAME(const T* a, const T* b, float* d, int a_row, int a_col, int b_row, int b_col) {                           \
    product_of_parts<T, Major::A, Major::B, SWIZZLE>(a, b, d, a_row, a_col, b_row, b_col);                           \
  }

// Parts of register tiles; a matrix of a tensor of rank 4.
extern "C" __global__ void __launch_bounds__(32) slices(const bf16* x, bf16* y, bf16* z, int b, int h) {
  const tensor<const bf16, 4> t{x, {2, 3, 32, 64}, {3 * 32 * 64, 64, 3 * 64, 1}};  // stored as [b, row, h, col]
  rt_bf<32, 64> whole;
  rt_bf<16, 32> part;
  rt_bf<16, 64> half;
  load(whole, t(b, h), 0, 0);
  rows(half, whole, 16);
  columns(part, half, 32);
  scatter<warp>(y, part);
  rt_bf<32, 64, Layout::col> whole_col;
  rt_bf<32, 16, Layout::col> some_col;
  rt_bf<16, 16, Layout::col> part_col;
  load(whole_col, t(b, h), 0, 0);
  columns(some_col, whole_col, 48);
  rows(part_col, some_col, 16);
  scatter<warp>(z, part_col);
}
