"""StripedHyena: the original's arrays, parallel = recurrent, and the traps of the original, each with a test."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tkpy
from tkpy import checkpoint
from tkpy.models import CharTokenizer, StripedHyena, StripedHyenaConfig, mutation_effects
from tkpy.models.striped_hyena import AttentionBlock, HyenaBlock, read_config
from tkpy.nn import HyenaMixer, ModalFilter

GOLDEN = Path(__file__).parent / "golden" / "evo"
TINY = StripedHyenaConfig(
    hidden_size=16, num_layers=3, attn_layer_idxs=(1,), num_attention_heads=4, state_size=3, max_seqlen=512
)
#: Everything that StripedHyena-7B does otherwise than Evo.
TINY_7B = dataclasses.replace(
    TINY,
    proj_groups=2,
    qkv_proj_bias=False,
    mha_out_proj_bias=False,
    mlp_activation="silu",
    use_flash_rmsnorm=True,
    eps=1e-5,
    rotary_emb_base=500000.0,
    tie_embeddings=False,
    inner_mlp_size=24,
    state_size=2,
)


def golden(name):
    """(config, parameters, other arrays) of a file."""
    with np.load(GOLDEN / name) as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays.pop("config_json")))
    parameters = {k.removeprefix("param/"): torch.tensor(v) for k, v in arrays.items() if k.startswith("param/")}
    rest = {k: v if v.dtype.kind == "U" else torch.tensor(v) for k, v in arrays.items() if not k.startswith("param/")}
    return config, parameters, rest


def tiny(config=TINY, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return StripedHyena(config).to(dtype).eval()


def ids_of(*shape, seed=1):
    return torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def evo():
    config, parameters, arrays = golden("model_evo8k_generate.npz")
    return StripedHyena.from_reference(config, parameters).eval(), arrays


# ----------------------------------------------------------------------------------------------------- golden: forward
@torch.no_grad()
def test_logits_and_block_outputs():
    config, parameters, arrays = golden("model_evo8k_forward.npz")
    model = StripedHyena.from_reference(config, parameters)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, result: outputs.append(result[0][0]))
    logits, cache = model(arrays["input_ids"])
    torch.testing.assert_close(logits, arrays["logits"], atol=2e-4, rtol=0)
    for ours, theirs in zip(outputs, arrays["block_out_b0"], strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=2e-3, rtol=2e-3)
    assert cache.length == 96


@torch.no_grad()
def test_hyena_block():
    config, parameters, arrays = golden("block_hyena.npz")
    block = HyenaBlock(read_config(config))
    checkpoint.assign(block, parameters)
    z = block.projections(block.pre_norm(arrays["u"]))
    torch.testing.assert_close(z, arrays["proj"], atol=5e-5, rtol=0)
    pre, _ = tkpy.short_conv(z.mT, block.filter.short_filter_weight[:, 0], block.filter.short_filter_bias)
    torch.testing.assert_close(pre, arrays["z_pre"], atol=5e-5, rtol=0)
    for ours, name in zip(pre.unflatten(1, (block.filter.groups, 3, -1)).unbind(2), ("x2", "x1", "v"), strict=True):
        torch.testing.assert_close(ours.flatten(1, 2), arrays[name], atol=5e-5, rtol=0)
    torch.testing.assert_close(block.filter(z)[0], arrays["y_filter"], atol=5e-5, rtol=0)
    torch.testing.assert_close(block(arrays["u"])[0], arrays["out"], atol=5e-5, rtol=0)


@torch.no_grad()
def test_attention_block():
    config, parameters, arrays = golden("block_attn.npz")
    block = AttentionBlock(read_config(config))
    checkpoint.assign(block, parameters, ignore=StripedHyena.IGNORED)
    attended, _ = block.inner_mha_cls(block.pre_norm(arrays["u"]))
    torch.testing.assert_close(attended, arrays["attn_out"], atol=5e-5, rtol=0)
    torch.testing.assert_close(block(arrays["u"])[0], arrays["out"], atol=5e-5, rtol=0)


# -------------------------------------------------------------------------------------------------- golden: generation
def assert_states(cache, arrays, prefix):
    for key in (k for k in arrays if k.startswith(prefix + "/")):
        _, kind, layer = key.split("/")
        ours = cache.layers[int(layer)]
        if kind == "kv":
            ours = torch.stack([ours["k"], ours["v"]], 2)
        else:
            ours = torch.view_as_real(ours[kind]) if kind == "iir" else ours[kind]
        torch.testing.assert_close(ours, arrays[key], atol=2e-4, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@torch.no_grad()
def test_prefill_states_and_greedy_steps(evo):
    model, arrays = evo
    logits, cache = model(arrays["prompt_ids"])
    assert_states(cache, arrays, "prefill_state")
    torch.testing.assert_close(logits[:, -1], arrays["prefill_last_logits"], atol=2e-4, rtol=0)
    steps, tokens = [logits[:, -1]], []
    for i in range(arrays["generated_ids"].shape[1]):
        tokens.append(steps[-1].argmax(-1))
        if i + 1 < arrays["generated_ids"].shape[1]:
            logits, cache = model(tokens[-1][:, None], cache)
            steps.append(logits[:, -1])
    assert torch.equal(torch.stack(tokens, 1), arrays["generated_ids"])
    torch.testing.assert_close(torch.stack(steps, 1), arrays["step_logits"], atol=2e-4, rtol=0)
    logits, cache = model(tokens[-1][:, None], cache)
    whole = torch.cat([arrays["prompt_ids"], arrays["generated_ids"]], 1)
    parallel, final = model(whole)
    torch.testing.assert_close(parallel[:, 63:-1], arrays["full_forward_logits_same_positions"], atol=2e-4, rtol=0)
    _, before_last = model(whole[:, :-1])
    torch.testing.assert_close(cache.layers[0]["iir"], final.layers[0]["iir"], atol=2e-4, rtol=1e-4)
    for reached in (final, before_last):  # the original stops after 24 tokens, with the state of 23 or 24 of them
        difference = torch.view_as_real(reached.layers[0]["iir"]) - arrays["final_state/iir/0"]
        if difference.abs().max() < 2e-4:
            assert_states(reached, arrays, "final_state")
            break
    else:
        pytest.fail("the final state is that of neither length")


@torch.no_grad()
def test_recurrent_prefill(evo):
    """Trap E: the original's own recurrent prefill diverges for complex poles; the stored array is the right one."""
    model, arrays = evo
    cache = None
    for t in range(arrays["prompt_ids"].shape[1]):
        logits, cache = model(arrays["prompt_ids"][:, t : t + 1], cache)
    torch.testing.assert_close(logits[:, -1], arrays["prefill_last_logits_recurrence_fixed"], atol=2e-4, rtol=0)
    assert_states(cache, arrays, "prefill_state")


