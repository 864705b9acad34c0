"""Faults seeded into the attention backward: each is one edit of its source, and a finding, a deadlock, a wrong
gradient or, where sums have an order, other bits must give it away on a few small calls and schedules."""

import functools

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import OP, cotangents, gradients, inputs, packed, wide  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import machine, numerics, registry  # noqa: E402

SOURCES = (
    "../block_lists/lists.h",
    "../block_lists/walk.cuh",
    "params.h",
    "schedule.cuh",
    "dq.cuh",
    "scores.cuh",
    "layout.cuh",
    "parts.cuh",
    "sums.cuh",
    "consumer.cuh",
    "producer.cuh",
    "backward.cuh",
)
TURNS = " in turn"  # of a unit whose sums of dq have an order

SYNC_PART = "    sync(1 + number, 128);\n"
FAULTS = [
    Fault("keys loaded over keys in use", "      wait(bars.keys_free, keys_phase);\n", ""),
    Fault("keys freed by one consumer", "init(bars.keys_free, 2)", "init(bars.keys_free, 1)"),
    Fault("slots freed by one warp of each consumer", "init(bars.steps, 1, 8)", "init(bars.steps, 1, 2)"),
    Fault("keys never waited for", "      wait(shared.barriers.keys_full, keys_phase);\n", ""),
    Fault("queries never waited for", "    await(shared.barriers.steps, at);\n", ""),
    Fault("keys' phase never flips", "      keys_phase ^= 1;\n      for", "      for"),
    Fault("bytes of the rows' numbers", "+ ZTile::bytes + Stats::bytes", "+ ZTile::bytes"),
    Fault("no fence after the zeroes", "    publish_tile();\n    __syncwarp();", "    __syncwarp();"),
    Fault(
        "one row of the next sequence's queries",
        "seq_q - step.tile * Rows, shared.q",
        "seq_q - step.tile * Rows + 1, shared.q",
    ),
    Fault("one row of the next sequence's keys", "seq_k - tile.key, shared.k", "seq_k - tile.key + 1, shared.k"),
    Fault(
        "slot released before its last product",
        "    mma_wait(sums.dk, sums.dv);\n    release(shared.barriers.steps, at);\n",
        "    release(shared.barriers.steps, at);\n    mma_wait(sums.dk, sums.dv);\n",
    ),
    Fault("scores read before their product", "      mma_wait<1>(s);\n", ""),
    Fault("dP read before its product", "      mma_wait<1>(dp);\n", "", "128_plain"),
    Fault("dQ read before its product", "    mma_wait<1>(dq);\n", "    mma_wait<2>(dq);\n"),
    Fault(
        "no fence after dS",
        "    publish_tile();\n    if constexpr (in_turn)",
        "    if constexpr (in_turn)",
    ),
    Fault(
        "the other's dS never waited for",
        "      sync(both, 256);\n    ptx::hold",
        "      ;\n    ptx::hold",
        "128_plain",
    ),
    Fault("one tile of dS", "auto& ds_tile = shared.ds[in_turn ? number : at.slot]", "auto& ds_tile = shared.ds[0]"),
    Fault(
        "the other's columns of k",
        "subtile<Keys, Part::cols>(shared.k, 0, half *",
        "subtile<Keys, Part::cols>(shared.k, 0, 0 *",
        "128_plain",
    ),
    Fault("dQ's part overwritten", "    if (leader()) finish();\n" + SYNC_PART, SYNC_PART),
    Fault("no fence before the sum", "    publish_tile();\n" + SYNC_PART, SYNC_PART),
    Fault("no barrier before the sum", "    publish_tile();\n" + SYNC_PART, "    publish_tile();\n"),
    Fault("dK staged over k in use", "      sync(both, 256);  // no product with k and v is left\n", ""),
    Fault(
        "no fence before the stores",
        "    publish_tile();\n    sync(Kernel::both, 256);",
        "    sync(Kernel::both, 256);",
    ),
    Fault("no barrier before the stores", "    publish_tile();\n    sync(Kernel::both, 256);", "    publish_tile();"),
    Fault("tiles given back before they are stored", "      return wait_stores_read();\n", "      return;\n"),
    Fault("stored over the next sequence", "p.cu_seqlens_k == nullptr || valid >= Keys", "true"),
    Fault("keys that are not there", "      if (row >= in.seq_k) from = Queries;\n", ""),
    Fault("top-left alignment", "return seq_k - seq_q;", "return 0;"),
    Fault("edge tiles not masked, above", "query >= last - diagonal - p.right", "query >= key - diagonal - p.right"),
    Fault("edge tiles not masked, below", "query + Queries - 1 <= key", "query <= key"),
    Fault("last query hidden", "col >= from && col <= to", "col >= from && col < to"),
    Fault("first query tile left out", "tile.first = begin / Rows", "tile.first = (begin + Rows - 1) / Rows"),
    Fault("last query tile left out", "(end + Rows - 1) / Rows", "end / Rows"),
    Fault("one head of the group", "head < (tile.kv_head + 1) * p.group", "head < tile.kv_head * p.group + 1"),
    Fault("sequences beyond 32", "at = base + __ffs", "at = __ffs"),
    Fault("delta left out", "(dp.x[0][e] - delta.x)", "dp.x[0][e]"),
    Fault("dK not scaled", "      mul(sums.dk, sums.dk, p.scale);\n", ""),
    Fault("the cap is flat", "fmaf(-x, x, 1.0f)", "1.0f", "64_capped"),
    Fault(
        "scores without a cap bent",
        "if (Capped && outer > 0.0f)\n      raise",
        "if (Capped)\n      raise",
        "160_capped",
    ),
    Fault("hidden pairs have a slope", "        x = fmaxf(x, -1.0f);\n", "", "64_capped"),
    Fault("the other's queries never waited for", "    sync(both, 256);\n    const", "    const", "256_plain"),
    Fault(
        "no fence after both tiles",
        "    publish_tile();\n    sync(both, 256);\n    const",
        "    sync(both, 256);\n    const",
        "256_plain",
    ),
    Fault(
        "one tile of weights",
        "&weights_tile = shared.weights[at.slot]",
        "&weights_tile = shared.weights[0]",
        "256_plain",
    ),
    Fault(
        "numbers of the first queries", "shared.stats[at.slot].data + query", "shared.stats[at.slot].data", "256_plain"
    ),
    Fault("the other's columns not made", "column = Kernel::first_column(number);", "column = 0;", "160_capped"),
    Fault("columns of even halves", "number * (Layout::shape.dim - Columns)", "number * Columns", "160_capped"),
    Fault("the smaller half twice", "Half<Kernel, Kernel::first>", "Half<Kernel, Kernel::second>", "160_capped"),
    Fault("the other's columns of dK", "dk, Kernel::first_column(number)", "dk, 0", "160_capped"),
    Fault("both parts of dQ in one place", " + Kernel::Rows * Kernel::first_column(number);", ";", "160_capped"),
    Fault("halves of half a panel", "(of / 2 + 31) / 32 * 32", "of / 2", "160_capped"),
    Fault("columns of whole panels", "wide() && dim % 128 != 0 ? 32 : widest(dim)", "widest(dim)", "192_plain"),
    Fault(
        "keys in queries' panels", "rows == 128 ? panel() : widest(dim / 2)", "rows == 128 ? panel() : 32", "96_plain"
    ),
    Fault("dQ's columns in whole panels", "half * Part::cols / 64", "half", "96_plain"),
    Fault("dQ's columns in one place", ": Part::cols * part);", ": 0);", "160_dq"),
    Fault(
        "a turn passed before all have added",
        "      sync(1 + number, 128);\n      if (leader()) pass",
        "      if (leader()) pass",
        "256_plain" + TURNS,
    ),
    Fault("turns not waited for", "      await_turn(p.turns + part, turn(tile, met, slot));\n", "", "64_plain" + TURNS),
    Fault(
        "a turn passed before the sum is in memory",
        "    wait_stores();\n    if (owed",
        "    wait_stores_read();\n    if (owed",
        "64_plain" + TURNS,
    ),
    Fault("the log-sum-exp's gradient left out", "p.dlse ? delta - p.dlse[at] : delta", "delta", "rows"),
    Fault("the log-sum-exp to base e", "fn::log2e * p.lse[at]", "p.lse[at]", "rows"),
    Fault("rows without keys weighed", "lse = blind ? fn::infinity :", "lse =", "rows"),
    Fault("the scale is not one plus", "d.x * (1.0f + scale[0])", "d.x * scale[0]", "rows"),
    Fault("delta of half a row", "step < lanes", "step < lanes / 2", "rows"),
    Fault("the first values for both", ", Kernel::first_value_column(number)));", ", 0));", "192x128_capped"),
    Fault("dV at dK's columns", "dv, Kernel::first_value_column", "dv, Kernel::first_column", "192x128_capped"),
    Fault("more bytes awaited than come", "KTile::bytes + VTile::bytes", "2 * KTile::bytes", "192x128_capped"),
    Fault("bytes that nobody awaits", "QTile::bytes + ZTile::bytes", "2 * ZTile::bytes", "192x128_capped"),
    Fault("rows that are zeroed past v's columns", "if (B::cols == A::cols || col < B::cols) ", "", "192x128_capped"),
    Fault("dQ not scaled", "x.x * p.scale", "x.x", "64_dq"),
    Fault("rows of the next sequence", "min(shape.rows, tile.in.seq_q - tile.row)", "shape.rows", "64_dq"),
    Fault("no barrier before dQ's rows", "    __syncthreads();\n    constexpr", "    constexpr", "128_dq"),
]

