"""Caches, generation, scoring, checkpoints and the shared layers."""

from __future__ import annotations

import json

import pytest
import torch

from tkpy import checkpoint, models, nn

pytestmark = pytest.mark.fast


def toy_model(vocab=7):
    """Next token = running sum mod vocab: a causal model whose right answers are known."""

    def model(ids, cache=None, *, last_only=False):
        start = cache.layers[0]["sum"] if cache is not None else torch.zeros(ids.shape[0], dtype=torch.int64)
        length = cache.length if cache is not None else 0
        running = start[:, None] + ids.cumsum(1)
        logits = torch.nn.functional.one_hot(running % vocab, vocab).float() * 10
        return logits[:, -1:] if last_only else logits, nn.Cache(({"sum": running[:, -1]},), length + ids.shape[1])

    return model


def kv_cache(batch=2, length=5):
    k = torch.arange(batch * length * 2 * 3, dtype=torch.float32).view(batch, length, 2, 3)
    return nn.Cache(({"k": k, "v": -k},), length)


def test_fork_and_gather_copy():
    cache = kv_cache()
    forked = cache.fork(3)
    assert forked.batch == 6
    assert forked.length == 5
    assert torch.equal(forked.layers[0]["k"][3:], cache.layers[0]["k"][1:].expand(3, -1, -1, -1))
    forked.layers[0]["k"].zero_()
    assert cache.layers[0]["k"].any()
    picked = cache.gather(torch.tensor([1, 1, 0]))
    assert torch.equal(picked.layers[0]["v"][2], cache.layers[0]["v"][0])
    with pytest.raises(ValueError, match="n must be at least 1"):
        cache.fork(0)
    with pytest.raises(ValueError, match="1-d integer"):
        cache.gather(torch.tensor([0.5]))


def test_truncate_cuts_keys_and_refuses_states():
    cut = kv_cache().truncate(2)
    assert cut.length == 2
    assert cut.layers[0]["k"].shape[1] == 2
    recurrent = nn.Cache(({"state": torch.zeros(1, 2)},), 4)
    assert recurrent.truncate(4).length == 4
    with pytest.raises(ValueError, match="state"):
        recurrent.truncate(3)
    with pytest.raises(ValueError, match=r"0\.\.5"):
        kv_cache().truncate(6)


def test_generate_follows_the_model_in_one_batch_and_ragged():
    model = toy_model()
    out = nn.generate(model, torch.tensor([[1, 2], [3, 3]]), 4, temperature=0)
    assert out.tolist() == [[3, 6, 5, 3], [6, 5, 3, 6]]
    ragged = nn.generate(model, [[1, 2], [5], [3, 3]], 4, temperature=0)
    assert [t.tolist() for t in ragged] == [[3, 6, 5, 3], [5, 3, 6, 5], [6, 5, 3, 6]]
    seen = []
    nn.generate(model, torch.tensor([[1, 2]]), 3, temperature=0, on_token=lambda t: seen.append(t.item()))
    assert seen == [3, 6, 5]


def test_generate_stops_and_continues_from_a_cache():
    model = toy_model()
    out = nn.generate(model, torch.tensor([[1, 2], [3, 3]]), 10, temperature=0, stop=5)
    assert out.tolist() == [[3, 6, 5], [6, 5, 5]]
    _, cache = model(torch.tensor([[1, 2]]))
    out = nn.generate(model, torch.tensor([[3]]), 2, temperature=0, cache=cache)
    assert out.tolist() == [[6, 5]]
    with pytest.raises(ValueError, match="T >= 1"):
        nn.generate(model, torch.zeros(1, 0, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="cache"):
        nn.generate(model, [[1]], 1, cache=cache)


def test_sampling_keeps_to_its_limits():
    logits = torch.tensor([[4.0, 3.0, 2.0, -9.0]]).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    assert nn.sample(logits, temperature=0).eq(0).all()
    assert nn.sample(logits, top_k=1).eq(0).all()
    assert set(nn.sample(logits, top_k=2, generator=generator).tolist()) == {0, 1}
    assert set(nn.sample(logits, top_p=0.5, generator=generator).tolist()) == {0}
    assert set(nn.sample(logits, top_p=0.9, generator=generator).tolist()) == {0, 1}
    frequency = torch.bincount(nn.sample(logits, temperature=2.0, generator=generator), minlength=4) / 4000
    assert torch.allclose(frequency, (logits[0] / 2).softmax(-1), atol=0.03)
    for bad in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="needs temperature"):
            nn.sample(logits, **bad)