def test_generate(evo):
    model, arrays = evo
    tokens = model.generate(arrays["prompt_ids"], 24, temperature=0)
    assert torch.equal(tokens, arrays["generated_ids"])
    texts = [model.tokenizer.decode(ids) for ids in ids_of(1, 5)]
    for bos in (False, True):  # traps B and D: no cache given, prompts of one token and of different lengths
        found = model.generate(["A", *texts, "ACG"], 6, prepend_bos=bos, top_k=1)
        for prompt, text in zip(["A", *texts, "ACG"], found, strict=True):
            ids = model.encode(prompt, bos=bos)
            for _ in range(6):
                with torch.no_grad():
                    ids = torch.cat([ids, model(ids[None])[0][0, -1:].argmax(-1)])
            assert model.tokenizer.decode(ids[-6:]) == text


# ------------------------------------------------------------------------------------------------------ golden: scores
@pytest.fixture(scope="module")
def scoring():
    config, parameters, arrays = golden("scoring_dna.npz")
    return StripedHyena.from_reference(config, parameters).eval(), arrays


@pytest.mark.parametrize("batch_size, chunk", [(16, 4096), (1, 4096), (3, 7)])
def test_scores(scoring, batch_size, chunk):
    """In batches of mixed lengths, one by one, and streamed in pieces."""
    model, arrays = scoring
    sequences, options = list(arrays["seqs"]), {"batch_size": batch_size, "chunk": chunk}
    for reduce in ("mean", "sum"):
        expected = arrays[f"score_{reduce}"]
        found = model.score(sequences, reduce=reduce, **options)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=2e-6)
    torch.testing.assert_close(model.score(sequences, **options), arrays["score_mean_one_by_one"], atol=1e-5, rtol=0)
    for i, (scores, entropies) in enumerate(model.token_scores(sequences, **options)):
        length = int(arrays["seq_lengths"][i])
        assert len(scores) == len(entropies) == length
        torch.testing.assert_close(scores, arrays["token_logprobs"][i, :length], atol=5e-5, rtol=0)
        torch.testing.assert_close(entropies, arrays["positional_entropies"][i, :length], atol=5e-5, rtol=0)


