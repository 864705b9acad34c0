"""Instructions about caches: those that change no value, and discard, which leaves its line indeterminate."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator

PTX = """
.visible .entry k(.param .u64 x) {
  .reg .b64 %x, %y, %policy; .reg .b32 %r;
  ld.param.u64 %x, [x];
  BODY
  ret;
}"""


def run(body: str) -> tuple[np.ndarray, list[str]]:
    room = np.full(128, 7, np.uint32)
    start = -room.ctypes.data % 128 // 4
    x = room[start : start + 64]
    module = tkpy.emulator.load(HEADER + PTX.replace("BODY", body))
    assert not module.unmodelled
    done = module.launch("k", args=[x])
    return x, [f.code for f in done.findings]


@pytest.mark.parametrize(
    "body",
    [
        "prefetch.global.L2 [%x]; prefetch.global.L1 [%x + 100000]; prefetchu.L1 [%x];",
        "prefetch.global.L2::evict_last [%x]; prefetch.local.L1 [0];",
        "applypriority.global.L2::evict_normal [%x], 128; applypriority.L2::evict_normal [%x + 128], 128;",
        "cp.async.bulk.prefetch.L2.global [%x], 128;",
        "createpolicy.fractional.L2::evict_first.b64 %policy, 1.0; ld.global.L2::cache_hint.u32 %r, [%x], %policy;"
        "st.global.L2::cache_hint.u32 [%x], %r, %policy;",
        "griddepcontrol.wait; griddepcontrol.launch_dependents; griddepcontrol.wait;",
    ],
)
def test_hints_change_nothing(body: str) -> None:
    x, findings = run(body)
    assert (x == 7).all()
    assert not findings


def test_a_discarded_line_is_indeterminate() -> None:
    x, findings = run("discard.global.L2 [%x + 128], 128;")
    assert (x[:32] == 7).all()
    assert (x[32:] == 0x7FF77FF7).all()
    assert not findings


@pytest.mark.parametrize("name", ["discard.global.L2", "discard.L2", "applypriority.global.L2::evict_normal"])
@pytest.mark.parametrize("offset, code", [(64, "misaligned"), (256, "out-of-bounds")])
def test_lines_are_checked(name: str, offset: int, code: str) -> None:
    x, findings = run(f"{name} [%x + {offset}], 128;")
    assert (x == 7).all()
    assert findings == [code]
