"""hyena_mixer's Triton kernels: what the table of cases does not reach. As PTX in the emulator under all checks: tiles
at once and one after the other, groups and pitches, what is read and written, slow poles; in Triton's interpreter:
faults in the kernels' source, all of which must show."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="needs the package triton")
from mixer_runs import ALL, OP, disagreement, in_nan, inputs  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
import tkpy.emulator.triton as emulator  # noqa: E402
from tkpy import registry  # noqa: E402

backend = importlib.import_module("tkpy.ops.hyena_mixer.triton")
BOTH = pytest.mark.parametrize("resident", [0, 1 << 20], ids=["one after the other", "at once"])


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The triton backend takes CPU tensors of every dtype; tiles are short."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])
    monkeypatch.setattr(backend, "TILE", 32)


def mixed(kwargs, seed=0):
    with emulator.emulated(seed=seed) as runs:
        found = tkpy.hyena_mixer(**kwargs, backend="triton")
    return found, runs


@BOTH
@pytest.mark.parametrize("length, width, groups, taps", [(31, 1, 1, 3), (64, 40, 5, 3), (97, 33, 1, 7)])
def test_tiles_and_groups(monkeypatch, resident, length, width, groups, taps):
    """Fewer samples than a tile, whole tiles, a tail shorter than the filter; channels of several groups, programs."""
    monkeypatch.setattr(backend, "RESIDENT", resident)
    with emulator.emulated(seed=length):
        assert disagreement(inputs(2, length, width, 3, taps, groups, torch.float32), "triton", True) == ""


@pytest.mark.parametrize("absent", [*([name] for name in sorted(ALL)), sorted(ALL)], ids=" ".join)
def test_options(absent):
    with emulator.emulated(80):
        kwargs = inputs(1, 70, 5, 4, options=ALL - set(absent), dtype=torch.float32)
        assert disagreement(kwargs, "triton", True) == ""


def test_more_modes_than_a_thread_holds():
    kwargs = inputs(1, 20, 3, backend.MOST_MODES + 1, dtype=torch.float32)
    with emulator.emulated() as runs:
        assert disagreement(kwargs, "triton") == ""
    assert len(runs) > 3  # short_conv's and modal_conv's


@BOTH
@pytest.mark.parametrize("offset, pitch", [(0, 0), (1, 2)])
def test_z_is_read_as_it_lies(monkeypatch, resident, offset, pitch):
    """Rows of z inside a buffer of NaN, wherever they begin: the same bits under another schedule, nothing copied."""
    monkeypatch.setattr(backend, "RESIDENT", resident)
    kwargs, seen = inputs(2, 70, 12, 3, groups=2, dtype=torch.float32), []
    want, _ = mixed(kwargs, seed=1)
    z, mix = in_nan(kwargs["z"], offset, pitch), backend._mix
    watched = type(
        "Watched", (), {"__getitem__": lambda _, grid: lambda *a, **k: (seen.append(a[0]), mix[grid](*a, **k))}
    )
    monkeypatch.setattr(backend, "_mix", watched())
    got, _ = mixed(kwargs | {"z": z}, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [x.data_ptr() for x in seen] == [z.data_ptr()]


def test_what_a_forward_moves(monkeypatch):
    """One launch: every sector of z and of the tables is read, every one of y written, and no other."""
    monkeypatch.setattr(backend, "RESIDENT", 0)
    kwargs = inputs(1, 256, 64, 8, groups=2, options=frozenset())
    (y, _, _), runs = mixed(kwargs)
    assert len(runs) == 1
    read, written = (32 * sectors for sectors in runs[0].sectors)
    assert written == 2 * y.numel() + 8 * 64 * 8  # the state after the last sample too
    tables = 4 * (3 * 64 * 4 + 64) + 8 * 64 * 8 * 3 + 16 * 64 * 8  # filters, skip; poles, residues, states; a factor
    assert 2 * kwargs["z"].numel() <= read <= 2 * kwargs["z"].numel() + tables + 1024  # begun sectors
    assert OP.nbytes(registry.capture(OP, kwargs)) <= read + written <= 1.2 * OP.nbytes(registry.capture(OP, kwargs))


def test_a_backward_reads_and_writes_as_it_lies():
    """Rows of z and of y's gradient inside buffers of NaN: the same bits under another schedule, in six launches."""
    kwargs, found = inputs(2, 70, 12, 3, groups=2, dtype=torch.float32), []
    dy = torch.randn(2, 70, 12, generator=torch.Generator().manual_seed(0))
    for seed, place in ((1, None), (2, (1, 2))):
        z, grad = (x.clone() if place is None else in_nan(x, *place) for x in (kwargs["z"], dy))
        leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if torch.is_tensor(v) and k != "z"}
        (y, *_), _ = mixed(kwargs | leaves | {"z": z.requires_grad_()})
        with emulator.emulated(seed=seed) as runs:
            found.append(torch.autograd.grad(y, [z, *leaves.values()], grad))
        assert [run.kernel for run in runs] == ["_ahead", "_carry", "_ahead", "_back", "_carry", "_back"]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("alone", ["y", "fir_state", "state"])
