"""Faults seeded into modal_conv's kernels: each is one edit of a source, and a finding or a wrong output, state or
gradient must give it away on a few small calls and schedules."""

import functools

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from modal_runs import ALL, MODULES, OP, inputs  # noqa: E402  (after the skips)

from tkpy import conformance, numerics  # noqa: E402

SLOW = (0.999, 0.9999)  # radii of poles whose states outlast a tile
# What a fault is compiled into: the type that runs, its parameters, the module, the entry.
KERNELS = {
    "forward": ("Conv<tk::bf16>::run", "Params", "modal_conv", "modal_conv_bf16"),
    "backward": ("backward<tk::bf16>", "BackwardParams", "modal_conv_backward", "modal_backward_bf16"),
    "steps": ("steps<tk::bf16>", "StepParams", "modal_conv_steps", "modal_steps_bf16"),
}
SYNC = "    __syncwarp();\n"
WAIT = "      wait_loads<1>();\n      __syncwarp();\n"
LANDED = WAIT + "      Sum y[kBlocks];"
SWEEP, MAIN = WAIT + "      complete(signals, i);", WAIT + "      complete(2, i);"
LAGS = SYNC + "    if (lane < kBlock) {\n      float sum"


def _faults(kernel: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(*fault, kernel) for fault in faults]


