"""M2-BERT (Fu et al. 2023, "Monarch Mixer", arXiv:2310.12109): a BERT without attention and with block-diagonal MLPs.

    embeddings -> N x [MonarchMixer (no residual) -> MonarchMLP (residual and norm inside)] -> MLM head | pooler

The attention mask reaches neither mixer nor MLP: padding is mixed in, and how much there is of it changes every hidden
state. See `M2Bert.embed` for what that means for retrieval.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch.nn import functional as F

import tkpy
from tkpy.checkpoint import Pretrained, assign
from tkpy.nn import LayerNorm, Linear, LinearClass, MonarchMixer, MonarchMLP, WordPiece
from tkpy.nn.wordpiece import to_token_ids

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True)
class M2BertConfig:
    """The original's keys and the sizes of m2-bert-80M; `mlm_head`, `pooler` and `num_labels` say which heads exist."""

    vocab_size: int = 30528
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    max_position_embeddings: int = 128
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"  # of the MLM head; the layers have the exact GELU
    hidden_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    initializer_range: float = 0.02
    pad_token_id: int = 0
    bidirectional: bool = True
    residual_long_conv: bool = True
    long_conv_l_max: int = 128
    hyena_w: float = 10
    hyena_w_mod: float = 1
    hyena_emb_dim: int = 5
    hyena_filter_order: int = 128
    hyena_training_additions: bool = False
    use_glu_mlp: bool = True
    use_monarch_mlp: bool = True
    monarch_mlp_nblocks: int = 4
    use_positional_encodings: bool = True
    pool_all: bool = False
    mlm_head: bool = True
    pooler: bool = True
    num_labels: int = 0  # 0: no classifier

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"M2Bert: hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        if self.num_labels and not self.pooler:
            raise ValueError(f"M2Bert: a classifier (num_labels = {self.num_labels}) needs the pooler")

    @property
    def max_length(self) -> int:
        """The longest input."""
        positions = self.max_position_embeddings if self.use_positional_encodings else self.long_conv_l_max
        return min(positions, self.long_conv_l_max)


@dataclass
class M2BertOutput:
    """What a forward returns.

    `pooled_cls` is tanh(dense(first token)), `pooled_mean` tanh(dense(mean over the attention mask)): the original's
    pooler with `pool_all` false and true. `cls_logits` classifies the one that the configuration says. An entry whose
    head the model lacks, or that was not asked for, is None.
    """

    last_hidden_state: torch.Tensor  # (B, L, hidden)
    mlm_logits: torch.Tensor | None  # (B, L, vocab)
    pooled_cls: torch.Tensor | None  # (B, hidden)
    pooled_mean: torch.Tensor | None  # (B, hidden)
    cls_logits: torch.Tensor | None  # (B, labels)
    mlm_loss: torch.Tensor | None  # scalar


torch.utils._pytree.register_dataclass(M2BertOutput)  # so that FSDP finds the tensors in it


class Embeddings(torch.nn.Module):
    """Word + token type + learned position, normalised: (B, L) ids -> (B, L, hidden)."""

    def __init__(self, c: M2BertConfig):
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(c.vocab_size, c.hidden_size, padding_idx=c.pad_token_id)
        self.token_type_embeddings = torch.nn.Embedding(c.type_vocab_size, c.hidden_size)
        self.position_embeddings = None
        if c.use_positional_encodings:
            self.position_embeddings = torch.nn.Embedding(c.max_position_embeddings, c.hidden_size)
            # In the original's state dict; always 0, 1, 2, ..., so positions are read off by slicing.
            self.register_buffer("position_ids", torch.arange(c.max_position_embeddings)[None])
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.dropout = torch.nn.Dropout(c.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        h = self.word_embeddings(input_ids)
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        h = h + types
        if self.position_embeddings is not None:
            h = h + self.position_embeddings.weight[: input_ids.shape[1]]
        return self.dropout(self.LayerNorm(h))


class Layer(torch.nn.Module):
    """One mixer and one MLP, (B, L, hidden) -> the same; there is no residual around the mixer."""

    def __init__(self, c: M2BertConfig, linear_cls: LinearClass):
        super().__init__()
        self.attention = MonarchMixer(  # the original's name: it stands where BERT has attention
            c.hidden_size,
            c.long_conv_l_max,
            bidirectional=c.bidirectional,
            residual_long_conv=c.residual_long_conv,
            training_additions=c.hyena_training_additions,
            order=c.hyena_filter_order,
            emb_dim=c.hyena_emb_dim,
            w=c.hyena_w,
            w_mod=c.hyena_w_mod,
            linear_cls=linear_cls,
        )
        self.mlp = MonarchMLP(
            c.hidden_size,
            c.intermediate_size,
            gated=c.use_glu_mlp,
            nblocks=c.monarch_mlp_nblocks if c.use_monarch_mlp else None,
            dropout=c.hidden_dropout_prob,
            eps=c.layer_norm_eps,
            linear_cls=linear_cls,
        )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attention(h))


