"""Rows: what a benchmark run leaves behind, as JSON lines; each is written and flushed as soon as it is known.

schema      1
status      "ok" | "counted" | "wrong" (the gate failed) | "refused" (cannot serve this) | "failed" (raised)
suite, benchmark, group, what, shapes, dtype, inputs, flops, bytes       from the spec
candidate   "cuda", "triton", or a peer's name;  ours: whether it is tkpy's own kernel
reason      why there is no number, unless "ok"
value, unit, q1, q3, spread, samples                                     of "ok" rows, in the unit
seconds     the median of one call (absent for kernels that time themselves)
warm        {median, q1, q3} seconds of one of many calls in a row, for short calls
roof        {name, percent}: the bound of the machine that binds, and how near the row is to it
gate        {error, tolerance}: what the comparison said in this process, just before the timing
predicted   of "counted" rows, {value, unit, device, binding, label}: what a model of time says; no measurement
counters    of "counted" rows: what the emulator counted; they hold no time
timing      how the time was taken;  label: "CPU row ..." where the row is no speed of a GPU kernel
machine     device, driver, clocks, commit, versions;  condition: clocks, power, temperature just after the row
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]
SCHEMA = 1
STATUSES = ("ok", "counted", "wrong", "refused", "failed")
NEEDED = ("schema", "status", "suite", "benchmark", "candidate", "ours")


class Sink:
    """Appends rows to a file (or to standard output, for "-"), each on disk before the next is measured; what is no
    regular file, such as /dev/null or a pipe, just gets them."""

    def __init__(self, path: Path | str):
        self.path = str(path)
        self._file: TextIO = sys.stdout
        if self.path != "-":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_file():
                _drop_broken_end(Path(path))
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._on_disk = self._file is not sys.stdout and Path(path).is_file()

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._on_disk:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not sys.stdout:
            self._file.close()


def _drop_broken_end(path: Path) -> None:
    """Cuts off a last line that an interruption left without its end, so that the next row has a line of its own."""
    with open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def read(path: Path | str) -> list[Row]:
    """The rows of a file, the last one of each (benchmark, candidate).

    ValueError names the line that is no row. A last line without its end was cut off by an interruption: it is left
    out.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows: dict[tuple[str, str], Row] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        missing = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}, line {number} is no benchmark row: it has no {', '.join(missing)}")
        if row["schema"] != SCHEMA or row["status"] not in STATUSES:
            raise ValueError(
                f"{path}, line {number} is no row of schema {SCHEMA}: "
                f"schema {row['schema']!r}, status {row['status']!r}"
            )
        if row["status"] == "ok" and not isinstance(row.get("value"), int | float):
            raise ValueError(f"{path}, line {number} is no benchmark row: status ok, but no value")
        rows[row["benchmark"], row["candidate"]] = row
    return list(rows.values())


def good(rows: Iterable[Row]) -> list[Row]:
    """The rows that hold a number."""
    return [row for row in rows if row["status"] == "ok"]
