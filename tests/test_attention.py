"""attention: against torch's own; packed against one by one; empty rows, sinks, log-sum-exp, masks; bad arguments."""

from __future__ import annotations

import time

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

import tkpy
from tkpy.numerics import compare
from tkpy.ops.attention import BlockMask, eager

INF = torch.inf


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(b, sq, sk, h, hkv, d, dtype=torch.float64):
    return [randn(b, s, heads, d, seed=i, dtype=dtype) for i, (s, heads) in enumerate(((sq, h), (sk, hkv), (sk, hkv)))]


def sdpa(q, k, v, **options):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


def gradients(function, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((o * randn(*o.shape, seed=9).to(o.dtype)).sum() for o in outputs)
    return outputs, torch.autograd.grad(total, leaves)


def assert_same(actual, expected, tol=1e-12):
    for a, b in zip(actual, expected, strict=True):
        assert compare(a, b, tol), str(compare(a, b, tol))


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("causal, sq, sk", [(False, 50, 70), (True, 70, 70)])
def test_agrees_with_torch(backend, causal, sq, sk):
    """torch's is_causal is aligned at the top left: the two meanings coincide for Sq = Sk."""
    tensors = inputs(2, sq, sk, 6, 2, 16)
    ours = gradients(lambda *t: tkpy.ops.attention(*t, causal=causal, scale=0.3, backend=backend), tensors)
    torchs = gradients(lambda *t: sdpa(*t, is_causal=causal, scale=0.3), tensors)
    assert_same(ours[0] + ours[1], torchs[0] + torchs[1])


@pytest.mark.parametrize("sq, sk", [(5, 9), (9, 9), (9, 5)])
@pytest.mark.parametrize(
    "causal, window", [(True, None), (False, (2, 1)), (False, (None, 0)), (True, (-1, 3)), (True, (3, -1))]
)
def test_masks_are_aligned_at_the_bottom_right(sq, sk, causal, window):
    q, k, v = inputs(1, sq, sk, 2, 2, 8)
    left, right = window or (None, None)
    mask = torch.zeros(sq, sk, dtype=torch.bool)
    for i in range(sq):
        for j in range(sk):
            d = i + sk - sq
            seen = j <= d or not causal
            seen = seen and (left in (None, -1) or j >= d - left)
            mask[i, j] = seen and (right in (None, -1) or j <= d + right)
    empty = ~mask.any(1)
    visible = mask | empty.view(-1, 1)  # torch gives a row without keys NaN gradients

    def expected(q, k, v):
        return sdpa(q, k, v, attn_mask=visible).masked_fill(empty.view(1, -1, 1, 1), 0.0)

    ours = gradients(lambda *t: tkpy.ops.attention(*t, causal=causal, window=window), [q, k, v])
    theirs = gradients(expected, [q, k, v])
    assert_same(ours[0] + ours[1], theirs[0] + theirs[1])


def test_a_window_of_minus_one_is_open():
    q, k, v = inputs(1, 20, 20, 2, 2, 8)
    for window in ((None, None), (-1, -1), (None, -1), [19, 19]):
        assert_same([tkpy.ops.attention(q, k, v, window=window)], [tkpy.ops.attention(q, k, v)])


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "softcap": 5.0}, {"window": (3, 3)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_keys(options, dtype):
    """Rows without keys: 0, -inf and gradient 0, whatever cotangents arrive."""
    q, k, v = (t.requires_grad_() for t in inputs(1, 40, 7, 4, 2, 16, dtype))
    out, lse = tkpy.ops.attention(q, k, v, **options, return_lse=True)
    empty = lse[0, 0] == -INF
    assert 20 < int(empty.sum()) < 40
    assert lse.dtype == torch.float32
    assert bool((out[:, empty] == 0).all())
    assert not bool(out[:, ~empty].eq(0).any())
    for total in (out.sum(), out.sum() + lse.sum()):
        dq, dk, dv = torch.autograd.grad(total, (q, k, v), retain_graph=True)
        assert bool((dq[:, empty] == 0).all())
        for grad in (dq, dk, dv):
            assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", ["blocks", "no keys", "packed"])
def test_rows_without_keys_of_every_form(name):
    q, k, v = inputs(1, 130, 130, 2, 1, 8)
    if name == "blocks":
        chosen = torch.tensor([[[[True, False, False], [False, False, False], [False, True, False]]]])
        options, empty = {"block_mask": BlockMask.from_dense(chosen, 130, 130, 64)}, slice(64, 128)
    elif name == "no keys":
        k, v, options, empty = k[:, :0], v[:, :0], {}, slice(None)
    else:
        q, k, v = q[0], k[0, :100], v[0, :100]
        options = {"cu_seqlens_q": torch.tensor([0, 100, 130]), "cu_seqlens_k": torch.tensor([0, 100, 100])}
        empty = slice(100, 130)
    outputs, grads = gradients(lambda *t: tkpy.ops.attention(*t, **options), [q, k, v])
    _out, lse = tkpy.ops.attention(q, k, v, **options, return_lse=True)
    rows = (empty,) if name == "packed" else (slice(None), empty)
    assert bool((outputs[0][rows] == 0).all())
    assert bool((lse[..., empty] == -INF).all())
    assert bool((grads[0][rows] == 0).all())
    assert all(bool(torch.isfinite(g).all()) for g in grads)


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_query_of_nan_is_not_one_without_keys(backend):
    """Of fewer than 16 keys torch's own kernel, which eager calls, makes 0: nothing of ours."""
    q, k, v = (torch.randn(1, 17, 2, 8) for _ in range(3))
    q[0, 3, 1] = float("nan")
    out, lse = tkpy.attention(q, k, v, causal=True, return_lse=True, backend=backend)
    assert out.isnan().nonzero()[:, :3].unique(dim=0).tolist() == [[0, 3, 1]]
    assert out[0, 3, 1].isnan().all()
    assert lse.isnan().nonzero().tolist() == [[0, 1, 3]]


def test_log_sum_exp_and_its_gradient():
    q, k, v = inputs(1, 23, 31, 4, 2, 8)

    def by_hand(q, k, v):
        return (torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) * 0.7).logsumexp(-1)

    ours = gradients(lambda *t: tkpy.ops.attention(*t, scale=0.7, return_lse=True)[1], [q, k, v])
    leaves = [q.requires_grad_(), k.requires_grad_()]
    lse = by_hand(*leaves, v)
    grads = torch.autograd.grad((lse * randn(*lse.shape, seed=9)).sum(), leaves)
    assert_same([*ours[0], *ours[1][:2]], [lse, *grads])
    assert bool((ours[1][2] == 0).all())


