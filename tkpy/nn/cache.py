"""What a model carries from one call to the next: keys and values, or recurrent states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

#: Entries that grow with the sequence, (B, S, heads, dim); everything else is a state of fixed size.
TIMED = ("k", "v")


@dataclass(frozen=True)
class Cache:
    """The carried state of a model after `length` tokens: one mapping of named tensors per layer, batch first.

    A cache is a value: models return a new one and never write into the one they were given, so an old cache can be
    kept, branched (`fork`) or reordered (`gather`) and used again.
    """

    layers: tuple[Mapping[str, torch.Tensor], ...]
    length: int

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return next(t.shape[0] for layer in self.layers for t in layer.values())

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Cache:
        """Apply `function` to every tensor."""
        return Cache(tuple({name: function(t) for name, t in layer.items()} for layer in self.layers), self.length)

    def fork(self, n: int) -> Cache:
        """Each sequence `n` times, copies side by side: batch B becomes B * n."""
        if n < 1:
            raise ValueError(f"Cache.fork: n must be at least 1, got {n}")
        return self.map(lambda t: t.repeat_interleave(n, dim=0))

    def gather(self, index: torch.Tensor) -> Cache:
        """The sequences `index` (integer (B',)), in that order, repeated or dropped: what a beam search needs."""
        if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"Cache.gather: index must be a 1-d integer tensor, got {index.dtype} {tuple(index.shape)}"
            )
        return self.map(lambda t: t.index_select(0, index.to(t.device)))

    def truncate(self, length: int) -> Cache:
        """The cache as it was after `length` tokens. Only keys and values can be cut, recurrent states cannot."""
        if not 0 <= length <= self.length:
            raise ValueError(f"Cache.truncate: length must lie in 0..{self.length}, got {length}")
        states = sorted({name for layer in self.layers for name in layer if name not in TIMED})
        if states and length != self.length:
            raise ValueError(f"Cache.truncate: states ({', '.join(states)}) cannot be cut; keep the old cache")
        drop = self.length - length  # a window may have dropped old entries, so cut from the end
        layers = tuple({name: t[:, : t.shape[1] - drop].clone() for name, t in layer.items()} for layer in self.layers)
        return Cache(layers, length)

    def detach(self) -> Cache:
        """Without autograd history (truncated backpropagation through time)."""
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> Cache:
        return self.map(lambda t: t.to(device))
