"""What the backward of the gated MLPs launches, in the emulator: gate and value kept, dh taken through the gate in the
GEMM's epilogue, dx as one product of two parts; against float64, schedules, what it costs, what is kept, refusals."""

from __future__ import annotations

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from gated_runs import all_runs, kept, pair, slopes  # noqa: E402
from test_gated_cuda import DTYPES, OPS, blocks, dense  # noqa: E402

import tkpy  # noqa: E402
from tkpy import machine  # noqa: E402
from tkpy.numerics import compare  # noqa: E402
from tkpy.registry import Maker  # noqa: E402


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/gemm/{name}.cu") for name in ("kernel", "gated")]
    return gather(tmp_path_factory.mktemp("gemm"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)


@pytest.mark.parametrize("run", all_runs(), ids=str)
def test_every_launch(built, run):
    assert run.wrong() == ""


@pytest.mark.parametrize(
    "run", [slopes(140, 2, 72, 40, dtype=torch.float16), pair(140, 72, 40, torch.float16)], ids=str
)
def test_in_half_precision(built, run):
    assert run.wrong() == ""


def test_products_that_overflowed(built):
    """A gate of -inf is shut: its slope is 0, not NaN."""
    gate = torch.tensor([[-float("inf"), -65504.0, 0.0, 65504.0]], dtype=torch.float16)
    value, h = torch.full_like(gate, 2.0), torch.empty_like(gate)
    for activation in ("silu", "gelu", "gelu_tanh", "relu"):
        dz = torch.empty(2, 1, 4, dtype=torch.float16)
        OPS["gated_mlp"].module("cuda").slopes(
            torch.ones(1, 1).half(), torch.ones(1, 1, 4).half(), (gate, value), activation, dz=tuple(dz), h=h
        )
        at_zero = 0.0 if activation == "relu" else 1.0
        assert dz[0, 0].tolist() == [0.0, 0.0, at_zero, 2.0]
        assert dz[1, 0].tolist() == [0.0, 0.0, 0.0, 65504.0]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("multiprocessors", [2, 132])
@pytest.mark.parametrize(
    "run", [slopes(300, 2, 328, 264), slopes(300, 2, 72, 35), pair(300, 328, 264), pair(270, 75, 35)], ids=str
)
def test_schedules(folder, monkeypatch, seed, multiprocessors, run):
    """One cluster walks through all tiles and groups, or each has its own; more steps than slots."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    assert run.wrong() == ""


def leaves(named):
    kwargs = named[1].make(Maker(torch.bfloat16))
    return {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}


def kernels_of(named, monkeypatch, folder, **more):
    """What the backward launches, by kernel, and its gradients."""
    on_machine(monkeypatch, folder)
    kwargs = leaves(named)
    y = getattr(tkpy, named[0])(**kwargs, **more, backend="emulator")
    with machine.counting() as counters:
        grads = torch.autograd.grad(y.sum(), [v for v in kwargs.values() if isinstance(v, torch.Tensor)])
        return {c.kernel: c for c in counters()}, grads


BOTH = pytest.mark.parametrize(
    "named", [dense(256, 256, 256, 256), blocks(256, 2, 256, 256, 256)], ids=["dense", "blocks"]
)


@BOTH
def test_dh_never_goes_to_memory(folder, monkeypatch, named):
    """dy, the weights, gate and value in, both slopes and h out, each once; no conflicts in the patch."""
    counts, _ = kernels_of(named, monkeypatch, folder)
    count = counts["gemm_gated_bf16_slopes_tma"]
    groups = 1 if named[0] == "gated_mlp" else 2
    moved = 2 * 256 * groups * 6 * 256 + 2 * groups * 256 * 256
    assert 1.0 <= 32 * (count.sectors_read + count.sectors_written) / moved <= 1.01
    assert asdict(count.counters.total)["bank_conflicts"] == 0


@BOTH
def test_kept_or_computed_again(folder, monkeypatch, named):
    """Six products, or eight; the same gradients bit for bit."""
    kept_counts, kept_grads = kernels_of(named, monkeypatch, folder)
    again_counts, again_grads = kernels_of(named, monkeypatch, folder, recompute=True)
    flops = [sum(asdict(c.counters.total)["tensor_flops"] for c in counts.values())
             for counts in (kept_counts, again_counts)]  # fmt: skip
    assert flops[1] * 3 == flops[0] * 4
    assert all(torch.equal(a, b) for a, b in zip(kept_grads, again_grads, strict=True))
    assert not any("gated" in name and "slopes" not in name for name in kept_counts)


@pytest.mark.parametrize("needed", ["x", "w1", "w3"])
def test_only_what_is_wanted(built, needed):
    kwargs = dense(70)[1].make(Maker(torch.bfloat16))
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    found = []
    for given, backend in ((kwargs, "emulator"), (wide, "reference")):
        given[needed].requires_grad_()
        found += torch.autograd.grad(tkpy.gated_mlp(**given, backend=backend).sum(), given[needed])
    assert compare(*found, 1e-2)


def test_the_launchers_check_again(built):
    a, b, out = (torch.zeros(*shape).bfloat16() for shape in ((2, 6, 16), (16, 8), (6, 8)))
    dy, weight, kept_ = (torch.zeros(*shape).bfloat16() for shape in ((6, 32), (4, 8, 16), (6, 64)))

    def product(a=a, b1=b, b2=b, out=out):
        return machine.launch("gemm_pair", a, b1, b2, out, op="gated_mlp")

    def back(dy=dy, b=weight, gate=kept_, value=kept_, dgate=kept_, dvalue=kept_, out=kept_, activation="silu"):
        return machine.launch("gemm_gated_backward", dy, b, gate, value, dgate, dvalue, out, activation, op="gated_mlp")

    for call, words, wrong in [
        (product, "a: need two groups", {"a": torch.zeros(3, 6, 16).bfloat16()}),
        (product, "a: need three dimensions", {"a": a[0]}),
        (product, "b1: need as many rows as a has columns", {"b1": b[:8]}),
        (product, "b2: need as many rows as a has columns", {"b2": torch.zeros(16, 16).bfloat16()[:, ::2]}),
        (product, "out: need the dtype and device", {"out": out.float()}),
        (product, "out: need 6 rows of 8", {"out": out[:5]}),
        (back, "dy: need two dimensions, bf16 or f16", {"dy": dy.float()}),
        (back, "dy: need at most 32 channels", {"dy": torch.zeros(6, 40).bfloat16()}),
        (back, "b: need a contiguous last dimension", {"b": torch.zeros(4, 8, 32).bfloat16()[..., ::2]}),
        (back, "gate: need the channels of b's groups", {"gate": torch.zeros(6, 72).bfloat16()}),
        (back, "value: need 6 rows of 64", {"value": kept_[:5]}),
        (back, "value: need contiguous rows, as far apart", {"value": torch.zeros(6, 72).bfloat16()[:, :64]}),
        (back, "dvalue: need both or neither", {"dvalue": None}),
        (back, "out: need it, or dgate and dvalue", {"dgate": None, "dvalue": None, "out": None}),
        (back, "activation must be", {"activation": "mish"}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert product() == "gemm_bf16_mk_kn_tma"
    assert back() == "gemm_gated_bf16_slopes_tma"


@pytest.mark.parametrize("run", [kept(140, 1, 72, 136, dtype=d) for d in DTYPES], ids=["bf16", "fp16"])
def test_products_are_kept_in_either_type(built, run):
    assert run.wrong() == ""
