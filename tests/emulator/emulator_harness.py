"""Helpers of the emulator's tests: one-instruction kernels, edge values, comparison, nvcc."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tkpy.emulator
from tkpy.emulator import Module

HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"


def _registers(dtype: np.dtype[Any]) -> tuple[str, str]:
    return {1: ("h", "u8"), 2: ("h", "b16"), 4: ("r", "b32"), 8: ("d", "b64")}[dtype.itemsize]


def lanewise(
    instruction: str, inputs: Sequence[np.ndarray], out: np.dtype[Any] | type, setup: str = "", rough: bool = False
) -> np.ndarray:
    """Runs one instruction on every element. It is written with $d for the result and $0, $1, ... for the operands."""
    out = np.dtype(out)
    n = len(inputs[0])
    text = instruction
    lines = []
    params = [".param .u64 pd"]
    for i, array in enumerate(inputs):
        kind, load = _registers(array.dtype)
        params.append(f".param .u64 p{i}")
        lines += [
            f"ld.param.u64 %a, [p{i}];",
            f"mad.wide.u32 %a, %i, {array.dtype.itemsize}, %a;",
            f"ld.global.{load} %{kind}{i}, [%a];",
        ]
        text = text.replace(f"${i}", f"%{kind}{i}")
    kind, store = _registers(out)
    text = text.replace("$d", f"%{kind}9")
    ptx = f"""{HEADER}
.visible .entry k({", ".join(params)}, .param .u32 n) {{
.reg .b16 %h<16>; .reg .b32 %r<16>; .reg .b64 %d<16>; .reg .pred %p<8>; .reg .b64 %a; .reg .b32 %i, %n, %t;
ld.param.u32 %n, [n];
mov.u32 %i, %ctaid.x; mov.u32 %t, %tid.x; mad.lo.s32 %i, %i, 128, %t;
setp.ge.u32 %p7, %i, %n;
@%p7 ret;
{chr(10).join(lines)}
{setup}
{text}
ld.param.u64 %a, [pd];
mad.wide.u32 %a, %i, {out.itemsize}, %a;
st.global.{store} [%a], %{kind}9;
ret; }}"""
    module = tkpy.emulator.load(ptx)
    assert not module.unmodelled, module.unmodelled
    result = np.zeros(n, out)
    arrays = [np.ascontiguousarray(a) for a in inputs]
    run = module.launch("k", grid=(n + 127) // 128, block=128, args=[result, *arrays, n], rough=rough)
    run.raise_on_findings()
    return result


def snippet(body: str, params: str = ".param .u64 out", before: str = "", directives: str = "") -> Module:
    """A module of one kernel, `k`; `before` is at module level, `directives` are the kernel's."""
    return tkpy.emulator.load(f"{HEADER}\n{before}\n.visible .entry k({params}) {directives}\n{{\n{body}\nret;\n}}\n")


def results(
    body: str, *names: str, before: str = "", params: str = "", directives: str = "", args: Sequence[Any] = (),
    grid: int = 1, block: int = 32, **launch: Any,
) -> np.ndarray:  # fmt: skip
    """What the 32-bit registers `names` hold after `body`, as bits: (thread of the grid, name). %lane is %tid.x."""
    stores = "\n".join(f"st.global.b32 [%addr+{4 * i}], {name};" for i, name in enumerate(names))
    text = f"""
.reg .b32 %lane, %cta, %thread; .reg .b64 %addr;
mov.u32 %lane, %tid.x;
{body}
ld.param.u64 %addr, [out]; mov.u32 %cta, %ctaid.x; mad.lo.u32 %thread, %cta, {block}, %lane;
mad.wide.u32 %addr, %thread, {4 * len(names)}, %addr;
{stores}"""
    module = snippet(text, ", ".join([".param .u64 out", *([params] if params else [])]), before, directives)
    assert not module.unmodelled, module.unmodelled
    out = np.zeros((grid * block, len(names)), np.uint32)
    module.launch("k", grid=grid, block=block, args=[out, *args], **launch).raise_on_findings()
    return out


def value(body: str, before: str = "") -> list[int]:
    """What `body` leaves in %out, of each lane of one warp."""
    return results(".reg .b32 %out;" + body, "%out", before=before)[:, 0].tolist()


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy that starts on a 256-byte boundary, as cudaMalloc's memory does."""
    room = np.empty(a.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    out = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def integers(dtype: Any, count: int = 2, random: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Every pairing of edge values and random ones, as `count` columns."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 3, 31, 32, 33, info.max, info.max - 1, info.min, info.min + 1, info.max // 2]
    if info.min < 0:
        edges += [-1, -2, -31]
    values = np.array(edges, dtype=dtype)
    values = np.concatenate([values, rng.integers(info.min, info.max, random, dtype=dtype, endpoint=True)])
    if count == 1:
        return [values]
    grid = np.meshgrid(values, values, indexing="ij")
    columns = [g.ravel() for g in grid]
    while len(columns) < count:
        columns.append(rng.permutation(columns[0]))
    return columns


def floats(dtype: Any, count: int = 2, random: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Zeros, subnormals, halves, extremes, infinities, NaN and random bit patterns."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    tiny, sub, top = float(info.tiny), float(info.smallest_subnormal), float(info.max)
    edges = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, tiny, -tiny, sub, -sub, tiny * 0.75, top, -top,
             np.inf, -np.inf, np.nan, 1 + float(info.eps), 1 - float(info.eps) / 2]  # fmt: skip
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    wild = rng.integers(0, np.iinfo(bits).max, random, dtype=bits, endpoint=True).view(dtype)
    tame = rng.standard_normal(random).astype(dtype)
    with np.errstate(all="ignore"):
        values = np.concatenate([np.array(edges).astype(dtype), wild, tame])
    if count == 1:
        return [values]
    grid = np.meshgrid(values, values, indexing="ij")
    columns = [g.ravel() for g in grid]
    while len(columns) < count:
        columns.append(rng.permutation(columns[0]))
    return columns


def same_floats(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit, except that any NaN matches any NaN; the sign of zero counts."""
    with np.errstate(all="ignore"):
        nan = np.isnan(want.astype(np.float64))
        bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[got.dtype.itemsize]
        wrong = np.where(nan, ~np.isnan(got.astype(np.float64)), got.view(bits) != want.view(bits))
    if wrong.any():
        at = np.flatnonzero(wrong)[:8]
        raise AssertionError(f"{wrong.sum()} of {len(got)} differ: {list(zip(at, got[at], want[at], strict=True))}")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")
