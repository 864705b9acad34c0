"""Every peer of the ops' rows computes what the op does: its gate is green on the CPU, at small, odd sizes.

torch.compile is left out (the function it is given is called as it is), and packages that are not installed are stood
in for by their documented formulas.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import replace

import pytest
import torch

import tkpy
from tkpy import registry
from tkpy.bench import runner
from tkpy.bench.op_rows import by_op, compiled
from tkpy.bench.spec import Environment, Peer, discover
from tkpy.bench.specs.attention_blocks import BLOCKS
from tkpy.bench.specs.attention_fp8 import PACKED
from tkpy.bench.timer import WallTimer

pytestmark = pytest.mark.fast

SIZES = {
    "layer_norm": "7x130",
    "rms_norm": "7x130",
    "group_norm": "5x3x20",
    "rotary": "2x9x3x20",
    "token_shift": "2x7x12x3",
    "merge_state": "2x7x3x10",
    "wkv5": "2x9x3x8x1",
    "short_conv": "2x5x11x3x1",
    "modal_conv": "2x5x4x33",
    "hyena_mixer": "2x33x6x4x3x2",
    "fft_conv": "2x5x33",
    "hyena_filter": "37x10x16x2",
    "blockdiag_linear": "7x3x10x6",
    "monarch_multiply": "5x6",
    "gated_mlp": "7x10x12",
    "blockdiag_mlp": "7x3x6x8",
}
STEPS = {"wkv5_step": "2x3x8", "hyena_step": "2x6x4x3x2", "time_mix_step": "2x10x3x8"}  # which are not trained
ABSENT = {"flash-attn", "fla chunk_rwkv6", "fla fused_recurrent_rwkv6", "causal_conv1d", "flashfftconv"}


def _rwkv6(r, k, v, w, u, scale, initial_state, output_final_state):
    state = initial_state if initial_state is not None else r.new_zeros(*r.shape[::2], *v.shape[3:]).float()
    outputs = []
    for step in range(r.shape[1]):
        r1, k1, v1, w1 = (t[:, step].float() for t in (r, k, v, w))
        new = k1[..., None] * v1[..., None, :]
        outputs.append(((scale * r1)[..., None] * (state + u[..., None] * new)).sum(-2))
        state = w1.exp()[..., None] * state + new
    return torch.stack(outputs, 1).to(r.dtype), state if output_final_state else None


def _rotary(x, cos, sin):
    """Channels of one rotated pair lie half a head apart."""
    assert cos.dtype == x.dtype
    pairs = (
        torch.complex(*x.float().unflatten(-1, (2, -1)).unbind(-2)) * torch.complex(cos.float(), sin.float())[:, None]
    )
    return torch.view_as_real(pairs).transpose(-1, -2).flatten(-2).to(x.dtype)


def _causal_conv1d(x, weight, bias, activation):
    taps = weight.shape[1]
    windows = torch.nn.functional.pad(x.float(), (taps - 1, 0)).unfold(-1, taps, 1)
    y = (windows * weight[:, None].float()).sum(-1) + bias[:, None].float()
    return (y * torch.sigmoid(y) if activation == "silu" else y).to(x.dtype)


class _FlashFFTConv(torch.nn.Module):
    def __init__(self, size, dtype):
        super().__init__()
        self.size, self.dtype = size, dtype

    def forward(self, u, k, before, after):
        assert u.dtype == before.dtype == after.dtype == self.dtype
        assert k.dtype == torch.float32
        spectrum = torch.fft.rfft((u * before).float(), self.size) * torch.fft.rfft(k, self.size)
        return (torch.fft.irfft(spectrum, self.size)[..., : u.shape[-1]] * after).to(self.dtype)


STAND_INS = {
    "fla.ops.rwkv6": {"chunk_rwkv6": _rwkv6, "fused_recurrent_rwkv6": _rwkv6},
    "flash_attn.layers.rotary": {"apply_rotary_emb": _rotary},
    "causal_conv1d": {"causal_conv1d_fn": _causal_conv1d},
    "flashfftconv": {"FlashFFTConv": _FlashFFTConv},
}


@pytest.fixture
def stand_ins(monkeypatch):
    for name, contents in STAND_INS.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch, "compile", lambda form, **options: form)


def rows_of(op, dtype, which="forward"):
    spec = by_op()[op]
    env = Environment(torch.device("cpu"), WallTimer(), ours=())
    sizes = {**SIZES, **STEPS, "linear": "7x10x6", "attention": "2x9x9x4x2x16x1"}[op]
    return list(runner.run([spec.row(spec.parse(sizes), dtype, which)], env, seconds=1e-4))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("op", [*SIZES, *STEPS])
def test_every_peer_passes_its_gate(op, dtype, stand_ins):
    found = rows_of(op, dtype)
    assert {row["candidate"]: row["status"] for row in found} == {row["candidate"]: "ok" for row in found}
    assert {row["candidate"] for row in found} - {"torch eager"}


@pytest.mark.parametrize("which", ["backward", "forward+backward"])
@pytest.mark.parametrize("op", [*SIZES, "linear", "attention"])
def test_every_backward_passes_its_gate(op, which, stand_ins):
    """Of attention's peers the CPU has one."""
    found = {row["candidate"]: row["status"] for row in rows_of(op, "float32", which)}
    if op == "attention":
        assert found.pop("sdpa flash") == "ok"
        assert set(found.values()) == {"refused"}
    else:
        assert found
        assert set(found.values()) == {"ok"}


