"""short_conv beyond the table of cases: golden arrays, carried states, causality, malformed calls."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tkpy
from tkpy.numerics import compare

GOLDEN = Path(__file__).parent / "golden" / "evo" / "op_fir.npz"


def golden():
    with np.load(GOLDEN) as stored:
        return {k: torch.from_numpy(stored[k]) for k in stored.files}


def test_golden_prompt():
    g = golden()
    y, state = tkpy.short_conv(g["u"].transpose(1, 2), g["weight"][:, 0], g["bias"], output_final_state=True)
    assert compare(y, g["z_pre"], 1e-6)
    assert torch.equal(state, g["fir_state"])


def test_golden_steps():
    g = golden()
    state = g["fir_state"]
    for t in range(g["step_u"].shape[1]):
        y, state = tkpy.short_conv(
            g["step_u"][:, t, :, None], g["weight"][:, 0], g["bias"], initial_state=state, output_final_state=True
        )
        assert compare(y[..., 0], g["step_y"][:, t], 1e-6)
    assert torch.equal(state, g["fir_state_after"])


def inputs(length, taps, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 6, length), (6, taps), (6,), (2, 6, taps - 1))
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


@pytest.mark.parametrize("taps", [1, 2, 3, 8])
def test_agrees_with_conv1d(taps):
    x, weight, bias, _ = inputs(21, taps)
    y, _ = tkpy.short_conv(x, weight, bias, activation="silu")
    wanted = F.silu(F.conv1d(x, weight[:, None], bias, groups=6, padding=taps - 1)[..., :21])
    assert compare(y, wanted, 1e-12)


def results(tensors, cuts=(), activation=None):
    x, weight, bias, state = leaves = [t.clone().requires_grad_() for t in tensors]
    bounds = [0, *cuts, x.shape[-1]]
    ys = []
    for a, b in pairwise(bounds):
        y, state = tkpy.short_conv(
            x[..., a:b], weight, bias, initial_state=state, output_final_state=True, activation=activation
        )
        ys.append(y)
    y = torch.cat(ys, dim=-1)
    generator = torch.Generator().manual_seed(9)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (y, state)]
    return [y.detach(), state.detach(), *torch.autograd.grad([y, state], leaves, cotangents)]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("taps", [2, 3, 8])
def test_every_split_is_one_pass(taps, activation):
    """Gradients too, through states shorter and longer than the pieces."""
    tensors = inputs(11, taps)
    whole = results(tensors, (), activation)
    for cuts in [*((c,) for c in range(12)), (1, 2, 3, 4), tuple(range(1, 11)), (5, 5)]:
        for a, b in zip(results(tensors, cuts, activation), whole, strict=True):
            assert compare(a, b, 1e-12), cuts


def test_a_prompt_of_one_token_has_a_state_padded_with_zeros():
    x, weight, bias, _ = inputs(1, 3)
    _, state = tkpy.short_conv(x, weight, bias, output_final_state=True)
    assert torch.equal(state, F.pad(x, (1, 0)))


def test_causality():
    x, weight, bias, state = inputs(12, 4)
    y, _ = tkpy.short_conv(x, weight, bias, initial_state=state)
    for t in range(12):
        changed = x.clone()
        changed[..., t] = torch.nan
        z, _ = tkpy.short_conv(changed, weight, bias, initial_state=state)
        reached = torch.arange(12).ge(t) & torch.arange(12).lt(t + 4)
        assert torch.isnan(z).equal(reached.expand_as(z))
        assert torch.equal(z[..., ~reached], y[..., ~reached])


def test_gradcheck():
    tensors = [t.requires_grad_() for t in inputs(4, 3)]

    def call(x, weight, bias, state):
        return tkpy.short_conv(x, weight, bias, initial_state=state, output_final_state=True, activation="silu")

    assert torch.autograd.gradcheck(call, tensors)


def test_a_state_is_a_copy():
    x, weight, bias, state = inputs(9, 3)
    before = x.clone(), state.clone()
    for length in (9, 0):
        _, final = tkpy.short_conv(x[..., :length], weight, bias, initial_state=state, output_final_state=True)
        final += 1
    assert torch.equal(x, before[0])
    assert torch.equal(state, before[1])


BAD = [
    ("rank", {"x": torch.zeros(4, 8)}, ValueError, "'x' must be a tensor of rank 3"),
    ("channels", {"weight": torch.zeros(5, 3)}, ValueError, "'weight'.*C = 4"),
    ("nine taps", {"weight": torch.zeros(4, 9)}, ValueError, "'weight' must be of 1 to 8 taps"),
    ("no taps", {"weight": torch.zeros(4, 0)}, ValueError, "'weight' must be of 1 to 8 taps"),
    ("conv1d weight", {"weight": torch.zeros(4, 1, 3)}, ValueError, "'weight' must be a tensor of rank 2"),
    ("integers", {"x": torch.zeros(2, 4, 8, dtype=torch.int32)}, TypeError, "'x'.*dtype"),
    ("bias", {"bias": torch.zeros(3)}, ValueError, "'bias'.*C = 4"),
    ("bias number", {"bias": 0.0}, TypeError, "'bias' must be a tensor"),
    ("state", {"initial_state": torch.zeros(2, 4, 3)}, ValueError, "'initial_state'.*K-1 = 2"),
    ("state dtype", {"initial_state": torch.zeros(2, 4, 2).half()}, TypeError, "'initial_state'.*dtype of 'x'"),
    ("activation", {"activation": "gelu"}, ValueError, "'activation' must be one of None, 'silu'"),
    ("activation type", {"activation": True}, TypeError, "'activation'"),
    ("flag", {"output_final_state": None}, TypeError, "'output_final_state'"),
]


@pytest.mark.parametrize("change, error, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_malformed_calls(change, error, message):
    good = {"x": torch.zeros(2, 4, 8), "weight": torch.zeros(4, 3)}
    with pytest.raises(error, match=f"tkpy.short_conv: argument.*{message}"):
        tkpy.short_conv(**good | change)
