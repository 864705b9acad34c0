"""How fast the emulator runs: thread instructions per second on one core, checks off and on.

    python bench/emulator_speed.py

Prints one row per program: the best of five runs, with all of them, and the goal.
"""

from __future__ import annotations

import platform
import time

import numpy as np

import tkpy.emulator

HEADER = ".version 8.0\n.target sm_90a\n.address_size 64\n"


def alu_loop(body: str, repeats: int = 32) -> str:
    """A kernel that runs `body` (on %r1..%r8, %f1..%f8) in an unrolled loop of %n rounds."""
    return f"""{HEADER}
.visible .entry loop(.param .u64 out, .param .u32 rounds) {{
.reg .pred %p<4>; .reg .b32 %r<16>; .reg .f32 %f<16>; .reg .b64 %d<4>; .reg .b32 %n, %i;
ld.param.u32 %n, [rounds];
mov.u32 %r1, %tid.x; mov.u32 %r2, 3; mov.u32 %r3, 5; mov.u32 %r4, 7;
mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000; mov.f32 %f3, 0f3E800000; mov.f32 %f4, 0f3F800000;
mov.u32 %i, 0;
again:
{body * repeats}
add.u32 %i, %i, 1;
setp.lt.u32 %p1, %i, %n;
@%p1 bra again;
ld.param.u64 %d1, [out];
add.u32 %r1, %r1, %r2; cvt.rzi.u32.f32 %r5, %f1; xor.b32 %r1, %r1, %r5;
st.global.u32 [%d1], %r1;
ret; }}"""


PROGRAMS = {
    "integer": alu_loop(
        "add.s32 %r1, %r1, %r2; xor.b32 %r2, %r1, %r3; mad.lo.s32 %r3, %r1, %r2, %r4; shl.b32 %r4, %r3, 1;\n"
    ),
    "fp32": alu_loop(
        "fma.rn.f32 %f1, %f2, %f3, %f4; mul.f32 %f2, %f1, %f3; add.f32 %f3, %f2, %f4; fma.rn.f32 %f4, %f1, %f2, %f3;\n"
    ),
}


def measure(ptx: str, *, checks: str, counters: bool, rounds: int = 2000) -> list[float]:
    module = tkpy.emulator.load(ptx)
    out = np.zeros(1, np.uint32)
    instructions = (32 * 4 + 3) * rounds * 32 * 4
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        module.launch("loop", block=128, args=[out, rounds], checks=checks, counters=counters, threads=1)
        rates.append(instructions / (time.perf_counter() - start) / 1e6)
    return rates


def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, one core; million thread instructions per second, best of five"
    )
    for name, ptx in PROGRAMS.items():
        for checks, counters, goal in (("none", False, 400), ("none", True, 400), ("all", True, 100)):
            rates = measure(ptx, checks=checks, counters=counters)
            samples = " ".join(f"{r:.0f}" for r in rates)
            print(f"{name:8} checks={checks:4} counters={counters!s:5}  {max(rates):6.0f}   goal {goal}   [{samples}]")


if __name__ == "__main__":
    main()
