"""The language: scopes, labels, dialects, and errors with their line. Cases that real PTX is known to contain."""

from __future__ import annotations

import numpy as np
import pytest
from emulator_harness import HEADER, snippet, value

import tkpy.emulator


def test_scoped_labels_and_registers_shadow() -> None:
    loop = "{ .reg .pred P1; .reg .b32 i; mov.u32 i, 0; AGAIN: add.u32 i, i, 1; setp.lt.u32 P1, i, 5; @P1 bra AGAIN; add.u32 %out, %out, i; }"
    assert value("mov.u32 %out, 0;" + loop + loop) == [10] * 32
    assert value(".reg .b32 t<4>; mov.b32 t3, 7; { .reg .b32 t3; mov.b32 t3, 9; } mov.b32 %out, t3;") == [7] * 32


def test_statements_share_lines_and_span_them() -> None:
    assert value(".reg.b16 hl, hu; mov.u16 hl, 1; mov.u16\n hu ,\n 2 ; mov.b32 %out, {hl,hu};") == [0x20001] * 32


def test_forward_labels_and_fall_through() -> None:
    body = ".reg .pred p; setp.lt.u32 p, %lane, 7; mov.u32 %out, 1; @p bra SKIP; @!p mov.u32 %out, 2; bra.uni SKIP; mov.u32 %out, 3; SKIP:"
    assert value(body) == [1] * 7 + [2] * 25


def test_a_guarded_off_load_leaves_its_destination() -> None:
    body = """.reg .pred p; .reg .b32 a, b; .shared .align 8 .b32 s[64];
mov.u32 a, 5; mov.u32 b, 6; setp.eq.u32 p, %lane, 99;
@p ld.shared.v2.b32 { a, b }, [ s + 8 ];
add.u32 %out, a, b;"""
    assert value(body) == [11] * 32


def test_branch_table() -> None:
    body = """.reg .b32 i; and.b32 i, %lane, 3; ts: .branchtargets L0, L1, L2, L0;
brx.idx i, ts; L0: mov.u32 %out, 10; bra END; L1: mov.u32 %out, 11; bra END; L2: mov.u32 %out, 12; END:"""
    assert value(body) == [[10, 11, 12, 10][i % 4] for i in range(32)]


def test_calls_by_prototype_and_function_tables() -> None:
    before = """
.func (.param .b32 r) twice (.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; add.u32 %x, %x, %x; st.param.b32 [r], %x; ret; }
.func (.param .b32 r) next (.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; add.u32 %x, %x, 1; st.param.b32 [r], %x; ret; }
.visible .global .align 8 .u64 table[2] = {twice, next};"""
    body = """.reg .b64 f, t; .reg .b32 i;
mov.u64 t, table; cvta.global.u64 t, t; and.b32 i, %lane, 1; mad.wide.u32 t, i, 8, t; ld.u64 f, [t];
{ .param .b32 p0; .param .b32 r0; st.param.b32 [p0+0], %lane;
prototype_3 : .callprototype (.param .b32 _) _ (.param .b32 _);
call (r0), f, (p0), prototype_3;
ld.param.b32 %out, [r0+0]; }"""
    assert value(body, before) == [i + 1 if i % 2 else 2 * i for i in range(32)]


