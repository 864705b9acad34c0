"""A warpgroup of consumers and a warp that loads tiles for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import RESULT, Fault, Program, aligned

from tkpy.emulator import TensorMap


# ---- warp-specialised wgmma: a producer warp, a consumer warpgroup -----------------------------------------------------
def launch_wgmma(swizzle: int = 128) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = aligned(rng.integers(-3, 4, (64, 192)).astype(np.float16))
    b = aligned(rng.integers(-3, 4, (8, 192)).astype(np.float16))
    out = aligned(np.zeros((64, 8), np.float32))
    maps = [TensorMap(a, (64, 64), swizzle=swizzle), TensorMap(b, (8, 64), swizzle=128)]
    return {"block": 160, "args": [out, *maps]}, out, a.astype(np.float32) @ b.astype(np.float32).T


WGMMA = Program(
    "wgmma",
    r"""
extern "C" __global__ void k(float* out, const __grid_constant__ Map am, const __grid_constant__ Map bm) {
  __shared__ __align__(1024) unsigned char a[2][8192];
  __shared__ __align__(1024) unsigned char b[2][1024];
  __shared__ u64 bars[4];
  u32 full = smem(bars), empty = full + 16;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) init(full + 8 * i, 1);
    for (int i = 0; i < 2; ++i) init(empty + 8 * i, 4);
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128) for (int r = 0; r < 3; ++r) {
      u32 at = r % 2;
      wait(empty + 8 * at, r / 2 % 2 ^ 1);
      expect(full + 8 * at, 9216);
      tile_load(smem(a[at]), &am, 64 * r, 0, full + 8 * at);
      tile_load(smem(b[at]), &bm, 64 * r, 0, full + 8 * at);
    }
    return;
  }
  float d[4];
  u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = 0; r < 3; ++r) {
    u32 at = r % 2;
    wait(full + 8 * at, r / 2 % 2);
    wgmma_fence();
    for (int j = 0; j < 4; ++j) wgmma(d, descriptor(smem(a[at]) + 32 * j), descriptor(smem(b[at]) + 32 * j), r + j > 0);
    wgmma_commit();
    wgmma_wait(d);
    if (lane == 0) arrive(empty + 8 * at);
  }
  float* to = out + (16 * warp + lane / 4) * 8 + lane % 4 * 2;
  to[0] = d[0], to[1] = d[1], to[64] = d[2], to[65] = d[3];
}""",
    launch_wgmma,
    (
        Fault("accumulators read early", "wgmma-in-flight", "    wgmma_wait(d);\n"),
        Fault("group never committed", "wgmma-in-flight", "    wgmma_commit();\n"),
        Fault("wrong swizzle in the map", RESULT, options={"swizzle": 0}),
        Fault("wrong swizzle in the descriptor", RESULT, "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) ^ 3ull << 62)"),
        Fault("wrong stride in the descriptor", RESULT, "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) - (32ull << 32))"),
        Fault("accumulates into what was there", "uninitialised-register", "r + j > 0);", "1);"),
        Fault("the two slots overlap", "shared-race", "tile_load(smem(a[at]),", "tile_load(smem(a[0]) + 4096 * at,"),
        Fault("slot released before the products are done", "shared-race", "    wgmma_wait(d);\n    if (lane == 0) arrive(empty + 8 * at);",
              "    if (lane == 0) arrive(empty + 8 * at);\n    wgmma_wait(d);"),
        Fault("accumulator touched in flight", "wgmma-in-flight", "    wgmma_commit();", "    d[0] += 1.f;\n    wgmma_commit();"),
        Fault("products in flight at exit", "wgmma-misuse", "    wgmma_wait(d);\n", "    if (r < 2) wgmma_wait(d);\n"),
        Fault("no wait for the tiles", "uninitialised-read", "wait(full + 8 * at, r / 2 % 2);"),
        Fault("waits for the wrong phase", "uninitialised-read", "wait(full + 8 * at, r / 2 % 2);", "wait(full + 8 * at, r / 2 % 2 ^ 1);"),
        Fault("B is never loaded", "uninitialised-read", "tile_load(smem(b[at]), &bm,", "tile_load(smem(a[at]), &bm,"),
        Fault("expects A only", "deadlock", "9216);", "8192);"),
        Fault("only three warps release", "deadlock", "if (lane == 0) arrive", "if (lane == 0 && warp) arrive"),
        Fault("each warp releases for three", "mbarrier-misuse", "if (lane == 0) arrive(empty + 8 * at);", "if (lane == 0) arrive_many(empty + 8 * at, 3);"),
        Fault("descriptors differ between warps", "wgmma-misuse", "descriptor(smem(b[at]) + 32 * j)", "descriptor(smem(b[at]) + 32 * (j ^ (warp == 2)))"),
        Fault("scale-d differs between warps", "wgmma-misuse", "r + j > 0);", "r + j > (warp == 1));"),
        Fault("a warp skips the first product", "wgmma-misuse", "    for (int j = 0; j < 4; ++j) wgmma(", "    for (int j = r == 0 && warp == 3; j < 4; ++j) wgmma("),
        Fault("stride of zero", "wgmma-misuse", "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) & ~(0x3fffull << 32))"),
        Fault("reserved bits set", "wgmma-misuse", "descriptor(smem(b[at]) + 32 * j)", "(descriptor(smem(b[at]) + 32 * j) | 1ull << 46)"),
        Fault("tile starts one row late", "wgmma-misuse", "descriptor(smem(a[at]) + 32 * j)", "descriptor(smem(a[at]) + 128 + 32 * j)"),
        Fault("operand outside shared memory", "out-of-bounds", "descriptor(smem(b[at]) + 32 * j)", "descriptor(65536 + 32 * j)"),
        Fault("no wgmma.fence", "wgmma-fence", "    wgmma_fence();\n"),
    ),
)  # fmt: skip

PROGRAMS = (WGMMA,)
