"""Faults seeded into the kernels of rms_norm and layer_norm: each is one edit of their source, and a finding or a wrong
result must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from norm_runs import MODULES, disagreement, inputs  # noqa: E402  (after the skips)

from tkpy.ops import rows  # noqa: E402

LF, RF, LB, RB = ("layer forward", "rms forward", "layer backward", "rms backward")
TAKE = "#pragma unroll\n    for (int i = 0; i < Count; ++i) v[i] = shares"
EDGE, PAST = "if (col + i * per_word < columns) word[i]", "if (col + i * per_word < columns + 4) word[i]"
FAULTS = [
    Fault("an odd tail read", "if (col + i < columns) word[i / 2] |=", "word[i / 2] |=", LF),
    Fault("an odd tail written", "if (col + i < columns) to[i]", "if (col + i <= columns) to[i]", LF),
    Fault("a tail of words read", EDGE, PAST, LF),
    Fault("a tail of words written", "columns) *reinterpret_cast<u32*>", "columns + 2) *reinterpret_cast<u32*>", RF),
    Fault("chunks past the end read", "    clear();\n    if (col >= columns) return;", "    clear();", LF),
    Fault("chunks past the end written", "{\n    if (col >= columns) return;\n    T* to", "{\n    T* to", RF),
    Fault("words for rows that begin anywhere", "} else if (grain == 4 ||", "} else if (grain <= 4 ||", LF),
    Fault("chunks of one thread", "base + (k * lanes + lane) * N", "base + (k + lane * 2) * N + k * 8", LF),
    Fault("one step of the sum missing", "for (int step = 16; step > 0", "for (int step = 16; step > 1", LF),
    Fault("sums over other rows too", "if (step < lanes)", "if (true)", LF),
    Fault("warps do not wait", "    __syncthreads();\n" + TAKE, TAKE, LF),
    Fault("one buffer", "turn_ ^= 1;", "", LF),
    Fault("the last warp's share", "w < lanes / 32", "w < lanes / 32 - 1", LF),
    Fault("rows past the last", "return row < p.rows ? p.columns : 0", "return row < p.rows + 1 ? p.columns : 0", LF),
    Fault("statistics past the last row", "team.lane == 0 && row < p.rows", "team.lane == 0", LF),
    Fault("the parameters' tail", "from.data == nullptr || col + i >= columns", "from.data == nullptr", LF),
    Fault("parameters of the wrong type", "from.kind == kF32", "false", "layer forward f32"),
    Fault("every row", "* team.teams;\n    long long row", "* team.teams + 1;\n    long long row", RF),
    Fault("the same row again", "fetch(next, last ? row + stride : row, last", "fetch(next, row, last", RF),
    Fault("the padding in the variance", "column(base, k) + i < p.columns ? v", "true ? v", LF),
    Fault("the mean of stretches", "m.mean += delta * share", "m.mean += delta * 0.5f", LF),
    Fault("the variance between stretches", " + delta * delta * before * share", "", LF),
    Fault("the last stretch for all", "if (!whole) {\n          reload(v", "if (false) {\n          reload(v", LF),
    Fault("eps outside", "Layer || p.inside ?", "false ?", RF),
    Fault("eps inside", "Layer || p.inside ?", "true ?", RF),
    Fault("the mean stays", "(Layer ? v[k][i] - mean : v[k][i])", "(v[k][i])", LF),
    Fault("the residual twice", "v[k][i] += before[i];", "v[k][i] += 2.0f * before[i];", RF),
    Fault("dropout after the residual", "      dropout.apply(v[k], row, column(base, k));\n", "", RF),
    Fault("nine rounds", "round < 10", "round < 9", RF),
    Fault("the key stays", "k1 += 0xBB67AE85u", "k1 += 0u", RF),
    Fault("a mask for all rows", "x[1] = static_cast<u32>(row);", "x[1] = 0u;", RF),
    Fault("what is kept as it was", ": v[i] * scale", ": v[i]", RF),
    Fault("the wrong ones", "x[i % 4] < threshold", "x[i % 4] >= threshold", RF),
    Fault("a gradient without its mask", "      dropout.apply(d, row, col);\n", "", RB),
    Fault("the mask in the residual's gradient", "      const int col = column(base, k);\n",
          "      const int col = column(base, k);\n      dropout.apply(d, row, col);\n", RB),
    Fault("the stream's gradient", "          if (p.dz.data)", "          if (false)", RB),
    Fault("the mean of g", "Layer ? g : n[i] * n[i]", "Layer ? 0.0f : n[i] * n[i]", LB),
    Fault("the projection", "total[1] = fmaf(g, n[i], total[1])", "total[1] = total[1]", LB),
    Fault("a third power", "/ (denominator * denominator)", "/ denominator", RB),
    Fault("eps in the derivative", "p.inside ? first + p.eps : first", "first", RB),
    Fault("not normalised", "if constexpr (Layer) n[i] = (n[i] - f.mean) * f.r;", ";", LB),
    Fault("the weight's gradient, not normalised", "Layer ? 1.0f : c.r", "1.0f", RB),
    Fault("the next row's statistics", "total, now.r)", "total, next.r)", LB),
    Fault("the first stretch twice", "last ? 0 : base + team.span);  // under way", "0);  // under way", LB),
    Fault("teams together", "if (turn == team.index) {", "{", LB),
    Fault("teams do not wait", "if (team.teams > 1) __syncthreads();", "", LB),
    Fault("the last team alone", "turn == 0 ? sum[which][k][i] : *to +", "true ? sum[which][k][i] : *to +", LB),
    Fault("the last row alone", "first ? dw : share(0)[col] + dw", "dw", LB),
    Fault("rows begin with what is there", "first ? db : share(1)[col] + db", "share(1)[col] + db", LB),
    Fault("one share for both", "(static_cast<long long>(which) * gridDim.x + blockIdx.x)", "(blockIdx.x)", LB),
    Fault("one share for all CTAs", "* gridDim.x + blockIdx.x)", "* gridDim.x)", LB),
    Fault("a share less", "row < p.rows; row += kSumThreads / 32", "row < p.rows - 1; row += kSumThreads / 32", "sum"),
    Fault("a warp's shares less", "w < kSumThreads / 32; ++w) sum", "w < kSumThreads / 32 - 1; ++w) sum", "sum"),
    Fault("shares not waited for", "part[warp][lane] = sum;\n  __syncthreads();", "part[warp][lane] = sum;", "sum"),
    Fault("columns past the last", "if (warp > 0 || col >= p.columns ||", "if (warp > 0 ||", "sum"),
]  # fmt: skip
FILES = ("rows/params.h", "rows/rows.cuh", "rows/dropout.cuh")


def unit(kind: str, way: str) -> Unit:
    run = f"tkpy::rows::Norm{way.title()}<tk::bf16, tk::bf16, {str(kind == 'layer').lower()}>(p).run()"
    name, module = f"rows_{kind}_norm_{way}_bf16_bf16", f"rows_norm_{way}"
    entries = [Entry(name, module, "tkpy::rows::NormParams", run, "512" if way == "forward" else "256")]
    if way == "backward":
        entries.append(Entry("rows_norm_sum", module, "tkpy::rows::SumParams", "tkpy::rows::sum_shares(p)", "512"))
    return Unit((*FILES, f"rows/norm_{way}.cu"), entries)


UNITS = {kernel: unit(*kernel.split()) for kernel in (LF, RF, LB, RB)}
UNITS |= {"layer forward f32": UNITS[LF], "sum": UNITS[LB]}


def calls(kernel: str) -> list[tuple]:
    """Small calls that show the kernel's ways: pieces of 16, 4 and 2 bytes, few and many lanes, rows by stretches."""
    kind, forward = kernel.split()[0], "forward" in kernel
    if kernel == "sum":
        sizes = ((300, 40), (70, 129), (150, 520))  # the last has more shares than a CTA warps
        return [("layer", inputs("layer", *size), True) for size in sizes]
    bf16 = torch.bfloat16
    outside = {"eps": 0.3, "eps_inside_sqrt": False} if kind == "rms" else {}
    found = [
        inputs(kind, 75, 72, residual=bf16, dropout=0.3, pitch=80),
        inputs(kind, 9, 1030, residual=bf16),
        inputs(kind, 70, 67, **outside),
        inputs(kind, 67, 15, eps=0.5),
        inputs(kind, 3, 9000 if forward else 4104, dropout=0.5),
    ]
    found[-1]["x"][:, 8192:] += 8.0  # another mean than the first stretch's
    if kernel.endswith("f32"):
        for kwargs in found:
            kwargs |= {name: kwargs[name].float() for name in ("weight", "bias")}
    for kwargs in found:  # what lies past the columns of x
        if kwargs["x"].stride(0) > kwargs["x"].shape[1]:
            whole = torch.full((len(kwargs["x"]), kwargs["x"].stride(0)), float("nan"), dtype=bf16)
            whole[:, : kwargs["x"].shape[1]] = kwargs["x"]
            kwargs["x"] = whole[:, : kwargs["x"].shape[1]]
    return [(kind, kwargs, not forward) for kwargs in found]


def few_ctas(monkeypatch, fault: Fault) -> None:
    monkeypatch.setattr(rows, "multiprocessors", lambda x: 9 if fault.kernel == "sum" else 1)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "norm",
    UNITS,
    FAULTS,
    calls,
    wrong=lambda call: disagreement(call[0], call[1], grad=call[2]),
    right=[f"rows/{name}.cu" for name in MODULES],
    multiprocessors=1,
    arrange=few_ctas,
).tests()
