"""Seeded faults in otherwise correct programs: each must be found, with the right code, within 32 schedules; the correct
twin must be silent under every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from tkpy.emulator import KernelError, Module

Compile = Callable[..., Module]
SEEDS = 32


@dataclass
class Program:
    """CUDA text in which a fault replaces one piece by another."""

    source: str
    block: int
    faults: dict[str, tuple[str, str, str]]  # name -> (text to replace, replacement, finding code)
    grid: int = 1
    floats: int = 256
    shared: int = 0
    args: list[int] = field(default_factory=list)
    budget: int = 0


SHARED_SUM = Program(
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int k = 64; k > 0; k /= 2) {
    if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];
    __syncthreads();
  }
  out[threadIdx.x] = s[0];
}""",
    block=128,
    faults={
        "no barrier after the fill": ("s[threadIdx.x] = x[threadIdx.x];\n  __syncthreads();", "s[threadIdx.x] = x[threadIdx.x];", "shared-race"),
        "no barrier in the loop": ("+= s[threadIdx.x + k];\n    __syncthreads();", "+= s[threadIdx.x + k];", "shared-race"),
        "warp barrier instead of block barrier": ("s[threadIdx.x + k];\n    __syncthreads();", "s[threadIdx.x + k];\n    __syncwarp();", "shared-race"),
        "reads one too far": ("s[threadIdx.x + k];", "s[threadIdx.x + k + 1];", "out-of-bounds"),
        "loop starts too high": ("int k = 64", "int k = 128", "out-of-bounds"),
        "half is never filled": ("s[threadIdx.x] = x[threadIdx.x];", "if (threadIdx.x < 64) s[threadIdx.x] = x[threadIdx.x];", "uninitialised-read"),
        "one element is never filled": ("s[threadIdx.x] = x[threadIdx.x];", "if (threadIdx.x != 77) s[threadIdx.x] = x[threadIdx.x];", "uninitialised-read"),
        "lanes of a warp at two barriers": ("s[threadIdx.x + k];\n    __syncthreads();", "s[threadIdx.x + k];\n    "
                                            'if (threadIdx.x % 2) asm volatile("bar.sync 0;"); else asm volatile("bar.sync 0, 128;");', "barrier-divergence"),
        "output one too far": ("out[threadIdx.x] =", "out[threadIdx.x + 129] =", "out-of-bounds"),
        "input read before its start": ("x[threadIdx.x];", "x[(int)threadIdx.x - 1];", "out-of-bounds"),
        "misaligned": ("out[threadIdx.x] = s[0];", "*(float*)((char*)out + threadIdx.x * 4 + 2) = s[0];", "misaligned"),
        "misaligned vector": ("out[threadIdx.x] = s[0];", "*(float2*)(out + threadIdx.x + 1) = make_float2(s[0], 0);", "misaligned"),
    },
)  # fmt: skip

