"""SparseTransformer: a Llama-style decoder whose attention takes its mask from a function of the layer, q and k.

    x = embed_tokens(ids)
    per layer   x += self_attn(input_layernorm(x));  x += mlp(post_attention_layernorm(x))
    logits = lm_head(norm(x))                        RoPE, grouped heads, SwiGLU, RMSNorm; all causal

    model = SparseTransformer.from_pretrained("Llama-3.2-1B")       # a Hugging Face folder of this architecture
    logits, cache = model(prompt_ids)                               # dense, in parallel
    logits, cache = model(next_ids, cache)                          # one token (or more)
    model.provider = lambda layer, q, k: BlockMask.sink_window(q.shape[1], k.shape[1], sink=64, left=1023)

A provider gets the layer's number and the rotated q (B, T, H, D) and k (B, S, Hkv, D) of all S tokens so far, and
returns a `tkpy.BlockMask` for (T, S), or None for dense. What the mask drops costs no time; the causal rule holds
beside it. `TopBlocks` is a provider that looks at q and k. Parameters have Hugging Face's names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

import tkpy
from tkpy import checkpoint
from tkpy.nn import Attention, Cache, Linear, LinearClass, bare, generate, score

#: (layer, q, k) -> the block mask of this layer and call, or None.
Provider = Callable[[int, torch.Tensor, torch.Tensor], "tkpy.BlockMask | None"]


@dataclass(frozen=True)
class SparseTransformerConfig:
    """Sizes; the defaults are those of Llama-2 7B.

    num_kv_heads None: num_heads. head_dim None: hidden_size / num_heads. init_std: of every matrix; those that write
    into the residual stream get it divided by sqrt(2 num_layers) (GPT-2).
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: float = 1.0
    sliding_window: int | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    init_std: float = 0.02


