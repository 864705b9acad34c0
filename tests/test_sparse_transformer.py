"""SparseTransformer and tkpy.nn.Attention: against Llama written out, causality, caches, providers, checkpoints."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import tkpy
from tkpy.models import SparseTransformer, SparseTransformerConfig, TopBlocks
from tkpy.models.sparse_transformer import config_of
from tkpy.nn import Attention, Linear

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "init_std": 0.2,
}


def small(seed=0, **options):
    torch.manual_seed(seed)
    provider = options.pop("provider", None)
    model = SparseTransformer(SparseTransformerConfig(**{**SMALL, **options}), provider=provider)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def ids(batch, length, seed=1):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance * max(1.0, expected.abs().max().item()), difference


def llama(config, weights, tokens, mask=None):
    """A Llama decoder as its paper has it, from Hugging Face's names: one sequence and head at a time, in float64."""
    w = {name: t.double() for name, t in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim, length = config["head_dim"], tokens.shape[1]
    scaling = (config["rope_scaling"] or {}).get("factor", 1.0)
    angles = torch.arange(length).double()[:, None] / scaling
    angles = angles * config["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name + ".weight"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", torch.zeros(()))

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = (j <= i) & (i - j < (config["sliding_window"] or length))
    seen = seen if mask is None else seen & mask
    logits = []
    for row in tokens:
        x = w["model.embed_tokens.weight"][row]
        for n in range(config["num_hidden_layers"]):
            layer = f"model.layers.{n}."
            y = norm(x, layer + "input_layernorm")
            parts = [linear(y, f"{layer}self_attn.{p}_proj").view(length, -1, dim) for p in "qkv"]
            outputs = []
            for h in range(heads):
                g = h // (heads // kv_heads)
                q, k, v = rotate(parts[0][:, h]), rotate(parts[1][:, g]), parts[2][:, g]
                outputs.append((q @ k.T / dim**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v)
            x = x + linear(torch.cat(outputs, -1), layer + "self_attn.o_proj")
            y = norm(x, layer + "post_attention_layernorm")
            gate = torch.nn.functional.silu(linear(y, layer + "mlp.gate_proj"))
            x = x + linear(gate * linear(y, layer + "mlp.up_proj"), layer + "mlp.down_proj")
        logits.append(linear(norm(x, "model.norm"), "lm_head"))
    return torch.stack(logits)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True, "attention_bias": True},
        {"head_dim": 12, "rope_theta": 500.0, "rope_scaling": 4.0, "num_kv_heads": None},
        {"sliding_window": 5, "num_kv_heads": 1},
    ],
)
def test_is_llama(options):
    model = small(**options)
    tokens = ids(2, 23)
    close(model(tokens)[0].double(), llama(model.reference_config(), model.reference_state(), tokens))


def test_causality():
    model = small()
    tokens = ids(1, 30)
    changed = tokens.clone()
    changed[0, 17] = (changed[0, 17] + 1) % 61
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:, :17], after[:, :17])
    assert (before[:, 17:] != after[:, 17:]).any(-1).all()


@pytest.mark.parametrize("options", [{}, {"sliding_window": 7}])
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 12], [19, 1], [0, 20]])
def test_cache_equals_one_pass(options, pieces):
    model = small(**options)
    tokens = ids(2, 20)
    whole, cache = model(tokens)
    carried, parts = None, []
    for piece in tokens.split(pieces, 1):
        logits, carried = model(piece, carried)
        parts.append(logits)
    close(torch.cat(parts, 1), whole)
    assert carried.length == cache.length == 20
    for a, b in zip(carried.layers, cache.layers, strict=True):
        close(a["k"], b["k"])


def test_an_old_cache_stays_as_it_was():
    model = small()
    _, cache = model(ids(2, 9))
    kept = cache.map(torch.clone)
    first, grown = model(ids(2, 3, seed=2), cache)
    model(ids(2, 3, seed=3), cache)
    assert torch.equal(model(ids(2, 3, seed=2), cache)[0], first)
    for a, b in zip(cache.layers, kept.layers, strict=True):
        assert torch.equal(a["k"], b["k"])
    close(model(ids(2, 3, seed=2), grown.truncate(9))[0], first)
    forked = model(ids(2, 3, seed=2).repeat_interleave(2, 0), cache.fork(2))[0]
    close(forked, first.repeat_interleave(2, 0))


