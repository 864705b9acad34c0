// The nouns: rt (a warp's register tile), rv (a register vector), st (a shared tile), view (global memory with strides
// and bounds). gl, global memory behind a tensor map, is in tma.cuh.
#pragma once

#include "group.cuh"

namespace tk {

// ---- Register tiles and vectors ---------------------------------------------------------------------------------
// A vector of Length values held by one warp, placed by vector_index: slot k of a lane is x[k].
template <class T, int Length, Spread S, int Run = 2>
struct rv {
  static_assert(is_same<T, float> || is_same<T, int>, "register vectors hold float or int");
  static_assert(S != Spread::across || Length % 16 == 0, "a vector across a tile covers a multiple of 16 rows or columns");
  static_assert(S != Spread::along || Length % (4 * Run) == 0, "a vector along a tile covers whole runs of its elements");
  static constexpr int length = Length, slots = vector_slots(S, Length), run = Run;
  static constexpr Spread spread = S;
  using type = T;
  T x[slots];

  TK_DEVICE static int index(int slot) { return vector_index(S, lane_index(), slot, Run); }
};

// Rows x Cols held by one warp; each lane has Rows * Cols / 32 elements, placed by layout.h: blocks of 16 rows (a row
// tile) or of 16 columns (a column tile). Register w of block b is x[b][w]; it holds elements per_word * w .. of the
// block's fragment: one for fp32 and int32, two for bf16 and fp16, four for fp8.
// Of a warpgroup's 64-row tile, warp w holds rows 16 w .. 16 w + 15 as an rt<T, 16, Cols>.
template <class T, int Rows, int Cols, Layout L = Layout::row>
struct rt {
  static_assert(is_element<T>, "register tiles hold float, bf16 or fp16, e4m3 or e5m2, tf32 or int");
  static constexpr Layout layout = L;
  static constexpr int rows = Rows, cols = Cols, run = element<T>::run, per_word = element<T>::per_word;
  static constexpr int across = L == Layout::row ? Rows : Cols, along = L == Layout::row ? Cols : Rows;
  static_assert(L != Layout::row || (Rows % 16 == 0 && Rows > 0), "a register tile has a multiple of 16 rows");
  static_assert(L != Layout::col || (Cols % 16 == 0 && Cols > 0), "a column tile has a multiple of 16 columns");
  static_assert(along % (is_32bit<T> ? 8 : 8 * per_word) == 0 && along > 0,
                "a register tile has a multiple of 8 columns (float, int, tf32), of 16 (bf16, fp16) or of 32 (fp8), "
                "a column tile of as many rows");
  using type = T;
  using word = typename element<T>::word;
  using compute = typename element<T>::compute;
  static constexpr int blocks = across / 16, elements = along / 2, words = elements / per_word;
  // One value per row, one value per column.
  using per_row = rv<compute, Rows, L == Layout::row ? Spread::across : Spread::along, run>;
  using per_col = rv<compute, Cols, L == Layout::row ? Spread::along : Spread::across, run>;

  word x[blocks][words];

  // The place of element e of block b of this lane.
  TK_DEVICE static int row(int b, int e) {
    return L == Layout::row ? 16 * b + fragment_row(lane_index(), e, run) : fragment_col(lane_index(), e, run);
  }
  TK_DEVICE static int col(int b, int e) {
    return L == Layout::row ? fragment_col(lane_index(), e, run) : 16 * b + fragment_row(lane_index(), e, run);
  }
};
template <int Rows, int Cols, Layout L = Layout::row>
using rt_fl = rt<float, Rows, Cols, L>;
template <int Rows, int Cols, Layout L = Layout::row>
using rt_bf = rt<bf16, Rows, Cols, L>;
template <int Rows, int Cols, Layout L = Layout::row>
using rt_hf = rt<fp16, Rows, Cols, L>;
template <int Rows, int Cols, Layout L = Layout::row>
using rt_e4m3 = rt<e4m3, Rows, Cols, L>;
template <int Rows, int Cols, Layout L = Layout::row>
using rt_e5m2 = rt<e5m2, Rows, Cols, L>;
template <int Rows, int Cols, Layout L = Layout::row>
using rt_int = rt<int, Rows, Cols, L>;

template <class A>
constexpr bool is_rt = false;
template <class T, int R, int C, Layout L>
constexpr bool is_rt<rt<T, R, C, L>> = true;
template <class A>
constexpr bool is_rv = false;
template <class T, int N, Spread S, int Run>
constexpr bool is_rv<rv<T, N, S, Run>> = true;

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