FAULTS = [
    *_faults(
        "forward",
        ("samples read before they have landed", LANDED, "      Sum y[kBlocks];"),
        ("gate read before it has landed", WAIT + "      if (speaks)", "      if (speaks)"),
        ("output stored before it is there", "  }\n  __syncwarp();\n  const view", "  }\n  const view"),
        ("no first tap", "return i >= j ?", "return i > j ?"),
        ("the future", "powers.h[i - j] : 0.0f", "powers.h[i - j] : powers.h[j - i]"),
        ("no skip", "if (p.skip && lane_index() == 0)", "if (false)"),
        ("samples a step too old", "[kBlock - 1 - j]", "[kBlock - j]"),
        ("a state a step too young", "of[row / 2][i + 1]", "of[row / 2][i]"),
        ("the power of another block", "if (lane_index() == kBlock)", "if (lane_index() == kBlock - 1)"),
        ("a block's state not decayed", "madd(step[e / 4], pair(x), pair(added))", "pair(x) + pair(added)"),
        ("states of a chunk's start in all its blocks", "if (c + 1 < kBlocks) advance(", "if (false) advance("),
        ("a block of each chunk not added", "c = 1; c < kBlocks; ++c) advance", "c = 2; c < kBlocks; ++c) advance"),
        ("halves of a chunk exchanged", "!= nullptr, first);", "!= nullptr, kHalf - first);"),
        ("taps of the last group", "h += (wide(residue)", "h = (wide(residue)"),
        ("every group's modes the first's", "p, channel, kGroup * g);\n    if", "p, channel, 0);\n    if"),
        ("taps once a group", "if (g == 0 && speaks)", "if (speaks)"),
        ("every group's end the first's", "chunks, b, channel, kGroup * g);", "chunks, b, channel, 0);"),
        ("samples fetched over while a group needs them", "if (g + 1 == p.groups) fetch", "if (g == 0) fetch"),
        ("tables before the powers", SYNC + "    // One of the two", "    // One of the two"),
        ("carry lost", "x[0] = madd(here, start, x[0]);", ""),
        ("halves of a tile not joined", "start, joined), x[1]);", "start, make_float2(0.0f, 0.0f)), x[1]);"),
        ("a row left out of the scan", "if (g >= 1 << i)", "if (g > 1 << i)"),
        ("carry not decayed", "next[m] = strides.tile[t + 4 * m] * carry", "next[m] = carry"),
        ("last chunk of a tile", "x[1]), given[1]);", "x[1]), make_float2(0.0f, 0.0f));"),
        ("the end of another chunk", "lane_index() / 4 != chunks % 8", "lane_index() / 4 != (chunks + 7) % 8"),
        ("two ends", "end == p.tiles && whole)", "end == p.tiles)"),
        ("a segment forgotten", "for (int s = 0; s < segment; ++s)", "for (int s = 1; s < segment; ++s)"),
        ("segments not decayed", "state = factor * state +", "state = state +"),
        ("chunks that are not there", "channel, p.chunks), kRows * i, 0);", "channel, p.chunks + 1), kRows * i, 0);"),
        ("output past the end", "samples<T>(to, b, channel, chunks)", "samples<T>(to, b, channel, chunks + 1)"),
        ("pieces of the whole", "if (i + 1 < Parts) sub(x, x, piece[i]);", ""),
        ("large pieces only", "i + j < Parts; ++i) mma_AB(d", "i + j < 1; ++i) mma_AB(d"),
    ),
    *_faults(
        "backward",
        ("samples of the first sweep read before they have landed", SWEEP, "      complete(signals, i);"),
        ("samples of the second sweep read before they have landed", MAIN, "      complete(2, i);"),
        ("tiles kept that are not there", "next >= end - p.kept ? 2", "next >= end - p.kept - 1 ? 2"),
        ("one tile for all that are kept", "2 * (i % p.kept) + signal", "signal"),
        ("the last chunk's samples forgotten", "      complete(2, i);\n", ""),
        ("its outputs forgotten", "signal(to)[t] = through.at(row, k);", ""),
        ("samples past the end", "k < p.length % kChunk; k += 32", "k < kChunk; k += 32"),
        ("tiles' states in one place", "p.starts[state_at(i) + mode] = {", "p.starts[state_at(0) + mode] = {"),
        ("a tile's state is the one before its end", "if (p.forth) find_starts(i);", ""),
        ("blocks in the wrong order", "Reverse ? kBlocks - 1 - k : k)", "k)"),
        ("segments' residues forgotten", "conj(modes.residue[m]) * at(states, m, half)", "at(states, m, half)"),
        ("the end at the last row", "scan<true>(l, group.rear, kRows - chunks_of(i))", "scan<true>(l, group.rear, 0)"),
        ("the end enters a chunk late", "g + 8 * half == first - 1)", "g + 8 * half == first)"),
        ("poles not conjugated", "group.rear, m, wide(conj(pole)), reach)", "group.rear, m, wide(pole), reach)"),
        ("the power of another block", "if (lane == kBlock) group.step", "if (lane == kBlock - 1) group.step"),
        ("samples a step too old", "return powers.of[m][15 - j];", "return powers.of[m][16 - j];"),
        ("the adjoint not conjugated", "return conj(powers.of[m][i + 1]);", "return powers.of[m][i + 1];"),
        ("a slope's factor", "static_cast<float>(15 - j)", "static_cast<float>(j)"),
        ("the transpose forgotten", "multiply_transposed(dv[c], dy,", "multiply(dv[c], dy,"),
        ("x of the block after", "      found[c] = x;\n      x = next;", "      x = next;\n      found[c] = x;"),
        ("lags of another tile", "correlated = g == 0 && p", "correlated = g == 0 && i == begin && p"),
        ("lags read before they are there", LAGS, LAGS.replace(SYNC, "")),
        ("Horner's rule in another order", "slope = pole * slope + value;\n        value", "value"),
        ("every share in one place", "share = segment * p.batch + b;", "share = 0;"),
        ("both outputs by one gate", "leave(s, dv, tile(1 - s, i)", "leave(s, dv, tile(1, i)"),
        ("a segment forgotten forwards", "s = 0; s < segment; ++s) forth", "s = 1; s < segment; ++s) forth"),
        ("a segment forgotten backwards", "s = p.segments - 1; s > segment", "s = p.segments - 2; s > segment"),
        ("all segments as short as the last", "        back = factor;\n", ""),
        ("what segments add, both ways in one place", "&Group::rear, p.segments + segment)", "&Group::rear, segment)"),
        ("every segment's start", "if (p.dstart && segment == 0)", "if (p.dstart)"),
    ),
    *_faults(
        "steps",
        ("imaginary part's sign", "pr[i] * xi[i] + pi[i] * xr[i]", "pr[i] * xi[i] - pi[i] * xr[i]"),
        ("no skip", "y = sum + skip * now", "y = sum"),
        ("another channel's sample", "__shfl_sync(0xffffffffu, v, k, kLanes)", "__shfl_sync(0xffffffffu, v, k)"),
        ("one sample of eight", "if (k == lane)", "if (k == 0)"),
        ("steps past the end", "k < kLanes && first + k < p.steps", "k < kLanes"),
        ("samples past the end", "const bool mine = live && t < p.steps;", "const bool mine = live;"),
        ("no gate before", "if (mine && p.pre.data)", "if (false)"),
        ("no gate behind", "if (p.post.data)", "if (false)"),
        ("the state of the chunks forgotten", "if (exists && p.wide_start)", "if (false)"),
        ("modes of one group", "const int s = lane + kLanes * i;", "const int s = lane;"),
        ("a lane's sum only", "bit < kLanes; bit *= 2", "bit < 4; bit *= 2"),
    ),
]  # fmt: skip


