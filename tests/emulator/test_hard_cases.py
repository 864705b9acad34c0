"""What real PTX does that surprises a reader of it, first half: the language, types, addresses and calls.

The numbers are those of a list kept from 509 files of public Hopper kernels; each test runs every spelling of its case.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import aligned, results, snippet

import tkpy.emulator
from tkpy.emulator import TensorMap

LANES = np.arange(32)


def test_01_scoped_labels_and_registers() -> None:
    """A wait loop of inline assembly, three times over: the same label and registers in scopes of their own."""
    wait = """{ .reg .pred P1; LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 P1,[%r1],%r2; @P1 bra DONE; bra LAB_WAIT;
DONE: }"""
    rounds = "".join(
        f"mbarrier.arrive.shared::cta.b64 _, [%r1]; mov.u32 %r2, {i % 2}; {wait} add.u32 %r3, %r3, 1;\n"
        for i in range(3)
    )
    got = results(f"""
.reg .b32 %r<4>, p, complete, l; .reg .b32 t<4>; .reg .pred P1; .shared .align 8 .b64 bar;
mov.u32 %r1, bar; mov.u32 %r3, 0; setp.eq.u32 P1, %lane, 0; @P1 mbarrier.init.shared::cta.b64 [%r1], 32; bar.sync 0;
{rounds}
mov.b32 p, 1; mov.b32 complete, 2; mov.b32 l, 3; mov.b32 t3, 4;
{{ .reg .b32 p, complete; .reg .b16 l; .reg .b32 t<4>; mov.b32 p, 10; mov.b32 complete, 20; mov.b16 l, 30; mov.b32 t3, 40; }}
add.u32 p, p, complete; add.u32 l, l, t3;
mov.u32 t0, 0;
{{ bra SAME; add.u32 t0, t0, 7000; SAME: add.u32 t0, t0, 1; {{ bra SAME; add.u32 t0, t0, 7000; SAME: add.u32 t0, t0, 10; }} }}
bra SAME; {{ SAME: add.u32 t0, t0, 7000; }} SAME: add.u32 t0, t0, 100;""", "%r3", "p", "l", "t0")  # fmt: skip
    assert got.tolist() == [[3, 3, 7, 111]] * 32


def test_02_statements_share_lines_and_span_them() -> None:
    before = """.func (.param .b32 func_retval0) f(.param .b32 f_param_0,.param .b32 f_param_1){.reg.b32 a,b;ld.param.b32 a,
[f_param_0];ld.param.b32 b,[f_param_1];sub.u32 a,a,b;st.param.b32 [func_retval0],a;ret;}"""
    got = results("""
.reg.b16 hl, hu;.reg .b32 %r<9>;.reg .b64 %rd<4>;mov.u16 hl,1;mov.u16
  hu ,
  2 ;mov.b32 %r1,{hl,hu};mov.u32 %r2,%r1;
.local .align 16 .b8 s[32]; mov.u64 %rd1, s; add.u64 %rd1,%rd1,16;
st.local.u32 [%rd1+-16],77;st.local.u32[ %rd1 + 0 ],88;ld.local.u32 %r3,[ %rd1 + -16 ];ld.local.u32 %r4, [%rd1];
{
.param .b32 param0;
st.param.b32 [param0+0], %r4;
.param .b32 param1;
st.param.b32 [param1+0], %r3;
.param .b32 retval0;
call.uni (retval0),
f,
(
param0,
param1
)
;
ld.param.b32 %r5, [retval0+0];
}""", "%r2", "%r3", "%r4", "%r5", before=before)  # fmt: skip
    assert got.tolist() == [[0x20001, 77, 88, 11]] * 32


HALF3, HALF5 = 0x3FC00000, 0x40200000  # 1.5 and 2.5
MODIFIERS = [  # instruction on [%a], the word there before, what %r holds, the word after
    ("atom.add.acq_rel.gpu.s32 %r, [%a], 5;", 7, 7, 12),
    ("atom.global.gpu.acq_rel.add.s32 %r, [%a], 5;", 7, 7, 12),
    ("atom.global.gpu.acq_rel.add.f32 %r, [%a], 0f3F800000;", HALF3, HALF3, HALF5),
    ("atom.acq_rel.gpu.global.cas.b32 %r, [%a], 7, 9;", 7, 7, 9),
    ("atom.global.acq_rel.gpu.cas.b32 %r, [%a], 8, 9;", 7, 7, 7),
    ("ld.global.acquire.gpu.b32 %r, [%a];", 7, 7, 7),
    ("ld.acquire.gpu.u32 %r, [%a];", 7, 7, 7),
    ("ld.acquire.gpu.global.u32 %r, [%a];", 7, 7, 7),
    ("st.global.release.gpu.b32 [%a], 3; mov.b32 %r, 1;", 7, 1, 3),
    ("st.release.gpu.global.b32 [%a], 3; mov.b32 %r, 1;", 7, 1, 3),
    ("prmt.b32.f4e %r, 0x33221100, 0x77665544, 1;", 7, 0x44332211, 7),
]


@pytest.mark.parametrize("text, before, got, after", MODIFIERS, ids=[text.split()[0] for text, *_ in MODIFIERS])
def test_03_modifiers_in_any_order(text: str, before: int, got: int, after: int) -> None:
    word = np.array([before], np.uint32)
    body = f".reg .b32 %r; .reg .b64 %a; ld.param.u64 %a, [word]; {text}"
    assert results(body, "%r", params=".param .u64 word", args=[word], block=1)[0, 0] == got
    assert word[0] == after


@pytest.mark.parametrize("shape", ["m8n8.x4", "x4.m8n8"])
def test_03_modifiers_of_stmatrix_in_any_order(shape: str) -> None:
    """Lane t holds elements 2t, 2t + 1 of row t / 4 of each matrix (PTX ISA 9.7.14.5.16); lane 8i + j addresses row j of i."""
    got = results(f"""
