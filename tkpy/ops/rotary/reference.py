"""rotary in float64: each pair is a complex number, multiplied by exp(i angle)."""

import torch


def forward(x: torch.Tensor, positions: torch.Tensor, base: float, scaling: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    wide = x.double()
    pairs = torch.complex(wide[..., :half], wide[..., half:])  # (..., S, H, D/2)
    frequency = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / max(half, 1))
    angle = (positions.double() / scaling)[..., None, None] * frequency  # (..., S, 1, D/2)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)
