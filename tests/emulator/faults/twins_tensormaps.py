"""Tensor maps that a kernel writes: copies read them through the tensormap proxy."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp

from tkpy.emulator import TensorMap


# ---- a map made in shared memory and copied to global memory, then changed in place --------------------------------------
def launch_maps() -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    x, out, room = ramp(192).reshape(24, 8), aligned(np.zeros((2, 64), np.float32)), aligned(np.zeros(256, np.uint8))
    first = TensorMap(x[:8], (8, 8))
    return {"block": 64, "args": [out, room, x, first]}, out, x[8:].reshape(2, 64)


MAPS = Program(
    "maps made by the kernel",
    r"""
DEVICE void replace(u32 map, const float* x) { asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(map), "l"(x) : "memory"); }
DEVICE void replace_far(char* map, const float* x) { asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(map), "l"(x) : "memory"); }
DEVICE void copy_map(char* to, u32 map) {
  asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(to), "r"(map) : "memory");
}
DEVICE void release_maps() { asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory"); }
DEVICE void acquire_map(const char* map) { asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory"); }
extern "C" __global__ void k(float* out, char* room, const float* x, const __grid_constant__ Map map) {
  __shared__ __align__(128) float s[64];
  __shared__ __align__(128) u32 m[32];
  __shared__ u64 bar;
  u32 i = threadIdx.x, lane = i % 32;
  if (i == 0) init(smem(&bar), 1);
  if (i < 32) {
    m[lane] = ((const u32*)&map)[lane];
    __syncwarp();
    if (lane == 0) replace(smem(m), x + 64);
    __syncwarp();
    copy_map(room, smem(m));  // and release
  }
  __syncthreads();  // made
  if (i == 32) {
    acquire_map(room);  // as made
    expect(smem(&bar), 256);
    tile_load(smem(s), (const Map*)room, 0, 0, smem(&bar));
    wait(smem(&bar), 0);
    for (int j = 0; j < 64; ++j) out[j] = s[j];
    replace_far(room, x + 128);
    release_maps();
  }
  __syncthreads();  // changed
  if (i == 0) {
    acquire_map(room);  // as changed
    expect(smem(&bar), 256);
    tile_load(smem(s), (const Map*)room, 0, 0, smem(&bar));
  }
  wait(smem(&bar), 1);
  out[64 + i] = s[i];
}""",
    launch_maps,
    (
        Fault("no acquire", "proxy-fence", "    acquire_map(room);  // as made\n"),
        Fault("another map is acquired", "proxy-fence", "acquire_map(room);  // as made", "acquire_map(room + 128);"),
        Fault("acquired before it is made", "proxy-fence", "  __syncthreads();  // made\n  if (i == 32) {\n    acquire_map(room);  // as made", "  if (i == 32) acquire_map(room);\n  __syncthreads();\n  if (i == 32) {"),
        Fault("copied with no release", "proxy-fence", "copy_map(room, smem(m));  // and release", "((u32*)room)[lane] = m[lane];"),
        Fault("acquired by a thread that nothing orders before the copy", "proxy-fence", "  if (i == 32) {\n    acquire_map(room);  // as made", "  if (i == 0) acquire_map(room);\n  if (i == 32) {"),
        Fault("changed, and not released", "proxy-fence", "    release_maps();\n"),
        Fault("changed after the release", "proxy-fence", "    replace_far(room, x + 128);\n    release_maps();", "    release_maps();\n    replace_far(room, x + 128);"),
        Fault("changed, and not acquired again", "proxy-fence", "    acquire_map(room);  // as changed\n"),
        Fault("released by a fence of another proxy", "proxy-fence", "release_maps();\n  }", "asm volatile(\"fence.proxy.async.global;\" ::: \"memory\");\n  }"),
    ),
)  # fmt: skip

PROGRAMS = (MAPS,)