def test_scores_of_edge_cases(scoring):
    model, _ = scoring
    assert model.score([]).shape == (0,)
    total = model.score(["", "ACGT"], reduce="sum")
    assert total[0] == 0
    assert torch.allclose(total[1:], model.score([[65, 67, 71, 84]], reduce="sum"))  # ids are taken as they are
    with pytest.raises(ValueError, match="reduce must be 'mean' or 'sum', got 'max'"):
        model.score(["A"], reduce="max")


def test_tokenizer(scoring):
    _, arrays = scoring
    tokenizer = CharTokenizer()
    for sequence, ids, text, length in zip(
        arrays["seqs"], arrays["input_ids"], arrays["detok"], arrays["seq_lengths"], strict=True
    ):
        assert tokenizer.encode(str(sequence)) == ids[1 : 1 + int(length)].tolist()
        assert tokenizer.decode(ids) == str(text)
    assert tokenizer.encode("aA\u00e9") == [97, 65, 195, 169]
    with pytest.raises(ValueError, match=r"text needs model.tokenizer"):
        StripedHyena(dataclasses.replace(TINY, vocab_size=600)).score(["ACGT"])


def test_log_softmax_in_float32():
    """Trap J: log-probabilities of bfloat16 logits are formed in float32."""
    model = tiny(dtype=torch.bfloat16)
    ids = ids_of(2, 20)
    scores, entropies, _ = model.logprobs(ids)
    with torch.no_grad():
        logits = model(ids[:, :-1])[0]
    assert (logits.dtype, scores.dtype, entropies.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    expected = logits.double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert (scores - expected).abs().max() < 1e-5


# -------------------------------------------------------------------------------------- parallel, recurrent, causality
@pytest.mark.parametrize("config", [TINY, TINY_7B], ids=["evo", "7b"])
@pytest.mark.parametrize("cuts", [[1], [2], [1, 2, 3], [70, 71], [128], list(range(1, 20))], ids=str)
@torch.no_grad()
def test_any_split_equals_one_pass(config, cuts):
    """Traps A and D: rotary positions and both states go on exactly, after prompts of 1 and 2 tokens too."""
    model, ids = tiny(config), ids_of(2, 150)
    whole, final = model(ids)
    cache, parts = None, []
    for a, b in zip([0, *cuts], [*cuts, 150], strict=True):
        before = copy.deepcopy(cache)
        logits, new = model(ids[:, a:b], cache)
        if cache is not None:  # a cache is a value
            for old, kept in zip(cache.layers, before.layers, strict=True):
                assert all(torch.equal(old[name], kept[name]) for name in old)
        cache = new
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)
    assert cache.length == final.length == 150
    for ours, theirs in zip(cache.layers, final.layers, strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_forked_cache_continues_each_copy():
    model, ids = tiny(), ids_of(2, 30)
    _, cache = model(ids)
    many = cache.fork(3)
    nexts = ids_of(6, 4, seed=2)
    together, _ = model(nexts, many)
    for i in range(6):
        alone, _ = model(nexts[i : i + 1], cache.gather(torch.tensor([i // 3])))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at", [0, 5, 64, 90])
@torch.no_grad()
def test_causal(at):
    model, ids = tiny(), ids_of(1, 100)
    changed = ids.clone()
    changed[0, at] = (changed[0, at] + 1) % 512
    a, b = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(a[:, :at], b[:, :at], atol=1e-6, rtol=0)
    assert ((a[:, at:] - b[:, at:]).abs().amax(-1) > 0).all()


@torch.no_grad()
def test_batch_and_uint8_ids():
    """Trap N: a row is the same alone and in a batch. Bytes may come as uint8."""
    model, ids = tiny(), ids_of(4, 40) % 256
    together = model(ids)[0]
    for i in range(4):
        torch.testing.assert_close(model(ids[i : i + 1])[0][0], together[i], atol=1e-5, rtol=1e-4)
    assert torch.equal(model(ids.to(torch.uint8))[0], together)


# ---------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("config", [TINY, TINY_7B], ids=["evo", "7b"])
def test_gradients_agree_with_the_float64_reference(config):
    model, ids = tiny(config), ids_of(2, 70)
    wide = copy.deepcopy(model).double()

    def gradients(model):
        model.zero_grad()
        logits, cache = model(ids[:, :40])
        more, _ = model(ids[:, 40:], cache)  # through the carried states too
        logits = torch.cat([logits, more], 1)[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    ours = gradients(model)
    with tkpy.use_backend("reference"):
        exact = gradients(wide)
    for name, gradient in exact.items():
        assert gradient.dtype == torch.float64
        assert gradient.norm() > 0, name
        assert (ours[name].double() - gradient).norm() <= 2e-5 * gradient.norm(), name


def test_learns_from_scratch():
    """A period of 6 characters: the loss falls from ln 512 to almost nothing."""
    torch.manual_seed(0)
    model = StripedHyena(dataclasses.replace(TINY, hidden_size=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor(list(b"ACGTTG") * 11)[None, :65]
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 5 < losses[0] < 7.5
    assert losses[-1] < 0.1


# ------------------------------------------------------------------------------------------------- configs, checkpoints
EVO_131K = {
    "vocab_size": 512, "hidden_size": 4096, "num_filters": 4096, "max_sequence_len": 8192, "num_layers": 32,
    "attn_layer_idxs": [8, 16, 24], "hyena_layer_idxs": [i for i in range(32) if i not in (8, 16, 24)],
    "short_filter_length": 3, "num_attention_heads": 32, "short_filter_bias": True, "eps": 1e-6, "state_size": 8,
    "mlp_init_method": "torch.nn.init.zeros_", "inner_size_multiple_of": 16, "smeared_gqa": False, "proj_groups": 1,
    "make_vocab_size_divisible_by": 8, "hyena_filter_groups": 1, "split_k0": True, "model_parallel_size": 1,
    "pile_parallel_size": 1, "tie_embeddings": True, "inner_mlp_size": None, "mha_out_proj_bias": True,
    "qkv_proj_bias": True, "final_norm": True, "use_flash_attn": True, "use_flash_rmsnorm": False,
    "column_split": True, "inference_mode": True, "tokenizer_type": "CharLevelTokenizer", "prefill_style": "fft",
    "mlp_activation": "gelu", "use_interpolated_rotary_pos_emb": True, "rotary_emb_scaling_factor": 16,
}  # fmt: skip


def test_configs_of_the_released_models():
    assert read_config(EVO_131K) == StripedHyenaConfig.evo_1_131k()  # trap: its max_sequence_len is not its length
    evo_8k = {k: v for k, v in EVO_131K.items() if "rotary" not in k}
    assert read_config(evo_8k) == StripedHyenaConfig.evo_1_8k()
    for config, parameters, inner in (
        (StripedHyenaConfig.evo_1_8k(), 6_452_781_056, 10928),
        (StripedHyenaConfig.evo_1_131k(), 6_452_781_056, 10928),
        (StripedHyenaConfig.striped_hyena_7b(), 7_646_023_680, 14336),
    ):
        with torch.device("meta"):
            model = StripedHyena(config)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert config.inner == inner
        assert read_config(model.reference_config()) == config
    assert isinstance(model.blocks[1], AttentionBlock)
    assert isinstance(model.blocks[0], HyenaBlock)
    assert model.blocks[1].inner_mha_cls.Wqkv.weight.shape == (6144, 4096)


@pytest.mark.parametrize("config", [TINY, TINY_7B], ids=["evo", "7b"])
def test_where_the_norms_have_their_eps(config):
    """Evo adds eps to the rms, StripedHyena-7B to the mean square: far apart where activations are small."""
    model = tiny(dataclasses.replace(config, eps=1e-3))
    x = 1e-3 * torch.randn(1, 5, 16)
    mean_square = x.square().mean(-1, keepdim=True)
    rms = (mean_square + 1e-3).sqrt() if config.use_flash_rmsnorm else mean_square.sqrt() + 1e-3
    for norm in (model.norm, *(n for block in model.blocks for n in (block.pre_norm, block.post_norm))):
        torch.testing.assert_close(norm(x), x / rms)


@pytest.mark.parametrize(
    "change", [{"proj_groups": 4, "column_split": True}, {"interleave": True}, {"hyena_filter_groups": 16}]
)
def test_other_architectures_are_refused(change):
    with pytest.raises(ValueError, match="cannot serve"):
        read_config(EVO_131K | change)
    with pytest.raises(ValueError, match=r"lacks \['state_size'\]"):
        read_config({k: v for k, v in EVO_131K.items() if k != "state_size"})


def test_max_seqlen():
    model = tiny(dataclasses.replace(TINY, max_seqlen=20))
    _, cache = model(ids_of(1, 15))
    model(ids_of(1, 5), cache)
    with pytest.raises(ValueError, match=r"at most max_seqlen = 20 tokens \(see the config\), got 21"):
        model(ids_of(1, 6), cache)
    tiny(dataclasses.replace(TINY, max_seqlen=None))(ids_of(1, 600))


@pytest.mark.parametrize("bad", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3)])
def test_malformed_ids_and_cache(bad):
    model = tiny()
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\) integers"):
        model(bad)
    with pytest.raises(ValueError, match="cache must be a Cache of 3 layers"):
        model(ids_of(1, 2), {"k": 1})


@pytest.mark.parametrize("config", [TINY, TINY_7B], ids=["evo", "7b"])
@torch.no_grad()
def test_save_and_load(config, tmp_path):
    model, ids = tiny(config), ids_of(1, 30)
    model.save_pretrained(tmp_path)
    loaded = StripedHyena.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids)[0], model(ids)[0])
    assert (loaded.unembed.weight is loaded.embedding_layer.weight) == config.tie_embeddings
    assert loaded.config == config
    half = StripedHyena.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith(("poles", "residues")) else torch.bfloat16), name


@torch.no_grad()
def test_names_of_hugging_face_and_stored_buffers(evo):
    """`backbone.`, a missing or random tied unembedding, bfloat16 rotary frequencies (10 rad off) do not matter."""
    config, parameters, arrays = golden("model_evo8k_generate.npz")
    expected = evo[0](arrays["prompt_ids"])[0]
    renamed = {"backbone." + name: t for name, t in parameters.items() if name != "unembed.weight"}
    renamed["backbone.blocks.1.inner_mha_cls.rotary_emb.inv_freq"] = torch.rand(8).bfloat16()
    assert torch.equal(StripedHyena.from_reference(config, renamed)(arrays["prompt_ids"])[0], expected)
    renamed["backbone.unembed.weight"] = torch.randn(512, 64)
    assert torch.equal(StripedHyena.from_reference(config, renamed)(arrays["prompt_ids"])[0], expected)
    del renamed["backbone.blocks.0.filter.D"]
    renamed["backbone.blocks.0.filter.E"] = torch.zeros(64)
    with pytest.raises(ValueError, match=r"missing 'blocks.0.filter.D' .*unexpected 'blocks.0.filter.E'"):
        StripedHyena.from_reference(config, renamed)


def test_our_names_are_the_original_names():
    config, parameters, _ = golden("model_evo8k_forward.npz")
    model = StripedHyena.from_reference(config, parameters)
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    theirs = {name: tuple(t.shape) for name, t in parameters.items() if "inv_freq" not in name}
    assert ours == theirs | {"unembed.weight": (512, 64)}


# ------------------------------------------------------------------------------------------ poles and residues, Hyena
@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_poles_stay_float32(cast):
    """Trap F: a bfloat16 pole at |p| = .999 is another filter. Their gradients stay float32 too."""
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "poles" in n or "residues" in n}
    model(ids_of(1, 5))[0].sum().backward()
    cast(model)
    for name, p in model.named_parameters():
        if name in before:
            assert torch.equal(p, before[name]), name
            assert p.grad.dtype == torch.float32
        else:
            assert p.dtype != torch.float32, name
    with torch.no_grad():
        logits, cache = model(ids_of(1, 5))
    assert logits.dtype == model.unembed.weight.dtype
    assert cache.layers[0]["iir"].dtype == torch.complex64
    assert model.double().blocks[0].filter.poles.dtype == torch.float64


def test_poles_of_a_bfloat16_checkpoint_become_float32():
    model = tiny()
    state = {name: t.bfloat16() for name, t in model.state_dict().items()}
    loaded = StripedHyena.from_reference(model.reference_config(), state)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16, torch.float32}
    assert loaded.blocks[0].filter.poles.dtype == torch.float32
    assert loaded.blocks[0].filter.residues.dtype == torch.float32


