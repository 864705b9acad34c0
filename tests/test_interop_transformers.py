"""attn_implementation="tkpy" in transformers, against "eager" on tiny models with random weights."""

from __future__ import annotations

import pytest
import torch

import tkpy
from tkpy.numerics import compare

transformers = pytest.importorskip("transformers", minversion="5.0")

from tkpy.interop import transformers as interop  # noqa: E402

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.2}
COMMON = {**SIZES, **HEADS, **TOKENS}


def configurations():
    gemma = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9, "attn_logit_softcapping": 0.5}
    sinks = {"head_dim": 16, "sliding_window": 9, "num_local_experts": 2, "num_experts_per_tok": 1}
    return {
        "llama": transformers.LlamaConfig(**COMMON),
        "mistral": transformers.MistralConfig(**COMMON, sliding_window=9, head_dim=8),
        "gemma2": transformers.Gemma2Config(**COMMON, **gemma),
        "gpt_oss": transformers.GptOssConfig(**COMMON, **sinks),
    }


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2", "gpt_oss"])
def pair(request):
    """(a model whose attention is eager, the same model with tkpy's)."""
    interop.register()
    models = []
    for implementation in ("eager", "tkpy"):
        torch.manual_seed(0)
        config = configurations()[request.param]
        models.append(transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval())
    models[1].load_state_dict(models[0].state_dict())
    return models


