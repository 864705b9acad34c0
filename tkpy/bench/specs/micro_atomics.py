"""Atomics on shared and global memory, by how many threads meet at one address."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import torch

from tkpy.bench.micro import Micro, Place, Plan, Struct
from tkpy.bench.spec import Benchmark

REPEATS = 8
ONE = struct.unpack("<i", struct.pack("<f", 1.0))[0]
#: kernel -> (PTX, words that one thread adds to, whether values are binary32)
OPERATIONS = {
    "atom_add": ("atom.relaxed.{}.add.u32", 1, False),
    "cas": ("atom.relaxed.{}.cas.b32", 1, False),
    "red_add": ("red.relaxed.{}.add.u32", 1, False),
    "red_add_f32": ("red.relaxed.{}.add.f32", 1, True),
    "red_add_v4_f32": ("red.relaxed.{}.add.v4.f32", 4, True),
}


def _patterns(space: str, width: int, warps: int) -> dict[str, Struct]:
    """Who meets whom: (count, warp_step, lane_step, degree). Lanes lie `width` words apart."""
    count = 32 * width * warps
    found = {
        f"{degree}-way": Struct((count, 32 * width, width, degree)) for degree in (1, 2, 4, 8, 16, 32)
    }  # lanes of a warp, each warp in its own words
    found["all"] = Struct((width, 0, 0, 32))  # every thread of the grid
    return found


def _words(pattern: Struct, warps: int, width: int) -> torch.Tensor:
    """The words that each thread adds to: [thread, width]."""
    count, warp_step, lane_step, degree = pattern.words
    thread = torch.arange(32 * warps)
    first = (thread // 32 * warp_step + thread % 32 // degree * lane_step) % count
    return first[:, None] + torch.arange(width)


def atomic_plan(operation: str, space: str, meeting: str, place: Place) -> Plan:
    """1024 threads of one SM (shared), or of every SM (global), and nothing else."""
    ptx, width, is_float = OPERATIONS[operation]
    block, grid = (64, place.ctas()) if place.small else (1024, place.ctas() if space == "global" else 1)
    grid = grid if space == "global" else 1
    warps = block // 32 * grid
    pattern = _patterns(space, width, warps)[meeting]
    iterations = place.times(32, 2, 2)
    count = pattern.words[0]
    words = torch.zeros(count, dtype=torch.int32, device=place.device)
    each = iterations * REPEATS
    hits = torch.zeros(count, dtype=torch.int64).index_add_(
        0, _words(pattern, warps, width).flatten(), torch.ones(32 * warps * width, dtype=torch.int64)
    )
    # Of the compare-and-swaps of one word that expect n, the first in a row succeeds, whoever does it: n + 1 is there.
    want = (hits > 0) * iterations if operation == "cas" else hits * each

    def result(sink: torch.Tensor) -> torch.Tensor:
        values = words.view(torch.float32) if is_float else words
        return values.cpu().double()

    total = each * 32 * warps * width
    return Plan(
        args=[words, pattern, ONE if is_float else 1, iterations],
        value=lambda r: total / r.first_clocks if space == "shared" else total / r.seconds / 1e9,
        grid=grid,
        block=block,
        shared=4 * count if space == "shared" else 0,
        before=words.zero_,
        want=want.double(),
        result=result,
        counters={ptx.format("cta.shared::cta" if space == "shared" else "gpu.global"): each * warps},
    )


def latency_plan(space: str, place: Place) -> Plan:
    """One warp, each lane on its own word, each atomic behind the one before."""
    iterations = place.times(64, 2)
    words: list[Any] = [torch.zeros(32, dtype=torch.int32, device=place.device)] if space == "global" else []
    count = iterations * REPEATS
    return Plan(
        args=[*words, iterations],
        value=lambda r: r.first_clocks / count,
        shared=128 if space == "shared" else 0,
        before=words[0].zero_ if words else None,
        want=torch.full((32,), count - 1).double(),
        result=lambda sink: sink.double(),
        counters={"atom.relaxed": count},
    )


def _rate(operation: str, space: str, meeting: str) -> Micro:
    crowd = {"1-way": "each thread its own word", "all": "all threads at one place"}.get(
        meeting, f"{meeting.split('-')[0]} lanes of a warp at one word"
    )
    where = "an SM's shared memory" if space == "shared" else "global memory"
    return Micro(
        name=f"atomics/{space}/{operation}/{meeting}",
        question=f"How many {operation} on {where}, {crowd}?",
        unit="op/clk/SM" if space == "shared" else "Gop/s", module="atomics", kernel=f"{operation}_{space}",
        plan=partial(atomic_plan, operation, space, meeting), shapes={"meeting": meeting}, rank=70, modelled=False,
    )  # fmt: skip


def micros() -> list[Micro]:
    """Latency, then rates by contention, of which the model of time knows nothing."""
    rows = [
        Micro(
            name=f"atomics/{space}/latency", question=f"How long does an atomic add on {space} memory take?",
            unit="clk", module="atomics", kernel=f"atom_latency_{space}", plan=partial(latency_plan, space), rank=69,
            modelled=False,
        )
        for space in ("shared", "global")
    ]  # fmt: skip
    for space in ("shared", "global"):
        for operation, (_, width, _) in OPERATIONS.items():
            if space == "global" or width == 1:
                rows += [_rate(operation, space, meeting) for meeting in _patterns(space, width, 1)]
    return rows


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
