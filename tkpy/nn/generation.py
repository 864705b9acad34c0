"""Sampling and scoring for any causal model with `model(input_ids, cache, last_only=...) -> (logits, cache)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class CausalModel(Protocol):
    """(B, T) token ids and the carried cache (or None) to (B, T, V) logits and the new cache.

    With `last_only` the logits are (B, 1, V), of the last token: a long prompt's would fill the memory for nothing.
    """

    def __call__(
        self, input_ids: torch.Tensor, cache: Any = None, /, *, last_only: bool = False
    ) -> tuple[torch.Tensor, Any]: ...


def sample(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw one token per row: (B, V) logits -> (B,) int64.

    `temperature` 0 or `top_k` 1 take the arg max; `top_k` 0 keeps all; `top_p` keeps the smallest set of tokens whose
    probability reaches it (after top_k and temperature).
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"sample: needs temperature >= 0, top_k >= 0, 0 < top_p <= 1, got {temperature}, {top_k}, {top_p}"
        )
    logits = logits.float()
    if temperature == 0 or top_k == 1:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability >= top_p  # the token that reaches top_p is kept
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


@torch.no_grad()
def generate(
    model: CausalModel,
    prompts: torch.Tensor | Sequence[Sequence[int] | torch.Tensor],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: int | None = None,
    cache: Any = None,
    generator: torch.Generator | None = None,
    on_token: Callable[[torch.Tensor], None] | None = None,
) -> Any:
    """Continue each prompt by `n_tokens` tokens, one prefill and then one step per token.

    Args:
        prompts: (B, T) int64, or a list of prompts of any lengths; those of equal length run as one batch, so no
            padding ever enters a state. An empty prompt is refused.
        stop: a token after which a sequence only repeats it; generation ends when all sequences have stopped.
        cache: continue from this carried cache (tensor prompts only).
        on_token: called with each new (B,) tensor of tokens.

    Returns:
        (B, n) int64 of new tokens; for a list of prompts, a list of (n,) tensors in the same order.
    """
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop}
    options |= {"generator": generator, "on_token": on_token}
    if not isinstance(prompts, torch.Tensor):
        if cache is not None:
            raise ValueError("generate: a cache needs prompts as one (B, T) tensor, got a list")
        return _generate_ragged(model, [torch.as_tensor(p, dtype=torch.int64) for p in prompts], n_tokens, options)
    if prompts.dim() != 2 or prompts.shape[1] == 0:
        raise ValueError(f"generate: prompts must be (B, T) with T >= 1, got shape {tuple(prompts.shape)}")
    tokens: list[torch.Tensor] = []
    ids = prompts
    finished = torch.zeros(prompts.shape[0], dtype=torch.bool, device=prompts.device)
    for _ in range(n_tokens):
        logits, cache = model(ids, cache, last_only=True)
        token = sample(logits[:, -1], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        if stop is not None:
            token = torch.where(finished, stop, token)
            finished = finished | (token == stop)
        tokens.append(token)
        if on_token is not None:
            on_token(token)
        if stop is not None and bool(finished.all()):
            break
        ids = token[:, None]
    return torch.stack(tokens, 1) if tokens else prompts.new_empty(prompts.shape[0], 0)


def _generate_ragged(
    model: CausalModel, prompts: list[torch.Tensor], n_tokens: int, options: dict[str, Any]
) -> list[torch.Tensor]:
    device = next((p.device for p in getattr(model, "parameters", list)()), torch.device("cpu"))
    result: list[torch.Tensor] = [torch.empty(0, dtype=torch.int64)] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        rows = [i for i, p in enumerate(prompts) if len(p) == length]
        batch = torch.stack([prompts[i] for i in rows]).to(device)
        for i, tokens in zip(rows, generate(model, batch, n_tokens, **options), strict=True):
            result[i] = tokens
    return result


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p(target), in float32 whatever the logits' dtype: (..., V), (...) int64 -> (...)."""
    return logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


@torch.no_grad()
def score(
    model: CausalModel, input_ids: torch.Tensor, *, mask: torch.Tensor | None = None, chunk: int = 4096
) -> torch.Tensor:
    """Teacher-forced log-probabilities: entry t is log p(id_{t+1} | id_0..t). (B, T) int64 -> (B, T - 1) float32.

    The sequence streams through the model in pieces of `chunk` tokens with the carried cache, so the logits of one
    piece are all that is ever held. `mask` (B, T - 1): entries where it is False are set to 0.
    """
    if input_ids.dim() != 2 or chunk < 1:
        raise ValueError(f"score: needs (B, T) ids and chunk >= 1, got {tuple(input_ids.shape)}, {chunk}")
    cache, pieces = None, []
    for start in range(0, input_ids.shape[1] - 1, chunk):
        targets = input_ids[:, start + 1 : start + 1 + chunk]
        logits, cache = model(input_ids[:, start : start + targets.shape[1]], cache)
        pieces.append(token_logprobs(logits, targets))
    result = torch.cat(pieces, 1) if pieces else torch.zeros(input_ids.shape[0], 0, device=input_ids.device)
    return result if mask is None else result.masked_fill(~mask.bool(), 0.0)
