"""Global memory: latency of L1, L2 (near and far) and HBM by pointer chase; bandwidth of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from tkpy.bench.micro import Micro, Place, Plan, Records, Wide, eviction
from tkpy.bench.spec import Benchmark

HOPS, VECTOR = 8, 16
LINE = 128
MIB, GIB = 1 << 20, 1 << 30


def _chain(place: Place, size: int, step: int) -> tuple[torch.Tensor, Any]:
    """Memory in which every `step`-th byte holds the address of another such place, in one random cycle over all of
    them; and the order of the places, in steps."""
    memory = torch.zeros(size // 8, dtype=torch.int64, device=place.device)
    order = np.random.default_rng(0).permutation(size // step)
    following = np.empty_like(order)
    following[order] = np.roll(order, -1)
    addresses = torch.from_numpy(following * step).to(place.device) + memory.data_ptr()
    memory.view(-1, step // 8)[:, 0] = addresses
    return memory, order


def _start(memory: torch.Tensor, order: Any, step: int) -> torch.Tensor:
    """The memory, from the first place of the cycle on."""
    return memory[int(order[0]) * step // 8 :]


def _end(memory: torch.Tensor, order: Any, step: int, hops: int) -> torch.Tensor:
    low = (memory.data_ptr() + int(order[hops % len(order)]) * step) & 0xFFFFFFFF
    return torch.full((32,), low - (1 << 32 if low >> 31 else 0), dtype=torch.int32).double()


def chase_plan(size: int, cached: bool, resident: bool, place: Place) -> Plan:
    """`resident`: one lap of warm-up, so that all of it is in the cache in question; else the caches are evicted."""
    size = min(size, 1 << 14) if place.small or place.brief else size
    memory, order = _chain(place, size, LINE)
    warm = len(order) if resident else 0
    iterations = place.times(min(1024, len(order) // HOPS), 3)
    hops = iterations * HOPS
    return Plan(
        args=[_start(memory, order, LINE), warm, iterations],
        value=lambda r: r.first_clocks / hops,
        before=None if resident else eviction(place),
        cold=not resident,
        want=_end(memory, order, LINE, warm + hops),
        result=lambda sink: sink.double(),
        counters={f"ld.global.{'ca' if cached else 'cg'}.u64": hops},
        touches=(memory,),
    )


def split(samples: Any) -> tuple[float, float]:
    """Medians of the lower and the upper group of samples, cut where the groups' means lie furthest apart (weighted:
    the cut with the greatest variance between groups)."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)[:-1]
    low, high = sums / count, (ordered.sum() - sums) / (len(ordered) - count)
    cut = int(np.argmax(count * (len(ordered) - count) * (high - low) ** 2)) + 1
    return float(np.median(ordered[:cut])), float(np.median(ordered[cut:]))


def hops_plan(size: int, resident: bool, far: bool, place: Place) -> Plan:
    """Every hop timed alone. What one SM sees of L2 is two groups: lines in its own partition and in the other."""
    size = min(size, 1 << 14) if place.small or place.brief else size
    memory, order = _chain(place, size, LINE)
    warm, iterations = len(order) if resident else 0, place.times(min(8192, len(order)), 5)
    hops = torch.full((iterations,), -1, dtype=torch.int64, device=place.device)
    return Plan(
        args=[_start(memory, order, LINE), hops, warm, iterations],
        value=lambda r: split(hops.cpu().numpy())[far],
        before=None if resident else eviction(place),
        cold=not resident,
        want=_end(memory, order, LINE, warm + iterations),
        result=lambda sink: sink.double() + float((hops < 0).sum()),
        counters={"ld.global.cg.u64": iterations, "mov.u64 %rd": 2 * iterations + 1},  # the clock, and the timer once
        touches=(memory,),
    )


