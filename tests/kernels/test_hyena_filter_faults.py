"""Faults seeded into the kernels of hyena_filter: each is one edit of their source, and a finding or a wrong result
must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from test_hyena_filter_cuda import exact_phases  # noqa: E402  (after the skips)

from tkpy import conformance, registry  # noqa: E402
from tkpy.ops.hyena_filter.op import _case  # noqa: E402

OP = registry.get("hyena_filter")
PUBLISH = "  publish_tile();\n  __syncthreads();\n"
FAULTS = [
    Fault("h written while products read it",
          "  __syncthreads();\n#pragma unroll\n  for (int e",
          "#pragma unroll\n  for (int e"),
    Fault("weights loaded while products read them",
          "  __syncthreads();\n  load<Block>(s.weights_lo",
          "  load<Block>(s.weights_lo"),
    Fault("weights not published", PUBLISH, "  __syncthreads();\n"),
    Fault("weights read before all are there", PUBLISH, "  publish_tile();\n"),
    Fault("registers without a fence", "    mma_fence();\n", ""),
    Fault("products not waited for", "    mma_wait(d);\n", ""),
    Fault("products not committed", "    mma_commit();\n", ""),
    Fault("one term of three", "    mma_ABt(d, a_hi, b_lo);\n", ""),
    Fault("another term of three", "    mma_ABt(d, a_lo, b_hi);\n", ""),
    Fault("the rest of h not split off", "write(&lo, d.get(0, e) - read(&hi));", "write(&lo, d.get(0, e));"),
    Fault("the rest of the weights not split off", "  sub<Block>(lo, lo, hi);\n", ""),
    Fault("both warpgroups the same rows", "above = 64 * warpgroup_index()", "above = 0"),
    Fault("depth rounded down", "k < f.depth; k += 32", "k + 31 < f.depth; k += 32"),
    Fault("old sums kept",
          "    zero(d);\n    product(d, s, weights);\n    if (n > p.layers)",
          "    product(d, s, weights);\n    if (n > p.layers)"),
    Fault("pi / 2 in one part", "  r = fmaf(n, 4.37113883e-8f, r);\n", ""),
    Fault("sine and cosine swapped", "quadrant & 1 ? cosine : sine", "quadrant & 1 ? sine : cosine"),
    Fault("a sign lost", "quadrant & 2 ? -value : value", "value"),
    Fault("growing window", "  neg(factor, factor);\n", ""),
    Fault("signed decay", "  abs(rate, rate);\n", ""),
    Fault("channels of the first round again", "channel = (n - p.layers - 1) * kWidth;", "channel = 0;"),
    Fault("the wrong hidden layer",
          "p.hidden + (n - 1) * width * width, width, width, 0, 0, width};\n    if (n == 0)",
          "p.hidden + n * 0, width, width, 0, 0, width};\n    if (n == 0)"),
    Fault("the wrong bias", "p.hidden_bias + (n - 1) * width", "p.hidden_bias + (n - 1) * 0"),
    Fault("a round less", "p.taps ? (p.channels + kWidth - 1) / kWidth : 0", "p.taps ? p.channels / kWidth : 0"),
    Fault("lags turned", "s.h_hi.at(lag, row) = hi;", "s.h_hi.at(row % kLags, lag) = hi;"),
    Fault("cosine for sine in the gradient", "circular(phase, 1)", "circular(phase, 0)"),
    Fault("no gradient through the frequency", "  mul(d, d, frequency);\n  store(dsums", "  store(dsums"),
    Fault("shares of one layer", "  add(share, share, sum);\n", "  copy(share, sum);\n"),
    Fault("the frequency's gradient after its product",
          "  mul(a, a, d);\n  row_sum(sum, a);",
          "  mul(a, a, slope);\n  row_sum(sum, a);"),
    Fault("sums of layers in one place", "p.dsums + 1ll * n * p.width * p.lags", "p.dsums + 0ll * n"),
    Fault("the gradient of channels not cleared", "      put(s, d);\n      zero(d);", "      put(s, d);"),
    Fault("no window in the gradient", "      window(p, ahead, channel, lag);\n", ""),
    Fault("the weights of the layer before",
          "n > 0 ? p.hidden + (n - 1) * width * width : p.input,",
          "n > 0 ? p.hidden + (p.layers - n) * width * width : p.input,"),
    Fault("shares of all tiles in one place", "p.shares + 1ll * blockIdx.x * width", "p.shares"),
]  # fmt: skip
PARTS = ("forward", "backward")
RUN = (
    "extern __shared__ __align__(1024) unsigned char memory[]; tkpy::hyena_filter::{}(p,"
    " *reinterpret_cast<tkpy::hyena_filter::Shared*>(memory), int(blockIdx.x) * tkpy::hyena_filter::kLags)"
)
ENTRIES = [
    Entry(f"hyena_filter_{part}", "hyena_filter", "tkpy::hyena_filter::Params", RUN.format(part), "256, 1")
    for part in PARTS
]
CASES = [
    registry.Case("two tiles", _case(70, 5, 128, 2, 40), ""),
    registry.Case("two rounds", _case(33, 3, 40, 2, 140), ""),
    registry.Case("large phases", exact_phases, ""),
]

test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "hyena_filter",
    {"": Unit(("hyena_filter/params.h", "hyena_filter/kernel.cu"), ENTRIES)},
    FAULTS,
    calls=lambda unit: CASES,
    wrong=lambda case: first_wrong(conformance.check_case(OP, case, backend="emulator", dtype=torch.float32)),
    right_seeds=3,
).tests()
