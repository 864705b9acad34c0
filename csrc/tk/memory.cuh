// load and store, destination first, through plain accesses. Register verbs are called by a whole warp; the masked
// ones by `threads` threads together.
#pragma once

#include "group.cuh"
#include "tiles.cuh"

namespace tk {

// ---- Masked generic: st <- view ---------------------------------------------------------------------------------
// For tensors whose pitch or address TMA cannot take. Elements outside the view become zero. The writers then call
// publish_tile() if TMA or wgmma reads the tile.
template <class Tile>
TK_DEVICE void load(Tile& dst, const view<const typename Tile::type>& src, int row, int col, int thread, int threads) {
  constexpr int width = 16 / sizeof(typename Tile::type);  // one 16-byte chunk is contiguous under every swizzle
  for (int chunk = thread; chunk < Tile::rows * Tile::cols / width; chunk += threads) {
    const int r = chunk / (Tile::cols / width), c = chunk % (Tile::cols / width) * width;
    typename Tile::type* out = &dst.at(r, c);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const bool inside = row + r < src.rows && col + c + i < src.cols;
      out[i] = inside ? *src.at(row + r, col + c + i) : typename Tile::type{};
    }
  }
}

// ---- Registers and shared memory --------------------------------------------------------------------------------
// The rt<.., Rows, Cols> that begins at (row, col) of the tile.
template <class T, int Rows, int Cols, class Tile>
  requires is_16bit<T>
TK_DEVICE void load(rt<T, Rows, Cols>& dst, const Tile& src, int row = 0, int col = 0) {
  static_assert(is_same<T, typename Tile::type>, "register and shared tile must hold the same type");
  static_assert(Rows <= Tile::rows && Cols <= Tile::cols, "the register tile must fit in the shared tile");
  const int lane = lane_index();
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int c = 0; c < Cols / 16; ++c) {
      u32 pairs[4];
      ptx::ldmatrix_x4(pairs, src.address(row + 16 * b + matrix_row(lane), col + 16 * c + 8 * matrix_chunk(lane)));
#pragma unroll
      for (int p = 0; p < 4; ++p) dst.x[b][4 * c + p] = pairs[p];
    }
}

template <class T, int Rows, int Cols, class Tile>
  requires is_16bit<T>
TK_DEVICE void store(Tile& dst, const rt<T, Rows, Cols>& src, int row = 0, int col = 0) {
  static_assert(is_same<T, typename Tile::type>, "register and shared tile must hold the same type");
  static_assert(Rows <= Tile::rows && Cols <= Tile::cols, "the register tile must fit in the shared tile");
  const int lane = lane_index();
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int c = 0; c < Cols / 16; ++c) {
      u32 pairs[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) pairs[p] = src.x[b][4 * c + p];
      ptx::stmatrix_x4(dst.address(row + 16 * b + matrix_row(lane), col + 16 * c + 8 * matrix_chunk(lane)), pairs);
    }
}

// ---- Masked generic: registers and view -------------------------------------------------------------------------
template <int Rows, int Cols, class T>
TK_DEVICE void load(rt_fl<Rows, Cols>& dst, const view<const T>& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) {
      const int r = row + 16 * b + fragment_row(lane_index(), e), c = col + fragment_col(lane_index(), e);
      const bool inside = r < src.rows && c < src.cols;
      if constexpr (is_16bit<T>)
        dst.x[b][e] = inside ? ptx::to_float<T>(src.at(r, c)->bits) : 0.0f;
      else
        dst.x[b][e] = inside ? *src.at(r, c) : 0.0f;
    }
}

template <int Rows, int Cols, class T>
TK_DEVICE void store(const view<T>& dst, const rt_fl<Rows, Cols>& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Rows / 16; ++b)
#pragma unroll
    for (int e = 0; e < Cols / 2; ++e) {
      const int r = row + 16 * b + fragment_row(lane_index(), e), c = col + fragment_col(lane_index(), e);
      if (r >= dst.rows || c >= dst.cols) continue;
      if constexpr (is_16bit<T>)
        dst.at(r, c)->bits = static_cast<unsigned short>(ptx::pack<T>(src.x[b][e], 0.0f));
      else
        *dst.at(r, c) = src.x[b][e];
    }
}

}  // namespace tk
