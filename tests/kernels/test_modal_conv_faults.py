"""Faults seeded into modal_conv's kernels: each is one edit of a source, and a finding or a wrong output, state or
gradient must give it away on a few small calls and schedules."""

import functools

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from modal_runs import MODULES, OP, inputs  # noqa: E402  (after the skips)

from tkpy import conformance, numerics  # noqa: E402

SLOW = (0.999, 0.9999)  # radii of poles whose states outlast a tile
# What a fault is compiled into: the type that runs, its parameters, the module, the entry.
KERNELS = {
    "forward": ("Conv<tk::bf16, false>::run", "Params", "modal_conv", "modal_conv_bf16"),
    "reverse": ("Conv<tk::bf16, true>::run", "Params", "modal_conv", "modal_conv_bf16_reverse"),
    "gradient": ("Gradient<tk::bf16>::run", "GradientParams", "modal_conv_gradient", "modal_gradient_bf16"),
    "steps": ("steps<tk::bf16>", "StepParams", "modal_conv_steps", "modal_steps_bf16"),
}
SYNC = "    __syncwarp();\n"
LANDED = "        wait_loads<1>();\n        __syncwarp();\n        rt_fl"
LAGS = "#pragma unroll\n    for (int k = lane"
ENDS = "shared.rear.carry[lane] = wide(load(p.ends,"
KEPT = "powers.residue[m] = Reverse ? conj(residue) : residue"
START = "leave_start(group.strides, p, row / kRows,"


def _faults(kernel: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(*fault, kernel) for fault in faults]


FAULTS = [
    *_faults(
        "forward",
        ("samples read before they have landed", LANDED, "        rt_fl"),
        ("gate read before it has landed", "      wait_loads<1>();\n      __syncwarp();\n#pragma", "#pragma"),
        ("output stored before it is there", "store(tile, part);\n" + SYNC, "store(tile, part);\n"),
        ("no first tap", "return lag >= 0 ?", "return lag > 0 ?"),
        ("the future", "shared.h[lag] : 0.0f", "shared.h[lag] : shared.h[-lag]"),
        ("no skip", "if (p.skip && lane_index() == 0)", "if (false)"),
        ("samples a step too old", "Reverse ? j + 1 : 63 - j", "Reverse ? j + 1 : 64 - j"),
        ("a state a step too young", "Reverse ? 63 - i : i + 1", "Reverse ? 63 - i : i"),
        ("tables before the powers", SYNC + "    // One of the two", "    // One of the two"),
        ("carry lost", "x[0] = x[0] + here * start;", "x[0] = x[0];"),
        ("halves of a tile not joined", "here * (joined + mode_of", "here * (mode_of"),
        ("a row left out of the scan", "if (g >= 1 << i)", "if (g > 1 << i)"),
        ("carry not decayed", "next[m] = strides.tile[t + 4 * m] * carry", "next[m] = carry"),
        ("last chunk of a tile", "(x[1] + here * joined) + given[1];", "(x[1] + here * joined);"),
        ("the end of another chunk", "lane_index() / 4 != chunks % 8", "lane_index() / 4 != (chunks + 7) % 8"),
        ("two ends", "end == p.tiles && whole)", "end == p.tiles)"),
        ("a segment forgotten", "for (int s = 0; s < segment; ++s)", "for (int s = 1; s < segment; ++s)"),
        ("segments not decayed", "state = factor * state +", "state = state +"),
        ("chunks that are not there", "channel, p.chunks), row_of(i), 0);", "channel, p.chunks + 1), row_of(i), 0);"),
        ("output past the end", "samples<T>(to, b, channel, p.chunks)", "samples<T>(to, b, channel, p.chunks + 1)"),
        ("pieces of the whole", "if (i + 1 < Parts) sub(x, x, piece[i]);", ""),
        ("large pieces only", "i + j < Parts; ++i) mma_AB(d", "i + j < 1; ++i) mma_AB(d"),
    ),
    *_faults(
        "reverse",
        ("the transpose forgotten", "Reverse ? row - col : col - row", "col - row"),
        ("a step too far from the end", "Reverse ? 63 - i : i + 1", "Reverse ? 64 - i : i + 1"),
        ("a step too near the start", "Reverse ? j + 1 : 63 - j", "Reverse ? j : 63 - j"),
        ("poles not conjugated", "m, wide(Reverse ? conj(pole) : pole), reach)", "m, wide(pole), reach)"),
        ("residues not conjugated", KEPT, "powers.residue[m] = residue"),
        ("from the first tile on", "Reverse ? p.tiles - 1 - i : i", "i"),
        ("the end enters a chunk late", "g + 8 * half == first - 1)", "g + 8 * half == first)"),
        ("the end enters twice", "if (first > 0) carry = make_double2(0.0, 0.0);", ""),
        ("a short segment taken for a whole one", "Reverse ? kRows - chunks_of(p, p.tiles - 1) : 0", "0"),
        ("all segments as short as the first", "if (s == 0) factor = power(pole, kChunk * segment_chunks);", ""),
        ("both outputs by one gate", "y, tiles[2 + s], p.in", "y, tiles[2], p.in"),
        ("tiles' states in another order", START, "leave_start(group.strides, p, i,"),
    ),
    *_faults(
        "gradient",
        ("samples read before they have landed", "      wait_loads<0>();\n", ""),
        ("samples fetched over those in use", "      __syncwarp();\n      fetch(i + 1);", "      fetch(i + 1);"),
        ("another tile's end", ENDS, "shared.rear.carry[lane] = wide(load(p.starts,"),
        ("the end at the last row", "scan<true>(after, shared.rear, missing)", "scan<true>(after, shared.rear, 0)"),
        ("a slope by another power", "return 63 - 16 * c - row; }, [](int)", "return 62 - 16 * c - row; }, [](int)"),
        ("a slope's factor", "static_cast<float>(63 - 16 * c - row)", "static_cast<float>(63 - 8 * c - row)"),
        ("the adjoint not conjugated", "adjoint ? -x.y : x.y", "x.y"),
        ("blocks of another lag", "left, right[a + d][j])", "left, right[d][j])"),
        ("lags read before they are there", SYNC + LAGS, LAGS),
        ("slope of another lag", "(k + 1) * all.c[k + 1]", "k * all.c[k]"),
        ("the power of another lane", "if (lane != 31) continue;", "if (lane != 30) continue;"),
        ("the first sequence only", "samples<T>(p.in[s], i / p.tiles,", "samples<T>(p.in[s], 0,"),
        ("every share in one place", "static_cast<long long>(share) * p.channels * p.modes + mode", "mode"),
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
    files = ("steps.cu",) if kernel == "steps" else ("tables.cuh", "conv.cuh", "gradient.cuh")
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
    pairs = [("y", got[0], outputs[0], 1e-2), ("state", got[1], outputs[1], 1e-4)]
    pairs += [(f"grad {n}", got_grads[n], grads[n], 1e-2) for n in grads]
    for what, a, b, tolerance in pairs:
        if not (comparison := numerics.compare(a, b, tolerance)):
            return f"{what}: {comparison}"
    return ""


def short_segments(monkeypatch, fault: Fault) -> None:
    monkeypatch.setattr(OP.module("cuda"), "segment_tiles_for", lambda *_: 2)
    monkeypatch.setattr(OP.module("cuda"), "FEWEST_TILES", 2)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "modal_conv",
    {kernel: unit(kernel) for kernel in KERNELS},
    FAULTS,
    calls=lambda kernel: list(CALLS),
    wrong=disagreement,
    right=[f"modal_conv/{name}.cu" for name in MODULES],
    arrange=short_segments,
).tests()
