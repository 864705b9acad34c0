"""Correct programs, and the faults seeded into them. A fault changes exactly one place of the text, or one argument.

All variants of a program are compiled together, as kernels of one file: the correct one is `k0`, fault i is `k<i>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tkpy.emulator import TensorMap

PRELUDE = (Path(__file__).parent / "prelude.cuh").read_text()
HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"
RESULT = "result"  # no finding: the emulator shows this fault by a wrong result


@dataclass(frozen=True)
class Fault:
    name: str
    code: str
    before: str = ""
    after: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # to the program's `launch`


@dataclass(frozen=True)
class Program:
    name: str
    source: str  # one kernel, named `k`
    launch: Callable[..., tuple[dict[str, Any], np.ndarray, np.ndarray]]  # -> launch arguments, output, expected output
    faults: tuple[Fault, ...]
    unseen: tuple[Fault, ...] = ()  # faults that the emulator does not show in any way yet
    is_ptx: bool = False

    @property
    def variants(self) -> tuple[Fault, ...]:
        return self.faults + self.unseen

    def text(self) -> str:
        """Every variant, each in a namespace of its own."""
        parts = [HEADER if self.is_ptx else PRELUDE]
        for i in range(len(self.variants) + 1):
            body = self.source
            if i and self.variants[i - 1].before:
                fault = self.variants[i - 1]
                assert body.count(fault.before) == 1, f"{fault.name}: must change exactly one place"
                body = body.replace(fault.before, fault.after)
            assert body.count(" k(") == 1
            body = body.replace(" k(", f" k{i}(")
            parts.append(body if self.is_ptx else f"namespace v{i} {{\n{body}\n}}")
        return "\n".join(parts)


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy that starts on a 1024-byte boundary; cudaMalloc's memory starts on one of 256."""
    room = np.empty(a.nbytes + 1024, np.uint8)
    start = -room.ctypes.data % 1024
    out = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def ramp(n: int) -> np.ndarray:
    return aligned((np.arange(n) * 7 % 61).astype(np.float32))


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


# ---- cp.async, double buffered -----------------------------------------------------------------------------------------
def launch_cp_async() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(256), aligned(np.zeros(64, np.float32))
    return {"block": 64, "args": [out, x]}, out, x.reshape(4, 64)[:, ::-1].sum(0)


