"""Faults seeded into the kernels of short_conv: each is one edit of their source, and a finding or a wrong result must
give it away on a few small calls and schedules."""

from unittest import mock

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, text_of

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from short_conv_runs import SOURCES, disagreement, packed, short_conv  # noqa: E402  (after the skips)

from tkpy import registry  # noqa: E402
from tkpy.ops.short_conv import cuda  # noqa: E402


def unit(direction: str, layout: str) -> Unit:
    shared = "reinterpret_cast<unsigned char*>(shared)" if layout == "channels" else ""
    run = f"extern __shared__ uint4 shared[]; tkpy::short_conv::{direction.title()}<tk::bf16>(p).run_{layout}({shared})"
    module = f"short_conv_{direction}"
    return Unit(
        [f"short_conv/{name}" for name in ("conv.cuh", "turned.cuh", f"{direction}.cu")],
        [Entry(f"{module}_bf16_{layout}", module, "tkpy::short_conv::Params", run)],
        given=("rows/params.h", "short_conv/params.h", "rows/rows.cuh"),
    )


UNITS = {f"{a}_{b}": unit(a, b) for a in ("forward", "backward") for b in ("times", "channels")}
FETCHED = "if (aligned && t >= lo && t + kTimes <= hi) {\n    c.load"
WALK, RESET = "  TK_DEVICE void walk_times(", "float old[kLater] = {};\n    Chunk"
BACKWARD_WALK = WALK + text_of("short_conv/backward.cu").split(WALK)[1].split(RESET)[0] + RESET
STORED = "if (aligned && t >= lo && t + kTimes <= hi) {\n    c.store"

