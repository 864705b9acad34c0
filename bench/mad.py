"""The six MAD synthetic tasks, and a small model trained on one of them.

    python -m bench.mad --task in-context-recall --layers hyena swiglu attention swiglu

MAD ("Mechanistic Architecture Design and Scaling of Hybrid Models", Poli et al. 2024, arXiv:2403.17844) asks which
architectures can recall, memorise, compress and copy, with tasks small enough to be learnt in minutes.

A generator makes one instance, (inputs, targets), int64 arrays of one length; a target of -100 is not scored.

    in-context-recall        key value key value ...: the value of a key that came before in this sequence
    noisy-in-context-recall  the same, with pairs of noise tokens in between
    fuzzy-in-context-recall  the same, with keys and values of several tokens
    memorization             the value of a key, by a map that is the same for all sequences
    compression              all tokens, from what the model made of the last one
    selective-copying        the tokens that stood among blanks, in order

In-context recall, compression and selective copying reproduce the authors' instances bit for bit (tests/golden/mad).
The others follow the published facts; each docstring says what is ours. Two things are mended: selective copying draws
its blanks from the generator it is given, not from NumPy's global one (which can be given as `blanks`), and `dataset`
draws the test set from a stream of its own, so that it does not depend on how many training instances there are.
The scores here are not the published ones: those come from fixed data and from sweeps over learning rates.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from tkpy import nn

IGNORED = -100  # cross_entropy's default `ignore_index`

Instance = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Of all tasks, by the authors' names; each task's own defaults are in `TASKS`.

    Args:
        vocab_size: tokens in all, including those for noise, padding, blanks and commands.
        seq_len: tokens of an instance; the recall tasks give one fewer, since inputs and targets are shifted.
        frac_noise: share of the pairs that are noise, 0 to 1; `noise_vocab_size` tokens are kept for noise.
        k_motif_size, v_motif_size: most tokens of a key and of a value (fuzzy recall).
        num_tokens_to_copy: of selective copying.
        multi_query: whether at test every repeated key is scored, or only the last one.
        map_seed: of the map that is memorised (the authors' `seed`).
    """

    vocab_size: int
    seq_len: int
    frac_noise: float = 0.0
    noise_vocab_size: int = 0
    k_motif_size: int = 1
    v_motif_size: int = 1
    num_tokens_to_copy: int = 0
    multi_query: bool = True
    map_seed: int = 12345


def _need(task: str, setting: str, need: str, got: object, met: bool) -> None:
    if not met:
        raise ValueError(f"{task}: {setting} must be {need}, got {got!r}")


def _whole(task: str, setting: str, got: object, least: int, *, even: bool = False) -> None:
    """An integer of at least `least`."""
    whole = isinstance(got, int | np.integer) and not isinstance(got, bool)
    need = f"an {'even ' if even else ''}integer of at least {least}"
    _need(task, setting, need, got, whole and got >= least and not (even and got % 2))  # type: ignore[operator]


def _shifted(sequence: list[int], answers: list[int], training: bool) -> Instance:
    """Next-token targets: every token when training, else the answers, which stand where their tokens stand."""
    return np.array(sequence[:-1]), np.array((sequence if training else answers)[1:])


