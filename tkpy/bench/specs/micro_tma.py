"""Copies between global and shared memory: TMA loads, stores and multicast, bulk copies, cp.async, plain loads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from tkpy.bench.micro import Argument, Map, Micro, Place, Plan, Records, Struct, eviction, known_figures
from tkpy.bench.spec import Benchmark

GIB, MIB = 1 << 30, 1 << 20
Box = tuple[int, ...]  # outermost first, of fp32


class Tensor:
    """A dense tensor of `tiles` boxes along each dimension, and where box number `piece` lies: innermost first."""

    def __init__(self, box: Box, tiles: tuple[int, ...], device: torch.device, *, filled: bool):
        self.box, self.tiles = box, tiles
        shape = [n * b for n, b in zip(tiles, box, strict=True)]
        count = math.prod(shape)
        make = torch.arange if filled else torch.zeros
        self.words = make(count, dtype=torch.int32, device=device).view(shape)

    @property
    def count(self) -> int:
        return math.prod(self.tiles)

    def piece(self, number: int) -> torch.Tensor:
        """A view of box number `number`."""
        view = self.words
        for d in reversed(range(len(self.box))):
            at = number % self.tiles[d] * self.box[d]
            number //= self.tiles[d]
            view = view.narrow(d, at, self.box[d])
        return view

    @property
    def elements(self) -> tuple[torch.Tensor, Box]:
        """Tensor and box as the tensor map has them: a box has at most 256 elements a dimension, so those of one
        dimension are made of 64-bit elements."""
        return (self.words.view(torch.int64), (self.box[0] // 2,)) if len(self.box) == 1 else (self.words, self.box)

    def map(self, swizzle: int = 0) -> Map:
        """The tensor map."""
        return Map(*self.elements, swizzle)

    def walk(self) -> Struct:
        """The kernel's `Walk`: tiles and box, innermost first, three dimensions."""
        pad = (1,) * (3 - len(self.box))
        return Struct((*self.tiles[::-1], *pad, *self.elements[1][::-1], *pad))