class Transform(torch.nn.Module):
    """LayerNorm(gelu(dense(h))), before the vocabulary."""

    def __init__(self, c: M2BertConfig, linear_cls: LinearClass):
        super().__init__()
        self.dense = linear_cls(c.hidden_size, c.hidden_size)
        self.LayerNorm = LayerNorm(c.hidden_size, 1e-12)  # whatever layer_norm_eps is
        self.approximate = ACTIVATIONS[c.hidden_act]

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(h), approximate=self.approximate))


class Predictions(torch.nn.Module):
    """Hidden states to vocabulary logits. Not a Linear: what shards or swaps every Linear must leave the tie alone."""

    def __init__(self, c: M2BertConfig, words: torch.nn.Embedding, linear_cls: LinearClass):
        super().__init__()
        self.transform = Transform(c, linear_cls)
        self.decoder = torch.nn.ParameterDict({"weight": words.weight, "bias": torch.zeros(c.vocab_size)})

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return tkpy.linear(self.transform(h), self.decoder["weight"], self.decoder["bias"])


class Backbone(torch.nn.Module):
    """Embeddings and layers, (B, L) ids -> (B, L, hidden); hooks on `encoder.layer[i]` see every hidden state."""

    def __init__(self, c: M2BertConfig, linear_cls: LinearClass):
        super().__init__()
        self.embeddings = Embeddings(c)
        layers = torch.nn.ModuleList(Layer(c, linear_cls) for _ in range(c.num_hidden_layers))
        self.encoder = torch.nn.ModuleDict({"layer": layers})
        self.pooler = torch.nn.ModuleDict({"dense": linear_cls(c.hidden_size, c.hidden_size)}) if c.pooler else None

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        h = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder["layer"].children():
            h = layer(h)
        return h

    def pool(self, h: torch.Tensor, mask: torch.Tensor | None, *, mean: bool) -> torch.Tensor:
        """tanh(dense(x)), x the first token's state or the mean over the mask: (B, hidden)."""
        if self.pooler is None:
            raise ValueError("M2Bert: pooling needs the pooler, which this model lacks (pooler=False)")
        x = h[:, 0]
        if mean:
            weight = torch.ones_like(h[..., :1]) if mask is None else mask.to(h.dtype)[..., None]
            x = (h * weight).sum(1) / weight.sum(1).clamp_min(1)
        return torch.tanh(self.pooler["dense"](x))