DOUBLE_BUFFER = Program(
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[2][64];
  float sum = 0;
  s[0][threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (int r = 0; r < 4; ++r) {
    if (r < 3) s[(r + 1) % 2][threadIdx.x] = x[threadIdx.x + r];
    sum += s[r % 2][63 - threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}""",
    block=64,
    faults={
        "slots overlap": ("s[(r + 1) % 2][threadIdx.x]", "s[r % 2][threadIdx.x]", "shared-race"),
        "barrier before the reads": ("sum += s[r % 2][63 - threadIdx.x];\n    __syncthreads();", "__syncthreads();\n    sum += s[r % 2][63 - threadIdx.x];", "shared-race"),
        "slot filled one round late": ("if (r < 3) s", "if (r && r < 3) s", "uninitialised-read"),
    },
)  # fmt: skip

NAMED = Program(
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32];
  int lane = threadIdx.x % 32;
  for (int r = 0; r < 3; ++r) {
    if (threadIdx.x < 32) {
      if (r) asm volatile("bar.sync 1, 64;" ::: "memory");
      s[lane] = x[lane] + r;
      asm volatile("bar.arrive 2, 64;" ::: "memory");
    } else {
      asm volatile("bar.sync 2, 64;" ::: "memory");
      out[lane] = s[31 - lane];
      if (r < 2) asm volatile("bar.arrive 1, 64;" ::: "memory");
    }
  }
}""",
    block=64,
    faults={
        "slot is reused before it is read": ('if (r) asm volatile("bar.sync 1, 64;" ::: "memory");', "", "shared-race"),
        "slot is released before it is read": ('out[lane] = s[31 - lane];\n      if (r < 2) asm volatile("bar.arrive 1, 64;" ::: "memory");',
                                               'if (r < 2) asm volatile("bar.arrive 1, 64;" ::: "memory");\n      out[lane] = s[31 - lane];', "shared-race"),
        "never signalled": ('asm volatile("bar.arrive 2, 64;" ::: "memory");', "", "deadlock"),
        "signalled on another barrier": ("bar.arrive 2, 64", "bar.arrive 3, 64", "deadlock"),
        "never released": ('if (r < 2) asm volatile("bar.arrive 1, 64;" ::: "memory");', "", "deadlock"),
        "count too large": ("bar.sync 2, 64", "bar.sync 2, 96", "barrier-count"),
        "count not a multiple of 32": ('asm volatile("bar.arrive 2, 64;" ::: "memory");', 'asm volatile("bar.arrive 2, %0;" :: "r"(blockDim.x - 16) : "memory");', "barrier-count"),
        "counts differ": ("bar.arrive 2, 64", "bar.arrive 2, 32", "deadlock"),
        "barrier 17": ('asm volatile("bar.sync 2, 64;" ::: "memory");', 'asm volatile("bar.sync %0, 64;" :: "r"(blockDim.x - 47) : "memory");', "invalid-instruction"),
    },
)  # fmt: skip

WARP = Program(
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  float v = s[31 - threadIdx.x];
  v += __shfl_xor_sync(0xffffffff, v, 1);
  __syncwarp();
  s[threadIdx.x] = v;
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 5];
}""",
    block=32,
    faults={
        "no warp barrier": ("s[threadIdx.x] = v;\n  __syncwarp();", "s[threadIdx.x] = v;", "shared-race"),
        "no first warp barrier": ("x[threadIdx.x];\n  __syncwarp();", "x[threadIdx.x];", "shared-race"),
        "shuffle in a branch": ("v += __shfl_xor_sync(0xffffffff, v, 1);", "if (threadIdx.x != 3) v += __shfl_xor_sync(0xffffffff, v, 1); else v = x[0] * v;", "barrier-divergence"),
        "lane outside its mask": ("0xffffffff, v", "0x7fffffff, v", "invalid-instruction"),
        "two lanes store to one place": ("s[threadIdx.x] = v;", "s[threadIdx.x / 2] = v + threadIdx.x; if (threadIdx.x > 15) s[threadIdx.x] = 0;", "shared-race"),
    },
)  # fmt: skip

LOOPS = Program(
    r"""
extern "C" __global__ void k(float* out, const float* x) {
  float v = 0;
  int steps = (int)x[0] * 0 + 5;
  for (int i = 0; i != steps; i += 1) v += x[i];
  if (v == 12345.f) __trap();
  out[threadIdx.x] = v;
}""",
    block=32,
    budget=200000,
    faults={
        "endless loop": ("i += 1) v += x[i];", "i += 2) v += x[i & 15];", "budget"),
        "trap": ("if (v == 12345.f)", "if (v != 12345.f)", "trap"),
        "endless spin": ("out[threadIdx.x] = v;", "while (((volatile float*)out)[0] != 3e30f) {} out[threadIdx.x] = v;", "budget"),
    },
)  # fmt: skip

PROGRAMS = {
    "shared sum": SHARED_SUM,
    "double buffer": DOUBLE_BUFFER,
    "named barriers": NAMED,
    "warp": WARP,
    "loops": LOOPS,
}
FAULTS = [(name, fault) for name, program in PROGRAMS.items() for fault in program.faults]


def codes(module: Module, program: Program, seed: int) -> set[str]:
    out, x = np.zeros(128, np.float32), np.arange(128, dtype=np.float32)
    try:
        run = module.launch(
            "k", grid=program.grid, block=program.block, args=[out, x], seed=seed, max_instructions=program.budget
        )
    except KernelError as error:
        return {f.code for f in error.findings}
    return {f.code for f in run.findings}


@pytest.mark.parametrize("name", PROGRAMS)
def test_correct_twins_are_silent(compile_cuda: Compile, name: str) -> None:
    program = PROGRAMS[name]
    module = compile_cuda(program.source)
    for seed in range(128):
        assert not codes(module, program, seed)


@pytest.mark.parametrize("name, fault", FAULTS)
def test_fault_is_caught(compile_cuda: Compile, name: str, fault: str) -> None:
    program = PROGRAMS[name]
    before, after, code = program.faults[fault]
    assert program.source.count(before) == 1, "the fault must change exactly one place"
    module = compile_cuda(program.source.replace(before, after))
    seen: set[str] = set()
    for seed in range(SEEDS):
        seen |= codes(module, program, seed)
        if code in seen:
            return
    raise AssertionError(f"{code} not found in {SEEDS} schedules; found {seen or 'nothing'}")


def test_a_race_names_both_sides(compile_cuda: Compile) -> None:
    before, after, _ = SHARED_SUM.faults["no barrier after the fill"]
    module = compile_cuda(SHARED_SUM.source.replace(before, after))
    out, x = np.zeros(128, np.float32), np.arange(128, dtype=np.float32)
    for seed in range(SEEDS):
        races = [f for f in module.launch("k", block=128, args=[out, x], seed=seed).findings if f.code == "shared-race"]
        if races:
            break
    race = races[0]
    assert race.other is not None
    assert {race.site.text[:9], race.other.text[:9]} <= {"ld.shared", "st.shared"}
    assert race.source is not None
    assert race.source[1] in (4, 6)
    assert "PTX line" in str(race)


def test_a_deadlock_says_who_waits_for_what(compile_cuda: Compile) -> None:
    before, after, _ = NAMED.faults["never signalled"]
    module = compile_cuda(NAMED.source.replace(before, after))
    with pytest.raises(KernelError, match=r"(?s)waits for barrier 2\n.*barrier 2: 1 warps have arrived of 2"):
        module.launch("k", block=64, args=[np.zeros(32, np.float32), np.zeros(32, np.float32)])


def test_checks_can_be_chosen(compile_cuda: Compile) -> None:
    before, after, _ = SHARED_SUM.faults["no barrier in the loop"]
    module = compile_cuda(SHARED_SUM.source.replace(before, after))
    out, x = np.zeros(128, np.float32), np.arange(128, dtype=np.float32)
    launch = lambda checks: module.launch("k", block=128, args=[out, x], checks=checks).findings  # noqa: E731
    assert launch("all")
    assert not launch("none")
    assert not launch({"uninitialised-read"})
    assert launch({"shared-race"})
    with pytest.raises(ValueError, match="unknown checks"):
        launch({"no-such-check"})
