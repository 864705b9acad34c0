"""The GEMM ladder, run by the emulator under all checks, against float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from kernel_runs import run_copy, run_gemm, run_softmax  # noqa: E402  (after the skips)

from tkpy import emulator  # noqa: E402

SEEDS = range(4)


@pytest.fixture(scope="module")
def module(kernel_folder):
    loaded = {}

    def load(name: str):
        if name not in loaded:
            loaded[name] = emulator.load(kernel_folder(f"examples/{name}.cu") / f"{name}.ptx")
        return loaded[name]

    return load


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def check(outcome):
    run, right = outcome
    run.raise_on_findings()
    assert right


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(64, 64), (1, 8), (63, 64), (65, 67), (130, 200)])
def test_level1_copies(module, rows, cols, seed):
    check(run_copy(module("level1_copy_tile"), rows, cols, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(64, 256), (1, 1), (65, 255), (130, 67)])
def test_level2_is_a_softmax(module, rows, cols, seed):
    check(run_softmax(module("level2_row_softmax"), rows, cols, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, k, n", [(64, 64, 128), (1, 1, 1), (65, 63, 129), (64, 320, 256), (130, 200, 264)])
@pytest.mark.parametrize("level, name", [(3, "level3_gemm"), (4, "level4_gemm_pipelined")])
def test_levels_3_and_4_are_gemms(module, level, name, m, k, n, seed):
    check(run_gemm(module(name), level, m, k, n, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("m, k, n", [(256, 64, 256), (1, 1, 1), (130, 200, 264), (257, 320, 513)])
def test_level5_is_a_gemm(module, m, k, n, clusters, seed):
    check(run_gemm(module("level5_gemm_specialised"), 5, m, k, n, seed, clusters))
