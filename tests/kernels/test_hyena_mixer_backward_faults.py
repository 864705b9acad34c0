"""Faults seeded into hyena_mixer's backward: each is one edit of its source, and a finding or a wrong gradient must
give it away on a few small calls and schedules. Those of the convolution in its middle are modal_conv's own."""

import functools

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from mixer_runs import ALL, OP, inputs  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, numerics  # noqa: E402

SLOW = (0.999, 0.9999)  # radii of poles whose states outlast a tile
SYNC = "      __syncthreads();\n"
GATES = "        __syncthreads();\n        gate(which =="
FAULTS = [
    Fault("x2 and dy not waited for", "wait_loads<1>();\n#pragma", "#pragma"),
    Fault("x1 and v not waited for", "if (which == kForth) wait_loads<0>();", ""),
    Fault("rows of others not waited for", GATES, "        gate(which =="),
    Fault("u and g not waited for", SYNC + "      convolve(tile);", "      convolve(tile);"),
    Fault("y not waited for", "convolve(tile);\n" + SYNC, "convolve(tile);\n"),
    Fault("d not waited for", "        __syncthreads();\n        filter_back", "        filter_back"),
    Fault("rows in use fetched over", "== kX1) continue;\n        __syncthreads();", "== kX1) continue;"),
    Fault("sweep: rows not waited for", "      wait_loads<1>();\n      __syncthreads();\n      if (!p", "      if (!p"),
    Fault("taps forwards", "tap[kept - lag][e];\n#pragma", "tap[lag][e];\n#pragma"),
    Fault("the tile after forgotten", "at + k < kSamples ? work_at", "true ? work_at"),
    Fault("sums of another lag", "at + i - min(lag, kept)", "at + i - max(min(lag, kept) - 1, 0)"),
    Fault("lanes joined crosswise", "upper ? x[k + n] : x[k];", "upper ? x[k] : x[k + n];"),
    Fault("the last inputs' gradient forgotten", "dz[i][e] += after(part, e, t);", ""),
    Fault("dz past the end", "if (t >= p.mix.length) break;", ""),
    Fault("dz of no channel", "if (first + e < p.conv.channels) tk::write", "tk::write"),
    Fault("a border's own share forgotten", "border(1, part, e)[t - (last - kept)] = dz[i][e];", ";"),
    Fault("parameters of a channel that is not there", "if (!live()) return;", ""),
    Fault("every segment's start", "p.conv.dstart && segment == 0", "p.conv.dstart"),
    Fault("states of another tile", "modal.find_starts(tile)", "modal.find_starts(begin)"),
    Fault("a tap too few", "if (lag >= taps) break;", "if (lag >= kept) break;"),
    Fault("every share in one place", "share = segment * p.conv.batch + b;", "share = 0;"),
]  # fmt: skip
UNIT = Unit(
    ("hyena_mixer/backward.cuh",),
    [
        Entry(
            "hyena_mixer_backward_bf16",
            "hyena_mixer_backward",
            "tkpy::hyena_mixer::BackwardParams",
            "tkpy::hyena_mixer::mix_backward<tk::bf16>(p)",
            "256",
        )
    ],
    given=(
        "rows/params.h",
        "rows/rows.cuh",
        *(f"modal_conv/{n}" for n in ("params.h", "tables.cuh", "conv.cuh", "backward.cuh")),
        "hyena_mixer/params.h",
        "hyena_mixer/filters.cuh",
    ),
)
CALLS = {
    "a short piece": lambda: inputs(1, 5, 8, 2, 8, options={"bias", "fir_state", "output_final_state"}),
    "odd": lambda: inputs(2, 2 * 64 + 13, 9, 3, 4, groups=3, radius=SLOW, options=ALL - {"output_final_state"}),
    "segments": lambda: inputs(2, 2 * 1024 + 64, 8, 3, 4, radius=SLOW),  # of a tile each, or all of them
}


def gradients(call: dict, backend: str) -> dict[str, torch.Tensor]:
    """Of sums of the outputs times themselves; the last state's only where the kernel takes it."""
    leaves = {k: v.clone().requires_grad_() for k, v in call.items() if isinstance(v, torch.Tensor)}
    y, after, state = tkpy.hyena_mixer(**call | leaves, backend=backend)
    scale = torch.linspace(-1, 1, y.shape[1], dtype=torch.float64).to(y.dtype)[:, None]
    total = (y * scale).sum(dtype=torch.float64)
    if after is not None:
        total = total + after.double().square().sum()
        if y.shape[1] % 64 == 0:
            total = total + torch.view_as_real(state).double().sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@functools.cache
def known(name: str) -> tuple:
    """A call, and float64's gradients."""
    kwargs = CALLS[name]()
    return kwargs, gradients(conformance.widen(kwargs), "reference")


def wrong(name: str) -> str:
    kwargs, want = known(name)
    got = gradients(kwargs, "emulator")
    for what, grad in got.items():
        if not (comparison := numerics.compare(grad, want[what], 1.5e-2)):
            return f"{what}: {comparison}"
    return ""


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "hyena_mixer_backward",
    {"backward": UNIT},
    FAULTS,
    lambda unit: list(CALLS),
    wrong,
    right=("hyena_mixer/kernel.cu", "rows/norm_backward.cu"),
    arrange=lambda monkeypatch, fault: monkeypatch.setattr(
        OP.module("cuda"),
        "segment_tiles_for",
        lambda units, *_: 1 if "segment" in str(fault) or "border" in str(fault) else 2,
    ),
).tests()
