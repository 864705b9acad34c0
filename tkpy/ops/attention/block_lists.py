"""The parts of a BlockMask: state tables, lists of blocks, packed element masks; how a predicate makes them.

A state table (B, H, nQ, nK) says of every block NONE, FULL, or (>= 0) which of the stored element masks applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tkpy.arguments import Arguments

NONE, FULL = -2, -1
PAIRS_AT_ONCE = 1 << 22  # pairs that a predicate is evaluated on in one call

Predicate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def block_count(length: Any, block: int) -> Any:
    return (length + block - 1) // block


def band_blocks(
    q_block: torch.Tensor, k_block: torch.Tensor, block: int, seq_q: int, seq_k: int, left: int, right: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(some pair, every pair) of the blocks lies in the band -left <= j - i - (seq_k - seq_q) <= right (-1: open)."""
    q_first, k_first = q_block * block, k_block * block
    q_last, k_last = (q_first + block).clamp(max=seq_q) - 1, (k_first + block).clamp(max=seq_k) - 1
    low, high = k_first - q_last - (seq_k - seq_q), k_last - q_first - (seq_k - seq_q)
    some = every = torch.ones_like(low, dtype=torch.bool)
    if right >= 0:
        some, every = some & (low <= right), every & (high <= right)
    if left >= 0:
        some, every = some & (high >= -left), every & (low >= -left)
    return some, every


def unpack(masks: torch.Tensor) -> torch.Tensor:
    """(..., block, block/8) packed bits -> (..., block, block) bool."""
    bits = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return ((masks.unsqueeze(-1) >> bits) & 1).bool().flatten(-2)


def pack(seen: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack`."""
    bits = torch.arange(8, dtype=torch.uint8, device=seen.device)
    return (seen.unflatten(-1, (-1, 8)).to(torch.uint8) << bits).sum(-1, dtype=torch.uint8)


def state_of_lists(lists: Sequence[torch.Tensor], n_k: int) -> torch.Tensor:
    """The table (B, H, nQ, nK) of NONE, FULL or slot that a mask's first five tensors describe."""
    full_count, full_index, partial_count, partial_index, partial_slot = lists
    # Unused entries go to an extra column, which is dropped.
    state = full_count.new_full((*full_count.shape, n_k + 1), NONE)
    for count, index, value in (
        (full_count, full_index, torch.full_like(full_index, FULL)),
        (partial_count, partial_index, partial_slot),
    ):
        unused = torch.arange(index.shape[-1], device=index.device) >= count.unsqueeze(-1)
        state.scatter_(-1, index.masked_fill(unused, n_k).long(), value)
    return state[..., :n_k]


def dense_of_state(state: torch.Tensor, masks: torch.Tensor, seq_q: int, seq_k: int, block: int) -> torch.Tensor:
    """The (B, H, seq_q, seq_k) bool mask of a state table."""
    b, h, n_q, n_k = state.shape
    dense = (state == FULL)[..., None, None].expand(b, h, n_q, n_k, block, block).clone()
    partial = state >= 0
    dense[partial] = unpack(masks[state[partial].long()])
    return dense.transpose(3, 4).reshape(b, h, n_q * block, n_k * block)[:, :, :seq_q, :seq_k]


def listed(chosen: torch.Tensor, values: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Counts, indices (and values) of the true entries of each row of `chosen`."""
    count = chosen.sum(-1, dtype=torch.int32)
    most = int(count.max()) if count.numel() else 0
    place = chosen.cumsum(-1) - 1
    where = chosen.nonzero(as_tuple=True)
    target = (*where[:-1], place[where])
    index = count.new_zeros(*count.shape, most)
    index[target] = where[-1].to(torch.int32)
    if values is None:
        return count, index
    listed = count.new_zeros(*count.shape, most)
    listed[target] = values[where]
    return count, index, listed


def deduplicate(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(distinct masks, slot of each mask), grouped by a hash; if that fails to tell two apart, nothing is merged."""
    slots = torch.arange(len(packed), dtype=torch.int32, device=packed.device)
    if len(packed) < 2:
        return packed, slots
    words = packed.flatten(1).view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator).to(words) * 2 + 1 for _ in "ab")
    mixed = words * one
    digest = ((mixed ^ (mixed >> 31)) * two).sum(1)
    _, group = digest.unique(return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(packed), dtype=torch.int32, device=packed.device)
    first = first.scatter_reduce(0, group, slots, "amin")
    distinct = packed[first.long()]
    if not torch.equal(distinct[group], packed):
        return packed, slots
    return distinct, group.to(torch.int32)


class Builder:
    """Classifies blocks by their pairs, a bounded number at a time, and collects the element masks of partial ones."""

    def __init__(self, batch: int, heads: int, seq_q: int, seq_k: int, block: int, device: torch.device):
        self.seq_q, self.seq_k, self.block, self.device = seq_q, seq_k, block, device
        self.shape = (batch, heads, block_count(seq_q, block), block_count(seq_k, block))
        self.at_once = PAIRS_AT_ONCE // block**2
        self.state = torch.full(self.shape, NONE, dtype=torch.int32, device=device)
        self.packed: list[torch.Tensor] = []
        self.places: list[torch.Tensor] = []

    def positions(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, h, q, k) of blocks given by their flat number, broadcasting to (n, block, block)."""
        _, heads, n_q, n_k = self.shape
        inner = torch.arange(self.block, device=flat.device)
        flat = flat.view(-1, 1, 1)
        b, h = flat // (heads * n_q * n_k), flat // (n_q * n_k) % heads
        return b, h, flat // n_k % n_q * self.block + inner.view(-1, 1), flat % n_k * self.block + inner

    def add(self, flat: torch.Tensor, seen: torch.Tensor) -> None:
        _, _, q, k = self.positions(flat)
        exists = (q < self.seq_q) & (k < self.seq_k)
        seen = seen & exists
        some, every = seen.flatten(1).any(1), (seen | ~exists).flatten(1).all(1)
        self.state.view(-1)[flat[every]] = FULL
        partial = some & ~every
        self.places.append(flat[partial])
        self.packed.append(pack(seen[partial]))

    def evaluate(
        self, predicate: Predicate, doubtful: torch.Tensor | None = None, full: torch.Tensor | None = None
    ) -> Builder:
        """Ask `predicate` about the `doubtful` blocks (all, if None); the `full` ones need no asking."""
        if full is not None:
            self.state.masked_fill_(full.expand(self.shape), FULL)
        if doubtful is not None:
            flat = doubtful.expand(self.shape).flatten().nonzero().squeeze(1)
        else:
            flat = torch.arange(self.state.numel(), device=self.device)
        for part in flat.split(self.at_once):
            b, h, q, k = self.positions(part)
            # Positions past the end repeat the last one, so that a predicate may look them up in a table.
            seen = predicate(b, h, q.clamp(max=self.seq_q - 1), k.clamp(max=self.seq_k - 1))
            if not isinstance(seen, torch.Tensor) or seen.dtype != torch.bool:
                got = seen.dtype if isinstance(seen, torch.Tensor) else type(seen)
                Arguments("BlockMask").fail("predicate", "a function returning a bool tensor", str(got), TypeError)
            self.add(part, seen.expand(len(part), self.block, self.block))
        return self

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(state table, element masks)."""
        masks = no_masks(self.block, self.device)
        if self.packed:
            masks, slots = deduplicate(torch.cat(self.packed))
            self.state.view(-1)[torch.cat(self.places)] = slots
        return self.state, masks


def no_masks(block: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(0, block, block // 8, dtype=torch.uint8, device=device)
