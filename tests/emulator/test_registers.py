"""Registers: copies between wgmma, shapes that share accumulators, what a kernel is launched with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator
from tkpy.emulator import KernelError

# D = A B of ones, in plain layout: every element is 16 after one wgmma. BODY has accumulators %d1-%d4 and copies %c1-%c4.
WGMMA = """
.visible .entry k(.param .u64 out) {
  .reg .b64 %a, %b; .reg .b32 %r<4>, %x<5>; .reg .f32 %d<5>, %c<5>; .reg .pred %p, %q;
  .shared .align 128 .b8 tile[512];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, tile;
  mad.lo.u32 %r3, %r1, 4, %r2;
  st.shared.u32 [%r3], 0x3c003c00;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  mov.u32 %x1, 0x3c003c00; mov.u32 %x2, %x1; mov.u32 %x3, %x1; mov.u32 %x4, %x1;
  shr.u32 %r3, %r2, 4;
  cvt.u64.u32 %b, %r3;
  or.b64 %b, %b, 0x0000001000080000;
  setp.ne.u32 %p, %r2, 0;
  setp.eq.u32 %q, %r2, 0;
  BODY
  ld.param.u64 %a, [out];
  mad.wide.u32 %a, %r1, 4, %a;
  st.global.f32 [%a], %d1;
  ret;
}"""
FIRST = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%d1,%d2,%d3,%d4}, {%x1,%x2,%x3,%x4}, %b, %q, 1, 1, 0;"
AGAIN = FIRST.replace("%q", "%p")
COPIES = AGAIN.replace("%d", "%c")
NARROW = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%d1,%d2,%d3,%d4}, {%x1,%x2,%x3,%x4}, %b, %p, 1, 1;"
FENCE, END = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
THERE = " ".join(f"mov.f32 %c{i}, %d{i};" for i in range(1, 5))
BACK = " ".join(f"mov.f32 %d{i}, %c{i};" for i in range(1, 5))


def run_wgmma(body: str, seed: int) -> tuple[set[str], np.ndarray]:
    out = np.zeros(128, np.float32)
    module = tkpy.emulator.load(HEADER + WGMMA.replace("BODY", body))
    assert not module.unmodelled
    try:
        findings = module.launch("k", block=128, args=[out], seed=seed).findings
    except KernelError as error:
        findings = error.findings
    return {f.code for f in findings}, out


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "body, products",
    [
        ((FENCE, FIRST, AGAIN, END), 2),
        ((FENCE, FIRST, THERE, COPIES, BACK, AGAIN, END), 3),  # a copy is another name
        ((FENCE, FIRST, THERE, END, BACK), 1),
        ((FENCE, FIRST, END, AGAIN, END), 2),  # the same shape needs no second fence
        ((FENCE, FIRST, END, "add.f32 %d1, %d1, 0f00000000;", FENCE, AGAIN, END), 2),
        ((FENCE, FIRST, "wgmma.commit_group.sync.aligned;", FENCE, COPIES.replace("%p", "%q"), END), 1),  # two at once
    ],
)
def test_correct_orders_are_silent_and_right(body: tuple[str, ...], products: int, seed: int) -> None:
    codes, out = run_wgmma("\n".join(body), seed)
    assert not codes
    assert (out == 16 * products).all()


@pytest.mark.parametrize(
    "body, code",
    [
        ((FENCE, FIRST, THERE, "add.f32 %c1, %c1, %c1;", END), "wgmma-in-flight"),  # also under its other name
        ((FENCE, FIRST, "mov.f32 %d1, 0f00000000;", END), "wgmma-in-flight"),
        ((FENCE, FIRST, "st.shared.f32 [%r2], %d1;", END), "wgmma-in-flight"),
        ((FENCE, FIRST, "wgmma.wait_group.sync.aligned 0;"), "wgmma-in-flight"),
        (
            (FENCE, "neg.f32 %c1, %d1; mov.f32 %d1, %c1;", AGAIN, END),
            "wgmma-fence",
        ),  # computed after the fence, then moved
        ((FENCE, FIRST, NARROW, END), "wgmma-fence"),
        ((FIRST, END), "wgmma-fence"),
        ((FENCE, AGAIN, END), "uninitialised-register"),
        ((FENCE, FIRST.replace("%x4}", "%r0}"), END), "uninitialised-register"),
    ],
)
def test_wrong_orders_are_found(body: tuple[str, ...], code: str) -> None:
    assert code in run_wgmma("\n".join(body), 0)[0]


POOL = """
.visible .entry k() DIRECTIVES {
  .reg .pred %p; .reg .b32 %r;
  mov.u32 %r, %tid.x;
  setp.ge.u32 %p, %r, 128;
  @%p bra take;
  setmaxnreg.dec.sync.aligned.u32 24;
  bra done;
take:
  setmaxnreg.inc.sync.aligned.u32 TAKE;
done:
  ret;
}"""


# (directives, registers=, the most that a second warpgroup can take after the first has gone down to 24)
@pytest.mark.parametrize(
    "directives, launch, most",
    [
        (".maxntid 256 .minnctapersm 2", {}, 232),  # 128 each
        (
            ".maxntid 224 .minnctapersm 3",
            {},
            152,
        ),  # 80 each, since threads count in whole warpgroups; 4 warps give to 3
        (".reqntid 256 .minnctapersm 3", {}, 136),  # 85.3 -> 80 each
        (".maxntid 256 .minnctapersm 1 .maxnreg 112", {}, 200),
        (".maxnreg 96", {}, 168),
        (".maxntid 256", {"registers": 104}, 184),
        (".maxntid 256 .minnctapersm 2", {"registers": 64}, 104),
    ],
)
def test_registers_at_launch(directives: str, launch: dict[str, Any], most: int) -> None:
    for take, fits in ((most, True), (most + 8, False)):
        module = tkpy.emulator.load(HEADER + POOL.replace("DIRECTIVES", directives).replace("TAKE", str(take)))
        block = 224 if "224" in directives else 256
        if fits:
            assert not module.launch("k", block=block, args=[], **launch).findings
            continue
        with pytest.raises(KernelError) as error:
            module.launch("k", block=block, args=[], **launch)
        assert {f.code for f in error.value.findings} == {"deadlock", "setmaxnreg"}


def test_without_a_register_count_setmaxnreg_has_no_effect() -> None:
    module = tkpy.emulator.load(HEADER + POOL.replace("DIRECTIVES", ".maxntid 256").replace("TAKE", "256"))
    assert not module.launch("k", block=256, args=[]).findings
    with pytest.raises(ValueError, match="registers must be 0, or 24 to 256 in steps of 8, got 100"):
        module.launch("k", block=256, args=[], registers=100)


@pytest.mark.parametrize("count", [16, 100, 264])
def test_counts_that_ptxas_refuses_are_not_modelled(count: int) -> None:
    module = tkpy.emulator.load(HEADER + POOL.replace("DIRECTIVES", "").replace("TAKE", str(count)))
    assert "24 to 256" in module.unmodelled[0].reason