def unit(kernel: str) -> Unit:
    call, params, module, name = KERNELS[kernel]
    files = (
        ("steps.cu",) if kernel == "steps" else ("tables.cuh", "conv.cuh", "backward.cuh")[: 2 + (kernel == "backward")]
    )
    run, bounds = f"tkpy::modal_conv::{call}(p)", "128" if kernel == "steps" else "32"
    entry = Entry(name, module, f"tkpy::modal_conv::{params}", run, bounds)
    return Unit([f"modal_conv/{file}" for file in ("params.h", *files)], [entry])


def _poisoned() -> dict:
    """Rows of whole chunks between stretches of NaN."""
    kwargs, length = inputs(1, 2, 4, 64 * 9, radius=SLOW), 64 * 9
    for name in ("u", "pre_gate", "post_gate"):
        buffer = torch.full((1, 2, length + 128), float("nan"), dtype=torch.bfloat16)
        buffer[..., :length] = kwargs[name]
        kwargs[name] = buffer[..., :length]
    return kwargs


CALLS = {
    "steps": lambda: inputs(1, 3, 11, 13),
    "one tile and a rest": lambda: inputs(2, 1, 4, 64 * 5 + 13, radius=SLOW),
    "segments": lambda: inputs(1, 1, 9, 64 * 89, radius=SLOW),  # three, of two tiles; the last tile is short
    "a long segment": lambda: inputs(1, 1, 4, 64 * 66, radius=SLOW),
    "no last state": lambda: inputs(1, 1, 4, 64 * 5 + 13, radius=SLOW, options=ALL - {"output_final_state"}),
    "poisoned": _poisoned,
}


@functools.cache
def known(name: str) -> tuple:
    """A call, its cotangents, and float64's outputs and gradients."""
    kwargs = CALLS[name]()
    outputs, grads, _ = conformance._run(OP, conformance.widen(kwargs), "reference", True)
    return kwargs, outputs, grads


def disagreement(name: str) -> str:
    kwargs, outputs, grads = known(name)
    got, got_grads, _ = conformance._run(OP, kwargs, "emulator", True)
    pairs = [("y", got[0], outputs[0], 1e-2)]
    if "output_final_state" in kwargs:
        pairs.append(("state", got[1], outputs[1], 1e-4))
    pairs += [(f"grad {n}", got_grads[n], grads[n], 1e-2) for n in grads]
    for what, a, b, tolerance in pairs:
        if not (comparison := numerics.compare(a, b, tolerance)):
            return f"{what}: {comparison}"
    return ""


def short_segments(monkeypatch, fault: Fault) -> None:
    """Two tiles, or all five: more than the backward keeps."""
    monkeypatch.setattr(OP.module("cuda"), "segment_tiles_for", lambda units, tiles, *_: tiles if tiles == 5 else 2)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "modal_conv",
    {kernel: unit(kernel) for kernel in KERNELS},
    FAULTS,
    calls=lambda kernel: list(CALLS),
    wrong=disagreement,
    right=[f"modal_conv/{name}.cu" for name in MODULES],
    arrange=short_segments,
).tests()
