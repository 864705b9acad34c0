"""The gated MLPs' Triton kernels: what the tables of cases do not reach. As PTX in the emulator under all checks:
blocks padded at their ends only, some gradients only, what is computed again, read and written; in Triton's
interpreter: faults in the kernels' source, all of which must show."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the package triton")
from gated_triton_runs import blocks, dense, disagreement, overflowed  # noqa: E402
from triton_runs import gradients, shown  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
import tkpy.emulator.triton as emulator  # noqa: E402
from tkpy import registry  # noqa: E402


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The triton backend takes CPU tensors of every dtype."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])


@pytest.mark.parametrize(
    "kwargs, capability",
    [(dense(131, 75, 67, 33, torch.float16), 80), (blocks(33, 3, 20, 24, 22, torch.bfloat16), 90)],
    ids=["dense", "blocks padded"],
)
def test_computed_again(kwargs, capability):
    """Inputs and outputs are padded, the inner channels are not."""
    with emulator.emulated(capability):
        assert disagreement(kwargs | {"recompute": True}) == ""


@pytest.mark.parametrize(
    "kwargs, wanted, launches",
    [
        (dense(40, 16, 24, 8), ("x",), ["_gated", "_gemm", "_slopes", "_pair"]),
        (dense(40, 16, 24, 8), ("w1",), ["_gated", "_gemm", "_slopes", "_gemm"]),
        (dense(40, 16, 24, 8), ("w3",), ["_gated", "_gemm", "_slopes", "_gemm"]),
        (dense(40, 16, 24, 8, recompute=True), ("x", "w2"), ["_gated", "_gemm", "_gated", "_slopes", "_pair", "_gemm"]),
        (blocks(40, 2, 16, 24, 8), ("x",), ["_gated", "_blocks", "_slopes", "_blocks"]),
        (blocks(40, 2, 16, 24, 8), ("wo", "bias"), ["_gated", "_blocks", "_slopes", "_blocks"]),
        (blocks(40, 2, 16, 24, 8), ("bias",), ["_gated", "_blocks"]),
    ],
    ids=["x", "w1", "w3", "x w2 again", "blocks x", "blocks wo", "blocks bias"],
)
def test_only_what_is_wanted(kwargs, wanted, launches):
    with emulator.emulated() as runs:
        assert disagreement(kwargs, *wanted) == ""
    assert [run.kernel for run in runs] == launches


def test_products_that_overflowed():
    with emulator.emulated():
        assert overflowed() == ""


@pytest.mark.parametrize("name", ["gated_mlp", "blockdiag_mlp"])
def test_the_same_bits_and_nothing_from_outside(name):
    """Under another schedule, computed again, and as rows of a buffer of NaN; no argument is written to."""
    make = {"gated_mlp": dense(40, 16, 24, 8), "blockdiag_mlp": blocks(40, 2, 16, 24, 8)}[name]
    function, names = getattr(tkpy, name), tuple(k for k, v in make.items() if isinstance(v, torch.Tensor))
    with emulator.emulated(seed=1):
        want = gradients(function, make, names, "triton")
    around = torch.full((42, 40), float("nan"))
    around[1:-1, 4:20] = make["x"]
    before = {k: v.clone() for k, v in make.items() if isinstance(v, torch.Tensor)}
    for more in ({}, {"recompute": True}):
        with emulator.emulated(seed=20):
            got = gradients(function, make | {"x": around[1:-1, 4:20]}, names, "triton", **more)
        assert all(torch.equal(got[key], want[key]) for key in want)
    assert all(torch.equal(make[key], value) for key, value in before.items())


@pytest.mark.parametrize("groups", [1, 2])
def test_dh_never_goes_to_memory(groups):
    """dy, the weights, gate and value in, both slopes and h out, each once; and so the forward's."""
    rows, inner, side = 128, 128 * groups, 64 * groups
    kwargs = dense(rows, side, inner, side, torch.bfloat16)
    if groups > 1:
        kwargs = blocks(rows, groups, side, inner, side, torch.bfloat16)
    names = tuple(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
    with emulator.emulated() as runs:
        gradients(tkpy.gated_mlp if groups == 1 else tkpy.blockdiag_mlp, kwargs, names, "triton")
    moved = {run.kernel: [32 * sectors for sectors in run.sectors] for run in runs}
    weights, matrix = 2 * side * inner // groups, 2 * rows * inner
    assert moved["_gated"] == [2 * rows * side + 2 * weights, 3 * matrix]
    assert moved["_slopes"] == [2 * rows * side + weights + 2 * matrix, 3 * matrix]


#: What is done to the kernels' source.
FAULTS = {
    "relu's slope below": ("tl.where(g <= 0.0, 0.0, 1.0)", "tl.where(g <= 0.0, 1.0, 1.0)"),
    "relu's slope at 0": ("tl.where(g <= 0.0, 0.0, 1.0)", "tl.where(g < 0.0, 0.0, 1.0)"),
    "gelu's density": ("tl.exp(-0.5 * z * z)", "tl.exp(-z * z)"),
    "gelu without its density": ("below + z * 0.3989422804014327", "below + 0.0"),
    "gelu_tanh's inner slope": ("0.134145 * z * z", "0.044715 * z * z"),
    "silu's slope": ("act, slope = g * s, s + z * s * (1.0 - s)\n    return", "act, slope = g * s, s\n    return"),
    "gates of -inf": ("g = tl.where(g < -65504.0, -65504.0, g)", "g = g"),
    "the order of groups": ("_tile_at(tl.program_id(0) // G,", "_tile_at(tl.program_id(0) % G,"),
    "the gate's channels": ("g // 2 * K, (first_value", "g * K, (first_value"),
    "the value's channels": ("(first_value + g) // 2 * K", "g // 2 * K"),
    "inputs that are not there": ("& (of_value + k < channels)", ""),
    "the value by the gate's channels": ("at = row[:, None] * x_m + (of_value + k)[None, :] * x_k", "at = at"),
    "the value's weights of another group": ("w2_ptr + g * w2_g", "w2_ptr"),
    "the value's product begins again": ("value = tl.dot(x, w2, value,", "value = tl.dot(x, w2, tl.zeros_like(value),"),
    "the gate is not opened": ("h = _activate(gate, ACTIVATION) * value", "h = gate * value"),
    "h of another group": ("(g * N + col)[None, :]\n    if H", "col[None, :]\n    if H"),
    "gate kept as value": ("tl.store(value_ptr + to, value.to", "tl.store(value_ptr + to, gate.to"),
    "kept opened": ("tl.store(gate_ptr + to, gate.to", "tl.store(gate_ptr + to, _activate(gate, ACTIVATION).to"),
    "dy of another group": ("dy_ptr + g * K * dy_k", "dy_ptr + g * dy_k"),
    "outputs that are not there": ("tl.minimum(K, outputs - g * K)", "K"),
    "the last inner channel": ("g * N + col < inner)", "g * N + col < inner - 1)"),
    "slopes of another group": ("channel = (g * N + col)[None, :]", "channel = col[None, :]"),
    "dgate without the value": ("dh * value * slope", "dh * slope"),
    "dgate by the open gate": ("dh * value * slope", "dh * value * act"),
    "dvalue by the gate": ("(dh * act)", "(dh * gate)"),
    "h by the slope": ("(act * value)", "(slope * value)"),
    "one slope's product only": ("c = _add_product(c, a2_ptr", "_add_product(c, a2_ptr"),
    "the other's weights": ("a2_ptr, b2_ptr, row", "a2_ptr, b1_ptr, row"),
}  # fmt: skip


def test_faults_show(tmp_path):
    found = shown(tmp_path, "tkpy.ops.gated_mlp.triton", FAULTS, "gated_triton_runs:everything")
    assert found.pop("none") == ""
    assert not [name for name, difference in found.items() if not difference]
    assert len(found) == len(FAULTS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "again"])
def test_on_the_device(monkeypatch, dtype, recompute):
    monkeypatch.undo()
    for kwargs in (
        dense(999, 200, 520, 136, dtype),
        blocks(999, 4, 200, 512, 136, dtype),
        blocks(99, 3, 77, 52, 61, dtype),
    ):
        kwargs = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
        assert disagreement(kwargs | {"recompute": recompute}) == ""
