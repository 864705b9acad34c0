"""wgmma against a plain matrix product, operands written to shared memory through canonical.py."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from canonical import Layout, layouts
from tensor_operands import BITS, pack_lanes, random_operand

BASE = 1024
SIZE = 96 * 1024
A_AT, B_AT = 0x1000, 0x8000
TYPES = [
    *[("f16", "f16", d) for d in ("f16", "f32")],
    ("bf16", "bf16", "f32"),
    ("tf32", "tf32", "f32"),
    *[(a, b, d) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2") for d in ("f16", "f32")],
    *[(a, b, "s32") for a in ("s8", "u8") for b in ("s8", "u8")],
]
INTEGER_N = [8, 24, *range(16, 257, 16)]


def sizes(kind: str) -> list[int]:
    return INTEGER_N if kind == "s32" else list(range(8, 257, 8))


def descriptor(native, layout: Layout, **changes: int) -> int:
    names = ("start", "leading", "stride", "base_offset", "width")
    return native.encode_descriptor(*(changes.get(name, getattr(layout, name)) for name in names))


def accumulator_cells(n: int) -> tuple[np.ndarray, np.ndarray]:
    """[warp, register, lane] -> row, column; registers come in fours per eight columns."""
    warp, i, lane = np.meshgrid(np.arange(4), np.arange(n // 2), np.arange(32), indexing="ij")
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def to_registers(matrix: np.ndarray, d: str) -> np.ndarray:
    values = matrix[accumulator_cells(matrix.shape[1])]
    if d == "f16":
        half = values.astype(np.float16).view(np.uint16).astype(np.uint32)
        return (half[:, 0::2] | half[:, 1::2] << 16).reshape(-1, 32)
    whole = values.astype(np.float32).view(np.uint32) if d == "f32" else values.astype(np.int64).astype(np.uint32)
    return whole.reshape(-1, 32)


def register_a(bits_a: np.ndarray, bits: int) -> np.ndarray:
    e = 32 // bits
    warp, reg, lane, element = np.meshgrid(*map(np.arange, (4, 4, 32, e)), indexing="ij")
    row, col = 16 * warp + lane // 4 + 8 * (reg % 2), (reg // 2 * 4 + lane % 4) * e + element
    return pack_lanes(np.stack([row, col], -1), bits_a, bits).reshape(16, 32)


class Case:
    """Random operands of one type combination, in shared memory."""

    def __init__(self, native, a: str, b: str, d: str, n: int, la: Layout, lb: Layout, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.native, self.types, self.n, self.la, self.lb = native, (a, b, d), n, la, lb
        self.k = 256 // BITS[a]
        self.bits_a, self.a = random_operand(rng, a, (64, self.k))
        self.bits_b, self.b = random_operand(rng, b, (self.k, n))
        self.c = rng.integers(-20, 20, (64, n)).astype(np.float64)
        self.memory = rng.integers(0, 256, SIZE, dtype=np.uint8)
        la.write(self.memory, BASE, self.bits_a)
        lb.write(self.memory, BASE, np.ascontiguousarray(self.bits_b.T))

    def run(self, da: int | None = None, db: int | None = None, accumulate: bool = True, repeat: int = 1, **flags):
        a, b, d = self.types
        registers = register_a(self.bits_a, BITS[a]) if flags.get("a_in_registers") else np.zeros((0, 32), np.uint32)
        da = descriptor(self.native, self.la) if da is None else da
        db = descriptor(self.native, self.lb) if db is None else db
        flags = {"transpose_a": self.la.mn_major, "transpose_b": self.lb.mn_major, **flags}
        if flags.get("a_in_registers"):
            flags["transpose_a"] = False
        words = {"n": self.n, "a": a, "b": b, "d": d, **flags}
        assert self.native.wgmma_reason(**words) == ""
        initial = to_registers(self.c, d)
        return self.native.wgmma(self.memory, BASE, registers, da, db, accumulate, initial, repeat, **words)

    def want(self, scale: float = 1.0, accumulate: bool = True) -> np.ndarray:
        return to_registers(scale * (self.a @ self.b) + self.c * accumulate, self.types[2])

    def check(self, **flags) -> None:
        reason, got = self.run(**flags)
        assert reason == ""
        np.testing.assert_array_equal(got, self.want())


def plain(mn: int, start: int, width: int = 128) -> Layout:
    return layouts(mn, 32, (False,), start, (width,))[0]


@pytest.mark.parametrize("a, b, d", TYPES)
def test_every_n_of_every_type(native, a, b, d):
    for n in sizes(d):
        width = (16, 32, 64, 128)[n // 8 % 4]
        case = Case(native, a, b, d, n, plain(64, A_AT, width), plain(n, B_AT, 128), n)
        case.check()
        case.check(a_in_registers=True)


@pytest.mark.parametrize("mn_major_a", [False, True])
@pytest.mark.parametrize("mn_major_b", [False, True])
@pytest.mark.parametrize("a, d", [("bf16", "f32"), ("f16", "f16")])
def test_every_swizzle_and_stride_of_16_bit_operands(native, a, d, mn_major_a, mn_major_b):
    for n in (8, 24, 64, 200, 256):
        for la in layouts(64, 32, (mn_major_a,), A_AT):
            for lb in layouts(n, 32, (mn_major_b,), B_AT):
                Case(native, a, a, d, n, la, lb, n).check()


@pytest.mark.parametrize("a, b, d", [t for t in TYPES if t[0] not in ("f16", "bf16")])
def test_every_swizzle_and_stride_of_k_major_operands(native, a, b, d):
    for la in layouts(64, 32, (False,), A_AT):
        for lb in layouts(96, 32, (False,), B_AT):
            Case(native, a, b, d, 96, la, lb).check()


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("mn_major", [False, True])
def test_patterns_that_start_off_their_boundary(native, width, mn_major):
    for row in range(1, 8):
        start = B_AT + 128 * row
        for lb in layouts(64, 32, (mn_major,), start, (width,)):
            lb = replace(lb, base_offset=row)
            case = Case(native, "bf16", "bf16", "f32", 64, plain(64, A_AT), lb)
            case.check()
            _, got = case.run(db=descriptor(native, lb, base_offset=row ^ 1))
            assert (got != case.want()).any()


@pytest.mark.parametrize("bits, k", [("bf16", 64), ("e4m3", 128), ("tf32", 32)])
def test_k_steps_through_a_128_byte_tile(native, bits, k):
    """The usual inner loop: the start address advances by 32 bytes inside the swizzle atom, the result accumulates."""
    rng = np.random.default_rng(11)
    la, lb = plain(64, A_AT), plain(64, B_AT)
    bits_a, a = random_operand(rng, bits, (64, k))
    bits_b, b = random_operand(rng, bits, (64, k))
    memory = np.zeros(SIZE, np.uint8)
    la.write(memory, BASE, bits_a)
    lb.write(memory, BASE, bits_b)
    acc = np.zeros((128, 32), np.uint32)
    for step in range(4):
        da, db = (descriptor(native, x, start=x.start + 32 * step) for x in (la, lb))
        words = {"n": 64, "a": bits, "b": bits, "d": "f32"}
        reason, acc = native.wgmma(memory, BASE, np.zeros((0, 32), np.uint32), da, db, step > 0, acc, 1, **words)
        assert reason == ""
    np.testing.assert_array_equal(acc, to_registers(a @ b.T, "f32"))


@pytest.mark.parametrize("negate_a, negate_b", [(False, True), (True, False), (True, True)])
def test_scales(native, negate_a, negate_b):
    case = Case(native, "bf16", "bf16", "f32", 40, plain(64, A_AT), plain(40, B_AT))
    _, got = case.run(negate_a=negate_a, negate_b=negate_b)
    np.testing.assert_array_equal(got, case.want(1.0 if negate_a == negate_b else -1.0))


@pytest.mark.parametrize("a, b, d", TYPES)
def test_without_accumulation_the_old_d_is_not_read(native, a, b, d):
    case = Case(native, a, b, d, 48, plain(64, A_AT), plain(48, B_AT))
    _, got = case.run(accumulate=False)
    np.testing.assert_array_equal(got, case.want(accumulate=False))
    assert (got != case.want()).any()


@pytest.mark.parametrize("satfinite", [False, True])
def test_integers_wrap_or_saturate(native, satfinite):
    case = Case(native, "u8", "u8", "s32", 16, plain(64, A_AT), plain(16, B_AT))
    case.c[:] = 2.0**31 - 1
    _, got = case.run(satfinite=satfinite)
    exact = case.a @ case.b + case.c
    wrapped = np.minimum(exact, 2**31 - 1) if satfinite else (exact + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(got, to_registers(wrapped, "s32"))


@pytest.mark.parametrize("in_registers", [False, True])
def test_b1(native, in_registers):
    rng = np.random.default_rng(2)
    bits_a, bits_b = rng.integers(0, 2, (64, 256), dtype=np.uint8), rng.integers(0, 2, (32, 256), dtype=np.uint8)
    memory = np.zeros(SIZE, np.uint8)
    la, lb = plain(64, A_AT, 64), plain(32, B_AT)
    la.write(memory, BASE, np.packbits(bits_a, 1, bitorder="little"))
    lb.write(memory, BASE, np.packbits(bits_b, 1, bitorder="little"))
    registers = register_a(bits_a, 1) if in_registers else np.zeros((0, 32), np.uint32)
    da, db = descriptor(native, la), descriptor(native, lb)
    words = {"n": 32, "a": "b1", "b": "b1", "d": "s32", "a_in_registers": in_registers}
    _, got = native.wgmma(memory, BASE, registers, da, db, False, np.zeros((64, 32), np.uint32), 1, **words)
    np.testing.assert_array_equal(got, to_registers(bits_a.astype(float) @ bits_b.T.astype(float), "s32"))


@pytest.mark.parametrize("mn_major", [False, True])
@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_sabotaged_descriptors_change_the_result(native, mn_major, width):
    """Swizzle code, strides exchanged, a start one unit off, the wrong major-ness: each must be visible."""
    lb = layouts(128, 32, (mn_major,), B_AT, (width,))[0]
    case = Case(native, "bf16", "bf16", "f32", 128, plain(64, A_AT), lb)
    mutants = [{"width": w} for w in (16, 32, 64, 128) if w != width]
    mutants += [{"leading": lb.stride, "stride": lb.leading}, {"start": lb.start + 16}, {"stride": lb.stride + 128}]
    for changes in mutants:
        reason, got = case.run(db=descriptor(native, lb, **changes))
        assert reason == ""
        assert (got != case.want()).any(), changes
    _, got = case.run(transpose_b=not mn_major)
    assert (got != case.want()).any()


def test_operands_outside_shared_memory_are_named(native):
    case = Case(native, "bf16", "bf16", "f32", 64, plain(64, A_AT), plain(64, B_AT))
    before = to_registers(case.c, "f32")
    reason, got = case.run(db=descriptor(native, case.lb, start=BASE + SIZE - 1024))
    assert reason == "operand B: row 8, k 0 is at 0x18400, outside shared memory [0x400, 0x18400)"
    np.testing.assert_array_equal(got, before)
    reason, _ = case.run(da=descriptor(native, case.la, start=0))
    assert reason.startswith("operand A: row 0, k 0 is at 0x0, outside")


@pytest.mark.parametrize(
    "words, why",
    [
        ({"n": 12}, "multiple of 8"),
        ({"n": 264}, "multiple of 8"),
        ({"n": 40, "a": "s8", "b": "s8", "d": "s32"}, "integer wgmma"),
        ({"b": "f16"}, "no operands"),
        ({"d": "f16"}, "no accumulators"),
        ({"a": "s8", "b": "s8"}, "no accumulators"),
        ({"a": "tf32", "b": "tf32", "transpose_b": True}, "transposed"),
        ({"transpose_a": True, "a_in_registers": True}, "registers"),
        ({"satfinite": True}, "satfinite"),
        ({"a": "u8", "b": "s8", "d": "s32", "negate_a": True}, "imm-scale"),
    ],
)
def test_reasons(native, words, why):
    assert why in native.wgmma_reason(**{"n": 64, "a": "bf16", "b": "bf16", "d": "f32", **words})


def test_speed(native):
    """At least 10 GFLOP/s for m64n256k16 on one core; the best of several, as the machine may be shared."""
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the bound is for AVX2")
    case = Case(native, "bf16", "bf16", "f32", 256, plain(64, A_AT), plain(256, B_AT))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        case.run(repeat=50)
        best = max(best, 50 * 2 * 64 * 256 * 16 / (time.perf_counter() - start))
    print(f"wgmma m64n256k16 bf16: {best / 1e9:.1f} GFLOP/s")
    assert best > 10e9
