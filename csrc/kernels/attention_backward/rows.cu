// The first kernel: what the main one needs of each query row.
//   dz = dout (1 + out_scale)      delta = sum_d dz z - dlse      log2 e lse
// in   dout [B,Sq,H,Dv] any strides, z like it but contiguous: the output before out_scale and out_bias | lse, dlse
// out  stats [B,H,tiles,2,rows] f32 | with out_scale, dz contiguous in dout's type | on request delta, like lse
// A row that sees no key, and one beyond the sequence, gets lse = infinity, so that its weights are 2^-inf = 0.
// grid  one CTA a query tile of a head; block 256: a row is the work of 8, 16 or 32 lanes, 16 bytes each
// precision  products and sums fp32 (delta of the rounded z, as everywhere)      cost  bytes 4 rows Dv (6 with out_scale)
#include "schedule.cuh"

namespace tkpy::attention_backward {

template <class T>
struct Rows {
  static constexpr int width = 8;  // elements of 16 bytes

  // Elements 2 i and 2 i + 1 of a chunk.
  TK_DEVICE static float2 pair(const uint4& chunk, int i) {
    const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    return make_float2(ptx::low<T>(words[i]), ptx::high<T>(words[i]));
  }

  // This lane's part of delta; writes dz where there is an out_scale.
  TK_DEVICE static float part(const Params& p, const QueryTile& tile, int row, int col) {
    const long long at = static_cast<long long>(tile.in.batch) * p.seq_q + tile.in.q_begin + row;
    const long long place = (at * p.heads + tile.head) * p.dim_v + col;
    const uint4 z = ptx::ld_global_v4(static_cast<const T*>(p.z) + place);
    const uint4 dout = ptx::ld_global_v4(static_cast<const T*>(p.dout) + tile.in.batch * p.dout_stride[0] +
                                         (tile.in.q_begin + row) * p.dout_stride[1] + tile.head * p.dout_stride[2] + col);
    u32 dz[4] = {dout.x, dout.y, dout.z, dout.w};
    if (p.out_scale) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* scale = p.out_scale + tile.head * p.dim_v + col + 2 * i;
        const float2 d = pair(dout, i);
        dz[i] = ptx::pack<T>(d.x * (1.0f + scale[0]), d.y * (1.0f + scale[1]));
      }
      ptx::st_global_v4(static_cast<T*>(p.dz_data) + place, make_uint4(dz[0], dz[1], dz[2], dz[3]));
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = pair(z, i);
      sum += ptx::low<T>(dz[i]) * x.x + ptx::high<T>(dz[i]) * x.y;
    }
    return sum;
  }

  TK_DEVICE static void run(const Params& p) {
    QueryTile tile;
    if (!find_queries(p, static_cast<int>(blockIdx.x), tile)) return;
    const int lanes = p.dim_v <= 64 ? 8 : p.dim_v <= 128 ? 16 : 32;
    const int lane = lane_index() % lanes, col = width * lane;
    float* stats = p.stats + 2ll * tile.index * p.rows;
    for (int r = static_cast<int>(threadIdx.x) / lanes; r < p.rows; r += 256 / lanes) {
      const int row = tile.row + r;
      const bool inside = row < tile.in.seq_q;
      float delta = inside && col < p.dim_v ? part(p, tile, row, col) : 0.0f;
      for (int step = 1; step < lanes; step *= 2) delta += __shfl_xor_sync(0xffffffffu, delta, step);
      if (lane != 0) continue;
      float lse = fn::infinity;
      if (inside) {
        const long long at = (static_cast<long long>(tile.in.batch) * p.heads + tile.head) * p.seq_q + tile.in.q_begin + row;
        const bool blind = p.lse[at] == -fn::infinity;
        delta = blind ? 0.0f : p.dlse ? delta - p.dlse[at] : delta;
        lse = blind ? fn::infinity : fn::log2e * p.lse[at];
        if (p.delta) p.delta[at] = delta;
      }
      stats[r] = lse;
      stats[p.rows + r] = delta;
    }
  }
};

}  // namespace tkpy::attention_backward

#define TKPY_ATTENTION_ROWS(T)                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                 \
      attention_backward_rows_##T(const __grid_constant__ tkpy::attention_backward::Params p) {     \
    tkpy::attention_backward::Rows<tk::T>::run(p);                                                  \
  }
TKPY_ATTENTION_ROWS(bf16)
TKPY_ATTENTION_ROWS(fp16)