def ids_and_mask(padding: str, length: int = 23):
    ids = torch.randint(2, 61, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding != "none":
        for row, pad in enumerate((0, 4, 15)):
            where = slice(0, pad) if padding == "left" else slice(length - pad, length)
            mask[row, where] = 0
    return ids.masked_fill(mask == 0, 0), mask


def positions_of(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_logits_and_gradients(pair, padding):
    ids, mask = ids_and_mask(padding)
    results = []
    for model in pair:
        model.zero_grad()
        with tkpy.record_dispatches() as log:
            logits = model(ids, attention_mask=mask, position_ids=positions_of(mask)).logits[mask.bool()]
        assert bool(log) == (model is pair[1])
        logits.square().sum().backward()
        results.append((logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (want, want_grads), (got, got_grads) = results
    assert compare(got, want, tol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        assert compare(a, b, tol=1e-4)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache(pair, padding, cache):
    ids, mask = ids_and_mask(padding)
    options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    want, got = (
        model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options)
        for model in pair
    )
    assert torch.equal(got.sequences, want.sequences)
    assert compare(torch.stack(got.logits), torch.stack(want.logits), tol=1e-5)


def test_packed_documents(pair):
    """Positions that start again mark documents, which do not see each other."""
    ids, _ = ids_and_mask("none")
    positions = torch.cat([torch.arange(14), torch.arange(9)]).expand(3, -1)
    want, got = (model(ids, position_ids=positions, use_cache=False).logits for model in pair)
    assert compare(got, want, tol=1e-5)
    if pair[0].config.model_type != "gpt_oss":  # it tells the mask function no positions, so its documents are one
        alone = pair[1](ids[:, 14:], use_cache=False).logits
        assert compare(got[:, 14:], alone, tol=1e-5)


def test_a_mask_of_the_callers_own(pair):
    ids, _ = ids_and_mask("none", 9)
    bands = (torch.arange(9) <= torch.arange(9)[:, None]) & (torch.arange(9) != 3)
    own = bands.expand(3, 1, 9, 9)
    added = torch.where(own, 0.0, torch.finfo(torch.float32).min)
    want = pair[0](ids, attention_mask=added).logits
    assert compare(pair[1](ids, attention_mask=own).logits, want, tol=1e-5)
    with pytest.raises(tkpy.Unsupported, match="bool mask"):
        pair[1](ids, attention_mask=added)


def test_a_bidirectional_encoder():
    interop.register()
    config = transformers.BertConfig(
        **SIZES, num_attention_heads=4, initializer_range=0.2, attention_probs_dropout_prob=0
    )
    models = []
    for implementation in ("eager", "tkpy"):
        torch.manual_seed(0)
        models.append(transformers.BertModel._from_config(config, attn_implementation=implementation).eval())
    for padding in ("none", "left", "right"):
        ids, mask = ids_and_mask(padding)
        want, got = (model(ids, attention_mask=mask).last_hidden_state[mask.bool()] for model in models)
        assert compare(got, want, tol=1e-5)


def test_full_and_windowed_masks_are_none_or_sparse():
    """No mask is made where a rule says it all; a long window skips blocks."""
    from transformers.masking_utils import sliding_window_causal_mask_function

    interop_mask = interop.make_mask
    everything = torch.ones(2, 40, dtype=torch.bool)
    assert interop_mask(2, 40, 40, attention_mask=everything) is None
    assert interop_mask(2, 1, 40, q_offset=39, attention_mask=everything) is None
    assert interop_mask(2, 5, 40, attention_mask=everything) is not None  # queries at the start of the keys
    window = sliding_window_causal_mask_function(64)
    mask = interop_mask(1, 1024, 1024, mask_function=window, local_size=64)
    assert mask.shape[:2] == (1, 1)
    assert mask.blocks.sparsity > 0.7
    assert torch.equal(mask.blocks.to_dense(), tkpy.BlockMask.sliding_window(1024, left=63).to_dense())


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("rule", ["causal", "window", "chunk", "everything", "documents"])
@pytest.mark.parametrize(
    ("q_length", "kv_length", "q_offset", "kv_offset"),
    [(9, 9, 0, 0), (5, 5, 0, 0), (1, 8, 7, 0), (1, 6, 9, 4), (3, 8, 7, 2), (4, 12, 3, 0), (1, 1, 0, 0)],
)
def test_masks_are_those_of_transformers(rule, padding, q_length, kv_length, q_offset, kv_offset):
    """What the attention function makes of our mask, or of none, is transformers' own dense mask."""
    from transformers import masking_utils as hf

    positions = torch.ones(2, 16, dtype=torch.bool)
    if padding != "none":
        positions[1, slice(0, 3) if padding == "left" else slice(10, 16)] = False
    document = torch.arange(20).expand(2, 20) // 4
    functions = {
        "causal": hf.causal_mask_function,
        "window": hf.sliding_window_causal_mask_function(6),
        "chunk": hf.chunked_causal_mask_function(6, torch.zeros(2, dtype=torch.int)),
        "everything": hf.bidirectional_mask_function,
        "documents": hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(document)),
    }
    arguments = {
        **{"batch_size": 2, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset},
        **{
            "kv_offset": kv_offset,
            "mask_function": functions[rule],
            "attention_mask": positions[:, : q_offset + q_length],
        },
    }
    want = hf.sdpa_mask(**arguments, allow_is_causal_skip=False).expand(2, 1, -1, -1)
    chunks = transformers.PretrainedConfig(attention_chunk_size=6 if rule == "chunk" else None)
    got = interop.make_mask(
        **arguments,
        local_size=6 if rule in ("window", "chunk") else None,
        allow_is_causal_skip=rule != "documents",
        allow_is_bidirectional_skip=rule == "everything",
        config=chunks,
    )
    if got is None and rule == "everything":
        seen = torch.ones(q_length, kv_length, dtype=torch.bool)
    elif got is None:
        seen = torch.ones(q_length, kv_length, dtype=torch.bool).tril(kv_length - q_length)
        seen = seen.triu(kv_length - q_length - 5) if rule == "window" else seen
    else:
        seen = got.blocks.to_dense()
    assert torch.equal(seen.expand(2, 1, -1, -1), want)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"output_attentions": True}, "output_attentions"),
        ({"cache": object()}, "paged_cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(options, reason):
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(tkpy.Unsupported, match=reason):
        interop.attend(torch.nn.Identity(), q, q, q, None, **options)


def test_packed_offsets_without_a_mask():
    q, offsets = torch.randn(1, 2, 9, 8), torch.tensor([0, 4, 9], dtype=torch.int32)
    got, _ = interop.attend(torch.nn.Identity(), q, q, q, None, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)
    parts = [interop.attend(torch.nn.Identity(), *(q[:, :, a:b],) * 3, None)[0] for a, b in ((0, 4), (4, 9))]
    assert compare(got, torch.cat(parts, 1), tol=1e-5)