PLACES = [
    ("the wrong taps", "p.taps + p.taps - 1 - lag;\n    taps", "p.taps + lag;\n    taps"),
    ("one channel's taps for all", "static_cast<long long>(channel) * p.taps", "0 * p.taps"),
    ("taps of the wrong type", "p.weight.kind == rows::kF32", "false"),
    ("taps of channels that are not there", "lag >= p.taps || channel >= p.channels", "lag >= p.taps"),
    ("runs begin late", "from = max(start, first)", "from = max(start, first + 8)"),
    ("a run past the sequence", "to = min(stop, end)", "to = end"),
    ("a sequence that ends at the run's begin for the first", "if (bound(middle + 1) < run", "if (bound(middle) < run"),
    ("empty sequences at a run's begin left out", "if (bound(middle + 1) < run", "if (bound(middle + 1) <= run"),
    ("empty sequences at the end left out", "return start < end || end == p.length", "return start < end"),
    ("the row for the sequence", "start = p.bounds == nullptr ? 0 : bound(number)", "start = 0"),
    ("one sequence's state for all", "row_of<T>(p.initial, sequence, channel)", "row_of<T>(p.initial, 0, channel)"),
    ("a state that is contiguous", "state + i * p.initial.time", "state + i"),
    ("older than the state", "push(c, i >= 0 && i < carried", "push(c, i < carried"),
    ("x for a state", "push(c, i >= 0 && i < carried", "push(c, i >= 0"),
    ("no state", "if (p.initial.data == nullptr ||", "if (true ||"),
    ("states of channels that are not there",
     "|| channel >= p.channels) return;\n    const T* state", ") return;\n    const T* state"),
    ("elements in another order", "c.word[w + 1] : bits", "c.word[w] : bits"),
    ("all rows begin alike", "reinterpret_cast<unsigned long long>(row + from) / sizeof(T)", "0"),
    ("samples before the beginning", "x[kTimes + i - lag], z[i])", "x[i + lag], z[i])"),
    ("no bias", "z[i] = taps.bias", "z[i] = 0.0f"),
]  # fmt: skip
TIMES = [
    ("16 bytes from anywhere", FETCHED, FETCHED.replace("aligned && ", "")),
    ("past the end of x", FETCHED, FETCHED.replace("t + kTimes <= hi", "t < hi")),
    ("before the beginning of x", FETCHED, FETCHED.replace("t >= lo && ", "")),
    ("elements past the end of x", "i >= lo && i < hi ? bits_of", "i >= lo ? bits_of"),
    ("elements before the beginning of x", "i >= lo && i < hi ? bits_of", "i < hi ? bits_of"),
    ("16 bytes past the end", STORED, STORED.replace("t + kTimes <= hi", "t < hi")),
    ("elements past the end", "if (i >= lo && i < hi) set_bits", "if (i >= lo) set_bits"),
    ("elements before the beginning", "if (i >= lo && i < hi) set_bits", "if (i < hi) set_bits"),
    ("one element for all", "    push(c, 0u);\n", ""),
    ("the samples after", "+ width - step, width)", "+ step, width)"),
]
TURNS = [
    ("halves of words", "0x5410 : 0x7632", "0x7632 : 0x5410"),
    ("every other time", "line[2 * w + 1].word", "line[2 * w].word"),
    ("blocks over one another", "(chunk & (kSlots - 1))", "(chunk & (kTimeLanes - 1))"),
    ("read before all is there", "    __syncwarp();\n  }\n  TK_DEVICE void get(", "  }\n  TK_DEVICE void get("),
    ("written while it is read", "      __syncwarp();  // before its slots are written again\n", ""),
    ("no samples before the chunk", "get(before, i, chunk - 1)", "get(before, i, chunk)"),
    ("the wrong samples before an early chunk", "get(oldest, i, chunk - 2)", "get(oldest, i, chunk - 1)"),
    ("no row is earlier than others", "if (!shifted) return;", "return;"),
    ("even phases", "phase % 2 != 0 ? 16 : 32", "32"),
    ("odd phases", "phase % 2 != 0 ? 16 : 32", "16"),
    ("half the phase", "is_16bit<T> ? phase / 2 : phase", "phase / 4"),
    ("later for earlier", "keep ? v[w] : v[w + By]", "keep ? v[w + By] : v[w]"),
    ("x past the end", "t >= part.start && t < end &&", "t >= part.start &&"),
    ("x before the beginning", "t >= part.start && t < end &&", "t < end &&"),
    ("every run reads the first", "const int first = part.from + block", "const int first = block"),
    ("one channel's taps for a lane",
     "load_taps<T>(taps, part.p, channel(i))", "load_taps<T>(taps, part.p, channel(0))"),
    ("lanes share channels", "(part.group * kTurnLanes + beside) * R", "part.group * kTurnLanes * R"),
    ("16 bytes of channels from anywhere", "part.p.grain == 16", "true"),
    ("channels that are not there", "channel(i) < part.p.channels ? bits", "true ? bits"),
    ("rows of another sequence", "row_of<T>(p.x, part.batch, 0)", "row_of<T>(p.x, 0, 0)"),
    ("taps over one another", "(beside * R + i) * kRowFloats + 4 * beside", "(beside * R + i) * 8 + 8 * beside"),
]  # fmt: skip
FORWARD = [
    ("no activation", "if (p.silu)\n", "if (false)\n"),
    ("samples of other runs written", "t, max(from, start), to, true)", "t, start, stop, true)"),
    ("a final state too early", "const int kept = stop - carried;", "const int kept = stop - carried - 1;"),
    ("a final state from before", "put(here, this->state_row", "put(before, this->state_row"),
    (
        "one final state for all",
        "(static_cast<long long>(sequence) * p.channels + channel) * carried",
        "channel * carried",
    ),
    ("a final state of short sequences", "p.final != nullptr && stop - start < carried", "false"),
    ("channels that are not there written", "    if (channel >= p.channels) return;\n    float x", "    float x"),
]
FORWARD_TIMES = [
    *PLACES,
    *TIMES,
    *FORWARD,
    ("channels that are not there read", "hi = real ? min(stop, to) : start", "hi = min(stop, to)"),
    ("the last step left out", "(to - base + span - 1) / span", "(to - base) / span"),
    ("runs begin with 0", "    get(old, -1);\n", "    old.clear();\n"),
    ("one step 4 times", "get(next[i], step + kSteps + i);", "get(next[i], step + kSteps);"),
    ("samples before of the first step", "        old = here[i];\n", ""),
    ("steps over one another", "base + (step + i) * span", "base + step * span"),
    ("the wrong lane's samples", "team.time + 1 == team.count ? old", "team.time == 0 ? old"),
    ("the next samples only", "step += kSteps) {", "step += kSteps + 1) {"),
]
FORWARD_CHANNELS = [
    *TURNS,
    ("rows at their block's times",
     "write(taps, before, here, from + chunk * kTimes - phase", "write(taps, before, here, from + chunk * kTimes"),
    ("the last block left out", "(part.p.shifted ? kTimes - 1 : 0) + kBlock - 1) / kBlock", "kBlock - 1) / kBlock"),
    ("runs begin with 0", "time >= (block < 0 ? kTimeLanes - 1 : 0)", "block >= 0"),
    ("the same block again", "turned.send(block + 1, to)", "turned.send(block, to)"),
]  # fmt: skip
BACKWARD = [
    ("every run writes a state", "if (start >= run * p.tokens) from", "from"),
    ("a product's derivative", "fmaf(z[i], 1.0f - gate, 1.0f)", "1.0f"),
    ("no gate", "g[i] *= gate * fmaf", "g[i] *= fmaf"),
    ("no activation", "if (!p.silu) return;", "return;"),
    ("products of the next run", "t + i >= lo && t + i < to;", "t + i >= lo;"),
    ("products of any chunk", "if (t >= lo && t + kTimes <= to)\n", "if (true)\n"),
    ("the last gradient of the bias", "sum[kMostTaps] += g[i]", "sum[kMostTaps] = g[i]"),
    ("every tap's gradient is the last one's", "x[kTimes + i - lag], sum[lag]", "x[kTimes + i], sum[lag]"),
    ("the last chunk's products", "fmaf(g[i], x[kTimes + i - lag], sum[lag])", "fmaf(g[i], x[kTimes + i - lag], 0.0f)"),
    ("one tap", "fmaf(taps.w[lag], i + lag", "fmaf(taps.w[0], i + lag"),
    ("nothing from later chunks", ": later[i + lag - kTimes]", ": 0.0f"),
    ("a final state too late", "    const int kept = stop - carried;\n", "    const int kept = stop - carried + 1;\n"),
    ("nothing from the final state", "if (p.dfinal.data == nullptr ||", "if (true ||"),
    ("from the final state alone", "d[i] += read(state", "d[i] = read(state"),
    ("one final state for all", "row_of<T>(p.dfinal, this->sequence, channel)", "row_of<T>(p.dfinal, 0, channel)"),
    ("past the final state", "t + i >= kept && t + i < stop", "t + i >= kept"),
    ("gradients of other runs written", "t, max(from, start), to, true)", "t, start, stop, true)"),
    ("one initial state for all",
     "(static_cast<long long>(sequence) * p.channels + channel) * carried", "channel * carried"),
    ("an initial state too early", "const int before = start - carried;", "const int before = start - carried - 1;"),
    ("no initial state", "if (p.dinitial != nullptr) this->include_state();", ""),
    ("a step's own for the one after", "team.time == 0 ? old[k] : g[k]", "g[k]"),
    ("no step after", "      old[k] = g[k];\n", "      old[k] = 0.0f;\n"),
    ("from the samples before", "+ step, width)", "+ width - step, width)"),
    ("channels that are not there written", "    if (channel >= p.channels) return;\n    add(", "    add("),
    ("shares over one another", "batch) * p.runs + this->run) *", "batch) * p.runs) *"),
    ("the wrong tap's share", "p.dweight[at * p.taps + p.taps - 1 - lag]", "p.dweight[at * p.taps + lag]"),
    ("one thread's share", "if (s >= step && s < width) v +=", "if (s > step && s < width) v +="),
    ("nothing from the next run", "reach = min(stop, to + carried);", "reach = to;"),
    ("the next run's first times alone", "reach = min(stop, to + carried);", "reach = min(stop, to + 1);"),
    ("gradients of the sequence after", "reach = min(stop, to + carried);", "reach = min(p.length, to + carried);"),
]  # fmt: skip
BACKWARD_TIMES = [
    *BACKWARD,
    (
        "gradients of the sequence before kept",
        BACKWARD_WALK,
        "  mutable float kept[kLater] = {};\n"
        + BACKWARD_WALK.replace(RESET, "float (&old)[kLater] = kept;\n    Chunk"),
    ),
    (
        "samples of the sequence before",
        "fetch(c, x, t, start, needed ? hi : start,",
        "fetch(c, x, t, 0, needed ? hi : 0,",
    ),
    ("channels that are not there read", "hi = real ? reach : start", "hi = reach"),
    ("no step after the run", "first = to < stop ? steps : steps - 1", "first = steps - 1"),
    ("the last samples are 0", "    get(here, first);\n", "    here.clear();\n"),
    ("the samples before are those of the step", "get(next_x[i], at - 1)", "get(next_x[i], at)"),
    ("samples of the last step for all", "        here = earlier[i];\n", ""),
    ("every other step", "if (last - i < 0) continue;", "if (last - i <= 0) continue;"),
    ("the wrong lane's samples", "team.time + 1 == team.count ? earlier", "team.time == 0 ? earlier"),
]
BACKWARD_CHANNELS = [
    ("gradients of the sequence before kept", "if (team.time == 0 && !last)", "if (team.time == 0)"),
    ("gradients of the sequence after", "reach = min(stop, to + carried);", "reach = min(p.length, to + carried);"),
    ("sums begin with what is there", "turned.sum(0, 0)[k * 32] = 0.0f", "turned.sum(0, 0)[k * 32] += 0.0f"),
    ("sums of other channels", "(which * R + i) * 32", "which * R * 32"),
    ("no block after the run", "first = to < stop ? blocks : blocks - 1", "first = blocks - 1"),
    ("the last block is not there", "    turned.receive(first);\n", ""),
    ("dy of the row before", "const Chunk<T> dy = next;", "Chunk<T> dy; dy.clear(); dy = i > 0 ? dy : next;"),
    ("dy at its block's times", "at = t - place(i + 1);", "at = t;"),
    ("rows at their block's times", "row(turned, team, dy, i, chunk, t - place(i), place(i), block == first)",
     "row(turned, team, dy, i, chunk, t, place(i), block == first)"),
    ("blocks that are there already", "turned.send(block - 2, reach)", "turned.send(block - 1, reach)"),
    ("gradients of the block after stay away",
     "for (int k = 0; k < kLater; ++k) own[k] = old[k];", "for (int k = 0; k < kLater; ++k) own[k] = 0.0f;"),
    ("channels that are not there read", "channel < p.channels ? reach : start", "reach"),
]  # fmt: skip
LISTS = {
    "forward_times": FORWARD_TIMES,
    "forward_channels": FORWARD_CHANNELS,
    "backward_times": BACKWARD_TIMES,
    "backward_channels": BACKWARD_CHANNELS,
}


