"""RWKV-5: the golden arrays of the original, all versions and names, states, initialisation, tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tkpy
from tkpy.models import RWKV5, RWKV5Config
from tkpy.models.rwkv5 import blink_name, hugging_face_name
from tkpy.nn import ChannelMix, TimeMix, WorldTokenizer, generate, score
from tkpy.numerics import compare

GOLDEN = Path(__file__).parent / "golden" / "rwkv5"


def golden(path):
    """(config, parameters, the other arrays)."""
    with np.load(path) as stored:
        config = json.loads(str(stored["config_json"]))
        arrays = {k: torch.from_numpy(stored[k]) for k in stored.files if stored[k].dtype.kind in "fi"}
    parameters = {k.removeprefix("param."): t for k, t in arrays.items() if k.startswith("param.")}
    return config, parameters, {k: t for k, t in arrays.items() if not k.startswith("param.")}


def close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    difference = (actual.detach() - expected).abs().max().item()
    assert difference <= tolerance, difference


@pytest.fixture(scope="module")
def v52():
    config, parameters, arrays = golden(GOLDEN / "model_v52_l2_d128.npz")
    return RWKV5.from_reference(config, parameters), arrays


def small(version="5.2", layers=2, seed=0, **options):
    """A little model whose every parameter matters (the original starts with zeros)."""
    torch.manual_seed(seed)
    config = RWKV5Config(
        vocab_size=29, hidden_size=24, num_layers=layers, head_size=8, intermediate_size=40, version=version, **options
    )
    model = RWKV5(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


# ------------------------------------------------------------------------------------------------------------- golden
def test_logits_of_the_original(v52):
    model, g = v52
    assert (model.config.version, model.config.group_norm_eps) == ("5.2", 64e-5)
    close(model(g["input_ids"].long())[0], g["logits"])


def test_hidden_states_of_the_original(v52):
    model, g = v52
    seen = {}
    hooks = []
    for i, block in enumerate(model.blocks):
        for name, module in (("att_out", block.att), ("ffn_out", block.ffn), ("out", block)):
            key = f"hidden.block{i}_{name}"
            hooks.append(module.register_forward_hook(lambda m, args, out, key=key: seen.update({key: out[0]})))
    model(g["input_ids"].long()[:1])
    for hook in hooks:
        hook.remove()
    assert seen.keys() == {k for k in g if k.startswith("hidden.")}
    for key, value in seen.items():
        close(value, g[key])


@pytest.mark.parametrize("tokens, key", [(40, "state_final"), (17, "state_after17")])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["parallel", "recurrent"])
def test_states_of_the_original(v52, tokens, key, one_by_one):
    model, g = v52
    state = None
    for piece in g["input_ids"].long()[:, :tokens].split(1 if one_by_one else tokens, dim=1):
        logits, state = model(piece, state)
    close(logits[:, -1], g["logits"][:, tokens - 1])
    assert state.length == tokens
    for name in ("att_x", "att_kv", "ffn_x"):
        close(torch.stack([layer[name] for layer in state.layers], dim=1), g[f"{key}.{name}"])


@pytest.mark.parametrize("one_by_one", [False, True], ids=["parallel", "recurrent"])
def test_version_51_of_the_original(one_by_one):
    config, parameters, g = golden(GOLDEN / "model_v51_l2_d128.npz")
    model = RWKV5.from_reference(config, parameters)
    assert model.config.version == "5.1"
    state, logits = None, []
    for piece in g["input_ids"].long()[None].split(1 if one_by_one else 24, dim=1):
        out, state = model(piece, state)
        logits.append(out)
    close(torch.cat(logits, 1)[0], g["logits_rnn" if one_by_one else "logits"], 2e-4)
    for i, layer in enumerate(state.layers):
        for name in ("att_x", "att_kv", "ffn_x"):
            close(layer[name][0], g[f"state_final.{name}.{i}"], 2e-4)


def test_a_trained_model():
    """12 layers of head size 8, really trained, with the group norm of rwkv.cpp (eps 1e-5)."""
    folder = os.environ.get("TKPY_TEST_DATA")
    if not folder:
        pytest.skip("TKPY_TEST_DATA is not set to the folder of tiny_trained_v52_rwkvcpp.npz")
    config, parameters, g = golden(Path(folder) / "tiny_trained_v52_rwkvcpp.npz")
    model = RWKV5.from_reference(config, parameters).float()
    assert (model.config.group_norm_eps, model.config.head_size) == (1e-5, 8)
    with torch.no_grad():
        logits = model(g["input_ids_a"].long()[None])[0][0, -1]
        close(logits, g["logits_a_fp16weights"])
        close(logits, g["expected_logits_rwkvcpp_fp32weights"], 5e-3)
        close(model(g["prompt_ids"].long()[None])[0][0], g["prompt_logits"])
    tokens = generate(model, g["prompt_ids"].long()[None], 48, temperature=0)
    assert tokens[0].tolist() == g["greedy_continuation_ids"].tolist()


# ----------------------------------------------------------------------------------- every version, by a naive RNN
def naive(parameters, ids, version, eps):
    """RWKV-5 in numpy, float64, one token after the other, one sequence: (T, V) logits."""
    p = {k: v.numpy().astype(np.float64) for k, v in parameters.items()}

    def norm(x, name, groups=1, eps=1e-5):
        x = x.reshape(groups, -1)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
        return x.reshape(-1) * p[name + ".weight"] + p[name + ".bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    layers = 1 + max(int(k.split(".")[1]) for k in p if k.startswith("blocks."))
    heads = p["blocks.0.att.time_decay"].shape[0]
    width = p["blocks.0.att.ln_x.weight"].shape[0]
    state = [[0.0, np.zeros((heads, width // heads, width // heads)), 0.0] for _ in range(layers)]
    logits = []
    for token in ids.tolist():
        x = norm(p["emb.weight"][token], "blocks.0.ln0")
        for i in range(layers):
            a, last = norm(x, f"blocks.{i}.ln1"), state[i]

            def project(kind, letter, now, before, part):
                mix = p[f"blocks.{i}.{part}.time_mix_{letter}"].reshape(-1)  # noqa: B023
                return p[f"blocks.{i}.{part}.{kind}.weight"] @ (now * mix + before * (1 - mix))  # noqa: B023

            r, k, v = (
                project(kind, kind[0], a, last[0], "att").reshape(heads, -1) for kind in ("receptance", "key", "value")
            )
            w = np.exp(-np.exp(p[f"blocks.{i}.att.time_decay"])).reshape(heads, -1, 1)
            u = np.exp(p[f"blocks.{i}.att.time_first"]) if version == "5.0" else p[f"blocks.{i}.att.time_faaaa"]
            kv = k[:, :, None] * v[:, None, :]
            y = np.einsum("hi,hij->hj", r, last[1] + u.reshape(heads, -1, 1) * kv)
            y = norm(y, f"blocks.{i}.att.ln_x", heads, eps)
            if version != "5.0":
                gate = project("gate", "g", a, last[0], "att")
                y = y * gate * sigmoid(gate)
            x = x + p[f"blocks.{i}.att.output.weight"] @ y
            b = norm(x, f"blocks.{i}.ln2")
            inner = np.maximum(project("key", "k", b, last[2], "ffn"), 0) ** 2
            gate = sigmoid(project("receptance", "r", b, last[2], "ffn"))
            state[i] = [a, w * last[1] + kv, b]
            x = x + gate * (p[f"blocks.{i}.ffn.value.weight"] @ inner)
        logits.append(p["head.weight"] @ norm(x, "ln_out"))
    return torch.from_numpy(np.stack(logits))


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_against_a_naive_recurrence(version):
    model = small(version, group_norm_eps=1e-3)
    ids = torch.randint(29, (1, 70))
    loaded = RWKV5.from_reference({"gn_eps": 1e-3}, model.state_dict())
    assert loaded.config.version == version
    wanted = naive(model.state_dict(), ids[0], version, 1e-3)
    assert compare(loaded(ids)[0][0], wanted, 1e-5)
    assert compare(loaded.double()(ids)[0][0], wanted, 1e-12)


@pytest.mark.parametrize("version", ["5.0", "5.2"])
def test_gradients_against_the_float64_reference(version):
    model, ids = small(version), torch.randint(29, (2, 41))

    def gradients(model):
        loss = torch.nn.functional.cross_entropy(model(ids)[0][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return torch.autograd.grad(loss, list(model.parameters()))

    found = gradients(model)
    with tkpy.use_backend("reference"):
        wanted = gradients(model.double())
    for (name, _), a, b in zip(model.named_parameters(), found, wanted, strict=True):
        result = compare(a, b, 1e-4)
        assert result, f"{name}: {result}"


# ------------------------------------------------------------------------------------------------------------- states
@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_every_split_is_one_pass(version):
    model, ids = small(version).double(), torch.randint(29, (2, 40))
    whole, final = model(ids)
    for pieces in ([c, 40 - c] for c in range(41)):
        state, logits = None, []
        for piece in ids.split(pieces, dim=1):
            out, state = model(piece, state)
            logits.append(out)
        assert compare(torch.cat(logits, 1), whole, 1e-11), pieces
        assert all(compare(a[n], b[n], 1e-11) for a, b in zip(state.layers, final.layers, strict=True) for n in a)


def test_gradients_through_the_state():
    """Truncation is the caller's choice: with the state kept attached, two halves have the gradient of the whole."""
    model, ids = small().double(), torch.randint(29, (2, 40))
    whole = torch.autograd.grad(model(ids)[0][:, -1].square().sum(), list(model.parameters()))
    _, state = model(ids[:, :23])
    halves = torch.autograd.grad(model(ids[:, 23:], state)[0][:, -1].square().sum(), list(model.parameters()))
    assert all(compare(a, b, 1e-10) for a, b in zip(halves, whole, strict=True))