def test_autocast_leaves_poles_alone():
    model, ids = tiny(), ids_of(1, 60)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low = model(ids)[0]
    with torch.no_grad():
        full = model(ids)[0]
    assert (low.float() - full).norm() < 0.05 * full.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16), tkpy.record_dispatches() as runs:
        model(ids)
    assert {r.op for r in runs} >= {"hyena_mixer", "attention", "linear", "rms_norm", "rotary"}


def test_poles_cannot_grow_in_training():
    module = ModalFilter(4, 3, max_radius=0.99)
    with torch.no_grad():
        module.poles.mul_(3)
    poles, _ = module.modes()
    assert poles.abs().max() <= 0.99 + 1e-6
    inside = torch.view_as_complex(module.poles.detach()[:, :, 0]).abs() < 0.99
    assert torch.equal(poles[inside], torch.view_as_complex(module.poles.detach()[:, :, 0])[inside])
    y, _ = module(torch.randn(1, 5000, 12))
    assert torch.isfinite(y).all()
    free = ModalFilter(4, 3, max_radius=None)
    free.load_state_dict(module.state_dict())
    assert free.modes()[0].abs().max() > 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pole_outside_comes_back_but_goes_no_farther(sign):
    module = ModalFilter(1, 1, max_radius=0.9)
    optimizer = torch.optim.SGD([module.poles], lr=0.1)
    with torch.no_grad():
        module.poles.copy_(torch.tensor([0.6, 0.8]))  # radius 1, at an angle
    for _ in range(20):
        optimizer.zero_grad()
        (sign * module.modes()[0].abs()).sum().backward()  # wants it inwards, outwards
        optimizer.step()
    radius = torch.view_as_complex(module.poles.detach()[:, :, 0]).abs().item()
    assert radius < 0.9 if sign == 1 else abs(radius - 1) < 1e-6


