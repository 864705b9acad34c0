"""Global memory: within a CTA, between CTAs that cannot talk to each other, and between those that do by atomics and fences."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- CTAs on their own: each owns a piece of the output, some values are written by all --------------------------------
def launch_apart(ctas: int = 3) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, halves = ramp(64 * ctas + 64), aligned(np.zeros(64 * ctas, np.float16))
    out, scratch, flags = (aligned(np.zeros(n, np.float32)) for n in (64 * ctas, 64 * ctas, 2))
    pieces = x[: 64 * ctas].reshape(ctas, 64)
    args = [out, scratch, halves, flags, x]
    return {"grid": ctas, "block": 64, "args": args}, out, (2 * pieces[:, ::-1] + pieces).reshape(-1)


APART = Program(
    "CTAs apart",
    r"""
extern "C" __global__ void k(float* out, float* scratch, __half* halves, float* flags, const float* x) {
  __shared__ __align__(128) float s[64];
  u32 i = threadIdx.x, at = 64 * blockIdx.x;
  scratch[at + i] = 2 * x[at + i];
  __syncthreads();  // written
  s[i] = scratch[at + 63 - i] + __ldg(x + at + i);
  halves[at + i] = __float2half(s[i]);
  flags[0] = 7;  // by all
  fence_async();
  __syncthreads();  // filled
  if (i == 0) {
    bulk_store(out + at, smem(s), 256);
    commit();
    stored();
    out[at] = s[0];  // what it was
  }
}""",
    launch_apart,
    (
        Fault("no barrier before the other warp reads", "global-race", "__syncthreads();  // written"),
        Fault("only the warp meets", "global-race", "__syncthreads();  // written", "__syncwarp();"),
        Fault("reads what its neighbour writes", "global-race", "s[i] = scratch[at + 63 - i]", "s[i] = scratch[(at + 127 - i) % (64 * gridDim.x)]"),
        Fault("a fence makes no order", "global-race", "s[i] = scratch[at + 63 - i]", "__threadfence(); s[i] = scratch[(at + 127 - i) % (64 * gridDim.x)]"),
        Fault("a read through the non-coherent cache", "non-coherent-read", "s[i] = scratch[at + 63 - i]", "s[i] = __ldg(scratch + at + 63 - i)"),
        Fault("the same of what the lane itself has written", "non-coherent-read", "s[i] = scratch[at + 63 - i]", "s[i] = scratch[at + 63 - i] + 0 * __ldg(scratch + at + i)"),
        Fault("the same of one half", "non-coherent-read", "  flags[0] = 7;", "  s[i] += 0 * __half2float(__ldg(halves + at + i));\n  flags[0] = 7;"),
        Fault("a write of what the lane has read through the non-coherent cache", "non-coherent-read", "  flags[0] = 7;", "  ((float*)x)[at + i] = s[i];\n  flags[0] = 7;"),
        Fault("a write by another lane, after a barrier", "non-coherent-read", "__syncthreads();  // filled", "__syncthreads();\n  ((float*)x)[at + 63 - i] = s[i];"),
        Fault("pieces overlap by one", "global-race", "halves[at + i] =", "halves[at + i + (i == 63 && blockIdx.x < 2)] ="),
        Fault("all write to one place, each its own", "global-race", "flags[0] = 7;", "flags[0] = blockIdx.x;"),
        Fault("all write to one place, and one reads it", "global-race", "flags[0] = 7;", "if (i < 32) flags[0] = 7; else flags[1] = flags[0];"),
        Fault("lanes write to one place, each its own", "global-race", "flags[0] = 7;", "if (!blockIdx.x) flags[0] = i;"),
        Fault("bulk stores overlap", "global-race", "bulk_store(out + at,", "bulk_store(out + at + (blockIdx.x == 1) * 4,"),
        Fault("written over before the store is done", "global-race", "    stored();\n    out[at] = s[0];", "    out[at] = s[0] + 1;\n    stored();"),
        Fault("only the source was waited for", "global-race", "    stored();\n    out[at] = s[0];", "    was_read();\n    out[at] = s[0] + 1;"),
    ),
)  # fmt: skip


# ---- the last CTA of a grid sums what the others have left --------------------------------------------------------------
def launch_last(ctas: int = 4) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x = ramp(32 * ctas)
    sums, ticket, out = (
        aligned(np.zeros(ctas, np.float32)),
        aligned(np.zeros(2, np.uint32)),
        aligned(np.zeros(2, np.float32)),
    )
    return {"grid": ctas, "block": 64, "args": [out, sums, ticket, x]}, out, np.array([x.sum(), x.sum()], np.float32)


LAST = Program(
    "last CTA",
    r"""
