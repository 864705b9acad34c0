// The three nouns: rt (a warp's register tile), st (a shared tile), gl (a global layout behind a tensor map); and
// view, plain global memory with bounds, for the shapes TMA cannot take.
#pragma once

#include "ptx.cuh"

namespace tk {

// ---- Register tiles ---------------------------------------------------------------------------------------------
// Rows x Cols held by one warp; each lane has Rows * Cols / 32 elements, placed by layout.h. Of a warpgroup's
// 64-row tile, warp w holds rows 16 w .. 16 w + 15 as an rt<T, 16, Cols>.
// fp32: element e of row block b is x[b][e]. bf16, fp16: pair p (elements 2p, 2p + 1) of row block b is x[b][p].
template <class T>
struct register_of {
  using type = u32;
};
template <>
struct register_of<float> {
  using type = float;
};

template <class T, int Rows, int Cols>
struct rt {
  static_assert(is_same<T, float> || is_16bit<T>, "register tiles hold float, bf16 or fp16");
  static_assert(Rows % 16 == 0 && Rows > 0, "a register tile has a multiple of 16 rows");
  static_assert(is_16bit<T> ? Cols % 16 == 0 : Cols % 8 == 0,
                "a register tile has a multiple of 8 columns (float) or of 16 (bf16, fp16)");
  static constexpr int rows = Rows, cols = Cols;
  using type = T;
  typename register_of<T>::type x[Rows / 16][is_16bit<T> ? Cols / 4 : Cols / 2];
};
template <int Rows, int Cols>
using rt_fl = rt<float, Rows, Cols>;
template <int Rows, int Cols>
using rt_bf = rt<bf16, Rows, Cols>;
template <int Rows, int Cols>
using rt_hf = rt<fp16, Rows, Cols>;

// One fp32 value per row; each lane holds those of its rows g and g + 8, the same in the four lanes of a row.
template <int Rows>
struct row_vec {
  static_assert(Rows % 16 == 0, "a row vector covers a multiple of 16 rows");
  float x[Rows / 16][2];
};

// ---- Shared tiles -----------------------------------------------------------------------------------------------
template <class T, int Rows, int Cols, int Swizzle = widest_swizzle(Cols * static_cast<int>(sizeof(T)))>
struct alignas(Swizzle ? swizzle_period(Swizzle) : 128) st {
  static_assert(Swizzle == 0 || Swizzle == 32 || Swizzle == 64 || Swizzle == 128,
                "a swizzle is 0, 32, 64 or 128 bytes");
  static_assert(Rows % 8 == 0, "a shared tile has a multiple of 8 rows");
  static_assert(Cols * sizeof(T) % 16 == 0, "a row of a shared tile has a multiple of 16 bytes");
  static_assert(Swizzle == 0 || Cols * sizeof(T) % Swizzle == 0, "the swizzle must divide the bytes of a row");
  static constexpr int rows = Rows, cols = Cols, swizzle = Swizzle;
  static constexpr int panel_cols = Swizzle ? Swizzle / static_cast<int>(sizeof(T)) : Cols;
  static constexpr int panels = Cols / panel_cols;
  static constexpr u32 bytes = Rows * Cols * sizeof(T);
  using type = T;

  T data[Rows * Cols];

  TK_DEVICE static u32 offset(int row, int col) { return tile_offset(Rows, Cols, sizeof(T), Swizzle, row, col); }
  TK_DEVICE u32 address(int row, int col) const { return ptx::shared_address(data) + offset(row, col); }
  TK_DEVICE T& at(int row, int col) { return data[offset(row, col) / sizeof(T)]; }
  TK_DEVICE const T& at(int row, int col) const { return data[offset(row, col) / sizeof(T)]; }
};

// Part `index` of `Parts` of a tile that is contiguous in shared memory: whole rows where the tile is one panel wide,
// whole panels otherwise. CTAs of a cluster each load one part and multicast it.
template <int Parts, class Tile>
struct part_of {
  static constexpr bool by_rows = Tile::panels == 1;
  static_assert(by_rows ? Tile::rows % (8 * Parts) == 0 : Tile::panels % Parts == 0,
                "a tile is cut in parts of 8-row groups when it has one panel, of whole panels otherwise");
  using type = st<typename Tile::type, by_rows ? Tile::rows / Parts : Tile::rows,
                  by_rows ? Tile::cols : Tile::cols / Parts, Tile::swizzle>;
};
template <int Parts, class Tile>
using part_t = typename part_of<Parts, Tile>::type;
template <int Parts, class Tile>
TK_DEVICE part_t<Parts, Tile>& part(Tile& tile, int index) {
  return reinterpret_cast<part_t<Parts, Tile>*>(&tile)[index];
}

// ---- Global memory ----------------------------------------------------------------------------------------------
// A tensor map whose box is one panel of Tile: {1, .., Tile::rows, Tile::panel_cols}, swizzle Tile::swizzle.
template <class Tile, int Rank = 2>
struct gl {
  static_assert(Tile::rows <= 256, "a TMA box has at most 256 rows");
  static_assert(Tile::panel_cols <= 256, "a TMA box has at most 256 columns: give the tile a swizzle");
  using tile = Tile;
  static constexpr int rank = Rank;
  const tensor_map* map;
  TK_DEVICE explicit gl(const tensor_map& m) : map(&m) {}
};

// A matrix in plain memory; verbs mask everything outside rows x cols.
template <class T>
struct view {
  T* data;
  int rows, cols;
  long long row_stride;  // in elements; columns are contiguous
  TK_DEVICE T* at(int row, int col) const { return data + row * row_stride + col; }
  // Pairs of columns may move as one 4-byte access.
  TK_DEVICE bool pairs() const { return row_stride % 2 == 0 && reinterpret_cast<u64>(data) % (2 * sizeof(T)) == 0; }
};

}  // namespace tk
