"""time_mix_step's Triton kernels: what the table of cases does not reach. As PTX in the emulator under all checks: rows
and stretches of C that divide nothing, what is read and written; in Triton's interpreter: faults in the kernel's
source, all of which must show."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the package triton")
from time_mix_triton_runs import disagreement, sized, strided  # noqa: E402  (after the skips)
from triton_runs import shown  # noqa: E402

import tkpy  # noqa: E402
import tkpy.emulator.triton as emulator  # noqa: E402
from tkpy import registry  # noqa: E402


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The triton backend takes CPU tensors of every dtype."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])


@pytest.mark.parametrize(
    "kwargs, capability",
    [
        (sized(1, 523, 3, 7, torch.bfloat16), 90),
        (sized(1, 520, 2, 8, torch.float16, "weight"), 80),
        (sized(1, 259, 3, 7, torch.float32), 90),
        (sized(16, 264, 5, 8, torch.bfloat16), 90),
        (sized(2, 259, 5, 7, torch.float16, "gate", "last"), 80),
        (sized(5, 131, 5, 7, torch.float32), 90),
        (strided(torch.bfloat16), 80),
    ],
    ids=["odd", "even", "float32", "products", "products odd", "products float32", "strided"],
)
def test_sizes(kwargs, capability):
    with emulator.emulated(capability) as runs:
        assert disagreement(kwargs) == ""
    assert [run.kernel for run in runs] == ["_project", "_forward"]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_bits_and_nothing_from_outside(batch):
    """Under another schedule, and as rows of buffers of NaN; no argument is written to."""
    kwargs = sized(batch, 152, 5, 7, torch.bfloat16)  # rows of as many bytes as keep pointers multiples of 16
    before = {name: value.clone() for name, value in kwargs.items()}
    with emulator.emulated(seed=1):
        want = tkpy.time_mix_step(**kwargs, backend="triton")
    assert all(torch.equal(kwargs[name], value) for name, value in before.items())
    for name in ("x", "last", "receptance", "key", "value", "gate"):
        around = torch.full((len(kwargs[name]) + 2, kwargs[name].shape[1]), float("nan")).bfloat16()
        around[1:-1] = kwargs[name]
        kwargs[name] = around[1:-1]
    with emulator.emulated(seed=20):
        got = tkpy.time_mix_step(**kwargs, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("batch", [1, 2])
def test_what_goes_to_memory(batch):
    """Of the first kernel r, k, v and the gate's argument in float32, and no mixed token."""
    channels, size = 512, 64
    kwargs = sized(batch, channels, 1, size, torch.bfloat16, "last", "gate", "initial_state")
    with emulator.emulated() as runs:
        tkpy.time_mix_step(**kwargs, backend="triton")
    moved = [tuple(32 * sectors for sectors in run.sectors) for run in runs]
    tokens, made, state = 2 * (2 * batch + 4) * channels, 4 * 4 * size * batch, 4 * size * size * batch
    assert moved == [(tokens + 2 * 4 * channels * size, made), (made + 2 * 4 * size + state, state + 2 * size * batch)]


#: What is done to the source.
FAULTS = {
    "mixed the other way": ("before + mix * (x - before)", "x + mix * (before - x)"),
    "without the token before": ("before + mix * (x - before)", "mix * x"),
    "the first token as it is": ("return mix * x", "return x"),
    "the mix of r": ("mix_ptr + m * C", "mix_ptr"),
    "x of the first token": ("x_ptr + b * C + c", "x_ptr + c"),
    "last of the first token": ("last_ptr + b * C + c", "last_ptr + c"),
    "the last token": ("inside = (b < B)", "inside = (b < B - 1)"),
    "the last channel's mix": ("mask=c < C,", "mask=c < C - 1,"),
    "r's weights for k": ("weight_ptr = key_ptr", "weight_ptr = receptance_ptr"),
    "k's weights for v": ("weight_ptr = value_ptr", "weight_ptr = key_ptr"),
    "v's weights for the gate": ("weight_ptr = gate_ptr", "weight_ptr = value_ptr"),
    "rows of weights": ("weight_ptr + row * C", "weight_ptr + row * DEPTH"),
    "the last row of weights": ("mask=(row < WIDTH) & (c < C)", "mask=(row < WIDTH - 1) & (c < C)"),
    "the last column of weights": ("mask=(row < WIDTH) & (c < C)", "mask=(row < WIDTH) & (c < C - 1)"),
    "a stretch of C": ("tl.range(0, C, DEPTH,", "tl.range(0, DEPTH, DEPTH,"),
    "the same stretch": ("c = start + tl.arange", "c = 0 * start + tl.arange"),
    "sums begin again": ("made += weight", "made = weight"),
    "products begin again": ("(weight.dtype), made,", "(weight.dtype), tl.zeros_like(made),"),
    "the sum of some": ("tl.sum(made, 1, keep_dims=True)", "tl.max(made, 1, keep_dims=True)"),
    "blocks of rows": ("tl.program_id(0).to(tl.int64) * ROWS", "tl.program_id(1).to(tl.int64) * ROWS"),
    "all tokens at the first": ("(m * B + b[None, :]) * WIDTH", "(m * B + 0 * b[None, :]) * WIDTH"),
    "all projections at r": ("(m * B + b[None, :]) * WIDTH", "b[None, :] * WIDTH"),
    "the last row": ("(b[None, :] < B) & (row < WIDTH)", "(b[None, :] < B) & (row < WIDTH - 1)"),
    "a row of the last token": ("(b[None, :] < B) & (row < WIDTH)", "(b[None, :] < B - 1) & (row < WIDTH)"),
    "the last block": ("triton.cdiv(width, tile", "(width // tile"),
    "no gate made": ('tile["ROWS"]), len(weights))', 'tile["ROWS"]), 3)'),
    "last is x": ("x if last is None else last,", "x,"),
    "x before the first token": ("LAST=last is not None", "LAST=True"),
    "made in 16 bits": ("*heads, dtype=torch.float32", "*heads, dtype=x.dtype"),
    "tokens as they lie": ("tokens = [t.contiguous() for", "tokens = [t for"),
    "weights as they lie": ("rows = [t.contiguous() for", "rows = [t for"),
    "r for k": ("r, k, v, g = [*_", "k, r, v, g = [*_"),
    "z in float32": ("eps, dtype=x.dtype)", "eps)"),
}  # fmt: skip


def test_faults_show(tmp_path):
    found = shown(tmp_path, "tkpy.ops.time_mix_step.triton", FAULTS, "time_mix_triton_runs:everything")
    assert found.pop("none") == ""
    assert not [name for name, difference in found.items() if not difference]
    assert len(found) == len(FAULTS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_the_device(monkeypatch, dtype):
    monkeypatch.undo()
    for sizes in ((1, 2048, 32, 64), (16, 2048, 32, 64), (1, 523, 3, 7), (5, 259, 5, 128)):
        kwargs = {name: None if t is None else t.cuda() for name, t in sized(*sizes, dtype).items()}
        assert disagreement(kwargs) == ""
