"""What real PTX does that surprises a reader of it, second half: barriers, clusters, tensors, arithmetic, sizes."""

from __future__ import annotations

import resource

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import aligned, results, snippet

import tkpy.emulator

LANES = np.arange(32)
BAR = ".reg .pred p, q; .shared .align 8 .b64 bar; setp.eq.u32 q, %lane, 0; @q mbarrier.init.shared::cta.b64 [bar], {}; bar.sync 0;"


def wait(label: str, what: str) -> str:
    return f"{label}: mbarrier.{what}; @!p bra {label};"


@pytest.mark.parametrize("seed", range(3))
def test_17_generic_addressing(seed: int) -> None:
    """Two CTAs: windows do not meet, shared::cta lies in shared::cluster, and one form reaches every space."""
    before = ".global .align 4 .f32 g = 0f3F800000; .const .align 4 .f32 c = 0f40000000;"
    spaces = [("shared", "%rd1", 1), ("shared::cluster", "%rd1", 1), ("global", "%rd1", 0), ("shared::cta", "far", 0),
              ("shared::cluster", "far", 1), ("global", "far", 0), ("local", "%rd5", 1), ("shared", "%rd5", 0), ("global", "%rd3", 1),
              ("const", "%rd4", 1), ("param::entry", "%rd6", 1), ("global", "%rd5", 0)]  # fmt: skip
    asked = "".join(
        f"isspacep.{space} p, {name}; selp.b32 %r12, {1 << i}, 0, p; or.b32 %r11, %r11, %r12;\n"
        for i, (space, name, _) in enumerate(spaces)
    )
    total = np.zeros(1, np.uint32)
    got = results(f"""
.reg .b32 %r<20>, sum; .reg .b64 %rd<20>, far; .reg .f32 f, total; .reg .pred p, q;
.shared .align 8 .b32 s[2]; .shared .align 8 .b64 bar; .local .align 4 .f32 l;
mov.u32 %r2, %cluster_ctarank; setp.eq.u32 q, %lane, 0; mov.u32 %r5, s; mov.u32 %r6, bar;
{{ .reg .b64 %tmp; cvt.u64.u32 %tmp, %r5; cvta.shared.u64 %rd1, %tmp; }} {{ .reg .b64 %tmp; cvt.u64.u32 %tmp, %r6; cvta.shared.u64 %rd2, %tmp; }}
@q st.f32 [%rd1], 0f40800000; @q st.u32 [%rd1+4], 0; @q mbarrier.init.b64 [%rd2], 32; barrier.cluster.arrive; barrier.cluster.wait;
mov.u64 %rd3, g; cvta.global.u64 %rd3, %rd3; mov.u64 %rd4, c; cvta.const.u64 %rd4, %rd4; mov.u64 %rd5, l; cvta.local.u64 %rd5, %rd5;
mov.b64 %rd6, param; cvta.param.u64 %rd6, %rd6; st.f32 [%rd5], 0f41000000; mov.f32 total, 0f00000000;
{"".join(f"ld.f32 f,[%rd{i}]; add.f32 total, total, f;" for i in (3, 4, 1, 5, 6))} cvt.rzi.u32.f32 sum, total;
xor.b32 %r7, %r2, 1; mapa.u64 far, %rd1, %r7; getctarank.u64 %r8, far; getctarank.u64 %r9, %rd1; atom.add.u32 %r10, [far+4], 1;
ld.param.u64 %rd9, [sums]; atom.add.u32 %r10, [%rd9], 1; mbarrier.arrive.b64 %rd7, [%rd2]; {wait("WAIT", "test_wait.b64 p, [%rd2], %rd7")}
barrier.cluster.arrive; barrier.cluster.wait; cvta.to.shared.u64 %rd8, %rd1; ld.shared.u32 %r10, [%rd8+4]; mov.u32 %r11, 0;
{asked}""", "sum", "%r8", "%r9", "%r10", "%r11", before=before, params=".param .f32 param, .param .u64 sums", args=[16.0, total],
        grid=2, cluster=2, seed=seed)  # fmt: skip
    bits = sum(want << i for i, (_, _, want) in enumerate(spaces))
    assert got.tolist() == [[31, 1 - cta, cta, 32, bits] for cta in range(2) for _ in range(32)]
    assert total[0] == 64


