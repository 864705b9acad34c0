"""Faults seeded into what attention does by lists of blocks, forward and backward: each is one edit of the source, and
a finding, a deadlock or a wrong result must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import OP, block_mask, disagreement, inputs  # noqa: E402  (after the skips)
from test_attention_backward_faults import grads_and_wants, wrong_call  # noqa: E402

LISTS = ("../block_lists/lists.h", "../block_lists/walk.cuh", "params.h", "schedule.cuh")
PARTS = ("layout.cuh", "parts.cuh", "sums.cuh", "consumer.cuh")
FILES = {
    "forward": (*LISTS, "softmax.cuh", "output.cuh", "forward.cuh"),
    "backward": (*LISTS, "dq.cuh", "scores.cuh", *PARTS, "producer.cuh", "backward.cuh"),
}
STEP = "      if constexpr (Listed) bars.steps[at_k.slot] = step;\n"
EXPECT = """      arrive_expect(bars.keys.full[at_k.slot], KTile::bytes);
      load(shared.k[at_k.slot], gl<KTile, 4>(p.k), {tile.batch, tile.kv_head, row, 0}, bars.keys.full[at_k.slot]);
"""
EARLY = "    if constexpr (Work::listed)\n      if (lane_index() == 0) shared.listed.steps[at.slot] = {step, turn};\n"
FAULTS = [
    Fault(
        "partial blocks are full", "      if (seen.partial) keep(s, seen.bits);\n", "      ;\n", "forward 64_blocks128"
    ),
    Fault("mask of the other consumer", "(tile.row + 64 * consumer) % size", "tile.row % size", "forward 64_blocks128"),
    Fault("bits of the first columns", "words.x >> 2 * (lane_index() % 4)", "words.x", "forward 64_blocks64"),
    Fault("bits of the first rows", "p.lists.masks + at + half * size", "p.lists.masks + at", "forward 64_blocks64"),
    Fault("mask of the first 64 keys", " + seen.key % size / 8", "", "forward 256_blocks128"),
    Fault("step told after the arrival", STEP + EXPECT, EXPECT + STEP, "forward 64_blocks128"),
    Fault(
        "step told in a slot in use",
        "    acquire(bars.keys, at_k);\n",
        "    if (Listed && lane_index() == 0) bars.steps[at_k.slot] = step;\n    acquire(bars.keys, at_k);\n",
        "forward 64_blocks64",
    ),
    Fault("full blocks from the middle", "full[entry - partials]", "full[entry]", "forward 64_blocks64"),
    Fault("32 blocks counted", "base < steps(); base += 32) sum", "base < 32; base += 32) sum", "forward 64_blocks64"),
    Fault(
        "the first 32 again",
        "listed(mine, base, first, end); left",
        "listed(mine, 0, first, end); left",
        "forward 64_blocks64",
    ),
    Fault(
        "hidden blocks counted",
        "count(tile.first, tile.end);\n      tile",
        "count(0, 1 << 20);\n      tile",
        "forward 64_blocks128",
    ),
    Fault("lists of the first head", "head * lists.of_head", "0", "forward 64_blocks128"),
    Fault("lists of the first batch entry", "batch) * lists.of_batch", "batch) * 0", "forward 64_blocks128"),
    Fault("one element mask for all", "slots[entry]", "slots[0]", "forward 64_blocks64"),
    Fault("lists of the first queries", "tile.row / p.lists.block}", "0}", "forward 64_blocks128"),
    Fault("half a block", "tiles = lists.block / Size", "tiles = 1", "forward 256_blocks128"),
    Fault("partial blocks are full", "    if (bits.first != nullptr) keep(s, bits);\n", "", "backward 64_blocks128"),
    Fault("bits of the first keys", "seen & key << 8", "seen & key", "backward 64_blocks64"),
    Fault(
        "bits of the query before",
        "row[(8 * piece + i) * bits.pitch]",
        "row[8 * piece * bits.pitch]",
        "backward 64_blocks64",
    ),
    Fault(
        "mask of the other consumer", "(tile.key + key) % size / 16", "tile.key % size / 16", "backward 64_blocks128"
    ),
    Fault(
        "the mask's bytes",
        "      if (Kernel::staged && step.slot >= 0) bytes += Rows * p.by_keys.block / 8;\n",
        "",
        "backward 64_blocks128",
    ),
    Fault("mask of the first queries", " + step.tile * Rows % size", "", "backward 128_blocks128"),
    Fault(
        "step told in a slot in use",
        "    acquire(bars.steps, at);\n",
        EARLY + "    acquire(bars.steps, at);\n",
        "backward 64_blocks64",
    ),
    Fault("lists of the first head", "work.row(tile, head).each", "work.row(tile, 0).each", "backward 64_blocks128"),
    Fault("half a block", "tiles = lists.block / Size", "tiles = 1", "backward 128_blocks128"),
    Fault(
        "the other's step not seen",
        "void leave_step() {\n    await(shared.barriers.steps, at);\n",
        "void leave_step() {\n",
        "backward 64_blocks64",
    ),
    Fault("every step by both", "in_turn && met++ % 2 != number", "false", "backward 64_blocks64"),
    Fault("sums not joined", "      if constexpr (in_turn) sums.join();\n", "", "backward 64_blocks64"),
    Fault(
        "joined before they are there",
        "    sync(Kernel::both, 256);\n    number == 0",
        "    number == 0",
        "backward 64_blocks64",
    ),
    Fault(
        "joined through parts in use",
        "    sync(1 + number, 128);\n    number == 0",
        "    number == 0",
        "backward 64_blocks64",
    ),
    Fault("64 columns of dQ", "Columns < 128 ? Columns : 64", "64", "backward 96_blocks64"),
    Fault("mask of the first queries, where it lies", " * Rows % size;", " * 0;", "backward 160_blocks"),
    Fault(
        "mask of the first block, where it lies",
        "static_cast<long long>(slot) * size + row",
        "row",
        "backward 160_blocks",
    ),
    Fault("half of dQ twice", "parts.stage(dq, part_size);", "parts.stage(dq, 0);", "backward 128_blocks64"),
    Fault(
        "consumers share a tile of dS", "shared.ds[in_turn ? number : at.slot]", "shared.ds[0]", "backward 64_blocks64"
    ),
]

INDEX = {  # of the kernels' shapes
    "forward 64_blocks128": 1,
    "forward 256_blocks128": 8,
    "forward 64_blocks64": 10,
    "backward 64_blocks128": 2,
    "backward 64_blocks64": 3,
    "backward 96_blocks64": 5,
    "backward 128_blocks128": 6,
    "backward 128_blocks64": 7,
    "backward 160_blocks": 8,
}


def unit(kernel: str) -> Unit:
    side, which = kernel.split()
    space, index = f"tkpy::attention_{side}", INDEX[kernel]
    params, module, name = f"{space}::BlockParams", f"attention_{side}_hd{which}", f"attention_{side}_bf16_{which}"
    shape = f"{space}::kBlockShapes[{index}]"
    bounds = f"{shape}.threads(), {shape}.ctas" if side == "forward" else f"{space}::Shape::kThreads, 1"
    kind = "capped" if which.startswith(("96", "160")) else "plain"
    run = f"{space}::{side.capitalize()}<tk::bf16, {index}, {'true' if kind == 'capped' else 'false'}, true>::run(p)"
    entries = [Entry(f"{name}_{kind}", module, params, run, bounds)]
    if side == "backward":
        entries.append(
            Entry(f"{name}_dq", module, f"{space}::Params", f"{space}::RoundDq<tk::bf16, {index}, true>::run(p)", "256")
        )
    return Unit([f"attention_{side}/{file}" for file in FILES[side]], entries)


def calls(kernel: str) -> list:
    width, _, block = kernel.split()[1].partition("_blocks")
    d, size = int(width), int(block or 128)
    found = [inputs(2, 200, 390, 4, 2, d, block_mask=block_mask(2, 4, 200, 390, size, 5), causal=True)]
    if d == 64:
        many = block_mask(1, 1, 70, 3000, size, 2, full=0.4, partial=0.4)
        found.append(inputs(1, 70, 3000, 1, 1, d, block_mask=many))
    return found if kernel.startswith("forward") else [grads_and_wants(kwargs) for kwargs in found]


BACKWARD = ("rows", "hd64_blocks64", "hd64_blocks128", "hd128_blocks64", "hd128_blocks128")
test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "attention_block",
    {kernel: unit(kernel) for kernel in sorted({fault.kernel for fault in FAULTS})},
    FAULTS,
    calls,
    wrong=lambda call: disagreement(call) if isinstance(call, dict) else wrong_call(*call),
    # The forward's is the one that says whether attention is built.
    right=[*(f"attention_backward/{name}.cu" for name in BACKWARD), "attention_forward/hd64.cu"],
    seeds=4,
    multiprocessors=2,
    arrange=lambda monkeypatch, fault: monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: False),
).tests()
