"""Integer, bit and logic instructions against Python's own unbounded integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from emulator_harness import integers, lanewise

DTYPES = {"s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64}


def wrap(values: list[int], dtype: type) -> np.ndarray:
    bits = np.iinfo(dtype).bits
    unsigned = {16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    return np.array([v & ((1 << bits) - 1) for v in values], unsigned).view(dtype)


def check(instruction: str, columns: list[np.ndarray], out: type, expect: Callable[..., int]) -> None:
    got = lanewise(instruction, columns, out)
    want = wrap([expect(*(int(v) for v in row)) for row in zip(*columns, strict=True)], out)
    bad = np.flatnonzero(got != want)[:5]
    assert not len(bad), [(tuple(c[i] for c in columns), got[i], want[i]) for i in bad]


def trunc_div(a: int, b: int) -> int:
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("t", DTYPES)
@pytest.mark.parametrize(
    "op, expect",
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("min", min),
        ("max", max),
        ("div", trunc_div),
        ("rem", lambda a, b: a - b * trunc_div(a, b) if b else a),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_binary(op: str, expect: Callable[[int, int], int], t: str) -> None:
    check(f"{op}.{t} $d, $0, $1;", integers(DTYPES[t]), DTYPES[t], expect)


@pytest.mark.parametrize("t", DTYPES)
def test_mul_hi(t: str) -> None:
    bits = np.iinfo(DTYPES[t]).bits
    check(f"mul.hi.{t} $d, $0, $1;", integers(DTYPES[t]), DTYPES[t], lambda a, b: (a * b) >> bits)


@pytest.mark.parametrize("t", ["s16", "u16", "s32", "u32"])
def test_wide(t: str) -> None:
    wide = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}[t]
    a, b = integers(DTYPES[t])
    check(f"mul.wide.{t} $d, $0, $1;", [a, b], wide, lambda a, b: a * b)
    c = np.resize(integers(wide, 1)[0], len(a))
    check(f"mad.wide.{t} $d, $0, $1, $2;", [a, b, c], wide, lambda a, b, c: a * b + c)


@pytest.mark.parametrize("t", ["s32", "u32", "s64", "u64"])
def test_mad_and_sad(t: str) -> None:
    columns = integers(DTYPES[t], 3, random=10)
    bits = np.iinfo(DTYPES[t]).bits
    check(f"mad.lo.{t} $d, $0, $1, $2;", columns, DTYPES[t], lambda a, b, c: a * b + c)
    check(f"mad.hi.{t} $d, $0, $1, $2;", columns, DTYPES[t], lambda a, b, c: ((a * b) >> bits) + c)
    check(f"sad.{t} $d, $0, $1, $2;", columns, DTYPES[t], lambda a, b, c: c + abs(a - b))


def test_saturation() -> None:
    top, low = 2**31 - 1, -(2**31)
    columns = integers(np.int32)
    check("add.sat.s32 $d, $0, $1;", columns, np.int32, lambda a, b: max(low, min(top, a + b)))
    check("sub.sat.s32 $d, $0, $1;", columns, np.int32, lambda a, b: max(low, min(top, a - b)))
    check("max.s32.relu $d, $0, $1;", columns, np.int32, lambda a, b: max(0, a, b))
    check("min.s32.relu $d, $0, $1;", columns, np.int32, lambda a, b: max(0, min(a, b)))


@pytest.mark.parametrize("t, width", [("s16x2", np.int16), ("u16x2", np.uint16)])
def test_packed_halves(t: str, width: type) -> None:
    a, b = (c.view(width).reshape(-1, 2) for c in integers(np.uint32))
    for op, f in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
        got = lanewise(f"{op}.{t} $d, $0, $1;", [a.view(np.uint32).ravel(), b.view(np.uint32).ravel()], np.uint32)
        with np.errstate(all="ignore"):
            assert np.array_equal(got.view(width).reshape(-1, 2), f(a, b)), op


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_clamp(bits: int) -> None:
    signed, unsigned = DTYPES[f"s{bits}"], DTYPES[f"u{bits}"]
    amounts = np.array([0, 1, 5, bits - 1, bits, bits + 1, 255, 2**32 - 1], np.uint32)
    a = np.repeat(integers(unsigned, 1)[0], len(amounts))
    n = np.tile(amounts, len(a) // len(amounts))
    check(f"shl.b{bits} $d, $0, $1;", [a, n], unsigned, lambda a, n: a << min(n, bits))
    check(f"shr.u{bits} $d, $0, $1;", [a, n], unsigned, lambda a, n: a >> min(n, bits))
    check(f"shr.s{bits} $d, $0, $1;", [a.view(signed), n], signed, lambda a, n: a >> min(n, bits))


def funnel(a: int, b: int, n: int, left: bool, clamp: bool) -> int:
    n = min(n, 32) if clamp else n & 31
    both = b << 32 | a
    return (both << n) >> 32 if left else both >> n


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
def test_funnel_shift(left: bool, clamp: bool) -> None:
    a, b, n = integers(np.uint32, 3)
    n = n % 40
    name = f"shf.{'l' if left else 'r'}.{'clamp' if clamp else 'wrap'}.b32"
    check(f"{name} $d, $0, $1, $2;", [a, b, n], np.uint32, lambda a, b, n: funnel(a, b, n, left, clamp))


def field_extract(a: int, pos: int, length: int, bits: int, signed: bool) -> int:
    """The pseudo-code of the PTX ISA, bit by bit."""
    pos, length = pos & 255, length & 255
    msb = bits - 1
    a &= (1 << bits) - 1
    sign = 0 if not signed or length == 0 else a >> min(pos + length - 1, msb) & 1
    result = 0
    for i in range(bits):
        bit = a >> (pos + i) & 1 if i < length and pos + i <= msb else sign
        result |= bit << i
    return result


@pytest.mark.parametrize("t", ["u32", "s32", "u64", "s64"])
def test_bit_fields(t: str) -> None:
    bits = np.iinfo(DTYPES[t]).bits
    a = integers(DTYPES[t], 1)[0]
    edges = [0, 1, 7, bits // 2, bits - 1, bits, bits + 3, 255, 256 + 5]
    grid = [(v, p, n) for v in a for p in edges for n in edges]
    columns = [np.array([g[0] for g in grid], DTYPES[t])] + [np.array([g[k] for g in grid], np.uint32) for k in (1, 2)]
    signed = t.startswith("s")
    check(f"bfe.{t} $d, $0, $1, $2;", columns, DTYPES[t], lambda a, p, n: field_extract(a, p, n, bits, signed))

    def insert(a: int, b: int, p: int, n: int) -> int:
        p, n = p & 255, n & 255
        for i in range(n):
            if p + i < bits:
                b = b & ~(1 << (p + i)) | (a >> i & 1) << (p + i)
        return b

    unsigned = DTYPES[f"u{bits}"]
    a = columns[0].view(unsigned)
    check(f"bfi.b{bits} $d, $0, $1, $2, $3;", [a, a[::-1].copy(), *columns[1:]], unsigned, insert)


def test_bit_counting() -> None:
    for bits, dtype, signed in ((32, np.uint32, np.int32), (64, np.uint64, np.int64)):
        a = integers(dtype, 1)
        check(f"popc.b{bits} $d, $0;", a, np.uint32, lambda v: v.bit_count())
        check(f"clz.b{bits} $d, $0;", a, np.uint32, lambda v, bits=bits: bits - v.bit_length())
        check(f"brev.b{bits} $d, $0;", a, dtype, lambda v, bits=bits: int(f"{v:0{bits}b}"[::-1], 2))
        check(f"bfind.u{bits} $d, $0;", a, np.uint32, lambda v: v.bit_length() - 1)
        check(f"bfind.shiftamt.u{bits} $d, $0;", a, np.uint32, lambda v, b=bits: b - v.bit_length() if v else -1)
        check(
            f"bfind.s{bits} $d, $0;", [a[0].view(signed)], np.uint32, lambda v: (v if v >= 0 else ~v).bit_length() - 1
        )


def test_logic_tables() -> None:
    a, b, c = integers(np.uint32, 3, random=6)
    for table in (0x00, 0x96, 0xE8, 0xCA, 0x1D, 0x80, 0xFE, 0xFF):

        def expect(a: int, b: int, c: int, table: int = table) -> int:
            return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))

        check(f"lop3.b32 $d, $0, $1, $2, {table};", [a, b, c], np.uint32, expect)
    check("and.b32 $d, $0, $1;", [a, b], np.uint32, lambda a, b: a & b)
    check("or.b32 $d, $0, $1;", [a, b], np.uint32, lambda a, b: a | b)
    check("xor.b32 $d, $0, $1;", [a, b], np.uint32, lambda a, b: a ^ b)
    check("not.b32 $d, $0;", [a], np.uint32, lambda a: ~a)
    check("cnot.b32 $d, $0;", [a], np.uint32, lambda a: int(a == 0))


def test_prmt() -> None:
    rng = np.random.default_rng(1)
    a, b, s = (rng.integers(0, 2**32, 500, dtype=np.uint32) for _ in range(3))

    def default(a: int, b: int, s: int) -> int:
        pool = (b << 32 | a).to_bytes(8, "little")
        out = 0
        for i in range(4):
            k = s >> (4 * i) & 15
            byte = pool[k & 7]
            out |= (byte if k < 8 else (255 if byte & 128 else 0)) << (8 * i)
        return out

    check("prmt.b32 $d, $0, $1, $2;", [a, b, s], np.uint32, default)
    check("prmt.b32.f4e $d, $0, $1, $2;", [a, b, s], np.uint32, lambda a, b, s: (b << 32 | a) >> (8 * (s & 3)))
    check("prmt.b32.rc8 $d, $0, $1, $2;", [a, b, s], np.uint32, lambda a, b, s: (a >> (8 * (s & 3)) & 255) * 0x01010101)


def test_carry_chain() -> None:
    a, b = integers(np.uint64)
    low, high = "cvt.u32.u64 %r{0}, {1};", "shr.u64 %d8, {1}, 32; cvt.u32.u64 %r{0}, %d8;"
    split = low.format(1, "$0") + high.format(2, "$0") + low.format(3, "$1") + high.format(4, "$1")
    check(split + "add.cc.u32 %r5, %r1, %r3; addc.u32 %r6, %r2, %r4; mov.b64 $d, {%r5, %r6};", [a, b], np.uint64,
          lambda a, b: a + b)  # fmt: skip
    check(split + "sub.cc.u32 %r5, %r1, %r3; subc.u32 %r6, %r2, %r4; mov.b64 $d, {%r5, %r6};", [a, b], np.uint64,
          lambda a, b: a - b)  # fmt: skip
    check(split + "mul.lo.u32 %r5, %r1, %r3; mul.hi.u32 %r6, %r1, %r3; mad.lo.cc.u32 %r5, %r2, 0, %r5;"
          "madc.lo.u32 %r6, %r1, %r4, %r6; mad.lo.u32 %r6, %r2, %r3, %r6; mov.b64 $d, {%r5, %r6};", [a, b],
          np.uint64, lambda a, b: a * b)  # fmt: skip


def test_dot_products() -> None:
    rng = np.random.default_rng(2)
    a, b, c = (rng.integers(0, 2**32, 300, dtype=np.uint32) for _ in range(3))
    bytes_of = lambda v, dtype: np.array([v], np.uint32).view(dtype).astype(int)  # noqa: E731
    for sa, ta in (("s32", np.int8), ("u32", np.uint8)):
        for sb, tb in (("s32", np.int8), ("u32", np.uint8)):
            check(f"dp4a.{sa}.{sb} $d, $0, $1, $2;", [a, b, c], np.uint32,
                  lambda a, b, c, ta=ta, tb=tb: c + int((bytes_of(a, ta) * bytes_of(b, tb)).sum()))  # fmt: skip
    check("dp2a.lo.s32.s32 $d, $0, $1, $2;", [a, b, c], np.uint32,
          lambda a, b, c: c + int((bytes_of(a, np.int16) * bytes_of(b, np.int8)[:2]).sum()))  # fmt: skip
    check("dp2a.hi.s32.s32 $d, $0, $1, $2;", [a, b, c], np.uint32,
          lambda a, b, c: c + int((bytes_of(a, np.int16) * bytes_of(b, np.int8)[2:]).sum()))  # fmt: skip


def test_small_bit_operations() -> None:
    a, b = integers(np.uint32)
    b = b % 40
    mask = lambda n: (1 << n) - 1  # noqa: E731
    check("bmsk.clamp.b32 $d, $0, $1;", [b[::-1].copy(), b], np.uint32, lambda p, n: mask(min(n, 32)) << min(p, 32))
    check("bmsk.wrap.b32 $d, $0, $1;", [b[::-1].copy(), b], np.uint32, lambda p, n: mask(n & 31) << (p & 31))
    check("szext.clamp.u32 $d, $0, $1;", [a, b], np.uint32, lambda a, n: a & mask(min(n, 32)))
    check("szext.wrap.s32 $d, $0, $1;", [a.view(np.int32), b], np.int32,
          lambda a, n: field_extract(a, 0, n & 31, 32, True))  # fmt: skip
    check("mul24.lo.u32 $d, $0, $1;", [a, a[::-1].copy()], np.uint32, lambda a, b: (a & mask(24)) * (b & mask(24)))


@pytest.mark.parametrize("t", DTYPES)
@pytest.mark.parametrize("cmp", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_setp(cmp: str, t: str) -> None:
    import operator

    f = getattr(operator, cmp)
    text = f"setp.{cmp}.{t} %p1, $0, $1; selp.b32 $d, 7, 9, %p1;"
    check(text, integers(DTYPES[t], random=8), np.uint32, lambda a, b: 7 if f(a, b) else 9)


def test_setp_combines_and_complements() -> None:
    columns = integers(np.int32, random=8)
    text = "setp.gt.s32 %p3, $1, 0; setp.lt.and.s32 %p1|%p2, $0, $1, %p3; selp.b32 %r7, 1, 0, %p1; selp.b32 %r8, 2, 0, %p2; or.b32 $d, %r7, %r8;"
    check(text, columns, np.uint32, lambda a, b: (1 if a < b and b > 0 else 0) | (2 if not a < b and b > 0 else 0))
    check("setp.ge.s32 %p1, $0, $1; not.pred %p2, %p1; xor.pred %p1, %p1, %p2; selp.s32 $d, 1, 0, %p1;", columns,
          np.uint32, lambda a, b: 1)  # fmt: skip
    check("set.gt.u32.s32 $d, $0, $1;", columns, np.uint32, lambda a, b: -1 if a > b else 0)
    check("slct.s32.s32 $d, $0, $1, $0;", columns, np.int32, lambda a, b: a if a >= 0 else b)


def test_narrow_values_in_wide_registers() -> None:
    a = np.arange(-128, 128).astype(np.int8)
    got = lanewise("cvt.s32.s8 $d, $0;", [a], np.int32)
    assert np.array_equal(got, a.astype(np.int32))
    wide = integers(np.int64, 1)[0]
    assert np.array_equal(
        lanewise("cvt.s16.s64 %h8, $0; cvt.s64.s16 $d, %h8;", [wide], np.int64), wide.astype(np.int16)
    )
    assert np.array_equal(lanewise("cvt.s64.s8 $d, $0;", [wide], np.int64), wide.astype(np.int8))
    assert np.array_equal(lanewise("cvt.sat.u8.s32 %h8, $0; cvt.u32.u8 $d, %h8;", [integers(np.int32, 1)[0]], np.uint32),
                          np.clip(integers(np.int32, 1)[0], 0, 255))  # fmt: skip


def test_moves_pack_and_unpack() -> None:
    a = integers(np.uint32, 1)[0]
    text = "mov.b32 {%h1, %h2}, $0; mov.b32 $d, {%h2, %h1};"
    assert np.array_equal(lanewise(text, [a], np.uint32), (a >> 16) | (a << 16))
    b = integers(np.uint64, 1)[0]
    assert np.array_equal(
        lanewise("mov.b64 {%r1, %r2}, $0; mov.b64 $d, {%r2, %r1};", [b], np.uint64), (b >> 32) | (b << 32)
    )
    assert np.array_equal(
        lanewise("mov.b64 {_, %r2}, $0; mov.b32 $d, %r2;", [b], np.uint32), (b >> 32).astype(np.uint32)
    )
    text = "{ .reg .b8 a, b, c, e; mov.b32 {a, b, c, e}, $0; mov.b32 $d, {e, c, b, a}; }"
    assert np.array_equal(lanewise(text, [a], np.uint32), a.byteswap())


def clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def low_24_bits(value: int, signed: bool) -> int:
    value &= 0xFFFFFF
    return (value ^ 0x800000) - 0x800000 if signed else value


@pytest.mark.parametrize("part, shift", [("lo", 0), ("hi", 16)])
@pytest.mark.parametrize("t", ["u32", "s32"])
def test_products_of_24_bits(t: str, part: str, shift: int) -> None:
    a, b = integers(DTYPES[t])
    c = b[::-1].copy()
    product = lambda a, b: low_24_bits(a, t == "s32") * low_24_bits(b, t == "s32") >> shift  # noqa: E731
    check(f"mul24.{part}.{t} $d, $0, $1;", [a, b], DTYPES[t], product)
    check(f"mad24.{part}.{t} $d, $0, $1, $2;", [a, b, c], DTYPES[t], lambda a, b, c: product(a, b) + c)
    if (t, part) == ("s32", "hi"):
        check("mad24.hi.sat.s32 $d, $0, $1, $2;", [a, b, c], np.int32,
              lambda a, b, c: clamp(product(a, b) + c, -(2**31), 2**31 - 1))  # fmt: skip


@pytest.mark.parametrize("t", ["u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"])
def test_cvt_pack(t: str) -> None:
    bits, sign = int(t[1:]), t[0] == "s"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if sign else (0, (1 << bits) - 1)
    a, b = integers(np.int32)
    near = np.resize(np.arange(-40, 300, dtype=np.int32), len(a))
    field = (1 << bits) - 1
    pack = lambda a, b: (clamp(a, low, high) & field) << bits | clamp(b, low, high) & field  # noqa: E731
    for columns in ([a, b], [near, near[::-1].copy()]):
        if bits == 16:
            check(f"cvt.pack.sat.{t}.s32 $d, $0, $1;", columns, np.uint32, pack)
        else:
            check(f"cvt.pack.sat.{t}.s32.b32 $d, $0, $1, $2;", [*columns, b], np.uint32,
                  lambda a, b, c: pack(a, b) | c << 2 * bits)  # fmt: skip


@pytest.mark.parametrize("combine", ["and", "or"])
def test_lop3_tests_its_result(combine: str) -> None:
    a, b = integers(np.uint32, random=6)
    c = np.where(np.arange(len(a)) % 3, a ^ b, 0).astype(np.uint32)  # the xor of all three is often 0
    both = {"and": lambda p, q: p and q, "or": lambda p, q: p or q}[combine]
    text = (f"setp.lt.u32 %p3, $0, $1; lop3.{combine}.b32 %r7|%p1, $0, $1, $2, 0x96, %p3; selp.b32 %r8, 1, 0, %p1;"
            f" lop3.{combine}.b32 _|%p2, $0, $1, $2, 0x96, !%p3; selp.b32 $d, 2, 0, %p2; or.b32 $d, $d, %r8;")  # fmt: skip
    check(text, [a, b, c], np.uint32, lambda a, b, c: both(a ^ b ^ c != 0, a < b) + 2 * both(a ^ b ^ c != 0, not a < b))
