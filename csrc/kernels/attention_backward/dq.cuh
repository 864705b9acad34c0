// The last kernel: dq = scale times the sums that the main kernel left, as fragments, rounded to q's type.
// grid one CTA a query tile of a head; block 256: warpgroup w has part w (backward.cuh): half the rows, or half the columns;
// float4 i of thread t is elements 4 i .. 4 i + 3 of its fragment, which are 8 columns of 64 rows, so that the parts of
// consumers with unequal columns lie as halves do. The tile goes through shared memory, so that rows are
// written in whole chunks of 16 bytes: along the rows of a panel, panel after panel, free of bank conflicts.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_backward {

template <class T, int Index, bool Listed = false>
struct RoundDq {
  static constexpr Shape shape = Listed ? kBlockShapes[Index] : kShapes[Index];
  using Tile = st<T, shape.rows, shape.dim>;
  static constexpr int part_size = shape.part();
  using Part = rt_fl<16, part_size / 64>;

  TK_DEVICE static void run(const Params& p) {
    __shared__ Tile stage;
    QueryTile tile;
    if (!find_queries(p, static_cast<int>(blockIdx.x), tile)) return;
    const int part = warpgroup_index(), thread = static_cast<int>(threadIdx.x) % 128;
    const float4* from = reinterpret_cast<const float4*>(p.dq_sum + (2ll * tile.index + part) * part_size);
    Part sum;
#pragma unroll
    for (int i = 0; i < Part::elements / 4; ++i) {
      const float4 x = from[128 * i + thread];
      sum.x[0][4 * i] = x.x * p.scale;
      sum.x[0][4 * i + 1] = x.y * p.scale;
      sum.x[0][4 * i + 2] = x.z * p.scale;
      sum.x[0][4 * i + 3] = x.w * p.scale;
    }
    rt<T, 16, Part::cols> rounded;
    copy(rounded, sum);
    const int slab = 16 * (warp_index() % 4);
    store(stage, rounded, shape.rows == 128 ? 64 * part + slab : slab, shape.rows == 128 ? 0 : Part::cols * part);
    __syncthreads();
    constexpr int width = 8, chunks = Tile::cols / width, strip = Tile::swizzle / 16;
    const int valid = min(shape.rows, tile.in.seq_q - tile.row);
    for (int i = static_cast<int>(threadIdx.x); i < shape.rows * chunks; i += 256) {
      const int r = i / strip % shape.rows, col = (i / (strip * shape.rows) * strip + i % strip) * width;
      if (r >= valid || col >= p.dim) continue;
      const long long row = static_cast<long long>(tile.in.batch) * p.seq_q + tile.in.q_begin + tile.row + r;
      T* to = static_cast<T*>(p.dq_data) + (row * p.heads + tile.head) * p.dim + col;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&stage.at(r, col));
    }
  }
};

}  // namespace tkpy::attention_backward
