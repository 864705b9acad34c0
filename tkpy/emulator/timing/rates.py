"""Rates and latencies of one SM, from published figures (tkpy/bench/published); clocks and bytes per clock."""

from __future__ import annotations

from dataclasses import dataclass

from tkpy import published

#: Lanes per clock of an SM, by kind of arithmetic.
ARITHMETIC = {
    **{kind: f"guide/rate/{kind}" for kind in ("f32", "f16", "f64", "special", "integer")},
    **{kind: f"assumed/rate/{kind}" for kind in ("count", "shuffle", "reduce", "vote", "convert", "convert64")},
}

#: Depth of one wgmma by its operands' type: m64 n256 of it takes 128 clocks for each of them (IPDPS 2024).
WGMMA_DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
#: Whose figure a type has.
WGMMA_FIGURE = {"f16": "f16", "bf16": "f16", "tf32": "tf32", "e4m3": "e4m3", "e5m2": "e4m3", "s8": "s8", "u8": "s8"}

#: The published figures that the model takes; all others it can be compared with.
GIVEN = frozenset(
    {
        *ARITHMETIC.values(),
        *(f"assumed/latency/{what}" for what in ("arithmetic", "special", "shuffle", "barrier")),
        "assumed/bandwidth/l2_port",
        *(f"ipdps24/latency/{where}" for where in ("shared", "l1", "l2")),
        *(f"ipdps24/bandwidth/{where}" for where in ("shared", "l2", "global")),
        *(f"hopper25/latency/{what}" for what in ("l2/near_miss", "l2/far_miss", "tma_over_load")),
        "logs/latency/tma/l2",
        *(f"ipdps24/dsm/{what}" for what in ("latency", "bandwidth/2", "bandwidth/4")),
        *(f"ipdps24/mma/m16n8k16/f16/{what}" for what in ("latency", "rate")),
        "ipdps24/mma/m16n8k32/s8/rate",
        *(f"ipdps24/wgmma/m64n256k{WGMMA_DEPTH[of]}/{of}/ss/latency" for of in sorted(set(WGMMA_FIGURE.values()))),
    }
)

RESIDENT_WARPS, RESIDENT_CTAS, SHARED_BYTES, REGISTERS = 64, 32, 228 << 10, 65536
SUBCORES = 4


@dataclass(frozen=True)
class Rates:
    """One SM of a device at a clock; `active`: SMs that share L2 and HBM with it, itself included."""

    device: str
    multiprocessors: int
    clock: float  # Hz
    active: int
    lanes: dict[str, float]  # per clock
    l2: float  # bytes per clock for this SM: its share
    hbm: float
    port: float  # what one SM can take at most
    shared: float
    dsm: float

    @classmethod
    def of(
        cls, device: str = "h100-sxm", clock: float | None = None, active: int | None = None, cluster: int = 1
    ) -> Rates:
        """The rates of a device of devices.json; by default at its data sheet's boost clock, with all SMs at work."""
        known = {d.id: d for d in published.devices()}
        if device not in known:
            raise ValueError(f"no device {device!r}; the devices are {', '.join(known)}")
        sheet = known[device]
        clock = clock or sheet.clock
        active = active or sheet.multiprocessors
        if not 1 <= active <= sheet.multiprocessors:
            raise ValueError(f"active must be in 1..{sheet.multiprocessors}, got {active}")

        def carried(name: str) -> float:
            return published.figures()[name].on(sheet.multiprocessors, clock, sheet.bandwidth)

        port = figure("assumed/bandwidth/l2_port")
        return cls(
            device,
            sheet.multiprocessors,
            clock,
            active,
            {kind: figure(name) for kind, name in ARITHMETIC.items()},
            min(carried("ipdps24/bandwidth/l2") / active, port),
            min(1e9 * carried("ipdps24/bandwidth/global") / clock / active, port),
            port,
            figure("ipdps24/bandwidth/shared"),
            1e9 * carried(f"ipdps24/dsm/bandwidth/{2 if cluster <= 2 else 4}") / clock / sheet.multiprocessors,
        )

    def wgmma_clocks(self, n: int, kind: str) -> float:
        """Of the tensor cores for one m64 n k instruction of a type's own depth."""
        if kind not in WGMMA_FIGURE:
            raise ValueError(f"no published rate of wgmma on {kind}")
        depth, of = WGMMA_DEPTH[kind], WGMMA_FIGURE[kind]
        return figure(f"ipdps24/wgmma/m64n256k{depth}/{of}/ss/latency") * n / 256

    def mma_clocks(self, flops: float, kind: str) -> float:
        """Of one sub-core's tensor core for one mma.sync of a warp: published for fp16 and int8, others by width."""
        name = "m16n8k32/s8" if kind in ("s8", "u8", "e4m3", "e5m2") else "m16n8k16/f16"
        rate = published.figures()[f"ipdps24/mma/{name}/rate"]
        per_clock = rate.value * 1e12 / rate.clock / rate.device.multiprocessors / SUBCORES
        return flops / per_clock * (2 if kind == "tf32" else 1)


def figure(name: str) -> float:
    """A published value that holds on every device: cycles, or rates per clock and SM."""
    return published.figures()[name].value


@dataclass(frozen=True)
class Latencies:
    """Cycles from issue to a dependent instruction."""

    arithmetic: float
    special: float
    shuffle: float
    barrier: float
    shared: float
    l1: float
    l2: float
    hbm: float
    tma_l2: float
    tma_hbm: float
    dsm: float
    mma: float

    @classmethod
    def published(cls) -> Latencies:
        """As measured on H800, or assumed where nothing is published (assumed.json)."""
        # Of what misses L2, half does so in the far partition.
        miss = (figure("hopper25/latency/l2/near_miss") + figure("hopper25/latency/l2/far_miss")) / 2
        return cls(
            arithmetic=figure("assumed/latency/arithmetic"),
            special=figure("assumed/latency/special"),
            shuffle=figure("assumed/latency/shuffle"),
            barrier=figure("assumed/latency/barrier"),
            shared=figure("ipdps24/latency/shared"),
            l1=figure("ipdps24/latency/l1"),
            l2=figure("ipdps24/latency/l2"),
            hbm=miss,
            tma_l2=figure("logs/latency/tma/l2"),
            tma_hbm=miss + figure("hopper25/latency/tma_over_load"),
            dsm=figure("ipdps24/dsm/latency"),
            mma=figure("ipdps24/mma/m16n8k16/f16/latency"),
        )
