"""One token in one op: what the layers of RWKV-5 and StripedHyena do with it, against the same token in a sequence."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import tkpy
from tkpy.nn import HyenaMixer, TimeMix
from tkpy.nn.hyena import ModalFilter
from tkpy.nn.rwkv5 import VERSIONS
from tkpy.numerics import TOLERANCE, compare
from tkpy.ops.time_mix_step.op import MAX_BATCH

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
    assert ran == {"time_mix_step", "linear"}  # the output's


def watched(module):
    module.key.register_forward_hook(lambda layer, args, out: None)


def patched(module):
    """As by techniques that wrap a layer's `forward`."""
    module.value.forward = module.value.forward


def with_a_bias(module):
    module.receptance.bias = torch.nn.Parameter(torch.randn_like(module.receptance.weight[:, 0]))


def adapted(module):
    """By a class of its own, as LoRA's."""
    torch.nn.utils.parametrize.register_parametrization(module.value, "weight", torch.nn.Identity())


PARTS = {"token_shift", "linear", "wkv5_step"}


@pytest.mark.parametrize("change", [watched, patched, with_a_bias, adapted])
@pytest.mark.parametrize("version", VERSIONS)
def test_time_mix_by_its_parts(version, change):
    """Where somebody does something else with a projection, every one is called; the output's does not matter."""
    module = scrambled(TimeMix(12, 4, 1, 3, attention=8, version=version), torch.float64)
    module.output.register_forward_hook(lambda layer, args, out: None)
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    assert agree(module, x, 1e-12) == {"time_mix_step", "linear"}
    change(module)
    assert agree(module, x, 1e-12) == PARTS


def test_time_mix_with_layers_of_others():
    module = scrambled(TimeMix(12, 4, 1, 3, linear_cls=torch.nn.Linear), torch.float64)
    assert agree(module, torch.randn(2, 3, 12, dtype=torch.float64), 1e-12) == PARTS - {"linear"}


@pytest.mark.parametrize("rows, ran", [(MAX_BATCH, {"time_mix_step", "linear"}), (MAX_BATCH + 1, PARTS)])
def test_time_mix_with_many_rows(rows, ran):
    module = scrambled(TimeMix(12, 4), torch.float64)
    assert agree(module, torch.randn(rows, 2, 12, dtype=torch.float64), 1e-12) == ran


def test_time_mix_under_autocast():
    module = scrambled(TimeMix(12, 4), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert agree(module, torch.randn(2, 3, 12), TOLERANCE[torch.bfloat16]) == PARTS


def test_time_mix_with_weights_that_are_not_plain():
    """Of a class that wraps other tensors, as distributed and quantised ones do."""
    module = scrambled(TimeMix(12, 4), torch.float64)
    module.gate.weight = torch.nn.Parameter(TwoTensor(*[module.gate.weight.detach()] * 2))
    x = torch.randn(2, 1, 12, dtype=torch.float64)
    assert not module._in_one_op(x)
    module.gate.weight = torch.nn.Parameter(module.gate.weight.detach().a)
    assert module._in_one_op(x)
    assert not module._in_one_op(x.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_time_mix_in_one_op_and_by_its_parts(version, dtype):
    """The same, in every dtype: parameters, edits of heads and a tuned state too."""
    module = TimeMix(48, 8, 1, 3, attention=32, version=version).enable_time_state()
    module.edit.enable()
    module = scrambled(module, dtype)
    module.time_state.data = module.time_state.data.float()
    x, tol = torch.randn(3, 2, 48).to(dtype), TOLERANCE[dtype]
    with torch.no_grad():
        y, state, ran = by_steps(module, x)
        watched(module)
        want, expected, others = by_steps(module, x)
    assert ran == {"time_mix_step", "linear"}
    assert others == PARTS
    assert compare(y, want, tol)
    assert y.dtype == dtype
    assert torch.equal(state["att_x"], expected["att_x"])
    assert compare(state["att_kv"], expected["att_kv"], tol)
    assert {key: value.dtype for key, value in state.items()} == {"att_x": dtype, "att_kv": torch.float32}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_compiled_step_is_one_graph(version):
    module = scrambled(TimeMix(12, 4, version=version), torch.float32)
    x = torch.randn(2, 3, 12)
    with torch.no_grad():
        _, state = module(x[:, :2])
        want, after = module(x[:, 2:], state)
        got, compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(x[:, 2:], state)
    assert compare(got, want, 1e-6)
    assert all(compare(compiled[key], value, 1e-6) for key, value in after.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_modal_filter(options, dtype):
    module = scrambled(ModalFilter(6, 3, **options), dtype)
    ran = agree(module, torch.randn(2, 5, 18, dtype=dtype), DTYPES[dtype])
    assert ran == {"hyena_step"}


@pytest.mark.parametrize("build, width", [(lambda: TimeMix(12, 4), 12), (lambda: HyenaMixer(6, 3, groups=2), 6)])
def test_layers_of_others_and_hooks_are_called_for_one_token(build, width):
    """Where there are any, the fused op lies between the projections, and takes the place of none."""
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
            first, after = module(x, state)
            second, _ = module(x, state)
        given = {t.untyped_storage().data_ptr() for t in (x, *state.values())}
        assert not given & {t.untyped_storage().data_ptr() for t in (first, *after.values())}
        assert first.any()
        assert torch.equal(first, second)
        assert all(torch.equal(state[key], value) for key, value in before.items())
