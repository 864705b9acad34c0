"""`tkpy bench`: micro, ops, models, compare, show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from tkpy import registry
from tkpy.bench import facts, report, rows, runner
from tkpy.bench.guard import LOST, DeviceLost, Guard
from tkpy.bench.op_rows import DTYPES, by_op, counted_rows, from_cases
from tkpy.bench.spec import Benchmark, discover, select

NO_GPU = (
    "no CUDA device here: no kernel of tkpy can be timed. `--counters` counts what the kernels do, in the emulator; "
    "`--cpu` times the peers on this processor, in rows that say so"
)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


RUN_OPTIONS = _options(
    click.option("--only", multiple=True, metavar="TEXT", help="Only rows whose name contains this (may be repeated)."),
    click.option("--list", "listed", is_flag=True, help="List the rows, run nothing."),
    click.option("--seconds", default=1.0, type=click.FloatRange(min=0), show_default=True, help="Timed per row."),
    click.option("--no-peers", is_flag=True, help="Only our own kernels."),
    click.option("--peers-alone", is_flag=True, help="Time peers also where no kernel of ours can serve."),
    click.option("--cpu", is_flag=True, help="Time the peers on this processor, in rows marked as CPU rows."),
    click.option(
        "--out",
        default=None,
        metavar="FILE|FOLDER",
        help="JSON lines are appended to this file, or to <suite>.jsonl of this folder; - for standard output."
        " [default: bench_output]",
    ),
    click.option("--resume", is_flag=True, help="Leave out what has a row in the output file already."),
    click.option(
        "--patience",
        default=600.0,
        type=click.FloatRange(min=0),
        show_default=True,
        help="Seconds after which a benchmark counts as hung: the process ends with status 3; --resume goes on.",
    ),
    click.option(
        "--plots",
        default=None,
        type=click.Path(file_okay=False, path_type=Path),
        help="Write a roofline and a bar chart, as PNG and SVG, to this folder.",
    ),
)


@click.group()
def bench() -> None:
    """Time kernels against their peers and the machine's roofs; JSON lines and tables."""


def _chosen(suite: str, only: tuple[str, ...], found: Iterable[Benchmark] | None = None) -> list[Benchmark]:
    benchmarks = [b for b in (discover() if found is None else found) if b.suite == suite]
    try:
        return select(benchmarks, only)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _device(cpu: bool) -> str:
    if torch.cuda.is_available():
        return "cpu" if cpu else "cuda"
    if not cpu:
        raise click.ClickException(NO_GPU)
    return "cpu"


def _echo(text: str, *, to_stdout: bool) -> None:
    click.echo(text, err=not to_stdout)


def _out(out: str | None, name: str) -> str:
    """The file to append to; a folder is one that is there, or that ends as one."""
    out = out or "bench_output/"
    return str(Path(out) / f"{name}.jsonl") if out.endswith("/") or Path(out).is_dir() else out


def _sink(out: str) -> rows.Sink:
    try:
        return rows.Sink(out)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise click.UsageError(f"--out needs a file that can be written, got {out} ({why})") from error


def _kept(find: Callable[[rows.Sink], Iterator[rows.Row]], out: str) -> list[rows.Row]:
    """Writes rows as they come, with a line for people; an interruption keeps those that are there."""
    kept: list[rows.Row] = []
    with _sink(out) as sink:
        try:
            for row in find(sink):
                sink.write(row)
                kept.append(row)
                if out != "-":
                    click.echo(report.line(row), err=True)
        except KeyboardInterrupt:
            click.echo(f"interrupted: {len(kept)} rows are kept in {out}", err=True)
            sys.exit(130)
        except DeviceLost as error:
            click.echo(f"{error}; {len(kept)} rows are kept in {out}, --resume goes on with the others", err=True)
            sys.exit(LOST)
    return kept


def _left(benchmarks: list[Benchmark], out: str) -> list[Benchmark]:
    """Those that have no row in the file yet but refusals, which come before the rest."""
    known = _read(Path(out)) if Path(out).is_file() else []  # a pipe would wait, a device has none
    done = {row["benchmark"] for row in known if row["status"] != "refused"}
    return [b for b in benchmarks if b.name not in done]


def _run(
    suite: str,
    benchmarks: list[Benchmark],
    *,
    listed: bool,
    seconds: float,
    no_peers: bool,
    peers_alone: bool,
    cpu: bool,
    out: str | None,
    resume: bool,
    patience: float,
    plots: Path | None,
    against: str | None = None,
    counters: bool = False,
    page: Path | None = None,
) -> None:
    """What `micro`, `ops` and `models` have in common."""
    if listed:
        click.echo(report.listing(benchmarks))
        return
    if not benchmarks:
        raise click.ClickException(f"there are no {suite} benchmarks in this build")
    if counters:
        if against is not None:
            raise click.UsageError("--against compares times, and --counters has none: bench/timing_check.py does that")
        _count(suite, benchmarks, out, page)
        return
    if page is not None:
        raise click.UsageError("--page holds what --counters counts")
    env, roofs = facts.environment(_device(cpu))
    out = _out(out, suite)
    alone = peers_alone or env.device.type != "cuda"
    if resume and not (benchmarks := _left(benchmarks, out)):
        click.echo(f"nothing is left: every row is in {out}")
        return

    def find(sink: rows.Sink) -> Iterator[rows.Row]:
        guard = Guard(sink, env, patience)
        return runner.run(benchmarks, env, seconds=seconds, peers=not no_peers, alone=alone, roofs=roofs, guard=guard)

    _finish(_kept(find, out), out, plots, against)


