"""`tkpy emulate` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tkpy.cli import main

HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"
SCALE = """
.visible .entry scale(.param .u64 y, .param .u64 x, .param .f32 a, .param .u32 n) {
.reg .b32 %r<8>; .reg .b64 %d<4>; .reg .f32 %f<4>; .reg .pred %p<2>;
ld.param.u64 %d1, [y]; ld.param.u64 %d2, [x]; ld.param.f32 %f1, [a]; ld.param.u32 %r1, [n];
mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r2, %r2, %r3, %r4;
setp.ge.u32 %p1, %r2, %r1;
@%p1 bra done;
mul.wide.u32 %d3, %r2, 4;
add.u64 %d1, %d1, %d3; add.u64 %d2, %d2, %d3;
ld.global.f32 %f2, [%d2]; mul.f32 %f2, %f2, %f1; st.global.f32 [%d1], %f2;
done: ret; }
"""
RACE = """
.visible .entry race(.param .u64 y) {
.reg .b32 %r<8>; .reg .b64 %d<4>; .shared .b32 s;
ld.param.u64 %d1, [y]; mov.u32 %r1, %tid.x; st.shared.u32 [s], %r1; ld.shared.u32 %r2, [s];
st.global.u32 [%d1], %r2; ret; }
"""
WAITS = """
.visible .entry waits() { .reg .pred %p<2>; .reg .b32 %r<2>; mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32;
@%p1 barrier.sync 1, 96; ret; }
"""


@pytest.fixture
def ptx(tmp_path: Path) -> Path:
    path = tmp_path / "program.ptx"
    path.write_text(HEADER + SCALE + RACE + WAITS)
    return path


def emulate(*args: Any) -> Result:
    return CliRunner().invoke(main, ["emulate", *map(str, args)], catch_exceptions=False)


def test_numbers_buffers_and_files(ptx: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out, report = tmp_path / "y.npy", tmp_path / "report.json"
    result = emulate(
        ptx, "--kernel", "scale", "--grid", 3, "--block", "128,1", "--arg", "zeros:float32:300", "--arg",
        tmp_path / "x.npy", "--arg", "f32:1.5", "--arg", "i32:300", "--save", out, "--json", report, "--seeds", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.load(out), x * np.float32(1.5))
    assert "3 schedules, no findings" in result.output
    assert "scale: " in result.output
    assert "0 findings" in result.output
    assert "st.global.f32" in result.output  # the counter table
    written = json.loads(report.read_text())
    assert written["kernel"] == "scale"
    assert written["findings"] == []
    lanes = {row["text"].split()[0]: row["count"]["lanes"] for row in written["counters"]}
    assert lanes["st.global.f32"] == 300


def test_plain_numbers_take_the_declared_type_and_the_input_is_left_alone(ptx: Path, tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "y.npy"
    result = emulate(ptx, "--kernel", "scale", "--block", 8, "--arg", "ones:float32:2x4", "--arg", tmp_path / "x.npy",
                     "--arg", 2, "--arg", "0x6", "--save", out, "--top", 0)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert np.load(out).tolist() == [[0, 2, 4, 6], [8, 10, 1, 1]]
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    assert "issues" not in result.output


def test_a_finding_is_exit_status_1(ptx: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = emulate(ptx, "--kernel", "race", "--block", 64, "--arg", "zeros:uint32:1", "--seeds", 8, "--json", report)
    assert result.exit_code == 1
    assert "shared-race" in result.output
    assert "found by seed 0: --seed 0 runs it again" in result.output
    assert "shared-race" in {f["code"] for f in json.loads(report.read_text())["findings"]}


def test_checks_can_be_chosen(ptx: Path) -> None:
    launch = (ptx, "--kernel", "race", "--block", 64, "--arg", "zeros:uint32:1")
    assert emulate(*launch, "--checks", "none").exit_code == 0
    assert emulate(*launch, "--checks", "shared-race").exit_code == 1
    assert emulate(*launch, "--checks", "out-of-bounds,misaligned").exit_code == 0


def test_a_kernel_that_cannot_go_on(ptx: Path) -> None:
    result = emulate(ptx, "--kernel", "waits", "--block", 64)
    assert result.exit_code == 1
    assert "waits: stopped" in result.output
    assert "deadlock" in result.output


def test_out_of_bounds_names_the_instruction(ptx: Path) -> None:
    result = emulate(ptx, "--kernel", "scale", "--block", 32, "--arg", "zeros:float32:31", "--arg", "rand:float32:32",
                     "--arg", "f32:1", "--arg", "u32:32")  # fmt: skip
    assert result.exit_code == 1
    assert "out-of-bounds" in result.output
    assert "st.global.f32" in result.output
    assert "lane 31" in result.output


SCALE_ARGS = ["zeros:float32:8", "rand:float32:8", "f32:1", "i32:8"]


@pytest.mark.parametrize(
    "place, text, sentence",
    [
        (0, "zeros:float33:8", "no dtype 'float33'; the dtypes are float64, "),
        (0, "zeros:float32", "an array is written fill:dtype:shape"),
        (0, "zeros:float32:8by8", "a shape is written 1024 or 64x64, not '8by8'"),
        (0, "zeros:uint8:99999999999", "at most 2^31 elements"),
        (0, "nowhere.npy", "not readable as a NumPy file"),
        (0, "full:float32:8", "no kind of argument 'full'"),
        (0, "x.npz:y", "not readable as a NumPy file"),
        (0, "@b", "no --buffer 'b'; there are none"),
        (0, "map:b:8", "no --buffer 'b'"),
        (0, "hex:0", "two digits of 0..9, a..f for each"),
        (0, "hex:00", "takes 8 bytes, got 1"),
        (2, "1e300", "1e+300 does not fit parameter .f32 a"),
        (2, "z=1", "scale has no parameter 'z'; it has y, x, a, n"),
        (2, "9=1", "scale has no parameter '9'"),
        (2, "f64:1", "parameter .f32 a has 32 bits, not 64"),
        (2, "i32:1", "parameter .f32 a is not of type i32"),
        (2, "f32:one", "'one' is no number"),
        (3, "1.5", "'1.5' is no whole number, which type u32 needs"),
        (3, "zeros:int32:1", "is no pointer, but got an array"),
        (3, "u32:4294967296", "does not fit parameter"),
    ],
)
def test_a_bad_argument_gets_one_sentence(ptx: Path, place: int, text: str, sentence: str) -> None:
    args = [*SCALE_ARGS[:place], text, *SCALE_ARGS[place + 1 :]]
    result = emulate(ptx, "--kernel", "scale", "--block", 8, *(word for a in args for word in ("--arg", a)))
    assert result.exit_code == 2, result.output
    message = " ".join(result.output.replace("\n", " ").split())
    assert sentence in message


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([], "name one of the file's kernels with --kernel: race, scale, waits"),
        (["--kernel", "nothing"], "has no kernel 'nothing'"),
        (["--kernel", "race"], "race takes 1 arguments (.u64 y), got 0"),
        (["--kernel", "waits", "--block", "2048"], "block.x must be in 1..1024, got 2048"),
        (["--kernel", "waits", "--grid", "a"], "'a' is not one to three numbers, such as 4 or 4,2,1"),
        (["--kernel", "waits", "--grid", "3", "--cluster", "2"], "is not a multiple of cluster"),
        (["--kernel", "waits", "--checks", "races"], "no check races; it may be all, none or some of"),
        (["--kernel", "waits", "--shared", "-1"], "dynamic bytes, at most"),
        (["--kernel", "waits", "--save", "x.npy"], "--save x.npy: the kernel has 0 arrays"),
        (["--kernel", "waits", "--save", "a=x.npy"], "no array 'a'; there are none"),
        (["--kernel", "waits", "--json", "/nowhere/x.json"], "cannot be written: there is no folder /nowhere"),
        (["--kernel", "waits", "--buffer", "a"], "a buffer is written name=array"),
        (["--kernel", "waits", "--buffer", "a=7"], "no array: fill:dtype:shape"),
        (["--kernel", "waits", "--sort", "speed"], "'speed' is not one of"),
        (["--kernel", "waits", "--max-instructions", "-1"], "-1 is not in the range"),
        (["--kernel", "waits", "--seeds", "0"], "0 is not in the range"),
        (["--kernel", "waits", "--threads", "99999999999"], "99999999999 is not in the range"),
    ],
)
def test_a_bad_launch_gets_one_sentence(ptx: Path, options: list[str], sentence: str) -> None:
    result = emulate(ptx, *options)
    assert result.exit_code == 2, result.output
    message = " ".join(result.output.replace("\n", " ").split())
    assert sentence in message


def test_a_text_that_is_no_ptx(tmp_path: Path) -> None:
    path = tmp_path / "bad.ptx"
    path.write_text(HEADER + ".visible .entry k() { add.s32 ; ")
    result = emulate(path)
    assert result.exit_code == 2
    assert "line 4" in result.output


COPY = """
.visible .entry copy_tile(.param .align 64 .b8 copy_tile_map[128], .param .u64 copy_tile_out, .param .align 8 .b8 extra[16]) {
.reg .b32 %r<8>; .reg .b64 %d<8>; .reg .pred %p<3>; .reg .b16 %h<2>;
.shared .align 128 .b8 tile[1024]; .shared .align 8 .b64 bar;
mov.u32 %r1, %tid.x; setp.ne.u32 %p1, %r1, 0; mov.b64 %d1, copy_tile_map; mov.u32 %r2, tile; mov.u32 %r3, bar;
@%p1 bra wait;
mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared.b64 %d2, [%r3], 1024;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%d1, {0, 0}], [%r3];
wait: bar.sync 0;
again: mbarrier.try_wait.parity.shared.b64 %p2, [%r3], 0; @!%p2 bra again;
ld.param.u64 %d3, [copy_tile_out]; mul.wide.u32 %d4, %r1, 2; add.u64 %d3, %d3, %d4; shl.b32 %r4, %r1, 1; add.u32 %r2, %r2, %r4;
ld.shared.b16 %h1, [%r2]; st.global.b16 [%d3], %h1; ret; }
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy.ptx"
    path.write_text(HEADER + COPY)
    return path


