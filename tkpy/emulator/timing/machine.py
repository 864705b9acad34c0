"""The state of a replay: SMs with their resources, clusters, CTAs, barriers and warps."""

from __future__ import annotations

from dataclasses import dataclass, field

from tkpy.emulator.timing.rates import SUBCORES, Rates
from tkpy.emulator.timing.record import Event


@dataclass
class Pipe:
    """A resource that serves what comes in order, at a rate; `busy` is how long it has served."""

    free: float = 0.0
    busy: float = 0.0

    def burst(self, at: float, clocks: float, fastest: float) -> float:
        """When a request is served by an SM's share of what all SMs use. After a pause it finds others pausing, too: it
        takes between the `fastest` that the SM's port allows and its share's `clocks`, halfway; on average over time
        the share is all that there is."""
        self.free = max(self.free + clocks, at + (clocks + fastest) / 2)
        self.busy += clocks
        return self.free

    def take(self, at: float, clocks: float) -> tuple[float, float]:
        """From when to when a request of so many clocks is served."""
        start = max(at, self.free)
        self.free = start + clocks
        self.busy += clocks
        return start, self.free


@dataclass
class Sm:
    """One SM: four sub-cores that issue and compute, and what they share. L2 and HBM are its share of the machine's."""

    rates: Rates
    number: int
    issue: list[Pipe] = field(default_factory=lambda: [Pipe() for _ in range(SUBCORES)])
    tensor: list[Pipe] = field(default_factory=lambda: [Pipe() for _ in range(SUBCORES)])
    units: dict[tuple[int, str], Pipe] = field(default_factory=dict)
    shared: Pipe = field(default_factory=Pipe)
    l2: Pipe = field(default_factory=Pipe)
    hbm: Pipe = field(default_factory=Pipe)
    dsm: Pipe = field(default_factory=Pipe)

    def unit(self, subcore: int, name: str) -> Pipe:
        """The arithmetic unit of a sub-core."""
        return self.units.setdefault((subcore, name), Pipe())

    def memory(self, at: float, l2_sectors: int, hbm_sectors: int) -> float:
        """When the last of the sectors has passed this SM's share of L2 and HBM; latency comes on top."""
        end, both = at, 32 * (l2_sectors + hbm_sectors)
        if both:
            end = self.l2.burst(at, both / self.rates.l2, both / self.rates.port)
        if hbm_sectors:
            end = max(end, self.hbm.burst(at, 32 * hbm_sectors / self.rates.hbm, 32 * hbm_sectors / self.rates.port))
        return end

    def utilisation(self, cycles: float) -> dict[str, float]:
        """Share of the time that each resource was busy: of sub-cores, the busiest."""
        found = {
            "issue slots": max(p.busy for p in self.issue),
            "tensor cores": max(p.busy for p in self.tensor),
            "shared memory": self.shared.busy,
            "L2 bandwidth": self.l2.busy,
            "HBM bandwidth": self.hbm.busy,
            "distributed shared memory": self.dsm.busy,
        }
        for (_, name), pipe in self.units.items():
            found[f"{name} units"] = max(found.get(f"{name} units", 0.0), pipe.busy)
        return {name: busy / max(cycles, 1.0) for name, busy in found.items()}


@dataclass
class Mbarrier:
    """Phases as in PTX ISA 9.7.13.15; `waiting`: warps that sleep until a phase ends."""

    count: int
    pending: int
    tx: int = 0
    phase: int = 0
    waiting: list[Warp] = field(default_factory=list)

    def passed(self, parity: int) -> bool:
        return (self.phase & 1) != parity

    def settle(self) -> bool:
        """Ends the phase if nothing is pending; whether it did."""
        if self.pending > 0 or self.tx != 0:
            return False
        self.phase += 1
        self.pending = self.count
        return True


@dataclass
class NamedBarrier:
    """Warps that arrived, and those that sleep until all have."""

    arrived: int = 0
    needed: int = 0  # warps; 0: all of the CTA
    waiting: list[Warp] = field(default_factory=list)


@dataclass
class Wgmma:
    """One wgmma of a warpgroup: it starts when its fourth warp has issued it."""

    arrived: int = 0
    end: float | None = None
    waiting: list[Warp] = field(default_factory=list)


@dataclass(eq=False)
class Cluster:
    """CTAs that run together, one on each SM."""

    ctas: list[Cta] = field(default_factory=list)
    arrived: int = 0  # lanes at the cluster barrier
    phase: int = 0
    released: float = 0.0  # when the last phase's end is known to all
    waiting: list[Warp] = field(default_factory=list)
    running: int = 0  # warps

    @property
    def lanes(self) -> int:
        return sum(cta.threads for cta in self.ctas)


@dataclass(eq=False)
class Cta:
    """A CTA on its SM."""

    number: int
    cluster: Cluster
    sm: Sm
    threads: int
    running: int = 0
    mbarriers: dict[int, Mbarrier] = field(default_factory=dict)
    named: dict[int, NamedBarrier] = field(default_factory=dict)
    wgmmas: dict[int, list[Wgmma]] = field(default_factory=dict)  # by warpgroup


@dataclass(eq=False)
class Warp:
    """A warp and where it is in its record; `ready`: when each register will be, and what it waits for."""

    cta: Cta
    index: int
    events: tuple[Event, ...]
    at: int = 0
    ready: dict[str, tuple[float, str]] = field(default_factory=dict)
    asleep: tuple[float, str] | None = None  # since when, and for what
    wgmma_issued: int = 0
    wgmma_open: list[Wgmma] = field(default_factory=list)
    wgmma_groups: list[list[Wgmma]] = field(default_factory=list)
    copies_open: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"bulk": [], "async": []})
    copies: dict[str, list[list[tuple[float, float]]]] = field(default_factory=lambda: {"bulk": [], "async": []})
    cluster_phase: int = 0  # that its last arrival belongs to
    slices: list[tuple[float, float, str]] = field(default_factory=list)  # waits, for pictures

    @property
    def subcore(self) -> int:
        return self.index % SUBCORES
