"""Faults seeded into the kernels of wkv5_step and hyena_step: each is one edit of their source, and a finding or a
wrong output or state must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from step_runs import NAMES, at_odd_addresses, disagreement, inputs  # noqa: E402  (after the skips)

ASKED = "|| row >= p.size || col >= p.size) return;"
SPLIT = "(channel / p.part * 3 + lane) * p.part + channel % p.part"
GUARD = "if (row >= p.size || col >= p.size) return;"
W64, W32, H8, H32 = ("wkv5_step 64", "wkv5_step 32", "hyena_step 8", "hyena_step 32")
FAULTS = [
    Fault("states asked for past the columns", ASKED, "|| row >= p.size) return;", W64),
    Fault("states asked for past the rows", ASKED, "|| col >= p.size) return;", W64),
    Fault("a state that is not there", "if (!p.initial || row", "if (row", W64),
    Fault("states left past the rows", GUARD, "if (col >= p.size) return;", W64),
    Fault("states left past the columns", GUARD, "if (row >= p.size) return;", W64),
    Fault("16 bytes read anywhere", "if (p.whole) {\n      const uint4", "if (true) {\n      const uint4", W64),
    Fault("16 bytes written anywhere", "if (p.whole) {\n      ptx::st", "if (true) {\n      ptx::st", W64),
    Fault("a tail read", "if (col + j < p.size) x[j] = from[j]", "x[j] = from[j]", W64),
    Fault("a tail written", "if (col + j < p.size) to[j] = x[j]", "to[j] = x[j]", W64),
    Fault("channels not waited for", "    __syncthreads();\n    recur", "    recur", W64),
    Fault("sums not waited for", "share(y);\n    __syncthreads();", "share(y);", W64),
    Fault("no bonus", "fmaf(bonus, v[j], y[j])", "y[j]", W64),
    Fault("the output of a decayed state", "fmaf(r, state[i][j], fmaf", "fmaf(r, decay * state[i][j], fmaf", W64),
    Fault("no decay", "fmaf(decay, state[i][j], k", "fmaf(1.0f, state[i][j], k", W32),
    Fault("one exponential", "expf(-expf(p.w[at]))", "expf(-p.w[at])", W64),
    Fault("the receptance for the key", "k * v[j])", "r * v[j])", W32),
    Fault("other rows than were asked for", "row = first + i * kStride;", "row = first * kRows + i;", W64),
    Fault("a step of the sum", "int step = kAcross; step < 32", "int step = kAcross; step < 16", W32),
    Fault("a warp's share", "warp < kWarps; ++warp", "warp < kWarps - 1; ++warp", W64),
    Fault("the mean of the padding", "warp_sum(sum) / static_cast<float>(p.size)", "warp_sum(sum) / W", W64),
    Fault("the variance of the padding", "at + e < p.size ? y[e] - mean : 0.0f", "y[e] - mean", W64),
    Fault("no eps", " + p.eps)", ")", W64),
    Fault("a norm without its mean", "at + e < p.size ? y[e] - mean", "at + e < p.size ? y[e]", W64),
    Fault("no gate", "if (p.gate) z *=", "if (false) z *=", W64),
    Fault("a linear gate", "fn::silu(a.gate[e])", "a.gate[e]", W64),
    Fault("a gate that is not there", "p.gate ? value(p.gate, at + e) : 0.0f", "value(p.gate, at + e)", W64),
    Fault("no bias", "a.weight[e], a.bias[e])", "a.weight[e], 0.0f)", W64),
    Fault("parameters of the first head", "static_cast<long long>(head) * p.size * (", "0LL * (", W64),
    Fault("parameters of another width", "(x.kind == rows::kF32 ? 4 : sizeof(T))", "sizeof(T)", W64),
    Fault("parameters of another channel", "index() * kEach;\n    const auto", "index();\n    const auto", W64),
    Fault("heads past the last", "blockIdx.x % static_cast<unsigned>(p.heads)", "blockIdx.x", W64),
    Fault("outputs past the last channel", "if (at + e >= p.size) continue;", "", W64),
    Fault("pairs read anywhere", "if (p.pairs) {\n        const uint4", "if (true) {\n        const uint4", H8),
    Fault("pairs written anywhere", "if (p.pairs) {\n        ptx::st", "if (true) {\n        ptx::st", H8),
    Fault("an odd mode read", "if (s + 1 < p.modes) x[i][2]", "x[i][2]", H8),
    Fault("an odd mode written", "if (s + 1 < p.modes) at[1] =", "at[1] =", H8),
    Fault("a carried state that is not there", "!live || !from || s", "!live || s", H8),
    Fault("modes of one lane", "return 2 * (lane + kLanes * i);", "return 2 * lane;", H32),
    Fault("channels past the last", "live = channel < p.width", "live = true", H8),
    Fault("a fourth filter", "filters = live && lane < 3", "filters = live", H8),
    Fault("columns not split", SPLIT, "lane * p.width + channel", H8),
    Fault("taps in reverse", "input * p.taps + j, filters", "input * p.taps + kept - j, filters", H8),
    Fault("the oldest tap for the newest", "input * p.taps + kept, filters", "input * p.taps, filters", H8),
    Fault("no short bias", "fmaf(f.last, x.now, f.bias)", "f.last * x.now", H8),
    Fault("inputs not shifted", "x.before[j + 1] : x.now", "x.before[j] : x.now", H8),
    Fault("the new input forgotten", "x.before[j + 1] : x.now", "x.before[j + 1] : x.before[j]", H8),
    Fault("an input too many kept", "if (j < kept) write(", "if (j <= kept) write(", H8),
    Fault("an input too many read", "p.before && j < kept ? read", "p.before && j <= kept ? read", H8),
    Fault("inputs that are not there", "filters && p.before && j < kept", "filters && j < kept", H8),
    Fault("inputs of the first row", "static_cast<long long>(b) * 3 * p.width + input", "input", H8),
    Fault("states of the first row", "static_cast<long long>(b) * p.width + channel;", "channel;", H8),
    Fault("rows left out", "b += static_cast<int>(gridDim.y)", "b += p.batch", H8),
    Fault("a conjugate", "im = pr * xi + pi * xr", "im = pr * xi - pi * xr", H8),
    Fault("the imaginary part added", "re - residue[i][j + 1] * im", "re + residue[i][j + 1] * im", H8),
    Fault("the state before", "sum += residue[i][j] * re", "sum += residue[i][j] * xr", H8),
    Fault("no skip", " + static_cast<double>(skip) * now", "", H8),
    Fault("a lane's modes", "bit < kLanes; bit *= 2", "bit < 2; bit *= 2", H8),
    Fault("gates exchanged", "filtered, 0, kLanes), x1", "filtered, 1, kLanes), x1", H8),
    Fault("another channel's input", "filtered, 2, kLanes)", "filtered, 2)", H8),
    Fault("no gate in front", "const float now = x1 * ", "const float now = ", H8),
]  # fmt: skip


def unit(kernel: str) -> Unit:
    name, width = kernel.split()
    step, shared = f"tkpy::{name}::Step<tk::bf16, {width}>", name == "wkv5_step"
    run = f"__shared__ {step}::Shared shared; {step}{{p, shared}}.run()" if shared else f"{step}{{p}}.run()"
    threads = f"tkpy::{name}::" + (f"threads_of({width})" if shared else "kThreads")
    entry = Entry(f"{name}_bf16_{width}", name, f"tkpy::{name}::Params", run, threads)
    return Unit((f"{name}/params.h", f"{name}/kernel.cu"), [entry], given=("rows/params.h", "rows/rows.cuh"))


def calls(kernel: str) -> list[tuple[str, dict]]:
    """Small calls that show a kernel's ways: nothing given, whole and odd sizes, odd addresses, several rows."""
    name, width = kernel.split()
    if name == "wkv5_step":
        size = int(width)
        most = inputs(name, 2, 3, size - 3)
        most |= {key: most[key].float() for key in ("weight", "bias")}
        shifted = inputs(name, 2, 1, size // 2 + 4)
        shifted["v"] += 4.0  # a mean that is not 0
        shifted["initial_state"] += 4.0
        found = [
            inputs(name, 1, 2, size, eps=2.0),
            inputs(name, 1, 2, size - 4, without=("initial_state", "gate"), eps=0.5),
            shifted,
            most,
            at_odd_addresses(inputs(name, 1, 1, size)),
        ]
    else:
        modes = int(width)
        found = [
            inputs(name, 1, 7, modes, 3, 1, without=("fir_state", "state")),
            inputs(name, 11, 36, modes, 3, 3),
            inputs(name, 2, 5, modes - 1, 4, 1),
            at_odd_addresses(inputs(name, 2, 5, modes, 8, 1)),
        ]
    return [(name, kwargs) for kwargs in found]


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "step",
    {kernel: unit(kernel) for kernel in (W64, W32, H8, H32)},
    FAULTS,
    calls,
    wrong=lambda call: disagreement(*call),
    right=[f"{name}/kernel.cu" for name in NAMES],
    right_seeds=3,
    multiprocessors=1,
).tests()