class Norm(torch.nn.Module):
    """`tkpy.rms_norm` with its parameter called `weight`."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tkpy.rms_norm(x, self.weight, self.eps)


class SwiGLU(torch.nn.Module):
    """down_proj(silu(gate_proj x) * up_proj x)."""

    def __init__(self, width: int, inner: int, linear_cls: LinearClass):
        super().__init__()
        self.gate_proj = linear_cls(width, inner, bias=False)
        self.up_proj = linear_cls(width, inner, bias=False)
        self.down_proj = linear_cls(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bare(self.gate_proj, self.up_proj, self.down_proj):
            return tkpy.gated_mlp(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseTransformerBlock(torch.nn.Module):
    """One layer: x + self_attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: SparseTransformerConfig, linear_cls: LinearClass):
        super().__init__()
        c = config
        self.self_attn = Attention(
            c.hidden_size,
            c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            bias=c.attention_bias,
            fused=False,
            # Hugging Face counts the token itself as part of the window.
            window=None if c.sliding_window is None else (c.sliding_window - 1, 0),
            rotary_base=c.rope_theta,
            rotary_scaling=c.rope_scaling,
            linear_cls=linear_cls,
        )
        self.mlp = SwiGLU(c.hidden_size, c.intermediate_size, linear_cls)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cache: Mapping[str, torch.Tensor] | None, position: int, mask: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y, kept = self.self_attn(self.input_layernorm(x), cache, position=position, mask=mask)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Decoder(torch.nn.Module):
    """The stack without the head (Hugging Face's `model.`)."""

    def __init__(self, config: SparseTransformerConfig, linear_cls: LinearClass):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = torch.nn.ModuleList(SparseTransformerBlock(config, linear_cls) for _ in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class SparseTransformer(torch.nn.Module, checkpoint.Pretrained):
    """The language model. `linear_cls` builds every projection but the head (LoRA, quantised layers)."""

    provider: Provider | None

    def __init__(
        self,
        config: SparseTransformerConfig | None = None,
        *,
        provider: Provider | None = None,
        linear_cls: LinearClass = Linear,
    ):
        super().__init__()
        self.config = config = config or SparseTransformerConfig()
        self.provider = provider
        self.model = Decoder(config, linear_cls)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.is_meta or not parameter.is_floating_point():
                continue
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                shrink = math.sqrt(2 * self.config.num_layers) if residual else 1.0
                parameter.normal_(0.0, self.config.init_std / shrink)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(
        self, input_ids: torch.Tensor, cache: Cache | None = None, *, last_only: bool = False
    ) -> tuple[torch.Tensor, Cache]:
        """Continue `cache` (None: the beginning) by `input_ids`.

        Args:
            input_ids: (B, T) integers.
            cache: what an earlier call returned; not written to, so it can be kept, `fork`ed, `gather`ed, `truncate`d.
            last_only: compute the logits of the last token only, (B, 1, vocab_size): what generation needs.

        Returns:
            logits (B, T, vocab_size), and the new cache: per layer "k" and "v" (B, S, kv_heads, head_dim), k rotated.
        """
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            got = f"{input_ids.dtype} {tuple(input_ids.shape)}"
            raise ValueError(f"SparseTransformer: input_ids must be (B, T) integers, got {got}")
        if cache is not None and not (isinstance(cache, Cache) and len(cache.layers) == len(self.model.layers)):
            needed = f"a Cache of {len(self.model.layers)} layers (or None)"
            raise ValueError(f"SparseTransformer: cache must be {needed}, got {cache!r:.200}")
        x, position, layers = self.model.embed_tokens(input_ids), 0 if cache is None else cache.length, []
        for i, block in enumerate(self.model.layers):
            mask = None if self.provider is None else functools.partial(self.provider, i)
            x, kept = block(x, None if cache is None else cache.layers[i], position, mask)
            layers.append(kept)
        x = x[:, -1:] if last_only else x
        return self.lm_head(self.model.norm(x)), Cache(tuple(layers), position + input_ids.shape[1])

    def generate(self, prompts: Any, n_tokens: int, **options: Any) -> Any:
        """`tkpy.nn.generate` with this model."""
        return generate(self, prompts, n_tokens, **options)

    def score(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """`tkpy.nn.score` with this model: log p of each next token, (B, T - 1)."""
        return score(self, input_ids, **options)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> Self:
        """From a Hugging Face config and state dict of a Llama-style decoder (Llama, Mistral and what follows them).

        Read are the sizes, `rms_norm_eps`, `rope_theta`, linear `rope_scaling`, `sliding_window`, `attention_bias`
        and `tie_word_embeddings`. Stored `inv_freq` buffers are ignored: they follow from `rope_theta`.

        Raises:
            ValueError: a missing size, a feature this decoder does not have, or weights that do not fit.
        """
        sizes = config_of(config)
        with torch.device("meta"):
            model = cls(sizes)
        tensors = dict(state_dict)
        if sizes.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        checkpoint.assign(model, tensors, ignore=("*rotary_emb.inv_freq",))
        return model

    def reference_config(self) -> dict[str, Any]:
        c = self.config
        return {
            "architectures": ["MistralForCausalLM" if c.sliding_window else "LlamaForCausalLM"],
            "model_type": "mistral" if c.sliding_window else "llama",
            "hidden_act": "silu",
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_layers,
            "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads or c.num_heads,
            "head_dim": c.head_dim or c.hidden_size // c.num_heads,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope_theta,
            "rope_scaling": None if c.rope_scaling == 1.0 else {"rope_type": "linear", "factor": c.rope_scaling},
            "sliding_window": c.sliding_window,
            "attention_bias": c.attention_bias,
            "mlp_bias": False,
            "tie_word_embeddings": c.tie_word_embeddings,
            "initializer_range": c.init_std,
        }


def config_of(config: Mapping[str, Any]) -> SparseTransformerConfig:
    """The configuration in Hugging Face's keys, old and new, as ours; see `SparseTransformer.from_reference`."""
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }
    missing = [theirs for theirs in names.values() if theirs not in config]
    if missing:
        raise ValueError(f"SparseTransformer: the config must have {', '.join(missing)}, got {sorted(config)}")
    activation = config.get("hidden_act", "silu")
    if activation != "silu" or config.get("mlp_bias"):
        needed = "hidden_act 'silu' and no mlp_bias"
        raise ValueError(f"SparseTransformer: needs {needed}, got {activation!r}, {config.get('mlp_bias')}")
    rope = config.get("rope_parameters") or {}  # transformers 5 gathers what stood apart before
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"SparseTransformer: rope_scaling must be linear or none, got {kind!r}")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return SparseTransformerConfig(
        **{ours: int(config[theirs]) for ours, theirs in names.items()},
        num_kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(config.get("rope_theta", rope.get("rope_theta", 10000.0))),
        rope_scaling=float(scaling.get("factor", 1.0)) if kind == "linear" else 1.0,
        sliding_window=window,
        attention_bias=bool(config.get("attention_bias", False)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        init_std=float(config.get("initializer_range", 0.02)),
    )


class TopBlocks:
    """A provider: each query block attends to the key blocks whose mean key its mean query likes best.

    The scores of pooled blocks choose (MInference's block-sparse pattern); the first and the own block are always kept.
    Calls of fewer than `min_length` keys, and of less than one block of queries (token by token), stay dense.
    For prompts, not for training: a mean query looks at up to block - 1 later tokens when it chooses.

    Args:
        blocks: key blocks kept per query block, at least 2.
        block: 64 or 128.
        min_length: keys from which on the mask is used.
    """

    def __init__(self, blocks: int, block: int = 64, min_length: int = 1024):
        if blocks < 2:
            raise ValueError(f"TopBlocks: blocks must be at least 2 (the first and the own), got {blocks}")
        self.blocks, self.block, self.min_length = blocks, block, min_length

    @torch.no_grad()
    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> tkpy.BlockMask | None:
        seq_q, seq_k = q.shape[1], k.shape[1]
        if seq_k < self.min_length or seq_q < self.block:
            return None
        pooled_q = self._pool(q)
        pooled_k = self._pool(k).repeat_interleave(q.shape[2] // k.shape[2], 2)
        scores = torch.einsum("bihd,bjhd->bhij", pooled_q, pooled_k)
        last_query = ((torch.arange(scores.shape[2], device=q.device) + 1) * self.block).clamp(max=seq_q) - 1
        own = (last_query + seq_k - seq_q).clamp(min=0) // self.block
        scores[..., 0] = math.inf
        scores.scatter_(-1, own.view(1, 1, -1, 1).expand(*scores.shape[:3], 1), math.inf)
        return tkpy.BlockMask.topk(scores, self.blocks, seq_q, seq_k, self.block)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H, D) -> (B, blocks, H, D) float32 means; the last block may be short."""
        parts = x.float().split(self.block, dim=1)
        return torch.stack([part.mean(1) for part in parts], 1)