def test_causality():
    model, ids = small().double(), torch.randint(29, (1, 40))
    before = model(ids)[0]
    for t in (0, 1, 20, 31, 32, 39):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % 29
        after = model(changed)[0]
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_a_state_is_never_written_to_and_shares_no_memory():
    model, ids = small().eval(), torch.randint(29, (2, 12))
    with torch.no_grad():
        _, state = model(ids)
        kept = state.map(torch.clone)
        first = model(ids[:, :1], state)[0]
        _, unchanged = model(ids[:, :0], state)  # no tokens: an equal state, but a new one
        for layer in unchanged.layers:
            for tensor in layer.values():
                tensor.fill_(torch.nan)
        generate(model, ids[:, :1], 3, cache=state)
        for old, now in zip(kept.layers, state.layers, strict=True):
            assert all(torch.equal(old[n], now[n]) for n in old)
        assert torch.equal(model(ids[:, :1], state)[0], first)


def test_fork_and_gather():
    model, ids = small(), torch.randint(29, (2, 9))
    _, state = model(ids)
    step = torch.randint(29, (2, 1))
    wanted = model(step, state)[0]
    forked = model(step.repeat_interleave(3, 0), state.fork(3))[0]
    assert compare(forked, wanted.repeat_interleave(3, 0), 1e-6)
    order = torch.tensor([1, 0, 1])
    assert compare(model(step[order], state.gather(order))[0], wanted[order], 1e-6)
    with pytest.raises(ValueError, match="cannot be cut"):
        state.truncate(4)


