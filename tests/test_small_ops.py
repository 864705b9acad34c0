"""linear, layer_norm, rotary, blockdiag_linear, monarch_multiply: golden arrays, far positions, autocast, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tkpy

GOLDEN = Path(__file__).parent / "golden"


def arrays(name):
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}


def close(actual, expected, atol):
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=1e-5)


# ------------------------------------------------------------------------------------- block-diagonal and Monarch
BLOCKDIAG = arrays("m2/blockdiag_linear.npz")
MONARCH = arrays("m2/monarch_order2_multiply.npz")


def of_case(golden, name):
    return {key.split("/")[1]: torch.from_numpy(a) for key, a in golden.items() if key.startswith(name + "/")}


@pytest.mark.parametrize("name", BLOCKDIAG["names"])
def test_blockdiag_linear_golden(name):
    case = of_case(BLOCKDIAG, name)
    x, weight = case["x"].requires_grad_(), case["weight"].requires_grad_()
    bias = case["bias"].requires_grad_() if "bias" in case else None
    shuffle, out = "shuffle" in name, case["y"].shape[-1]
    y = tkpy.blockdiag_linear(x, weight, bias, shuffle=shuffle, out_features=out)
    close(y, case["y"], 2e-6)
    leaves = [x, weight] if bias is None else [x, weight, bias]
    grads = torch.autograd.grad(y, leaves, case["dy"])
    for grad, key in zip(grads, ("dx", "dweight", "dbias"), strict=False):
        close(grad, case[key], 5e-6)
    dense = tkpy.blockdiag_linear(torch.eye(x.shape[-1]), weight, shuffle=shuffle, out_features=out).T
    close(dense, case["dense_weight"], 0)


@pytest.mark.parametrize("name", MONARCH["names"])
def test_monarch_multiply_golden(name):
    case = of_case(MONARCH, name)
    leaves = [case[key].requires_grad_() for key in ("x", "w1", "w2")]
    y = tkpy.monarch_multiply(*leaves)
    close(y, case["y"], 5e-6)
    for grad, key in zip(torch.autograd.grad(y, leaves, case["dy"]), ("dx", "dw1", "dw2"), strict=True):
        close(grad, case[key], 2e-5)


def test_monarch_multiply_is_the_fourier_transform():
    """Bailey's four steps: DFT(N) = second factor (DFT(r), with twiddles) on the first (DFT(p)) of decimated input."""
    n1, n2 = 4, 8  # N = n1 * n2; x index n1 * a + b read as (b, a)
    a, b = torch.arange(n2, dtype=torch.float64), torch.arange(n1, dtype=torch.float64)
    first = torch.polar(torch.ones(n2, n2, dtype=torch.float64), -2 * torch.pi * torch.outer(a, a) / n2)
    first = first.expand(n1, n2, n2)
    x = torch.randn(n1 * n2, dtype=torch.float64)
    decimated = x.reshape(n2, n1).T.reshape(-1)  # k = n1 blocks of p = n2
    # block c (of n2) holds output frequencies c, c + n2, ...: twiddle exp(-2 pi i b c / N), then DFT(n1) over b
    angle = b[None, :] * (a[:, None, None] / (n1 * n2) + b[None, :, None] / n1)  # (l, s, r)
    second = torch.polar(torch.ones_like(angle), -2 * torch.pi * angle)

    m = tkpy.monarch_multiply  # real, and bilinear in its factors
    real = m(decimated, first.real, second.real) - m(decimated, first.imag, second.imag)
    imag = m(decimated, first.real, second.imag) + m(decimated, first.imag, second.real)
    y = torch.complex(real, imag)
    torch.testing.assert_close(y, torch.fft.fft(x))


