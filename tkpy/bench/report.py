"""Rows as people read them: a line while a run goes on, a table after it, published figures beside ours, two runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tkpy import published
from tkpy.bench.roofs import of_device
from tkpy.bench.rows import Row, good
from tkpy.bench.spec import LOWER_IS_BETTER, Benchmark

LEAST = 0.005  # a change below half a percent is none: clocks wander by more between two runs


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Columns as wide as their widest entry; columns `numbers` are aligned at the right, the last one is not padded."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def text(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(parts).rstrip()

    lines = [text(row) for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def number(value: float) -> str:
    """Four digits, no exponent where none is needed."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _value(row: Row) -> str:
    return f"{number(row['value'])} {row['unit']}"


def line(row: Row) -> str:
    """One row as it comes in."""
    if row["status"] == "counted":
        predicted = f", PREDICTED {_value(row['predicted'])} (a model)" if "predicted" in row else ""
        return f"{row['benchmark']}  counted: {row['counters']['issues']} warp instructions{predicted}"
    if row["status"] != "ok":
        return f"{row['benchmark']}  {row['candidate']}: {row['status']}: {row['reason']}"
    roof = f", {row['roof']['percent']:.0f} % of {row['roof']['name']}" if "roof" in row else ""
    label = f"  ({row['label']})" if "label" in row else ""
    return f"{row['benchmark']}  {row['candidate']}: {_value(row)} ± {row['spread']:.1%}{roof}{label}"


def listing(benchmarks: Iterable[Benchmark]) -> str:
    """Names, peers and the question of each benchmark."""
    lines = [[b.name, b.unit, ", ".join(p.name for p in b.peers), b.what] for b in benchmarks]
    return table(["benchmark", "unit", "peers", "what"], lines)