def test_18_branch_tables() -> None:
    got = results("""
.reg .b32 t, %r1; rem.u32 t, %lane, 3; ts: .branchtargets L0,L1,L2; brx.idx t,ts;
L0: mov.u32 %r1, 10; bra.uni END; L1: mov.u32 %r1, 11; bra.uni END; L2: mov.u32 %r1, 12; END:""", "%r1")  # fmt: skip
    assert got[:, 0].tolist() == (10 + LANES % 3).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_19_barriers_meet_across_places_and_by_register(seed: int) -> None:
    """Warps 0, 1 and 2, 3 take different paths: each exchange is read through a barrier whose two sides are elsewhere."""
    got = results("""
.reg .b32 %r<12>, id, n; .reg .pred p; .reg .b16 %rs1; .shared .align 4 .b32 s[256]; .shared .b8 dispatch[4];
mov.u32 %r1, s; mad.lo.u32 %r2, %lane, 4, %r1; xor.b32 %r3, %lane, 64; mad.lo.u32 %r3, %r3, 4, %r1; setp.lt.u32 p, %lane, 64; mov.u32 id, 5; mov.u32 n, 128;
mov.u32 %r5, 0; mov.u32 %r6, 0; st.shared.u32 [%r2], %lane; mov.u32 %r10, dispatch;
@!p bra SECOND;
bar.sync 0; ld.shared.u32 %r4, [%r3]; setp.eq.u32 p, %lane, 0; @p st.shared.b8 [dispatch], 123; barrier.sync 1;
st.shared.u32 [%r2], 1000; bar.arrive id, n; bra JOIN;
SECOND: bar.sync 0; ld.shared.u32 %r4, [%r3]; barrier.sync 1; ld.shared.b8 %rs1,[%r10+0]; cvt.u32.u16 %r5, %rs1;
bar.sync id, n; ld.shared.u32 %r6, [%r3];
JOIN: and.b32 %r7, %lane, 31; shr.u32 %r8, %lane, 5; add.u32 %r8, %r8, 6; barrier.sync %r8, 32;
st.shared.u32 [%r2+512], %lane; bar.warp.sync -1; xor.b32 %r9, %lane, 1; mad.lo.u32 %r9, %r9, 4, %r1; ld.shared.u32 %r9, [%r9+512];""",
        "%r4", "%r5", "%r6", "%r9", block=128, seed=seed)  # fmt: skip
    want = [[t ^ 64, 0 if t < 64 else 123, 0 if t < 64 else 1000, t ^ 1] for t in range(128)]
    assert got.tolist() == want


