"""`tkpy emulate`: run and check a kernel of a PTX file without writing Python."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from tkpy.emulator import timing
from tkpy.emulator.module import CHECKS, Function, Module, load
from tkpy.emulator.run import COUNTS, Finding, KernelError, Run
from tkpy.emulator.specs import ARGUMENT_HELP, Launch, read_launch


def triple(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`4` or `4,2,1`."""
    if value is None:
        return None
    if not re.fullmatch(r"\d+(,\d+){0,2}", value):
        raise click.BadParameter(f"{value!r} is not one to three numbers, such as 4 or 4,2,1")
    return tuple(int(n) for n in value.split(","))


def check_set(context: click.Context, parameter: click.Parameter, value: str) -> str | list[str]:
    """`--checks` as `Module.launch` takes it."""
    if value in ("all", "none"):
        return value
    codes = value.split(",")
    unknown = [c for c in codes if c not in CHECKS]
    if unknown:
        raise click.BadParameter(f"no check {', '.join(unknown)}; it may be all, none or some of {', '.join(CHECKS)}")
    return codes


def choose(module: Module, name: str | None) -> Function:
    """The kernel that `name` says, or the only one."""
    if name is None:
        if len(module.kernels) != 1:
            names = ", ".join(sorted(module.kernels)) or "none"
            raise click.UsageError(f"name one of the file's kernels with --kernel: {names}")
        return next(iter(module.kernels.values()))
    try:
        return module.kernel(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def as_dict(finding: Finding, seed: int) -> dict[str, Any]:
    """A finding for the JSON file."""
    site = finding.site
    return {
        "code": finding.code, "message": finding.message, "times": finding.times, "ptx_line": site.ptx_line,
        "instruction": site.text, "source": site.source, "cta": site.cta, "warp": site.warp, "lane": site.lane,
        "seed": seed, "text": str(finding),
    }  # fmt: skip


def run_seeds(
    module: Module, function: Function, launch: Launch, seeds: int, first: int, how: dict[str, Any]
) -> tuple[list[tuple[int, Finding]], Run | None, str]:
    """Every seed from the same memory, until one finds something. Findings, the last run that ended, printed text."""
    start = [array.clone() for array in launch.arrays]
    run, output = None, ""
    for seed in range(first, first + seeds):
        for array, before in zip(launch.arrays, start, strict=True):
            array.copy_(before)
        try:
            run = module.launch(function.name, args=launch.values, buffers=launch.arrays, seed=seed, **how)
        except KernelError as error:
            return [(seed, f) for f in error.findings], None, error.output
        output = run.output
        if run.findings:
            return [(seed, f) for f in run.findings], run, output
    return [], run, output


def plan_saves(launch: Launch, texts: Collection[str]) -> list[tuple[Path, torch.Tensor]]:
    """Which array goes to which file: `out.npy` in the order of the arrays, `name=out.npy` by name."""
    planned, unnamed = [], 0
    for text in texts:
        name, equals, file = text.rpartition("=")
        if equals and name not in launch.named:
            raise click.UsageError(f"--save {text}: no array {name!r}; there are {', '.join(launch.named) or 'none'}")
        if not equals and unnamed >= len(launch.arrays):
            raise click.UsageError(f"--save {text}: the kernel has {len(launch.arrays)} arrays")
        planned.append((Path(file), launch.named[name] if equals else launch.arrays[unnamed]))
        unnamed += not equals
    for path, _ in planned:
        writable(path)
    return planned


def writable(path: Path) -> None:
    """Refuses before the run what could not be written after it."""
    if not path.resolve().parent.is_dir():
        raise click.UsageError(f"{path} cannot be written: there is no folder {path.resolve().parent}")


def save(planned: list[tuple[Path, torch.Tensor]]) -> None:
    """Types that NumPy lacks are written as float32."""
    import numpy as np

    for path, tensor in planned:
        narrow = tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
        np.save(path, (tensor.float() if narrow else tensor).numpy())


def read_module(path: Path) -> Module:
    """The module, or a usage error that says what the file seems to be instead."""
    head = path.read_bytes()[:4096]
    if head.startswith(b"\x7fELF"):
        raise click.UsageError(
            f"{path} is machine code: `cuobjdump --dump-ptx` may find PTX in it, `nvcc -ptx` makes it"
        )
    try:
        return load(path)
    except ValueError as error:
        hint = " (CUDA C++? `nvcc -ptx -arch=sm_90a -lineinfo` makes PTX of it)" if b"__global__" in head else ""
        raise click.UsageError(f"{path}: {error}{hint}") from error


def listing(module: Module, only: str | None) -> str:
    """Kernels with their parameters, what they need, and what could not run."""
    lines = []
    for function in [choose(module, only)] if only else module.kernels.values():
        facts = [f"PTX line {function.line}", f"{function.instructions} instructions"]
        facts.append(f"{module.static_shared(function.name)} bytes of static shared memory")
        for what, value in (
            (".reqntid", function.required_threads),
            (".maxntid", function.max_threads),
            ("cluster", function.required_cluster),
        ):
            if value:
                facts.append(f"{what} {value}")
        lines += [f"{function.name}: {', '.join(facts)}"]
        lines += [f"  {i}  {p}" + (" (a tensor map?)" if p.bytes == 128 else "") for i, p in enumerate(function.params)]
        lines += [f"  not modelled, line {u.line}: {u.text} ({u.reason})" for u in function.unmodelled]
    return "\n".join(lines) or "no kernels"


def as_json(function: Function, how: dict[str, Any], found: list[tuple[int, Finding]], run: Run | None) -> str:
    """The JSON file of a run."""
    by_source = run.counters.by_source().items() if run else ()
    return json.dumps(
        {
            "kernel": function.name,
            "launch": {key: value for key, value in how.items() if value is not None},
            "stopped": run is None,
            "findings": [as_dict(f, s) for s, f in found],
            "total": asdict(run.counters.total) if run else {},
            "by_source": [{"file": file, "line": line, "count": asdict(c)} for (file, line), c in by_source],
            "counters": json.loads(run.counters.json()) if run else [],
        }
    )


@click.command()
@click.argument("ptx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--list", "list_only", is_flag=True, help="List kernels and parameters; run nothing.")
@click.option("--kernel", default=None, help="Which kernel: its name or a part of it. Not needed if there is one.")
@click.option("--grid", default="1", callback=triple, help="Blocks: 4 or 4,2,1.", show_default=True)
@click.option("--block", default="1", callback=triple, help="Threads of a block: 128 or 16,16.", show_default=True)
@click.option("--cluster", default=None, callback=triple, help="Blocks of a cluster: 2 or 2,1,1.")
@click.option("--shared", default=0, help="Dynamic shared memory in bytes.", show_default=True)
@click.option("--arg", "args", multiple=True, help=ARGUMENT_HELP)
@click.option("--buffer", "buffers", multiple=True,
              help="NAME=array: for @NAME, map:NAME:..., and pointers inside structures.")  # fmt: skip
@click.option(
    "--seeds",
    default=1,
    type=click.IntRange(min=1),
    help="Schedules to try; arithmetic is the same in all.",
    show_default=True,
)
@click.option("--seed", default=0, help="The first schedule; also that of rand.", show_default=True)
@click.option("--checks", default="all", callback=check_set, help="all, none, or codes: shared-race,deadlock.")
@click.option("--threads", default=0, type=click.IntRange(min=0, max=1024), help="Host threads; 0: all.",
              show_default=True)  # fmt: skip
@click.option("--max-instructions", default=0, type=click.IntRange(min=0),
              help="Stop a block after this many warp instructions; 0: a large bound.")  # fmt: skip
@click.option("--counters", "by", default="instruction", type=click.Choice(["instruction", "source", "none"]),
              help="The table of counters: by PTX instruction or by source line.", show_default=True)  # fmt: skip
@click.option("--sort", default="issues", type=click.Choice(COUNTS), help="What the table shows the most of first.")
@click.option("--top", default=20, type=click.IntRange(min=0), help="Rows of the table.", show_default=True)
@click.option("--save", "saves", multiple=True,
              help="Write the first array to this .npy file, the next --save the next; NAME=file: that.")  # fmt: skip
@click.option("--trace", "trace_path", default=None, type=click.Path(dir_okay=False, path_type=Path),
              help="Predict the time by a model, and write a picture for Perfetto to this file.")  # fmt: skip
@click.option("--device", default="h100-sxm", show_default=True, help="The device that --trace predicts for.")
@click.option("--json", "json_path", default=None, type=click.Path(dir_okay=False, path_type=Path),
              help="Write findings and counters to this file.")  # fmt: skip
def emulate(
    ptx: Path,
    list_only: bool,
    kernel: str | None,
    args: tuple[str, ...],
    buffers: tuple[str, ...],
    seeds: int,
    seed: int,
    by: str,
    sort: str,
    top: int,
    saves: tuple[str, ...],
    trace_path: Path | None,
    device: str,
    json_path: Path | None,
    threads: int,
    **how: Any,
) -> None:
    """Run a kernel of a PTX file on the CPU and say what is wrong with it.

    Exit status: 0 nothing found, 1 something found, 2 the command line or the file is wrong.

    \b
    tkpy emulate scale.ptx --list
    tkpy emulate scale.ptx --grid 4 --block 128 --arg zeros:float32:512 --arg rand:float32:512 --arg n=512
    tkpy emulate copy.ptx --block 128 --buffer a=rand:bfloat16:64x64 --arg map:a:64x64:128 --arg zeros:bfloat16:64x64
    """
    module = read_module(ptx)
    if list_only:
        click.echo(listing(module, kernel))
        return
    function = choose(module, kernel)
    launch = read_launch(function, args, buffers, seed)
    planned = plan_saves(launch, saves)
    for path in (json_path, trace_path):
        if path is not None:
            writable(path)
    try:
        counting = {"counters": by != "none", "threads": threads or None}
        if trace_path is not None:
            counting["trace"] = timing.Rates.of(device).multiprocessors
        found, run, output = run_seeds(module, function, launch, seeds, seed, how | counting)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if output:
        click.echo(output, nl=not output.endswith("\n"))
    if run is not None:
        click.echo(run.report())
        if top and by != "none":
            click.echo("\n" + run.counters.table(top=top, key=sort, by=by))
    else:
        click.echo(f"{function.name}: stopped, {len(found)} findings")
        click.echo("\n".join(str(f) for _, f in found))
    if found:
        click.echo(f"\nfound by seed {found[0][0]}: --seed {found[0][0]} runs it again")
    elif seeds > 1:
        click.echo(f"\n{seeds} schedules, no findings")
    save(planned)
    if trace_path is not None and run is not None:
        prediction = timing.predict(run.trace, device)
        prediction.write_chrome(trace_path)
        click.echo(f"\n{prediction}\n{trace_path}: for ui.perfetto.dev or chrome://tracing")
    if json_path is not None:
        json_path.write_text(as_json(function, how, found, run))
    raise SystemExit(1 if found else 0)
