"""Registers: fragments of A that wgmma reads, accumulators, values that no lane wrote, register pools."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- wgmma with A in registers: a new fragment every round -------------------------------------------------------------
def launch_fragments() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = aligned(rng.integers(-3, 4, (64, 64)).astype(np.float16))
    b = aligned(rng.integers(-3, 4, (8, 64)).astype(np.float16))
    out = aligned(np.zeros((64, 8), np.float32))
    return {"block": 128, "args": [out, a, b]}, out, 2 * a.astype(np.float32) @ b.astype(np.float32).T


FRAGMENTS = Program(
    "wgmma fragments",
    r"""
DEVICE void load(u32 (&x)[4], const __half* a) {
  const __half2* from = (const __half2*)(a + (threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) * 64) + threadIdx.x % 4;
  __half2 v[4] = {from[0], from[8 * 32], from[4], from[8 * 32 + 4]};
  for (int i = 0; i < 4; ++i) { v[i] = __hadd2(v[i], v[i]); x[i] = *(u32*)&v[i]; }
}
DEVICE void product(float (&d)[4], const u32 (&x)[4], u64 b, u32 accumulate = 1) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, 1, 1, 0; }"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(b), "r"(accumulate) : "memory");
}
extern "C" __global__ void k(float* out, const __half* a, const __half* b) {
  __shared__ __align__(1024) unsigned char s[1024];
  for (int i = threadIdx.x; i < 512; i += 128) *(__half*)(s + i / 64 * 128 + (i % 64 * 2 ^ i / 64 * 16)) = b[i];
  fence_async();
  __syncthreads();
  float d[4] = {};
  u32 x[4], warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = 0; r < 4; ++r) {
    load(x, a + 16 * r);
    wgmma_fence();
    product(d, x, descriptor(smem(s) + 32 * r));
    wgmma_commit();
    wgmma_wait(d);
  }
  float* to = out + (16 * warp + lane / 4) * 8 + lane % 4 * 2;
  to[0] = d[0], to[1] = d[1], to[64] = d[2], to[65] = d[3];
}""",
    launch_fragments,
    (
        Fault("accumulators read before the wait", "wgmma-in-flight", "    wgmma_wait(d);\n", "    if (r < 3) wgmma_wait(d);\n"),
        Fault("accumulators scaled before the wait", "wgmma-in-flight", "    wgmma_wait(d);", "    for (int i = 0; i < 4; ++i) d[i] *= 1.f + x[0] % 2;\n    wgmma_wait(d);"),
        Fault("next fragment before the wait", "wgmma-in-flight", "    wgmma_wait(d);", '    asm volatile("add.f16x2 %0, %0, %0;" : "+r"(x[1]));\n    wgmma_wait(d);'),
        Fault("fragment read before the wait", "wgmma-in-flight", "    wgmma_wait(d);", '    u32 y; asm volatile("add.u32 %0, %1, 1;" : "=r"(y) : "r"(x[1]));\n    wgmma_wait(d);'),
        Fault("waits with one group left", "wgmma-in-flight", "    wgmma_wait(d);", '    asm volatile("wgmma.wait_group.sync.aligned 1;" : "+f"(d[0]) :: "memory");'),
        Fault("waits before the commit", "wgmma-in-flight", "    wgmma_commit();\n    wgmma_wait(d);", "    wgmma_wait(d);\n    wgmma_commit();"),
        Fault("no fence", "wgmma-fence", "    wgmma_fence();\n"),
        Fault("fence in the first round only", "wgmma-fence", "    wgmma_fence();\n", "    if (r == 0) wgmma_fence();\n"),
        Fault("fence before the fragment is made", "wgmma-fence", "    load(x, a + 16 * r);\n    wgmma_fence();", "    wgmma_fence();\n    load(x, a + 16 * r);"),
        Fault("accumulators scaled after the fence", "wgmma-fence", "    wgmma_fence();\n", "    wgmma_fence();\n    for (int i = 0; i < 4; ++i) d[i] *= 1.f + x[0] % 2;\n"),
        Fault("one warp does not fence", "wgmma-misuse", "    wgmma_fence();\n", "    if (r != 2 || warp != 1) wgmma_fence();\n"),
        Fault("one warp commits twice", "wgmma-misuse", "    wgmma_commit();\n", "    wgmma_commit();\n    if (warp == 3) wgmma_commit();\n"),
        Fault("last product is not waited for", "async-in-flight", "  float* to", "  product(d, x, descriptor(smem(s)));\n  wgmma_commit();\n  if (out) return;\n  float* to"),
        Fault("last product is not committed", "async-in-flight", "  float* to", "  product(d, x, descriptor(smem(s)));\n  wgmma_wait(d);\n  if (out) return;\n  float* to"),
        Fault("wgmma in some lanes only", "deadlock", "    product(d,", "    if (r < 3 || lane != 7) product(d,"),
    ),
)  # fmt: skip


# ---- PTX by hand: every register is written on every path before it is read ---------------------------------------------
def launch_lanes() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    out = aligned(np.zeros(32, np.int32))
    t = np.arange(32)
    return {"block": 32, "args": [out]}, out, np.where(t < 16, 5, 7).astype(np.int32) * 3 + np.where(t < 8, 1, 0)


LANES = Program(
    "written registers",
    r"""
