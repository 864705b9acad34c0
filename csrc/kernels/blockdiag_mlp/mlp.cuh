// blockdiag_mlp: y_b = (act(x_g G_b^T) * (x_v V_b^T)) O_b^T + bias for every block b of y, in one kernel: Monarch Mixer's MLP
//
// Of nb blocks, b's gate reads block g = b / 2 of x, its value block v = (nb + b) / 2 (the halves of all hidden channels
// together are gate and value); b's second product reads exactly the hidden channels that b's two first products make. So a
// tile of rows and a block of y need nothing of other blocks: h stays in registers, as P does in attention.
// in   x [rows, nb c]  G, V [nb, i, c] (halves of `gated`)  O [nb, o, i]  bias [nb o] or null    bf16 or fp16      out  y [rows, nb o]
// kernels  blockdiag_mlp_<bf16|fp16>_<128|192|256>: W channels, c, o <= W; what is missing reads as zeros, costs its flops
// grid a multiple of 2, cluster (2, 1, 1), block 384; persistent, by clusters: tiles of 256 rows x a block, blocks first, so
//      that x's blocks are found in L2
// producer   one thread of warpgroup 0: x of a consumer, then per chunk of 64 hidden channels the slots
//              G_0 V_0  G_1 V_1 O_0  G_2 V_2 O_1 ..  O_last      each CTA fetches half of a slot's rows, multicast to both
//              x_full[2]  1 arrival + bytes, waited by the consumer      x_free[2]  its 4 warps, after the last first product
//                         (W = 256: after y has left through x's tile)
//              full[]     1 arrival + bytes of both CTAs' halves, waited by both consumers
//              free[]     16 arrivals: consumer warps of both CTAs
// consumers  warpgroups 1, 2, 64 rows each      g = x_g G_j^T, v = x_v V_j^T; y += h O_{j-1}^T; h = act(g) v, rounded
//              the activation of chunk j runs under this consumer's y += h O_{j-1}^T and the other's products:
//              named barriers 1, 2: the turn. A consumer issues all three products in its turn, then passes it on
//            y + bias -> patch (a warp's own 16 x 64, stmatrix) -> rows, 16 bytes a lane; so do g and v, chunk by chunk, where
//            a backward wants them (not W = 256, whose patch is x's tile)
// At the end the cluster meets: no CTA may leave while the other can write into it or arrive at its barriers.
// precision  products exact, sums, activation and gate fp32, h rounded once as a stored h would be, y once
// limits  sm_90a; c, o, i multiples of 8, c and o <= 256; rows, channels below 2^30; addresses multiples of 16 bytes
// cost  flops 2 rows nb (2 i c + o i), times W / c and W / o where they are narrower; bytes x twice (once from HBM), y once, the
//       weights once for 256 rows. M2-BERT-80M (nb 4, c = o = 192, i 768): 3.54 MFLOP and 3 KB of HBM a row, 1180 flops a byte
//       where an H100 has 295; by two launches through a stored h 15 KB. Weights from L2 3.4 KB a row multicast halves:
//       3.9 TB/s at the peak of the tensor cores. Those read 64 + 64 bytes a clock of shared memory in the first products
//       (N = 64), 64 in the second; an activation of 64 x 64 takes about as long as the products of a chunk (1152 clocks)
#pragma once

#include "params.h"
#include "tk/tk.cuh"

namespace tkpy::blockdiag_mlp {

using namespace tk;

template <class T, int W>
struct Mlp {
  static constexpr int panels = W / 64, slots = stages(W);
  static constexpr bool own_patch = patch_bytes(W) > 0;
  using XTile = st<T, 64, W>;
  using InTile = st<T, kChunk, W>;   // hidden x inputs
  using OutTile = st<T, W, kChunk>;  // outputs x hidden
  using Piece = st<T, 32, 64>;       // what one CTA brings of 64 rows of a panel
  using Patch = st<T, 64, 64>;
  using Hidden = rt_fl<16, kChunk>;
  using Output = rt_fl<16, W>;

