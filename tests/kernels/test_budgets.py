"""Every kernel compiles, assembles and keeps the budget that lies beside it; a broken promise is noticed."""

import copy
import json

import pytest
from kernel_cases import ROOT, SHARED

from tkpy import build_info

OPS = sorted({path.parent.name for path in (ROOT / "csrc/kernels").glob("*/*.cu")})
EXAMPLES = sorted(path.stem for path in (ROOT / "csrc/examples").glob("*.cu"))


@pytest.mark.parametrize("op", OPS)
def test_kernels_keep_their_budgets(op, kernel_folder, compile_kernel):
    reports = []
    for source in sorted((ROOT / "csrc/kernels" / op).glob("*.cu")):
        folder = kernel_folder(f"kernels/{op}/{source.name}")
        reports.append(build_info.reports(folder)[compile_kernel.module_name(source)])
    budget = json.loads((ROOT / f"csrc/kernels/{op}/budget.json").read_text())
    assert build_info.over_budget(reports, budget) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_keep_their_budgets(example, kernel_folder):
    report = build_info.reports(kernel_folder(f"examples/{example}.cu"))[example]
    budget = json.loads((ROOT / "csrc/examples/budget.json").read_text())
    assert build_info.over_budget([report], {example: budget[example]}) == []


@pytest.mark.parametrize("example", SHARED)
def test_the_shared_memory_of_the_examples_is_what_they_need(example, compile_kernel, toolchain, tmp_path):
    source = tmp_path / f"{example}.cu"
    source.write_text(f'#include "examples/{example}.cu"\nstatic_assert(sizeof(Shared) == {SHARED[example]});\n')
    compile_kernel.compile_kernel(source, example, tmp_path, toolchain)


def test_examples_are_short_and_explain_themselves():
    assert len(EXAMPLES) == 5
    for example in EXAMPLES:
        lines = (ROOT / f"csrc/examples/{example}.cu").read_text().splitlines()
        assert 30 <= len(lines) <= 150, example
        header = " ".join(line for line in lines[:20] if line.startswith("//"))
        for part in ("in  ", "out  ", "grid", "precision", "limits", "cost"):
            assert part in header, (example, part)


GOOD = {
    "name": "k",
    "warnings": [],
    "kernels": {
        "k": {"registers": 90, "shared": 100, "barriers": 1, "stack": 0, "spill_stores": 0, "spill_loads": 0,
              "sass": {"HGMMA": 4}},
    },
}  # fmt: skip
BUDGET = {"k": {"registers": 96, "shared": 128, "required": {"HGMMA": 4}, "forbidden": ["LDL"]}}


def test_a_report_within_budget_is_clean():
    assert build_info.over_budget([GOOD], BUDGET) == []


@pytest.mark.parametrize(
    "change, word",
    [
        ({"registers": 97}, "registers 97"),
        ({"shared": 129}, "shared 129"),
        ({"stack": 8}, "stack 8"),
        ({"spill_stores": 4}, "spill_stores 4"),
        ({"spill_loads": 4}, "spill_loads 4"),
        ({"sass": {"HGMMA": 3}}, "HGMMA 3 times, needs 4"),
        ({"sass": {"HGMMA": 4, "LDL": 1}}, "LDL 1 times, must not occur"),
    ],
)
def test_every_broken_limit_is_noticed(change, word):
    report = copy.deepcopy(GOOD)
    report["kernels"]["k"].update(change)
    broken = build_info.over_budget([report], BUDGET)
    assert len(broken) == 1
    assert word in broken[0]


def test_warnings_and_missing_kernels_are_noticed():
    assert build_info.over_budget([{**GOOD, "warnings": ["wgmma serialized"]}], BUDGET) == ["k: wgmma serialized"]
    assert build_info.over_budget([GOOD], {"other": {}}) == ["k: no kernel matches other", "k: no budget"]


def test_absent_modules_have_reasons(tmp_path):
    assert build_info.missing_reason("gemm", tmp_path) == "the package was built without its kernels"
    (tmp_path / "toolchain.json").write_text('{"reason": "nvcc not found"}')
    assert build_info.missing_reason("gemm", tmp_path) == "nvcc not found"
    (tmp_path / "toolchain.json").write_text('{"version": "13.0.88"}')
    assert build_info.missing_reason("gemm", tmp_path) == "the build made no kernel called gemm"
    for end in ("ptx", "cubin"):
        (tmp_path / f"gemm.{end}").write_text("")
    (tmp_path / "gemm.json").write_text("{}")
    assert build_info.missing_reason("gemm", tmp_path) is None
