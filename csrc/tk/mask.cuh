// Masks: what they do not keep becomes `fill` (minus infinity unless given). Places count from the corner of Scope's
// tile, so mask_causal<warpgroup> masks the 64-row tile of a warpgroup. Each element costs one comparison of a lane's
// constant with a number known when compiling.
#pragma once

#include "maps.cuh"

namespace tk {

// dst = src where keep(row, col), else fill.
template <class Scope = warp, class Tile, class Keep>
  requires is_rt<Tile>
TK_DEVICE void mask(Tile& dst, const Tile& src, Keep keep, typename Tile::compute fill) {
  map_at<Scope>(dst, src, [&](int row, int col, auto x) { return keep(row, col) ? x : fill; });
}

namespace detail {

// keep(distance), where distance is col - row of an element less the part that all elements of this lane have in
// common; Scope::row is taken out of the difference once for each slab.
template <class Scope, class Tile, class Keep>
TK_DEVICE void mask_diagonal(Tile& dst, const Tile& src, typename Tile::compute fill, Keep keep) {
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int first = 0; first < Tile::elements; first += Tile::run) {
      typename Tile::compute v[Tile::run];
#pragma unroll
      for (int i = 0; i < Tile::run; ++i) {
        const int e = first + i, slab = Tile::row_step(b, e) / 16 * 16;
        const int lane = Tile::corner_col() - Tile::corner_row() - Scope::row(slab);
        v[i] = keep(lane, Tile::col_step(b, e) - Tile::row_step(b, e) % 16) ? src.get(b, e) : fill;
      }
      dst.set_run(b, first, v);
    }
}

template <class Tile>
TK_DEVICE typename Tile::compute lowest() {
  if constexpr (is_same<typename Tile::compute, float>)
    return -fn::infinity;
  else
    return -2147483647 - 1;
}

}  // namespace detail

// Keeps col <= row + offset. In attention offset = (first query - first key) + (keys - queries).
template <class Scope = warp, class Tile>
TK_DEVICE void mask_causal(Tile& dst, const Tile& src, int offset = 0,
                           typename Tile::compute fill = detail::lowest<Tile>()) {
  detail::mask_diagonal<Scope>(dst, src, fill, [offset](int lane, int step) { return step <= offset - lane; });
}
// Keeps col >= row + offset.
template <class Scope = warp, class Tile>
TK_DEVICE void mask_upper(Tile& dst, const Tile& src, int offset = 0,
                          typename Tile::compute fill = detail::lowest<Tile>()) {
  detail::mask_diagonal<Scope>(dst, src, fill, [offset](int lane, int step) { return step >= offset - lane; });
}
// Keeps row + offset - left <= col <= row + offset + right.
template <class Scope = warp, class Tile>
TK_DEVICE void mask_window(Tile& dst, const Tile& src, int offset, int left, int right,
                           typename Tile::compute fill = detail::lowest<Tile>()) {
  detail::mask_diagonal<Scope>(dst, src, fill, [=](int lane, int step) {
    return step <= offset + right - lane && step >= offset - left - lane;
  });
}
// Keeps row < rows and col < cols: the tail of a matrix.
template <class Scope = warp, class Tile>
TK_DEVICE void mask_bounds(Tile& dst, const Tile& src, int rows, int cols,
                           typename Tile::compute fill = detail::lowest<Tile>()) {
  mask<Scope>(dst, src, [=](int row, int col) { return row < rows && col < cols; }, fill);
}
// Keeps blocks of BlockRows x BlockCols whose bit is set; bits run along rows of blocks, BlocksPerRow to a row.
template <int BlockRows, int BlockCols, int BlocksPerRow, class Scope = warp, class Tile>
TK_DEVICE void mask_blocks(Tile& dst, const Tile& src, u64 bits, typename Tile::compute fill = detail::lowest<Tile>()) {
  mask<Scope>(
      dst, src,
      [=](int row, int col) { return (bits >> (row / BlockRows * BlocksPerRow + col / BlockCols) & 1) != 0; }, fill);
}

}  // namespace tk
