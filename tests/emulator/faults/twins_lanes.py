"""Lanes of one warp that copy, wait, meet and signal by themselves: groups of cp.async, member masks, mbarriers, fences."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


# ---- cp.async within one warp: every lane waits for its own copies -----------------------------------------------------
def launch_copies() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(4 * 32), aligned(np.zeros(32, np.float32))
    return {"block": 32, "args": [out, x]}, out, x.reshape(4, 32)[:, ::-1].sum(0)


WARP_COPIES = Program(
    "cp.async of one warp",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(16) float s[2][32];
  u32 lane = threadIdx.x, own = smem(s) + lane * 4;
  float sum = 0;
  copy4(own, x + lane);
  copy_commit();
  for (int r = 0; r < 4; ++r) {
    if (r < 3) copy4(own + (r + 1) % 2 * 128, x + (r + 1) * 32 + lane);
    copy_commit();
    copy_wait<1>();
    __syncwarp();  // all have waited
    sum += s[r % 2][31 - lane];
    __syncwarp();  // all have read
  }
  out[lane] = sum;
}""",
    launch_copies,
    (
        Fault("reads what another lane has waited for", "shared-race", "__syncwarp();  // all have waited"),
        Fault("a vote is no barrier", "shared-race", "__syncwarp();  // all have waited", "if (!__all_sync(~0u, lane < 32)) return;"),
        Fault("half of the warp meets, the other half too", "shared-race", "__syncwarp();  // all have waited", "__syncwarp(lane < 16 ? 0xffffu : 0xffff0000u);"),
        Fault("waits after the barrier", "shared-race", "copy_wait<1>();\n    __syncwarp();", "__syncwarp();\n    copy_wait<1>();"),
        Fault("copies over what others still read", "shared-race", "__syncwarp();  // all have read"),
        Fault("even lanes commit once", "shared-race", "copy_commit();\n    copy_wait<1>();", "if (lane % 2) copy_commit();\n    copy_wait<1>();"),
        Fault("odd lanes wait for one group too few", "shared-race", "copy_wait<1>();", "if (lane % 2) copy_wait<2>(); else copy_wait<1>();"),
    ),
)  # fmt: skip


# ---- lanes with different numbers of groups ----------------------------------------------------------------------------
def launch_uneven() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(2 * 32), aligned(np.zeros(32, np.float32))
    rows = x.reshape(2, 32).copy()
    rows[1, 1::2] = 0
    return {"block": 32, "args": [out, x]}, out, rows.sum(0)