class M2Bert(torch.nn.Module, Pretrained):
    """M2-BERT with its heads: `model(input_ids, attention_mask=None, token_type_ids=None) -> M2BertOutput`.

    State-dict names are the original's, and so is the initialisation (Linear and Embedding N(0, 0.02), block-diagonal
    layers scaled Kaiming), except that every layer is drawn by itself: the original copies one.

    Args:
        config: the architecture; see `M2BertConfig`.
        linear_cls: builds every dense projection (not the filters, nor the tied decoder).
    """

    def __init__(self, config: M2BertConfig, *, linear_cls: LinearClass = Linear):
        super().__init__()
        self.config = config
        self.tokenizer: WordPiece | None = None
        self.bert = Backbone(config, linear_cls)
        self.cls: torch.nn.ModuleDict | None = None
        if config.mlm_head:
            words = self.bert.embeddings.word_embeddings
            self.cls = torch.nn.ModuleDict({"predictions": Predictions(config, words, linear_cls)})
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = torch.nn.Dropout(dropout)
        self.classifier = linear_cls(config.hidden_size, config.num_labels) if config.num_labels else None
        self.apply(self._initialise)
        torch.nn.init.zeros_(self.bert.embeddings.word_embeddings.weight[config.pad_token_id])

    def _initialise(self, module: torch.nn.Module) -> None:
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                torch.nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        logits: bool | None = None,
    ) -> M2BertOutput:
        """Encode a batch and apply the heads.

        Args:
            input_ids: (B, L) integers, 1 <= L <= config.max_length.
            attention_mask: (B, L), 1 where a token counts for `pooled_mean`; nothing else depends on it.
            token_type_ids: (B, L); zeros by default.
            labels: (B, L) token ids for the MLM loss. As in the original, only labels > 0 count: -100 and the padding
                token are ignored. The head is computed at those places only.
            logits: whether to compute `mlm_logits` (B, L, vocab): by default unless `labels` are given. They take 4 GB
                at 32768 tokens, so pass False where they are not wanted.
        """
        self._check(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        h = self.bert(input_ids, token_type_ids)
        pooled_cls = pooled_mean = cls_logits = mlm_logits = mlm_loss = None
        if self.bert.pooler is not None:
            pooled_cls, pooled_mean = (self.bert.pool(h, attention_mask, mean=mean) for mean in (False, True))
            if self.classifier is not None:
                cls_logits = self.classifier(self.dropout(pooled_mean if self.config.pool_all else pooled_cls))
        if self.cls is not None:
            if logits or (logits is None and labels is None):
                mlm_logits = self.cls["predictions"](h)
            if labels is not None:
                wanted = labels > 0
                predicted = self.cls["predictions"](h[wanted]).float()
                loss = F.cross_entropy(predicted, labels[wanted].long(), reduction="sum")
                mlm_loss = loss / wanted.sum().clamp_min(1)
        return M2BertOutput(h, mlm_logits, pooled_cls, pooled_mean, cls_logits, mlm_loss)

    def _check(self, input_ids: torch.Tensor, **others: torch.Tensor | None) -> None:
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise ValueError(f"M2Bert: input_ids must be integers (B, L), got {input_ids.dtype} {input_ids.shape}")
        if not 1 <= input_ids.shape[1] <= self.config.max_length:
            needed = f"1 to {self.config.max_length} tokens (long_conv_l_max, max_position_embeddings)"
            raise ValueError(f"M2Bert: input_ids must hold {needed}, got {input_ids.shape[1]}")
        for name, value in others.items():
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"M2Bert: {name} must be {tuple(input_ids.shape)} as input_ids, got {value.shape}")
        if others["labels"] is not None and self.cls is None:
            raise ValueError("M2Bert: labels need the MLM head, which this model lacks (mlm_head=False)")

    @torch.no_grad()
    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]] | torch.Tensor,
        *,
        max_length: int | None = None,
        padding: str = "max_length",
        batch_size: int = 8,
        normalize: bool = False,
    ) -> torch.Tensor:
        """The original's `sentence_embedding` of texts (or of token ids): (N, hidden), not of unit length.

        It is tanh(dense(h)) of the first token, or of the masked mean where the configuration says `pool_all`; compare
        by cosine. Queries and documents are treated alike, without a prompt.

        Padding is part of the input: the model has no attention mask, so it sees every padding token. The released
        retrieval checkpoints were trained on inputs padded to their full length, and embeddings of unpadded texts are
        close to random for them; hence padding="max_length", at full cost for short texts. A model trained otherwise
        may use "longest" (of its batch; embeddings then depend on the batch) or "none" (one text at a time).

        Args:
            texts: strings, tokenised by `self.tokenizer` (found by `from_pretrained` in the checkpoint folder) with
                [CLS] and [SEP]; or token ids, taken as they are: sequences of any length, or a (N, L) tensor.
            max_length: tokens kept of a text, and padded to; the model's maximum by default.
            padding: "max_length", "longest" or "none".
            batch_size: sequences per forward.
            normalize: divide by the Euclidean norm.
        """
        limit = self.config.max_length if max_length is None else max_length
        if not 1 <= limit <= self.config.max_length or batch_size < 1:
            needed = f"max_length in 1..{self.config.max_length} and batch_size >= 1"
            raise ValueError(f"M2Bert.embed: needs {needed}, got {limit} and {batch_size}")
        if padding not in ("max_length", "longest", "none"):
            raise ValueError(f"M2Bert.embed: padding must be 'max_length', 'longest' or 'none', got {padding!r}")
        batch_size = 1 if padding == "none" else batch_size
        sequences = to_token_ids("M2Bert.embed", texts, self.tokenizer, limit, self.config.vocab_size)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        words, pad = self.bert.embeddings.word_embeddings.weight, self.config.pad_token_id
        found = [words.new_empty(0, self.config.hidden_size)]
        try:
            for batch in (sequences[i : i + batch_size] for i in range(0, len(sequences), batch_size)):
                length = limit if padding == "max_length" else max(map(len, batch))
                ids = torch.tensor([s + [pad] * (length - len(s)) for s in batch], device=words.device)
                found.append(self.bert.pool(self.bert(ids), ids != pad, mean=self.config.pool_all))
        finally:
            for module, training in modes.items():
                module.training = training
        result = torch.cat(found)
        return F.normalize(result.float(), dim=-1).to(result.dtype) if normalize else result

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Self:
        """The model of an original checkpoint: config keys of its yaml or its Hugging Face config.json, and the state
        dict, also as Composer wraps it (`state.model`, names prefixed with `model.`).

        FlashFFTConv's constants (`.flashfft.`) are left out. What shapes and names tell is read off them and not off
        the configuration, which contradicts them in released models (hyena_training_additions) or is absent (Composer).
        A pooler or classifier that is wanted but not in the checkpoint is initialised, with a warning.
        """
        while "state" in state_dict or "model" in state_dict:
            state_dict = state_dict["state" if "state" in state_dict else "model"]
        state = {n.removeprefix("model."): t for n, t in state_dict.items() if ".flashfft." not in n}
        if not config.get("monarch_mixer_sequence_mixing", True):
            raise ValueError("M2Bert: monarch_mixer_sequence_mixing must be true, not the attention baseline")
        known = {f.name for f in fields(M2BertConfig)}
        c = M2BertConfig(**{k: v for k, v in config.items() if k in known} | _from_weights(config, state))
        with torch.device("meta"):
            model = cls(c)
        if c.use_positional_encodings:  # newer Hugging Face versions do not save it
            state.setdefault("bert.embeddings.position_ids", torch.arange(c.max_position_embeddings)[None])
        heads = [n for n in model.state_dict() if n.startswith(("bert.pooler.", "classifier.")) and n not in state]
        for name in heads:
            fresh = torch.zeros(model.get_parameter(name).shape)
            state[name] = fresh.normal_(std=c.initializer_range) if name.endswith("weight") else fresh
        if heads:
            warnings.warn(f"M2Bert: not in the checkpoint, so initialised: {', '.join(heads)}", stacklevel=2)
        assign(model, state, ignore=("bert.embeddings.position_ids", "cls.seq_relationship.*"))
        return model

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Self:
        """As `Pretrained.from_pretrained`; the folder's tokenizer.json or vocab.txt, if any, becomes `tokenizer`."""
        model = super().from_pretrained(folder, **options)
        model.tokenizer = WordPiece.find(folder)
        return model

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        """As `Pretrained.save_pretrained`, and the tokenizer."""
        super().save_pretrained(folder, **options)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    def reference_config(self) -> dict[str, Any]:
        """The configuration in the original's keys."""
        return {"model_type": "m2_bert", "monarch_mixer_sequence_mixing": True} | asdict(self.config)


