"""The generic and the async proxy: what lanes write, copies and wgmma read; order alone does not show it to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- a tile filled by lanes and by cp.async, stored in bulk, then loaded over ------------------------------------------
def launch_hand_over() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(128), aligned(np.zeros((3, 64), np.float32))
    return {"block": 64, "args": [out, x]}, out, np.stack([2 * x[:64], x[64:], x[:64] + 1])


HAND_OVER = Program(
    "hand over",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(128) float s[64];
  __shared__ __align__(128) float t[64];
  __shared__ u64 bar;
  u32 i = threadIdx.x;
  if (i == 0) init(smem(&bar), 1);
  copy4(smem(t + i), x + 64 + i);
  copy_commit();
  s[i] = 2 * x[i];
  copy_wait<0>();
  fence_async();  // both
  __syncthreads();
  if (i == 0) {
    bulk_store(out, smem(s), 256);
    bulk_store(out + 64, smem(t), 256);
    commit();
    was_read();
    expect(smem(&bar), 256);
    bulk_load(smem(s), x, 256, smem(&bar));  // over what was stored
  }
  wait(smem(&bar), 0);
  s[i] += 1;
  __syncthreads();  // changed
  if (i == 32) {
    fence_async();  // by the issuer, once it has met the writers
    bulk_store(out + 128, smem(s), 256);
    commit();
  }
  if (i % 32 == 0) stored();
}""",
    launch_hand_over,
    (
        Fault("no fence by the writers", "proxy-fence", "fence_async();  // both"),
        Fault("one thread fences for all, before it has met them", "proxy-fence", "fence_async();  // both", "if (i == 0) fence_async();"),
        Fault("fence before the copies have landed", "proxy-fence", "copy_wait<0>();\n  fence_async();  // both", "fence_async();\n  copy_wait<0>();"),
        Fault("fence before the writes", "proxy-fence", "  s[i] = 2 * x[i];\n  copy_wait<0>();\n  fence_async();  // both", "  copy_wait<0>();\n  fence_async();\n  s[i] = 2 * x[i];"),
        Fault("fence of global memory", "proxy-fence", "fence_async();  // both", 'asm volatile("fence.proxy.async.global;" ::: "memory");'),
        Fault("fence of memory, not of proxies", "proxy-fence", "fence_async();  // both", "__threadfence();"),
        Fault("issuer does not fence", "proxy-fence", "    fence_async();  // by the issuer, once it has met the writers\n"),
        Fault("issuer fences before it meets the writers", "proxy-fence", "  __syncthreads();  // changed\n  if (i == 32) {\n    fence_async();", "  if (i == 32) fence_async();\n  __syncthreads();\n  if (i == 32) {\n   "),
        Fault("loaded over before it was read", "shared-race", "    was_read();\n"),
        Fault("changed while it lands", "shared-race", "wait(smem(&bar), 0);", "if (i < 32) wait(smem(&bar), 0);"),
        Fault("one lane waits for its warp", "shared-race", "wait(smem(&bar), 0);", "if (i % 32 == 0) wait(smem(&bar), 0);"),
        Fault("the two copies land in one tile", "shared-race", "bulk_load(smem(s), x, 256, smem(&bar));", "expect(smem(&bar), 0); bulk_load(smem(s), x, 128, smem(&bar)); bulk_load(smem(s + 16), x, 128, smem(&bar));"),
        Fault("the last store is not waited for", "async-in-flight", "  if (i % 32 == 0) stored();"),
        Fault("the last copies are not waited for", "async-in-flight", "  if (i % 32 == 0) stored();", "  if (i % 32 == 0) stored();\n  copy4(smem(t + i), x);"),
    ),
)  # fmt: skip


# ---- wgmma on operands that the warps store themselves ------------------------------------------------------------------
def launch_operands() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    a, b = (aligned(rng.integers(-4, 5, shape).astype(np.float16)) for shape in ((2, 64, 64), (2, 8, 64)))
    out = aligned(np.zeros((64, 8), np.float32))
    want = sum(x.astype(np.float32) @ y.astype(np.float32).T for x, y in zip(a, b, strict=True))
    return {"block": 128, "args": [out, a, b]}, out, want


OPERANDS = Program(
    "stored operands",
    r"""
extern "C" __global__ void k(float* out, const __half* x, const __half* y) {
  __shared__ __align__(1024) __half a[64 * 64];
  __shared__ __align__(1024) __half b[8 * 64];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float d[4];
  for (int r = 0; r < 2; ++r) {
    for (int i = threadIdx.x; i < 512; i += 128) b[i ^ i / 64 % 8 * 8] = y[512 * r + i];
    for (int i = lane; i < 1024; i += 32) a[1024 * warp + (i ^ i / 64 % 8 * 8)] = x[4096 * r + 1024 * warp + i];
    fence_async();
    __syncthreads();  // stored
    wgmma_fence();
    for (int j = 0; j < 4; ++j) wgmma(d, descriptor(smem(a) + 32 * j), descriptor(smem(b) + 32 * j), r + j > 0);
    wgmma_commit();
    wgmma_wait(d);
    __syncthreads();  // multiplied
  }
  float* to = out + (16 * warp + lane / 4) * 8 + lane % 4 * 2;
  to[0] = d[0], to[1] = d[1], to[64] = d[2], to[65] = d[3];
}""",
    launch_operands,
    (
        Fault("no fence before the product", "proxy-fence", "    fence_async();\n"),
        Fault("fence after the first product", "proxy-fence", "    fence_async();\n", "    if (r) fence_async();\n"),
        Fault("no barrier before the product", "shared-race", "__syncthreads();  // stored"),
        Fault("fence between the products", "proxy-fence", "    fence_async();\n    __syncthreads();  // stored\n    wgmma_fence();", "    __syncthreads();\n    wgmma_fence();\n    if (r) fence_async();"),
        Fault("stored under the product", "shared-race", "    wgmma_wait(d);\n", "    if (r) wgmma_wait(d);\n"),
    ),
)  # fmt: skip

PROGRAMS = (HAND_OVER, OPERANDS)
