"""Pictures of rows: a roofline, and bars of ours beside the peers; PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tkpy.bench.report import machine_line
from tkpy.bench.roofs import Roofs, of_device
from tkpy.bench.rows import Row, good
from tkpy.bench.spec import LOWER_IS_BETTER

MOST_BARS = 40  # benchmarks in one chart


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes what the rows allow, and returns the files: a roofline where flops and bytes are known, bars by group."""
    folder.mkdir(parents=True, exist_ok=True)
    timed = good(rows)
    written: list[Path] = []
    on_roofline = [r for r in timed if r.get("seconds") and r["flops"] and r["bytes"]]
    if on_roofline:
        written += _save(roofline(on_roofline), folder / "roofline")
    for (group, unit), figure in bars(timed):
        name = f"bars_{group}_{unit}".replace("/", "_per_").replace(" ", "_")
        written += _save(figure, folder / name)
    return written


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    for kind in ("png", "svg"):
        path = stem.with_name(f"{stem.name}.{kind}")
        figure.savefig(path, dpi=120)
        yield path


def roofline(rows: Sequence[Row]) -> Figure:
    """Rate against arithmetic intensity, ours filled and peers hollow, under the roofs of the rows' device."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes: Any = figure.subplots()
    names = list(dict.fromkeys((r["candidate"], r["ours"]) for r in rows))
    for i, (name, ours) in enumerate(names):
        mine = [r for r in rows if r["candidate"] == name]
        x = [r["flops"] / r["bytes"] for r in mine]
        y = [r["flops"] / r["seconds"] / 1e12 for r in mine]
        color = f"C{i}"
        axes.scatter(x, y, label=name, edgecolors=color, facecolors=color if ours else "none", zorder=3)
    roofs = of_device(rows[-1]["machine"].get("device", ""))
    if roofs is not None:
        _draw_roofs(axes, roofs, rows)
    axes.set(xscale="log", yscale="log", xlabel="flops per byte moved at best", ylabel="TFLOP/s")
    axes.set_title(machine_line(rows), fontsize="small")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    return figure


def _draw_roofs(axes: Any, roofs: Roofs, rows: Sequence[Row]) -> None:
    intensities = [r["flops"] / r["bytes"] for r in rows]
    peaks = {roofs.flops[r["dtype"]] for r in rows if r["dtype"] in roofs.flops}
    for peak in sorted(peaks):
        low, high = min(intensities) / 2, max(*intensities, peak / roofs.bandwidth) * 2
        corner = peak / roofs.bandwidth
        xs = [low, corner, high]
        axes.plot(xs, [min(peak, roofs.bandwidth * x) / 1e12 for x in xs], color="0.4", linewidth=1, zorder=1)
        names = sorted({r["dtype"] for r in rows if roofs.flops.get(r["dtype"]) == peak})
        axes.annotate(f"{', '.join(names)}: {peak / 1e12:.0f} TFLOP/s", (high, peak / 1e12), ha="right", va="bottom")
    axes.annotate(f"HBM: {roofs.bandwidth / 1e9:.0f} GB/s", (corner, peak / 1e12), ha="right", va="top", color="0.4")


def bars(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], Figure]]:
    """One chart for each group and unit: a cluster of bars a benchmark, whiskers from quartile to quartile."""
    for group, unit in dict.fromkeys((r["group"], r["unit"]) for r in rows):
        mine = [r for r in rows if (r["group"], r["unit"]) == (group, unit)]
        names = list(dict.fromkeys(r["benchmark"] for r in mine))[:MOST_BARS]
        candidates = list(dict.fromkeys(r["candidate"] for r in mine))
        value = {(r["benchmark"], r["candidate"]): r for r in mine}
        figure = Figure(figsize=(10, 1.2 + 0.22 * len(names) * (len(candidates) + 1)), layout="constrained")
        axes: Any = figure.subplots()
        height = 1 / (len(candidates) + 1)
        for i, candidate in enumerate(candidates):
            there = [(at, value[name, candidate]) for at, name in enumerate(names) if (name, candidate) in value]
            low = [max(r["value"] - r["q1"], 0.0) for _, r in there]
            high = [max(r["q3"] - r["value"], 0.0) for _, r in there]
            axes.barh(
                [at + i * height for at, _ in there],
                [r["value"] for _, r in there],
                height,
                xerr=[low, high],
                label=candidate,
                hatch=None if there and there[0][1]["ours"] else "//",
            )
        axes.set_yticks([at + height * (len(candidates) - 1) / 2 for at in range(len(names))], names, fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit}, {'less' if unit in LOWER_IS_BETTER else 'more'} is better; hatched: peers")
        axes.set_title(machine_line(mine), fontsize="small")
        axes.legend(fontsize="small")
        yield (group, unit), figure
