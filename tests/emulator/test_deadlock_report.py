"""What the report of a deadlock says, and a wake-up that once was missed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator
from tkpy.emulator import KernelError
from tkpy.emulator.run import Finding, Site

# Warp 0 arrives at both phases of an mbarrier for 2, warp 1 at the first only; warp 2 waits at a named barrier; warp 3 ends.
STUCK = """
.visible .entry k() {
  .reg .pred %p, %q; .reg .b32 %w, %a, %t; .reg .b64 %s;
  .shared .align 8 .b64 bars[2];
  mov.u32 %a, bars;
  mov.u32 %w, %tid.x;
  setp.eq.u32 %p, %w, 0;
  @%p mbarrier.init.shared::cta.b64 [%a], 2;
  @%p mbarrier.init.shared::cta.b64 [%a+8], 1;
  bar.sync 0;
  and.b32 %t, %w, 31;
  shr.u32 %w, %w, 5;
  setp.eq.u32 %p, %w, 3;
  @%p ret;
  setp.ne.u32 %p, %w, 2;
  @%p bra arrive;
  barrier.cta.sync 4, 96;
  ret;
arrive:
  setp.eq.u32 %q, %t, 0;
  @%q mbarrier.arrive.shared::cta.b64 %s, [%a];
first:
  mbarrier.try_wait.parity.shared::cta.b64 %p, [%a], 0;
  @!%p bra first;
  setp.eq.and.u32 %q, %w, 0, %q;
  @%q mbarrier.arrive.shared::cta.b64 %s, [%a];
second:
  mbarrier.try_wait.parity.shared::cta.b64 %p, [%a], 1;
  @!%p bra second;
  ret;
}"""


def test_who_waits_for_what_and_who_could_arrive() -> None:
    module = tkpy.emulator.load(HEADER + STUCK)
    with pytest.raises(KernelError) as error:
        module.launch("k", block=128, args=[])
    message = next(f.message for f in error.value.findings if f.code == "deadlock")
    lines = (HEADER + STUCK).splitlines()
    arrival = 1 + max(i for i, text in enumerate(lines) if text.startswith("  @%q mbarrier.arrive"))
    early = 1 + min(i for i, text in enumerate(lines) if text.startswith("  @%q mbarrier.arrive"))
    wait = 1 + next(i for i, text in enumerate(lines) if "[%a], 1;" in text)
    for text in (
        f"CTA 0 warp 0 at PTX line {wait} `mbarrier.try_wait.parity.shared::cta.b64 %p, [%a], 1` waits for the mbarrier at shared address 1024",
        f"CTA 0 warp 1 at PTX line {wait}",
        "for the end of the phase of parity 1",
        "CTA 0 warp 2 at PTX line",
        "CTA 0 barrier 4: 1 warps have arrived of 3",
        "mbarrier at shared address 1024: phase parity 1, 1 of 2 arrivals and 0 bytes pending; arrived in this phase: "
        f"CTA 0 warp 0 (1); arrived in an earlier phase only: CTA 0 warp 1 at PTX line {early}",
        "mbarrier at shared address 1032: phase parity 0, 1 of 1 arrivals and 0 bytes pending; no warp that lives has ever arrived",
        "1 warps have ended",
    ):  # fmt: skip
        assert text in message, message
    assert arrival != early


# Lanes 0-15, then 16-31 arrive at a warp-level synchronisation, 2000 times.
MEET = """
.visible .entry k(.param .u64 out) {
  .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %a;
  mov.u32 %r1, %tid.x;
  setp.lt.u32 %p1, %r1, 16;
  mov.u32 %r2, 0; mov.u32 %r3, 0;
meet:
  SYNC
  add.u32 %r2, %r2, 1;
  setp.eq.u32 %p2, %r2, 2000;
  @%p2 bra done;
  @%p1 bra meet;  // these lanes wait first: the smallest pc goes first
  add.u32 %r3, %r3, 1;
  bra meet;
done:
  ld.param.u64 %a, [out];
  mad.wide.u32 %a, %r1, 4, %a;
  st.global.u32 [%a], %r3;
  ret;
}"""


@pytest.mark.parametrize("sync", ["shfl.sync.idx.b32 %r4, %r2, 0, 31, -1;", "bar.warp.sync -1;", "bar.sync 0;"])
@pytest.mark.parametrize("block", [32, 64])
def test_lanes_that_meet_as_their_turn_ends_go_on(sync: str, block: int) -> None:
    out = np.zeros(64, np.uint32)
    module = tkpy.emulator.load(HEADER + MEET.replace("SYNC", sync))
    for seed in range(6):
        assert not module.launch("k", block=block, args=[out], seed=seed).findings
        assert (out[16:32] == 1999).all()
        assert (out[:16] == 0).all()


def test_a_report_goes_from_one_process_to_another() -> None:
    site = Site("k", 7, "bar.sync 0;", ("k.cu", 3), 0, 1, 2)
    error = KernelError([Finding("deadlock", "nobody arrives", site, None, 1)], "printed")
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), there.findings, there.output) == (str(error), error.findings, "printed")
