"""In-silico mutagenesis: what every single-base change does to the likelihood of a sequence."""

from __future__ import annotations

import torch

from tkpy.models.striped_hyena import StripedHyena

BASES = "ACGT"


@torch.no_grad()
def mutation_effects(
    model: StripedHyena,
    sequence: str,
    start: int = 0,
    stop: int | None = None,
    *,
    alphabet: str = BASES,
    batch_size: int = 48,
    chunk: int = 4096,
) -> torch.Tensor:
    """The change of the log-likelihood (nats) of the whole `sequence` by each substitution at start..stop-1.

    What comes before a mutation is computed once and its state is shared: only the rest of the sequence is run for
    each mutant, `batch_size` of them at a time.

    Args:
        model: in eval mode.
        sequence: characters; BOS is put in front, as in `StripedHyena.score`.
        start, stop: the window, 0 <= start <= stop <= len(sequence); None is the end.
        alphabet: the characters to put in.
        chunk: tokens run at once along the sequence.

    Returns:
        (stop - start, len(alphabet)) float32: log-likelihood of the mutant minus that of the sequence. Exactly 0 where
        the character stands there already.
    """
    stop = len(sequence) if stop is None else stop
    if not 0 <= start <= stop <= len(sequence):
        raise ValueError(f"mutation_effects: needs 0 <= start <= stop <= {len(sequence)}, got {start}, {stop}")
    if batch_size < 1 or not alphabet:
        raise ValueError(f"mutation_effects: needs batch_size >= 1 and an alphabet, got {batch_size}, {alphabet!r}")
    ids = model.encode(sequence)
    letters = model.encode(alphabet, bos=False)
    effects = torch.zeros(stop - start, len(alphabet), device=ids.device)
    window = max(1, batch_size // len(alphabet))
    # The cache holds BOS and all bases before `first`, except the last of them: that one predicts base `first`.
    _, _, cache = model.logprobs(ids[None, : start + 1], chunk=chunk)
    for first in range(start, stop, window):
        count = min(window, stop - first)
        tail = ids[first:]  # the last base before `first` (BOS for the first one), then the rest
        mutants = tail.repeat(1 + count * len(alphabet), 1)  # row 0: the sequence itself
        for i in range(count):
            rows = slice(1 + i * len(alphabet), 1 + (i + 1) * len(alphabet))
            mutants[rows, 1 + i] = letters
        scores, _, _ = model.logprobs(mutants, None if cache is None else cache.fork(len(mutants)), chunk=chunk)
        totals = scores.double().sum(1)
        effects[first - start : first - start + count] = (totals[1:] - totals[0]).view(count, -1).float()
        if first + count < stop:
            _, _, cache = model.logprobs(ids[None, first : first + count + 1], cache, chunk=chunk)
    unchanged = ids[1 + start : 1 + stop, None] == letters
    return effects.masked_fill(unchanged, 0.0)
