"""fft_conv against the original's arrays, and what holds of every convolution."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tkpy.ops import fft_conv

eager = importlib.import_module("tkpy.ops.fft_conv.eager")
GOLDEN = Path(__file__).parent / "golden" / "m2" / "fftconv.npz"
CASES = list(np.load(GOLDEN)["names"])
ARGUMENTS = {"u": "u", "k": "k_fwd", "k_reverse": "k_rev", "skip": "D", "pre_gate": "pregate", "post_gate": "postgate"}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_original(name):
    arrays = np.load(GOLDEN)
    get = {key.split("/")[1]: torch.tensor(arrays[key]) for key in arrays.files if key.startswith(name + "/")}
    kwargs = {arg: get[key].requires_grad_() for arg, key in ARGUMENTS.items() if key in get}
    y = fft_conv(**kwargs)
    torch.testing.assert_close(y, get["y"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(y.double(), get["y_f64_direct"], atol=2e-5, rtol=1e-5)
    found = torch.autograd.grad(y, list(kwargs.values()), get["dy"])
    for arg, gradient in zip(kwargs, found, strict=True):
        torch.testing.assert_close(
            gradient, get["d" + ARGUMENTS[arg]], atol=2e-5, rtol=1e-5, msg=lambda m, a=arg: f"d{a}: {m}"
        )


def test_bidirectional_is_the_circular_kernel_of_the_original():
    arrays = np.load(GOLDEN)
    k, reverse, full = (torch.tensor(arrays[f"bidir_L16/{n}"]) for n in ("k_fwd", "k_rev", "k_full_2L"))
    impulse = torch.zeros(1, 3, 16)
    impulse[..., 8] = 1
    y = fft_conv(impulse, k, k_reverse=reverse)[0]
    torch.testing.assert_close(y, full.roll(8, -1)[:, :16], atol=1e-6, rtol=0)


def test_causal():
    torch.manual_seed(0)
    u, k, gate = torch.randn(2, 3, 100), torch.randn(3, 100), torch.randn(2, 3, 100)
    y = fft_conv(u, k, pre_gate=gate)
    changed = u.clone()
    changed[..., 60] += 10
    moved = fft_conv(changed, k, pre_gate=gate) - y
    assert moved[..., :60].abs().max() < 1e-4 < moved[..., 60:].abs().max()


@pytest.mark.parametrize("length, taps, back", [(33, 33, 32), (33, 5, 0), (40, 1, 40), (31, 90, 90), (2, 2, 2)])
def test_nothing_wraps(length, taps, back):
    """An impulse at either end shows the taps on its side, and exact zeros (up to rounding) beyond them."""
    k, reverse = torch.ones(1, taps), torch.full((1, back), 2.0)
    for at in (0, length - 1):
        impulse = torch.zeros(1, 1, length)
        impulse[..., at] = 1
        y = fft_conv(impulse, k, k_reverse=reverse)[0, 0]
        lag = torch.arange(length) - at
        expected = ((lag >= 0) & (lag < taps)) * 1.0 + ((lag < 0) & (-lag <= back)) * 2.0
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


def test_gradcheck():
    torch.manual_seed(0)
    u, gate, post = (torch.randn(2, 2, 7, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k, reverse, skip = (torch.randn(2, *n, dtype=torch.float64, requires_grad=True) for n in ((9,), (4,), ()))
    assert torch.autograd.gradcheck(
        lambda u, k, r, s, a, b: fft_conv(u, k, k_reverse=r, skip=s, pre_gate=a, post_gate=b),
        (u, k, reverse, skip, gate, post),
    )


def test_blocks_of_channels_change_nothing(monkeypatch):
    """11 channels in blocks of 8 and 3 give what one block gives, gradients included."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, 11, 50),
        torch.randn(11, 50),
        torch.randn(11),
        torch.randn(2, 11, 50),
        torch.randn(2, 11, 50),
    ]
    tensors = [t.requires_grad_() for t in tensors]

    def run():
        u, k, skip, pre, post = tensors
        y = fft_conv(u, k, k_reverse=k, skip=skip, pre_gate=pre, post_gate=post)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    whole = run()
    monkeypatch.setitem(eager.BLOCK, "cpu", 1)
    for a, b in zip(run(), whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-5)


def test_fast_length():
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in [*range(1, 300), 4097, 65537, 100000]:
        size = eager.fast_length(least)
        assert size >= least
        assert size % 2 == 0
        assert smooth(size)
        assert not any(smooth(n) for n in range(least + least % 2, size, 2))


def test_autocast_casts_the_signal_but_not_the_filter():
    u, k = torch.randn(1, 2, 300), torch.randn(2, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fft_conv(u, k, post_gate=u.bfloat16())
    expected = fft_conv(u.bfloat16(), k, post_gate=u.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_no_recompilation_when_the_length_changes():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda u, k: fft_conv(u, k, skip=k[:, 0]), fullgraph=True, backend="aot_eager", dynamic=True
    )
    compiled(torch.randn(2, 3, 20), torch.randn(3, 20))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (33, 50):
            u, k = torch.randn(2, 3, length), torch.randn(3, length)
            assert torch.equal(compiled(u, k), fft_conv(u, k, skip=k[:, 0]))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"u": torch.randn(3, 8)},
            ValueError,
            r"'u' must be a tensor of rank 3 and shape \(B, H, L\), got shape \(3, 8\)",
        ),
        ({"k": torch.randn(4, 8)}, ValueError, r"'k' must be .* with H = 3, got shape \(4, 8\)"),
        ({"k": torch.randn(3, 8, dtype=torch.complex64)}, TypeError, "'k' must be a tensor of dtype"),
        ({"k_reverse": torch.randn(8)}, ValueError, "'k_reverse' must be"),
        ({"skip": torch.randn(3, 1)}, ValueError, "'skip' must be"),
        ({"pre_gate": torch.randn(2, 3, 9)}, ValueError, "'pre_gate' must be .* L = 8"),
        ({"post_gate": torch.randn(2, 3, 8).half()}, TypeError, "'post_gate' must be of the dtype of 'u'"),
        ({"k": [1.0, 2.0]}, TypeError, "'k' must be a tensor"),
    ],
)
def test_malformed(change, error, message):
    with pytest.raises(error, match=r"tkpy.fft_conv: argument " + message):
        fft_conv(**({"u": torch.randn(2, 3, 8), "k": torch.randn(3, 8)} | change))
