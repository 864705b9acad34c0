"""Shared memory of one SM: latency, bandwidth by width and conflict degree, ldmatrix and stmatrix."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from tkpy.bench.micro import Micro, Place, Plan
from tkpy.bench.spec import Benchmark

BYTES = 32768  # that addresses wrap into: a kilobyte for each of 32 warps
HOPS, ACCESSES = 16, 8


def _fill(bytes_: int) -> Any:
    """What the kernels fill shared memory with, as words."""
    return ((np.arange(1, bytes_ // 4 + 1, dtype=np.uint64) * 2654435761) & 0xFFFFFFFF).astype(np.int64)


def _addresses(block: int, stride: int) -> Any:
    thread = np.arange(block)
    return (thread // 32 * 1024 + thread % 32 * stride) % BYTES


def _words(total: Any) -> torch.Tensor:
    return torch.from_numpy((np.asarray(total) & 0xFFFFFFFF).astype(np.uint32).view(np.int32).copy()).double()


def chase_plan(place: Place) -> Plan:
    """One warp, its lanes in neighbouring words: no conflicts."""
    iterations, stride, size = place.times(256, 2), 132, 4096
    hops = iterations * HOPS
    return Plan(
        args=[size, stride, iterations],
        value=lambda r: r.first_clocks / hops,
        shared=size,
        want=torch.from_numpy((4 * np.arange(32) + stride * hops) % size).double(),
        result=lambda sink: sink.double(),
        counters={"ld.shared": hops},
        wavefronts={"ld.shared": hops},
    )


def _passes(width: int, degree: int) -> int:
    """Wavefronts of one warp's access, lanes `width * degree` bytes apart: 4-byte accesses go in one pass, 8-byte ones
    in two of 16 lanes, 16-byte ones in four of 8; in each, `degree` lanes meet in a bank, or all of them. All at one
    address (degree 0) is one broadcast a pass."""
    parts = width // 4
    return parts * max(1, min(degree, 32 // parts))


def access_plan(width: int, degree: int, write: bool, place: Place) -> Plan:
    """1024 threads that do nothing else."""
    iterations, block, stride = place.times(512, 2), 64 if place.small else 1024, width * degree
    if write:
        want = np.full(block, stride)
    else:
        memory = _fill(BYTES + 128 * ACCESSES).reshape(-1)
        start = _addresses(block, stride) // 4
        mixed = [
            np.bitwise_xor.reduce([memory[start + 32 * i + j] for j in range(width // 4)]) for i in range(ACCESSES)
        ]
        want = iterations * np.sum(mixed, axis=0)
    requests = iterations * ACCESSES * block // 32
    ptx = f"{'st' if write else 'ld'}.shared"
    return Plan(
        args=[BYTES, stride, 0, iterations],
        value=lambda r: iterations * ACCESSES * block * width / r.first_clocks,
        block=block,
        shared=BYTES + 128 * ACCESSES,
        want=_words(want),
        result=lambda sink: sink.double(),
        counters={ptx: requests},
        wavefronts={ptx: requests * _passes(width, degree)},
    )


def _ldmatrix(memory: Any, start: Any, matrices: int, trans: bool) -> Any:
    """Registers [matrix, lane] of one warp: lane 4r + c holds elements 2c, 2c + 1 of row r, or of column r."""
    halves = memory.astype(np.uint32).view(np.uint16)
    out = []
    for m in range(matrices):
        tile = np.stack([halves[start[8 * m + row] // 2 :][:8] for row in range(8)]).astype(np.int64)
        tile = tile.T if trans else tile
        out.append((tile[:, 0::2] | tile[:, 1::2] << 16).reshape(32))
    return np.stack(out)


def matrix_plan(matrices: int, trans: bool, store: bool, pitch: int, place: Place) -> Plan:
    """Rows of 16 bytes, `pitch` bytes apart: 16 is free of conflicts, 128 puts all eight rows into the same banks."""
    iterations, block = place.times(512, 2), 64 if place.small else 1024
    if store:
        want = np.full(block, pitch)
    else:
        memory, starts = _fill(BYTES + 128 * ACCESSES), _addresses(block, pitch).reshape(-1, 32)
        want = np.concatenate(
            [
                iterations
                * sum(
                    np.bitwise_xor.reduce(_ldmatrix(memory, start + 128 * i, matrices, trans)) for i in range(ACCESSES)
                )
                for start in starts
            ]
        )
    requests = iterations * ACCESSES * block // 32
    ptx = "stmatrix" if store else "ldmatrix"
    return Plan(
        args=[BYTES, pitch, 0, iterations],
        value=lambda r: requests * matrices * 128 / r.first_clocks,
        block=block,
        shared=BYTES + 128 * ACCESSES,
        want=_words(want),
        result=lambda sink: sink.double(),
        counters={ptx: requests},
        wavefronts={ptx: requests * matrices * pitch // 16},
    )


def _access(width: int, degree: int, write: bool) -> Micro:
    verb = "write" if write else "read"
    how = "all at one address" if degree == 0 else f"{degree} lanes to a bank" if degree > 1 else "no conflicts"
    published = ("ipdps24/bandwidth/shared",) if (width, degree, write) == (4, 1, False) else ()
    return Micro(
        name=f"shared/{verb}/{width}B/{degree}-way" if degree else f"shared/{verb}/{width}B/broadcast",
        question=f"How fast does an SM {verb} its shared memory, {width} bytes a lane, {how}?",
        unit="B/clk/SM", module="shared", kernel=f"shared_{verb}_{width}",
        plan=partial(access_plan, width, degree, write),
        shapes={"width": width, "conflict": degree}, published=published, rank=50,
    )  # fmt: skip


def _matrix(kernel: str, matrices: int, pitch: int) -> Micro:
    store, trans = kernel.startswith("st"), kernel.endswith("trans")
    return Micro(
        name=f"shared/{kernel}/pitch{pitch}",
        question=f"How fast is {kernel} on rows {pitch} bytes apart ({pitch // 16}-way conflicts)?",
        unit="B/clk/SM", module="shared", kernel=kernel,
        plan=partial(matrix_plan, matrices, trans, store, pitch),
        shapes={"matrices": matrices, "pitch": pitch}, rank=51,
    )  # fmt: skip


def micros() -> list[Micro]:
    """Latency; widths by conflict degrees; matrices by pitch."""
    rows = [
        Micro(
            name="shared/latency", question="How long does a load from shared memory take?", unit="clk",
            module="shared", kernel="shared_chase", plan=chase_plan, published=("ipdps24/latency/shared",), rank=10,
        )
    ]  # fmt: skip
    for width, degrees in ((4, (0, 1, 2, 4, 8, 16, 32)), (8, (1, 2, 4, 8, 16)), (16, (1, 2, 4, 8))):
        for write in (False, True):
            rows += [_access(width, degree, write) for degree in degrees if degree or not write]
    kernels = (("ldmatrix_x1", 1), ("ldmatrix_x2", 2), ("ldmatrix_x4", 4), ("ldmatrix_x4_trans", 4), ("stmatrix_x4", 4))
    return rows + [_matrix(kernel, matrices, pitch) for kernel, matrices in kernels for pitch in (16, 32, 64, 128)]


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
