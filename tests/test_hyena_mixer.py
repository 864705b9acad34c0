"""hyena_mixer against the ops that it takes the place of, in pieces, and in the layer that uses it."""

import math

import pytest
import torch

import tkpy
from tkpy.nn.hyena import ModalFilter
from tkpy.numerics import compare

pytestmark = pytest.mark.fast


def call(length: int, width=6, modes=3, taps=4, groups=2, batch=2) -> dict:
    """Every option, in float64."""

    def complex_of(*shape):
        return torch.randn(*shape, dtype=torch.complex128)

    radius, angle = torch.rand(width, modes).double(), 2 * math.pi * torch.rand(width, modes).double()
    return {
        "z": torch.randn(batch, length, 3 * width).double(),
        "weight": torch.randn(3 * width, taps).double(),
        "poles": torch.polar(0.5 + 0.5 * radius, angle),
        "residues": complex_of(width, modes),
        "bias": torch.randn(3 * width).double(),
        "skip": torch.randn(width).double(),
        "groups": groups,
        "fir_state": torch.randn(batch, 3 * width, taps - 1).double(),
        "initial_state": complex_of(batch, width, modes),
        "output_final_state": True,
    }


def by_two_ops(z, weight, poles, residues, bias, skip, groups, fir_state, initial_state, output_final_state):
    filtered, fir = tkpy.short_conv(z.mT, weight, bias, initial_state=fir_state, output_final_state=True)
    x2, x1, v = (part.flatten(1, 2) for part in filtered.unflatten(1, (groups, 3, -1)).unbind(2))
    y, state = tkpy.modal_conv(
        v, poles, residues, skip, pre_gate=x1, post_gate=x2, initial_state=initial_state, output_final_state=True
    )
    return y.mT, fir, state


def leaves(kwargs: dict) -> list[torch.Tensor]:
    return [t.requires_grad_(True) for t in kwargs.values() if isinstance(t, torch.Tensor)]


def total(outputs) -> torch.Tensor:
    return sum((t.abs().square() * torch.arange(1, 1 + t.numel()).view(t.shape)).sum() for t in outputs)


@pytest.mark.parametrize("length", [1, 2, 70, 200])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_two_ops(length, groups):
    kwargs = call(length, groups=groups)
    inputs = leaves(kwargs)
    got, want = tkpy.hyena_mixer(**kwargs), by_two_ops(**kwargs)
    for a, b in zip(got, want, strict=True):
        assert compare(a, b, 1e-12)
    for a, b in zip(*(torch.autograd.grad(total(r), inputs) for r in (got, want)), strict=True):
        assert compare(a, b, 1e-12)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (2, 70, 1), (64, 65)], ids=str)
def test_pieces_are_the_whole_gradients_included(pieces):
    kwargs = call(sum(pieces))
    inputs = leaves(kwargs)
    whole = tkpy.hyena_mixer(**kwargs)
    parts, states = [], {}
    for z in kwargs["z"].split(pieces, 1):
        y, fir, state = tkpy.hyena_mixer(**kwargs | states | {"z": z})
        states = {"fir_state": fir, "initial_state": state}
        parts.append(y)
    joined = (torch.cat(parts, 1), fir, state)
    for a, b in zip(joined, whole, strict=True):
        assert compare(a, b, 1e-12)
    for a, b in zip(*(torch.autograd.grad(total(r), inputs) for r in (joined, whole)), strict=True):
        assert compare(a, b, 1e-10)


def test_a_single_token_is_hyena_step():
    kwargs = call(1)
    y, fir, state = tkpy.hyena_mixer(**kwargs)
    renamed = {k: v for k, v in kwargs.items() if k not in ("initial_state", "output_final_state")}
    want = tkpy.hyena_step(**renamed | {"z": kwargs["z"][:, 0], "state": kwargs["initial_state"]})
    for a, b in zip((y[:, 0], fir, state), want, strict=True):
        assert compare(a, b, 1e-12)


def test_no_state_is_asked_for():
    kwargs = call(9)
    y, fir, state = tkpy.hyena_mixer(**kwargs | {"output_final_state": False})
    assert fir is None
    assert state is None
    assert torch.equal(y, tkpy.hyena_mixer(**kwargs)[0])


def test_poles_that_are_not_numbers():
    kwargs = call(9)
    kwargs["poles"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"hyena_mixer: .*poles"):
        tkpy.hyena_mixer(**kwargs)


@pytest.mark.parametrize("column_split", [True, False])
def test_the_layer_uses_it(column_split):
    module = ModalFilter(6, 3, groups=3, column_split=column_split).double()
    z = torch.randn(2, 33, 18).double()
    with torch.no_grad(), tkpy.record_dispatches() as log:
        y, state = module(z)
    assert [run.op for run in log] == ["hyena_mixer"]
    want = by_two_ops(
        z, module.short_filter_weight[:, 0], *module.modes(), module.short_filter_bias, module.D,
        3 if column_split else 1, None, None, True,
    )  # fmt: skip
    for a, b in zip((y, state["fir"], state["iir"]), want, strict=True):
        assert compare(a, b, 1e-12)