# --------------------------------------------------------------------------------------------------------- rotary
ROPE = arrays("evo/op_rope.npz")
FORMS = {"plain": {}, "scaled16": {"scaling": 16.0}, "base500000": {"base": 500000.0}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [16, 128])
def test_rotary_golden(width, form):
    qkv, expected = torch.from_numpy(ROPE[f"qkv_d{width}"]), torch.from_numpy(ROPE[f"out_d{width}_{form}"])
    positions = torch.arange(qkv.shape[1])
    for i in range(2):  # queries and keys; values are not turned
        close(tkpy.rotary(qkv[:, :, i], positions, **FORMS[form]), expected[:, :, i], 5e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rotary_far_out(form):
    """At 100000 the stored float32 tables are off by 4e-3 radians; ours agree with float64 to float32 rounding."""
    qkv = torch.from_numpy(ROPE["qkv_d128"])[:, :, :2].flatten(2, 3)
    expected = torch.from_numpy(ROPE[f"out_d128_{form}_offset100000"])[:, :, :2].flatten(2, 3)
    positions = torch.arange(100000, 100000 + qkv.shape[1])
    y = tkpy.rotary(qkv, positions, **FORMS[form])
    close(y, expected, 2e-2)
    close(y, tkpy.rotary(qkv.double(), positions, **FORMS[form], backend="reference"), 1e-6)
    pairs = torch.ones(1, len(ROPE["big_pos"]), 1, 128)
    pairs[..., 64:] = 0  # the pair (1, 0) turns into (cos, sin)
    turned = tkpy.rotary(pairs, torch.from_numpy(ROPE["big_pos"]), **FORMS[form])[0, :, 0]
    stored = np.concatenate([ROPE[f"cos_d128_{form}_big"], ROPE[f"sin_d128_{form}_big"]], -1)
    close(turned, stored, 6e-3)


def test_rotary_depends_on_distance_only():
    q, k = torch.randn(1, 1, 2, 64, dtype=torch.float64), torch.randn(1, 1, 2, 64, dtype=torch.float64)

    def score(i, j):
        turned = tkpy.rotary(q, torch.tensor([i])), tkpy.rotary(k, torch.tensor([j]))
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score(7, 3), score(100007, 100003))
    assert not torch.allclose(score(7, 3), score(7, 4))


def test_rotary_positions_per_row_and_packed():
    x = torch.randn(2, 5, 3, 8)
    positions = torch.stack([torch.arange(5), torch.arange(11, 16)])
    y = tkpy.rotary(x, positions)
    for row in range(2):
        assert torch.equal(y[row], tkpy.rotary(x[row], positions[row]))
        assert torch.equal(y[row : row + 1], tkpy.rotary(x[row : row + 1], positions[row]))
    torch.testing.assert_close(tkpy.rotary(tkpy.rotary(x, positions), -positions), x)


# ------------------------------------------------------------------------------------------------ linear, layer_norm
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gated_mlp_golden(activation):
    golden = {key: torch.from_numpy(a) for key, a in arrays("evo/op_norm_mlp.npz").items()}
    x = golden["mlp_in"]
    y = tkpy.linear(tkpy.linear(x, golden["l1"], activation=activation) * tkpy.linear(x, golden["l2"]), golden["l3"])
    close(y, golden[f"mlp_{activation}"], 5e-5)


def test_linear_under_autocast():
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8, requires_grad=True), torch.randn(5)
    residual = torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = tkpy.linear(x, weight, bias)
        assert torch.equal(plain, torch.nn.functional.linear(x, weight, bias))
        summed = tkpy.linear(x, weight, bias, residual=residual)
    assert plain.dtype == torch.bfloat16
    assert summed.dtype == torch.float32  # a float32 residual stream is not rounded
    torch.testing.assert_close(summed, plain.float() + residual)
    summed.sum().backward()
    assert weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match=r"tkpy\.linear.*'weight'"):
        tkpy.linear(x.double(), weight)


