"""modal_conv against the original's arrays, and what holds of every linear recurrence."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tkpy.ops import modal_conv

eager = importlib.import_module("tkpy.ops.modal_conv.eager")
GOLDEN = Path(__file__).parent / "golden" / "evo"


def modes(channels, states, radius=(0.5, 0.999), dtype=torch.complex64):
    size, angle = torch.rand(channels, states).double(), torch.rand(channels, states).double()
    poles = torch.polar(radius[0] + (radius[1] - radius[0]) * size, 2 * math.pi * angle)
    return poles.to(dtype), torch.randn(channels, states, dtype=dtype)


def impulse(channels, length):
    u = torch.zeros(1, channels, length)
    u[..., 0] = 1
    return u


@pytest.fixture
def small_blocks(monkeypatch):
    """Two chunks a block, so that short inputs cross several blocks."""

    def shrink(batch, channels):
        monkeypatch.setitem(eager.BLOCK, "cpu", 2 * eager.CHUNK * batch * channels)

    return shrink


# ------------------------------------------------------------------------------------------------------------- golden
@pytest.mark.parametrize("length", [96, 257, 1024])
def test_filter_agrees_with_the_original(length):
    arrays = np.load(GOLDEN / "op_iir_filter.npz")
    poles, residues = (torch.view_as_complex(torch.tensor(arrays[n][:, :, 0])) for n in ("poles", "residues"))
    h, h64 = (torch.tensor(arrays[f"{n}_L{length}"]) for n in ("h", "h64"))
    poles, residues = poles[: h.shape[1]], residues[: h.shape[1]]
    y, _ = modal_conv(impulse(h.shape[1], length), poles, residues)
    torch.testing.assert_close(y, h, atol=5e-5, rtol=0)
    assert (y - h64).abs().max() <= (h - h64).abs().max()  # closer to float64 than the original's exp(t log p)


def test_block_of_the_original():
    """Gates, skip and filter of one StripedHyena block."""
    arrays = {k: torch.tensor(v) for k, v in np.load(GOLDEN / "block_hyena.npz").items() if v.dtype == np.float32}
    poles, residues = (torch.view_as_complex(arrays[f"param/filter.{n}"][:, :, 0]) for n in ("poles", "residues"))
    y, _ = modal_conv(
        arrays["v"], poles, residues, arrays["param/filter.D"], pre_gate=arrays["x1"], post_gate=arrays["x2"]
    )
    torch.testing.assert_close(y.mT, arrays["y_filter"], atol=5e-5, rtol=0)
    h, _ = modal_conv(impulse(64, 96), poles, residues)
    torch.testing.assert_close(h, arrays["h"], atol=5e-5, rtol=0)


def test_slow_poles_at_long_times():
    """Radius up to .999995 at t up to 131071: the original's float32 filter errs by 1e-4 here."""
    arrays = np.load(GOLDEN / "op_iir_filter.npz")
    poles = torch.view_as_complex(torch.tensor(arrays["slow_poles"][:, :, 0]))  # (4, 1)
    t = torch.tensor(arrays["slow_t"])
    y, _ = modal_conv(impulse(4, int(t[-1]) + 1), poles, torch.ones(4, 1, dtype=torch.complex64))
    assert (y[0][:, t] - torch.tensor(arrays["slow_real_fp64"])).abs().max() < 2e-6
    assert (y[0][:, t] - torch.tensor(arrays["slow_real_fp32_reference"])).abs().max() < 5e-4


# ----------------------------------------------------------------------------------------------- long time, size, speed
def test_phase_after_a_million_samples(small_blocks):
    small_blocks(1, 3)  # the most roundings: a carry every 128 samples
    poles = torch.tensor([0.9999999, 1j, 0.6 + 0.8j]).to(torch.complex64)[:, None]
    poles = (poles.to(torch.complex128) / poles.abs() * (1 - 1e-7)).to(torch.complex64)
    length = 1_000_000
    y, state = modal_conv(impulse(3, length), poles, torch.ones_like(poles), output_final_state=True)
    exact = poles.to(torch.complex128) ** (length - 1)
    assert exact.abs().min() > 0.5
    assert (state[0] - exact).abs().max() < 1e-5
    assert (y[0, :, -1] - exact[:, 0].real).abs().max() < 1e-5


def test_never_a_tensor_of_channels_by_modes_by_length():
    """Peak memory of the forward at H=256, S=8, L=131072, with all of its inputs and outputs, within 3x of them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to read peak memory")
    script = """
