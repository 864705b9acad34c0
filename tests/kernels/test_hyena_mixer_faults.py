"""Faults seeded into hyena_mixer's kernel: each is one edit of its source, and a finding or a wrong output or state
must give it away on a few small calls and schedules."""

import functools

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from mixer_runs import OP, in_nan, inputs  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, numerics  # noqa: E402

SLOW = (0.999, 0.9999)  # radii of poles whose states outlast a tile
SYNC, LATE = "        __syncthreads();\n", "      __syncthreads();\n"
TAP = "p.weight, from * p.taps + j, from * p.taps + j + 1"
ROW = "kHalo + at + i + j - kept"
BEFORE = "(static_cast<long long>(b) * 3 * p.conv.channels + channel) * kept + kept + t"
FAULTS = [
    Fault("x1 and v not waited for", "wait_loads<0>();\n" + SYNC, SYNC),
    Fault("rows of others not waited for", SYNC + "        if (speaks) inputs", "        if (speaks) inputs"),
    Fault("work not waited for", "gate();\n" + SYNC, "gate();\n"),
    Fault("x2 not waited for", "wait_loads<1>();\n" + LATE, LATE),
    Fault("y not waited for", "wait_loads<1>();\n" + LATE, "      wait_loads<1>();\n"),
    Fault("samples of the end written over", "    __syncwarp();\n    store(work", "    store(work"),
    Fault("rows over powers in use", "(shared.row[kX2])", "(shared.row[kX1])"),
    Fault("taps in reverse", TAP, "p.weight, from * p.taps + kept - j, from * p.taps + kept - j + 1"),
    Fault("a tap too few", "j < p.taps; ++j) {\n      load", "j < kept; ++j) {\n      load"),
    Fault("of three taps, the first not seen", "int r = 1 - kUsualTaps;", "int r = 2 - kUsualTaps;"),
    Fault("of three taps, in reverse", "add(i, tap[j], value);", "add(i, tap[kUsualTaps - 1 - j], value);"),
    Fault("any number of taps taken for three", "if (p.taps == kUsualTaps) {", "if (true) {"),
    Fault("no bias", "load(out[i], own.bias);", "for (float& x : out[i]) x = 0.0f;"),
    Fault("filters of other channels", "from = input(part, c);", "from = part * p.conv.channels + c;"),
    Fault("inputs too old", ROW, f"{ROW} - 1"),
    Fault("inputs too new", "kHalo + at + r)", "kHalo + at + r + 1)"),
    Fault("rows out of place", "&to[place(kHalo + r)])", "&to[kHalo + r])"),
    Fault("gathered rows out of place", "to[place(kHalo + r + k)]", "to[kHalo + r + k]"),
    Fault("rows before a tile out of place", "slots[slot][place(kHalo - back)]", "slots[slot][kHalo - back]"),
    Fault("rows before a tile forgotten", "if (back <= 0) return;", "if (back <= 0 || tile > 0) return;"),
    Fault("columns not split", "(c / p.part * 3 + part) * p.part + c % p.part;", "part * p.conv.channels + c;"),
    Fault("gates exchanged", "{ kX2, kX1, kV }", "{ kX1, kX2, kV }"),
    Fault("no gate in front", "__float_as_uint(x1[i][e] * v[i][e])", "__float_as_uint(v[i][e])"),
    Fault("no gate behind", "out[i][e] *= __uint", "out[i][e] = __uint"),
    Fault("outputs past the end", "i < kRun && i < left", "i < kRun"),
    Fault("outputs of other samples where rows are not whole", "row[k - 1] = row[k];", ";"),
    Fault("outputs of the first sequence", "static_cast<long long>(b) * p.length + kSamples", "kSamples"),
    Fault("inputs of the first sequence", "b * p.z_batch + input(part, asked", "input(part, asked"),
    Fault("inputs before the first read from z", "p.vectors && tile > 0", "p.vectors"),
    Fault("16 bytes read anywhere", "if (vectors) {", "if (true) {"),
    Fault("gathered past the last channel", "asked(false) < p.conv.channels ? p", "true ? p"),
    Fault("gathered past the end", "k < count ? from", "count > 0 ? from"),
    Fault("16 bytes read past the end", "t + k < p.length ? kRowBytes", "true ? kRowBytes"),
    Fault("a state of the short filter that is not there", "if (!p.before) return T{};", ""),
    Fault("a state of the short filter out of step", "kept + kept + t]", "kept + kept - 1 + t]"),
    Fault("a state of the short filter of the first sequence", BEFORE, "channel * kept + kept + t"),
    Fault("last inputs out of step", "(p.length - kept + k, channel)", "(p.length - kept + k - 1, channel)"),
    Fault("another mode's end", "lane < 4 ? found[0] : found[1]", "found[0]"),
    Fault("the end from another chunk", "row = (p.conv.chunks - 1) %", "row = p.conv.chunks %"),
    Fault("the end from the upper chunks", "half = row / 8;", "half = 0;"),
    Fault("the end of a whole chunk", "samples = p.length - modal_conv::kChunk * (p.conv.chunks - 1)", "samples = 64"),
    Fault("the end without its last sample", "j < samples; ++j", "j < samples - 1; ++j"),
    Fault("an end left by a warp without a channel", "if (speaks && p.end && live() &&", "if (speaks && p.end &&"),
    Fault("a border left by a warp without a channel", "if (!speaks && live())", "if (!speaks)"),
    Fault("every segment the first", "begin = segment * p.conv.segment_tiles,", "begin = 0,"),
    Fault("nothing carried in", "Conv::find_carry(", "if (false) Conv::find_carry("),
    Fault("tables of several groups over each other", "(p.conv.groups - 1) * sizeof", "0 * sizeof"),
    Fault("every group's end the first's", "leave_end(x, work, channel(), g);", "leave_end(x, work, channel(), 0);"),
    Fault("every end by the first's poles", "(channel) * p.conv.modes + mode", "(channel) * p.conv.modes + lane"),
    Fault("the first half of a chunk twice", "tk::load(v, work, 0, at);", "tk::load(v, work, 0, 0);"),
    Fault("y in another order", "= y[c].x[0][e];", "= y[3 - c].x[0][e];"),
    Fault("a warp's channel taken by another", "shared.work[warp_index()]", "shared.work[warp_index() ^ 1]"),
]  # fmt: skip
UNIT = Unit(
    ("hyena_mixer/params.h", "hyena_mixer/filters.cuh", "hyena_mixer/mixer.cuh"),
    [
        Entry(
            "hyena_mixer_bf16", "hyena_mixer", "tkpy::hyena_mixer::Params", "tkpy::hyena_mixer::mix<tk::bf16>(p)", "256"
        )
    ],
    given=("rows/params.h", "rows/rows.cuh", *(f"modal_conv/{n}" for n in ("params.h", "tables.cuh", "conv.cuh"))),
)


