"""Findings about order: the same whatever the number of host threads, with both sides and what would have ordered them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from faults.fault_table import PRELUDE, aligned
from faults.twins_clusters import CLUSTER
from faults.twins_copies import STORE
from faults.twins_global import APART
from faults.twins_proxies import HAND_OVER

from tkpy import emulator
from tkpy.emulator import Finding, Module

Compile = Callable[..., Module]


def findings(
    module: Module, program, fault_name: str, seed: int = 0, threads: int = 1, **options: int
) -> list[Finding]:
    variant = next(i for i, f in enumerate(program.faults) if f.name == fault_name) + 1
    launch = program.launch(**options)[0]
    return module.launch(f"k{variant}", seed=seed, threads=threads, **launch).findings


def described(found: list[Finding]) -> list[tuple[object, ...]]:
    other = [(f.other.cta, f.other.warp, f.other.lane, f.other.ptx_line) if f.other else None for f in found]
    return [
        (f.code, f.site.cta, f.site.warp, f.site.lane, f.site.ptx_line, o, f.times)
        for f, o in zip(found, other, strict=True)
    ]


@pytest.mark.parametrize("fault", ["reads what its neighbour writes", "pieces overlap by one", "bulk stores overlap"])
def test_findings_do_not_depend_on_threads(compile_cuda: Compile, fault: str) -> None:
    module = compile_cuda(APART.text())
    for seed in range(4):
        alone = described(findings(module, APART, fault, seed, threads=1, ctas=9))
        assert alone
        assert described(findings(module, APART, fault, seed, threads=4, ctas=9)) == alone


@pytest.mark.parametrize(
    "program, fault, code, sides, remedy",
    [
        (STORE, "refilled before it was read", "shared-race", {"cp.async.bulk", "st.shared"}, "wait_group.read"),
        (HAND_OVER, "no fence by the writers", "proxy-fence", {"cp.async.bulk", "st.shared"}, "fence.proxy.async"),
        (
            HAND_OVER,
            "one lane waits for its warp",
            "shared-race",
            {"cp.async.bulk"},
            "a wait for the phase",
        ),
        (APART, "reads what its neighbour writes", "global-race", {"ld.global", "st.global"}, "another kernel"),
    ],
)
def test_both_sides_and_the_remedy_are_named(compile_cuda: Compile, program, fault, code, sides, remedy) -> None:
    module = compile_cuda(program.text())
    for seed in range(8):  # by order, not by timing: every schedule shows it
        found = [f for f in findings(module, program, fault, seed) if f.code == code]
        assert found, f"seed {seed}"
        pairs = [(f, {t for t in sides if t in f.site.text or (f.other and t in f.other.text)}) for f in found]
        assert any(pair == sides and remedy in f.message for f, pair in pairs), [f.message for f in found]
        assert all(f.source and f.source[1] for f, _ in pairs)


def test_a_cta_that_ends_early_names_who_may_still_come(compile_cuda: Compile) -> None:
    module = compile_cuda(CLUSTER.text())
    for seed in range(8):
        found = findings(module, CLUSTER, "a CTA leaves while its neighbour still arrives", seed)
        assert {f.code for f in found} == {"async-in-flight"}
        assert any("barrier.cluster" in f.message and "mbarrier.arrive" in f.site.text for f in found)


@pytest.mark.parametrize(
    "meet",
    [
        "",
        "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;",
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
    ],
    ids=["nothing", "relaxed barrier", "barrier"],
)
def test_a_cta_is_written_to_once_it_has_begun(compile_cuda: Compile, meet: str) -> None:
    module = compile_cuda(
        f"""
extern "C" __global__ void __cluster_dims__(2, 1, 1) k(int* out) {{
  __shared__ int s[32];
  unsigned own = __cvta_generic_to_shared(s + threadIdx.x), other;
  asm volatile("{meet}" ::: "memory");
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(1 - blockIdx.x));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(other), "r"(threadIdx.x + 1) : "memory");
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
  out[32 * blockIdx.x + threadIdx.x] = s[threadIdx.x];
}}"""
    )
    for seed in range(4):  # by order: every schedule shows it
        out = np.zeros(64, np.int32)
        found = module.launch("k", grid=2, block=32, args=[out], seed=seed).findings
        assert {(f.code, "begun" in f.message) for f in found} == (set() if meet else {("async-in-flight", True)})
        assert np.array_equal(out, np.tile(np.arange(1, 33), 2))


def test_outputs_of_two_ctas_may_share_a_word(compile_cuda: Compile) -> None:
    module = compile_cuda(
        'extern "C" __global__ void k(unsigned char* out, unsigned short* pairs) {'
        "  unsigned i = blockIdx.x + gridDim.x * threadIdx.x; out[i] = i; pairs[i] = pairs[i] + i; }"
    )
    out, pairs = np.zeros(96, np.uint8), np.ones(96, np.uint16)
    module.launch("k", grid=3, block=32, args=[out, pairs], threads=2).raise_on_findings()
    assert np.array_equal(out, np.arange(96))
    assert np.array_equal(pairs, np.arange(96) + 1)


def test_bulk_reductions_of_many_ctas_lose_nothing(compile_cuda: Compile) -> None:
    """They are atomics of global memory: CTAs on several host threads may add to one place, in one order for each seed."""
    module = compile_cuda(
        PRELUDE
        + """