def l1_plan(place: Place) -> Plan:
    """One CTA an SM reads its own 64 KiB again and again."""
    grid, block = place.ctas(), 128 if place.small else 1024
    size, laps = 4 * VECTOR * block, place.times(128, 2, 4)
    data = torch.arange(grid * size // 4, dtype=torch.int32, device=place.device)
    want = None
    if place.small:
        words = data.cpu().long().reshape(grid, size // 16, 4)
        mixed = words[..., 0] ^ words[..., 1] ^ words[..., 2] ^ words[..., 3]  # the first time, into L1
        want = (laps * words.sum((1, 2)) + mixed.sum(1) & 0xFFFFFFFF).double()
    return Plan(
        args=[data, size, laps],
        value=lambda r: laps * size / r.clocks,
        grid=grid,
        block=block,
        want=want,
        result=lambda sink: (sink.cpu().long().reshape(grid, block).sum(1) & 0xFFFFFFFF).double(),
        counters={"ld.global.ca.v4": laps * size // VECTOR * grid // 32},
    )


def stream_plan(kind: str, size: int, laps: int, unit: str, place: Place) -> Plan:
    """Two CTAs of 1024 threads an SM, four vectors of 16 bytes a thread in flight."""
    grid, block = place.ctas(2), 64 if place.small else 1024
    lap = 4 * VECTOR * grid * block
    cold = size >= GIB
    size = 2 * lap if place.small else 8 * lap * place.brief if place.brief else max(size // lap, 1) * lap
    laps = 2 if place.small else 1 if place.brief else laps
    source = torch.arange(size // 4, dtype=torch.int32, device=place.device)
    target = torch.zeros_like(source) if kind != "read" else source
    moved = size * laps * (2 if kind == "copy" else 1)
    args = {"read": [source], "write": [target], "copy": [target, source]}[kind]
    want = None
    if place.small:
        want = {
            "read": lambda: source.long().sum()[None] * laps & 0xFFFFFFFF,
            "write": lambda: torch.arange(size // 16).repeat_interleave(4),
            "copy": lambda: source,
        }[kind]().double()

    def result(sink: torch.Tensor) -> torch.Tensor:
        return (sink.cpu().long().sum()[None] & 0xFFFFFFFF).double() if kind == "read" else target.double().cpu()

    def value(records: Records) -> float:
        return moved / records.clocks if unit == "B/clk" else moved / records.seconds / 1e9

    issues = laps * size // VECTOR // 32
    return Plan(
        args=[*args, Wide(size), laps],
        value=value,
        grid=grid,
        block=block,
        want=want,
        result=result,
        cold=cold,
        counters={
            "ld.global.cg.v4": issues if kind != "write" else 0,
            "st.global.v4": issues if kind != "read" else 0,
        },
    )


def _chase(name: str, what: str, size: int, cached: bool, resident: bool, published: tuple[str, ...]) -> Micro:
    return Micro(
        name=f"memory/latency/{name}", question=f"How long does a load take that {what}?", unit="clk", module="memory",
        kernel="chase_ca" if cached else "chase_cg", plan=partial(chase_plan, size, cached, resident),
        shapes={"bytes": size}, inputs="one random cycle", published=published, rank=10,
    )  # fmt: skip


def _hops(name: str, what: str, size: int, resident: bool, far: bool) -> Micro:
    return Micro(
        name=f"memory/latency/{name}", question=f"How long does a load take that {what}, clock included?", unit="clk",
        module="memory", kernel="chase_each", plan=partial(hops_plan, size, resident, far),
        shapes={"bytes": size}, inputs="one random cycle", published=(f"hopper25/latency/l2/{name.split('/')[1]}",),
        rank=11, modelled=False,  # the model has no partitions
    )  # fmt: skip


def _stream(kind: str, where: str, size: int, laps: int, unit: str, published: tuple[str, ...] = ()) -> Micro:
    return Micro(
        name=f"memory/{kind}/{where}" + ("/clk" if unit == "B/clk" else ""),
        question=f"How fast does the machine {kind} {size // MIB} MiB of {where}?", unit=unit,
        module="memory", kernel=kind, plan=partial(stream_plan, kind, size, laps, unit),
        shapes={"bytes": size, "laps": laps}, published=published, rank=12,
    )  # fmt: skip


def micros() -> list[Micro]:
    """Latencies, then bandwidths, from the SM outwards."""
    l1 = Micro(
        name="memory/read/l1", question="How fast does an SM read what is in its L1?", unit="B/clk/SM",
        module="memory", kernel="read_ca", plan=l1_plan, published=("ipdps24/bandwidth/l1",), rank=12,
    )  # fmt: skip
    rows = [
        _chase("l1", "hits L1", 16 << 10, True, True, ("ipdps24/latency/l1", "logs/latency/random/l1")),
        _chase("l2", "hits L2", 8 * MIB, False, True, ("ipdps24/latency/l2", "logs/latency/random/l2")),
        _chase("hbm", "goes to memory", 512 * MIB, False, False, ("ipdps24/latency/global",)),
        _hops("l2/near_hit", "hits the near partition of L2", 8 * MIB, True, False),
        _hops("l2/far_hit", "hits the far partition of L2", 8 * MIB, True, True),
        _hops("l2/near_miss", "misses the near partition of L2", 512 * MIB, False, False),
        _hops("l2/far_miss", "misses the far partition of L2", 512 * MIB, False, True),
        l1,
        _stream("read", "l2", 16 * MIB, 32, "B/clk", ("ipdps24/bandwidth/l2",)),
        _stream("read", "hbm", GIB, 1, "GB/s", ("ipdps24/bandwidth/global",)),
    ]
    rows += [_stream(kind, "l2", 16 * MIB, 32, "GB/s") for kind in ("read", "write", "copy")]
    return rows + [_stream(kind, "hbm", GIB, 1, "GB/s") for kind in ("write", "copy")]


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
