// Asynchronous copies, destination first: tiles by tensor map (TMA), and plain stretches of bytes. All are called by
// one thread.
//   load           gl -> st, completes on an mbarrier        load_multicast   the same into several CTAs of the cluster
//   store          st -> gl, completes by bulk group         store_add ..     gl = gl op st
//   prefetch       gl -> L2                                  bulk_load, bulk_store, bulk_add .., bulk_send, bulk_prefetch
// Before a store: the writers of `src` have called publish_tile() and met at a barrier. After: commit_stores(), and
// wait_stores_read() before `src` is written again. A load needs no fence: the wait on its mbarrier orders it.
#pragma once

#include "sync.cuh"
#include "tiles.cuh"

namespace tk {

// A tensor map whose box is one panel of Tile: {1, .., Tile::rows, Tile::panel_cols}, swizzle Tile::swizzle. Of a
// one-dimensional map the box is all elements of the tile, in a row.
template <class Tile, int Rank = 2>
struct gl {
  static_assert(Tile::rows <= 256, "a TMA box has at most 256 rows");
  static_assert(Tile::panel_cols <= 256, "a TMA box has at most 256 columns: give the tile a swizzle");
  static_assert(Rank > 1 || (Tile::swizzle == 0 && Tile::rows * Tile::cols <= 256),
                "a tile behind a one-dimensional map has no swizzle and at most 256 elements");
  static_assert(Rank >= 1 && Rank <= 5, "a tensor map has 1 to 5 dimensions");
  using tile = Tile;
  static constexpr int rank = Rank;
  const tensor_map* map;
  TK_DEVICE explicit gl(const tensor_map& m) : map(&m) {}
};

// How L2 should treat the lines of a copy.
struct cache_policy {
  u64 bits;
};
TK_DEVICE cache_policy evict_first() { return {ptx::createpolicy_evict_first()}; }
TK_DEVICE cache_policy evict_last() { return {ptx::createpolicy_evict_last()}; }

// Calls f(shared address, coordinates) for every panel of a tile whose first element is at `at`, outermost dimension
// first: {.., row, col}. One instruction a panel; elements outside the tensor read as zero and are not written.
template <class Tile, int Rank, class F>
TK_DEVICE void each_panel(const Tile& tile, const int (&at)[Rank], F f) {
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    int panel_at[Rank];
#pragma unroll
    for (int d = 0; d < Rank; ++d) panel_at[d] = at[d];
    panel_at[Rank - 1] += p * Tile::panel_cols;
    f(ptx::shared_address(tile.data + p * Tile::panel_cols * Tile::rows), panel_at);
  }
}

// `bar` receives Tile::bytes in all.
template <class Tile, int Rank>
TK_DEVICE void load(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar) {
  each_panel(dst, at, [&](u32 to, const int (&from)[Rank]) { ptx::tensor_load(to, src.map, bar.address(), from); });
}
template <class Tile, int Rank>
TK_DEVICE void load(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar, cache_policy policy) {
  each_panel(dst, at, [&](u32 to, const int (&from)[Rank]) {
    ptx::tensor_load(to, src.map, bar.address(), from, policy.bits);
  });
}

// To the same place in every CTA of the cluster whose bit is set in `ctas`; each one's barrier at the place of `bar`
// receives the bytes.
template <class Tile, int Rank>
TK_DEVICE void load_multicast(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar,
                              unsigned short ctas) {
  each_panel(dst, at, [&](u32 to, const int (&from)[Rank]) {
    ptx::tensor_load_multicast(to, src.map, bar.address(), ctas, from);
  });
}
template <class Tile, int Rank>
TK_DEVICE void load_multicast(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar,
                              unsigned short ctas, cache_policy policy) {
  each_panel(dst, at, [&](u32 to, const int (&from)[Rank]) {
    ptx::tensor_load_multicast(to, src.map, bar.address(), ctas, from, policy.bits);
  });
}

template <class Tile, int Rank>
TK_DEVICE void prefetch(const gl<Tile, Rank>& src, const int (&at)[Rank]) {
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    int panel_at[Rank];
#pragma unroll
    for (int d = 0; d < Rank; ++d) panel_at[d] = at[d];
    panel_at[Rank - 1] += p * Tile::panel_cols;
    ptx::tensor_prefetch(src.map, panel_at);
  }
}

