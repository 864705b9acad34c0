"""Latency and rate of single instructions: floating point, special functions, conversions, integers, shuffles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tkpy.bench.micro import Micro, Place, Plan
from tkpy.bench.spec import Benchmark

CHAINS, UNROLL = 8, 32
NEVER = 0x12345679
Bits = Any  # numpy array of uint32, one word a thread
Step = Callable[[Bits, Bits, int, int], Bits]  # (x, the x before, b, c) -> next x


def _f32(step: Callable[[Any, Any, Any], Any]) -> Step:
    """Of three binary32: computed in float64 (a fused multiply-add of binary32 is exact there), rounded once."""

    def run(x: Bits, before: Bits, b: int, c: int) -> Bits:
        wide = [np.asarray(v, np.uint32).view(np.float32).astype(np.float64) for v in (x, b, c)]
        with np.errstate(all="ignore"):
            return np.asarray(step(*wide), np.float64).astype(np.float32).view(np.uint32)

    return run


def _pairs(dtype: torch.dtype, step: Callable[[Any, Any, Any], Any]) -> Step:
    """Of both halves of a word, as fp16 or bf16."""

    def halves(words: Any) -> torch.Tensor:
        flat = np.atleast_1d(np.asarray(words, np.uint32)).astype(np.uint32).view(np.int16).copy()
        return torch.from_numpy(flat).view(dtype).double()

    def run(x: Bits, before: Bits, b: int, c: int) -> Bits:
        one = halves(x)
        out = step(one, halves(b).repeat(len(one) // 2), halves(c).repeat(len(one) // 2))
        return out.to(dtype).view(torch.int16).numpy().view(np.uint32).copy()

    return run


def _pack(dtype: torch.dtype, width: int) -> Step:
    """cvt of x to the upper half and of b to the lower one; e4m3 saturates."""

    def bits(words: Any) -> Bits:
        values = torch.from_numpy(np.atleast_1d(np.asarray(words, np.uint32)).view(np.float32).copy())
        if dtype == torch.float8_e4m3fn:
            values = values.clamp(-448, 448)
        small = values.to(dtype).view(torch.uint8 if width == 8 else torch.int16)
        return small.numpy().astype(np.int64) & ((1 << width) - 1)

    return lambda x, before, b, c: (bits(x) << width | bits(b)).astype(np.uint32)


def _unpack(x: Bits, before: Bits, b: int, c: int) -> Bits:
    low = torch.from_numpy(np.asarray(x, np.uint32).view(np.uint8).reshape(-1, 4)[:, :2].copy())
    return low.view(torch.float8_e4m3fn).to(torch.float16).view(torch.int16).numpy().view(np.uint32).reshape(-1)


def _integer(step: Callable[[Any, Any, int, int], Any]) -> Step:
    return lambda x, before, b, c: (step(x.astype(np.int64), before.astype(np.int64), b, c) & 0xFFFFFFFF).astype(
        np.uint32
    )


def _signed(x: Any) -> Any:
    return (x & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def _byte(word: int, shift: int) -> int:
    return (word >> shift & 255 ^ 128) - 128


def _dp4a(x: Any, before: Any, b: int, c: int) -> Any:
    return x + sum(_byte(b, s) * _byte(c, s) for s in (0, 8, 16, 24))


def _prmt(x: Any, before: Any, b: int, c: int) -> Any:
    bytes_ = [word >> shift & 255 for word in (x, b) for shift in (0, 8, 16, 24)]
    return sum(bytes_[c >> 4 * i & 7] << 8 * i for i in range(4))


def _to_int(x: Bits, before: Bits, b: int, c: int) -> Bits:
    values = x.view(np.float32).astype(np.float64)
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0.0, values)  # .ftz
    return np.clip(np.rint(values), -(2**31), 2**31 - 1).astype(np.int64).astype(np.uint32)


def _popc(x: Any, before: Any, b: int, c: int) -> Any:
    return sum(x >> i & 1 for i in range(32))


def _by_warp(total: Callable[[Any], Any]) -> Step:
    return _integer(lambda x, before, b, c: np.repeat(total(x.reshape(-1, 32)), 32))


@dataclass(frozen=True)
class Unit:
    """One instruction of alu.cu. `step` computes it; `tolerance` and `view` are how results are compared: words
    exactly, or binary32 or fp16 values of an approximation that converges."""

    name: str
    ptx: str  # its first characters, as the emulator counts them
    what: str
    step: Step
    x: int = 0x3F000000  # first operand of thread 0, 0.5; thread t has t more
    b: int = 0x3F000000
    c: int = 0x3E800000  # 0.25
    operations: int = 1  # of a lane
    tolerance: float = 0.0
    view: str = "words"


HALF, QUARTER = 0x38003800, 0x34003400  # fp16 pairs
UNITS = (
    Unit("fadd", "add.rn.ftz.f32", "FADD", _f32(lambda x, b, c: x + b)),
    Unit("fmul", "mul.rn.ftz.f32", "FMUL", _f32(lambda x, b, c: x * b), b=0x3F7FFFF0),
    Unit("ffma", "fma.rn.ftz.f32", "FFMA", _f32(lambda x, b, c: x * b + c)),
    Unit("fmax", "max.ftz.f32", "FMNMX", _f32(lambda x, b, c: np.maximum(x, b))),
    Unit("hfma2", "fma.rn.f16x2", "HFMA2, a pair of fp16", _pairs(torch.float16, lambda x, b, c: x * b + c),
         0x3C003C00, HALF, QUARTER, operations=2),
    Unit("bfma2", "fma.rn.bf16x2", "HFMA2, a pair of bf16", _pairs(torch.bfloat16, lambda x, b, c: x * b + c),
         0x3F803F80, 0x3F003F00, 0x3E803E80, operations=2),
    Unit("ex2", "ex2.approx.ftz.f32", "MUFU.EX2", _f32(lambda x, b, c: np.exp2(x))),  # up to infinity
    Unit("ex2_f16x2", "ex2.approx.f16x2", "MUFU.EX2.F16 of a pair",
         _pairs(torch.float16, lambda x, b, c: torch.exp2(x)), HALF, operations=2),
    Unit("lg2", "lg2.approx.ftz.f32", "MUFU.LG2",
         lambda x, before, b, c: np.full_like(x, 0x7FFFFFFF)),  # the logarithm of a logarithm soon is a NaN
    Unit("rcp", "rcp.approx.ftz.f32", "MUFU.RCP and an FADD", _f32(lambda x, b, c: 1 / (x + b)),
         tolerance=1e-5, view="f32"),
    Unit("rsqrt", "rsqrt.approx.ftz.f32", "MUFU.RSQ", _f32(lambda x, b, c: x**-0.5), tolerance=1e-5, view="f32"),
    Unit("sqrt", "sqrt.approx.ftz.f32", "MUFU.SQRT", _f32(lambda x, b, c: x**0.5), tolerance=1e-5, view="f32"),
    Unit("sin", "sin.approx.ftz.f32", "MUFU.SIN and an FMUL", _f32(lambda x, b, c: np.sin(x)),
         tolerance=1e-3, view="f32"),
    Unit("tanh", "tanh.approx.f32", "MUFU.TANH", _f32(lambda x, b, c: np.tanh(x)), tolerance=3e-2, view="f32"),
    Unit("tanh_f16x2", "tanh.approx.f16x2", "MUFU.TANH.F16 of a pair",
         _pairs(torch.float16, lambda x, b, c: torch.tanh(x)), HALF, operations=2, tolerance=5e-2, view="f16"),
    Unit("cvt_bf16x2_f32", "cvt.rn.bf16x2.f32", "F2FP, two fp32 to a pair of bf16", _pack(torch.bfloat16, 16),
         operations=2),
    Unit("cvt_f16x2_f32", "cvt.rn.f16x2.f32", "F2FP, two fp32 to a pair of fp16", _pack(torch.float16, 16),
         operations=2),
    Unit("cvt_f32_f16", "cvt.f32.f16", "HADD2.F32, fp16 to fp32",
         lambda x, before, b, c: (x >> 16).astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)),
    Unit("cvt_e4m3x2_f32", "cvt.rn.satfinite.e4m3x2.f32", "F2FP, two fp32 to a pair of e4m3, and a LOP3",
         _pack(torch.float8_e4m3fn, 8), operations=2),
    Unit("cvt_f16x2_e4m3x2", "cvt.rn.f16x2.e4m3x2", "F2FP, a pair of e4m3 to fp16", _unpack, x=0x3838, operations=2),
    Unit("cvt_f32_s32", "cvt.rn.f32.s32", "I2FP, int to fp32",
         lambda x, before, b, c: x.view(np.int32).astype(np.float32).view(np.uint32)),
    Unit("cvt_s32_f32", "cvt.rni.ftz.s32.f32", "F2I, fp32 to int", _to_int, x=0x4B000000),
    Unit("iadd", "add.s32", "IADD3 and IMAD.IADD, as ptxas shares them out", _integer(lambda x, p, b, c: x + p), 3, 5),
    Unit("imad", "mad.lo.s32", "IMAD", _integer(lambda x, p, b, c: x * b + c), 3, 5, 7),
    Unit("lop3", "lop3.b32", "LOP3", _integer(lambda x, p, b, c: x ^ b ^ c), 3, 5, 9),
    Unit("shf", "shf.l.wrap.b32", "SHF", _integer(lambda x, p, b, c: b << c | x >> 32 - c), 3, 5, 8),
    Unit("viaddmax", "max.s32", "VIADDMNMX: DPX, the maximum of a sum",
         _integer(lambda x, p, b, c: np.maximum(_signed(x + b), c)), 3, 5, 100),
    Unit("prmt", "prmt.b32", "PRMT", _integer(_prmt), 3, 0x0A0B0C0D, 0x2105),
    Unit("popc", "popc.b32", "POPC", _integer(_popc), 0x0F0F0F0F),
    Unit("dp4a", "dp4a.s32.s32", "IDP.4A", _integer(_dp4a), 3, 0x01FE0304, 0x05060708),
    Unit("shfl", "shfl.sync.bfly.b32", "SHFL.BFLY",
         _integer(lambda x, p, b, c: x.reshape(-1, 32)[:, np.arange(32) ^ b].reshape(-1)), 3, 1),
    Unit("redux", "redux.sync.add.s32", "REDUX, and a move from the uniform register",
         _by_warp(lambda x: x.sum(1)), 3),
    Unit("ballot", "vote.sync.ballot.b32", "VOTE and the ISETP before it",
         _by_warp(lambda x: ((x != 0) << np.arange(32)).sum(1)), 3),
)  # fmt: skip


def _seen(unit: Unit, words: torch.Tensor) -> torch.Tensor:
    """The sink's words as they are compared."""
    if unit.view == "f32":
        return words.view(torch.float32)
    if unit.view == "f16":
        return words.view(torch.float16)
    return words.double()


