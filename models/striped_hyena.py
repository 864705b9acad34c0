"""StripedHyena and Evo 1: Hyena layers with modal filters, striped with attention (Nguyen et al. 2024, "Evo").

    x = embedding_layer[ids]
    per layer   x += mixer(pre_norm(x));  x += mlp(post_norm(x))       mixer: tkpy.nn.HyenaMixer or tkpy.nn.Attention
    logits = unembed(norm(x))

    model = StripedHyena.from_pretrained("evo-1-8k-base")           # a folder with config.json and the weights
    logits, cache = model(prompt_ids)                               # a prompt in parallel
    logits, cache = model(next_ids, cache)                          # one token (or more)
    model.score(["ACGTTGCA", "ACG"])                                # mean log-likelihood per base
    model.generate(["ACGT"], n_tokens=100, temperature=1.0, top_k=4)

Parameter names are the original's. Poles and residues stay float32 whatever the rest is cast to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from tkpy import checkpoint, nn
from tkpy.nn import Attention, Cache, GatedMLP, HyenaMixer, Linear, LinearClass, ModalFilter, RMSNorm

BOS, PAD = 0, 1


@dataclass(frozen=True)
class StripedHyenaConfig:
    """The original's names; the defaults are those of evo-1-8k-base.

    attn_layer_idxs: the layers with attention; all others are Hyena layers.
    proj_groups: query heads that share one key and value head.
    state_size: complex modes of each channel's filter.
    inner_mlp_size: None means 8/3 hidden_size rounded up to a multiple of inner_size_multiple_of.
    use_flash_rmsnorm: eps inside the square root (StripedHyena-7B), not added to the rms (Evo).
    rotary_emb_scaling_factor: positions are divided by it (16 in evo-1-131k-base).
    column_split_hyena: the three branches of a Hyena projection lie side by side within each head.
    max_seqlen: the longest sequence that the model accepts; None for no limit.
    max_pole_radius: bound of |pole| for training from scratch (see `tkpy.nn.ModalFilter`); None in the original.
    """

    vocab_size: int = 512
    hidden_size: int = 4096
    num_layers: int = 32
    attn_layer_idxs: tuple[int, ...] = (8, 16, 24)
    num_attention_heads: int = 32
    proj_groups: int = 1
    qkv_proj_bias: bool = True
    mha_out_proj_bias: bool = True
    short_filter_length: int = 3
    short_filter_bias: bool = True
    state_size: int = 8
    column_split_hyena: bool = True
    inner_mlp_size: int | None = None
    inner_size_multiple_of: int = 16
    mlp_activation: str = "gelu"
    eps: float = 1e-6
    use_flash_rmsnorm: bool = False
    rotary_emb_base: float = 10000.0
    rotary_emb_scaling_factor: float = 1.0
    tie_embeddings: bool = True
    final_norm: bool = True
    max_seqlen: int | None = 8192
    max_pole_radius: float | None = 0.999

    @classmethod
    def evo_1_8k(cls) -> Self:
        """evo-1-8k-base, evo-1.5-8k-base, evo-1-8k-crispr, evo-1-8k-transposon."""
        return cls(max_pole_radius=None)

    @classmethod
    def evo_1_131k(cls) -> Self:
        """evo-1-131k-base."""
        return cls(rotary_emb_scaling_factor=16.0, max_seqlen=131072, max_pole_radius=None)

    @classmethod
    def striped_hyena_7b(cls) -> Self:
        """StripedHyena-Hessian-7B and StripedHyena-Nous-7B."""
        return cls(
            vocab_size=32000,
            attn_layer_idxs=tuple(range(1, 32, 2)),
            proj_groups=4,
            qkv_proj_bias=False,
            mha_out_proj_bias=False,
            state_size=2,
            inner_mlp_size=14336,
            inner_size_multiple_of=64,
            mlp_activation="silu",
            eps=1e-5,
            use_flash_rmsnorm=True,
            rotary_emb_base=500000.0,
            tie_embeddings=False,
            max_seqlen=32768,
            max_pole_radius=None,
        )

    @property
    def inner(self) -> int:
        multiple = self.inner_size_multiple_of
        return self.inner_mlp_size or multiple * -(-int(2 * self.hidden_size * 4 / 3) // multiple)


class CharTokenizer:
    """Evo's tokenizer (CharLevelTokenizer): ids are the UTF-8 bytes, upper and lower case differ."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Ids below 32 (among them BOS and PAD) read as a blank, as in the original."""
        return "".join(chr(min(max(int(i), 32), 512)) for i in ids)


