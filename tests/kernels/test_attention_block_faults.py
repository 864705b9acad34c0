"""Faults seeded into what attention does by lists of blocks, forward and backward: each is one edit of the source, and
a finding, a deadlock or a wrong result must give it away on a few small calls and schedules."""

import functools

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import OP, block_mask, disagreement, gather, inputs, on_machine  # noqa: E402  (after the skips)
from test_attention_backward_faults import grads_and_wants, wrong_call  # noqa: E402

import tkpy  # noqa: E402

LISTS = ("../block_lists/lists.h", "../block_lists/walk.cuh", "params.h", "schedule.cuh")
PARTS = ("layout.cuh", "parts.cuh", "sums.cuh", "consumer.cuh")
SOURCES = {
    "forward": (*LISTS, "softmax.cuh", "forward.cuh"),
    "backward": (*LISTS, "dq.cuh", "scores.cuh", *PARTS, "producer.cuh", "backward.cuh"),
}
SEEDS = range(4)
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
    Fault("half of dQ twice", "parts.stage(dq, part_size);", "parts.stage(dq, 0);", "backward 128_blocks64"),
    Fault(
        "consumers share a tile of dS", "shared.ds[in_turn ? number : at.slot]", "shared.ds[0]", "backward 64_blocks64"
    ),
]

#: The right kernels, which nothing may accuse.
KERNELS = sorted({fault.kernel for fault in FAULTS})
FAULTS += [Fault("none", "", "", kernel) for kernel in KERNELS]
INDEX = {"64_blocks128": 0, "128_blocks128": 1, "256_blocks128": 2, "64_blocks64": 3, "128_blocks64": 4}


def source(number: int) -> str:
    """The kernel with the fault, in a namespace of its own."""
    fault = FAULTS[number]
    side, which = fault.kernel.split()
    folder = ROOT / f"csrc/kernels/attention_{side}"
    text = "".join((folder / name).read_text().split("#define TKPY_ATTENTION")[0] for name in SOURCES[side])
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1)
    kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
    space = f"tkpy::attention_{side}"
    made = f"{side.capitalize()}<tk::bf16, {INDEX[which]}, false, true>"
    shape = f"{space}::kBlockShapes[{INDEX[which]}]"
    bounds = f"{shape}.threads(), {shape}.ctas" if side == "forward" else f"{space}::Shape::kThreads, 1"
    body = "\n".join(kept)
    return f"""namespace seeded_{number} {{
{body}
extern "C" __global__ void __launch_bounds__({bounds})
    fault_{number}(const __grid_constant__ {space}::BlockParams p) {{
  {space}::{made}::run(p);
}}
}}
"""


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    kernels = "".join(source(i) for i in range(len(FAULTS)))
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "attention_block_faults", kernels)


@functools.cache
def calls(kernel: str) -> list[dict]:
    width, _, block = kernel.split()[1].partition("_blocks")
    d, size = int(width), int(block)
    few = inputs(2, 200, 390, 4, 2, d, block_mask=block_mask(2, 4, 200, 390, size, 5), causal=True)
    if d > 64:
        return [few]
    many = block_mask(1, 1, 70, 3000, size, 2, full=0.4, partial=0.4)
    return [few, inputs(1, 70, 3000, 1, 1, d, block_mask=many)]


@functools.cache
def known(kernel: str, number: int) -> tuple:
    return grads_and_wants(calls(kernel)[number])


def wrong(kernel: str) -> str:
    for number, kwargs in enumerate(calls(kernel)):
        try:
            if what := disagreement(kwargs) if kernel.startswith("forward") else wrong_call(*known(kernel, number)):
                return what
        except tkpy.InternalError as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def right(kernel_folder, tmp_path_factory):
    names = ("rows", "hd64_blocks64", "hd64_blocks128", "hd128_blocks64", "hd128_blocks128")
    parts = [kernel_folder(f"kernels/attention_backward/{name}.cu") for name in names]
    parts.append(kernel_folder("kernels/attention_forward/hd64.cu"))  # the one that says whether attention is built
    return gather(tmp_path_factory.mktemp("right"), parts)


def found(text: str, right, tmp_path, monkeypatch, number: int) -> str:
    fault = FAULTS[number]
    side, which = fault.kernel.split()
    gather(tmp_path, [right])
    name = f"attention_{side}_hd{which}"
    entries = module(text, {f"fault_{number}": f"attention_{side}_bf16_{which}_plain"})
    if side == "backward":  # dq's kernel is right
        kept = (right / f"{name}.ptx").read_text()
        entries = with_entry(entries, kept, f"attention_backward_bf16_{which}_dq")
    write_module(tmp_path, name, entries)
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: False)
    for seed in SEEDS if fault.old else SEEDS[:2]:
        on_machine(monkeypatch, tmp_path, seed, multiprocessors=2)
        if what := wrong(fault.kernel):
            print(what)
            return what
    return ""


def with_entry(text: str, other: str, name: str) -> str:
    """A module with one more entry, that of another module; line numbers of the sources are dropped."""
    (entry,) = [part for part in other.split(".visible .entry ") if part.startswith(f"{name}(")]
    body = [line for line in entry[: entry.rindex("\n}\n") + 3].splitlines() if not line.strip().startswith(".loc")]
    head, mark, rest = text.partition(".visible .entry ")
    return head + mark + "\n".join(body) + "\n" + mark + rest


@pytest.mark.parametrize("number", range(len(FAULTS) - len(KERNELS)), ids=lambda n: f"{FAULTS[n].kernel}: {FAULTS[n]}")
def test_every_fault_is_caught(text, right, tmp_path, monkeypatch, number):
    assert found(text, right, tmp_path, monkeypatch, number)


@pytest.mark.parametrize("number", range(len(FAULTS) - len(KERNELS), len(FAULTS)), ids=lambda n: FAULTS[n].kernel)
def test_the_right_kernel_is_not_accused(text, right, tmp_path, monkeypatch, number):
    assert found(text, right, tmp_path, monkeypatch, number) == ""
