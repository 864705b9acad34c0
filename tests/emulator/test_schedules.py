"""Seeds reach the schedules that matter: work that is independent happens in every order, and one side waits for long.

Each program writes down in which order its own events happened. A fair scheduler shows only the middle of the road.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tkpy.emulator
from tkpy.emulator import Module

SEEDS = 128
HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"

# One thread starts four bulk copies, each on a barrier of its own, and writes down which are done when the last is.
COPIES = """
.visible .entry k(.param .u64 out, .param .u64 x) {
  .reg .b64 %out, %x, %s; .reg .b32 %bar, %to, %i, %r; .reg .pred %p;
  .shared .align 128 .b8 tile[512];
  .shared .align 8 .b64 bars[4];
  ld.param.u64 %out, [out]; ld.param.u64 %x, [x];
  mov.u32 %bar, bars; mov.u32 %to, tile; mov.u32 %i, 0;
start:
  mbarrier.init.shared::cta.b64 [%bar], 1;
  mbarrier.arrive.expect_tx.shared::cta.b64 %s, [%bar], 128;
  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%to], [%x], 128, [%bar];
  add.u32 %bar, %bar, 8; add.u32 %to, %to, 128; add.u32 %i, %i, 1;
  setp.lt.u32 %p, %i, 4;
  @%p bra start;
wait:
  mbarrier.try_wait.parity.shared::cta.b64 %p, [bars + 24], 0;
  @!%p bra wait;
  mov.u32 %bar, bars; mov.u32 %i, 0;
look:
  mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 0;
  selp.u32 %r, 1, 0, %p;
  st.global.u32 [%out], %r;
  add.u64 %out, %out, 4; add.u32 %bar, %bar, 8; add.u32 %i, %i, 1;
  setp.lt.u32 %p, %i, 4;
  @%p bra look;
  mov.u32 %bar, bars; mov.u32 %i, 0;
all:
  mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0;
  @!%p bra all;
  add.u32 %bar, %bar, 8; add.u32 %i, %i, 1;
  setp.lt.u32 %p, %i, 4;
  @%p bra all;
  ret;
}"""

# Every warp of a cluster draws ROUNDS tickets from a counter in rank 0; out holds who drew each.
TICKETS = """
.visible .entry k(.param .u64 out) {
  .reg .b64 %out, %at; .reg .b32 %c, %i, %t, %who, %r; .reg .pred %p, %one;
  .shared .align 8 .b32 counter;
  mov.u32 %t, %tid.x;
  mov.u32 %r, %cluster_ctarank;
  mov.u32 %c, counter;
  setp.eq.u32 %p, %t, 0;
  @%p st.shared.u32 [%c], 0;
  barrier.cluster.arrive; barrier.cluster.wait;
  mapa.shared::cluster.u32 %c, %c, 0;
  and.b32 %who, %t, 31;
  setp.eq.u32 %one, %who, 0;
  shr.u32 %who, %t, 5;
  mad.lo.u32 %who, %r, 100, %who;
  ld.param.u64 %out, [out];
  mov.u32 %i, 0;
  @!%one bra done;
again:
  atom.shared::cluster.add.u32 %t, [%c], 1;
  mad.wide.u32 %at, %t, 4, %out;
  st.global.u32 [%at], %who;
  nanosleep.u32 20;
  add.u32 %i, %i, 1;
  setp.lt.u32 %p, %i, 6;
  @%p bra again;
done:
  barrier.cluster.arrive; barrier.cluster.wait;
  ret;
}"""


def events(module: Module, size: int, **launch: Any) -> list[tuple[int, ...]]:
    seen = []
    for seed in range(SEEDS):
        out = np.zeros(size, np.uint32)
        run = module.launch("k", args=[out, *launch.get("more", ())], seed=seed, threads=1, counters=False,
                            **{k: v for k, v in launch.items() if k != "more"})  # fmt: skip
        assert not run.findings
        seen.append(tuple(out.tolist()))
    return seen


def share(seen: list[tuple[int, ...]], what: Callable[[tuple[int, ...]], bool]) -> float:
    return sum(map(what, seen)) / len(seen)


def test_copies_land_in_every_order() -> None:
    room = np.zeros(64 + 4, np.float32)
    start = -room.ctypes.data % 16 // 4
    x = room[start : start + 64]
    seen = events(tkpy.emulator.load(HEADER + COPIES), 4, block=1, more=[x])
    assert share(seen, lambda s: sum(s) == 1) >= 0.1  # the last alone has landed
    assert share(seen, lambda s: sum(s) == 4) >= 0.1
    assert len(Counter(seen)) == 8  # each of the others before it or not


@pytest.mark.parametrize("warps, ctas", [(4, 1), (8, 1), (2, 2), (1, 4)])
def test_one_is_starved_and_one_is_rushed(warps: int, ctas: int) -> None:
    n = 6 * warps * ctas
    seen = events(tkpy.emulator.load(HEADER + TICKETS), n, block=32 * warps, grid=ctas, cluster=ctas)
    assert share(seen, lambda s: len(set(s[:6])) == 1) >= 0.1  # one warp before all others
    assert share(seen, lambda s: len(set(s[-6:])) == 1) >= 0.1  # one after all others
    if warps == 8:
        assert share(seen, lambda s: len({w // 4 for w in s[:24]}) == 1) >= 0.05  # a whole warpgroup
    if ctas > 1:
        assert share(seen, lambda s: len({w // 100 for w in s[: 6 * warps]}) == 1) >= 0.05  # a whole CTA
    assert len(set(seen)) >= SEEDS // 3


def test_a_seed_is_a_schedule_whatever_the_number_of_threads() -> None:
    module = tkpy.emulator.load(HEADER + TICKETS)
    for seed in range(8):
        runs = []
        for threads in (1, 3, 3):
            out = np.zeros(48, np.uint32)
            module.launch("k", args=[out], block=64, grid=4, cluster=2, seed=seed, threads=threads)
            runs.append(out.tolist())
        assert runs[0] == runs[1] == runs[2]