def test_saved_poles_are_those_in_use():
    model = tiny()
    with torch.no_grad():
        model.blocks[0].filter.poles.mul_(2)
    stored = torch.view_as_complex(model.reference_state()["blocks.0.filter.poles"][:, :, 0])
    assert torch.equal(stored, model.blocks[0].filter.modes()[0])
    assert stored.abs().max() <= 1 + 1e-6


@torch.no_grad()
def test_two_layouts_of_the_branches():
    """[x2 | x1 | v] within each head, or over all channels: the same mixer with permuted rows."""
    torch.manual_seed(0)
    by_head, plain = HyenaMixer(12, 2, groups=3), HyenaMixer(12, 2, groups=3, column_split=False)
    state = by_head.state_dict()
    for name in ("projections.weight", "projections.bias", "filter.short_filter_weight", "filter.short_filter_bias"):
        state[name] = state[name].unflatten(0, (3, 3, 4)).transpose(0, 1).flatten(0, 2)
    plain.load_state_dict(state)
    x = torch.randn(2, 20, 12)
    torch.testing.assert_close(plain(x)[0], by_head(x)[0])


@torch.no_grad()
def test_edits_before_the_output_projections():
    """LoFiT's z = (1 + a) z + b, per head of attention and per channel group of Hyena; the identity when enabled."""
    model, ids = tiny(), ids_of(1, 12)
    names, before = set(model.state_dict()), model(ids)[0]
    edits = [model.blocks[0].edit.enable(), model.blocks[1].inner_mha_cls.edit.enable()]
    assert len(set(model.state_dict()) - names) == 4
    assert torch.equal(model(ids)[0], before)
    for edit in edits:
        for parameter in edit.parameters():
            parameter[2] = 0.5
            assert (model(ids)[0] - before).abs().max() > 1e-5
            parameter.zero_()
    block = model.blocks[0]
    block.edit.scale[1] = -1  # head 1 is pruned: its rows of the output projection do nothing
    x = torch.randn(1, 9, 16)
    pruned = block(x)[0]
    block.edit.scale.zero_()
    block.out_filter_dense.weight[:, 4:8] = 0
    torch.testing.assert_close(block(x)[0], pruned)