extern "C" __global__ void k(float* out) {
  __shared__ __align__(128) float s[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) s[i] = 1.f / (1 + i + blockIdx.x);
  fence_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 4096;" ::"l"(out), "r"(smem(s)) : "memory");
    commit();
    stored();
  }
}"""
    )
    sums = []
    for threads in (1, 4):
        out = aligned(np.zeros(1024, np.float32))
        module.launch("k", grid=128, block=32, args=[out], threads=threads).raise_on_findings()
        sums.append(out)
    assert np.array_equal(*sums)
    want = (1 / (1 + np.arange(1024)[:, None] + np.arange(128))).sum(1)
    assert np.allclose(sums[0], want, rtol=1e-5)


LANES = """
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out, .param .u64 source) {
 .reg .b32 %r<11>; .reg .b64 %rd<6>; .reg .pred %p<2>; .shared .align 128 .b8 s[512];
 mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; mov.u32 %r3, s;
 add.u32 %r4, %r3, %r2;
 add.u32 %r5, %r2, 16; and.b32 %r5, %r5, 511; add.u32 %r5, %r3, %r5;
 ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [source];
 cvt.u64.u32 %rd3, %r2; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
 st.shared.v4.b32 [%r4], {%r1, %r1, %r1, %r1};
 MEET
 READ {%r6, %r7, %r8, %r9}, [%r5];
 BETWEEN
 WRITE;
 cp.async.wait_all;
 st.global.v4.b32 [%rd1], {%r6, %r7, %r8, %r9};
 ret;
}
"""


EXCHANGES = {
    "shfl": "shfl.sync.idx.b32 %r10, %r1, 3, 31, -1;",
    "vote": "vote.sync.ballot.b32 %r10, %p1, -1;",
    "match": "match.any.sync.b32 %r10, %r1, -1;",
    "redux": "redux.sync.add.s32 %r10, %r1, -1;",
}
COPY = "cp.async.cg.shared.global [%r4], [%rd2], 16"


def lanes_run(
    seed: int = 0, meet: str = "bar.warp.sync -1;", read: str = "ld.shared.v4.b32", between: str = "", write: str = COPY
) -> set[str]:
    """Each lane writes, all `meet`, each reads its neighbour's 16 bytes, then `write`s its own."""
    text = LANES
    for name, value in {"MEET": meet, "READ": read, "BETWEEN": between, "WRITE": write}.items():
        text = text.replace(name, value)
    out, source = np.zeros(512, np.uint8), np.zeros(512, np.uint8)
    run = emulator.load(text).launch("k", grid=1, block=32, args=[out, source], seed=seed)
    return {finding.code for finding in run.findings}


@pytest.mark.parametrize("read", ["ld.shared.v4.b32", "ldmatrix.sync.aligned.m8n8.x4.shared.b16"])
@pytest.mark.parametrize(
    "write",
    [
        "st.shared.v4.b32 [%r4], {%r1, %r1, %r1, %r1}",
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r4], {%r1, %r1, %r1, %r1}",
        COPY,
    ],
)
def test_lanes_write_what_their_neighbours_have_read(read: str, write: str) -> None:
    """.aligned says that all lanes are there, not that their accesses are in order; bar.warp.sync does (9.7.13.2). An
    exchange of values puts reads before writes, which may depend on them."""
    for seed in range(3):  # by order, not by timing
        assert lanes_run(seed, read=read, write=write) == {"shared-race"}
        assert lanes_run(seed, read=read, write=write, between="elect.sync _|%p1, -1;") == {"shared-race"}
        for orders in ("bar.warp.sync -1;", *EXCHANGES.values()):
            assert lanes_run(seed, read=read, write=write, between=orders) == set()


@pytest.mark.parametrize("meet", ["", "elect.sync _|%p1, -1;", *EXCHANGES.values()], ids=["", "elect", *EXCHANGES])
def test_what_lanes_wrote_is_not_there_after_an_exchange(meet: str) -> None:
    assert lanes_run(meet=meet, between="bar.warp.sync -1;") == {"shared-race"}
    assert lanes_run(meet=meet + "bar.warp.sync -1;", between="bar.warp.sync -1;") == set()


def test_a_lane_copies_over_what_it_has_read_itself() -> None:
    assert lanes_run(read="ld.shared.v4.b32 {%r6, %r7, %r8, %r9}, [%r4]; //") == set()


def test_a_lane_reads_before_its_own_copy_has_landed() -> None:
    """What a lane does after it has issued the copy is not before it, whoever does it."""
    late = COPY + "; ld.shared.v4.b32 {%r6, %r7, %r8, %r9}, [%r4]"
    assert lanes_run(between="bar.warp.sync -1;", write=late) == {"shared-race"}
    assert lanes_run(between="bar.warp.sync -1;", write=late.replace("; ld", "; cp.async.wait_all; ld")) == set()
