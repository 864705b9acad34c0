"""Kernels with seeded faults: a suite is a table of edits of an op's sources, and calls that must give each away.

A file makes a `Suite` and names its two tests:

    test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(...).tests()

The faults of a suite go through two runs of nvcc, one for each process of `make test`, and none of ptxas, each in a
namespace of its own; the right kernels go through both. A test puts the faulty entries into a folder beside the right
ones of the same modules, launches the calls there in the emulator, and takes a finding, a deadlock or a wrong result
for an answer.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kernel_cases import CACHE, ROOT

import tkpy

KERNELS = ROOT / "csrc/kernels"
ENTRY = ".visible .entry "
PARTS = 2  # a fault is compiled with every second of the others


@dataclass(frozen=True)
class Fault:
    """`old` in a unit's sources replaced by `new`."""

    what: str
    old: str
    new: str
    kernel: str = ""  # the unit that shows it; the first of its suite where none is named
    codes: str = ""  # findings, one of which must be what shows it; anything may where none is named

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Entry:
    """One kernel: the name that the launcher asks its module for, and how it is made of the sources: where `run` is
    empty, it stands in them."""

    name: str
    module: str
    params: str = ""  # the type of its parameter block, `p`
    run: str = ""  # what it does with it
    bounds: str = "128"


@dataclass(frozen=True)
class Unit:
    """What a fault is compiled into: files below csrc/kernels, each up to where it instantiates, and their entries."""

    files: Sequence[str]
    entries: Sequence[Entry]
    given: Sequence[str] = ()  # files before them, where nothing is seeded


