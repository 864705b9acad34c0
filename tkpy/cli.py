"""The `tkpy` command: what can run here, whether it is right, and the demo."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import torch

import tkpy
from tkpy import conformance, registry
from tkpy.text import table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def machine() -> str:
    """One line on the machine: versions, processor, device."""
    gpu = "no CUDA device"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    threads = torch.get_num_threads()
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"tkpy {tkpy.__version__}, {python}, {platform.machine()} with {threads} threads, {gpu}"


def doctor_text() -> str:
    """What this machine can run: every op x backend, and each refusal with its reason once."""
    matrix = tkpy.support_matrix()
    rows, reasons = [], dict[str, list[str]]()
    for name, explanation in matrix.items():
        marks = []
        for backend, refusals in explanation.refusals.items():
            marks.append("auto" if backend == explanation.chosen else "-" if refusals else "yes")
            for refusal in refusals:
                text = str(refusal).replace(f"'{name}'", "the op")
                reasons.setdefault(f"{backend}  {text}", []).append(name)
        rows.append([name, *marks, ""])
    why = [
        f"  {text}  ({'every op' if len(names) == len(matrix) else ', '.join(names)})"
        for text, names in reasons.items()
    ]
    legend = "auto: chosen without being named.  yes: serves when named (backend=...).  -: refuses."
    return "\n".join([table(["op", *tkpy.BACKENDS, ""], rows), legend, "", "refusals:", *why])


def check_rows(
    ops: Iterable[str], backends: Iterable[str], dtype: torch.dtype, device: str, *, first_only: bool
) -> tuple[list[list[str]], int]:
    """Rows of worst error per op, backend and case against the float64 reference; and the number that failed."""
    rows, failed = [], 0
    for name in ops:
        op = registry.get(name)
        cases = [case for case in op.cases if not case.bench]
        for backend in backends:
            for case in cases[:1] if first_only else cases:
                row = _row(op, case, backend, dtype, device)
                if row is None:
                    continue
                rows.append(row)
                failed += row[-1] != "ok"
    return rows, failed


def _row(op: registry.Op, case: registry.Case, backend: str, dtype: torch.dtype, device: str) -> list[str] | None:
    try:
        results = _results(op, case, backend, dtype, device)
    except (tkpy.InternalError, RuntimeError) as error:  # such as a kernel that faults: other cases are told of too
        what = str(error).partition("\n")[0]
        return [op.name, case.name, backend, _short(dtype), *("-" * 3), f"FAIL {type(error).__name__}: {what}"]
    if not results:
        return None
    worst = max(results, key=lambda r: (not r.comparison, r.comparison.relative))
    comparison = worst.comparison
    numbers = (f"{comparison.relative:.1e}", f"{comparison.tolerance:.0e}", f"{1e3 * worst.seconds:.2f}")
    verdict = "ok" if comparison else f"FAIL {worst.what}: {comparison.reason}"
    return [op.name, case.name, backend, _short(results[0].dtype), *numbers, verdict]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _results(
    op: registry.Op, case: registry.Case, backend: str, dtype: torch.dtype, device: str
) -> list[conformance.Result]:
    """The comparisons in `dtype`, or in bfloat16 where the backend has no float32, without gradients where it has no
    backward; none where it refuses all of them."""
    for tried in dict.fromkeys((dtype, torch.bfloat16) if dtype == torch.float32 else (dtype,)):
        for grad in (None, False):
            try:
                return list(conformance.check_case(op, case, backend=backend, dtype=tried, device=device, grad=grad))
            except tkpy.Unsupported:
                continue
    return []


CHECK_HEAD = ["op", "case", "backend", "dtype", "error", "tolerance", "ms", ""]


def _device(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str:
    """That of `--device`, which must be here; a GPU if there is one where none is named."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    there = [*(["cuda"] if gpus else []), "cpu", *gpus]
    if name is not None and name not in there:
        raise click.BadParameter(f"no device {name!r} here; there are {', '.join(there)}")
    return name or there[0]


def _folder(ctx: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """Refuses before the run what could not be written after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"no folder {path} can be made: {error.strerror}") from error
    return path


#: Commands that live beside what they run, imported when asked for: a checkout may have no compiled part.
ELSEWHERE = {
    "bench": ("tkpy.bench.command", "bench"),
    "emulate": ("tkpy.emulator.command", "emulate"),
    "explain-model": ("tkpy.explain_model", "command"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        try:
            module, command = ELSEWHERE[cmd_name]
            return getattr(importlib.import_module(module), command)
        except ImportError as error:
            reason = str(error)
            return click.Command(cmd_name, callback=lambda: _refuse(reason), help=f"Not here: {reason}")


def _refuse(reason: str) -> None:
    raise click.ClickException(reason)


@click.group(cls=_Commands)
@click.version_option(tkpy.__version__, prog_name="tkpy")
def main() -> None:
    """Hopper tile kernels that anyone can test, torch ops on them, and long-sequence architectures."""


@main.command()
def doctor() -> None:
    """Show what this machine can run, and why not the rest."""
    click.echo(machine() + "\n")
    click.echo(doctor_text())


@main.command()
@click.option("--op", "ops", multiple=True, help="Only this op (may be repeated).")
@click.option("--backend", "backends", multiple=True, type=click.Choice(registry.BACKENDS), help="Only this backend.")
@click.option("--dtype", default="float32", type=click.Choice(list(DTYPES)), show_default=True)
@click.option("--all-cases", is_flag=True, help="Every case of the op's table, not only the first.")
@click.option("--device", callback=_device, help="cpu or cuda; a GPU if there is one by default.")
def check(ops: tuple[str, ...], backends: tuple[str, ...], dtype: str, all_cases: bool, device: str) -> None:
    """Check ops, with gradients, against their float64 reference on every backend that runs here."""
    unknown = sorted(set(ops) - set(registry.ops()))
    if unknown:
        raise click.UsageError(f"no op {', '.join(unknown)}; the ops are {', '.join(registry.ops())}")
    rows, failed = check_rows(
        ops or registry.ops(),
        backends or [b for b in registry.BACKENDS if b != "reference"],
        DTYPES[dtype],
        device,
        first_only=not all_cases,
    )
    if not rows:
        raise click.ClickException("nothing ran: every backend asked for refuses; `tkpy doctor` says why")
    click.echo(table(CHECK_HEAD, rows))
    click.echo(f"\n{len(rows) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--steps", default=None, type=click.IntRange(min=1), help="Training steps (the default fits 4 minutes).")
@click.option(
    "--out",
    default="demo_output",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_folder,
    show_default=True,
)
@click.option("--device", callback=_device, help="cpu or cuda; a GPU if there is one by default.")
@click.option("--seed", default=0, show_default=True)
def demo(steps: int | None, out: Path, device: str, seed: int) -> None:
    """Show what runs here, check every op, then train a small StripedHyena on the genome of phage lambda."""
    from tkpy import demo as job  # the models and plots are imported only when they are used

    click.echo(machine() + "\n\n1. What this machine can run\n")
    click.echo(doctor_text())
    click.echo("\n2. Every op against its float64 reference, forward and gradients\n")
    backends = [b for b in registry.BACKENDS if b != "reference"]
    rows, failed = check_rows(registry.ops(), backends, torch.float32, device, first_only=True)
    click.echo(table(CHECK_HEAD, rows))
    if failed:
        raise click.ClickException(f"{failed} of {len(rows)} checks failed")
    click.echo("\n3. A StripedHyena on the genome of phage lambda\n")
    job.run(device=torch.device(device), out=out, seed=seed, steps=steps)