extern "C" __global__ void k(float* out, float* sums, unsigned* ticket, const float* x) {
  __shared__ bool last;
  float v = threadIdx.x < 32 ? x[32 * blockIdx.x + threadIdx.x] : 0;
  for (int h = 16; h; h /= 2) v += __shfl_xor_sync(~0u, v, h);
  if (threadIdx.x == 0) sums[blockIdx.x] = v;
  __syncthreads();  // summed
  if (threadIdx.x == 32) {
    __threadfence();
    last = atomicAdd(ticket, 1) == gridDim.x - 1;
  }
  __syncthreads();  // known
  if (last && threadIdx.x < 2) {
    float all = 0;
    for (int i = 0; i < gridDim.x; ++i) all += sums[i];
    out[threadIdx.x] = all;
    if (threadIdx.x == 0) ticket[0] = 0;
  }
}""",
    launch_last,
    (
        Fault("no fence before the ticket", "global-race", "    __threadfence();\n"),
        Fault("a fence of the CTA", "global-race", "__threadfence();", "__threadfence_block();"),
        Fault("a ticket of the CTA", "global-race", "atomicAdd(ticket, 1)", "atomicAdd_block(ticket, 1)"),
        Fault("fence after the ticket", "global-race", "    __threadfence();\n    last = atomicAdd(ticket, 1) == gridDim.x - 1;", "    last = atomicAdd(ticket, 1) == gridDim.x - 1;\n    __threadfence();"),
        Fault("no barrier before the fence", "global-race", "__syncthreads();  // summed"),
        Fault("one ticket early", "global-race", "== gridDim.x - 1;", ">= gridDim.x - 2;"),
        Fault("sums read through the non-coherent cache", "non-coherent-read", "all += sums[i];", "all += __ldg(sums + i);"),
        Fault("the others do not wait for the ticket", "shared-race", "__syncthreads();  // known"),
    ),
)  # fmt: skip


# ---- CTAs in a chain: each adds to what the one before has left, and raises a flag --------------------------------------
def launch_chain(ctas: int = 3) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out, flags = ramp(32 * ctas), aligned(np.zeros(32 * ctas, np.float32)), aligned(np.zeros(ctas, np.uint32))
    return (
        {"grid": ctas, "block": 32, "args": [out, flags, x], "max_instructions": 400_000},
        out,
        x.reshape(ctas, 32).cumsum(0).reshape(-1),
    )


CHAIN = Program(
    "chain",
    r"""
