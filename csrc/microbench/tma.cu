// Copies between global and shared memory: TMA tensors, bulk copies, cp.async, plain loads; latency and bandwidth by
// bytes a copy, copies in flight (slots) and CTAs.
// in   maps over, or pointers to, a buffer of `tiles` pieces (tensor: tiles[d] boxes along dimension d, innermost first)
// flow CTA c copies pieces c, c + grid, c + 2 grid, .. (modulo all of them), `iterations` in all, `slots` at once. One
//      thread issues; slot s is refilled when its mbarrier says that the copy before has landed.
//        full[slot]  1 arrival + the piece's bytes, waited by the issuing thread
//      Stores: `slots` bulk groups are in flight, as cp.async.bulk.wait_group counts them.
//      Multicast: each CTA of a cluster fetches its share of every piece (rows of the box) for all of them.
//        full[slot]  1 arrival + the whole piece      free[slot]  1 arrival of each CTA of the cluster
// out  records[ctas], sink[threads] = all words that lie in the slots at the end, added up; stores: the buffer itself
// kernels  tma_load_<1|2|3>d, tma_multicast, tma_store_2d_<slots>, bulk_load, bulk_store_<slots>, cp_async_<slots>, ld_st
// limits   slots <= 16; slots * bytes of dynamic shared memory (+ 1024); bytes of a piece a multiple of 128
// precision  exact       cost  iterations * bytes a CTA
#include "record.cuh"

namespace microbench {

constexpr int kMaxSlots = 16;
extern __shared__ __align__(1024) char pieces[];

TK_DEVICE u32 add_words(u32 bytes) {
  u32 total = 0;
  for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x) total += reinterpret_cast<const u32*>(pieces)[i];
  return total;
}

// Where a box begins, innermost dimension first.
struct Box {
  int x[3];
};

// The box of turn n.
struct Walk {
  int tiles[3], box[3];
  TK_DEVICE Box at(u32 n) const {
    u32 piece = blockIdx.x + n * gridDim.x;
    Box found;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      const u32 count = static_cast<u32>(tiles[d]);
      found.x[d] = static_cast<int>(piece % count) * box[d];
      piece /= count;
    }
    return found;
  }
};

// where(turn) is a source, issue(source, shared address, mbarrier) starts its load. The source of the next load is worked
// out while the one before it is under way.
template <class Where, class Issue>
TK_DEVICE void run_loads(Record* records, u32* sink, u32 bytes, u32 slots, u32 iterations, Where where, Issue issue) {
  __shared__ mbarrier full[kMaxSlots];
  if (threadIdx.x == 0) {
    for (u32 s = 0; s < slots; ++s) init(full[s], 1);
    publish_barriers();
  }
  const Stopwatch begin = start();
  if (threadIdx.x == 0) {
    const u32 base = ptx::shared_address(pieces);
    u32 slot = 0, parity = 0;
    const u32 first = slots < iterations ? slots : iterations;
    for (u32 n = 0; n < first; ++n) {
      arrive_expect(full[n], bytes);
      issue(where(n), base + n * bytes, full[n]);
    }
#pragma unroll 1
    for (u32 n = 0; n < iterations; ++n) {
      const auto next = where(n + slots);
      wait(full[slot], parity);
      if (n + slots < iterations) {
        arrive_expect(full[slot], bytes);
        issue(next, base + slot * bytes, full[slot]);
      }
      if (++slot == slots) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, add_words(slots * bytes));
}

#define TENSOR_LOAD(DIMS, ...)                                                                                        \
  MICROBENCH(128) tma_load_##DIMS##d(Record* records, u32* sink, const __grid_constant__ tensor_map map, Walk walk,   \
                                     u32 bytes, u32 slots, u32 iterations) {                                          \
    run_loads(                                                                                                        \
        records, sink, bytes, slots, iterations, [&](u32 n) { return walk.at(n); },                                   \
        [&](const Box& at, u32 to, mbarrier& bar) { ptx::tensor_load<DIMS>(to, &map, bar.address(), {__VA_ARGS__}); }); \
  }
TENSOR_LOAD(1, at.x[0]) TENSOR_LOAD(2, at.x[1], at.x[0]) TENSOR_LOAD(3, at.x[2], at.x[1], at.x[0])

MICROBENCH(128) bulk_load(Record* records, u32* sink, const char* from, u32 tiles, u32 bytes, u32 slots, u32 iterations) {
  run_loads(
      records, sink, bytes, slots, iterations,
      [&](u32 n) { return from + static_cast<u64>((blockIdx.x + n * gridDim.x) % tiles) * bytes; },
      [&](const char* piece, u32 to, mbarrier& bar) { ptx::bulk_load(to, piece, bytes, bar.address()); });
}

