"""One token in one op: what the layers of RWKV-5 and StripedHyena do with it, against the same token in a sequence."""

import pytest
import torch

import tkpy
from tkpy.nn import HyenaMixer, TimeMix
from tkpy.nn.hyena import ModalFilter
from tkpy.nn.rwkv5 import VERSIONS
from tkpy.numerics import compare

pytestmark = pytest.mark.fast
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5}
FILTERS = {
    "columns split": {"groups": 3},
    "not split": {"groups": 3, "column_split": False},
    "no bias": {"short_bias": False, "short_length": 4},
    "one tap": {"short_length": 1, "max_radius": None},
}


def scrambled(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Random parameters: some of these start as zeros."""
    make = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        if name.endswith(("poles", "residues", "time_decay")):
            continue
        p.data.copy_(0.5 * torch.randn(p.shape, generator=make))
    return module.to(dtype)


def by_steps(module, x):
    """Token by token, with the ops that ran for the last one."""
    parts, state = [], None
    for t in range(x.shape[1]):
        with tkpy.record_dispatches() as log:
            y, state = module(x[:, t : t + 1], state)
        parts.append(y)
    return torch.cat(parts, 1), state, {run.op for run in log}


def agree(module, x, tol):
    whole, state = module(x)
    y, carried, ran = by_steps(module, x)
    assert compare(y, whole, tol)
    assert carried.keys() == state.keys()
    for key, value in state.items():
        assert carried[key].shape == value.shape
        assert carried[key].dtype == value.dtype
        assert value.numel() == 0 or compare(carried[key], value, tol)
    loss = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    parameters = list(module.parameters())
    if x.dtype == torch.float64:
        expected = torch.autograd.grad((whole * loss).sum(), parameters, allow_unused=True)
        got = torch.autograd.grad((y * loss).sum(), parameters, allow_unused=True)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            assert a is None or compare(a, b, 1e-9)
    return ran


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_time_mix(version, tuned, dtype):
    module = TimeMix(12, 4, 1, 3, attention=8, version=version)
    module = scrambled(module.enable_time_state() if tuned else module, dtype)
    ran = agree(module, torch.randn(2, 5, 12, dtype=dtype), DTYPES[dtype])
    assert "wkv5_step" in ran
    assert not ran & {"wkv5", "group_norm"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_modal_filter(options, dtype):
    module = scrambled(ModalFilter(6, 3, **options), dtype)
    ran = agree(module, torch.randn(2, 5, 18, dtype=dtype), DTYPES[dtype])
    assert ran == {"hyena_step"}


@pytest.mark.parametrize("build, width", [(lambda: TimeMix(12, 4), 12), (lambda: HyenaMixer(6, 3, groups=2), 6)])
def test_layers_of_others_and_hooks_are_called_for_one_token(build, width):
    """The fused op lies between the projections, and takes the place of none."""
    module, seen = scrambled(build(), torch.float32), []
    layers = {name: m for name, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, args, out, name=name: seen.append(name))
    module(torch.randn(1, 1, width))
    assert sorted(seen) == sorted(layers)
    assert len(layers) >= 2


def test_a_state_that_went_in_is_not_written_to():
    for made, width in ((TimeMix(12, 4), 12), (ModalFilter(6, 3), 18)):
        module = scrambled(made, torch.float32)
        x = torch.randn(1, 1, width)
        with torch.no_grad():
            _, state = module(torch.randn(1, 4, width))
            before = {key: value.clone() for key, value in state.items()}
            first, _ = module(x, state)
            second, _ = module(x, state)
        assert first.any()
        assert torch.equal(first, second)
        assert all(torch.equal(state[key], value) for key, value in before.items())
