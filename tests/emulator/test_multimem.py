"""multimem on a multicast object of one device: loads, stores and reductions of its one replica."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from emulator_harness import HEADER

import tkpy.emulator
from tkpy.emulator import Run


def run(body: str, *args: np.ndarray, block: int = 32, seed: int = 0) -> Run:
    params = ", ".join(f".param .u64 p{i}" for i in range(len(args)))
    loads = "".join(f"ld.param.u64 %d{i}, [p{i}];\n" for i in range(len(args)))
    ptx = f"""{HEADER}.visible .entry k({params}) {{
.reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %d<16>; .reg .b64 %a; .reg .b64 %t;
{loads} mov.u32 %r0, %tid.x;
{body} ret; }}"""
    module = tkpy.emulator.load(ptx)
    assert not module.unmodelled, module.unmodelled
    return module.launch("k", block=block, args=args, seed=seed)


def test_reductions_add_up() -> None:
    for seed in range(4):
        total, high = np.array([5], np.int32), np.array([3], np.uint32)
        run(
            "multimem.red.release.sys.global.add.s32 [%d0], %r0;\n"
            "multimem.red.relaxed.gpu.global.max.u32 [%d1], %r0;\n",
            total, high, block=96, seed=seed,
        ).raise_on_findings()  # fmt: skip
        assert total[0] == 5 + sum(range(96))
        assert high[0] == 95


def test_packed_halves_are_reduced_each() -> None:
    x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    run("mov.b32 %r1, 0x3f803f80;\nmultimem.red.relaxed.sys.global.add.bf16x2 [%d0], %r1;", x.view(np.uint16), block=4)
    assert x.astype(np.float32).tolist() == [5.5, 2.0]


def test_reducing_loads_and_stores_move_the_replica() -> None:
    x = np.arange(64, dtype=np.float32)
    y, z = np.zeros(64, np.float32), np.zeros(32, np.uint32)
    h = np.random.default_rng(0).integers(0, 2**32, 32, dtype=np.uint32)
    w = np.zeros(32, np.uint32)
    run(
        """mul.wide.u32 %t, %r0, 8;
add.s64 %a, %t, %d0; multimem.ld_reduce.weak.global.add.v2.f32 {%f1, %f2}, [%a];
add.s64 %a, %t, %d1; multimem.st.weak.global.v2.f32 [%a], {%f2, %f1};
mul.wide.u32 %t, %r0, 4;
add.s64 %a, %t, %d2; multimem.ld_reduce.relaxed.sys.global.add.acc::f32.bf16x2 %r1, [%a];
add.s64 %a, %t, %d3; multimem.st.relaxed.sys.global.bf16x2 [%a], %r1;
add.s64 %a, %t, %d4; multimem.ld_reduce.weak.global.and.b32 %r2, [%a-0]; multimem.st.weak.global.b32 [%a], %r0;""",
        x, y, h, z, w,
    ).raise_on_findings()  # fmt: skip
    assert np.array_equal(y.reshape(32, 2), x.reshape(32, 2)[:, ::-1])
    assert np.array_equal(z, h)
    assert np.array_equal(w, np.arange(32))


def test_bounds_are_checked() -> None:
    found = run("multimem.red.relaxed.sys.global.add.s32 [%d0+4], %r0;", np.zeros(1, np.int32)).findings
    assert {f.code for f in found} == {"out-of-bounds"}


@pytest.mark.parametrize("text", ["multimem.ld_reduce.weak.global.u32 %r1, [%d0]", "multimem.cp.global.u32 [%d0], %r0"])
def test_other_forms_are_not_guessed(text: str) -> None:
    ptx = f"{HEADER}.visible .entry k() {{ .reg .b32 %r<4>; .reg .b64 %d<4>; {text}; ret; }}"
    assert len(tkpy.emulator.load(ptx).unmodelled) == 1
