"""The model of time: what it charges for, what overlaps, and how far it is from published figures."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

import tkpy.emulator
from bench import timing_check
from tkpy import build_info, published
from tkpy.cli import main
from tkpy.emulator import timing
from tkpy.emulator.timing import rates
from tkpy.emulator.timing.decode import decode, folded
from tkpy.emulator.timing.record import Event, without_failed_polls
from tkpy.emulator.timing.replay import resident

pytestmark = pytest.mark.fast

HEADER = ".version 8.3\n.target sm_90a\n.address_size 64\n"
REGISTERS = (
    ".reg .pred %p<8>; .reg .b32 %r<64>; .reg .f32 %f<160>; .reg .b64 %rd<16>;\n.shared .align 1024 .b8 smem[49152];\n"
)


def kernel(body: str, before: str = "", after: str = "") -> str:
    """A kernel k(buffer, out) around `body`."""
    return f"""{HEADER}.visible .entry k(.param .u64 buffer, .param .u64 out) {{
{REGISTERS}ld.param.u64 %rd1, [buffer]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, smem;
{before}
{body}
{after}
st.global.u32 [%rd2], %r3; ret; }}"""


def copies(size: int, most: int, times: int) -> str:
    """A thread's copies of `size` bytes to shared memory, one after the other, each waited for."""
    before = f"""mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd3, %r4, {size * most}; add.u64 %rd1, %rd1, %rd3;
add.u32 %r5, %r2, 40960; mbarrier.init.shared.b64 [%r5], 1; fence.proxy.async; mov.u32 %r6, 0;"""
    one = f"""mbarrier.arrive.expect_tx.shared.b64 %rd4, [%r5], {size};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], {size}, [%r5];
wait@: mbarrier.try_wait.parity.shared.b64 %p1, [%r5], %r6;
@!%p1 bra wait@;
xor.b32 %r6, %r6, 1; add.u64 %rd1, %rd1, {size};
"""
    return kernel(
        "@%p2 bra end;\n" + "".join(one.replace("@:", f"{i}:").replace("wait@", f"wait{i}") for i in range(times)),
        before + "setp.ne.u32 %p2, %r1, 0;",
        "end:",
    )


def record(body: str, *, block=32, grid=1, cluster=None, before="", after="", buffer=None, sms=132, **how):
    module = tkpy.emulator.load(kernel(body, before, after))
    buffer = np.zeros(1 << 16, np.uint8) if buffer is None else buffer
    how = {"checks": "none", **how}
    return module.launch(
        "k", grid=grid, block=block, cluster=cluster, args=[buffer, np.zeros(1, np.uint32)], trace=sms, **how
    ).trace


def cycles(body: str, **how) -> float:
    return timing.predict(record(body, **how)).cycles


FMA = "fma.rn.f32 %f1, %f1, %f2, %f3;\n"
MANY = "".join(f"fma.rn.f32 %f{i}, %f{i}, %f20, %f21;\n" for i in range(1, 9))


def test_a_chain_pays_latency_and_many_warps_pay_issue_slots():
    assert cycles(FMA * 128) - cycles(FMA * 64) == pytest.approx(64 * 4)
    # 32 warps on 4 sub-cores, one instruction a clock each.
    assert cycles(MANY * 16, block=1024) - cycles(MANY * 8, block=1024) == pytest.approx(8 * 8 * 8, rel=0.02)
    assert timing.predict(record(MANY * 16, block=1024)).binding == "issue slots"
    assert "latency" in timing.predict(record(FMA * 64)).binding


def test_units_have_their_rates():
    for text, lanes in (
        ("ex2.approx.f32 %f{0}, %f20;", 16),
        ("add.s32 %r{0}, %r60, %r61;", 64),
        ("cvt.u64.u32 %rd{0}, %r60;", 16),
        ("popc.b32 %r{0}, %r60;", 16),
        ("fma.rn.f32 %f{0}, %f20, %f21, %f22;", 128),
    ):
        body = "".join(text.format(i) + "\n" for i in range(4, 12))
        per = (cycles(body * 8, block=512) - cycles(body * 4, block=512)) / (4 * 8)
        assert per == pytest.approx(16 * 32 / lanes, rel=0.03), text