@dataclass(eq=False)
class Suite:
    """The faults of an op, and what shows them."""

    name: str
    units: dict[str, Unit]
    faults: Sequence[Fault]
    calls: Callable[[str], Sequence[Any]]  # of a unit
    wrong: Callable[[Any], str]  # what is wrong with the result of a call; findings raise
    right: Sequence[str] = ()  # sources below csrc/kernels of the modules that the calls need besides
    seeds: int = 3
    right_seeds: int = 2
    multiprocessors: int = 132
    arrange: Callable[[Any, Fault], None] = lambda monkeypatch, fault: None  # sizes that suit small calls
    tried: Sequence[str] = ()  # the units whose right kernels are tried; all where none is named
    place: Callable[[Any, Path, int, int], None] | None = None  # takes calls elsewhere than `on_machine`, as that does

    def __post_init__(self) -> None:
        first = next(iter(self.units))
        self.all = [f if f.kernel else replace(f, kernel=first) for f in self.faults]
        self.all += [Fault("none", "", "", unit) for unit in self.units]
        unknown = {fault.kernel for fault in self.all} - set(self.units)
        assert not unknown, f"{self.name}: faults of units that are not there: {sorted(unknown)}"
        self.calls = functools.cache(self.calls)

    def tests(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """That every fault is caught; that the right kernels are not accused."""
        count = len(self.faults)

        @pytest.mark.parametrize("number", range(count), ids=self.id)
        def caught(number, compile_kernel, toolchain, kernel_folder, tmp_path, monkeypatch):
            self.fill(number, compile_kernel, toolchain, kernel_folder, tmp_path)
            what = self.found(number, tmp_path, monkeypatch, range(self.seeds))
            print(what)
            assert what, f"{self.all[number]}: nothing showed it"

        right = [i for i in range(count, len(self.all)) if self.all[i].kernel in (self.tried or self.units)]

        @pytest.mark.parametrize("number", right, ids=self.id)
        def accused(number, compile_kernel, toolchain, kernel_folder, tmp_path, monkeypatch):
            self.fill(number, compile_kernel, toolchain, kernel_folder, tmp_path)
            what = self.found(number, tmp_path, monkeypatch, range(self.right_seeds))
            assert what == "", what

        return caught, accused

    def id(self, number: int) -> str:
        fault = self.all[number]
        return f"{fault.kernel}: {fault}" if len(self.units) > 1 else str(fault)

    def found(self, number: int, folder: Path, monkeypatch, seeds: Sequence[int]) -> str:
        """What gives the fault away: the first finding or wrong result."""
        from attention_runs import on_machine

        fault, place = self.all[number], self.place or on_machine
        self.arrange(monkeypatch, fault)
        for seed in seeds:
            place(monkeypatch, folder, seed, self.multiprocessors)
            for call in self.calls(fault.kernel):
                try:
                    what = self.wrong(call)
                except tkpy.InternalError as error:
                    what = str(error)
                if what and (not fault.codes or any(code in what for code in fault.codes.split())):
                    return what
        return ""

    def source(self, number: int) -> str:
        """The kernels with the fault, in a namespace of their own."""
        fault = self.all[number]
        unit = self.units[fault.kernel]
        own = "".join(map(text_of, unit.files))
        assert fault.old in own, f"{fault}: the source has changed"
        text = "".join(map(text_of, unit.given)) + own.replace(fault.old, fault.new, 1)
        kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
        for entry in unit.entries:
            if not entry.run:
                kept = [re.sub(rf"\b{entry.name}\(", f"{entry.name}_{number}(", line) for line in kept]
        entries = (
            f'extern "C" __global__ void __launch_bounds__({entry.bounds}) {entry.name}_{number}('
            f"const __grid_constant__ {entry.params} p) {{ {entry.run}; }}\n"
            for entry in unit.entries
            if entry.run
        )
        return "\n".join([f"namespace seeded_{number} {{", *kept, *entries, "}\n"])

    def fill(self, number: int, compile_kernel, toolchain, kernel_folder, folder: Path) -> None:
        """The right modules, and those with the faulty entries, or that nothing else makes, over them."""
        from attention_runs import gather

        gather(folder, [kernel_folder(f"kernels/{source}") for source in self.right])
        fault = self.all[number]
        faulty = {entry.name: number for entry in self.units[fault.kernel].entries}
        modules: dict[str, dict[str, str]] = {}
        touched = set()
        for control in range(len(self.faults), len(self.all)):
            for entry in self.units[self.all[control].kernel].entries:
                seeded = f"{entry.name}_{faulty.get(entry.name, control)}"
                modules.setdefault(entry.module, {}).setdefault(entry.name, seeded)
                if entry.name in faulty:
                    touched.add(entry.module)
        text = self.ptx(number % PARTS, compile_kernel, toolchain)
        for name, entries in modules.items():
            if name in touched or not (folder / f"{name}.ptx").exists():
                write_module(folder, name, text.module({seeded: entry for entry, seeded in entries.items()}))

    @functools.cache  # noqa: B019  (a suite lives as long as its tests)
    def ptx(self, part: int, compile_kernel, toolchain) -> Ptx:
        files = {name for unit in self.units.values() for name in (*unit.given, *unit.files)}
        includes = {'#include "tk/tk.cuh"\n'}
        includes |= {line for name in files for line in re.findall(r'^#include "tk/.*\n', text_of(name), re.MULTILINE)}
        controls = range(len(self.faults), len(self.all))
        parts = [
            "".join(sorted(includes)) + "".join(map(self.source, (*range(i, len(self.faults), PARTS), *controls)))
            for i in range(PARTS)
        ]
        return Ptx(compile_part(compile_kernel, toolchain, f"{self.name}_faults", parts, part))


def text_of(name: str) -> str:
    """A file below csrc/kernels, up to where it instantiates."""
    return (KERNELS / name).read_text().split("#define TKPY_")[0]


class Ptx:
    """The text of a PTX module, by its kernels."""

    def __init__(self, text: str):
        self.head, *parts = text.split(ENTRY)
        ends = [part.rindex("\n}\n") + 3 for part in parts]
        self.entries = {part[: part.index("(")]: part[:end] for part, end in zip(parts, ends, strict=True)}
        self.tail = parts[-1][ends[-1] :]  # .file, .section

    def module(self, names: dict[str, str]) -> str:
        """The module with some kernels, each under another name."""
        bodies = (re.sub(rf"\b{old}(?=\(|_param)", new, self.entries[old]) for old, new in names.items())
        return self.head + "".join(ENTRY + body for body in bodies) + self.tail


def headers(text: str, folder: Path) -> Iterator[Path]:
    """Every header of ours that the text includes, and those that they include."""
    for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        path = next(path for path in (folder / name, ROOT / "csrc" / name) if path.exists())
        yield path.resolve()
        yield from headers(path.read_text(), path.parent)


def compile_part(compile_kernel, toolchain, name: str, parts: Sequence[str], wanted: int) -> str:
    """The PTX of one part; while another process compiles it, a part is compiled that no process does."""
    paths = [cached(toolchain, f"{name}_{i}", whole) for i, whole in enumerate(parts)]
    for i in sorted(range(len(parts)), key=lambda i: i != wanted):
        if not paths[wanted].exists():
            compile_text(compile_kernel, toolchain, paths[i], parts[i], wait=False)
    compile_text(compile_kernel, toolchain, paths[wanted], parts[wanted], wait=True)
    return paths[wanted].read_text()


def cached(toolchain, name: str, whole: str) -> Path:
    """Where the PTX of `whole` is kept."""
    key = hashlib.sha256((toolchain.version + whole).encode())
    for header in sorted(set(headers(whole, ROOT / "csrc"))):
        key.update(header.read_bytes())
    return CACHE / f"{name}-{key.hexdigest()[:16]}.ptx"


def compile_text(compile_kernel, toolchain, ptx: Path, whole: str, wait: bool) -> None:
    """Makes `ptx`: no ptxas, and no nvcc where nothing has changed, or where another process is at it: then it is there
    on return only if we wait."""
    ptx.parent.mkdir(parents=True, exist_ok=True)
    with open(ptx.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if ptx.exists():
            return
        with tempfile.TemporaryDirectory(dir=ptx.parent) as scratch:
            path, made = Path(scratch) / f"{ptx.stem}.cu", Path(scratch) / ptx.name
            path.write_text(whole)
            command = [toolchain.nvcc, *compile_kernel.NVCC_FLAGS, f"-I{ROOT / 'csrc'}", path, "-o", made]
            subprocess.run(list(map(str, command)), check=True)
            os.replace(made, ptx)


def write_module(folder: Path, name: str, text: str) -> None:
    for suffix, content in ((".ptx", text), (".cubin", ""), (".json", "{}")):
        path = folder / f"{name}{suffix}"
        path.unlink(missing_ok=True)  # it may be a link to a file of the build
        path.write_text(content)


def first_wrong(results) -> str:
    """What the first of conformance's results that is wrong says."""
    return next((str(result) for result in results if not result.comparison), "")
