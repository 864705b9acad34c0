"""How far the model of time is from published measurements: the error table of docs/timing.md.

    python bench/timing_check.py

Small PTX programs that do what the published microbenchmarks describe run in the emulator, and `tkpy.emulator.timing`
predicts them on the device that was measured. A program is predicted twice, short and long, and the difference
counts, so that starting and ending do not. Rows marked "given" are those whose figure the model takes as a rate or
latency: they show that it arrives at the other end; the others are predictions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import tkpy.emulator
from tkpy import published
from tkpy.bench.report import table
from tkpy.emulator import timing

HEADER = ".version 8.3\n.target sm_90a\n.address_size 64\n"
REGISTERS = (
    ".reg .pred %p<8>; .reg .b32 %r<64>; .reg .f32 %f<160>; .reg .b64 %rd<16>;\n.shared .align 1024 .b8 smem[49152];\n"
)
SHEET = next(d for d in published.devices() if d.id == "h800-pcie")


@dataclass(frozen=True)
class Row:
    """A published figure and what the model makes of the same program."""

    figure: str
    predicted: float
    given: bool

    @property
    def error(self) -> float:
        return self.predicted / published.figures()[self.figure].value - 1


def kernel(body: str, before: str = "", after: str = "") -> str:
    """A kernel k(buffer, out) around `body`."""
    return f"""{HEADER}.visible .entry k(.param .u64 buffer, .param .u64 out) {{
{REGISTERS}ld.param.u64 %rd1, [buffer]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, smem;
{before}
{body}
{after}
st.global.u32 [%rd2], %r3; ret; }}"""


def repeated(body: str, times: int) -> str:
    """A kernel of `times` copies of its body."""
    return kernel(body * times)


def cycles(
    program: Callable[[int], str], counts: tuple[int, int], buffer: np.ndarray, *, block: int = 32, grid: int = 1
) -> float:
    """Predicted cycles of one of the program's repetitions."""
    found = []
    for count in counts:
        module = tkpy.emulator.load(program(count))
        run = module.launch(
            "k",
            grid=grid,
            block=block,
            args=[buffer, np.zeros(1, np.uint32)],
            checks="none",
            trace=SHEET.multiprocessors,
        )
        found.append(timing.predict(run.trace, SHEET.id).cycles)
    return (found[1] - found[0]) / (counts[1] - counts[0])


