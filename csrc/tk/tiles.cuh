// The nouns: rt (a warp's register tile), rv (a register vector), st and sv (a shared tile, a shared vector), view,
// vec_view and tensor (global memory with strides and bounds). gl, global memory behind a tensor map, is in tma.cuh.
#pragma once

#include "group.cuh"
#include "packed.cuh"

namespace tk {

// ---- Register tiles and vectors ---------------------------------------------------------------------------------
// A vector of Length values held by one warp, placed by vector_index: slot k of a lane is x[k].
template <class T, int Length, Spread S, int Run = 2>
struct rv {
  static_assert(is_same<T, float> || is_same<T, int>, "register vectors hold float or int");
  static_assert(S != Spread::across || Length % 16 == 0,
                "a vector across a tile covers a multiple of 16 rows or columns");
  static_assert(S != Spread::along || Length % (4 * Run) == 0,
                "a vector along a tile covers whole runs of its elements");
  static constexpr int length = Length, slots = vector_slots(S, Length), run = Run;
  static constexpr Spread spread = S;
  using type = T;
  T x[slots];

  TK_DEVICE static int index(int slot) { return vector_index(S, lane_index(), slot, Run); }
  // Of the lanes that hold the same values, is this the one that writes them?
  TK_DEVICE static bool owns() {
    return S == Spread::across ? lane_index() % 4 == 0 : S == Spread::along ? lane_index() < 4 : true;
  }
};

// Rows x Cols held by one warp; each lane has Rows * Cols / 32 elements, placed by layout.h: blocks of 16 rows (a row
// tile) or of 16 columns (a column tile). Register w of block b is x[b][w]; it holds elements per_word * w .. of the
// block's fragment: one for fp32 and int32, two for bf16 and fp16, four for fp8.
// Of a warpgroup's 64-row tile, warp w holds rows 16 w .. 16 w + 15 as an rt<T, 16, Cols>.
template <class T, int Rows, int Cols, Layout L = Layout::row>
struct rt {
  static_assert(is_element<T>, "register tiles hold float, bf16 or fp16, e4m3 or e5m2, tf32, int or int8");
  static constexpr Layout layout = L;
  static constexpr int rows = Rows, cols = Cols, run = element<T>::run, per_word = element<T>::per_word;
  static constexpr int across = L == Layout::row ? Rows : Cols, along = L == Layout::row ? Cols : Rows;
  static_assert(L != Layout::row || (Rows % 16 == 0 && Rows > 0), "a register tile has a multiple of 16 rows");
  static_assert(L != Layout::col || (Cols % 16 == 0 && Cols > 0), "a column tile has a multiple of 16 columns");
  static_assert(along % (is_32bit<T> ? 8 : 8 * per_word) == 0 && along > 0,
                "a register tile has a multiple of 8 columns (float, int, tf32), of 16 (bf16, fp16) or of 32 (8 bits), "
                "a column tile of as many rows");
  using type = T;
  using word = typename element<T>::word;
  using compute = typename element<T>::compute;
  static constexpr int blocks = across / 16, elements = along / 2, words = elements / per_word;
  // One value per row, one value per column.
  using per_row = rv<compute, Rows, L == Layout::row ? Spread::across : Spread::along, run>;
  using per_col = rv<compute, Cols, L == Layout::row ? Spread::along : Spread::across, run>;

  word x[blocks][words];