def plan(unit: Unit, rate: bool, place: Place) -> Plan:
    """One warp on one chain, or 512 threads an SM on eight chains each."""
    block = (64 if place.small else 512) if rate else 32
    iterations = place.times(256, 2, 4)
    x = start = np.arange(unit.x, unit.x + block, dtype=np.uint32)
    before = np.full_like(x, unit.b)
    for _ in range(iterations * UNROLL if place.small else 0):
        x, before = unit.step(x, before, unit.b, unit.c), x
    count = iterations * UNROLL * (CHAINS if rate else 1)
    each = count * (block * unit.operations if rate else 1)
    return Plan(
        args=[torch.from_numpy(start.view(np.int32)).to(place.device), unit.b, unit.c, NEVER, iterations],
        value=(lambda r: each / r.first_clocks) if rate else (lambda r: r.first_clocks / each),
        block=block,
        want=_seen(unit, torch.from_numpy(x.view(np.int32).copy())),
        result=lambda sink: _seen(unit, sink),
        tolerance=unit.tolerance,
        counters={unit.ptx: (count + (iterations if unit.name == "iadd" else 0)) * block // 32},  # and the loop's own
    )


def micros() -> list[Micro]:
    """Two rows an instruction."""
    rows = []
    for unit in UNITS:
        for rate in (False, True):
            kind = "rate" if rate else "latency"
            question = (
                f"How many {unit.what} does an SM do in a cycle?" if rate else f"How long does a {unit.what} take?"
            )
            rows.append(
                Micro(
                    name=f"alu/{unit.name}/{kind}", question=question, unit="op/clk/SM" if rate else "clk",
                    module="alu", kernel=f"{unit.name}_{kind}", plan=partial(plan, unit, rate),
                    rank=60,
                )
            )  # fmt: skip
    return rows


def benchmarks() -> list[Benchmark]:
    """The rows as `tkpy bench` wants them."""
    return [m.benchmark() for m in micros()]
