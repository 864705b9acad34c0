"""Faults seeded into the attention backward: each is one edit of its source, and a finding, a deadlock, a wrong
gradient or, where sums have an order, other bits must give it away on a few small calls and schedules."""

import functools

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import (  # noqa: E402  (after the skips)
    BACKWARD_MODULES,
    OP,
    cotangents,
    gather,
    gradients,
    inputs,
    on_machine,
    packed,
    wide,
)

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
    "rows.cu",
)
SEEDS = range(4)


SYNC_PART = "    sync(1 + number, 128);\n"
FAULTS = [
    Fault("keys loaded over keys in use", "      wait(bars.keys_free, keys_phase);\n", ""),
    Fault("keys freed by one consumer", "init(bars.keys_free, 2)", "init(bars.keys_free, 1)"),
    Fault("slots freed by one warp of each consumer", "init(bars.steps, 1, 8)", "init(bars.steps, 1, 2)"),
    Fault("keys never waited for", "      wait(shared.barriers.keys_full, keys_phase);\n", ""),
    Fault("queries never waited for", "    await(shared.barriers.steps, at);\n", ""),
    Fault("keys' phase never flips", "      keys_phase ^= 1;\n      for", "      for"),
    Fault("bytes of the rows' numbers", "2 * QTile::bytes + Stats::bytes", "2 * QTile::bytes"),
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
    Fault("the cap is flat", "fmaf(bend * x, x, 1.0f)", "1.0f", "64_capped"),
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
    Fault("the other's columns not made", "const int column = Columns * number;", "const int column = 0;", "192_plain"),
    Fault("columns of half a panel", "return widest(wide() ? dim / 2 : dim);", "return 32;", "256_plain"),
    Fault(
        "keys in queries' panels", "return widest(in_turn() || rows == 128 ? dim : dim / 2);", "return 32;", "96_plain"
    ),
    Fault("dQ's columns in whole panels", "half * Part::cols / 64", "half", "96_plain"),
    Fault("dQ's columns in one place", ": Part::cols * part);", ": 0);", "192_dq"),
    Fault(
        "a turn passed before all have added",
        "      sync(1 + number, 128);\n      if (leader()) pass",
        "      if (leader()) pass",
        "256_plain",
    ),
    Fault("turns not waited for", "      await_turn(p.turns + part, turn(tile, met, slot));\n", ""),
    Fault(
        "a turn passed before the sum is in memory",
        "    wait_stores();\n    if (owed",
        "    wait_stores_read();\n    if (owed",
    ),
    Fault("the log-sum-exp's gradient left out", "p.dlse ? delta - p.dlse[at] : delta", "delta", "rows"),
    Fault("the log-sum-exp to base e", "fn::log2e * p.lse[at]", "p.lse[at]", "rows"),
    Fault("rows without keys weighed", "lse = blind ? fn::infinity :", "lse =", "rows"),
    Fault("the scale is not one plus", "d.x * (1.0f + scale[0])", "d.x * scale[0]", "rows"),
    Fault("delta of half a row", "step < lanes", "step < lanes / 2", "rows"),
    Fault("dQ not scaled", "x.x * p.scale", "x.x", "64_dq"),
    Fault("rows of the next sequence", "min(shape.rows, tile.in.seq_q - tile.row)", "shape.rows", "64_dq"),
    Fault("no barrier before dQ's rows", "    __syncthreads();\n    constexpr", "    constexpr", "128_dq"),
]

#: The right kernels, which nothing may accuse.
KERNELS = (
    "rows",
    "64_plain",
    "64_capped",
    "64_dq",
    "96_plain",
    "96_dq",
    "128_plain",
    "128_dq",
    "192_plain",
    "192_dq",
    "256_plain",
    "256_dq",
)
RIGHT = {kernel: len(FAULTS) + i for i, kernel in enumerate(KERNELS)}
FAULTS += [Fault("none", "", "", kernel) for kernel in KERNELS]


def source(number: int) -> str:
    """The kernel with the fault, in a namespace of its own."""
    fault = FAULTS[number]
    folder = ROOT / "csrc/kernels/attention_backward"
    text = "".join((folder / name).read_text().split("#define TKPY_ATTENTION")[0] for name in SOURCES)
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1)
    kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
    size, _, kind = fault.kernel.partition("_")
    index = {"64": 1, "96": 2, "128": 3, "192": 4, "256": 5}.get(size)
    made, threads = f"Backward<tk::bf16, {index}, {'true' if kind == 'capped' else 'false'}>", 384
    if kind in ("", "dq"):
        made, threads = f"RoundDq<tk::bf16, {index}>" if kind else "Rows<tk::bf16>", 256
    body = "\n".join(kept)
    return f"""namespace seeded_{number} {{
{body}
extern "C" __global__ void __launch_bounds__({threads})
    fault_{number}(const __grid_constant__ tkpy::attention_backward::Params p) {{
  tkpy::attention_backward::{made}::run(p);
}}
}}
"""


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    kernels = "".join(source(i) for i in range(len(FAULTS)))
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "attention_backward_faults", kernels)