def machine_line(rows: Sequence[Row]) -> str:
    """Where the rows were measured, and at what clocks."""
    if not rows:
        return "no rows"
    machine = rows[-1].get("machine", {})
    names = ("device", "driver", "cuda", "torch", "nvcc", "tkpy", "commit")
    parts = [f"{name} {machine[name]}" if name != "device" else machine[name] for name in names if machine.get(name)]
    clocks = [r["condition"]["sm_mhz"] for r in rows if r.get("condition", {}).get("sm_mhz")]
    watts = [r["condition"]["power_w"] for r in rows if r.get("condition", {}).get("power_w")]
    if clocks:
        parts.append(f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz")
    if watts:
        parts.append(f"power up to {max(watts):.0f} W")
    return ", ".join(parts)


def _best_peer(rows: Sequence[Row], row: Row) -> Row | None:
    """The fastest peer on the same benchmark."""
    peers = [r for r in good(rows) if r["benchmark"] == row["benchmark"] and not r["ours"]]
    if not peers:
        return None
    return (min if row["unit"] in LOWER_IS_BETTER else max)(peers, key=lambda r: r["value"])


def speedup(row: Row, other: Row) -> float:
    """How many times faster `row` is than `other`: above 1 is better, whatever the unit."""
    ratio = row["value"] / other["value"]
    return 1 / ratio if row["unit"] in LOWER_IS_BETTER else ratio


def table_of(rows: Sequence[Row]) -> str:
    """Value, spread, share of the roof that binds and speed against the fastest peer; then what has no number."""
    body = []
    for row in good(rows):
        peer = _best_peer(rows, row) if row["ours"] else None
        roof = row.get("roof")
        warm = row.get("warm")
        body.append(
            [
                row["benchmark"],
                row["candidate"] + ("" if row["ours"] else " (peer)"),
                number(row["value"]),
                row["unit"],
                f"{row['spread']:.1%}",
                number(1e6 * row["seconds"]) if "seconds" in row else "",
                number(1e6 * warm["median"]) if warm else "",
                f"{roof['percent']:.0f} % {roof['name']}" if roof else "",
                f"{speedup(row, peer):.2f} x {peer['candidate']}" if peer else "",
            ]
        )
    head = ["benchmark", "candidate", "value", "unit", "spread", "us", "warm us", "of the roof", "against"]
    parts = [table(head, body, numbers=(2, 4, 5, 6))] if body else []
    if labels := sorted({row["label"].partition(":")[0] for row in good(rows) if "label" in row}):
        parts.append(f"{', '.join(labels)}s: PyTorch on this processor, no speed of a GPU kernel.")
    parts += _reasons([row for row in rows if row["status"] not in ("ok", "counted")])
    return "\n".join(parts) or "no rows"


def counters_of(rows: Sequence[Row]) -> str:
    """Counted rows, against the work's ideal cost, what is over a promise, and the rows that were refused."""
    counted = [row for row in rows if row["status"] == "counted"]
    body = [line for row in counted for line in (_kernel_lines(row) if "kernels" in row else [_micro_line(row)])]
    parts = [_without_empty(COUNTED, body, numbers=range(2, len(COUNTED)))] if body else []
    if predicted := next((row["predicted"] for row in rows if "predicted" in row), None):
        parts.append(f"PREDICTED: on {predicted['device']}, {predicted['label']}")
    parts += [f"MORE THAN PROMISED  {row['benchmark']}: {words}" for row in counted for words in row.get("broken", ())]
    return "\n".join([*parts, *_reasons([r for r in rows if r["status"] != "counted"])]) or "no rows"


COUNTED = (
    "counted in the emulator", "sizes", "warp instructions", "tensor flops / useful", "HBM bytes / needed",
    "requested / needed", "conflict cycles / product", "sectors / request", "wavefronts / request", "PREDICTED",
)  # fmt: skip


def _sizes(row: Row) -> str:
    return " ".join(f"{k}={v}" for k, v in row["shapes"].items())


def _micro_line(row: Row) -> list[str]:
    c = row["counters"]
    sectors = f"{c['global_sectors'] / c['global_requests']:.1f}" if c["global_requests"] else ""
    passes = f"{c['shared_wavefronts'] / c['shared_requests']:.2f}" if c["shared_requests"] else ""
    predicted = _value(row["predicted"]) if "predicted" in row else ""
    return [row["benchmark"], _sizes(row), str(c["issues"]), "", "", "", "", sectors, passes, predicted]


def _kernel_lines(row: Row) -> list[list[str]]:
    """The whole call, then each kernel: its part of the same numbers."""
    whole = {name: sum(k[name] for k in row["kernels"]) for name in row["kernels"][0] if name != "kernel"}
    lines = [[row["benchmark"], _sizes(row), str(row["counters"]["issues"]), *_ratios(whole, row), "", "", ""]]
    return lines + [["  " + k["kernel"], "", "", *_ratios(k, row), "", "", ""] for k in row["kernels"]]


def _ratios(work: dict[str, Any], row: Row) -> list[str]:
    flops = f"{work['tensor_flops'] / row['flops']:.3f}" if work["tensor_flops"] and row["flops"] else ""
    hbm, asked = (f"{work[n] / row['bytes']:.2f}" if row["bytes"] else "" for n in ("hbm_bytes", "requested_bytes"))
    conflicts = f"{work['conflicts'] / max(work['products'], 1):.3g}" if work["shared_requests"] else ""
    return [flops, hbm, asked, conflicts]


PAGE = """# Counters

Written by `tkpy bench ops --counters --page docs/COUNTERS.md`, in the emulator, from the sizes that each op registers
(`counted` in `tkpy/bench/specs/`): what the kernels do, not how fast they are.
`tests/kernels/test_counters.py` holds them to it.

- **tensor flops / useful**: flops of wgmma and mma that were issued, against the op's `flops()`. Promised at most 1.10.
- **HBM bytes / needed**: distinct 32-byte sectors that each launch reads and writes (an L2 that keeps all until the
  launch ends, and nothing longer), against the op's `bytes()`: every operand once, in a backward the gradients too.
  Promised at most 1.25.
- **requested / needed**: bytes that threads ask global memory for, re-reads included, whichever cache gives them,
  against the same.
- **conflict cycles / product**: passes through shared memory that bank conflicts cost in the main loops, for each wgmma
  of a warpgroup or mma of a warp; in a kernel without such, in all of it. Promised 0.
"""


def counters_page(rows: Sequence[Row]) -> str:
    """docs/COUNTERS.md."""
    counted = [row for row in rows if row["status"] == "counted" and "kernels" in row]
    lines = ["| case, and its kernels | sizes | " + " | ".join(COUNTED[3:7]) + " |", "|---|---|" + "---|" * 4]
    for row in counted:
        for name, sizes, _, *numbers in _kernel_lines(row):
            lines.append(f"| {name.replace('  ', '&emsp;')} | {sizes} | " + " | ".join(numbers[:4]) + " |")
    reasons = [f"- {row['benchmark']}: {row['promise']['why']}" for row in counted if row.get("promise", {}).get("why")]
    parts = [PAGE, "\n".join(lines)]
    if reasons:
        parts.append("\nWhere a case promises less, and why:\n\n" + "\n".join(reasons))
    return "\n".join(parts) + "\n"


def _without_empty(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """The table, less the columns in which nothing stands."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table(
        [head[i] for i in kept], [[row[i] for i in kept] for row in rows], [kept.index(i) for i in numbers if i in kept]
    )


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why rows have no number, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(f"{row['status']}  {row['candidate']}: {row['reason']}", []).append(row["benchmark"])
    return ["no number:", *(f"  {reason}  ({_some(names)})" for reason, names in reasons.items())] if reasons else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _clock(row: Row, default: float) -> float:
    measured = row.get("condition", {}).get("sm_mhz")
    return 1e6 * measured if measured else default


def against_published(rows: Sequence[Row]) -> str:
    """Our rows beside published figures of the same thing, carried to this device by SM count, clock or bandwidth."""
    known = published.figures()
    body: list[list[str]] = []
    for row in good(rows):
        device: Any = of_device(row["machine"].get("device", ""))
        for name in row.get("published", ()):
            figure = known[name]
            expected = ratio = "unknown device"
            if device is not None:
                carried = figure.on(device.multiprocessors, _clock(row, device.clock), device.bandwidth)
                expected, ratio = number(carried), f"{row['value'] / carried:.2f}"
            theirs = f"{number(figure.value)} {figure.unit}"
            where = f"{figure.device.id}, {figure.reference}, {figure.where}"
            body.append([row["benchmark"], row["candidate"], _value(row), theirs, expected, ratio, where])
    if not body:
        return "no row has a published figure to stand beside"
    head = ["benchmark", "candidate", "ours", "published", "scaled to here", "ours / scaled", "source"]
    return table(head, body, numbers=(2, 3, 4, 5))


def comparison(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Rows of two files that have the same benchmark and candidate, by how much they changed."""
    old = {(r["benchmark"], r["candidate"]): r for r in good(before)}
    new = {(r["benchmark"], r["candidate"]): r for r in good(after)}
    body = []
    for key in [k for k in old if k in new]:
        a, b = old[key], new[key]
        if a["unit"] != b["unit"]:
            body.append((1.0, [*key, _value(a), _value(b), "", "units differ"]))
            continue
        ratio = speedup(b, a)
        # Where the middle halves overlap, the difference is within what repetition shows.
        apart = (b["q1"] > a["q3"] or a["q1"] > b["q3"]) and abs(ratio - 1) > LEAST
        verdict = ("faster" if ratio > 1 else "slower") if apart else "within the spread"
        body.append((ratio, [*key, _value(a), _value(b), f"{ratio:.3f} x", verdict]))
    parts = [f"before: {machine_line(before)}", f"after:  {machine_line(after)}", ""]
    if body:
        lines = [cells for _, cells in sorted(body, key=lambda item: item[0])]
        parts.append(table(["benchmark", "candidate", "before", "after", "speed", ""], lines, numbers=(2, 3, 4)))
    else:
        parts.append("no benchmark has a number in both files")
    for title, only in (("only before", old.keys() - new.keys()), ("only after", new.keys() - old.keys())):
        if only:
            parts.append(f"{title}: " + _some([f"{b} {c}" for b, c in sorted(only)]))
    return "\n".join(parts)
