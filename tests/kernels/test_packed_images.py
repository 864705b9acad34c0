"""Kernel images as an installed package keeps them: .ptx.gz and .cubin.gz, which the machines read."""

import gzip
import random
import re
import shutil
import subprocess
import sys
import zlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from kernel_cases import ROOT  # noqa: E402

import tkpy  # noqa: E402
from tkpy import build_info, emulator  # noqa: E402
from tkpy.emulator.command import listing, read_module  # noqa: E402


def packed(data: bytes, level: int = 9, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, 31, 9, strategy)
    return made.compress(data) + made.flush()


def samples() -> dict[str, bytes]:
    make = random.Random(1)
    noise = make.randbytes(100_000)
    text = "".join(f"\tmov.b32 %r{make.randrange(3000)}, {i};\n" for i in range(30_000)).encode()
    return {"nothing": b"", "a byte": b"x", "noise": noise, "text": text, "runs": b"ab" * 50_000 + bytes(300_000)}


@pytest.fixture(scope="module")
def gunzip(host_program):
    return host_program("gunzip", "tests/kernels/gunzip_main.cpp", flags=(f"-I{ROOT / 'csrc'}",))


@pytest.mark.parametrize("name", samples())
def test_every_kind_of_block(gunzip, tmp_path, name):
    data = samples()[name]
    kinds = [packed(data, 0), packed(data, 1), packed(data), packed(data, 9, zlib.Z_FIXED), packed(data, 9, zlib.Z_RLE)]
    kinds += [packed(data, 9, zlib.Z_HUFFMAN_ONLY), gzip.compress(data, mtime=0)]
    named = bytearray(packed(data))
    named[3] = 8 | 4  # an extra field and a name, as gzip(1) writes one
    named[10:10] = b"\x02\x00zzkernel.ptx\x00"
    for i, content in enumerate([*kinds, bytes(named)]):
        (tmp_path / "in").write_bytes(content)
        done = subprocess.run([gunzip, tmp_path / "in", tmp_path / "out"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{i}: {done.stdout}"
        assert (tmp_path / "out").read_bytes() == data, i


@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED])
def test_damage_is_refused(gunzip, tmp_path, strategy):
    data = bytes(random.Random(2).choices(b"abcdefgh .%r", k=900))
    content = packed(data, 9, strategy)
    (tmp_path / "in").write_bytes(content)
    done = subprocess.run(
        [gunzip, tmp_path / "in", tmp_path / "out", "all"], capture_output=True, text=True, check=True
    )
    outcomes = done.stdout.strip()
    assert len(outcomes) == 4 * len(content)
    assert "!" not in outcomes
    same = {i // 4 for i, c in enumerate(outcomes) if c == "s"}
    # Flags without a field, time, level and system say nothing about the bytes; nor do bits behind the last code.
    assert same <= {*range(3, 10), len(content) - 9}
    (tmp_path / "in").write_bytes(data)
    done = subprocess.run([gunzip, tmp_path / "in", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.stdout == "it is no gzip file\n"


@pytest.fixture
def folder(kernel_folder, tmp_path):
    """The GEMM alone, packed as the package's build does it."""
    source = kernel_folder("kernels/gemm/kernel.cu")
    for name in ("gemm.ptx", "gemm.cubin", "gemm.json"):
        shutil.copy(source / name, tmp_path / name)
    subprocess.run([sys.executable, ROOT / "cmake/pack_kernels.py", tmp_path], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"gemm.ptx.gz", "gemm.cubin.gz", "gemm.json"}
    assert gzip.decompress((tmp_path / "gemm.cubin.gz").read_bytes()) == (source / "gemm.cubin").read_bytes()
    return tmp_path


def test_packed_kernels_run(folder, monkeypatch):
    assert list(build_info.reports(folder)) == ["gemm"]
    x = torch.randn(20, 24).bfloat16()
    on_machine(monkeypatch, folder)
    assert torch.equal(tkpy.linear(x, torch.eye(24).bfloat16(), backend="emulator"), x)
    module = emulator.load(folder / "gemm.ptx")
    assert module.kernels
    assert "gemm_bf16_mk_nk_tma" in listing(read_module(folder / "gemm.ptx.gz"), None)
    assert emulator.load(str(folder / "gemm.ptx")).kernels.keys() == module.kernels.keys()


def test_a_damaged_image_is_named(folder, monkeypatch):
    path = folder / "gemm.ptx.gz"
    path.write_bytes(path.read_bytes()[:-9])
    on_machine(monkeypatch, folder)
    x = torch.zeros(8, 8).bfloat16()
    with pytest.raises(tkpy.InternalError, match=re.escape(f"{path}: it is cut off")):
        tkpy.linear(x, x, backend="emulator")
    with pytest.raises(ValueError, match="damaged"):
        emulator.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        emulator.load(folder / "absent.ptx")