@pytest.mark.parametrize("seed", range(6))
def test_20_mbarriers(seed: int) -> None:
    """Tokens and parities, bytes completed before they are expected, noComplete, arrive_drop, inval, noinc."""
    x = np.arange(32, dtype=np.uint32) + 70
    got = results(f"""{BAR.format(32)}
.reg .b64 %rd<9>; .reg .b32 %r<9>; .shared .align 16 .b32 s[32]; mov.u32 %r1, bar;
mbarrier.arrive.shared.b64 %rd1, [%r1]; {wait("A", "try_wait.shared.b64 p,[%r1],%rd1")}
@q mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r1], 16; bar.warp.sync -1; mbarrier.test_wait.parity.shared.b64 p, [%r1], 1; selp.b32 %r2, 1, 0, p;
@q mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 16; mbarrier.arrive.shared::cta.b64 _, [%r1]; {wait("B", "try_wait.parity.shared::cta.b64 p, [%r1], 1, 2000")}
@q mbarrier.arrive.noComplete.release.cta.shared.b64 %rd2, [%r1], 31; mov.u32 %r3, 0; @q mbarrier.pending_count.b64 %r3, %rd2; @q mbarrier.arrive.shared.b64 _, [%r1];
{wait("C", "try_wait.parity.shared.b64 p, [%r1], 0")}
setp.ge.u32 q, %lane, 8; @q mbarrier.arrive_drop.shared.b64 %rd3, [%r1]; @!q mbarrier.arrive.shared.b64 %rd3, [%r1]; {wait("D", "try_wait.parity.shared.b64 p, [%r1], 1")}
@!q mbarrier.arrive.shared.b64 %rd3, [%r1]; {wait("E", "try_wait.parity.shared.b64 p, [%r1], 0")}
bar.sync 0; setp.eq.u32 q, %lane, 0; @q mbarrier.inval.shared.b64 [%r1]; bar.sync 0; @q mbarrier.init.shared.b64 [%r1], 32; bar.sync 0;
ld.param.u64 %rd4, [x]; mad.wide.u32 %rd4, %lane, 4, %rd4; mov.u32 %r4, s; mad.lo.u32 %r5, %lane, 4, %r4; cp.async.ca.shared.global [%r5], [%rd4], 4;
cp.async.mbarrier.arrive.noinc.shared.b64 [%r1]; {wait("F", "try_wait.parity.shared.b64 p, [%r1], 0")}
xor.b32 %r6, %lane, 31; mad.lo.u32 %r6, %r6, 4, %r4; ld.shared.u32 %r6, [%r6];""", "%r2", "%r3", "%r6",
        params=".param .u64 x", args=[x], seed=seed)  # fmt: skip
    assert got.tolist() == [[0, 32 if lane == 0 else 0, 101 - lane] for lane in range(32)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("header", [True, False])
def test_21_clusters_by_header_and_by_launch(header: bool, seed: int) -> None:
    """Both ranks store, load and add in each other; a copy goes to the ranks of a 16-bit mask; arrivals cross over."""
    x = aligned(np.arange(4, dtype=np.uint32) + 50)
    got = results("""
.reg .pred p, q; .reg .b16 mask; .reg .b32 %r<20>; .reg .b64 %rd<9>; .shared .align 16 .b32 s[16]; .shared .align 8 .b64 bar[3];
setp.eq.u32 q, %lane, 0; mov.u32 %r1, s; mov.u32 %r2, bar; mov.u32 %r3, %cluster_ctarank; xor.b32 %r4, %r3, 1;
@q mbarrier.init.shared::cta.b64 [%r2], 1; @q mbarrier.init.shared::cta.b64 [%r2+8], 1; @q mbarrier.init.shared::cta.b64 [%r2+16], 32; @q st.shared.u32 [%r1+24], 5;
fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
mapa.shared::cluster.u32 %r5, %r1, %r4; mapa.shared::cluster.u32 %r6, %r2, %r4;
add.u32 %r7, %r3, 30; @q st.shared::cluster.u32 [%r5+16], %r7;
@q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 16; @q mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+8], 8;
mov.b16 mask, 0x3; setp.eq.and.u32 p, %r3, 1, q; ld.param.u64 %rd1, [x];
@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd1], 16, [%r2], mask;
add.u32 %r8, %r3, 40; @q st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r5+20], %r8, [%r6+8];
@q red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r5+24], %r8, [%r6+8];
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r6+16];
A: mbarrier.try_wait.parity.shared::cta.b64 p, [%r2], 0; @!p bra A; B: mbarrier.try_wait.parity.shared::cta.b64 p, [%r2+8], 0; @!p bra B;
C: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%r2+16], 0; @!p bra C;
ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r1]; ld.shared.v2.u32 {%r14, %r15}, [%r1+16]; ld.shared.u32 %r16, [%r1+24];
barrier.cluster.arrive; barrier.cluster.wait; ld.shared::cluster.u32 %r17, [%r5+16]; barrier.cluster.arrive; barrier.cluster.wait;
mov.u32 %r18, %cluster_nctarank;""", *(f"%r{i}" for i in range(10, 19)), params=".param .u64 x", args=[x], grid=4, seed=seed,
        **({"directives": ".explicitcluster .reqnctapercluster 2, 1, 1"} if header else {"cluster": 2}))  # fmt: skip
    want = [[50, 51, 52, 53, 30 + 1 - r, 40 + 1 - r, 5 + 40 + 1 - r, 30 + r, 2] for r in (0, 1)]
    assert got.tolist() == [want[cta % 2] for cta in range(4) for _ in range(32)]


@pytest.mark.parametrize("seed", range(4))
def test_22_tensor_maps_built_on_the_device(seed: int) -> None:
    """Every field replaced in a zeroed map in shared memory; the map then goes to global memory and is used from there."""
    x = aligned(np.arange(12 * 16, dtype=np.float32).reshape(12, 16))
    fields = [("rank", "b32", "1"), ("box_dim", "b32", "0, 8"), ("box_dim", "b32", "1, 4"), ("global_dim", "b32", "0, 16"),
              ("global_dim", "b32", "1, 12"), ("global_stride", "b64", "0, %rd4"), ("element_stride", "b32", "0, 1"),
              ("element_stride", "b32", "1, 0x1"), ("elemtype", "b32", "7"), ("interleave_layout", "b32", "0"), ("swizzle_mode", "b32", "1"),
              ("fill_mode", "b32", "0")]  # fmt: skip
    replace = "".join(
        f"@q tensormap.replace.tile.{field}.shared::cta.b1024.{t} [ map + 0 ], {v};\n" for field, t, v in fields
    )
    room = aligned(np.zeros(128, np.uint8))
    got = results(f"""{BAR.format(1)}
.reg .b64 %rd<9>; .reg .b32 %r<9>, map; .shared .align 128 .b8 m[128]; .shared .align 256 .b8 tile[256]; mov.u32 map, m;
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [room]; mov.u64 %rd4, 64; mad.lo.u32 %r1, %lane, 4, map; st.shared.u32 [%r1], 0; bar.warp.sync -1;
@q tensormap.replace.tile.global_address.shared::cta.b1024.b64 [ map + 0 ], %rd1;
{replace}
bar.warp.sync -1; tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd2], [map], 128;
fence.proxy.tensormap::generic.acquire.gpu [%rd2], 128; createpolicy.fractional.L2::evict_first.b64 %rd5, 1.0;
@q mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 128; mov.u32 %r2, tile;
@q cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%r2], [%rd2, {{2, 10}}], [bar], %rd5;
{wait("WAIT", "try_wait.parity.shared::cta.b64 p, [bar], 0")}
ld.global.L2::128B.b32 %r3, [%rd1]; shr.u32 %r4, %lane, 4; and.b32 %r4, %r4, 1; shl.b32 %r4, %r4, 4; mad.lo.u32 %r5, %lane, 4, %r2; xor.b32 %r5, %r5, %r4;
ld.shared.u32 %r6, [%r5];""", "%r6", "%r3",
        params=".param .u64 x, .param .u64 room", args=[x, room], seed=seed)  # fmt: skip
    tile = np.zeros((4, 8), np.float32)
    tile[:2] = x[10:12, 2:10]
    assert np.array_equal(got[:, 0].copy().view(np.float32), tile.ravel())
    assert (got[:, 1] == 0).all()


def to_core_matrices(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes as wgmma reads them K-major without swizzle: 8 x 16-byte blocks, those along K first."""
    count, row_bytes = rows.shape
    return rows.reshape(count // 8, 8, row_bytes // 16, 16).transpose(0, 2, 1, 3).ravel()


def wgmma_operands(kind: str, n: int, sparse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of A's and B's rows, and the product."""
    rng = np.random.default_rng(n)
    wide = 2 if sparse else 1
    if kind == "b1":
        a, b = rng.integers(0, 256, (64, 32), dtype=np.uint8), rng.integers(0, 256, (n, 32), dtype=np.uint8)
        bits_a, bits_b = np.unpackbits(a, axis=1).astype(int), np.unpackbits(b, axis=1).astype(int)
        return a, b, bits_a @ bits_b.T
    dtype = {"bf16": ml_dtypes.bfloat16, "tf32": np.float32, "e4m3": ml_dtypes.float8_e4m3fn, "s8": np.int8}[kind]
    k = 32 // np.dtype(dtype).itemsize
    a, b = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((64, k), (n, k * wide)))
    dense = np.zeros((64, k * wide))
    if sparse:  # of every four columns the first two
        dense.reshape(64, -1, 4)[:, :, :2] = a.astype(np.float64).reshape(64, -1, 2)
    else:
        dense[:] = a.astype(np.float64)
    return a.view(np.uint8), b.view(np.uint8), dense @ b.astype(np.float64).T


WGMMA = {  # shape and types; A; what follows B; n
    "16-bit": ("m64n8k16.f32.bf16.bf16", "%a", "%one, 1, 1, 0, 0"),
    "scale-d is an immediate": ("m64n8k16.f32.bf16.bf16", "%a", "1, 1, 1, 0, 0"),
    "register A": ("m64n8k16.f32.bf16.bf16", "{%r10, %r11, %r12, %r13}", "%one, 1, 1, 0"),
    "128 registers": ("m64n256k16.f32.bf16.bf16", "%a", "%one, 1, 1, 0, 0"),
    "negated A": ("m64n8k16.f32.bf16.bf16", "%a", "%one, -1, 1, 0, 0"),
    "tf32": ("m64n8k8.f32.tf32.tf32", "%a", "%one, 1, 1"),
    "fp8": ("m64n8k32.f32.e4m3.e4m3", "%a", "%one, 1, 1"),
    "s8": ("m64n8k32.s32.s8.s8", "%a", "%one"),
    "b1": ("m64n8k256.s32.b1.b1.and.popc", "%a", "%one"),
    "sparse": ("m64n8k32.f32.bf16.bf16", "%a", "%meta, 0, %one, 1, 1, 0, 0"),
}


@pytest.mark.parametrize("case", WGMMA)
def test_23_wgmma(case: str) -> None:
    """D = 2 + A B in one group, E = A B in a later one: E is in flight while D is read."""
    form, a_text, after = WGMMA[case]
    kind, n, sparse = form.split(".")[2], int(form.split("n")[1].split("k")[0]), case == "sparse"
    a, b, product = wgmma_operands(kind, n, sparse)
    number, two = ("s32", "2") if kind in ("s8", "b1") else ("f32", "0f40000000")
    d, e = ([f"{x}{i}" for i in range(n // 2)] for x in "de")
    stride = 16 * b.shape[1] // 2
    op = f"wgmma.mma_async{'.sp' if sparse else ''}.sync.aligned.{form}"
    late = " ".join(f"mov.b32 f{i}, e{i};" for i in range(4))
    got = results(f"""
.reg .pred %one, %zero; .reg .b32 %r<20>, %meta, f<4>; .reg .b64 %a, %b, %rd<4>; .reg .{number} d<128>, e<128>; .shared .align 128 .b8 s[{a.size + b.size}];
setp.eq.u32 %one, 1, 1; setp.eq.u32 %zero, 1, 0; mov.u32 %meta, 0x44444444; mov.u32 %r1, s; ld.param.u64 %rd1, [tiles]; mov.u32 %r2, %lane;
COPY: setp.ge.u32 %zero, %r2, {(a.size + b.size) // 4}; @%zero bra COPIED; mad.wide.u32 %rd2, %r2, 4, %rd1; ld.global.b32 %r3, [%rd2];
mad.lo.u32 %r4, %r2, 4, %r1; st.shared.b32 [%r4], %r3; add.u32 %r2, %r2, 128; bra COPY;
COPIED: setp.eq.u32 %zero, 1, 0; fence.proxy.async.shared::cta; bar.sync 0;
shr.u32 %r5, %r1, 4; cvt.u64.u32 %a, %r5; add.u64 %b, %a, {a.size // 16}; or.b64 %a, %a, {8 << 16 | 16 << 32}; or.b64 %b, %b, {8 << 16 | stride // 16 << 32};
shr.u32 %r6, %lane, 5; and.b32 %r7, %lane, 31; shr.u32 %r8, %r7, 2; and.b32 %r7, %r7, 3; mad.lo.u32 %r9, %r6, 512, %r1; mad.lo.u32 %r9, %r8, 16, %r9;
mad.lo.u32 %r9, %r7, 4, %r9; ld.shared.b32 %r10, [%r9]; ld.shared.b32 %r11, [%r9+256]; ld.shared.b32 %r12, [%r9+128]; ld.shared.b32 %r13, [%r9+384];
{" ".join(f"mov.b32 {x}, {two};" for x in d)}
wgmma.fence.sync.aligned;
{op} {{{", ".join(d)}}}, {a_text}, %b, {after};
wgmma.commit_group.sync.aligned;
{op} {{{", ".join(e)}}}, {a_text}, %b, {after.replace("%one", "%zero") if "%one" in after else "0" + after[1:]};
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;
{" ".join(f"add.{number} {x}, {x}, {two};" for x in d)}
wgmma.wait_group.sync.aligned 0; {late}""", *d, *(f"f{i}" for i in range(4)), params=".param .u64 tiles",
        args=[np.concatenate([to_core_matrices(a), to_core_matrices(b)])], block=128)  # fmt: skip
    values = got.view(np.int32 if number == "s32" else np.float32)
    thread, i = np.meshgrid(np.arange(128), np.arange(n // 2), indexing="ij")
    where = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (thread % 4) + i % 2
    want = -product[where] if case == "negated A" else product[where]
    assert np.array_equal(values[:, : n // 2], want + 4)
    assert np.array_equal(values[:, n // 2 :], want[:, :4])


@pytest.mark.parametrize("seed", range(4))
def test_24_register_pools_and_hints(seed: int) -> None:
    """The second warpgroup gets its registers when the first has given them; hints and debug sections change nothing."""
    x = aligned(np.arange(256, dtype=np.uint32))
    got = results("""
.pragma "nounroll"; .reg .pred p; .reg .b32 %r<4>; .reg .b64 %rd<4>; griddepcontrol.wait; ld.param.u64 %rd1, [x]; mad.wide.u32 %rd2, %lane, 4, %rd1;
.loc 1 8 3
.loc 1 9 3, function_name $L__info_string0, inlined_at 1 8 3
setp.lt.u32 p, %lane, 128; @p bra GIVE; setmaxnreg.inc.sync.aligned.u32 208; mov.u32 %r1, 2; bra MEET;
GIVE: setmaxnreg.dec.sync.aligned.u32 40; mov.u32 %r1, 1;
MEET: bar.sync 0; nanosleep.u32 20; prefetch.global.L2 [%rd1]; prefetch.global.L2::evict_last [%rd1]; prefetch.L1 [%rd1]; prefetchu.L1 [%rd1];
applypriority.global.L2::evict_normal [%rd1], 128; .pragma "used_bytes_mask 3"; ld.global.b32 %r2, [%rd2];
bar.sync 0; setp.eq.u32 p, %lane, 0; @p discard.global.L2 [%rd1+512], 128; @p cp.async.bulk.prefetch.L2.global [%rd1], 16; griddepcontrol.launch_dependents;""",
        "%r1", "%r2", before='.file 1 "a.cu", 123, 456\n.section .debug_str { $L__info_string0: .b8 95, 90, 0 }', directives=".maxntid 256 .minnctapersm 1 .maxnreg 128",
        params=".param .u64 x", args=[x], block=256, seed=seed)  # fmt: skip
    assert got.tolist() == [[1 + t // 128, t] for t in range(256)]


def test_24_debug_output_is_parsed_and_left() -> None:
    module = tkpy.emulator.load(""".version 8.0\n.target sm_90a, debug\n.address_size 64\n.file 1 "/a/b.cu"
.visible .entry k(.param .u64 out) { .reg .b64 %rd1; .reg .b32 %r1; .loc 1 3 0\n$L__func_begin0: mov.u32 %r1, 7; ld.param.u64 %rd1, [out];
$L__tmp1: st.global.u32 [%rd1], %r1; ret; $L__func_end0: }
.section .debug_abbrev {\n.b8 1\n.b8 17, 1, 0\n}
.section .debug_info {\n.b32 62\n.b8 2, 0\n.b32 .debug_abbrev\n.b64 $L__func_begin0\n.b64 $L__tmp1 - $L__func_begin0\n}
.section .debug_loc { }""")
    out = np.zeros(1, np.uint32)
    module.launch("k", args=[out]).raise_on_findings()
    assert out[0] == 7


def s16(word: int, half: int) -> int:
    return int(np.array(word >> 16 * half & 0xFFFF, np.uint16).view(np.int16))


A, B = 0x89ABCDEF, 0x12345678
SA = A - 2**32
INTEGERS = {  # text with $ for the result and %l for a 64-bit one, whose high half is taken
    "mul.wide.s32 %l, %a, %b;": SA * B >> 32,
    "mul.wide.u32 %l, %a, %b;": A * B >> 32,
    "mul.wide.s16 $, %ha, %hb;": s16(A, 0) * s16(B, 0),
    "mul.wide.u16 $, %ha, %hb;": (A & 0xFFFF) * (B & 0xFFFF),
    "mad.lo.cc.u32 $, %a, %b, %a; madc.hi.u32 $, %a, %b, 0;": (A * B & 0xFFFFFFFF) + A + (A * B >> 32 << 32) >> 32,
    "add.cc.u32 $, %a, %a; mov.u32 $, 5; addc.u32 $, $, 0;": 6,
    "add.cc.u32 $, %b, %b; addc.cc.u32 $, %a, %a; addc.u32 $, 0, 0;": 1,
    "sub.cc.u32 $, %b, %a; subc.u32 $, 9, 0;": 8,
    "sub.cc.u32 $, %a, %b; bra.uni OVER$N; OVER$N: subc.u32 $, 9, 0;": 9,
    "shf.l.wrap.b32 $, %a, %b, 36;": B << 4 | A >> 28,
    "shf.l.clamp.b32 $, %a, %b, 36;": A,
    "shf.r.wrap.b32 $, %a, %b, 36;": A >> 4 | B << 28,
    "shf.r.clamp.b32 $, %a, %b, 36;": B,
    "shl.b32 $, %a, 32;": 0,
    "shr.u32 $, %a, 32;": 0,
    "shr.s32 $, %a, 77;": -1,
    "shr.s64 %l, %la, 64;": -1,
    "bfe.u32 $, %a, 28, 200;": A >> 28,
    "bfe.s32 $, %a, 28, 200;": SA >> 28,
    "bfe.u32 $, %a, 40, 4;": 0,
    "bfe.s32 $, %a, 40, 4;": -1,
    "bfe.s32 $, %a, 4, 0;": 0,
    "bfi.b32 $, %a, %b, 28, 200;": A << 28 | B & 0x0FFFFFFF,
    "bfi.b32 $, %a, %b, 40, 4;": B,
    "bfind.shiftamt.u32 $, %b;": 3,
    "bfind.u32 $, %b;": 28,
    "bfind.s32 $, -1;": -1,
    "bfind.shiftamt.s32 $, %a;": 1,
    "mov.u32 $, 0x00800180; prmt.b32 $,$,0,0xbb99;": 0,
    "mov.u32 $, 0x7F80FF01; prmt.b32 $,$,0,0xba98;": 0x00FFFF00,
    "div.u32 $, %a, 0;": -1,
    "rem.u32 $, %a, 0;": A,
    "div.s32 $, 0x80000000, -1;": 0x80000000,
    "max.s16x2.relu $, %a, %b;": max(s16(A, 1), s16(B, 1), 0) << 16 | max(s16(A, 0), s16(B, 0), 0),
    "min.s16x2.relu $, %a, %b;": 0,
    "dp4a.u32.s32 $, %a, %b, 7;": 7 + 0xEF * 0x78 + 0xCD * 0x56 + 0xAB * 0x34 + 0x89 * 0x12,
    "vadd.s32.u32.s32 $, %a.b0, %b.h1;": 0xEF + 0x1234,
    "vsub.s32.s32.u32.sat $, %a.b3, %b.h0;": 0x89 - 256 - 0x5678,
}  # fmt: skip


def test_25_integer_corners() -> None:
    lines = [text.replace("%l,", f"%l{i},").replace("$N", str(i)).replace("$", f"%o{i}") + (f" mov.b64 {{_, %o{i}}}, %l{i};" if "%l," in text else "")
             for i, text in enumerate(INTEGERS)]  # fmt: skip
    count = len(INTEGERS)
    got = results(f".reg .b16 %ha, %hb; .reg .b32 %a, %b, %o<{count}>; .reg .b64 %la, %l<{count}>; mov.u32 %a, {A}; mov.u32 %b, {B};"
                  "cvt.u16.u32 %ha, %a; cvt.u16.u32 %hb, %b; mov.b64 %la, {%b, %a};\n" + "\n".join(lines), *(f"%o{i}" for i in range(count)), block=1)[0]  # fmt: skip
    assert {t: hex(g) for t, g in zip(INTEGERS, got, strict=True)} == {
        t: hex(w & 0xFFFFFFFF) for t, w in INTEGERS.items()
    }


def test_26_predicates() -> None:
    got = results("""
.reg .pred p, q, %p<9>; .reg .b32 %r<12>; .reg .f32 f, n; .reg .b32 t; rem.u32 %r1, %lane, 7; rem.u32 %r2, %lane, 5; setp.gt.u32 p, %lane, 9;
setp.lt.and.s32 %p1|%p2,%r2,%r1,p; selp.b32 %r3, 1, 0, %p1; @%p2 or.b32 %r3, %r3, 2; setp.lt.or.s32 %p1|%p2,%r2,%r1,!p; @%p1 or.b32 %r3, %r3, 4; @%p2 or.b32 %r3, %r3, 8;
setp.lt.xor.s32 %p1,%r2,%r1,p; @%p1 or.b32 %r3, %r3, 16;
setp.lt.u32 q, %r2, 3; and.pred %p3, p, q; or.pred %p4, p, q; xor.pred %p5, p, q; not.pred %p6, p; mov.pred %p7, -1; mov.pred %p8, 0; mov.pred %p1, %p6;
selp.b32 %r4, 1, 0, %p3; @%p4 or.b32 %r4, %r4, 2; @%p5 or.b32 %r4, %r4, 4; @%p1 or.b32 %r4, %r4, 8; @%p7 or.b32 %r4, %r4, 16; @%p8 or.b32 %r4, %r4, 32;
mov.f32 n, 0f7FC00000; mov.f32 f, 0f3F800000;
setp.ltu.f32 %p1, f, n; setp.neu.f32 %p2, n, n; setp.num.f32 %p3, f, n; setp.nan.f32 %p4, f, n; setp.lt.f32 %p5, f, n; setp.ne.f32 %p6, f, n; setp.equ.f32 %p7, f, n; setp.num.f32 %p8, f, f;
selp.b32 %r5, 1, 0, %p1; @%p2 or.b32 %r5, %r5, 2; @%p3 or.b32 %r5, %r5, 4; @%p4 or.b32 %r5, %r5, 8; @%p5 or.b32 %r5, %r5, 16; @%p6 or.b32 %r5, %r5, 32; @%p7 or.b32 %r5, %r5, 64; @%p8 or.b32 %r5, %r5, 128;
shfl.sync.idx.b32 %r6|%p1, %lane, 40, 0x1f, -1; shfl.sync.down.b32 %r7|%p2, %lane, 4, 0x1f, -1; selp.b32 %r8, 7, 9, %p2;""",
        "%r3", "%r4", "%r5", "%r6", "%r7", "%r8")  # fmt: skip

    def want(lane: int) -> list[int]:
        less, p, q = lane % 5 < lane % 7, lane > 9, lane % 5 < 3
        combined = (
            (less and p) | (not less and p) << 1 | (less or not p) << 2 | (not less or not p) << 3 | (less ^ p) << 4
        )
        logic = (p and q) | (p or q) << 1 | (p ^ q) << 2 | (not p) << 3 | 1 << 4
        inside = lane + 4 < 32
        return [combined, logic, 1 | 2 | 8 | 64 | 128, 8, lane + 4 if inside else lane, 7 if inside else 9]

    assert got.tolist() == [want(lane) for lane in range(32)]


def test_27_the_layout_of_shared_memory() -> None:
    """Static variables, the kernel's own among them, then one dynamic base that all .extern arrays share."""
    before = """.shared .align 4 .b8 first[20]; .shared .align 1024 .b8 tile[2048]; .extern .shared .align 16 .b8 x[]; .extern .shared .align 1024 .b8 global_smem[];
.extern .shared .align 8 .f64 y[]; .shared .align 4 .b8 of_nobody[4096];"""
    got = results("""
.shared .align 8 .b8 _ZZ1kE7demoted[24]; .reg .b32 %r<12>; .reg .b64 %rd1; .reg .pred q; setp.eq.u32 q, %lane, 0;
mov.u32 %r1, first; mov.u32 %r2, tile; mov.u32 %r3, x; mov.u32 %r4, global_smem; mov.u32 %r5, y; mov.u32 %r6, _ZZ1kE7demoted;
@q st.shared.u32 [global_smem+2112], 77; bar.sync 0; ld.shared.u32 %r7, [%r3+2112]; and.b32 %r2, %r2, 1023; and.b32 %r8, %r4, 1023; and.b32 %r6, %r6, 7;
sub.u32 %r3, %r3, %r4; sub.u32 %r5, %r5, %r4; mov.u32 %r9, %dynamic_smem_size; mov.u32 %r10, %total_smem_size; mov.u32 %r0, %aggr_smem_size; sub.u32 %r11, %r4, %r1; setp.ge.u32 q, %r11, 2092; selp.u32 %r11, 1, 0, q;""",
        *(f"%r{i}" for i in (2, 8, 6, 3, 5, 7, 9, 10, 11, 0)), before=before, shared=3000)  # fmt: skip
    total = got[0, 7]
    assert total % 128 == 0
    assert 2092 + 3000 <= total < 4096 + 3000 + 1024
    assert got.tolist() == [[0, 0, 0, 0, 0, 77, 3000, total, 1, total + 1024]] * 32


def test_28_size() -> None:
    """A function of 33,000 instructions, 131,000 registers by range and 20,000 by name, 456 labels."""
    blocks, per_block = 456, 72
    lines = [
        ".reg .b32 %r<131000>; .reg .b32 " + ", ".join(f"asm_{i}" for i in range(20000)) + ";",
        "mov.u32 %r0, %lane;",
    ]
    want, last = LANES.astype(np.uint64), 0
    for block in range(blocks):
        lines.append(
            f"$L{block}: .reg .pred p{block}; setp.ne.u32 p{block}, %r{last}, %r{last}; @p{block} bra $L{(block * 7 + 3) % blocks};"
        )
        for i in range(per_block // 2 - 1):
            name, then = f"asm_{block * 43 + i}", 131000 - 1 - (block * 250 + i)
            lines.append(f"mad.lo.u32 {name}, %r{last}, 3, {block + i}; xor.b32 %r{then}, {name}, {0x5A5A + i};")
            want = (want * 3 + block + i & 0xFFFFFFFF) ^ (0x5A5A + i)
            last = then
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    module = snippet("\n.reg .b32 %lane; .reg .b64 %addr; mov.u32 %lane, %tid.x;\n" + "\n".join(lines)
                     + f"\nld.param.u64 %addr, [out]; mad.wide.u32 %addr, %lane, 4, %addr; st.global.b32 [%addr], %r{last};")  # fmt: skip
    kernel = module.kernels["k"]
    assert kernel.instructions >= 32800
    assert kernel.registers < blocks + 20  # the branches back keep one value a block alive
    out = np.zeros(32, np.uint32)
    module.launch("k", block=32, args=[out]).raise_on_findings()
    assert np.array_equal(out, want)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mib < 400
