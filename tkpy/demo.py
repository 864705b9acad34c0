"""The main job of `tkpy demo`: a small StripedHyena learns the genome of phage lambda.

The genome (NC_001416.1, 48,502 bases) is split by position: the first 80 % trains, the last 20 % is held out. Both the
model and the Markov baseline see the training part on both strands. The best Markov order is picked on the held-out
part itself, which favours the baseline; the model's checkpoint is picked on the end of the training part.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from tkpy.models import StripedHyena, StripedHyenaConfig, mutation_effects

BASES = "ACGT"
TRAIN_SHARE = 0.8
CONTEXT = 512
BATCH = 8
STEPS = {"cpu": 150, "cuda": 150}


def genome() -> str:
    """The sequence of phage lambda, upper case."""
    lines = files("tkpy").joinpath("data/lambda_phage.fa").read_text().splitlines()
    return "".join(line.strip() for line in lines if not line.startswith(">")).upper()


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction."""
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


def markov_bits(train: list[str], held_out: str, order: int, pseudo_count: float = 1.0) -> float:
    """Bits per base on `held_out` of an order-k Markov chain fitted to `train` with additive smoothing."""
    index = {base: i for i, base in enumerate(BASES)}
    counts = np.full((4**order, 4), pseudo_count)

    def contexts(sequence: str) -> tuple[np.ndarray, np.ndarray]:
        codes = np.array([index[base] for base in sequence])
        context = np.zeros(len(codes) - order, dtype=np.int64)
        for lag in range(order):
            context = context * 4 + codes[lag : len(codes) - order + lag]
        return context, codes[order:]

    for sequence in train:
        np.add.at(counts, contexts(sequence), 1)
    probabilities = counts / counts.sum(1, keepdims=True)
    return float(-np.log2(probabilities[contexts(held_out)]).mean())


def encode(sequence: str, device: torch.device) -> torch.Tensor:
    """Evo's character tokens: the bytes."""
    return torch.tensor(list(sequence.encode()), dtype=torch.int64, device=device)


def small_model(seed: int) -> StripedHyena:
    """Evo's architecture at reduced width: three Hyena layers and one of attention."""
    torch.manual_seed(seed)
    config = StripedHyenaConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=4,
        attn_layer_idxs=(2,),
        num_attention_heads=4,
        state_size=8,
        max_seqlen=None,
        max_pole_radius=0.995,  # no mode outlasts the windows of training
    )
    return StripedHyena(config)


@torch.no_grad()
def model_bits(model: StripedHyena, tokens: torch.Tensor, skip: int = 0) -> float:
    """Bits per base over `tokens` (after the first `skip`), in one pass over the whole stretch."""
    logits, _ = model(tokens[None, :-1])
    losses = torch.nn.functional.cross_entropy(logits[0].float(), tokens[1:], reduction="none")
    return losses[skip:].mean().item() / math.log(2)


@dataclass
class Curve:
    """Bits per base while training: of each batch, and now and then on the validation stretch."""

    steps: list[int]
    train: list[float]
    validation_steps: list[int]
    validation: list[float]