import torch, re
from tkpy.ops import modal_conv
torch.set_num_threads(1)
status = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
poles = torch.polar(torch.rand(256, 8) * .5 + .49, torch.rand(256, 8) * 6)
modal_conv(torch.randn(1, 256, 4096), poles, poles)
before = status("VmRSS")
u = torch.ones(1, 256, 131072)
y, _ = modal_conv(u, poles, poles)
print((status("VmHWM") - before) / (u.nbytes + y.nbytes))
"""
    ratio = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 0.9 < ratio < 3, ratio


def test_faster_than_generating_the_filter_and_fft():
    """In one run: the usual path, p^t = exp(t log p) for all (H, S, L), summed, FFT of 2L. Measured 40x to 60x."""
    torch.manual_seed(0)
    length = 4096
    poles, residues = modes(64, 8)
    u = torch.randn(1, 64, length)

    def plain():
        powers = torch.exp(torch.arange(length) * torch.log(poles)[..., None])
        h = (residues[..., None] * powers).real.sum(1)
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(h, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length]

    def seconds(run):
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        return best

    torch.testing.assert_close(modal_conv(u, poles, residues)[0], plain(), atol=5e-3, rtol=1e-3)
    assert seconds(lambda: modal_conv(u, poles, residues)) < seconds(plain) / 4


# ------------------------------------------------------------------------------------------------------ the recurrence
@pytest.mark.parametrize("cuts", [[1], [64, 65], [1, 2, 3, 190], [0, 130], list(range(1, 40))], ids=str)
def test_pieces_with_a_carried_state_equal_one_pass(cuts):
    """Outputs, and gradients of everything, through the carried state."""
    torch.manual_seed(0)
    length = 200
    poles, residues = modes(3, 4)
    tensors = [
        torch.randn(2, 3, length),
        poles,
        residues,
        torch.randn(3),
        torch.randn(2, 3, length),
        torch.randn(2, 3, length),
    ]
    tensors.append(torch.randn(2, 3, 4, dtype=torch.complex64))
    tensors = [t.requires_grad_() for t in tensors]
    u, poles, residues, skip, pre, post, initial = tensors

    def run(bounds):
        state, parts = initial, []
        for a, b in zip([0, *bounds], [*bounds, length], strict=True):
            cut = [t[..., a:b] for t in (u, pre, post)]
            y, state = modal_conv(
                cut[0],
                poles,
                residues,
                skip,
                pre_gate=cut[1],
                post_gate=cut[2],
                initial_state=state,
                output_final_state=True,
            )
            parts.append(y)
        y = torch.cat(parts, -1)
        loss = (y * torch.linspace(-1, 1, length)).sum() + (state * (1 - 2j)).real.sum()
        return [y, state, *torch.autograd.grad(loss, tensors)]

    for a, b in zip(run(cuts), run([]), strict=True):
        assert (a - b).norm() <= 5e-6 * b.norm()


@pytest.mark.parametrize("output_final_state", [False, True])
def test_gradcheck(output_final_state, small_blocks):
    """torch's convention for complex gradients, over three blocks, a tail, and the state."""
    small_blocks(1, 2)
    torch.manual_seed(0)
    poles, residues = modes(2, 2, dtype=torch.complex128)
    real = [torch.randn(1, 2, 4 * eager.CHUNK + 5, dtype=torch.float64) for _ in range(3)]
    initial = torch.randn(1, 2, 2, dtype=torch.complex128)
    skip = torch.randn(2, dtype=torch.float64)

    def run(u, poles, residues, skip, pre, post, initial):
        y, state = modal_conv(
            u, poles, residues, skip, pre_gate=pre, post_gate=post,
            initial_state=initial, output_final_state=output_final_state,
        )  # fmt: skip
        return (y[..., ::40], state) if output_final_state else y[..., ::40]

    leaves = [t.requires_grad_() for t in (real[0], poles, residues, skip, real[1], real[2], initial)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *p: run(leaves[0].detach(), *p, *leaves[4:]), leaves[1:4])


def test_gradient_only_of_the_state():
    poles, residues = modes(2, 3)
    u = torch.randn(1, 2, 100, requires_grad=True)
    _, state = modal_conv(u, poles, residues, output_final_state=True)
    (du,) = torch.autograd.grad(state.real.sum(), u)
    t = torch.arange(99, -1, -1)
    torch.testing.assert_close(du[0], (poles[..., None] ** t).real.sum(1), atol=1e-5, rtol=1e-4)


def test_many_blocks_equal_one(small_blocks):
    torch.manual_seed(0)
    poles, residues = modes(3, 4)
    tensors = [t.requires_grad_() for t in (torch.randn(2, 3, 700), poles, residues)]

    def run():
        y, state = modal_conv(*tensors, output_final_state=True)
        return [y, state, *torch.autograd.grad(y.square().mean() + state.abs().sum(), tensors)]

    whole = run()
    small_blocks(2, 3)
    for a, b in zip(run(), whole, strict=True):
        assert (a - b).norm() <= 5e-6 * b.norm()


def test_chunk_lengths_agree(monkeypatch):
    torch.manual_seed(0)
    poles, residues = modes(3, 4)
    tensors = [t.requires_grad_() for t in (torch.randn(1, 3, 5000), poles, residues)]

    def run(chunk):
        monkeypatch.setattr(eager, "CHUNK", chunk)
        y, state = modal_conv(*tensors, output_final_state=True)
        return [y, state, *torch.autograd.grad(y.square().mean() + state.abs().sum(), tensors)]

    usual = run(64)
    for chunk in (9, 16, 128):
        for a, b in zip(run(chunk), usual, strict=True):
            assert (a - b).norm() <= 5e-6 * b.norm()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_both_scans(count):
    torch.manual_seed(0)
    chunks, carry = torch.randn(3, 2, count, 4, dtype=torch.complex128), torch.randn(3, 2, 4, dtype=torch.complex128)
    q = eager.powers(modes(3, 4, dtype=torch.complex128)[0], count + 1, torch.complex128)
    in_order, doubling = (scan(chunks, carry, q) for scan in (eager.scan_in_order, eager.scan_by_doubling))
    x = carry
    for n in range(count):
        torch.testing.assert_close(in_order[:, :, n], x)
        torch.testing.assert_close(doubling[:, :, n], x)
        x = q[:, None, 1] * x + chunks[:, :, n]


