"""Run and check sm_90a PTX on a CPU: any producer (nvcc, Triton, by hand), no GPU and no CUDA needed.

    import tkpy.emulator
    module = tkpy.emulator.load("kernel.ptx")               # text or path
    run = module.launch("scale", grid=4, block=128, args=[x, y, 3, 1.5])
    run.raise_on_findings()
    print(run.report())

What is modelled, and what is done where the PTX ISA leaves room: docs/emulator.md; findings: docs/findings.md.
"""

from __future__ import annotations

from tkpy.emulator.arguments import Param, TensorMap
from tkpy.emulator.module import CHECKS, Function, Module, Unmodelled, load
from tkpy.emulator.run import Count, Counters, Finding, KernelError, Run, Site

__all__ = [
    "CHECKS",
    "Count",
    "Counters",
    "Finding",
    "Function",
    "KernelError",
    "Module",
    "Param",
    "Run",
    "Site",
    "TensorMap",
    "Unmodelled",
    "load",
]
