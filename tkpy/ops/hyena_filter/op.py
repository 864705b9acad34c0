"""hyena_filter: the taps of a long convolution from a small sine network of the lag, under an exponential window.

The implicit filter of Hyena (Poli et al. 2023, "Hyena Hierarchy", arXiv:2302.10866, section 3.3; the sines are those of
Sitzmann et al. 2020, arXiv:2006.09661), as Monarch Mixer uses it (Fu et al. 2023, arXiv:2310.12109).
"""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments
from tkpy.registry import Call, Case, Op, Refusal

WIDE = (torch.float32, torch.float64)
MAX_WIDTH = 128  # a layer's weights in shared memory


def hyena_filter(
    features: torch.Tensor,
    times: torch.Tensor,
    input_weight: torch.Tensor,
    input_bias: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    frequency: torch.Tensor,
    output_weight: torch.Tensor,
    decay: torch.Tensor,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """One filter a channel, from what is known of each lag l:

        h_0 = sin(frequency * (input_weight features[l] + input_bias))
        h_n = sin(frequency * (hidden_weight[n-1] h_{n-1} + hidden_bias[n-1])),   n = 1 .. N
        taps[d, l] = (output_weight h_N)[d] * exp(-|decay[d]| times[l])

    Args:
        features: (L, E), any L and E: the lag's positional encoding.
        times: (L,): the lag's age in the window, 0 to 1 in the original.
        input_weight, input_bias: (W, E), (W,).
        hidden_weight, hidden_bias: (N, W, W), (N, W), N >= 0; the original has N = 2.
        frequency: (W,), of all sines. Phases stay below 1e7, where float32 numbers are a radian apart: beyond, taps
            and gradients mean nothing, and the compiled kernels' may be of any size, or NaN.
        output_weight: (D, W), one row a channel.
        decay: (D,), rates; their signs do not matter.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

        All float32, or all float64: a lag among thousands does not survive fewer bits.

    Returns:
        taps (D, L), contiguous, of the arguments' dtype. Gradients for all arguments. Autocast changes nothing.

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    check = Arguments("hyena_filter")
    check.tensor("features", features, "L E", dtypes=WIDE)
    check.tensor("times", times, "L", dtypes=WIDE)
    check.tensor("input_weight", input_weight, "W E", dtypes=WIDE)
    check.tensor("input_bias", input_bias, "W", dtypes=WIDE)
    check.tensor("hidden_weight", hidden_weight, "N W W", dtypes=WIDE)
    check.tensor("hidden_bias", hidden_bias, "N W", dtypes=WIDE)
    check.tensor("frequency", frequency, "W", dtypes=WIDE)
    check.tensor("output_weight", output_weight, "D W", dtypes=WIDE)
    check.tensor("decay", decay, "D", dtypes=WIDE)
    check.same_dtype(*check.tensors)
    check.same_device()
    return OP(
        features, times, input_weight, input_bias, hidden_weight, hidden_bias, frequency, output_weight, decay,
        backend=backend,
    )  # fmt: skip


def fake(
    features, times, input_weight, input_bias, hidden_weight, hidden_bias, frequency, output_weight, decay
) -> torch.Tensor:
    return features.new_empty((output_weight.shape[0], features.shape[0]))


def supports(backend: str, call: Call) -> list[Refusal]:
    if backend not in ("triton", "cuda", "emulator"):
        return []
    features, sizes, reasons = call["features"], tuple(call["input_weight"].shape), []
    if backend != "triton" and features.dtype != torch.float32:
        reasons.append(Refusal("dtype", f"needs float32, got {str(features.dtype).removeprefix('torch.')}"))
    if max(sizes) > MAX_WIDTH:
        needed = f"needs at most {MAX_WIDTH} features and a network at most that wide"
        reasons.append(Refusal("width", f"{needed}, got {sizes[1]} and {sizes[0]}"))
    lags, channels = features.shape[0], call["decay"].shape[0]
    if lags >= 2**30 or channels >= 2**24:
        reasons.append(Refusal("size", f"needs fewer than 2^30 lags and 2^24 channels, got {lags} and {channels}"))
    return reasons


def flops(call: Call) -> int:
    """Products; a sine is counted as one."""
    length, features = call["features"].shape
    layers, width, _ = call["hidden_weight"].shape
    channels = call["output_weight"].shape[0]
    return length * (2 * width * (features + layers * width + channels) + (layers + 1) * width + 2 * channels)


def nbytes(call: Call) -> int:
    taps = call["output_weight"].shape[0] * call["features"].shape[0]
    return (taps + sum(t.numel() for t in call.tensors)) * call["features"].element_size()


def _case(length, features, width, layers, channels, *, frequency=3.0):
    def make(m):
        def wide(*shape, scale=1.0):
            return m.randn(*shape, dtype=m.wide, scale=scale)

        gain = 3**-0.5  # torch.nn.Linear's weights, which the original starts from
        return {
            "features": wide(length, features),
            "times": m.uniform(0.0, 1.0, length, dtype=m.wide),
            "input_weight": wide(width, features, scale=gain * features**-0.5),
            "input_bias": wide(width, scale=0.3),
            "hidden_weight": wide(layers, width, width, scale=gain * width**-0.5),
            "hidden_bias": wide(layers, width, scale=0.3),
            "frequency": m.uniform(0.5 * frequency, frequency, width, dtype=m.wide),
            "output_weight": wide(channels, width, scale=gain * width**-0.5),
            "decay": m.uniform(-15.0, 3.0, channels, dtype=m.wide),
        }

    return make


def _strided(m):
    kwargs = _case(10, 6, 16, 2, 12)(m)
    return {name: t.t() if name == "output_weight" else t[..., ::2] for name, t in kwargs.items()} | {
        "features": kwargs["features"][::2, 1:4],
        "hidden_weight": kwargs["hidden_weight"].mT[:, ::2, 8:],
        "input_weight": kwargs["input_weight"][::2, ::2],
        "output_weight": kwargs["output_weight"].t()[::2, 2:8].t(),
    }


CASES = (
    Case("small", _case(9, 5, 16, 2, 12), "the plain call: two hidden layers"),
    Case("widths of no power of two", _case(37, 3, 24, 2, 37), "primes and tails"),
    Case("several tiles", _case(131, 5, 32, 2, 150), "more lags and channels than a tile"),
    Case("one hidden layer", _case(20, 5, 16, 1, 8), "N = 1"),
    Case("no hidden layer", _case(20, 7, 16, 0, 8), "N = 0"),
    Case("one lag", _case(1, 5, 16, 2, 8), "L = 1"),
    Case("one of everything", _case(1, 1, 1, 1, 1), "all sizes 1"),
    # tensor cores cut sums off, where others round: the phases' errors have one sign, and the gradient of the
    # frequencies sums them up to 1.4e-5 in float32 (tests/kernels/test_rough.py)
    Case("fast sines", _case(33, 5, 16, 2, 8, frequency=8.0), "phases of several turns", tol=2.0),
    Case("as in M2-BERT", _case(70, 5, 128, 2, 72), "the original's network"),
    Case("no lags", _case(0, 5, 16, 2, 8), "zero-size"),
    Case("no channels", _case(9, 5, 16, 2, 0), "zero-size"),
    Case("non-contiguous", _strided, "every tensor strided"),
    Case("M2-BERT, 8k", _case(8192, 5, 128, 2, 768, frequency=10.0), "one filter of M2-BERT-80M-8k", bench=True),
)

OP = Op(
    "hyena_filter",
    hyena_filter,
    "(Tensor features, Tensor times, Tensor input_weight, Tensor input_bias, Tensor hidden_weight, Tensor hidden_bias, "
    "Tensor frequency, Tensor output_weight, Tensor decay) -> Tensor",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    supports=supports,
    saves=(0,),
    kernel="hyena_filter_forward",
)