UNEVEN = Program(
    "groups of each lane",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(16) float s[2][32];
  u32 lane = threadIdx.x, own = smem(s) + lane * 4;
  copy4(own, x + lane);
  copy_commit();
  if (lane % 2 == 0) {
    copy4(own + 128, x + 32 + lane);
    copy_commit();
    copy_wait<1>();  // even lanes: the first
  } else {
    copy_wait<0>();  // odd lanes: the first
  }
  float sum = s[0][lane];
  if (lane % 2 == 0) {
    copy_wait<0>();  // the second
    sum += s[1][lane];
  }
  out[lane] = sum;
}""",
    launch_uneven,
    (
        Fault("odd lanes have one group, and leave it out", "shared-race", "copy_wait<0>();  // odd lanes: the first", "copy_wait<1>();"),
        Fault("one wait for all lanes", "shared-race", "    copy_wait<1>();  // even lanes: the first\n  } else {\n    copy_wait<0>();  // odd lanes: the first\n  }", "  }\n  copy_wait<1>();"),
        Fault("the second is not waited for", "shared-race", "copy_wait<0>();  // the second"),
        Fault("odd lanes never wait", "shared-race", "copy_wait<0>();  // odd lanes: the first"),
        Fault("the odd lanes' copies are not committed", "shared-race", "  copy_commit();\n  if (lane % 2 == 0) {", "  if (lane % 2 == 0) {\n    copy_commit();"),
        Fault("an odd lane ends before its copy has landed", "async-in-flight", "  float sum = s[0][lane];", "  if (lane == 1) copy4(own + 128, x);\n  float sum = s[0][lane];"),
    ),
)  # fmt: skip


# ---- half warps that work by themselves: __syncwarp of a mask ----------------------------------------------------------
def launch_halves() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32), aligned(np.zeros(32, np.float32))
    halves = x.reshape(2, 16)
    means = np.repeat(halves.sum(1), 16)
    return {"block": 32, "args": [out, x]}, out, (halves[:, ::-1].ravel() + means) + means[::-1]


HALVES = Program(
    "half warps",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32], total[2];
  u32 lane = threadIdx.x, half = lane / 16, mask = half ? 0xffff0000u : 0xffffu;
  s[lane] = x[lane];
  __syncwarp(mask);  // the half has written
  float v = s[lane ^ 15];
  if (lane % 16 == 0) {
    float sum = 0;
    for (int i = 0; i < 16; ++i) sum += s[lane + i];
    total[half] = sum;
  }
  __syncwarp(mask);  // its total is there
  v += total[half];
  __syncwarp();  // both halves are done
  v += total[1 - half];
  s[31 - lane] = v;
  __syncwarp();
  out[lane] = s[31 - lane];
}""",
    launch_halves,
    (
        Fault("reads the half before it is written", "shared-race", "  __syncwarp(mask);  // the half has written\n"),
        Fault("reads the total before it is there", "shared-race", "  __syncwarp(mask);  // its total is there\n"),
        Fault("reads the other half's total after its own barrier", "shared-race", "__syncwarp();  // both halves are done", "__syncwarp(mask);"),
        Fault("reads the other half's elements", "shared-race", "float v = s[lane ^ 15];", "float v = s[lane ^ 31];"),
        Fault("only the first lanes of the halves meet", "shared-race", "__syncwarp();  // both halves are done", "if (lane % 16 == 0) __syncwarp(0x10001u);"),
        Fault("a mask of the even lanes and one of the odd", "shared-race", "__syncwarp(mask);  // the half has written", "__syncwarp(lane % 2 ? 0xaaaaaaaau : 0x55555555u);"),
        Fault("lane 0 works for both halves", "shared-race", "if (lane % 16 == 0) {\n    float sum = 0;\n    for (int i = 0; i < 16; ++i)",
              "if (lane % 16 == 0) {\n    float sum = 0;\n    if (lane == 0) sum = s[31] * 0;\n    for (int i = 0; i < 16; ++i)"),
    ),
)  # fmt: skip


# ---- an exchange among some lanes, then writes: as __shfl_sync of a mask orders reads before them -----------------------
def launch_groups() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32), aligned(np.zeros(32, np.float32))
    sums = np.repeat(x.reshape(4, 8).sum(1), 8)
    return {"block": 32, "args": [out, x]}, out, sums + np.roll(sums, 8)


