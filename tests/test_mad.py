"""bench/mad.py: the authors' instances bit for bit, and every scored target found from its input by another solver.

The golden instances were made by athms/mad-lab at 0f49a452, mad/data/instances.py as it stands there, with its default
seed 12345; `config_json` holds its keyword arguments.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench import mad

GOLDEN = Path(__file__).parent / "golden/mad"
PER_TASK = pytest.mark.parametrize("task", list(mad.TASKS))


@pytest.mark.parametrize("task", ["in-context-recall", "compression", "selective-copying"])
def test_the_authors_instances_bit_for_bit(task):
    """16 training instances, then 16 for test from the same generator, as in the authors' pipeline."""
    golden = np.load(GOLDEN / f"{task}.npz")
    config = json.loads(str(golden["config_json"]))
    seed = config.pop("seed")
    rng = np.random.default_rng(seed)
    options = {"blanks": np.random.RandomState(seed)} if task == "selective-copying" else {}
    for split in ("train", "test"):
        settings = mad.Settings(map_seed=seed, **config)
        made = [mad.TASKS[task].generate(rng, settings, training=split == "train", **options) for _ in range(16)]
        for name, part in zip(("inputs", "targets"), zip(*made, strict=True), strict=True):
            np.testing.assert_array_equal(np.stack(part), golden[f"{split}_{name}"])
            assert all(row.dtype == np.int64 for row in part)


def test_a_training_set_begins_as_the_authors():
    inputs, targets = mad.dataset("in-context-recall", 16)
    golden = np.load(GOLDEN / "in-context-recall.npz")
    np.testing.assert_array_equal(inputs.numpy(), golden["train_inputs"])
    np.testing.assert_array_equal(targets.numpy(), golden["train_targets"])


# Each solver says from one row of inputs what is scored there, as {position: target}, knowing only the task's rules.


def solve_recall(row: list[int], keys: int) -> dict[int, int]:
    found, answers = dict[int, int](), {}
    for position in range(0, len(row), 2):
        key = row[position]
        if key in found:
            answers[position] = found[key]
        if key < keys and position + 1 < len(row):
            assert found.setdefault(key, row[position + 1]) == row[position + 1]
    return answers


def solve_fuzzy(row: list[int], keys: int, pad: int, size: int) -> dict[int, int]:
    """Runs of key tokens and of value tokens alternate. The last value's first tokens stand in the inputs."""
    kinds = ["pad" if t == pad else "key" if t < keys else "value" for t in row]
    found, answers, position = dict[tuple[int, ...], list[int]](), {}, kinds.count("pad")
    assert "pad" not in kinds[position:]
    while position < len(row):
        end = position
        while end < len(row) and kinds[end] == "key":
            end += 1
        key = tuple(row[position:end])
        assert len(key) == size == len(set(key))
        stop = end
        while stop < len(row) and kinds[stop] == "value":
            stop += 1
        value = row[end:stop]
        if key in found:
            answers |= dict(enumerate(found[key], end - 1))
            assert value == found[key][: len(value)]
        else:
            found[key] = value
            assert len(value) == len(set(value))
        position = stop
    return answers


def solve_copying(row: list[int], blank: int, copy: int) -> dict[int, int]:
    at = row.index(copy)
    kept = [t for t in row[:at] if t != blank]
    assert set(row[at + 1 :]) == {blank}
    return dict(enumerate(kept, at + 1))


