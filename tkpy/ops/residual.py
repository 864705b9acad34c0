"""The residual stream of the fused norms, z = residual + dropout(x), and the dropout that every backend draws alike.

Element (row, col) of x, seen as rows of its last dimension, has word col % 4 of Philox4x32-10 (Salmon, Moraes, Dror and
Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as its key and the counter (col // 4, the lower
and upper 32 bits of row, 0). It is dropped where that word is below p * 2^32. So the mask is a function of seed and
place: the backward computes it again, and no backend stores it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tkpy.arguments import Arguments
from tkpy.registry import Call, Refusal

LOW = (1 << 32) - 1


def check_options(
    check: Arguments, x: Tensor, residual: Tensor | None, dropout: float, training: bool, seed: Tensor | None
) -> tuple[float, Tensor | None]:
    """The probability of being dropped and the seed that hold; the seed is drawn from torch's generator."""
    check.tensor("residual", residual, "... D", optional=True)
    if residual is not None:
        check.that(residual.shape == x.shape, "residual", f"of x's shape {tuple(x.shape)}", residual)
        wide = wide_dtype(x)
        if residual.dtype not in (x.dtype, wide):
            check.fail("residual", f"of x's dtype or {wide}", str(residual.dtype), TypeError)
    check.number("dropout", dropout, minimum=0.0)
    check.that(dropout < 1.0, "dropout", "below 1", dropout)
    check.flag("training", training)
    check.tensor("dropout_seed", seed, "1", dtypes=(torch.int64,), optional=True)
    check.same_device()
    if not training or dropout == 0.0:
        return 0.0, None
    if seed is None:
        seed = torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=x.device)
    return float(dropout), seed


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for a float64 x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def joins(residual: Tensor | None, dropout: float) -> bool:
    """Whether z is another thing than x."""
    return residual is not None or dropout > 0.0


def fake_stream(x: Tensor, residual: Tensor | None, dropout: float) -> Tensor:
    """What an op returns for z: an empty tensor where z is x itself."""
    shape = x.shape if joins(residual, dropout) else (0,)
    return x.new_empty(shape, dtype=x.dtype if residual is None else residual.dtype)


def threshold_of(dropout: float) -> int:
    """Words below it are dropped."""
    return min(math.floor(dropout * 2**32), LOW)


def philox(counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int], seed: Tensor) -> list[Tensor]:
    """The four words of Philox4x32-10, in int64."""
    x: list[Tensor] = [torch.as_tensor(c, dtype=torch.int64, device=seed.device) & LOW for c in counter]
    key = [seed & LOW, seed >> 32 & LOW]
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]  # modulo 2^64: the 64 bits of the product
        x = [second >> 32 & LOW ^ x[1] ^ key[0], second & LOW, first >> 32 & LOW ^ x[3] ^ key[1], first & LOW]
        key = [key[0] + 0x9E3779B9 & LOW, key[1] + 0xBB67AE85 & LOW]
    return x


def kept(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """Which elements of x are kept, in x's shape."""
    width, rows = x.shape[-1], x.shape[:-1].numel()
    quads = torch.arange(-(-width // 4), device=x.device)
    row = torch.arange(rows, device=x.device)[:, None]
    words = torch.stack([w.expand(rows, len(quads)) for w in philox((quads, row, row >> 32, 0), seed)], -1)
    return (words.flatten(1)[:, :width] >= threshold_of(dropout)).view(x.shape)


def dropped(x: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    """x with some elements 0 and the others multiplied by 1 / (1 - p); its own gradient too, by the same mask."""
    if dropout == 0.0 or seed is None:
        return x
    return torch.where(kept(x, seed, dropout), x / (1 - dropout), 0.0)


def stream(x: Tensor, residual: Tensor | None, seed: Tensor | None, dropout: float, wide: torch.dtype) -> Tensor:
    """z, reckoned in `wide` and rounded to the residual's dtype."""
    if not joins(residual, dropout):
        return x
    z = dropped(x.to(wide), seed, dropout)
    return z.to(x.dtype) if residual is None else (z + residual.to(wide)).to(residual.dtype)


def incoming(dz: Tensor | None, residual: Tensor | None, dropout: float) -> Tensor | None:
    """The gradient of the op's output z, which is no z where it is empty."""
    return dz if joins(residual, dropout) else None


def gradients(
    dz: Tensor, x: Tensor, residual: Tensor | None, seed: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Of x and of the residual, from the whole gradient of z."""
    return dropped(dz, seed, dropout).to(x.dtype), None if residual is None else dz.to(residual.dtype)


def supports(backend: str, call: Call) -> list[Refusal]:
    """What the kernels cannot take (of backends for which the registry does not say it)."""
    if backend == "emulator" and any(t.dtype == torch.float64 for t in call.tensors):
        return [Refusal("dtype", "needs float32, float16 or bfloat16, got float64")]
    return []


def nbytes(call: Call) -> int:
    """Everything read once, y and z written once."""
    x, residual = call["x"], call["residual"]
    z = x if residual is None else residual
    written = x.numel() * x.element_size()
    if joins(residual, call["dropout"]):
        written += z.numel() * z.element_size()
    return written + sum(t.numel() * t.element_size() for t in call.tensors)
