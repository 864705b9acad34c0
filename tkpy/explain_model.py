"""Which backend serves every op call of a model, and why, and what memory the model takes: `tkpy.explain_model(model,
ids)`, `tkpy explain-model`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import click
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

import tkpy
from tkpy import registry
from tkpy.live_memory import LiveMemory
from tkpy.registry import AUTOMATIC, BACKENDS, Explanation
from tkpy.text import table


@dataclasses.dataclass(frozen=True)
class OpCall:
    """One op call of a model: the module it came from ("blocks.3.att"; "" is the model), and the choice."""

    module: str
    explanation: Explanation
    inputs: str

    @property
    def backend(self) -> str:
        return self.explanation.chosen or "none"


@dataclasses.dataclass(frozen=True)
class ModelExplanation:
    """Every op call of one forward, in order; as text: calls alike in one row, then why faster backends refused.

    `weight_bytes` are of parameters and buffers, `peak_bytes` of all tensors at the forward's fullest moment: weights,
    inputs, and what operators have returned and is still held; with gradients, what the backward will need. What a
    kernel takes and gives back within one call is not in it.
    """

    calls: tuple[OpCall, ...]
    weight_bytes: int
    peak_bytes: int

    def __str__(self) -> str:
        alike: dict[tuple[str, str, str], list[str]] = {}
        for call in self.calls:
            where = re.sub(r"\.\d+(?=\.|$)", ".*", call.module) or "the model itself"
            alike.setdefault((call.explanation.op, call.backend, call.inputs), []).append(where)
        rows = [
            [op, backend, str(len(places)), inputs, ", ".join(dict.fromkeys(places))]
            for (op, backend, inputs), places in alike.items()
        ]
        calls = table(["op", "backend", "calls", "inputs", "where"], rows)
        peak, weights = (f"{size / 2**30:.2f} GiB" for size in (self.peak_bytes, self.weight_bytes))
        memory = f"\nmemory: {peak} at the fullest moment, {weights} of it weights"
        return "\n".join([calls, memory, *self._reasons()])

    def _reasons(self) -> Iterator[str]:
        """Each refusal of a backend that comes before the chosen one (where nothing was chosen: of all), once."""
        found: dict[str, list[str]] = {}
        for call in self.calls:
            explanation = call.explanation
            for backend in _passed_over(explanation):
                for refusal in explanation.refusals[backend]:
                    text = str(refusal).replace(f"'{explanation.op}'", "the op")
                    found.setdefault(f"{backend}  {text}", []).append(explanation.op)
        if found:
            yield "\nrefusals:"
        for text, ops in found.items():
            yield f"  {text}  ({', '.join(dict.fromkeys(ops))})"


def _passed_over(explanation: Explanation) -> list[str]:
    order = [b for b in AUTOMATIC["cuda"] if b != explanation.chosen]
    return [b for b in order if explanation.refusals[b] and b != "eager"]


def _describe(args: Mapping[str, Any]) -> str:
    """The first tensor's shape and dtype, and the options that are on."""
    first = next(a for a in args.values() if isinstance(a, torch.Tensor))
    options = [
        name if value is True else f"{name}={value}"
        for name, value in args.items()
        if isinstance(value, (bool, str)) and value not in (False, "", "none")
    ]
    return " ".join([f"{tuple(first.shape)} {str(first.dtype).removeprefix('torch.')}", *options])


