"""Faults seeded into the ladder: each is one edit of the source, and the emulator must report it within 32 seeds, by a
finding that says what it is."""

import functools
from pathlib import Path

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from kernel_runs import run_copy, run_gemm, run_softmax  # noqa: E402  (after the skips)

from tkpy import emulator  # noqa: E402

LEVELS = {
    "1": "level1_copy_tile",
    "2": "level2_row_softmax",
    "3": "level3_gemm",
    "4": "level4_gemm_pipelined",
    "4 long": "level4_gemm_pipelined",
    "5": "level5_gemm_specialised",
}
FINAL_MEETING = "  __syncwarp();\n  cluster_sync();\n}"
RELEASE = "hand_back_at(shared.free[slot], static_cast<u32>(lane_index()));"
RACE = "shared-race proxy-fence uninitialised-read"
FAULTS = [
    Fault("half the bytes expected", "full, Tile::bytes)", "full, Tile::bytes / 2)", "1", "deadlock mbarrier-misuse"),
    Fault("twice the bytes expected", "full, Tile::bytes)", "full, 2 * Tile::bytes)", "1", "deadlock mbarrier-misuse"),
    Fault("load not waited for", "  wait(full, 0);\n", "", "1", RACE + " async-in-flight"),
    Fault("store not waited for", "  wait_stores();", "", "1", "async-in-flight"),
    Fault(
        "barrier initialised twice", "  init(full, 1);", "  init(full, 1);\n  init(full, 1);", "1", "mbarrier-misuse"
    ),
    Fault("phase flipped", "wait(full, 0)", "wait(full, 1)", "1", RACE + " async-in-flight"),
    Fault("generic write before the store", "  store(y,", "  tile.data[5] = {};\n  store(y,", "1", RACE),
    Fault("no proxy fence", "  publish_tile();\n", "", "2", "proxy-fence"),
    Fault("no barrier before the store", "  publish_tile();\n  __syncthreads();", "  publish_tile();", "2", RACE),
    Fault(
        "no barrier after init", "  __syncthreads();\n  wait(full", "  wait(full", "2", "mbarrier-misuse shared-race"
    ),
    Fault("load not waited for", "  wait(full, 0);\n", "", "2", RACE),
    Fault("warps overlap", "packed, 16 * warp_index())", "packed, 8 * warp_index())", "2", "shared-race"),
    Fault("no mma_wait", "    mma_wait();\n", "", "3", "wgmma-in-flight"),
    Fault("no mma_fence", "    mma_fence();\n", "", "3", "wgmma-fence"),
    Fault("no mma_commit", "    mma_commit();\n", "", "3", "wgmma-in-flight"),
    Fault("refilled under the product", "    mma_wait();\n", "    mma_wait<1>();\n", "3", RACE),
    Fault("parity never flips", "    parity ^= 1;\n", "", "3", "deadlock " + RACE),
    Fault("no proxy fence", "  publish_tile();\n", "", "3", "proxy-fence"),
    Fault("slot released early", "done = step - 1;", "done = step;", "4", "deadlock " + RACE),
    Fault("too few arrivals", "free[slot], 4)", "free[slot], 3)", "4 long", "deadlock " + RACE),
    Fault("too many arrivals", "free[slot], 4)", "free[slot], 5)", "4", "deadlock"),
    Fault("refilled without waiting", "wait_cluster(shared.free[at.slot], at.parity ^ 1);", "", "5", RACE),
    Fault("accumulators read early", "  mma_wait();\n\n  rt_bf", "\n  rt_bf", "4", "wgmma-in-flight"),
    Fault("one product too many in flight", "mma_wait<1>()", "mma_wait<2>()", "4", RACE),
    Fault("no meeting at the end", FINAL_MEETING, "}", "5", "async-in-flight mbarrier-misuse out-of-bounds"),
    Fault("no meeting at the start", "  cluster_sync();\n\n", "  __syncthreads();\n\n", "5", "mbarrier-misuse " + RACE),
    Fault("own CTA released only", RELEASE, "arrive(shared.free[slot]);", "5", RACE),
    Fault("bytes of one half only", "BTile::bytes);", "BHalf::bytes);", "5", "deadlock mbarrier-misuse " + RACE),
    Fault("half not sent to the peer", "0b11", "static_cast<unsigned short>(1 << rank)", "5", "deadlock"),
    Fault("staging tile reused early", "    if (leader) wait_stores_read();", "    ", "5", RACE + " async-in-flight"),
    Fault("register pool too large", "take_registers<232>", "take_registers<240>", "5", "deadlock invalid-instruction"),
    Fault("no barrier before the store", "publish_tile();\n    sync(1 + consumer, 128);", "publish_tile();", "5", RACE),
    Fault("one release forgotten", "if (step > 0) release", "if (step > 1) release", "5", "deadlock"),
]

load = functools.lru_cache(maxsize=1)(emulator.load)
PLACE: dict[str, tuple[Path, int]] = {}


def place(monkeypatch, folder: Path, seed: int, multiprocessors: int) -> None:
    """Calls go to the kernels of this folder, under this seed: the ladder has no launcher."""
    monkeypatch.setitem(PLACE, "at", (folder, seed))


def wrong(level: str) -> str:
    (folder, seed), name = PLACE["at"], LEVELS[level]
    module = load(folder / f"{name}.ptx")
    torch.manual_seed(0)
    try:
        if level == "1":
            run, right = run_copy(module, 100, 100, seed)
        elif level == "2":
            run, right = run_softmax(module, 100, 200, seed)
        else:
            run, right = run_gemm(module, int(level[0]), 130, 2048 if level == "4 long" else 400, 264, seed, 1)
    except emulator.KernelError as error:
        return str(error)
    return "\n".join([*map(str, run.findings), *([] if right else ["a wrong result"])])


test_every_fault_is_reported, test_the_right_kernels_are_not_accused = Suite(
    "ladder",
    {level: Unit([f"../examples/{name}.cu"], [Entry(name, name)]) for level, name in LEVELS.items()},
    FAULTS,
    calls=lambda level: [level],
    wrong=wrong,
    seeds=32,
    place=place,
).tests()
