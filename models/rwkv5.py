"""RWKV-5 "Eagle": a recurrent language model with matrix-valued states (Peng et al. 2024, arXiv:2404.05892).

    x = ln0(emb[ids])
    per layer   x += att(ln1(x));  x += ffn(ln2(x))          att: tkpy.nn.TimeMix, ffn: tkpy.nn.ChannelMix
    logits = head(ln_out(x))

    model = RWKV5.from_pretrained("RWKV-5-World-1B5-v2-20231025-ctx4096.pth")       # BlinkDL's file, or a folder
    logits, state = model(prompt_ids)              # a prompt in parallel
    logits, state = model(next_ids, state)         # one token (or more) in constant memory
    tokens = tkpy.nn.generate(model, prompt_ids, 100, temperature=1.0, top_p=0.3)

Loads the versions 5.0, 5.1 and 5.2 (World v2, Eagle, EagleX), told apart by their parameter names, as BlinkDL's .pth
and as Hugging Face folders. Parameter names here are BlinkDL's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from tkpy import checkpoint
from tkpy.nn import Cache, ChannelMix, LayerNorm, Linear, LinearClass, TimeMix

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class RWKV5Config:
    """Sizes; the defaults are those of World v2 1.5B.

    attention_size, intermediate_size: None means hidden_size and 3.5 * hidden_size rounded down to a multiple of 32.
    group_norm_eps: 64e-5 in the original (its 1e-5 on outputs divided by head_size_divisor = 8); rwkv.cpp has 1e-5.
    embedding_init: bound of the uniform initialisation of the embedding (the trainer's initial learning rate).
    """

    vocab_size: int = 65536
    hidden_size: int = 2048
    num_layers: int = 24
    head_size: int = 64
    attention_size: int | None = None
    intermediate_size: int | None = None
    version: str = "5.2"
    layer_norm_eps: float = 1e-5
    group_norm_eps: float = 64e-5
    embedding_init: float = 1e-4

    @property
    def inner(self) -> int:
        return self.intermediate_size or max(32, int(self.hidden_size * 3.5) // 32 * 32)


class RWKV5Block(torch.nn.Module):
    """One layer: x + att(ln1(x)), then x + ffn(ln2(x)); the first layer also normalises the embedding."""

    def __init__(self, config: RWKV5Config, layer: int, linear_cls: LinearClass):
        super().__init__()
        width, eps, depth = config.hidden_size, config.layer_norm_eps, config.num_layers
        if layer == 0:
            self.ln0 = LayerNorm(width, eps)
        self.ln1 = LayerNorm(width, eps)
        self.ln2 = LayerNorm(width, eps)
        self.att = TimeMix(
            width,
            config.head_size,
            layer,
            depth,
            attention=config.attention_size,
            version=config.version,
            group_norm_eps=config.group_norm_eps,
            linear_cls=linear_cls,
        )
        self.ffn = ChannelMix(width, config.inner, layer, depth, linear_cls=linear_cls)

    def forward(self, x: torch.Tensor, state: Tensors | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if hasattr(self, "ln0"):
            x = self.ln0(x)
        y, att_state = self.att(self.ln1(x), state)
        x = x + y
        y, ffn_state = self.ffn(self.ln2(x), state)
        return x + y, att_state | ffn_state


class RWKV5(torch.nn.Module, checkpoint.Pretrained):
    """The language model. `linear_cls` builds every projection but the head (LoRA, quantised layers)."""

    def __init__(self, config: RWKV5Config | None = None, *, linear_cls: LinearClass = Linear):
        super().__init__()
        config = config or RWKV5Config()
        self.config = config
        self.emb = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = torch.nn.ModuleList(RWKV5Block(config, i, linear_cls) for i in range(config.num_layers))
        self.ln_out = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if not self.emb.weight.is_meta:
            torch.nn.init.uniform_(self.emb.weight, -config.embedding_init, config.embedding_init)
            widening = max(1.0, config.vocab_size / config.hidden_size)
            torch.nn.init.orthogonal_(self.head.weight, gain=0.5 * math.sqrt(widening))

    def forward(
        self, input_ids: torch.Tensor, state: Cache | None = None, *, last_only: bool = False
    ) -> tuple[torch.Tensor, Cache]:
        """Continue `state` (None: the beginning) by `input_ids`.

        Args:
            input_ids: (B, T) int64, any T; a prompt runs in parallel, a single token costs the same however many
                came before it.
            state: what an earlier call returned. It is not written to, so it can be kept and used again, and
                `fork`ed or `gather`ed like any `tkpy.nn.Cache`.
            last_only: compute the logits of the last token only, (B, 1, vocab_size): what generation needs.

        Returns:
            logits (B, T, vocab_size) and the new state: per layer "att_x" and "ffn_x" (B, C), the normalised inputs of
            the last token, and "att_kv" (B, H, N, N) float32, the key channel as row.
        """
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise ValueError(
                f"RWKV5: input_ids must be (B, T) integers, got {input_ids.dtype} {tuple(input_ids.shape)}"
            )
        if state is not None and not (isinstance(state, Cache) and len(state.layers) == len(self.blocks)):
            raise ValueError(f"RWKV5: state must be a Cache of {len(self.blocks)} layers (or None), got {state!r:.200}")
        x = self.emb(input_ids)
        layers = []
        for i, block in enumerate(self.blocks):
            x, carried = block(x, None if state is None else state.layers[i])
            layers.append(carried)
        before = 0 if state is None else state.length
        x = x[:, -1:] if last_only else x
        return self.head(self.ln_out(x)), Cache(tuple(layers), before + input_ids.shape[1])

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Tensors) -> Self:
        """From BlinkDL's or Hugging Face's names. Sizes and version come from the tensors, and `config` may be empty.

        Of `config` are read: the epsilons (`ln_eps` or `layer_norm_epsilon`; `gn_eps_effective`, `gn_eps` or
        `head_size_divisor`), and the sizes, which must agree with the tensors. `time_state` of a state-tuned checkpoint
        becomes the trainable initial state.

        Raises:
            ValueError: not RWKV-5, or tensors that are missing, unexpected, or disagree with each other or `config`.
        """
        tensors = {blink_name(name): t for name, t in state_dict.items()}
        sizes = infer_config(config, tensors)
        with torch.device("meta"):
            model = cls(sizes)
        for name, layer in model.named_modules():
            if isinstance(layer, TimeMix) and f"{name}.time_state" in tensors:
                layer.enable_time_state()
        for name, own in model.state_dict().items():
            given = tensors.get(name)
            if ".time_" in name and given is not None and given.numel() == own.numel():
                tensors[name] = given.reshape(own.shape)  # trainers store them as (1, 1, C), (C,), (H, 1, 1), ...
        checkpoint.assign(model, tensors)
        return model

    def reference_config(self) -> dict[str, Any]:
        c = self.config
        return {
            "model_type": "rwkv5",
            "version": c.version,
            "n_layer": c.num_layers,
            "n_embd": c.hidden_size,
            "dim_att": c.attention_size or c.hidden_size,
            "dim_ffn": c.inner,
            "vocab_size": c.vocab_size,
            "head_size": c.head_size,
            "ln_eps": c.layer_norm_eps,
            "gn_eps": c.group_norm_eps,
        }


def infer_config(config: Mapping[str, Any], tensors: Tensors) -> RWKV5Config:
    """The configuration of a checkpoint in BlinkDL's names; see `RWKV5.from_reference`."""
    needed = ("emb.weight", "blocks.0.att.time_decay", "blocks.0.att.ln_x.weight", "blocks.0.ffn.key.weight")
    missing = [name for name in needed if name not in tensors]
    if missing or any("time_maa" in name for name in tensors):
        raise ValueError(f"RWKV5: not the weights of an RWKV-5 model: missing {missing}, names {sorted(tensors)[:8]}")
    decay = tensors["blocks.0.att.time_decay"]
    attention = tensors["blocks.0.att.ln_x.weight"].shape[0]
    if decay.dim() > 1 and decay.shape[1] > 1:
        version, heads = "5.2", decay.shape[0]
    else:
        version, heads = "5.1" if "blocks.0.att.gate.weight" in tensors else "5.0", decay.numel()
    vocab, hidden = tensors["emb.weight"].shape
    layers = 1 + max(int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.").match, tensors) if match)
    inferred = RWKV5Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        head_size=attention // heads,
        attention_size=attention,
        intermediate_size=tensors["blocks.0.ffn.key.weight"].shape[0],
        version=version,
        layer_norm_eps=float(_first(config, "ln_eps", "layer_norm_epsilon", default=1e-5)),
        group_norm_eps=_group_norm_eps(config),
    )
    for keys, size in (
        (("vocab_size",), vocab),
        (("n_embd", "hidden_size"), hidden),
        (("n_layer", "num_hidden_layers"), layers),
        (("head_size",), inferred.head_size),
    ):
        if (said := _first(config, *keys, default=size)) != size:
            raise ValueError(f"RWKV5: the config says {keys[0]} = {said}, the weights have {size}")
    return inferred


def _first(config: Mapping[str, Any], *keys: str, default: Any) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), default)


def _group_norm_eps(config: Mapping[str, Any]) -> float:
    divisor = _first(config, "head_size_divisor", default=8)
    return float(_first(config, "gn_eps_effective", "gn_eps", default=1e-5 * divisor**2))


_WORDS = (
    ("emb.", "embeddings."),
    ("blocks.0.ln0.", "blocks.0.pre_ln."),
    (".att.", ".attention."),
    (".ffn.", ".feed_forward."),
    ("time_mix_k", "time_mix_key"),
    ("time_mix_v", "time_mix_value"),
    ("time_mix_r", "time_mix_receptance"),
    ("time_mix_g", "time_mix_gate"),
)


def hugging_face_name(name: str) -> str:
    """The name that Hugging Face's RWKV-5 models give to BlinkDL's parameter `name`."""
    for blink, hugging_face in _WORDS:
        name = name.replace(blink, hugging_face)
    return name if name.startswith("head.") else "rwkv." + name


def blink_name(name: str) -> str:
    """BlinkDL's name of a parameter, from either kind of name."""
    name = name.removeprefix("rwkv.")
    for blink, hugging_face in _WORDS:
        name = name.replace(hugging_face, blink)
    return name
