"""BlockMask: which keys each query sees, as lists of blocks, so that attention can skip the rest.

The (Sq, Sk) plane is cut into square blocks of 64 or 128. For every (batch, head, query block) the mask lists the key
blocks of which every pair is seen (`full`) and those of which some pairs are (`partial`); a partial block points to an
element mask of packed bits, and equal element masks are stored once. All of it is tensors, so that a mask can pass
through a torch op: there is no Python predicate to carry along, and memory grows with the number of listed blocks.

    counts   (B, H, nQ)          int32   B and H are 1 or the batch and number of query heads
    indices  (B, H, nQ, most)    int32   the first `count` of a row are valid, ascending
    masks    (M, block, block/8) uint8   bit j % 8 of byte j // 8 of row i: query i of the block sees its key j

Pairs beyond seq_q or seq_k do not exist: a block is full if it sees every pair that exists. The `_t` lists hold the
same blocks by key block (query blocks ascending), for gradients of k and v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tkpy.arguments import Arguments
from tkpy.ops.attention import block_kernel
from tkpy.ops.attention.block_lists import (
    FULL,
    NONE,
    Builder,
    Predicate,
    band_blocks,
    block_count,
    dense_of_state,
    listed,
    no_masks,
    state_of_lists,
    unpack,
)

BLOCKS = (64, 128)


class BlockMask:
    """See the module's text. Made by the `from_*` methods or by a named pattern; or here, from checked lists.

    Args:
        seq_q, seq_k: the lengths of the attention this mask is for.
        block: 64 or 128.
        full_count, full_index: int32 (B, H, nQ) and (B, H, nQ, n): key blocks that are seen completely.
        partial_count, partial_index, partial_slot: the same for partial ones; slot says which of `masks` applies.
        masks: uint8 (M, block, block/8), packed bits.

    Raises:
        TypeError, ValueError: lists of wrong shape, dtype or device; counts or indices out of range; indices of a row
            that do not ascend; a block listed as both full and partial.
    """

    TENSORS = (
        *("full_count", "full_index", "partial_count", "partial_index", "partial_slot", "masks"),
        *("full_count_t", "full_index_t", "partial_count_t", "partial_index_t", "partial_slot_t"),
    )

    full_count: torch.Tensor
    full_index: torch.Tensor
    partial_count: torch.Tensor
    partial_index: torch.Tensor
    partial_slot: torch.Tensor
    masks: torch.Tensor
    full_count_t: torch.Tensor
    full_index_t: torch.Tensor
    partial_count_t: torch.Tensor
    partial_index_t: torch.Tensor
    partial_slot_t: torch.Tensor

    def __init__(
        self,
        seq_q: int,
        seq_k: int,
        block: int,
        full_count: torch.Tensor,
        full_index: torch.Tensor,
        partial_count: torch.Tensor,
        partial_index: torch.Tensor,
        partial_slot: torch.Tensor,
        masks: torch.Tensor,
    ):
        n_q, n_k = _check_lengths(Arguments("BlockMask"), seq_q, seq_k, block)
        check = Arguments("BlockMask")
        for name, value, shape in (
            ("full_count", full_count, f"B H {n_q}"),
            ("full_index", full_index, f"B H {n_q} F"),
            ("partial_count", partial_count, f"B H {n_q}"),
            ("partial_index", partial_index, f"B H {n_q} P"),
            ("partial_slot", partial_slot, f"B H {n_q} P"),
        ):
            check.tensor(name, value, shape, dtypes=(torch.int32,))
        check.tensor("masks", masks, f"M {block} {block // 8}", dtypes=(torch.uint8,))
        check.same_device()
        _check_list(check, "full", full_count, full_index, n_k)
        _check_list(check, "partial", partial_count, partial_index, n_k)
        _check_range(check, "partial_slot", partial_slot, partial_count, len(masks))
        state = state_of_lists((full_count, full_index, partial_count, partial_index, partial_slot), n_k)
        count = int((state != NONE).sum())
        check.that(
            count == int(full_count.sum() + partial_count.sum()),
            "partial_index",
            "disjoint from 'full_index'",
            "a block listed in both",
        )
        self._fill(state, masks, seq_q, seq_k, block)

    def _fill(self, state: torch.Tensor, masks: torch.Tensor, seq_q: int, seq_k: int, block: int) -> None:
        self.seq_q, self.seq_k, self.block, self.masks = seq_q, seq_k, block, masks
        for suffix, table in (("", state), ("_t", state.transpose(-1, -2))):
            full = listed(table == FULL)
            partial = listed(table >= 0, table)
            for name, value in zip(("full_count", "full_index"), full, strict=True):
                setattr(self, name + suffix, value)
            for name, value in zip(("partial_count", "partial_index", "partial_slot"), partial, strict=True):
                setattr(self, name + suffix, value)

    @classmethod
    def _of_state(cls, state: torch.Tensor, masks: torch.Tensor, seq_q: int, seq_k: int, block: int) -> BlockMask:
        mask = cls.__new__(cls)
        mask._fill(state, masks, seq_q, seq_k, block)
        return mask

    @classmethod
    def _of_kernel(cls, table: torch.Tensor, seq_q: int, seq_k: int, block: int, most: int, causal: bool) -> BlockMask:
        mask = cls.__new__(cls)
        mask.seq_q, mask.seq_k, mask.block = seq_q, seq_k, block
        for name, value in block_kernel.listed_blocks(table, seq_q, seq_k, block, most, causal).items():
            setattr(mask, name, value)
        return mask

    @classmethod
    def _of_builder(cls, builder: Builder) -> BlockMask:
        return cls._of_state(*builder.finish(), builder.seq_q, builder.seq_k, builder.block)

    # ------------------------------------------------------------------------------------------------------ from data
    @classmethod
    def from_dense(
        cls, blocks: torch.Tensor, seq_q: int, seq_k: int, block: int = 128, *, backend: str | None = None
    ) -> BlockMask:
        """From a bool table (B, H, nQ, nK) of blocks; a true block is seen completely. `backend`: see `topk`."""
        check = Arguments("BlockMask.from_dense")
        n_q, n_k = _check_lengths(check, seq_q, seq_k, block)
        check.tensor("blocks", blocks, f"B H {n_q} {n_k}", dtypes=(torch.bool,))
        if block_kernel.serves(check, "BlockMask.from_dense", backend, blocks.device):
            return cls._of_kernel(blocks, seq_q, seq_k, block, 0, False)
        state = torch.where(blocks, FULL, NONE).to(torch.int32)
        return cls._of_state(state, no_masks(block, blocks.device), seq_q, seq_k, block)

    @classmethod
    def from_bsr(
        cls,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        seq_q: int,
        seq_k: int,
        block: int = 128,
        *,
        masks: torch.Tensor | None = None,
    ) -> BlockMask:
        """From block-sparse rows: the key blocks of query block i are indices[indptr[i] : indptr[i + 1]].

        indptr (nQ + 1), indices (nnz), int32 or int64; one pattern for all batch entries and heads. `masks`
        (nnz, block, block) bool optionally gives the element mask of every listed block.
        """
        check = Arguments("BlockMask.from_bsr")
        n_q, n_k = _check_lengths(check, seq_q, seq_k, block)
        check.tensor("indptr", indptr, f"{n_q + 1}", dtypes=(torch.int32, torch.int64))
        check.tensor("indices", indices, "nnz", dtypes=(torch.int32, torch.int64))
        check.tensor("masks", masks, f"nnz {block} {block}", dtypes=(torch.bool,), optional=True)
        check.same_device()
        lengths = indptr.diff().long()
        ends = bool(indptr[0] == 0) and bool((lengths >= 0).all()) and int(indptr[-1]) == len(indices)
        check.that(ends, "indptr", f"ascending from 0 to nnz = {len(indices)}", indptr)
        inside = bool(((indices >= 0) & (indices < n_k)).all())
        check.that(inside, "indices", f"in range [0, {n_k})", indices)
        rows = torch.repeat_interleave(torch.arange(n_q, device=indptr.device), lengths)
        flat = rows * n_k + indices
        check.that(len(flat.unique()) == len(flat), "indices", "unique within a row", indices)
        if masks is None:
            chosen = torch.zeros(n_q * n_k, dtype=torch.bool, device=indptr.device)
            chosen[flat] = True
            return cls.from_dense(chosen.view(1, 1, n_q, n_k), seq_q, seq_k, block)
        builder = Builder(1, 1, seq_q, seq_k, block, indptr.device)
        for part in torch.arange(len(flat), device=flat.device).split(builder.at_once):
            builder.add(flat[part], masks[part])
        return cls._of_builder(builder)

    @classmethod
    def from_predicate(
        cls,
        predicate: Predicate,
        seq_q: int,
        seq_k: int,
        block: int = 128,
        *,
        batch: int = 1,
        heads: int = 1,
        device: str | torch.device | None = None,
    ) -> BlockMask:
        """From `predicate(b, h, q, k) -> bool`, an elementwise function of integer tensors that broadcast together.

        It is evaluated a bounded number of blocks at a time; only the element masks of partial blocks are kept.
        """
        check = Arguments("BlockMask.from_predicate")
        _check_lengths(check, seq_q, seq_k, block)
        check.integer("batch", batch, minimum=0)
        check.integer("heads", heads, minimum=0)
        if not callable(predicate):
            check.fail("predicate", "a function of (b, h, q, k)", repr(predicate), TypeError)
        builder = Builder(batch, heads, seq_q, seq_k, block, torch.device(device or "cpu"))
        return cls._of_builder(builder.evaluate(predicate))

    @classmethod
    def from_flex(cls, mask: Any) -> BlockMask:
        """From a `torch.nn.attention.flex_attention.BlockMask` of square blocks of 64 or 128.

        Its `mask_mod` is evaluated once, on the partial blocks, under `torch.vmap` as FlexAttention does.
        """
        check = Arguments("BlockMask.from_flex")
        names = ("kv_num_blocks", "kv_indices", "seq_lengths", "BLOCK_SIZE", "mask_mod")
        if not all(hasattr(mask, name) for name in names):
            check.fail("mask", "a FlexAttention BlockMask", repr(type(mask)), TypeError)
        (seq_q, seq_k), size = mask.seq_lengths, tuple(mask.BLOCK_SIZE)
        check.that(size[0] == size[1] and size[0] in BLOCKS, "mask", "of square blocks of 64 or 128", size)
        block = int(size[0])
        n_q, n_k = _check_lengths(check, int(seq_q), int(seq_k), block)
        none = torch.zeros_like(mask.kv_indices[..., :0])
        counts, indices = mask.full_kv_num_blocks, mask.full_kv_indices
        if counts is None:
            counts, indices = torch.zeros_like(mask.kv_num_blocks), none
        partial = (mask.kv_num_blocks, mask.kv_indices, torch.zeros_like(mask.kv_indices))
        state = state_of_lists((counts, indices, *partial), n_k)[:, :, :n_q]
        over_k = torch.vmap(mask.mask_mod, in_dims=(None, None, None, 0))
        over_q = torch.vmap(over_k, in_dims=(None, None, 0, None))
        over_blocks = torch.vmap(over_q, in_dims=(0, 0, 0, 0))

        def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return over_blocks(b.flatten(), h.flatten(), q.squeeze(2), k.squeeze(1))

        builder = Builder(state.shape[0], state.shape[1], int(seq_q), int(seq_k), block, state.device)
        return cls._of_builder(builder.evaluate(seen, state >= 0, state == FULL))

    def to_flex(self) -> Any:
        """As a `torch.nn.attention.flex_attention.BlockMask` of the same blocks, with a `mask_mod` that looks up bits.

        Its sequence lengths are this mask's, so FlexAttention needs q and k of exactly these lengths.
        """
        from torch.nn.attention.flex_attention import BlockMask as FlexBlockMask

        state = state_of_lists(self.tensors[:5], block_count(self.seq_k, self.block))
        batch, heads, _, n_k = state.shape
        masks = torch.cat([unpack(self.masks), state.new_ones(1, self.block, self.block, dtype=torch.bool)])
        slots = torch.where(state == FULL, len(self.masks), state)  # the last mask is all true

        def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            slot = slots[b % batch, h % heads, q // self.block, k // self.block]
            return (slot != NONE) & masks[slot.clamp(min=0), q % self.block, k % self.block]

        def lists(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            count, index = listed(chosen)
            return count, torch.nn.functional.pad(index, (0, n_k - index.shape[-1]))

        (counts, indices), (full_counts, full_indices) = lists(state >= 0), lists(state == FULL)
        lengths = (self.seq_q, self.seq_k)
        return FlexBlockMask.from_kv_blocks(
            counts, indices, full_counts, full_indices, self.block, mask_mod, seq_lengths=lengths
        )

    # --------------------------------------------------------------------------------------------------- named patterns
    @classmethod
    def causal(cls, seq_q: int, seq_k: int | None = None, block: int = 128, *, device: Any = None) -> BlockMask:
        """j <= i + seq_k - seq_q."""
        return cls.sliding_window(seq_q, seq_k, block, left=None, right=0, device=device)

    @classmethod
    def sliding_window(
        cls,
        seq_q: int,
        seq_k: int | None = None,
        block: int = 128,
        *,
        left: int | None,
        right: int | None = 0,
        device: Any = None,
    ) -> BlockMask:
        """-left <= j - (i + seq_k - seq_q) <= right; None leaves a side open."""
        return cls._banded("sliding_window", seq_q, seq_k, block, 0, left, right, device)

    @classmethod
    def sink_window(
        cls, seq_q: int, seq_k: int | None = None, block: int = 128, *, sink: int, left: int, device: Any = None
    ) -> BlockMask:
        """j <= d and (j < sink or j >= d - left), with d = i + seq_k - seq_q (StreamingLLM's mask)."""
        return cls._banded("sink_window", seq_q, seq_k, block, sink, left, 0, device)

    @classmethod
    def _banded(
        cls,
        name: str,
        seq_q: int,
        seq_k: int | None,
        block: int,
        sink: int,
        left: int | None,
        right: int | None,
        device: Any,
    ) -> BlockMask:
        check = Arguments(f"BlockMask.{name}")
        seq_k = seq_q if seq_k is None else seq_k
        n_q, n_k = _check_lengths(check, seq_q, seq_k, block)
        check.integer("sink", sink, minimum=0)
        check.integer("left", left, minimum=0, optional=True)
        check.integer("right", right, minimum=0, optional=True)
        before, after, offset = -1 if left is None else left, -1 if right is None else right, seq_k - seq_q
        rows, columns = _grid(n_q, n_k, device)
        some, every = band_blocks(rows, columns, block, seq_q, seq_k, before, after)
        if sink:
            reach, whole = band_blocks(rows, columns, block, seq_q, seq_k, -1, after)
            some = some | (reach & (columns * block < sink))
            every = every | (whole & ((columns * block + block).clamp(max=seq_k) <= sink))

        def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            distance = k - q - offset
            near = distance >= -before if before >= 0 else torch.ones_like(distance, dtype=torch.bool)
            return (near | (k < sink)) & (distance <= after if after >= 0 else True)

        builder = Builder(1, 1, seq_q, seq_k, block, rows.device)
        return cls._of_builder(builder.evaluate(seen, (some & ~every)[None, None], every[None, None]))

    @classmethod
    def bigbird(
        cls,
        seq: int,
        block: int = 64,
        *,
        heads: int = 1,
        window: int = 3,
        global_blocks: int = 2,
        random_blocks: int = 3,
        seed: int = 0,
        device: Any = None,
    ) -> BlockMask:
        """BigBird (Zaheer et al. 2020, section 2), in whole blocks of an encoder's square mask.

        A query block sees the `window` (odd) blocks around itself, the first `global_blocks` blocks, and
        `random_blocks` further ones, drawn per head and query block from `seed`; the first `global_blocks` query blocks
        see everything.
        """
        check = Arguments("BlockMask.bigbird")
        n, _ = _check_lengths(check, seq, seq, block)
        check.integer("heads", heads, minimum=0)
        check.integer("window", window, minimum=1)
        check.that(window % 2 == 1, "window", "an odd number of blocks", window)
        check.integer("global_blocks", global_blocks, minimum=0)
        check.integer("random_blocks", random_blocks, minimum=0)
        rows, columns = _grid(n, n, "cpu")
        fixed = ((rows - columns).abs() <= window // 2) | (columns < global_blocks) | (rows < global_blocks)
        noise = torch.rand(heads, n, n, generator=torch.Generator().manual_seed(seed)).masked_fill(fixed, -1.0)
        value, drawn = noise.topk(min(random_blocks, n), -1)
        chosen = fixed.repeat(heads, 1, 1).scatter(
            -1, drawn, fixed.expand(heads, n, n).gather(-1, drawn) | (value >= 0)
        )
        return cls.from_dense(chosen[None].to(device or "cpu"), seq, seq, block)

    @classmethod
    def vertical_slash(
        cls, vertical: torch.Tensor, slash: torch.Tensor, seq_q: int, seq_k: int | None = None, block: int = 64
    ) -> BlockMask:
        """j <= d and (j in vertical or d - j in slash), with d = i + seq_k - seq_q (MInference's pattern).

        vertical (B, H, nv): key positions; slash (B, H, ns): distances behind the diagonal; integers, -1 = unused.
        """
        check = Arguments("BlockMask.vertical_slash")
        seq_k = seq_q if seq_k is None else seq_k
        n_q, n_k = _check_lengths(check, seq_q, seq_k, block)
        check.tensor("vertical", vertical, "B H nv", dtypes=(torch.int32, torch.int64))
        check.tensor("slash", slash, "B H ns", dtypes=(torch.int32, torch.int64))
        check.same_device()
        columns_seen = _membership(check, "vertical", vertical, seq_k)
        distances_seen = _membership(check, "slash", slash, seq_k)
        rows, columns = _grid(n_q, n_k, vertical.device)
        causal, whole = band_blocks(rows, columns, block, seq_q, seq_k, -1, 0)
        key, offset = columns * block, seq_k - seq_q
        nearest = rows * block + offset - (key + block).clamp(max=seq_k) + 1  # smallest distance within the block
        farthest = (rows * block + block).clamp(max=seq_q) - 1 + offset - key
        on_column, all_columns = _counted(columns_seen, key, (key + block).clamp(max=seq_k))
        on_slash, all_slashes = _counted(distances_seen, nearest, farthest + 1)

        def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            distance = q + offset - k
            hit = columns_seen[b, h, k] | distances_seen[b, h, distance.clamp(min=0)]
            return hit & (distance >= 0)

        every = (all_columns | all_slashes) & whole
        batch, heads = vertical.shape[:2]
        builder = Builder(batch, heads, seq_q, seq_k, block, vertical.device)
        return cls._of_builder(builder.evaluate(seen, (on_column | on_slash) & causal & ~every, every))

    @classmethod
    def topk(
        cls,
        scores: torch.Tensor,
        blocks: int,
        seq_q: int,
        seq_k: int | None = None,
        block: int = 64,
        *,
        causal: bool = True,
        backend: str | None = None,
    ) -> BlockMask:
        """The `blocks` key blocks of highest score in each row of scores (B, H, nQ, nK).

        With `causal`, only key blocks that hold a permitted pair compete, and pairs j > i + seq_k - seq_q are not seen.

        On an sm_90 GPU a kernel makes the lists: nothing waits for the device, a CUDA graph may hold it, the same
        scores give the same lists (of equal ones the first; NaN is above all). `backend`: None, or one of "cuda",
        "emulator" (the same kernel, CPU tensors) and "eager".
        """
        check = Arguments("BlockMask.topk")
        seq_k = seq_q if seq_k is None else seq_k
        n_q, n_k = _check_lengths(check, seq_q, seq_k, block)
        check.tensor("scores", scores, f"B H {n_q} {n_k}")
        check.integer("blocks", blocks, minimum=0)
        check.flag("causal", causal)
        if block_kernel.serves(check, "BlockMask.topk", backend, scores.device):
            return cls._of_kernel(scores, seq_q, seq_k, block, blocks, causal)
        rows, columns = _grid(n_q, n_k, scores.device)
        some, every = band_blocks(rows, columns, block, seq_q, seq_k, -1, 0 if causal else -1)
        best = scores.detach().float().masked_fill(~some, -torch.inf).topk(min(blocks, n_k), -1).indices
        chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter(-1, best, True) & some

        def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return k <= q + seq_k - seq_q

        builder = Builder(scores.shape[0], scores.shape[1], seq_q, seq_k, block, scores.device)
        return cls._of_builder(builder.evaluate(seen, chosen & ~every, chosen & every))

    # ------------------------------------------------------------------------------------------------------------ use
    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors in the order of `TENSORS`."""
        return [getattr(self, name) for name in self.TENSORS]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, seq_q, seq_k)."""
        return (*self.full_count.shape[:2], self.seq_q, self.seq_k)

    @property
    def device(self) -> torch.device:
        return self.full_count.device

    @property
    def sparsity(self) -> float:
        """The share of blocks that attention skips."""
        blocks = self.full_count.numel() * block_count(self.seq_k, self.block)
        return 1 - int(self.full_count.sum() + self.partial_count.sum()) / blocks if blocks else 0.0

    def to_dense(self) -> torch.Tensor:
        """The element mask (B, H, seq_q, seq_k), bool: for tests and small pictures."""
        state = state_of_lists(self.tensors[:5], block_count(self.seq_k, self.block))
        return dense_of_state(state, self.masks, self.seq_q, self.seq_k, self.block)

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> BlockMask:
        """The mask with `function` applied to each of its tensors."""
        mask = BlockMask.__new__(BlockMask)
        mask.seq_q, mask.seq_k, mask.block = self.seq_q, self.seq_k, self.block
        for name in self.TENSORS:
            setattr(mask, name, function(getattr(self, name)))
        return mask

    def to(self, device: str | torch.device) -> BlockMask:
        return self.map_tensors(lambda t: t.to(device))

    def __repr__(self) -> str:
        b, h, seq_q, seq_k = self.shape
        full, partial = int(self.full_count.sum()), int(self.partial_count.sum())
        return (
            f"BlockMask(seq_q={seq_q}, seq_k={seq_k}, block={self.block}, batch={b}, heads={h}, full={full}, "
            f"partial={partial}, masks={len(self.masks)}, sparsity={100 * self.sparsity:.1f} %, device='{self.device}')"
        )


def _grid(n_q: int, n_k: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(n_q, device=device).view(-1, 1)
    columns = torch.arange(n_k, device=device)
    return rows.expand(n_q, n_k), columns.expand(n_q, n_k)


def _membership(check: Arguments, name: str, indices: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, max(size, 1)) bool: which numbers occur in each row of indices; -1 stands for none."""
    inside = bool(((indices >= -1) & (indices < size)).all())
    check.that(inside, name, f"in range [-1, {size})", indices)
    table = torch.zeros(*indices.shape[:2], max(size, 1) + 1, dtype=torch.bool, device=indices.device)
    return table.scatter_(-1, indices.long() + 1, True)[..., 1:]


def _counted(table: torch.Tensor, start: torch.Tensor, stop: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(some, every) number of [start, stop) is in the table; numbers outside of the table are not in it."""
    size = table.shape[-1]
    sums = torch.nn.functional.pad(table.cumsum(-1), (1, 0))
    count = sums[..., stop.clamp(0, size)] - sums[..., start.clamp(0, size)]
    return count > 0, count == stop - start


def _check_lengths(check: Arguments, seq_q: int, seq_k: int, block: int) -> tuple[int, int]:
    check.integer("seq_q", seq_q, minimum=0)
    check.integer("seq_k", seq_k, minimum=0)
    check.choice("block", block, BLOCKS)
    return block_count(seq_q, block), block_count(seq_k, block)


def _check_range(check: Arguments, name: str, values: torch.Tensor, count: torch.Tensor, size: int) -> None:
    used = torch.arange(values.shape[-1], device=values.device) < count.unsqueeze(-1)
    wrong = used & ((values < 0) | (values >= size))
    if bool(wrong.any()):
        check.fail(name, f"in range [0, {size})", f"{int(values[wrong][0])}")


def _check_list(check: Arguments, name: str, count: torch.Tensor, index: torch.Tensor, size: int) -> None:
    most = index.shape[-1]
    wrong = (count < 0) | (count > most)
    if bool(wrong.any()):
        check.fail(f"{name}_count", f"in range [0, {most}] (the width of '{name}_index')", f"{int(count[wrong][0])}")
    _check_range(check, f"{name}_index", index, count, size)
    used = torch.arange(1, max(most, 1), device=index.device) < count.unsqueeze(-1)
    check.that(not bool((used & (index.diff(dim=-1) <= 0)).any()), f"{name}_index", "ascending in every row", index)
