"""blockdiag_mlp: the gated MLP of Monarch Mixer (Fu et al. 2023, section 3), two block-diagonal layers in one call."""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.ops.gated_mlp.op import ACTIVATIONS
from tkpy.registry import Call, Case, Maker, Op


def blockdiag_mlp(
    x: torch.Tensor,
    gated: torch.Tensor,
    wo: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    inner: int | None = None,
    out_features: int | None = None,
    activation: str = "gelu",
    recompute: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """y = blockdiag_linear(act(g) * v, wo, bias), where g and v are the halves of blockdiag_linear(x, gated).

    The halves are taken of all channels together: the gate comes from the first half of x's blocks, the value from the
    second. Sizes that the number of blocks does not divide are padded as in `tkpy.blockdiag_linear`. Where a
    gradient is wanted, g and v are kept for it.

    Args:
        x: (..., C), float32, bfloat16, float16 or float64, any strides.
        gated: (nblocks, ceil(2 I / nblocks), ceil(C / nblocks)), x's dtype.
        wo: (nblocks, ceil(O / nblocks), ceil(I / nblocks)), x's dtype.
        bias: (O,) or None, x's dtype.
        inner: I; by default nblocks times wo's block.
        out_features: O; by default the bias's length, or without a bias nblocks times wo's block.
        activation: of the gate: "gelu" (exact, as in M2-BERT), "silu", "gelu_tanh" or "relu".
        recompute: keep nothing of the inner width; the backward computes g and v again, a third more of its products.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., O), contiguous, in x's dtype; under `torch.autocast` the operands are cast as for torch's own matmuls. The
        gated product is rounded to that dtype before the second layer.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, gated, wo, bias = autocast(x, gated, wo, bias)
    check = Arguments("blockdiag_mlp")
    check.tensor("x", x, "... C")
    check.tensor("gated", gated, "nblocks z c")
    check.tensor("wo", wo, "nblocks o i")
    check.tensor("bias", bias, "O", optional=True)
    check.same_dtype("x", "gated", "wo", "bias")
    check.same_device()
    check.integer("inner", inner, minimum=0, optional=True)
    check.integer("out_features", out_features, minimum=0, optional=True)
    check.choice("activation", activation, ACTIVATIONS)
    nblocks, o, i = wo.shape
    check.that(nblocks >= 1, "wo", "of at least one block", wo)

    def fits(name: str, features: int, width: int) -> None:
        if -(-features // nblocks) != width:
            check.fail(name, f"of {nblocks * width} features, or up to {nblocks - 1} fewer", f"{features}")

    inner = nblocks * i if inner is None else inner
    if bias is not None and out_features not in (None, bias.shape[0]):
        check.fail("out_features", f"the bias's length {bias.shape[0]}", f"{out_features}")
    features = nblocks * o if out_features is None else out_features
    features = features if bias is None else bias.shape[0]
    fits("x", x.shape[-1], gated.shape[2])
    fits("inner", inner, i)
    check.that(-(-2 * inner // nblocks) == gated.shape[1], "gated", f"for 2 x {inner} outputs", gated)
    fits("bias" if bias is not None else "out_features", features, o)
    tensors = [t for t in (x, gated, wo, bias) if t is not None]
    keep = not recompute and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y, _ = OP(x, gated, wo, bias, inner, features, activation, keep, backend=backend)
    return y


def fake(
    x: torch.Tensor,
    gated: torch.Tensor,
    wo: torch.Tensor,
    bias: torch.Tensor | None,
    inner: int,
    out_features: int,
    activation: str,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty((*x.shape[:-1], out_features)), x.new_empty((*x.shape[:-1], 2 * inner if keep else 0))


def _rows(call: Call) -> int:
    return call["x"].shape[:-1].numel()


def flops(call: Call) -> int:
    return 2 * _rows(call) * (call["gated"].numel() + call["wo"].numel())


def nbytes(call: Call) -> int:
    operands = sum(t.numel() * t.element_size() for t in call.tensors)
    return operands + _rows(call) * call["out_features"] * call["x"].element_size()


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    x = call["x"]
    reasons = []
    if x.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"))
    sizes = (_rows(call), x.shape[-1], 2 * call["inner"], call["out_features"])
    if max(sizes) >= 2**31 - 512:
        reasons.append(Refusal("size", f"needs rows and channels below 2^31 - 512, got {sizes}"))
    return reasons


def _case(
    name: str,
    why: str,
    rows: tuple[int, ...],
    nblocks: int,
    c: int,
    i: int,
    o: int,
    bench: bool = False,
    **more: object,
) -> Case:
    """C, I and O of all blocks together."""

    def make(m: Maker) -> dict[str, object]:
        wide, mid, out = (-(-n // nblocks) for n in (c, i, o))
        gated = m.randn(nblocks, -(-2 * i // nblocks), wide, scale=max(wide, 1) ** -0.5)
        wo = m.randn(nblocks, out, mid, scale=max(mid, 1) ** -0.5)
        return {"x": m.randn(*rows, c), "gated": gated, "wo": wo, "bias": m.randn(o), **more}

    return Case(name, make, why, bench=bench)


CASES = (
    _case("small", "the plain call", (2, 5), 4, 32, 64, 32),
    *(_case(a, "this activation", (7,), 2, 16, 48, 16, activation=a) for a in ACTIVATIONS),
    _case("one block", "dense", (7,), 1, 10, 24, 6),
    _case("odd blocks", "a block holds the end of the gate and the beginning of the value", (5,), 3, 24, 48, 24),
    _case("padded", "no size is divided", (3, 2), 4, 26, 50, 30, inner=50),
    _case("several tiles", "more rows, inner channels and outputs than a tile", (300,), 4, 160, 544, 160),
    _case("one vector", "no leading dimension", (), 2, 8, 16, 8),
    _case("no rows", "zero-size batch", (2, 0), 2, 8, 16, 8),
    _case("no inputs", "C = 0", (3,), 2, 0, 8, 4),
    _case("no middle", "I = 0: the bias alone", (3,), 2, 8, 0, 4),
    _case("no outputs", "O = 0", (3,), 2, 8, 16, 0),
    Case(
        "no bias",
        lambda m: {"x": m.randn(5, 16), "gated": m.randn(4, 12, 4), "wo": m.randn(4, 3, 6), "out_features": 11},
        "no bias, a cropped output by its size",
    ),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(24, 6, 5).transpose(0, 2),
            "gated": m.randn(6, 10, 4, scale=0.4).transpose(0, 2),
            "wo": m.randn(4, 8, 10, scale=0.3)[:, ::2, ::2],
            "bias": m.randn(32)[::2],
        },
        "strided x, weights and bias",
    ),
    _case("64k x 768 x 3072", "the MLP of M2-BERT-80M, two rows of 32k", (65536,), 4, 768, 3072, 768, bench=True),
)

OP = Op(
    "blockdiag_mlp",
    blockdiag_mlp,
    "(Tensor x, Tensor gated, Tensor wo, Tensor? bias, SymInt inner, SymInt out_features, str activation, bool keep)"
    " -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    saves=(1,),
    kernel="gemm_gated",
)
