"""tkpy's ops inside torch: autocast, no recompilation when only the length changes, inductor, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import tkpy
from tkpy import conformance, registry
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import Maker

#: Keyword arguments of each op at sequence length (or number of rows) n.
BY_LENGTH = {
    "attention": lambda m, n: (
        {"q": m.randn(2, n, 4, 16), "k": m.randn(2, n, 2, 16), "v": m.randn(2, n, 2, 16)} | {"causal": True}
    ),
    "wkv5": lambda m, n: (
        {name: m.randn(2, n, 2, 8) for name in "rkv"}
        | {"w": m.randn(2, 8), "u": m.randn(2, 8), "output_final_state": True}
    ),
    "fft_conv": lambda m, n: {"u": m.randn(2, 3, n), "k": m.randn(3, n), "skip": m.randn(3)},
    "modal_conv": lambda m, n: (
        {"u": m.randn(2, 3, n)}
        | {
            "poles": torch.full((3, 2), 0.5 + 0.2j),
            "residues": torch.full((3, 2), 1 - 0.5j),
            "output_final_state": True,
        }
    ),
    "short_conv": lambda m, n: {"x": m.randn(2, 3, n), "weight": m.randn(3, 4), "output_final_state": True},
    "blockdiag_linear": lambda m, n: {"x": m.randn(2, n, 12), "weight": m.randn(3, 5, 4), "bias": m.randn(15)},
    "monarch_multiply": lambda m, n: {"x": m.randn(n, 16), "w1": m.randn(4, 4, 4), "w2": m.randn(4, 4, 4)},
    "rms_norm": lambda m, n: {"x": m.randn(2, n, 16), "weight": m.randn(16)},
    "layer_norm": lambda m, n: {"x": m.randn(2, n, 16), "weight": m.randn(16), "bias": m.randn(16)},
    "rotary": lambda m, n: {"x": m.randn(2, n, 3, 8), "positions": torch.arange(n)},
    "token_shift": lambda m, n: {"x": m.randn(2, n, 8), "mix": m.randn(4, 8), "last": m.randn(2, 8)},
    "group_norm": lambda m, n: {"x": m.randn(2, n, 3, 8), "weight": m.randn(3, 8), "gate": m.randn(2, n, 3, 8)},
    "hyena_filter": lambda m, n: (
        {"features": m.randn(n, 3), "times": m.randn(n).abs(), "input_weight": m.randn(8, 3), "input_bias": m.randn(8)}
        | {"hidden_weight": m.randn(2, 8, 8, scale=0.2), "hidden_bias": m.randn(2, 8), "frequency": m.randn(8)}
        | {"output_weight": m.randn(5, 8), "decay": m.randn(5)}
    ),
    "gated_mlp": lambda m, n: (
        {"x": m.randn(2, n, 8), "w1": m.randn(12, 8, scale=0.3), "w2": m.randn(12, 8, scale=0.3)}
        | {"w3": m.randn(5, 12, scale=0.3)}
    ),
    "blockdiag_mlp": lambda m, n: (
        {"x": m.randn(2, n, 8), "gated": m.randn(2, 12, 4, scale=0.5), "wo": m.randn(2, 4, 6, scale=0.4)}
        | {"bias": m.randn(8)}
    ),
    "attention_fp8": lambda m, n: (
        {name: m.randn(2, n, 2, 16).to(torch.float8_e4m3fn) for name in "qkv"} | {"out_dtype": m.dtype}
    ),
    "attention_decode": lambda m, n: (
        {"q": m.randn(2, 1, 4, 8), "seqlens": torch.tensor([n, n - 3])}
        | {name: m.randn(2, n, 2, 8) for name in ("k_cache", "v_cache")}
    ),
    "merge_state": lambda m, n: (
        {f"out{i}": m.randn(2, n, 3, 8) for i in (1, 2)} | {f"lse{i}": m.randn(2, 3, n) for i in (1, 2)}
    ),
    "wkv5_step": lambda m, n: (
        {name: m.randn(n, 2, 8) for name in ("r", "k", "v", "gate")}
        | {"w": m.randn(2, 8), "u": m.randn(2, 8), "initial_state": m.randn(n, 2, 8, 8)}
    ),
    "time_mix_step": lambda m, n: (
        {"x": m.randn(n, 12), "last": m.randn(n, 12), "mix": m.randn(4, 12)}
        | {name: m.randn(16, 12, scale=0.2) for name in ("receptance", "key", "value", "gate")}
        | {"w": m.randn(2, 8), "u": m.randn(2, 8), "initial_state": m.randn(n, 2, 8, 8)}
    ),
    "hyena_step": lambda m, n: (
        {"z": m.randn(n, 12), "weight": m.randn(12, 3), "skip": m.randn(4), "groups": 2}
        | {"poles": torch.full((4, 2), 0.5 + 0.2j), "residues": torch.full((4, 2), 1 - 0.5j)}
        | {"fir_state": m.randn(n, 12, 2), "state": torch.complex(m.randn(n, 4, 2), m.randn(n, 4, 2))}
    ),
    "hyena_mixer": lambda m, n: (
        {"z": m.randn(2, n, 12), "weight": m.randn(12, 3), "skip": m.randn(4), "groups": 2, "output_final_state": True}
        | {"poles": torch.full((4, 2), 0.5 + 0.2j), "residues": torch.full((4, 2), 1 - 0.5j)}
        | {"fir_state": m.randn(2, 12, 2)}
    ),
    "linear": lambda m, n: {"x": m.randn(2, n, 8), "weight": m.randn(5, 8), "activation": "gelu"},
}
OPS = registry.ops()

#: What autocast runs in low precision, as it does torch's own matmuls and convolutions; norms and rotary it leaves.
LOWERED = [
    "attention",
    "attention_decode",
    "blockdiag_linear",
    "blockdiag_mlp",
    "fft_conv",
    "gated_mlp",
    "hyena_mixer",
    "hyena_step",
    "linear",
    "modal_conv",
    "monarch_multiply",
    "time_mix_step",
    "wkv5",
    "wkv5_step",
]


def tensors_of(result):
    return [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]


def test_every_op_has_a_length():
    assert set(BY_LENGTH) == set(OPS)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_new_length_compiles_nothing_new(name):
    """The first length may be compiled as a constant, the second makes it a symbol, all others reuse that graph."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda kwargs: OPS[name].public(**kwargs), fullgraph=True, backend="aot_eager")
    for i, n in enumerate((16, 24, 7, 33, 130, 200)):
        kwargs = BY_LENGTH[name](Maker(), n)
        for t in kwargs.values():
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                t.requires_grad_(True)
        outputs = tensors_of(compiled(kwargs))
        for a, b in zip(outputs, tensors_of(OPS[name].public(**kwargs)), strict=True):
            assert torch.equal(a, b)
        sum(t.abs().sum() for t in outputs).backward()
        if i == 1:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs <= 2


