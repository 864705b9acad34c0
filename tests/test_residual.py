"""The fused norms' dropout and residual stream: the generator's known answers, statistics, masks, what is returned."""

from __future__ import annotations

import pytest
import torch

import tkpy
from tkpy.ops import residual as stream

NORMS = {
    "rms_norm": lambda x, **more: tkpy.rms_norm(x, torch.ones(x.shape[-1], dtype=x.dtype), **more),
    "layer_norm": lambda x, **more: tkpy.layer_norm(x, None, None, **more),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of Random123's kat_vectors, philox4x32 10."""
    seed = torch.tensor([key[1] << 32 | key[0]], dtype=torch.uint64).view(torch.int64)
    found = stream.philox(tuple(torch.tensor([c]) for c in counter), seed)
    assert " ".join(f"{int(w):08x}" for w in found) == words


def test_the_place_decides():
    """Element (row, col): word col % 4 of the counter (col // 4, row), whatever the shape of x."""
    seed = torch.tensor([7])
    mask = stream.kept(torch.empty(2, 3, 10), seed, 0.5)
    words = stream.philox((torch.tensor([2]), torch.tensor([4]), 0, 0), seed)
    assert bool(mask[1, 1, 9]) == (int(words[1]) >= 2**31)
    assert torch.equal(mask.view(6, 10), stream.kept(torch.empty(6, 10), seed, 0.5))
    assert torch.equal(mask[..., :7], stream.kept(torch.empty(2, 3, 7), seed, 0.5))
    assert not torch.equal(mask, stream.kept(torch.empty(2, 3, 10), seed + 1, 0.5))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_so_much_is_dropped(p):
    """Within five deviations, in all, in each row and in each column; the rest is divided by 1 - p."""
    x = torch.ones(1000, 500, dtype=torch.float64)
    _, z = NORMS["rms_norm"](x, dropout=p, return_residual=True)
    gone = (z == 0).double()
    assert torch.allclose(z[z != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-12)
    for share, n in ((gone.mean(), gone.numel()), (gone.mean(0), 1000), (gone.mean(1), 500)):
        assert ((share - p).abs() <= 5.5 * (p * (1 - p) / n) ** 0.5).all()
    neighbours = (gone[:, 1:] - p) * (gone[:, :-1] - p)
    assert abs(neighbours.mean()) <= 5 * p * (1 - p) / neighbours.numel() ** 0.5


@every_norm
def test_the_seed_comes_from_torchs_generator(norm):
    x = torch.randn(20, 30)
    torch.manual_seed(3)
    first, second = norm(x, dropout=0.5), norm(x, dropout=0.5)
    torch.manual_seed(3)
    assert torch.equal(norm(x, dropout=0.5), first)
    assert not torch.equal(first, second)
    assert torch.equal(norm(x, dropout=0.5, training=False), norm(x))


@every_norm
def test_the_gradient_has_the_mask_of_the_forward(norm):
    x, residual = torch.randn(6, 40, requires_grad=True), torch.randn(6, 40, requires_grad=True)
    y, z = norm(x, residual=residual, dropout=0.4, return_residual=True)
    torch.manual_seed(1)
    dx, dresidual = torch.autograd.grad((y * torch.randn(6, 40)).sum() + z.sum(), (x, residual))
    gone = z == residual
    assert 0.2 < gone.double().mean() < 0.6
    assert torch.equal(dx == 0, gone)
    torch.testing.assert_close(dx[~gone], dresidual[~gone] / 0.6)


@every_norm
def test_what_is_returned(norm):
    x, residual = torch.randn(4, 10).bfloat16(), torch.randn(4, 10)
    y, z = norm(x, residual=residual, return_residual=True)
    assert (y.dtype, z.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(z, residual + x.float())
    assert torch.equal(norm(x, residual=residual), y)
    assert torch.equal(y, norm(z).bfloat16())
    y, z = norm(x, return_residual=True)
    assert z is x


@every_norm
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"residual": torch.ones(4, 3)}, ValueError, "'residual'.*D = 10"),
        ({"residual": torch.ones(10)}, ValueError, "'residual' must be of x's shape"),
        ({"residual": torch.ones(4, 10, dtype=torch.float64)}, TypeError, "'residual' must be of x's dtype or"),
        ({"dropout": 1.0}, ValueError, "'dropout' must be below 1"),
        ({"dropout": -0.1}, ValueError, "'dropout' must be at least 0"),
        ({"training": 1}, TypeError, "'training'"),
        ({"dropout_seed": torch.ones(1)}, TypeError, "'dropout_seed'.*int64"),
        ({"return_residual": 0}, TypeError, "'return_residual'"),
    ],
)
def test_refusals(norm, options, error, message):
    with pytest.raises(error, match=message):
        norm(torch.ones(4, 10), **options)


@every_norm
def test_compiles_with_dropout(norm):
    """In one graph, and a fresh mask each time."""
    torch._dynamo.reset()
    run = torch.compile(lambda x: norm(x, residual=x, dropout=0.5), fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 16)
    assert not torch.equal(run(x), run(x))
