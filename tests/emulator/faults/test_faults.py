"""Every seeded fault is found with the right code within 32 schedules; the correct programs are silent under 256.

A fault whose code is `result` has no finding of its own yet: the emulator shows it by a result that is wrong under one of
the schedules (docs/emulator.md, Not yet). Those are counted apart.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults.fault_table import RESULT, Fault, Program

from tkpy.emulator import CHECKS, KernelError, Module, load

MODULES = sorted(Path(__file__).parent.glob("twins_*.py"))
PROGRAMS: tuple[Program, ...] = tuple(p for m in MODULES for p in importlib.import_module(f"faults.{m.stem}").PROGRAMS)
Compile = Callable[..., Module]
FAULT_SEEDS = 32
CLEAN_SEEDS = 256

LOADED: dict[str, Module] = {}
# What happened in the tests before the last one: fault -> found, program -> schedules with findings of its correct twin.
CAUGHT: dict[tuple[str, str], bool] = {}
FALSE_POSITIVES: dict[str, int] = {}


def load_program(compile_cuda: Compile, program: Program) -> Module:
    if not program.is_ptx:
        return compile_cuda(program.text())
    if program.name not in LOADED:
        LOADED[program.name] = load(program.text())
    return LOADED[program.name]


def observe(module: Module, program: Program, variant: int, seed: int, **options: object) -> set[str]:
    """The codes of the findings, and `result` when the output is not what it should be."""
    launch, out, want = program.launch(**options)
    launch.setdefault("max_instructions", 100_000)
    try:
        run = module.launch(f"k{variant}", seed=seed, threads=1, counters=False, **launch)
    except KernelError as error:
        return {f.code for f in error.findings}
    codes = {f.code for f in run.findings}
    return codes if np.array_equal(out, want) else codes | {RESULT}


def find(module: Module, program: Program, fault: Fault) -> tuple[bool, set[str]]:
    variant = program.faults.index(fault) + 1
    seen: set[str] = set()
    for seed in range(FAULT_SEEDS):
        codes = observe(module, program, variant, seed, **fault.options)
        seen |= codes
        if fault.code in seen or (fault.code == RESULT and codes):
            return True, seen
    return False, seen


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_the_correct_program_is_right_and_silent(compile_cuda: Compile, program: Program) -> None:
    module = load_program(compile_cuda, program)
    seen = [observe(module, program, 0, seed) for seed in range(CLEAN_SEEDS)]
    FALSE_POSITIVES[program.name] = sum(bool(codes) for codes in seen)
    assert not any(seen), [(seed, codes) for seed, codes in enumerate(seen) if codes][:5]


@pytest.mark.parametrize(
    "program, fault", [(p, f) for p in PROGRAMS for f in p.faults], ids=lambda v: v.name.replace(" ", "-")
)
def test_the_fault_is_found(compile_cuda: Compile, program: Program, fault: Fault) -> None:
    found, seen = find(load_program(compile_cuda, program), program, fault)
    CAUGHT[program.name, fault.name] = found
    assert found, f"{fault.code} not found in {FAULT_SEEDS} schedules; found {seen or 'nothing'}"


def test_every_code_has_three_faults() -> None:
    per_code = Counter(f.code for p in PROGRAMS for f in p.faults)
    names = [(p.name, f.name) for p in PROGRAMS for f in p.faults]
    assert len(set(names)) == len(names) >= 60
    assert set(per_code) - {RESULT} == set(CHECKS)
    assert all(n >= 3 for n in per_code.values()), per_code


def test_summary(compile_cuda: Compile, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs what was deselected before; one line for people."""
    for program in PROGRAMS:
        module = load_program(compile_cuda, program)
        if program.name not in FALSE_POSITIVES:
            seen = [observe(module, program, 0, seed) for seed in range(CLEAN_SEEDS)]
            FALSE_POSITIVES[program.name] = sum(bool(codes) for codes in seen)
        for fault in program.faults:
            if (program.name, fault.name) not in CAUGHT:
                CAUGHT[program.name, fault.name] = find(module, program, fault)[0]
    shown = sum(f.code == RESULT for p in PROGRAMS for f in p.faults)
    caught, false = sum(CAUGHT.values()), sum(FALSE_POSITIVES.values())
    with capsys.disabled():
        print(
            f"\nseeded faults: {caught}/{len(CAUGHT)} caught within {FAULT_SEEDS} seeds ({shown} of them by wrong results); "
            f"{false} false positives in {len(FALSE_POSITIVES)} correct programs x {CLEAN_SEEDS} seeds"
        )
    assert caught == len(CAUGHT) == sum(len(p.faults) for p in PROGRAMS)
    assert false == 0