def train(model: StripedHyena, strands: list[torch.Tensor], validation: torch.Tensor, steps: int, seed: int) -> Curve:
    """AdamW with warm-up and cosine decay on random windows of both strands; keeps the best weights on `validation`."""
    generator = torch.Generator().manual_seed(seed)
    slow = [p for n, p in model.named_parameters() if "poles" in n or "residues" in n or p.dim() < 2]
    fast = [p for n, p in model.named_parameters() if not ("poles" in n or "residues" in n or p.dim() < 2)]
    optimizer = torch.optim.AdamW(
        [{"params": fast, "weight_decay": 0.1}, {"params": slow, "weight_decay": 0.0}], lr=2e-3, betas=(0.9, 0.95)
    )
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1, max(0, s - warm) / (steps - warm + 1)))),
    )
    curve = Curve([], [], [], [])
    best, best_weights = float("inf"), {}
    progress = tqdm(range(steps), desc="training", unit="step", mininterval=0.5)
    for step in progress:
        rows = []
        for _ in range(BATCH):
            strand = strands[int(torch.randint(len(strands), (), generator=generator))]
            start = int(torch.randint(len(strand) - CONTEXT, (), generator=generator))
            rows.append(strand[start : start + CONTEXT + 1])
        batch = torch.stack(rows)
        logits, _ = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.steps.append(step)
        curve.train.append(loss.item() / math.log(2))
        if (step + 1) % max(1, steps // 12) == 0 or step + 1 == steps:
            bits = model_bits(model.eval(), validation)
            model.train()
            curve.validation_steps.append(step)
            curve.validation.append(bits)
            progress.set_postfix(bits=f"{curve.train[-1]:.3f}", validation=f"{bits:.3f}")
            if bits < best:
                best, best_weights = bits, {n: p.detach().clone() for n, p in model.state_dict().items()}
    model.load_state_dict(best_weights)
    model.eval()
    return curve


def plot_curve(curve: Curve, bits: dict[str, float], path: Path) -> None:
    """The loss curve, with the held-out results as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.steps, curve.train, color="0.75", label="training batch")
    axes.plot(curve.validation_steps, curve.validation, "o-", label="validation")
    for style, (name, value) in zip(("-", "--", ":"), bits.items(), strict=True):
        axes.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{name}: {value:.3f} (held out)")
    axes.set(xlabel="step", ylabel="bits per base", ylim=(min(1.8, *bits.values()) - 0.02, 2.2))
    axes.set_title("StripedHyena on phage lambda")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_effects(effects: torch.Tensor, window: str, start: int, path: Path) -> None:
    """A heat map of (position, base) log-likelihood changes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, len(window) / 6), 2.6), layout="constrained")
    axes = figure.subplots()
    limit = max(effects.abs().max().item(), 1e-6)
    image = axes.imshow(effects.T.cpu().numpy(), aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_yticks(range(4), BASES)
    axes.set_xticks(range(len(window)), window, fontsize=6)
    axes.set(xlabel=f"reference base, from position {start + 1}", ylabel="mutated to")
    figure.colorbar(image, label="log-likelihood change (nats)")
    figure.savefig(path, dpi=120)


def run(*, device: torch.device, out: Path, seed: int, steps: int | None) -> dict[str, float]:
    """Train, compare with the baseline, mutate, generate, plot. Prints as it goes; returns the bits per base."""
    out.mkdir(parents=True, exist_ok=True)
    steps = steps or STEPS.get(device.type, STEPS["cpu"])
    sequence = genome()
    cut = int(len(sequence) * TRAIN_SHARE)
    learn, held_out = sequence[:cut], sequence[cut:]
    fit, check = learn[: -len(learn) // 16], learn[-len(learn) // 16 :]
    strands = [encode(s, device) for s in (fit, reverse_complement(fit))]
    model = small_model(seed).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{len(sequence):,} bases: {len(learn):,} to learn from, {len(held_out):,} held out")
    click.echo(f"StripedHyena with {parameters:,} parameters on {device}, {steps} steps of {BATCH} x {CONTEXT} bases")

    begin = time.perf_counter()
    curve = train(model.train(), strands, encode(check, device), steps, seed)
    click.echo(f"trained in {time.perf_counter() - begin:.0f} s")

    both = [learn, reverse_complement(learn)]
    orders = {k: markov_bits(both, held_out, k) for k in range(9)}
    best = min(orders, key=orders.__getitem__)
    bits = {
        "StripedHyena": model_bits(model, encode(held_out, device)),
        f"Markov order {best}": orders[best],
        "uniform": 2.0,
    }
    click.echo("\nbits per base on the held-out stretch (lower is better)")
    for name, value in bits.items():
        click.echo(f"  {name:<16} {value:.4f}")
    click.echo("  Markov by order  " + "  ".join(f"{k}: {v:.3f}" for k, v in orders.items()))

    window, left = held_out[2000:2060], 448
    around = held_out[2000 - left : 2060]
    effects = mutation_effects(model, around, left, left + len(window))
    position, base = divmod(int(effects.argmin()), 4)
    click.echo(f"\nevery single-base mutation of {len(window)} held-out bases at genome position {cut + 2001}")
    click.echo(
        f"  most disfavoured: {window[position]}{cut + 2001 + position}{BASES[base]} ({effects.min():+.2f} nats)"
    )

    generator = torch.Generator(device=device).manual_seed(seed)
    text = model.generate([held_out[:256]], n_tokens=120, temperature=0.9, top_k=4, generator=generator)[0]
    click.echo(f"\n120 bases after the first 256 held-out ones:\n  {text[:60]}\n  {text[60:]}")

    pictures = (out / "loss_curve.png", out / "mutation_effects.png")
    plot_curve(curve, bits, pictures[0])
    plot_effects(effects, window, cut + 2000, pictures[1])
    click.echo("\npictures:")
    for picture in pictures:
        click.echo(f"  {picture.resolve()}")
    return bits