// Clusters of one dimension. The box is one CTA's share of the rows; the pieces follow each other down the tensor.
MICROBENCH(128) tma_multicast(Record* records, u32* sink, const __grid_constant__ tensor_map map, u32 tiles, u32 share_rows,
                              u32 share_bytes, u32 ctas, u32 slots, u32 iterations) {
  __shared__ mbarrier full[kMaxSlots], free[kMaxSlots];
  const u32 bytes = share_bytes * ctas, rank = ptx::cluster_rank();
  if (threadIdx.x == 0) {
    for (u32 s = 0; s < slots; ++s) {
      init(full[s], 1);
      init(free[s], ctas);
    }
    publish_barriers();
  }
  cluster_sync();
  const Stopwatch begin = start();
  if (threadIdx.x == 0) {
    const u32 base = ptx::shared_address(pieces), cluster = blockIdx.x / ctas, clusters = gridDim.x / ctas;
    const auto issue = [&](u32 n, u32 slot, u32 parity) {
      wait_cluster(free[slot], parity ^ 1);
      arrive_expect(full[slot], bytes);
      const int row = static_cast<int>(((cluster + n * clusters) % tiles * ctas + rank) * share_rows);
      ptx::tensor_load_multicast<2>(base + slot * bytes + rank * share_bytes, &map, full[slot].address(),
                                    static_cast<unsigned short>((1u << ctas) - 1), {row, 0});
    };
    u32 slot = 0, parity = 0;
    for (u32 n = 0; n < slots && n < iterations; ++n) issue(n, n, 0);
#pragma unroll 1
    for (u32 n = 0; n < iterations; ++n) {
      wait(full[slot], parity);
      for (u32 peer = 0; peer < ctas; ++peer) arrive_at(free[slot], peer);
      if (n + slots < iterations) issue(n + slots, slot, parity ^ 1);
      if (++slot == slots) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
  const Stopwatch end = stop();
  cluster_sync();  // a CTA may be written into, and its barriers arrived at, until all are through
  finish(records, sink, begin, end, add_words(slots * bytes));
}

// issue(turn, shared address) starts one store of slot turn % Slots; all slots hold the same words throughout.
template <int Slots, class Issue>
TK_DEVICE void run_stores(Record* records, u32* sink, u32 bytes, u32 iterations, Issue issue) {
  for (u32 i = threadIdx.x; i < Slots * bytes / 4; i += blockDim.x) reinterpret_cast<u32*>(pieces)[i] = i % (bytes / 4) + 1;
  ptx::fence_proxy_async();
  const Stopwatch begin = start();
  if (threadIdx.x == 0) {
    const u32 base = ptx::shared_address(pieces);
    u32 slot = 0;
#pragma unroll 1
    for (u32 n = 0; n < iterations; ++n) {
      issue(n, base + slot * bytes);
      ptx::bulk_commit_group();
      ptx::bulk_wait_group_read<Slots - 1>();
      slot = slot + 1 == Slots ? 0 : slot + 1;
    }
    ptx::bulk_wait_group<0>();
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, iterations);
}

#define STORES(SLOTS)                                                                                                  \
  MICROBENCH(128) tma_store_2d_##SLOTS(Record* records, u32* sink, const __grid_constant__ tensor_map map, Walk walk, \
                                       u32 bytes, u32 iterations) {                                                   \
    run_stores<SLOTS>(records, sink, bytes, iterations, [&](u32 n, u32 from) {                                        \
      const Box at = walk.at(n);                                                                                      \
      ptx::tensor_store<2>(&map, from, {at.x[1], at.x[0]});                                                           \
    });                                                                                                               \
  }                                                                                                                   \
  MICROBENCH(128) bulk_store_##SLOTS(Record* records, u32* sink, char* to, u32 tiles, u32 bytes, u32 iterations) {    \
    run_stores<SLOTS>(records, sink, bytes, iterations, [&](u32 n, u32 from) {                                        \
      const u32 piece = (blockIdx.x + n * gridDim.x) % tiles;                                                         \
      ptx::bulk_store(to + static_cast<u64>(piece) * bytes, from, bytes);                                             \
    });                                                                                                               \
  }
STORES(1) STORES(2) STORES(4)

// All threads copy 16 bytes at a time; a slot is one group of each thread.
template <int Slots>
TK_DEVICE void run_cp_async(Record* records, u32* sink, const char* from, u32 tiles, u32 bytes, u32 iterations) {
  const u32 base = ptx::shared_address(pieces);
  const auto issue = [&](u32 n, u32 slot) {
    if (n < iterations) {
      const char* piece = from + static_cast<u64>((blockIdx.x + n * gridDim.x) % tiles) * bytes;
      for (u32 i = 16 * threadIdx.x; i < bytes; i += 16 * blockDim.x) ptx::cp_async_16(base + slot * bytes + i, piece + i, 16);
    }
    ptx::cp_async_commit_group();  // an empty group too, so that the count below holds
  };
  const Stopwatch begin = start();
  for (u32 n = 0; n < Slots; ++n) issue(n, n);
  u32 slot = 0;
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    ptx::cp_async_wait_group<Slots - 1>();
    __syncthreads();  // as a consumer needs it
    issue(n + Slots, slot);
    slot = slot + 1 == Slots ? 0 : slot + 1;
  }
  ptx::cp_async_wait_group<0>();
  const Stopwatch end = stop();
  finish(records, sink, begin, end, add_words(Slots * bytes));
}

#define CP_ASYNC(SLOTS)                                                                                            \
  MICROBENCH(256) cp_async_##SLOTS(Record* records, u32* sink, const char* from, u32 tiles, u32 bytes, u32 iterations) { \
    run_cp_async<SLOTS>(records, sink, from, tiles, bytes, iterations);                                            \
  }
CP_ASYNC(1) CP_ASYNC(2) CP_ASYNC(4)

// The same way without asynchrony: through registers.
MICROBENCH(256) ld_st(Record* records, u32* sink, const char* from, u32 tiles, u32 bytes, u32 iterations) {
  const u32 base = ptx::shared_address(pieces);
  const Stopwatch begin = start();
#pragma unroll 1
  for (u32 n = 0; n < iterations; ++n) {
    const char* piece = from + static_cast<u64>((blockIdx.x + n * gridDim.x) % tiles) * bytes;
    for (u32 i = 16 * threadIdx.x; i < bytes; i += 16 * blockDim.x) ptx::store_shared_v4(base + i, ptx::load_cg_v4(piece + i));
    __syncthreads();
  }
  const Stopwatch end = stop();
  finish(records, sink, begin, end, add_words(bytes));
}

}  // namespace microbench