def _from_weights(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the weights themselves say of the configuration."""
    first = "bert.encoder.layer.0."
    try:
        words = state["bert.embeddings.word_embeddings.weight"]
        z, wo = state[first + "attention.filter_fn.pos_emb.z"], state[first + "mlp.wo.weight"]
        order = state[first + "attention.filter_fn.implicit_filter.1.freq"].shape[-1]
    except KeyError as error:
        raise ValueError(f"M2Bert: the state dict has no {error}; got names such as {list(state)[:5]}") from error
    found: dict[str, Any] = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "long_conv_l_max": z.shape[1],
        "hyena_emb_dim": z.shape[2],
        "hyena_filter_order": order,
        "bidirectional": first + "attention.filter_fn.implicit_filter_rev.0.weight" in state,
        "residual_long_conv": first + "attention.filter_fn2.bias" in state,
        "use_monarch_mlp": wo.dim() == 3,
        "num_hidden_layers": 1 + max(int(n.split(".")[3]) for n in state if n.startswith("bert.encoder.layer.")),
        "hyena_training_additions": first + "attention.layernorm.weight" in state,
        "mlm_head": "cls.predictions.decoder.bias" in state,
    }
    # Both sizes are padded where nblocks does not divide them.
    inner = wo.shape[0] * wo.shape[2] if wo.dim() == 3 else wo.shape[1]
    outer = math.prod(state[first + "mlp.gated_layers.weight"].shape[:-1])
    found["use_glu_mlp"] = outer > 1.5 * inner
    found["intermediate_size"] = config.get("intermediate_size", min(inner, outer // (1 + found["use_glu_mlp"])))
    if wo.dim() == 3:
        found["monarch_mlp_nblocks"] = wo.shape[0]
    positions = state.get("bert.embeddings.position_embeddings.weight")
    found["use_positional_encodings"] = positions is not None
    found["max_position_embeddings"] = z.shape[1] if positions is None else positions.shape[0]
    if "classifier.weight" in state:
        found["num_labels"] = state["classifier.weight"].shape[0]
    elif "id2label" in config:
        found["num_labels"] = len(config["id2label"])
    return found
