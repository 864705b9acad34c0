// load and store between registers and shared memory, called by all warps of Scope: load<warpgroup>(dst, src) gives
// each warp its slabs of 16 rows of the group's tile (group_slab). Nothing here waits: put a barrier between writers
// and readers.
//   16-bit        ldmatrix / stmatrix, 16 rows x 32 bytes an instruction, transposed for column tiles
//   8-bit, tf32   row tiles the same way, column tiles through registers (swap_layout)
//   32-bit        64-bit accesses, in an order that keeps them free of bank conflicts under every swizzle
#pragma once

#include "shape.cuh"

namespace tk {

namespace detail {

template <class Scope, class Register, class Shared>
TK_DEVICE void check_move() {
  static_assert(same_bits<typename Register::type, typename Shared::type>,
                "register and shared tile must hold the same type");
  static_assert(Scope::warps * Register::rows <= Shared::rows && Register::cols <= Shared::cols,
                "the register tile must fit in the shared tile");
}

// The 16-byte row that this lane names for the piece of 16 rows x 32 bytes at (row, col).
template <class Tile>
TK_DEVICE u32 matrix_address(const Tile& tile, int row, int col) {
  constexpr int chunk = 16 / static_cast<int>(sizeof(typename Tile::type));
  return tile.address(row + matrix_row(lane_index()), col + chunk * matrix_chunk(lane_index()));
}
template <class Tile>
TK_DEVICE u32 matrix_trans_address(const Tile& tile, int row, int col) {
  return tile.address(row + matrix_trans_row(lane_index()), col + 8 * matrix_trans_chunk(lane_index()));
}

// Row tiles whose runs fill a register.
template <class Scope, class Register, class Shared>
TK_DEVICE void load_matrices(Register& dst, const Shared& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int c = 0; c < Register::words / 4; ++c) {
      u32 words[4];
      ptx::ldmatrix_x4(words, matrix_address(src, row + Scope::row(16 * b), col + 8 * Register::per_word * c));
#pragma unroll
      for (int p = 0; p < 4; ++p) set_word(dst.x[b][4 * c + p], words[p]);
    }
}
template <class Scope, class Register, class Shared>
TK_DEVICE void store_matrices(const Shared& dst, const Register& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int c = 0; c < Register::words / 4; ++c) {
      u32 words[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) words[p] = word_bits(src.x[b][4 * c + p]);
      ptx::stmatrix_x4(matrix_address(dst, row + Scope::row(16 * b), col + 8 * Register::per_word * c), words);
    }
}

// Column tiles of 16-bit elements: 16 x 16 pieces, transposed on the way.
template <class Scope, class Register, class Shared>
TK_DEVICE void load_matrices_trans(Register& dst, const Shared& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int r = 0; r < Register::words / 4; ++r) {
      u32 words[4];
      ptx::ldmatrix_x4_trans(words, matrix_trans_address(src, row + Scope::row(16 * r), col + 16 * b));
#pragma unroll
      for (int p = 0; p < 4; ++p) dst.x[b][4 * r + p] = words[p];
    }
}
template <class Scope, class Register, class Shared>
TK_DEVICE void store_matrices_trans(const Shared& dst, const Register& src, int row, int col) {
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int r = 0; r < Register::words / 4; ++r) {
      u32 words[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) words[p] = src.x[b][4 * r + p];
      ptx::stmatrix_x4_trans(matrix_trans_address(dst, row + Scope::row(16 * r), col + 16 * b), words);
    }
}

// Row tiles of 32-bit elements: 8 bytes a lane, 8 columns (a piece) at a time. A lane with a twist takes piece
// j ^ distance when the others take piece j, so that the rows of one access lie in different banks (twist in layout.h).
template <class Register, class Shared>
constexpr bool twisted = pair_twist_distance(Shared::swizzle) != 0 &&
                         Register::along / 8 % (2 * pair_twist_distance(Shared::swizzle)) == 0;

// Exchanges pieces j and j ^ Distance in the lanes with a twist.
template <int Distance, class Register>
TK_DEVICE void untwist(Register& tile, bool twist) {
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int e = 0; e < Register::elements; ++e) {
      const int j = e / 4, other = e + 4 * Distance;
      if (j & Distance) continue;
      const auto first = tile.x[b][e], second = tile.x[b][other];
      tile.x[b][e] = twist ? second : first;
      tile.x[b][other] = twist ? first : second;
    }
}

