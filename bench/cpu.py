"""The eager path on a processor against the originals: `python -m bench.cpu [rwkv] [modal] [m2]`.

    rwkv    RWKV-5, dims of the 1.5B, 2 layers, prompt of 512 tokens     the pip package rwkv (0.8.32), its strategies
    modal   modal_conv, width 256, 8 modes, 8k and 32k samples           filter values + FFT, in plain PyTorch
    m2      M2-BERT-80M on one text of 512, 2k, 8k tokens                BERT-base in PyTorch with its fused attention

Each ratio is of medians of calls that took turns in one process, after outputs were compared: ours and the peer's
run the same numbers (rwkv: one checkpoint; modal: the same poles). Memory is the peak of what the call allocates, by
torch's profiler, its result included. M2-BERT and BERT-base are different functions of equal width and depth; nothing
can be compared but finiteness. The goals are those that the last column names. `pip install rwkv==0.8.32` for `rwkv`.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import tkpy
from tkpy import models
from tkpy.cli import machine
from tkpy.numerics import compare
from tkpy.text import table

Call = Callable[[], Any]
SECONDS = 8.0  # per row
ROUNDS = (3, 30)


@dataclass(frozen=True)
class Line:
    """One row of the table: ours, the peer, and the goal for their ratio."""

    name: str
    peer: str
    ours_seconds: float
    peer_seconds: float
    goal: float
    memory: str = ""

    def cells(self) -> list[str]:
        ratio = self.peer_seconds / self.ours_seconds
        met = "met" if ratio >= self.goal else "MISSED"
        times = [f"{1e3 * s:.1f}" for s in (self.ours_seconds, self.peer_seconds)]
        return [self.name, self.peer, *times, f"{ratio:.2f}x", self.memory, f">= {self.goal:g}x {met}"]


def medians(calls: Mapping[str, Call]) -> dict[str, float]:
    """Seconds of each call, the median of rounds in which all of them take turns; each has run before, in its gate."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(times[next(iter(calls))]) < ROUNDS[0] or (
        time.perf_counter() - start < SECONDS and len(times[next(iter(calls))]) < ROUNDS[1]
    ):
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(values) for name, values in times.items()}


