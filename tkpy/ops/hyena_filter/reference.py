"""hyena_filter in float64, one lag at a time."""

from __future__ import annotations

import torch


def forward(features, times, input_weight, input_bias, hidden_weight, hidden_bias, frequency, output_weight, decay):
    taps = [output_weight.new_zeros(output_weight.shape[0], 0, dtype=torch.float64)]
    for lag in range(features.shape[0]):
        h = (frequency.double() * (input_weight.double() @ features[lag].double() + input_bias.double())).sin()
        for weight, bias in zip(hidden_weight.double(), hidden_bias.double(), strict=True):
            h = (frequency.double() * (weight @ h + bias)).sin()
        window = (-decay.double().abs() * times[lag].double()).exp()
        taps.append(((output_weight.double() @ h) * window)[:, None])
    return torch.cat(taps, 1).to(features.dtype)
