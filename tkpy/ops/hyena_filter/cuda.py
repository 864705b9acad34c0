"""hyena_filter by the compiled kernels of csrc/kernels/hyena_filter: on an sm_90 GPU, or in the emulator.

The backward is one kernel for all gradients. Its clusters of CTAs leave a share of each weight's gradient, its CTAs one
of each vector's; rows_norm_sum adds them up, in order.
"""

from __future__ import annotations

import torch

from tkpy.machine import launch
from tkpy.ops import rows

# As in csrc/kernels/hyena_filter/params.h:
LAGS = 64  # of a CTA
TEAM = 8  # CTAs of a cluster, at most
KEPT = 3  # layers whose sums stay on chip
WIDTH = 128


def forward(features, *others):
    taps = features.new_empty(others[6].shape[0], features.shape[0])
    if taps.numel():
        launch("hyena_filter_forward", features, *(t.contiguous() for t in others), taps, op="hyena_filter")
    return taps


def grid(length: int, multiprocessors: int) -> tuple[int, int]:
    """Clusters, and CTAs of each: where not all lags fit at once, no more than stay on the GPU, and no more than finish
    sooner. Clusters of eight do not fill a GPU whose GPCs are cut unevenly (an H100 holds 15, not 16)."""
    tiles = -(-length // LAGS)
    team = min(TEAM, 1 << (tiles.bit_length() - 1))
    steps, most = -(-tiles // team), max(1, multiprocessors // team)
    if steps <= most:
        return steps, team
    turns = -(-steps // max(1, most - 1))
    return -(-steps // turns), team


def backward(grads, outputs, features, *others, needs):
    (dtaps,) = grads
    if dtaps is None:
        return [None] * 9
    if not dtaps.numel():
        return [torch.zeros_like(t) for t in (features, *others)]
    others = tuple(t.contiguous() for t in others)
    times, input_weight, _, hidden_weight, _, _, output_weight, decay = others
    (layers, width, _), channels = hidden_weight.shape, decay.shape[0]
    clusters, team = grid(features.shape[0], rows.multiprocessors(features))
    ctas, wanted = clusters * team, dict(zip(_NAMES, needs, strict=True))
    inside = any(wanted[name] for name in _NAMES[:1] + _NAMES[2:7])

    def room(*shape, when=True):
        return features.new_empty(shape) if when else None

    def gradient(like, when):
        """Its shares, and their sum: one share is the sum."""
        shares = room(1, clusters, *like.shape, when=when)
        return shares, room(*like.shape, when=when and clusters > 1)

    dinput = gradient(input_weight, wanted["input_weight"])
    dhidden = gradient(hidden_weight, wanted["hidden_weight"] and layers > 0)
    doutput = gradient(output_weight, wanted["output_weight"])
    dfeatures, dtimes = room(*features.shape, when=wanted["features"]), room(*times.shape, when=wanted["times"])
    dvectors = room(1, ctas, layers + 2, width, when=inside), room(layers + 2, width, when=inside)
    ddecay = room(1, ctas, channels, when=wanted["decay"]), room(channels, when=wanted["decay"])
    deep = room(ctas, layers + 1 - KEPT, LAGS * WIDTH, when=layers >= KEPT)
    shares, sums = zip(dinput, dhidden, doutput, dvectors, ddecay, strict=True)
    launch(
        "hyena_filter_backward", features, *others, dtaps.contiguous(), dfeatures, dtimes, *shares, deep, *sums,
        clusters, team, op="hyena_filter",
    )  # fmt: skip
    weights = (dinput, dhidden, doutput)
    dweights = [whole if part is None or clusters > 1 else part[0, 0] for part, whole in weights]
    dbiases = [None] * 3 if dvectors[1] is None else [dvectors[1][0], dvectors[1][1:-1], dvectors[1][-1]]
    return [
        dfeatures, dtimes, dweights[0], dbiases[0], dweights[1], dbiases[1], dbiases[2], dweights[2], ddecay[1],
    ]  # fmt: skip


_NAMES = (
    "features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias", "frequency", "output_weight",
    "decay",
)  # fmt: skip
