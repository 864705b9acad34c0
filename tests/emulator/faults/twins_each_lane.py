"""Each lane for itself: what it has read, what it releases, whom it waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- lanes that read the same bytes at different times: each read counts until its lane, or one that met it, reads again ----
def launch_readers() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out, slot = ramp(4), aligned(np.zeros(32, np.float32)), aligned(np.zeros(1, np.float32))
    return (
        {"block": 64, "args": [out, slot, x.astype(np.uint16)]},
        out,
        np.full(32, x[:3].sum() + 2 * x[1:4].sum(), np.float32),
    )


READERS = Program(
    "readers of one word",
    r"""
DEVICE float low(const void* at) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(smem(at)) : "memory"); return v; }
DEVICE float far(const float* at) { float v; asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory"); return v; }
extern "C" __global__ void k(float* out, float* slot, const u16* x) {
  __shared__ u16 s[2];
  __shared__ u64 bars[2];
  u32 full = smem(bars), empty = full + 8, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) init(full, 1), init(empty, 2);
  __syncthreads();
  if (threadIdx.x < 32) {
    float sum = 0;
    for (int r = 0; r < 3; ++r) {
      wait(full, r % 2);
      float a = 0, b = 0, c = 0;
      if (lane < 16) a = low(s), b = low(s + 1), c = far(slot);
      __any_sync(~0u, a > 0);  // half of them have read
      if (lane >= 16) a = low(s), b = low(s + 1), c = far(slot);
      __syncwarp();  // all have read
      sum += a + b + c;
      if (lane == 16 || lane == 0) arrive(empty);
    }
    out[lane] = sum;
  } else if (lane == 0) {
    for (int r = 0; r < 3; ++r) {
      if (r) wait(empty, (r - 1) % 2);
      s[0] = x[r];
      s[1] = x[r + 1];
      *slot = x[r + 1];
      arrive(full);
    }
  }
}""",
    launch_readers,
    (
        Fault("the half that reads last meets", "shared-race", "__syncwarp();  // all have read", "if (lane >= 16) __syncwarp(0xffff0000u);"),
        Fault("the same of global memory", "global-race", "      sum += a", "      if (lane < 16) c += 0 * far(slot);\n      __any_sync(~0u, a > 0);\n"
              "      if (lane >= 16) c += 0 * far(slot), __syncwarp(0xffff0000u);\n      sum += a"),
        Fault("an exchange before the last reads", "shared-race", "__syncwarp();  // all have read", "__any_sync(~0u, a > 0);"),
        Fault("the lane that signals reads once more", "shared-race", "      __syncwarp();  // all have read\n      sum +=", "      __any_sync(~0u, a > 0);\n      if (lane % 16 == 0) a += 0 * low(s);\n      sum +="),
        Fault("one lane reads one half of the word once more", "shared-race", "      sum += a", "      if (lane == 1) b += 0 * low(s + 1);\n      sum += a"),
        Fault("one half of the word is waited for by nobody", "shared-race", "      s[1] = x[r + 1];\n      *slot = x[r + 1];\n      arrive(full);", "      *slot = x[r + 1];\n      if (r == 0) s[1] = x[1];\n      arrive(full);\n      if (r < 2) s[1] = x[r + 2];"),
    ),
)  # fmt: skip


# ---- lanes that signal at once, each at an address of its own -------------------------------------------------------------
def launch_own() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32), aligned(np.zeros(32, np.float32))
    return {"block": 64, "args": [out, aligned(np.zeros((2, 32), np.uint32)), x]}, out, 3 * x


OWN_SIGNALS = Program(
    "signals of each lane",
    r"""
DEVICE void add(u32* at) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(at) : "memory"); }
DEVICE u32 get(const u32* at) { u32 v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory"); return v; }
extern "C" __global__ void k(float* out, u32* flags, const float* x) {
  __shared__ float s[3][32];
  __shared__ u64 bars[33];
  u32 lane = threadIdx.x % 32, own = smem(bars + lane), all = smem(bars + 32);
  if (threadIdx.x < 32) init(own, 1);
  if (threadIdx.x == 0) init(all, 32);
  __syncthreads();
  if (threadIdx.x < 32) {
    s[0][lane] = x[lane];
    arrive(own);
    s[1][lane] = x[lane];
    add(flags + lane);
    s[2][lane] = x[lane];
    arrive(all);
  } else {
    wait(own, 0);
    float sum = s[0][lane];
    while (get(flags + lane) == 0) {}
    sum += s[1][lane];
    wait(all, 0);
    sum += s[2][31 - lane] * 0 + s[2][lane];
    out[lane] = sum;
  }
}""",
    launch_own,
    (
        Fault("waits at its own mbarrier, reads another lane's", "shared-race", "float sum = s[0][lane];", "float sum = s[0][lane] + 0 * s[0][lane ^ 1];"),
        Fault("sees its own flag, reads another lane's", "shared-race", "sum += s[1][lane];", "sum += s[1][lane] + 0 * s[1][lane ^ 16];"),
        Fault("the phase ends with the first half of the arrivals", "shared-race", "    arrive(all);", "    arrive_many(all, lane < 16 ? 2 : 1);"),
        Fault("all see the flag of one lane", "shared-race", "get(flags + lane)", "get(flags)"),
        Fault("the last to add has met nobody", "shared-race", "s[2][lane] = x[lane];\n    arrive(all);", "u32 before;\n"
              '    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(flags + 32) : "memory");\n'
              "    if (before < 31) x += s[0][(lane + 1) % 32] * 0 > 1;\n    s[2][lane] = x[lane];\n    arrive(all);"),
    ),
)  # fmt: skip


# ---- a leader among lanes of which some have left --------------------------------------------------------------------------
def launch_elect() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32), aligned(np.zeros(32, np.float32))
    sums = [x[:16].sum(), x[16:24].sum()]
    return (
        {"block": 32, "args": [out, x]},
        out,
        np.concatenate([np.full(16, sums[0]), np.full(8, sums[1]), x[24:]]).astype(np.float32),
    )


ELECT = Program(
    "elected lane",
    r"""
DEVICE bool elect(u32 mask) {
  u32 yes;
  asm volatile("{ .reg .pred p; elect.sync _|p, %1; selp.u32 %0, 1, 0, p; }" : "=r"(yes) : "r"(mask) : "memory");
  return yes;
}
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32], total[2];
  u32 lane = threadIdx.x, half = lane / 16;
  s[lane] = x[lane];
  bool all = elect(~0u);
  if (all) total[0] = 0;
  __syncwarp();
  if (lane >= 24) {
    out[lane] = x[lane];
    return;
  }
  u32 mask = half ? 0x00ff0000u : 0x0000ffffu;
  if (elect(mask)) {  // of those who stay
    float sum = 0;
    for (int i = 16 * half; i < 16 + 8 * half; ++i) sum += s[i];
    total[half] = sum;
  }
  __syncwarp(0x00ffffffu);
  out[lane] = total[half];
}""",
    launch_elect,
    (
        Fault("the mask names lanes that have left", "invalid-instruction", "0x00ff0000u", "0xffff0000u"),
        Fault("the mask names all", "invalid-instruction", "elect(mask)", "elect(mask | ~0u)"),
        Fault("the mask does not name the lane", "invalid-instruction", "0x00ff0000u", "0x00fe0000u"),
        Fault("an election is no barrier", "shared-race", "  __syncwarp();\n  if (lane >= 24)", "  elect(~0u);\n  if (lane >= 24)"),
    ),
)  # fmt: skip

PROGRAMS = (READERS, OWN_SIGNALS, ELECT)