CP_ASYNC = Program(
    "cp.async",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(16) float s[2][64];
  u32 base = smem(s) + threadIdx.x * 4;
  float sum = 0;
  copy4(base, x + threadIdx.x);
  copy_commit();
  for (int r = 0; r < 4; ++r) {
    if (r < 3) copy4(base + (r + 1) % 2 * 256, x + (r + 1) * 64 + threadIdx.x);
    copy_commit();
    copy_wait<1>();
    __syncthreads();  // filled
    sum += s[r % 2][63 - threadIdx.x];
    __syncthreads();  // read
  }
  out[threadIdx.x] = sum;
}""",
    launch_cp_async,
    (
        Fault("no wait", "uninitialised-read", "copy_wait<1>();"),
        Fault("waits for one group too few", "uninitialised-read", "copy_wait<1>();", "copy_wait<2>();"),
        Fault("groups are not committed", "uninitialised-read", "    copy_commit();\n    copy_wait"  , "    copy_wait"),
        Fault("no barrier after the wait", "shared-race", "__syncthreads();  // filled"),
        Fault("slot refilled before it is read", "shared-race", "__syncthreads();  // read"),
        Fault("slots overlap", "shared-race", "(r + 1) % 2 * 256", "(r + 1) % 2 * 128"),
        Fault("copies one round too many", "out-of-bounds", "if (r < 3)", "if (r < 4)"),
        Fault("slot outside shared memory", "out-of-bounds", "(r + 1) % 2 * 256", "(r + 1) * 256"),
        Fault("misaligned source", "misaligned", "x + (r + 1) * 64 + threadIdx.x", "(const char*)(x + threadIdx.x) + 2"),
        Fault("misaligned target", "misaligned", "smem(s) + threadIdx.x * 4", "smem(s) + threadIdx.x * 3"),
        Fault("a copy is still on its way at exit", "async-in-flight", "  out[threadIdx.x] = sum;", "  copy4(base, x);\n  out[threadIdx.x] = sum;"),
    ),
)  # fmt: skip


# ---- bulk loads through a ring of two slots: a producer warp, a consumer warp ------------------------------------------
def launch_ring(rows: int = 6) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(32 * rows), aligned(np.zeros(32, np.float32))
    return {"block": 64, "args": [out, x]}, out, np.resize(x, (6, 32))[:, ::-1].sum(0)


RING = Program(
    "ring",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(128) float s[2][32];
  __shared__ u64 bars[4];
  u32 slot = smem(s), full = smem(bars), empty = full + 16;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) init(full + 8 * i, 1);
    for (int i = 0; i < 2; ++i) init(empty + 8 * i, 32);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int r = 0; r < 6; ++r) {
      u32 at = r % 2, parity = r / 2 % 2;
      wait(empty + 8 * at, parity ^ 1);
      expect(full + 8 * at, 128);
      bulk_load(slot + 128 * at, x + 32 * r, 128, full + 8 * at);
    }
  } else if (threadIdx.x >= 32) {
    float sum = 0;
    for (int r = 0; r < 6; ++r) {
      u32 at = r % 2, parity = r / 2 % 2;
      wait(full + 8 * at, parity);
      sum += s[at][63 - threadIdx.x];
      arrive(empty + 8 * at);
    }
    out[threadIdx.x - 32] = sum;
  }
}""",
    launch_ring,
    (
        Fault("half the bytes expected", "deadlock", "expect(full + 8 * at, 128);", "expect(full + 8 * at, 64);"),
        Fault("twice the bytes expected", "deadlock", "expect(full + 8 * at, 128);", "expect(full + 8 * at, 256);"),
        Fault("arrives without expecting", "deadlock", "expect(full + 8 * at, 128);", "arrive(full + 8 * at);"),
        Fault("producer never arrives", "deadlock", "expect(full + 8 * at, 128);"),
        Fault("consumer never releases", "deadlock", "arrive(empty + 8 * at);"),
        Fault("producer waits for the wrong phase", "deadlock", "parity ^ 1);", "parity);"),
        Fault("consumer does not wait", "uninitialised-read", "wait(full + 8 * at, parity);"),
        Fault("consumer waits for the wrong phase", "uninitialised-read", "wait(full + 8 * at, parity);", "wait(full + 8 * at, parity ^ 1);"),
        Fault("copies half the bytes", "deadlock", "x + 32 * r, 128, full", "x + 32 * r, 64, full"),
        Fault("completes on the wrong barrier", "deadlock", "128, full + 8 * at);", "128, full);"),
        Fault("release counts too many", "deadlock", "init(empty + 8 * i, 32);", "init(empty + 8 * i, 33);"),
        Fault("every lane releases for three", "mbarrier-misuse", "arrive(empty + 8 * at);", "arrive_many(empty + 8 * at, 3);"),
        Fault("every lane releases for two", "deadlock", "arrive(empty + 8 * at);", "arrive_many(empty + 8 * at, 2);"),
        Fault("initialised twice", "mbarrier-misuse", "  __syncthreads();", "  if (threadIdx.x == 0) init(full, 1);\n  __syncthreads();"),
        Fault("one barrier is never initialised", "mbarrier-misuse", "i < 2; ++i) init(full", "i < 1; ++i) init(full"),
        Fault("wait on what is no barrier", "mbarrier-misuse", "wait(full + 8 * at, parity);", "wait(slot, parity);"),
        Fault("parity 2", "mbarrier-misuse", "wait(full + 8 * at, parity);", "wait(full + 8 * at, parity + 2);"),
        Fault("barrier between two words", "misaligned", "wait(full + 8 * at, parity);", "wait(full + 8 * at + 4, parity);"),
        Fault("no barrier after init", "shared-race", "  __syncthreads();"),
        Fault("copy of 120 bytes", "misaligned", "x + 32 * r, 128, full", "x + 32 * r, 120, full"),
        Fault("copy to an odd word", "misaligned", "bulk_load(slot + 128 * at,", "bulk_load(slot + 128 * at + 4,"),
        Fault("input one row short", "out-of-bounds", options={"rows": 5}),
        Fault("copy outside shared memory", "out-of-bounds", "bulk_load(slot + 128 * at,", "bulk_load(slot + 4096 * (at + 1),"),
        Fault("the last copies are not waited for", "async-in-flight", "float sum = 0;\n    for (int r = 0; r < 6;", "float sum = 0;\n    for (int r = 0; r < 4;"),
    ),
)  # fmt: skip


