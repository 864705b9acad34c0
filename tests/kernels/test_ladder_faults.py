"""Faults seeded into the ladder: each is one edit of the source, and the emulator must report it within 32 seeds."""

from dataclasses import dataclass

import pytest
from kernel_cases import CACHE, ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from kernel_runs import run_copy, run_gemm, run_softmax  # noqa: E402  (after the skips)

from tkpy import emulator  # noqa: E402

SEEDS = 32
LEVELS = {
    1: "level1_copy_tile",
    2: "level2_row_softmax",
    3: "level3_gemm",
    4: "level4_gemm_pipelined",
    5: "level5_gemm_specialised",
}


@dataclass(frozen=True)
class Fault:
    level: int
    what: str
    old: str
    new: str
    codes: str  # any of these tells the fault
    depth: int = 400

    def __str__(self) -> str:
        return f"{self.level}: {self.what}"


FINAL_MEETING = "  __syncwarp();\n  cluster_sync();\n}"
RELEASE = "hand_back_at(shared.free[slot], static_cast<u32>(lane_index()));"
RACE = "shared-race proxy-fence uninitialised-read"

FAULTS = [
    Fault(1, "half the bytes expected", "full, Tile::bytes)", "full, Tile::bytes / 2)", "deadlock mbarrier-misuse"),
    Fault(1, "twice the bytes expected", "full, Tile::bytes)", "full, 2 * Tile::bytes)", "deadlock mbarrier-misuse"),
    Fault(1, "load not waited for", "  wait(full, 0);\n", "", RACE + " async-in-flight"),
    Fault(1, "store not waited for", "  wait_stores();", "", "async-in-flight"),
    Fault(1, "barrier initialised twice", "  init(full, 1);", "  init(full, 1);\n  init(full, 1);", "mbarrier-misuse"),
    Fault(1, "phase flipped", "wait(full, 0)", "wait(full, 1)", RACE + " async-in-flight"),
    Fault(1, "generic write before the store", "  store(y,", "  tile.data[5] = {};\n  store(y,", RACE),
    Fault(2, "no proxy fence", "  publish_tile();\n", "", "proxy-fence"),
    Fault(
        2,
        "no barrier before the store",
        "  publish_tile();\n  __syncthreads();",
        "  publish_tile();",
        RACE,
    ),
    Fault(2, "no barrier after init", "  __syncthreads();\n  wait(full", "  wait(full", "mbarrier-misuse shared-race"),
    Fault(2, "load not waited for", "  wait(full, 0);\n", "", RACE),
    Fault(2, "warps overlap", "packed, 16 * warp_index())", "packed, 8 * warp_index())", "shared-race"),
    Fault(3, "no mma_wait", "    mma_wait();\n", "", "wgmma-in-flight"),
    Fault(3, "no mma_fence", "    mma_fence();\n", "", "wgmma-fence"),
    Fault(3, "no mma_commit", "    mma_commit();\n", "", "wgmma-in-flight"),
    Fault(3, "refilled under the product", "    mma_wait();\n", "    mma_wait<1>();\n", RACE),
    Fault(3, "parity never flips", "    parity ^= 1;\n", "", "deadlock " + RACE),
    Fault(3, "no proxy fence", "  publish_tile();\n", "", "proxy-fence"),
    Fault(4, "slot released early", "done = step - 1;", "done = step;", "deadlock " + RACE),
    Fault(4, "too few arrivals", "free[slot], 4)", "free[slot], 3)", "deadlock " + RACE, depth=2048),
    Fault(4, "too many arrivals", "free[slot], 4)", "free[slot], 5)", "deadlock"),
    Fault(5, "refilled without waiting", "wait_cluster(shared.free[at.slot], at.parity ^ 1);", "", RACE),
    Fault(4, "accumulators read early", "  mma_wait();\n\n  rt_bf", "\n  rt_bf", "wgmma-in-flight"),
    Fault(4, "one product too many in flight", "mma_wait<1>()", "mma_wait<2>()", RACE),
    Fault(5, "no meeting at the end", FINAL_MEETING, "}", "async-in-flight mbarrier-misuse out-of-bounds"),
    Fault(5, "no meeting at the start", "  cluster_sync();\n\n", "  __syncthreads();\n\n", "mbarrier-misuse " + RACE),
    Fault(5, "own CTA released only", RELEASE, "arrive(shared.free[slot]);", RACE),
    Fault(5, "bytes of one half only", "BTile::bytes);", "BHalf::bytes);", "deadlock mbarrier-misuse " + RACE),
    Fault(5, "half not sent to the peer", "0b11", "static_cast<unsigned short>(1 << rank)", "deadlock"),
    Fault(
        5,
        "staging tile reused early",
        "    if (leader) wait_stores_read();",
        "    ",
        RACE + " async-in-flight",
    ),
    Fault(
        5,
        "register pool too large",
        "take_registers<232>",
        "take_registers<240>",
        "deadlock invalid-instruction",
    ),
    Fault(
        5,
        "no barrier before the store",
        "publish_tile();\n    sync(1 + consumer, 128);",
        "publish_tile();",
        RACE,
    ),
    Fault(5, "one release forgotten", "if (step > 0) release", "if (step > 1) release", "deadlock"),
]


def body(fault: Fault, number: int) -> str:
    name = LEVELS[fault.level]
    text = (ROOT / f"csrc/examples/{name}.cu").read_text().replace('#include "tk/tk.cuh"\n', "")
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1).replace(f"{name}(", f"{name}_{number}(")
    return f"namespace fault_{number} {{\n{text}\n}}\n"


@pytest.fixture(scope="module")
def module(compile_kernel, toolchain):
    """All faults of a level in one file: one run of nvcc a level."""
    loaded = {}

    def load(level: int):
        if level not in loaded:
            source = CACHE / f"sabotage{level}.cu"
            CACHE.mkdir(parents=True, exist_ok=True)
            parts = [body(fault, i) for i, fault in enumerate(FAULTS) if fault.level == level]
            source.write_text('#include "tk/tk.cuh"\n' + "".join(parts))
            out = compile_kernel.compile_cached(source, source.stem, CACHE, toolchain)
            loaded[level] = emulator.load(out / f"{source.stem}.ptx")
        return loaded[level]

    return load


def codes_found(module, fault: Fault, number: int, seed: int) -> set[str]:
    name = f"{LEVELS[fault.level]}_{number}"
    torch.manual_seed(0)
    try:
        if fault.level == 1:
            run, _ = run_copy(module, 100, 100, seed, name)
        elif fault.level == 2:
            run, _ = run_softmax(module, 100, 200, seed, name)
        else:
            run, _ = run_gemm(module, fault.level, 130, fault.depth, 264, seed, 1, name)
    except emulator.KernelError as error:
        return {finding.code for finding in error.findings}
    return {finding.code for finding in run.findings}


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_reported(module, number):
    fault = FAULTS[number]
    seen: set[str] = set()
    for seed in range(SEEDS):
        seen |= codes_found(module(fault.level), fault, number, seed)
        if seen & set(fault.codes.split()):
            return
    pytest.fail(f"{fault}: expected {fault.codes}, seen {sorted(seen)} in {SEEDS} seeds")
