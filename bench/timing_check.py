"""How far the model of time is from published measurements: the error table of docs/timing.md.

    python bench/timing_check.py [TEXT..]        rows whose name contains one of the texts; all without any

Every microbenchmark (csrc/microbench) that reproduces a published figure runs in the emulator, and
`tkpy.emulator.timing` predicts it on the device that was measured (tkpy/bench/emulated.py). Rows marked "given" are
those whose figure the model takes as a rate or latency: they show that it arrives at the other end; the others are
predictions. No number of the model was fitted to any of these rows.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tkpy import published
from tkpy.bench import emulated
from tkpy.bench.micro import every_micro
from tkpy.bench.report import number, table
from tkpy.emulator.timing.rates import GIVEN


@dataclass(frozen=True)
class Row:
    """A microbenchmark, a published figure of the same thing, and the model's number."""

    name: str
    figure: published.Figure
    predicted: float

    @property
    def given(self) -> bool:
        return self.figure.id in GIVEN

    @property
    def error(self) -> float:
        return self.predicted / self.figure.value - 1


def rows(patterns: list[str]) -> Iterator[Row]:
    """The table, in the order of the microbenchmarks; of those whose name contains a pattern."""
    for micro in every_micro():
        if not micro.modelled or not micro.published or (patterns and not any(p in micro.name for p in patterns)):
            continue
        figures = [published.figures()[name] for name in micro.published]
        value, _ = emulated.predict(micro, figures[0].device.id)
        yield from (Row(micro.name, figure, value) for figure in figures)


def main() -> None:
    found = list(rows(sys.argv[1:]))
    body = []
    for row in found:
        numbers = (number(row.figure.value), number(row.predicted), row.figure.unit, f"{row.error:+.1%}")
        body.append([row.name, row.figure.id, *numbers, "given" if row.given else "predicted"])
    print("predictions of a model (tkpy.emulator.timing) beside published measurements of others, on their devices")
    print(table(["microbenchmark", "published figure", "published", "model", "unit", "error", ""], body, (2, 3, 5)))
    for kind in ("given", "predicted"):
        errors = [abs(row.error) for row in found if row.given == (kind == "given")]
        if errors:
            middle, largest = statistics.median(errors), max(errors)
            print(f"{kind}: {len(errors)} figures, error {middle:.1%} in the median, {largest:.0%} at most")


if __name__ == "__main__":
    main()
