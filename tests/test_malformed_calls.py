"""Malformed calls at every op raise ValueError, TypeError or Unsupported, naming the op, and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tkpy
from tkpy import registry
from tkpy.registry import Maker

JUNK = [
    None,
    True,
    -1,
    0,
    7,
    2**40,
    -0.5,
    1e30,
    float("nan"),
    float("inf"),
    "gelu",
    "nonsense",
    (),
    (3, -7),
    (1, 2, 3),
    [1, 2],
    {"a": 1},
    object(),
    1 + 2j,
    torch.float32,
    torch.tensor(1.5),
    torch.zeros(0),
    torch.zeros(1, 2, 3, 4, 5),
    torch.full((3, 5), float("nan")),
    torch.arange(6),
    torch.arange(6, dtype=torch.int32).view(2, 3),
    torch.zeros(4, dtype=torch.bool),
    torch.zeros(4, dtype=torch.complex64),
    torch.zeros(2, 2, dtype=torch.uint8),
    torch.zeros(2, 3, device="meta"),
    torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse(),
]


def times(t, factor):
    """PyTorch has no arithmetic on 8-bit floats."""
    return t * factor if t.element_size() > 1 or not t.is_floating_point() else (t.float() * factor).to(t.dtype)


#: How a tensor of a good call is spoilt.
SPOILERS = {
    "int": lambda t: t.to(torch.int32),
    "bool": lambda t: t.bool(),
    "half": lambda t: t.half() if not t.is_complex() else t.real,
    "complex": lambda t: t.to(torch.complex64),
    "double": lambda t: t.double() if not t.is_complex() else t.to(torch.complex128),
    "fewer dims": lambda t: t[0] if t.dim() and t.shape[0] else t.reshape(-1),
    "more dims": lambda t: t[None],
    "shorter": lambda t: t[..., :-1] if t.dim() and t.shape[-1] else t,
    "longer": lambda t: torch.cat([t, t], -1) if t.dim() else t,
    "first dim": lambda t: torch.cat([t, t], 0) if t.dim() else t,
    "empty": lambda t: t[:0] if t.dim() else t,
    "last empty": lambda t: t[..., :0] if t.dim() else t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() > 1 else t,
    "NaN": lambda t: times(t, float("nan")) if t.is_floating_point() or t.is_complex() else t,
    "huge": lambda t: times(t, 1e38) if t.is_floating_point() or t.is_complex() else t + 2**30,
    "negative": lambda t: times(t, -1) if t.dtype != torch.bool else t,
    "reversed": lambda t: t.flip(0) if t.dim() else t,
    "meta": lambda t: t.to("meta"),
    "expanded": lambda t: t[..., :1].expand(t.shape) if t.dim() and t.shape[-1] else t,
}


def outcome(op, kwargs):
    """The call's result, or the error's text if it is one of the three that a caller may see."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return op.public(**kwargs)
    except (ValueError, TypeError, tkpy.Unsupported) as error:
        return str(error)


@pytest.mark.parametrize("op", registry.ops().values(), ids=lambda op: op.name)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_malformed_calls(op, data):
    cases = [case for case in op.cases if not case.bench]
    kwargs = data.draw(st.sampled_from(cases)).make(Maker(torch.float32))
    for name in data.draw(st.lists(st.sampled_from(sorted(kwargs)), min_size=1, max_size=2, unique=True)):
        if isinstance(kwargs[name], torch.Tensor) and data.draw(st.booleans()):
            kwargs[name] = SPOILERS[data.draw(st.sampled_from(sorted(SPOILERS)))](kwargs[name])
        else:
            kwargs[name] = data.draw(st.sampled_from(JUNK))
    result = outcome(op, kwargs)
    if isinstance(result, str):
        assert op.name in result, result


@pytest.mark.parametrize("op", registry.ops().values(), ids=lambda op: op.name)
def test_missing_and_unknown_arguments(op):
    with pytest.raises(TypeError):
        op.public()
    with pytest.raises(TypeError):
        op.public(**op.cases[0].make(Maker()), nonsense=1)