def _tiles(box: Box, bytes_: int, place: Place) -> tuple[int, ...]:
    """Boxes along each dimension of a tensor of about `bytes_`: as near to a cube of boxes as powers of two get."""
    total = place.pieces(bytes_, 4 * math.prod(box))
    if len(box) == 1 or place.small:
        return (*(1,) * (len(box) - 1), total) if len(box) == 1 else (3, *(1,) * (len(box) - 2), total // 3)
    inner = 1 << int(math.log2(total)) // len(box)
    return (total // inner ** (len(box) - 1), *(inner,) * (len(box) - 1))


def _total(words: torch.Tensor) -> int:
    return int(words.long().sum()) & 0xFFFFFFFF


def _landed(workers: int, iterations: int, slots: int, piece: Any) -> torch.Tensor:
    """Per worker (CTA or cluster), the sum of what the last `slots` turns brought."""
    turns = range(iterations - slots, iterations)
    return torch.tensor(
        [sum(_total(piece(w + n * workers)) for n in turns) & 0xFFFFFFFF for w in range(workers)]
    ).double()


def _by_cta(grid: int) -> Any:
    return lambda sink: (sink.cpu().long().reshape(grid, -1).sum(1) & 0xFFFFFFFF).double()


def load_plan(kind: str, box: Box, slots: int, per_sm: int, swizzle: int, latency: str, place: Place) -> Plan:
    """`kind`: "tensor" or "bulk". `latency`: "" for bandwidth, or one CTA and one copy at a time of what "hits" or
    "misses" L2."""
    size = 4 * math.prod(box)
    tensor = Tensor(box, _tiles(box, 4 * MIB if latency == "hits" else GIB, place), place.device, filled=place.small)
    grid = 1 if latency else place.ctas(per_sm)
    iterations = place.times(1024, slots + 2, 64) if latency or place.small else max(tensor.count // grid, slots)
    moved = grid * iterations * size
    before = None
    if latency:
        before = (lambda: torch.amax(tensor.words)) if latency == "hits" else eviction(place)

    def value(records: Records) -> float:
        return records.first_clocks / iterations if latency else moved / records.seconds / 1e9

    source: list[Argument]
    if kind == "tensor":
        source = [tensor.map(swizzle), tensor.walk()]
        ptx = f"cp.async.bulk.tensor.{len(box)}d.shared::cluster"
        flat = None
    else:
        source, ptx, flat = (
            [tensor.words, tensor.count],
            "cp.async.bulk.shared::cluster",
            tensor.words.view(-1, size // 4),
        )
    return Plan(
        args=[*source, size, slots, iterations],
        value=value,
        grid=grid,
        block=32,
        shared=slots * size + 1024,
        before=before,
        cold=latency != "hits",
        want=_landed(grid, iterations, slots, lambda n: tensor.piece(n % tensor.count) if flat is None
                     else flat[n % tensor.count]) if place.small else None,
        result=_by_cta(grid),
        counters={ptx: grid * iterations},
    )  # fmt: skip


def store_plan(kind: str, box: Box, slots: int, per_sm: int, footprint: int, place: Place) -> Plan:
    """Every piece of the tensor is written once; its words are 1, 2, 3 .."""
    size = 4 * math.prod(box)
    tensor = Tensor(box, _tiles(box, footprint, place), place.device, filled=False)
    grid = place.ctas(per_sm)
    iterations = max(tensor.count // grid, 1)
    moved = grid * iterations * size
    want = None
    if place.small:
        there = Tensor(box, tensor.tiles, torch.device("cpu"), filled=False)
        for n in range(grid * iterations):
            piece = there.piece(n) if kind == "tensor" else there.words.view(-1, size // 4)[n]
            piece.copy_(torch.arange(1, size // 4 + 1).reshape(piece.shape))
        want = there.words.double()
    target: list[Argument] = [tensor.map(), tensor.walk()] if kind == "tensor" else [tensor.words, tensor.count]
    return Plan(
        args=[*target, size, iterations],
        value=lambda r: moved / r.seconds / 1e9,
        grid=grid,
        block=32,
        shared=slots * size + 1024,
        want=want,
        result=lambda sink: tensor.words.cpu().double(),
        counters={"cp.async.bulk.tensor.2d.global" if kind == "tensor" else "cp.async.bulk.global": grid * iterations},
    )


def multicast_plan(ctas: int, rows: int, slots: int, footprint: int, place: Place) -> Plan:
    """Pieces of `rows` rows of 128 bytes; each CTA of the cluster fetches rows / ctas of them for all."""
    share, row_words = rows // ctas, 32
    tiles = place.pieces(footprint, rows * 128)
    grid = ctas * (2 if place.small else place.multiprocessors // ctas)
    clusters = grid // ctas
    iterations = slots + 2 if place.small else max(tiles // clusters, slots)
    words = torch.zeros(tiles * rows, row_words, dtype=torch.int32, device=place.device)
    if place.small:
        words += torch.arange(words.numel(), dtype=torch.int32, device=place.device).view_as(words)
    delivered = grid * iterations * rows * 128
    pieces = words.view(tiles, -1)
    return Plan(
        args=[Map(words, (share, row_words), 128), tiles, share, share * 128, ctas, slots, iterations],
        value=lambda r: delivered / r.seconds / 1e9,
        grid=grid,
        block=32,
        cluster=ctas,
        shared=slots * rows * 128 + 1024,
        cold=True,
        want=_landed(clusters, iterations, slots, lambda n: pieces[n % tiles]).repeat_interleave(ctas)
        if place.small
        else None,
        result=_by_cta(grid),
        counters={"cp.async.bulk.tensor.2d.shared::cluster": grid * iterations},
    )


def threads_plan(kernel: str, slots: int, size: int, per_sm: int, footprint: int, place: Place) -> Plan:
    """All 128 threads copy: cp.async, or loads and stores."""
    block, grid = 128, place.ctas(per_sm)
    tiles = place.pieces(footprint, size)
    words = torch.zeros(tiles, size // 4, dtype=torch.int32, device=place.device)
    if place.small:
        words += torch.arange(words.numel(), dtype=torch.int32, device=place.device).view_as(words)
    iterations = slots + 2 if place.small else max(tiles // grid, slots)
    moved = grid * iterations * size
    ptx = "cp.async.cg" if kernel.startswith("cp_async") else "ld.global.cg.v4"
    return Plan(
        args=[words, tiles, size, iterations],
        value=lambda r: moved / r.seconds / 1e9,
        grid=grid,
        block=block,
        shared=slots * size + 1024,
        cold=True,
        want=_landed(grid, iterations, slots, lambda n: words[n % tiles]) if place.small else None,
        result=_by_cta(grid),
        counters={ptx: moved // 16 // 32},
    )


def _load(
    kind: str, box: Box, *, slots: int = 1, per_sm: int = 1, swizzle: int = 0, latency: str = "",
    published: tuple[str, ...] = (), rank: int = 30,
) -> Micro:  # fmt: skip
    shape, size = "x".join(map(str, box)), 4 * math.prod(box)
    label = f"{len(box)}d/{shape}" if kind == "tensor" else f"bulk/{size // 1024}KB"
    label += f"/swizzle{swizzle}" if swizzle else ""
    what = f"TMA loads of {shape} fp32" if kind == "tensor" else f"bulk copies of {size} bytes"
    kernel = f"tma_load_{len(box)}d" if kind == "tensor" else "bulk_load"
    if latency:
        name, question = f"tma/latency/{label}/{latency}", f"How long does one of the {what} take that {latency} L2?"
    else:
        name = f"tma/load/{label}/{per_sm}x{slots}"
        question = f"How fast do {what} come from memory, {per_sm} CTAs an SM with {slots} in flight each?"
    return Micro(
        name=name, question=question, unit="clk" if latency else "GB/s", module="tma", kernel=kernel,
        plan=partial(load_plan, kind, box, slots, per_sm, swizzle, latency),
        shapes={"bytes": size, "slots": slots, "per_sm": per_sm, "swizzle": swizzle},
        published=known_figures(published), rank=rank,
    )  # fmt: skip


def _loads() -> list[Micro]:
    rows = []
    for side, kib in ((16, 1), (32, 4), (64, 16)):
        for latency, figure in (("hits", "logs/latency/tma/l2"), ("misses", "logs/latency/tma/global")):
            published = (figure,) if kib == 1 else ()
            rows.append(_load("tensor", (side, side), latency=latency, published=published, rank=11))
            rows.append(_load("bulk", (kib * 256,), latency=latency, rank=11))
    for per_sm in (1, 2, 3, 4):
        boxes = {"1KB": (16, 16), "2KB": (16, 32), "4KB": (32, 32), "8KB": (32, 64), "16KB": (64, 64)}
        rows += [
            _load("tensor", box, per_sm=per_sm, published=(f"logs/tma/2d/{kib}/{per_sm}",))
            for kib, box in boxes.items()
        ]
        rows += [
            _load("bulk", (kib * 256,), per_sm=per_sm, published=(f"logs/tma/bulk/{kib}KB/{per_sm}",))
            for kib in (1, 2, 4, 8, 12, 16)
        ]
        rows.append(_load("tensor", (16, 16, 16), per_sm=per_sm, published=(f"logs/tma/3d/16x16x16/{per_sm}",)))
        rows.append(_load("tensor", (256, 4, 4), per_sm=per_sm, published=(f"logs/tma/3d/4x4x256/{per_sm}",)))
        rows += [
            _load("tensor", (words,), per_sm=per_sm, published=(f"logs/tma/1d/{words // 256}KB/{per_sm}",))
            for words in (128, 512)
        ]
    for slots in (2, 4, 8):
        rows += [_load("tensor", (64, 32), slots=slots, swizzle=128), _load("bulk", (4096,), slots=slots)]
    rows += [
        _load("tensor", (64, (swizzle or 128) // 4), slots=4, swizzle=swizzle, per_sm=2) for swizzle in (0, 32, 64, 128)
    ]
    return rows


def _stores() -> list[Micro]:
    rows = []
    for slots in (1, 2, 4):
        for side in (32, 64):
            for kind in ("tensor", "bulk"):
                box = (side, side) if kind == "tensor" else (side * side,)
                size = 4 * side * side
                kernel = "tma_store_2d" if kind == "tensor" else "bulk_store"
                rows.append(
                    Micro(
                        name=f"tma/store/{kind}/{size // 1024}KB/1x{slots}",
                        question=f"How fast do {kind} stores of {size} bytes go to memory, {slots} in flight an SM?",
                        unit="GB/s", module="tma", kernel=f"{kernel}_{slots}",
                        plan=partial(store_plan, kind, box, slots, 1, GIB),
                        shapes={"bytes": size, "slots": slots}, rank=31,
                    )
                )  # fmt: skip
    return rows


def micros() -> list[Micro]:
    """Latencies; bandwidth of loads and stores by size, CTAs and copies in flight; multicast; copies by threads."""
    rows = _loads() + _stores()
    for ctas in (1, 2, 4, 8):
        rows.append(
            Micro(
                name=f"tma/multicast/16KB/{ctas}", unit="GB/s", module="tma", kernel="tma_multicast",
                question=f"How fast are 16 KiB delivered to every CTA when clusters of {ctas} share each load?",
                plan=partial(multicast_plan, ctas, 128, 4, 256 * MIB), shapes={"cluster": ctas}, rank=32,
            )
        )  # fmt: skip
    for kernel, slots in (("cp_async_1", 1), ("cp_async_2", 2), ("cp_async_4", 4), ("ld_st", 1)):
        rows.append(
            Micro(
                name=f"tma/by_threads/{kernel}/8KB", unit="GB/s", module="tma", kernel=kernel,
                question=f"How fast do 128 threads fetch 8 KiB at a time, two CTAs an SM, by {kernel}?",
                plan=partial(threads_plan, kernel, slots, 8192, 2, GIB),
                shapes={"bytes": 8192, "slots": slots}, rank=33,
            )
        )  # fmt: skip
    return rows


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
