"""The interfaces of flash-attn, torch and FlexAttention over tkpy's ops, against the formula in float64."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import tkpy
from tkpy import BlockMask, interop
from tkpy.numerics import compare

INF = float("inf")


def formula(q, k, v, seen, scale=None, softcap=0.0):
    """(out (Sq, H, D), lse (H, Sq)) of one sequence, in float64; `seen` broadcasts to (H, Sq, Sk)."""
    q, k, v = (t.double() for t in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -INF)
    empty = (scores == -INF).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return torch.einsum("hij,jhd->ihd", weights, v), scores.logsumexp(-1)


def band(seq_q, seq_k, left=None, right=None, offset=None):
    """(Sq, Sk): -left <= j - i - offset <= right; the offset is that of the bottom right unless given."""
    distance = torch.arange(seq_k) - torch.arange(seq_q)[:, None] - (seq_k - seq_q if offset is None else offset)
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen = seen if right is None else seen & (distance <= right)
    return seen if left is None else seen & (distance >= -left)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def qkv(batch=2, seq_q=13, seq_k=21, heads=4, kv_heads=2, width=16):
    return randn(batch, seq_q, heads, width), *(randn(batch, seq_k, kv_heads, width, seed=s) for s in (1, 2))


# ----------------------------------------------------------------------------------------------------------- flash-attn
SIGNATURES = {
    "flash_attn_func": "q k v",
    "flash_attn_kvpacked_func": "q kv",
    "flash_attn_qkvpacked_func": "qkv",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k",
    "flash_attn_varlen_kvpacked_func": "q kv cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k",
    "flash_attn_varlen_qkvpacked_func": "qkv cu_seqlens max_seqlen",
}
OPTIONS = {"dropout_p": 0.0, "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0}
OPTIONS |= {"alibi_slopes": None, "deterministic": False, "return_attn_probs": False}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_flash_attn_2(name):
    want = dict.fromkeys(SIGNATURES[name].split(), inspect.Parameter.empty) | OPTIONS
    if name == "flash_attn_varlen_func":
        want["block_table"] = None
    parameters = inspect.signature(getattr(interop, name)).parameters
    got = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(got.items()) == list(want.items())


@pytest.mark.parametrize("options", [
    {},
    {"causal": True},
    {"causal": True, "window_size": (5, -1)},
    {"window_size": (5, 3), "softcap": 1.5, "softmax_scale": 0.7},
    {"window_size": (-1, 2)},
    {"causal": True, "seqs": (21, 13)},
])  # fmt: skip
def test_flash_attn_func(options):
    options = dict(options)
    q, k, v = qkv(2, *options.pop("seqs", (13, 21)))
    left, right = (None if w < 0 else w for w in options.get("window_size", (-1, -1)))
    seen = band(q.shape[1], k.shape[1], left, 0 if options.get("causal") else right)
    out, lse, nothing = tkpy.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    assert nothing is None
    assert lse.shape == (2, 4, q.shape[1])
    cap, scale = options.get("softcap", 0.0), options.get("softmax_scale")
    for b in range(2):
        want, want_lse = formula(q[b], k[b], v[b], seen, scale, cap)
        assert compare(out[b], want, tol=1e-5)
        finite = want_lse.isfinite()
        assert torch.equal(lse[b].isfinite(), finite)
        assert compare(lse[b][finite], want_lse[finite], tol=1e-5)
    assert torch.equal(tkpy.flash_attn_func(q, k, v, **options), out)
    kv = torch.stack([k, v], 2)
    assert torch.equal(interop.flash_attn_kvpacked_func(q, kv, **options), out)


def test_flash_attn_qkvpacked_func():
    x = randn(2, 9, 3, 4, 16).requires_grad_()
    out = interop.flash_attn_qkvpacked_func(x, causal=True)
    want = torch.stack([formula(*x[b].unbind(1), band(9, 9, right=0))[0] for b in range(2)])
    assert compare(out, want, tol=1e-5)
    cotangent = randn(*out.shape)
    (grad,) = torch.autograd.grad(out, x, cotangent)
    (want_grad,) = torch.autograd.grad(want, x, cotangent.double())
    assert compare(grad, want_grad, tol=1e-5)


def test_flash_attn_varlen():
    lengths = ([5, 0, 9], [7, 3, 9])
    cu_q, cu_k = (torch.tensor([0, *torch.tensor(n).cumsum(0)], dtype=torch.int32) for n in lengths)
    q, k, v = randn(14, 4, 16), randn(19, 2, 16, seed=1), randn(19, 2, 16, seed=2)
    packing = (cu_q, cu_k, 9, 9)
    out, lse, _ = tkpy.flash_attn_varlen_func(q, k, v, *packing, causal=True, return_attn_probs=True)
    assert lse.shape == (4, 14)
    for n in range(3):
        rows, columns = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        want, want_lse = formula(q[rows], k[columns], v[columns], band(lengths[0][n], lengths[1][n], right=0))
        assert compare(out[rows], want, tol=1e-5)
        assert compare(lse[:, rows], want_lse, tol=1e-5)
    packed = interop.flash_attn_varlen_kvpacked_func(q, torch.stack([k, v], 1), *packing, causal=True)
    assert torch.equal(packed, out)
    x = randn(14, 3, 4, 16)
    got = interop.flash_attn_varlen_qkvpacked_func(x, cu_q, 9)
    assert torch.equal(got, tkpy.flash_attn_varlen_func(*x.unbind(1), cu_q, cu_q, 9, 9))


def test_deterministic_gradients_need_torchs_own_switch():
    q, k, v = qkv()
    elsewhere = [t.to("meta").requires_grad_() for t in (q, k, v)]  # any device but the CPU
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        tkpy.flash_attn_func(*elsewhere, deterministic=True)
        torch.use_deterministic_algorithms(False)
        tkpy.flash_attn_func(*elsewhere)
        tkpy.flash_attn_func(q.requires_grad_(), k, v, deterministic=True)
        with pytest.raises(tkpy.Unsupported, match="use_deterministic_algorithms"):
            tkpy.flash_attn_func(*elsewhere, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(before)


def test_flash_attn_refusals():
    q, k, v = qkv()
    offsets = torch.tensor([0, 13], dtype=torch.int32)
    for options, reason in (({"dropout_p": 0.1}, "dropout"), ({"alibi_slopes": torch.ones(4)}, "alibi")):
        with pytest.raises(tkpy.Unsupported, match=reason):
            tkpy.flash_attn_func(q, k, v, **options)
    with pytest.raises(tkpy.Unsupported, match="flash_attn_with_kvcache"):
        tkpy.flash_attn_varlen_func(q[0], k[0], v[0], offsets, offsets, 13, 13, block_table=offsets.view(1, 2))
    with pytest.raises(tkpy.Unsupported, match="alibi"):
        tkpy.flash_attn_with_kvcache(q, k, v, alibi_slopes=torch.ones(4))


# --------------------------------------------------------------------------------------------------------- with a cache
def rotated(x, cos, sin, positions, interleaved):
    """x (S, H, D) as complex numbers, turned."""
    half = cos.shape[1]
    turn = torch.complex(cos, sin).to(torch.complex128)[positions].unsqueeze(1)
    x = x.double().clone()
    pairs = x[..., : 2 * half].unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    found = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    x[..., : 2 * half] = (found if interleaved else found.transpose(-1, -2)).flatten(-2)
    return x


@pytest.mark.parametrize("layout", ["rows", "chosen rows", "pages"])
@pytest.mark.parametrize(("seq_q", "new"), [(1, 1), (3, 3), (2, 0), (1, 4)])
@pytest.mark.parametrize("rotary", [None, "interleaved", "halves"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (6, 0), "softcap": 2.0}], ids=str)
def test_flash_attn_with_kvcache(layout, seq_q, new, rotary, options):
    if rotary and not new:
        pytest.skip("rotary needs new keys")
    batch, heads, kv_heads, width, page, room = 3, 4, 2, 16, 5, 25
    lengths = torch.tensor([0, 7, 20], dtype=torch.int32)
    q, table, which = randn(batch, seq_q, heads, width), None, None
    if layout == "pages":
        table = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:15].view(3, 5).int()
        caches = [randn(20, page, kv_heads, width, seed=s) for s in (1, 2)]
        rows = [[(int(table[b, j // page]), j % page) for j in range(room)] for b in range(batch)]
    else:
        which = torch.tensor([4, 0, 2], dtype=torch.int32) if layout == "chosen rows" else None
        caches = [randn(5, room, kv_heads, width, seed=s) for s in (1, 2)]
        rows = [[(b if which is None else int(which[b]), j) for j in range(room)] for b in range(batch)]
    fresh = [randn(batch, new, kv_heads, width, seed=s) for s in (3, 4)] if new else [None, None]
    angles = randn(40, 6)
    cos, sin = (angles.cos(), angles.sin()) if rotary else (None, None)
    leftpad = torch.tensor([0, 2, 3], dtype=torch.int32)
    given = [c.clone() for c in caches]
    out, lse = tkpy.flash_attn_with_kvcache(
        q, *given, *fresh, cos, sin, lengths, which, leftpad, table,
        rotary_interleaved=rotary == "interleaved", return_softmax_lse=True, **options,
    )  # fmt: skip

    for b in range(batch):  # what should be in the cache, and what should come out
        length, query, added = int(lengths[b]), q[b], [f if f is None else f[b] for f in fresh]
        if rotary:
            local = bool(options)
            steps = torch.arange(seq_q) if local else torch.zeros(seq_q, dtype=torch.long)
            query = rotated(query, cos, sin, length + steps, rotary == "interleaved")
            added[0] = rotated(added[0], cos, sin, length + torch.arange(new), rotary == "interleaved")
        for cache, values in zip(caches, added, strict=True):
            for t in range(new):
                cache[rows[b][length + t]] = values[t].float()
        total = length + new
        k, v = (torch.stack([cache[at] for at in rows[b]])[:total] for cache in caches)
        left, right = options.get("window_size", (None, None))
        seen = band(seq_q, total, left, 0 if options.get("causal") else right) & (torch.arange(total) >= leftpad[b])
        want, want_lse = formula(query, k, v, seen, softcap=options.get("softcap", 0.0))
        assert compare(out[b], want, tol=1e-5)
        finite = want_lse.isfinite()
        assert torch.equal(lse[b].isfinite(), finite)
        assert compare(lse[b][finite], want_lse[finite], tol=1e-5)
    for got, want in zip(given, caches, strict=True):
        assert compare(got, want, tol=1e-6)


def test_kvcache_lengths_as_a_number_or_none():
    q, k, v = qkv(2, 1, 11)
    want = tkpy.flash_attn_func(q, k, v)
    assert compare(tkpy.flash_attn_with_kvcache(q, k, v), want, tol=1e-5)
    want = tkpy.flash_attn_func(q, k[:, :7], v[:, :7])
    longer = [torch.cat([t, t]) for t in (k, v)]  # a cache with more rows than q
    assert compare(tkpy.flash_attn_with_kvcache(q, *longer, cache_seqlens=7), want, tol=1e-5)


def test_kvcache_errors():
    q, k, v = qkv(2, 1, 11)
    new, table, one = k[:, :1], torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    for options, reason in (
        ({"k": new, "v": new}, "'cache_seqlens' must be given"),
        ({"k": new, "v": new, "cache_seqlens": 11}, "so small that 11 rows"),
        ({"rotary_cos": torch.ones(20, 4), "rotary_sin": torch.ones(20, 4), "cache_seqlens": one}, "unless k and v"),
        ({"cache_seqlens": one, "block_table": table, "cache_batch_idx": one}, "None where 'block_table'"),
        ({"cache_seqlens": one * 12}, "capacity"),
        ({"cache_seqlens": one, "block_table": table + 2}, "block_table"),
    ):
        with pytest.raises(ValueError, match=reason):
            tkpy.flash_attn_with_kvcache(q, k.clone(), v.clone(), **options)
    with pytest.raises(TypeError, match="'v'"):
        tkpy.flash_attn_with_kvcache(q, k, v, k=new, cache_seqlens=one)


# ---------------------------------------------------------------------------------------------------------- torch's own
sdpa = torch.nn.functional.scaled_dot_product_attention


def both(*args, tol=1e-5, **options):
    """tkpy's and torch's, compared, gradients of the three tensors included."""
    leaves = [t.clone().requires_grad_() for t in args]
    wide = [t.double().requires_grad_() for t in args]
    mask = options.pop("attn_mask", None)
    got = tkpy.scaled_dot_product_attention(*leaves, attn_mask=mask, **options)
    want = sdpa(*wide, attn_mask=mask, **options)
    assert got.shape == want.shape
    assert compare(got, want, tol=tol)
    cotangent = randn(*want.shape)
    grads = torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, wide, cotangent.double())
    for a, b in zip(*grads, strict=True):
        assert compare(a, b, tol=tol)


@pytest.mark.parametrize(("seq_q", "seq_k"), [(1, 1), (9, 9), (5, 12), (12, 5), (1, 7), (70, 130)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_sdpa(seq_q, seq_k, is_causal):
    """Causal is aligned at the top left, for any two lengths."""
    q, k, v = randn(2, 3, seq_q, 16), randn(2, 3, seq_k, 16, seed=1), randn(2, 3, seq_k, 8, seed=2)
    both(q, k, v, is_causal=is_causal, scale=0.3)


@pytest.mark.parametrize("shape", [(70, 130), (1, 130), (70, 1), (4, 70, 130), (2, 1, 1, 130), (2, 4, 70, 130)])
def test_sdpa_with_a_bool_mask(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[..., 0, :] = True
    q, k, v = randn(2, 4, 70, 16), randn(2, 2, 130, 16, seed=1), randn(2, 2, 130, 16, seed=2)
    both(q, k, v, attn_mask=mask, enable_gqa=True)


def test_sdpa_of_other_ranks_and_broadcast_heads():
    q, k, v = randn(5, 6, 16), randn(5, 7, 16, seed=1), randn(5, 7, 16, seed=2)
    both(q, k, v)
    both(q, k, v, is_causal=True, attn_mask=None)
    both(q[0], k[0], v[0])
    both(randn(2, 3, 4, 6, 16), randn(2, 3, 4, 7, 16), randn(2, 3, 4, 7, 16))
    both(randn(3, 1, 6, 16), randn(3, 4, 7, 16), randn(3, 4, 7, 16))
    both(randn(3, 4, 6, 16), randn(3, 1, 7, 16), randn(3, 1, 7, 16))
    both(randn(3, 4, 6, 16), randn(1, 4, 7, 16), randn(1, 4, 7, 16), attn_mask=torch.ones(3, 1, 6, 7, dtype=torch.bool))


def test_sdpa_rows_without_keys_and_a_block_mask():
    q, k, v = randn(1, 2, 70, 16), randn(1, 2, 70, 16, seed=1), randn(1, 2, 70, 16, seed=2)
    mask = torch.ones(70, 70, dtype=torch.bool).tril()
    mask[3] = False
    assert (tkpy.scaled_dot_product_attention(q, k, v, mask)[:, :, 3] == 0).all()
    blocks = BlockMask.causal(70, block=64)
    got = tkpy.scaled_dot_product_attention(q, k, v, blocks)
    assert compare(got, sdpa(q, k, v, is_causal=True), tol=1e-5)


def test_sdpa_with_a_bias_is_refused_unless_eager_is_named():
    q, k, v, bias = randn(2, 3, 5, 16), randn(2, 3, 6, 16), randn(2, 3, 6, 16), randn(5, 6)
    with pytest.raises(tkpy.Unsupported, match="attn_mask: needs a bool mask"):
        tkpy.scaled_dot_product_attention(q, k, v, bias)
    assert compare(tkpy.scaled_dot_product_attention(q, k, v, bias, backend="eager"), sdpa(q, k, v, bias), tol=1e-6)
    with pytest.raises(tkpy.Unsupported, match="dropout"):
        tkpy.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    with pytest.raises(ValueError, match="'attn_mask' must be None where 'is_causal'"):
        tkpy.scaled_dot_product_attention(q, k, v, torch.ones(5, 6, dtype=torch.bool), is_causal=True)
    with pytest.raises(ValueError, match="broadcastable"):
        tkpy.scaled_dot_product_attention(q, k, v, torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises((ValueError, RuntimeError)):
        tkpy.scaled_dot_product_attention(randn(1, 4, 5, 16), randn(1, 3, 5, 16), randn(1, 3, 5, 16))


def test_sdpa_has_torchs_signature():
    parameters = inspect.signature(tkpy.scaled_dot_product_attention).parameters
    got = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    empty = inspect.Parameter.empty
    want = {"query": empty, "key": empty, "value": empty, "attn_mask": None, "dropout_p": 0.0, "is_causal": False}
    assert list(got.items()) == list((want | {"scale": None, "enable_gqa": False}).items())


# -------------------------------------------------------------------------------------------------------- FlexAttention
DOCUMENT = torch.arange(300) // 77
RULES = {
    "causal": lambda b, h, q, k: k <= q,
    "window": lambda b, h, q, k: (k <= q) & (q - k < 90),
    "documents": lambda b, h, q, k: (DOCUMENT[q] == DOCUMENT[k]) & (k <= q),
    "of batch and head": lambda b, h, q, k: (q * 7 + k * (h + 2)) % 5 > b,
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", RULES)
def test_flex_block_masks_both_ways(rule):
    flex = create_block_mask(RULES[rule], 2, 2, 300, 300, device="cpu", BLOCK_SIZE=64)
    mask = BlockMask.from_flex(flex)
    b, h, i, j = (torch.arange(n).view(shape) for n, shape in zip(
        (2, 2, 300, 300), ((-1, 1, 1, 1), (-1, 1, 1), (-1, 1), (-1,)), strict=True))  # fmt: skip
    assert torch.equal(mask.to_dense(), RULES[rule](b, h, i, j).expand(2, 2, 300, 300))
    back = mask.to_flex()
    assert back.seq_lengths == (300, 300)
    assert int(back.full_kv_num_blocks.sum()) == int(mask.full_count.sum())
    assert torch.equal(BlockMask.from_flex(back).to_dense(), mask.to_dense())
    q, k, v = (randn(2, 2, 300, 16, seed=s) for s in range(3))
    want = flex_attention(q, k, v, block_mask=back)
    got = tkpy.attention(*(t.transpose(1, 2) for t in (q, k, v)), block_mask=mask).transpose(1, 2)
    assert compare(got, want, tol=1e-5)


# ---------------------------------------------------------------------------------------------------------- merge_state
def test_merge_state_is_attention_over_all_keys():
    q, k, v = qkv(2, 6, 30)
    want, want_lse = tkpy.attention(q, k, v, return_lse=True)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    parts = [tkpy.attention(leaves[0], *(t[:, s] for t in leaves[1:]), return_lse=True)
             for s in (slice(0, 11), slice(11, 30))]  # fmt: skip
    out, lse = tkpy.merge_state(*parts[0], *parts[1])
    assert compare(out, want, tol=1e-5)
    assert compare(lse, want_lse, tol=1e-5)
    whole = [t.clone().requires_grad_() for t in (q, k, v)]
    both_of = tkpy.attention(*whole, return_lse=True)
    cotangents = randn(*out.shape), randn(*lse.shape)
    got = torch.autograd.grad((out, lse), leaves, cotangents)
    for a, b in zip(got, torch.autograd.grad(both_of, whole, cotangents), strict=True):
        assert compare(a, b, tol=1e-5)


@pytest.mark.parametrize("nothing", [-INF, INF])
def test_merge_state_with_nothing_is_the_identity(nothing):
    out, lse = randn(2, 6, 3, 16), randn(2, 3, 6)
    empty = torch.full_like(out, float("nan")), torch.full_like(lse, nothing)
    for parts in ((out, lse, *empty), (*empty, out, lse)):
        got = tkpy.merge_state(*parts)
        assert torch.equal(got[0], out)
        assert torch.equal(got[1], lse)
    leaves = [t.clone().requires_grad_() for t in (out, lse, *empty)]
    grads = torch.autograd.grad(tkpy.merge_state(*leaves), leaves, (out, lse))
    assert torch.equal(grads[0], out)
    assert torch.equal(grads[1], lse)
    assert not any(g.any() for g in grads[2:])
    got = tkpy.merge_state(*empty, *empty)
    assert not got[0].any()
    assert (got[1] == -INF).all()


@pytest.mark.parametrize("backend", ["eager", "reference", "emulator"])
def test_merge_state_keeps_a_nan(backend):
    """A log-sum-exp that is NaN is an error of the caller's: it must not look like a part that saw no key."""
    out, lse = randn(1, 3, 2, 8), randn(1, 2, 3)
    wrong = lse.clone()
    wrong[0, 1, 2] = float("nan")
    if backend == "emulator" and tkpy.explain("merge_state", out, lse, out, lse).refusals["emulator"]:
        pytest.skip("kernels are not built")
    for parts in ((out, wrong, out, lse), (out, lse, out, wrong)):
        got, total = tkpy.merge_state(*parts, backend=backend)
        assert torch.equal(got.isnan().any(-1)[0].mT, wrong.isnan()[0])
        assert got[0, 2, 1].isnan().all()
        assert torch.equal(total.isnan(), wrong.isnan())


def test_the_adapters_live_in_a_compiled_graph():
    def model(q, k, v, lengths, lse):
        out = tkpy.flash_attn_func(q, k, v, causal=True, window_size=(9, -1))
        out = out + tkpy.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
        cached = tkpy.flash_attn_with_kvcache(q, k.detach(), v.detach(), cache_seqlens=lengths)
        return tkpy.merge_state(out, lse, cached, lse + 1)[0]

    args = (*qkv(kv_heads=4), torch.tensor([5, 21], dtype=torch.int32), randn(2, 4, 13))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert compare(compiled(*args), model(*args), tol=1e-6)