  // Panels of 64 columns of an InTile below each other, or 64 rows each of an OutTile: the same places.
  struct Slot {
    Piece pieces[panels][kCluster];
    TK_DEVICE InTile& in() { return reinterpret_cast<InTile&>(*this); }
    TK_DEVICE OutTile& out() { return reinterpret_cast<OutTile&>(*this); }
  };
  static_assert(sizeof(Slot) == sizeof(InTile) && sizeof(Slot) == sizeof(OutTile) && sizeof(Slot) == slot_bytes(W));

  struct Inputs {
    XTile x[kConsumers][2];  // the gate's and the value's block
    Slot slot[slots];
  };
  struct InputsAndPatch : Inputs {
    Patch patches[kConsumers];
    TK_DEVICE Patch& patch(int consumer) { return patches[consumer]; }
  };
  struct InputsAlone : Inputs {
    TK_DEVICE Patch& patch(int consumer) { return reinterpret_cast<Patch&>(this->x[consumer][0]); }
  };
  struct Shared : choose<own_patch, InputsAndPatch, InputsAlone>::type {
    mbarrier full[slots], free[slots], x_full[kConsumers], x_free[kConsumers];
  };
  static_assert(sizeof(Shared) == shared_bytes(W), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(shared_bytes(W) <= kMostShared && slots >= 3, "a gate, a value and an output must fit");

  struct Tile {
    int row, block;
  };
  struct Schedule {
    const Params& p;
    TK_DEVICE int tiles() const { return (p.rows + kCluster * kTileRows - 1) / (kCluster * kTileRows) * p.blocks; }
    TK_DEVICE int first() const { return static_cast<int>(blockIdx.x) / kCluster; }
    TK_DEVICE int stride() const { return static_cast<int>(gridDim.x) / kCluster; }
    TK_DEVICE int chunks() const { return (p.hidden + kChunk - 1) / kChunk; }
    TK_DEVICE Tile tile(int index, int rank) const {
      return {(index / p.blocks * kCluster + rank) * kTileRows, index % p.blocks};
    }
  };

  // ---- Producer: one thread, of 24 registers: its loops stay loops ------------------------------------------------------------------------------------------
  TK_DEVICE static void fetch_x(Shared& shared, const Params& p, const Tile& tile, u32 parity) {
    const gl<XTile, 3> x(p.x);
#pragma unroll 1
    for (int i = 0; i < kConsumers; ++i) {
      wait(shared.x_free[i], parity);
      arrive_expect(shared.x_full[i], 2 * XTile::bytes);
      for (int input = 0; input < 2; ++input)
        load(shared.x[i][input], x, {(tile.block + input * p.blocks) / 2, tile.row + 64 * i, 0}, shared.x_full[i]);
    }
  }

  // This CTA's half of a slot, to both. place(panel) is where its 32 x 64 of that panel begins.
  template <class Place>
  TK_DEVICE static void fetch(Shared& shared, const tensor_map& map, int group, int rank, ring<slots>& at, Place place) {
    mbarrier& full = shared.full[at.slot];
    wait_cluster(shared.free[at.slot], at.parity ^ 1);
    arrive_expect(full, InTile::bytes);
#pragma unroll 1
    for (int panel = 0; panel < panels; ++panel) {
      const Tile2 from = place(panel);
      load_multicast(shared.slot[at.slot].pieces[panel][rank], gl<Piece, 3>(map), {group, from.row, from.col}, full, 0b11);
    }
    at.next();
  }

  TK_DEVICE static void produce(Shared& shared, const Params& p, int rank) {
    const Schedule schedule{p};
    const int half = 32 * rank, chunks = schedule.chunks();
    ring<slots> at;
    u32 x_parity = 1;
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride(), x_parity ^= 1) {
      const Tile tile = schedule.tile(index, rank);
      fetch_x(shared, p, tile, x_parity);
      for (int chunk = 0; chunk <= chunks; ++chunk) {
        for (int input = 0; input < 2 && chunk < chunks; ++input)
          fetch(shared, p.gated, tile.block + input * p.blocks, rank, at,
                [&](int panel) { return Tile2{kChunk * chunk + half, 64 * panel}; });
        if (chunk > 0)
          fetch(shared, p.wo, tile.block, rank, at,
                [&](int panel) { return Tile2{64 * panel + half, kChunk * (chunk - 1)}; });
      }
    }
  }

