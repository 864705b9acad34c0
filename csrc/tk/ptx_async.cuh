// The asynchronous side of the PTX: mbarriers, tensor copies, bulk copies, fences between proxies, cluster barriers.
// One wrapper per instruction, named after it; headings are the PTX ISA's own. "memory" clobbers stand on everything
// that orders or moves memory.
#pragma once

#include "ptx_data.cuh"
#include "tensor_map.h"

namespace tk::ptx {

#define TK_PTX_MEMORY(...) asm volatile(__VA_ARGS__ : "memory")

// ---- Parallel synchronisation: mbarrier -------------------------------------------------------------------------
TK_DEVICE void mbarrier_init(u32 bar, u32 count) {
  TK_PTX_MEMORY("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
TK_DEVICE void mbarrier_inval(u32 bar) { TK_PTX_MEMORY("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar)); }
TK_DEVICE void mbarrier_arrive(u32 bar, u32 count = 1) {
  TK_PTX_MEMORY("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(count));
}
// Arrives, and this participant takes no part in later phases.
TK_DEVICE void mbarrier_arrive_drop(u32 bar) {
  TK_PTX_MEMORY("mbarrier.arrive_drop.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar));
}
// At a barrier of any CTA of the cluster; `bar` comes from mapa.
TK_DEVICE void mbarrier_arrive_cluster(u32 bar) {
  TK_PTX_MEMORY("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar));
}
// The same, released to this CTA alone: at cluster scope ptxas makes the release a fence of the whole GPU (MEMBAR.GPU).
TK_DEVICE void mbarrier_arrive_remote(u32 bar) {
  TK_PTX_MEMORY("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(bar));
}
TK_DEVICE void mbarrier_arrive_expect_tx(u32 bar, u32 bytes) {
  TK_PTX_MEMORY("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes));
}
TK_DEVICE void mbarrier_arrive_expect_tx_cluster(u32 bar, u32 bytes) {
  TK_PTX_MEMORY("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes));
}
TK_DEVICE void mbarrier_expect_tx(u32 bar, u32 bytes) {
  TK_PTX_MEMORY("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes));
}
// True when the phase of `parity` is over. try_wait may suspend the thread, for a bounded time only: always loop.
// test_wait never suspends.
#define TK_MBARRIER_WAIT(NAME, WAIT, SCOPE)                                                                       \
  TK_DEVICE bool NAME(u32 bar, u32 parity) {                                                                      \
    u32 done;                                                                                                     \
    TK_PTX_MEMORY("{\n.reg .pred p;\nmbarrier." WAIT ".parity.acquire." SCOPE ".shared::cta.b64 p, [%1], %2;\n"   \
                  "selp.u32 %0, 1, 0, p;\n}"                                                                      \
                  : "=r"(done)                                                                                    \
                  : "r"(bar), "r"(parity));                                                                       \
    return done != 0;                                                                                             \
  }
TK_MBARRIER_WAIT(mbarrier_try_wait, "try_wait", "cta")
TK_MBARRIER_WAIT(mbarrier_try_wait_cluster, "try_wait", "cluster")
TK_MBARRIER_WAIT(mbarrier_test_wait, "test_wait", "cta")
TK_MBARRIER_WAIT(mbarrier_test_wait_cluster, "test_wait", "cluster")
#undef TK_MBARRIER_WAIT
// Makes mbarrier_init visible to the cluster and to the async proxy (membar / fence: fence.mbarrier_init).
TK_DEVICE void fence_mbarrier_init() { TK_PTX_MEMORY("fence.mbarrier_init.release.cluster;" ::); }

// ---- Membar / fence: fences, proxies ----------------------------------------------------------------------------
// Orders generic writes to shared memory before accesses of it by the async proxy (TMA, wgmma), and the other way.
TK_DEVICE void fence_proxy_async() { TK_PTX_MEMORY("fence.proxy.async.shared::cta;" ::); }
// The same for global memory: before TMA reads what this kernel wrote by st.global.
TK_DEVICE void fence_proxy_async_global() { TK_PTX_MEMORY("fence.proxy.async.global;" ::); }
TK_DEVICE void fence_acq_rel_cta() { TK_PTX_MEMORY("fence.acq_rel.cta;" ::); }
TK_DEVICE void fence_acq_rel_cluster() { TK_PTX_MEMORY("fence.acq_rel.cluster;" ::); }
TK_DEVICE void fence_acq_rel_gpu() { TK_PTX_MEMORY("fence.acq_rel.gpu;" ::); }

// ---- Memory consistency model: release and acquire between CTAs (ld.acquire, red.release) -------------------------
TK_DEVICE u32 ld_acquire_gpu(const u32* at) {
  u32 x;
  TK_PTX_MEMORY("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(__cvta_generic_to_global(at)));
  return x;
}
TK_DEVICE void red_release_gpu_add(u32* at, u32 x) {
  TK_PTX_MEMORY("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(at)), "r"(x));
}

// ---- Parallel synchronisation: barrier, barrier.cluster ---------------------------------------------------------
TK_DEVICE void bar_sync(int id, int threads) {  // named barriers, 1..15; 0 is __syncthreads
  TK_PTX_MEMORY("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads));
}
TK_DEVICE void bar_arrive(int id, int threads) {
  TK_PTX_MEMORY("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads));
}
TK_DEVICE void cluster_arrive() { TK_PTX_MEMORY("barrier.cluster.arrive.release.aligned;" ::); }
TK_DEVICE void cluster_wait() { TK_PTX_MEMORY("barrier.cluster.wait.acquire.aligned;" ::); }

// ---- Data movement: createpolicy --------------------------------------------------------------------------------
TK_DEVICE u64 createpolicy_evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
TK_DEVICE u64 createpolicy_evict_last() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// ---- Data movement, tensor copies -------------------------------------------------------------------------------
// `at` runs outermost first, as shapes are written; PTX wants the innermost first: operands %0 .. %4, those beyond the
// rank unused. BEFORE and AFTER are the text around "Nd" and around the coordinates; their own operands begin at %5.
#define TK_TENSOR(BEFORE, BETWEEN, AFTER, ...)                                                                      \
  static_assert(Rank >= 1 && Rank <= 5, "a tensor map has 1 to 5 dimensions");                                      \
  const int c0 = at[Rank - 1], c1 = Rank > 1 ? at[Rank > 1 ? Rank - 2 : 0] : 0,                                     \
            c2 = Rank > 2 ? at[Rank > 2 ? Rank - 3 : 0] : 0, c3 = Rank > 3 ? at[Rank > 3 ? Rank - 4 : 0] : 0,       \
            c4 = Rank > 4 ? at[0] : 0;                                                                              \
  if constexpr (Rank == 1) TK_TENSOR_RANK(BEFORE ".1d" BETWEEN "{%0}" AFTER, __VA_ARGS__);                          \
  if constexpr (Rank == 2) TK_TENSOR_RANK(BEFORE ".2d" BETWEEN "{%0, %1}" AFTER, __VA_ARGS__);                      \
  if constexpr (Rank == 3) TK_TENSOR_RANK(BEFORE ".3d" BETWEEN "{%0, %1, %2}" AFTER, __VA_ARGS__);                  \
  if constexpr (Rank == 4) TK_TENSOR_RANK(BEFORE ".4d" BETWEEN "{%0, %1, %2, %3}" AFTER, __VA_ARGS__);              \
  if constexpr (Rank == 5) TK_TENSOR_RANK(BEFORE ".5d" BETWEEN "{%0, %1, %2, %3, %4}" AFTER, __VA_ARGS__)
#define TK_TENSOR_RANK(TEXT, ...) \
  TK_PTX_MEMORY(TEXT ::"r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), __VA_ARGS__)

// cp.async.bulk.tensor, global -> shared. Its completion adds the box's bytes to the transaction count of `bar`.
template <int Rank>
TK_DEVICE void tensor_load(u32 dst, const tensor_map* map, u32 bar, const int (&at)[Rank]) {
  TK_TENSOR("cp.async.bulk.tensor", ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%5], [%6, ",
            "], [%7];", "r"(dst), "l"(map), "r"(bar));
}
template <int Rank>
TK_DEVICE void tensor_load(u32 dst, const tensor_map* map, u32 bar, const int (&at)[Rank], u64 policy) {
  TK_TENSOR("cp.async.bulk.tensor",
            ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%5], [%6, ", "], [%7], %8;",
            "r"(dst), "l"(map), "r"(bar), "l"(policy));
}
// To the same place in every CTA of the cluster whose bit is set in `ctas`; each one's barrier receives the bytes.
template <int Rank>
TK_DEVICE void tensor_load_multicast(u32 dst, const tensor_map* map, u32 bar, unsigned short ctas,
                                     const int (&at)[Rank]) {
  TK_TENSOR("cp.async.bulk.tensor",
            ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%5], [%6, ",
            "], [%7], %8;", "r"(dst), "l"(map), "r"(bar), "h"(ctas));
}
template <int Rank>
TK_DEVICE void tensor_load_multicast(u32 dst, const tensor_map* map, u32 bar, unsigned short ctas,
                                     const int (&at)[Rank], u64 policy) {
  TK_TENSOR("cp.async.bulk.tensor",
            ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%5], [%6, ",
            "], [%7], %8, %9;", "r"(dst), "l"(map), "r"(bar), "h"(ctas), "l"(policy));
}
// cp.async.bulk.prefetch.tensor: into L2.
template <int Rank>
TK_DEVICE void tensor_prefetch(const tensor_map* map, const int (&at)[Rank]) {
  TK_TENSOR("cp.async.bulk.prefetch.tensor", ".L2.global.tile [%5, ", "];", "l"(map));
}
// cp.async.bulk.tensor, shared -> global.
template <int Rank>
TK_DEVICE void tensor_store(const tensor_map* map, u32 src, const int (&at)[Rank]) {
  TK_TENSOR("cp.async.bulk.tensor", ".global.shared::cta.tile.bulk_group [%5, ", "], [%6];", "l"(map), "r"(src));
}
template <int Rank>
TK_DEVICE void tensor_store(const tensor_map* map, u32 src, const int (&at)[Rank], u64 policy) {
  TK_TENSOR("cp.async.bulk.tensor", ".global.shared::cta.tile.bulk_group.L2::cache_hint [%5, ", "], [%6], %7;",
            "l"(map), "r"(src), "l"(policy));
}
// cp.reduce.async.bulk.tensor: global = global op shared, element by element. Op is one of the reductions below.
template <class Op, int Rank>
TK_DEVICE void tensor_reduce(const tensor_map* map, u32 src, const int (&at)[Rank]) {
  TK_TENSOR("cp.reduce.async.bulk.tensor", ".global.shared::cta%7.tile.bulk_group [%5, ", "], [%6];", "l"(map),
            "r"(src), "C"(Op::text));
}
#undef TK_TENSOR
#undef TK_TENSOR_RANK

TK_DEVICE void prefetch_tensormap(const tensor_map* map) { TK_PTX_MEMORY("prefetch.tensormap [%0];" ::"l"(map)); }

// Reductions: what they do, and the types that each copy has (PTX ISA, cp.reduce.async.bulk and .tensor).
enum class Reduces { sums, orders, counts, bits };
#define TK_REDUCTION(NAME, KIND)                      \
  struct reduce_##NAME {                              \
    static constexpr Reduces kind = Reduces::KIND;    \
    static constexpr char text[] = "." #NAME;         \
  };
TK_REDUCTION(add, sums)
TK_REDUCTION(min, orders)
TK_REDUCTION(max, orders)
TK_REDUCTION(inc, counts)
TK_REDUCTION(dec, counts)
TK_REDUCTION(and, bits)
TK_REDUCTION(or, bits)
TK_REDUCTION(xor, bits)
#undef TK_REDUCTION

// ---- Data movement, bulk copies: addresses and sizes are multiples of 16 bytes ----------------------------------
TK_DEVICE void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  TK_PTX_MEMORY("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
                "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(bar));
}
TK_DEVICE void bulk_load_multicast(u32 dst, const void* src, u32 bytes, u32 bar, unsigned short ctas) {
  TK_PTX_MEMORY(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::
          "r"(dst),
      "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(bar), "h"(ctas));
}
// Shared memory of this CTA to that of another; dst and bar come from mapa.
TK_DEVICE void bulk_send(u32 dst, u32 src, u32 bytes, u32 bar) {
  TK_PTX_MEMORY("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                    dst),
                "r"(src), "r"(bytes), "r"(bar));
}
TK_DEVICE void bulk_store(void* dst, u32 src, u32 bytes) {
  TK_PTX_MEMORY("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(dst)),
                "r"(src), "r"(bytes));
}
TK_DEVICE void bulk_prefetch(const void* src, u32 bytes) {
  TK_PTX_MEMORY("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(src)), "r"(bytes));
}
// cp.reduce.async.bulk, shared -> global: the type's name in each kind of reduction that the ISA has. Sums of 16-bit
// floats keep subnormals (.noftz).
template <class T, Reduces Kind>
struct bulk_type {
  static constexpr bool exists = false;
};
#define TK_BULK_TYPE(T, KIND, TEXT)                  \
  template <>                                        \
  struct bulk_type<T, Reduces::KIND> {               \
    static constexpr bool exists = true;             \
    static constexpr char text[] = TEXT;             \
  };
TK_BULK_TYPE(float, sums, ".f32")
TK_BULK_TYPE(double, sums, ".f64")
TK_BULK_TYPE(bf16, sums, ".noftz.bf16")
TK_BULK_TYPE(bf16, orders, ".bf16")
TK_BULK_TYPE(fp16, sums, ".noftz.f16")
TK_BULK_TYPE(fp16, orders, ".f16")
TK_BULK_TYPE(int, sums, ".s32")
TK_BULK_TYPE(int, orders, ".s32")
TK_BULK_TYPE(int, bits, ".b32")
TK_BULK_TYPE(u32, sums, ".u32")
TK_BULK_TYPE(u32, orders, ".u32")
TK_BULK_TYPE(u32, counts, ".u32")
TK_BULK_TYPE(u32, bits, ".b32")
TK_BULK_TYPE(long long, orders, ".s64")
TK_BULK_TYPE(long long, bits, ".b64")
TK_BULK_TYPE(u64, sums, ".u64")
TK_BULK_TYPE(u64, orders, ".u64")
TK_BULK_TYPE(u64, bits, ".b64")
#undef TK_BULK_TYPE
template <class Op, class T>
TK_DEVICE void bulk_reduce(void* dst, u32 src, u32 bytes) {
  using Type = bulk_type<T, Op::kind>;
  static_assert(Type::exists, "bulk copies have no such reduction of this type");
  TK_PTX_MEMORY("cp.reduce.async.bulk.global.shared::cta.bulk_group%3%4 [%0], [%1], %2;" ::"l"(
                    __cvta_generic_to_global(dst)),
                "r"(src), "r"(bytes), "C"(Op::text), "C"(Type::text));
}

TK_DEVICE void bulk_commit_group() { TK_PTX_MEMORY("cp.async.bulk.commit_group;" ::); }
template <int Pending>
TK_DEVICE void bulk_wait_group() {  // the writes of older groups are done
  TK_PTX_MEMORY("cp.async.bulk.wait_group %0;" ::"n"(Pending));
}
template <int Pending>
TK_DEVICE void bulk_wait_group_read() {  // their sources have been read and may be reused
  TK_PTX_MEMORY("cp.async.bulk.wait_group.read %0;" ::"n"(Pending));
}

#undef TK_PTX_MEMORY

}  // namespace tk::ptx
