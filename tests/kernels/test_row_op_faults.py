"""Faults seeded into the kernels of rotary, token_shift, group_norm and merge_state: each is one edit of their source,
and a finding or a wrong result must give it away on a few small calls and schedules. test_norm_faults.py has those of
rows.cuh."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from row_runs import MODULES, disagreement  # noqa: E402  (after the skips)
from test_row_ops_cuda import group_norm, merge_state, rotary, token_shift  # noqa: E402

from tkpy import registry  # noqa: E402
from tkpy.ops import rows  # noqa: E402


def unit(name: str, files: str, params: str, run: str, bounds: str = "128", shared: str = "") -> Unit:
    """`files`: those of the op beside the kernel's own."""
    first, *rest = files.split()
    names = ("params.h", first, "rows.cuh", *rest, f"{name}.cu")
    run = f"{shared}tkpy::rows::{run}.run()"
    entry = Entry(f"rows_{name}_bf16", f"rows_{name}", f"tkpy::rows::{params}", run, bounds)
    return Unit([f"rows/{name}" for name in names], [entry])


def units(*made: tuple[str, ...]) -> dict[str, Unit]:
    return {name: unit(name, *rest) for name, *rest in made}


SHIFT, HEADS = ("shift_params.h shift.cuh", "ShiftParams"), ("head_norm_params.h head_norm.cuh", "HeadNormParams")
PARTS = ("merge_params.h merge.cuh", "MergeParams")
UNITS = {
    "rotary": units(("rotary", "rotary_params.h", "RotaryParams", "Rotary<tk::bf16>{p}")),
    "token_shift": units(
        ("shift_forward", *SHIFT, "ShiftForward<tk::bf16>(p)"),
        ("shift_backward", *SHIFT, "ShiftBackward<tk::bf16>(p, shared)", "128", "extern __shared__ float shared[]; "),
    ),
    "group_norm": units(
        ("head_norm_forward", *HEADS, "HeadNormForward<tk::bf16>(p)", "256"),
        ("head_norm_backward", *HEADS, "HeadNormBackward<tk::bf16>(p)", "256"),
    ),
    "merge_state": units(
        ("merge_forward", *PARTS, "MergeForward<tk::bf16>(p)", "256"),
        ("merge_backward", *PARTS, "MergeBackward<tk::bf16>(p)", "256"),
    ),
}

