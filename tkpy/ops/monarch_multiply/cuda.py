"""monarch_multiply by the compiled kernels of csrc/kernels/monarch: on an sm_90 GPU, or in the emulator.

Both products of a row are one kernel, forward and backward. Of small blocks (`on_chip` of op.py) the same launch makes
the factors' gradients, and h again, or one launch for each; of others h and dh reach memory where a factor's gradient
wants them. These are sums over all rows, in float32 shares of them; torch adds the shares.
"""

from __future__ import annotations

import torch

from tkpy.machine import clusters, launch
from tkpy.ops.blockdiag_linear import cuda as blockdiag
from tkpy.ops.monarch_multiply.op import on_chip
from tkpy.ops.rows import multiprocessors

OP = "monarch_multiply"
FEWEST_ROWS = 256  # of a share of a factor's gradient


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(rows, channels), contiguous and on multiples of 16 bytes."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    fits = flat.stride(1) == 1 and flat.stride(0) % 8 == 0 and flat.stride(0) >= flat.shape[1]
    return flat if fits and flat.data_ptr() % 16 == 0 else flat.clone(memory_format=torch.contiguous_format)


def _whole(w: torch.Tensor) -> torch.Tensor:
    """Contiguous and on a multiple of 16 bytes."""
    w = w.contiguous()
    return w if w.data_ptr() % 16 == 0 else w.clone()


def _gradient(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, strided: bool) -> torch.Tensor:
    """Block by block dy^T x, of weight's shape."""
    blocks, out, inner = weight.shape
    tiles = -(-blocks // 8) * -(-out // 64) * -(-inner // 64)
    shares = max(1, min(len(x) // FEWEST_ROWS, multiprocessors(x) // tiles))
    sums = x.new_empty(shares, blocks, out, inner, dtype=torch.float32)
    launch("monarch_gradient", dy, x, sums, strided, op=OP)
    return sums.sum(0).to(weight.dtype)


def forward(x, w1, w2, keep):
    y = x.new_empty(*x.shape[:-1], w2.shape[0] * w2.shape[1])
    middle = x.new_empty(*x.shape[:-1], w1.shape[0] * w1.shape[1] if keep else 0)
    rows = _rows(x)
    if not keep and on_chip(x, w1, w2):
        launch("monarch_product", rows, _whole(w1), _whole(w2), y.view(len(rows), y.shape[-1]), op=OP)
        return y, middle
    h = middle.view(len(rows), -1) if keep and len(rows) else None
    launch("monarch", rows, _whole(w1), _whole(w2), h, y.view(len(rows), y.shape[-1]), 0, 0, op=OP)
    return y, middle


def _gradients(dy, x, w1, w2, dx, *, of_first: bool, of_second: bool):
    """[dw1, dw2] as asked for; with dw1 dx is filled where it is not None."""
    most, factors = (
        clusters(x, "monarch_whole", "monarch_whole_48_bf16", w2.shape[0] // 8, op=OP),
        (_whole(w1), _whole(w2.mT)),
    )
    count = max(1, min(len(x) // FEWEST_ROWS, most))
    shares = [
        x.new_empty(count, *w.shape, dtype=torch.float32) if wanted else None
        for w, wanted in zip(factors, (of_first, of_second), strict=True)
    ]
    launch("monarch_whole", dy, x, *factors, dx, *shares, op=OP)
    dw1, dw2 = (share if share is None else share.sum(0).to(x.dtype) for share in shares)
    return [dw1, dw2 if dw2 is None else dw2.mT.contiguous()]


def _on_chip(dy, x, w1, w2, needs):
    """[dx, dw1, dw2]: in one launch where both factors' sums fit, else in one for each."""
    dx = x.new_empty(x.shape) if needs[0] else None
    if needs[1] and needs[2] and on_chip(x, w1, w2, 48):
        return [dx, *_gradients(dy, x, w1, w2, dx, of_first=True, of_second=True)]
    dw1 = dw2 = None
    if needs[1]:
        dw1, _ = _gradients(dy, x, w1, w2, dx, of_first=True, of_second=False)
    elif needs[0]:
        launch("monarch_backward", dy, _whole(w1.mT), _whole(w2.mT), None, dx, 0, 0, op=OP)
    if needs[2]:
        _, dw2 = _gradients(dy, x, w1, w2, None, of_first=False, of_second=True)
    return [dx, dw1, dw2]


def backward(grads, outputs, x, w1, w2, keep, *, needs):
    dy, dmiddle = grads
    if dy is not None and dmiddle is None and on_chip(x, w1, w2):
        dx, *factors = _on_chip(_rows(dy), _rows(x), w1, w2, needs)
        return [dx if dx is None else dx.view(x.shape), *factors]
    source, width = _rows(x), w1.shape[0] * w1.shape[1]
    dx = dh = dw1 = dw2 = None
    if dy is not None:
        rows = _rows(dy)
        if needs[0] or needs[1]:
            dx = x.new_empty(source.shape)
            dh = x.new_empty(len(source), width) if needs[1] else None
            launch("monarch_backward", rows, _whole(w1.mT), _whole(w2.mT), dh, dx, 0, 0, op=OP)
        if needs[2]:
            h = _rows(outputs[0]) if keep else blockdiag.product(source, w1.mT, x.new_empty(len(source), width), op=OP)
            dw2 = _gradient(rows, h, w2, strided=True)
    if dmiddle is not None:  # of a caller of the torch op itself: the public function does not return h
        more = _rows(dmiddle)
        through = blockdiag.product(more, w1, x.new_empty(source.shape), op=OP)
        dx = through if dx is None else dx + through
        dh = more if dh is None else dh + more
    if needs[1] and dh is not None:
        dw1 = _gradient(dh, source, w1, strided=False)
    return [dx if dx is None else dx.view(x.shape), dw1, dw2]
