"""Each gradient asked for alone, of every op and backend without a GPU: the one that comes when all are asked for."""

import pytest

torch = pytest.importorskip("torch")

from tkpy import registry  # noqa: E402  (after the skip)
from tkpy.numerics import TOLERANCE, compare  # noqa: E402

OPS = registry.ops()
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}")
    for op in OPS.values()
    for case in op.cases
    if case.name in (op.cases[0].name, "non-contiguous", "strided")
]


def leaves_of(kwargs):
    tensors = {n: t for n, t in kwargs.items() if isinstance(t, torch.Tensor)}
    return [n for n, t in tensors.items() if t.element_size() > 1 and (t.is_floating_point() or t.is_complex())]


def gradients(op, kwargs, wanted, backend):
    """By name, of fixed cotangents; outputs that do not depend on what is wanted have none."""
    leaves = {name: kwargs[name].detach().requires_grad_() for name in wanted}
    result = op.public(**{**kwargs, **leaves}, backend=backend)
    outputs = [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]
    make = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=make, dtype=t.dtype.to_complex() if t.is_complex() else torch.float32)
                  for t in outputs]  # fmt: skip
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, cotangents, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True)
    return dict(zip(wanted, found, strict=True))


@pytest.mark.parametrize("backend", ["eager", "emulator"])
@pytest.mark.parametrize("op, case", CASES)
def test_a_gradient_alone(op, case, backend):
    dtype = torch.bfloat16 if backend == "emulator" else torch.float32
    kwargs = case.make(registry.Maker(dtype))
    if backend == "emulator" and (not op.differentiates(backend) or op.refusals(backend, registry.capture(op, kwargs))):
        pytest.skip("the kernels do not serve this call")
    names = leaves_of(kwargs)
    together = gradients(op, kwargs, names, backend)
    for name in names:
        alone = gradients(op, kwargs, [name], backend)[name]
        if together[name] is None:
            assert alone is None, name
        else:
            comparison = compare(
                alone, together[name].double() if not alone.is_complex() else together[name], TOLERANCE[dtype]
            )
            assert comparison, f"{name}: {comparison}"