LOAD, STORE = "const int limit = head + h < p.heads ? p.half : 0;\n      left", "p.half : 0;\n      float a"
TURNS = [
    ("another sequence's positions", "batch * p.position_batch", "0 * p.position_batch"),
    ("one position for all", "token * p.position_token", "0 * p.position_token"),
    ("half of each position", "p.long_positions ?", "false ?"),
    ("two positions in one", "p.long_positions ?", "true ?"),
    ("whole turns stay", "turns - rint(turns)", "turns"),
    ("half the angle", "2.0f * static_cast<float>(turns", "static_cast<float>(turns"),
    ("the gradient turned on", "      sine[i] *= p.direction;\n", ""),
    ("the other way", "-b[i] * sine[i]", "b[i] * sine[i]"),
    ("one of the pair twice", "cosine[i], a[i] * sine[i]", "cosine[i], b[i] * sine[i]"),
    ("heads past the last read", LOAD, "const int limit = p.half;\n      left"),
    ("heads past the last written", "head + h < p.heads ? " + STORE, STORE.replace("p.half : 0", "p.half")),
    ("the right half from the left", "x + h * p.x_head + p.half, pair", "x + h * p.x_head, pair"),
    ("the right half over the left", "2 * p.half + p.half, pair", "2 * p.half, pair"),
    ("the first sequence for all", "batch * p.x_batch", "0 * p.x_batch"),
    ("another token", "token * p.x_token", "batch * p.x_token"),
    ("sequences over one another", "static_cast<long long>(place) *", "static_cast<long long>(token) *"),
    ("blocks of 4 heads", "row % p.blocks) * kRotaryHeads", "row % p.blocks) * at_once"),
    ("units left out", "unit += gridDim.x * kRotaryThreads", "unit += gridDim.x * kRotaryThreads + 1"),
    ("a unit more", "unit < p.units", "unit <= p.units"),
    ("positions as they are", "position(batch, token) / p.scaling", "position(batch, token)"),
    ("one frequency for a chunk", "p.turns[pair + i]", "p.turns[pair]"),
    ("4 of 8 heads", "head += at_once", "head += kRotaryHeads"),
    ("tokens counted on", "token = place % p.length", "token = place"),
    ("half chunks", "unit % p.chunks) * N", "unit % p.chunks) * N / 2"),
    ("heads side by side", "x + head * p.x_head", "x + head * p.half"),
]  # fmt: skip
COMMON = [
    ("no token before", "token == -1 && from < 0 && p.last != nullptr", "false"),
    ("one last token for all", "batch * p.last_batch", "0 * p.last_batch"),
    ("the first sequence for all", "batch * p.x_batch", "0 * p.x_batch"),
    ("half chunks", "p.lane_bits) + lane) * N", "p.lane_bits) + lane) * N / 2"),
    ("the first CTA's channels for all", "(blockIdx.x % p.across << p.lane_bits) + lane", "lane"),
    ("one run for a CTA", "* teams() + team)", "+ team)"),
    ("runs overlap", "row % p.runs) * p.tokens", "row % p.runs) * (p.tokens - 1)"),
    ("a run past the sequence", "min(first + p.tokens, p.length)", "first + p.tokens"),
    ("a run more", "row < p.rows", "row <= p.rows"),
    ("mixes of the wrong type", "p.mix.kind == kF32", "false"),
    ("one mix for all", "long long at = static_cast<long long>(m) * p.channels", "long long at = 0"),
    ("mixes that begin anywhere", "p.mix_grain", "16"),
    ("one plane for all mixes", "m * p.plane", "0 * p.plane"),
    ("sequences over one another", "(batch * p.length + token)", "(token)"),
]  # fmt: skip
SHIFTS = [
    *COMMON,
    ("before the beginning", "token >= max(from, 0)", "token >= from"),
    ("the token itself", "x[i + 1][j] - x[i][j], x[i][j])", "x[i + 1][j] - x[i][j], x[i + 1][j])"),
    ("an older token", "x[0][j] = x[kShiftTokens][j]", "x[0][j] = x[1][j]"),
    ("runs begin with 0", "before, first - 1, first - 1", "before, first - 1, first"),
    ("the next token only", "fetch(next, token + kShiftTokens)", "fetch(next, token + 1)"),
    ("tokens past the run written", "token + i < end ? p.channels : 0", "p.channels"),
    ("one token 4 times", "this->load(x[i], token + i, 0)", "this->load(x[i], token, 0)"),
]  # fmt: skip
GRADIENTS = [
    *COMMON,
    ("nothing from the next run", "if (end >= p.length) return;", "return;"),
    ("the next sequence's token", "    if (end >= p.length) return;\n", ""),
    ("the wrong share of the next run", "fmaf(1.0f - w[j], dy[j], carry[j])", "fmaf(w[j], dy[j], carry[j])"),
    ("tokens before the run summed", "token >= first ? p.channels : 0, p.grain);\n    }\n    float w",
     "p.channels, p.grain);\n    }\n    float w"),
    ("no difference", "here[j] - before[j]", "here[j]"),
    ("the last 4 tokens alone", "share[j] = own[(m * N + j) * kShiftThreads];", "share[j] = 0.0f;"),
    ("nothing to the token itself", "        d[i][j] = fmaf(w[j], g[j], d[i][j]);\n", ""),
    ("the wrong share to the token before", "fmaf(1.0f - w[j], g[j]", "fmaf(w[j], g[j]"),
    ("sums of other threads", "own[(m * N + j) * kShiftThreads] = share[j]", "own[m * N + j] = share[j]"),
    ("the first token's gradient", "continue;\n      out.put(d[i + 1]);", "continue;\n      out.put(d[i]);"),
    ("every token is the first", "if (token != 0 ||", "if ("),
    ("tokens before the run written", "token >= first ? p.channels : 0, p.grain);\n      if",
     "p.channels, p.grain);\n      if"),
    ("shares over one another", "(blockIdx.x / p.across) * p.mixes", "(blockIdx.x / p.across)"),
    ("runs of the CTA left out", "k < teams;", "k + 1 < teams;"),
    ("one run's share for the CTA's", "(((k + this->team) & (teams - 1))", "((this->team)"),
    ("shares before the other runs are done", "gradients();\n    __syncthreads();", "gradients();"),
    ("mixes left out", "m += static_cast<int>(teams)", "m += p.mixes"),
    ("sums begin with what is there", "own[i * kShiftThreads] = 0.0f", "own[i * kShiftThreads] += 0.0f"),
    ("nothing from 4 tokens later", "d[0][j] = d[kShiftTokens][j]", "d[0][j] = 0.0f"),
    ("runs begin with 0", "after - 1 - i, first - 1)", "after - 1 - i, first)"),
    ("tokens twice", "after -= kShiftTokens", "after -= kShiftTokens - 1"),
    ("one gradient of the last tokens", "(p.dlast) + batch * p.channels", "(p.dlast)"),
    ("shares that begin anywhere", "p.partial_grain", "16"),
    ("a token's gradient stays", "for (int i = 1; i <= kShiftTokens; ++i)", "for (int i = 2; i <= kShiftTokens; ++i)"),
]  # fmt: skip
TEAMS = [
    ("one head for all", "static_cast<int>(index % p.heads)", "0"),
    ("a split for each team", "split = index / p.heads", "split = index"),
    ("the last rows left out", "(p.rows + p.splits - 1) / p.splits", "p.rows / p.splits"),
    ("every row", "step * p.splits + split", "step + split"),
    ("a team left out", "split < p.splits && row", "split + 1 < p.splits && row"),
    ("a row more", "row(step) < p.rows", "row(step) <= p.rows"),
    ("heads over one another", "row(step) * p.heads + head", "row(step) + head"),
    ("the first head's parameters", "static_cast<long long>(head) * p.size", "0"),
    ("parameters of the wrong type", "own.kind == kF32", "false"),
    ("a gate that is not there", "from == nullptr ? 0 : ", ""),
]
HEADS_FORWARD = [
    *TEAMS,
    ("the padding in the variance", "this->column(k) + i < p.size ? v", "true ? v"),
    (
        "the padding in the mean",
        "mean = sum[0] / static_cast<float>(p.size)",
        "mean = sum[0] / static_cast<float>(team.span)",
    ),
    ("no eps", "(p.size) + p.eps", "(p.size)"),
    ("the mean stays", "(v[k][i] - mean) * r", "v[k][i] * r"),
    ("no gate", "if (p.gate) y[i]", "if (false) y[i]"),
    (
        "the next row's gate",
        "gate[k] = next_gate[k];\n      }\n      this->fetch(next, p.x, step + 1);\n",
        "}\n      this->fetch(next, p.x, step + 1);\n      gate[0] = gate[1] = next[0];\n",
    ),
    ("the same row again", "this->fetch(next, p.x, step + 1)", "this->fetch(next, p.x, step)"),
    ("statistics past the last row", "team.lane > 0 || !this->exists(step)", "team.lane > 0"),
    ("no bias", "w[k][i], b[k][i])", "w[k][i], 0.0f)"),
    ("each thread's own variance", "    team.sum(squares);\n", ""),
]
HEADS_BACKWARD = [
    *TEAMS,
    ("x for its gradient", "fetch(f.dy, p.dy, step)", "fetch(f.dy, p.x, step)"),
    ("the mean stays", "(n[k][i] - f.mean) * f.r", "n[k][i] * f.r"),
    ("half a gate", "h[k][i] *= gate[i] * s;", "h[k][i] *= s;"),
    ("the derivative of a product", "fmaf(gate[i], 1.0f - s, 1.0f)", "1.0f"),
    ("a gate's gradient without the bias", "b[k][i]) * s", "0.0f) * s"),
    ("shares of teams too many", "if (this->split >= p.splits) return;", ""),
    ("one share for both", "(which * p.splits + this->split)", "(this->split)"),
    ("one share for all heads", "* p.heads + this->head) * p.size", "* p.heads) * p.size"),
    ("shares that begin anywhere", "p.partial_grain", "16"),
    ("the last row's weight gradient", "n[k][i], dweight[k][i])", "n[k][i], 0.0f)"),
    ("the last row's bias gradient", "dbias[k][i] += h", "dbias[k][i] = h"),
    ("g without the weight", "g = w[k][i] * h[k][i];", "g = h[k][i];"),
    ("no projection", "total[1] = fmaf(g, n[k][i], total[1]);", ""),
    ("the mean of g stays", "h[k][i], -shift", "h[k][i], 0.0f"),
    ("the next row's deviation", "now.r * (fmaf", "next.r * (fmaf"),
    ("the weight's gradient twice", "leave(dbias, 1)", "leave(dweight, 1)"),
    ("statistics past the last row", "    if (!this->exists(step)) return;\n", ""),
]  # fmt: skip
JOINED = [
    ("one head for all", "static_cast<int>(blockIdx.x % static_cast<unsigned>(p.heads))", "0"),
    ("tokens over one another", "* team.teams + team.index", "+ team.index"),
    ("one sequence for all", "batch * all.batch", "0 * all.batch"),
    ("one token for all", "token * all.token", "0 * all.token"),
    ("heads side by side", "head * all.head", "head"),
    ("a token past the sequence", "token < p.length", "token <= p.length"),
    ("a part that saw no key", "lse[i] == INFINITY) lse[i] = -INFINITY", "false) lse[i] = -INFINITY"),
    (
        "neither part saw a key",
        "const bool empty = lse[0] == -INFINITY && lse[1] == -INFINITY",
        "const bool empty = false",
    ),
    ("the other part's weight", "fn::sigmoid(-ahead)", "fn::sigmoid(ahead)"),
    ("what has no say may be NaN", "if (weight != 0.0f) return;", "return;"),
]
JOINS = [
    *JOINED,
    ("a sum without logarithms", "fn::log(1.0f + fn::exp(-fabsf(ahead)))", "fn::exp(-fabsf(ahead))"),
    ("the difference with its sign", "-fabsf(ahead)", "ahead"),
    ("the smaller one", "fmaxf(lse[0]", "fminf(lse[0]"),
    ("one part twice", "fetch(second, p.out[1])", "fetch(second, p.out[0])"),
    ("the first part's weight for both", "w[1] * b[i])", "w[0] * b[i])"),
    ("the second part unmasked", "part(b, second[k], w[1])", "part(b, second[k], 1.0f)"),
    ("no log-sum-exp", "this->leave(p.merged_lse, this->weigh(w))", "this->weigh(w)"),
    ("every thread's", "&& team.lane == 0) *", "&& team.lane == 1) *"),
]
PARTINGS = [
    *JOINED,
    ("the sum of the parts", "a[i] - b[i], slope", "a[i] + b[i], slope"),
    ("a thread's own sum", "    this->team.sum(slope);\n", ""),
    ("the gradient of one part for both", "b[i] = w[1] * d[i]", "b[i] = w[0] * d[i]"),
    ("the first part's gradient twice", "store(p.dout[1], b, k)", "store(p.dout[1], a, k)"),
    ("no gradient of the log-sum-exp", "this->number(p.dlse, 0.0f)", "0.0f"),
    ("a wrong sign", "fmaf(-w[0], slope[0], dlse)", "fmaf(w[0], slope[0], dlse)"),
    ("the part's own weight", "fmaf(w[1], slope[0], dlse)", "fmaf(w[0], slope[0], dlse)"),
    ("not weighed", "p.dpart_lse[1], w[1] * ", "p.dpart_lse[1], "),
    ("the first part unmasked", "part(a, first[k], w[0])", "part(a, first[k], 1.0f)"),
]  # fmt: skip
LISTS = {
    "merge_forward": JOINS,
    "merge_backward": PARTINGS,
    "rotary": TURNS,
    "shift_forward": SHIFTS,
    "shift_backward": GRADIENTS,
    "head_norm_forward": HEADS_FORWARD,
    "head_norm_backward": HEADS_BACKWARD,
}