def in_context_recall(rng: np.random.Generator, config: Settings, *, training: bool = True) -> Instance:
    """Pairs of a key (first half of the vocabulary) and its value (second half), drawn at the key's first use.

    The last pair's key is one that came before. With `frac_noise`, other pairs become two noise tokens, from the top of
    the vocabulary, except for one pair that is chosen first. No golden batch has noise: the order in which a noisy
    pair's numbers are drawn is ours.
    """
    task = "in-context-recall"
    _whole(task, "noise_vocab_size", config.noise_vocab_size, 0)
    _whole(task, "vocab_size", config.vocab_size, config.noise_vocab_size + 2)
    _whole(task, "seq_len", config.seq_len, 4, even=True)
    number = isinstance(config.frac_noise, int | float)
    _need(task, "frac_noise", "a number from 0 to 1", config.frac_noise, number and 0 <= config.frac_noise <= 1)
    if config.frac_noise > 0:
        _whole(task, "noise_vocab_size (with frac_noise)", config.noise_vocab_size, 1)
    noise = config.vocab_size - config.noise_vocab_size  # the first token of noise
    presented = config.seq_len // 2 - 1
    kept = rng.integers(presented)  # drawn without noise too
    value_of: dict[int, int] = {}
    sequence: list[int] = []
    answers: list[int] = []
    for pair in range(presented):
        if config.frac_noise > 0 and pair != kept and rng.random() < config.frac_noise:
            sequence += rng.integers(noise, config.vocab_size, size=2).tolist()
            answers += [IGNORED, IGNORED]
            continue
        key = int(rng.integers(noise // 2))
        scored = key in value_of and config.multi_query
        if key not in value_of:
            value_of[key] = int(rng.integers(noise // 2, noise))
        sequence += [key, value_of[key]]
        answers += [IGNORED, value_of[key] if scored else IGNORED]
    probe = list(value_of)[rng.integers(len(value_of))]
    return _shifted([*sequence, probe, value_of[probe]], [*answers, IGNORED, value_of[probe]], training)


def fuzzy_in_context_recall(rng: np.random.Generator, config: Settings, *, training: bool = True) -> Instance:
    """Recall with keys and values of 1 to `*_motif_size` distinct tokens in any order, padded on the left.

    The last token of the vocabulary pads; keys use the first half of the others, values the second. At test every key
    has the full size, so that each token of a repeated key's value is determined. No golden batch exists. Ours are: the
    order of drawing; motifs sampled when needed instead of listed in full; a last pair whose key is one that came
    before; the whole sequence padded to seq_len before the shift; padding that is never a target.
    """
    task = "fuzzy-in-context-recall"
    pad = config.vocab_size - 1
    motifs = (config.k_motif_size, config.v_motif_size)
    for name, size in zip(("k_motif_size", "v_motif_size"), motifs, strict=True):
        _whole(task, name, size, 1)
    _whole(task, "vocab_size", config.vocab_size, 1 + max(2 * motifs[0], 2 * motifs[1] - 1, sum(motifs)))
    _whole(task, "seq_len", config.seq_len, 2 * sum(motifs))
    value_of: dict[tuple[int, ...], list[int]] = {}
    sequence: list[int] = []
    answers: list[int] = []

    def motif(low: int, high: int, most: int, size: int | None = None) -> list[int]:
        return (low + rng.permutation(high - low)[: size or rng.integers(1, most + 1)]).tolist()

    while True:
        key = motif(0, pad // 2, motifs[0], None if training else motifs[0])
        value = value_of.get(tuple(key))
        scored = value is not None and config.multi_query
        if value is None:
            value = motif(pad // 2, pad, motifs[1])
        if len(sequence) + len(key) + len(value) > config.seq_len - sum(motifs):
            break
        value_of[tuple(key)] = value
        sequence += key + value
        answers += [IGNORED] * len(key) + (value if scored else [IGNORED] * len(value))
    probe = list(value_of)[rng.integers(len(value_of))]
    sequence += [*probe, *value_of[probe]]
    answers += [IGNORED] * len(probe) + value_of[probe]
    padding = config.seq_len - len(sequence)
    inputs, targets = _shifted([pad] * padding + sequence, [IGNORED] * padding + answers, training)
    return inputs, np.where(targets == pad, IGNORED, targets)


@functools.lru_cache(maxsize=8)
def _memorized(vocab_size: int, seed: int) -> np.ndarray:
    keys = (vocab_size - 1) // 2
    return np.random.default_rng(seed).integers(keys, vocab_size - 1, size=keys)


def memorization(rng: np.random.Generator, config: Settings, *, training: bool = True) -> Instance:
    """Pairs of a key and the token "insert" (the last one), at which the key's value is the target.

    Keys are the first half of the other tokens, values the second; the map from one to the other depends on `map_seed`
    alone. Training and test are alike. No golden batch exists: how the map and the keys are drawn is ours (values
    independently of each other, so two keys may share one).
    """
    task = "memorization"
    _whole(task, "vocab_size", config.vocab_size, 3)
    _whole(task, "seq_len", config.seq_len, 2, even=True)
    _whole(task, "map_seed", config.map_seed, 0)
    value_of = _memorized(config.vocab_size, config.map_seed)
    keys = rng.integers(len(value_of), size=config.seq_len // 2)
    inputs = np.stack([keys, np.full_like(keys, config.vocab_size - 1)], -1)
    targets = np.stack([np.full_like(keys, IGNORED), value_of[keys]], -1)
    return inputs.reshape(-1), targets.reshape(-1)


def compression(rng: np.random.Generator, config: Settings, *, training: bool = True) -> Instance:
    """Random tokens and the token "compress" (the last one); the targets are the inputs, training and test alike.

    A task only for a model that decodes every position from the last one's output, as `AutoEncoder` does.
    """
    _whole("compression", "vocab_size", config.vocab_size, 2)
    _whole("compression", "seq_len", config.seq_len, 2)
    inputs = np.append(rng.integers(config.vocab_size - 1, size=config.seq_len - 1), config.vocab_size - 1)
    return inputs, inputs.copy()


def selective_copying(
    rng: np.random.Generator,
    config: Settings,
    *,
    training: bool = True,
    blanks: np.random.Generator | np.random.RandomState | None = None,
) -> Instance:
    """n tokens among blanks, the token "copy", n blanks; at these the n tokens are the targets, in order.

    Blank is the last token of the vocabulary but one, "copy" the last. Every blank before "copy" is put before a random
    one of the n tokens, so the last of these is followed by "copy" at once. Training and test are alike.

    Args:
        blanks: draws the blanks' places; None is `rng`. The authors drew them from NumPy's global generator: a
            `np.random.RandomState` of the same seed reproduces their instances.
    """
    task, n = "selective-copying", config.num_tokens_to_copy
    _whole(task, "num_tokens_to_copy", n, 1)
    _whole(task, "vocab_size", config.vocab_size, 3)
    _whole(task, "seq_len", config.seq_len, 2 * n + 1)
    blank, copy = config.vocab_size - 2, config.vocab_size - 1
    tokens = rng.integers(blank, size=n)
    blanks = rng if blanks is None else blanks
    draw = blanks.randint if isinstance(blanks, np.random.RandomState) else blanks.integers
    places = draw(0, n, size=config.seq_len - 2 * n - 1)
    inputs = np.concatenate([np.insert(tokens, places, blank), [copy], np.full(n, blank)])
    return inputs, np.concatenate([np.full(config.seq_len - n, IGNORED), tokens])


@dataclass(frozen=True)
class Task:
    """A generator, the baseline of MAD's grid (`train` instances), what else may be set, and a setting for minutes."""

    generate: Callable[..., Instance]
    baseline: Settings
    uses: frozenset[str]
    reduced: Settings
    train: int = 12800
    reduced_train: int = 6400


def _task(generate: Callable[..., Instance], uses: str, baseline: Settings, reduced: dict[str, int], **train) -> Task:
    names = frozenset(("vocab_size", "seq_len", *uses.split()))
    return Task(generate, baseline, names, replace(baseline, **reduced), **train)  # type: ignore[arg-type]


_RECALL = "frac_noise noise_vocab_size multi_query"
TASKS = {
    "in-context-recall": _task(in_context_recall, _RECALL, Settings(16, 128), {"seq_len": 32}),
    "noisy-in-context-recall": _task(
        in_context_recall, _RECALL, Settings(32, 128, frac_noise=0.2, noise_vocab_size=16), {"seq_len": 32}
    ),
    "fuzzy-in-context-recall": _task(
        fuzzy_in_context_recall,
        "k_motif_size v_motif_size multi_query",
        Settings(16, 128, k_motif_size=3, v_motif_size=3),
        {"seq_len": 64},
    ),
    "memorization": _task(memorization, "map_seed", Settings(256, 32), {}, train=256, reduced_train=256),
    "compression": _task(compression, "", Settings(16, 32), {"seq_len": 16}),
    "selective-copying": _task(
        selective_copying,
        "num_tokens_to_copy",
        Settings(16, 256, num_tokens_to_copy=16),
        {"seq_len": 64, "num_tokens_to_copy": 8},
    ),
}


def dataset(
    task: str, n: int, split: str = "train", seed: int = 12345, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """n instances of a task: inputs and targets, int64 (n, length).

    Args:
        task: a name in `TASKS`.
        split: "train" draws from the stream of `seed`, "test" from another that depends on `seed` alone.
        settings: what differs from the task's baseline, by the names of `Settings`.

    Raises:
        ValueError: an unknown task, split or setting; a setting the task has no use for; one that is out of range.
    """
    _need("dataset", "task", f"one of {', '.join(TASKS)}", task, task in TASKS)
    _need("dataset", "split", "'train' or 'test'", split, split in ("train", "test"))
    _whole("dataset", "n", n, 1)
    _whole("dataset", "seed", seed, 0)
    chosen = TASKS[task]
    for name in settings:
        _need(task, "every setting", f"one of {', '.join(sorted(chosen.uses))}", name, name in chosen.uses)
    config = replace(chosen.baseline, **settings)
    rng = np.random.default_rng(seed if split == "train" else [seed, 1])
    instances = [chosen.generate(rng, config, training=split == "train") for _ in range(n)]
    inputs, targets = (torch.from_numpy(np.stack(part)).long() for part in zip(*instances, strict=True))
    return inputs, targets


def token_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of the scored targets (..., not -100) at which logits (..., vocabulary) are largest; NaN is never right."""
    if logits.shape[:-1] != targets.shape:
        need = f"({', '.join(map(str, targets.shape))}, vocabulary)"
        raise ValueError(f"token_accuracy: logits must have shape {need}, got {tuple(logits.shape)}")
    scored = targets != IGNORED
    if not scored.any():
        raise ValueError(f"token_accuracy: targets must hold one that is scored, got {targets.numel()} ignored")
    right = (logits.argmax(-1) == targets) & ~logits.isnan().any(-1)
    return right[scored].double().mean().item()


LAYERS: dict[str, Callable[[int, int, int], torch.nn.Module]] = {  # (width, index, depth) -> layer
    "attention": lambda width, index, depth: nn.Attention(width, heads=4),
    "hyena": lambda width, index, depth: nn.HyenaMixer(width, state_size=8),
    "rwkv5": lambda width, index, depth: nn.TimeMix(width, width // 4, index, depth),
    "rwkv5-channel": lambda width, index, depth: nn.ChannelMix(width, 4 * width, index, depth),
    "swiglu": lambda width, index, depth: nn.GatedMLP(width, 8 * math.ceil(width / 3)),
}


class LanguageModel(torch.nn.Module):
    """Pre-norm residual layers without position embeddings: ids (B, T) -> logits (B, T, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, layers: Sequence[str]):
        super().__init__()
        for name in layers:
            _need("model", "every layer", f"one of {', '.join(LAYERS)}", name, name in LAYERS)
        _need("model", "layers", "at least one name", tuple(layers), bool(layers))
        self.embed = torch.nn.Embedding(vocabulary, width)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = torch.nn.ModuleList([LAYERS[name](width, i, len(layers)) for i, name in enumerate(layers)])
        self.norms = torch.nn.ModuleList([nn.RMSNorm(width) for _ in layers])
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = layer(norm(x))
            x = x + (y[0] if isinstance(y, tuple) else y)
        return self.norm(x)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encode(ids))


class AutoEncoder(LanguageModel):
    """Decodes each position from the last token's output, a sinusoid of the position, and an MLP."""

    def __init__(self, vocabulary: int, width: int, layers: Sequence[str]):
        super().__init__(vocabulary, width, layers)
        self.decoder = torch.nn.Sequential(nn.Linear(width, 2 * width), torch.nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        code = self.encode(ids)[:, -1:]
        rates = torch.exp(torch.arange(0, code.shape[-1], 2, device=ids.device) * (-math.log(1e4) / code.shape[-1]))
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * rates
        return self.head(self.decoder(code + torch.cat([angles.sin(), angles.cos()], -1)))


def train(
    task: str,
    layers: Sequence[str],
    *,
    steps: int = 1000,
    width: int = 64,
    batch: int = 32,
    learning_rate: float = 2e-3,
    instances: int | None = None,
    seed: int = 12345,
    device: str = "cpu",
) -> tuple[torch.nn.Module, float]:
    """A model trained on the task's reduced setting (float32, AdamW, constant rate), and its test accuracy.

    The test set is looked at once, at the end: nothing is selected by it.
    """
    _need("train", "task", f"one of {', '.join(TASKS)}", task, task in TASKS)
    _whole("train", "steps", steps, 1)
    settings = {name: getattr(TASKS[task].reduced, name) for name in TASKS[task].uses}
    inputs, targets = dataset(task, instances or TASKS[task].reduced_train, "train", seed, **settings)
    torch.manual_seed(seed)
    build = AutoEncoder if task == "compression" else LanguageModel
    model = build(TASKS[task].reduced.vocab_size, width, layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    epochs = (torch.randperm(len(inputs)).split(batch) for _ in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
    progress = tqdm(batches, task, total=steps, unit="step", mininterval=0.5)
    for rows in progress:
        logits = model(inputs[rows].to(device))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten().to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    inputs, targets = dataset(task, 640, "test", seed, **settings)
    with torch.no_grad():
        logits = torch.cat([model(rows.to(device)).cpu() for rows in inputs.split(128)])
    return model, token_accuracy(logits, targets)


@click.command()
@click.option("--task", type=click.Choice(list(TASKS)), default="in-context-recall", show_default=True)
@click.option("--layers", multiple=True, metavar="NAME [NAME]...", help=f"In order: {', '.join(LAYERS)}.")
@click.argument("more", nargs=-1, metavar="")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--width", type=click.IntRange(4), default=64, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0), default=2e-3, show_default=True)
@click.option("--instances", type=click.IntRange(1), help="To train on; default: the reduced setting's.")
@click.option("--seed", type=click.IntRange(0), default=12345, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(task: str, layers: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Train a small model on one MAD task at a setting that takes minutes on a CPU; print its test accuracy."""
    names = (*layers, *more) or ("hyena", "swiglu", "attention", "swiglu")
    try:
        model, accuracy = train(task, names, **options)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{task}: {' '.join(names)}, {parameters} parameters: test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