# ---- bulk stores: a tile is filled, stored, filled again ---------------------------------------------------------------
def launch_store() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(64), aligned(np.zeros(256, np.float32))
    return {"block": 64, "args": [out, x]}, out, np.concatenate([x + r for r in range(4)])


STORE = Program(
    "bulk store",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(128) float s[64];
  for (int r = 0; r < 4; ++r) {
    if (threadIdx.x == 0) was_read();
    __syncthreads();  // may be filled
    s[threadIdx.x] = x[threadIdx.x] + r;
    fence_async();
    __syncthreads();  // is filled
    if (threadIdx.x == 0) {
      bulk_store(out + 64 * r, smem(s), 256);
      commit();
    }
  }
  if (threadIdx.x == 0) stored();
}""",
    launch_store,
    (
        Fault("refilled before it was read", RESULT, "if (threadIdx.x == 0) was_read();"),
        Fault("not committed before the wait", RESULT, "256);\n      commit();", "256);"),
        Fault("stored before the other warp has filled it", RESULT, "__syncthreads();  // is filled"),
        Fault("stores are not waited for", "async-in-flight", "if (threadIdx.x == 0) stored();"),
        Fault("another thread waits", "async-in-flight", "if (threadIdx.x == 0) stored();", "if (threadIdx.x == 1) stored();"),
        Fault("stores one row too many", "out-of-bounds", "r < 4;", "r < 5;"),
        Fault("stores 8 bytes too many", "misaligned", "smem(s), 256)", "smem(s), 248)"),
        Fault("target between 16 bytes", "misaligned", "bulk_store(out + 64 * r,", "bulk_store(out + 60 * r + 2,"),
        Fault("source reaches outside", "out-of-bounds", "bulk_store(out + 64 * r, smem(s)", "bulk_store(out, smem(s) + 16"),
    ),
    unseen=(
        Fault("no proxy fence before the store", "proxy-fence", "  fence_async();\n"),
    ),
)  # fmt: skip


# ---- tiles by tensor maps: load, double, store -------------------------------------------------------------------------
def launch_tile(
    swizzle: int = 128, load_bytes: bytes | None = None, rank: int = 2, integers: bool = False
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(16 * 32).reshape(16, 32), aligned(np.zeros((16, 32), np.float32))
    source = x if rank == 2 else x.reshape(16, 2, 16)
    load: Any = TensorMap(source, (8, 32) if rank == 2 else (8, 2, 16), swizzle=swizzle)
    if load_bytes is not None:
        load = load_bytes
    store = TensorMap(out, (8, 32), swizzle=128)
    return {"block": 32, "grid": 2, "args": [load, store], "buffers": [x, out]}, out, 2 * x


TILE = Program(
    "tensor map",
    r"""