def test_one_output_alone_has_a_gradient(alone):
    kwargs, found = inputs(2, 2, 4, 2, 5, dtype=torch.float32), []
    for served in ("triton", "reference"):
        leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if torch.is_tensor(v)}
        with emulator.emulated():
            outputs = tkpy.hyena_mixer(**kwargs | leaves, backend=served)
            outputs[("y", "fir_state", "state").index(alone)].abs().square().sum().backward()
        found.append([x.grad for x in leaves.values()])
    for got, want in zip(*found, strict=True):
        want = torch.zeros_like(got) if want is None else want
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_what_a_tile_costs_backward(monkeypatch):
    """15 elements a sample and channel, the states as they pass from launch to launch, the shares of the sums: each
    sector once a launch, and none of other channels' or kernels'."""
    monkeypatch.setattr(backend, "TILE", 64)
    moved = []
    for tiles in (2, 4):
        kwargs = inputs(1, 64 * tiles, 64, 8, groups=2, options=frozenset())
        leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if torch.is_tensor(v)}
        (y, *_), _ = mixed(kwargs | leaves)
        with emulator.emulated() as runs:
            y.backward(torch.ones_like(y))
        moved.append(32 * sum(sum(run.sectors) for run in runs))
    passing = 3 * 4 + 2  # x, s and a: left, carried (read and written), found; the shares of both sums
    shares = 4 * (64 + 3 * 64 * 4)  # of the skip's; of the filters' and the bias'
    assert (moved[1] - moved[0]) / 2 == 15 * 64 * 64 * 2 + passing * 64 * 8 * 8 + shares


@BOTH
@pytest.mark.parametrize("pole", [1 - 2**-23, (0.6 + 0.8j) * (1 - 1e-7)], ids=["real", "turning"])
def test_a_slow_pole(monkeypatch, resident, pole):
    """Of a state of 1.3, the product with the slowest real pole is rounded by a quarter of its decay, every time: what
    passes from tile to tile must not be."""
    monkeypatch.setattr(backend, "RESIDENT", resident)
    length, poles = 20_000, torch.tensor([[pole]], dtype=torch.complex64)
    kwargs = {"z": torch.zeros(1, length, 3), "weight": torch.ones(3, 1), "bias": torch.tensor([1.0, 0.0, 0.0])}
    state = torch.full((1, 1, 1), 1.3, dtype=torch.complex64)
    kwargs |= {"poles": poles, "residues": torch.ones_like(poles), "initial_state": state, "output_final_state": True}
    (y, _, end), _ = mixed(kwargs)
    exact = 1.3 * poles.to(torch.complex128)[0, 0] ** length
    assert (end[0, 0, 0] - exact).abs() < 1e-5
    assert (y[0, -1, 0].double() - exact.real).abs() < 1e-5


