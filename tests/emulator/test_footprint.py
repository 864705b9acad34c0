"""Distinct sectors of global memory that a launch touches, and what bank conflicts cost."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator

BODY = """{ .reg .b32 %r<8>; .reg .b64 %d<8>; .shared .align 16 .b8 tile[4096];
ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y]; ld.param.u64 %d2, [n];
mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;
mul.wide.u32 %d3, %r0, 4; add.u64 %d3, %d0, %d3; ld.global.u32 %r2, [%d3];
mad.lo.u32 %r3, %r1, 32, %r0; mul.wide.u32 %d4, %r3, 4; add.u64 %d4, %d1, %d4; st.global.u32 [%d4], %r2;
red.global.add.u32 [%d2], 1;
mov.u32 %r4, tile; mad.lo.u32 %r4, %r0, STRIDE, %r4; st.shared.u32 [%r4], %r2;
ret; }"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("stride", "conflicts"), [(4, 0), (8, 1), (128, 31)])
def test_each_sector_counts_once_and_each_conflict(threads: int, stride: int, conflicts: int) -> None:
    """Five blocks read the same 128 bytes, write 128 bytes each, and add to one word."""
    module = tkpy.emulator.load(
        f"{HEADER}.visible .entry k(.param .u64 x, .param .u64 y, .param .u64 n)\n"
        + BODY.replace("STRIDE", str(stride))
    )
    whole = np.zeros(1024, np.uint32)
    start = -(whole.ctypes.data // 4) % 8  # the first sector of its own
    x, y, n = whole[start : start + 32], whole[start + 32 : start + 192], whole[start + 200 : start + 201]
    x[:] = np.arange(32)
    run = module.launch("k", grid=5, block=32, args=[x, y, n], threads=threads)
    run.raise_on_findings()
    assert (y.reshape(5, 32) == x).all()
    assert n[0] == 5 * 32
    assert run.sectors == (4 + 1, 5 * 4 + 1)
    total = run.counters.total
    assert total.global_sectors == 5 * (4 + 4 + 1)
    assert total.bank_conflicts == 5 * conflicts
    assert total.shared_wavefronts == 5 * (1 + conflicts)


def test_without_counters_there_are_none() -> None:
    module = tkpy.emulator.load(f"{HEADER}.visible .entry k() {{ ret; }}")
    assert module.launch("k", counters=False).sectors == (0, 0)
