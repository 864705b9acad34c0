"""The replay: every warp goes through its record in order, as fast as registers, resources and barriers let it.

Discrete events in order of time. A warp issues its next instruction when the registers it reads are ready, its
sub-core has an issue slot, the unit is free, and, for a wait, what it waits for has happened in the replay (not in
the emulator: barriers are simulated anew). Every request then takes its resource for as long as its size says, and
its result is ready after the latency.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tkpy.emulator.timing.machine import Cluster, Cta, Mbarrier, NamedBarrier, Sm, Warp, Wgmma
from tkpy.emulator.timing.rates import RESIDENT_CTAS, RESIDENT_WARPS, SHARED_BYTES, Latencies, Rates
from tkpy.emulator.timing.record import Event, Trace

BINDS = 0.6  # a resource that is busy for less than this share of the time does not bind; latency does
MASK = (1 << 32) - 1

# mbarrier operations, as csrc/emulator/exec.h numbers them
INIT, INVAL, ARRIVE, EXPECT_TX, COMPLETE_TX = range(5)
ARRIVE_AFTER_COPIES = 8


@dataclass(frozen=True)
class Prediction:
    """What the model says of a launch. Never a measurement."""

    kernel: str
    cycles: float
    rates: Rates
    utilisation: dict[str, float]  # share of the time each resource is busy
    waits: dict[str, float]  # share of the warps' time spent waiting, by cause
    binding: str
    notes: tuple[str, ...]
    slices: tuple[tuple[str, str, float, float, str], ...]  # process, track, from, to (cycles), name
    clocks: Mapping[tuple[int, int], tuple[float, ...]]  # (CTA, warp) -> what its readings of the clock gave

    @property
    def seconds(self) -> float:
        return self.cycles / self.rates.clock

    def __str__(self) -> str:
        busy = sorted(((v, k) for k, v in self.utilisation.items() if v >= 0.005), reverse=True)
        waits = sorted(((v, k) for k, v in self.waits.items() if v >= 0.005), reverse=True)
        rates = self.rates
        lines = [
            f"{self.kernel}: PREDICTED {self.cycles:.0f} cycles, {1e6 * self.seconds:.2f} us on {rates.device} at "
            f"{rates.clock / 1e6:.0f} MHz (a model, not a measurement)",
            f"  binds: {self.binding}",
            "  busy:  " + (", ".join(f"{k} {v:.0%}" for v, k in busy) or "nothing"),
            "  warps wait for: " + (", ".join(f"{k} {v:.0%}" for v, k in waits) or "nothing"),
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def write_chrome(self, path: str | Path) -> None:
        """A picture of warps, TMA and tensor cores over time, for Perfetto (ui.perfetto.dev) or chrome://tracing."""
        from tkpy.emulator.timing.chrome import write

        write(self, Path(path))