  // ---- Consumers -----------------------------------------------------------------------------------------------------
  TK_DEVICE static void take_turn(int consumer) { sync(1 + consumer, 128 * kConsumers); }
  TK_DEVICE static void pass_turn(int consumer) { arrive(1 + (consumer + 1) % kConsumers, 128 * kConsumers); }

  // Has done with slot `done`: one lane for each CTA that fills it.
  TK_DEVICE static void release(Shared& shared, ring<slots>& done) {
    if (lane_index() < kCluster) hand_back_at(shared.free[done.slot], static_cast<u32>(lane_index()));
    done.next();
  }

  // The next slot, once it has landed. Slots are used, and released, in the order in which they are filled.
  TK_DEVICE static Slot& await(Shared& shared, ring<slots>& at) {
    Slot& slot = shared.slot[at.slot];
    wait_cluster(shared.full[at.slot], at.parity);
    at.next();
    return slot;
  }

  // g = x_g G^T, v = x_v V^T, one group.
  TK_DEVICE static void first_products(Shared& shared, int consumer, Hidden& gate, Hidden& value, ring<slots>& at) {
    ptx::hold(consumer);  // or the descriptors of x wait in registers from one call to the next
#pragma unroll
    for (int input = 0; input < 2; ++input) {
      InTile& weights = await(shared, at).in();
      mma_fence();
      mma_ABt(input == 0 ? gate : value, shared.x[consumer][input], weights, false);
    }
    mma_commit();
  }

  // y += h O^T
  TK_DEVICE static void second_product(Shared& shared, const rt<T, 16, kChunk>& h, Output& y, ring<slots>& at) {
    OutTile& weights = await(shared, at).out();
    mma_fence();
    mma_ABt(y, h, weights);
    mma_commit();
  }

  // gate = act(gate) * value
  TK_DEVICE static void open(Hidden& gate, const Hidden& value, gemm::Activation activation) {
    switch (activation) {
      case gemm::Activation::gelu:
        return map(gate, gate, value, [](float g, float v) { return fn::gelu(g) * v; });
      case gemm::Activation::gelu_tanh:
        return map(gate, gate, value, [](float g, float v) { return fn::gelu_tanh(g) * v; });
      case gemm::Activation::silu:
        return map(gate, gate, value, [](float g, float v) { return fn::silu(g) * v; });
      default:
        return map(gate, gate, value, [](float g, float v) { return fn::relu(g) * v; });
    }
  }

  // The warp's 16 rows of a gate or a value, rounded, to columns `col` .. of `to`.
  TK_DEVICE static void keep(Patch& patch, const Params& p, void* to, const Tile& tile, int row, int col, const Hidden& x) {
    int lane = lane_index(), first = 16 * (warp_index() % 4);
    ptx::hold(lane);
    ptx::hold(first);
    const int from = lane / 8, chunk = lane % 8 * 8;
    T* const at = static_cast<T*>(to) + (row + from) * p.kept_pitch + 1ll * tile.block * p.hidden + col + chunk;
    rt<T, 16, 64> rounded;
    copy(rounded, x);
    __syncwarp();  // what was kept before has been read
    store(patch, rounded, first, 0);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 16; r += 4)
      if (row + from + r < p.rows && col + chunk < p.hidden)
        ptx::st_global_v4(at + r * p.kept_pitch, *reinterpret_cast<const uint4*>(&patch.at(first + from + r, chunk)));
  }

  // y += h O^T, h = act(x_g G^T) * (x_v V^T), chunk by chunk of h.
  TK_DEVICE static void accumulate(Shared& shared, const Params& p, const Tile& tile, int consumer, Output& y,
                                   ring<slots>& at, ring<slots>& done) {
    Hidden gate, value;
    rt<T, 16, kChunk> h;
    take_turn(consumer);
    first_products(shared, consumer, gate, value, at);
    pass_turn(consumer);
    mma_wait(gate, value);
    for (int left = Schedule{p}.chunks();;) {
      release(shared, done);  // gate and value
      release(shared, done);
      const bool first = left == Schedule{p}.chunks(), last = --left == 0;
      if (own_patch && last && lane_index() == 0) arrive(shared.x_free[consumer]);
      if (own_patch && p.gate != nullptr) {
        const int row = tile.row + 64 * consumer + 16 * (warp_index() % 4), col = kChunk * (Schedule{p}.chunks() - 1 - left);
        keep(shared.patch(consumer), p, p.gate, tile, row, col, gate);
        keep(shared.patch(consumer), p, p.value, tile, row, col, value);
      }
      open(gate, value, p.activation);
      mma_wait(y);  // the product of the h before
      if (!first) release(shared, done);
      copy(h, gate);
      if (last) break;
      take_turn(consumer);
      first_products(shared, consumer, gate, value, at);
      second_product(shared, h, y, at);
      pass_turn(consumer);
      mma_wait<1>(gate, value);
    }
    second_product(shared, h, y, at);
    mma_wait(y);
    release(shared, done);
  }

