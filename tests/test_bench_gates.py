"""What float64 costs a row's gate on a GPU: few operators, and memory that is there. Counted on the device meta."""

from __future__ import annotations

import pytest
import torch

from tkpy import registry
from tkpy.bench import passes
from tkpy.bench.op_rows import DeviceMaker
from tkpy.bench.spec import Environment, discover
from tkpy.bench.timer import WallTimer
from tkpy.errors import InternalError
from tkpy.live_memory import LiveMemory

META = torch.device("meta")
MOST_BYTES, MOST_OPERATORS = 60 << 30, 20_000  # of 80 GB beside what is timed; a tenth of a second of launches

#: Attention's rows take thousands of operators each even so: heads go one by one.
ROWS = [b for b in discover() if b.suite == "ops" and not b.group.startswith("attention") and b.dtype != "float16"]


class Counted(LiveMemory):
    def __init__(self, tensors):
        super().__init__(tensors)
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class Differentiated(torch.autograd.Function):
    """A backend's forward with its own backward, as the torch op has them."""

    @staticmethod
    def forward(ctx, op, module, *args):
        result = module.forward(*args)
        outputs = result if isinstance(result, tuple) else (result,)
        ctx.op, ctx.module, ctx.args = op, module, args
        ctx.kept = [outputs[i].detach() for i in op._saves]
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx, *grads):
        needs = [ctx.needs_input_grad[2 + i] for i in ctx.op.tensor_args]
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in ctx.args]
        found = ctx.module.backward(list(grads), ctx.kept, *args, needs=needs)
        wanted = dict(zip(ctx.op.tensor_args, found, strict=True))
        return (None, None, *(wanted.get(i) if ctx.needs_input_grad[2 + i] else None for i in range(len(args))))


def call(op, *args, backend=None):
    """An op's call as operators that can be counted: a torch op on meta would only say the shape of its result."""
    if registry._state.capturing:
        raise registry._Captured(op.call(*args))
    module = op.module(backend or "eager")
    if torch.is_grad_enabled() and hasattr(module, "backward"):
        return Differentiated.apply(op, module, *args)
    return module.forward(*args)


@pytest.fixture
def on_meta(monkeypatch):
    def draw(self, *shape, scale=1.0, dtype=None):
        return torch.empty(shape, device=META, dtype=dtype or self.dtype)

    monkeypatch.setattr(DeviceMaker, "randn", draw)
    monkeypatch.setattr(
        DeviceMaker, "uniform", lambda self, low, high, *shape, dtype=None: draw(self, *shape, dtype=dtype)
    )
    monkeypatch.setattr(DeviceMaker, "randint", lambda self, low, high, *shape: draw(self, *shape, dtype=torch.int64))
    monkeypatch.setattr(passes, "cotangents", lambda outputs, dtype: [torch.empty_like(t) for t in outputs])
    monkeypatch.setattr(registry.Op, "__call__", call)


@pytest.mark.fast
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_gate_is_cheap(on_meta, row):
    subject = row.prepare(Environment(META, WallTimer(), ours=()))
    inputs = [t for t in torch.utils._pytree.tree_leaves(subject.inputs) if isinstance(t, torch.Tensor)]
    with Counted(inputs) as counted, pytest.raises((InternalError, AttributeError)):  # there is nothing to compare
        subject.gate([])
    assert 0 < counted.operators <= MOST_OPERATORS
    assert counted.peak <= MOST_BYTES