def test_nothing_is_spilled(compile_kernel, toolchain):
    """With 8 modes and 3 taps, as Evo has them, the states of a thread's channel stay in registers."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, types, constants in backend.AHEAD_OF_TIME:
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        command = [toolchain.ptxas, "-v", "-arch=sm_90a", "-o", os.devnull, "-"]
        log = subprocess.run(command, input=compiled.asm["ptx"], capture_output=True, text=True, check=True).stderr
        assert "0 bytes spill stores, 0 bytes spill loads" in log, (kernel, log)


def test_no_argument_is_written_to():
    kwargs = inputs(1, 70, 5, 4, dtype=torch.float32)
    before = {key: value.clone() for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    mixed(kwargs)
    assert all(torch.equal(kwargs[key], value) for key, value in before.items())


#: What is done to the kernels' source: where _mix runs, and where the gradients are made.
FORWARD = {
    "taps in reverse": ("taps[1 + j] *", "taps[K - j] *"),
    "no bias": ("f = taps[0]", "f = 0 * taps[0]"),
    "nothing before the first": ("old = live & (at < 0)", "old = live & (at < -K)"),
    "groups": ("c // part * 3 * part", "c // part * part"),
    "x1 twice": ("_filtered(z, 2, t, K, U), U)", "_filtered(z, 1, t, K, U), U)"),
    "no skip": ("+ skip * u", ""),
    "residue conjugated": ("rr * xr - ri * xi", "rr * xr + ri * xi"),
    "pole conjugated": ("pr * xi + pi * xr", "pr * xi - pi * xr"),
    "no outer gate": ("x2[i] * _output", "_output"),
    "the carry's phase": ("fr * carry_i + fi * carry_r", "fr * carry_i"),
    "the carry's order": ("_next(pr, pi, lr, li, u[i])", "_next(pr, pi, xr, xi, u[i])"),
    "the end of another tile": ("if last == L:", "if last < L:"),
}
BACKWARD = {
    "the derivative's input": ("si += xi", "si += 0 * xi"),
    "the derivative begins at 0": ("stop = (xr, xi, sr, si)", "stop = (xr, xi, zero, zero)"),
    "one sum twice": ("sums[2], sums[3]", "sums[0], sums[1]"),
    "the skip's share": ("mine * u[i]", "mine"),
    "dx2 by the gated": ("u[i]) * dy[i]", "u[i]) * g[i]"),
    "the adjoint residue": ("ai - ri * now", "ai + ri * now"),
    "the adjoint pole": ("pr * ar + pi * ai", "pr * ar - pi * ai"),
    "the adjoint's direction": ("now = g[U - 1 - i]", "now = g[i]"),
    "the adjoint skip": ("+ skip * now,)", ",)"),
    "dx1 by x1": ("(du, _filter(z, 2, v_met", "(du, _filter(z, 1, x1_met"),
    "dv at x1": ("behind, 2, dv", "behind, 1, dv"),
    "back by the taps in reverse": ("taps[K - lag]", "taps[lag]"),
    "nothing of later samples": ("taps[K - lag] * rows[i + lag]", "0 * rows[i + lag]"),
    "kept from before": ("rows[: K - 1] if BACK", "rows[U:] if BACK"),
    "kept from after": ("else rows[U:]", "else rows[: K - 1]"),
    "kept on the other side": ("start = d + kept, t", "start = kept + d, t"),
    "dx2 comes early": ("kept + d, t - (K - 1)", "kept + d, t - (K - 2)"),
    "dx2 beyond the tile": ("end + (K - 1)", "end"),
    "dx1 before the tile": ("SP), first - (K - 1)", "SP), first"),
    "another tile's dz": ("(at >= first) & (at < last)", "(at >= 0) & (at < last)"),
    "dz between tiles": ("t == L, t, t - (K - 1)", "t == L, t, t - K"),
    "dz at the end": ("t == L, t, t - (K - 1)", "t == -1, t, t - (K - 1)"),
    "the last inputs": ("(t <= whole)", "(t <= L)"),
    "the last inputs come early": ("(length - (K - 1))", "(length - (K - 2))"),
    "dz before the first": ("live & (at < 0), dz", "live & (at < -1), dz"),
    "d before the first": ("tl.where(t >= 0, dx1[0], 0.0)", "dx1[0]"),
    "another tile's x2": ("tl.where(t < end, d[0], 0.0)", "d[0]"),
    "another tile's g": ("tl.where(t < end, g[i], 0.0)", "g[i]"),
    "another tile's v": ("tl.where(t >= first, dv[0], 0.0)", "dv[0]"),
    "the taps' lags": ("d[i] * met[i + j]", "d[i] * met[i]"),
    "the bias' share": ("bias += d[i]", "bias += 0 * d[i]"),
    "the short tile's factor": ("tile == tiles - 1, 4 * plane", "tile == 0, 4 * plane"),
    "the carry's direction": ("tiles - 1 - k if ADJOINT else k", "k"),
    "the carried derivative": ("dr * xr - di * xi + lr", "lr"),
}

#: Runs the kernels as they are and with each fault, in this process's interpreter: what disagrees, by name.
#: Two tiles, of which the second is short, each with blocks of two samples and of one.
INTERPRETED = """
import importlib, importlib.util, json, sys, torch
from mixer_runs import disagreement, inputs
backend = importlib.import_module("tkpy.ops.hyena_mixer.triton")
folder, (forward, backward), found = sys.argv[1], json.loads(sys.argv[2]), {}
source = open(importlib.import_module("tkpy.ops.hyena_mixer.triton_kernels").__file__).read()
backend.TILE, backend.UNROLLED, backend.RESIDENT = 4, (2, 2), 0
torch.use_deterministic_algorithms(True, warn_only=True)  # what is not written to is NaN
for number, (name, (old, new)) in enumerate({"none": ("", ""), **forward, **backward}.items()):
    assert old in source, name
    path = f"{folder}/kernels{number}.py"
    with open(path, "w") as file:
        file.write(source.replace(old, new) if old else source)
    spec = importlib.util.spec_from_file_location(f"kernels{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for kernel in ("_mix", "_ahead", "_back", "_carry"):
        setattr(backend, kernel, getattr(module, kernel))
    kwargs = inputs(1, 7, 4, 2, groups=2, dtype=torch.float32, radius=(0.5, 0.9))
    found[name] = disagreement(kwargs, "triton", name not in forward)
print(json.dumps(found))
"""


def test_faults_show(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(tmp_path), json.dumps([FORWARD, BACKWARD])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("none") == ""
    assert not [name for name, difference in found.items() if not difference]
    assert len(found) == len(FORWARD) + len(BACKWARD)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [255, 1000, 4099])
@BOTH
def test_on_the_device(monkeypatch, length, dtype, resident):
    monkeypatch.undo()
    monkeypatch.setattr(backend, "RESIDENT", resident)
    kwargs = inputs(3, length, 200, 8, groups=5, dtype=dtype)
    kwargs = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
    assert disagreement(kwargs, "triton", True) == ""
