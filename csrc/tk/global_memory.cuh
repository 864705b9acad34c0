// load and store between global memory (view, vec_view) and shared memory or registers, called by all warps of Scope:
//   load<warpgroup>(tile, x, row, col, fill)     store<warpgroup>(x, tile, row, col)
// Any strides, any tails: what lies outside the view, to the left and above too, is read as `fill` and never written.
// Rows whose address and pitch are multiples of 16 bytes move 16 bytes a lane, neighbouring lanes side by side: between
// global and shared memory always; into registers where all columns of the tile are inside, its type is the view's (not
// a 32-bit one other than tf32) and a row of it has a multiple of 64 bytes.
// A tile in shared memory that TMA or wgmma reads next is published first: publish_tile() by all who wrote, a barrier.
#pragma once

#include "shape.cuh"

namespace tk {

namespace detail {

// The order in which threads take the 16-byte chunks of a shared tile: along the rows of a panel, panel after panel, so
// that eight neighbours are free of bank conflicts under every swizzle.
template <class Tile>
struct chunks {
  static constexpr int width = 16 / static_cast<int>(sizeof(typename Tile::type));
  static constexpr int across = Tile::cols / width, panel = Tile::swizzle / 16;
  static constexpr int strip = panel != 0 && across % panel == 0 ? panel : across;
  static constexpr int total = Tile::rows * across;
  TK_DEVICE static int row(int i) { return i / strip % Tile::rows; }
  TK_DEVICE static int col(int i) { return (i / (strip * Tile::rows) * strip + i % strip) * width; }
};

// This thread's chunks, Batch at a time: first all are read, then all are written, so that many loads are under way.
template <class Scope, int Total, int Batch, class Read, class Write>
TK_DEVICE void in_batches(Read read, Write write) {
  constexpr int rounds = (Total + Scope::threads - 1) / Scope::threads, batch = rounds < Batch ? rounds : Batch;
  const int thread = Scope::thread();
#pragma unroll 1
  for (int first = 0; first < rounds; first += batch) {
    uint4 held[batch];
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      const int i = (first + k) * Scope::threads + thread;
      if (Total % (Scope::threads * batch) == 0 || i < Total) held[k] = read(i);
    }
#pragma unroll
    for (int k = 0; k < batch; ++k) {
      const int i = (first + k) * Scope::threads + thread;
      if (Total % (Scope::threads * batch) == 0 || i < Total) write(i, held[k]);
    }
  }
}

template <class T>
union chunk {
  uint4 whole;
  plain<T> part[16 / sizeof(T)];
  TK_DEVICE chunk() {}
};

template <class T>
TK_DEVICE bool inside(const view<T>& x, int row, int col) {
  return static_cast<unsigned>(row) < static_cast<unsigned>(x.rows) &&
         static_cast<unsigned>(col) < static_cast<unsigned>(x.cols);
}

template <class T>
TK_DEVICE uint4 read_masked(const view<const T>& src, int row, int col, bool aligned, T fill) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  if (aligned && inside(src, row, col) && col + width <= src.cols) return ptx::ld_global_v4(src.at(row, col));
  chunk<T> x;
#pragma unroll
  for (int i = 0; i < width; ++i) x.part[i] = inside(src, row, col + i) ? *src.at(row, col + i) : fill;
  return x.whole;
}
template <class T>
TK_DEVICE void write_masked(const view<T>& dst, int row, int col, bool aligned, uint4 value) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  if (aligned && inside(dst, row, col) && col + width <= dst.cols) {
    ptx::st_global_v4(dst.at(row, col), value);
    return;
  }
  chunk<T> x;
  x.whole = value;
#pragma unroll
  for (int i = 0; i < width; ++i)
    if (inside(dst, row, col + i)) *dst.at(row, col + i) = x.part[i];
}

}  // namespace detail

// ---- Shared tiles ------------------------------------------------------------------------------------------------
// The tile from (row, col) of the view on; the types are the same.
template <class Scope = warp, class Tile, class T>
  requires shared_tile<plain_tile<Tile>>