def test_a_dense_mask_changes_nothing_and_a_sparse_one_what_it_says():
    tokens = ids(1, 200)
    dense = small()(tokens)[0]
    calls = []

    def everything(layer, q, k):
        calls.append((layer, tuple(q.shape), tuple(k.shape)))
        return tkpy.BlockMask.from_dense(torch.ones(1, 1, 4, 4, dtype=torch.bool), 200, 200, 64)

    close(small(provider=everything)(tokens)[0], dense)
    assert calls == [(n, (1, 200, 4, 8), (1, 200, 2, 8)) for n in (0, 1)]
    mask = tkpy.BlockMask.sink_window(200, block=64, sink=3, left=20)
    model = small(provider=lambda layer, q, k: mask)
    logits = model(tokens)[0]
    expected = llama(model.reference_config(), model.reference_state(), tokens, mask.to_dense()[0, 0])
    close(logits.double(), expected)
    assert (logits - dense).abs().max() > 0.1


def test_a_provider_serves_every_step():
    """Masks for (T, S + T) by rule: token by token equals one pass."""

    def provider(layer, q, k):
        return tkpy.BlockMask.sink_window(q.shape[1], k.shape[1], 64, sink=2, left=9 + layer)

    model = small(provider=provider)
    tokens = ids(1, 90)
    logits, cache = model(tokens[:, :70])
    parts = [logits]
    for t in range(70, 90):
        logits, cache = model(tokens[:, t : t + 1], cache)
        parts.append(logits)
    close(torch.cat(parts, 1), model(tokens)[0])


def test_top_blocks():
    tokens = ids(2, 500)
    dense = small()(tokens)[0]
    close(small(provider=TopBlocks(8, min_length=2))(tokens)[0], dense)  # 8 blocks are all there are
    model = small(provider=TopBlocks(3, min_length=2))
    sparse, cache = model(tokens)
    assert (sparse - dense).abs().max() > 1e-3
    close(sparse[:, :192], dense[:, :192])  # three blocks are all that the first three rows of blocks see
    close(model(tokens[:, :1], cache)[0], small()(tokens[:, :1], cache)[0])  # one token: dense
    q, k = torch.zeros(1, 256, 2, 4), torch.zeros(1, 256, 1, 4)
    k[:, 64:128], q[:, 192:] = 1.0, 1.0
    mask = TopBlocks(3, min_length=2)(0, q, k)
    listed = (mask.to_dense()[0, 0, ::64, ::64]).tolist()
    assert listed[3] == [True, True, False, True]
    assert TopBlocks(3)(0, q, k) is None
    with pytest.raises(ValueError, match="at least 2"):
        TopBlocks(1)


def test_generate_and_score():
    model = small()
    prompt = ids(2, 6)
    tokens = model.generate(prompt, 5, temperature=0)
    expected = prompt
    for _ in range(5):
        expected = torch.cat([expected, model(expected)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(tokens, expected[:, 6:])
    scores = model.score(expected, chunk=4)
    whole = model(expected)[0].log_softmax(-1)
    close(scores, whole[:, :-1].gather(-1, expected[:, 1:, None]).squeeze(-1))


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"rope_scaling": 2.0, "sliding_window": 9}])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 10_000])
def test_checkpoint_round_trip(tmp_path, options, max_shard_bytes):
    model = small(**options)
    model.save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes < 100_000)
    read = SparseTransformer.from_pretrained(tmp_path)
    assert torch.equal(read(ids(1, 9))[0], model(ids(1, 9))[0])
    tied = read.lm_head.weight is read.model.embed_tokens.weight
    assert tied == bool(options.get("tie_word_embeddings"))


