"""Faults seeded into the kernels of hyena_filter: each is one edit of their source, and a finding or a wrong result
must give it away on a few small calls and schedules."""

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from test_hyena_filter_cuda import exact_phases  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, registry  # noqa: E402
from tkpy.ops.hyena_filter.op import _case  # noqa: E402

OP = registry.get("hyena_filter")
SEEDS = range(3)

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
CONTROL = Fault("none", "", "")
PARTS = ("forward", "backward")


def source(number: int) -> str:
    """The kernels with the fault, in a namespace of their own."""
    fault = [*FAULTS, CONTROL][number]
    text = "".join((ROOT / "csrc/kernels/hyena_filter" / name).read_text() for name in ("params.h", "kernel.cu"))
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1)
    kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
    body = "\n".join(kept).split("#define TKPY_HYENA_FILTER")[0]
    entries = "".join(
        f'extern "C" __global__ void __launch_bounds__(256, 1) {part}_{number}'
        f"(const __grid_constant__ tkpy::hyena_filter::Params p) {{\n"
        f"  extern __shared__ __align__(1024) unsigned char memory[];\n"
        f"  tkpy::hyena_filter::{part}(p, *reinterpret_cast<tkpy::hyena_filter::Shared*>(memory),"
        f" static_cast<int>(blockIdx.x) * tkpy::hyena_filter::kLags);\n}}\n"
        for part in PARTS
    )
    return f"namespace seeded_{number} {{\n{body}\n{entries}}}\n"


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    """The PTX of all faults: one run of nvcc, none of ptxas."""
    whole = "".join(source(i) for i in range(len(FAULTS) + 1))
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "hyena_filter_faults", whole)


CASES = [
    registry.Case("two tiles", _case(70, 5, 128, 2, 40), ""),
    registry.Case("two rounds", _case(33, 3, 40, 2, 140), ""),
    registry.Case("large phases", exact_phases, ""),
]


def found(text: str, tmp_path, monkeypatch, number: int, seeds: range) -> str:
    write_module(tmp_path, "hyena_filter", module(text, {f"{part}_{number}": f"hyena_filter_{part}" for part in PARTS}))
    for seed in seeds:
        on_machine(monkeypatch, tmp_path, seed)
        for case in CASES:
            try:
                for result in conformance.check_case(OP, case, backend="emulator", dtype=torch.float32):
                    if not result.comparison:
                        return str(result)
            except tkpy.InternalError as error:
                return str(error)
    return ""


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_caught(text, tmp_path, monkeypatch, number):
    assert found(text, tmp_path, monkeypatch, number, SEEDS)


def test_the_right_kernel_is_not_accused(text, tmp_path, monkeypatch):
    assert found(text, tmp_path, monkeypatch, len(FAULTS), SEEDS) == ""
