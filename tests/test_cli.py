"""The `tkpy` command as a user calls it."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from tkpy import registry
from tkpy.cli import main
from tkpy.demo import genome, markov_bits, reverse_complement


def run(*args):
    return CliRunner().invoke(main, list(args), catch_exceptions=False)


@pytest.mark.fast
def test_doctor_lists_every_op_and_reason(monkeypatch):
    monkeypatch.setattr(registry.get("merge_state"), "available", ("triton", "eager", "reference"))
    result = run("doctor")
    assert result.exit_code == 0
    for op in registry.ops():
        assert op in result.output
    assert "not_built" in result.output
    if not torch.cuda.is_available() and not registry.triton_interpreted():
        assert "needs_gpu" in result.output


@pytest.mark.fast
def test_check_passes_on_one_op_and_all_cases():
    result = run("check", "--op", "rms_norm", "--all-cases", "--dtype", "bfloat16", "--backend", "eager")
    assert result.exit_code == 0, result.output
    cases = sum(not case.bench for case in registry.get("rms_norm").cases)
    assert f"{cases} passed, 0 failed" in result.output


@pytest.mark.fast
def test_check_turns_red(monkeypatch):
    eager = registry.get("rms_norm").module("eager")
    monkeypatch.setattr(eager, "forward", lambda x, *rest: (torch.zeros_like(x), x.new_empty(0)))
    result = run("check", "--op", "rms_norm", "--device", "cpu")
    assert result.exit_code == 1
    assert "FAIL" in result.output


@pytest.mark.fast
def test_an_error_costs_check_one_row(monkeypatch):
    """As a kernel that faults would, on a GPU: the table stands, and names the first case that raised."""
    eager = registry.get("rms_norm").module("eager")
    forward, calls = eager.forward, []

    def faulty(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        return forward(*args)

    monkeypatch.setattr(eager, "forward", faulty)
    result = run("check", "--op", "rms_norm", "--device", "cpu", "--backend", "eager", "--all-cases")
    assert result.exit_code == 1
    cases = sum(not case.bench for case in registry.get("rms_norm").cases)
    assert f"{cases - 1} passed, 1 failed" in result.output
    assert "FAIL RuntimeError: CUDA error: an illegal" in " ".join(result.output.split())


@pytest.mark.fast
def test_bad_input_gets_one_sentence(monkeypatch):
    result = run("check", "--op", "nonsense")
    assert result.exit_code == 2
    assert "no op nonsense; the ops are" in result.output
    monkeypatch.setattr(registry.get("rms_norm"), "available", ("eager", "reference"))
    result = run("check", "--backend", "emulator", "--op", "rms_norm")
    assert result.exit_code == 1
    assert "tkpy doctor" in result.output


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("check", "--device", "nonsense"), "no device 'nonsense' here; there are"),
        (("check", "--device", "cuda:99"), "no device 'cuda:99' here; there are"),
        (("demo", "--device", "meta"), "no device 'meta' here; there are"),
        (("demo", "--out", "/proc/nonsense"), "no folder /proc/nonsense can be made"),
    ],
)
def test_a_bad_option_is_named_before_anything_runs(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"'{arguments[1]}': {sentence}" in result.output


@pytest.mark.fast
def test_the_genome_is_phage_lambda():
    sequence = genome()
    assert len(sequence) == 48_502
    assert sequence.startswith("GGGCGGCGACCTCGCGGGTTTTCGCTATTTATGAAAATTTTCCGG")  # the left cohesive end
    assert set(sequence) == set("ACGT")
    assert reverse_complement("AACG") == "CGTT"


@pytest.mark.fast
def test_the_markov_baseline_is_a_real_one():
    periodic = "ACGT" * 500
    assert markov_bits([periodic], periodic, 1) < 0.05
    assert markov_bits([periodic], periodic, 0) == pytest.approx(2.0, abs=1e-3)
    sequence = genome()
    bits = [markov_bits([sequence[:40000]], sequence[40000:], k) for k in (0, 3, 8)]
    assert bits[1] < bits[0] < 2.0
    assert bits[1] < bits[2]  # order 8 has seen too little of its 65,536 contexts


def test_the_demo_runs_end_to_end(tmp_path):
    result = run("demo", "--steps", "3", "--out", str(tmp_path), "--device", "cpu")
    assert result.exit_code == 0, result.output
    for text in ("bits per base on the held-out stretch", "StripedHyena", "Markov order", "uniform", "mutation"):
        assert text in result.output
    for picture in ("loss_curve.png", "mutation_effects.png"):
        content = (tmp_path / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
        assert str(tmp_path / picture) in result.output
