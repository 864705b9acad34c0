"""CTAs of one cluster: multicast, remote arrivals, cluster barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned, ramp


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
  cluster_arrive_relaxed();  // start
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
        Fault("releases only the neighbour", "shared-race", "arrive_remote(empty, threadIdx.x % 32)", "arrive_remote(empty, rank ^ 1)"),
        Fault("one CTA skips the cluster barrier", "deadlock", "  cluster_arrive_relaxed();  // start\n  cluster_wait();\n  float", "  if (rank) { cluster_arrive_relaxed();\n  cluster_wait(); }\n  float"),
        Fault("cluster wait without arrive", "barrier-count", "  cluster_arrive();  // end"),
        Fault("cluster arrive twice", "barrier-count", "  cluster_wait();  // end", "  cluster_arrive();\n  cluster_wait();"),
        Fault("cluster arrive twice at the start", "barrier-count", "  cluster_arrive_relaxed();  // start\n  cluster_wait();\n  float", "  cluster_arrive_relaxed();\n  cluster_arrive_relaxed();\n  cluster_wait();\n  float"),
        Fault("multicast to rank 2", "out-of-bounds", "full, 3);", "full, 7);"),
        Fault("arrives at rank 2", "out-of-bounds", "threadIdx.x % 32 < 2) arrive", "threadIdx.x % 32 < 3) arrive"),
        Fault("launched without its cluster", "out-of-bounds", options={"ctas": 1}),
        Fault("arrives at the neighbour's tile", "mbarrier-misuse", "arrive_remote(empty,", "arrive_remote(smem(s),"),
        Fault("slot refilled before it is read", "shared-race", "wait(empty, r % 2 ^ 1);"),
        Fault("a lane releases before the others have read", "shared-race", "    __syncwarp();  // the warp has read\n"),
        Fault("a CTA leaves while its neighbour still arrives", "async-in-flight", "  cluster_arrive();  // end\n  cluster_wait();  // end\n"),
        Fault("no fence after init", "shared-race", '    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");\n'),
    ),
)  # fmt: skip

PROGRAMS = (CLUSTER,)