def require(what: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    verdict = compare(got, expected, tolerance)
    if not verdict:
        raise SystemExit(f"{what} computes something else, and is not timed: {verdict.reason}")


def peak_bytes(call: Call) -> int:
    """The most that torch has allocated at one time while `call` runs."""
    call()
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


# ------------------------------------------------------------------------------------------------------------- rwkv
def rwkv() -> Iterator[Line]:
    """Prefill: each CPU strategy of the pip package against ours in the dtype of its activations (fp32i8: bfloat16)."""
    os.environ.setdefault("RWKV_JIT_ON", "1")
    os.environ.setdefault("RWKV_CUDA_ON", "0")
    try:
        version = importlib.metadata.version("rwkv")
        from rwkv.model import RWKV as PipRWKV
    except ImportError:
        raise SystemExit("rwkv needs the peer: pip install rwkv==0.8.32") from None
    torch.manual_seed(0)
    model = models.RWKV5(models.RWKV5Config(num_layers=2)).eval().requires_grad_(False)
    for p in model.parameters():
        if p.dim() == 2 and p.abs().max() == 0:  # the trainer starts these at 0, and the layers would do nothing
            torch.nn.init.normal_(p, std=0.5 / p.shape[1] ** 0.5)
    ids = torch.randint(0, 65536, (1, 512))
    tokens = ids[0].tolist()
    peers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({k: v.bfloat16() for k, v in model.state_dict().items()}, f"{folder}/model.pth")
        ours = {
            "float32": models.RWKV5.from_pretrained(f"{folder}/model.pth").float().eval().requires_grad_(False),
        }
        ours["bfloat16"] = models.RWKV5.from_pretrained(f"{folder}/model.pth").bfloat16().eval().requires_grad_(False)
        for strategy in ("cpu fp32", "cpu bf16", "cpu fp32i8"):
            peers[strategy] = PipRWKV(model=f"{folder}/model", strategy=strategy, verbose=False)
    with torch.no_grad():
        calls = {f"pip {strategy}": partial(_last_of, peer.forward, tokens, None) for strategy, peer in peers.items()}
        calls |= {f"tkpy {dtype}": partial(_last_of, m, ids, last_only=True) for dtype, m in ours.items()}
        expected = calls["tkpy float32"]()
        for name, call in calls.items():
            require(f"rwkv by {name}", call().float(), expected, 0.1 if name.endswith("i8") else 3e-2)
        seconds = medians(calls)
    for dtype, strategy in (("float32", "cpu fp32"), ("bfloat16", "cpu bf16"), ("bfloat16", "cpu fp32i8")):
        ours_seconds, peer_seconds = seconds[f"tkpy {dtype}"], seconds[f"pip {strategy}"]
        yield Line(f"rwkv-5 prompt 512, {dtype}", f"rwkv {version}, {strategy}", ours_seconds, peer_seconds, 1.15)


def _last_of(model: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """The last token's logits, of our models and of the pip package's."""
    return model(*args, **kwargs)[0].reshape(-1)


# ------------------------------------------------------------------------------------------------------------ modal
def modal(lengths: Sequence[tuple[int, float]] = ((8192, 4.0), (32768, 6.0))) -> Iterator[Line]:
    """modal_conv against its filter's values, made anew as in every call of a model, and an FFT convolution."""
    for length, goal in lengths:
        torch.manual_seed(0)
        width, modes = 256, 8
        u = torch.randn(1, width, length)
        radius, angle = torch.rand(width, modes) * 0.09 + 0.9, torch.rand(width, modes) * 6.28
        poles, residues = torch.polar(radius, angle), torch.randn(width, modes, dtype=torch.complex64)
        skip = torch.randn(width)

        def by_fft(u=u, poles=poles, residues=residues, skip=skip) -> torch.Tensor:
            n = u.shape[-1]
            t = torch.arange(n, dtype=torch.float32)
            h = (residues[..., None] * (poles.log()[..., None] * t).exp()).real.sum(1)
            return (
                torch.fft.irfft(torch.fft.rfft(u, 2 * n) * torch.fft.rfft(h, 2 * n), 2 * n)[..., :n] + skip[:, None] * u
            )

        def ours(u=u, poles=poles, residues=residues, skip=skip) -> torch.Tensor:
            return tkpy.modal_conv(u, poles, residues, skip)[0]

        require(f"modal_conv at {length}", ours(), by_fft(), 1e-3)
        seconds = medians({"ours": ours, "fft": by_fft})
        a, b = peak_bytes(ours), peak_bytes(by_fft)
        memory = f"{a / 2**20:.0f} / {b / 2**20:.0f} MiB = 1/{b / a:.0f}"
        name = f"modal_conv {length} samples, width {width}, {modes} modes"
        yield Line(name, "filter values + FFT", seconds["ours"], seconds["fft"], goal, memory)


# --------------------------------------------------------------------------------------------------------------- m2
class BertLayer(torch.nn.Module):
    """One post-norm layer of BERT (Devlin et al. 2019), with PyTorch's fused attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class BertBase(torch.nn.Module):
    """BERT-base, ids to hidden states: 12 layers of width 768."""

    def __init__(self, length: int, vocabulary: int = 30528, width: int = 768):
        super().__init__()
        self.words, self.positions = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(length, width)
        self.norm = torch.nn.LayerNorm(width)
        self.layers = torch.nn.Sequential(*(BertLayer(width, 12) for _ in range(12)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]]))


def m2(lengths: Sequence[tuple[int, float]] = ((512, 1.0), (2048, 1.0), (8192, 3.0))) -> Iterator[Line]:
    """M2-BERT-80M's hidden states against BERT-base's."""
    for length, goal in lengths:
        torch.manual_seed(0)
        config = models.M2BertConfig(
            max_position_embeddings=length, long_conv_l_max=length, mlm_head=False, pooler=False
        )
        ours = models.M2Bert(config).eval().requires_grad_(False)
        peer = BertBase(length).eval().requires_grad_(False)
        ids = torch.randint(1, 30000, (1, length))
        with torch.no_grad():
            for output in (ours(ids).last_hidden_state, peer(ids)):
                if output.shape != (1, length, 768) or not output.isfinite().all():
                    raise SystemExit(f"m2: an output at {length} tokens is not finite, or of another shape")
            seconds = medians({"ours": partial(ours, ids), "peer": partial(peer, ids)})
        yield Line(f"m2-bert-80M, {length} tokens", "BERT-base", seconds["ours"], seconds["peer"], goal)


PARTS = {"rwkv": rwkv, "modal": modal, "m2": m2}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    print(machine(), flush=True)
    lines = [line.cells() for name in names or PARTS for line in PARTS[name]()]
    print(table(["what", "peer", "ours ms", "peer ms", "ratio", "peak memory", "goal"], lines))


if __name__ == "__main__":
    main(sys.argv[1:])