@pytest.mark.parametrize("name", BY_LENGTH)
def test_autocast(name):
    """float32 inputs under bfloat16 autocast: products in bfloat16 where torch's would be, and still right."""
    op = OPS[name]
    kwargs = BY_LENGTH[name](Maker(), 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = tensors_of(op.public(**kwargs))
    expected = tensors_of(op.public(**conformance.widen(kwargs), backend="reference"))
    for a, b in zip(actual, expected, strict=True):
        comparison = compare(a, b, 2 * TOLERANCE[torch.bfloat16])  # inputs are rounded too
        assert comparison, f"{name}: {comparison}"
    assert (actual[0].dtype == torch.bfloat16) == (name in LOWERED)


@pytest.mark.parametrize("name", LOWERED)
def test_mixed_inputs_under_autocast(name):
    """Inside autocast the outputs of matmuls (bfloat16) meet float32 tensors: these ops take both."""
    kwargs = BY_LENGTH[name](Maker(), 9)
    first = next(k for k, t in kwargs.items() if isinstance(t, torch.Tensor))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        OPS[name].public(**kwargs | {first: kwargs[first].bfloat16()})


def test_inductor_compiles_a_chain_of_ops():
    """The default compiler, forward and backward, on ops between pointwise code."""

    def block(x, weight, norm):
        h = tkpy.rms_norm(x, norm) * 2 + 1
        return tkpy.linear(h, weight, activation="silu").sigmoid() + x

    leaves = [t.requires_grad_() for t in (torch.randn(3, 5, 8), torch.randn(8, 8), torch.ones(8))]
    torch._dynamo.reset()
    plain, compiled = block(*leaves), torch.compile(block, fullgraph=True)(*leaves)
    assert compare(compiled, plain, 1e-5)
    for a, b in zip(torch.autograd.grad(compiled.sum(), leaves), torch.autograd.grad(plain.sum(), leaves), strict=True):
        assert compare(a, b, 1e-5)


def test_a_tape_is_not_kept_without_need():
    """Under no_grad and inference_mode nothing requires grad, and results are the same."""
    x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8)
    expected = tkpy.rms_norm(x, weight)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = tkpy.rms_norm(x, weight)
        assert not y.requires_grad
        assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BY_LENGTH)
def test_cuda_graphs(name):
    """Ops run on the current stream and neither synchronise nor allocate outside torch's allocator."""
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in BY_LENGTH[name](Maker(), 64).items()}
    expected = tensors_of(OPS[name].public(**kwargs))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors_of(OPS[name].public(**kwargs))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert compare(a, b, 1e-5)