class _Block(torch.nn.Module):
    """The residual block: x + mix(pre_norm(x)), then x + mlp(post_norm(x))."""

    def __init__(self, config: StripedHyenaConfig, linear_cls: LinearClass):
        super().__init__()
        width, eps, inside = config.hidden_size, config.eps, config.use_flash_rmsnorm
        self.pre_norm = RMSNorm(width, eps, eps_inside_sqrt=inside)
        self.post_norm = RMSNorm(width, eps, eps_inside_sqrt=inside)
        self.mlp = GatedMLP(width, config.inner, config.mlp_activation, linear_cls=linear_cls)


class AttentionBlock(_Block):
    """A layer of attention and its MLP."""

    def __init__(self, config: StripedHyenaConfig, linear_cls: LinearClass = Linear):
        super().__init__(config, linear_cls)
        self.inner_mha_cls = Attention(
            config.hidden_size,
            config.num_attention_heads,
            kv_heads=config.num_attention_heads // config.proj_groups,
            bias=config.qkv_proj_bias,
            out_bias=config.mha_out_proj_bias,
            rotary_base=config.rotary_emb_base,
            rotary_scaling=config.rotary_emb_scaling_factor,
            linear_cls=linear_cls,
        )

    def forward(self, x, cache=None, position: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y, carried = self.inner_mha_cls(self.pre_norm(x), cache, position=position)
        x = x + y
        return x + self.mlp(self.post_norm(x)), carried


class HyenaBlock(HyenaMixer):
    """A Hyena layer and its MLP; the mixer's parts are the block's own, as in the original's names."""

    pre_norm: RMSNorm
    post_norm: RMSNorm
    mlp: GatedMLP

    def __init__(self, config: StripedHyenaConfig, linear_cls: LinearClass = Linear):
        super().__init__(
            config.hidden_size,
            config.state_size,
            config.num_attention_heads,
            column_split=config.column_split_hyena,
            short_length=config.short_filter_length,
            short_bias=config.short_filter_bias,
            max_radius=config.max_pole_radius,
            linear_cls=linear_cls,
        )
        for name, module in _Block(config, linear_cls).named_children():
            self.add_module(name, module)

    def forward(self, x, cache=None, position: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y, carried = super().forward(self.pre_norm(x), cache)
        x = x + y
        return x + self.mlp(self.post_norm(x)), carried


class StripedHyena(torch.nn.Module, checkpoint.Pretrained):
    """The language model. `linear_cls` builds every projection but the unembedding (LoRA, quantised layers)."""

    #: Names in checkpoints that are recomputed here: stored `inv_freq` are rounded to bfloat16.
    IGNORED = ("*.rotary_emb.*", "*.filter.t")

    def __init__(self, config: StripedHyenaConfig | None = None, *, linear_cls: LinearClass = Linear):
        super().__init__()
        config = config or StripedHyenaConfig()
        if config.num_attention_heads % config.proj_groups:
            raise ValueError(f"StripedHyena: proj_groups must divide num_attention_heads, got {config}")
        self.config = config
        self.tokenizer: Any = CharTokenizer() if config.vocab_size == 512 else None  # or any with encode and decode
        self.embedding_layer = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = torch.nn.ModuleList(
            (AttentionBlock if i in config.attn_layer_idxs else HyenaBlock)(config, linear_cls)
            for i in range(config.num_layers)
        )
        self.norm = None
        if config.final_norm:
            self.norm = RMSNorm(config.hidden_size, config.eps, eps_inside_sqrt=config.use_flash_rmsnorm)
        self.unembed = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembed.weight = self.embedding_layer.weight
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Weights normal with variance 2 / (5 width), what is added to the residual stream smaller with depth."""
        width, depth = self.config.hidden_size, self.config.num_layers
        for name, module in self.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and module.weight.is_floating_point():
                last = name.endswith((".out_filter_dense", ".out_proj", ".l3"))
                module.weight.normal_(std=2 / depth / width**0.5 if last else (2 / (5 * width)) ** 0.5)
                if isinstance(module, torch.nn.Linear) and module.bias is not None:
                    module.bias.zero_()

    def hidden(self, input_ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        """Embeddings of the tokens in context, (B, T, hidden_size): what the unembedding reads; and the new cache."""
        if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.is_complex():
            got = f"{input_ids.dtype} {tuple(input_ids.shape)}"
            raise ValueError(f"StripedHyena: input_ids must be (B, T) integers, got {got}")
        if cache is not None and not (isinstance(cache, Cache) and len(cache.layers) == len(self.blocks)):
            raise ValueError(f"StripedHyena: cache must be a Cache of {len(self.blocks)} layers, got {cache!r:.200}")
        position = 0 if cache is None else cache.length
        end, limit = position + input_ids.shape[1], self.config.max_seqlen
        if limit is not None and end > limit:
            raise ValueError(f"StripedHyena: needs at most max_seqlen = {limit} tokens (see the config), got {end}")
        x = self.embedding_layer(input_ids.long())
        layers = []
        for i, block in enumerate(self.blocks):
            x, carried = block(x, None if cache is None else cache.layers[i], position)
            layers.append(carried)
        return x if self.norm is None else self.norm(x), Cache(tuple(layers), end)

    def forward(
        self, input_ids: torch.Tensor, cache: Cache | None = None, *, last_only: bool = False
    ) -> tuple[torch.Tensor, Cache]:
        """Continue `cache` (None: the beginning) by `input_ids`.

        Args:
            input_ids: (B, T) integers, any T. Pad on the right, if at all: the model is causal.
            cache: what an earlier call returned; it is not written to.
            last_only: compute the logits of the last token only, (B, 1, vocab_size): what generation needs.

        Returns:
            logits (B, T, vocab_size) and the new cache: per Hyena layer "fir" (B, 3 hidden, taps - 1) and "iir"
            (B, hidden, state_size) complex64, per attention layer "k" and "v" (B, S, kv heads, head_dim).
        """
        x, cache = self.hidden(input_ids, cache)
        return self.unembed(x[:, -1:] if last_only else x), cache

    # -------------------------------------------------------------------------------------------- scoring, generation
    def logprobs(
        self, input_ids: torch.Tensor, cache: Cache | None = None, *, chunk: int = 4096
    ) -> tuple[torch.Tensor, torch.Tensor, Cache | None]:
        """Streamed in pieces of `chunk` tokens with the carried cache, in float32 whatever the weights are.

        Returns, for (B, T) ids, (B, T - 1) log p(id_{t+1} | id_0..t) and the entropies (nats) of the same
        predictions, and the cache after id_{T-2}.
        """
        scores, entropies = [], []
        for start in range(0, input_ids.shape[1] - 1, chunk):
            targets = input_ids[:, start + 1 : start + 1 + chunk]
            logits, cache = self(input_ids[:, start : start + targets.shape[1]], cache)
            predicted = logits.float().log_softmax(-1)
            scores.append(predicted.gather(-1, targets.long()[..., None]).squeeze(-1))
            entropies.append(-(predicted.exp() * predicted).sum(-1))
        if not scores:
            empty = torch.zeros(input_ids.shape[0], 0, device=input_ids.device)
            return empty, empty.clone(), cache
        return torch.cat(scores, 1), torch.cat(entropies, 1), cache

    def encode(self, sequence: str | Sequence[int] | torch.Tensor, *, bos: bool = True) -> torch.Tensor:
        """The ids (T,) of a text (or ids as they are), with the token 0 in front if `bos`."""
        if isinstance(sequence, str) and self.tokenizer is None:
            raise ValueError("StripedHyena: text needs model.tokenizer, an object with encode and decode, got None")
        ids = self.tokenizer.encode(sequence) if isinstance(sequence, str) else sequence
        ids = torch.as_tensor(ids, dtype=torch.int64, device=self.embedding_layer.weight.device)
        return torch.cat([ids.new_full((1,), BOS), ids]) if bos else ids

    @torch.no_grad()
    def token_scores(
        self, sequences: Sequence[str | Sequence[int]], *, batch_size: int = 16, chunk: int = 4096
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per sequence, float32 (log-probabilities, entropies) of its T tokens, the first one after BOS included.

        Sequences of like length share a batch, padded on the right; padding never enters a score.
        """
        ids = [self.encode(s) for s in sequences]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        result: list[Any] = [None] * len(ids)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = torch.nn.utils.rnn.pad_sequence([ids[i] for i in rows], batch_first=True, padding_value=PAD)
            scores, entropies, _ = self.logprobs(batch, chunk=chunk)
            for row, i in enumerate(rows):
                result[i] = (scores[row, : len(ids[i]) - 1], entropies[row, : len(ids[i]) - 1])
        return result

    def score(
        self, sequences: Sequence[str | Sequence[int]], *, reduce: str = "mean", batch_size: int = 16, chunk: int = 4096
    ) -> torch.Tensor:
        """The log-likelihood of each sequence, (N,) float32: the "mean" over its tokens, or their "sum".

        BOS stands in front, so that the first token counts. A sequence scores the same alone and in any batch. An
        empty sequence sums to 0, and its mean is NaN.
        """
        if reduce not in ("mean", "sum"):
            raise ValueError(f"StripedHyena.score: reduce must be 'mean' or 'sum', got {reduce!r}")
        found = self.token_scores(sequences, batch_size=batch_size, chunk=chunk)
        totals = [s.mean() if reduce == "mean" else s.sum() for s, _ in found]
        return torch.stack(totals) if totals else torch.zeros(0)

    def generate(
        self, prompts: Sequence[str] | torch.Tensor, n_tokens: int = 100, *, prepend_bos: bool = False, **options: Any
    ) -> Any:
        """Continue prompts of any lengths by `n_tokens`: a list of strings for strings, (B, n) ids for (B, T) ids.

        options: temperature, top_k, top_p, stop, cache, generator, on_token, as of `tkpy.nn.generate`.
        """
        if isinstance(prompts, torch.Tensor):
            return nn.generate(self, prompts, n_tokens, **options)
        tokens = nn.generate(self, [self.encode(p, bos=prepend_bos) for p in prompts], n_tokens, **options)
        return [self.tokenizer.decode(t) for t in tokens]

    # ---------------------------------------------------------------------------------------------------- checkpoints
    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> Self:
        """From the original's config keys and parameter names, with or without the prefix `backbone.`.

        A tied `unembed.weight` may be missing, and is not read. Poles and residues become float32 at least. Stored
        rotary frequencies are ignored and recomputed.

        Raises:
            ValueError: tensors missing, unexpected or of another shape; a config that asks for something else.
        """
        sizes = read_config(config)
        tensors = {name.removeprefix("backbone."): t for name, t in state_dict.items()}
        if sizes.tie_embeddings and "embedding_layer.weight" in tensors:
            tensors["unembed.weight"] = tensors["embedding_layer.weight"]
        for name, tensor in tensors.items():
            if name.endswith((".poles", ".residues")) and tensor.dtype.itemsize < 4:
                tensors[name] = tensor.float()
        with torch.device("meta"):
            model = cls(sizes)
        checkpoint.assign(model, tensors, ignore=cls.IGNORED)
        return model

    def reference_state(self) -> dict[str, torch.Tensor]:
        state = self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, ModalFilter):  # the original knows no max_pole_radius
                state[f"{name}.poles"] = torch.view_as_real(module.modes()[0].detach())[:, :, None]
        return state

    def reference_config(self) -> dict[str, Any]:
        c = self.config
        keys = {name: value for name, value in vars(c).items() if name != "max_pole_radius" or value is not None}
        return keys | {
            "model_type": "stripedhyena",
            "attn_layer_idxs": list(c.attn_layer_idxs),
            "hyena_layer_idxs": [i for i in range(c.num_layers) if i not in c.attn_layer_idxs],
            "num_filters": c.hidden_size,
            "hyena_filter_groups": 1,
            "use_interpolated_rotary_pos_emb": c.rotary_emb_scaling_factor != 1,
        }


def read_config(config: Mapping[str, Any]) -> StripedHyenaConfig:
    """The configuration from the original's keys (YAML files and Hugging Face's config.json alike).

    Missing keys take the original code's defaults. `max_sequence_len` is the length before positions are interpolated
    (evo-1-131k-base says 8192 there), so without `max_seqlen` it counts times the interpolation.
    """
    missing = [
        k for k in ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "state_size") if k not in config
    ]
    if missing:
        raise ValueError(f"StripedHyena: the config lacks {missing}, it has {sorted(config)}")
    interpolated = bool(config.get("use_interpolated_rotary_pos_emb", False))
    scaling = float(config.get("rotary_emb_scaling_factor", 1.0)) if interpolated else 1.0
    longest = config.get("max_seqlen")
    if longest is None and config.get("max_sequence_len") is not None:
        longest = int(config["max_sequence_len"] * scaling)
    layers, width = int(config["num_layers"]), int(config["hidden_size"])
    refused = {
        "hyena_filter_groups": config.get("hyena_filter_groups", 1) != 1,
        "num_filters": config.get("num_filters", width) != width,
        "smeared_gqa": bool(config.get("smeared_gqa", False)),
        "column_split": bool(config.get("column_split", False)) and config.get("proj_groups", 1) != 1,
        "interleave": bool(config.get("interleave", False)),
    }
    for key in (key for key, wrong in refused.items() if wrong):
        raise ValueError(f"StripedHyena: cannot serve {key} = {config[key]!r} (Evo 2 and unreleased variants)")
    return StripedHyenaConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=width,
        num_layers=layers,
        attn_layer_idxs=tuple(i for i in config.get("attn_layer_idxs", ()) if i < layers),
        num_attention_heads=int(config["num_attention_heads"]),
        proj_groups=int(config.get("proj_groups", 1)),
        qkv_proj_bias=bool(config.get("qkv_proj_bias", True)),
        mha_out_proj_bias=bool(config.get("mha_out_proj_bias", True)),
        short_filter_length=int(config.get("short_filter_length", 3)),
        short_filter_bias=bool(config.get("short_filter_bias", True)),
        state_size=int(config["state_size"]),
        column_split_hyena=bool(config.get("column_split_hyena", True)),
        inner_mlp_size=config.get("inner_mlp_size"),
        inner_size_multiple_of=int(config.get("inner_size_multiple_of", 64)),
        mlp_activation=config.get("mlp_activation", "silu"),
        eps=float(config.get("eps", 1e-6)),
        use_flash_rmsnorm=bool(config.get("use_flash_rmsnorm", False)),
        rotary_emb_base=float(config.get("rotary_emb_base", 10000)),
        rotary_emb_scaling_factor=scaling,
        tie_embeddings=bool(config.get("tie_embeddings", True)),
        final_norm=bool(config.get("final_norm", True)),
        max_seqlen=longest,
        max_pole_radius=config.get("max_pole_radius"),
    )