def test_a_wrong_backward_is_never_timed(monkeypatch):
    def wrong(kwargs):
        return lambda: torch.matmul(kwargs["x"], kwargs["weight"].detach().t()) + 0 * kwargs["weight"].sum()

    spec = replace(by_op()["linear"], peers=(Peer("wrong", wrong),))
    env = Environment(torch.device("cpu"), WallTimer(), ours=())
    (row,) = runner.run([spec.row(spec.parse("7x10x6"), "float32", "backward")], env, seconds=1e-4)
    assert row["status"] == "wrong"


def test_every_op_with_a_backward_has_a_row_of_it():
    rows = {b.name for b in discover() if b.suite == "ops"}
    for op in (*SIZES, "linear", "attention"):
        for which in ("backward", "forward+backward"):
            assert any(name.startswith(f"{op}/{which} ") for name in rows)
    for op in (*STEPS, "attention_decode"):
        assert not any(name.startswith(f"{op}/backward") for name in rows)


def test_attention_by_blocks(stand_ins):
    """FlexAttention on the same blocks, and the gate that gathers the keys of a block of queries."""
    row = BLOCKS.row({"b": 2, "s": 256, "h": 2, "d": 16, "block": 64, "kept": 2}, "float32")
    env = Environment(torch.device("cpu"), WallTimer(), ours=("eager",))
    found = list(runner.run([row], env, seconds=1e-4))
    assert {row["candidate"]: row["status"] for row in found} == dict.fromkeys(
        ("eager", "FlexAttention, compiled"), "ok"
    )


def test_attention_of_packed_eight_bit_sequences(monkeypatch):
    """FlashAttention-3's packed form gets the same offsets, and the gate takes the sequences one by one."""

    def varlen(q, k, v, offsets_q, offsets_k, longest_q, longest_k, causal):
        assert longest_q == longest_k == offsets_q.diff().max()
        q, k, v = (t.float() for t in (q, k, v))
        return tkpy.attention(q, k, v, causal=causal, cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k).bfloat16()

    module = types.ModuleType("flash_attn_interface")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn_interface", None)
    module.flash_attn_varlen_func = varlen
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    row = PACKED.row({"n": 3, "s": 37, "h": 2, "d": 16, "causal": 1}, "float8_e4m3fn")
    env = Environment(torch.device("cpu"), WallTimer(), ours=("eager",))
    found = list(runner.run([row], env, seconds=1e-4))
    assert {row["candidate"]: row["status"] for row in found} == dict.fromkeys(("eager", "flash-attn 3"), "ok")


def test_absent_packages_are_named(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda form, **options: form)
    for name in STAND_INS:
        monkeypatch.setitem(sys.modules, name, None)
    found = [row for op in SIZES for row in rows_of(op, "float32") if row["status"] == "refused"]
    assert {row["candidate"] for row in found} == ABSENT
    assert all("is not installed" in row["reason"] for row in found)


def test_every_op_that_models_use_has_rows_and_peers():
    rows = [b for b in discover() if b.suite == "ops"]
    assert {b.group for b in rows} >= set(SIZES)
    assert set(registry.ops()) == {b.group for b in rows} & set(registry.ops())
    for op in SIZES:
        mine = [b for b in rows if b.group == op]
        assert len(mine) >= 4
        assert all(any(p.name != "torch eager" for p in b.peers) for b in mine)
        assert min(b.rank for b in mine) == 110  # one size of every op comes before the others
        assert max(b.rank for b in mine if "forward+" not in b.name) == 200


def test_a_peer_is_compiled_anew_for_each_row(monkeypatch):
    log = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: log.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda form, dynamic: log.append(("compile", dynamic)) or form)
    call = compiled(lambda x, y: x - y).build({"y": 2, "x": 5})
    assert log == ["reset", ("compile", False)]
    assert call() == 3
