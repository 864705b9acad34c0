"""monarch_multiply: y = M x with an order-2 Monarch matrix M = P' B2 P B1 (Dao et al. 2022, "Monarch", section 3)."""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments, autocast
from tkpy.errors import Refusal
from tkpy.registry import Call, Case, Op

MOST_BYTES = 224 * 1024  # of shared memory, as in csrc/kernels/monarch/params.h


def monarch_multiply(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, *, backend: str | None = None
) -> torch.Tensor:
    """Multiply by an order-2 Monarch matrix: two block-diagonal factors with strided permutations between and after.

    B1 has k blocks (q, p) on consecutive inputs; B2 has l blocks (s, r), block b on the strided entries
    b, b + l, b + 2l, ... of B1's result, and its results go to the same strided places of y:

        h[k, q] = sum_p w1[k, q, p] x[k, p],   h flat is read as h[r, l],   y[s, l] = sum_r w2[l, s, r] h[r, l].

    With k = l = q = p = s = r = sqrt(N) it costs 2 N^1.5 multiplications, and the discrete Fourier transform of size N
    is of this form up to a permutation of the input. The factors may be rectangular.

    Args:
        x: (..., k * p), float32, bfloat16, float16 or float64, any strides.
        w1: (k, q, p), x's dtype.
        w2: (l, s, r), x's dtype, with l * r = k * q.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        (..., s * l), contiguous, in x's dtype; accumulated in float32 (float64 for float64), h rounded to x's dtype.
        Under `torch.autocast` the operands are cast as for torch's own matmuls.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    x, w1, w2 = autocast(x, w1, w2)
    check = Arguments("monarch_multiply")
    check.tensor("x", x, "... n")
    check.tensor("w1", w1, "k q p")
    check.tensor("w2", w2, "l s r")
    check.same_dtype("x", "w1", "w2")
    check.same_device()
    (k, q, p), (l, _, r) = w1.shape, w2.shape
    if x.shape[-1] != k * p:
        check.fail("x", f"of k * p = {k * p} features", f"shape {tuple(x.shape)}")
    if l * r != k * q:
        check.fail("w2", f"of shape (l, s, r) with l * r = k * q = {k * q}", f"shape {tuple(w2.shape)}")
    keep = torch.is_grad_enabled() and w2.requires_grad
    if keep and (x.is_cuda or backend == "emulator"):
        keep = not on_chip(x, w1, w2)
    y, _ = OP(x, w1, w2, keep, backend=backend)
    return y


def on_chip(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, side: int = 64) -> bool:
    """Whether the compiled backward keeps the sums of a factor's gradient in registers, and h and dh on the chip: then
    it needs no h. With a side of 48: those of both factors at once."""
    (k, q, p), (l, s, r) = w1.shape, w2.shape
    sizes = all(size % 16 == 0 and 0 < size <= side for size in (q, p, s, r)) and l % 8 == 0 and 0 < k <= l <= 64
    return sizes and x.dtype in (torch.bfloat16, torch.float16) and x.numel() > 0


def fake(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    (k, q, _), (l, s, _) = w1.shape, w2.shape
    return x.new_empty((*x.shape[:-1], s * l)), x.new_empty((*x.shape[:-1], k * q if keep else 0))


def _rows(call: Call) -> int:
    return call["x"].numel() // max(call["x"].shape[-1], 1)


def _shared_bytes(call: Call) -> int:
    """Of a CTA in a cluster of 8 with 16 rows (shared_bytes of params.h): the backward's where one may come."""
    (k, q, _), (l, s, r) = call["w1"].shape, call["w2"].shape
    granules = 256 * -(-l // 64)
    forward, backward = granules * r, granules * s + 32 * -(-k // 8) * q
    return max(forward, backward) if any(t.requires_grad for t in call.tensors) else forward


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("cuda", "emulator"):
        return []
    x, w1, w2 = call["x"], call["w1"], call["w2"]
    reasons = []
    if x.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(x.dtype).removeprefix('torch.')}"))
    sizes = (*w1.shape[1:], *w2.shape)
    if any(size % 8 or size == 0 for size in sizes) or w1.shape[0] == 0:
        reasons.append(Refusal("sizes", f"needs q, p, l, s and r in multiples of 8, not 0, got {sizes}"))
    elif (needed := _shared_bytes(call)) > MOST_BYTES:
        what = f"needs 16 rows in the shared memory of a cluster of 8, {MOST_BYTES} bytes a CTA"
        reasons.append(Refusal("shared_memory", f"{what}, got sizes that take {needed}"))
    if _rows(call) >= 2**30:
        reasons.append(Refusal("rows", f"needs fewer than 2^30 rows, got {_rows(call)}"))
    return reasons


def flops(call: Call) -> int:
    return 2 * _rows(call) * (call["w1"].numel() + call["w2"].numel())


def nbytes(call: Call) -> int:
    operands = sum(t.numel() * t.element_size() for t in call.tensors)
    return operands + _rows(call) * call["w2"].shape[0] * call["w2"].shape[1] * call["x"].element_size()


CASES = (
    Case(
        "blocks of eights",
        lambda m: {"x": m.randn(3, 25, 96), "w1": m.randn(4, 48, 24, scale=0.2), "w2": m.randn(8, 40, 24, scale=0.2)},
        "six different sizes in multiples of 8: what the compiled kernel takes",
    ),
    Case(
        "small",
        lambda m: {"x": m.randn(2, 3, 16), "w1": m.randn(4, 4, 4, scale=0.5), "w2": m.randn(4, 4, 4, scale=0.5)},
        "the plain call: square factors",
    ),
    Case(
        "rectangular",
        lambda m: {"x": m.randn(5, 20), "w1": m.randn(2, 6, 10), "w2": m.randn(4, 7, 3)},
        "six different sizes: a wrong permutation cannot pass",
    ),
    Case("widening", lambda m: {"x": m.randn(3, 6), "w1": m.randn(3, 8, 2), "w2": m.randn(8, 5, 3)}, "l > k"),
    Case("one entry", lambda m: {"x": m.randn(4, 1), "w1": m.randn(1, 1, 1), "w2": m.randn(1, 1, 1)}, "smallest"),
    Case("one vector", lambda m: {"x": m.randn(6), "w1": m.randn(2, 2, 3), "w2": m.randn(2, 3, 2)}, "no leading size"),
    Case("no rows", lambda m: {"x": m.randn(2, 0, 6), "w1": m.randn(2, 2, 3), "w2": m.randn(2, 3, 2)}, "zero-size"),
    Case("no inputs", lambda m: {"x": m.randn(3, 0), "w1": m.randn(2, 2, 0), "w2": m.randn(2, 3, 2)}, "p = 0: zeros"),
    Case("no middle", lambda m: {"x": m.randn(3, 6), "w1": m.randn(2, 0, 3), "w2": m.randn(2, 3, 0)}, "q = 0: zeros"),
    Case(
        "non-contiguous",
        lambda m: {
            "x": m.randn(12, 6, 5).transpose(0, 2),
            "w1": m.randn(6, 5, 2).transpose(0, 2)[:, ::1],
            "w2": m.randn(4, 6, 5).permute(2, 0, 1)[:, :, ::3],
        },
        "strided x, w1 and w2",
    ),
    Case(
        "large values",
        lambda m: {"x": m.randn(3, 9, scale=30.0), "w1": m.randn(3, 3, 3, scale=5.0), "w2": m.randn(3, 3, 3)},
        "products of some thousands",
    ),
    Case(
        "16k x 4096",
        lambda m: {
            "x": m.randn(16384, 4096),
            "w1": m.randn(64, 64, 64, scale=0.1),
            "w2": m.randn(64, 64, 64, scale=0.1),
        },
        "a square Monarch matrix in place of a 4096 x 4096 dense one",
        bench=True,
    ),
)

#: The torch op also returns h, (..., k * q), where the gradient of w2 will want it: `keep`.
OP = Op(
    "monarch_multiply",
    monarch_multiply,
    "(Tensor x, Tensor w1, Tensor w2, bool keep) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    saves=(1,),
    kernel="monarch",
)