TK_DEVICE void load(Tile&& dst, const view<const T>& src, int row, int col, T fill = {}) {
  using Shared = plain_tile<Tile>;
  using Chunks = detail::chunks<Shared>;
  static_assert(same_bits<T, typename Shared::type>, "global and shared tile must hold the same type");
  const bool aligned = src.aligned(Chunks::width) && col % Chunks::width == 0;
  const auto put = [&](int i, uint4 x) { ptx::st_shared_v4(dst.address(Chunks::row(i), Chunks::col(i)), x); };
  if (aligned && src.covers(row, col, Shared::rows, Shared::cols)) {
    detail::in_batches<Scope, Chunks::total, 4>(
        [&](int i) { return ptx::ld_global_v4(src.at(row + Chunks::row(i), col + Chunks::col(i))); }, put);
  } else {
    detail::in_batches<Scope, Chunks::total, 2>(
        [&](int i) { return detail::read_masked(src, row + Chunks::row(i), col + Chunks::col(i), aligned, fill); },
        put);
  }
}

// The tile to (row, col) of the view on.
template <class Scope = warp, class T, shared_tile Tile>
TK_DEVICE void store(const view<T>& dst, const Tile& src, int row, int col) {
  using Chunks = detail::chunks<Tile>;
  static_assert(same_bits<T, typename Tile::type>, "global and shared tile must hold the same type");
  const bool aligned = dst.aligned(Chunks::width) && col % Chunks::width == 0;
  const auto get = [&](int i) { return ptx::ld_shared_v4(src.address(Chunks::row(i), Chunks::col(i))); };
  if (aligned && dst.covers(row, col, Tile::rows, Tile::cols)) {
    detail::in_batches<Scope, Chunks::total, 4>(
        get, [&](int i, uint4 x) { ptx::st_global_v4(dst.at(row + Chunks::row(i), col + Chunks::col(i)), x); });
  } else {
    detail::in_batches<Scope, Chunks::total, 2>(get, [&](int i, uint4 x) {
      detail::write_masked(dst, row + Chunks::row(i), col + Chunks::col(i), aligned, x);
    });
  }
}

// The same load by cp.async where the view is aligned: it returns at once; commit_loads() closes a group,
// wait_loads<n>() until at most n of this thread's groups are in flight, then a barrier. What lies outside reads as 0.
template <class Scope = warp, class Tile, class T>
  requires shared_tile<plain_tile<Tile>>
TK_DEVICE void load_async(Tile&& dst, const view<const T>& src, int row, int col) {
  using Shared = plain_tile<Tile>;
  using Chunks = detail::chunks<Shared>;
  static_assert(same_bits<T, typename Shared::type>, "global and shared tile must hold the same type");
  if (!src.aligned(Chunks::width) || col % Chunks::width != 0 || col < 0) {
    load<Scope>(dst, src, row, col);
    return;
  }
#pragma unroll
  for (int i = Scope::thread(); i < Chunks::total; i += Scope::threads) {
    const int r = row + Chunks::row(i), c = col + Chunks::col(i);
    const bool some = detail::inside(src, r, c);
    const int left = (src.cols - c) * static_cast<int>(sizeof(T));
    ptx::cp_async_16(dst.address(Chunks::row(i), Chunks::col(i)), some ? src.at(r, c) : src.data,
                     static_cast<u32>(some ? (left < 16 ? left : 16) : 0));
  }
}
TK_DEVICE void commit_loads() { ptx::cp_async_commit_group(); }
template <int Pending = 0>
TK_DEVICE void wait_loads() {
  ptx::cp_async_wait_group<Pending>();
}

