"""Faults seeded into wkv5's forward: each is one edit of its source, and a finding or a wrong result must give it away
on a few small calls and schedules."""

from dataclasses import replace

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, text_of

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from wkv5_runs import disagreement, in_segments, inputs  # noqa: E402  (after the skips)

import tkpy  # noqa: E402

RELEASE = "      __syncwarp();\n      release(shared.filled, at);\n"
MEET = "      }\n      __syncthreads();\n"
INSIDE = "if (row >= kChunk - feed.tokens(step) && at < p.size)"
OUT = "    each_four([&](int row, int col) {\n      if (row"
LEVEL_2 = "((lane_index() & 4) != 0) == later ? x * one[q] : x"
HALF = "(e / 2 % 2 != 0) == later ? half * eight[channel_of(e)] : half"
FAULTS = [
    Fault("a chunk read before it is there", "await(*feed.filled, ahead);", ""),
    Fault("a slot filled while it is read", "      acquire(*filled, at);\n", ""),
    Fault("a slot released too early", RELEASE, "      release(shared.filled, at);\n"),
    Fault("an arrival too few", "init(*filled, 1, warps)", "init(*filled, 1, 1)"),
    Fault("bytes of a tensor forgotten", "Tensors * st<T, kChunk, N>::bytes",
          "(Tensors - 1) * st<T, kChunk, N>::bytes"),
    Fault("barriers used before they are ready", "      publish_barriers();\n    }\n    __syncthreads();", "    }"),
    Fault("computed before all have prepared", MEET, "      }\n      if (step >= 0) __syncthreads();\n"),
    Fault("prepared while it is read", MEET, "      }\n      if (step < 0) __syncthreads();\n"),
    Fault("one buffer", "shared.prepared[(step + 1) & 1]", "shared.prepared[0]"),
    Fault("a tail not cleaned", "    if (n == kChunk) return;\n    constexpr", "    return;\n    constexpr"),
    Fault("values of a tail not cleaned", "for (int i = 0; i < Tensors; ++i)\n        *re",
          "for (int i = 0; i < Tensors - 1; ++i)\n        *re"),
    Fault("a row of a tail not cleaned", "piece < (kChunk - n) * pieces", "piece < (kChunk - n - 1) * pieces"),
    Fault("a tail read before it is clean", "  // TMA writes there again\n    __syncthreads();\n", "\n"),
    Fault("a tail cleaned under TMA", "    publish_tile();  // TMA writes there again\n", ""),
    Fault("tails at the end", "task.first + task.tokens - kChunk * (after(step) + 1)",
          "task.first + kChunk * (task.chunks() - 1 - after(step))"),
    Fault("powers of a tail", "max(tile_row(e) - (kChunk - n), 0)", "tile_row(e)"),
    Fault("decay of a tail", "shared.fade[mine] : fade_of(shared.of.rate[mine], n)",
          "shared.fade[mine] : shared.fade[mine]"),
    Fault("later keys seen", "(query > key) != backwards && level == 8", "query != key && level == 8"),
    Fault("levels of neighbours", "near & level << 8 * (e % 2)", "near & level"),
    Fault("level 2 of queries", LEVEL_2, f"later ? x : {LEVEL_2}"),
    Fault("level 2 of keys", LEVEL_2, f"later ? ({LEVEL_2}) : x"),
    Fault("a power too many", "(4 << l) - 1 - g % (4 << l)", "(4 << l) - g % (4 << l)"),
    Fault("second half of the queries", HALF, f"later ? half : {HALF}"),
    Fault("second half of the keys", HALF, f"later ? ({HALF}) : half"),
    Fault("no bonus", "query.x[0][e] * u[tile_col(e)] * key.x[0][e]", "query.x[0][e] * key.x[0][e]"),
    Fault("scores of one warp", "for (int w = 1; w < Warps; ++w)", "for (int w = 1; w < 1; ++w)"),
    Fault("decays of the wrong channels", "in.fade[16 * c + tile_col(e)]", "in.fade[tile_col(e)]"),
    Fault("no decay", "state[c].x[0][e] = fmaf(state[c].x[0][e], fade, state[c].x[0][e]);", ""),
    Fault("state in bf16", "      Parts<2> key;\n#pragma unroll\n      for (int i = 0; i < 2; ++i)",
          "      Parts<1> key;\n      for (int i = 0; i < 1; ++i)"),
    Fault("segments in bf16", "    Parts<2> key;\n    split(key, wide);", "    Parts<1> key;\n    split(key, wide);"),
    Fault("rows of others written", INSIDE, "if (at < p.size)"),
    Fault("columns past the end written", INSIDE, "if (row >= kChunk - feed.tokens(step))"),
    Fault("rows read before they are written", "  store(scratch, narrow);\n  __syncwarp();",
          "  store(scratch, narrow);"),
    Fault("no initial state", "const bool inside = from && row < size && col < size;", "const bool inside = false;"),
    Fault("a state read before it is there", "    });\n    __syncthreads();\n#pragma", "    });\n#pragma"),
    Fault("a state written before it is there", f"    __syncthreads();\n{OUT}", OUT),
    Fault("states beyond the head", "      if (row < size && col < size)\n        *re", "      *re"),
    Fault("final state of every segment", "if (p.final && task.last())", "if (p.final)"),
    Fault("states of the wrong segment", "p.states + matrix_at(p, slot, head)\n",
          "p.states + matrix_at(p, task.sequence, head)\n"),
    Fault("segments not joined", "    states[at] = state;", "    states[at] = alone;"),
    Fault("segments not decayed", "state = fmaf(state, kept, state) + alone;", "state = state + alone;"),
    Fault("slots of two sequences", "offset_of(p, i) / p.segment + i", "offset_of(p, i) / p.segment"),
    Fault("segments without end", "min(tokens_of(p, t.sequence) - before, p.segment)",
          "tokens_of(p, t.sequence) - before"),
    Fault("no memory is 0 * inf", "return rate > 1e4f ? 1e4f : rate;", "return rate;"),
    Fault("powers of segments", "backwards ? tile_col(e) : 7 - tile_col(e)", "8 - tile_col(e)"),
]  # fmt: skip
FILES = [f"wkv5/{name}" for name in ("params.h", "chunk.cuh", "scores.cuh", "outputs.cuh", "states.cuh", "kernel.cu")]
KERNELS = {"forward": "Outputs<tk::bf16, 32>::run", "states": "States<tk::bf16, 32>::run", "join": "join"}
ENTRIES = {
    name: Entry(
        "wkv5_join" if name == "join" else f"wkv5_{name}_bf16_32", "wkv5", "tkpy::wkv5::Params", f"tkpy::wkv5::{run}(p)"
    )
    for name, run in KERNELS.items()
}
UNITS = {
    "all": Unit(FILES, list(ENTRIES.values())),
    "forward": Unit(FILES, [ENTRIES["forward"]]),
    "states": Unit(FILES, [ENTRIES["states"], ENTRIES["join"]]),
}
UNIT_OF = {f"wkv5/{name}": "forward" for name in ("scores.cuh", "outputs.cuh", "kernel.cu")}
UNIT_OF["wkv5/states.cuh"] = "states"