def test_tensor_maps_structures_archives_and_names(copy: Path, tmp_path: Path) -> None:
    tile = np.arange(512, dtype=np.float16).reshape(16, 32)
    np.savez(tmp_path / "all.npz", tile=tile, other=tile[:2])
    launch = [copy, "--block", 512, "--buffer", f"a={tmp_path}/all.npz:tile", "--buffer", "out=poison:float16:512"]
    launch += ["--arg", "extra=hex:" + "00" * 16, "--arg", "_out=@out", "--arg", "map:a:16x32", "--save",
               f"out={tmp_path}/out.npy", "--json", tmp_path / "report.json"]  # fmt: skip
    result = emulate(*launch)
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.load(tmp_path / "out.npy"), tile.ravel())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["launch"]["block"] == [512]
    assert report["total"]["global_bytes"] == 2 * 1024  # the TMA load, the stores
    assert report["total"]["shared_bytes"] == 2 * 1024
    for bad, sentence in (
        ("map:a:16x32:32", "tensor map: "),
        ("map:a:16", "as many as the array has dimensions"),
        ("map:a:16x32:half", "a swizzle is 0, 32, 64 or 128"),
        ("zeros:float16:16x32", "is no pointer, but got an array"),
    ):
        wrong = [bad if word == "map:a:16x32" else word for word in launch]
        result = emulate(*wrong)
        assert result.exit_code == 2, result.output
        assert sentence in " ".join(result.output.split())
    assert "file holds other, tile" in emulate(copy, "--buffer", f"a={tmp_path}/all.npz:x").output
    assert "holds several arrays" in emulate(copy, "--buffer", f"a={tmp_path}/all.npz").output


