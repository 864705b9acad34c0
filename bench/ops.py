"""Times an op's cases: `python -m bench.ops [--op rms_norm] [--backend triton]`.

Prints, per case marked `bench`, the median time, and the rate against the op's own ideal cost (`flops`, `nbytes`).
Rows of the eager backend on a CPU say what PyTorch does there; they are not speeds of tkpy's kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import torch

from tkpy import registry
from tkpy.cli import machine, table
from tkpy.registry import Maker


def measure(
    name: str,
    *,
    backend: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
    cases: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per case: the named ones, or those marked `bench`."""
    op = registry.get(name)
    for case in op.cases:
        if case.name not in cases if cases is not None else not case.bench:
            continue
        kwargs = case.make(Maker(dtype, device))
        call = registry._capture(op, (), kwargs)
        served = op.resolve(call, backend)
        samples: list[float] = []
        begin = time.perf_counter()
        with torch.no_grad():
            op.public(**kwargs, backend=served)  # warm-up: compilation, allocator
            while len(samples) < 3 or time.perf_counter() - begin < seconds:
                start = time.perf_counter()
                op.public(**kwargs, backend=served)
                if device == "cuda":
                    torch.cuda.synchronize()
                samples.append(time.perf_counter() - start)
        median = statistics.median(samples)
        yield {
            "op": name,
            "case": case.name,
            "backend": served,
            "ms": 1e3 * median,
            "spread": (max(samples) - min(samples)) / median,
            "flops": op.flops(call),
            "bytes": op.nbytes(call),
            "gflops": op.flops(call) / median / 1e9,
            "gbytes": op.nbytes(call) / median / 1e9,
        }


@click.command()
@click.option("--op", "names", multiple=True, help="Only this op (may be repeated).")
@click.option("--backend", default=None, type=click.Choice(registry.BACKENDS))
@click.option("--seconds", default=1.0, show_default=True, help="Time spent on each case.")
def main(names: tuple[str, ...], backend: str | None, seconds: float) -> None:
    """Time the ops' benchmark cases on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    click.echo(machine())
    rows = []
    for name in names or registry.ops():
        for row in measure(name, backend=backend, device=device, seconds=seconds):
            note = "PyTorch on this device, not a tkpy kernel" if row["backend"] == "eager" else ""
            speed = (f"{row['ms']:.3f}", f"{row['spread']:.0%}", f"{row['gflops']:.1f}", f"{row['gbytes']:.1f}")
            rows.append([name, row["case"], row["backend"], *speed, note])
    click.echo(table(["op", "case", "backend", "ms", "spread", "GFLOP/s", "GB/s", ""], rows))


if __name__ == "__main__":
    main()
