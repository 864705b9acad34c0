"""Faults seeded into wkv5, forward and backward: each is one edit of the kernels' source, and a finding or a wrong
result must give it away on a few small calls and schedules."""

from dataclasses import replace

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, text_of

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from wkv5_runs import disagreement, in_segments, inputs, wrong_gradient  # noqa: E402  (after the skips)

import tkpy  # noqa: E402

RELEASE = "      __syncwarp();\n      release(shared.filled, at);\n"
MEET = "      }\n      __syncthreads();\n"
INSIDE = "if (row >= kChunk - feed.tokens(step) && at < p.size)"
OUT = "    each_four([&](int row, int col) {\n      if (row"
LEVEL_2 = "((lane_index() & 4) != 0) == later ? x * one[q] : x"
HALF = "(e / 2 % 2 != 0) == later ? half * eight[channel_of(e)] : half"
FORWARD = [
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
GIVEN_BACK = "      __syncwarp();\n      release(shared.filled, at);\n      write_rows"
READ = "        __syncthreads();  // what was passed of the chunk before has been read\n"
NEAR = "near = backwards ? level_of(col, g) | level_of(col + 1, g) << 8 : "
GIVEN = "const float* given = backwards ? p.g_final : p.initial;\n    stage()"
BACKWARD = [
    Fault("a chunk read before it is there", "      await(shared.filled, at);\n      Chunk&", "      Chunk&"),
    Fault("a slot filled while it is read", "      acquire(*filled, at);\n", ""),
    Fault("a slot released too early", GIVEN_BACK, "      release(shared.filled, at);\n      write_rows"),
    Fault("tables read before they are there", "shared.task = task;\n    __syncthreads();", "shared.task = task;"),
    Fault("a chunk passed while one is read", READ, ""),
    Fault("read before it is passed", "        pass(chunk);\n        __syncthreads();", "        pass(chunk);"),
    Fault("sums read before they are there", "keep(total);\n    __syncthreads();", "keep(total);"),
    Fault("a tail's decay kept", "if (n == length) return;", "if (length) return;"),
    Fault("the diagonal of the other half", "g % 2 ? between.x[0][7] : between.x[0][6]",
          "g % 2 ? between.x[0][1] : between.x[0][0]"),
    Fault("who has the diagonal", "(g / 2 % 4)", "(g % 4)"),
    Fault("no bonus", "self * shared.of.u[mine + at] * x.x[0][e]", "0.0f"),
    Fault("powers of a tail's queries", "max(tile_row(e) - (kChunk - n), 0)", "tile_row(e)"),
    Fault("a tail as a chunk", "backwards || n == kChunk ? power_of.whole(e)", "true ? power_of.whole(e)"),
    Fault("dL/dw of keys", "exponent = backwards ? kChunk - 1 - tile_row(e)", "exponent = backwards ? tile_row(e)"),
    Fault("dL/dw of queries", "fmaf(static_cast<float>(exponent), from.x[0][e], carried.x[0][e])",
          "carried.x[0][e]"),
    Fault("dL/dw of whole chunks", "fmaf(static_cast<float>(exponent), from.x[0][e], carried.x[0][e])",
          "static_cast<float>(exponent) * from.x[0][e]"),
    Fault("dL/dw of the end", "ends ? sum + shared.end[i] : sum", "sum"),
    Fault("dL/dw of the end, every segment", "!backwards && p.g_final && task.last()", "!backwards && p.g_final"),
    Fault("dL/dw of levels", "exponent * other.x[0][e], share", "0.0f * other.x[0][e], share"),
    Fault("place in a level", "backwards ? level - 1 - place : place", "place"),
    Fault("gu of one row", "sums.x[4 + q] = fmaf(self * other.x[0][e], x.x[0][e], sums.x[4 + q]);",
          "sums.x[4 + q] = self * other.x[0][e] * x.x[0][e];"),
    Fault("sums of some lanes", "for (int lane = 0; lane < 32; lane += 4)",
          "for (int lane = 0; lane < 28; lane += 4)"),
    Fault("state rounded once", "      Parts<2> state;", "      Parts<1> state;"),
    Fault("scores rounded once", "    Parts<2> met;\n    split(met, between);",
          "    Parts<2> met;\n    split(met, between);\n    zero(met.part[1]);"),
    Fault("pairs of all levels", "here.part[i].x[0][w] = met.part[i].x[0][w] & mask;",
          "here.part[i].x[0][w] = met.part[i].x[0][w];"),
    Fault("half a word of a level", "? 0xffff0000u : 0u);", "? 0xffffffffu : 0u);"),
    Fault("level 2 of sources", "(e % 2 != 0) != backwards ? 1.0f : source_power.near[h]", "1.0f"),
    Fault("level 4 of sources", "tile_col(e) % 4 : 3 - tile_col(e) % 4", "tile_col(e) % 4 : tile_col(e) % 4"),
    Fault("level 8 of sources", "backwards ? tile_col(e) : 7 - tile_col(e)",
          "backwards ? tile_col(e) : 8 - tile_col(e)"),
    Fault("neighbours forgotten", "        add(out, out, through);\n", ""),
    Fault("second half of sources", "(e / 4 != 0) == backwards ? near * eight[h] : near;", "near;"),
    Fault("powers of a tail's sources", "max(tile_col(e) - (kChunk - length), 0)", "tile_col(e)"),
    Fault("dS/dw not decayed", "      decay(spread[c]);\n", ""),
    Fault("dS/dw after the state", "static_cast<float>(length) * state[c].x[0][e];",
          "static_cast<float>(length - 1) * state[c].x[0][e];"),
    Fault("dS/dw lost between segments", "      p.spread[at] = spread;", "      p.spread[at] = 0.0f;", "join"),
    Fault("segments of dS/dw not decayed", "spread = fmaf(sum, kept, sum) + alone_spread;",
          "spread = sum + alone_spread;", "join"),
    Fault("a tail's segment decayed as a whole", "segment == count - 1 ? fade_of(rate, tail) : fade", "fade", "join"),
    Fault("segments first to last", "backwards ? count - 1 - i : i", "i", "join"),
    Fault("no gradient of the final state", GIVEN, GIVEN.replace("p.g_final", "nullptr")),
    Fault("gradient of every segment's start", "p.g_initial && task.segment == 0", "p.g_initial"),
    Fault("gv of the upper triangle", "(query > key) != backwards && level == 8", "(query > key) && level == 8"),
    Fault("gv's neighbours the wrong way", NEAR, "near = "),
    Fault("gv with r and k not exchanged", "k, r, k_raw, r_raw, power_of, RowPowers(rate, true)",
          "r, k, r_raw, k_raw, RowPowers(rate, true), power_of"),
    Fault("gv's later tokens", "RowPowers(rate, true)", "RowPowers(rate, false)"),
    Fault("gv without decay", "k.x[0][e] *= power_of.whole(e);", ""),
    Fault("gv by the wrong rows", "state.part[i], mine, 16 * c);", "state.part[i], 16 * c, mine);"),
    Fault("gv of the next chunk's end", "      rows.step(chunk.x[kX], chunk.x[kA], mine);\n", ""),
]  # fmt: skip
FILES = [f"wkv5/{name}" for name in ("params.h", "chunk.cuh", "scores.cuh", "outputs.cuh", "states.cuh", "kernel.cu")]
BACKWARD_FILES = [f"wkv5/{name}" for name in ("params.h", "chunk.cuh", "scores.cuh", "states.cuh", "keys.cuh")]


def entry(name: str, run: str, module: str = "wkv5") -> Entry:
    return Entry(f"wkv5_{name}", module, "tkpy::wkv5::Params", f"tkpy::wkv5::{run}(p)")


OUTPUTS = entry("forward_bf16_32", "Outputs<tk::bf16, 32>::run")
STATES = entry("states_bf16_32", "States<tk::bf16, 32>::run")
JOIN = entry("join", "join")
UNITS = {
    "all": Unit(FILES, [OUTPUTS, STATES, JOIN]),
    "forward": Unit(FILES, [OUTPUTS]),
    "states": Unit(FILES, [STATES, JOIN]),
    "backward": Unit(BACKWARD_FILES, [entry("backward_bf16_32", "Keys<tk::bf16, 32>::run", "wkv5_backward")]),
    "join": Unit(BACKWARD_FILES, [JOIN]),
}
UNIT_OF = {f"wkv5/{name}": "forward" for name in ("scores.cuh", "outputs.cuh", "kernel.cu")}
UNIT_OF["wkv5/states.cuh"] = "states"


def of_unit(fault: Fault) -> Fault:
    """A fault of the forward, with the kernels that its file is for."""
    file = next(name for name in FILES if fault.old in text_of(name))
    return replace(fault, kernel=UNIT_OF.get(file, "all"))


def calls(unit: str) -> list[tuple[dict, int, bool]]:
    """(call, tokens of a segment, with gradients)"""
    bounds = [0, 1, 18, 18, 81, 86, 118, 151]
    if unit in ("backward", "join"):
        return [
            (inputs(1, 135, 2, 32), 4096, True),
            (inputs(1, 151, 2, 24, bounds=bounds), 32, True),
            (inputs(1, 150, 1, 32, low=-7.0, high=-2.0), 64, True),
        ]
    poisoned = inputs(1, 151, 2, 32, bounds=bounds)
    for name in "rkv":
        poisoned[name][:, 18:81] = poisoned[name][:, 118:] = torch.nan
    endless = inputs(1, 40, 2, 32)
    endless["w"][:] = torch.inf
    return [
        (inputs(2, 135, 2, 32), 4096, False),
        (inputs(1, 151, 2, 24, bounds=bounds), 32, False),
        (inputs(1, 350, 1, 32, low=-12.0, high=2.0), 160, False),
        (poisoned, 160, False),
        (endless, 16, False),
    ]


def wrong(call: tuple[dict, int, bool]) -> str:
    """`disagreement` or `wrong_gradient`, of sequences without NaN where there are some with."""
    kwargs, segment, grad = call
    with pytest.MonkeyPatch.context() as patch:
        in_segments(patch, segment)
        if kwargs["r"].isfinite().all():
            return wrong_gradient(kwargs) if grad else disagreement(kwargs)
        y, final = tkpy.wkv5(**kwargs, backend="emulator")
        clean = kwargs | {name: kwargs[name].nan_to_num() for name in "rkv"}
        wanted, states = tkpy.wkv5(**clean, backend="emulator")
    rows, sequences = kwargs["r"][0, :, 0, 0].isfinite(), [0, 1, 2, 4, 5]
    same = torch.equal(y[:, rows], wanted[:, rows]) and torch.equal(final[sequences], states[sequences])
    return "" if same else "a NaN of another sequence"


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "wkv5",
    UNITS,
    [*map(of_unit, FORWARD), *(f if f.kernel else replace(f, kernel="backward") for f in BACKWARD)],
    calls,
    wrong,
    tried=("all", "backward", "join"),
).tests()
