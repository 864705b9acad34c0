"""Rows of `hyena_filter`: the taps of one layer's long convolution, at the sizes of M2-BERT and of Hyena.

Peer: the original's network, layer by layer, as torch.compile fuses it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tkpy.bench.kernel_counts import Promise
from tkpy.bench.op_rows import Counted, Kwargs, OpRows, compiled, in_float64
from tkpy.bench.spec import Benchmark
from tkpy.registry import Maker


def _network(maker: Maker, length: int, channels: int, width: int, layers: int) -> Kwargs:
    """Weights as torch.nn.Linear starts them, sines of frequency 10, five features of a lag."""

    def uniform(*shape: int, inputs: int) -> torch.Tensor:
        bound = inputs**-0.5
        return maker.uniform(-bound, bound, *shape, dtype=maker.wide)

    return {
        "features": maker.uniform(-1.0, 1.0, length, 5, dtype=maker.wide),
        "times": maker.uniform(0.0, 1.0, length, dtype=maker.wide),
        "input_weight": uniform(width, 5, inputs=5),
        "input_bias": uniform(width, inputs=5),
        "hidden_weight": uniform(layers, width, width, inputs=width),
        "hidden_bias": uniform(layers, width, inputs=width),
        "frequency": maker.uniform(10.0, 10.0, width, dtype=maker.wide),
        "output_weight": uniform(channels, width, inputs=width),
        "decay": maker.uniform(-15.35, -3.07, channels, dtype=maker.wide),
    }


def by_layers(
    features: torch.Tensor, times: torch.Tensor, input_weight: torch.Tensor, input_bias: torch.Tensor,
    hidden_weight: torch.Tensor, hidden_bias: torch.Tensor, frequency: torch.Tensor, output_weight: torch.Tensor,
    decay: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Linear layers with sines between them, taps last as the convolution reads them."""
    h = torch.sin(frequency * F.linear(features, input_weight, input_bias))
    for weight, bias in zip(hidden_weight, hidden_bias, strict=True):
        h = torch.sin(frequency * F.linear(h, weight, bias))
    window = torch.exp(-times[:, None] * decay.abs())
    return (F.linear(h, output_weight) * window).t().contiguous()


HYENA_FILTER = OpRows(
    op="hyena_filter",
    sizes=("length", "channels", "width", "layers"),
    make=_network,
    rows=tuple(
        {"length": length, "channels": channels, "width": width, "layers": 2}
        for length, channels, width in ((8192, 768, 128), (32768, 960, 128), (131072, 256, 64), (2048, 960, 128))
    ),
    peers=(compiled(by_layers),),
    unit="TFLOP/s",
    inputs="uniform, as the original's networks start",
    what="the taps of a long convolution from a sine network of the lag (Hyena, M2-BERT), in float32",
    rank=lambda sizes: 110 if sizes["length"] == 8192 else 200,
    defaults={"layers": 2},
    expect=in_float64,
    tol=2.0,  # three sines of frequency 10 in a row: the eager form is 5e-6 off, three tf32 products 9e-6
    dtypes=("float32",),
    counted=(
        Counted(
            {"length": 256, "channels": 512, "width": 128},
            Promise(flops=3.25, why="float32 products are three tf32 ones, and the five features of a lag go in as 32"),
            Promise(
                flops=4.8,
                why="float32 products are three tf32 ones; the network is gone through again, and so are the taps "
                "before the window, which the gradients of decay and times want",
            ),
        ),
        Counted(
            {"length": 1024, "channels": 256, "width": 64},
            Promise(flops=3.25, why="float32 products are three tf32 ones"),
            Promise(flops=5.1, why="as above, and five features are 64"),
        ),
        Counted(
            {"length": 2048, "channels": 256, "width": 64},
            Promise(flops=3.25, why="float32 products are three tf32 ones"),
            Promise(flops=5.1, why="as above, in four steps"),
        ),
    ),
)


def benchmarks() -> list[Benchmark]:
    """Its rows."""
    return HYENA_FILTER.benchmarks()
