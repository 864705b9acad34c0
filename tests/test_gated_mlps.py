"""The gated MLPs beyond their tables of cases: pieces of rows, and who uses the ops in the models, and when."""

from __future__ import annotations

import pytest
import torch

import tkpy
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
