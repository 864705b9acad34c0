"""hyena_filter as products of matrices, lags down the rows until the last, which writes taps along the lags."""

from __future__ import annotations

import torch


def _window(times: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """(D, L)."""
    return torch.outer(-decay.abs(), times).exp_()


def _layers(input_weight, input_bias, hidden_weight, hidden_bias):
    """Weights and biases of the sine layers, in order."""
    return [(input_weight, input_bias), *zip(hidden_weight, hidden_bias, strict=True)]


def forward(features, times, input_weight, input_bias, hidden_weight, hidden_bias, frequency, output_weight, decay):
    h = features
    for weight, bias in _layers(input_weight, input_bias, hidden_weight, hidden_bias):
        h = torch.addmm(bias, h, weight.t()).mul_(frequency).sin_()
    return (output_weight @ h.t()).mul_(_window(times, decay))


def backward(
    grads, outputs, features, times, input_weight, input_bias, hidden_weight, hidden_bias, frequency, output_weight,
    decay, *, needs,
):  # fmt: skip
    """With a_n what layer n adds up and g = dtaps * window:
    dh_N = g^T output_weight;  da_n = dh_n frequency cos(frequency a_n);  dW_n = da_n^T h_{n-1};  dh_{n-1} = da_n W_n.
    """
    (dtaps,), (taps,) = grads, outputs
    if dtaps is None:
        return [None] * 9
    layers = _layers(input_weight, input_bias, hidden_weight, hidden_bias)
    inputs, sums = [features], []
    for weight, bias in layers:
        sums.append(torch.addmm(bias, inputs[-1], weight.t()))
        inputs.append((sums[-1] * frequency).sin_())
    ahead = dtaps * _window(times, decay)
    dh, doutput = ahead.t() @ output_weight, ahead @ inputs[-1]
    del ahead
    dfrequency = torch.zeros_like(frequency)
    dweights: list[torch.Tensor] = []
    dbiases: list[torch.Tensor] = []
    for (weight, _), a, h in reversed(list(zip(layers, sums, inputs, strict=False))):
        dphase = dh * (a * frequency).cos_()
        dfrequency += (dphase * a).sum(0)
        da = dphase.mul_(frequency)
        dweights.insert(0, da.t() @ h)
        dbiases.insert(0, da.sum(0))
        dh = da @ weight
    dtimes, ddecay = window_gradients(dtaps, taps, times, decay)
    return [
        dh, dtimes, dweights[0], dbiases[0],
        torch.stack(dweights[1:]) if dweights[1:] else torch.zeros_like(hidden_weight),
        torch.stack(dbiases[1:]) if dbiases[1:] else torch.zeros_like(hidden_bias),
        dfrequency, doutput, ddecay,
    ]  # fmt: skip


def window_gradients(dtaps, taps, times, decay):
    """Of times and decay: d taps / d (|decay| times) = -taps."""
    flow = dtaps * taps
    return -(decay.abs() @ flow), -(flow @ times) * decay.sign()
