"""`tkpy bench` as a user calls it; published figures; pictures."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import tkpy
from tests.test_bench import FakeCuda, fake_environment, toy
from tkpy import models, published
from tkpy.bench import command, facts, report, rows, runner
from tkpy.bench.guard import Guard
from tkpy.bench.roofs import of_device
from tkpy.bench.spec import Environment, discover
from tkpy.bench.specs import models as model_rows
from tkpy.bench.timer import WallTimer
from tkpy.cli import main

pytestmark = pytest.mark.fast

H100 = {"device": "NVIDIA H100 80GB HBM3", "driver": "580.0", "multiprocessors": 132}


def run(*args):
    return CliRunner().invoke(main, ["bench", *args], catch_exceptions=False)


@pytest.fixture
def device(monkeypatch):
    """A simulated H100 on which one microbenchmark, with a published figure, takes 20 us."""
    cuda = FakeCuda()
    env = fake_environment(cuda, facts=H100, condition=lambda: {"sm_mhz": 1755.0, "power_w": 500.0})
    benchmark = toy(
        "wgmma/m64n256k16",
        cuda=cuda,
        flops=int(729.3e12 * 20e-6),
        nbytes=10**6,
        dtype="float16",
        unit="TFLOP/s",
        published=("ipdps24/wgmma/m64n256k16/f16/ss/rate",),
    )
    monkeypatch.setattr(command, "discover", lambda: iter([benchmark]))
    monkeypatch.setattr(command, "_device", lambda cpu: "cuda")
    monkeypatch.setattr(facts, "environment", lambda device: (env, of_device(H100["device"])))
    return benchmark


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("suite", ["ops", "models"])
def test_without_a_gpu_one_sentence(suite):
    result = run(suite)
    assert result.exit_code == 1
    assert "no CUDA device here" in result.output
    assert "--cpu" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ops", "--op", "nonsense"], "no op nonsense; the ops are"),
        (["ops", "--only", "nonsense"], "no benchmark's name contains 'nonsense'"),
        (["ops", "--shape", "8x8x8"], "--shape needs exactly one --op"),
        (["ops", "--op", "linear", "--shape", "8x8"], "k is missing"),
        (["ops", "--op", "linear", "--shape", "8x8x8", "--dtype", "int8"], "int8"),
        (["compare", "absent.jsonl", "absent.jsonl"], "absent.jsonl"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_bad_input_gets_one_sentence(args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output


def test_an_op_without_sizes_takes_no_shape(monkeypatch):
    specs = command.by_op()
    monkeypatch.setattr(command, "by_op", lambda: {name: spec for name, spec in specs.items() if name != "linear"})
    result = run("ops", "--op", "linear", "--shape", "8")
    assert result.exit_code == 2
    assert "linear takes no --shape; those that do are attention" in result.output


def test_rows_table_and_published_figures(device, tmp_path):
    out = tmp_path / "rows.jsonl"
    result = run("micro", "--out", str(out), "--seconds", "0.001", "--against", "published")
    assert result.exit_code == 0, result.output
    assert "SM clock 1755 to 1755 MHz" in result.output
    assert "% float16 arithmetic" in result.output
    # 729.3 TFLOP/s of 114 SMs at the same clock are 844 of 132: ours, at 729.3, is 0.86 of that.
    line = next(text for text in result.output.splitlines() if "arXiv:2402.13499" in text)
    assert "729.3 TFLOP/s" in line
    assert "844.5" in line
    assert "0.86" in line
    kept = rows.good(rows.read(out))
    assert [r["candidate"] for r in kept] == ["cuda", "peer"]
    assert kept[0]["machine"]["driver"] == "580.0"
    assert kept[0]["condition"]["power_w"] == 500.0
    assert run("show", str(out), "--against", "published").output.count("844.5") == 2  # ours and the peer
    assert "1.000 x  within the spread" in run("compare", str(out), str(out)).output


def test_json_on_standard_output(device):
    result = run("micro", "--out", "-", "--seconds", "0.001", "--no-peers")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["candidate"] for r in found] == ["cuda"]
    assert "wgmma/m64n256k16" in result.stderr


def test_rows_go_where_out_says(device, monkeypatch, tmp_path):
    """A device, a pipe, a folder that is there, one that is not."""
    args = ("micro", "--seconds", "0.001", "--no-peers", "--out")
    assert run(*args, "/dev/null", "--resume").exit_code == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run(*args, str(pipe)).exit_code == 0
        assert json.loads(os.read(reader, 1 << 20))["candidate"] == "cuda"
    finally:
        os.close(reader)
    for folder in (str(tmp_path), f"{tmp_path}/new/"):
        result = run(*args, folder)
        assert result.exit_code == 0, result.output
        assert len(rows.read(Path(folder) / "micro.jsonl")) == 1
    monkeypatch.chdir(tmp_path)
    assert run(*args[:-1]).exit_code == 0
    assert len(rows.read(tmp_path / "bench_output/micro.jsonl")) == 1


@pytest.mark.parametrize("out", ["plain/rows.jsonl", "/proc/none/rows.jsonl"])
def test_where_nothing_can_be_written_is_said_first(device, monkeypatch, tmp_path, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").touch()
    result = run("micro", "--out", out)
    assert result.exit_code == 2
    assert f"--out needs a file that can be written, got {out}" in result.output


def test_an_interruption_keeps_the_rows(device, monkeypatch, tmp_path):
    real = runner.run

    def interrupted(*args, **options):
        yield next(real(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    out = tmp_path / "rows.jsonl"
    result = run("micro", "--out", str(out))
    assert result.exit_code == 130
    assert "1 rows are kept" in result.output
    assert len(rows.read(out)) == 1


def test_a_lost_device_ends_the_run_and_resume_goes_on(device, monkeypatch, tmp_path):
    """A kernel that faults takes the process with it, not the rows of the others."""
    benchmarks = [replace(device, name=f"wgmma/{n}") for n in "abc"]
    dead = []

    def faults(env):
        dead.append("CUDA error: an illegal memory access was encountered\nmore")
        raise RuntimeError(dead[0])

    def alive():
        if dead:
            raise RuntimeError(dead[0])

    benchmarks[1] = replace(benchmarks[1], prepare=faults)
    monkeypatch.setattr(command, "discover", lambda: iter(benchmarks))
    env, roofs = facts.environment("cuda")
    monkeypatch.setattr(facts, "environment", lambda device: (replace(env, alive=alive), roofs))
    out = tmp_path / "rows.jsonl"
    args = ("micro", "--out", str(out), "--resume")

    def statuses():
        return {(r["benchmark"], r["status"]) for r in rows.read(out) if r["status"] != "refused"}

    result = run(*args)
    assert result.exit_code == 3
    assert "the device is lost after wgmma/b: CUDA error: an illegal memory access" in result.output
    assert statuses() == {("wgmma/a", "ok"), ("wgmma/b", "failed")}
    dead.clear()
    assert run(*args).exit_code == 0
    assert statuses() == {("wgmma/a", "ok"), ("wgmma/b", "failed"), ("wgmma/c", "ok")}
    assert "nothing is left" in run(*args).output


def test_a_hung_kernel_leaves_a_row(device, tmp_path):
    left, end = [], threading.Event()

    def leave(status):
        left.append(status)
        end.set()

    env, _ = facts.environment("cuda")
    with rows.Sink(tmp_path / "rows.jsonl") as sink, Guard(sink, env, 0.01, leave)(device):
        assert end.wait(20)
    assert left == [3]
    (row,) = rows.read(tmp_path / "rows.jsonl")
    assert (row["status"], row["reason"]) == ("failed", "no end within 0 s")


def test_a_row_that_was_cut_off_does_not_break_the_next(device, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert run("micro", "--out", str(out)).exit_code == 0
    whole = out.read_text()
    out.write_text(whole + whole[:30])
    assert run("micro", "--out", str(out)).exit_code == 0
    assert out.read_text().count("\n") == 2 * whole.count("\n")
    assert len(rows.read(out)) == whole.count("\n")


def test_a_red_gate_fails_the_command(device, monkeypatch, tmp_path):
    wrong = toy(cuda=FakeCuda(), output=0.5)
    monkeypatch.setattr(command, "discover", lambda: iter([wrong]))
    result = run("micro", "--out", str(tmp_path / "rows.jsonl"), "--seconds", "0.001")
    assert result.exit_code == 1
    assert "wrong  cuda: the gate: DIFFERS" in result.output
    assert "1 of 3 rows have no number" in result.output


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{broken\n\n")
    for args in (["show", str(path)], ["compare", str(path), str(path)]):
        result = run(*args)
        assert result.exit_code == 1
        assert "line 1 is not JSON" in result.output


def test_pictures(device, tmp_path):
    result = run("micro", "--out", str(tmp_path / "rows.jsonl"), "--seconds", "0.001", "--plots", str(tmp_path / "p"))
    assert result.exit_code == 0, result.output
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {f"{n}.{e}" for n in ("roofline", "bars_wgmma_TFLOP_per_s") for e in ("png", "svg")}
    assert (tmp_path / "p" / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert "HBM: 3352 GB/s" in (tmp_path / "p" / "roofline.svg").read_text()
    assert all((tmp_path / "p" / name).stat().st_size > 5000 for name in names)


def test_peers_alone():
    """Where no kernel of ours can serve, peers are timed only if asked to."""
    (benchmark,) = [b for b in discover() if b.name == "linear/4096x4096x4096/bfloat16"]
    env = Environment(torch.device("cpu"), WallTimer(), ours=("cuda",))
    small = command._op_benchmarks(("linear",), ("8x8x8",), ("bfloat16",))
    assert [r["status"] for r in runner.run(small, env, alone=False)] == ["refused"]
    assert [r["status"] for r in runner.run(small, env, seconds=0.001)] == ["refused", "ok"]
    assert benchmark.peers[0].name == "torch.matmul"


def test_counters_of_a_kernel(tmp_path):
    result = run(
        "ops", "--op", "linear", "--shape", "64x64x64", "--dtype", "float16", "--counters", "--out", str(tmp_path / "c")
    )
    if "not_built" in result.output:
        assert result.exit_code == 1
        return
    assert result.exit_code == 0, result.output
    (row,) = rows.read(tmp_path / "c")
    assert row["status"] == "counted"
    assert not {"value", "seconds", "samples"} & set(row)
    assert 16 < row["counters"]["flops"] / row["flops"] < 17  # whole tiles; a little for the epilogue
    assert row["gate"]["error"] < row["gate"]["tolerance"]
    assert rows.good([row]) == []


def test_model_rows_say_who_served_them():
    config = models.SparseTransformerConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=2
    )
    spec = model_rows.Model("toy/decode", "", lambda: models.SparseTransformer(config), 64, 2, 1, 5)
    cpu = Environment(torch.device("cpu"), WallTimer(), ours=())
    found = list(runner.run([model_rows.benchmark(spec)], cpu, seconds=0.001))
    assert [(r["candidate"], r["status"]) for r in found] == [("tkpy", "refused"), ("torch eager", "ok")]
    # As if the eager forms were kernels of ours: the row then lists what ran.
    found = list(runner.run([model_rows.benchmark(spec)], replace(cpu, ours=("eager",)), seconds=0.001))
    assert found[0]["status"] == "ok"
    assert found[0]["served"]["attention by eager"] == 1
    assert found[0]["gate"]["error"] <= found[0]["gate"]["tolerance"]


def test_published_figures_are_sound():
    figures, devices = published.figures(), {d.id: d for d in published.devices()}
    assert figures["ipdps24/latency/l1"].value == 40.7
    assert figures["fa3/fwd/hd128/causal/16k/FA3"].value == 616
    for figure in figures.values():  # no rate exceeds its own device's peaks
        if figure.unit == "GB/s" and figure.scales == "bandwidth":
            assert figure.value <= figure.device.bandwidth / 1e9
    h100 = devices["h100-sxm"]
    assert h100.flops["bfloat16"] == pytest.approx(132 * 4096 * 1.83e9, rel=1e-3)
    wgmma = figures["ipdps24/wgmma/m64n256k16/f16/ss/rate"]
    assert wgmma.on(114, 1755e6, 2039e9) == wgmma.value
    assert wgmma.on(228, 877.5e6, 1.0) == pytest.approx(wgmma.value)
    assert figures["ipdps24/latency/l2"].on(132, 2e9, 1.0) == 263.0
    assert figures["ipdps24/bandwidth/global"].on(132, 1e9, 4078e9) == pytest.approx(2 * 1861.5)
    for benchmark in discover():
        assert set(benchmark.published) <= set(figures), benchmark.name


GOOD = {
    "source": {"title": "t", "reference": "r"},
    "device": "d",
    "figures": [{"id": "a", "what": "w", "value": 1.0, "unit": "clk", "scales": "none", "where": "Table 1"}],
}
DEVICE = {"names": ["D"], "multiprocessors": 1, "clock_mhz": 1, "bandwidth_gb": 1, "tflops": {}, "source": "s"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "e"}, "no device 'e'"),
        ({"figures": [{**GOOD["figures"][0], "scales": "magic"}]}, "scales must be one of"),
        ({"figures": [{**GOOD["figures"][0], "value": "1"}]}, "'value' is '1'"),
        ({"figures": [{**GOOD["figures"][0], "value": -1}]}, "not positive"),
        ({"figures": GOOD["figures"] * 2}, "given twice"),
        ({"figures": [{"id": "a"}]}, "needs 'what'"),
        ({"extra": 1}, "unknown extra"),
        ({"source": {"title": "t"}}, "needs 'reference'"),
    ],
)
def test_a_malformed_source_is_named(tmp_path, change, message):
    (tmp_path / "devices.json").write_text(json.dumps({"d": DEVICE}))
    (tmp_path / "source.json").write_text(json.dumps(GOOD))
    assert list(published.figures(tmp_path)) == ["a"]
    published.figures.cache_clear()
    (tmp_path / "source.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message):
        published.figures(tmp_path)


def test_the_condition_of_a_device():
    found = facts.from_smi("1755, 2619, 512.30, 700.00, 61, 0x0000000000000004")
    assert found == {
        "sm_mhz": 1755.0, "memory_mhz": 2619.0, "power_w": 512.3, "power_limit_w": 700.0, "temperature_c": 61.0,
        "throttle": 4,
    }  # fmt: skip
    assert facts.from_smi("") == {}
    assert facts.from_smi("1755, [N/A], x") == {"sm_mhz": 1755.0}

    class Nvml:
        NVMLError = RuntimeError
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

        @staticmethod
        def nvmlDeviceGetHandleByIndex(index):
            return index

        @staticmethod
        def nvmlDeviceGetClockInfo(handle, kind):
            return 1000 * kind

        @staticmethod
        def nvmlDeviceGetPowerUsage(handle):
            return 512300

        def __getattr__(self, name):
            def refuse(*args):
                raise RuntimeError("not supported")

            return refuse

    assert facts.from_nvml(Nvml(), 0) == {"sm_mhz": 1000, "memory_mhz": 2000, "power_w": 512.3}


def test_host_facts_and_listing():
    host = facts.host()
    assert host["tkpy"] == tkpy.__version__
    assert host["torch"] == torch.__version__
    text = report.listing(list(discover()))
    assert "linear/4096x4096x4096/bfloat16" in text
    assert run("ops", "--list", "--op", "attention").output.count("\n") > 36