def test_reads_a_hugging_face_folder(tmp_path):
    """Names, keys and buffers as transformers writes them; a tied head is not stored."""
    model = small(tie_word_embeddings=True)
    tensors = {n: t.clone() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"} <= set(tensors)
    assert {"model.layers.0.mlp.gate_proj.weight", "model.layers.0.post_attention_layernorm.weight"} <= set(tensors)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    config = {k: v for k, v in model.reference_config().items() if k not in ("head_dim", "rope_scaling", "mlp_bias")}
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16", "pad_token_id": None}))
    assert torch.equal(SparseTransformer.from_pretrained(tmp_path)(ids(1, 9))[0], model(ids(1, 9))[0])


def test_new_rope_keys():
    base = small().reference_config()
    del base["rope_theta"], base["rope_scaling"]
    base["rope_parameters"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0}
    assert (config_of(base).rope_theta, config_of(base).rope_scaling) == (500000.0, 8.0)
    base["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    assert (config_of(base).rope_theta, config_of(base).rope_scaling) == (1e6, 1.0)
    assert config_of({**base, "sliding_window": 4, "use_sliding_window": False}).sliding_window is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": None}, "the config must have hidden_size"),
        ({"hidden_act": "gelu"}, "needs hidden_act 'silu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling must be linear or none, got 'llama3'"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
        ({"intermediate_size": 40}, r"'model.layers.0.mlp.gate_proj.weight' needs shape \(40, 32\), got \(48, 32\)"),
    ],
)
def test_refuses_what_it_is_not(change, message):
    model = small()
    config = {k: v for k, v in {**model.reference_config(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        SparseTransformer.from_reference(config, model.state_dict())


def test_malformed_calls():
    model = small()
    with pytest.raises(ValueError, match="input_ids must be"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="cache must be a Cache of 2 layers"):
        model(ids(1, 3), {"k": 1})
    with pytest.raises(ValueError, match="must divide width"):
        Attention(10, 3)


def test_every_parameter_learns():
    mask = tkpy.BlockMask.causal(70, block=64)
    model = small(attention_bias=True, provider=lambda layer, q, k: mask)
    model.model.layers[1].self_attn.edit.enable()
    tokens = ids(2, 70)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(tokens)[0][:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert "k_proj.bias" in name or parameter.grad.abs().max() > 0, name  # softmax ignores a common shift
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    mask = tkpy.BlockMask.sink_window(80, block=64, sink=1, left=30)
    model = small(provider=lambda layer, q, k: mask)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = ids(1, 80)
    close(compiled(tokens)[0], model(tokens)[0])
    dense = small()
    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager")
    logits, cache = compiled(tokens)
    close(logits, dense(tokens)[0])
    close(compiled(tokens[:, :1], cache)[0], dense(tokens[:, :1], cache)[0])


def test_linear_cls_builds_every_projection():
    built = []

    def counted(inputs, outputs, bias=True):
        built.append((inputs, outputs))
        return Linear(inputs, outputs, bias=bias)

    SparseTransformer(SparseTransformerConfig(**SMALL), linear_cls=counted)
    assert len(built) == 2 * 7


# ---------------------------------------------------------------------------------------------------- the layer alone
def test_fused_and_separate_projections_agree():
    torch.manual_seed(0)
    fused = Attention(24, 4, kv_heads=2, head_dim=10, bias=True)
    separate = Attention(24, 4, kv_heads=2, head_dim=10, bias=True, fused=False)
    for kind in ("weight", "bias"):
        q, k, v = getattr(fused.Wqkv, kind).data.split([40, 20, 20])  # rows: all of q, all of k, all of v
        for name, value in (
            ("q_proj", q),
            ("k_proj", k),
            ("v_proj", v),
            ("o_proj", getattr(fused.out_proj, kind).data),
        ):
            getattr(separate, name).__dict__["_parameters"][kind].data = value
    x = torch.randn(2, 11, 24)
    close(fused(x)[0], separate(x)[0])
    assert fused(x)[1]["k"].shape == (2, 11, 2, 10)


def test_options_of_the_layer():
    torch.manual_seed(0)
    x = torch.randn(1, 12, 16)
    layer = Attention(16, 2, causal=False, rotary_base=None)
    close(layer(x.flip(1))[0].flip(1), layer(x)[0])  # without order there is no order
    assert not torch.allclose(Attention.forward(layer, x)[0], _with(layer, causal=True)(x)[0])
    moved = layer(x, position=5)[0]
    close(moved, layer(x)[0])
    rotary = _with(layer, rotary_base=10000.0)
    close(rotary(x, position=1000)[0], rotary(x)[0], 1e-3)  # only distances matter
    bare = Attention(16, 2, bias=True, out_bias=False)
    assert bare.Wqkv.bias is not None
    assert bare.out_proj.bias is None


def _with(layer, **changes):
    clone = Attention(16, 2, **{"causal": layer.causal, "rotary_base": layer.rotary_base, **changes})
    clone.load_state_dict(layer.state_dict())
    return clone


def test_the_edit_sits_before_the_output_projection():
    torch.manual_seed(0)
    layer, x = Attention(16, 2), torch.randn(1, 5, 16)
    before = layer(x)[0]
    layer.edit.enable()
    assert torch.equal(layer(x)[0], before)
    with torch.no_grad():
        layer.edit.bias += 1.0
        layer.edit.scale += 0.5
    weight = layer.out_proj.weight
    close(layer(x)[0], 1.5 * before + weight.sum(1))
