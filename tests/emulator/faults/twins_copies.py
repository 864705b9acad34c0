"""Asynchronous copies: cp.async, bulk copies through mbarriers, bulk stores, tensor maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import RESULT, Fault, Program, aligned, ramp

from tkpy.emulator import TensorMap


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
        Fault("refilled before it was read", "shared-race", "if (threadIdx.x == 0) was_read();"),
        Fault("not committed before the wait", "shared-race", "256);\n      commit();", "256);"),
        Fault("stored before the other warp has filled it", "shared-race", "__syncthreads();  // is filled"),
        Fault("stores are not waited for", "async-in-flight", "if (threadIdx.x == 0) stored();"),
        Fault("another thread waits", "async-in-flight", "if (threadIdx.x == 0) stored();", "if (threadIdx.x == 1) stored();"),
        Fault("stores one row too many", "out-of-bounds", "r < 4;", "r < 5;"),
        Fault("stores 8 bytes too many", "misaligned", "smem(s), 256)", "smem(s), 248)"),
        Fault("target between 16 bytes", "misaligned", "bulk_store(out + 64 * r,", "bulk_store(out + 60 * r + 2,"),
        Fault("source reaches outside", "out-of-bounds", "bulk_store(out + 64 * r, smem(s)", "bulk_store(out, smem(s) + 16"),
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
        Fault("no proxy fence before the store", "proxy-fence", "  fence_async();\n"),
    ),
)  # fmt: skip

PROGRAMS = (CP_ASYNC, RING, STORE, TILE)