extern "C" __global__ void k(const __grid_constant__ Map x, const __grid_constant__ Map y) {
  __shared__ __align__(1024) float s[8][32];
  __shared__ float spare[256];
  __shared__ u64 bar;
  if (threadIdx.x == 0) {
    init(smem(&bar), 1);
    expect(smem(&bar), 1024);
    tile_load(smem(s), &x, 0, 8 * blockIdx.x, smem(&bar));
  }
  __syncwarp();
  wait(smem(&bar), 0);
  for (int i = 0; i < 8; ++i) s[i][threadIdx.x] *= 2;
  fence_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    tile_store(&y, smem(s), 0, 8 * blockIdx.x);
    commit();
    stored();
  }
  if (spare == nullptr) spare[0] = 1;
}""",
    launch_tile,
    (
        Fault("loaded under another swizzle", RESULT, options={"swizzle": 0}),
        Fault("box of the wrong row", RESULT, "&x, 0, 8 * blockIdx.x,", "&x, 0, 8 * blockIdx.x + 1,"),
        Fault("map of zeros", "tensor-map", options={"load_bytes": bytes(128)}),
        Fault("garbage for a map", "tensor-map", options={"load_bytes": bytes(range(128))}),
        Fault("map of three dimensions", "tensor-map", options={"rank": 3, "swizzle": 0}),
        Fault("tile between two swizzle periods", "tensor-map", "tile_load(smem(s),", "tile_load(smem(s) + 64,"),
        Fault("store from between two swizzle periods", "tensor-map", "tile_store(&y, smem(s),", "tile_store(&y, smem(s) + 16,"),
        Fault("map at an odd address", "misaligned", "tile_load(smem(s), &x,", "tile_load(smem(s), (const Map*)((const char*)&x + 32),"),
        Fault("bytes of half the box", "mbarrier-misuse", "expect(smem(&bar), 1024);", "expect(smem(&bar), 1 << 21);"),
        Fault("box is smaller than expected", "deadlock", "expect(smem(&bar), 1024);", "expect(smem(&bar), 2048);"),
        Fault("does not wait for the tile", "uninitialised-read", "wait(smem(&bar), 0);"),
        Fault("waits for the phase before", "uninitialised-read", "wait(smem(&bar), 0);", "wait(smem(&bar), 1);"),
        Fault("tile is never used", "async-in-flight", "wait(smem(&bar), 0);\n  for (int i = 0; i < 8; ++i) s[i][threadIdx.x] *= 2;", "return;"),
        Fault("tile hangs over the end of shared memory", "out-of-bounds", "tile_load(smem(s),", "tile_load(smem(s) + 4096,"),
        Fault("lanes store before the others have doubled", "shared-race", "for (int i = 0; i < 8; ++i) s[i][threadIdx.x] *= 2;",
              "for (int i = 0; i < 8; ++i) s[i][31 - threadIdx.x] = s[i][threadIdx.x] * 2;"),
    ),
    unseen=(
        Fault("no proxy fence before the store", "proxy-fence", "  fence_async();\n"),
    ),
)  # fmt: skip


# ---- clusters: each CTA fetches half of what both need -----------------------------------------------------------------
def launch_cluster(ctas: int = 2) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = ramp(3 * 64), aligned(np.zeros((2, 64), np.float32))
    return {"block": 64, "grid": ctas, "cluster": ctas, "args": [out, x]}, out, np.tile(x.reshape(3, 64).sum(0), (2, 1))


CLUSTER = Program(
    "cluster",
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ __align__(128) float s[64];
  __shared__ u64 bars[2];
  u32 full = smem(bars), empty = full + 8, rank = cluster_rank();
  if (threadIdx.x == 0) {
    init(full, 1);
    init(empty, 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_arrive();
  cluster_wait();
  float sum = 0;
  for (int r = 0; r < 3; ++r) {
    if (threadIdx.x == 0) {
      wait(empty, r % 2 ^ 1);
      expect(full, 256);
      bulk_multicast(smem(s) + 128 * rank, x + 64 * r + 32 * rank, 128, full, 3);
    }
    __syncwarp();
    wait(full, r % 2);
    sum += s[threadIdx.x];
    __syncwarp();  // the warp has read
    if (threadIdx.x % 32 < 2) arrive_remote(empty, threadIdx.x % 32);
  }
  out[64 * rank + threadIdx.x] = sum;
  cluster_arrive();  // end
  cluster_wait();  // end
}""",
    launch_cluster,
    (
        Fault("multicast to itself only", "deadlock", "full, 3);", "full, 1 << rank);"),
        Fault("expects its own half only", "deadlock", "expect(full, 256);", "expect(full, 128);"),
        Fault("releases only its own slot", "deadlock", "threadIdx.x % 32 < 2) arrive", "threadIdx.x % 32 == rank) arrive"),
        Fault("releases only the neighbour", RESULT, "arrive_remote(empty, threadIdx.x % 32)", "arrive_remote(empty, rank ^ 1)"),
        Fault("one CTA skips the cluster barrier", "deadlock", "  cluster_arrive();\n  cluster_wait();\n  float", "  if (rank) { cluster_arrive();\n  cluster_wait(); }\n  float"),
        Fault("cluster wait without arrive", "barrier-count", "  cluster_arrive();  // end"),
        Fault("cluster arrive twice", "barrier-count", "  cluster_wait();  // end", "  cluster_arrive();\n  cluster_wait();"),
        Fault("cluster arrive twice at the start", "barrier-count", "  cluster_arrive();\n  cluster_wait();\n  float", "  cluster_arrive();\n  cluster_arrive();\n  cluster_wait();\n  float"),
        Fault("multicast to rank 2", "out-of-bounds", "full, 3);", "full, 7);"),
        Fault("arrives at rank 2", "out-of-bounds", "threadIdx.x % 32 < 2) arrive", "threadIdx.x % 32 < 3) arrive"),
        Fault("launched without its cluster", "out-of-bounds", options={"ctas": 1}),
        Fault("arrives at the neighbour's tile", "mbarrier-misuse", "arrive_remote(empty,", "arrive_remote(smem(s),"),
        Fault("slot refilled before it is read", RESULT, "wait(empty, r % 2 ^ 1);"),
    ),
    unseen=(
        Fault("a lane releases before the others have read", "shared-race", "    __syncwarp();  // the warp has read\n"),
        Fault("a CTA leaves while its neighbour still arrives", "out-of-bounds", "  cluster_arrive();  // end\n  cluster_wait();  // end\n"),
        Fault("no fence after init", "shared-race", '    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");\n'),
    ),
)  # fmt: skip


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
        Fault("accumulators read early", RESULT, "    wgmma_wait(d);\n"),
        Fault("group never committed", RESULT, "    wgmma_commit();\n"),
        Fault("wrong swizzle in the map", RESULT, options={"swizzle": 0}),
        Fault("wrong swizzle in the descriptor", RESULT, "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) ^ 3ull << 62)"),
        Fault("wrong stride in the descriptor", RESULT, "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) - (32ull << 32))"),
        Fault("accumulates into what was there", RESULT, "r + j > 0);", "1);"),
        Fault("the two slots overlap", RESULT, "tile_load(smem(a[at]),", "tile_load(smem(a[0]) + 4096 * at,"),
        Fault("slot released before the products are done", RESULT, "    wgmma_wait(d);\n    if (lane == 0) arrive(empty + 8 * at);",
              "    if (lane == 0) arrive(empty + 8 * at);\n    wgmma_wait(d);"),
        Fault("accumulator touched in flight", RESULT, "    wgmma_commit();", "    d[0] += 1.f;\n    wgmma_commit();"),
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
        Fault("stride of zero", RESULT, "descriptor(smem(a[at]) + 32 * j)", "(descriptor(smem(a[at]) + 32 * j) & ~(0x3fffull << 32))"),
        Fault("reserved bits set", "wgmma-misuse", "descriptor(smem(b[at]) + 32 * j)", "(descriptor(smem(b[at]) + 32 * j) | 1ull << 46)"),
        Fault("tile starts one row late", RESULT, "descriptor(smem(a[at]) + 32 * j)", "descriptor(smem(a[at]) + 128 + 32 * j)"),
        Fault("operand outside shared memory", "out-of-bounds", "descriptor(smem(b[at]) + 32 * j)", "descriptor(65536 + 32 * j)"),
    ),
    unseen=(
        Fault("no wgmma.fence", "wgmma-misuse", "    wgmma_fence();\n"),
        Fault("a pool of registers that is never full", "deadlock", "  float d[4];", '  asm volatile("setmaxnreg.inc.sync.aligned.u32 256;");\n  float d[4];'),
    ),
)  # fmt: skip