def test_a_barrier_waits_for_the_slowest_warp():
    body = "setp.lt.u32 %p1, %r1, 32;\n" + ("@%p1 " + FMA) * 100 + "bar.sync 0;\n" + "mov.u32 %r3, 0;\n"
    trace = record(body, block=128)
    prediction = timing.predict(trace)
    assert prediction.cycles > 400
    # Three of the four warps wait while one computes.
    assert prediction.waits["a CTA barrier"] > 0.5


def test_copies_of_several_ctas_overlap():
    one = copies(4096, 4, 4)
    buffer = np.zeros(1 << 23, np.uint8)

    def run(grid, sms):
        module = tkpy.emulator.load(one)
        args = [buffer, np.zeros(1, np.uint32)]
        return timing.predict(module.launch("k", grid=grid, block=32, args=args, checks="none", trace=sms).trace)

    alone, two, waves = run(1, 132), run(264, 132), run(132, 132)
    assert alone.cycles == pytest.approx(waves.cycles, rel=0.5)
    assert two.cycles < 1.8 * waves.cycles  # two CTAs of an SM, side by side
    tracks = {track for _, track, *_ in two.slices}
    assert {"TMA load 0", "TMA load 1"} <= tracks
    assert "an mbarrier" in two.waits


def test_ctas_that_do_not_fit_come_in_waves():
    body = FMA * 200
    one = record(body, block=128, grid=132)
    assert resident(one) == 4  # by the program's 48 KB of shared memory
    three = record(body, block=128, grid=3 * 132)
    assert timing.predict(one, ctas_per_sm=1).cycles * 2.8 < timing.predict(three, ctas_per_sm=1).cycles
    assert timing.predict(three).cycles < 1.2 * timing.predict(one).cycles


