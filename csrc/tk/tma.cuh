// Tensor copies by the TMA unit: gl (a tensor behind a map), load, load_multicast, store. Called by one thread.
#pragma once

#include "sync.cuh"
#include "tiles.cuh"

namespace tk {

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

// ---- TMA: st <- gl, gl <- st ------------------------------------------------------------------------------------
// `at` is the coordinate of the tile's first element, outermost dimension first: {.., row, col}. Elements outside the
// tensor read as zero and are not written. One instruction a panel; `bar` receives Tile::bytes in all.
template <class Tile, int Rank>
TK_DEVICE void load(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar) {
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    int panel_at[Rank];
    for (int d = 0; d < Rank; ++d) panel_at[d] = at[d];
    panel_at[Rank - 1] += p * Tile::panel_cols;
    ptx::tensor_load(ptx::shared_address(dst.data + p * Tile::panel_cols * Tile::rows), src.map, bar.address(),
                     panel_at);
  }
}

// The same to the same place in every CTA of the cluster whose bit is set in `ctas`; each one's barrier at the place
// of `bar` receives the bytes.
template <class Tile, int Rank>
TK_DEVICE void load_multicast(Tile& dst, const gl<Tile, Rank>& src, const int (&at)[Rank], mbarrier& bar,
                              unsigned short ctas) {
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    int panel_at[Rank];
    for (int d = 0; d < Rank; ++d) panel_at[d] = at[d];
    panel_at[Rank - 1] += p * Tile::panel_cols;
    ptx::tensor_load_multicast(ptx::shared_address(dst.data + p * Tile::panel_cols * Tile::rows), src.map,
                               bar.address(), ctas, panel_at);
  }
}

// Before: the writers of `src` have called publish_tile() and met at a barrier. After: commit_stores(), and
// wait_stores_read() before `src` is written again.
template <class Tile, int Rank>
TK_DEVICE void store(const gl<Tile, Rank>& dst, const Tile& src, const int (&at)[Rank]) {
#pragma unroll
  for (int p = 0; p < Tile::panels; ++p) {
    int panel_at[Rank];
    for (int d = 0; d < Rank; ++d) panel_at[d] = at[d];
    panel_at[Rank - 1] += p * Tile::panel_cols;
    ptx::tensor_store(dst.map, ptx::shared_address(src.data + p * Tile::panel_cols * Tile::rows), panel_at);
  }
}
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

}  // namespace tk