GROUPS = Program(
    "groups of eight",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32], t[32];
  u32 lane = threadIdx.x, group = lane / 8, mask = 0xffu << 8 * group;
  s[lane] = x[lane];
  __syncwarp();
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += s[8 * group + i];
  sum = __shfl_sync(mask, sum, 0, 8);  // the group has read
  s[8 * group + (lane + 1) % 8] = sum;
  __syncwarp();  // all have written
  t[lane] = s[(lane + 24) % 32];
  __syncwarp(mask);
  out[lane] = sum + t[lane ^ 1];
}""",
    launch_groups,
    (
        Fault("writes what others still read", "shared-race", "sum = __shfl_sync(mask, sum, 0, 8);  // the group has read"),
        Fault("pairs exchange, all eight have read", "shared-race", "sum = __shfl_sync(mask, sum, 0, 8);", "sum = __shfl_sync(3u << (lane & 30), sum, 0, 2);"),
        Fault("the groups' barrier is not the warp's", "shared-race", "__syncwarp();  // all have written", "__syncwarp(mask);"),
        Fault("an exchange shows no writes", "shared-race", "__syncwarp();  // all have written", "if (__any_sync(~0u, lane > 31)) return;"),
    ),
)  # fmt: skip


# ---- half warps that signal: the lane that arrives has met its half -----------------------------------------------------
def launch_signal() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(3 * 32), aligned(np.zeros(32, np.float32))
    rows = x.reshape(3, 32)
    return {"block": 64, "args": [out, x]}, out, rows[:, ::-1].sum(0)


SIGNAL = Program(
    "half warps signal",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32];
  __shared__ float scale[2];
  __shared__ u64 bars[2];
  u32 full = smem(bars), empty = full + 8, lane = threadIdx.x % 32, half = lane / 16, mask = half ? 0xffff0000u : 0xffffu;
  if (threadIdx.x == 0) init(full, 2), init(empty, 2);
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int r = 0; r < 3; ++r) {
      if (lane % 16 == 0) wait(empty, r % 2 ^ 1);
      __syncwarp(mask);  // the slot is free
      s[lane] = x[32 * r + lane];
      if (lane % 16 == 0) scale[half] = 1;
      __syncwarp(mask);  // the half has written
      if (lane % 16 == 0) arrive(full);
    }
  } else {
    float sum = 0;
    for (int r = 0; r < 3; ++r) {
      wait(full, r % 2);
      sum += s[31 - lane] * scale[1 - half];
      __syncwarp(mask);  // the half has read
      if (lane % 16 == 0) arrive(empty);
    }
    out[lane] = sum;
  }
}""",
    launch_signal,
    (
        Fault("a lane fills before its leader has waited", "shared-race", "      __syncwarp(mask);  // the slot is free\n"),
        Fault("the leader signals before its half has written", "shared-race", "      __syncwarp(mask);  // the half has written\n"),
        Fault("the leader releases before its half has read", "shared-race", "      __syncwarp(mask);  // the half has read\n"),
        Fault("one leader signals for both halves", "shared-race", "if (lane % 16 == 0) arrive(full);", "if (lane == 0) arrive_many(full, 2);"),
        Fault("one leader releases for both halves", "shared-race", "if (lane % 16 == 0) arrive(empty);", "if (lane == 0) arrive_many(empty, 2);"),
        Fault("one leader waits for both halves", "shared-race", "if (lane % 16 == 0) wait(empty,", "if (lane == 0) wait(empty,"),
    ),
)  # fmt: skip


# ---- cp.async that arrives on an mbarrier: each lane's copies, for who waits --------------------------------------------
def launch_arrivals() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(4 * 32), aligned(np.zeros(32, np.float32))
    return {"block": 64, "args": [out, x]}, out, x.reshape(4, 32)[:, ::-1].sum(0)


ARRIVALS = Program(
    "cp.async to an mbarrier",
    r"""
DEVICE void copies_arrive(u32 bar) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory"); }
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(16) float s[2][32];
  __shared__ u64 bars[4];
  u32 full = smem(bars), empty = full + 16, lane = threadIdx.x % 32;
  if (threadIdx.x < 4) init(full + 8 * threadIdx.x, threadIdx.x < 2 ? 32 : 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int r = 0; r < 4; ++r) {
      if (lane == 0) wait(empty + 8 * (r % 2), r / 2 ^ 1);
      __syncwarp();  // the slot is free
      copy4(smem(&s[r % 2][lane]), x + 32 * r + lane);
      copies_arrive(full + 8 * (r % 2));
    }
  } else {
    float sum = 0;
    for (int r = 0; r < 4; ++r) {
      wait(full + 8 * (r % 2), r / 2);
      sum += s[r % 2][31 - lane];
      __syncwarp();  // the warp has read
      if (lane == 0) arrive(empty + 8 * (r % 2));
    }
    out[lane] = sum;
  }
}""",
    launch_arrivals,
    (
        Fault("copies before the slot is free", "shared-race", "      __syncwarp();  // the slot is free\n"),
        Fault("one lane's copies stand for all", "shared-race", "copies_arrive(full + 8 * (r % 2));",
              "if (lane == 0) {\n        copies_arrive(full + 8 * (r % 2));\n        arrive_many(full + 8 * (r % 2), 31);\n      }"),
        Fault("arrives before it copies", "shared-race", "copy4(smem(&s[r % 2][lane]), x + 32 * r + lane);\n      copies_arrive(full + 8 * (r % 2));",
              "copies_arrive(full + 8 * (r % 2));\n      copy4(smem(&s[r % 2][lane]), x + 32 * r + lane);"),
        Fault("arrives without its copies", "shared-race", "copies_arrive(full + 8 * (r % 2));", "arrive(full + 8 * (r % 2));"),
        Fault("a lane releases what others of its warp still read", "shared-race", "      __syncwarp();  // the warp has read\n"),
    ),
)  # fmt: skip