def test_log_sum_exps_merge_parts():
    """What cascades and rings do: attention over two parts of the keys, merged by their log-sum-exps."""
    q, k, v = inputs(2, 9, 50, 4, 4, 8)
    parts = [tkpy.ops.attention(q, k[:, keys], v[:, keys], return_lse=True) for keys in (slice(0, 33), slice(33, 50))]
    whole, lse = tkpy.ops.attention(q, k, v, return_lse=True)
    assert_same([torch.logaddexp(parts[0][1], parts[1][1])], [lse])
    weights = [(part[1] - lse).exp().transpose(1, 2).unsqueeze(-1) for part in parts]
    assert_same([parts[0][0] * weights[0] + parts[1][0] * weights[1]], [whole])


@pytest.mark.parametrize("masked", [False, True])
def test_a_sink_is_a_key_without_value(masked):
    """A sink equals one more key whose score is the sink and whose value is 0, in outputs and in all gradients."""
    q, k, v = inputs(1, 70, 70, 2, 2, 8)
    sinks = randn(2, seed=7)
    mask = BlockMask.causal(70, block=64) if masked else None

    def by_hand(q, k, v, sinks):
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5
        if masked:
            scores = scores.masked_fill(~mask.to_dense(), -INF)
        scores = torch.cat([scores, sinks.view(1, 2, 1, 1).expand(1, 2, 70, 1)], -1)
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1)[..., :-1], v), scores.logsumexp(-1)

    ours = gradients(
        lambda q, k, v, s: tkpy.ops.attention(q, k, v, sinks=s, block_mask=mask, return_lse=True), [q, k, v, sinks]
    )
    theirs = gradients(by_hand, [q, k, v, sinks])
    assert_same(ours[0] + ours[1], theirs[0] + theirs[1])


def test_a_sink_of_minus_infinity_changes_nothing():
    q, k, v = inputs(1, 5, 3, 2, 2, 8)
    plain = tkpy.ops.attention(q, k, v, causal=True, return_lse=True)
    assert_same(tkpy.ops.attention(q, k, v, causal=True, sinks=torch.full((2,), -INF), return_lse=True), plain)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (4, 2), "softcap": 3.0}])