def of_unit(fault: Fault) -> Fault:
    """A fault, with the kernels that its file is for."""
    file = next(name for name in FILES if fault.old in text_of(name))
    return replace(fault, kernel=UNIT_OF.get(file, "all"))


def calls(unit: str) -> list[tuple[dict, int]]:
    """(call, tokens of a segment)"""
    bounds = [0, 1, 18, 18, 81, 86, 118, 151]
    poisoned = inputs(1, 151, 2, 32, bounds=bounds)
    for name in "rkv":
        poisoned[name][:, 18:81] = poisoned[name][:, 118:] = torch.nan
    endless = inputs(1, 40, 2, 32)
    endless["w"][:] = torch.inf
    return [
        (inputs(2, 135, 2, 32), 4096),
        (inputs(1, 151, 2, 24, bounds=bounds), 32),
        (inputs(1, 350, 1, 32, low=-12.0, high=2.0), 160),
        (poisoned, 160),
        (endless, 16),
    ]


def wrong(call: tuple[dict, int]) -> str:
    """`disagreement`, of sequences without NaN where there are some with."""
    kwargs, segment = call
    with pytest.MonkeyPatch.context() as patch:
        in_segments(patch, segment)
        if kwargs["r"].isfinite().all():
            return disagreement(kwargs)
        y, final = tkpy.wkv5(**kwargs, backend="emulator")
        clean = kwargs | {name: kwargs[name].nan_to_num() for name in "rkv"}
        wanted, states = tkpy.wkv5(**clean, backend="emulator")
    rows, sequences = kwargs["r"][0, :, 0, 0].isfinite(), [0, 1, 2, 4, 5]
    same = torch.equal(y[:, rows], wanted[:, rows]) and torch.equal(final[sequences], states[sequences])
    return "" if same else "a NaN of another sequence"


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "wkv5", UNITS, [of_unit(fault) for fault in FAULTS], calls, wrong, tried=("all",)
).tests()