# ---- a flag between CTAs: the fences are each lane's own ---------------------------------------------------------------
def launch_flag() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out, flag = ramp(32), aligned(np.zeros(32, np.float32)), aligned(np.zeros(1, np.uint32))
    args = [out, aligned(np.zeros(32, np.float32)), flag, x]
    return {"block": 32, "grid": 2, "args": args}, out, x[::-1]


FLAG = Program(
    "flag of one lane",
    r"""
extern "C" __global__ void k(float* out, float* between, volatile u32* flag, const float* x) {
  u32 lane = threadIdx.x;
  if (blockIdx.x == 0) {
    between[lane] = x[lane];
    __syncwarp();  // all have written
    __threadfence();  // release
    if (lane == 0) *flag = 1;
  } else {
    if (lane == 0) while (*flag == 0) {}
    __threadfence();  // acquire
    __syncwarp();  // the first lane has read the flag
    out[lane] = between[31 - lane];
  }
}""",
    launch_flag,
    (
        Fault("the other lanes' writes are not behind the flag", "global-race", "    __syncwarp();  // all have written\n"),
        Fault("the lanes meet after the fence", "global-race", "    __syncwarp();  // all have written\n    __threadfence();  // release\n", "    __threadfence();\n    __syncwarp();\n"),
        Fault("another lane fences before the flag", "global-race", "__threadfence();  // release", "if (lane == 1) __threadfence();"),
        Fault("half of the warp meets before the flag", "global-race", "__syncwarp();  // all have written", "if (lane < 16) __syncwarp(0xffff);"),
        Fault("the other lanes do not wait for the flag", "global-race", "    __syncwarp();  // the first lane has read the flag\n"),
        Fault("the lanes meet before the flag is acquired", "global-race", "    __threadfence();  // acquire\n    __syncwarp();", "    __syncwarp();\n    __threadfence();"),
        Fault("the lane that read the flag does not fence", "global-race", "__threadfence();  // acquire", "if (lane) __threadfence();"),
    ),
)  # fmt: skip


# ---- a cluster barrier orders what came before the arrival, of lanes of one warp too -------------------------------------
def launch_met() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(64), aligned(np.zeros(64, np.float32))
    rows = x.reshape(2, 32)
    return {"block": 32, "grid": 2, "cluster": 2, "args": [out, x]}, out, (rows[:, ::-1] + rows[::-1, ::-1]).ravel()


MET = Program(
    "warps at a cluster barrier",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32];
  u32 lane = threadIdx.x, rank = cluster_rank(), other;
  s[lane] = x[32 * rank + lane];
  cluster_arrive();  // written
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(smem(s + 31 - lane)), "r"(rank ^ 1));
  cluster_wait();
  float v, own = s[31 - lane];
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(other) : "memory");
  out[32 * rank + lane] = own + v;
  cluster_arrive();  // read
  cluster_wait();  // read
}""",
    launch_met,
    (
        Fault("a relaxed arrival shows no writes", "shared-race", "cluster_arrive();  // written", "cluster_arrive_relaxed();"),
        Fault("written after the arrival", "shared-race", "  s[lane] = x[32 * rank + lane];\n  cluster_arrive();  // written\n", "  cluster_arrive();\n  s[lane] = x[32 * rank + lane];\n"),
        Fault("read before the wait", "shared-race", "  cluster_wait();\n  float v, own = s[31 - lane];", "  float v, own = s[31 - lane];\n  cluster_wait();"),
        Fault("a CTA ends while the other reads", "async-in-flight", "  cluster_arrive();  // read\n  cluster_wait();  // read\n"),
    ),
)  # fmt: skip

PROGRAMS = (WARP_COPIES, UNEVEN, HALVES, GROUPS, SIGNAL, ARRIVALS, FLAG, MET)