WIDTHS = ("32", "64", "96", "128", "160", "192x128", "192", "224", "256")
KERNELS = ("64_plain", "64_capped", "96_plain", "128_plain", "160_capped", "192x128_capped", "192_plain", "256_plain")
SUMS = tuple(f"{width}_dq" for width in (64, 96, 128, 160, "192x128", 192, 256))


def unit(which: str) -> Unit:
    kernel = which.removesuffix(TURNS)
    space, files, bounds = "tkpy::attention_backward", SOURCES, "384, 1"
    if kernel == "rows":
        module, made, bounds = "rows", "Rows<tk::bf16>", "256"
        files = (*SOURCES, "rows.cu")
    else:
        width, kind = kernel.split("_")
        index = WIDTHS.index(width)
        module, made = f"hd{width}", f"Backward<tk::bf16, {index}, {'true' if kind == 'capped' else 'false'}>"
        if kind == "dq":
            made, bounds = f"RoundDq<tk::bf16, {index}>", "256"
    name = "attention_backward_rows_bf16" if kernel == "rows" else f"attention_backward_bf16_{kernel}"
    entry = Entry(name, f"attention_backward_{module}", f"{space}::Params", f"{space}::{made}::run(p)", bounds)
    return Unit([f"attention_backward/{file}" for file in files], [entry])


