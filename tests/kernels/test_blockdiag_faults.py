"""Faults seeded into the GEMM, seen through blockdiag_linear: each is one edit of its source, and a finding or a wrong
result must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from tkpy import conformance, registry  # noqa: E402  (after the skips)
from tkpy.registry import Case  # noqa: E402

OP = registry.get("blockdiag_linear")
NT, NN, TN = "mk_nk_tma", "mk_kn_tma", "km_kn_tma"  # y, dx and dW of whole blocks
GENERIC = "mk_nk_generic"
WAIT = "        wait_cluster(shared.full[at.slot], at.parity);\n"
FREE = "        wait_cluster(shared.free[at.slot], at.parity ^ 1);\n"
ROWS = "r < 16 && row + r < p.m; ++r) {"
VALUE = "\n    const float2 d = patched(patch, r, lane_col);\n    float value"
SHUFFLE = "% p.groups * x.block + static_cast<int>(f) / p.groups"
BIAS = "if (p.bias) read_pair(bias, static_cast<const T*>(p.bias), "
FAULTS = [
    Fault("slots read before they have landed", WAIT, "", NT),
    Fault("slots filled while they are read", FREE, "", NT),
    Fault("a slot released too early", "mma_wait<1>();", "mma_wait<2>();", NT),
    Fault("registers read before the products are over", "      mma_wait();\n", "", NT),
    Fault("no fence before the products", "        mma_fence();\n", "", NT),
    Fault("the cluster does not meet at the end", "    __syncwarp();\n    cluster_sync();\n", "", NT),
    Fault("masked loads not published", "    publish_tile();\n    arrive", "    arrive", GENERIC),
    Fault("a slot full too soon", "R == Route::tma ? 1 : 128", "R == Route::tma ? 1 : 96", GENERIC),
    Fault("the patch read before it is written", "    __syncwarp();\n    if (p.out_float)", "    if (p.out_float)", NT),
    Fault("the patch written while it is read", "    __syncwarp();                          // the prev", "    //", NT),
    Fault("bytes of half of A", "inputs * kConsumers * ATile::bytes", "ATile::bytes", NT),
    Fault("A of the first block", "{group, row, depth}", "{0, row, depth}", NT),
    Fault("B of the first block", "{t.group, half_col, depth}", "{0, half_col, depth}", NT),
    Fault("dx: B of the first block", "{t.group, depth, half_col}", "{0, depth, half_col}", NN),
    Fault("dW: A of the first block", "{group, depth, row}", "{0, depth, row}", TN),
    Fault("blocks of C in one place", "group * x.block + static_cast", "static_cast", NT),
    Fault("a block too few", "across() * p.groups * p.shares", "across() * p.groups * p.shares - 1", NT),
    Fault("the tile of another block", "grouped_tile(index % (rows() * across())", "grouped_tile(index % across()", NT),
    Fault("both halves of B the same", "t.col + rank * kTileCols", "t.col + 0 * kTileCols", NT),
    Fault("both consumers the same rows", "t.row + 64 * consumer", "t.row", NT),
    Fault("both CTAs the same rows", "at.row * kCluster + rank", "at.row * kCluster", NT),
    Fault("the last step of K", "(depth + kTileDepth - 1) / kTileDepth", "max(depth / kTileDepth, 1)", NT),
    Fault("shares begin together", "depth = t.first + (step", "depth = (step", TN),
    Fault("shares overlap", "min(p.share_depth, p.k - first)", "p.k - first", TN),
    Fault("shares in one place", " + tile.share * p.out_share", "", TN),
    Fault("channels past the last read", "x.step ? cols : left", "x.step ? cols : left > 0 ? cols : left", GENERIC),
    Fault("channels past the last written", "col + 1 < p.n && at[1] < p.out.end", "col + 1 < p.n", GENERIC),
    Fault("columns past the block written", "col < p.n && at[0] < p.out.end,", "at[0] < p.out.end,", GENERIC),
    Fault("every row of the tile written", ROWS + VALUE, "r < 16; ++r) {" + VALUE, NT),
    Fault("not shuffled", "    if (!x.shuffled) {", "    if (true) {", GENERIC),
    Fault("shuffled the other way", SHUFFLE, "/ x.block + static_cast<int>(f) % x.block * p.groups", GENERIC),
    Fault("the bias of the first block", BIAS + "pair", BIAS + "Pair(p, 0, col + lane_col)", NT),
    Fault("no bias", "if (p.bias) read_pair", "if (false) read_pair", NT),
]  # fmt: skip


def unit(kernel: str) -> Unit:
    a, b, route = kernel.split("_")
    majors = {"mk": "k", "km": "mn", "nk": "k", "kn": "mn"}
    gemm = f"tkpy::gemm::Gemm<tk::bf16, tk::Major::{majors[a]}, tk::Major::{majors[b]}, tkpy::gemm::Route::{route}>"
    entry = Entry(f"gemm_bf16_{kernel}", "gemm", "tkpy::gemm::Params", f"{gemm}::run(p)", "tkpy::gemm::kThreads, 1")
    return Unit(("gemm/params.h", "gemm/epilogue.cuh", "gemm/slopes.cuh", "gemm/gemm.cuh"), [entry])


def case(name: str, rows: int, blocks: int, o: int, i: int, lost: int = 0, **more) -> Case:
    def make(m):
        x = m.randn(rows, blocks * i - lost)
        return {"x": x, "weight": m.randn(blocks, o, i), "bias": m.randn(blocks * o - lost), **more}

    return Case(name, make, "")


WHOLE = [
    case("tiles and blocks", 300, 2, 264, 328),  # more rows, columns and steps than a tile and its slots
    case("rows for shares", 2100, 2, 16, 8),
]
MASKED = [
    case("padded", 70, 3, 19, 13, lost=2),
    case("padded and shuffled", 40, 4, 7, 9, lost=3, shuffle=True),
    case("deep", 140, 2, 40, 332),
]


def wrong(case: Case) -> str:
    options = {"backend": "emulator", "dtype": torch.bfloat16, "grad": case in WHOLE}
    return first_wrong(conformance.check_case(OP, case, **options))


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "blockdiag",
    {kernel: unit(kernel) for kernel in (NT, NN, TN, GENERIC)},
    FAULTS,
    calls=lambda kernel: MASKED if kernel == GENERIC else WHOLE,
    wrong=wrong,
    multiprocessors=4,
).tests()