# ---- one thread: calls, recursion, local memory, loops, assertions -----------------------------------------------------
def launch_scalar(first: int = 5) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out = aligned(np.array([first, 3, 1, 2], np.int32)), aligned(np.zeros(32, np.int32))
    want = np.array([15 + (3 * t if t % 2 else t + 3) + (t + 10) for t in range(32)], np.int32)
    return {"block": 32, "args": [out, x], "max_instructions": 200_000}, out, want


SCALAR = Program(
    "calls",
    r"""
__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int mul(int a, int b) { return a * b; }
__device__ __noinline__ int neg(int a) { return -a; }
typedef int (*Fn)(int, int);
__device__ Fn table[3] = {add, mul, nullptr};
__device__ __noinline__ int triangle(int n, volatile int* sink) {
  volatile int keep[4];
  keep[n & 3] = n;
  if (n <= 0) return 0;
  int below = triangle(n - 1, sink);
  return below + keep[n & 3];
}
extern "C" __global__ void k(int* out, const int* x) {
  int t = threadIdx.x, sum = 0;
  int top = triangle(x[0], out);
  assert(top == 15);
  volatile int local[8];
  for (int i = 0; i < 8; ++i) local[i] = t + i;
  for (int i = 0; i != x[0] * 2; i += 1) sum = i + 1;
  if (sum != 10) __trap();
  out[t] = top + table[t % 2](t, x[1]) + local[x[2]] + sum - 1;
}""",
    launch_scalar,
    (
        Fault("recursion without an end", "stack-overflow", "if (n <= 0)", "if (n == 12345678)"),
        Fault("recursion steps over its end", "stack-overflow", "if (n <= 0) return 0;\n  int below = triangle(n - 1", "if (n == 0) return 0;\n  int below = triangle(n - 2"),
        Fault("recursion with large frames", "stack-overflow", "volatile int keep[4];\n  keep[n & 3] = n;\n  if (n <= 0)", "volatile int keep[50000];\n  keep[n & 3] = n;\n  if (n <= -5)"),
        Fault("call of a null pointer", "bad-call", "table[t % 2]", "table[t % 3]"),
        Fault("call with other parameters", "bad-call", "{add, mul, nullptr}", "{add, (Fn)neg, nullptr}"),
        Fault("call of a number", "bad-call", "table[t % 2]", "((Fn)(u64)(0x1234500 + 16 * t))"),
        Fault("assertion of another value", "assertion", "assert(top == 15);", "assert(top == 14);"),
        Fault("assertion on the input", "assertion", "assert(top == 15);", "assert(x[1] > 3);"),
        Fault("assertion that fails in one lane", "assertion", "assert(top == 15);", "assert(t != 17);"),
        Fault("trap", "trap", "if (sum != 10)", "if (sum == 10)"),
        Fault("trap in one lane", "trap", "if (sum != 10)", "if (t == 31)"),
        Fault("trap on a bad switch value", "trap", "if (sum != 10) __trap();", "switch (x[3]) { case 0: sum += 1; break; case 1: sum += 2; break; default: __trap(); }"),
        Fault("loop until a flag that is never set", "budget", "i != x[0] * 2;", "((volatile int*)out)[0] != 1;"),
        Fault("loop that does not step", "budget", "i += 1) sum", "i += x[0] - 5) sum"),
        Fault("spin on what nobody writes", "budget", "if (sum != 10) __trap();", "while (((volatile int*)out)[t] != 77) {}"),
        Fault("reads a local it never wrote", "uninitialised-read", "i < 8; ++i) local[i]", "i < 1; ++i) local[i]"),
        Fault("reads past its stack frame", "out-of-bounds", "local[x[2]]", "local[x[2] + 100000]"),
    ),
)  # fmt: skip