  // The warp's 16 rows of y from `row` on, through its own rows of the patch, 64 columns at a time.
  TK_DEVICE static void write_out(Patch& patch, const Params& p, const Tile& tile, int row, const Output& y) {
    int lane = lane_index(), first = 16 * (warp_index() % 4);
    ptx::hold(lane);  // or the addresses of all parts wait in registers from the start of the kernel
    ptx::hold(first);
    const int from = lane / 8, chunk = lane % 8 * 8;  // 16 bytes of every fourth row
    const long long channel = 1ll * tile.block * p.out, pitch = 1ll * p.blocks * p.out;
    const T* const bias = static_cast<const T*>(p.bias) + channel;
    T* const to = static_cast<T*>(p.y) + (row + from) * pitch + channel + chunk;
#pragma unroll
    for (int col = 0; col < W; col += 64) {
      if (col >= p.out) break;
      rt_fl<16, 64> part;
      columns(part, y, col);
#pragma unroll
      for (int e = 0; e < part.elements; e += 4) {  // two columns of two rows; `out` is a multiple of eight
        const int at = col + fragment_col(lane, e);
        const u32 both = p.bias != nullptr && at < p.out ? *reinterpret_cast<const u32*>(bias + at) : 0u;
#pragma unroll
        for (int i = 0; i < 4; ++i) part.x[0][e + i] += i % 2 ? ptx::high<T>(both) : ptx::low<T>(both);
      }
      rt<T, 16, 64> rounded;
      copy(rounded, part);
      __syncwarp();  // the columns before have been read
      store(patch, rounded, first, 0);
      __syncwarp();
#pragma unroll
      for (int r = 0; r < 16; r += 4)
        if (row + from + r < p.rows && col + chunk < p.out)
          ptx::st_global_v4(to + r * pitch + col, *reinterpret_cast<const uint4*>(&patch.at(first + from + r, chunk)));
    }
  }

  TK_DEVICE static void consume(Shared& shared, const Params& p, int rank, int consumer) {
    const Schedule schedule{p};
    ring<slots> at, done;
    u32 x_parity = 0;
    if (consumer == kConsumers - 1) pass_turn(consumer);  // the first turn is consumer 0's
    for (int index = schedule.first(); index < schedule.tiles(); index += schedule.stride(), x_parity ^= 1) {
      Output y;
      zero(y);
      wait(shared.x_full[consumer], x_parity);
      const Tile tile = schedule.tile(index, rank);
      accumulate(shared, p, tile, consumer, y, at, done);
      write_out(shared.patch(consumer), p, tile, tile.row + 64 * consumer + 16 * (warp_index() % 4), y);
      if constexpr (!own_patch) {  // x's tile is the producer's again
        publish_tile();
        __syncwarp();
        if (lane_index() == 0) arrive(shared.x_free[consumer]);
      }
    }
    if (consumer == 0) take_turn(consumer);  // the last turn comes back
  }

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < slots; ++slot) {
        init(shared.full[slot], 1);
        init(shared.free[slot], 4 * kConsumers * kCluster);
      }
      for (int i = 0; i < kConsumers; ++i) {
        init(shared.x_full[i], 1);
        init(shared.x_free[i], 4);
      }
      publish_barriers();
    }
    cluster_sync();
    if (warpgroup_index() == 0) {
      give_registers<24>();
      if (threadIdx.x == 0) produce(shared, p, rank);
    } else {
      take_registers<240>();
      consume(shared, p, rank, warpgroup_index() - 1);
    }
    __syncwarp();
    cluster_sync();
  }
};

}  // namespace tkpy::blockdiag_mlp
