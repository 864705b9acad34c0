"""hyena_mixer by the Triton kernels of short_conv and modal_conv, with the split between them.

shapes     theirs; z.mT goes in with its strides, x2, x1 and v are copied where there are groups, y is turned
precision  theirs: float32 within each, rounded to z's dtype between the two
cost       the short filter reads and writes 3 elements a sample and channel, the split copies them where there are
           groups, modal_conv moves 6, and y is turned: the compiled kernel's 4 are not reached
limits     theirs: B below 65536; compute capability 8.0 or newer
"""

from __future__ import annotations

from tkpy.ops.hyena_mixer.eager import backward_by, forward_by
from tkpy.ops.modal_conv import triton as modal
from tkpy.ops.short_conv import triton as short


def forward(*args):
    return forward_by(short, modal, *args)


def backward(grads, outputs, *args, needs):
    return backward_by(short, modal, grads, *args, needs=needs)


#: Its kernels are compiled by the two ops whose they are.
AHEAD_OF_TIME = ()
