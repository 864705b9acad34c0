"""Faults seeded into the attention forward: each is one edit of its source, and a finding, a deadlock or a wrong result
must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import disagreement, inputs, packed  # noqa: E402  (after the skips)

import tkpy  # noqa: E402

FILES = (
    "block_lists/lists.h",
    "block_lists/walk.cuh",
    *(f"attention_forward/{name}" for name in ("params.h", "schedule.cuh", "softmax.cuh", "output.cuh", "forward.cuh")),
)
SWAPPED_K = "release(bars.keys, at.k);\n      at.k.next();\n      soft.step(s, factor, p, seen);"
FAULTS = [
    Fault("q loaded over q in use", "      wait(bars.q_free, q_phase);\n", ""),
    Fault("q freed by one warp", "own_out ? 4 * W : W", "own_out ? 1 : W"),
    Fault("bytes of one consumer's q", "W * QTile::bytes", "QTile::bytes"),
    Fault("q's phase never flips", "    at.q_phase ^= 1;\n", ""),
    Fault("k never waited for", "      await(bars.keys, at.k);\n      take_turn", "      take_turn"),
    Fault("v never waited for", "      await(bars.values, at.v);\n      mma_fence();", "      mma_fence();"),
    Fault("k freed before its product", "      mma_wait<1>(s);\n      " + SWAPPED_K, "      " + SWAPPED_K),
    Fault(
        "v freed before its product",
        "      mma_wait(o);\n      release(bars.values, at.v);\n      at.v.next();\n      Way::scale",
        "      release(bars.values, at.v);\n      mma_wait(o);\n      at.v.next();\n      Way::scale",
    ),
    Fault("no wait for the output's product", "      mma_wait(o);\n      release", "      release"),
    Fault("slots freed by one warp of each consumer", "init(bars.keys, 1, 4 * W)", "init(bars.keys, 1, W)"),
    Fault(
        "no fence before the store", "    publish_tile();\n    sync(1 + consumer, 128);", "    sync(1 + consumer, 128);"
    ),
    Fault("no barrier before the store", "    publish_tile();\n    sync(1 + consumer, 128);", "    publish_tile();"),
    Fault(
        "output written over the store before",
        "    if (leader) wait_stores_read();  // the store before this one\n",
        "",
    ),
    Fault(
        "q's tile given back before it is stored",
        "          wait_stores_read();\n          arrive(shared",
        "          arrive(shared",
        "256_plain",
    ),
    Fault("no fence after the zeroes", "    publish_tile();\n    __syncwarp();", "    __syncwarp();"),
    Fault("one row of the next sequence", "valid = tile.seq_k - block * Keys", "valid = tile.seq_k - block * Keys + 1"),
    Fault("turn never passed", "      pass_turn(consumer);\n      seen", "      seen"),
    Fault("nobody begins", "    if (consumer == W - 1) pass_turn(consumer);", "    "),
    Fault("last key hidden", "at <= to ?", "at < to ?"),
    Fault("edge blocks not masked, above", "all_high = highest(first_row)", "all_high = highest(first_row + 63)"),
    Fault("edge blocks not masked, below", "all_low = lowest(first_row + 63)", "all_low = lowest(first_row)"),
    Fault("top-left alignment", "return seq_k - seq_q;", "return 0;"),
    Fault("old sums not scaled", "total[half] * factor[half] + sum", "total[half] + sum"),
    Fault(
        "old output not scaled", "      Way::scale_rows(o, factor);\n      copy(weights, s);", "      copy(weights, s);"
    ),
    Fault("minus infinity minus itself", "highest == -fn::infinity ? 0.0f : highest * c", "highest * c"),
    Fault("sink without its share", "? share * fn::rcp(sum)", "? fn::rcp(sum)"),
    Fault("log-sum-exp to base 2", "fn::ln2 * (exponent", "1.0f * (exponent"),
    Fault("last block left out", "(end + Keys - 1) / Keys", "end / Keys"),
    Fault("first block left out", "tile.first = begin / Keys", "tile.first = (begin + Keys - 1) / Keys"),
    Fault("sequences beyond 32", "      index -= __shfl", "      __shfl"),
    Fault("wrong key head", "tile.head / p.group", "tile.head % p.group"),
    Fault("stored over the next sequence", "p.cu_seqlens_q == nullptr || valid >= 64", "true"),
    Fault("log-sum-exp of the next sequence", "if (row >= tile.seq_q || lane", "if (lane"),
    Fault("the scale is not one plus", "1.0f + scale.x", "scale.x"),
    Fault(
        "the output before the bias has it",
        "      if (p.plain_data) {\n",
        "      Way::move_output(o, p, tile.head);\n      if (p.plain_data) {\n",
    ),
    Fault("cap without its height", "outer * fn::tanh", "fn::tanh", "64_capped"),
    Fault("last panel not stored", "col < Columns; col += 32", "col + 32 < Columns; col += 32", "96_plain"),
]


def unit(kernel: str) -> Unit:
    width, kind = kernel.split("_")
    index = {"64": 1, "96": 2, "256": 8}[width]
    space = "tkpy::attention_forward"
    run = f"{space}::Forward<tk::bf16, {index}, {'true' if kind == 'capped' else 'false'}>::run(p)"
    bounds = f"{space}::kShapes[{index}].threads(), 1"
    entry = Entry(f"attention_forward_bf16_{kernel}", f"attention_forward_hd{width}", f"{space}::Params", run, bounds)
    return Unit(FILES, [entry])


def calls(kernel: str) -> list[dict]:
    make = torch.Generator().manual_seed(1)
    d = int(kernel.partition("_")[0])
    if kernel.endswith("capped"):
        return [inputs(1, 30, 40, 1, 1, d, softcap=2.0)]
    moved = {"out_scale": torch.randn(2, d, generator=make), "out_bias": torch.randn(2, d, generator=make)}
    lengths = [n % 3 for n in range(40)] + [130, 70]
    poisoned = packed([150, 90], [150, 90], d=d)
    poisoned["v"][150:] = float("nan")
    return [
        inputs(1, 400, 390, 2, 1, d, window=(200, 60)),
        inputs(1, 200, 330, 4, 2, d, causal=True, sinks=torch.tensor([0.5, 3.0, -1.0, 9.0])),
        packed(lengths, lengths, d=d, causal=True, **moved),
        poisoned,
    ]


def wrong(kwargs: dict) -> str:
    if not kwargs["v"].isnan().any():
        return disagreement(kwargs)
    with torch.no_grad():
        out = tkpy.attention(**kwargs, backend="emulator")
    return "" if out[:150].isfinite().all() else "NaN of another sequence"


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "attention",
    {kernel: unit(kernel) for kernel in ("64_plain", "64_capped", "96_plain", "256_plain")},
    FAULTS,
    calls,
    wrong,
    seeds=4,
    multiprocessors=2,
).tests()