def test_recursion_with_frames() -> None:
    before = """
.func (.param .b32 r) sum (.param .b32 a)
{ .reg .b32 %x, %y; .reg .pred %p; ld.param.b32 %x, [a]; setp.eq.u32 %p, %x, 0; @%p bra DONE;
sub.u32 %y, %x, 1;
{ .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %y; call.uni (r0), sum, (p0); ld.param.b32 %y, [r0]; }
add.u32 %x, %x, %y;
DONE: st.param.b32 [r], %x; ret; }"""
    body = "{ .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %lane; call.uni (r0), sum, (p0); ld.param.b32 %out, [r0]; }"
    assert value(body, before) == [i * (i + 1) // 2 for i in range(32)]


def test_initialisers() -> None:
    before = """
.global .align 4 .b8 bytes[8] = {1, 2, 3, 4};
.visible .global .align 8 .u64 gt[3] = {1, generic(bytes)+1, 4615063718147915776};
.const .align 4 .f32 c[2] = {0f3F800000, 2.5};"""
    body = """.reg .b64 p; .reg .b32 a; .reg .f32 f; .reg .b64 d;
ld.global.u64 p, [gt+8]; ld.u8 %out, [p]; ld.global.u32 a, [bytes+4]; add.u32 %out, %out, a;
ld.const.f32 f, [c+4]; cvt.rzi.u32.f32 a, f; mad.lo.u32 %out, a, 100, %out;"""
    assert value(body, before) == [202] * 32


def test_narrow_loads_extend_to_the_register() -> None:
    before = ".global .align 4 .b8 bytes[4] = {200, 1, 2, 3};"
    assert (
        value(".reg .b64 d; ld.global.s8 d, [bytes]; shr.u64 d, d, 32; cvt.u32.u64 %out, d;", before)
        == [0xFFFFFFFF] * 32
    )
    assert value(".reg .b16 h; ld.global.s8 h, [bytes]; cvt.u32.u16 %out, h;", before) == [0xFFC8] * 32


def test_generic_addresses_of_every_space() -> None:
    before = ".global .align 4 .u32 g = 1; .const .align 4 .u32 c = 2;"
    body = """.shared .align 4 .u32 s; .local .align 4 .u32 l; .reg .b64 a; .reg .b32 v, t; .reg .pred p;
mov.u32 %out, 0; st.shared.u32 [s], 4; st.local.u32 [l], 8; bar.warp.sync -1;
mov.u64 a, g; cvta.global.u64 a, a; ld.u32 v, [a]; add.u32 %out, %out, v;
mov.u64 a, c; cvta.const.u64 a, a; ld.u32 v, [a]; add.u32 %out, %out, v;
mov.u64 a, s; cvta.shared.u64 a, a; ld.u32 v, [a]; add.u32 %out, %out, v; isspacep.shared p, a; selp.b32 t, 100, 0, p; add.u32 %out, %out, t;
mov.u64 a, l; cvta.local.u64 a, a; ld.u32 v, [a]; add.u32 %out, %out, v; isspacep.global p, a; selp.b32 t, 1000, 0, p; add.u32 %out, %out, t;"""
    # every lane writes the same value to s: not a race
    assert value(body, before) == [115] * 32


def test_parameters_as_memory() -> None:
    params = ".param .u64 out, .param .align 8 .b8 blob[16], .param .s8 small, .param .f64 d"
    body = """.reg .b64 a, o; .reg .b32 v, w; .reg .f64 f;
mov.b64 a, blob; cvta.param.u64 a, a; ld.u32 v, [a+4]; ld.param.s8 w, [small]; add.s32 v, v, w;
ld.param.f64 f, [d]; cvt.rzi.s32.f64 w, f; add.s32 v, v, w; ld.param.u64 o, [out]; st.global.u32 [o], v;"""
    out = np.zeros(1, np.int32)
    blob = np.array([10, 20, 30, 40], np.int32).tobytes()
    snippet(body, params).launch("k", args=[out, blob, -5, 100.9]).raise_on_findings()
    assert out[0] == 115


def test_modifiers_in_any_order() -> None:
    body = """.shared .align 4 .u32 s; .reg .b64 a; .reg .b32 r; .reg .pred p;
setp.eq.u32 p, %lane, 0; @p st.shared.u32 [s], 0; bar.sync 0; mov.u64 a, s; cvta.shared.u64 a, a;
atom.add.acq_rel.gpu.u32 r, [a], 1; atom.shared.cta.relaxed.add.u32 r, [s], 1; atom.acq_rel.gpu.shared.add.u32 r, [s], 1;
bar.sync 0; ld.shared.u32 %out, [s];"""
    assert value(body) == [96] * 32


def test_directives_that_are_skipped() -> None:
    text = f"""{HEADER}
.file 1 "a.cu", 123, 456
.visible .entry k(.param .u64 .ptr .global .align 1 out) .maxntid 32, 1, 1 .minnctapersm 2
{{
.pragma "nounroll";
.loc 1 7 3
mov.b32 {{_, _}}, 0;
.loc 1 8 3, function_name $L__info_string0, inlined_at 1 7 3
trap;
ret;
}}
.section .debug_str {{ $L__info_string0: .b8 95, 90, 0 }}
"""
    with pytest.raises(tkpy.emulator.KernelError) as error:
        tkpy.emulator.load(text.replace("mov.b32 {_, _}, 0;", "")).launch("k", block=32, args=[np.zeros(1)])
    assert error.value.findings[0].source == ("a.cu", 8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("hello", "line 1: expected a directive at module level, got 'hello'"),
        (".version 8.0\n.entry k() { add.s32 %r1, %r2, %r3; }", "line 2: unknown register '%r1'"),
        (".version 8.0\n.entry k() {\n.reg .b32 %r<4>;\nadd.s32 %r1, %r2, %r3\n}", "line 5: expected ';'"),
        (".version 8.0\n.entry k() {\nbra nowhere;\n}", "line 3: unknown name 'nowhere'"),
        (".version 8.0\n.entry k() {\nL: L: ret;\n}", "line 3: label 'L' is defined twice"),
        (".version 8.0\n.entry k() {\n", "has no end"),
        (".version 8.0\n.target sm_90a\n.address_size 32", "line 3: only .address_size 64"),
        (".version 8.0\n/* comment", "line 2: comment without an end"),
        (".version 8.0\n.global .u32 x[99999999999];", "too large"),
        (".version 8.0\n.entry k() { .reg .b32 %r<4>; mov.b32 %r1, 0f3F8; }", "needs 8"),
        (".version 8.0\n.entry k() { @%p1 ret; }", "unknown predicate"),
        (".version 8.0\n.entry k() {" + "{" * 1000, "nested too deeply"),
        ("", "not PTX"),
    ],
)
def test_errors_name_their_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        tkpy.emulator.load(text)