def test_generate_and_score(v52):
    model, g = v52
    ids = g["input_ids"].long()
    tokens = generate(model, ids[:, :5], 6, temperature=0)
    for n in range(6):
        greedy = model(torch.cat([ids[:, :5], tokens[:, :n]], 1))[0][:, -1].argmax(-1)
        assert torch.equal(greedy, tokens[:, n])
    wanted = g["logits"].log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    close(score(model, ids, chunk=7), wanted)


def test_compiles_without_a_graph_break_for_any_length():
    model = small(layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    ids = torch.randint(29, (2, 37))
    assert torch.equal(compiled(ids)[0], model(ids)[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        ids = torch.randint(29, (2, 71))
        assert torch.equal(compiled(ids)[0], model(ids)[0])


def test_autocast():
    model, ids = small(), torch.randint(29, (2, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model(ids)
        again, _ = model(ids, state)
    assert (logits.dtype, state.layers[0]["att_kv"].dtype) == (torch.bfloat16, torch.float32)
    assert compare(logits, model(ids)[0], 3e-2)
    assert compare(again, model(ids, model(ids)[1])[0], 3e-2)


def test_state_tuning():
    model, ids = small(), torch.randint(29, (2, 10))
    tuned = [torch.randn(3, 8, 8) for _ in model.blocks]
    tensors = model.state_dict() | {f"blocks.{i}.att.time_state": t for i, t in enumerate(tuned)}
    loaded = RWKV5.from_reference({}, tensors)
    state = model(ids[:, :0])[1]
    for layer, initial in zip(state.layers, tuned, strict=True):
        layer["att_kv"].copy_(initial.transpose(1, 2))
    logits = loaded(ids)[0]
    assert compare(logits, model(ids, state)[0], 1e-6)
    grads = torch.autograd.grad(logits.square().sum(), [block.att.time_state for block in loaded.blocks])
    assert all(grad.abs().min() > 0 for grad in grads)


# ------------------------------------------------------------------------------------ names, files, initial values
def test_names_both_ways():
    names = json.loads((GOLDEN / "name_map_blink_to_hf_l2.json").read_text())
    assert {name: hugging_face_name(name) for name in names} == names
    assert {blink_name(name) for name in names.values()} == set(names)
    assert {blink_name(name) for name in names} == set(names)
    assert names.keys() == small().state_dict().keys()


def test_hugging_face_folder(tmp_path, v52):
    model, g = v52
    tensors = {hugging_face_name(name): t for name, t in model.state_dict().items()}
    config = {"vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 2, "head_size": 64, "head_size_divisor": 8}
    config |= {"layer_norm_epsilon": 1e-5, "intermediate_size": None, "num_attention_heads": 64, "rescale_every": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    close(RWKV5.from_pretrained(tmp_path)(g["input_ids"].long())[0], g["logits"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pth_without_a_config(tmp_path, v52, dtype):
    model, g = v52
    file = tmp_path / "RWKV-5-World.pth"
    torch.save({name: t.to(dtype) for name, t in model.state_dict().items()}, file)
    loaded = RWKV5.from_pretrained(file)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    logits, state = loaded(g["input_ids"].long())
    assert (logits.dtype, state.layers[0]["att_kv"].dtype) == (dtype, torch.float32)
    assert compare(logits, g["logits"], 1e-5 if dtype == torch.float32 else 3e-2)
    if dtype != torch.float32:  # the file's numbers are bfloat16 numbers (and float16 ones nearly)
        wide = RWKV5.from_pretrained(file, dtype=torch.float32)
        close(wide(g["input_ids"].long())[0], g["logits"], 1e-4 if dtype == torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("version", ["5.0", "5.2"])
def test_save_and_load(tmp_path, version):
    model, ids = small(version, group_norm_eps=1e-5, attention_size=16), torch.randint(29, (1, 9))
    model.save_pretrained(tmp_path)
    loaded = RWKV5.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_initial_values_of_the_original():
    with np.load(GOLDEN / "init_v52_l6_d128.npz") as stored:
        config = json.loads(str(stored["config_json"]))
        summary = json.loads(str(stored["random_summary_json"]))
        fixed = {k: torch.from_numpy(stored[k]) for k in stored.files if stored[k].dtype.kind == "f"}
    model = RWKV5(
        RWKV5Config(
            vocab_size=config["vocab_size"],
            hidden_size=config["n_embd"],
            num_layers=config["n_layer"],
            intermediate_size=config["dim_ffn"],
            embedding_init=config["lr_init"],
        )
    )
    state = model.state_dict()
    assert state.keys() == fixed.keys() | summary.keys()
    for name, wanted in fixed.items():
        torch.testing.assert_close(state[name], wanted, rtol=1e-6, atol=1e-7)
    for name, wanted in summary.items():
        value = state[name]
        assert list(value.shape) == wanted["shape"]
        assert value.std().item() == pytest.approx(wanted["std"], rel=0.05)
        assert bool((value == 0).all()) == wanted["zero"]
        if name != "emb.weight":  # orthogonal: all singular values are the gain
            singular = torch.linalg.svdvals(value)
            torch.testing.assert_close(singular, torch.full_like(singular, wanted["orth_gain"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_one_layer_and_one_head_have_finite_initial_values(version):
    model = RWKV5(RWKV5Config(vocab_size=5, hidden_size=8, num_layers=1, head_size=8, version=version))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(model(torch.zeros(1, 3, dtype=torch.long))[0]).all()


def test_layers_alone():
    att, ffn = TimeMix(48, 16, layer=1, depth=4, attention=32), ChannelMix(48, 64, layer=1, depth=4)
    for layer in (att, ffn):
        torch.nn.init.normal_(layer.output.weight if layer is att else layer.value.weight)
        x = torch.randn(2, 9, 48)
        whole, _ = layer(x)
        first, state = layer(x[:, :4])
        rest, _ = layer(x[:, 4:], state)
        assert compare(torch.cat([first, rest], 1), whole, 1e-5)
    z = att.edit.enable(scale=False)
    z.bias.data[1, 3] = 1.0  # LoFiT: an offset on a head's output goes through the output projection
    assert compare(att(x)[0] - att.output.weight[:, 16 + 3], layer_without_edit(att, x), 1e-5)


def layer_without_edit(att, x):
    att.edit.bias.data.zero_()
    return att(x)[0]


def test_projections_are_built_by_linear_cls():
    class Marked(torch.nn.Linear):
        pass

    model = RWKV5(RWKV5Config(vocab_size=5, hidden_size=16, num_layers=2, head_size=8), linear_cls=Marked)
    assert sum(isinstance(m, Marked) for m in model.modules()) == 2 * 8


BAD = [
    ("nothing", {}, {}, "not the weights of an RWKV-5"),
    ("RWKV-6", {}, {"blocks.0.att.time_maa_k": torch.zeros(1)}, "not the weights of an RWKV-5"),
    ("other vocabulary", {"vocab_size": 30}, {}, "vocab_size = 30, the weights have 29"),
    ("other depth", {"num_hidden_layers": 3}, {}, "= 3, the weights have 2"),
    ("unknown tensor", {}, {"blocks.0.att.tiny_q.weight": torch.zeros(1)}, "unexpected 'blocks.0.att.tiny_q.weight'"),
    ("other shape", {}, {"blocks.1.att.key.weight": torch.zeros(2, 2)}, "'blocks.1.att.key.weight' needs shape"),
]


@pytest.mark.parametrize("config, change, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_malformed_checkpoints(config, change, message):
    tensors = small().state_dict() | change if config or change else {}
    with pytest.raises(ValueError, match=message):
        RWKV5.from_reference(config, tensors)


def test_malformed_calls():
    model = small()
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\)"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="state must be a Cache of 2 layers"):
        model(torch.zeros(1, 3, dtype=torch.long), small(layers=1)(torch.zeros(1, 3, dtype=torch.long))[1])
    with pytest.raises(ValueError, match="head_size must divide"):
        TimeMix(20, 8)
    with pytest.raises(ValueError, match="version must be one of"):
        TimeMix(16, 8, version="6.0")
    with pytest.raises(ValueError, match="layer must lie in"):
        ChannelMix(16, 32, layer=2, depth=2)


# ---------------------------------------------------------------------------------------------------------- tokenizer
@pytest.fixture(scope="module")
def tokenizer():
    try:
        return WorldTokenizer()
    except FileNotFoundError:
        pytest.skip("the package rwkv, which brings the vocabulary, is not installed")


def test_ids_of_the_original(tokenizer):
    cases = json.loads((GOLDEN / "tokenizer_world.json").read_text())
    for case in cases["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    for case in cases["raw_bytes_cases"]:
        data = bytes.fromhex(case["bytes_hex"])
        assert tokenizer.encode(data) == case["ids"]
        assert tokenizer.decode_bytes(case["ids"]) == data
    assert tokenizer.vocab_size == 65530


def test_decoding_odd_ids(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("end"), 0]) == "end"
    assert tokenizer.decode(tokenizer.encode("é".encode()[:1])) == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(ValueError, match="65530 is not in the vocabulary"):
        tokenizer.decode([65530])


def test_vocabulary_files(tmp_path):
    single = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    (tmp_path / "rwkv_vocab_test.txt").write_text("\r\n".join([*single, "257 'a b' 3", "258 'a b é' 6"]) + "\r\n")
    tokenizer = WorldTokenizer(tmp_path)
    assert tokenizer.encode("a b é!") == [258, 34]
    assert tokenizer.encode("a b e") == [257, 33, 102]
    assert tokenizer.encode("a b ")[0] == 257  # a longer token that the text ends within is not taken
    hugging_face = tmp_path / "hf"
    hugging_face.mkdir()
    (hugging_face / "vocab.txt").write_text("\n".join(["b'<s>'", *(repr(bytes([i])) for i in range(256)), "b'a b'"]))
    assert WorldTokenizer(hugging_face).encode("a b!") == [257, 34]
    with pytest.raises(FileNotFoundError, match="needs rwkv_vocab"):
        WorldTokenizer(GOLDEN)
    for content in ("1 'a' 2", "1 __import__('os') 1", "1 'a' 1", "nonsense"):
        file = tmp_path / "bad.txt"
        file.write_text(content)
        with pytest.raises(ValueError, match="not a vocabulary"):
            WorldTokenizer(file)