def test_a_pipeline_of_copies_and_math_overlaps():
    """Copies ahead of their use take the time of the longer of both, not of the sum."""

    def body(ahead: bool, steps: int = 6) -> str:
        issue = """@%p2 mbarrier.arrive.expect_tx.shared.b64 %rd4, [%r{b}], 8192;
@%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 8192, [%r{b}];
"""
        wait = "w{i}: mbarrier.try_wait.parity.shared.b64 %p1, [%r{b}], {parity};\n@!%p1 bra w{i};\n"
        text = issue.format(b=10) if ahead else ""
        for i in range(steps):
            here, there = 10 + i % 2, 10 + (i + 1) % 2
            if ahead and i + 1 < steps:
                text += issue.format(b=there)
            if not ahead:
                text += issue.format(b=here)
            text += wait.format(i=i, b=here, parity=i // 2 % 2) + FMA * 120 + "bar.sync 0;\n"
        return text

    before = """add.u32 %r10, %r2, 40960; add.u32 %r11, %r2, 40968; setp.eq.u32 %p2, %r1, 0;
@%p2 mbarrier.init.shared.b64 [%r10], 1; @%p2 mbarrier.init.shared.b64 [%r11], 1; bar.sync 0;"""
    serial, ahead = (cycles(body(flag), before=before, block=128) for flag in (False, True))
    assert ahead < 0.75 * serial


def test_clusters_copy_to_each_other_and_meet():
    body = """
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
mapa.shared::cluster.u32 %r4, %r2, 1; ld.shared::cluster.u32 %r3, [%r4];
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
"""
    trace = record(body, grid=2, cluster=2, before="st.shared.u32 [%r2], %r1;")
    assert trace.clusters == ((0, 1),)
    prediction = timing.predict(trace)
    assert prediction.waits["the cluster barrier"] > 0
    assert {process for process, *_ in prediction.slices} == {"SM 0", "SM 1"}
    with pytest.raises(ValueError, match="holds a cluster of 2, got 1"):
        record(body, grid=2, cluster=2, sms=1)


def test_the_record_changes_nothing_and_is_off_by_default():
    module = tkpy.emulator.load(kernel(FMA * 8))
    args = [np.zeros(8), np.zeros(1, np.uint32)]
    plain, traced = (module.launch("k", grid=4, block=64, args=args, trace=n) for n in (0, 2))
    assert plain.counters.total == traced.counters.total
    with pytest.raises(ValueError, match="recorded no trace"):
        _ = plain.trace
    trace = traced.trace
    assert trace.clusters == ((1,), (3,))  # what one of two SMs gets
    texts = [e.instruction.text.split()[0] for e in trace.warps[1, 0]]
    assert texts.count("fma.rn.f32") == 8
    assert texts[-1].startswith("ret")


def test_failed_polls_are_one_wait():
    poll = decode("mbarrier.try_wait.parity.shared.b64 %p1, [%r5], %r6;", 1)
    branch = decode("@!%p1 bra again;", 2)
    copy = decode("st.shared.u32 [%r1], %r2;", 3)

    def polled(done):
        return Event(poll, 1, 0, (6, 5, 0, done))

    spin = [polled(0), Event(branch, 1, 0, ())]
    assert without_failed_polls([*spin, *spin, polled(1)]) == (polled(1),)
    worked = [polled(0), Event(copy, 32, 1, ()), polled(1)]
    assert without_failed_polls(worked) == tuple(worked)  # something was done in between: no loop


@pytest.mark.parametrize(
    ("text", "kind", "reads", "writes"),
    [
        ("@%p1 add.s32 %r1, %r2, 5;", "arithmetic", ("%p1", "%r2"), ("%r1",)),
        ("setp.lt.u32 %p1|%p2, %r1, %r2;", "arithmetic", ("%r1", "%r2"), ("%p1", "%p2")),
        ("ld.global.v2.u32 {%r1,%r2}, [%rd1+16];", "load", ("%rd1",), ("%r1", "%r2")),
        ("st.global.v2.u32 [%rd1], {%r1,%r2};", "store", ("%rd1", "%r1", "%r2"), ()),
        ("mov.u32 %r1, %tid.x;", "free", (), ("%r1",)),
        ("mbarrier.arrive.shared.b64 _, [%r1];", "mbarrier", ("%r1",), ()),
        ("cp.async.bulk.commit_group;", "bulk_commit", (), ()),
        ("bar.arrive 1, 256;", "barrier", (), ()),
        ("atom.global.add.u32 %r1, [%rd1], 1;", "atomic", ("%rd1",), ("%r1",)),
    ],
)
def test_what_an_instruction_needs(text, kind, reads, writes):
    found = decode(text)
    assert (found.kind, found.reads, found.writes) == (kind, reads, writes)


def test_wgmma_is_read_from_its_text():
    found = decode("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e5m2 {%f1,%f2}, {%r1,%r2,%r3,%r4}, %rd1, p, 1, 1;")
    assert (found.kind, found.n, found.k, found.operands, found.from_registers) == ("wgmma", 128, 32, "e5m2", True)
    assert decode("wgmma.wait_group.sync.aligned 1;").pending == 1
    assert decode("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};").flops == 4096


@pytest.mark.skipif(build_info.missing_reason("microbench_alu") is not None, reason="the microbenchmarks are not built")
def test_the_microbenchmarks_agree_with_published_figures():
    """What the model is given comes out again; what it predicts is not far off."""
    few = [
        "memory/latency/l",
        "memory/read/l",
        "shared/",
        "wgmma/f16/n256/ss/rate/zeros",
        "mma/f16",
        "bulk/8KB",
        "dsm/read",
    ]
    found = list(timing_check.rows(few))
    assert len(found) == 26
    for row in found:
        # The loop around a product that is waited for costs 14 clocks; the figure is of products in a row.
        waited = row.name.endswith("ss/latency")
        assert abs(row.error) < (0.12 if waited else 0.03 if row.given else 0.3), row


def test_the_figures_that_the_model_takes_are_named(monkeypatch):
    taken = set()

    class Recording(dict):
        def __getitem__(self, name):
            taken.add(name)
            return super().__getitem__(name)

    known = Recording(published.figures())
    monkeypatch.setattr(published, "figures", lambda: known)
    for cluster in (1, 4):
        used = timing.Rates.of("h100-sxm", cluster=cluster)
    rates.Latencies.published()
    for kind in rates.WGMMA_FIGURE:
        used.wgmma_clocks(256, kind)
    for kind in ("f16", "s8"):
        used.mma_clocks(4096, kind)
    assert taken == rates.GIVEN


def test_an_offset_of_an_address_is_no_instruction():
    access, sum_, pointer = "ld.shared.u32 %r3, [%r2]", "add.s32 %r2, %r1, 128", "add.s32 %r1, %r1, 4"
    assert folded([sum_, access, pointer, "ld.shared.u32 %r4, [%r1]"]) == {sum_}
    assert folded([sum_, access, "st.shared.u32 [%r1], %r2"]) == set()  # the sum itself is stored


def test_clocks_are_read_where_they_stand():
    body = "mov.u64 %rd5, %clock64;\n" + FMA * 64 + "mov.u64 %rd6, %clock64;\n"
    begin, end = timing.predict(record(body)).clocks[0, 0]
    assert end - begin == pytest.approx(63 * 4 + 1, abs=1)  # the last one is issued, not waited for


def test_what_is_warm_comes_from_l2():
    load = "ld.relaxed.gpu.global.u64 %rd3, [%rd1];\nadd.u64 %rd4, %rd3, %rd3;\n"
    cold, warm = (cycles(load, warm=flag) for flag in (False, True))
    assert cold - warm == pytest.approx(rates.Latencies.published().hbm - rates.Latencies.published().l2, rel=0.1)


def test_other_devices():
    trace = record(FMA * 64)
    slow, fast = timing.predict(trace, clock=1e9), timing.predict(trace, clock=2e9)
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    h200 = timing.Rates.of("h200")
    assert h200.hbm == pytest.approx(timing.Rates.of("h100-sxm").hbm * 4800 / 3352)
    assert "114" in timing.predict(trace, "h800-pcie").notes[0]
    with pytest.raises(ValueError, match="no device 'tpu'; the devices are h100-sxm"):
        timing.predict(trace, "tpu")


def test_a_picture_from_the_command_line(tmp_path):
    ptx, out = tmp_path / "k.ptx", tmp_path / "out.json"
    ptx.write_text(copies(1024, 4, 4))
    args = ["emulate", str(ptx), "--block", "32", "--arg", "rand:uint8:65536", "--arg", "zeros:uint32:1"]
    result = CliRunner().invoke(main, [*args, "--checks", "none", "--trace", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "PREDICTED" in result.output
    assert "a model, not a measurement" in result.output
    picture = json.loads(out.read_text())
    assert "not a measurement" in picture["otherData"]["label"]
    names = {e["args"]["name"] for e in picture["traceEvents"] if e["name"] == "thread_name"}
    assert {"CTA 0 warp 0", "TMA load 0"} <= names
    spans: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for e in picture["traceEvents"]:
        if e["ph"] == "X":
            spans.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
    for found in spans.values():  # nothing on a track overlaps
        found.sort()
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(found))
    refused = CliRunner().invoke(main, [*args, "--trace", str(out), "--device", "tpu"])
    assert refused.exit_code == 2
    assert "no device 'tpu'" in refused.output