def test_the_doubling_scan_serves_the_op(monkeypatch):
    torch.manual_seed(0)
    poles, residues = modes(3, 4)
    tensors = [t.requires_grad_() for t in (torch.randn(2, 3, 700), poles, residues)]

    def run():
        y, _ = modal_conv(*tensors)
        return [y, *torch.autograd.grad(y.square().mean(), tensors)]

    plain = run()
    monkeypatch.setattr(eager, "scan_in_order", eager.scan_by_doubling)
    for a, b in zip(run(), plain, strict=True):
        assert (a - b).norm() <= 5e-6 * b.norm()


@pytest.mark.parametrize("at", [0, 63, 64, 130])
def test_causal(at):
    torch.manual_seed(0)
    poles, residues = modes(3, 4)
    u = torch.randn(2, 3, 150)
    changed = u.clone()
    changed[..., at] += 1
    y, moved = modal_conv(u, poles, residues)[0], modal_conv(changed, poles, residues)[0]
    assert torch.equal(y[..., :at], moved[..., :at])
    assert (y[..., at] != moved[..., at]).all()


def test_no_subnormal_numbers_in_the_tables():
    """Powers that underflow are 0: subnormal operands make a matmul many times slower."""
    poles = torch.tensor([[0.1, 0.2j]], dtype=torch.complex64)
    tables = eager._Tables(poles, torch.ones_like(poles), None, 64, 4, torch.float32)
    for table in (tables.within, tables.into, tables.out_of, torch.view_as_real(tables.strides)):
        assert table.abs().min() == 0
        assert table[table != 0].abs().min() >= torch.finfo(torch.float32).tiny


# ------------------------------------------------------------------------------------------------ torch, and the caller
def test_autocast_casts_signals_but_never_poles():
    poles, residues = modes(2, 3, radius=(0.999, 0.9999))
    u = torch.randn(1, 2, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = modal_conv(u, poles, residues, post_gate=u.bfloat16(), output_final_state=True)
    expected, expected_state = modal_conv(
        u.bfloat16(), poles, residues, post_gate=u.bfloat16(), output_final_state=True
    )
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.complex64)
    assert torch.equal(y, expected)
    assert torch.equal(state, expected_state)


def test_no_recompilation_when_the_length_changes():
    torch._dynamo.reset()
    poles, residues = modes(3, 4)
    compiled = torch.compile(
        lambda u: modal_conv(u, poles, residues, output_final_state=True),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    compiled(torch.randn(2, 3, 20))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (33, 150):
            u = torch.randn(2, 3, length)
            for a, b in zip(compiled(u), modal_conv(u, poles, residues, output_final_state=True), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"u": torch.randn(3, 8)},
            ValueError,
            r"'u' must be a tensor of rank 3 and shape \(B, H, L\), got shape \(3, 8\)",
        ),
        ({"poles": torch.randn(3, 4)}, TypeError, "'poles' must be a tensor of dtype complex64 or complex128"),
        ({"poles": torch.full((3, 4), complex("nan"))}, ValueError, "'poles' must be finite"),
        ({"poles": torch.full((3, 4), complex(0, math.inf))}, ValueError, "'poles' must be finite"),
        ({"residues": torch.randn(3, 5, dtype=torch.complex64)}, ValueError, "'residues' must be .* S = 4"),
        (
            {"residues": torch.randn(3, 4, dtype=torch.complex128)},
            TypeError,
            "'residues' must be of the dtype of 'poles'",
        ),
        ({"skip": torch.randn(4)}, ValueError, "'skip' must be"),
        ({"pre_gate": torch.randn(2, 3, 8).half()}, TypeError, "'pre_gate' must be of the dtype of 'u'"),
        ({"post_gate": torch.randn(2, 3, 9)}, ValueError, "'post_gate' must be .* L = 8"),
        ({"initial_state": torch.randn(3, 4, dtype=torch.complex64)}, ValueError, "'initial_state' must be"),
        ({"initial_state": torch.randn(2, 3, 4)}, TypeError, "'initial_state' must be a tensor of dtype complex64"),
        ({"output_final_state": 1}, TypeError, "'output_final_state' must be True or False"),
    ],
)
def test_malformed(change, error, message):
    good = dict(zip(("poles", "residues"), modes(3, 4), strict=True)) | {"u": torch.randn(2, 3, 8)}
    with pytest.raises(error, match=r"tkpy.modal_conv: argument " + message):
        modal_conv(**(good | change))
