"""M2-BERT and Monarch Mixer's layers against the original: golden arrays, sizes, variants, checkpoints, embed."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tkpy.models import M2Bert, M2BertConfig
from tkpy.nn import BlockdiagLinear, HyenaFilter, Linear, MonarchMixer, MonarchMLP

GOLDEN = Path(__file__).parent / "golden" / "m2"
MODELS = ("m2bert_h64_l2_s128", "m2bert_h64_hta_s64")
TINY = M2BertConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    max_position_embeddings=24,
    long_conv_l_max=24,
    hyena_filter_order=8,
    hidden_dropout_prob=0.0,
)
RELEASED = {  # hidden, intermediate, L, parameters of the MLM model
    "80M": (768, 3072, 128, 80_267_328),
    "80M with hyena_training_additions": (768, 3072, 128, 80_285_760),
    "110M": (960, 3840, 128, 115_583_616),
    "260M": (1536, 6144, 128, 259_133_760),
    "341M": (1792, 7168, 128, 341_038_144),
}


def arrays(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {k: file[k] if file[k].dtype.kind == "U" else torch.from_numpy(file[k]) for k in file.files}


def prefixed(golden, prefix):
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def golden_model(name, **changes):
    golden = arrays(name)
    config = json.loads(str(golden["config_json"])) | changes
    return golden, M2Bert.from_reference(config, prefixed(golden, "param/")).eval()


def close(actual, expected, atol):
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture(scope="module", autouse=True)
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ golden: whole models
@pytest.mark.parametrize("name", MODELS)
def test_every_output_of_the_original(name):
    golden, model = golden_model(name)
    seen = {}

    def watch(key):
        return lambda module, args, output: seen.__setitem__(key, output)

    model.bert.embeddings.register_forward_hook(watch("embeddings"))
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.attention.register_forward_hook(watch(f"mixer{i}"))
        layer.register_forward_hook(watch(f"layer{i}"))
    inputs = prefixed(golden, "in/")
    out = model(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
    labelled = model(**inputs)
    seen |= {
        "last_hidden": out.last_hidden_state,
        "mlm_logits": out.mlm_logits,
        "mlm_loss": labelled.mlm_loss,
        "pooled_cls": out.pooled_cls,
        "pooled_mean": out.pooled_mean,
        "cls_logits": out.cls_logits,
        "pooled_cls_l2norm": torch.nn.functional.normalize(out.pooled_cls, dim=-1),
    }
    expected = prefixed(golden, "out/")
    assert set(seen) == set(expected)
    for key, value in expected.items():
        close(seen[key], value, {"mlm_logits": 2e-4, "mlm_loss": 1e-4}.get(key, 2e-5 if "pooled" in key else 1e-4))
    assert labelled.mlm_logits is None
    assert model(inputs["input_ids"], logits=False).mlm_logits is None


def test_every_gradient_of_the_original():
    golden, model = golden_model(MODELS[0], hidden_dropout_prob=0.0)
    expected = arrays(MODELS[0] + "_grads")
    loss = model.train()(**prefixed(golden, "in/")).mlm_loss
    close(loss, expected["loss"], 1e-5)
    loss.backward()
    grads = prefixed(expected, "grad/")
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(own) == set(grads)  # a shared tensor has one name in both
    for name, grad in grads.items():
        assert own[name].isfinite().all()
        assert (own[name] - grad).norm() <= 2e-4 * grad.norm() + 1e-7, name


def test_shorter_inputs_use_the_first_positions():
    golden, model = golden_model(MODELS[0])
    expected = prefixed(arrays(MODELS[0] + "_grads"), "short100/")
    inputs = {k: v[:, :100] for k, v in prefixed(golden, "in/").items() if k != "labels"}
    out = model(**inputs)
    close(out.last_hidden_state, expected["last_hidden"], 1e-4)
    close(out.mlm_logits, expected["mlm_logits"], 2e-4)


def test_the_mask_reaches_the_mean_only():
    golden, model = golden_model(MODELS[0])
    ids = golden["in/input_ids"]
    masked, full = model(ids, golden["in/attention_mask"]), model(ids)
    for name in ("last_hidden_state", "mlm_logits", "pooled_cls", "cls_logits"):
        assert torch.equal(getattr(masked, name), getattr(full, name))
    assert not torch.allclose(masked.pooled_mean[1], full.pooled_mean[1])
    assert model(ids, torch.zeros_like(ids)).pooled_mean.isfinite().all()


def test_pool_all_classifies_the_mean():
    golden, model = golden_model(MODELS[0], pool_all=True)
    out = model(golden["in/input_ids"], golden["in/attention_mask"])
    torch.testing.assert_close(out.cls_logits, model.classifier(out.pooled_mean))


# ------------------------------------------------------------------------------------------------------ golden: layers
FILTERS = arrays("hyena_filter")


def make_filter(cfg):
    options = {key: cfg[key] for key in ("order", "emb_dim", "w", "w_mod", "bidirectional")}
    return HyenaFilter(cfg["d_model"], cfg["seq_len"], **options)


@pytest.mark.parametrize("name", FILTERS["names"])
def test_hyena_filter_golden(name):
    golden = prefixed(FILTERS, name + "/")
    cfg = json.loads(str(golden["cfg"]))
    layer = make_filter(cfg)
    params = prefixed(golden, "param/")
    if name.endswith("default_init"):  # the analytic features and decays of a fresh layer
        for key in ("pos_emb.z", "pos_emb.t", "modulation.deltas", "implicit_filter.1.freq"):
            close(layer.state_dict()[key], params[key], 2e-6)
    layer.load_state_dict(params, strict=True)
    length = cfg["L"]
    close(layer.pos_emb.z[:, :length], golden["z_used"], 0)
    close(layer.pos_emb.t[:, :length], golden["t_used"], 0)
    close(layer.filter(length), golden["k_fwd"], 1e-5)
    if cfg["bidirectional"]:
        close(layer.filter_rev(length), golden["k_rev"], 1e-5)
    with pytest.raises(ValueError, match=f"l_max = {cfg['seq_len']}.*got {cfg['seq_len'] + 1}"):
        layer.filter(cfg["seq_len"] + 1)


def test_filter_stays_float32_in_low_precision():
    layer = HyenaFilter(4, 4096, order=16)
    expected = layer.filter(4096)
    lowered = layer.to(torch.bfloat16)
    assert torch.equal(lowered.filter(4096), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lowered.filter(4096), expected)
    assert lowered(torch.randn(1, 4, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert lowered.double().filter(8).dtype == torch.float64


def test_blockdiag_linear_layer():
    torch.manual_seed(1)
    layer = BlockdiagLinear(50, 70, nblocks=4, shuffle=True)
    x = torch.randn(3, 50)
    torch.testing.assert_close(layer(x), x @ layer.convert_to_dense_weight().T + layer.bias)
    wide = BlockdiagLinear(
        1024, 2048, nblocks=4
    )  # Kaiming of the dense matrix times sqrt(nblocks): U(+-1/sqrt(1024/4))
    assert wide.weight.abs().max() <= 1 / 16
    assert wide.weight.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.02)
    assert wide.bias.abs().max() <= 1 / math.sqrt(2048)
    with pytest.raises(ValueError, match="positive sizes"):
        BlockdiagLinear(4, 4, nblocks=0)


def test_causal_mixer_sees_no_future_and_bidirectional_does():
    x = torch.randn(1, 20, 8)
    changed = x.clone()
    changed[:, 12] += 1
    for bidirectional in (False, True):
        mixer = MonarchMixer(8, 20, bidirectional=bidirectional, order=8)
        before = (mixer(changed) - mixer(x))[:, :12].abs().max()
        assert (before > 1e-3) if bidirectional else (before < 1e-5)


def test_plain_and_dense_mlp():
    x = torch.randn(2, 5, 8)
    mlp = MonarchMLP(8, 12, gated=False, nblocks=None)
    gelu = torch.nn.functional.gelu(x @ mlp.gated_layers.weight.T)
    expected = torch.nn.functional.layer_norm(mlp.wo(gelu) + x, (8,), eps=1e-12)
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-5)
    assert MonarchMLP(8, 12, nblocks=2)(x).shape == x.shape


# ------------------------------------------------------------------------------------ sizes, names, initialisation
def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_released_parameter_counts(name):
    hidden, inner, length, expected = RELEASED[name]
    config = M2BertConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        max_position_embeddings=length,
        long_conv_l_max=length,
        hyena_training_additions="additions" in name,
        pooler=False,
    )
    with torch.device("meta"):
        model = M2Bert(config)
    assert count(model) == expected
    assert len(model.state_dict()) == (744 if "additions" in name else 720)


@pytest.mark.parametrize("length, expected", [(2048, 81_947_914), (8192, 87_403_786), (32768, 109_227_274)])
def test_released_retrieval_parameter_counts(length, expected):
    config = M2BertConfig(max_position_embeddings=length, long_conv_l_max=length, mlm_head=False, num_labels=10)
    with torch.device("meta"):
        model = M2Bert(config)
    assert count(model) == expected
    assert len(model.state_dict()) == 718


def test_state_dict_is_the_originals():
    golden, model = golden_model(MODELS[0])
    names = {n: tuple(t.shape) for n, t in prefixed(golden, "param/").items()}
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == names
    filters = model.bert.encoder.layer[0].attention.filter_fn
    assert len({id(m.freq) for m in (*filters.implicit_filter[1::2], *filters.implicit_filter_rev[1::2])}) == 1
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_initialisation():
    torch.manual_seed(0)
    model = M2Bert(dataclasses.replace(TINY, hidden_size=64, intermediate_size=128, num_labels=3))
    first, second = model.bert.encoder.layer
    assert first.attention.in_linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.bert.embeddings.word_embeddings.weight[0].any()
    assert not first.attention.in_linear.bias.any()
    for name in (
        "mlp.wo.weight",
        "attention.short_filter.weight",
        "attention.filter_fn.bias",
    ):  # not copies of one layer
        assert not torch.equal(first.get_parameter(name), second.get_parameter(name))


VARIANTS = {
    "causal": {"bidirectional": False},
    "no residual long conv": {"residual_long_conv": False},
    "plain MLP": {"use_glu_mlp": False},
    "dense MLP": {"use_monarch_mlp": False},
    "training additions": {"hyena_training_additions": True},
    "no positions": {"use_positional_encodings": False},
    "odd sizes": {"hidden_size": 18, "intermediate_size": 30, "monarch_mlp_nblocks": 4},
    "pool all": {"pool_all": True},
    "dropout": {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.1},
    "tanh gelu": {"hidden_act": "gelu_new"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_round_trip(variant, tmp_path):
    config = dataclasses.replace(TINY, num_labels=3, **VARIANTS[variant])
    model = M2Bert(config)
    ids = torch.randint(1, 50, (2, 24))
    out = model(ids, token_type_ids=torch.randint(0, 2, (2, 24)), labels=ids)
    (out.mlm_loss + out.cls_logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = M2Bert.from_pretrained(tmp_path)
        bare = M2Bert.from_reference({}, model.state_dict())  # the weights alone, as from Composer without a config
    assert again.config == config
    same = ("pool_all", "hidden_dropout_prob", "classifier_dropout", "hidden_act", "intermediate_size")
    structure = {f.name for f in dataclasses.fields(config)} - set(same)
    assert {n: getattr(bare.config, n) for n in structure} == {n: getattr(config, n) for n in structure}
    assert torch.equal(again(ids).mlm_logits, model.eval()(ids).mlm_logits)


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    model = M2Bert(dataclasses.replace(TINY, pooler=False))
    ids = torch.arange(1, 25).expand(4, -1).clone()
    masked = ids.masked_fill(torch.rand(ids.shape) < 0.3, 49)
    labels = torch.where(masked == 49, ids, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(masked, labels=labels).mlm_loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert model(masked, labels=torch.full_like(labels, -100)).mlm_loss.item() == 0
    padded = labels.clone()
    padded[labels == -100] = 0  # the padding token's label does not count either
    assert torch.equal(model(masked, labels=padded).mlm_loss, model(masked, labels=labels).mlm_loss)


def test_compiles_once_for_all_lengths():
    small = {"num_hidden_layers": 1, "bidirectional": False, "residual_long_conv": False}  # tracing takes seconds
    model = M2Bert(dataclasses.replace(TINY, **small)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for length in (7, 24, 2):
            ids = torch.randint(1, 50, (2, length))
            out, expected = compiled(ids), model(ids)
            assert torch.equal(out.mlm_logits, expected.mlm_logits)
            assert torch.equal(out.pooled_mean, expected.pooled_mean)


def test_linear_cls_builds_the_projections():
    built = []

    class Marked(Linear):
        def __init__(self, in_features, out_features, bias=True):
            super().__init__(in_features, out_features, bias=bias)
            built.append((in_features, out_features))

    M2Bert(dataclasses.replace(TINY, num_labels=2), linear_cls=Marked)
    assert sorted(built) == sorted([(16, 48), (16, 16)] * 2 + [(16, 16)] * 2 + [(16, 2)])


def test_low_precision_and_autocast_stay_close():
    golden, model = golden_model(MODELS[0])
    ids, expected = golden["in/input_ids"], model(golden["in/input_ids"]).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(ids).last_hidden_state
    low = model.to(torch.bfloat16)(ids).last_hidden_state
    assert low.dtype == torch.bfloat16
    for actual in (mixed, low):
        assert (actual.float() - expected).norm() <= 0.03 * expected.norm()


# --------------------------------------------------------------------------------------------------------- checkpoints
def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_checkpoints_of_the_original_in_every_wrapping(tmp_path):
    golden, model = golden_model(MODELS[1])
    config, state = json.loads(str(golden["config_json"])), prefixed(golden, "param/")
    del config["hyena_training_additions"]  # as the released yaml, which omits it
    flash = {"bert.encoder.flashfft.f_sqrt_N_fft": torch.zeros(16, 16, 2)}
    flash["bert.encoder.layer.0.attention.filter_fn.flashfft.twiddle_factors_fft_16_16"] = torch.zeros(16, 16, 2)
    composer = {"state": {"model": {"model." + n: t for n, t in (state | flash).items()}}}
    assert same_weights(M2Bert.from_reference(config, composer), model)
    for file, content in (("pytorch_model.bin", state | flash), ("latest-rank0.pt", composer)):
        folder = tmp_path / file
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(content, folder / file)
        assert same_weights(M2Bert.from_pretrained(folder), model)
    model.save_pretrained(tmp_path / "shards", max_shard_bytes=100_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = M2Bert.from_pretrained(tmp_path / "shards", dtype=torch.float64)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert same_weights(again.float(), model)


def test_missing_heads_are_said():
    golden, _ = golden_model(MODELS[0])
    config, state = json.loads(str(golden["config_json"])), prefixed(golden, "param/")
    backbone = {
        n: t for n, t in state.items() if n.startswith("bert.") and "pooler" not in n and "position_ids" not in n
    }
    with pytest.warns(UserWarning, match=r"initialised: bert\.pooler\.dense\.weight.*classifier\.bias"):
        model = M2Bert.from_reference(config | {"id2label": {"0": "a", "1": "b"}}, backbone)
    assert model.classifier.weight.shape == (2, 64)
    assert model.bert.pooler.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    out = model(golden["in/input_ids"])
    assert out.mlm_logits is None
    assert out.cls_logits.shape == (2, 2)
    with pytest.raises(ValueError, match="labels need the MLM head"):
        model(golden["in/input_ids"], labels=golden["in/labels"])


def test_weights_that_do_not_fit():
    golden, _ = golden_model(MODELS[0])
    config, state = json.loads(str(golden["config_json"])), prefixed(golden, "param/")
    del state["bert.encoder.layer.1.mlp.wo.bias"]
    with pytest.raises(ValueError, match=r"missing 'bert\.encoder\.layer\.1\.mlp\.wo\.bias'"):
        M2Bert.from_reference(config, state)
    with pytest.raises(ValueError, match=r"state dict has no 'bert\.embeddings"):
        M2Bert.from_reference(config, {"transformer.wte.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="attention baseline"):
        M2Bert.from_reference(config | {"monarch_mixer_sequence_mixing": False}, state)


# --------------------------------------------------------------------------------------------------------------- embed
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "monarch", "mixer", "butter", "##fly", "the", "a"]


@pytest.fixture
def folder(tmp_path):
    M2Bert(TINY).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def test_embed_texts(folder):
    model = M2Bert.from_pretrained(folder)
    ids = [[2, 9, 5, 6, 3], [2, 10, 7, 8, 3], [2, 3]]
    found = model.embed(["The Monarch mixer", "a butterfly", ""], batch_size=2)
    padded = torch.tensor([row + [0] * (24 - len(row)) for row in ids])
    torch.testing.assert_close(found, model(padded).pooled_cls)
    torch.testing.assert_close(found, model.embed(ids))
    torch.testing.assert_close(found, model.embed(padded))
    torch.testing.assert_close(found[:1], model.embed("the MONARCH mixer", batch_size=1))
    torch.testing.assert_close(model.embed(ids, normalize=True).norm(dim=-1), torch.ones(3))
    assert model.embed([]).shape == (0, 16)
    assert not found.requires_grad
    long = model.embed("the " * 100)  # cut to 24 tokens, [CLS] and [SEP] kept
    torch.testing.assert_close(long, model.embed([[2] + [9] * 22 + [3]]))
    model.save_pretrained(folder / "again")  # with the tokenizer
    torch.testing.assert_close(M2Bert.from_pretrained(folder / "again").embed("a butterfly"), found[1:2])


def test_embed_padding_is_part_of_the_input(folder):
    model = M2Bert.from_pretrained(folder)
    rows = [[2, 9, 5, 3], [2, 9, 5, 6, 3]]
    full, longest, none = (model.embed(rows, padding=p) for p in ("max_length", "longest", "none"))
    torch.testing.assert_close(longest[1], none[1])
    torch.testing.assert_close(none[0], model.embed(rows[:1], padding="longest")[0])
    assert not torch.allclose(longest[0], none[0], atol=1e-6)
    assert not torch.allclose(full, none, atol=1e-6)
    torch.testing.assert_close(longest, model.embed(rows, max_length=5))


def test_embed_keeps_the_mode_and_pools_as_configured(folder):
    config = dataclasses.replace(TINY, pool_all=True, hidden_dropout_prob=0.5)
    model = M2Bert(config).train()
    model.bert.embeddings.eval()
    rows = [[2, 9, 5, 3], [2, 9, 5, 6, 3]]
    first = model.embed(rows)
    assert torch.equal(first, model.embed(rows))  # no dropout
    assert model.training
    assert not model.bert.embeddings.training
    padded = torch.tensor([row + [0] * (24 - len(row)) for row in rows])
    torch.testing.assert_close(first, model.eval()(padded, padded != 0).pooled_mean)


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ("text", {}, "tokenizer.json or vocab.txt"),
        ([[1, 2], []], {}, "non-empty sequences"),
        ([1, 2], {}, "sequences of token ids"),
        ([[50]], {}, r"0\.\.49"),
        ([[-1]], {}, r"0\.\.49"),
        ([[1]], {"max_length": 25}, r"max_length in 1\.\.24.*got 25"),
        ([[1]], {"batch_size": 0}, "batch_size >= 1"),
        ([[1]], {"padding": "left"}, "'longest'.*'left'"),
    ],
)
def test_embed_refusals(texts, options, message):
    with pytest.raises(ValueError, match=message):
        M2Bert(TINY).embed(texts, **options)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"input_ids": torch.ones(1, 25, dtype=torch.int64)}, "1 to 24 tokens.*got 25"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.int64)}, "got 0"),
        ({"input_ids": torch.ones(24, dtype=torch.int64)}, r"integers \(B, L\)"),
        ({"input_ids": torch.ones(1, 24)}, r"integers \(B, L\).*float32"),
        (
            {"input_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.ones(1, 3)},
            r"attention_mask must be \(1, 4\)",
        ),
    ],
)
def test_forward_refusals(inputs, message):
    with pytest.raises(ValueError, match=message):
        M2Bert(TINY)(**inputs)


def test_config_refusals():
    with pytest.raises(ValueError, match="hidden_act"):
        M2BertConfig(hidden_act="swish")
    with pytest.raises(ValueError, match="needs the pooler"):
        M2BertConfig(num_labels=2, pooler=False)
    with pytest.raises(ValueError, match="emb_dim must be odd"):
        HyenaFilter(4, 8, emb_dim=4)
    with pytest.raises(ValueError, match="pooler=False"):
        M2Bert(dataclasses.replace(TINY, pooler=False)).embed([[1]])
