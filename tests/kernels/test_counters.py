"""What every op's kernels do in the emulator, on the cases that it registers for `tkpy bench ops --counters`: within
the bounds that it promises, and on the page docs/COUNTERS.md."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather  # noqa: E402  (after the skips)
from kernel_cases import ROOT  # noqa: E402

from tkpy import build_info, registry  # noqa: E402
from tkpy.bench import report, runner  # noqa: E402
from tkpy.bench.kernel_counts import main_loops  # noqa: E402
from tkpy.bench.op_rows import counted_rows, every_spec  # noqa: E402
from tkpy.bench.spec import Environment  # noqa: E402
from tkpy.bench.timer import WallTimer  # noqa: E402
from tkpy.emulator.run import Count, Counters, CountRow  # noqa: E402

WITH_KERNELS = [name for name, op in registry.ops().items() if "cuda" in op.available]
ROWS = [row for row in counted_rows() if row.group in WITH_KERNELS]
PAGE = (ROOT / "docs" / "COUNTERS.md").read_text()


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    sources = sorted((ROOT / "csrc/kernels").glob("*/*.cu"))
    return gather(tmp_path_factory.mktemp("all"), [kernel_folder(path.relative_to(ROOT / "csrc")) for path in sources])


@pytest.mark.parametrize("benchmark_", ROWS, ids=lambda row: row.name)
def test_no_more_than_promised(folder, monkeypatch, benchmark_):
    monkeypatch.setattr(build_info, "KERNELS", folder)
    (row,) = runner.count([benchmark_], Environment(torch.device("cpu"), WallTimer(), ours=()))
    assert row["status"] == "counted", row["reason"]
    assert row["broken"] == []
    assert sum(kernel["hbm_bytes"] for kernel in row["kernels"]) >= 0.9 * row["bytes"]  # it did the work
    for name in (benchmark_.name, *(f"&emsp;{kernel['kernel']}" for kernel in row["kernels"])):
        assert f"| {name} |" in PAGE


def test_every_op_and_every_folder_of_kernels_is_counted():
    assert {row.group for row in ROWS} == set(WITH_KERNELS)
    assert PAGE.startswith(report.PAGE)
    for path in (ROOT / "csrc/kernels").glob("*/*.cu"):
        if path.parent.name == "block_lists":
            continue  # makes masks, is no op; its bytes: test_block_lists.py
        assert f"| &emsp;{path.parent.name}_" in PAGE, (
            "register a case, then tkpy bench ops --counters --page docs/COUNTERS.md"
        )


def test_a_case_that_promises_less_says_why():
    for spec in every_spec():
        for case in spec.counted:
            for promise in filter(None, (case.promise, case.backward)):
                strict = (promise.flops or 9) <= 1.10 and (promise.bytes or 9) <= 1.25 and promise.conflicts == 0
                assert strict or promise.why


PTX = """outer:
first:
mma
bra first;
second:
mma
wait: @!p bra wait;
@p bra second;
@p bra outer;""".splitlines()


def test_main_loops_are_the_innermost_ones_with_products():
    rows = [CountRow("f", line, "", None, Count(tensor_flops=int(PTX[line - 1] == "mma"))) for line in (3, 6, 7, 9)]
    assert sorted(main_loops(PTX, Counters(rows))) == [(2, 4), (5, 8)]
    outside = [CountRow("f", 9, "", None, Count(tensor_flops=1)), *rows]
    assert sorted(main_loops(PTX, Counters(outside))) == [(2, 4), (5, 8)]
    assert main_loops(PTX, Counters(rows[2:])) == []