// ---- Register tiles ----------------------------------------------------------------------------------------------
namespace detail {

// `count` neighbours in memory, as one access.
template <class T, int Count>
struct alignas(Count * sizeof(T)) neighbours {
  T x[Count];
};

// Row tiles whose runs fill a register, in memory of the same type: four lanes hold 16 registers of a row, 64 bytes, in
// every fourth place. They move as 16 bytes a lane and are exchanged within the quad.
template <class Tile, class T>
constexpr bool by_quads = Tile::layout == Layout::row && Tile::run == Tile::per_word &&
                          is_same<plain<T>, typename Tile::type> && Tile::cols * sizeof(T) % 64 == 0;

// The 4 x 4 transpose of four registers in four lanes.
TK_DEVICE void transpose_quad(u32 (&x)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (lane_index() & bit) != 0;
#pragma unroll
    for (int low = 0; low < 4; ++low) {
      if (low & bit) continue;
      const u32 given = upper ? x[low] : x[low + bit];
      const u32 taken = __shfl_xor_sync(0xffffffffu, given, bit);
      x[low] = upper ? taken : x[low];
      x[low + bit] = upper ? x[low + bit] : taken;
    }
  }
}

// f(b, half, group): 16 rows, the lower or upper 8 of them, 64 bytes of columns.
template <class Tile, class F>
TK_DEVICE void for_quads(F f) {
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int group = 0; group < Tile::words / 8; ++group) f(b, half, group);
}

template <class Scope, class Tile, class T>
TK_DEVICE void load_quads(Tile& dst, const view<const T>& src, int row, int col,
                          typename Tile::compute fill) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  typename Tile::compute same[Tile::per_word];
#pragma unroll
  for (int i = 0; i < Tile::per_word; ++i) same[i] = fill;
  const u32 outside = word_bits(packed<T>::make(same));
  for_quads<Tile>([&](int b, int half, int group) {
    const int r = row + group_row<Scope, Tile>(b, half * Tile::run);
    const int c = col + width * (4 * group + lane_index() % 4);
    uint4 x = make_uint4(outside, outside, outside, outside);
    if (inside(src, r, c)) x = ptx::ld_global_v4(src.at(r, c));
    u32 words[4] = {x.x, x.y, x.z, x.w};
    transpose_quad(words);
#pragma unroll
    for (int j = 0; j < 4; ++j) set_word(dst.x[b][2 * (4 * group + j) + half], words[j]);
  });
}
template <class Scope, class Tile, class T>
TK_DEVICE void store_quads(const view<T>& dst, const Tile& src, int row, int col) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  for_quads<Tile>([&](int b, int half, int group) {
    u32 words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = word_bits(src.x[b][2 * (4 * group + j) + half]);
    transpose_quad(words);
    const int r = row + group_row<Scope, Tile>(b, half * Tile::run);
    const int c = col + width * (4 * group + lane_index() % 4);
    if (inside(dst, r, c)) ptx::st_global_v4(dst.at(r, c), make_uint4(words[0], words[1], words[2], words[3]));
  });
}

// Are all columns of the tile in the view, in whole 16-byte chunks? The same in all lanes.
template <class Tile, class T>
TK_DEVICE bool whole_rows(const view<T>& x, int col) {
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  return x.aligned(width) && col % width == 0 && col >= 0 && col + Tile::cols <= x.cols;
}

}  // namespace detail

// The tile's type may differ from the view's: values are converted. A column tile is read by rows and turned in
// registers where its shape allows.
template <class Scope = warp, class D, int Rows, int Cols, Layout L, class T>
TK_DEVICE void load(rt<D, Rows, Cols, L>& dst, const view<const T>& src, int row, int col,
                    typename element<D>::compute fill = 0) {
  using Tile = rt<D, Rows, Cols, L>;
  using To = typename Tile::compute;
  constexpr int run = Tile::run;
  if constexpr (detail::turns<Tile>) {
    rt<D, Rows, Cols> rows;
    load<Scope>(rows, src, row, col, fill);
    swap_layout(dst, rows);
  } else {
    if constexpr (detail::by_quads<Tile, T>) {
      if (detail::whole_rows<Tile>(src, col)) {
        detail::load_quads<Scope>(dst, src, row, col, fill);
        return;
      }
    }
    const bool aligned = L == Layout::row && src.aligned(run) && col % run == 0;
#pragma unroll
    for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
      for (int first = 0; first < Tile::elements; first += run) {
        To v[run];
        const int r = row + group_row<Scope, Tile>(b, first), c = col + Tile::col(b, first);
        if (aligned && detail::inside(src, r, c) && c + run <= src.cols) {
          const auto x = *reinterpret_cast<const detail::neighbours<T, run>*>(src.at(r, c));
#pragma unroll
          for (int i = 0; i < run; ++i) v[i] = value_as<To>(read(x.x + i));
        } else {
#pragma unroll
          for (int i = 0; i < run; ++i) {
            const int ri = L == Layout::row ? r : r + i, ci = L == Layout::row ? c + i : c;
            v[i] = detail::inside(src, ri, ci) ? value_as<To>(read(src.at(ri, ci))) : fill;
          }
        }
        dst.set_run(b, first, v);
      }
  }
}