def _count(suite: str, benchmarks: list[Benchmark], out: str | None, page: Path | None) -> None:
    """`--counters`: no clock, no GPU."""
    env, _ = facts.environment("cpu")
    out = _out(out, f"{suite}-counters")
    kept = _kept(lambda sink: runner.count(benchmarks, env), out)
    _echo("\n" + report.counters_of(kept), to_stdout=out != "-")
    if page is not None:
        page.write_text(report.counters_page(kept))
    if broken := [row["benchmark"] for row in kept if row.get("broken")]:
        raise click.ClickException(f"more than promised: {', '.join(broken)}")
    bad = [row for row in kept if row["status"] in ("wrong", "failed")]
    if bad or all(row["status"] != "counted" for row in kept):
        raise click.ClickException(f"{len(bad)} of {len(kept)} rows failed" if bad else "no row could be counted")


def _finish(kept: list[rows.Row], out: str, plots: Path | None, against: str | None) -> None:
    to_stdout = out != "-"
    _echo("\n" + report.machine_line(kept), to_stdout=to_stdout)
    _echo(report.table_of(kept), to_stdout=to_stdout)
    if against is not None:
        _echo("\n" + report.against_published(kept), to_stdout=to_stdout)
    if to_stdout:
        click.echo(f"\n{len(kept)} rows in {out}")
    if plots is not None:
        _plot(kept, plots, to_stdout=to_stdout)
    wrong = [row for row in kept if row["status"] in ("wrong", "failed")]
    if wrong:
        raise click.ClickException(f"{len(wrong)} of {len(kept)} rows have no number: the gate or the call failed")
    if not rows.good(kept):
        raise click.ClickException("no row has a number: every candidate refused; the reasons stand in the table")


def _plot(kept: list[rows.Row], folder: Path, *, to_stdout: bool) -> None:
    try:
        from tkpy.bench import plots as drawing
    except ImportError as error:
        raise click.ClickException(f"--plots needs matplotlib: {error}") from error
    for path in drawing.draw(kept, folder):
        _echo(str(path), to_stdout=to_stdout)


COUNTERS = click.option(
    "--counters",
    is_flag=True,
    help="Run our kernels in the emulator and count; no time, no GPU; `micro` adds what a model of time predicts.",
)
AGAINST = click.option(
    "--against", type=click.Choice(["published"]), default=None, help="Published figures, scaled to here, beside ours."
)


@bench.command()
@click.option("--op", "ops", multiple=True, help="Only this op (may be repeated).")
@click.option("--shape", "shapes", multiple=True, help="Other sizes for the one --op: 4096x4096x512, or m=8,n=8,k=8.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), help="Only this dtype.")
@click.option(
    "--page",
    default=None,
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --counters: write the table to this page (docs/COUNTERS.md).",
)
@COUNTERS
@AGAINST
@RUN_OPTIONS
def ops(
    ops: tuple[str, ...], shapes: tuple[str, ...], dtypes: tuple[str, ...], only: tuple[str, ...], **options: Any
) -> None:
    """Time the ops' kernels against their peers."""
    unknown = sorted(set(ops) - set(registry.ops()))
    if unknown:
        raise click.UsageError(f"no op {', '.join(unknown)}; the ops are {', '.join(registry.ops())}")
    try:
        chosen = _op_benchmarks(ops, shapes, dtypes, counters=options["counters"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _run("ops", _chosen("ops", only, chosen), **options)


def _op_benchmarks(
    ops: tuple[str, ...], shapes: tuple[str, ...], dtypes: tuple[str, ...], counters: bool = False
) -> list[Benchmark]:
    specs = by_op()
    if shapes:
        if len(ops) != 1:
            raise ValueError("--shape needs exactly one --op")
        if ops[0] not in specs:
            raise ValueError(f"{ops[0]} takes no --shape; those that do are {', '.join(specs)}")
        spec = specs[ops[0]]
        return [spec.row(spec.parse(shape), dtype) for shape in shapes for dtype in dtypes or spec.dtypes]
    if counters:
        found = counted_rows()
    else:
        found = [b for b in discover() if b.suite == "ops"]
    covered = {b.group for b in found}
    for name, op in registry.ops().items():
        if name not in covered:
            for dtype in dtypes or ("bfloat16",):
                found += from_cases(op, dtype=DTYPES[dtype])
    return [b for b in found if (not ops or b.group in ops) and (not dtypes or b.dtype in dtypes)]


@bench.command()
@COUNTERS
@AGAINST
@RUN_OPTIONS
def micro(only: tuple[str, ...], **options: Any) -> None:
    """Time the microbenchmarks: one question about the machine each."""
    _run("micro", _chosen("micro", only), **options)


@bench.command()
@RUN_OPTIONS
def models(only: tuple[str, ...], **options: Any) -> None:
    """Time whole models against the same models in PyTorch's own kernels."""
    _run("models", _chosen("models", only), **options)


def _read(path: Path) -> list[rows.Row]:
    try:
        return rows.read(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@bench.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
def compare(before: Path, after: Path) -> None:
    """What changed from one file of rows to another; a difference counts if it exceeds the spread of both."""
    click.echo(report.comparison(_read(before), _read(after)))


@bench.command()
@click.argument("file", type=_FILE)
@AGAINST
@click.option("--plots", default=None, type=click.Path(file_okay=False, path_type=Path), help="Write plots here.")
def show(file: Path, against: str | None, plots: Path | None) -> None:
    """The table (and plots) of a file of rows."""
    _finish(_read(file), str(file), plots, against)
