"""Faults seeded into attention_fp8: each is one edit of its source, and a finding, a deadlock or a wrong result must
give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from fp8_runs import disagreement, inputs, packed  # noqa: E402  (after the skips)

ISSUED = "      issue_scores(shared, consumer, at, s);\n      await(bars.turned, at.v);\n"
AFTER = "free_keys(shared, at);\n      soft.step(s, factor, p, descale, block"
FREED = "        __syncwarp();\n        release"
TURNED = "        turn(shared.turned[at.slot]"
WIDE = "        await(bars.turned, at.v);\n        add_parts"
OF_K = "p.k_blocks, tile.k_begin);\n    const float* of_v"
FAULTS = [
    Fault("q loaded over q in use", "      wait(bars.q_free, q_phase);\n", ""),
    Fault("q freed by one warp", "init(bars.q_free, 4 * W)", "init(bars.q_free, 1)"),
    Fault("bytes of one consumer's q", "W * QTile::bytes", "QTile::bytes"),
    Fault("k never waited for", "      await(bars.keys, at.k);\n      take_turn", "      take_turn"),
    Fault("k freed before its product", "      mma_wait<1>(s);\n      " + AFTER, "      " + AFTER),
    Fault("v^T never waited for", ISSUED, ISSUED.splitlines(True)[0]),
    Fault("v turned before it is there", "        await(bars.values, at_v);\n", ""),
    Fault("v^T written while it is read", "        acquire(bars.turned, at);\n", ""),
    Fault("no fence behind v^T", "        publish_tile();\n" + FREED, FREED),
    Fault("v freed by one warp", "init(bars.values, 1, turners)", "init(bars.values, 1, 1)"),
    Fault("v^T filled by one warp", "init(bars.turned, turners, 4 * W)", "init(bars.turned, 1, 4 * W)"),
    Fault("v freed while it is read", TURNED, "        release(bars.values, at_v);\n" + TURNED),
    Fault("no wait for the output's product", "    mma_wait(part);\n", ""),
    Fault("the block before forgotten", "+= part.x", "= part.x"),
    Fault("one block on top of another", "number * Part::cols, 0), false)", "number * Part::cols, 0))"),
    Fault("half of v twice", "(shared.turned[at.v.slot], number * Part::cols", "(shared.turned[at.v.slot], 0", "256"),
    Fault("both halves added to one", "number * Part::elements + e", "e", "256"),
    Fault("one half left out", "number < parts;", "number < parts - 1;", "256"),
    Fault("k never waited for, wide", "        await(bars.keys, at.k);\n        take_turn", "        take_turn", "256"),
    Fault("v^T not waited for, wide", WIDE, WIDE.split("\n", 1)[1], "256"),
    Fault("turn never passed", "      pass_turn(consumer);\n      descale", "      descale"),
    Fault("last part left out", "parts; i += warps) turn_part<false>", "parts - 1; i += warps) turn_part<false>"),
    Fault("keys turned to the place of others", "into ^ 32 * i", "into"),
    Fault("keys turned twice", "from + 32 * i * VTile::swizzle", "from"),
    Fault("even and odd columns swapped", "low ? 0x6420u : 0x7531u, odd", "low ? 0x7531u : 0x6420u, odd"),
    Fault("keys in another order", "0x5410);", "0x1054);"),
    Fault("halves of the keys swapped", "(pairs[2], pairs[3], even)", "(pairs[3], pairs[2], even)"),
    Fault("scale of the first block", "descale = of_q * of_k[block];", "descale = of_q * of_k[0];"),
    Fault("scale of another query block", "[tile.row / kBlock];", "[0];"),
    Fault("units of v not carried over", "    factor[0] *= change;\n", ""),
    Fault("unit of the first block at the end", "    unit = next;\n", ""),
    Fault("last unit left out", "      factor[1] *= unit;\n", ""),
    Fault("scale of another key head", "tile.kv_head, " + OF_K, "0, " + OF_K),
    Fault("scale of another batch entry", "tile.batch * heads + head", "head"),
    Fault("weights raised, log-sum-exp not lowered", "      soft.lower();\n", ""),
    Fault("weights beyond e4m3", "raised = 8.0f", "raised = 10.0f"),
    Fault("weights too small for e4m3", "raised = 8.0f", "raised = -6.0f"),
    Fault("old sums not scaled", "total[half] * factor[half] + sum", "total[half] + sum"),
    Fault("maximum without its scale", "fmaxf(best[half], c * fmaxf(", "fmaxf(best[half], fmaxf("),
    Fault("edge blocks not masked", "if (key < all_low || key + kBlock - 1 > all_high) hide(s, key);", ""),
    Fault("minus infinity minus itself", "highest == -fn::infinity ? 0.0f : highest;", "highest;"),
    Fault("output not moved", "      Way::move_output(o, p, tile.head);\n", ""),
    Fault("output moved by the first head's numbers", "move_output(o, p, tile.head)", "move_output(o, p, 0)"),
    Fault("cap without its height", "outer * fn::tanh", "fn::tanh"),
    Fault("cap without the block's scale", "inner = descale * p.cap_inner", "inner = p.cap_inner"),
    Fault("scales of the sequence before", "begin / kBlock + tile.sequence", "begin / kBlock"),
    Fault("scales of the next sequence", "begin / kBlock + tile.sequence", "begin / kBlock + tile.sequence + 1"),
    Fault("scales as if blocks were whole", "begin / kBlock + tile.sequence", "(begin + 127) / kBlock"),
    Fault("scales of k by the offsets of q", OF_K, OF_K.replace("k_begin", "q_begin")),
    Fault("queries of the first sequence", "tile.q_begin + tile.row + 64 * i", "tile.row + 64 * i"),
    Fault("keys of the first sequence", "row = tile.k_begin + block", "row = block"),
    Fault("values of the next sequence", "if (valid < VTile::rows)", "if (false)"),
    Fault("one value of the next sequence", "left >= 2 ?", "left >= 1 ?"),
    Fault("the last value left out", "left == 1 ? 0xffffu : 0u", "0u"),
    Fault("every block ragged", "tile.seq_k - block * Keys;", "tile.seq_k - (tile.end - 1) * Keys;"),
    Fault("no block ragged", "tile.seq_k - block * Keys;", "tile.seq_k;"),
    Fault("two slots for one tile of v", "dim_v <= 192 ? 2 : 1", "2", "256"),
    Fault("half of the output twice", "columns(part, o, first + col)", "columns(part, o, col)", "256"),
    Fault("the second half over the first", "tile.q_begin + row, first}", "tile.q_begin + row, 0}", "256"),
    Fault("half of the output not stored", "first < Width; first", "first < Columns; first", "256"),
    Fault("half of the last rows' output", "row + r) + first + col", "row + r) + col", "256"),
    Fault("columns of the next head", "if (first + col >= p.dim_v)", "if (col >= p.dim_v)", "256"),
    Fault("half staged over the other", "    if (leader) wait_stores_read();", "    ", "256"),
]  # fmt: skip

HEADERS = (
    "block_lists/lists.h",
    "block_lists/walk.cuh",
    *(f"attention_forward/{n}" for n in ("params.h", "schedule.cuh")),
)
WAYS = ("attention_forward/softmax.cuh", "attention_forward/output.cuh")


def unit(width: str, index: int) -> Unit:
    """The way out is attention_forward's, whose faults are seeded there; by halves it is this op's alone."""
    entry = Entry(
        f"attention_fp8_{width}",
        f"attention_fp8_hd{width}",
        "tkpy::attention_fp8::Params",
        f"tkpy::attention_fp8::Forward<{index}>::run(p)",
        "384, 1",
    )
    own = [f"attention_fp8/{name}" for name in ("params.h", "turn.cuh", "forward.cuh")]
    return Unit(own, [entry], HEADERS + WAYS) if width == "64" else Unit([*WAYS, *own], [entry], HEADERS)


def calls(width: str) -> list[tuple[dict, range]]:
    """(arguments, rows that are NaN)"""
    if width == "256":
        lengths = [130, 3, 50]
        return [
            (packed(lengths, [260, 3, 390], 2, 1, 256, 240, causal=True), range(0)),
            (inputs(1, 200, 520, 1, 1, 256), range(0)),
        ]
    moved = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(1))
    lengths = [201, 40, 129]
    return [
        (inputs(2, 260, 530, 4, 2, 64, causal=True), range(0)),
        (inputs(1, 140, 300, 2, 1, 64, window=(90, 30), sinks=torch.tensor([0.5, 3.0])), range(0)),
        (inputs(1, 200, 140, 1, 1, 64, window=(60, 9)), range(0)),
        (inputs(1, 70, 150, 2, 1, 64, softcap=2.0, out_scale=moved[0], out_bias=moved[1]), range(0)),
        (packed([130, 3, 260], [260, 71, 129], 4, 2, 64), range(0)),
        (packed(lengths, lengths, 2, 1, 64, causal=True), range(201, 241)),
        (packed([40, 3], [1, 5], 1, 1, 64), range(0)),
    ]


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "attention_fp8",
    {"64": unit("64", 1), "256": unit("256", 8)},
    FAULTS,
    calls,
    wrong=lambda call: disagreement(*call),
    multiprocessors=2,
).tests()