def _poisoned() -> dict:
    """Rows that are read 16 bytes at a time, between NaN."""
    kwargs = inputs(2, 576, 16, 8, groups=2, radius=SLOW)
    return kwargs | {"z": in_nan(kwargs["z"], 8, 8)}


CALLS = {
    "a short piece": lambda: inputs(1, 40, 8, 4, options={"bias", "output_final_state"}),
    "odd": lambda: inputs(2, 9 * 64 + 13, 9, 11, 4, groups=3, radius=SLOW),
    "poisoned": _poisoned,
    "segments": lambda: inputs(1, 2 * 1024 + 70, 12, 5, radius=SLOW),  # of a tile each
}


@functools.cache
def known(name: str) -> tuple:
    """A call, and float64's outputs."""
    kwargs = CALLS[name]()
    return kwargs, tkpy.hyena_mixer(**conformance.widen(kwargs), backend="reference")


def wrong(name: str) -> str:
    kwargs, want = known(name)
    with torch.no_grad():
        got = tkpy.hyena_mixer(**kwargs, backend="emulator")
    for what, a, b, tolerance in zip(("y", "fir_state", "state"), got, want, (1e-2, 0, 1e-4), strict=True):
        if not (comparison := numerics.compare(a, b, tolerance)):
            return f"{what}: {comparison}"
    return ""


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "hyena_mixer",
    {"mixer": UNIT},
    FAULTS,
    lambda unit: list(CALLS),
    wrong,
    right_seeds=3,
    arrange=lambda monkeypatch, fault: monkeypatch.setattr(OP.module("cuda"), "segment_tiles_for", lambda *_: 1),
).tests()
