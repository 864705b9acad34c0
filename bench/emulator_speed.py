"""How fast the emulator runs: arithmetic, memory, atomics of many blocks, tensor cores, a GEMM, several host threads.

    python bench/emulator_speed.py [--repeats 5] [--only wgmma]

One row a measurement: the best of the repeats (a busy machine only ever takes away), all of them, and the goal where
there is one, met or not. Exit status 1 when a goal is missed. Needs no GPU; the GEMM is the ladder's level 5, as
installed.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tkpy.emulator
from tkpy import build_info, numerics

HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"
RATE = "M thread instructions/s"
#: %d2: the word of `out` that is this thread's alone.
OWN_WORD = """mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
mul.wide.u32 %d2, %r4, 4; add.s64 %d2, %d1, %d2;"""

#: A call that runs a program once and says how much it did: instructions, operations, or 1 for a time.
Program = Callable[[], float]


@dataclass(frozen=True)
class Row:
    name: str
    unit: str  # ends in /s: work over time, else the time itself
    program: Program
    goal: float | None = None


def kernel(params: str, body: str) -> tkpy.emulator.Module:
    registers = ".reg .pred %p<4>; .reg .b32 %r<16>; .reg .f32 %f<136>; .reg .b64 %d<8>; .reg .b32 %n, %i;"
    return tkpy.emulator.load(f"{HEADER}.visible .entry k({params}) {{ {registers}\n{body}\nret; }}")


def loop(body: str, before: str = "", after: str = "") -> tkpy.emulator.Module:
    """A kernel that runs `body` `rounds` times; %d1 is the address of `out`, %r1 the thread's number in its block."""
    return kernel(
        ".param .u64 out, .param .u32 rounds",
        f"""ld.param.u64 %d1, [out]; ld.param.u32 %n, [rounds]; mov.u32 %r1, %tid.x;
{before}
mov.u32 %i, 0;
again:
{body}
add.u32 %i, %i, 1; setp.lt.u32 %p1, %i, %n;
@%p1 bra again;
{after}""",
    )


def instructions(module: tkpy.emulator.Module, out: np.ndarray, rounds: int, **how: Any) -> Program:
    """Thread instructions of a launch, in millions, as one launch with counters counts them."""
    launch = functools.partial(module.launch, "k", args=[out, rounds], **{"threads": 1, **how})
    count = launch(checks="none", counters=True).counters.total.lanes / 1e6

    def run() -> float:
        launch()
        return float(count)

    return run


def alu() -> Iterator[Row]:
    bodies = {
        "integer": """add.s32 %r1, %r1, %r2; xor.b32 %r2, %r1, %r3;
mad.lo.s32 %r3, %r1, %r2, %r4; shl.b32 %r4, %r3, 1;\n""",
        "fp32": """fma.rn.f32 %f1, %f2, %f3, %f4; mul.f32 %f2, %f1, %f3;
add.f32 %f3, %f2, %f4; fma.rn.f32 %f4, %f1, %f2, %f3;\n""",
    }
    start = """mov.u32 %r2, 3; mov.u32 %r3, 5; mov.u32 %r4, 7;
mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.f32 %f3, 0f3E800000; mov.f32 %f4, 0f3F800000;"""
    end = "cvt.rzi.u32.f32 %r5, %f1; xor.b32 %r1, %r1, %r5; st.global.u32 [%d1], %r1;"
    out = np.zeros(1, np.uint32)
    for name, body in bodies.items():
        module = loop(body * 32, start, end)
        for checks, counters, goal in (("none", False, 400), ("none", True, 400), ("all", True, 100)):
            program = instructions(module, out, 4000, block=128, checks=checks, counters=counters)
            yield Row(f"{name}, checks={checks}, counters={counters}", RATE, program, goal)
    # Lanes that part and meet again in every round, half of them on each side.
    branch = """and.b32 %r5, %r1, 1; setp.eq.u32 %p2, %r5, 0;
@%p2 bra even; mad.lo.s32 %r3, %r3, %r2, %r1; bra join;
even: add.s32 %r3, %r3, %r2;
join:"""
    module = loop(branch, start, "st.global.u32 [%d1], %r3;")
    for checks in ("none", "all"):
        yield Row(
            f"divergent branches, checks={checks}", RATE, instructions(module, out, 20_000, block=128, checks=checks)
        )


