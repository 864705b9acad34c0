"""hyena_filter by the compiled kernels of csrc/kernels/hyena_filter: on an sm_90 GPU, or in the emulator.

Weights go in contiguous, for the backward turned over, because wgmma reads tf32 along the rows of both operands. The
gradients of the weights are sums over all lags, products that torch makes of what the kernel leaves.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops.hyena_filter.eager import window_gradients

LAGS = 64  # of a CTA, as in csrc/kernels/hyena_filter/params.h


def _launch(name, features, others, *outputs):
    launch(name, features, *others, *outputs, op="hyena_filter")


def forward(features, *others):
    others = tuple(t.contiguous() for t in others)
    taps = features.new_empty(others[6].shape[0], features.shape[0])
    if taps.numel():
        _launch("hyena_filter", features, others, taps, None)
    return taps


def backward(grads, outputs, features, *others, needs):
    (dtaps,), (taps,) = grads, outputs
    if dtaps is None:
        return [None] * 9
    if not taps.numel():
        return [torch.zeros_like(t) for t in (features, *others)]
    rows = [t.contiguous() for t in others]
    times, _, _, hidden_weight, _, frequency, _, decay = rows
    (length, inputs), (layers, width, _) = features.shape, hidden_weight.shape
    sums = features.new_empty(layers + 1, width, length)
    _launch("hyena_filter", features, rows, None, sums)
    turned = [t.mT.contiguous() if i in (1, 3, 6) else t for i, t in enumerate(rows)]  # the weights
    dsums, dfeatures = torch.empty_like(sums), features.new_empty(inputs, length)
    shares = features.new_empty(-(-length // LAGS), width)
    _launch("hyena_filter_backward", features, turned, dtaps.contiguous(), sums, dsums, dfeatures, shares)
    h = sums.mul_(frequency[:, None]).sin_()
    ahead = torch.outer(-decay.abs(), times).exp_().mul_(dtaps)
    dtimes, ddecay = window_gradients(dtaps, taps, times, decay)
    return [
        dfeatures.t(), dtimes, dsums[0] @ features, dsums[0].sum(1), dsums[1:] @ h[:-1].mT, dsums[1:].sum(2),
        shares.sum(0), ahead @ h[-1].t(), ddecay,
    ]  # fmt: skip