def answers_of(task: str, row: list[int], config: mad.Settings) -> dict[int, int]:
    if task == "fuzzy-in-context-recall":
        keys = (config.vocab_size - 1) // 2
        return solve_fuzzy(row, keys, config.vocab_size - 1, config.k_motif_size)
    if task == "selective-copying":
        return solve_copying(row, config.vocab_size - 2, config.vocab_size - 1)
    if task == "compression":
        assert [t for t, token in enumerate(row) if token == config.vocab_size - 1] == [len(row) - 1]
        return dict(enumerate(row))
    return solve_recall(row, (config.vocab_size - config.noise_vocab_size) // 2)


@pytest.mark.parametrize("task", [t for t in mad.TASKS if t != "memorization"])
@pytest.mark.parametrize("setting", ["baseline", "reduced"])
def test_every_scored_target_is_determined(task, setting):
    config = getattr(mad.TASKS[task], setting)
    settings = {name: getattr(config, name) for name in mad.TASKS[task].uses}
    inputs, targets = mad.dataset(task, 100, "test", **settings)
    assert inputs.shape == targets.shape == (100, config.seq_len - ("recall" in task))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.min() >= 0
    assert inputs.max() < config.vocab_size
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert {t: token for t, token in enumerate(target) if token != -100} == answers_of(task, row, config)


def test_one_map_is_memorised_in_training_and_test():
    seen = dict[int, int]()
    for split in ("train", "test"):
        mad._memorized.cache_clear()  # as in another process
        inputs, targets = (t.tolist() for t in mad.dataset("memorization", 256, split))
        for row, target in zip(inputs, targets, strict=True):
            assert row[1::2] == [255] * 16
            assert target[::2] == [-100] * 16
            for key, value in zip(row[::2], target[1::2], strict=True):
                assert key < 127 <= value < 255
                assert seen.setdefault(key, value) == value
    assert len(seen) == 127
    inputs, targets = mad.dataset("memorization", 256, map_seed=1)
    pairs = zip(inputs[:, ::2].flatten().tolist(), targets[:, 1::2].flatten().tolist(), strict=True)
    assert any(seen[key] != value for key, value in pairs)


@pytest.mark.parametrize("task", [t for t in mad.TASKS if "recall" in t])
def test_recall_is_trained_on_every_next_token(task):
    inputs, targets = mad.dataset(task, 50)
    padding = inputs == 15 if "fuzzy" in task else torch.zeros_like(inputs, dtype=torch.bool)
    shown = inputs[:, 1:].masked_fill(padding[:, 1:], -100)
    torch.testing.assert_close(targets[:, :-1], shown, rtol=0, atol=0)
    assert targets[:, -1].min() >= 0


def test_noise_is_as_frequent_as_asked_and_spares_a_pair():
    for share in (0.0, 0.2, 0.8):
        inputs, _ = mad.dataset("noisy-in-context-recall", 300, frac_noise=share)
        assert (inputs[:, :126:2] >= 16).double().mean().item() == pytest.approx(share * 62 / 63, abs=0.01)
    inputs, targets = mad.dataset("noisy-in-context-recall", 300, "test", frac_noise=1.0)
    assert ((inputs[:, :126] < 16).sum(1) == 2).all()
    assert ((targets != -100).sum(1) == 1).all()
    spared = (inputs[:, :126:2] < 16).int().argmax(1)
    assert spared.unique().numel() > 50  # anywhere


def test_fuzzy_motifs_have_every_size_in_training_and_the_full_key_at_test():
    def sizes(split: str, is_kind) -> set[int]:
        rows = mad.dataset("fuzzy-in-context-recall", 50, split)[0].tolist()
        text = ["".join("x" if is_kind(t) else "." for t in row) for row in rows]
        return {len(run) for line in text for run in re.findall("(?<=[.])x+(?=[.])", line)}

    assert sizes("train", lambda t: t < 7) == {1, 2, 3}
    assert sizes("test", lambda t: t < 7) == {3}
    assert sizes("train", lambda t: 7 <= t < 15) == sizes("test", lambda t: 7 <= t < 15) == {1, 2, 3}


def test_without_multi_query_only_the_last_key_is_asked():
    for task in (t for t in mad.TASKS if "recall" in t):
        every = mad.dataset(task, 50, "test")
        last = mad.dataset(task, 50, "test", multi_query=False)
        assert torch.equal(every[0], last[0])
        scored = (last[1] != -100).nonzero()[:, 1]
        assert scored.min() >= last[1].shape[1] - 3
        assert torch.equal(last[1][last[1] != -100], every[1][last[1] != -100])


@PER_TASK
def test_instances_depend_on_seed_and_split_alone(task):
    train, again = mad.dataset(task, 8), mad.dataset(task, 20)
    assert all(torch.equal(a, b[:8]) for a, b in zip(train, again, strict=True))
    assert not torch.equal(train[0], mad.dataset(task, 8, seed=1)[0])
    test = mad.dataset(task, 8, "test")
    assert torch.equal(test[0], mad.dataset(task, 9, "test")[0][:8])
    assert not torch.equal(test[0], train[0])
    assert len({tuple(row) for row in again[0].tolist()}) == 20


REFUSED = [
    ("recall", {}, "dataset: task must be one of in-context-recall, .*, got 'recall'"),
    ("compression", {"split": "valid"}, "dataset: split must be 'train' or 'test', got 'valid'"),
    ("compression", {"n": 0}, "dataset: n must be an integer of at least 1, got 0"),
    ("compression", {"seed": -1}, "dataset: seed must be an integer of at least 0, got -1"),
    ("compression", {"frac_noise": 0.1}, "compression: every setting must be one of seq_len, vocab_size, got 'frac_n"),
    ("compression", {"vocab_size": 1}, "compression: vocab_size must be an integer of at least 2, got 1"),
    ("compression", {"seq_len": 2.0}, r"compression: seq_len must be an integer of at least 2, got 2\.0"),
    ("in-context-recall", {"noise_vocab_size": 16}, "vocab_size must be an integer of at least 18, got 16"),
    ("in-context-recall", {"noise_vocab_size": -1}, "noise_vocab_size must be an integer of at least 0, got -1"),
    ("in-context-recall", {"seq_len": 127}, "seq_len must be an even integer of at least 4, got 127"),
    ("in-context-recall", {"frac_noise": 0.5}, r"noise_vocab_size \(with frac_noise\) must be .* at least 1, got 0"),
    ("noisy-in-context-recall", {"frac_noise": float("nan")}, "frac_noise must be a number from 0 to 1, got nan"),
    ("noisy-in-context-recall", {"frac_noise": "all"}, "frac_noise must be a number from 0 to 1, got 'all'"),
    ("noisy-in-context-recall", {"frac_noise": 1.5}, r"frac_noise must be a number from 0 to 1, got 1\.5"),
    ("fuzzy-in-context-recall", {"k_motif_size": 0}, "k_motif_size must be an integer of at least 1, got 0"),
    ("fuzzy-in-context-recall", {"k_motif_size": 8}, "vocab_size must be an integer of at least 17, got 16"),
    ("fuzzy-in-context-recall", {"v_motif_size": 9}, "vocab_size must be an integer of at least 18, got 16"),
    ("fuzzy-in-context-recall", {"seq_len": 11}, "seq_len must be an integer of at least 12, got 11"),
    ("memorization", {"vocab_size": True}, "vocab_size must be an integer of at least 3, got True"),
    ("memorization", {"seq_len": 31}, "seq_len must be an even integer of at least 2, got 31"),
    ("memorization", {"map_seed": -1}, "map_seed must be an integer of at least 0, got -1"),
    ("selective-copying", {"num_tokens_to_copy": 0}, "num_tokens_to_copy must be an integer of at least 1, got 0"),
    ("selective-copying", {"vocab_size": 2}, "vocab_size must be an integer of at least 3, got 2"),
    ("selective-copying", {"seq_len": 32}, "seq_len must be an integer of at least 33, got 32"),
]


@pytest.mark.parametrize("task, options, message", REFUSED)
def test_malformed_settings_say_what_is_needed(task, options, message):
    with pytest.raises(ValueError, match=message):
        mad.dataset(task, **{"n": 1, **options})


@pytest.mark.parametrize(
    "task, settings",
    [
        ("in-context-recall", {"vocab_size": 2, "seq_len": 4}),
        ("noisy-in-context-recall", {"vocab_size": 3, "noise_vocab_size": 1, "seq_len": 4, "frac_noise": 1.0}),
        ("fuzzy-in-context-recall", {"seq_len": 12}),
        ("fuzzy-in-context-recall", {"vocab_size": 7}),
        ("fuzzy-in-context-recall", {"vocab_size": 6, "k_motif_size": 2}),
        ("fuzzy-in-context-recall", {"vocab_size": 3, "k_motif_size": 1, "v_motif_size": 1}),
        ("memorization", {"vocab_size": 3, "seq_len": 2}),
        ("compression", {"vocab_size": 2, "seq_len": 2}),
        ("selective-copying", {"vocab_size": 3, "num_tokens_to_copy": 1, "seq_len": 3}),
    ],
)
def test_the_least_settings_that_are_allowed_work(task, settings):
    for split in ("train", "test"):
        inputs, targets = mad.dataset(task, 20, split, **settings)
        assert inputs.max() < settings.get("vocab_size", 16)
        assert (targets != -100).any(1).all()


def test_token_accuracy_counts_tokens():
    targets = torch.tensor([[0, 0, 0, -100], [1, -100, -100, -100]])
    logits = torch.zeros(2, 4, 3)
    logits[..., 0] = 1
    assert mad.token_accuracy(logits, targets) == 0.75  # not the mean over classes, 0.5
    logits[0, 0, 2] = torch.nan
    logits[0, 1] = torch.nan  # the largest of these is "token 0"
    assert mad.token_accuracy(logits, targets) == 0.25
    logits[0, 2] = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert mad.token_accuracy(logits, targets) == 0.25
    with pytest.raises(ValueError, match=r"logits must have shape \(2, 4, vocabulary\), got \(2, 3, 3\)"):
        mad.token_accuracy(logits[:, 1:], targets)
    with pytest.raises(ValueError, match="must hold one that is scored, got 8 ignored"):
        mad.token_accuracy(logits, torch.full_like(targets, -100))


def test_the_runner_trains_every_layer_and_prints_the_accuracy():
    command = ["--task", "compression", "--layers", *mad.LAYERS, "--steps", "3", "--instances", "64", "--width", "32"]
    done = CliRunner().invoke(mad.main, command)
    assert done.exit_code == 0, done.output
    assert re.search(r"compression: attention hyena .*: test accuracy \d+\.\d%", done.output), done.output
    refused = CliRunner().invoke(mad.main, ["--layers", "mamba"])
    assert refused.exit_code == 1
    assert "every layer must be one of attention, hyena" in refused.output


def test_the_decoder_sees_nothing_but_the_last_output():
    model = mad.AutoEncoder(16, 32, ["swiglu"])  # a layer that mixes no positions
    first, second = (mad.dataset("compression", 4, seed=seed)[0] for seed in (1, 2))
    torch.testing.assert_close(model(first), model(second), rtol=0, atol=0)
    assert not torch.equal(model(first)[:, 0], model(first)[:, 1])