@functools.cache
def calls(kind: str) -> list[dict]:
    d = int(kind.partition("_")[0])
    if kind.endswith("capped"):
        return [inputs(1, 30, 40, 1, 1, d, softcap=2.0, causal=True)]
    make = torch.Generator().manual_seed(1)
    moved = {"out_scale": torch.randn(2, d, generator=make), "out_bias": torch.randn(2, d, generator=make)}
    lengths = [n % 3 for n in range(40)] + [130, 70]
    poisoned = packed([150, 90], [150, 90], d=d)
    for name in "qkv":
        poisoned[name][150:] = float("nan")
    opposite = {"q": torch.full((1, 20, 1, d), 3.0), "k": torch.full((1, 20, 1, d), -3.0), "v": torch.ones(1, 20, 1, d)}
    return [
        inputs(1, 300, 390, 2, 1, d, window=(200, 60)),
        inputs(1, 330, 200, 4, 2, d, causal=True),
        packed(lengths, lengths, d=d, causal=True, **moved),
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
    return grads_and_wants(calls(kind)[number])


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


def wrong(kind: str, number: int) -> str:
    poisoned = calls(kind)[number]["v"].isnan().any()  # the rest is another sequence, and NaN
    return wrong_call(*known(kind, number), 150 if poisoned else None)


def caught(monkeypatch, folder, kind: str, seed: int) -> str:
    on_machine(monkeypatch, folder, seed, multiprocessors=2)
    for number in range(len(calls(kind))):
        if what := wrong(kind, number):
            return what
    return ""


def other_bits(monkeypatch, folder, kind: str) -> str:
    """Whether sums that have an order differ between schedules."""
    sums = []

    def launch(*arguments, **options):
        ran = machine.launch(*arguments, **options)
        sums.append(arguments[18])
        return ran

    monkeypatch.setattr(OP.module("cuda"), "launch", launch)
    for seed in SEEDS:
        on_machine(monkeypatch, folder, seed, multiprocessors=3)
        if what := wrong(kind, 0):
            return what
    return "" if all(torch.equal(sums[0], other) for other in sums) else "other bits"


@pytest.fixture(scope="module")
def right(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/attention_backward/{module}.cu") for module in BACKWARD_MODULES]
    return gather(tmp_path_factory.mktemp("right"), parts)


def found(text: str, right, tmp_path, monkeypatch, number: int) -> str:
    fault = FAULTS[number]
    gather(tmp_path, [right])
    size, _, kind = fault.kernel.partition("_")
    names = {
        f"fault_{number}": f"attention_backward_{fault.kernel}_bf16"
        if not kind
        else f"attention_backward_bf16_{fault.kernel}"
    }
    if kind:  # the size's other kernels are right
        others = [k for k in KERNELS if k.startswith(f"{size}_") and k != fault.kernel]
        names |= {f"fault_{RIGHT[kernel]}": f"attention_backward_bf16_{kernel}" for kernel in others}
    which = f"attention_backward_hd{size}" if kind else "attention_backward_rows"
    write_module(tmp_path, which, module(text, names))
    calls_of = fault.kernel if kind in ("plain", "capped") else f"{size if kind else '64'}_plain"
    in_order = "turn" in fault.what
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: in_order)
    if in_order:
        return other_bits(monkeypatch, tmp_path, calls_of)
    for seed in SEEDS if fault.old else SEEDS[:2]:
        if what := caught(monkeypatch, tmp_path, calls_of, seed):
            print(what)
            return what
    return ""


@pytest.mark.parametrize("number", range(len(FAULTS) - len(KERNELS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_caught(text, right, tmp_path, monkeypatch, number):
    assert found(text, right, tmp_path, monkeypatch, number)


@pytest.mark.parametrize("number", RIGHT.values(), ids=lambda number: FAULTS[number].kernel)
def test_the_right_kernel_is_not_accused(text, right, tmp_path, monkeypatch, number):
    assert found(text, right, tmp_path, monkeypatch, number) == ""


@pytest.mark.parametrize("kind", ["64_plain", "256_plain"])
def test_the_right_order_is_not_accused(right, monkeypatch, kind):
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: True)
    assert other_bits(monkeypatch, right, kind) == ""
