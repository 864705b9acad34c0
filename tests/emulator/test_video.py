"""Video instructions (PTX ISA 9.7.17, 9.7.18) against the ISA's definitions in Python's unbounded integers."""

from __future__ import annotations

import random
import re

import isa_forms
import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator

WORDS = [0, 1, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF, 0x80FF017F, 0x7F80FF01, 0x00010002, 33, 0x1F20FF08]


def field(word: int, bits: int, index: int, signed: bool) -> int:
    value = word >> bits * index & (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


def clamp(value: int, bits: int, signed: bool) -> int:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return min(max(value, low), high)


def primary(name: str, mods: list[str], a: int, b: int) -> int:
    if name == "vset":
        return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[mods[-1]])
    if name in ("vshl", "vshr"):
        n = min(b, 32) if "clamp" in mods else b & 31
        if name == "vshr":
            return a >> n
        return field(a << n & (1 << 34) - 1, 34, 0, True)
    return {"vadd": a + b, "vsub": a - b, "vmin": min(a, b), "vmax": max(a, b), "vabsdiff": abs(a - b),
            "vavrg": a + b + 1 >> 1 if a + b >= 0 else a + b >> 1}[name]  # fmt: skip


def selector(operand: str) -> str:
    return operand.rpartition(".")[2] if "." in operand else ""


def one_part(operand: str) -> tuple[int, int]:
    text = selector(operand)
    return ((8 if text[0] == "b" else 16), int(text[1])) if text else (32, 0)


def expected(opcode: str, operands: list[str], a: int, b: int, c: int) -> int:
    name, *mods = opcode.split(".")
    ways = int(name[-1]) if name[-1] in "24" else 1
    name = name.rstrip("24")
    types = [m for m in mods if m in ("u32", "s32")]
    d_signed, a_signed, b_signed = (t == "s32" for t in (["u32"] if name == "vset" else []) + types)
    compare = [m for m in mods if m in ("eq", "ne", "lt", "le", "gt", "ge", "clamp", "wrap")]
    if ways == 1:
        (a_bits, a_at), (b_bits, b_at), (d_bits, d_at) = (one_part(operands[i]) for i in (1, 2, 0))
        ta, tb = field(a, a_bits, a_at, a_signed), field(b, b_bits, b_at, b_signed)
        third = field(c, 32, 0, d_signed)
        if name == "vmad":
            negative, minus_c = operands[1].startswith("-") != operands[2].startswith("-"), operands[3].startswith("-")
            signed = a_signed or b_signed or negative or minus_c
            product, addend = ta * tb, field(c, 32, 0, signed)
            if "po" in mods:
                total = product + addend + 1
            else:
                total = addend - product if negative else product - addend if minus_c else product + addend
            total >>= 7 if "shr7" in mods else 15 if "shr15" in mods else 0
            return (clamp(total, 32, signed) if "sat" in mods else total) & 0xFFFFFFFF
        t = primary(name, compare, ta, tb)
        if "sat" in mods:
            t = clamp(t, d_bits, d_signed)
        for second, apply in {
            "add": lambda: t + third,
            "min": lambda: min(t, third),
            "max": lambda: max(t, third),
        }.items():
            if second in mods:
                return apply() & 0xFFFFFFFF
        if d_bits == 32:
            return t & 0xFFFFFFFF
        ones = (1 << d_bits) - 1
        return c & ~(ones << d_bits * d_at) | (t & ones) << d_bits * d_at
    bits = 32 // ways
    sources = [field(a, bits, i, False) for i in range(ways)] + [field(b, bits, i, False) for i in range(ways)]

    def pick(operand: str, default: int, signed: bool) -> list[int]:
        text = selector(operand)[1:] or "".join(str(default + i) for i in reversed(range(ways)))
        return [field(sources[int(digit)], bits, 0, signed) for digit in reversed(text)]

    mask = [int(digit) for digit in selector(operands[0])[1:]] or list(range(ways))
    d = c
    for i, (va, vb) in enumerate(zip(pick(operands[1], 0, a_signed), pick(operands[2], ways, b_signed), strict=True)):
        if i not in mask:
            continue
        t = primary(name, compare, va, vb)
        if "sat" in mods:
            t = clamp(t, bits, d_signed)
        if "add" in mods:
            d += t
        else:
            ones = (1 << bits) - 1
            d = d & ~(ones << bits * i) | (t & ones) << bits * i
    return d & 0xFFFFFFFF


def instructions(name: str) -> list[str]:
    """A fixed sample over the spellings that sm_90a has."""
    every = [s for s in isa_forms.of_the_gpu() if s.split(".")[0] == name]
    return random.Random(name).sample(every, min(len(every), 60))


@pytest.mark.parametrize(
    "name",
    [*(f"v{op}" for op in ["add", "sub", "absdiff", "min", "max", "set", "shl", "shr", "mad"]),
     *(f"v{op}{n}" for op in ["add", "sub", "avrg", "absdiff", "min", "max", "set"] for n in (2, 4))],
)  # fmt: skip
def test_the_isas_definition(name: str) -> None:
    rng = np.random.default_rng(len(name))
    values = np.concatenate([np.array(WORDS, np.uint32), rng.integers(0, 1 << 32, 22, dtype=np.uint32)])
    a, b, c = (rng.choice(values, 128) for _ in range(3))
    statements = instructions(name)
    assert len(statements) >= 12
    body = []
    for i, text in enumerate(statements):
        registers = iter(["%r9", "%r1", "%r2", "%r3"])
        text = re.sub(r"%w\d+", lambda _, names=registers: next(names), text)
        statements[i] = text
        body.append(f"{text} st.global.b32 [%rd1+{i * 512}], %r9;")
    ptx = HEADER + """.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd) {
        .reg .b32 %r<10>; .reg .b64 %rd<9>; mov.u32 %r8, %tid.x; mul.wide.u32 %rd2, %r8, 4;
        """ + "".join(f"ld.param.u64 %rd1, [p{p}]; add.u64 %rd1, %rd1, %rd2; ld.global.b32 %r{i}, [%rd1];"
                      for i, p in ((1, "a"), (2, "b"), (3, "c"))) + (
        "ld.param.u64 %rd1, [pd]; add.u64 %rd1, %rd1, %rd2;" + "\n".join(body) + " ret; }")  # fmt: skip
    module = tkpy.emulator.load(ptx)
    assert not module.unmodelled
    out = np.zeros((len(statements), 128), np.uint32)
    module.launch("k", block=128, args=[a, b, c, out]).raise_on_findings()
    for i, text in enumerate(statements):
        opcode, _, rest = text.rstrip(";").partition(" ")
        operands = [part.strip() for part in rest.split(",")]
        want = [expected(opcode, operands, *(int(v) for v in row)) for row in zip(a, b, c, strict=True)]
        assert out[i].tolist() == want, text
