"""wkv5 beyond the table of cases: golden arrays, carried states, extreme decays, causality, malformed calls."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tkpy
from tkpy.numerics import compare

GOLDEN = Path(__file__).parent / "golden" / "rwkv5"
NAMES = ("r", "k", "v", "w_raw", "u", "state_init")


def arrays(name):
    with np.load(GOLDEN / name) as stored:
        return {k: torch.from_numpy(stored[k]) for k in stored.files if stored[k].dtype.kind in "fi"}


def run(g, **options):
    """Outputs and gradients of a golden file, named as in the file."""
    leaves = {name: g[name].clone().requires_grad_() for name in NAMES}
    r, k, v, w, u, state = leaves.values()
    y, final = tkpy.wkv5(r, k, v, w, u, initial_state=state, output_final_state=True, **options)
    grads = torch.autograd.grad([y, final], list(leaves.values()), [g["gy"].to(y.dtype), g["g_state_final"]])
    names = ("gr", "gk", "gv", "gw_raw", "gu", "g_state_init")
    return {"y": y, "state_final": final} | dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_golden_with_state(backend):
    g = arrays("wkv5_op_b2_t48_state.npz")
    for name, value in run(g, backend=backend).items():
        result = compare(value, g[name], 1e-6)
        assert result, f"{name}: {result}"


def test_golden_with_state_in_bfloat16():
    """The golden inputs are bf16 numbers: only outputs and gradients are rounded."""
    g = arrays("wkv5_op_b2_t48_state.npz")
    low = {k: t.bfloat16() if k in ("r", "k", "v", "gy") else t for k, t in g.items()}
    for name, value in run(low).items():
        result = compare(value, g[name], 4e-3 if value.dtype == torch.bfloat16 else 1e-6)
        assert result, f"{name}: {result}"


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_golden_packed(backend):
    g = arrays("wkv5_op_varlen.npz")
    packed = {k: g[k][None] if k in ("r", "k", "v", "gy", "y", "gr", "gk", "gv") else g[k] for k in g}
    for name, value in run(packed, cu_seqlens=g["cu_seqlens"], backend=backend).items():
        result = compare(value, packed[name], 1e-6)
        assert result, f"{name}: {result}"


def inputs(length, *, heads=2, size=16, batch=2, low=-12.0, high=6.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    r, k, v = torch.randn(3, batch, length, heads, size, generator=generator).unbind()
    w = torch.linspace(low, high, heads * size)[torch.randperm(heads * size, generator=generator)].view(heads, size)
    u = torch.randn(heads, size, generator=generator)
    return r, k, v, w, u, torch.randn(batch, heads, size, size, generator=generator)


def results(tensors, cuts=(), backend=None):
    """y, final state and all gradients of one pass, or of pieces joined by their states."""
    r, k, v, w, u, state = leaves = [t.clone().requires_grad_() for t in tensors]
    bounds = [0, *cuts, r.shape[1]]
    ys = []
    for a, b in pairwise(bounds):
        y, state = tkpy.wkv5(
            r[:, a:b], k[:, a:b], v[:, a:b], w, u, initial_state=state, output_final_state=True, backend=backend
        )
        ys.append(y)
    y = torch.cat(ys, dim=1)
    generator = torch.Generator().manual_seed(9)
    cotangents = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (y, state)]
    return [y.detach(), state.detach(), *torch.autograd.grad([y, state], leaves, cotangents)]


@pytest.mark.parametrize("size", [8, 32, 64, 128])
def test_extreme_decays_in_float32(size):
    """Raw decays of -12..6 (w from 1 - 6e-6 to exp(-403) = 0), with every gradient, at the error of float32 itself."""
    tensors = inputs(200, size=size, batch=1)
    exact = results([t.double() for t in tensors], backend="reference")
    for name, value, wanted in zip(("y", "state", *NAMES), results(tensors), exact, strict=True):
        result = compare(value, wanted, 2e-6)
        assert result, f"{name}: {result}"


@pytest.mark.parametrize("raw", [-float("inf"), -100.0, 80.0, float("inf")])
def test_no_decay_and_no_memory(raw):
    r, k, v, w, u, state = inputs(40)
    w = torch.full_like(w, raw)
    y, grads = results((r, k, v, w, u, state))[0], results((r, k, v, w, u, state))[2:]
    if raw < 0:  # cumulative sums
        states = state[:, None] + (k[..., :, None] * v[..., None, :]).cumsum(1)
    else:  # only the token before
        states = k[..., :, None] * v[..., None, :]
    before = torch.cat([state[:, None], states[:, :-1]], dim=1)
    wanted = (r[..., None] * (before + u[..., None] * (k[..., None] * v[..., None, :]))).sum(-2)
    assert compare(y, wanted, 1e-5)
    assert all(torch.isfinite(g).all() for g in grads)


def test_every_split_is_one_pass():
    tensors = [t.double() for t in inputs(67, size=4)]
    whole = results(tensors)
    for cuts in [*((c,) for c in range(1, 67)), (0, 67), (1, 2, 3), (31, 32, 33, 64, 65, 66)]:
        for a, b in zip(results(tensors, cuts), whole, strict=True):
            assert compare(a, b, 1e-12), cuts


def test_packed_is_one_by_one():
    r, k, v, w, u, _ = inputs(75, batch=1)
    bounds = [0, 33, 33, 34, 75]
    y, state = tkpy.wkv5(r, k, v, w, u, output_final_state=True, cu_seqlens=torch.tensor(bounds))
    for i, (a, b) in enumerate(pairwise(bounds)):
        one, final = tkpy.wkv5(r[:, a:b], k[:, a:b], v[:, a:b], w, u, output_final_state=True)
        assert torch.equal(y[:, a:b], one)
        assert torch.equal(state[i], final[0])


@pytest.mark.parametrize("t", [0, 1, 31, 32, 63, 69])
def test_causality(t):
    r, k, v, w, u, state = inputs(70)
    y, _ = tkpy.wkv5(r, k, v, w, u, initial_state=state)
    changed = [x.clone() for x in (r, k, v)]
    for x in changed:
        x[:, t] = torch.nan
    z, _ = tkpy.wkv5(*changed, w, u, initial_state=state)
    # Within its own chunk a NaN meets the zeros above the diagonal; a finite change must not show there either.
    assert torch.equal(z[:, : t - t % 32], y[:, : t - t % 32])
    assert torch.isnan(z[:, t:]).all()
    for x in changed:
        x[:, t] = 100.0
    z, _ = tkpy.wkv5(*changed, w, u, initial_state=state)
    assert torch.equal(z[:, :t], y[:, :t])
    assert not torch.equal(z[:, t], y[:, t])


def test_gradcheck():
    tensors = [t.double().requires_grad_() for t in inputs(5, size=2, batch=1, low=-2.0, high=1.0)]

    def call(r, k, v, w, u, state):
        return tkpy.wkv5(r, k, v, w, u, initial_state=state, output_final_state=True)

    assert torch.autograd.gradcheck(call, tensors)


def test_inputs_are_untouched_and_outputs_are_fresh():
    r, k, v, w, u, state = inputs(40)
    before = state.clone()
    _, first = tkpy.wkv5(r, k, v, w, u, initial_state=state, output_final_state=True)
    assert torch.equal(state, before)
    _, passed = tkpy.wkv5(r[:, :0], k[:, :0], v[:, :0], w, u, initial_state=state, output_final_state=True)
    passed += 1
    first += 1
    assert torch.equal(state, before)


def test_autocast():
    r, k, v, w, u, state = inputs(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, final = tkpy.wkv5(r, k, v, w, u, initial_state=state, output_final_state=True)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)


def test_length_is_dynamic_under_compile():
    compiled = torch.compile(lambda *a: tkpy.wkv5(*a[:5], initial_state=a[5])[0], fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (37, 65, 130):
            r, k, v, w, u, state = inputs(length)
            for x in (r, k, v):
                torch._dynamo.mark_dynamic(x, 1)
            assert torch.equal(compiled(r, k, v, w, u, state), tkpy.wkv5(r, k, v, w, u, initial_state=state)[0])


BAD = [
    ("rank", {"r": torch.zeros(2, 4, 8)}, ValueError, "'r' must be a tensor of rank 4"),
    ("length", {"k": torch.zeros(1, 3, 2, 8)}, ValueError, "'k'.*T = 4"),
    ("dtype mix", {"v": torch.zeros(1, 4, 2, 8).half()}, TypeError, "'v'.*dtype of 'r'"),
    ("integers", {"r": torch.zeros(1, 4, 2, 8, dtype=torch.long)}, TypeError, "'r'.*dtype"),
    ("heads of w", {"w": torch.zeros(3, 8)}, ValueError, r"'w'.*H = 2"),
    ("dtype of w", {"w": torch.zeros(2, 8).half()}, TypeError, "'w'"),
    ("u missing", {"u": None}, TypeError, "'u' must be a tensor"),
    ("state", {"initial_state": torch.zeros(1, 2, 8, 7)}, ValueError, "'initial_state'"),
    ("state dtype", {"initial_state": torch.zeros(1, 2, 8, 8).half()}, TypeError, "'initial_state'"),
    ("flag", {"output_final_state": 1}, TypeError, "'output_final_state' must be True or False"),
    ("offsets of floats", {"cu_seqlens": torch.tensor([0.0, 4.0])}, TypeError, "'cu_seqlens'"),
    ("no offsets", {"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, "'cu_seqlens'.*at least 1"),
    ("offsets not to the end", {"cu_seqlens": torch.tensor([0, 3])}, ValueError, "'cu_seqlens'.*total length 4"),
    ("offsets from 1", {"cu_seqlens": torch.tensor([1, 4])}, ValueError, "'cu_seqlens'.*begin with 0"),
    ("falling offsets", {"cu_seqlens": torch.tensor([0, 5, 4])}, ValueError, "'cu_seqlens'.*never decrease"),
    ("states of a packed call", {"cu_seqlens": torch.tensor([0, 2, 4]), "initial_state": torch.zeros(1, 2, 8, 8)},
     ValueError, "'initial_state'.*S = 2"),
    ("packed rows", {n: torch.zeros(2, 4, 2, 8) for n in "rkv"} | {"cu_seqlens": torch.tensor([0, 4])},
     ValueError, "'r' must be of batch size 1"),
]  # fmt: skip


@pytest.mark.parametrize("change, error, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_malformed_calls(change, error, message):
    good = {n: torch.zeros(1, 4, 2, 8) for n in "rkv"} | {n: torch.zeros(2, 8) for n in "wu"}
    with pytest.raises(error, match=f"tkpy.wkv5: argument.*{message}"):
        tkpy.wkv5(**good | change)