def test_packed_is_one_by_one(options):
    lengths_q, lengths_k = [3, 0, 17, 1, 30], [5, 2, 17, 0, 40]
    total_q, total_k = sum(lengths_q), sum(lengths_k)
    q, k, v, sinks = randn(total_q, 4, 8), randn(total_k, 2, 8, seed=1), randn(total_k, 2, 8, seed=2), randn(4, seed=3)
    bounds = [torch.tensor([0, *lengths]).cumsum(0) for lengths in (lengths_q, lengths_k)]

    def packed(q, k, v, sinks):
        rule = {"cu_seqlens_q": bounds[0], "cu_seqlens_k": bounds[1].int(), "max_seqlen_q": 30, "max_seqlen_k": 99}
        return tkpy.ops.attention(q, k, v, sinks=sinks, **rule, **options, return_lse=True)

    def one_by_one(q, k, v, sinks):
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        found = [tkpy.ops.attention(*(t[None] for t in p), sinks=sinks, **options, return_lse=True) for p in parts]
        return torch.cat([out[0] for out, _ in found]), torch.cat([lse[0] for _, lse in found], -1)

    ours, theirs = gradients(packed, [q, k, v, sinks]), gradients(one_by_one, [q, k, v, sinks])
    assert_same(ours[0] + ours[1], theirs[0] + theirs[1])


def test_packed_sequences_do_not_see_each_other():
    q, k, v = (randn(20, 2, 8, seed=i) for i in range(3))
    bounds = torch.tensor([0, 8, 20])
    before = tkpy.ops.attention(q, k, v, cu_seqlens_q=bounds)
    after = tkpy.ops.attention(q, k.index_fill(0, torch.arange(8), 9.0), v, cu_seqlens_q=bounds)
    assert torch.equal(before[8:], after[8:])
    assert not torch.equal(before[:8], after[:8])


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "softcap": 4.0}, {"window": (70, 0)}])
@pytest.mark.parametrize("masked", [False, True])
def test_causality(options, masked):
    q, k, v = inputs(1, 200, 200, 2, 1, 8)
    if masked:
        options = {**options, "block_mask": BlockMask.from_dense(torch.ones(1, 1, 4, 4).bool(), 200, 200, 64)}
    before = tkpy.ops.attention(q, k, v, **options)
    later = torch.arange(100, 200)
    after = tkpy.ops.attention(q, k.index_fill(1, later, 50.0), v.index_fill(1, later, 50.0), **options)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before, after)


