"""Faults seeded into wkv5's forward: each is one edit of its source, and a finding or a wrong result must give it away
on a few small calls and schedules."""

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from wkv5_runs import disagreement, in_segments, inputs  # noqa: E402

import tkpy  # noqa: E402

SEEDS = range(3)
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
CONTROL = Fault("none", "", "")
FILES = ("params.h", "chunk.cuh", "scores.cuh", "outputs.cuh", "states.cuh", "kernel.cu")
KERNELS = {"forward": "Outputs<tk::bf16, 32>::run", "states": "States<tk::bf16, 32>::run", "join": "join"}


def changed(fault: Fault) -> list[str]:
    """The kernels that a fault may change; the others are the right ones."""
    of_file = {name: ["forward"] for name in ("scores.cuh", "outputs.cuh", "kernel.cu")}
    of_file["states.cuh"] = ["states", "join"]
    texts = {name: (ROOT / "csrc/kernels/wkv5" / name).read_text() for name in FILES}
    return of_file.get(next(name for name in FILES if fault.old in texts[name]), list(KERNELS))


def source(number: int) -> str:
    """The kernels with the fault, in a namespace of their own."""
    fault = [*FAULTS, CONTROL][number]
    text = "".join((ROOT / "csrc/kernels/wkv5" / name).read_text() for name in FILES)
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1)
    kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
    body = "\n".join(kept).split("#define TKPY_WKV5")[0]
    entries = "".join(
        f'extern "C" __global__ void __launch_bounds__(128) {name}_{number}'
        f"(const __grid_constant__ tkpy::wkv5::Params p) {{ tkpy::wkv5::{call}(p); }}\n"
        for name, call in KERNELS.items()
        if name in changed(fault)
    )
    return f"namespace seeded_{number} {{\n{body}\n{entries}}}\n"


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    """The PTX of all faults: one run of nvcc, none of ptxas."""
    head = '#include "tk/tensor_map.h"\n'
    whole = head + "".join(source(i) for i in range(len(FAULTS) + 1))
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "wkv5_faults", whole)


def calls() -> list[tuple[dict, int]]:
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


def wrong(kwargs: dict) -> str:
    """`disagreement`, of sequences without NaN where there are some with."""
    if kwargs["r"].isfinite().all():
        return disagreement(kwargs)
    y, final = tkpy.wkv5(**kwargs, backend="emulator")
    clean = kwargs | {name: kwargs[name].nan_to_num() for name in "rkv"}
    wanted, states = tkpy.wkv5(**clean, backend="emulator")
    rows, sequences = kwargs["r"][0, :, 0, 0].isfinite(), [0, 1, 2, 4, 5]
    same = torch.equal(y[:, rows], wanted[:, rows]) and torch.equal(final[sequences], states[sequences])
    return "" if same else "a NaN of another sequence"


def caught(kwargs: dict, monkeypatch, folder, seed: int) -> str:
    on_machine(monkeypatch, folder, seed)
    try:
        return wrong(kwargs)
    except tkpy.InternalError as error:
        return str(error)


def found(text: str, tmp_path, monkeypatch, number: int, seeds: range) -> str:
    names = {}
    for name in KERNELS:
        seeded = number if name in changed([*FAULTS, CONTROL][number]) else len(FAULTS)
        names[f"{name}_{seeded}"] = "wkv5_join" if name == "join" else f"wkv5_{name}_bf16_32"
    write_module(tmp_path, "wkv5", module(text, names))
    for seed in seeds:
        for kwargs, segment in calls():
            in_segments(monkeypatch, segment)
            if what := caught(kwargs, monkeypatch, tmp_path, seed):
                print(what)
                return what
    return ""


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_caught(text, tmp_path, monkeypatch, number):
    assert found(text, tmp_path, monkeypatch, number, SEEDS)


def test_the_right_kernel_is_not_accused(text, tmp_path, monkeypatch):
    assert found(text, tmp_path, monkeypatch, len(FAULTS), SEEDS[:2]) == ""
