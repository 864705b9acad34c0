// Handlers that are not lane arithmetic. Memory operations: Op::e Base, s[0] address row, imm offset, a element bytes,
// b elements, c Space, list data rows, f MemFlag bits with the register's width in bits 16-23.
#pragma once

#include "machine.h"

namespace tkpy::emulator {

enum MemFlag : u32 {
  kSigned = 1, kStrong = 2, kAcquire = 4, kRelease = 8, kWide = 16, kVolatile = 32, kGpuScope = 64, kReadModifyWrite = 128,
  kNonCoherent = 256,
};

enum class AtomicOp : u8 { add, and_, or_, xor_, exch, cas, min, max, inc, dec };

// memory (exec_memory.cpp)
void exec_load(Exec& x, const Op& op, u32 mask);
void exec_store(Exec& x, const Op& op, u32 mask);
void exec_address_of(Exec& x, const Op& op, u32 mask);   // c: 0 frame, 1 kernel parameter; a: 64-bit result
void exec_alloca(Exec& x, const Op& op, u32 mask);        // s[0] bytes; a: 64 bits wide; imm alignment
void exec_stack(Exec& x, const Op& op, u32 mask);         // b: 0 save to d[0], 1 restore from s[0]; a as above
void exec_cvta(Exec& x, const Op& op, u32 mask);         // c: Space; a: to that space; b: 64-bit source; e: 64-bit result
void exec_isspacep(Exec& x, const Op& op, u32 mask);
void exec_mapa(Exec& x, const Op& op, u32 mask);         // a: 64-bit generic form
void exec_getctarank(Exec& x, const Op& op, u32 mask);
void exec_watched(Exec& x, const Op& op, u32 mask);      // checks its registers, then runs Function::watches' handler
void exec_cache_line(Exec& x, const Op& op, u32 mask);   // 128 bytes of global memory; a: discarded, else only checked
void exec_nothing(Exec& x, const Op& op, u32 mask);
// atomics (exec_atomic.cpp): a element bytes, b elements, d[0]/list results, s[1] list of operands; imm offset; e Base
void exec_atomic(Exec& x, const Op& op, u32 mask);
void exec_fence(Exec& x, const Op& op, u32 mask);        // a: of gpu or system scope
void exec_proxy_fence(Exec& x, const Op& op, u32 mask);  // a: kFenceShared, kFenceGlobal, kFenceMaps
// warp (exec_warp.cpp)
void exec_shfl(Exec& x, const Op& op, u32 mask);
void exec_vote(Exec& x, const Op& op, u32 mask);
void exec_match(Exec& x, const Op& op, u32 mask);
void exec_redux(Exec& x, const Op& op, u32 mask);
void exec_elect(Exec& x, const Op& op, u32 mask);
void exec_activemask(Exec& x, const Op& op, u32 mask);
void exec_warp_barrier(Exec& x, const Op& op, u32 mask);
void exec_movmatrix(Exec& x, const Op& op, u32 mask);
void exec_video(Exec& x, const Op& op, u32 mask);        // imm: Function::video_ops
// control (exec_control.cpp)
void exec_special(Exec& x, const Op& op, u32 mask);
void exec_bra(Exec& x, const Op& op, u32 mask);
void exec_brx(Exec& x, const Op& op, u32 mask);
void exec_call(Exec& x, const Op& op, u32 mask);
void exec_ret(Exec& x, const Op& op, u32 mask);
void exec_exit(Exec& x, const Op& op, u32 mask);
void exec_trap(Exec& x, const Op& op, u32 mask);
void exec_brkpt(Exec& x, const Op& op, u32 mask);
void exec_unmodelled(Exec& x, const Op& op, u32 mask);
void exec_nanosleep(Exec& x, const Op& op, u32 mask);
void exec_vprintf(Exec& x, const Op& op, u32 mask);
void exec_malloc(Exec& x, const Op& op, u32 mask);
void exec_free(Exec& x, const Op& op, u32 mask);
void exec_assertfail(Exec& x, const Op& op, u32 mask);
// barriers (exec_barrier.cpp)
void exec_barrier(Exec& x, const Op& op, u32 mask);
void exec_cluster_arrive(Exec& x, const Op& op, u32 mask);
void exec_cluster_wait(Exec& x, const Op& op, u32 mask);
// mbarriers (exec_mbarrier.cpp): s[0] address (f bit 0: 64 bits), s[1] count, bytes, token or parity; s[2] second count
enum class MbarrierOp : u8 { init, inval, arrive, expect_tx, complete_tx, test_wait, try_wait, pending_count, cp_async_arrive };
void exec_mbarrier(Exec& x, const Op& op, u32 mask);
// register pools (exec_setmaxnreg.cpp): a: increase; imm: registers a thread
void exec_setmaxnreg(Exec& x, const Op& op, u32 mask);
// matrices (exec_matrix.cpp)
void exec_ldmatrix(Exec& x, const Op& op, u32 mask);   // a: matrices, b: transposed
void exec_stmatrix(Exec& x, const Op& op, u32 mask);
void exec_mma(Exec& x, const Op& op, u32 mask);        // imm: Function::mma_ops
void exec_mma_quad_pairs(Exec& x, const Op& op, u32 mask);  // a: layouts and types
// wgmma (exec_wgmma.cpp)
void exec_wgmma(Exec& x, const Op& op, u32 mask);      // imm: Function::wgmma_ops
void exec_wgmma_fence(Exec& x, const Op& op, u32 mask);
void exec_wgmma_commit(Exec& x, const Op& op, u32 mask);
void exec_wgmma_wait(Exec& x, const Op& op, u32 mask);
// asynchronous copies (exec_async.cpp): rows s[0] destination, s[1] source, s[2] mbarrier, s[3] size or value, s[4] CTA
// mask; bit i of f: s[i] is 64 bits wide
void exec_cp_async(Exec& x, const Op& op, u32 mask);
void exec_async_commit(Exec& x, const Op& op, u32 mask);  // a: 0 cp.async, 1 bulk
void exec_async_wait(Exec& x, const Op& op, u32 mask);    // a as above; imm: groups that may remain; b: .read
void exec_bulk_copy(Exec& x, const Op& op, u32 mask);     // a BulkKind; b multicast; c, e: reduction, type
void exec_bulk_tensor(Exec& x, const Op& op, u32 mask);   // a: 0 load, 1 store, 2 reduce; list: coordinates
void exec_tensormap_replace(Exec& x, const Op& op, u32 mask);
void exec_tensormap_copy(Exec& x, const Op& op, u32 mask);
// the tensormap proxy (tensormap_proxy.cpp)
void exec_tensormap_acquire(Exec& x, const Op& op, u32 mask);
void check_map_acquired(Exec& x, const Op& op, u32 lane, u64 address);  // a copy is about to use it
void exec_store_async(Exec& x, const Op& op, u32 mask);
enum class BulkKind : u8 { global_to_shared, shared_to_shared, shared_to_global };

// Resolves lane addresses of an access of `bytes` bytes: range, alignment, initialisation and race checks. Lanes that fail
// are reported and dropped from the returned mask. `where[lane]` is host memory.
struct Addresses {
  u64 value[kLanes];   // as the program sees it
  u8* where[kLanes];
};
u32 resolve(Exec& x, const Op& op, u32 mask, u32 bytes, AccessKind kind, u32 flags, Addresses& out);
// A plain range of global memory, for device-side strings and asynchronous copies; nullptr when out of bounds.
bool in_heap(Exec& x, u64 address);
u8* global_range(Exec& x, u64 address, u64 bytes, bool write);
// Where a 32-bit shared address lies; `cta` becomes its owner. nullptr when out of bounds.
u8* shared_range(Exec& x, u32 address, u64 bytes, Cta*& cta);
// Checks one lane's access to shared memory and records it. `incoming` is what a write is about to store.
// `strong`: volatile, relaxed and stronger accesses, which do not race with each other.
void shared_access(Exec& x, const Op& op, Cta& cta, u32 lane, u32 offset, u32 bytes, AccessKind kind, bool strong,
                   const u8* incoming);
// Edges through strong operations on one location (PTX ISA 8.8, causality order).
void acquire_from(Exec& x, u64 location, u32 flags, u32 mask);
void release_to(Exec& x, u64 location, u32 flags, u32 mask);
u64 shared_location(const Cta& cta, u32 offset);
void count_shared(Exec& x, const Addresses& a, u32 mask, u32 bytes);

}  // namespace tkpy::emulator