def memory() -> Iterator[Row]:
    """Loops that do little but load and store, each thread its own words, a warp's side by side."""
    out = np.zeros(1 << 16, np.uint32)
    to_shared = """.shared .b8 words[16384];
shl.b32 %r4, %r1, 2; mov.u32 %r5, words; add.u32 %r5, %r5, %r4;\n"""
    shared = "".join(
        f"ld.shared.u32 %r6, [%r5+{4096 * (i % 4)}]; add.u32 %r6, %r6, 1; st.shared.u32 [%r5+{4096 * (i % 4)}], %r6;\n"
        for i in range(8)
    )
    init = "".join(f"st.shared.u32 [%r5+{4096 * i}], %r1;" for i in range(4))
    bodies = {
        "global load, add, store": (
            "ld.global.u32 %r6, [%d2]; add.u32 %r6, %r6, 1; st.global.u32 [%d2], %r6;\n" * 8,
            OWN_WORD,
        ),
        "shared load, add, store": (shared, to_shared + init),
        "shared, a barrier in every round": (shared + "bar.sync 0;\n", to_shared + init),
    }
    for name, (body, before) in bodies.items():
        module = loop(body, before)
        for checks in ("none", "all"):
            yield Row(
                f"{name}, checks={checks}", RATE, instructions(module, out, 300, grid=4, block=256, checks=checks)
            )


def atomics() -> Iterator[Row]:
    """Many blocks that meet at global memory: they run in one host thread, interleaved."""
    out = np.zeros(1 << 18, np.uint32)
    bodies = {
        "atomics of 1024 blocks on one word": ("red.global.add.u32 [%d1], 1;", ""),
        "atomics of 1024 blocks, a word each thread": ("red.global.add.u32 [%d2], 1;", OWN_WORD),
    }
    for name, (body, before) in bodies.items():
        module = loop(body, before)
        for checks in ("none", "all"):
            yield Row(
                f"{name}, checks={checks}", RATE, instructions(module, out, 8, grid=1024, block=256, checks=checks)
            )


def wgmma_kernel(a: str, b: str, d: str, k: int) -> tkpy.emulator.Module:
    """One warpgroup: m64n256 products, four steps of K a group, operands in shared memory with 128-byte swizzle."""
    kind = "s" if d == "s32" else "f"
    sums = ", ".join(f"%{'r' if kind == 's' else 'f'}{i + 8}" for i in range(128))
    flags = "1;" if d == "s32" else "1, 1, 1, 0, 0;" if k == 16 else "1, 1, 1;"
    zero = "".join(f"mov.b32 %{'r' if kind == 's' else 'f'}{i + 8}, 0;" for i in range(128))
    step = "\n".join(
        f"wgmma.mma_async.sync.aligned.m64n256k{k}.{d}.{a}.{b} {{{sums}}}, %d{3 + i % 4}, %d2, {flags}"
        for i in range(4)
    )
    return tkpy.emulator.load(
        f"""{HEADER}.visible .entry k(.param .u32 rounds) {{
.reg .pred %p<4>; .reg .b32 %r<140>; .reg .f32 %f<140>; .reg .b64 %d<8>; .reg .b32 %n, %i;
.shared .align 1024 .b8 tiles[65536];
ld.param.u32 %n, [rounds]; mov.u32 %r1, %tid.x; mov.u32 %r2, tiles;
shl.b32 %r3, %r1, 2; add.u32 %r3, %r3, %r2; mov.u32 %i, 0;
fill:
st.shared.u32 [%r3], 0x38383838;
add.u32 %r3, %r3, 512; add.u32 %i, %i, 1; setp.lt.u32 %p1, %i, 128; @%p1 bra fill;
fence.proxy.async.shared::cta; bar.sync 0;
shr.u32 %r4, %r2, 4; cvt.u64.u32 %d1, %r4; or.b64 %d3, %d1, 0x4000004000010000; add.s64 %d2, %d3, 1024;
add.s64 %d4, %d3, 2; add.s64 %d5, %d3, 4; add.s64 %d6, %d3, 6;
{zero}
mov.u32 %i, 0;
again:
wgmma.fence.sync.aligned;
{step}
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
add.u32 %i, %i, 1; setp.lt.u32 %p1, %i, %n; @%p1 bra again;
ret; }}"""
    )


