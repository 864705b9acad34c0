"""Faults seeded into the fused blockdiag_mlp: each is one edit of its source, and a finding or a wrong result must
give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from test_blockdiag_mlp import CUDA, OP, sized  # noqa: E402  (after the skips)

from tkpy import conformance, registry  # noqa: E402
from tkpy.numerics import TOLERANCE, compare  # noqa: E402
from tkpy.registry import Maker  # noqa: E402

NARROW, WIDE = "128", "256"  # WIDE: y leaves through x's tile
BLOCK, ROW = "(tile.block + input * p.blocks) / 2", "(index / p.blocks * kCluster + rank) * kTileRows"
FREE = "    wait_cluster(shared.free[at.slot], at.parity ^ 1);\n"
LAST = "    second_product(shared, h, y, at);\n    mma_wait(y);\n"
BEGIN, END = "    cluster_sync();\n    if (warpgroup_index()", "    __syncwarp();\n    cluster_sync();\n"
STORE = "      store(patch, rounded, first, 0);\n      __syncwarp();\n"
READ = "      __syncwarp();  // the columns before have been read\n"
KEPT = "row + from + r < p.rows && col + chunk < p.hidden"
AFTER = "    store(patch, rounded, first, 0);\n    __syncwarp();\n#pragma"
FAULTS = [
    Fault("slots read before they have landed", "    wait_cluster(shared.full[at.slot], at.parity);\n", "", NARROW),
    Fault("slots filled while they are read", FREE, "", NARROW),
    Fault("slots handed back to one CTA", "lane_index() < kCluster", "lane_index() < 1", NARROW),
    Fault("a slot handed back twice", "if (!first) release(shared, done);", "release(shared, done);", NARROW),
    Fault("x read before it has landed", "      wait(shared.x_full[consumer], x_parity);\n", "", NARROW),
    Fault("x filled while it is read", "      wait(shared.x_free[i], parity);\n", "", NARROW),
    Fault("x not handed back after y has left", "if constexpr (!own_patch) {", "if constexpr (false) {", WIDE),
    Fault("x handed back before y has left through it", "own_patch && last && lane", "last && lane", WIDE),
    Fault("x handed back before its last product", "own_patch && last && lane", "own_patch && first && lane", NARROW),
    Fault("x filled after y's patch, not published", "        publish_tile();\n", "", WIDE),
    Fault("x of one block", BLOCK, "tile.block / 2", NARROW),
    Fault("blocks not halved", BLOCK, "tile.block", NARROW),
    Fault("one consumer's rows for both", "tile.row + 64 * i, 0}", "tile.row, 0}", NARROW),
    Fault("one CTA's rows for both", ROW, "index / p.blocks * kCluster * kTileRows", NARROW),
    Fault("one block of y", "index % p.blocks};", "0};", NARROW),
    Fault("the gate's weights for both", "p.gated, tile.block + input * p.blocks", "p.gated, tile.block", NARROW),
    Fault("gate and value exchanged", "input == 0 ? gate : value", "input == 0 ? value : gate", NARROW),
    Fault("the gate's x for both", "shared.x[consumer][input], weights", "shared.x[consumer][0], weights", NARROW),
    Fault("both halves of a slot the same rows", "half = 32 * rank", "half = 0", NARROW),
    Fault("both halves of a slot in one place", "pieces[panel][rank]", "pieces[panel][0]", NARROW),
    Fault("slots of one CTA", "full, 0b11)", "full, 0b01)", NARROW),
    Fault("the first chunk of the gate", "Tile2{kChunk * chunk + half, 64 * panel}", "Tile2{half, 64 * panel}", NARROW),
    Fault("the wrong chunk of the outputs", "kChunk * (chunk - 1)}", "kChunk * chunk}", NARROW),
    Fault("the first panel of the outputs", "Tile2{64 * panel + half,", "Tile2{half,", NARROW),
    Fault("the first panel of the inputs", "+ half, 64 * panel}", "+ half, 0}", NARROW),
    Fault("registers read before products are over", "mma_wait<1>(gate, value)", "mma_wait<2>(gate, value)", NARROW),
    Fault("h rounded over an h that is read", "      mma_wait(y);  // the product of the h before\n", "", NARROW),
    Fault("h of the chunk before", "      copy(h, gate);\n", "      if (first) copy(h, gate);\n", NARROW),
    Fault("y read before its products are over", LAST, LAST.replace("    mma_wait(y);\n", ""), NARROW),
    Fault("no fence before the second product", "    mma_fence();\n    mma_ABt(y", "    mma_ABt(y", NARROW),
    Fault("y not begun at zero", "      zero(y);\n", "", NARROW),
    Fault("the activation of the value", "fn::silu(g) * v", "g * fn::silu(v)", NARROW),
    Fault("the bias of the first block", "<const T*>(p.bias) + channel", "<const T*>(p.bias)", NARROW),
    Fault("one bias of a pair", "i % 2 ? ptx::high<T>(both)", "i % 2 ? ptx::low<T>(both)", NARROW),
    Fault("rows past the last", "row + from + r < p.rows && col + chunk < p.out", "col + chunk < p.out", NARROW),
    Fault("channels past the block's last", " && col + chunk < p.out)", ")", NARROW),
    Fault("the patch written while it is read", READ, "", WIDE),
    Fault("the patch read before it is written", STORE, STORE.replace("      __syncwarp();\n", ""), NARROW),
    Fault("begun before its barriers are there", BEGIN, BEGIN.replace("    cluster_sync();\n", ""), NARROW),
    Fault("a CTA ends while it is still used", END, "", NARROW),
    Fault("the gate kept for both", "p.value, tile, row, col, value", "p.value, tile, row, col, gate", NARROW),
    Fault("both kept in one place", "p, p.value, tile", "p, p.gate, tile", NARROW),
    Fault("kept a chunk too late", "chunks() - 1 - left", "chunks() - left", NARROW),
    Fault("one consumer's rows kept for both", "row = tile.row + 64 * consumer", "row = tile.row", NARROW),
    Fault("kept in one block", "1ll * tile.block * p.hidden + col", "col", NARROW),
    Fault("kept rows past the last", KEPT, "col + chunk < p.hidden", NARROW),
    Fault("kept channels past the block's last", KEPT, "row + from + r < p.rows", NARROW),
    Fault("kept before it is there", AFTER, AFTER.replace("    __syncwarp();\n", ""), NARROW),
    Fault("every x of one parity", ", x_parity ^= 1) {\n      Output y;", ") {\n      Output y;", NARROW),
]  # fmt: skip
CALLS = {
    NARROW: [sized("narrow", 520, 3, 72, 136, 80, "silu"), sized("kept", 520, 2, 24, 136, 8, "silu")],
    WIDE: [sized("wide", 520, 2, 200, 72, 136, "relu")],
}


def unit(width: str) -> Unit:
    run, bounds = f"tkpy::blockdiag_mlp::Mlp<tk::bf16, {width}>::run(p)", "tkpy::blockdiag_mlp::kThreads, 1"
    entry = Entry(f"blockdiag_mlp_bf16_{width}", "blockdiag_mlp", "tkpy::blockdiag_mlp::Params", run, bounds)
    return Unit(("blockdiag_mlp/params.h", "blockdiag_mlp/mlp.cuh"), [entry], given=["gemm/params.h"])


def wrong(case) -> str:
    if case.name == "kept":  # what the backward would find, too
        *args, _ = registry.capture(OP, case.make(Maker(torch.bfloat16))).args.values()
        for found, expected in zip(CUDA.forward(*args, True), OP.module("reference").forward(*args, True), strict=True):
            if not (comparison := compare(found, expected, TOLERANCE[torch.bfloat16])):
                return f"kept: {comparison}"
        return ""
    options = {"backend": "emulator", "dtype": torch.bfloat16, "grad": False}
    return first_wrong(conformance.check_case(OP, case, **options))


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "blockdiag_mlp",
    {width: unit(width) for width in (NARROW, WIDE)},
    FAULTS,
    calls=CALLS.get,
    wrong=wrong,
    right=["gemm/gated.cu"],  # the op asks for it
    multiprocessors=4,
    arrange=lambda monkeypatch, fault: monkeypatch.setattr(CUDA, "FEWEST_TILES", 1),
).tests()
