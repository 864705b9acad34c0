"""Faults seeded into the GEMM's gated kernels, seen through gated_mlp and blockdiag_mlp: each is one edit of their
source, and a finding or a wrong result must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from test_gated_cuda import OPS, blocks, dense  # noqa: E402  (after the skips)

from tkpy import conformance  # noqa: E402

SHARED, TWO, MASKED = "shared_tma", "two_tma", "two_generic"
WAIT = "        wait_cluster(shared.full[at.slot], at.parity);\n"
FREE = "        wait_cluster(shared.free[at.slot], at.parity ^ 1);\n"
B2 = "(gated ? rank : step.part) == 1 ? p.b2 : p.b"
BLOCK = "(t.group + input * p.groups) / 2"
ROWS = "r = half; r < 16 && row + r < p.m; r += 2"
VALUE = "part<2>(shared.b[slot], 1), p.b2_data"
PARTS = "    __syncwarp();\n    to_patch<32>(patch, gate, 32 * part, 0);\n"
READ = "to_patch<32>(patch, value, 32 * part, 32);\n"
FAULTS = [
    Fault("gate and value exchanged", B2, "rank == 0 ? p.b2 : p.b", SHARED),
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
CALLS = {
    SHARED: [dense(300, c=264, i=200)],
    TWO: [blocks(290, 3, c=264, i=40)],
    MASKED: [blocks(140, 2, c=75, i=35, o=8)],
}


def unit(kernel: str) -> Unit:
    gate, route = kernel.split("_")
    gemm = f"Gemm<tk::bf16, tk::Major::k, tk::Major::k, Route::{route}, Gate::{gate}>"
    run, bounds = f"using namespace tkpy::gemm; {gemm}::run(p)", "tkpy::gemm::kThreads, 1"
    entry = Entry(f"gemm_gated_bf16_{kernel}", "gemm_gated", "tkpy::gemm::Params", run, bounds)
    return Unit(("gemm/params.h", "gemm/epilogue.cuh", "gemm/slopes.cuh", "gemm/gemm.cuh"), [entry])


def wrong(call: tuple) -> str:
    name, case = call
    options = {"backend": "emulator", "dtype": torch.bfloat16, "grad": False}
    return first_wrong(conformance.check_case(OPS[name], case, **options))


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "gated",
    {kernel: unit(kernel) for kernel in (SHARED, TWO, MASKED)},
    FAULTS,
    calls=CALLS.get,
    wrong=wrong,
    right=["gemm/kernel.cu"],  # for the last product
    multiprocessors=4,
).tests()
