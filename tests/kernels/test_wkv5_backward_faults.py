"""Faults seeded into wkv5's backward: each is one edit of its source, and a finding or a wrong gradient must give it
away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from wkv5_runs import in_segments, inputs, wrong_gradient  # noqa: E402  (after the skips)

RELEASE = "      __syncwarp();\n      release(shared.filled, at);\n      write_rows"
READ = "        __syncthreads();  // what was passed of the chunk before has been read\n"
NEAR = "near = backwards ? level_of(col, g) | level_of(col + 1, g) << 8 : "
GIVEN = "const float* given = backwards ? p.g_final : p.initial;\n    stage()"
FAULTS = [
    Fault("a chunk read before it is there", "      await(shared.filled, at);\n      Chunk&", "      Chunk&"),
    Fault("a slot filled while it is read", "      acquire(*filled, at);\n", ""),
    Fault("a slot released too early", RELEASE, "      release(shared.filled, at);\n      write_rows"),
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
FILES = [f"wkv5/{name}" for name in ("params.h", "chunk.cuh", "scores.cuh", "states.cuh", "keys.cuh")]


def entry(name: str, run: str, module: str = "wkv5_backward") -> Entry:
    return Entry(f"wkv5_{name}", module, "tkpy::wkv5::Params", f"tkpy::wkv5::{run}(p)")


UNITS = {
    "backward": Unit(FILES, [entry("backward_bf16_32", "Keys<tk::bf16, 32>::run")]),
    "join": Unit(FILES, [entry("join", "join", "wkv5")]),
    "rest of that module": Unit([*FILES, "wkv5/outputs.cuh"], [
        entry("forward_bf16_32", "Outputs<tk::bf16, 32>::run", "wkv5"),
        entry("states_bf16_32", "States<tk::bf16, 32>::run", "wkv5"),
    ]),
}  # fmt: skip


def calls(unit: str) -> list[tuple[dict, int]]:
    """(call, tokens of a segment)"""
    return [
        (inputs(1, 135, 2, 32), 4096),
        (inputs(1, 151, 2, 24, bounds=[0, 1, 18, 18, 81, 86, 118, 151]), 32),
        (inputs(1, 150, 1, 32, low=-7.0, high=-2.0), 64),
    ]


def wrong(call: tuple[dict, int]) -> str:
    kwargs, segment = call
    with pytest.MonkeyPatch.context() as patch:
        in_segments(patch, segment)
        return wrong_gradient(kwargs)


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "wkv5_backward", UNITS, FAULTS, calls, wrong, right=["wkv5/kernel.cu"], tried=("backward", "join")
).tests()
