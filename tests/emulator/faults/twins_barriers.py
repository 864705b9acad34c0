"""Shared memory under CTA-wide, named and warp-level barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- shared-memory reduction, then a vector store ----------------------------------------------------------------------
def launch_sum(n: int = 96) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(96), aligned(np.zeros(128, np.float32))
    return {"block": 128, "args": [out, x, n]}, out, np.full(128, x.sum(), np.float32)


SUM = Program(
    "sum",
    r"""
extern "C" __global__ void k(float* out, const float* x, int n) {
  __shared__ __align__(16) float s[128];
  s[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.f;
  __syncthreads();
  for (int h = 64; h > 0; h /= 2) {
    if (threadIdx.x < h) s[threadIdx.x] += s[threadIdx.x + h];
    __syncthreads();  // in the loop
  }
  float4 v = make_float4(s[0], s[0], s[0], s[0]);
  if (threadIdx.x < 32) ((float4*)out)[threadIdx.x] = v;
}""",
    launch_sum,
    (
        Fault("no barrier after the fill", "shared-race", ": 0.f;\n  __syncthreads();", ": 0.f;"),
        Fault("no barrier in the loop", "shared-race", "__syncthreads();  // in the loop", ""),
        Fault("only the active half meets", "shared-race", "__syncthreads();  // in the loop", "__syncwarp();"),
        Fault("tail is not filled", "uninitialised-read", "s[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.f;",
              "if (threadIdx.x < n) s[threadIdx.x] = x[threadIdx.x];"),
        Fault("n one too large", "out-of-bounds", options={"n": 97}),
        Fault("bound off by one", "out-of-bounds", "threadIdx.x < n ?", "threadIdx.x <= n ?"),
        Fault("adds one too far", "out-of-bounds", "s[threadIdx.x + h];", "s[threadIdx.x + h + 1];"),
        Fault("one vector too many", "out-of-bounds", "threadIdx.x < 32)", "threadIdx.x < 33)"),
        Fault("vector store at a float's alignment", "misaligned", "((float4*)out)[threadIdx.x]", "*(float4*)(out + threadIdx.x)"),
        Fault("vector load at a float's alignment", "misaligned", "make_float4(s[0], s[0], s[0], s[0])", "*(float4*)&s[threadIdx.x % 2]"),
        Fault("lanes at two barriers", "barrier-divergence", "__syncthreads();  // in the loop",
              'if (threadIdx.x % 2) asm volatile("bar.sync 0;" ::: "memory"); else asm volatile("bar.sync 0, 128;" ::: "memory");'),
        Fault("barrier in a divergent branch", "shared-race", "__syncthreads();  // in the loop", "if (threadIdx.x < h) __syncthreads();"),
        Fault("a warp skips the last barrier and waits at another", "deadlock", "float4 v", "if (threadIdx.x >= 96) bar_sync(5, 64);\n  float4 v"),
    ),
)  # fmt: skip


# ---- warps: shuffles, named barriers -----------------------------------------------------------------------------------
def launch_named() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32), aligned(np.zeros(96, np.float32))
    v = x + x[np.arange(32) ^ 1]
    return {"block": 64, "args": [out, x]}, out, np.concatenate([(v + r)[::-1] for r in range(3)])


NAMED = Program(
    "named barriers",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32];
  u32 lane = threadIdx.x % 32;
  float v = x[lane];
  v += __shfl_xor_sync(0xffffffff, v, 1);
  for (int r = 0; r < 3; ++r) {
    if (threadIdx.x < 32) {
      if (r) bar_sync(1, 64);
      s[lane] = v + r;
      bar_arrive(2, 64);
    } else {
      bar_sync(2, 64);
      out[32 * r + lane] = s[31 - lane];
      if (r < 2) bar_arrive(1, 64);
    }
  }
}""",
    launch_named,
    (
        Fault("slot reused before it is read", "shared-race", "if (r) bar_sync(1, 64);"),
        Fault("slot released before it is read", "shared-race", "out[32 * r + lane] = s[31 - lane];\n      if (r < 2) bar_arrive(1, 64);",
              "if (r < 2) bar_arrive(1, 64);\n      out[32 * r + lane] = s[31 - lane];"),
        Fault("never signalled", "deadlock", "bar_arrive(2, 64);"),
        Fault("signalled on another barrier", "deadlock", "bar_arrive(2, 64);", "bar_arrive(3, 64);"),
        Fault("never released", "deadlock", "if (r < 2) bar_arrive(1, 64);"),
        Fault("sync expects too many", "barrier-count", "bar_sync(2, 64);", "bar_sync(2, 96);"),
        Fault("arrive with half a warp", "barrier-count", "bar_arrive(2, 64);", "bar_arrive(2, 48);"),
        Fault("counts differ", "barrier-count", "bar_sync(1, 64);", "bar_sync(1, 32 + 32 * r);"),
        Fault("arrive counts more than the block has", "barrier-count", "bar_arrive(1, 64);", "bar_arrive(1, 128);"),
        Fault("barrier 16", "invalid-instruction", "bar_sync(2, 64);", "bar_sync(16, 64);"),
        Fault("lane outside its mask", "invalid-instruction", "0xffffffff, v", "0xffff7fff, v"),
        Fault("vote outside its mask", "invalid-instruction", "float v = x[lane];", "float v = x[lane] + __popc(__ballot_sync(0xfffe, lane > 77));"),
        Fault("wgmma by half a warpgroup", "invalid-instruction", "float v = x[lane];",
              "float v = x[lane], d[4] = {}; wgmma(d, descriptor(smem(s)), descriptor(smem(s)), 0);"),
        Fault("lanes shuffle apart", "barrier-divergence", "v += __shfl_xor_sync(0xffffffff, v, 1);",
              "if (lane < 16) v += __shfl_xor_sync(0xffffffff, v, 1); else { v *= x[0]; v += __shfl_xor_sync(0xffffffff, v, 1); }"),
        Fault("one lane does not vote", "barrier-divergence", "float v = x[lane];",
              "float v = x[lane]; if (lane != 5) v += __popc(__ballot_sync(~0u, v > 1e9f)); else { v += x[3]; __syncwarp(); }"),
    ),
)  # fmt: skip

PROGRAMS = (SUM, NAMED)