def rotary_calls(make) -> list[dict]:
    """Several units a thread, part of a block of heads; far and 32-bit positions."""
    far = rotary(make, 3, 5, 16)
    return [rotary(make, 67, 21, 64), far | {"positions": far["positions"].int() * 100_003}]


def shift_calls(make) -> list[dict]:
    """Runs of 4 tokens and of more, mixes of both types, pieces of 16, 4 and 2 bytes."""
    return [
        token_shift(make, 2, 70, 12, 3, wide_mix=True),
        token_shift(make, 2, 133, 264, 5),
        token_shift(make, 3, 6, 7, 3, last=False),
    ]


def head_calls(make) -> list[dict]:
    """Several rows a team, teams without one; parameters of both types, some absent; a CTA to a head."""
    return [
        group_norm(make, 150, 7, 15, wide=True, eps=0.5),
        group_norm(make, 67, 3, 64),
        group_norm(make, 40, 5, 24, options=()),
        group_norm(make, 5, 1, 515),
    ]


def merge_calls(make) -> list[dict]:
    """Several teams a CTA and one, parts that saw no key, pieces of 16 and 2 bytes."""
    return [merge_state(make, 2, 37, 3, 72), merge_state(make, 1, 5, 2, 515), merge_state(make, 2, 9, 2, 7, pitch=8)]


