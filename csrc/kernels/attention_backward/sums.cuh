// dK and dV, which one consumer of the main kernel (backward.cuh) sums in registers, and their way out.
#pragma once

#include "layout.cuh"

namespace tkpy::attention_backward {

template <class Kernel>
struct Sums {
  using T = typename Kernel::T;
  using Sum = typename Kernel::Sum;
  static constexpr bool wide = Kernel::wide, in_turn = Kernel::in_turn;
  static constexpr int Keys = Kernel::Keys;

  typename Kernel::Shared& shared;
  const typename Kernel::Parameters& p;
  const int number;  // of the consumer, 0 or 1
  Sum dk;
  typename Kernel::ValueSum dv;

  // Sums of steps in turn: consumer 0 gets the other's dK, consumer 1 the other's dV. Through the tiles of dq, which have been
  // read.
  TK_DEVICE void join() {
    sync(1 + number, 128);
    number == 0 ? hand(dv) : hand(dk);
    sync(Kernel::both, 256);
    number == 0 ? receive(dk) : receive(dv);
  }
  TK_DEVICE void hand(const Sum& sum) {
    float4* to = reinterpret_cast<float4*>(shared.dq[number]) + threadIdx.x % 128;
#pragma unroll
    for (int e = 0; e < Sum::elements; e += 4)
      to[32 * e] = make_float4(sum.x[0][e], sum.x[0][e + 1], sum.x[0][e + 2], sum.x[0][e + 3]);
  }
  TK_DEVICE void receive(Sum& sum) {
    const float4* from = reinterpret_cast<const float4*>(shared.dq[1 - number]) + threadIdx.x % 128;
#pragma unroll
    for (int e = 0; e < Sum::elements; e += 4) {
      const float4 other = from[32 * e];
      sum.x[0][e] += other.x;
      sum.x[0][e + 1] += other.y;
      sum.x[0][e + 2] += other.z;
      sum.x[0][e + 3] += other.w;
    }
  }

  // Rows or columns of one consumer to their tile, in q's type.
  template <class Tile, class All>
  TK_DEVICE void stage(Tile& to, const All& sum, int first) const {
    int row = (wide || in_turn ? 0 : 64 * number) + 16 * (warp_index() % 4);
    ptx::hold(row);  // or the addresses of all parts wait in registers from the start of the kernel
#pragma unroll
    for (int col = 0; col < All::cols; col += 32) {
      rt_fl<16, 32> part;
      rt<T, 16, 32> rounded;
      columns(part, sum, col);
      copy(rounded, part);
      store(to, rounded, row, first + col);
    }
  }

  // A staged tile to memory, by this consumer. TMA bounds the rows of a batch entry; those of a packed sequence are
  // followed by another's.
  template <class Tile>
  TK_DEVICE void write_out(Tile& from, const KeyTile& tile, const tensor_map& map, void* data, int columns) const {
    const int valid = tile.in.seq_k - tile.key;
    if (Kernel::Listed || p.cu_seqlens_k == nullptr || valid >= Keys) {
      if (!Kernel::leader()) return;
      store(gl<Tile, 4>(map), from, {tile.in.batch, tile.kv_head, tile.in.k_begin + tile.key, 0});
      commit_stores();
      return wait_stores_read();
    }
    constexpr int width = 8, chunks = Tile::cols / width;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % 128; i < valid * chunks; i += 128) {
      const int r = i / chunks, col = i % chunks * width;
      if (col >= columns) continue;
      const long long row = tile.in.k_begin + tile.key + r;
      T* to = static_cast<T*>(data) + (row * p.kv_heads + tile.kv_head) * columns + col;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&from.at(r, col));
    }
    sync(1 + number, 128);
  }

  // dK and dV of a tile of keys to memory, through the tiles of k and v: no product is to read them any more.
  TK_DEVICE void store_all(const KeyTile& tile) {
    if (!in_turn || number == 0) stage(shared.k, dk, Kernel::first_column(number));
    if (!in_turn || number == 1) stage(shared.v, dv, Kernel::first_value_column(number));
    publish_tile();
    sync(Kernel::both, 256);
    if (number == 0)
      write_out(shared.k, tile, p.dk, p.dk_data, p.dim);
    else
      write_out(shared.v, tile, p.dv, p.dv_data, p.dim_v);
  }
};

}  // namespace tkpy::attention_backward
