"""Waiting for each other: barriers of a CTA, a cluster and the grid, mbarriers, fences, register pools."""

from __future__ import annotations

from functools import partial

import torch

from tkpy.bench.micro import Maker, Micro, Place, Plan
from tkpy.bench.spec import Benchmark

REPEATS = 8


def barrier_plan(
    kernel: str,
    ptx: str,
    block: int,
    place: Place,
    *,
    repeats: int = REPEATS,
    cluster: int = 1,
    grid: int = 1,
    each: int = 1,
    ball: bool = False,
) -> Plan:
    """Clocks per barrier, in which every warp issues `ptx` `each` times; `ball`: the sink counts hand-overs, two a
    round trip."""
    iterations = place.times(512 if grid == 1 else 64, 3)
    count = iterations * repeats
    extra = 1 if kernel == "sync_threads" else 0  # the stopwatch has one too
    return Plan(
        args=[iterations],
        value=lambda r: r.first_clocks / count,
        grid=grid,
        block=block,
        cluster=cluster,
        want=torch.full((grid * block,), 2 * count if ball else count).double(),
        result=lambda sink: sink.double(),
        counters={ptx: (count * each + extra) * block // 32 * grid},
    )


def grid_plan(per_sm: int, place: Place) -> Plan:
    """A counter in global memory; the driver refuses the launch unless all CTAs are resident at once."""
    counter = torch.zeros(1, dtype=torch.int32, device=place.device)
    grid = place.ctas(per_sm)
    iterations = place.times(64, 3)
    return Plan(
        args=[counter, iterations],
        value=lambda r: r.first_clocks / iterations,
        grid=grid,
        block=128,
        cooperative=True,
        before=counter.zero_,
        want=torch.tensor([grid * iterations, *[iterations] * (grid * 128)]).double(),
        result=lambda sink: torch.cat([counter, sink]).double(),
        counters={"red.release.gpu": grid * iterations},
    )


def fence_plan(ptx: str, stores: bool, place: Place) -> Plan:
    """One warp; with `stores`, each fence has one store to global memory before it."""
    iterations = place.times(256, 2)
    words = torch.full((32,), -1, dtype=torch.int32, device=place.device)
    count = iterations * REPEATS
    last = count - 1 if stores else -1
    return Plan(
        args=[words, int(stores), iterations],
        value=lambda r: r.first_clocks / count,
        want=torch.tensor([last] * 32 + [count] * 32).double(),
        result=lambda sink: torch.cat([words, sink]).double(),
        counters={ptx: count},
    )


def _micro(name: str, question: str, kernel: str, plan: Maker, *, modelled: bool = True) -> Micro:
    return Micro(
        name=f"sync/{name}",
        question=question,
        unit="clk",
        module="sync",
        kernel=kernel,
        plan=plan,
        rank=40,
        modelled=modelled,
    )


def _barriers() -> list[Micro]:
    """By how many threads or CTAs meet."""
    rows = []
    for block in (32, 128, 256, 512, 1024):
        for kernel, ptx in (("sync_threads", "bar.sync"), ("sync_named", "barrier.cta.sync")):
            rows.append(
                _micro(
                    f"{kernel}/{block}",
                    f"What does {kernel} cost {block} threads?",
                    kernel,
                    partial(barrier_plan, kernel, ptx, block),
                )
            )
        rows.append(
            _micro(
                f"mbarrier_all/{block}",
                f"What does an mbarrier cost {block} threads that all arrive and wait?",
                "mbarrier_all",
                partial(barrier_plan, "mbarrier_all", "mbarrier.arrive", block, repeats=1),
            )
        )
    rows.append(
        _micro(
            "mbarrier_pingpong",
            "How long does a round trip between two warps take over mbarriers?",
            "mbarrier_pingpong",
            partial(barrier_plan, "mbarrier_pingpong", "mbarrier.arrive", 64, repeats=1, ball=True),
        )
    )
    for ctas in (1, 2, 4, 8, 16):
        for kernel, order in (("cluster_barrier", "release"), ("cluster_barrier_relaxed", "relaxed")):
            rows.append(
                _micro(
                    f"{kernel}/{ctas}",
                    f"What does a barrier of a cluster of {ctas} cost, arrive.{order}?",
                    kernel,
                    partial(barrier_plan, kernel, f"barrier.cluster.arrive.{order}", 128, cluster=ctas, grid=ctas),
                )
            )
    return rows


def micros() -> list[Micro]:
    """Barriers, fences by scope, register pools. The model of time knows no cost of fences and of setmaxnreg, and does
    not see what polls of global memory wait for."""
    rows = _barriers()
    for per_sm in (1, 2):
        rows.append(
            _micro(
                f"grid_barrier/{per_sm}",
                f"What does a grid barrier cost, {per_sm} CTAs an SM?",
                "grid_barrier",
                partial(grid_plan, per_sm),
                modelled=False,
            )
        )
    scopes = {
        "cta": "fence.acq_rel.cta",
        "cluster": "fence.acq_rel.cluster",
        "gpu": "fence.acq_rel.gpu",
        "system": "fence.acq_rel.sys",
        "proxy_async": "fence.proxy.async",
    }
    for scope, ptx in scopes.items():
        for stores in (False, True):
            rows.append(
                _micro(
                    f"fence/{scope}/{'store' if stores else 'idle'}",
                    f"What does {ptx} cost a warp {'after a store' if stores else 'with nothing to wait for'}?",
                    f"fence_{scope}",
                    partial(fence_plan, ptx, stores),
                    modelled=False,
                )
            )
    rows.append(
        _micro(
            "setmaxnreg",
            "What do giving registers and taking them again cost a warpgroup, with two barriers?",
            "register_pool",
            partial(barrier_plan, "register_pool", "setmaxnreg", 128, repeats=1, each=2),
            modelled=False,
        )
    )
    return rows


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
