"""blockdiag_linear: y = x W^T + b with a block-diagonal W.

The layer of Monarch Mixer's MLP (Fu et al. 2023, section 3); a factor of a Monarch matrix (Dao et al. 2022, "Monarch").
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Op


def blockdiag_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    shuffle: bool = False,
    out_features: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Block-diagonal dense layer, accumulated in float32 (float64 for float64).

    Block k maps inputs [k i, (k + 1) i) to outputs [k o, (k + 1) o) by weight[k] (o, i). Sizes that nblocks does not
    divide are padded: I inputs are followed by zeros up to nblocks * i, with i = ceil(I / nblocks), and the last
    outputs are cropped, so that O = `out_features` remain, with o = ceil(O / nblocks).

    Args:
        x: (..., I), float32, bfloat16, float16 or float64, any strides.
        weight: (nblocks, o, i), x's dtype.
        bias: (O,) or None, x's dtype.
        shuffle: spread every block's inputs over all groups first: the (padded) channel g * i + c of x is read as
            channel c * nblocks + g, the permutation "(g c) -> (c g)".
        out_features: O. By default the bias's length; without a bias, nblocks * o (nothing is cropped).
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., O), contiguous, in x's dtype; under `torch.autocast` the operands are cast as for torch's own matmuls.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, weight, bias = autocast(x, weight, bias)
    check = Arguments("blockdiag_linear")
    check.tensor("x", x, "... I")
    check.tensor("weight", weight, "nblocks o i")
    check.tensor("bias", bias, "O", optional=True)
    check.same_dtype("x", "weight", "bias")
    check.same_device()
    check.flag("shuffle", shuffle)
    check.integer("out_features", out_features, minimum=0, optional=True)
    nblocks, o, i = weight.shape
    check.that(nblocks >= 1, "weight", "of at least one block", weight)
    if (x.shape[-1] + nblocks - 1) // nblocks != i:
        check.fail("x", f"of {nblocks * i} features, or up to {nblocks - 1} fewer", f"shape {tuple(x.shape)}")
    if bias is not None:
        out_features = _out_features(check, "bias", bias.shape[0], nblocks, o, out_features)
    elif out_features is not None:
        out_features = _out_features(check, "out_features", out_features, nblocks, o, out_features)
    return OP(x, weight, bias, shuffle, nblocks * o if out_features is None else out_features, backend=backend)


def _out_features(check: Arguments, name: str, features: int, nblocks: int, o: int, named: int | None) -> int:
    if (features + nblocks - 1) // nblocks != o:
        check.fail(name, f"of {nblocks * o} features, or up to {nblocks - 1} fewer", f"{features}")
    if named is not None and named != features:
        check.fail("out_features", f"the bias's length {features}", f"{named}")
    return features


def fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shuffle: bool, out_features: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _rows(call: Call) -> int:
    return call["x"].numel() // max(call["x"].shape[-1], 1)


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    x, weight = call["x"], call["weight"]
    reasons = []
    if x.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"))
    sizes = (_rows(call), weight.shape[0] * weight.shape[2], weight.shape[0] * weight.shape[1])
    if max(sizes) >= 2**31 - 512:
        reasons.append(Refusal("size", f"needs rows and channels below 2^31 - 512, got {sizes}"))
    return reasons


def flops(call: Call) -> int:
    return 2 * _rows(call) * call["weight"].numel()


def nbytes(call: Call) -> int:
    operands = sum(t.numel() * t.element_size() for t in call.tensors)
    return operands + _rows(call) * call["out_features"] * call["x"].element_size()


CASES = (
    Case(
        "small",
        lambda m: {"x": m.randn(2, 5, 32), "weight": m.randn(4, 12, 8), "bias": m.randn(48)},
        "the plain call",
    ),
    Case("no bias", lambda m: {"x": m.randn(7, 24), "weight": m.randn(3, 5, 8)}, "the gated layers of M2-BERT"),
    Case("one block", lambda m: {"x": m.randn(7, 10), "weight": m.randn(1, 6, 10), "bias": m.randn(6)}, "dense"),
    Case("blocks of one", lambda m: {"x": m.randn(7, 13), "weight": m.randn(13, 1, 1)}, "a diagonal"),
    Case(
        "padded",
        lambda m: {"x": m.randn(3, 50), "weight": m.randn(4, 18, 13), "bias": m.randn(70)},
        "neither size divides: zero-padded input, cropped output",
    ),
    Case(
        "padded without bias",
        lambda m: {"x": m.randn(3, 10), "weight": m.randn(4, 9, 3), "out_features": 33},
        "the output size by name",
    ),
    Case(
        "shuffle",
        lambda m: {"x": m.randn(2, 3, 24), "weight": m.randn(4, 5, 6), "bias": m.randn(20), "shuffle": True},
        "channels spread over the blocks, groups of another size than the blocks",
    ),
    Case(
        "padded shuffle",
        lambda m: {"x": m.randn(5, 10), "weight": m.randn(4, 9, 3), "bias": m.randn(33), "shuffle": True},
        "the padding is shuffled too",
    ),
    Case(
        "several tiles",
        lambda m: {
            "x": m.randn(1100, 77),
            "weight": m.randn(2, 70, 39, scale=0.2),
            "bias": m.randn(139),
            "shuffle": True,
        },
        "more rows, inputs and outputs than a tile; the weight's gradient in shares of the rows",
    ),
    Case("one vector", lambda m: {"x": m.randn(8), "weight": m.randn(2, 3, 4)}, "no leading dimension"),
    Case(
        "no rows",
        lambda m: {"x": m.randn(2, 0, 8), "weight": m.randn(2, 3, 4), "bias": m.randn(6), "shuffle": True},
        "zero-size batch",
    ),
    Case("no inputs", lambda m: {"x": m.randn(3, 0), "weight": m.randn(2, 3, 0), "bias": m.randn(6)}, "I = 0"),
    Case("no outputs", lambda m: {"x": m.randn(3, 4), "weight": m.randn(2, 0, 2)}, "O = 0"),
    Case(
        "a slice of no rows",
        lambda m: {"x": m.randn(3, 16)[:0, ::2], "weight": m.randn(2, 3, 4)},
        "PyTorch calls an empty slice contiguous, whatever its strides",
    ),
    Case(
        "slices of no inputs",
        lambda m: {"x": m.randn(3, 4)[:, :0], "weight": m.randn(2, 6, 8)[:, ::2, ::2][..., :0], "bias": m.randn(6)},
        "the same of the weight",
    ),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(24, 6, 5).transpose(0, 2),
            "weight": m.randn(6, 10, 4).transpose(0, 2),
            "bias": m.randn(80)[::2],
        },
        "strided x, weight and bias",
    ),
    Case(
        "large values",
        lambda m: {"x": m.randn(5, 24, scale=100.0), "weight": m.randn(3, 4, 8, scale=10.0), "bias": m.randn(12)},
        "products of some thousands",
    ),
    Case(
        "64k x 768 -> 6144",
        lambda m: {"x": m.randn(65536, 768), "weight": m.randn(4, 1536, 192, scale=0.05)},
        "the gated layers of M2-BERT-80M, two rows of 32k",
        bench=True,
    ),
)

OP = Op(
    "blockdiag_linear",
    blockdiag_linear,
    "(Tensor x, Tensor weight, Tensor? bias, bool shuffle, SymInt out_features) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    kernel="gemm",
)