def ring(entries: int, stride: int) -> np.ndarray:
    """Pointers that lead from one to the next, `stride` bytes apart."""
    buffer = np.zeros(entries * stride // 8, np.uint64)
    start = buffer.ctypes.data
    where = np.arange(entries, dtype=np.uint64) * np.uint64(stride)
    buffer[:: stride // 8] = np.uint64(start) + np.roll(where, -1)
    return buffer


def latencies() -> Iterator[Row]:
    for name, load, buffer, counts in (
        ("l1", "ld.global.u64", ring(32, 64), (64, 128)),
        ("l2", "ld.relaxed.gpu.global.u64", ring(32, 64), (64, 128)),
        ("global", "ld.global.u64", ring(256, 256), (64, 128)),
    ):
        steps = cycles(functools.partial(repeated, f"{load} %rd1, [%rd1];\n"), counts, buffer)
        yield Row(f"ipdps24/latency/{name}", steps, given=True)
    own = "st.shared.u32 [%r2], %r2; mov.u32 %r3, %r2;"
    chain = cycles(lambda n: kernel("ld.shared.u32 %r3, [%r3];\n" * n, own), (64, 128), np.zeros(8))
    yield Row("ipdps24/latency/shared", chain, given=True)


def bandwidths() -> Iterator[Row]:
    before = "shl.b32 %r4, %r1, 2; add.u32 %r5, %r2, %r4;"
    loads = "".join(f"ld.shared.u32 %r{6 + i}, [%r5];\n" for i in range(8))
    per = cycles(lambda n: kernel(loads * n, before), (4, 8), np.zeros(8), block=1024)
    yield Row("ipdps24/bandwidth/shared", 8 * 1024 * 4 / per, given=True)
    before = "shl.b32 %r4, %r1, 2; cvt.u64.u32 %rd3, %r4; add.u64 %rd4, %rd1, %rd3;"
    loads = "".join(f"ld.global.u32 %r{6 + i}, [%rd4];\n" for i in range(8))
    per = cycles(lambda n: kernel(loads * n, before), (4, 8), np.zeros(1024, np.uint32), block=1024)
    yield Row("ipdps24/bandwidth/l1", 8 * 1024 * 4 / per, given=False)


def tensor_cores() -> Iterator[Row]:
    to_tflops = SHEET.multiprocessors * SHEET.clock / 1e12

    def mma(chains: int) -> str:
        return "".join(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            f"{{%f{4 * i},%f{4 * i + 1},%f{4 * i + 2},%f{4 * i + 3}}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, "
            f"{{%f{4 * i},%f{4 * i + 1},%f{4 * i + 2},%f{4 * i + 3}}};\n"
            for i in range(chains)
        )

    alone = cycles(lambda n: kernel(mma(1) * n), (16, 32), np.zeros(8))
    yield Row("ipdps24/mma/m16n8k16/f16/latency", alone, given=True)
    full = cycles(lambda n: kernel(mma(8) * n), (4, 8), np.zeros(8), block=512)
    yield Row("ipdps24/mma/m16n8k16/f16/rate", 16 * 8 * 4096 / full * to_tflops, given=True)
    for n, mode in ((256, "ss"), (128, "ss"), (64, "ss"), (8, "ss"), (8, "rs")):
        clocks = cycles(functools.partial(wgmma, n, mode), (16, 32), np.zeros(8), block=128)
        yield Row(f"ipdps24/wgmma/m64n{n}k16/f16/{mode}/sweep", 2 * 64 * n * 16 / clocks * to_tflops, given=False)
        if n == 256:
            yield Row("ipdps24/wgmma/m64n256k16/f16/ss/latency", clocks, given=True)


def wgmma(n: int, mode: str, times: int) -> str:
    """`times` products in a row on one accumulator, operands in zeroed shared memory without a swizzle."""
    d = ", ".join(f"%f{i}" for i in range(n // 2))
    a = "%rd5" if mode == "ss" else "{%r10,%r11,%r12,%r13}"
    flags = "1, 1, 1, 0, 0" if mode == "ss" else "1, 1, 1, 0"
    one = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.f16.f16 {{{d}}}, {a}, %rd6, {flags.replace('1', 'p', 1)};\n"
    # Descriptor: address / 16, leading and stride byte offsets / 16 (PTX ISA 9.7.15.5.1).
    before = """shr.u32 %r4, %r2, 4; cvt.u64.u32 %rd5, %r4; or.b64 %rd5, %rd5, 0x0000000800080000;
add.u64 %rd6, %rd5, 256; .reg .pred p; setp.eq.u32 p, 0, 0;
wgmma.fence.sync.aligned;"""
    after = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"
    return kernel(one * times, before, after)


def bulk_copies() -> Iterator[Row]:
    """One copy in flight for each CTA, each of its own memory: the published table of bytes and CTAs."""
    for kilobytes in (1, 2, 4, 8, 16):
        for per_sm in (1, 2, 4):
            size, grid = kilobytes << 10, per_sm * SHEET.multiprocessors
            short, long = 2, 6
            buffer = np.zeros(grid * long * size, np.uint8)
            clocks = cycles(functools.partial(copies, size, long), (short, long), buffer, grid=grid)
            rate = grid * size / clocks * SHEET.clock / 1e9
            yield Row(f"logs/tma/bulk/{kilobytes}KB/{per_sm}", rate, given=False)


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


def rows() -> Iterator[Row]:
    """The whole table."""
    for part in (latencies, bandwidths, tensor_cores, bulk_copies):
        yield from part()


def main() -> None:
    known = published.figures()
    body = []
    for row in rows():
        figure = known[row.figure]
        kind = "given" if row.given else "predicted"
        numbers = (f"{figure.value:.4g}", f"{row.predicted:.4g}", figure.unit, f"{row.error:+.1%}")
        body.append([row.figure, *numbers, kind])
    print(f"on {SHEET.id} at {SHEET.clock / 1e6:.0f} MHz; predictions of a model, published measurements of others")
    print(table(["published figure", "published", "model", "unit", "error", ""], body, numbers=(1, 2, 4)))


if __name__ == "__main__":
    main()