def calls(kernel: str) -> list[tuple[dict, int, bool]]:
    """A call, times of a run, and whether with its backward: several runs and steps, odd phases, states longer than a
    sequence, packed ones with and without states, parameters of both types, x at any place."""
    make, (direction, layout) = registry.Maker(torch.bfloat16), kernel.split("_")
    # Sequences that fill the last lane of their last step, or block, behind others in the same run.
    alone = short_conv(make, 1, 5, 128, 4, layout=layout, states=False) | {"cu_seqlens": make.ints(0, 3, 64, 71, 128)}
    made = [
        (short_conv(make, 2, 37, 293, 4, layout=layout), 128),
        (short_conv(make, 1, 3, 520, 5, layout=layout), 256),
        (short_conv(make, 1, 3, 2115, 3, layout=layout, wide=True, states=False), 4096),
        (short_conv(make, 3, 5, 4, 8, layout=layout), 64),
        (packed(make, 5, 4, (0, 0, 3, 64, 64, 70, 150, 150), layout=layout), 64),
        (packed(make, 16, 4, (0, 49, 98, 147), layout=layout), 256),
        (alone, 64),
        (short_conv(make, 2, 32, 72, 8, layout=layout, pitch=77, skew=1, silu=False), 64),
    ]
    return [(kwargs, tokens, direction == "backward") for kwargs, tokens in made]


def wrong(call: tuple[dict, int, bool]) -> str:
    kwargs, tokens, grad = call
    with mock.patch.object(cuda, "_run", return_value=tokens):
        return disagreement(kwargs, grad=grad)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "short_conv",
    UNITS,
    [Fault(*edit, kernel) for kernel, edits in LISTS.items() for edit in edits],
    calls,
    wrong,
    right=SOURCES,
    seeds=2,
).tests()
