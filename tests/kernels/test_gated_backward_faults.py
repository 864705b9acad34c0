"""Faults seeded into what the gated MLPs' backward needs of the GEMM: gate and value kept, the slopes' epilogue, one
product of two parts. Each is one edit of their source, and a finding or a wrong result must give it away."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from gated_runs import kept, pair, slopes  # noqa: E402  (after the skips)

SLOPES, MASKED, PAIR, PAIR_MASKED, KEPT = "slopes_tma", "slopes_generic", "mk_kn_tma", "mk_kn_generic", "shared_tma"
NEXT = "    if (piece + 1 < kTileCols / 32) read_ahead<T>(next, p, Place(p, tile, row, piece + 1));\n"
LOADED = "  read_ahead<T>(next, p, Place(p, tile, row, 0));\n"
AFTER = "          to_patch<64>(patch, d, 192, 0);\n      }\n"
BEFORE = "      __syncwarp();  // the columns before have been read\n"
FAULTS = [
    Fault("the first piece not read ahead", LOADED, "", SLOPES),
    Fault("the next piece not read ahead", NEXT, "", SLOPES),
    Fault("the same piece read ahead", "piece + 1));", "piece));", SLOPES),
    Fault("a piece with the next one's gate", "    kept = next;\n" + NEXT, NEXT + "    kept = next;\n", SLOPES),
    Fault("the patch written while it is read", BEFORE, "", SLOPES),
    Fault("the patch read before it is written", AFTER + "      __syncwarp();\n", AFTER, SLOPES),
    Fault("the first columns twice", "(patch, d, 64, 0)", "(patch, d, 0, 0)", SLOPES),
    Fault("every part of the patch but the first", "piece % 2 == 0) {", "piece == 0) {", SLOPES),
    Fault("the first eight rows twice", "8 * (piece % 2) + lane_index() / 16);", "lane_index() / 16);", SLOPES),
    Fault("rows of C eight too few", "first_row + 8 * (piece % 2)", "first_row", SLOPES),
    Fault("half a warp without rows of its own", "8 * (piece % 2) + lane_index() / 16;", "8 * (piece % 2);", SLOPES),
    Fault("the patch not swizzled", "patch_col(r, 4 * (lane_index() % 16))", "4 * (lane_index() % 16)", SLOPES),
    Fault("gate for value", "to.value[i] = read_four(value", "to.value[i] = read_four(gate", SLOPES),
    Fault("slopes exchanged", "write_four(dgate + at, dg,", "write_four(dgate + at, dv,", SLOPES),
    Fault("no slope", "dh[c] * v * o.slope", "dh[c] * v", SLOPES),
    Fault("the value's slope not opened", "dv[c] = dh[c] * o.open", "dv[c] = dh[c]", SLOPES),
    Fault("h not opened", "h[c] = o.open * v", "h[c] = v", SLOPES),
    Fault("gelu's slope without its density", "fmaf(g, 0.39894228f * fn::exp(-0.5f * g * g), below)", "below", SLOPES),
    Fault("silu's slope without its bend", "fmaf(g * s, 1.0f - s, s)", "s", SLOPES),
    Fault("gelu_tanh's slope without the cube's", "1.59576912f * fmaf(0.134145f, square, 1.0f)", "1.59576912f", MASKED),
    Fault("relu open below 0", "g <= 0.0f ? 0.0f : 1.0f", "1.0f", MASKED),
    Fault("slopes at h's pitch", "row * p.kept.slopes_pitch", "row * p.out.pitch", SLOPES),
    Fault("gate and value at h's pitch", "2 * i) * p.kept.pitch", "2 * i) * p.out.pitch", SLOPES),
    Fault("one group's gate for all", "at = tile.group * p.out.block + col", "at = col", SLOPES),
    Fault("rows past the last read", "if (place.row + 2 * i >= p.m || ", "if (", SLOPES),
    Fault("rows past the last written", "if (row >= p.m || place", "if (place", SLOPES),
    Fault("h written where none is wanted", "if (out) write_four", "write_four", SLOPES),
    Fault("slopes written where none are wanted", "    if (dgate) {", "    {", MASKED),
    Fault("channels past the last", "left < 4 ? static_cast<int>(left) : 4", "4", MASKED),
    Fault("columns past the block", "min(p.n - col, left <", "min(4, left <", MASKED),
    Fault("fours wherever they lie", "joined = p.kept.fours && count >= 4", "joined = count >= 4", MASKED),
    Fault("fours beyond the last column", "joined = p.kept.fours && count >= 4", "joined = p.kept.fours", MASKED),
    Fault("columns of a four in reverse", "word[i / 2] >> (i % 2 * 16)", "word[i / 2] >> (16 - i % 2 * 16)", MASKED),
    Fault("the second part's A for both", "t.group + part;", "t.group + 1;", PAIR),
    Fault("the first part's A for both", "t.group + part;", "t.group;", PAIR),
    Fault("the first part's B for both", "(gated ? rank : step.part) == 1 ? p.b2 : p.b", "p.b", PAIR),
    Fault("one part", "/ kTileDepth * (p.pair ? 2 : 1)}", "/ kTileDepth}", PAIR),
    Fault("the second part where the first ended", "(step - part * steps) * kTileDepth", "step * kTileDepth", PAIR),
    Fault("the second part a step too early", "part = !gated && step >= steps;", "part = step >= steps - 1;", PAIR),
    Fault("masked: the first part's B for both", "step.part == 1 ? p.b2_data : p.b_data", "p.b_data", PAIR_MASKED),
    Fault("value kept for gate", "kept_gate + at, {gate.x, gate.y}", "kept_gate + at, {value.x, value.y}", KEPT),
    Fault("the gate kept open", "{gate.x, gate.y}, pair", "{activate(p.activation, gate.x), gate.y}, pair", KEPT),
    Fault("kept at h's pitch", "(row + r) * p.kept.pitch;", "(row + r) * p.out.pitch;", KEPT),
    Fault("kept only with h", "    if (kept_gate) {", "    if (out) {", KEPT),
]  # fmt: skip
CALLS = {
    SLOPES: [slopes(140, 2, 72, 72, activation="gelu", pitch=8), slopes(150, 1, 40, 136, which="slopes")],
    MASKED: [slopes(33, 3, 9, 23, lost=6, activation="gelu_tanh"), slopes(21, 2, 7, 14, pitch=3, activation="relu"),
             slopes(9, 1, 8, 16, which="h"), slopes(33, 2, 9, 24, lost=2, pitch=2, which="slopes")],
    PAIR: [pair(150, 200, 72)],
    PAIR_MASKED: [pair(70, 75, 35)],
    KEPT: [kept(140, 1, 40, 136), kept(70, 1, 16, 40, "kept")],
}  # fmt: skip


def unit(kernel: str) -> Unit:
    route = kernel.split("_")[-1]
    gate = kernel.split("_")[0] if "mk_kn" not in kernel else "none"
    major = "k" if kernel == KEPT else "mn"
    gemm = f"Gemm<tk::bf16, tk::Major::k, tk::Major::{major}, Route::{route}, Gate::{gate}>"
    run, bounds = f"using namespace tkpy::gemm; {gemm}::run(p)", "tkpy::gemm::kThreads, 1"
    module = "gemm" if gate == "none" else "gemm_gated"
    entry = Entry(f"{module}_bf16_{kernel}", module, "tkpy::gemm::Params", run, bounds)
    return Unit(("gemm/params.h", "gemm/epilogue.cuh", "gemm/slopes.cuh", "gemm/gemm.cuh"), [entry])


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "gated_backward",
    {kernel: unit(kernel) for kernel in CALLS},
    FAULTS,
    calls=CALLS.get,
    wrong=lambda run: run.wrong(),
    multiprocessors=4,
).tests()