def test_unmodelled_instructions_are_listed_and_stop() -> None:
    module = snippet(
        ".reg .b32 %r<4>; .reg .pred %p; setp.eq.u32 %p, 1, 2;\n@%p shfl.idx.b32 %r1, %r2, %r3, %r1;\nfrobnicate.b32 %r1, %r2;"
    )
    assert [u.text.split(".")[0] for u in module.unmodelled] == ["shfl", "frobnicate"]
    with pytest.raises(tkpy.emulator.KernelError, match="frobnicate") as error:
        module.launch("k", args=[np.zeros(1)])
    assert error.value.findings[0].code == "unmodelled"
    assert error.value.findings[0].ptx_line == module.unmodelled[1].line


def test_arguments_are_checked() -> None:
    module = snippet("", ".param .u64 p, .param .u32 n, .param .f32 x, .param .align 8 .b8 blob[8]")
    x = np.zeros(4)
    good = [x, 3, 1.5, bytes(8)]
    module.launch("k", args=good)
    module.launch("k", args={"p": x, "n": 3, "x": 2, "blob": bytes(8)})
    for args, kind, text in [
        (good[:3], TypeError, "takes 4 arguments"),
        ([3.5, *good[1:]], TypeError, "needs an int"),
        ([x, x, 1.5, bytes(8)], TypeError, "no pointer"),
        ([x, 2**32, 1.5, bytes(8)], ValueError, "does not fit"),
        ([x, 3, "a", bytes(8)], TypeError, "needs a number"),
        ([x, 3, 1.5, bytes(7)], ValueError, "takes 8 bytes"),
        ([x, 3, 1.5, 8], TypeError, "structure of 8 bytes"),
    ]:
        with pytest.raises(kind, match=text):
            module.launch("k", args=args)
    for options, text in [
        ({"block": 2000}, "block.x"),
        ({"grid": 0}, "grid.x"),
        ({"shared": 10**6}, "shared memory"),
        ({"cluster": 3, "grid": 4}, "multiple"),
    ]:
        with pytest.raises(ValueError, match=text):
            module.launch("k", args=good, **options)
    with pytest.raises(ValueError, match="has no kernel"):
        module.launch("nothing", args=good)


def test_read_only_and_unrelated_memory_is_protected() -> None:
    module = snippet(".reg .b64 a; ld.param.u64 a, [out]; st.global.u32 [a], 1;")
    x = np.zeros(4, np.uint32)
    x.flags.writeable = False
    finding = module.launch("k", args=[x], checks="none").findings[0]
    assert finding.code == "out-of-bounds"
    assert "read-only" in finding.message
    assert not x.any()
    y = np.zeros(4, np.uint32)
    assert module.launch("k", args=[int(y.ctypes.data)]).findings[0].code == "out-of-bounds"
    assert not y.any()
    module.launch("k", args=[int(y.ctypes.data)], buffers=[y]).raise_on_findings()
    assert y[0] == 1