def wgmma() -> Iterator[Row]:
    rounds = 40
    forms = [
        ("bf16", "bf16", "f32", 16),
        ("tf32", "tf32", "f32", 8),
        ("e4m3", "e4m3", "f32", 32),
        ("s8", "s8", "s32", 32),
    ]
    for a, b, d, k in forms:
        module = wgmma_kernel(a, b, d, k)
        for checks in ("none", "all"):

            def run(module: tkpy.emulator.Module = module, checks: str = checks, k: int = k) -> float:
                module.launch("k", block=128, args=[rounds], checks=checks, threads=1).raise_on_findings()
                return 2 * 64 * 256 * k * 4 * rounds / 1e9

            goal = 10 if checks == "none" else None
            yield Row(f"wgmma m64n256k{k} {a} -> {d}, checks={checks}", "GFLOP/s", run, goal)


def gemm(threads: int) -> Program:
    """512 x 512 x 512 in bf16 by tiles of 128 x 256 x 64, all checks on; the product is compared with float64."""
    module = tkpy.emulator.load(build_info.KERNELS / "level5_gemm_specialised.ptx")
    torch.manual_seed(0)
    a, b = (torch.randn(512, 512).bfloat16() for _ in range(2))
    c = torch.full((512, 512), float("nan"), dtype=torch.bfloat16)
    maps = [tkpy.emulator.TensorMap(x, (64, 64), swizzle=128) for x in (a, b, c)]

    def run() -> float:
        how: dict[str, Any] = {"grid": 8, "block": 384, "cluster": 2, "shared": 214016, "threads": threads}
        module.launch("level5_gemm_specialised", args=[*maps, 512, 512, 512], checks="all", **how).raise_on_findings()
        return 1.0

    run()
    if not (agree := numerics.compare(c, a.double() @ b.double(), 3e-3)):
        raise SystemExit(f"the GEMM is wrong: {agree}")
    return run


def threads() -> Iterator[Row]:
    yield Row("GEMM 512^3, all checks, 1 thread", "s", gemm(1))
    yield Row("GEMM 512^3, all checks, 2 threads", "s", gemm(2), 2.0)
    out = np.zeros(1, np.uint32)
    module = loop("mad.lo.s32 %r1, %r1, %r1, 3;\n" * 64)
    for n in (1, 2):
        program = instructions(module, out, 400, grid=64, block=128, checks="all", threads=n)
        yield Row(f"64 blocks of integer code, {n} thread{'s' * (n > 1)}", RATE, program)


GROUPS = {"alu": alu, "memory": memory, "atomics": atomics, "wgmma": wgmma, "threads": threads}


def measure(row: Row, repeats: int) -> bool:
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        work = row.program()
        took = time.perf_counter() - start
        samples.append(work / took if row.unit.endswith("/s") else took)
    best = max(samples) if row.unit.endswith("/s") else min(samples)
    met = row.goal is None or (best >= row.goal if row.unit.endswith("/s") else best <= row.goal)
    verdict = "" if row.goal is None else f"goal {row.goal:g}: {'met' if met else 'NOT MET'}"
    shown = " ".join(f"{x:.4g}" for x in samples)
    print(f"{row.name:58} {best:8.4g} {row.unit:24} {verdict:20} [{shown}]", flush=True)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=GROUPS, help="one group of rows")
    options = parser.parse_args()
    cpu = platform.processor() or platform.machine()
    print(f"{cpu}, {os.cpu_count()} cores; one host thread unless a row says two; best of {options.repeats}")
    met = [
        measure(row, options.repeats)
        for name, group in GROUPS.items()
        if options.only in (None, name)
        for row in group()
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
