"""Every microbenchmark in the emulator: its loop holds as many of the instructions as it claims, its shared-memory
accesses make the conflicts that they should, and its result is right."""

from __future__ import annotations

import importlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")

from tkpy import build_info, machine  # noqa: E402  (after the skips)
from tkpy.bench import emulated, micro  # noqa: E402
from tkpy.bench.micro import Launcher, Place  # noqa: E402
from tkpy.bench.specs import micro_alu, micro_memory, micro_shared, micro_tma  # noqa: E402

SPECS = ("alu", "wgmma", "shared", "memory", "tma", "cluster", "sync", "atomics")

pytestmark = pytest.mark.skipif(
    build_info.missing_reason("microbench_alu") is not None, reason="the microbenchmarks are not built"
)


def rows_of(spec: str):
    """One row a kernel, where rows differ by data only; latencies of few wgmma shapes, for they are the same loop."""
    found = {}
    for row in importlib.import_module(f"tkpy.bench.specs.micro_{spec}").micros():
        if spec == "wgmma" and row.name.endswith("latency") and row.rank > 100:
            continue
        small = "/rate/" in row.name and spec == "wgmma"
        found.setdefault(row.kernel if small else row.name, row)
    return list(found.values())


def faults(row, seed=0):
    """What is wrong with a row's small plan, in words."""
    return [f"{row.name}: {line}" for line in emulated.faults_of(*emulated.run_small(row, seed))]


@pytest.mark.parametrize("spec", SPECS)
def test_every_loop_is_what_it_claims_and_computes_the_right_thing(spec):
    rows = rows_of(spec)
    assert len(rows) > 10
    assert [line for row in rows for line in faults(row)] == []


@pytest.mark.parametrize("spec", ["tma", "cluster", "sync", "atomics"])
def test_results_do_not_depend_on_the_schedule(spec):
    assert [line for row in rows_of(spec)[::5] for seed in (1, 2, 3) for line in faults(row, seed)] == []


@pytest.mark.parametrize(
    "row, change, word",
    [
        (micro_alu.micros()[0], {"b": 0}, "DIFFERS"),  # another operand: another result
        (micro_shared.micros()[2], {"counters": {"ld.shared": 1}}, "issues"),
        (micro_shared.micros()[3], {"wavefronts": {"ld.shared": 1}}, "wavefronts"),
    ],
    ids=["operand", "issues", "wavefronts"],
)
def test_a_wrong_expectation_is_noticed(row, change, word, monkeypatch):
    made = row.plan

    def plan(place):
        found = made(place)
        if "b" in change:
            return type(found)(**{**vars(found), "args": [found.args[0], change["b"], *found.args[2:]]})
        return type(found)(**{**vars(found), **change})

    monkeypatch.setattr(row.__class__, "plan", property(lambda self: plan), raising=False)
    assert any(word in line for line in faults(row))


def by_name(spec, name):
    return next(row for row in spec.micros() if row.name == name)


@pytest.mark.parametrize(
    "row",
    [
        by_name(micro_tma, "tma/load/2d/16x16/1x1"),  # tensor map and structure
        by_name(micro_tma, "tma/multicast/16KB/2"),  # cluster
        by_name(micro_memory, "memory/read/hbm"),  # 64-bit number
    ],
    ids=lambda row: row.name,
)
def test_the_launcher_packs_parameters_as_kernels_read_them(row):
    """Through `tkpy._C.Machine`, the way to the CUDA driver, with the emulator in its place."""
    launcher = Launcher(machine.compiled().Machine.emulator(str(build_info.KERNELS)))
    device = torch.device("cpu")
    plan = row.plan(Place(device, 2, small=True))
    records, sink = plan.outputs(device)
    launcher.launch(row.image, row.kernel, [records, sink, *plan.args], device, grid=plan.grid, block=plan.block,
                    cluster=plan.cluster, shared=plan.shared)  # fmt: skip
    assert plan.check(sink)
    assert plan.value(micro.Records(records)) is not None


@pytest.mark.parametrize("kernel", ["stamp", "stamp_dependent"])
def test_stamps(kernel):
    from tkpy import emulator

    module = emulator.load(build_info.KERNELS / "microbench_launch.ptx")
    stamps, sink = torch.full((3, 3), -1), torch.full((3,), -1, dtype=torch.int32)
    for index in range(3):
        run = module.launch(kernel, grid=2, block=64, args=[stamps, sink, index, 50])
        run.raise_on_findings()
    assert sink.tolist() == [0, 1, 2]
    assert bool((stamps[:, 0] <= stamps[:, 1]).all())
    assert bool((stamps[:, 1] <= stamps[:, 2]).all())
    module.launch("empty", grid=8, block=32, cluster=8).raise_on_findings()
