"""hyena_filter by the compiled kernels of csrc/kernels/hyena_filter: on an sm_90 GPU, or in the emulator.

The backward is one kernel for all gradients. Its clusters of CTAs add to those of weights in turn; of those of vectors
they leave a share for each CTA of a cluster, which rows_norm_sum adds up, in order.
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


def grid(length: int, multiprocessors: int) -> tuple[int, int, int]:
    """Clusters, CTAs of each, and steps: what a cluster takes at a time, a tile for each CTA."""
    tiles = -(-length // LAGS)
    team = min(TEAM, 1 << (tiles - 1).bit_length())
    steps = -(-tiles // team)
    return min(steps, max(1, multiprocessors // team)), team, steps


def backward(grads, outputs, features, *others, needs):
    (dtaps,) = grads
    if dtaps is None:
        return [None] * 9
    if not dtaps.numel():
        return [torch.zeros_like(t) for t in (features, *others)]
    others = tuple(t.contiguous() for t in others)
    times, input_weight, _, hidden_weight, _, _, output_weight, decay = others
    (layers, width, _), channels = hidden_weight.shape, decay.shape[0]
    clusters, team, steps = grid(features.shape[0], rows.multiprocessors(features))
    wanted = dict(zip(_NAMES, needs, strict=True))
    inside = any(wanted[name] for name in _NAMES[:1] + _NAMES[2:7])

    def room(*shape, when=True):
        return features.new_empty(shape) if when else None

    def vectors(*shape, when):
        """Shares, and their sum."""
        return room(1, team, *shape, when=when), room(*shape, when=when)

    dfeatures, dtimes, dinput = (
        room(*t.shape, when=wanted[name])
        for name, t in (("features", features), ("times", times), ("input_weight", input_weight))
    )
    dhidden = room(*hidden_weight.shape, when=wanted["hidden_weight"] and layers > 0)
    doutput = room(*output_weight.shape, when=wanted["output_weight"])
    vector_shares, dvectors = vectors(layers + 2, width, when=inside)
    decay_shares, ddecay = vectors(channels, when=wanted["decay"])
    deep = room(clusters * team, layers + 1 - KEPT, LAGS * WIDTH, when=layers >= KEPT)
    progress = features.new_zeros(1 + steps * team, dtype=torch.int32) if steps > 1 else None
    launch(
        "hyena_filter_backward", features, *others, dtaps.contiguous(), dfeatures, dtimes, dinput, dhidden, doutput,
        vector_shares, decay_shares, deep, dvectors, ddecay, progress, clusters, team, op="hyena_filter",
    )  # fmt: skip
    dbiases = [None] * 3 if dvectors is None else [dvectors[0], dvectors[1:-1], dvectors[-1]]
    return [dfeatures, dtimes, dinput, dbiases[0], dhidden, dbiases[1], dbiases[2], doutput, ddecay]


_NAMES = (
    "features", "times", "input_weight", "input_bias", "hidden_weight", "hidden_bias", "frequency", "output_weight",
    "decay",
)  # fmt: skip