template <class Scope, class Register, class Shared>
TK_DEVICE void load_pairs(Register& dst, const Shared& src, int row, int col) {
  constexpr int distance = twisted<Register, Shared> ? pair_twist_distance(Shared::swizzle) : 0;
  const bool twist = distance != 0 && pair_twist(Shared::swizzle, lane_index());
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int p = 0; p < Register::elements / 2; ++p) {  // p = 2 piece + half
      const int j = p / 2, r = Scope::row(16 * b) + p % 2 * 8 + lane_index() / 4;
      const int c = 8 * (j ^ (twist ? distance : 0)) + 2 * (lane_index() % 4);
      const float2 pair = ptx::ld_shared_v2(src.address(row + r, col + c));
      set_bits(dst.x[b][2 * p], __float_as_uint(pair.x));
      set_bits(dst.x[b][2 * p + 1], __float_as_uint(pair.y));
    }
  if constexpr (distance != 0) untwist<distance>(dst, twist);
}

template <class Scope, class Register, class Shared>
TK_DEVICE void store_pairs(const Shared& dst, Register src, int row, int col) {
  constexpr int distance = twisted<Register, Shared> ? pair_twist_distance(Shared::swizzle) : 0;
  const bool twist = distance != 0 && pair_twist(Shared::swizzle, lane_index());
  if constexpr (distance != 0) untwist<distance>(src, twist);
#pragma unroll
  for (int b = 0; b < Register::blocks; ++b)
#pragma unroll
    for (int p = 0; p < Register::elements / 2; ++p) {
      const int j = p / 2, r = Scope::row(16 * b) + p % 2 * 8 + lane_index() / 4;
      const int c = 8 * (j ^ (twist ? distance : 0)) + 2 * (lane_index() % 4);
      ptx::st_shared_v2(dst.address(row + r, col + c), __uint_as_float(bits_of(src.x[b][2 * p])),
                        __uint_as_float(bits_of(src.x[b][2 * p + 1])));
    }
}

}  // namespace detail

// The rt that begins at (row, col) of the shared tile; row and col are multiples of 8 rows and of 16 bytes.
template <class Scope = warp, class T, int Rows, int Cols, Layout L, shared_tile Tile>
TK_DEVICE void load(rt<T, Rows, Cols, L>& dst, const Tile& src, int row = 0, int col = 0) {
  using Register = rt<T, Rows, Cols, L>;
  detail::check_move<Scope, Register, Tile>();
  if constexpr (L == Layout::row && Register::run == Register::per_word) {
    detail::load_matrices<Scope>(dst, src, row, col);
  } else if constexpr (L == Layout::row) {
    detail::load_pairs<Scope>(dst, src, row, col);
  } else if constexpr (is_16bit<T>) {
    detail::load_matrices_trans<Scope>(dst, src, row, col);
  } else {
    static_assert(detail::turns<Register>,
                  "a column tile of this type needs a multiple of 16 (fp8: 32) rows and columns");
    rt<T, Rows, Cols> rows;
    load<Scope>(rows, src, row, col);
    swap_layout(dst, rows);
  }
}
// The same the other way.
template <class Scope = warp, class T, int Rows, int Cols, Layout L, class Tile>
  requires shared_tile<plain_tile<Tile>>
TK_DEVICE void store(Tile&& dst, const rt<T, Rows, Cols, L>& src, int row = 0, int col = 0) {
  using Register = rt<T, Rows, Cols, L>;
  detail::check_move<Scope, Register, plain_tile<Tile>>();
  if constexpr (L == Layout::row && Register::run == Register::per_word) {
    detail::store_matrices<Scope>(dst, src, row, col);
  } else if constexpr (L == Layout::row) {
    detail::store_pairs<Scope>(dst, src, row, col);
  } else if constexpr (is_16bit<T>) {
    detail::store_matrices_trans<Scope>(dst, src, row, col);
  } else {
    static_assert(detail::turns<Register>,
                  "a column tile of this type needs a multiple of 16 (fp8: 32) rows and columns");
    rt<T, Rows, Cols> rows;
    swap_layout(rows, src);
    store<Scope>(dst, rows, row, col);
  }
}

// Register vectors and shared vectors from element `first` on, in any spread and type.
template <class V, class T, int Length>
  requires is_rv<V>
TK_DEVICE void load(V& dst, const sv<T, Length>& src, int first = 0) {
  static_assert(V::length <= Length, "the register vector must fit in the shared vector");
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const int i = V::index(k);
    if (V::length % 32 == 0 || V::spread != Spread::lanes || i < V::length)
      dst.x[k] = value_as<typename V::type>(read(src.data + first + i));
  }
}
// The same the other way; of the lanes that hold one value, one writes it.
template <class T, int Length, class V>
  requires is_rv<V>
TK_DEVICE void store(sv<T, Length>& dst, const V& src, int first = 0) {
  static_assert(V::length <= Length, "the register vector must fit in the shared vector");
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const int i = V::index(k);
    if (i < V::length && src.owns()) write(dst.data + first + i, value_as<typename element<T>::compute>(src.x[k]));
  }
}

}  // namespace tk
