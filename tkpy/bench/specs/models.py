"""Rows of whole models with random weights: prompts and decoding, on tkpy's kernels and on PyTorch's.

Ours is the model as a user runs it: every op takes the backend that is chosen for it, and the row says which. Where
not one op has a kernel of ours, nothing of ours is timed. The peer is the same model with every op in its eager form.

The gate compares logits with the same weights in float32, in the eager form: in a low precision a deep model differs
from that by more than one op's tolerance, so ours may err by at most twice what the eager form errs in the same
dtype.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tkpy import models
from tkpy.bench.spec import Benchmark, Environment, Peer, Subject
from tkpy.nn import Cache
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import record_dispatches, use_backend

DTYPE = torch.bfloat16
SLACK = 2.0


@dataclass(frozen=True)
class Model:
    """One row: `build()` makes the model, `run(model, ids)` gives logits; `context`: tokens in the cache beforehand."""

    name: str
    what: str
    build: Callable[[], torch.nn.Module]
    vocabulary: int
    batch: int
    tokens: int
    context: int = 0


def _m2_bert(length: int) -> Callable[[], torch.nn.Module]:
    config = models.M2BertConfig(max_position_embeddings=length, long_conv_l_max=length, pooler=False)
    return lambda: models.M2Bert(config)


def _evo(layers: int) -> Callable[[], torch.nn.Module]:
    config = replace(models.StripedHyenaConfig.evo_1_8k(), num_layers=layers, attn_layer_idxs=(layers // 2,))
    return lambda: models.StripedHyena(config)


def _llama(layers: int) -> Callable[[], torch.nn.Module]:
    return lambda: models.SparseTransformer(models.SparseTransformerConfig(num_layers=layers))


def _rwkv(layers: int) -> Callable[[], torch.nn.Module]:
    return lambda: models.RWKV5(models.RWKV5Config(num_layers=layers))


MODELS = (
    Model("evo-1 4 layers/8k", "four layers of Evo-1, one of them attention, on 8k bases", _evo(4), 512, 1, 8192),
    Model("rwkv-5 1.5B 4 layers/prompt 4k", "four layers of RWKV-5 1.5B on a prompt", _rwkv(4), 65536, 1, 4096),
    Model("rwkv-5 1.5B 4 layers/decode", "the same, one token for 32 sequences", _rwkv(4), 65536, 32, 1, 16),
    Model("llama 7B 4 layers/prompt 4k", "four layers of a Llama-2 7B on a prompt", _llama(4), 32000, 1, 4096),
    Model("llama 7B 4 layers/decode", "the same, one token for 8 sequences at 4k", _llama(4), 32000, 8, 1, 4096),
    Model("m2-bert 80M/2k", "M2-BERT-80M on 8 texts of 2k tokens", _m2_bert(2048), 30528, 8, 2048),
)


def _logits(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output.mlm_logits


def _widened(state: Cache | None) -> Cache | None:
    """A cache with its low-precision tensors in float32."""
    return state and state.map(lambda t: t.float() if t.dtype == DTYPE else t)


def _dense_parameters(model: torch.nn.Module) -> int:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in tables)


def prepare(spec: Model, env: Environment) -> Subject:
    """The model on the environment's device, its logits in float32 as the gate, and what served its ops."""
    torch.manual_seed(0)
    with torch.device(env.device):
        model = spec.build().eval().requires_grad_(False)
    wide = copy.deepcopy(model).float()
    model = model.to(DTYPE)
    ids = torch.randint(1, spec.vocabulary, (spec.batch, spec.tokens), device=env.device)
    state: Cache | None = None
    with torch.no_grad(), use_backend("eager"):
        if spec.context:
            prompt = torch.randint(1, spec.vocabulary, (spec.batch, spec.context), device=env.device)
            state = model(prompt, last_only=True)[1]
        expected = _logits(_call(wide, ids, _widened(state)))
        eager = compare(_logits(_call(model, ids, state)), expected, 1.0)
    del wide
    tolerance = max(SLACK * eager.relative, TOLERANCE[DTYPE])

    def run() -> torch.Tensor:
        return _logits(_call(model, ids, state))

    with torch.no_grad(), record_dispatches() as log:
        run()
    served = Counter(f"{d.op} by {d.backend}" for d in log)
    is_ours = any(d.backend in env.ours for d in log)
    return Subject(
        inputs=run,
        ours={"tkpy": run} if is_ours else {},
        gate=lambda out: compare(out, expected, tolerance),
        refused={} if is_ours else {"tkpy": "no op of it has a kernel of ours here"},
        flops=2 * _dense_parameters(model) * ids.numel(),
        notes={"served": dict(served)},
    )


def _call(model: torch.nn.Module, ids: torch.Tensor, state: Cache | None) -> Any:
    return model(ids) if state is None else model(ids, state)


def _eager(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with use_backend("eager"):
            return run()

    return call


def benchmark(spec: Model, rank: int = 300) -> Benchmark:
    """The row of one model."""
    return Benchmark(
        name=f"{spec.name}/bfloat16",
        suite="models",
        what=spec.what,
        shapes={"batch": spec.batch, "tokens": spec.tokens, "context": spec.context},
        inputs="random weights of the model's own initialisation, uniform token ids",
        prepare=lambda env: prepare(spec, env),
        dtype="bfloat16",
        peers=(Peer("torch eager", _eager),),
        rank=rank,
    )


BENCHMARKS = tuple(benchmark(spec) for spec in MODELS)
