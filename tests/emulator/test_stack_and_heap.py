"""alloca, stacksave and stackrestore; device-side malloc and free; 128-bit loads, stores, moves and atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator
from tkpy.emulator import Module

KERNEL = (
    HEADER
    + """.visible .entry k(.param .u64 p) {
.reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .b128 %q<4>; .reg .pred %p<4>; .local .align 8 .b8 frame[24];
ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x;
"""
)


def kernel(body: str) -> Module:
    module = tkpy.emulator.load(KERNEL + body + "\nret; }")
    assert not module.unmodelled, module.unmodelled
    return module


def test_alloca_gives_every_lane_its_own_aligned_memory() -> None:
    module = kernel("""
        mul.lo.u32 %r2, %r1, 12; add.u32 %r2, %r2, 4; cvt.u64.u32 %rd2, %r2;
        st.local.u64 [frame+16], %rd1;
        alloca.u64 %rd3, %rd2, 64; alloca.u64 %rd4, %rd2;
        st.local.u32 [%rd3], %r1; add.u32 %r3, %r1, 1000; st.local.u32 [%rd4], %r3;
        cvta.local.u64 %rd8, %rd3; ld.u32 %r4, [%rd8]; ld.local.u32 %r5, [%rd4]; ld.local.u64 %rd9, [frame+16];
        mul.wide.u32 %rd5, %r1, 16; add.u64 %rd6, %rd9, %rd5; and.b64 %rd7, %rd3, 63; cvt.u32.u64 %r6, %rd7;
        sub.u64 %rd7, %rd4, %rd3; cvt.u32.u64 %r7, %rd7; st.global.v4.u32 [%rd6], {%r4, %r5, %r6, %r7};""")
    out = np.zeros((32, 4), np.uint32)
    module.launch("k", block=32, args=[out]).raise_on_findings()
    lane = np.arange(32)
    assert out[:, 0].tolist() == lane.tolist()
    assert out[:, 1].tolist() == (lane + 1000).tolist()
    assert not out[:, 2].any()  # aligned to 64
    assert out[:, 3].tolist() == ((12 * lane + 4 + 7) // 8 * 8).tolist()  # the second follows, on a multiple of 8


def test_stackrestore_gives_back_what_alloca_took() -> None:
    module = kernel("""
        stacksave.u64 %rd2; alloca.u64 %rd3, 256; stackrestore.u64 %rd2; alloca.u64 %rd4, 256;
        sub.u64 %rd5, %rd4, %rd3; st.global.u64 [%rd1], %rd5;""")
    out = np.ones(1, np.uint64)
    module.launch("k", block=32, args=[out]).raise_on_findings()
    assert out[0] == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("alloca.u64 %rd2, 8; add.u64 %rd2, %rd2, 8; st.local.u32 [%rd2], %r1;", "out-of-bounds"),
        ("stacksave.u64 %rd3; alloca.u64 %rd2, 8; stackrestore.u64 %rd3; st.local.u32 [%rd2], %r1;", "out-of-bounds"),
        ("mov.u64 %rd2, 12345678; alloca.u64 %rd3, %rd2;", "stack-overflow"),
        ("mov.u64 %rd2, -1; alloca.u64 %rd3, %rd2;", "stack-overflow"),
        ("mov.u64 %rd2, 123456; stackrestore.u64 %rd2;", "stack-overflow"),
    ],
)
def test_misuse_of_the_stack_is_found(body: str, code: str) -> None:
    try:
        found = kernel(body).launch("k", block=32, args=[np.zeros(4)]).findings
    except tkpy.emulator.KernelError as error:
        found = error.findings
    assert code in {f.code for f in found}


CALLS = """
struct Node { Node* next; int value; };
extern "C" __device__ int walk(Node* n) { int s = 0; for (; n; n = n->next) s = s * 3 + n->value; return s; }
extern "C" __global__ void lists(int* out) {
  Node* head = nullptr;
  for (int i = 0; i < 5; ++i) { Node* n = static_cast<Node*>(malloc(sizeof(Node))); n->next = head; n->value = i + threadIdx.x; head = n; }
  out[blockIdx.x * blockDim.x + threadIdx.x] = walk(head);
  while (head) { Node* n = head->next; free(head); head = n; }
}
extern "C" __global__ void keep(int** slot) { if (threadIdx.x == 0) { *slot = new int[7]; (*slot)[6] = 41; } }
extern "C" __global__ void use(int** slot, int* out) { out[0] = (*slot)[6] + 1; delete[] *slot; }
extern "C" __global__ void overrun(int* out) { int* p = static_cast<int*>(malloc(16)); out[0] = p[4 + out[1]]; free(p); }
extern "C" __global__ void stale(int* out) { int* p = static_cast<int*>(malloc(16)); p[0] = 1; free(p); __threadfence(); out[0] = *(volatile int*)p; }
extern "C" __global__ void twice(int* out) { int* p = static_cast<int*>(malloc(16)); out[0] = 1; free(p); free(p); }
extern "C" __global__ void exhaust(int* out) { out[0] = malloc(1 << 30) == nullptr; free(nullptr); }
"""


def test_lists_built_by_malloc(compile_cuda: Callable[..., Module]) -> None:
    module = compile_cuda(CALLS)
    out = np.zeros(96, np.int32)
    module.launch("lists", grid=3, block=32, args=[out]).raise_on_findings()
    want = []
    for thread in range(32):
        total = 0
        for i in reversed(range(5)):
            total = total * 3 + i + thread
        want.append(total)
    assert out.tolist() == want * 3


def test_the_heap_outlives_a_launch(compile_cuda: Callable[..., Module]) -> None:
    module = compile_cuda(CALLS)
    slot, out = np.zeros(1, np.uint64), np.zeros(1, np.int32)
    module.launch("keep", block=32, args=[slot]).raise_on_findings()
    module.launch("use", block=1, args=[slot, out]).raise_on_findings()
    assert out[0] == 42
    again = module.launch("use", block=1, args=[slot, out])
    assert {f.code for f in again.findings} == {"out-of-bounds"}  # it was freed


@pytest.mark.parametrize("name", ["overrun", "stale", "twice"])
def test_misuse_of_the_heap_is_found(compile_cuda: Callable[..., Module], name: str) -> None:
    run = compile_cuda(CALLS).launch(name, block=1, args=[np.zeros(2, np.int32)])
    assert {f.code for f in run.findings} == {"out-of-bounds"}


def test_no_memory_gives_null(compile_cuda: Callable[..., Module]) -> None:
    out = np.zeros(2, np.int32)
    compile_cuda(CALLS).launch("exhaust", block=1, args=[out]).raise_on_findings()
    assert out[0] == 1


def test_128_bit_registers_move_and_swap() -> None:
    """Lane 0's element is exchanged by everyone in turn; loads, stores and moves are of all 16 bytes."""
    module = kernel("""
        mul.wide.u32 %rd2, %r1, 16; add.u64 %rd3, %rd1, %rd2; ld.global.b128 %q1, [%rd3]; mov.b128 %q2, %q1;
        bar.warp.sync -1;
        atom.global.exch.b128 %q3, [%rd1+512], %q2; st.global.b128 [%rd3], %q3;""")
    rng = np.random.default_rng(1)
    data = rng.integers(0, 1 << 63, (33, 2), dtype=np.uint64)
    before = data.copy()
    module.launch("k", block=32, args=[data]).raise_on_findings()
    # In lane order: each lane gets what the one before it put in.
    np.testing.assert_array_equal(data[0], before[32])
    np.testing.assert_array_equal(data[1:32], before[:31])
    np.testing.assert_array_equal(data[32], before[31])


@pytest.mark.parametrize("space", ["global", "shared"])
def test_128_bit_compare_and_swap_needs_all_bits(space: str) -> None:
    module = kernel(f"""
        .shared .align 16 .b8 s[16];
        ld.global.v2.u64 {{%rd2, %rd3}}, [%rd1]; mov.b128 %q1, {{%rd2, %rd3}};
        mov.u64 %rd9, s;
        {"mov.u64 %rd9, %rd1;" if space == "global" else "st.shared.b128 [s], %q1;"}
        xor.b64 %rd4, %rd3, 1; mov.b128 %q2, {{%rd2, %rd4}};
        mov.u64 %rd5, 7; mov.u64 %rd6, 9; mov.b128 %q3, {{%rd5, %rd6}};
        atom.{space}.cas.b128 %q0, [%rd9], %q2, %q3; st.global.b128 [%rd1+16], %q0;
        atom.{space}.acq_rel.gpu.cas.b128 %q0, [%rd9], %q1, %q3;
        ld.{space}.b128 %q0, [%rd9]; st.global.b128 [%rd1+32], %q0;""")
    data = np.array([[3, 4], [0, 0], [0, 0]], np.uint64)
    module.launch("k", block=1, args=[data]).raise_on_findings()
    assert data[1].tolist() == [3, 4]
    assert data[2].tolist() == [7, 9]


def test_128_bit_accesses_are_aligned_to_16() -> None:
    run = kernel("add.u64 %rd1, %rd1, 8; ld.global.b128 %q1, [%rd1]; st.global.b128 [%rd1], %q1;").launch(
        "k", block=1, args=[np.zeros(6, np.uint64)]
    )
    assert {f.code for f in run.findings} == {"misaligned"}


@pytest.mark.parametrize("address", ["[p+8]", "[%d1+8]"])
def test_parameters_are_no_global_traffic(address: str) -> None:
    """Whether a parameter is read by its name or through a register, no bytes come from global memory."""
    body = f"mov.b64 %d1, p; ld.param.u32 %r1, {address}; ld.param.u64 %d2, [out]; st.global.u32 [%d2], %r1; ret;"
    module = tkpy.emulator.load(
        f"{HEADER}.visible .entry k(.param .align 8 .b8 p[16], .param .u64 out) {{\n"
        f".reg .b32 %r<4>; .reg .b64 %d<4>;\n{body} }}"
    )
    out = np.zeros(1, np.uint32)
    run = module.launch("k", args=[np.arange(4, dtype=np.uint32).tobytes(), out])
    run.raise_on_findings()
    assert out[0] == 2
    total = run.counters.total
    assert (total.global_requests, total.global_sectors, total.global_bytes) == (1, 1, 4)
