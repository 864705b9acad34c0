// What happens to O between a consumer's registers and memory: factors, a scale and bias of its own, rows in the output's
// type through a shared tile. Named barrier 1 + consumer: its 128 threads.
#pragma once

#include "schedule.cuh"

namespace tkpy::attention_forward {

// 64 rows of up to `Width` columns, as `T`, through a shared tile of `Columns` of them; `Packs`: they may be those of packed
// sequences.
template <class T, int Width, bool Packs = true, int Columns = Width>
struct WayOut {
  static_assert(Width % Columns == 0, "the columns of the shared tile must divide the width");
  using OTile = st<T, 64, Columns>;
  using Output = rt_fl<16, Width>;

  TK_DEVICE static void scale_rows(Output& o, const float (&factor)[2]) {
#pragma unroll
    for (int e = 0; e < Output::elements; ++e) o.x[0][e] *= factor[e / 2 % 2];
  }

  // (1 + out_scale) O + out_bias
  TK_DEVICE static void move_output(Output& o, const Params& p, int head) {
#pragma unroll
    for (int e = 0; e < Output::elements; e += 4) {  // two columns of two rows; dim_v is a multiple of eight
      const int col = fragment_col(lane_index(), e);
      if (8 * (e / 4) >= p.dim_v) break;
      const float2 none = make_float2(0.0f, 0.0f);
      const float2 scale = p.out_scale ? *reinterpret_cast<const float2*>(p.out_scale + head * p.dim_v + col) : none;
      const float2 bias = p.out_bias ? *reinterpret_cast<const float2*>(p.out_bias + head * p.dim_v + col) : none;
#pragma unroll
      for (int half = 0; half < 4; half += 2) {
        o.x[0][e + half] = fmaf(o.x[0][e + half], 1.0f + scale.x, bias.x);
        o.x[0][e + half + 1] = fmaf(o.x[0][e + half + 1], 1.0f + scale.y, bias.y);
      }
    }
  }

  // Of a row of the sequence in the output, in elements.
  TK_DEVICE static long long offset(const Params& p, const Tile& tile, int row) {
    const long long at = static_cast<long long>(tile.batch) * p.seq_q + tile.q_begin + row;
    return (at * p.heads + tile.head) * p.dim_v;
  }

  // The consumer's 64 rows, from registers to memory. TMA bounds the rows of a batch entry; those of a packed sequence
  // are followed by another's.
  TK_DEVICE static void write_out(OTile& stage, const Params& p, const Tile& tile, int consumer, const Output& o,
                                  const tensor_map& map, void* data) {
#pragma unroll
    for (int first = 0; first < Width; first += Columns) write_columns(stage, p, tile, consumer, o, map, data, first);
  }

  TK_DEVICE static void write_columns(OTile& stage, const Params& p, const Tile& tile, int consumer, const Output& o,
                                      const tensor_map& map, void* data, int first) {
    const bool leader = threadIdx.x % 128 == 0;
    const int row = tile.row + 64 * consumer, valid = tile.seq_q - row;
    if (leader) wait_stores_read();  // the store before this one
    sync(1 + consumer, 128);
    int stage_row = 16 * (warp_index() % 4), stage_col = 0;
    ptx::hold(stage_row);  // or the addresses of all parts wait in registers from the start of the kernel
    ptx::hold(stage_col);
#pragma unroll
    for (int col = 0; col < Columns; col += 32) {
      rt_fl<16, 32> part;
      rt<T, 16, 32> rounded;
      columns(part, o, first + col);
      copy(rounded, part);
      store(stage, rounded, stage_row, stage_col + col);
    }
    publish_tile();
    sync(1 + consumer, 128);
    if (!Packs || p.cu_seqlens_q == nullptr || valid >= 64) {
      if (leader) {
        store(gl<OTile, 4>(map), stage, {tile.batch, tile.head, tile.q_begin + row, first});
        commit_stores();
      }
      return;
    }
    constexpr int width = 8, chunks = OTile::cols / width;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % 128; i < valid * chunks; i += 128) {
      const int r = i / chunks, col = i % chunks * width;
      if (first + col >= p.dim_v) continue;
      T* to = static_cast<T*>(data) + offset(p, tile, row + r) + first + col;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&stage.at(r, col));
    }
  }

  // A tile that sees no key: (1 + out_scale) 0 + out_bias. Its consumers hold no shared tile.
  TK_DEVICE static void write_empty(const Params& p, const Tile& tile, int consumer) {
    const int row = tile.row + 64 * consumer, chunks = p.dim_v / 8, valid = min(64, tile.seq_q - row);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % 128; i < valid * chunks; i += 128) {
      const long long at = offset(p, tile, row + i / chunks) + i % chunks * 8;
      u32 words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* bias = p.out_bias + tile.head * p.dim_v + i % chunks * 8 + 2 * w;
        words[w] = p.out_bias ? ptx::pack<T>(bias[0], bias[1]) : 0u;
      }
      *reinterpret_cast<uint4*>(static_cast<T*>(p.out_data) + at) = make_uint4(words[0], words[1], words[2], words[3]);
      if (p.plain_data) *reinterpret_cast<uint4*>(static_cast<T*>(p.plain_data) + at) = make_uint4(0, 0, 0, 0);
    }
  }

  // Of the warp's 16 rows from `first_row` on.
  TK_DEVICE static void write_lse(const Params& p, const Tile& tile, int first_row, const float (&lse)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 8 * half + lane_index() / 4;
      if (row >= tile.seq_q || lane_index() % 4 != 0) continue;
      p.lse[(static_cast<long long>(tile.batch) * p.heads + tile.head) * p.seq_q + tile.q_begin + row] = lse[half];
    }
  }
};

}  // namespace tkpy::attention_forward