@pytest.mark.parametrize("op", ["blockdiag_linear", "monarch_multiply"])
def test_block_products_under_autocast(op):
    function = getattr(tkpy, op)
    tensors = [torch.randn(3, 8), torch.randn(2, 6, 4)] + ([torch.randn(3, 5, 4)] if op == "monarch_multiply" else [])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(*tensors)
    assert torch.equal(y, function(*(t.bfloat16() for t in tensors)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_linear_overflow_to_minus_infinity_is_zero(activation):
    x = torch.full((1, 4), 300.0, dtype=torch.float16, requires_grad=True)
    weight = torch.full((1, 4), -300.0, dtype=torch.float16)
    y = tkpy.linear(x, weight, activation=activation)
    y.backward()
    assert y.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_layer_norm_parameter_gradients_keep_their_dtypes():
    x = torch.randn(6, 32, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, dtype=torch.float16, requires_grad=True)
    y = tkpy.layer_norm(x, weight, bias)
    y.float().square().sum().backward()
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.nn.functional.layer_norm(wide[0], (32,), wide[1], wide[2])
    expected.square().sum().backward()
    for t, w in zip((x, weight, bias), wide, strict=True):
        assert t.grad.dtype == t.dtype
        assert (t.grad.double() - w.grad).norm() <= 1e-2 * w.grad.norm()


# ------------------------------------------------------------------------------------------------- lengths that change
def test_only_the_length_changes_without_recompilation():
    weight, bias, blocks = torch.randn(8, 8), torch.randn(8), torch.randn(2, 4, 4)

    def run(x):  # (B, S, 8)
        y = tkpy.linear(x, weight, bias, activation="silu", residual=x)
        y = tkpy.layer_norm(y, weight[0], bias)
        y = tkpy.rotary(y.unflatten(-1, (2, 4)), torch.arange(x.shape[1])).flatten(-2)
        return tkpy.monarch_multiply(tkpy.blockdiag_linear(y, blocks, bias, shuffle=True), blocks, blocks)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 17, 64, 3):
            x = torch.randn(2, length, 8)
            assert torch.equal(compiled(x), run(x))


# ------------------------------------------------------------------------------------------------------------ refusals
def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


REFUSED = [
    ("linear", (zeros(2, 3), zeros(4, 5)), {}, ValueError, "'weight'.*K = 3"),
    ("linear", (zeros(2, 3), zeros(4, 3), zeros(3)), {}, ValueError, "'bias'.*N = 4"),
    ("linear", (zeros(2, 3), zeros(4, 3).double()), {}, TypeError, "'weight'.*float32.*float64"),
    ("linear", (zeros(2, 3), zeros(4, 3)), {"activation": "swish"}, ValueError, "'activation'.*'silu'.*'swish'"),
    ("linear", (zeros(2, 3), zeros(4, 3)), {"activation": 1}, TypeError, "'activation'"),
    ("linear", (zeros(2, 3), zeros(4, 3)), {"residual": zeros(1, 4)}, ValueError, r"'residual'.*\(2, 4\).*\(1, 4\)"),
    ("linear", (zeros(2, 3), zeros(4, 3)), {"residual": zeros(2, 4).half()}, TypeError, "'residual'"),
    ("linear", (zeros(2, 3), zeros(4, 3, dtype=torch.int64)), {}, TypeError, "'weight'.*int64"),
    ("linear", (torch.zeros(()), zeros(4, 3)), {}, ValueError, "'x'.*rank"),
    ("layer_norm", (zeros(2, 3), zeros(4), None), {}, ValueError, "'weight'.*D = 3"),
    ("layer_norm", (zeros(2, 3), None, None, -1.0), {}, ValueError, "'eps'.*at least 0"),
    ("layer_norm", (zeros(2, 3), None, None, float("nan")), {}, ValueError, "'eps'.*finite"),
    ("layer_norm", (None, None, None), {}, TypeError, "'x'"),
    ("rotary", (zeros(1, 2, 3, 5), torch.arange(2)), {}, ValueError, "'x'.*even"),
    ("rotary", (zeros(2, 4), torch.arange(2)), {}, ValueError, "'x'.*rank"),
    ("rotary", (zeros(1, 1, 2, 3, 4), torch.arange(2)), {}, ValueError, r"'x'.*\(B, S, H, D\)"),
    ("rotary", (zeros(1, 2, 3, 4), torch.arange(3)), {}, ValueError, "'positions'.*S = 2"),
    ("rotary", (zeros(3, 2, 1, 4), zeros(2, 2, dtype=torch.int64)), {}, ValueError, "'positions'.*B, S"),
    ("rotary", (zeros(1, 2, 3, 4), zeros(2)), {}, TypeError, "'positions'.*int32"),
    ("rotary", (zeros(1, 2, 3, 4), torch.arange(2)), {"base": 0}, ValueError, "'base'"),
    ("rotary", (zeros(1, 2, 3, 4), torch.arange(2)), {"scaling": -1.0}, ValueError, "'scaling'"),
    ("blockdiag_linear", (zeros(2, 9), zeros(2, 3, 4)), {}, ValueError, "'x'.*8 features"),
    ("blockdiag_linear", (zeros(2, 6), zeros(2, 3, 4)), {}, ValueError, "'x'.*up to 1 fewer"),
    ("blockdiag_linear", (zeros(2, 8), zeros(2, 3, 4), zeros(4)), {}, ValueError, "'bias'.*6 features"),
    ("blockdiag_linear", (zeros(2, 8), zeros(2, 3, 4)), {"out_features": 7}, ValueError, "'out_features'"),
    ("blockdiag_linear", (zeros(2, 8), zeros(2, 3, 4), zeros(6)), {"out_features": 5}, ValueError, "'out_features'"),
    ("blockdiag_linear", (zeros(2, 8), zeros(0, 3, 4)), {}, ValueError, "'weight'.*one block"),
    ("blockdiag_linear", (zeros(2, 8), zeros(2, 3, 4)), {"shuffle": 1}, TypeError, "'shuffle'"),
    ("blockdiag_linear", (zeros(2, 8), zeros(3, 4)), {}, ValueError, "'weight'.*rank 3"),
    ("monarch_multiply", (zeros(2, 7), zeros(2, 3, 4), zeros(3, 5, 2)), {}, ValueError, "'x'.*k \\* p = 8"),
    ("monarch_multiply", (zeros(2, 8), zeros(2, 3, 4), zeros(3, 5, 4)), {}, ValueError, "'w2'.*k \\* q = 6"),
    ("monarch_multiply", (zeros(2, 8), zeros(2, 3, 4).half(), zeros(3, 5, 2)), {}, TypeError, "'w1'"),
]


@pytest.mark.parametrize("op, args, kwargs, error, message", REFUSED)
def test_refusals_name_op_argument_need_and_got(op, args, kwargs, error, message):
    with pytest.raises(error, match=rf"tkpy\.{op}: argument {message}"):
        getattr(tkpy, op)(*args, **kwargs)


@pytest.mark.parametrize("op", ["linear", "blockdiag_linear", "monarch_multiply"])
def test_outputs_may_be_changed_in_place(op):
    """An output is no view of something inside the op, which autograd would refuse to change."""
    x = torch.randn(2, 3, 8, requires_grad=True)
    weights = {
        "linear": [torch.randn(4, 8), torch.randn(4)],
        "blockdiag_linear": [torch.randn(2, 3, 4)],
        "monarch_multiply": [torch.randn(2, 3, 4), torch.randn(3, 5, 2)],
    }
    y = getattr(tkpy, op)(x, *weights[op])
    (expected,) = torch.autograd.grad((3 * y).sum(), x, retain_graph=True)
    (found,) = torch.autograd.grad(y.mul_(3).sum(), x)
    assert torch.equal(found, expected)