# ---- PTX by hand: what no compiler writes ------------------------------------------------------------------------------
def launch_ptx(index: int = 2) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    out = aligned(np.zeros(32, np.int32))
    return {"block": 32, "args": [out, index]}, out, np.full(32, 10 * index, np.int32)


PTX = Program(
    "ptx",
    r"""
.visible .entry k(.param .u64 out, .param .u32 index) {
  .reg .pred %p; .reg .b32 %r<9>; .reg .b64 %a, %b;
  .shared .align 8 .b64 bar;
  ld.param.u64 %a, [out];
  ld.param.u32 %r1, [index];
  mov.u32 %r2, %tid.x;
  mad.wide.u32 %a, %r2, 4, %a;
  setp.lt.u32 %p, %r2, 4;
table: .branchtargets A, B, C;
  brx.idx %r1, table;
A:
  mov.u32 %r3, 0;
  bra.uni out_of_table;
B:
  mov.u32 %r3, 10;
  bra.uni out_of_table;
C:
  mov.u32 %r3, 20;
out_of_table:
  bar.warp.sync 0xffffffff;
  st.global.u32 [%a], %r3;
  ret;
}""",
    launch_ptx,
    (
        Fault("branch past its table", "invalid-instruction", options={"index": 3}),
        Fault("an instruction of sm_100", "unmodelled", "bar.warp.sync 0xffffffff;", "tcgen05.wait::ld.sync.aligned;"),
        Fault("an instruction of sm_100 that some lanes run", "unmodelled", "bar.warp.sync 0xffffffff;", "@%p tcgen05.fence::before_thread_sync;"),
        Fault("an instruction of sm_100 on one side of a branch", "unmodelled", "  mov.u32 %r3, 20;", "  tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"),
        Fault("warp barrier of half the warp", "invalid-instruction", "0xffffffff;", "0x0000ffff;"),
    ),
    is_ptx=True,
)  # fmt: skip

PROGRAMS = (SUM, NAMED, CP_ASYNC, RING, STORE, TILE, CLUSTER, WGMMA, SCALAR, PTX)