def test_projections_can_be_swapped():
    made = []

    def factory(*args, **kwargs):
        made.append(torch.nn.Linear(*args, **kwargs))
        return made[-1]

    torch.manual_seed(0)
    model = StripedHyena(TINY, linear_cls=factory).eval()
    assert len(made) == 3 * 5
    other = StripedHyena(TINY).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids_of(1, 20))[0], other(ids_of(1, 20))[0], atol=1e-5, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- mutagenesis
@pytest.mark.parametrize(
    "start, stop, batch_size, chunk", [(0, 5, 48, 4096), (17, 30, 9, 4096), (28, 33, 1, 4), (7, 7, 8, 8)]
)
def test_mutation_effects_are_differences_of_scores(scoring, start, stop, batch_size, chunk):
    model, arrays = scoring
    sequence = str(arrays["seqs"][0])[:33]
    effects = mutation_effects(model, sequence, start, stop, batch_size=batch_size, chunk=chunk)
    assert effects.shape == (stop - start, 4)
    if start == stop:
        return
    mutants = [sequence[:i] + base + sequence[i + 1 :] for i in range(start, stop) for base in "ACGT"]
    expected = model.score(mutants, reduce="sum") - model.score([sequence], reduce="sum")
    torch.testing.assert_close(effects, expected.view(-1, 4), atol=2e-4, rtol=1e-4)
    for i, base in enumerate(sequence[start:stop]):
        assert effects[i, "ACGT".index(base)] == 0


def test_mutation_effects_refuses_a_window_outside(scoring):
    with pytest.raises(ValueError, match="0 <= start <= stop <= 4, got 2, 9"):
        mutation_effects(scoring[0], "ACGT", 2, 9)
