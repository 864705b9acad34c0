"""`tkpy.explain_model` and `tkpy explain-model`: every op call of a model, where it came from, and who serves it."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import tkpy
from tkpy.cli import main
from tkpy.nn import Linear


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Linear(8, 16), Linear(16, 8)
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(tkpy.rms_norm(x, self.weight)))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(Layer(), Layer())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.rms_norm(self.layers(x), torch.ones(8, device=x.device))


def run(*args: str):
    return CliRunner().invoke(main, ["explain-model", *args], catch_exceptions=False)


@pytest.mark.fast
def test_every_call_is_there_with_its_module(capsys):
    explained = tkpy.explain_model(Model(), torch.ones(3, 8))
    found = [(call.module, call.explanation.op, call.backend) for call in explained.calls]
    per_layer = [("", "rms_norm"), (".up", "linear"), (".down", "linear")]
    assert found == [
        *((f"layers.{i}{part}", op, "eager") for i in (0, 1) for part, op in per_layer),
        ("", "rms_norm", "eager"),
    ]
    text = capsys.readouterr().out
    assert str(explained) in text
    row = next(line for line in text.splitlines() if line.startswith("rms_norm"))
    assert row.split()[1:3] == ["eager", "3"]
    assert "(3, 8) float32" in row
    assert "layers.*, the model itself" in row
    assert "triton  needs_gpu" in text


@pytest.mark.fast
def test_it_answers_for_a_device_that_is_not_there():
    model = Model().to("meta", torch.bfloat16)
    explained = tkpy.explain_model(model, torch.ones(3, 8, device="meta", dtype=torch.bfloat16), device="cuda")
    pytest.importorskip("triton")
    assert {call.backend for call in explained.calls if call.explanation.op == "rms_norm"} <= {"cuda", "triton"}
    here = tkpy.explain(tkpy.rms_norm, torch.ones(3, 8), torch.ones(8))
    assert here.chosen == "eager"  # and it is over afterwards


@pytest.mark.fast
def test_a_model_that_fails_leaves_no_hooks_behind():
    class Broken(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layers(x)
            raise RuntimeError("here")

    model = Broken()
    with pytest.raises(RuntimeError, match="here"):
        tkpy.explain_model(model, torch.ones(3, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="weight"):
        tkpy.explain_model(model, torch.ones(3, 9))  # raised inside a layer: its name must leave the stack


@pytest.mark.fast
@pytest.mark.parametrize(
    "name, ops",
    [
        ("rwkv-5", {"layer_norm": 50, "wkv5": 24}),
        ("evo-1-8k", {"hyena_mixer": 29, "attention": 3, "rms_norm": 65}),
        ("llama-2", {"attention": 32, "rotary": 64}),
        ("m2-bert", {"fft_conv": 24, "short_conv": 12}),
    ],
)
def test_the_command_knows_the_models(name, ops):
    result = run(name, "--tokens", "64", "--train")
    assert result.exit_code == 0, result.output
    assert "64 tokens, bfloat16, training, on cuda" in result.output
    for op, calls in ops.items():
        assert calls == sum(int(row.split()[2]) for row in result.output.splitlines() if row.startswith(f"{op} "))


@pytest.mark.fast
def test_memory_is_that_of_the_fullest_moment(capsys):
    """Two blocks of (3, 8) -> 16 -> 8 on top of each other: the second is as full as the first, not the sum."""
    x = torch.ones(3, 8)
    with torch.no_grad():
        explained = tkpy.explain_model(Model(), x)
    weights = 4 * (2 * (8 * 16 + 16 + 16 * 8 + 8 + 8))
    assert explained.weight_bytes == weights
    held = weights + 2 * x.nbytes  # the input, and the first layer's result
    assert held + 48 * 4 <= explained.peak_bytes <= held + 48 * 4 + 2 * x.nbytes + 12
    assert "memory: 0.00 GiB at the fullest moment, 0.00 GiB of it weights" in capsys.readouterr().out
    trained = tkpy.explain_model(Model(), x)
    assert trained.peak_bytes > explained.peak_bytes


@pytest.mark.fast
def test_evo_1_reads_131072_tokens_within_80_gb():
    """Where the original, whose filters have a value for every lag, runs out of memory."""
    from tkpy.models import StripedHyena, StripedHyenaConfig

    with torch.device("meta"), torch.no_grad():
        model = StripedHyena(StripedHyenaConfig.evo_1_131k()).to(torch.bfloat16)
        explained = tkpy.explain_model(model, torch.zeros(1, 131072, dtype=torch.int64), device="cuda")
    assert 12e9 < explained.weight_bytes < 14e9
    assert explained.peak_bytes < 0.6 * 80e9


@pytest.mark.fast
def test_watching_changes_nothing():
    """Layers that fuse where nobody hooks into them are fused here too; modules unknown to the model have its name."""
    assert "gated_mlp " in run("evo-1-8k", "--tokens", "64").output
    assert "blockdiag_mlp " in run("m2-bert", "--tokens", "64").output
    outside = Layer()

    class Apart(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return outside(x)

    explained = tkpy.explain_model(Apart(), torch.ones(3, 8))
    assert {call.module for call in explained.calls} == {""}


@pytest.mark.fast
def test_decoding_and_a_forced_backend():
    result = run("rwkv-5", "--decode", "--batch", "2", "--device", "cpu", "--backend", "reference")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("time_mix_step"))
    assert row.split()[:5] == ["time_mix_step", "reference", "24", "(2,", "2048)"]


@pytest.mark.fast
def test_bad_input_gets_one_sentence():
    assert "evo-1-131k" in run().output
    result = run("gpt-7")
    assert result.exit_code == 2
    assert "no model 'gpt-7'; the models are rwkv-5" in result.output
    result = run("m2-bert", "--decode")
    assert result.exit_code == 2
    assert "reads texts whole" in result.output
    result = run("m2-bert", "--backend", "cuda", "--tokens", "64", "--dtype", "float32")
    assert result.exit_code == 1
    assert "no backend can serve this call" in result.output