def resident(trace: Trace) -> int:
    """CTAs that one SM holds at a time, by warps and shared memory; registers are not known from PTX."""
    warps = (trace.threads + 31) // 32
    return max(1, min(RESIDENT_CTAS, RESIDENT_WARPS // warps, SHARED_BYTES // (trace.shared + 1024)))


def predict(
    trace: Trace,
    device: str = "h100-sxm",
    *,
    clock: float | None = None,
    ctas_per_sm: int | None = None,
    active: int | None = None,
) -> Prediction:
    """Replay `trace` on a device of bench/published/devices.json; `ctas_per_sm` where registers allow fewer than shared
    memory and warps do. `active` SMs (by default, as many as the grid has CTAs for) are taken to do the same at the
    same time."""
    size = trace.cluster_size
    sheet = Rates.of(device, clock)
    notes = []
    if active is None and trace.slots * size != sheet.multiprocessors // size * size:
        notes.append(f"the trace is of a machine with {trace.slots * size} SMs, {device} has {sheet.multiprocessors}")
    if trace.truncated:
        notes.append("the record is truncated: the time is that of its beginning")
    active = active or min(sheet.multiprocessors, max(trace.ctas, 1))
    replay = _Replay(trace, Rates.of(device, clock, active, size), ctas_per_sm or resident(trace))
    return replay.run(tuple(notes))


class _Replay:
    def __init__(self, trace: Trace, rates: Rates, per_sm: int):
        self.trace, self.rates, self.lat = trace, rates, Latencies.published()
        self.sms = [Sm(rates, i) for i in range(trace.cluster_size)]
        self.queue = list(trace.clusters)
        self.heap: list[tuple[float, int, Callable[..., None], Any]] = []
        self.order = itertools.count()
        self.waits: defaultdict[str, float] = defaultdict(float)
        self.warp_time = 0.0
        self.end = 0.0
        self.slices: list[tuple[str, str, float, float, str]] = []
        self.started: dict[Warp, float] = {}
        self.clocks: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.lanes: dict[tuple[int, str], list[float]] = {}  # of a picture: when each track of copies is free
        for _ in range(min(per_sm, len(self.queue))):
            self.at(0.0, self.start, None)

    # ---- time
    def at(self, time: float, what: Callable[..., None], argument: Any) -> None:
        heapq.heappush(self.heap, (time, next(self.order), what, argument))

    def run(self, notes: tuple[str, ...]) -> Prediction:
        while self.heap:
            time, _, what, argument = heapq.heappop(self.heap)
            self.end = max(self.end, time)
            what(time, argument)
        stuck = [w for w in self.started if w.at < len(w.events)]
        if stuck:
            reason = stuck[0].asleep[1] if stuck[0].asleep else "nothing"
            notes += (f"{len(stuck)} warps never ended: they wait for {reason} that this replay does not see",)
        use: dict[str, float] = {}
        for sm in self.sms:
            for name, share in sm.utilisation(self.end).items():
                use[name] = max(use.get(name, 0.0), share)
        waits = {name: time / max(self.warp_time, 1.0) for name, time in self.waits.items()}
        busiest = max(use, key=lambda name: use[name])
        top = max(waits, key=lambda name: waits[name], default="nothing")
        binding = busiest if use[busiest] >= BINDS else f"latency (warps wait for {top}; busiest: {busiest})"
        clocks = {warp: tuple(times) for warp, times in self.clocks.items()}
        return Prediction(
            self.trace.kernel, self.end, self.rates, use, waits, binding, notes, tuple(self.slices), clocks
        )

    def start(self, time: float, _: Any) -> None:
        if not self.queue:
            return
        cluster = Cluster()
        for rank, number in enumerate(self.queue.pop(0)):
            cta = Cta(number, cluster, self.sms[rank % len(self.sms)], self.trace.threads)
            cluster.ctas.append(cta)
            for index in range((self.trace.threads + 31) // 32):
                warp = Warp(cta, index, self.trace.warps.get((number, index), ()))
                cta.running += 1
                cluster.running += 1
                self.started[warp] = time
                self.at(time, self.step, warp)

    # ---- waiting
    def wait(self, warp: Warp, time: float, until: float, why: str) -> bool:
        """The warp tries again at a known time."""
        self.waited(warp, time, until, why)
        self.at(until, self.step, warp)
        return False

    def waited(self, warp: Warp, since: float, until: float, why: str) -> None:
        self.waits[why] += until - since
        if until - since >= 2:
            self.slices.append((f"SM {warp.cta.sm.number}", self.track(warp), since, until, why))

    def track(self, warp: Warp) -> str:
        return f"CTA {warp.cta.number} warp {warp.index}"

    def sleep(self, warp: Warp, time: float, why: str) -> bool:
        """The warp tries again when it is woken."""
        warp.asleep = (time, why)
        return False

    def wake(self, warps: list[Warp], time: float) -> None:
        for warp in warps:
            assert warp.asleep is not None
            self.waited(warp, warp.asleep[0], time, warp.asleep[1])
            warp.asleep = None
            self.at(time, self.step, warp)
        warps.clear()

    # ---- a warp
    def step(self, time: float, warp: Warp) -> None:
        while True:
            if warp.at == len(warp.events):
                return self.ended(time, warp)
            event = warp.events[warp.at]
            ins = event.instruction
            if ins.kind != "free":
                break
            known = [warp.ready[name] for name in ins.reads if name in warp.ready]
            for name in ins.writes:
                warp.ready[name] = max(known, default=(0.0, ""))
            warp.at += 1
        late = max((warp.ready[name] for name in ins.reads if name in warp.ready), default=(0.0, ""))
        if late[0] > time:
            self.wait(warp, time, late[0], late[1])
            return
        issue = warp.cta.sm.issue[warp.subcore]
        if issue.free > time:
            self.wait(warp, time, issue.free, "an issue slot")
            return
        handler = getattr(self, ins.kind) if event.lanes else self.control
        if not handler(warp, event, time):
            return
        issue.take(time, 1.0)
        warp.at += 1
        self.at(time + 1, self.step, warp)

    def ended(self, time: float, warp: Warp) -> None:
        cta, cluster = warp.cta, warp.cta.cluster
        self.warp_time += time - self.started[warp]
        cta.running -= 1
        cluster.running -= 1
        for barrier in cta.named.values():
            self.settle_named(cta, barrier, time)
        if cluster.running == 0:
            self.start(time, None)

    def result(self, warp: Warp, event: Event, time: float, why: str) -> bool:
        for name in event.instruction.writes:
            warp.ready[name] = (time, why)
        return True

    # ---- handlers: each returns whether the instruction was issued
    def control(self, warp: Warp, event: Event, time: float) -> bool:
        return self.result(warp, event, time + 1, "control")

    def clock(self, warp: Warp, event: Event, time: float) -> bool:
        self.clocks[warp.cta.number, warp.index].append(time)
        return self.result(warp, event, time + 1, "the clock")

    def arithmetic(self, warp: Warp, event: Event, time: float) -> bool:
        unit = event.instruction.unit
        clocks = 32 / (self.rates.lanes[unit] / 4)
        pipe = warp.cta.sm.unit(warp.subcore, "f32" if unit == "f16" else unit)
        if pipe.free > time:
            return self.wait(warp, time, pipe.free, f"the {unit} unit")
        pipe.take(time, clocks)
        slow = unit in ("special", "convert64")
        latency = self.lat.special if slow else self.lat.arithmetic
        if unit in ("shuffle", "vote", "reduce"):
            latency = self.lat.shuffle
        return self.result(warp, event, time + latency + clocks - 1, "arithmetic")

    def shared(self, warp: Warp, event: Event, time: float) -> bool:
        if event.notes:  # of another CTA
            _, end = warp.cta.sm.dsm.take(time, event.notes[0] / self.rates.dsm)
            return self.result(warp, event, end + self.lat.dsm, "distributed shared memory")
        return self.banks(warp, event, time)

    def banks(self, warp: Warp, event: Event, time: float) -> bool:
        _, end = warp.cta.sm.shared.take(time, max(event.wavefronts, 1))
        return self.result(warp, event, end - 1 + self.lat.shared, "shared memory")

    def local(self, warp: Warp, event: Event, time: float) -> bool:
        _, end = warp.cta.sm.shared.take(time, 1)
        return self.result(warp, event, end - 1 + self.lat.l1, "local memory")

    def load(self, warp: Warp, event: Event, time: float) -> bool:
        if len(event.notes) < 3:  # generic, to shared memory; or from constant memory
            return self.shared(warp, event, time)
        l1, l2, hbm = event.notes[:3]
        if event.instruction.past_l1:
            l1, l2 = 0, l1 + l2
        _, passed = warp.cta.sm.shared.take(time, max(1.0, (l1 + l2 + hbm) / 4))
        end = warp.cta.sm.memory(passed - 1, l2, hbm)
        latency = self.lat.hbm if hbm else self.lat.l2 if l2 else self.lat.l1
        return self.result(warp, event, end + latency, "HBM" if hbm else "L2" if l2 else "L1")

    def store(self, warp: Warp, event: Event, time: float) -> bool:
        if len(event.notes) < 3:
            return self.shared(warp, event, time)
        l1, l2, hbm = event.notes[:3]
        _, passed = warp.cta.sm.shared.take(time, max(1.0, (l1 + l2 + hbm) / 4))
        self.finish(warp.cta.sm.memory(passed, l1 + l2, hbm))
        return True

    def atomic(self, warp: Warp, event: Event, time: float) -> bool:
        if len(event.notes) < 3:
            return self.shared(warp, event, time)
        end = warp.cta.sm.memory(time, sum(event.notes[:2]), event.notes[2])
        return self.result(warp, event, end + self.lat.l2, "L2")

    def finish(self, time: float) -> None:
        """The launch lasts at least until then."""
        self.end = max(self.end, time)

    # ---- barriers
    def barrier(self, warp: Warp, event: Event, time: float) -> bool:
        number, threads = event.notes[:2]
        barrier = warp.cta.named.setdefault(number, NamedBarrier())
        barrier.needed = threads // 32
        barrier.arrived += 1
        warp.at += 1  # it goes on behind the barrier
        warp.cta.sm.issue[warp.subcore].take(time, 1.0)
        if event.instruction.sync:
            self.sleep(warp, time, "a CTA barrier")
            barrier.waiting.append(warp)
        else:
            self.at(time + 1, self.step, warp)
        self.settle_named(warp.cta, barrier, time)
        return False

    def settle_named(self, cta: Cta, barrier: NamedBarrier, time: float) -> None:
        if barrier.arrived and barrier.arrived >= (barrier.needed or cta.running):
            barrier.arrived = 0
            self.wake(barrier.waiting, time + self.lat.barrier)

    def cluster_arrive(self, warp: Warp, event: Event, time: float) -> bool:
        cluster = warp.cta.cluster
        warp.cluster_phase = cluster.phase + 1
        cluster.arrived += event.lanes
        if cluster.arrived >= cluster.lanes:
            cluster.arrived = 0
            cluster.phase += 1
            cluster.released = time + self.lat.dsm
            self.wake(cluster.waiting, cluster.released)
        return True

    def cluster_wait(self, warp: Warp, event: Event, time: float) -> bool:
        cluster, why = warp.cta.cluster, "the cluster barrier"
        if cluster.phase >= warp.cluster_phase:
            return True if cluster.released <= time else self.wait(warp, time, cluster.released, why)
        cluster.waiting.append(warp)
        return self.sleep(warp, time, why)

    def mbarrier_at(self, warp: Warp, place: int) -> tuple[Cta, Mbarrier]:
        ctas = warp.cta.cluster.ctas
        cta = ctas[min(place >> 32, len(ctas) - 1)]
        return cta, cta.mbarriers.setdefault(place & MASK, Mbarrier(1, 1))

    def mbarrier(self, warp: Warp, event: Event, time: float) -> bool:
        self.banks(warp, event, time)
        if not event.notes:
            return True
        kind, *rest = event.notes
        step = 3 if kind == ARRIVE else 2
        for place, value, *more in zip(*(iter(rest),) * step, strict=True):
            cta, barrier = self.mbarrier_at(warp, place)
            if kind == INIT:
                cta.mbarriers[place & MASK] = Mbarrier(value, value)
            elif kind == ARRIVE:
                far = self.lat.dsm if cta is not warp.cta else 0.0
                self.at(time + far, self.arrive, (barrier, value, more[0]))
            elif kind in (EXPECT_TX, COMPLETE_TX):
                self.arrive(time, (barrier, 0, value if kind == EXPECT_TX else -value))
            elif kind == ARRIVE_AFTER_COPIES:
                landed = [done for copies in (*warp.copies["async"], warp.copies_open["async"]) for _, done in copies]
                barrier.pending += 0 if value else 1
                self.at(max([time, *landed]), self.arrive, (barrier, 1, 0))
        return True

    def arrive(self, time: float, what: tuple[Mbarrier, int, int]) -> None:
        barrier, count, expected = what
        barrier.tx += expected
        barrier.pending -= count
        if barrier.settle():
            self.wake(barrier.waiting, time)

    def mbarrier_wait(self, warp: Warp, event: Event, time: float) -> bool:
        for place, parity, done in zip(*(iter(event.notes[1:]),) * 3, strict=True):
            _, barrier = self.mbarrier_at(warp, place)
            if done and not barrier.passed(parity):
                barrier.waiting.append(warp)
                return self.sleep(warp, time, "an mbarrier")
        return self.banks(warp, event, time)

    # ---- tensor cores
    def mma(self, warp: Warp, event: Event, time: float) -> bool:
        pipe = warp.cta.sm.tensor[warp.subcore]
        if pipe.free > time:
            return self.wait(warp, time, pipe.free, "the tensor core")
        clocks = self.rates.mma_clocks(event.instruction.flops, event.instruction.operands)
        least = self.rates.mma_clocks(4096, "f16")  # of the instruction whose latency is published
        pipe.take(time, clocks)
        return self.result(warp, event, time + self.lat.mma + max(0.0, clocks - least), "the tensor core")

    def wgmma(self, warp: Warp, event: Event, time: float) -> bool:
        queue = warp.cta.wgmmas.setdefault(warp.index // 4, [])
        if warp.wgmma_issued == len(queue):
            queue.append(Wgmma())
        operation = queue[warp.wgmma_issued]
        warp.wgmma_issued += 1
        warp.wgmma_open.append(operation)
        operation.arrived += 1
        if operation.arrived < 4:
            return True
        ins, sm = event.instruction, warp.cta.sm
        # Rows of operands are 32 bytes of k, those of B twice that where A is sparse. A comes in at the rate of shared
        # memory from registers too.
        a, b = 32 * 64 / self.rates.shared, (64 if ins.sparse else 32) * ins.n / self.rates.shared
        reads = b if ins.from_registers else a + b
        clocks = max(self.rates.wgmma_clocks(ins.n, ins.operands), reads, a)
        sm.shared.busy += reads
        start = max([time, *(pipe.free for pipe in sm.tensor)])
        for pipe in sm.tensor:
            pipe.take(start, clocks)
        operation.end = start + clocks
        self.slices.append((f"SM {sm.number}", "tensor cores", start, operation.end, f"n{ins.n} {ins.operands}"))
        self.wake(operation.waiting, operation.end)
        return True

    def wgmma_commit(self, warp: Warp, event: Event, time: float) -> bool:
        warp.wgmma_groups.append(warp.wgmma_open)
        warp.wgmma_open = []
        return True

    def wgmma_wait(self, warp: Warp, event: Event, time: float) -> bool:
        covered = warp.wgmma_groups[: len(warp.wgmma_groups) - event.instruction.pending]
        for operation in itertools.chain.from_iterable(covered):
            if operation.end is None:
                operation.waiting.append(warp)
                return self.sleep(warp, time, "wgmma")
            if operation.end > time:
                return self.wait(warp, time, operation.end, "wgmma")
        del warp.wgmma_groups[: len(covered)]
        return True

    # ---- copies
    def bulk(self, warp: Warp, event: Event, time: float) -> bool:
        notes, sm = list(event.notes), warp.cta.sm
        while notes:
            direction, size, l2, hbm, count, *rest = notes
            places, notes = rest[:count], rest[count:]
            moved = size / self.rates.shared
            sm.shared.busy += moved * max(count, 1)
            if direction == 1:
                written = sm.memory(time + self.lat.shared + moved, l2, hbm) + self.lat.l2
                warp.copies_open["bulk"].append((time + self.lat.shared + moved, written))
                self.finish(written)
                self.copy_slice(sm, "TMA store", time, written, size)
                continue
            if direction == 2:
                done = sm.dsm.take(time, size / self.rates.dsm)[1] + self.lat.dsm
            else:
                done = sm.memory(time, l2, hbm) + (self.lat.tma_hbm if hbm else self.lat.tma_l2)
            self.copy_slice(sm, "TMA load", time, done, size)
            for place in places:
                self.at(done, self.arrive, (self.mbarrier_at(warp, place)[1], 0, -size))
        return True

    def copy_slice(self, sm: Sm, name: str, start: float, end: float, size: int) -> None:
        """Copies overlap: each goes to the first track of the picture that is free."""
        free = self.lanes.setdefault((sm.number, name), [])
        index = next((i for i, until in enumerate(free) if until <= start), len(free))
        free[index : index + 1] = [end]
        self.slices.append((f"SM {sm.number}", f"{name} {index}", start, end, f"{size} B"))

    def bulk_commit(self, warp: Warp, event: Event, time: float) -> bool:
        return self.commit(warp, "bulk")

    def async_commit(self, warp: Warp, event: Event, time: float) -> bool:
        return self.commit(warp, "async")

    def commit(self, warp: Warp, kind: str) -> bool:
        warp.copies[kind].append(warp.copies_open[kind])
        warp.copies_open[kind] = []
        return True

    def bulk_wait(self, warp: Warp, event: Event, time: float) -> bool:
        return self.copies_wait(warp, event, time, "bulk")

    def async_wait(self, warp: Warp, event: Event, time: float) -> bool:
        if "wait_all" in event.instruction.text:
            self.commit(warp, "async")
        return self.copies_wait(warp, event, time, "async")

    def copies_wait(self, warp: Warp, event: Event, time: float, kind: str) -> bool:
        ins = event.instruction
        covered = warp.copies[kind][: len(warp.copies[kind]) - ins.pending]
        ends = [read if ins.read_only else done for copies in covered for read, done in copies]
        if ends and max(ends) > time:
            return self.wait(warp, time, max(ends), "a copy")
        if not ins.read_only:
            del warp.copies[kind][: len(covered)]
        return True

    def async_(self, warp: Warp, event: Event, time: float) -> bool:
        sm = warp.cta.sm
        _, passed = sm.shared.take(time, max(event.wavefronts, 1))
        l2, hbm = (*event.notes, 0, 0)[:2]
        done = sm.memory(passed, l2, hbm) + (self.lat.hbm if hbm else self.lat.l2)
        warp.copies_open["async"].append((done, done))
        return True