DEVICE u32 read_flag(const u32* p) { u32 v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
DEVICE u32 read_relaxed(const u32* p) { u32 v; asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
DEVICE void raise_flag(u32* p) { asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(p) : "memory"); }
DEVICE void raise_block(u32* p) { asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(p) : "memory"); }
extern "C" __global__ void k(float* out, u32* flags, const float* x) {
  u32 b = blockIdx.x, i = threadIdx.x;
  float before = 0;
  if (b) {
    if (i == 0) while (!read_flag(flags + b - 1)) {}
    __syncwarp();  // all know
    before = out[32 * (b - 1) + i];
  }
  out[32 * b + i] = before + x[32 * b + i];
  __syncwarp();  // all have written
  if (i == 0) raise_flag(flags + b);
}""",
    launch_chain,
    (
        Fault("does not wait for its turn", "global-race", "if (i == 0) while (!read_flag(flags + b - 1)) {}"),
        Fault("reads the flag without acquiring", "global-race", "while (!read_flag(", "while (!read_relaxed("),
        Fault("flag raised by a release of the CTA", "global-race", "raise_flag(flags + b);", "raise_block(flags + b);"),
        Fault("flag raised without a release", "global-race", "raise_flag(flags + b);", "*(volatile u32*)(flags + b) = 1;"),
        Fault("flag raised by a plain store", "global-race", "raise_flag(flags + b);", "flags[b] = 1;"),
        Fault("lanes read before the one that waits", "global-race", "    __syncwarp();  // all know\n"),
        Fault("flag raised before all have written", "global-race", "  __syncwarp();  // all have written\n"),
        Fault("writes what the one before has read through the non-coherent cache", "non-coherent-read", "before + x[32 * b + i];", "before + __ldg(x + 32 * b + i);\n  if (b) ((float*)x)[32 * b - 32 + i] = 0;"),
        Fault("waits for the wrong flag", "global-race", "read_flag(flags + b - 1)", "read_flag(flags)"),
    ),
)  # fmt: skip


# ---- bulk copies of what another CTA has written -------------------------------------------------------------------------
def launch_handed() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(64), aligned(np.zeros(64, np.float32))
    args = [out, aligned(np.zeros(64, np.float32)), aligned(np.zeros(1, np.uint32)), x]
    return {"grid": 2, "block": 32, "args": args}, out, x


HANDED = Program(
    "handed to a copy",
    r"""
DEVICE u32 read_flag(const u32* p) { u32 v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
DEVICE void raise_flag(u32* p) { asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(p) : "memory"); }
DEVICE void fence_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
extern "C" __global__ void k(float* out, float* between, u32* flag, const float* x) {
  __shared__ __align__(128) float s[64];
  __shared__ u64 bar;
  u32 i = threadIdx.x;
  if (blockIdx.x == 0) {
    between[i] = x[i];
    fence_global();  // by the writers
    between[32 + i] = x[32 + i];
    __syncwarp();
    if (i == 0) raise_flag(flag);
    return;
  }
  if (i == 0) {
    init(smem(&bar), 1);
    while (!read_flag(flag)) {}
    expect(smem(&bar), 256);
    bulk_load(smem(s), between, 128, smem(&bar));
    fence_global();  // by the issuer
    bulk_load(smem(s + 32), between + 32, 128, smem(&bar));
    wait(smem(&bar), 0);
  }
  __syncwarp();
  out[i] = s[i], out[32 + i] = s[32 + i];
}""",
    launch_handed,
    (
        Fault("the writers do not fence", "proxy-fence", "    fence_global();  // by the writers\n"),
        Fault("the writers fence before they write", "proxy-fence", "    between[i] = x[i];\n    fence_global();  // by the writers", "    fence_global();\n    between[i] = x[i];"),
        Fault("one of the writers fences", "proxy-fence", "fence_global();  // by the writers", "if (i == 0) fence_global();"),
        Fault("the writers fence shared memory", "proxy-fence", "fence_global();  // by the writers", "fence_async();"),
        Fault("the issuer does not fence", "proxy-fence", "    fence_global();  // by the issuer\n"),
        Fault("the issuer fences before it knows", "proxy-fence", "    while (!read_flag(flag)) {}\n    expect(smem(&bar), 256);\n    bulk_load(smem(s), between, 128, smem(&bar));\n    fence_global();",
              "    fence_global();\n    while (!read_flag(flag)) {}\n    expect(smem(&bar), 256);\n    bulk_load(smem(s), between, 128, smem(&bar));"),
        Fault("the issuer fences after the copy", "proxy-fence", "    fence_global();  // by the issuer\n    bulk_load(smem(s + 32), between + 32, 128, smem(&bar));", "    bulk_load(smem(s + 32), between + 32, 128, smem(&bar));\n    fence_global();"),
        Fault("the issuer does not know", "global-race", "while (!read_flag(flag)) {}", "read_flag(flag);"),
    ),
)  # fmt: skip

PROGRAMS = (APART, LAST, CHAIN, HANDED)
