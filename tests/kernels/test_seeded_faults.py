"""Test processes that want a suite's faults at the same time share the work of nvcc."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import seeded_faults

PARTS = ["// the first part\n", "// the second part\n"]
NVCC = """#!{python}
import sys, time
with open({log!r}, "a") as log:
    log.write(open(sys.argv[-3]).read())
time.sleep(1)
open(sys.argv[-1], "w").write("PTX of " + open(sys.argv[-3]).read())
"""
ASK = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = {path!r}
import seeded_faults
seeded_faults.CACHE = Path({cache!r})
toolchain = SimpleNamespace(version="none", nvcc={nvcc!r})
print(seeded_faults.compile_part(SimpleNamespace(NVCC_FLAGS=()), toolchain, "faults", {parts!r}, {wanted}), end="")
"""


def test_no_part_is_compiled_twice(tmp_path):
    log, nvcc = tmp_path / "log", tmp_path / "nvcc"
    nvcc.write_text(NVCC.format(python=sys.executable, log=str(log)))
    nvcc.chmod(0o755)
    given = {"path": sys.path, "cache": str(tmp_path / "cache"), "nvcc": str(nvcc), "parts": PARTS}
    asked = [
        subprocess.Popen([sys.executable, "-c", ASK.format(**given, wanted=wanted)], stdout=subprocess.PIPE, text=True)
        for wanted in (0, 0, 1)
    ]
    assert [process.communicate()[0] for process in asked] == [f"PTX of {PARTS[i]}" for i in (0, 0, 1)]
    assert sorted(log.read_text().splitlines(keepends=True)) == sorted(PARTS)


def test_who_finds_a_part_being_compiled_compiles_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(seeded_faults, "CACHE", tmp_path)
    toolchain = SimpleNamespace(version="none", nvcc="nvcc")
    made: list[tuple[str, bool]] = []

    def compile_text(compile_kernel, toolchain, ptx: Path, whole: str, wait: bool) -> None:
        made.append((whole, wait))
        if wait or whole == PARTS[0]:  # the second is being compiled by another process, and done when we ask again
            ptx.write_text(whole)

    monkeypatch.setattr(seeded_faults, "compile_text", compile_text)
    assert seeded_faults.compile_part(None, toolchain, "faults", PARTS, 1) == PARTS[1]
    assert made == [(PARTS[1], False), (PARTS[0], False), (PARTS[1], True)]