def test_score_is_the_teacher_forced_log_probability_in_any_chunks():
    model = toy_model()
    ids = torch.randint(7, (2, 23), generator=torch.Generator().manual_seed(0))
    whole = nn.score(model, ids)
    expected = model(ids)[0][:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(whole, expected)
    for chunk in (1, 5, 22, 100):
        assert torch.allclose(nn.score(model, ids, chunk=chunk), whole, atol=1e-6)
    mask = torch.zeros(2, 22, dtype=torch.bool)
    mask[:, 3] = True
    masked = nn.score(model, ids, mask=mask)
    assert torch.equal(masked != 0, mask & (whole != 0))
    assert nn.score(model, ids[:, :1]).shape == (2, 0)


def test_head_edit_is_the_identity_until_enabled():
    edit = nn.HeadEdit(3, 4)
    z = torch.randn(2, 5, 3, 4)
    assert edit(z) is z
    assert not edit.state_dict()
    edit.enable(like=z)
    assert torch.equal(edit(z), z)
    with torch.no_grad():
        edit.scale[1] = 0.5
        edit.bias[2] = 1.0
    expected = z.clone()
    expected[:, :, 1] *= 1.5
    expected[:, :, 2] += 1.0
    assert torch.allclose(edit(z), expected)
    edit(z).sum().backward()
    assert torch.allclose(edit.scale.grad, z.sum((0, 1)), atol=1e-5)
    assert torch.allclose(edit.bias.grad, torch.full((3, 4), 10.0))


def test_layers_match_torch():
    x = torch.randn(3, 8)
    norm = nn.LayerNorm(8)
    assert torch.allclose(norm(x), torch.nn.functional.layer_norm(x, (8,)), atol=1e-5)
    linear = nn.Linear(8, 5)
    assert torch.allclose(linear(x), torch.nn.functional.linear(x, linear.weight, linear.bias), atol=1e-5)
    for activation in ("silu", "gelu"):
        mlp = nn.GatedMLP(8, 16, activation, linear_cls=torch.nn.Linear)
        act = getattr(torch.nn.functional, activation)
        assert torch.allclose(mlp(x), mlp.l3(act(mlp.l1(x)) * mlp.l2(x)))
    with pytest.raises(ValueError, match="silu"):
        nn.GatedMLP(8, 16, "relu")


# ---------------------------------------------------------------------------------------------------------- checkpoints
def weights():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}.weight": torch.randn(4, 4, generator=generator) for i in range(5)}
    tensors["tied"] = tensors["layer.0.weight"]
    tensors["strided"] = torch.arange(12.0).view(3, 4).T
    tensors["low"] = torch.ones(3, dtype=torch.bfloat16)
    return tensors


def same(a, b):
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("shard", [10**9, 100, 1])
def test_a_checkpoint_round_trips(tmp_path, shard):
    checkpoint.save(tmp_path, {"width": 4}, weights(), max_shard_bytes=shard)
    config, loaded = checkpoint.load(tmp_path)
    assert config == {"width": 4}
    assert same(loaded, weights())
    assert len(list(tmp_path.glob("*.safetensors"))) == {10**9: 1, 100: 6, 1: 7}[shard]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_checkpoints_load(tmp_path, name, wrapped):
    torch.save({"state": {"model": weights()}} if wrapped else weights(), tmp_path / name)
    assert same(checkpoint.load(tmp_path)[1], weights())
    assert same(checkpoint.load(tmp_path / name)[1], weights())


def test_sharded_bin_with_an_index_loads(tmp_path):
    tensors = list(weights().items())
    for i, part in enumerate((tensors[:3], tensors[3:])):
        torch.save(dict(part), tmp_path / f"pytorch_model-{i}.bin")
    index = {name: f"pytorch_model-{int(i >= 3)}.bin" for i, (name, _) in enumerate(tensors)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(checkpoint.load(tmp_path)[1], weights())
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-1\.bin"):
        checkpoint.load(tmp_path)


def test_a_pickle_that_holds_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"x": Evil()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="only tensors"):
        checkpoint.load(tmp_path)


def test_what_is_not_a_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="existing folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="safetensors"):
        checkpoint.load(tmp_path)


def test_assign_lists_every_misfit_and_copies():
    module = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="missing 'bias'") as caught:
        checkpoint.assign(module, {"weight": torch.zeros(2, 2), "extra": torch.zeros(1)})
    assert "unexpected 'extra'" in str(caught.value)
    assert "'weight' needs shape (2, 3), got (2, 2)" in str(caught.value)
    given = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "rotary.inv_freq": torch.ones(1)}
    checkpoint.assign(module, given, ignore=("*.inv_freq",))
    with torch.no_grad():
        module.weight.zero_()
    assert given["weight"].eq(1).all()


def test_assign_fills_a_model_on_the_meta_device():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    checkpoint.assign(module, {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "bias": torch.ones(2)})
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.requires_grad
    assert module.weight.device.type == "cpu"


def test_models_compute_only_the_last_logits_when_asked():
    torch.manual_seed(0)
    ids = torch.randint(2, 32, (2, 7))
    for model in (
        models.RWKV5(models.RWKV5Config(vocab_size=32, hidden_size=32, num_layers=1, head_size=16)),
        models.SparseTransformer(
            models.SparseTransformerConfig(
                vocab_size=32, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48
            )
        ),
        models.StripedHyena(
            models.StripedHyenaConfig(
                vocab_size=32, hidden_size=32, num_layers=2, attn_layer_idxs=(1,), num_attention_heads=2
            )
        ),
    ):
        whole, cache = model(ids)
        last, last_cache = model(ids, last_only=True)
        assert last.shape == (2, 1, 32)
        assert torch.allclose(last, whole[:, -1:], atol=1e-5)
        assert cache.length == last_cache.length == 7