template <class Tile, int Rank>
TK_DEVICE void store(const gl<Tile, Rank>& dst, const Tile& src, const int (&at)[Rank]) {
  each_panel(src, at, [&](u32 from, const int (&to)[Rank]) { ptx::tensor_store(dst.map, from, to); });
}
template <class Tile, int Rank>
TK_DEVICE void store(const gl<Tile, Rank>& dst, const Tile& src, const int (&at)[Rank], cache_policy policy) {
  each_panel(src, at, [&](u32 from, const int (&to)[Rank]) { ptx::tensor_store(dst.map, from, to, policy.bits); });
}

// dst = dst op src: add for every type but 8-bit ones, min and max for all but float, and, or, xor for integers (PTX
// ISA, cp.reduce.async.bulk.tensor; the map's type decides).
template <class Op, class Tile, int Rank>
TK_DEVICE void store_reduce(const gl<Tile, Rank>& dst, const Tile& src, const int (&at)[Rank]) {
  using T = typename Tile::type;
  static_assert(sizeof(T) >= 2, "a store cannot reduce 8-bit elements");
  static_assert(!is_same<T, float> || Op::kind == ptx::Reduces::sums, "float tiles can only be added by a store");
  static_assert(!is_16bit<T> || Op::kind == ptx::Reduces::sums || Op::kind == ptx::Reduces::orders,
                "bf16 and fp16 tiles can be added, or take the minimum or maximum, by a store");
  each_panel(src, at, [&](u32 from, const int (&to)[Rank]) { ptx::tensor_reduce<Op>(dst.map, from, to); });
}
#define TK_STORE_REDUCE(NAME)                                                                       \
  template <class Tile, int Rank>                                                                   \
  TK_DEVICE void store_##NAME(const gl<Tile, Rank>& dst, const Tile& src, const int (&at)[Rank]) {  \
    store_reduce<ptx::reduce_##NAME>(dst, src, at);                                                 \
  }
TK_STORE_REDUCE(add)
TK_STORE_REDUCE(min)
TK_STORE_REDUCE(max)
TK_STORE_REDUCE(inc)
TK_STORE_REDUCE(dec)
TK_STORE_REDUCE(and)
TK_STORE_REDUCE(or)
TK_STORE_REDUCE(xor)
#undef TK_STORE_REDUCE

TK_DEVICE void publish_tile() { ptx::fence_proxy_async(); }
TK_DEVICE void commit_stores() { ptx::bulk_commit_group(); }
template <int Pending = 0>
TK_DEVICE void wait_stores_read() {
  ptx::bulk_wait_group_read<Pending>();
}
template <int Pending = 0>
TK_DEVICE void wait_stores() {
  ptx::bulk_wait_group<Pending>();
}

// ---- Stretches of `count` elements: addresses and bytes are multiples of 16 --------------------------------------
template <class T>
TK_DEVICE void bulk_load(T* dst, const T* src, int count, mbarrier& bar) {
  ptx::bulk_load(ptx::shared_address(dst), src, count * sizeof(T), bar.address());
}
template <class T>
TK_DEVICE void bulk_load_multicast(T* dst, const T* src, int count, mbarrier& bar, unsigned short ctas) {
  ptx::bulk_load_multicast(ptx::shared_address(dst), src, count * sizeof(T), bar.address(), ctas);
}
// From shared memory here to the same names, dst and bar, of CTA `rank` of the cluster.
template <class T>
TK_DEVICE void bulk_send(T* dst, const T* src, int count, mbarrier& bar, u32 rank) {
  ptx::bulk_send(ptx::mapa(ptx::shared_address(dst), rank), ptx::shared_address(src), count * sizeof(T),
                 ptx::mapa(bar.address(), rank));
}
template <class T>
TK_DEVICE void bulk_store(T* dst, const T* src, int count) {
  ptx::bulk_store(dst, ptx::shared_address(src), count * sizeof(T));
}
template <class T>
TK_DEVICE void bulk_prefetch(const T* src, int count) {
  ptx::bulk_prefetch(src, count * sizeof(T));
}
#define TK_BULK_REDUCE(NAME)                                                                \
  template <class T>                                                                        \
  TK_DEVICE void bulk_##NAME(T* dst, const T* src, int count) {                             \
    ptx::bulk_reduce<ptx::reduce_##NAME, T>(dst, ptx::shared_address(src), count * sizeof(T)); \
  }
TK_BULK_REDUCE(add)
TK_BULK_REDUCE(min)
TK_BULK_REDUCE(max)
TK_BULK_REDUCE(inc)
TK_BULK_REDUCE(dec)
TK_BULK_REDUCE(and)
TK_BULK_REDUCE(or)
TK_BULK_REDUCE(xor)
#undef TK_BULK_REDUCE

}  // namespace tk
