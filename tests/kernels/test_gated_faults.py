"""Faults seeded into the GEMM's gated kernels, seen through gated_mlp and blockdiag_mlp: each is one edit of their
source, and a finding or a wrong result must give it away on a few small calls and schedules."""

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from test_gated_cuda import OPS, blocks, dense  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance  # noqa: E402

SEEDS = range(3)
SHARED, TWO, MASKED = "shared_tma", "two_tma", "two_generic"
WAIT = "        wait_cluster(shared.full[at.slot], at.parity);\n"
FREE = "        wait_cluster(shared.free[at.slot], at.parity ^ 1);\n"
B2 = "gated && rank == 1 ? p.b2 : p.b"
BLOCK = "(t.group + input * p.groups) / 2"
ROWS = "r = half; r < 16 && row + r < p.m; r += 2"
VALUE = "part<2>(shared.b[slot], 1), p.b2_data"
PARTS = "    __syncwarp();\n    to_patch<32>(patch, gate, 32 * part, 0);\n"
READ = "to_patch<32>(patch, value, 32 * part, 32);\n"
FAULTS = [
    Fault("gate and value exchanged", B2, "gated && rank == 0 ? p.b2 : p.b", SHARED),
    Fault("the gate's weights for both", B2, "p.b", SHARED),
    Fault("the gate's block for both", BLOCK, "t.group / 2", TWO),
    Fault("blocks not halved", BLOCK, "t.group + input * p.groups", TWO),
    Fault("the value a block too early", BLOCK, "(t.group + input * (p.groups - 1)) / 2", TWO),
    Fault("the gate's A for both", "kConsumers * (inputs - 1) + consumer", "consumer", TWO),
    Fault("bytes of one input", "inputs * kConsumers * ATile::bytes", "kConsumers * ATile::bytes", TWO),
    Fault("halves of B at other columns", "gated ? t.col : t.col + rank", "false ? t.col : t.col + rank", SHARED),
    Fault("tiles twice as wide", "at.col * cols, batch", "at.col * kTileCols, batch", SHARED),
    Fault("half of the tiles", "(p.n + cols - 1) / cols", "(p.n + kTileCols - 1) / kTileCols", SHARED),
    Fault("the value not begun at zero", "if constexpr (gated) zero(d[1]);", "", SHARED),
    Fault("the value over the gate", "value, 32 * part, 32)", "value, 32 * part, 0)", SHARED),
    Fault("every part the first", "gate, 32 * part, 0)", "gate, 0, 0)", SHARED),
    Fault("parts in other columns", "tile.col + 32 * part", "tile.col + 64 * part", SHARED),
    Fault("the activation of the value", "activate(p.activation, gate.y) * value.y",
          "gate.y * activate(p.activation, value.y)", SHARED),
    Fault("no gate", "activate(p.activation, gate.x) * value.x", "value.x", SHARED),
    Fault("both halves of the warp the same rows", ROWS, "r = 0; r < 16 && row + r < p.m; r += 2", SHARED),
    Fault("rows past the last", ROWS, "r = half; r < 16; r += 2", SHARED),
    Fault("the patch written while it is read", PARTS, PARTS.replace("    __syncwarp();\n", ""), SHARED),
    Fault("the patch read before it is written", READ + "    __syncwarp();\n", READ, SHARED),
    Fault("slots read before they have landed", WAIT, "", TWO),
    Fault("slots filled while they are read", FREE, "", TWO),
    Fault("a slot released too early", "mma_wait<1>();", "mma_wait<2>();", TWO),
    Fault("registers read before the products are over", "      mma_wait();\n", "", TWO),
    Fault("no fence before the products", "        mma_fence();\n", "", TWO),
    Fault("masked: the gate's weights for both", VALUE, VALUE.replace("b2", "b"), MASKED),
    Fault("masked: the value's weights over the gate's", VALUE, VALUE.replace("1)", "0)"), MASKED),
    Fault("masked: not published", "    publish_tile();\n    arrive", "    arrive", MASKED),
]  # fmt: skip
CONTROL = [Fault("none", "", "", name) for name in (SHARED, TWO, MASKED)]
CALLS = {
    SHARED: [dense(300, c=264, i=200)],
    TWO: [blocks(290, 3, c=264, i=40)],
    MASKED: [blocks(140, 2, c=75, i=35, o=8)],
}


def source(number: int) -> str:
    """The GEMM in a namespace of its own, with one fault, as one gated kernel."""
    fault = [*FAULTS, *CONTROL][number]
    whole = "".join((ROOT / "csrc/kernels/gemm" / n).read_text() for n in ("params.h", "epilogue.cuh", "gemm.cuh"))
    if fault.old:
        assert whole.count(fault.old) == 1, (fault.what, whole.count(fault.old))
        whole = whole.replace(fault.old, fault.new)
    body = "\n".join(line for line in whole.splitlines() if not line.startswith(("#include", "#pragma once")))
    gate, route = fault.kernel.split("_")
    entry = (
        'extern "C" __global__ void __launch_bounds__(tkpy::gemm::kThreads, 1)'
        f" gated_{number}(const __grid_constant__ tkpy::gemm::Params p) {{ using namespace tkpy::gemm;"
        f" Gemm<tk::bf16, tk::Major::k, tk::Major::k, Route::{route}, Gate::{gate}>::run(p); }}"
    )
    return f"namespace seeded_{number} {{\n{body}\n{entry}\n}}\n"


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    """The PTX of all faults: one run of nvcc, none of ptxas."""
    whole = "".join(source(i) for i in range(len(FAULTS) + len(CONTROL)))
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "gated_faults", whole)


@pytest.fixture
def folder(kernel_folder, tmp_path):
    """The right GEMM, for the last product."""
    return gather(tmp_path, [kernel_folder("kernels/gemm/kernel.cu")])


def found(text: str, folder, monkeypatch, number: int, seeds: range) -> str:
    kernel = [*FAULTS, *CONTROL][number].kernel
    write_module(folder, "gemm_gated", module(text, {f"gated_{number}": f"gemm_gated_bf16_{kernel}"}))
    for seed in seeds:
        on_machine(monkeypatch, folder, seed, multiprocessors=4)
        for name, case in CALLS[kernel]:
            try:
                results = conformance.check_case(
                    OPS[name], case, backend="emulator", dtype=torch.bfloat16, grad=False, seed=seed
                )
                wrong = [str(result) for result in results if not result.comparison]
            except tkpy.InternalError as error:
                return str(error)
            if wrong:
                return wrong[0]
    return ""


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_caught(text, folder, monkeypatch, number):
    what = found(text, folder, monkeypatch, number, SEEDS)
    print(what)
    assert what


@pytest.mark.parametrize("number", range(len(CONTROL)), ids=lambda number: CONTROL[number].kernel)
def test_the_right_kernel_is_not_accused(text, folder, monkeypatch, number):
    assert found(text, folder, monkeypatch, len(FAULTS) + number, SEEDS[:2]) == ""
