"""Every op, every case, every dtype: eager against the float64 reference; and what every torch op must do."""

from __future__ import annotations

import pytest
import torch

from tkpy import conformance, registry
from tkpy.registry import Maker

OPS = registry.ops()
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases if not case.bench
]
FIRST = [pytest.param(op, op.cases[0], id=op.name) for op in OPS.values()]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def leaves_of(kwargs):
    return [t for t in kwargs.values() if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_eager_agrees_with_the_reference(op, case, dtype):
    for result in conformance.check_case(op, case, dtype=dtype):
        assert result.comparison, str(result)


def reference_gradients(op, kwargs):
    """Of a cotangent that bfloat16 holds, by name of the input."""
    tensors = {n: t for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = [t for t in as_tuple(op.public(**{**kwargs, **leaves}, backend="reference")) if t is not None]
    outputs = [t for t in outputs if t.requires_grad and t.is_floating_point()]
    make = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=make).bfloat16().to(t.dtype) for t in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.differentiates("reference")], ids=lambda op: op.name)
def test_the_reference_rounds_a_gradient_once(op):
    """Whoever calls it with bfloat16 gets float64's gradients, rounded: no sum of it is in bfloat16."""
    for case in op.cases:
        if case.bench or not case.grad:
            continue
        kwargs = case.make(Maker(torch.bfloat16))
        floats = {n: t for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
        want = reference_gradients(op, kwargs | {name: t.double() for name, t in floats.items()})
        for name, got in reference_gradients(op, kwargs).items():
            error = (got.double() - want[name]).norm()
            assert error <= 2.0**-8 * want[name].norm(), (case.name, name, float(error))


@pytest.mark.parametrize("op, case", FIRST)
def test_forward_mode_is_refused(op, case):
    """Of a custom op PyTorch would return a tangent of zeros, without a word."""
    kwargs = case.make(Maker(torch.float32))
    name = next(n for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point())
    tangent = torch.ones(kwargs[name].shape, dtype=torch.float32)
    if kwargs[name].element_size() == 1:
        pytest.skip("PyTorch differentiates no 8-bit floats")
    with pytest.raises(registry.Unsupported, match="needs reverse mode"):
        torch.func.jvp(lambda t: op.public(**{**kwargs, name: t}), (kwargs[name],), (tangent,))
    with torch.autograd.forward_ad.dual_level():
        op.public(**kwargs)  # nothing here has a tangent


@pytest.mark.parametrize("op, case", FIRST)
def test_functional_gradients_are_refused(op, case):
    """PyTorch's own words name neither the op nor the way out; alone or around vmap or within it."""
    kwargs = case.make(Maker(torch.float32))
    name = next(n for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point())
    if kwargs[name].element_size() == 1:
        pytest.skip("PyTorch differentiates no 8-bit floats")

    def total(t):
        return sum(o.abs().sum() for o in as_tuple(op.public(**{**kwargs, name: t})) if o is not None)

    two = torch.stack([kwargs[name]] * 2)
    for gradient, argument in (
        (torch.func.grad(total), kwargs[name]),
        (torch.func.vmap(torch.func.grad(total)), two),
        (torch.func.grad(lambda ts: torch.func.vmap(total)(ts).sum()), two),
    ):
        with pytest.raises(registry.Unsupported, match=rf"tkpy\.{op.name}.*\n.*needs requires_grad"):
            gradient(argument)
    torch.func.grad(lambda t: (t * total(kwargs[name])).sum())(kwargs[name])  # of a constant there is none


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op, case", FIRST)
def test_vmap_is_a_loop_or_refused(op, case):
    kwargs = case.make(Maker(torch.float32))
    name = next(n for n, t in kwargs.items() if isinstance(t, torch.Tensor) and t.is_floating_point())
    if kwargs[name].element_size() == 1:
        pytest.skip("PyTorch stacks no 8-bit floats")

    def run(t):
        return tuple(o for o in as_tuple(op.public(**{**kwargs, name: t})) if o is not None)

    several = torch.stack([kwargs[name], kwargs[name].flip(0)])
    if "Tensor[]" in op.schema:
        with pytest.raises(registry.Unsupported, match="needs its batch in a dimension of its own"):
            torch.func.vmap(run)(several)
        return
    for mapped, *each in zip(torch.func.vmap(run)(several), *map(run, several), strict=True):
        assert torch.equal(mapped, torch.stack(each))


def captured(op, case, backend, dtype=torch.float32):
    kwargs = case.make(Maker(dtype))
    for name, t in kwargs.items():
        if isinstance(t, torch.Tensor) and t.dtype == torch.float8_e4m3fn:  # opcheck computes with its inputs
            kwargs[name] = t.double()
    for t in leaves_of(kwargs):
        t.requires_grad_(True)
    return (*registry._capture(op, (), kwargs).args.values(), backend)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("op, case", FIRST)
def test_opcheck(op, case, backend):
    """torch's own checks: schema (no hidden mutation or alias), fake, autograd, AOT with dynamic shapes."""
    torch.library.opcheck(op.torch_op, captured(op, case, backend))


@pytest.mark.parametrize("op, case", FIRST)
def test_opcheck_of_the_backward(op, case):
    args = captured(op, case, "eager")
    result = op.torch_op(*args)
    outputs = [t.detach() for t in as_tuple(result)]
    inputs = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    needs = [isinstance(args[i], torch.Tensor) and args[i].requires_grad for i in op.tensor_args]
    grads = [torch.ones_like(t) for t in outputs]
    saved = [outputs[i] for i in op._saves]
    torch.library.opcheck(
        op.torch_backward, (grads, saved, *inputs, needs), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("op, case", CASES)
def test_fake_shapes_and_strides(op, case):
    """The fake implementation promises exactly what the eager one returns."""
    args = captured(op, case, "eager")
    real, meta = as_tuple(op.torch_op(*args)), as_tuple(op._fake(*args[:-1]))
    for a, b in zip(real, meta, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


@pytest.mark.parametrize("op, case", FIRST)
def test_compiles_without_a_graph_break(op, case):
    kwargs = case.make(Maker(torch.float32))
    leaves = leaves_of(kwargs)
    for t in leaves:
        t.requires_grad_(True)

    def run(kwargs):
        result = op.public(**kwargs)
        return tuple(t for t in as_tuple(result) if t is not None)

    torch._dynamo.reset()
    plain = run(kwargs)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(kwargs)
    for a, b in zip(plain, compiled, strict=True):
        assert torch.equal(a, b)
    total = [sum(t.abs().sum() for t in out if t.requires_grad) for out in (plain, compiled)]
    for a, b in zip(*(torch.autograd.grad(t, leaves, allow_unused=True) for t in total), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("op, case", FIRST)
def test_refuses_unbuilt_backends(op, case):
    kwargs = case.make(Maker(torch.float32))
    for backend in ("cuda", "emulator"):
        if backend not in op.available:
            with pytest.raises(registry.Unsupported, match="not_built"):
                op.public(**kwargs, backend=backend)
    with pytest.raises(ValueError, match="backend"):
        op.public(**kwargs, backend="cpu")
    with pytest.raises(TypeError, match="backend"):
        op.public(**kwargs, backend=3)


@pytest.mark.parametrize("op, case", FIRST)
def test_the_cost_model_counts(op, case):
    call = registry._capture(op, (), case.make(Maker(torch.float32)))
    assert op.flops(call) > 0
    assert op.nbytes(call) > 0