.visible .entry k(.param .u64 out) {
  .reg .pred %p<4>; .reg .b32 %r<9>; .reg .b64 %a<4>; .reg .b16 %h<4>;
  ld.param.u64 %a1, [out];
  mov.u32 %r1, %tid.x;
  setp.lt.u32 %p1, %r1, 16;
  setp.lt.u32 %p2, %r1, 8;
  @%p1 mov.u32 %r2, 5;
  @!%p1 mov.u32 %r2, 7;
  @!%p2 bra outside;
  mov.u32 %r3, 1;
outside:
  selp.b32 %r4, %r3, 0, %p2;
  mad.lo.u32 %r5, %r2, 3, %r4;
  mov.b32 {%h1, %h2}, %r5;
  mov.b32 %r6, {%h1, %h3};
  and.b32 %r6, %r6, 0xffff;
  mov.u64 %a2, %a1;
  @%p1 mad.wide.u32 %a3, %r1, 4, %a2;
  @!%p1 mad.wide.u32 %a3, %r1, 4, %a2;
  setp.lt.u32 %p3, %r1, 32;
  @%p3 st.global.u32 [%a3], %r6;
  ret;
}""",
    launch_lanes,
    (
        Fault("half the lanes never write", "uninitialised-register", "  @!%p1 mov.u32 %r2, 7;\n"),
        Fault("the other half never writes", "uninitialised-register", "  @%p1 mov.u32 %r2, 5;\n"),
        Fault("nothing writes the factor", "uninitialised-register", "mad.lo.u32 %r5, %r2, 3, %r4;", "mad.lo.u32 %r5, %r2, %r8, %r4;"),
        Fault("selects what another path wrote", "uninitialised-register", "selp.b32 %r4, %r3, 0, %p2;", "selp.b32 %r4, %r3, 0, %p1;"),
        Fault("takes the wrong half", "uninitialised-register", "mov.b32 %r6, {%h1, %h3};", "mov.b32 %r6, {%h3, %h3};"),
        Fault("address on one side only", "uninitialised-register", "  @!%p1 mad.wide.u32 %a3, %r1, 4, %a2;\n"),
        Fault("compares what nothing wrote", "uninitialised-register", "setp.lt.u32 %p3, %r1, 32;", "setp.lt.u32 %p3, %r7, 32;"),
    ),
    is_ptx=True,
)  # fmt: skip


# ---- register pools: a producer gives what two consumers take ----------------------------------------------------------
def launch_pool(registers: int = 0) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(256), aligned(np.zeros(256, np.float32))
    return {"block": 384, "args": [out, x], "registers": registers}, out, 2 * x


POOL = Program(
    "register pool",
    r"""
#define INC(n) asm volatile("setmaxnreg.inc.sync.aligned.u32 " #n ";")
#define DEC(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 " #n ";")
extern "C" __global__ void __launch_bounds__(384, 1) k(float* out, const float* x) {
  __shared__ float s[256];
  if (threadIdx.x >= 256) {
    DEC(40);
    for (int i = threadIdx.x - 256; i < 256; i += 128) s[i] = x[i];
    bar_arrive(1, 384);
  } else {
    INC(232);
    bar_sync(1, 384);
    out[threadIdx.x] = 2 * s[threadIdx.x];
  }
}""",
    launch_pool,
    (
        Fault("the producer gives nothing", "setmaxnreg", "    DEC(40);\n"),
        Fault("the producer gives too little", "setmaxnreg", "DEC(40);", "DEC(48);"),
        Fault("the consumers take too much", "setmaxnreg", "INC(232);", "INC(240);"),
        Fault("launched with fewer registers", "setmaxnreg", options={"registers": 160}),
        Fault("gives after it has waited", "deadlock", "    DEC(40);\n", "    bar_sync(2, 384);\n    DEC(40);\n"),
        Fault("decrease to more", "setmaxnreg", "DEC(40);", "DEC(176);"),
        Fault("increase to less", "setmaxnreg", options={"registers": 240}),
        Fault("one warp does not give", "setmaxnreg", "DEC(40);", "if (threadIdx.x < 352) DEC(40);"),
        Fault("warps give different amounts", "setmaxnreg", "DEC(40);", "if (threadIdx.x < 352) DEC(40); else DEC(24);"),
        Fault("gives twice without meeting", "setmaxnreg", "DEC(40);", "DEC(48); DEC(40);"),
    ),
)  # fmt: skip

PROGRAMS = (FRAGMENTS, LANES, POOL)
