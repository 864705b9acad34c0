"""monarch_multiply in Triton: two products of blocks (tkpy/ops/blockdiag_linear/triton.py); permutations are strides.

forward    h = x's consecutive blocks times w1^T;  y = h's interleaved blocks times w2^T, to the same places
backward   dh = dy's interleaved blocks times w2 (+ what h itself was given), dx = dh's blocks times w1; dw2, dw1 alike
shapes     x (rows, k p), h (rows, k q), y (rows, s l); w1 (k, q, p), w2 (l, s, r), any strides
precision  products of the inputs' dtype (float32: ieee, no tf32), sums in float32; h is rounded to it, as in eager.py
limits     compute capability 8.0 or newer
cost       2 rows (k q p + l s r) flops; x and y moved once, h written and read
"""

from __future__ import annotations

from tkpy.ops.blockdiag_linear.triton import channels_of, multiply, rows_of, weights_of


def _forward(x, weight, y, *, interleaved):
    """Every block of x times its block of the weight, to the block of y in the same place."""
    blocks, outer, inner = weight.shape
    a, _ = channels_of(x, blocks, inner, interleaved=interleaved)
    c, cols = channels_of(y, blocks, outer, interleaved=interleaved)
    multiply(a, weights_of(weight).mT, c, cols=cols)


def _gradients(dy, x, weight, needs, *, interleaved):
    """(dx, dw) of `_forward`, None where not needed."""
    blocks, outer, inner = weight.shape
    grad, rows = channels_of(dy, blocks, outer, interleaved=interleaved)
    dx = dw = None
    if needs[0]:
        dx = x.new_empty(x.shape)
        place, cols = channels_of(dx, blocks, inner, interleaved=interleaved)
        multiply(grad, weights_of(weight), place, cols=cols)
    if needs[1]:
        read, cols = channels_of(x, blocks, inner, interleaved=interleaved)
        dw = multiply(grad.mT, read, weights_of(weight.new_empty(weight.shape)), rows=rows, cols=cols)
    return dx, dw


def forward(x, w1, w2, keep):
    middle = x.new_empty(*x.shape[:-1], w1.shape[0] * w1.shape[1])
    y = x.new_empty(*x.shape[:-1], w2.shape[0] * w2.shape[1])
    _forward(rows_of(x), w1, rows_of(middle), interleaved=False)
    _forward(rows_of(middle), w2, rows_of(y), interleaved=True)
    return y, middle if keep else x.new_empty(*x.shape[:-1], 0)


def backward(grads, outputs, x, w1, w2, keep, *, needs):
    dy, dmiddle = grads
    dw2 = None
    if dy is not None:
        wanted = (needs[0] or needs[1], needs[2])
        middle = outputs[0] if keep else x.new_empty(*x.shape[:-1], w1.shape[0] * w1.shape[1])
        if needs[2] and not keep:
            _forward(rows_of(x), w1, rows_of(middle), interleaved=False)
        through, dw2 = _gradients(rows_of(dy), rows_of(middle), w2, wanted, interleaved=True)
        if through is not None:
            through = through.view(middle.shape)
            dmiddle = through if dmiddle is None else through + dmiddle
    if dmiddle is None:
        return [None, None, dw2]
    dx, dw1 = _gradients(rows_of(dmiddle), rows_of(x), w1, needs[:2], interleaved=False)
    return [dx if dx is None else dx.view(x.shape), dw1, dw2]


#: Its one kernel is built by blockdiag_linear.
AHEAD_OF_TIME = ()