@contextmanager
def _modules_of(model: torch.nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose forward is running, innermost last.

    By PyTorch's hooks on all modules: one of its own would make a layer's products visible calls (`tkpy.nn.bare`), and
    the model would run other ops than it does unwatched.
    """
    names = {module: name for name, module in model.named_modules() if name}
    running = [""]

    def enter(module: torch.nn.Module, _: Any) -> None:
        running.append(names.get(module, running[-1]))

    def leave(*_: Any) -> None:
        running.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def explain_model(
    model: torch.nn.Module, *args: Any, device: str | torch.device | None = None, **kwargs: Any
) -> ModelExplanation:
    """Run `model(*args, **kwargs)`, and print and return which backend serves every op call of it, why, and the memory.

    `device`: answer as if all tensors were there. With "cuda" on a machine without one: on compute capability 9.0.

    Raises:
        tkpy.Unsupported: as the model itself would, where a backend is forced that cannot serve a call.
    """
    calls: list[OpCall] = []
    weights = LiveMemory([*model.parameters(), *model.buffers()]).live
    memory = LiveMemory([*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))])
    with _modules_of(model) as running:

        def watch(explanation: Explanation) -> None:
            assert explanation.call is not None
            inputs = _describe(explanation.call.args)  # which are not kept: they are the memory
            calls.append(OpCall(running[-1], dataclasses.replace(explanation, call=None), inputs))

        with registry.watch_calls(watch, device), memory:
            model(*args, **kwargs)
    explained = ModelExplanation(tuple(calls), weights, memory.peak)
    print(explained)
    return explained


# ----------------------------------------------------------------------------------------------------- the command
def _models(tokens: int) -> dict[str, tuple[str, Callable[[], torch.nn.Module]]]:
    """By name: what it is, and how it is made (on the device meta: it takes no memory and no time)."""
    from tkpy.models import RWKV5, M2Bert, M2BertConfig, SparseTransformer, StripedHyena, StripedHyenaConfig

    bert = M2BertConfig(max_position_embeddings=tokens, long_conv_l_max=tokens)
    evo = StripedHyenaConfig
    return {
        "rwkv-5": ("RWKV-5 World 1.5B", RWKV5),
        "evo-1-8k": ("Evo-1, 7B, 8k", lambda: StripedHyena(evo.evo_1_8k())),
        "evo-1-131k": ("Evo-1, 7B, 131k", lambda: StripedHyena(evo.evo_1_131k())),
        "llama-2": ("Llama-2 7B (models/sparse_transformer.py, dense)", SparseTransformer),
        "m2-bert": ("M2-BERT-80M", lambda: M2Bert(bert)),
    }


@click.command(name="explain-model")
@click.argument("name", metavar="MODEL", required=False)
@click.option("--batch", default=1, type=click.IntRange(min=1), show_default=True)
@click.option("--tokens", default=2048, type=click.IntRange(min=1), show_default=True)
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float16", "float32"]), show_default=True)
@click.option("--device", default="cuda", type=click.Choice(["cuda", "cpu"]), show_default=True)
@click.option("--backend", default=None, type=click.Choice(BACKENDS), help="Force this one; it may refuse.")
@click.option("--train", is_flag=True, help="With gradients.")
@click.option("--decode", is_flag=True, help="One token after so many.")
def command(
    name: str | None, batch: int, tokens: int, dtype: str, device: str, backend: str | None, train: bool, decode: bool
) -> None:
    """Show which backend serves every op call of a model, why, and what memory it takes. Without MODEL: the models.

    Nothing is computed, so sizes do not matter. Where there is no GPU, `--device cuda` answers for compute capability
    9.0. For a model of your own: tkpy.explain_model(model, ids) in Python.
    """
    known = _models(tokens)
    if name is None:
        click.echo("\n".join(f"{key:<12}{what}" for key, (what, _) in known.items()))
        return
    if name not in known:
        raise click.UsageError(f"no model {name!r}; the models are {', '.join(known)}")
    what, build = known[name]
    where = device if device == "cpu" or torch.cuda.is_available() else "cuda (none here: compute capability 9.0)"
    does = "one token after " if decode else ""
    click.echo(
        f"{what}: {batch} x {does}{tokens} tokens, {dtype}, {'training' if train else 'inference'}, on {where}\n"
    )
    forced = registry.use_backend(backend) if backend else nullcontext()
    with torch.device("meta"), torch.set_grad_enabled(train):
        model = build().to(getattr(torch, dtype)).train(train)
        ids = torch.zeros(batch, tokens, dtype=torch.int64)
        inputs = [ids]
        if decode:
            if name == "m2-bert":
                raise click.UsageError("m2-bert has no --decode: it reads texts whole")
            inputs = [ids[:, :1], model(ids, last_only=True)[1]]
        with forced:
            try:
                explain_model(model, *inputs, device=device)
            except tkpy.Unsupported as error:
                raise click.ClickException(str(error)) from error