// The same the other way.
template <class Scope = warp, class T, class D, int Rows, int Cols, Layout L>
TK_DEVICE void store(const view<T>& dst, const rt<D, Rows, Cols, L>& src, int row, int col) {
  using Tile = rt<D, Rows, Cols, L>;
  using To = typename element<T>::compute;
  constexpr int run = Tile::run;
  if constexpr (detail::turns<Tile>) {
    rt<D, Rows, Cols> rows;
    swap_layout(rows, src);
    store<Scope>(dst, rows, row, col);
  } else {
    if constexpr (detail::by_quads<Tile, T>) {
      if (detail::whole_rows<Tile>(dst, col)) {
        detail::store_quads<Scope>(dst, src, row, col);
        return;
      }
    }
    const bool aligned = L == Layout::row && dst.aligned(run) && col % run == 0;
#pragma unroll
    for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
      for (int first = 0; first < Tile::elements; first += run) {
        detail::neighbours<T, run> x;
#pragma unroll
        for (int i = 0; i < run; ++i) write(x.x + i, value_as<To>(src.get(b, first + i)));
        const int r = row + group_row<Scope, Tile>(b, first), c = col + Tile::col(b, first);
        if (aligned && detail::inside(dst, r, c) && c + run <= dst.cols) {
          *reinterpret_cast<detail::neighbours<T, run>*>(dst.at(r, c)) = x;
          continue;
        }
#pragma unroll
        for (int i = 0; i < run; ++i) {
          const int ri = L == Layout::row ? r : r + i, ci = L == Layout::row ? c + i : c;
          if (detail::inside(dst, ri, ci)) *dst.at(ri, ci) = x.x[i];
        }
      }
  }
}

// ---- Vectors -----------------------------------------------------------------------------------------------------
// From element `first` on; a warp, or each of several warps the same.
template <class V, class T>
  requires is_rv<V>
TK_DEVICE void load(V& dst, const vec_view<const T>& src, int first = 0, typename V::type fill = 0) {
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const int i = first + V::index(k);
    const bool some = V::index(k) < V::length && static_cast<unsigned>(i) < static_cast<unsigned>(src.length);
    dst.x[k] = some ? value_as<typename V::type>(read(src.at(i))) : fill;
  }
}
// The same the other way; of the lanes that hold one value, one writes it.
template <class T, class V>
  requires is_rv<V>
TK_DEVICE void store(const vec_view<T>& dst, const V& src, int first = 0) {
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const int i = first + V::index(k);
    if (V::owns() && V::index(k) < V::length && static_cast<unsigned>(i) < static_cast<unsigned>(dst.length))
      write(dst.at(i), value_as<typename element<T>::compute>(src.x[k]));
  }
}
// Shared vectors, by all threads of Scope.
template <class Scope = warp, class T, int Length>
TK_DEVICE void load(sv<T, Length>& dst, const vec_view<const T>& src, int first = 0, T fill = {}) {
  for (int i = Scope::thread(); i < Length; i += Scope::threads)
    dst.data[i] =
        static_cast<unsigned>(first + i) < static_cast<unsigned>(src.length) ? *src.at(first + i) : fill;
}
template <class Scope = warp, class T, int Length>
TK_DEVICE void store(const vec_view<T>& dst, const sv<T, Length>& src, int first = 0) {
  for (int i = Scope::thread(); i < Length; i += Scope::threads)
    if (static_cast<unsigned>(first + i) < static_cast<unsigned>(dst.length)) *dst.at(first + i) = src.data[i];
}

}  // namespace tk