PATTERNS = {
    "causal": lambda n: BlockMask.causal(n, block=64),
    "sliding window": lambda n: BlockMask.sliding_window(n, block=64, left=70, right=9),
    "sink window": lambda n: BlockMask.sink_window(n, block=128, sink=5, left=30),
    "bigbird": lambda n: BlockMask.bigbird(n, heads=4, window=1, global_blocks=1, random_blocks=1),
    "vertical slash": lambda n: BlockMask.vertical_slash(
        torch.tensor([[[0, 9], [3, -1], [100, 200], [5, 6]]]), torch.tensor([[[0, 70], [0, 1], [64, 128], [0, -1]]]), n
    ),
    "topk": lambda n: BlockMask.topk(randn(2, 4, -(-n // 64), -(-n // 64)), 2, n),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_against_torch(pattern):
    n = 301
    mask = PATTERNS[pattern](n)
    tensors = inputs(2, n, n, 4, 2, 8)
    dense = mask.to_dense()
    empty = ~dense.any(-1).expand(2, 4, n).transpose(1, 2).unsqueeze(-1)
    ours = gradients(lambda *t: tkpy.ops.attention(*t, block_mask=mask), tensors)
    # A row that sees nothing is made to see everything and then zeroed: torch gives such rows NaN gradients.
    visible = dense | ~dense.any(-1, keepdim=True)
    torchs = gradients(lambda *t: sdpa(*t, attn_mask=visible).masked_fill(empty, 0.0), tensors)
    assert_same(ours[0] + ours[1], torchs[0] + torchs[1])


def test_small_pieces_change_nothing(monkeypatch):
    """The pieces that bound memory: one row, one head, one query block at a time."""
    tensors = inputs(2, 150, 150, 4, 2, 8)
    calls = [
        {"causal": True, "softcap": 2.0},
        {"window": (40, 11)},
        {"block_mask": PATTERNS["topk"](150), "causal": True, "softcap": 2.0},
    ]
    whole = [gradients(lambda *t, o=o: tkpy.ops.attention(*t, **o, return_lse=True), tensors) for o in calls]
    monkeypatch.setattr(eager, "SCORES_AT_ONCE", 200)
    for options, expected in zip(calls, whole, strict=True):
        found = gradients(lambda *t, o=options: tkpy.ops.attention(*t, **o, return_lse=True), tensors)
        assert_same(found[0] + found[1], expected[0] + expected[1])


def test_no_score_matrix_is_held():
    """Forward and backward of 4096 x 4096 x 2 heads: scores would take 134 MB; allocations must stay far below."""
    q, k, v = (t.requires_grad_() for t in inputs(1, 4096, 4096, 2, 2, 16, torch.float32))
    mask = BlockMask.sliding_window(4096, left=300)
    for options in ({"causal": True, "softcap": 5.0}, {"block_mask": mask}, {"causal": True}):
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            tkpy.ops.attention(q, k, v, **options).sum().backward()
        largest = max(event.cpu_memory_usage for event in profile.events() if event.name.startswith("aten::empty"))
        assert largest < 40e6, (options, largest)


def test_blocks_are_really_skipped():
    q, k, v = inputs(1, 4096, 4096, 2, 2, 64, torch.float32)
    scores = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    dense, sparse = (BlockMask.topk(scores, n, 4096, 4096, 128, causal=False) for n in (32, 3))
    assert sparse.sparsity > 0.9

    def seconds(mask):
        start = time.perf_counter()
        tkpy.ops.attention(q, k, v, block_mask=mask)
        return time.perf_counter() - start

    seconds(sparse)
    ratio = min(seconds(sparse) for _ in range(3)) / min(seconds(dense) for _ in range(2))
    assert ratio < 0.35  # ideal 0.094


def test_bands_cut_blocks_from_the_list():
    """A causal rule beside a mask without one skips the blocks above the diagonal, too."""
    mask = BlockMask.from_dense(torch.ones(1, 1, 8, 8).bool(), 512, 512, 64)
    rule = eager.Rule(1.0, -1, 0, 0.0)
    listed = eager._listed_blocks(torch.Size((1, 512, 1, 8)), torch.Size((1, 512, 1, 8)), rule, mask.tensors, 64)
    assert listed.length == list(range(8, 0, -1))


def test_compiles_with_a_block_mask_and_without_recompiling():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def run(q, k, v):
        return tkpy.ops.attention(q, k, v, causal=True, window=(9, None), return_lse=True)

    for n in (17, 40, 64):
        tensors = inputs(2, n, n, 4, 2, 8, torch.float32)
        assert_same(run(*tensors), tkpy.ops.attention(*tensors, causal=True, window=(9, None), return_lse=True))
    assert counter.frame_count == 1
    compiled = torch.compile(
        lambda *t, mask: tkpy.ops.attention(*t, block_mask=mask), fullgraph=True, backend="aot_eager"
    )
    for n in (70, 130):
        tensors, mask = inputs(1, n, n, 2, 2, 8, torch.float32), BlockMask.causal(n, block=64)
        plain = gradients(lambda *t, m=mask: tkpy.ops.attention(*t, block_mask=m), tensors)
        graph = gradients(lambda *t, m=mask: compiled(*t, mask=m), tensors)
        assert_same(graph[0] + graph[1], plain[0] + plain[1], 1e-6)


def test_opcheck_with_a_block_mask_and_sinks():
    mask = BlockMask.causal(70, block=64)
    q, k, v = (t.requires_grad_() for t in inputs(1, 70, 70, 2, 1, 8, torch.float32))
    sinks = randn(2, dtype=torch.float32).requires_grad_()
    args = (q, k, v, sinks, None, None, None, None, None, mask.tensors, 64, 0.3, -1, -1, 0.0, -1, -1, "eager")
    torch.library.opcheck(torch.ops.tkpy.attention.default, args)


def test_autocast():
    q, k, v = inputs(1, 9, 9, 2, 2, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert tkpy.ops.attention(q, k, v).dtype == torch.bfloat16


def packed_call(**changes):
    call = {"q": randn(10, 2, 8), "k": randn(10, 2, 8), "v": randn(10, 2, 8), "cu_seqlens_q": torch.tensor([0, 4, 10])}
    return {**call, **changes}


def plain_call(**changes):
    return {**dict(zip("qkv", inputs(2, 9, 9, 4, 2, 8), strict=True)), **changes}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (plain_call(q=randn(9, 4, 8)), ValueError, "'q' must be.*rank 4"),
        (plain_call(q=randn(2, 9, 3, 8)), ValueError, "'q' must be of a multiple of k's 2 heads"),
        (plain_call(q=randn(2, 9, 4, 7)), ValueError, "'k' must be.*D = 7"),
        (plain_call(k=randn(2, 8, 2, 8)), ValueError, "'v' must be"),
        (plain_call(v=randn(2, 9, 2, 8).float()), TypeError, "'v' must be of the dtype of 'q'"),
        (plain_call(q=[1.0]), TypeError, "'q' must be a tensor"),
        (plain_call(causal=1), TypeError, "'causal' must be True or False"),
        (plain_call(scale=float("nan")), ValueError, "'scale' must be a finite number"),
        (plain_call(scale="1"), TypeError, "'scale' must be a real number"),
        (plain_call(softcap=-1.0), ValueError, "'softcap' must be at least 0"),
        (plain_call(window=(-2, 0)), ValueError, "'window' must be at least -1"),
        (plain_call(window=(1, 2, 3)), ValueError, "'window' must be a pair"),
        (plain_call(window=3), TypeError, "'window' must be a pair"),
        (plain_call(window=(1.5, 0)), TypeError, "'window' must be an integer"),
        (plain_call(sinks=randn(2)), ValueError, "'sinks' must be.*H = 4"),
        (plain_call(out_scale=randn(4)), ValueError, "'out_scale' must be.*rank 2"),
        (plain_call(out_bias=randn(4, 7)), ValueError, "'out_bias' must be.*Dv = 8"),
        (plain_call(kv_head_map=torch.zeros(4)), TypeError, "'kv_head_map' must be.*int32"),
        (plain_call(kv_head_map=torch.zeros(2).int()), ValueError, "'kv_head_map' must be.*H = 4"),
        (
            plain_call(kv_head_map=torch.tensor([0, 1, 2, 0]).int()),
            ValueError,
            r"'kv_head_map' must be in range \[0, 2\)",
        ),
        (
            plain_call(kv_head_map=torch.tensor([0, 1, -1, 0]).int()),
            ValueError,
            r"'kv_head_map' must be in range \[0, 2\)",
        ),
        (plain_call(return_lse=None), TypeError, "'return_lse'"),
        (plain_call(max_seqlen_q=9), ValueError, "'max_seqlen_q' must be None unless"),
        (plain_call(cu_seqlens_k=torch.tensor([0, 9])), ValueError, "'cu_seqlens_k' must be None unless"),
        (plain_call(block_mask=torch.ones(9, 9)), TypeError, "'block_mask' must be a tkpy.BlockMask"),
        (plain_call(block_mask=BlockMask.causal(8)), ValueError, "'block_mask' must be of seq_q 9, got seq_q 8"),
        (plain_call(block_mask=BlockMask.causal(9, 10)), ValueError, "'block_mask' must be of seq_k 9"),
        (
            plain_call(block_mask=BlockMask.bigbird(9, heads=3)),
            ValueError,
            "'block_mask' must be of heads 1 or 4, got heads 3",
        ),
        (
            plain_call(block_mask=BlockMask.causal(9).to("meta")),
            ValueError,
            "'block_mask' must be on the device of 'q'",
        ),
        (packed_call(q=randn(1, 10, 2, 8)), ValueError, "'q' must be.*rank 3"),
        (packed_call(q=randn(6, 2, 8)), ValueError, "'cu_seqlens_k' must be given where q and k differ"),
        (packed_call(cu_seqlens_q=torch.tensor([0.0, 10.0])), TypeError, "'cu_seqlens_q'.*int32 or int64"),
        (
            packed_call(cu_seqlens_q=torch.tensor([1, 10])),
            ValueError,
            "'cu_seqlens_q' must be offsets that begin with 0",
        ),
        (packed_call(cu_seqlens_q=torch.tensor([0, 5, 4, 10])), ValueError, "'cu_seqlens_q' must be.*never decrease"),
        (packed_call(cu_seqlens_k=torch.tensor([0, 4, 9])), ValueError, "'cu_seqlens_k' must be.*end at the total"),
        (packed_call(cu_seqlens_k=torch.tensor([0, 10])), ValueError, "'cu_seqlens_k' must be"),
        (packed_call(cu_seqlens_q=torch.zeros(0).int()), ValueError, "'cu_seqlens_q' must be"),
        (packed_call(max_seqlen_q=5), ValueError, "'max_seqlen_q' must be at least the longest, 6"),
        (packed_call(max_seqlen_k=-1), ValueError, "'max_seqlen_k' must be at least 0"),
        (packed_call(block_mask=BlockMask.causal(10)), ValueError, "'block_mask' must be None where 'cu_seqlens_q'"),
    ],
)
def test_malformed_calls(call, error, message):
    with pytest.raises(error, match=message) as caught:
        tkpy.ops.attention(**call)
    assert str(caught.value).startswith("tkpy.attention: ")
