"""A wait on what is no mbarrier ends the run at once, instead of spinning until the instruction budget is spent."""

from __future__ import annotations

import pytest
from emulator_harness import HEADER

import tkpy.emulator
from tkpy.emulator import KernelError

PTX = """
.visible .entry k() {
  .reg .pred %p; .reg .b32 %a; .reg .b64 %s;
  .shared .align 8 .b64 bars[2];
  mov.u32 %a, bars;
  mbarrier.init.shared::cta.b64 [%a], 1;
  mbarrier.arrive.shared::cta.b64 %s, [%a];
  BEFORE
again:
  WAIT
  @!%p bra again;
  ret;
}"""
TRY = "mbarrier.try_wait.parity.shared::cta.b64 %p, [%a + {}], {};"
CASES = {
    "never initialised": ("", TRY.format(8, 0), "mbarrier-misuse", "no mbarrier.init has"),
    "invalidated": ("mbarrier.inval.shared::cta.b64 [%a];", TRY.format(0, 0), "mbarrier-misuse", "no mbarrier.init has"),
    "overwritten": ("st.shared.b64 [%a], 0;", TRY.format(0, 0), "mbarrier-misuse", "there is no mbarrier here"),
    "looks like one": ("st.shared.b64 [%a + 8], -9223372036854775808;", TRY.format(8, 0), "mbarrier-misuse", "no mbarrier.init has"),
    "parity 2": ("", TRY.format(0, 2), "mbarrier-misuse", "parity must be 0 or 1"),
    "between two": ("", TRY.format(4, 0), "misaligned", "multiple of 8"),
    "outside": ("", TRY.format(4096, 0), "out-of-bounds", "outside shared memory"),
    "a state from nowhere": ("mov.u64 %s, 1;", "mbarrier.test_wait.shared::cta.b64 %p, [%a], %s;", "mbarrier-misuse", "state"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checks", ["all", "none"])
def test_the_run_ends_at_once(case: str, checks: str) -> None:
    before, wait, code, text = CASES[case]
    module = tkpy.emulator.load(HEADER + PTX.replace("BEFORE", before).replace("WAIT", wait))
    with pytest.raises(KernelError) as error:
        module.launch("k", block=1, args=[], checks=checks)
    codes = {f.code for f in error.value.findings}
    assert "budget" not in codes
    assert code in codes
    assert any(text in f.message for f in error.value.findings)
