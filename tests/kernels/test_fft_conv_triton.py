"""fft_conv's Triton kernels: what the table of cases does not reach. Every plan in Triton's interpreter; whole rows of
two sizes and rows longer than a program holds as PTX in the emulator, under all checks: what rounding costs and no
more, the same bits under every schedule, nothing read that lies outside."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the package triton")
from fft_conv_runs import disagreement, inputs, results  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
import tkpy.emulator.triton as emulator  # noqa: E402
from tkpy import numerics, registry  # noqa: E402
from tkpy.ops.fft_conv import spectra  # noqa: E402

EVERYTHING = ("reverse", "skip", "gates")
backend = importlib.import_module("tkpy.ops.fft_conv.triton")
Plan = backend.Plan


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The triton backend takes CPU tensors of every dtype; no spectrum is left from before."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])
    spectra.forget()


def found(kwargs, capability=90, seed=0, grad=True) -> str:
    with emulator.emulated(capability, seed=seed):
        return disagreement(kwargs, "triton", grad)


#: Lengths below and at what every plan holds, and longer ones, in this process's interpreter.
INTERPRETED = """
import json, torch
from fft_conv_runs import disagreement, inputs
from tkpy import registry
backend, found = registry.get("fft_conv").module("triton"), {}
for length in (256, 500, 1024, 2001, 2500):
    dtype = torch.float16 if length % 2 else torch.float32
    kwargs = inputs(1, 1, length, "reverse", "pre_gate", dtype=dtype, taps=length // 2, reverse=length // 3)
    found[length] = [*backend.plan_for(length), disagreement(kwargs, "triton")]
print(json.dumps(found))
"""


def test_every_plan_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert not [row for row in seen.values() if row[2]]
    assert {tuple(row[:2]) for row in seen.values()} >= {(0, points) for points in backend.FACTORS}
    assert len([row for row in seen.values() if row[0]]) == 1


def test_plans_hold_their_rows():
    longest = importlib.import_module("tkpy.ops.fft_conv.op").LONGEST
    for length in (1, 256, 257, 2048, 2049, 4096, 4097, 8192, 30000, 2**17, 2**20 + 1, longest):
        plan = backend.plan_for(length)
        assert length <= plan.total
        assert plan.outer % 16 == 0
        assert length < 8192 or plan.total <= 1.25 * length  # little is transformed that is not there


@pytest.mark.parametrize(
    "length, options, capability, dtype",
    [(450, ("reverse", "skip", "pre_gate"), 80, torch.float32), (2043, ("reverse", "skip"), 90, torch.bfloat16)],
    ids=["float32", "the longest"],
)
def test_rows_that_a_program_holds(length, options, capability, dtype):
    """Without gates one program serves forward and backward: the longest is the slowest to compile."""
    assert found(inputs(2, 1, length, *options, dtype=dtype), capability) == ""


@pytest.mark.parametrize(
    "plan, rows, length, options, capability, dtype",
    [
        (Plan(48, 256), (2, 1), 12001, EVERYTHING, 90, torch.bfloat16),  # tiles of 64 outer rows, of which 48 are there
        (Plan(16, 256), (2, 1), 4096, ("skip",), 80, torch.float16),
        (Plan(32, 256), (1, 2), 5001, ("reverse",), 80, torch.float32),
    ],
    ids=["48 of 64", "16", "float32"],
)
def test_rows_longer_than_a_program_holds(monkeypatch, plan, rows, length, options, capability, dtype):
    monkeypatch.setattr(backend, "plan_for", lambda length: plan)
    monkeypatch.setattr(backend.eager, "BLOCK_ELSEWHERE", plan.total)  # the filters' gradients a channel at a time
    assert found(inputs(*rows, length, *options, dtype=dtype), capability) == ""


@pytest.mark.parametrize("plan", [Plan(0, 256), Plan(16, 256)], ids=["whole", "long"])
def test_the_same_bits_and_nothing_from_outside(monkeypatch, plan):
    """Under every schedule, whatever the shares of the batch hold; NaN past the ends and in another row."""
    monkeypatch.setattr(backend, "plan_for", lambda length: plan)
    length = 200 if not plan.outer else 700
    kwargs, dy = inputs(2, 2, length, *EVERYTHING), torch.ones(2, 2, length)
    with emulator.emulated(seed=1):
        clean = results(kwargs, "triton", dy)
    for name in ("u", "pre_gate", "post_gate", "k", "k_reverse"):
        rows = kwargs[name]
        wide = torch.full((*rows.shape[:-1], rows.shape[-1] + 16), float("nan"), dtype=rows.dtype)  # the same programs
        wide[..., : rows.shape[-1]] = rows
        kwargs[name] = wide if rows.dim() == 2 else wide[..., : rows.shape[-1]]
    with emulator.emulated(seed=2):
        again = results(kwargs, "triton", dy)
    for name, want in clean.items():
        assert torch.equal(again[name][..., : want.shape[-1]], want), name
        assert not again[name][..., want.shape[-1] :].any(), name
    kwargs["u"][1, 0, 3] = float("nan")
    with emulator.emulated(seed=3):
        y = results(kwargs, "triton", dy, grad=False)["y"]
    assert y[1, 0].isnan().all()
    y[1, 0] = clean["y"][1, 0]
    assert torch.equal(y, clean["y"])


def test_a_spectrum_is_made_once(monkeypatch):
    """One for 16-bit data, whose filters are split into bfloat16 terms, and one for float32 data."""
    kwargs, launched = inputs(1, 2, 40, "reverse"), Counter()
    for name in ("_spectrum", "_convolve"):
        kernel = getattr(backend, name)
        counted = type(
            "Counted", (), {"__getitem__": lambda _, grid, n=name, k=kernel: launched.update([n]) or k[grid]}
        )
        monkeypatch.setattr(backend, name, counted())
    wide = {name: t.float() if name == "u" else t for name, t in kwargs.items()}
    for call in (kwargs, kwargs, wide, wide):
        with emulator.emulated():
            y = tkpy.fft_conv(**call, backend="triton")
        assert numerics.compare(y, tkpy.fft_conv(**call, backend="reference"), numerics.TOLERANCE[y.dtype])
    assert launched == {"_spectrum": 2, "_convolve": 4}


def test_a_lower_term_that_is_lost_is_seen(monkeypatch):
    """The bounds of these tests are tight enough for the second terms of the operands."""
    whole = backend._tables

    def cut(*args):
        matrices, factors = whole(*args)
        planes = matrices[: 4 * 16 * 16].view(4, 16, 16).clone()
        planes[2:] = 0
        return torch.cat([planes.flatten(), matrices[4 * 16 * 16 :]]), factors

    kwargs = inputs(1, 2, 200, dtype=torch.float16)
    assert found(kwargs) == ""
    monkeypatch.setattr(backend, "_tables", cut)
    spectra.forget()
    assert "rounding costs" in found(kwargs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [100, 400, 1000, 2048, 8191, 33001, 600000])
def test_on_the_device(monkeypatch, length, dtype):
    monkeypatch.undo()
    kwargs = {name: t.cuda() for name, t in inputs(5, 7, length, *EVERYTHING, dtype=dtype).items()}
    assert disagreement(kwargs, "triton") == ""
