"""Distributed shared memory: latency and bandwidth between the CTAs of a cluster, by its size."""

from __future__ import annotations

from functools import partial

import torch

from tkpy.bench.micro import Maker, Micro, Place, Plan, known_figures
from tkpy.bench.spec import Benchmark

HOPS = 16
SIZES = (2, 4, 8, 16)


def _grid(ctas: int, place: Place) -> int:
    return ctas * (2 if place.small else place.multiprocessors // ctas)


def _ranks(grid: int, ctas: int) -> torch.Tensor:
    return torch.arange(grid) % ctas


def chase_plan(ctas: int, distance: int, place: Place) -> Plan:
    """One warp of rank 0 chases in the memory of the CTA at `distance`; the rest of the cluster waits."""
    size, stride, iterations = 4096, 132, place.times(256, 2)
    hops = iterations * HOPS
    lane = 4 * torch.arange(32)
    want = torch.cat([(lane + stride * hops) % size if rank == 0 else lane for rank in range(ctas)])
    return Plan(
        args=[size, stride, distance, ctas, 1, iterations],
        value=lambda r: r.first_clocks / hops,
        grid=ctas,
        cluster=ctas,
        shared=size,
        want=want.double(),
        result=lambda sink: sink.double(),
        counters={"ld.shared::cluster": hops},
    )


def stream_plan(ctas: int, distance: int, write: bool, place: Place) -> Plan:
    """Every CTA reads from, or writes to, the CTA at `distance`, all at the same time."""
    block, grid, laps = 64 if place.small else 1024, _grid(ctas, place), place.times(64, 2, 4)
    size = 64 * block * (1 if place.small else 2)
    rank = _ranks(grid, ctas)
    if write:  # thread t of the sender writes sender + 1 + t into its vectors; two words of a vector are looked at
        sender = (rank - distance) % ctas
        vectors = size // 16 // block
        want = 2 * vectors * (sender[:, None] + 1 + torch.arange(block))
    else:
        peer = (rank + distance) % ctas
        words = torch.arange(size // 4).reshape(-1, block, 4).sum((0, 2))
        want = laps * (words + (size // 4 // block) * (peer[:, None] + 1))
    moved = laps * size * grid
    return Plan(
        args=[size, distance, ctas, laps],
        value=lambda r: moved / r.seconds / 1e9,
        grid=grid,
        block=block,
        cluster=ctas,
        shared=size,
        want=want.reshape(-1).double(),
        result=lambda sink: sink.double(),
        counters={f"{'st' if write else 'ld'}.shared::cluster.v4": moved // 16 // 32},
    )


def send_plan(ctas: int, distance: int, full: int, place: Place) -> Plan:
    """Bulk copies to the CTA at `distance`, two in flight; what came last is added up by the threads."""
    block, grid, iterations, size = 32, _grid(ctas, place), place.times(512, 4, 16), 1024 if place.small else full
    sender = (_ranks(grid, ctas) - distance) % ctas
    words = torch.arange(size // 4).reshape(-1, block).sum(0)
    want = words + size // 4 // block * (sender[:, None] + 1)
    return Plan(
        args=[size, distance, ctas, iterations],
        value=lambda r: iterations * size * grid / r.seconds / 1e9,
        grid=grid,
        block=block,
        cluster=ctas,
        shared=3 * size,
        want=want.reshape(-1).double(),
        result=lambda sink: sink.double(),
        counters={"cp.async.bulk.shared::cluster.shared::cta": iterations * grid},
    )


def _micro(
    name: str, question: str, unit: str, kernel: str, plan: Maker, ctas: int, published: tuple[str, ...], rank: int
) -> Micro:
    return Micro(
        name=f"dsm/{name}", question=question, unit=unit, module="cluster", kernel=kernel, plan=plan,
        shapes={"cluster": ctas}, published=known_figures(published), rank=rank,
    )  # fmt: skip


def micros() -> list[Micro]:
    """Latency by distance, bandwidth by size of the cluster."""
    rows = []
    for ctas, distance in ((1, 0), (2, 1), (4, 2), (8, 4), (16, 8)):
        figures = {1: ("logs/dsm/latency/self",), 2: ("ipdps24/dsm/latency", "logs/dsm/latency/pair")}
        figure = figures.get(ctas, ("logs/dsm/latency/cluster",))
        rows.append(
            _micro(f"latency/{ctas}", f"How long does a load take from {distance} CTAs further in a cluster of {ctas}?",
                   "clk", "cluster_chase", partial(chase_plan, ctas, distance), ctas, figure, 13)
        )  # fmt: skip
    for ctas in SIZES:
        for write in (False, True):
            verb = "write" if write else "read"
            rows.append(
                _micro(f"{verb}/{ctas}", f"How fast do all CTAs {verb} their neighbour's memory in clusters of {ctas}?",
                       "GB/s", f"cluster_{verb}", partial(stream_plan, ctas, 1, write), ctas,
                       () if write else (f"ipdps24/dsm/bandwidth/{ctas}",), 14)
            )  # fmt: skip
        rows.append(
            _micro(f"send/{ctas}", f"How fast do bulk copies of 16 KiB go to the neighbour in clusters of {ctas}?",
                   "GB/s", "cluster_send", partial(send_plan, ctas, 1, 16384),
                   ctas, (), 15)
        )  # fmt: skip
    return rows


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
