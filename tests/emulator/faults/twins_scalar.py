"""One thread at a time: calls, local memory, loops, assertions; and PTX that no compiler writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults.fault_table import Fault, Program, aligned


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

PROGRAMS = (SCALAR, PTX)