.reg .b32 a, v<4>; .shared .align 16 .b8 s[512]; mov.u32 a, s; mad.lo.u32 a, %lane, 16, a;
mul.lo.u32 v0, %lane, 1000; add.u32 v1, v0, 1; add.u32 v2, v0, 2; add.u32 v3, v0, 3;
stmatrix.sync.aligned.{shape}.shared.b16 [a], {{v0, v1, v2, v3}}; bar.warp.sync -1;
ld.shared.v4.b32 {{v0, v1, v2, v3}}, [a];""", "v0", "v1", "v2", "v3")  # fmt: skip
    lane, word = np.meshgrid(LANES, np.arange(4), indexing="ij")
    assert np.array_equal(got, 1000 * (lane % 8 * 4 + word) + lane // 8)


def test_04_guarded_off_is_untouched() -> None:
    """Odd lanes are off, and their addresses are nobody's: fallbacks, memory, barriers and maps stay as they were."""
    data, taken = np.arange(1, 9, dtype=np.uint32), np.zeros(2, np.uint32)
    got = results("""
.reg .pred %p<3>; .reg .b32 %r<12>, a; .reg .b64 %rd<4>; .shared .align 128 .b8 s[1152]; .shared .align 8 .b64 bar;
and.b32 a, %lane, 1; setp.eq.u32 %p1, a, 0; setp.eq.u32 %p2, %lane, 0;
@%p2 mbarrier.init.shared.b64 [bar], 16; ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [taken];
mov.u32 a, s; mad.lo.u32 a, %lane, 36, a; st.shared.u32 [a], 0xDEAD; bar.sync 0;
@!%p1 mov.u64 %rd1, 16; @!%p1 mov.u64 %rd2, 0xFFFFFFFFFFFFFFF0; @!%p1 mov.u32 a, 0x3;
mov.u32 %r5, 0x63; mov.u32 %r1, %r5; mov.u32 %r2, 98; mov.u32 %r3, 97; mov.u32 %r4, 96;
@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
mov.u32 %r6, 95; @%p1 ld.global.b32 { %r6 }, [ %rd1 + 0x10 ];
@%p1 st.global.b32 [ %rd2 + 4 ], { %r6 };
mov.u32 %r7, 0xFFFFFFFF; @%p1 atom.global.add.u32 %r7, [%rd2], 1; setp.lt.u32 %p0, %r7, 16; selp.b32 %r7, 1, 0, %p0;
@%p1 cp.async.ca.shared.global [ a + 0 ], [ %rd1 + 20 ], 0x4; cp.async.commit_group; cp.async.wait_group 0;
mov.u32 %r8, 94; @%p1 ld.shared.u32 %r8, [a];
@%p1 mbarrier.arrive.shared::cta.b64 _, [bar];
@%p0 bra LATER; mov.u32 %r9, 93; bra ALL;
LATER: mov.u32 %r9, 0; WAIT: mbarrier.test_wait.parity.shared::cta.b64 %p0, [bar], 0; @!%p0 bra WAIT;
ALL: setp.gt.u32 %p0, %lane, 99; @%p0 tensormap.replace.tile.rank.shared::cta.b1024.b32 [a], 0x1;
@%p0 trap;""",
        *(f"%r{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9)), params=".param .u64 data, .param .u64 taken", args=[data, taken])  # fmt: skip
    assert got[::2].tolist() == [[1, 2, 3, 4, 5, 1, 6, 0]] * 16
    assert got[1::2].tolist() == [[99, 98, 97, 96, 95, 0, 94, 93]] * 16
    assert taken.tolist() == [16, 5]


def test_05_vectors_with_immediates_and_sinks() -> None:
    x = aligned(np.arange(3 * 2 * 4 * 5 * 8, dtype=np.float32).reshape(3, 2, 4, 5, 8))
    got = results("""
.reg .pred p, q; .reg .b32 %r<9>, a, b; .reg .b16 %rs1; .reg .b64 m; .shared .align 128 .b8 s[2176]; .shared .align 8 .b64 bar;
mov.u32 %r1, bar; setp.eq.u32 q, %lane, 0; @q mbarrier.init.shared::cta.b64 [%r1], 33; bar.sync 0;
@q st.shared.v2.b32 [s+2112], {0, 16843009}; bar.sync 0; ld.shared.v2.b32 {_, a}, [s+2112];
mov.u32 %r2, 0xABCD1234; mov.b32 {_, %rs1}, %r2; cvt.u32.u16 %r2, %rs1; mov.b32 {%rs1, _}, 0x12345678; cvt.u32.u16 b, %rs1;
elect.sync _|p, 0xffffffff; vote.sync.ballot.b32 %r3, p, -1;
mov.u32 %r5, 1; mov.u32 %r6, 2; mov.b64 m, map; cvta.param.u64 m, m;
@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 128;
@p cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [s], [m, {0, %r5, %r6, 0, 2}], [%r1];
mbarrier.arrive.shared::cta.b64 _, [%r1];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], 0; @!p bra WAIT;
mov.u32 %r7, s; mad.lo.u32 %r7, %lane, 4, %r7; ld.shared.b32 %r7, [%r7];""", "a", "%r2", "b", "%r3", "%r7",
        params=".param .align 64 .b8 map[128]", args=[TensorMap(x, (1, 1, 1, 4, 8))])  # fmt: skip
    assert got[:, :4].tolist() == [[16843009, 0xABCD, 0x5678, 1]] * 32
    assert np.array_equal(got[:, 4].copy().view(np.float32), x[2, 0, 2, 1:5].ravel())


def test_06_sub_word_packing() -> None:
    swap = np.array([0x1111222233334444, 0x5555666677778888], np.uint64)
    got = results("""
.reg .b16 %rs<3>, h, l; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b128 %q<3>; .reg .pred p;
mov.u32 %r1, 0xAABBCCDD; mov.b32 {%rs1,%rs2}, %r1; cvt.u32.u16 %r2, %rs2; mov.b16 h, 0x1122; mov.b16 l, 0x3344; mov.b32 %r3,{h,l};
mov.b64 %rd1, {%r1,%r2}; mov.b64 {%r4,%r5}, %rd1;
{ .reg .b8 a,b,c,d; mov.b32 {a,b,c,d},%r1; mov.b32 %r6, {d,c,b,a}; }
mov.b64 {h,l,%rs1,%rs2}, %rd1; mov.b64 %rd2, {%rs2,%rs1,l,h}; mov.b64 {_,%r7}, %rd2;
ld.param.u64 %rd3, [swap]; ld.global.v2.u64 {%rd4,%rd5}, [%rd3]; mov.b128 %q0,{%rd4,%rd5}; mov.b128 %q1,{%rd1,%rd5};
bar.sync 0; setp.eq.u32 p, %lane, 3;
@p atom.global.cas.b128 %q2, [%rd3], %q0, %q1; @p mov.b128 {%rd6,%rd7}, %q2; mov.u32 %r8, 0; @p mov.b64 {_,%r8}, %rd7;""",
        "%r2", "%r3", "%r4", "%r5", "%r6", "%r7", "%r8", params=".param .u64 swap", args=[swap])  # fmt: skip
    want = [0xAABB, 0x33441122, 0xAABBCCDD, 0xAABB, 0xDDCCBBAA, 0xCCDDAABB]
    assert got.tolist() == [[*want, 0x55556666 if lane == 3 else 0] for lane in range(32)]
    assert swap.tolist() == [0x0000AABBAABBCCDD, 0x5555666677778888]


def test_07_registers_are_untyped_and_narrow_types_extend() -> None:
    data = np.zeros(32, np.uint8)
    data[24] = 200
    got = results("""
.reg .b16 %rs<4>; .reg .b32 %r<12>; .reg .b64 %rd<20>; .shared .b8 s[32];
ld.param.u64 %rd13, [data]; ld.global.s8 %rs3, [%rd13+24]; cvt.u32.u16 %r3, %rs3;
ld.global.s8 %rd1, [%rd13+24]; mov.b64 {%r4, %r5}, %rd1; ld.global.u8 %rd1, [%rd13+24]; mov.b64 {%r6, %r7}, %rd1;
ld.param.s32 %rd5, [kp_param_15]; mov.b64 {_, %r8}, %rd5; ld.param.u32 %rd5, [kp_param_15]; mov.b64 {_, %r9}, %rd5;
mov.u32 %r2, 0x12345680; mov.u32 %r11, s; add.u32 %r11, %r11, %lane; st.shared.u8 [%r11], %r2; ld.shared.u8 %r1, [%r11]; cvt.s32.s8 %r10, %r2;
mov.b64 %rd2, {%r2, %r2}; st.shared.u8 [%r11], %rd2; ld.shared.s8 %r11, [%r11]; add.f32 %r0, 0f3F800000, 0f3F800000;""",
        *(f"%r{i}" for i in (3, 4, 5, 6, 7, 8, 9, 1, 10, 11, 0)), params=".param .u64 data, .param .s32 kp_param_15",
        args=[data, -2])  # fmt: skip
    full = 0xFFFFFFFF
    want = [0xFFC8, 0xFFFFFFC8, full, 200, 0, full, 0, 0x80, 0xFFFFFF80, 0xFFFFFF80, 0x40000000]
    assert got.tolist() == [want] * 32


def test_08_conversions() -> None:
    def halves(a: float, b: float, dtype: Any) -> int:
        return int(
            np.array([b, a], np.float32)
            .astype(dtype)
            .view(np.uint32 if np.dtype(dtype).itemsize == 2 else np.uint16)[0]
        )

    cases = {  # instruction from floats %a = 1.7, %b = -300.25, %n = NaN, %big = 3e9, %tiny = 1e-40; f64 %dn = NaN
        "cvt.rn.bf16x2.f32 $, %a, %b;": halves(1.7, -300.25, ml_dtypes.bfloat16),
        "cvt.rn.f16x2.f32 $, %a, %b;": halves(1.7, -300.25, np.float16),
        "cvt.rn.relu.f16x2.f32 $, %a, %b;": halves(1.7, 0, np.float16),
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %a, %b; cvt.u32.u16 $, %rs1;": 0x3E << 8 | 0xF9,
        "cvt.rn.satfinite.e4m3x2.f32 %rs1, %big, %a; cvt.u32.u16 $, %rs1;": 0x7E << 8 | 0x3E,
        "cvt.rn.satfinite.e5m2x2.f32 %rs1, %b, %a; cvt.u32.u16 $, %rs1;": 0xDD << 8 | 0x3F,
        "mov.b16 %rs1, 0x383E; cvt.rn.f16x2.e4m3x2 $, %rs1;": 0x3C00 << 16 | 0x3F00,
        "cvt.rna.tf32.f32 $, %a;": 0x3FD9A000,
        "cvt.rzi.s32.f32 $, %n;": 0,
        "cvt.rzi.u32.f32 $, %n;": 0,
        "cvt.rzi.s32.f64 $, %dn;": 0x80000000,
        "cvt.rzi.s64.f32 %rd, %n; mov.b64 {_, $}, %rd;": 0x80000000,
        "cvt.rzi.s32.f32 $, %big;": 0x7FFFFFFF,
        "cvt.rzi.u32.f32 $, %big;": 3_000_000_000,
        "cvt.rzi.u32.f32 $, %b;": 0,
        "cvt.ftz.f64.f32 %d, %tiny; mov.b64 {_, $}, %d;": 0,
        "cvt.f64.f32 %d, %tiny; mov.b64 {_, $}, %d;": int(np.float64(np.float32(1e-40)).view(np.uint64)) >> 32,
        "cvt.sat.f32.f32 $, %a;": 0x3F800000,
        "cvt.sat.f32.f32 $, %b;": 0,
        "cvt.rpi.f32.f32 $, %a;": 0x40000000,
        "cvt.rmi.f32.f32 $, %a;": 0x3F800000,
        "cvt.rni.s32.f32 $, %b;": -300 & 0xFFFFFFFF,
        "cvt.rmi.s32.f32 $, %b;": -301 & 0xFFFFFFFF,
        "cvt.rzi.ftz.s32.f32 $, %tiny;": 0,
        "cvt.rpi.s32.f32 $, %tiny;": 1,
        "cvt.rpi.ftz.s32.f32 $, %tiny;": 0,
    }
    bits = {name: f"0f{int(np.float32(v).view(np.uint32)):08X}"
            for name, v in (("a", 1.7), ("b", -300.25), ("big", 3e9), ("tiny", 1e-40))}  # fmt: skip
    body = ".reg .f32 %a, %b, %n, %big, %tiny; .reg .f64 %d, %dn; .reg .b16 %rs1; .reg .b64 %rd; .reg .b32 %o<40>;"
    body += "".join(f"mov.f32 %{name}, {word};" for name, word in bits.items())
    body += "mov.f32 %n, 0f7FC00000; mov.f64 %dn, 0d7FF8000000000000;"
    body += "\n".join(text.replace("$", f"%o{i}") for i, text in enumerate(cases))
    got = results(body, *(f"%o{i}" for i in range(len(cases))), block=1)[0]
    assert {t: hex(g) for t, g in zip(cases, got, strict=True)} == {t: hex(w) for t, w in cases.items()}


def test_09_immediates() -> None:
    got = results("""
.reg .f32 f; .reg .f64 d; .reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred p;
mov.f32 f, 0f3F800000; add.f32 f, f, 0F40000000; mov.b32 %r1, f; mov.f64 d, 0dBFF0000000000000; cvt.rn.f32.f64 f, d; mov.b32 %r2, f;
createpolicy.fractional.L2::evict_last.b64 %rd1, 1.0; createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %rd2, 0.5;
ld.param.u64 %rd3, [data]; ld.global.L2::cache_hint.b32 %r3, [%rd3], %rd1;
mov.u32 %r4, WARP_SZ; rem.u32 %r5, %lane, WARP_SZ; and.b32 %r6, %lane, -1; shfl.sync.idx.b32 %r7, %r4, 0, 31, -1;
setp.eq.u64 p, %rd3, 18446744073709551615; selp.b32 %r8, 1, 2, p; mov.u64 %rd3, 18446744073709551614; not.b64 %rd3, %rd3;
cvt.u32.u64 %r0, %rd3;""", *(f"%r{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 0)), params=".param .u64 data",
        args=[np.array([41], np.uint32)])  # fmt: skip
    assert got.tolist() == [[0x40400000, 0xBF800000, 41, 32, lane, lane, 32, 2, 1] for lane in range(32)]


def test_10_the_address_of_a_symbol() -> None:
    before = """
.const .align 4 .u32 const_sym[2] = {5, 6}; .global .align 1 .b8 $str[4] = {7, 8, 9, 0}; .shared .align 16 .b8 smem_sym[64];
.func (.param .b32 r) func(.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; add.u32 %x, %x, 1; st.param.b32 [r], %x; ret; }"""
    got = results("""
.reg .b32 %r<9>; .reg .b64 %rd<9>;
mov.u32 %r5, smem_sym; st.shared.u32 [%r5+16], 11; bar.warp.sync -1; ld.shared.u32 %r1, [smem_sym+16];
mov.u64 %rd7, const_sym; ld.const.u32 %r2, [%rd7+4]; ld.const.u32 %r7, [const_sym];
mov.u64 %rd5, $str; cvta.global.u64 %rd6,%rd5; ld.u8 %r3, [%rd6+1]; ld.global.u8 %r8, [$str+2];
mov.u64 %rd1, func; { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %lane; q : .callprototype (.param .b32 _) _ (.param .b32 _);
call (r0), %rd1, (p0), q; ld.param.b32 %r4, [r0]; }
mov.b64 %rd3, k_param_0; cvta.param.u64 %rd8,%rd3; ld.u32 %r6, [%rd8];""", *(f"%r{i}" for i in (1, 2, 7, 3, 8, 4, 6)),
        before=before, params=".param .u32 k_param_0", args=[99])  # fmt: skip
    assert got.tolist() == [[11, 6, 5, 8, 9, lane + 1, 99] for lane in range(32)]


@pytest.mark.parametrize("align", [64, 128])
def test_11_parameters_are_memory(align: int) -> None:
    """Register bases into the bank, and tensor maps anywhere in 128 bytes: a structure's middle, .global, .const."""
    tensors = [aligned(np.arange(4, dtype=np.float32) + 10 * i) for i in range(4)]
    maps = [TensorMap(x, (4,)).encoded for x in tensors]
    struct = b"".join([bytes(128), maps[0], bytes([1, 2, 3, 4]) * 32, maps[1]]).ljust(2560, b"\xee")
    words = [", ".join(map(str, np.frombuffer(m, np.uint8))) for m in maps[2:]]
    before = f".global .align 64 .b8 gmap[128] = {{{words[0]}}}; .const .align 128 .b8 cmap[128] = {{{words[1]}}};"
    copies = "".join(
        f"cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r9+{16 * i * 8}], [{map}, {{0}}], [bar];\n"
        for i, map in enumerate(["%rd4", "%rd5", "%rd6", "%rd7"])
    )
    got = results(f"""
.reg .b16 %rs<2>; .reg .b32 %r<10>; .reg .b64 %rd<9>; .reg .pred p, q; .shared .align 128 .b8 s[512]; .shared .align 8 .b64 bar;
mov.b64 %rd3, kp_param_13; ld.param.u8 %rs1, [%rd3+259]; cvt.u32.u16 %r1, %rs1; cvt.u64.u32 %rd1, %lane;
add.s64 %rd1, %rd3, %rd1; ld.param.u8 %rs1, [%rd1+256]; cvt.u32.u16 %r2, %rs1; ld.param.u64 %rd2, [out]; ld.param.v2.u8 {{_, %rs1}}, [%rd3+258];
cvta.param.u64 %rd8, %rd3; add.s64 %rd4, %rd8, 128; add.s64 %rd5, %rd8, 384; ld.u8 %r3, [%rd8+257];
mov.u64 %rd6, gmap; cvta.global.u64 %rd6, %rd6; mov.u64 %rd7, cmap; cvta.const.u64 %rd7, %rd7;
setp.eq.u32 q, %lane, 0; @q mbarrier.init.shared::cta.b64 [bar], 1; bar.sync 0; mov.u32 %r9, s;
@!q bra WAIT; mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 64;
{copies}
WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [bar], 0; @!p bra WAIT;
shr.u32 %r4, %lane, 2; and.b32 %r4, %r4, 3; shl.b32 %r4, %r4, 7; and.b32 %r5, %lane, 3; mad.lo.u32 %r4, %r5, 4, %r4; add.u32 %r4, %r4, %r9;
ld.shared.b32 %r4, [%r4];""", "%r1", "%r2", "%r3", "%r4", before=before, params=f".param .align {align} .b8 kp_param_13[2560]",
        args=[struct], buffers=tensors)  # fmt: skip
    assert got[:, :3].tolist() == [[4, 1 + lane % 4, 2] for lane in range(32)]
    assert np.array_equal(got[:16, 3].copy().view(np.float32), np.concatenate(tensors))


def test_12_the_function_abi() -> None:
    """Structures returned, short and char as .b32, and recursion: each call has parameters, registers and locals of its own."""
    before = """
.func (.param .align 16 .b8 func_retval0[40]) five(.param .b64 a)
{ .reg .b64 %rd<3>; ld.param.u64 %rd1, [a]; st.param.b64 [func_retval0+0], %rd1; add.u64 %rd2, %rd1, 1; st.param.b64 [func_retval0+8], %rd2;
st.param.v2.b64 [func_retval0+16], {%rd1, %rd2}; st.param.b32 [func_retval0+32], -5; st.param.b8 [func_retval0+36], 77; ret; }
.func (.param .b32 r) narrow(.param .b32 c, .param .b32 s)
{ .reg .b32 %x, %y; ld.param.s8 %x, [c]; ld.param.u16 %y, [s]; add.s32 %x, %x, %y; st.param.b32 [r], %x; ret; }
.func (.param .b32 r) sum(.param .b32 n)
{ .reg .b32 %n, %x; .reg .pred %p; .local .align 4 .u32 mine; ld.param.b32 %n, [n]; st.local.u32 [mine], %n; mov.u32 %x, 0;
setp.eq.u32 %p, %n, 0; @%p bra DONE; sub.u32 %x, %n, 1;
{ // callseq 3, 0
.param .b32 param0; st.param.b32 [param0+0], %x; .param .b32 retval0; call.uni (retval0), sum, (param0); ld.param.b32 %x, [retval0+0];
} // callseq 3
ld.local.u32 %n, [mine]; mad.lo.u32 %x, %n, %n, %x;
DONE: st.param.b32 [r], %x; ret; }"""
    got = results("""
.reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %rs1; mul.wide.u32 %rd1, %lane, 1000000000;
{ .param .b64 param0; st.param.b64 [param0+0], %rd1; .param .align 16 .b8 retval0[40]; call.uni (retval0), five, (param0);
ld.param.b64 %rd2, [retval0+8]; ld.param.v2.b64 {%rd3, %rd4}, [retval0+16]; ld.param.b32 %r1, [retval0+32]; ld.param.b8 %rs1, [retval0+36]; }
xor.b64 %rd2, %rd2, %rd4; cvt.u32.u64 %r2, %rd2; mov.b64 {_, %r3}, %rd3; cvt.u32.u16 %r4, %rs1;
{ .param .b32 p0; st.param.b32 [p0], 0x12FF; .param .b32 p1; st.param.b32 [p1], 0x7FFFF; .param .b32 r0; call.uni (r0), narrow, (p0, p1); ld.param.b32 %r5, [r0]; }
{ .param .b32 p0; st.param.b32 [p0], %lane; .param .b32 r0; call.uni (r0), sum, (p0); ld.param.b32 %r6, [r0]; }""",
        *(f"%r{i}" for i in range(1, 7)), before=before)  # fmt: skip
    squares = np.cumsum(LANES**2)
    assert got.tolist() == [[-5 & 0xFFFFFFFF, 0, lane * 10**9 >> 32, 77, 0xFFFE, squares[lane]] for lane in range(32)]


def test_13_indirect_calls() -> None:
    """Half of the lanes call the one, half the other; the table and an object with a table pointer are data."""
    functions = "".join(
        f".func (.param .b32 r) {name}(.param .b32 a, .param .b32 b) {{ .reg .b32 %x, %y; ld.param.b32 %x, [a]; ld.param.b32 %y, [b];"
        f" {op} %x, %x, %y; st.param.b32 [r], %x; ret; }}\n"
        for name, op in (("_Z3addii", "add.s32"), ("_Z3mulii", "mul.lo.s32"))
    )
    before = (
        functions
        + """.visible .global .align 8 .u64 vtable[3] = {0, 0, _Z3mulii};
.global .align 8 .u64 tab[2] = {_Z3addii, _Z3mulii}; .global .align 8 .u64 object[2] = {generic(vtable)+16, 7};"""
    )
    call = """{ .param .b32 param0; st.param.b32 [param0+0], %lane; .param .b32 param1; st.param.b32 [param1+0], 7; .param .b32 retval0;
prototype_3 : .callprototype (.param .b32 _) _ (.param .b32 _, .param .b32 _);
call (retval0),
%rd20,
(
param0,
param1
)
, prototype_3;
ld.param.b32 $, [retval0+0]; }"""
    got = results(f"""
.reg .b32 %r<4>; .reg .b64 %rd<21>; and.b32 %r1, %lane, 1; mov.u64 %rd1, tab; mad.wide.u32 %rd1, %r1, 8, %rd1; ld.global.u64 %rd20, [%rd1];
{call.replace("$", "%r2")}
mov.u64 %rd2, object; cvta.global.u64 %rd2, %rd2; ld.u64 %rd2, [%rd2]; ld.u64 %rd20, [%rd2];
{call.replace("$", "%r3")}""", "%r2", "%r3", before=before)  # fmt: skip
    assert got.tolist() == [[lane * 7 if lane % 2 else lane + 7, lane * 7] for lane in range(32)]


def test_14_vprintf_is_the_runtimes() -> None:
    """Arguments lie on their natural alignment in a buffer, and floats are doubles there."""
    text = ", ".join(map(str, b"%d|%.2f|%c|%lld\n"))
    module = snippet("""
.reg .b64 %SP, %SPL, %rd<4>; .reg .b32 %r<4>; .reg .f64 %fd; .reg .f32 %f; .local .align 8 .b8 __local_depot0[32];
mov.u64 %SPL, __local_depot0; cvta.local.u64 %SP, %SPL; mov.f32 %f, 0fC0200000; cvt.f64.f32 %fd, %f;
st.local.u32 [%SPL], 42; st.local.f64 [%SPL+8], %fd; st.local.u32 [%SPL+16], 88; mov.u64 %rd1, 1234567890123; st.local.u64 [%SPL+24], %rd1;
mov.u64 %rd2, $str; cvta.global.u64 %rd3, %rd2;
{ .param .b64 param0; st.param.b64 [param0+0], %rd3; .param .b64 param1; st.param.b64 [param1+0], %SP; .param .b32 retval0;
call.uni (retval0), vprintf, (param0, param1); ld.param.b32 %r1, [retval0+0]; }
ld.param.u64 %rd1, [out]; st.global.u32 [%rd1], %r1;""", before=f""".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.global .align 1 .b8 $str[20] = {{{text}}};""")  # fmt: skip
    count = np.zeros(1, np.int32)
    run = module.launch("k", args=[count])
    run.raise_on_findings()
    assert run.output == "42|-2.50|X|1234567890123\n"
    assert count[0] == 4


def test_14_a_failed_assertion_stops_and_says_what_failed() -> None:
    text = ", ".join(map(str, b"i < n\0kernel.cu\0walk\0"))
    module = snippet("""
.reg .b64 %rd<4>; .reg .pred p; mov.u64 %rd1, $text; cvta.global.u64 %rd1, %rd1; add.s64 %rd2, %rd1, 6; add.s64 %rd3, %rd1, 16;
.reg .b32 lane; mov.u32 lane, %laneid; setp.ne.u32 p, lane, 5; @p ret;
{ .param .b64 p0; st.param.b64 [p0], %rd1; .param .b64 p1; st.param.b64 [p1], %rd2; .param .b32 p2; st.param.b32 [p2], 17;
.param .b64 p3; st.param.b64 [p3], %rd3; .param .b64 p4; st.param.b64 [p4], 1; call.uni __assertfail, (p0, p1, p2, p3, p4); }""",
        params="", before=f""".extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.global .align 1 .b8 $text[22] = {{{text}}};""")  # fmt: skip
    with pytest.raises(tkpy.emulator.KernelError, match=r"i < n at kernel\.cu:17 in walk") as error:
        module.launch("k", block=32)
    assert error.value.findings[0].lane == 5


def test_14_malloc_free_and_bodies_of_the_compilers_own() -> None:
    """A symbol that the module defines, of whatever name, is called like any other."""
    before = """.extern .func (.param .b64 r) malloc (.param .b64 a); .extern .func free (.param .b64 a);
.func (.param .b64 r) __internal_accurate_pow(.param .b64 a, .param .b64 b)
{ .reg .f64 %x; ld.param.f64 %x, [a]; mul.f64 %x, %x, %x; st.param.f64 [r], %x; ret; }"""
    got = results("""
.reg .b64 %rd<4>; .reg .f64 %fd; .reg .b32 %r<4>; cvt.rn.f64.u32 %fd, %lane;
{ .param .b64 p0; st.param.b64 [p0], 24; .param .b64 r0; call.uni (r0), malloc, (p0); ld.param.b64 %rd1, [r0]; }
{ .param .b64 p0; st.param.f64 [p0], %fd; .param .b64 p1; st.param.f64 [p1], %fd; .param .b64 r0;
call.uni (r0), __internal_accurate_pow, (p0, p1); ld.param.f64 %fd, [r0]; }
cvt.rzi.u32.f64 %r1, %fd; st.u32 [%rd1+20], %r1; ld.u32 %r2, [%rd1+20];
{ .param .b64 p0; st.param.b64 [p0], %rd1; call.uni free, (p0); }""", "%r2", before=before)  # fmt: skip
    assert got[:, 0].tolist() == (LANES**2).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_14_the_grids_workspace_is_in_envreg(seed: int) -> None:
    """What cooperative groups' grid.sync() compiles to: a counter in the second word of the driver's workspace."""
    module = snippet("""
.reg .b32 %r<30>; .reg .b64 %rd<9>; .reg .pred %p<4>; ld.param.u64 %rd4, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r6, %nctaid.x;
mov.u32 %r15, %envreg2; cvt.u64.u32 %rd5, %r15; mov.u32 %r16, %envreg1; cvt.u64.u32 %rd6, %r16; bfi.b64 %rd2, %rd6, %rd5, 32, 32;
setp.eq.u64 %p1, %rd2, 0; @%p1 trap; add.s64 %rd3, %rd2, 4;
setp.eq.u32 %p2, %r2, 0; sub.s32 %r29, -2147483647, %r6; selp.b32 %r7, %r29, 1, %p2; setp.ne.s32 %p3, %r1, 0; mov.u32 %r8, 0;
ROUND: @%p3 bra JOIN; add.u32 %r9, %r2, 1; rem.u32 %r9, %r9, %r6; and.b32 %r10, %r8, 1; mad.lo.u32 %r9, %r10, %r6, %r9; xor.b32 %r10, %r10, 1;
mad.lo.u32 %r10, %r10, %r6, %r2; mad.wide.u32 %rd7, %r9, 4, %rd4; mad.wide.u32 %rd8, %r10, 4, %rd4; ld.global.u32 %r9, [%rd7]; add.u32 %r9, %r9, 1; st.global.u32 [%rd8], %r9;
JOIN: barrier.sync 0; @%p3 bra LEAVE; atom.add.release.gpu.u32 %r11,[%rd3],%r7;
SPIN: ld.acquire.gpu.u32 %r12,[%rd3]; xor.b32 %r12, %r12, %r11; setp.gt.s32 %p1, %r12, -1; @%p1 bra SPIN;
LEAVE: barrier.sync 0; add.u32 %r8, %r8, 1; setp.lt.u32 %p1, %r8, 5; @%p1 bra ROUND;""")  # fmt: skip
    data = np.zeros((2, 7), np.uint32)
    data[0] = np.arange(7) * 10
    want = np.roll(data[0], -5) + 5
    module.launch("k", grid=7, block=64, args=[data], seed=seed).raise_on_findings()
    assert np.array_equal(data[1], want)


def test_15_initialisers() -> None:
    before = """
.global .align 4 .b8 ga[16] = {1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 128, 63}; .global .align 4 .f32 zero[3];
.visible .global .align 8 .u64 gt[4] = {1, generic(ga)+8, 4615063718147915776, 25185};
.visible .global .attribute(.managed) .align 4 .u32 shared_with_host[3] = {9}; .global .align 8 .f64 doubles[2] = {0d4000000000000000};"""
    got = results("""
.reg .b64 p; .reg .f64 d; .reg .f32 f; .reg .b32 %r<10>;
ld.global.u64 p, [gt+8]; ld.f32 f, [p]; mov.b32 %r1, f; ld.f32 f, [p+4]; mov.b32 %r2, f;
ld.global.f64 d, [gt+16]; cvt.rn.f32.f64 f, d; mov.b32 %r3, f; ld.global.u8 %r4, [gt+24]; ld.global.u8 %r5, [gt+25];
ld.global.u32 %r6, [shared_with_host]; ld.global.u32 %r7, [shared_with_host+8]; ld.global.u32 %r8, [zero+8];
ld.global.f64 d, [doubles]; cvt.rn.f32.f64 f, d; mov.b32 %r9, f; ld.global.f64 d, [doubles+8]; cvt.rn.f32.f64 f, d; mov.b32 %r0, f;""",
        *(f"%r{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)), before=before)  # fmt: skip
    value_of_bits = np.array([4615063718147915776], np.uint64).view(np.float64).astype(np.float32).view(np.uint32)[0]
    assert got.tolist() == [[0x3F800000, 0, value_of_bits, 25185 & 255, 25185 >> 8, 9, 0, 0, 0x40000000, 0]] * 32


def test_16_local_memory_and_the_stack() -> None:
    got = results("""
.local .align 16 .b8 __local_depot0[128]; .reg .b64 %SP, %SPL, %rd<9>; .reg .b32 %r<9>;
mov.u64 %SPL, __local_depot0; cvta.local.u64 %SP, %SPL; add.u64 %rd3, %SP, 0; add.u64 %rd2, %SPL, 0;
st.local.u32 [%rd2], %lane; ld.u32 %r1, [%rd3]; st.v4.u32 [%rd3+112], {1, 2, 3, %lane}; ld.local.u32 %r2, [%SPL+124]; and.b64 %rd1, %SPL, 15; cvt.u32.u64 %r3, %rd1;
mov.u64 %rd4, 40; alloca.u64 %rd5, %rd4, 16; and.b64 %rd6, %rd5, 15; cvt.u32.u64 %r4, %rd6; st.local.u32 [%rd5+36], 6; ld.local.u32 %r5, [%rd5+36];
cvta.local.u64 %rd7, %rd5; ld.u32 %r6, [%rd7+36]; ld.local.u32 %r7, [%SPL+124];""", *(f"%r{i}" for i in range(1, 8)))  # fmt: skip
    assert got.tolist() == [[lane, lane, 0, 0, 6, 6, lane] for lane in range(32)]
