"""`tkpy emulate`: run and check a kernel of a PTX file without writing Python."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
import torch

from tkpy.emulator.arguments import Param
from tkpy.emulator.module import CHECKS, Function, Module, load
from tkpy.emulator.run import Finding, KernelError, Run

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
FILLS = ("zeros", "ones", "rand", "arange")

ARGUMENT_HELP = """An argument of the kernel, one option each, in the order of its parameters.

\b
  i32:7  u64:7  f32:1.5     a number, of the type that is named
  7  1.5  null              a number of the type that the kernel declares; a null pointer
  zeros:float32:1024        a buffer: zeros, ones, rand (normal; whole numbers 0..9) or arange, : dtype : shape
  rand:bfloat16:64x64
  x.npy                     a buffer with the contents of a NumPy file
"""


def _bad(text: str, why: str) -> click.UsageError:
    return click.UsageError(f"--arg {text}: {why}")


def buffer(text: str, seed: int) -> torch.Tensor:
    """`rand:bfloat16:64x64` as a tensor."""
    parts = text.split(":")
    if len(parts) != 3:
        raise _bad(text, "a buffer is written fill:dtype:shape, such as zeros:float32:1024")
    fill, dtype_name, shape_text = parts
    if dtype_name not in DTYPES:
        raise _bad(text, f"no dtype {dtype_name!r}; the dtypes are {', '.join(DTYPES)}")
    if not re.fullmatch(r"\d+(x\d+)*", shape_text):
        raise _bad(text, f"a shape is written 1024 or 64x64, not {shape_text!r}")
    shape, dtype = [int(n) for n in shape_text.split("x")], getattr(torch, dtype_name)
    size = 1
    for n in shape:
        size *= n
    if size > 1 << 31:
        raise _bad(text, f"a buffer has at most 2^31 elements, not {size}")
    if fill == "zeros":
        return torch.zeros(shape, dtype=dtype)
    if fill == "ones":
        return torch.ones(shape).to(dtype)
    if fill == "arange":
        return torch.arange(size).reshape(shape).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 10, shape, generator=generator).to(dtype)


def read_array(text: str) -> torch.Tensor:
    """The contents of a .npy file, copied."""
    import numpy as np

    try:
        array = np.load(text, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _bad(text, f"not readable as a NumPy file ({error})") from error
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise _bad(text, f"elements of type {array.dtype} are not numbers") from error


def number(text: str, value: str, kind: str) -> int | float:
    """A number of a PTX type: `1.5` as `f32`, `0x10` as `u32`; b32 and its kin take either."""
    try:
        if kind[0] != "f":
            return int(value, 0)
    except ValueError:
        if kind[0] != "b":
            raise _bad(text, f"{value!r} is no whole number, which type {kind} needs") from None
    try:
        return float(value)
    except ValueError:
        raise _bad(text, f"{value!r} is no number") from None


def argument(text: str, param: Param, seed: int) -> Any:
    """One --arg as the value of one parameter."""
    head, _, value = text.partition(":")
    if text == "null":
        return None
    if text.endswith(".npy"):
        return read_array(text)
    if head in FILLS:
        return buffer(text, seed)
    typed = re.fullmatch(r"([iusbf])(8|16|32|64)", head) if value else None
    if typed and head != "f8":
        if int(typed[2]) != 8 * param.bytes:
            raise _bad(text, f"parameter {param} has {8 * param.bytes} bits, not {typed[2]}")
        if (typed[1] == "f") != (param.type[0] == "f") and param.type[0] != "b":
            raise _bad(text, f"parameter {param} is not of type {head}")
        result = number(text, value, head)
        return float(result) if typed[1] == "f" else result
    if value:
        raise _bad(text, f"no kind of argument {head!r}: it may be i32:7, f32:1.5, {', '.join(FILLS)} or a file x.npy")
    return number(text, text, param.type)


def arguments_of(function: Function, texts: Collection[str], seed: int) -> list[Any]:
    """The launch's arguments from their texts, by the kernel's own parameters."""
    if len(texts) != len(function.params):
        listed = ", ".join(str(p) for p in function.params) or "none"
        raise click.UsageError(f"{function.name} takes {len(function.params)} arguments ({listed}), got {len(texts)}")
    return [argument(t, p, seed + i) for i, (t, p) in enumerate(zip(texts, function.params, strict=True))]


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
    module: Module, function: Function, values: list[Any], seeds: int, first: int, how: dict[str, Any]
) -> tuple[list[tuple[int, Finding]], Run | None, str]:
    """Every seed from the same memory, until one finds something. Findings, the last run that ended, printed text."""
    start = [v.clone() if isinstance(v, torch.Tensor) else None for v in values]
    run, output = None, ""
    for seed in range(first, first + seeds):
        for value, before in zip(values, start, strict=True):
            if before is not None:
                value.copy_(before)
        try:
            run = module.launch(function.name, args=values, seed=seed, **how)
        except KernelError as error:
            return [(seed, f) for f in error.findings], None, error.output
        output = run.output
        if run.findings:
            return [(seed, f) for f in run.findings], run, output
    return [], run, output


def save_buffers(values: list[Any], paths: Collection[Path]) -> None:
    """The buffers among the arguments, in order; types that NumPy lacks are written as float32."""
    import numpy as np

    buffers = [v for v in values if isinstance(v, torch.Tensor)]
    if len(paths) > len(buffers):
        raise click.UsageError(f"{len(paths)} times --save, but the kernel has {len(buffers)} buffers")
    for path, tensor in zip(paths, buffers, strict=False):
        narrow = tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
        np.save(path, (tensor.float() if narrow else tensor).numpy())


@click.command()
@click.argument("ptx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kernel", default=None, help="Which kernel: its name or a part of it. Not needed if there is one.")
@click.option("--grid", default="1", callback=triple, help="Blocks: 4 or 4,2,1.", show_default=True)
@click.option("--block", default="1", callback=triple, help="Threads of a block: 128 or 16,16.", show_default=True)
@click.option("--cluster", default=None, callback=triple, help="Blocks of a cluster: 2 or 2,1,1.")
@click.option("--shared", default=0, help="Dynamic shared memory in bytes.", show_default=True)
@click.option("--arg", "args", multiple=True, help=ARGUMENT_HELP)
@click.option("--seeds", default=1, type=click.IntRange(min=1), help="Schedules to try.", show_default=True)
@click.option("--seed", default=0, help="The first schedule; also that of rand.", show_default=True)
@click.option("--checks", default="all", callback=check_set, help="all, none, or codes: shared-race,deadlock.")
@click.option("--max-instructions", default=0, help="Stop a block after this many warp instructions; 0: a large bound.")
@click.option("--top", default=20, type=click.IntRange(min=0), help="Rows of the counter table.", show_default=True)
@click.option("--save", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Write the first buffer to this .npy file; the second --save, the second buffer.")  # fmt: skip
@click.option("--json", "json_path", default=None, type=click.Path(dir_okay=False, path_type=Path),
              help="Write findings and counters to this file.")  # fmt: skip
def emulate(
    ptx: Path,
    kernel: str | None,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    cluster: tuple[int, ...] | None,
    shared: int,
    args: tuple[str, ...],
    seeds: int,
    seed: int,
    checks: str | list[str],
    max_instructions: int,
    top: int,
    save: tuple[Path, ...],
    json_path: Path | None,
) -> None:
    """Run a kernel of a PTX file on the CPU and say what is wrong with it. Exit status 1: something is.

    \b
    tkpy emulate scale.ptx --grid 4 --block 128 --arg zeros:float32:512 --arg rand:float32:512 --arg i32:512
    """
    try:
        module = load(ptx)
    except ValueError as error:
        raise click.UsageError(f"{ptx}: {error}") from error
    function = choose(module, kernel)
    values = arguments_of(function, args, seed)
    if len(save) > sum(isinstance(v, torch.Tensor) for v in values):
        save_buffers(values, save)  # refuses before anything runs
    how = {"grid": grid, "block": block, "cluster": cluster, "shared": shared, "checks": checks}
    try:
        found, run, output = run_seeds(
            module, function, values, seeds, seed, {**how, "max_instructions": max_instructions}
        )
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if output:
        click.echo(output, nl=not output.endswith("\n"))
    if run is not None:
        click.echo(run.report())
        if top:
            click.echo("\n" + run.counters.table(top=top))
    else:
        click.echo(f"{function.name}: stopped, {len(found)} findings")
        click.echo("\n".join(str(f) for _, f in found))
    if found:
        click.echo(f"\nfound by seed {found[0][0]}: --seed {found[0][0]} runs it again")
    elif seeds > 1:
        click.echo(f"\n{seeds} schedules, no findings")
    save_buffers(values, save)
    if json_path is not None:
        counters = json.loads(run.counters.json()) if run is not None else []
        findings = [as_dict(f, s) for s, f in found]
        json_path.write_text(json.dumps({"kernel": function.name, "findings": findings, "counters": counters}))
    raise SystemExit(1 if found else 0)
