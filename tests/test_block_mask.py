"""BlockMask: every constructor and named pattern against its element rule written out, and what malformed lists say."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from tkpy import conformance
from tkpy.ops.attention import BlockMask, block_lists

LENGTHS = [(64, 64), (1, 1), (65, 63), (130, 257), (257, 130), (64, 320)]
BOTH = pytest.mark.parametrize("block", [64, 128])
EVERY = pytest.mark.parametrize("seq_q, seq_k", LENGTHS)


def element_rule(rule, seq_q, seq_k, batch=1, heads=1):
    axes = [
        torch.arange(n).view([-1 if i == d else 1 for i in range(4)])
        for d, n in enumerate((batch, heads, seq_q, seq_k))
    ]
    return rule(*axes).expand(batch, heads, seq_q, seq_k)


def assert_is(mask, expected):
    """The mask says `expected` for every pair, its lists are tight and both orders of its lists agree."""
    assert torch.equal(mask.to_dense(), expected)
    n_q, n_k = -(-mask.seq_q // mask.block), -(-mask.seq_k // mask.block)
    state = block_lists.state_of_lists(mask.tensors[:5], n_k)
    transposed = block_lists.state_of_lists(mask.tensors[6:], n_q)
    assert torch.equal(state, transposed.transpose(-1, -2))
    for i in range(n_q):
        for j in range(n_k):
            part = expected[:, :, i * mask.block : (i + 1) * mask.block, j * mask.block : (j + 1) * mask.block].flatten(
                2
            )
            assert torch.equal(state[:, :, i, j] == block_lists.FULL, part.all(-1))
            assert torch.equal(state[:, :, i, j] >= 0, part.any(-1) & ~part.all(-1))
    assert mask.tensors[0].dtype == mask.tensors[1].dtype == torch.int32
    rebuilt = BlockMask(mask.seq_q, mask.seq_k, mask.block, *mask.tensors[:6])
    for a, b in zip(rebuilt.tensors, mask.tensors, strict=True):
        assert torch.equal(a, b)


@BOTH
@EVERY
def test_causal(seq_q, seq_k, block):
    mask = BlockMask.causal(seq_q, seq_k, block)
    assert_is(mask, element_rule(lambda b, h, q, k: k <= q + seq_k - seq_q, seq_q, seq_k))


@BOTH
@EVERY
@pytest.mark.parametrize("left, right", [(0, 0), (70, 5), (None, 3), (64, None), (None, None)])
def test_sliding_window(seq_q, seq_k, block, left, right):
    def rule(b, h, q, k):
        diagonal = q + seq_k - seq_q
        low = diagonal - (10**6 if left is None else left)
        high = diagonal + (10**6 if right is None else right)
        return (k >= low) & (k <= high)

    assert_is(BlockMask.sliding_window(seq_q, seq_k, block, left=left, right=right), element_rule(rule, seq_q, seq_k))


@BOTH
@EVERY
@pytest.mark.parametrize("sink, left", [(4, 20), (64, 64), (130, 0)])
def test_sink_window(seq_q, seq_k, block, sink, left):
    def rule(b, h, q, k):
        diagonal = q + seq_k - seq_q
        return (k <= diagonal) & ((k < sink) | (k >= diagonal - left))

    assert_is(BlockMask.sink_window(seq_q, seq_k, block, sink=sink, left=left), element_rule(rule, seq_q, seq_k))


def test_bigbird():
    seq, block = 700, 64
    mask = BlockMask.bigbird(seq, block, heads=2, window=3, global_blocks=2, random_blocks=3, seed=5)
    blocks = mask.to_dense()[0, :, ::block, ::block]
    assert_is(mask, blocks.repeat_interleave(block, 1).repeat_interleave(block, 2)[None, :, :seq, :seq])
    assert torch.equal(mask.to_dense(), BlockMask.bigbird(seq, block, heads=2, seed=5).to_dense())
    i, j = torch.arange(11).view(-1, 1), torch.arange(11)
    fixed = ((i - j).abs() <= 1) | (i < 2) | (j < 2)
    assert bool(blocks[:, fixed].all())
    assert torch.equal((blocks & ~fixed).sum(-1), ((~fixed).sum(-1).clamp(max=3)).expand(2, 11))
    assert not torch.equal(blocks[0], blocks[1])


@EVERY
def test_vertical_slash(seq_q, seq_k):
    generator = torch.Generator().manual_seed(0)
    vertical = torch.randint(-1, seq_k, (2, 3, 4), generator=generator)
    slash = torch.randint(-1, seq_k, (2, 3, 5), generator=generator)
    slash[0, 0, :] = torch.arange(5).clamp(max=seq_k - 1)

    def rule(b, h, q, k):
        distance = q + seq_k - seq_q - k
        column = (k.unsqueeze(-1) == vertical[b, h]).any(-1)
        diagonal = (distance.unsqueeze(-1) == slash[b, h]).any(-1)
        return (distance >= 0) & (column | diagonal)

    assert_is(BlockMask.vertical_slash(vertical, slash, seq_q, seq_k), element_rule(rule, seq_q, seq_k, 2, 3))


def test_vertical_slash_finds_full_blocks_by_counting():
    mask = BlockMask.vertical_slash(torch.arange(64).view(1, 1, -1), torch.arange(128).view(1, 1, -1), 256)
    assert mask.full_count.tolist() == [[[0, 1, 2, 2]]]
    assert_is(mask, element_rule(lambda b, h, q, k: (k <= q) & ((k < 64) | (q - k < 128)), 256, 256))


@EVERY
@pytest.mark.parametrize("causal", [True, False])
def test_topk(seq_q, seq_k, causal):
    n_q, n_k = -(-seq_q // 64), -(-seq_k // 64)
    scores = torch.randn(2, 2, n_q, n_k, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(2, 2, seq_q, seq_k, dtype=torch.bool)
    allowed = element_rule(lambda b, h, q, k: (k <= q + seq_k - seq_q) | (not causal), seq_q, seq_k)[0, 0]
    for b in range(2):
        for h in range(2):
            for i in range(n_q):
                rows = slice(64 * i, 64 * i + 64)
                competing = [j for j in range(n_k) if allowed[rows, 64 * j : 64 * j + 64].any()]
                for j in sorted(competing, key=lambda j: -scores[b, h, i, j])[:2]:
                    expected[b, h, rows, 64 * j : 64 * j + 64] = allowed[rows, 64 * j : 64 * j + 64]
    assert_is(BlockMask.topk(scores, 2, seq_q, seq_k, causal=causal), expected)


@BOTH
def test_predicate_per_batch_entry_and_head(block):
    def rule(b, h, q, k):
        return ((q * 3 + k + b) % (h + 2) == 0) & (k > 70) & (q // 64 != 1)

    mask = BlockMask.from_predicate(rule, 200, 259, block, batch=2, heads=3)
    assert_is(mask, element_rule(rule, 200, 259, 2, 3))


def test_predicate_never_sees_many_pairs_or_positions_beyond_the_end(monkeypatch):
    monkeypatch.setattr(block_lists, "PAIRS_AT_ONCE", 2 * 64 * 64)
    document, calls = torch.arange(500) // 90, []

    def same_document(b, h, q, k):
        calls.append(torch.broadcast_shapes(b.shape, h.shape, q.shape, k.shape).numel())
        return document[q] == document[k]  # would fail for a position of 500

    mask = BlockMask.from_predicate(same_document, 500, 500, 64)
    assert max(calls) <= 2 * 64 * 64
    assert len(calls) == 32
    assert_is(mask, (document.view(-1, 1) == document)[None, None])


def test_equal_element_masks_are_stored_once():
    mask = BlockMask.causal(64 * 50, block=64)
    assert len(mask.masks) == 1
    assert mask.partial_count.tolist() == [[[1] * 50]]
    listed = sum(t.numel() * t.element_size() for t in BlockMask.sliding_window(1 << 17, left=1000).tensors)
    assert listed < 1 << 18


def test_a_failing_hash_merges_nothing(monkeypatch):
    packed = torch.randint(0, 255, (5, 64, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed[3] = packed[1]
    masks, slots = block_lists.deduplicate(packed)
    assert len(masks) == 4
    assert torch.equal(masks[slots.long()], packed)
    monkeypatch.setattr(torch, "randint", lambda low, high, size, generator: torch.zeros(size, dtype=torch.int64))
    packed[:, 0] = 0
    monkeypatch.setattr(torch.Tensor, "unique", lambda self, return_inverse: (self[:1], torch.zeros_like(self)))
    masks, slots = block_lists.deduplicate(packed)
    assert torch.equal(masks[slots.long()], packed)


def test_from_dense_and_sparsity():
    chosen = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.3
    mask = BlockMask.from_dense(chosen, 4 * 64 - 7, 5 * 64 - 1, 64)
    expected = chosen.repeat_interleave(64, 2).repeat_interleave(64, 3)[:, :, :249, :319]
    assert_is(mask, expected)
    assert mask.sparsity == pytest.approx(1 - chosen.float().mean().item())
    assert mask.shape == (2, 3, 249, 319)
    assert "block=64, batch=2, heads=3" in repr(mask)
    assert f"full={int(chosen.sum())}" in repr(mask)


def test_from_bsr():
    indptr, indices = torch.tensor([0, 2, 2, 5]), torch.tensor([3, 0, 1, 2, 3])
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[[0, 0, 2, 2, 2], [3, 0, 1, 2, 3]] = True
    blocks = expected.repeat_interleave(64, 0).repeat_interleave(64, 1)
    assert_is(BlockMask.from_bsr(indptr, indices, 190, 250, 64), blocks[None, None, :190, :250])
    masks = torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(3)) < 0.5
    masks[2] = True
    masks[3] = False
    mask = BlockMask.from_bsr(indptr.int(), indices.int(), 190, 250, 64, masks=masks)
    expected = torch.zeros(192, 256, dtype=torch.bool)
    for n, (i, j) in enumerate(zip([0, 0, 2, 2, 2], indices.tolist(), strict=True)):
        expected[64 * i : 64 * i + 64, 64 * j : 64 * j + 64] = masks[n]
    assert_is(mask, expected[None, None, :190, :250])


@pytest.mark.parametrize("seq_q, seq_k, block", [(128, 128, 128), (130, 257, 64), (300, 300, 128)])
def test_from_flex(seq_q, seq_k, block):
    document = torch.arange(max(seq_q, seq_k)) // 100

    def mask_mod(b, h, q, k):
        return (k <= q + h * 50) & (document[q] == document[k])

    flex = create_block_mask(mask_mod, 1, 2, seq_q, seq_k, device="cpu", BLOCK_SIZE=block)
    assert_is(BlockMask.from_flex(flex), element_rule(mask_mod, seq_q, seq_k, 1, 2))


def test_from_flex_without_full_blocks():
    flex = create_block_mask(lambda b, h, q, k: k <= q, 1, 1, 256, 256, device="cpu", separate_full_blocks=False)
    assert_is(BlockMask.from_flex(flex), BlockMask.causal(256).to_dense())


@pytest.mark.parametrize("seq_q, seq_k", [(0, 0), (0, 70), (70, 0)])
def test_zero_lengths(seq_q, seq_k):
    for mask in (
        BlockMask.causal(seq_q, seq_k, 64),
        BlockMask.from_predicate(lambda b, h, q, k: q == k, seq_q, seq_k, 64),
        BlockMask.sink_window(seq_q, seq_k, 64, sink=1, left=2),
        BlockMask.topk(torch.zeros(1, 1, -(-seq_q // 64), -(-seq_k // 64)), 2, seq_q, seq_k),
        BlockMask.vertical_slash(torch.full((1, 1, 1), -1), torch.full((1, 1, 1), -1), seq_q, seq_k),
    ):
        assert mask.to_dense().shape == (1, 1, seq_q, seq_k)
        repr(mask)


def test_map_tensors_and_to():
    mask = BlockMask.causal(100, block=64)
    seen = []
    copy = mask.map_tensors(lambda t: seen.append(t) or t.clone())
    assert len(seen) == len(mask.tensors)
    assert copy.shape == mask.shape
    assert torch.equal(copy.to_dense(), mask.to_dense())
    assert mask.to("meta").device.type == "meta"
    assert isinstance(conformance.widen({"block_mask": mask})["block_mask"], BlockMask)


def broken(**changes):
    good = BlockMask.causal(256, block=64)
    lists = {name: getattr(good, name).clone() for name in BlockMask.TENSORS[:6]}
    for name, change in changes.items():
        lists[name] = change(lists[name])
    return BlockMask(256, 256, 64, *lists.values())


def put(place, value):
    def change(t):
        t[place] = value
        return t

    return change


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"full_count": put((0, 0, 1), 9)}, r"'full_count' must be in range \[0, 3\].*got 9"),
        ({"full_count": put((0, 0, 1), -1)}, r"'full_count' must be in range.*got -1"),
        ({"full_index": put((0, 0, 3, 1), 4)}, r"'full_index' must be in range \[0, 4\), got 4"),
        ({"full_index": put((0, 0, 3, 1), 0)}, "'full_index' must be ascending"),
        ({"partial_index": put((0, 0, 3, 0), 1)}, "'partial_index' must be disjoint from 'full_index'"),
        ({"partial_slot": put((0, 0, 3, 0), 7)}, r"'partial_slot' must be in range \[0, 1\), got 7"),
        ({"partial_slot": lambda t: t[..., :0]}, "'partial_slot' must be a tensor of rank 4"),
        ({"masks": lambda t: t[:, :5]}, "'masks' must be a tensor"),
    ],
)
def test_malformed_lists(changes, message):
    broken()
    with pytest.raises(ValueError, match=message):
        broken(**changes)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: BlockMask.causal(-1), ValueError, "'seq_q' must be at least 0"),
        (lambda: BlockMask.causal(5, 5, 32), ValueError, "'block' must be one of 64, 128"),
        (lambda: BlockMask.causal(5.0), TypeError, "'seq_q' must be an integer"),
        (lambda: BlockMask.sliding_window(5, left=-2), ValueError, "sliding_window: argument 'left'"),
        (lambda: BlockMask.bigbird(64, window=2), ValueError, "'window' must be an odd number"),
        (lambda: BlockMask.from_dense(torch.ones(1, 1, 2, 2), 128, 128, 64), TypeError, "'blocks' must be.*bool"),
        (lambda: BlockMask.from_dense(torch.ones(1, 1, 2, 3).bool(), 128, 128, 64), ValueError, "'blocks'"),
        (lambda: BlockMask.from_predicate(3, 4, 4), TypeError, "'predicate' must be a function"),
        (lambda: BlockMask.from_predicate(lambda b, h, q, k: q - k, 4, 4), TypeError, "returning a bool tensor"),
        (lambda: BlockMask.from_flex(3), TypeError, "FlexAttention BlockMask"),
        (lambda: BlockMask.topk(torch.zeros(1, 1, 1, 2), 1, 64, 64), ValueError, "'scores'"),
        (
            lambda: BlockMask.vertical_slash(torch.full((1, 1, 1), 9), torch.zeros(1, 1, 1).int(), 9),
            ValueError,
            "'vertical'",
        ),
        (lambda: BlockMask.from_bsr(torch.tensor([0, 2]), torch.tensor([0]), 9, 9, 64), ValueError, "'indptr'"),
        (
            lambda: BlockMask.from_bsr(torch.tensor([0, 1]), torch.tensor([1]), 9, 9, 64),
            ValueError,
            "'indices' must be in",
        ),
        (
            lambda: BlockMask.from_bsr(torch.tensor([0, 2]), torch.tensor([0, 0]), 9, 9, 64),
            ValueError,
            "'indices' must be uni",
        ),
    ],
)
def test_malformed_calls(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_flex_blocks_must_be_square():
    flex = create_block_mask(lambda b, h, q, k: k <= q, 1, 1, 256, 256, device="cpu", BLOCK_SIZE=(128, 64))
    with pytest.raises(ValueError, match="square blocks"):
        BlockMask.from_flex(flex)