CALLS = {"merge_state": merge_calls, "group_norm": head_calls, "rotary": rotary_calls, "token_shift": shift_calls}


def suite(op: str) -> Suite:
    def calls(kernel: str) -> list[tuple[dict, bool]]:
        return [(kwargs, not kernel.endswith("forward")) for kwargs in CALLS[op](registry.Maker(torch.bfloat16))]

    return Suite(
        op,
        UNITS[op],
        [Fault(*edit, kernel) for kernel in UNITS[op] for edit in LISTS[kernel]],
        calls,
        wrong=lambda call: disagreement(op, call[0], grad=call[1]),
        right=[f"rows/{name}.cu" for name in MODULES[op]],
        seeds=2,
        multiprocessors=1,
        arrange=lambda monkeypatch, fault: monkeypatch.setattr(rows, "multiprocessors", lambda x: 1),
    )


test_every_fault_of_rotary_is_caught, test_the_right_rotary_is_not_accused = suite("rotary").tests()
test_every_fault_of_token_shift_is_caught, test_the_right_token_shift_is_not_accused = suite("token_shift").tests()
test_every_fault_of_group_norm_is_caught, test_the_right_group_norm_is_not_accused = suite("group_norm").tests()
test_every_fault_of_merge_state_is_caught, test_the_right_merge_state_is_not_accused = suite("merge_state").tests()