@functools.cache
def calls_of(kind: str) -> list[dict]:
    d, *narrow = map(int, kind.partition("_")[0].split("x"))
    dv = narrow[0] if narrow else d
    if kind == "64_capped":
        return [inputs(1, 30, 40, 1, 1, d, softcap=2.0, causal=True)]
    make = torch.Generator().manual_seed(1)
    moved = {"out_scale": torch.randn(2, dv, generator=make), "out_bias": torch.randn(2, dv, generator=make)}
    lengths = [n % 3 for n in range(40)] + [130, 70]
    poisoned = packed([150, 90], [150, 90], d=d, dv=dv)
    for name in "qkv":
        poisoned[name][150:] = float("nan")
    opposite = {
        "q": torch.full((1, 20, 1, d), 3.0),
        "k": torch.full((1, 20, 1, d), -3.0),
        "v": torch.ones(1, 20, 1, dv),
    }
    return [
        inputs(1, 300, 390, 2, 1, d, dv, window=(200, 60)),
        inputs(1, 330, 200, 4, 2, d, dv, causal=True),
        packed(lengths, lengths, d=d, dv=dv, causal=True, **moved),
        poisoned,
        {"scale": 0.5, **{name: t.bfloat16() for name, t in opposite.items()}},  # weights of absent keys would overflow
    ]


def grads_and_wants(kwargs: dict) -> tuple:
    """Arguments of the backward, and what it should give."""
    args = tuple(registry.capture(OP, kwargs).args.values())
    outputs = OP.module("reference").forward(*args)
    grads = [*cotangents(*outputs[:2]), None]
    want = gradients({k: wide(v) for k, v in kwargs.items()}, "reference")
    return grads, list(outputs), args, [want[name] for name in ("q", "k", "v")]


@functools.cache
def known(kind: str, number: int) -> tuple:
    return grads_and_wants(calls_of(kind)[number])


def wrong_call(grads, outputs, args, want, rows: int | None = None) -> str:
    needs = [name in ("q", "k", "v") for name in OP.arg_names if OP.arg_names.index(name) in OP.tensor_args]
    try:
        got = OP.torch_backward(grads, outputs, *args, "emulator", needs)
    except tkpy.InternalError as error:
        return str(error)
    for name, a, b in zip("qkv", got, want, strict=True):
        a, b = (t[:rows] if rows else t for t in (a, b))
        comparison = numerics.compare(a, b, numerics.TOLERANCE[torch.bfloat16])
        if not comparison:
            return f"{name}: {comparison}"
    return ""


def calls(which: str) -> list[tuple[str, int]]:
    kind = "64_plain" if which == "rows" else which.removesuffix(TURNS).replace("_dq", "_plain")
    if which.endswith(TURNS):
        return [(kind, 0)]
    return [(kind, number) for number in range(len(calls_of(kind)))]


class Order:
    """Whether sums of dq have an order, and what they were under the first schedule."""

    asked = False
    sums: torch.Tensor | None = None


def launch(name, *arguments, **options):
    ran = machine.launch(name, *arguments, **options)
    if Order.asked and Order.sums is None:
        Order.sums = arguments[17]
    if Order.asked and not torch.equal(Order.sums, arguments[17]):
        raise tkpy.InternalError("other bits")
    return ran


def arrange(monkeypatch, fault: Fault) -> None:
    monkeypatch.setattr(Order, "asked", fault.kernel.endswith(TURNS))
    monkeypatch.setattr(Order, "sums", None)
    monkeypatch.setattr(OP.module("cuda"), "launch", launch)
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: Order.asked)


def wrong(call: tuple[str, int]) -> str:
    kind, number = call
    poisoned = calls_of(kind)[number]["v"].isnan().any()  # the rest is another sequence, and NaN
    return wrong_call(*known(kind, number), 150 if poisoned else None)


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "attention_backward",
    {which: unit(which) for which in (*KERNELS, *SUMS, "rows", "64_plain" + TURNS, "256_plain" + TURNS)},
    FAULTS,
    calls,
    wrong,
    seeds=4,
    multiprocessors=2,
    arrange=arrange,
).tests()
