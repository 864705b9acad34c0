"""Tensor cores: wgmma of every type and shape, from shared memory and from registers, sparse wgmma, and mma.sync beside
it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from tkpy.bench.micro import Micro, Place, Plan, Records, known_figures
from tkpy.bench.spec import Benchmark

ROW_BYTES, STEPS = 128, 4  # of a tile's row; k-steps of 32 bytes in it


@dataclass(frozen=True)
class Type:
    """Operands of 32 bytes of K, and what they are summed in."""

    name: str  # in wgmma_<name>_n<N>_<ss|rs>
    module: str
    operand: torch.dtype
    ptx: str  # the K and types of the instruction
    mma: str = ""  # the instruction's kind in mma.cu, where there is one
    published: str = ""  # the type in ids of published figures
    sparse: bool = False  # A keeps two values of four, of tf32 one of two

    @property
    def depth(self) -> int:
        """K of one instruction."""
        return (64 if self.sparse else 32) // self.operand.itemsize

    @property
    def shapes(self) -> list[int]:
        """Every N (PTX ISA, wgmma.mma_async shapes); of the sparse ones a few."""
        if self.sparse:
            return sorted(FIRST)
        return [n for n in range(8, 257, 8) if self.name != "s8" or n <= 32 or n % 16 == 0]


TYPES = (
    Type("bf16", "wgmma_half", torch.bfloat16, "k16.f32.bf16.bf16", "bf16"),
    Type("f16", "wgmma_half", torch.float16, "k16.f32.f16.f16", "f16", "f16"),
    Type("f16_f16", "wgmma_f16", torch.float16, "k16.f16.f16.f16", "f16_f16"),
    Type("tf32", "wgmma_tf32_s8", torch.float32, "k8.f32.tf32.tf32", "tf32", "tf32"),
    Type("e4m3", "wgmma_fp8", torch.float8_e4m3fn, "k32.f32.e4m3.e4m3", "e4m3", "e4m3"),
    Type("e5m2", "wgmma_fp8", torch.float8_e5m2, "k32.f32.e5m2.e5m2"),
    Type("e4m3_f16", "wgmma_f16", torch.float8_e4m3fn, "k32.f16.e4m3.e4m3"),
    Type("e5m2_f16", "wgmma_f16", torch.float8_e5m2, "k32.f16.e5m2.e5m2"),
    Type("s8", "wgmma_tf32_s8", torch.int8, "k32.s32.s8.s8", "s8", "s8"),
)
SPARSE = tuple(
    replace(kind, name=f"sparse_{kind.name}", module="wgmma_sparse", ptx=f"k{2 * kind.depth}.f32.{kind.mma}.{kind.mma}",
            mma="", published=f"{kind.published}/sparse", sparse=True)
    for kind in TYPES if kind.name in ("f16", "tf32", "e4m3")
)  # fmt: skip
METADATA = 0x44444444  # of every four values the first two are kept, of two tf32 the first
FIRST = (256, 128, 64, 8)  # shapes worth timing first
LAST = 410  # the rank of rows that say what their neighbours' do


def values(kind: torch.dtype, rows: int, cols: int, what: str, seed: int) -> torch.Tensor:
    """Operands: zeros, `small` whole numbers of which every sum is exact, or `random` ones that cost power."""
    if what == "zeros":
        return torch.zeros(rows, cols).to(kind)
    generator = torch.Generator().manual_seed(seed)
    if what == "small":
        return torch.randint(-1, 2, (rows, cols), generator=generator).to(kind)
    if kind == torch.int8:
        return torch.randint(-128, 128, (rows, cols), generator=generator).to(kind)
    return torch.randn(rows, cols, generator=generator).to(kind)


def _bits(operand: torch.Tensor, device: torch.device) -> torch.Tensor:
    return operand.contiguous().view(torch.uint8).to(device)


def _per_thread(d: torch.Tensor) -> torch.Tensor:
    """The sum of each thread's accumulators of D [64, N]: lane 4g + t of warp w has rows 16w + g and + 8, and of every
    eight columns 2t and 2t + 1 (PTX ISA, register fragments of wgmma)."""
    columns = d.reshape(4, 2, 8, -1, 4, 2)  # warp, half, g, block, t, which
    return columns.sum((1, 3, 5)).reshape(128)


def _steps(kind: Type, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """The products of the four k-steps. Sparse: A holds what is kept, and a step of B is half a row."""
    width = 32 // kind.operand.itemsize
    wide_a, wide_b = a.double(), b.double()
    if kind.sparse:
        kept = 2 if kind.operand == torch.float32 else 4
        halves = wide_b.reshape(len(b), 2, -1, kept)[..., : kept // 2].reshape(len(b), 2, width)
        columns = [halves[:, step % 2] for step in range(STEPS)]
    else:
        columns = [wide_b[:, step * width : (step + 1) * width] for step in range(STEPS)]
    return [wide_a[:, step * width : (step + 1) * width] @ columns[step].T for step in range(STEPS)]


def wgmma_plan(kind: Type, n: int, registers: bool, rate: bool, data: str, place: Place) -> Plan:
    """Latency: one warpgroup. Rate: two of them on every SM."""
    data = "small" if place.small else data
    a = values(kind.operand, 64, ROW_BYTES // kind.operand.itemsize, data, 1)
    b = values(kind.operand, n, ROW_BYTES // kind.operand.itemsize, data, 2)
    singles, groups = (0, place.times(1024, 2, 16)) if rate else (place.times(1024, 3, 16), 0)
    grid, block = (place.ctas(), 256) if rate else (1, 128)
    steps = _steps(kind, a, b)
    d = steps[0] * (1 + singles) + torch.stack(steps).sum(0) * groups
    count = singles + STEPS * groups
    flops = 2 * 64 * n * kind.depth * count * (block // 128) * grid

    def result(sink: torch.Tensor) -> torch.Tensor:
        return sink.double() if kind.name == "s8" else sink.view(torch.float32).double()

    def value(records: Records) -> float:
        return flops / records.seconds / 1e12 if rate else records.first_clocks / count

    return Plan(
        args=[_bits(a, place.device), _bits(b, place.device), *([METADATA] if kind.sparse else []), singles, groups],
        value=value,
        grid=grid,
        block=block,
        shared=ROW_BYTES * (64 + n),
        want=_per_thread(d).repeat(grid * block // 128),
        result=result,
        counters={
            f"wgmma.mma_async.{'sp.' if kind.sparse else ''}sync.aligned.m64n{n}{kind.ptx}": count * grid * block // 32
        },
    )


def _published(kind: Type, n: int, source: str, rate: bool, data: str) -> tuple[str, ...]:
    if not kind.published:
        return ()
    base = f"ipdps24/wgmma/m64n{n}k{kind.depth}/{kind.published}/{source}"
    known = {
        (256, False): [f"{base}/latency"],
        (256, True): [f"{base}/rate"] + ([] if kind.sparse else [f"{base}/sweep"])
        if data == "zeros"
        else [f"{base}/rate/random"],
        (128, True): [f"{base}/sweep"],
        (64, True): [f"{base}/sweep"],
        (8, True): [f"{base}/sweep"],
    }
    if data == "random" and n != 256:
        return ()
    return tuple(known.get((n, rate), ()))


def _wgmma(kind: Type, n: int, source: str, rate: bool, data: str) -> Micro:
    what = f"m64n{n}{kind.ptx}, A in {'registers' if source == 'rs' else 'shared memory'}"
    question = f"How fast do wgmma {what} flow on the whole machine?" if rate else f"How long does a wgmma {what} take?"
    rank = 20 if n in FIRST and (kind.mma != "" or kind.sparse) else 400 if data == "zeros" or n in FIRST else LAST
    return Micro(
        name=f"wgmma/{kind.name}/n{n}/{source}/{f'rate/{data}' if rate else 'latency'}",
        question=question, unit="TFLOP/s" if rate else "clk", module=kind.module,
        kernel=f"wgmma_{kind.name}_n{n}_{source}",
        plan=partial(wgmma_plan, kind, n, source == "rs", rate, data),
        shapes={"m": 64, "n": n, "k": kind.depth}, dtype=kind.name,
        inputs={"zeros": "zeros", "random": "normal; s8 uniform"}[data],
        published=known_figures(_published(kind, n, source, rate, data)), rank=rank,
    )  # fmt: skip


def _fragments(kind: Type, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Registers of a warp: a [32, 4], b [32, 2] words of small values."""
    per_word = 4 // kind.operand.itemsize
    a = values(kind.operand, 32, 4 * per_word, "small", seed)
    b = values(kind.operand, 32, 2 * per_word, "small", seed + 1)
    return a.view(torch.int32).reshape(32, 4), b.view(torch.int32).reshape(32, 2)