def test_a_parameter_given_twice(ptx: Path) -> None:
    result = emulate(ptx, "--kernel", "scale", "--arg", "y=null", "--arg", "0=null", "--arg", 1, "--arg", 1)
    assert result.exit_code == 2
    assert "parameter .u64 y is given twice" in result.output


def test_kernels_are_listed(ptx: Path, copy: Path) -> None:
    text = emulate(ptx, "--list").output
    assert "scale: PTX line 5, " in text
    assert "  2  .f32 a\n" in text
    assert "race: PTX line" in text
    assert "4 bytes of static shared memory" in text
    assert "race" not in emulate(ptx, "--list", "--kernel", "scale").output
    assert "  0  .b8 copy_tile_map[128] (a tensor map?)" in emulate(copy, "--list").output


def test_poison_shows_what_was_not_written(ptx: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.npy"
    emulate(ptx, "--kernel", "scale", "--block", 8, "--arg", "poison:float32:8", "--arg", "2.5:float32:8", "--arg", 2,
            "--arg", 6, "--save", out)  # fmt: skip
    assert np.load(out)[:6].tolist() == [5.0] * 6
    assert np.isnan(np.load(out)[6:]).all()


def test_counters_by_source_line_and_none(ptx: Path, tmp_path: Path) -> None:
    source = tmp_path / "scale.cu"
    source.write_text("// one\ny[i] = a * x[i];\n")
    text = ptx.read_text().replace("ld.global.f32", ".loc 1 2 0\nld.global.f32")
    lined = tmp_path / "lined.ptx"
    lined.write_text(text + f'\n.file 1 "{source}"\n')
    launch = [lined, "--kernel", "scale", "--block", 8, *(word for a in SCALE_ARGS for word in ("--arg", a))]
    result = emulate(*launch, "--counters", "source", "--sort", "flops")
    assert "scale.cu:2" in result.output, result.output
    assert "y[i] = a * x[i];" in result.output
    assert "issues" not in emulate(*launch, "--counters", "none").output


def test_files_that_are_no_ptx_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "k.ptx"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(99))
    assert "is machine code: `cuobjdump --dump-ptx`" in emulate(path).output
    path.write_text("#include <cuda.h>\n__global__ void k() {}\n")
    assert "nvcc -ptx -arch=sm_90a -lineinfo" in emulate(path).output
    path.write_bytes(b"")
    assert emulate(path).exit_code == 2
    path.write_bytes(bytes(range(256)))  # of any encoding, or none
    result = emulate(path)
    assert result.exit_code == 2
    assert "k.ptx: line 1" in result.output