  // The place of element e of block b: this lane's corner, and a distance that is known when compiling.
  TK_DEVICE static int corner_row() { return L == Layout::row ? lane_index() / 4 : run * (lane_index() % 4); }
  TK_DEVICE static int corner_col() { return L == Layout::row ? run * (lane_index() % 4) : lane_index() / 4; }
  static constexpr TK_HD int row_step(int b, int e) {
    return L == Layout::row ? 16 * b + fragment_row(0, e, run) : fragment_col(0, e, run);
  }
  static constexpr TK_HD int col_step(int b, int e) {
    return L == Layout::row ? fragment_col(0, e, run) : 16 * b + fragment_row(0, e, run);
  }
  TK_DEVICE static int row(int b, int e) { return corner_row() + row_step(b, e); }
  TK_DEVICE static int col(int b, int e) { return corner_col() + col_step(b, e); }
  TK_DEVICE compute get(int b, int e) const { return packed<T>::get(x[b][e / per_word], e % per_word); }
  TK_DEVICE void set_run(int b, int first, const compute (&v)[run]) {  // elements first .. first + run - 1
    if constexpr (per_word == run) {
      x[b][first / run] = packed<T>::make(v);
    } else {
      x[b][first] = v[0];
      x[b][first + 1] = v[1];
    }
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

// Row of the group's tile in which element e of block b of this lane lies.
template <class Scope, class Tile>
TK_DEVICE int group_row(int b, int e) {
  const int step = Tile::row_step(b, e);
  return Scope::row(step / 16 * 16) + step % 16 + Tile::corner_row();
}

template <class A>
constexpr bool is_rt = false;
template <class T, int R, int C, Layout L>
constexpr bool is_rt<rt<T, R, C, L>> = true;
template <class A>
constexpr bool is_rv = false;
template <class T, int N, Spread S, int Run>
constexpr bool is_rv<rv<T, N, S, Run>> = true;

// ---- Shared tiles -----------------------------------------------------------------------------------------------
// Rows x Cols in shared memory, in panels of `Swizzle` bytes of columns (layout.h); the widest that fits unless given.
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

// What loads, stores and maps take as a shared tile: st and st_part.
template <class A>
concept shared_tile = requires(const A& tile) {
  typename A::type;
  A::rows + A::cols + A::swizzle;
  tile.address(0, 0);
};

template <class A>
struct without_reference {
  using type = plain<A>;
};
template <class A>
struct without_reference<A&> {
  using type = plain<A>;
};
template <class A>
using plain_tile = typename without_reference<A>::type;

// Rows x Cols of a tile from (row, col) on: a view, the elements stay where they are. Whatever takes an st takes it.
template <class Tile, int Rows, int Cols>
struct st_part {
  static constexpr int rows = Rows, cols = Cols, swizzle = Tile::swizzle;
  using type = typename Tile::type;
  using whole = Tile;
  Tile* tile;
  int row, col;

  TK_DEVICE u32 address(int r, int c) const { return tile->address(row + r, col + c); }
  TK_DEVICE type& at(int r, int c) const { return tile->at(row + r, col + c); }
  // Byte offset of (r, c) in the whole tile, chunks not permuted: for matrix descriptors.
  TK_DEVICE u32 corner(int r, int c) const {
    return linear_offset(Tile::rows, Tile::cols, sizeof(type), swizzle, row + r, col + c);
  }
};
template <class A>
constexpr bool is_part = false;
template <class Tile, int Rows, int Cols>
constexpr bool is_part<st_part<Tile, Rows, Cols>> = true;

// Of a sub-tile too.
template <int Rows, int Cols, class Reference>
  requires shared_tile<plain_tile<Reference>>
TK_DEVICE auto subtile(Reference&& tile, int row, int col) {
  using Tile = plain_tile<Reference>;
  static_assert(Rows <= Tile::rows && Cols <= Tile::cols, "a sub-tile must fit in its tile");
  static_assert(Rows % 8 == 0 && Cols * sizeof(typename Tile::type) % 16 == 0,
                "a sub-tile has a multiple of 8 rows and of 16 bytes of columns, and begins at one");
  if constexpr (is_part<Tile>)
    return st_part<typename Tile::whole, Rows, Cols>{tile.tile, tile.row + row, tile.col + col};
  else
    return st_part<Tile, Rows, Cols>{&tile, row, col};
}

// A shared vector.
template <class T, int Length>
struct alignas(128) sv {
  static_assert(is_element<T>, "shared vectors hold float, bf16 or fp16, e4m3 or e5m2, tf32, int or int8");
  static constexpr int length = Length;
  static constexpr u32 bytes = Length * sizeof(T);
  using type = T;
  T data[Length];
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
// A matrix in plain memory, any strides (constant ones fold when compiling); verbs mask everything outside rows x cols.
template <class T>
struct view {
  T* data;
  int rows, cols;
  long long row_stride, col_stride = 1;  // in elements
  TK_DEVICE T* at(int row, int col) const { return data + row * row_stride + col * col_stride; }
  TK_DEVICE view transposed() const { return {data, cols, rows, col_stride, row_stride}; }
  // `count` neighbouring columns from a multiple of `count` on may move as one access.
  TK_DEVICE bool aligned(int count) const {
    return col_stride == 1 && row_stride % count == 0 && reinterpret_cast<u64>(data) % (count * sizeof(T)) == 0;
  }
  TK_DEVICE bool pairs() const { return aligned(2); }
  TK_DEVICE bool covers(int row, int col, int tile_rows, int tile_cols) const {
    return row >= 0 && col >= 0 && row + tile_rows <= rows && col + tile_cols <= cols;
  }
};

// A vector in plain memory.
template <class T>
struct vec_view {
  T* data;
  int length;
  long long stride = 1;
  TK_DEVICE T* at(int i) const { return data + i * stride; }
};

// A tensor in plain memory: its last two dimensions are a matrix, x(b, h) is the one at (b, h).
template <class T, int Rank>
struct tensor {
  static_assert(Rank >= 2, "a tensor has at least two dimensions: a vector is a vec_view");
  T* data;
  int shape[Rank];
  long long stride[Rank];  // in elements
  template <class... Index>
  TK_DEVICE view<T> operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank - 2, "a matrix of a tensor is named by all but its last two dimensions");
    T* at = data;
    int d = 0;
    ((at += index * stride[d++]), ...);
    return {at, shape[Rank - 2], shape[Rank - 1], stride[Rank - 2], stride[Rank - 1]};
  }
};

}  // namespace tk