def _matrix(words: torch.Tensor, operand: torch.dtype) -> torch.Tensor:
    """Rows of 32 bytes from fragments [lane, register]: register r of lane 4g + t holds row g + 8 (r % 2) of A (g of B)
    and bytes 4t + 16 (r / 2) of A (4t + 16 r of B) (PTX ISA, matrix fragments for mma)."""
    if words.shape[1] == 4:
        rows = words.reshape(8, 4, 2, 2).permute(3, 0, 2, 1).reshape(16, 8)
    else:
        rows = words.reshape(8, 4, 2).permute(0, 2, 1).reshape(8, 8)
    return rows.contiguous().view(operand).double()


def mma_plan(kind: Type, rate: bool, place: Place) -> Plan:
    """Latency: one warp. Rate: 512 threads on every SM, eight accumulators a warp."""
    iterations = place.times(2048, 2, 16)
    grid, block = (place.ctas(), 512) if rate else (1, 32)
    a, b = _fragments(kind, 3)
    products = [
        _matrix(torch.stack([a[:, (i + j) % 4] for j in range(4)], 1), kind.operand)
        @ _matrix(torch.stack([b[:, i // 4], b[:, 1 - i // 4]], 1), kind.operand).T
        for i in range(8)
    ]
    chains = [iterations * p for p in products] if rate else [iterations * torch.stack(products).sum(0)]
    want = torch.zeros(32, dtype=torch.int32)
    for c, d in enumerate(chains):
        lanes = d.reshape(2, 8, 4, 2).permute(1, 2, 0, 3).reshape(32, 4)  # g, t, half, which
        half = kind.name == "f16_f16"
        raw = lanes.half() if half else lanes.int() if kind.name == "s8" else lanes.float()
        words = raw.contiguous().view(torch.int32)
        for i in range(4):
            word = words[:, i] if i < words.shape[1] else torch.zeros(32, dtype=torch.int32)
            want ^= word + c
    count = 8 * iterations
    flops = 2 * 16 * 8 * kind.depth * count * (block // 32) * grid

    def value(records: Records) -> float:
        return flops / records.seconds / 1e12 if rate else records.first_clocks / count

    return Plan(
        args=[a.contiguous().to(place.device), b.contiguous().to(place.device), 0, iterations],
        value=value,
        grid=grid,
        block=block,
        want=want.double().repeat(grid * block // 32),
        result=lambda sink: sink.double(),
        counters={"mma.sync.aligned": count * grid * block // 32},
    )


def _mma(kind: Type, rate: bool) -> Micro:
    figure = f"ipdps24/mma/m16n8k{kind.depth}/{kind.mma}/{'rate' if rate else 'latency'}"
    shape = f"m16n8k{kind.depth} {kind.mma}"
    return Micro(
        name=f"mma/{kind.mma}/{'rate' if rate else 'latency'}",
        question=f"How fast do mma.sync {shape} flow on the whole machine, without wgmma?" if rate
        else f"How long does an mma.sync {shape} take?",
        unit="TFLOP/s" if rate else "clk", module="mma", kernel=f"mma_{kind.mma}_{'rate' if rate else 'latency'}",
        plan=partial(mma_plan, kind, rate), shapes={"m": 16, "n": 8, "k": kind.depth}, dtype=kind.name,
        inputs="-1, 0 and 1", published=known_figures((figure,)), rank=21,
    )  # fmt: skip


def micros() -> list[Micro]:
    """Latency, and rate on zeros and on random data, of every type and shape; sparse ones; mma.sync."""
    rows = []
    for kind in (*TYPES, *SPARSE):
        for n in kind.shapes:
            for source in ("ss", "rs"):
                rows += [_wgmma(kind, n, source, rate, "zeros") for rate in (False, True)]
                rows += [_wgmma(kind, n, source, True, "random")]
    return rows + [_mma(kind, rate) for kind in TYPES if kind.mma for rate in (False, True)]


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
