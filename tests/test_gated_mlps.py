"""The gated MLPs beyond their tables of cases: pieces of rows, and who uses the ops in the models, and when."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tkpy
from tkpy import registry
from tkpy.live_memory import LiveMemory
from tkpy.nn import GatedMLP, Linear, MonarchMLP, bare
from tkpy.numerics import compare
from tkpy.ops.gated_mlp import eager
from tkpy.registry import Maker


def blocks(rows=200, inner=62):
    make = Maker(torch.float32)
    gated, wo = make.randn(4, -(-2 * inner // 4), 8), make.randn(4, 8, -(-inner // 4))
    return {"x": make.randn(2, rows // 2, 30), "gated": gated, "wo": wo, "bias": make.randn(31), "inner": inner}


def dense():
    make = Maker(torch.float32)
    w1, w2 = make.randn(40, 24), make.randn(40, 24)
    return {"x": make.randn(2, 100, 24), "w1": w1, "w2": w2, "w3": make.randn(16, 40)}


@pytest.mark.parametrize("op, kwargs", [("gated_mlp", dense()), ("blockdiag_mlp", blocks())], ids=["dense", "blocks"])
def test_pieces_of_rows_change_nothing(monkeypatch, op, kwargs):
    """200 rows in four pieces, the last of which is shorter."""
    function = getattr(tkpy, op)
    want = function(**kwargs)
    monkeypatch.setattr(eager, "PIECE_BYTES", 1)
    assert len(eager.pieces(200, 40, kwargs["x"])) == 4
    assert compare(function(**kwargs), want, 1e-6)
    assert compare(want, function(**kwargs, backend="reference"), 1e-5)


def calls(layer, x) -> list[str]:
    with tkpy.record_dispatches() as log:
        layer(x)
    return [dispatch.op for dispatch in log]


def test_layers_are_one_call():
    assert calls(GatedMLP(16, 24), torch.randn(3, 16)) == ["gated_mlp"]
    assert calls(MonarchMLP(16, 24), torch.randn(3, 16)) == ["blockdiag_mlp", "layer_norm"]


class Watched(Linear):
    """Not exactly a Linear."""


def test_watched_and_swapped_layers_are_called():
    """With the same numbers."""
    for layer, watched in ((GatedMLP(16, 24), "l2"), (MonarchMLP(16, 24), "wo")):
        x, seen = torch.randn(3, 16), []
        want = layer(x)
        with getattr(layer, watched).register_forward_hook(lambda *args, seen=seen: seen.append(args[2].shape)):
            assert compare(layer(x), want, 1e-6)
        assert len(seen) == 1
        layer(x)
        assert len(seen) == 1
    swapped = GatedMLP(16, 24, linear_cls=Watched)
    assert not bare(swapped.l1)
    assert calls(swapped, torch.randn(3, 16)) == ["linear"] * 3


def test_dropout_is_dropped_between_the_layers():
    layer, x = MonarchMLP(16, 24, dropout=0.5), torch.randn(3, 16)
    assert "blockdiag_mlp" not in calls(layer, x)
    assert calls(layer.eval(), x) == ["blockdiag_mlp", "layer_norm"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"w2": torch.zeros(39, 24)}, "w2"),
        ({"w3": torch.zeros(16, 39)}, "w3"),
        ({"activation": "tanh"}, "activation"),
    ],
)
def test_gated_mlp_names_what_does_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        tkpy.gated_mlp(**{**dense(), **change})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"inner": 70}, "inner"),
        ({"gated": torch.zeros(4, 30, 8)}, "gated"),
        ({"bias": torch.zeros(28)}, "bias"),
        ({"out_features": 30}, "out_features"),
        ({"x": torch.zeros(3, 33)}, "x"),
    ],
)
def test_blockdiag_mlp_names_what_does_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        tkpy.blockdiag_mlp(**{**blocks(), **change})


BOTH = pytest.mark.parametrize(
    "op, kwargs", [("gated_mlp", dense()), ("blockdiag_mlp", blocks())], ids=["dense", "blocks"]
)


def kept_beside(given: list[torch.Tensor], function: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd holds for the backward beside `given`."""
    places = {t.untyped_storage().data_ptr() for t in given}
    held: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(size for place, size in held.items() if place not in places)


def kept_by(op: str, kwargs: dict, **more) -> int:
    given = [t for t in kwargs.values() if isinstance(t, torch.Tensor)]
    return kept_beside(given, lambda: getattr(tkpy, op)(**kwargs, **more))


def wanting(kwargs: dict, *names: str) -> dict:
    return {k: v.detach().requires_grad_(k in names) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}


@BOTH
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_gate_and_value_are_kept_where_a_gradient_is_wanted(op, kwargs, backend):
    inner = {"gated_mlp": 40, "blockdiag_mlp": 62}[op]
    assert kept_by(op, wanting(kwargs, "x"), backend=backend) == 2 * 200 * inner * 4
    assert kept_by(op, wanting(kwargs, "x"), backend=backend, recompute=True) == 0
    with torch.no_grad():
        assert registry.capture(registry.get(op), wanting(kwargs, "x"))["keep"] is False
    assert registry.capture(registry.get(op), wanting(kwargs))["keep"] is False


@BOTH
def test_recompute_and_checkpoint_change_nothing(op, kwargs):
    """And a second backward of a retained graph finds what was kept as it was."""
    names = [k for k, v in kwargs.items() if isinstance(v, torch.Tensor)]
    function = getattr(tkpy, op)
    given = wanting(kwargs, *names)
    leaves = [given[name] for name in names]
    y = function(**given)
    want = torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.sin().sum(), leaves)
    computed = torch.autograd.grad(function(**given, recompute=True).sin().sum(), leaves)
    through = checkpoint(lambda: function(**given).sin().sum(), use_reentrant=False)
    for found in (again, computed, torch.autograd.grad(through, leaves)):
        assert all(compare(a, b, 1e-6) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("kind", [GatedMLP, MonarchMLP])
def test_layers_that_recompute(kind):
    """The same gradients; of the inner width, which the other one keeps twice, nothing is kept."""
    x, inner = torch.randn(100, 16, requires_grad=True), 24
    layers = kind(16, inner), kind(16, inner, recompute=True)
    layers[1].load_state_dict(layers[0].state_dict())
    kept = [kept_beside([x, *layer.parameters()], lambda layer=layer: layer(x)) for layer in layers]
    assert kept[0] - kept[1] == 2 * 100 * inner * 4
    found = [torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()]) for layer in layers]
    assert all(compare(a, b, 1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("layer", [GatedMLP(16, 24), MonarchMLP(16, 24)], ids=["dense", "blocks"])
def test_inference_holds_nothing_of_the_inner_width(layer):
    x = torch.randn(1000, 16)
    with torch.no_grad(), LiveMemory([x, *layer.parameters()]) as memory:
        before = memory.live
        y = layer(x)
        assert memory.live == before + y.nbytes
