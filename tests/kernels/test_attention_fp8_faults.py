"""Faults seeded into attention_fp8: each is one edit of its source, and a finding, a deadlock or a wrong result must
give it away on a few small calls and schedules."""

import hashlib

import pytest
from kernel_cases import ROOT
from seeded_faults import Fault, compiled, module, write_module

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from fp8_runs import disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402

KERNELS = ROOT / "csrc/kernels"
SEEDS = range(3)

TURN = "await(bars.turned, at.v);\n      mma_fence();"
AFTER = "release(bars.keys, at.k);\n      at.k.next();\n      soft.step(s, factor, p, descale, block"
FREED = "        __syncwarp();\n        release"
TURNED = "        turn(shared.turned[at.slot]"
SOURCES = ("params.h", "turn.cuh", "kernel.cu")
FAULTS = [
    Fault("q loaded over q in use", "      wait(bars.q_free, q_phase);\n", ""),
    Fault("q freed by one warp", "init(bars.q_free, 4 * W)", "init(bars.q_free, 1)"),
    Fault("bytes of one consumer's q", "W * QTile::bytes", "QTile::bytes"),
    Fault("k never waited for", "      await(bars.keys, at.k);\n      take_turn", "      take_turn"),
    Fault("k freed before its product", "      mma_wait<1>(s);\n      " + AFTER, "      " + AFTER),
    Fault("v^T never waited for", TURN, "mma_fence();"),
    Fault("v turned before it is there", "        await(bars.values, at);\n", ""),
    Fault("v^T written while it is read", "        acquire(bars.turned, at);\n", ""),
    Fault("no fence behind v^T", "        publish_tile();\n" + FREED, FREED),
    Fault("v freed by one warp", "init(bars.values, 1, turners)", "init(bars.values, 1, 1)"),
    Fault("v^T filled by one warp", "init(bars.turned, turners, 4 * W)", "init(bars.turned, 1, 4 * W)"),
    Fault("v freed while it is read", TURNED, "        release(bars.values, at);\n" + TURNED),
    Fault("no wait for the output's product", "      mma_wait(o);\n      release", "      release"),
    Fault("turn never passed", "      pass_turn(consumer);\n      descale", "      descale"),
    Fault("last part left out", "i < parts; i += warps", "i < parts - 1; i += warps"),
    Fault("even and odd columns swapped", "low ? 0x6420u : 0x7531u, odd", "low ? 0x7531u : 0x6420u, odd"),
    Fault("keys in another order", "0x5410);", "0x1054);"),
    Fault("halves of the keys swapped", "(pairs[2], pairs[3], even)", "(pairs[3], pairs[2], even)"),
    Fault("scale of the first block", "descale = of_q * of_k[block];", "descale = of_q * of_k[0];"),
    Fault("scale of another query block", "tile.row / kBlock];", "0];"),
    Fault("units of v not carried over", "      factor[0] *= change;\n", ""),
    Fault("unit of the first block at the end", "      unit = next;\n", ""),
    Fault("last unit left out", "      factor[1] *= unit;\n", ""),
    Fault("scale of another key head", "tile.batch * p.kv_heads + tile.kv_head;", "tile.batch * p.kv_heads;"),
    Fault("weights raised, log-sum-exp not lowered", "      soft.lower();\n", ""),
    Fault("weights beyond e4m3", "raised = 8.0f", "raised = 10.0f"),
    Fault("weights too small for e4m3", "raised = 8.0f", "raised = -6.0f"),
    Fault("old sums not scaled", "total[half] * factor[half] + sum", "total[half] + sum"),
    Fault("maximum without its scale", "fmaxf(best[half], c * fmaxf(", "fmaxf(best[half], fmaxf("),
    Fault("edge blocks not masked", "if (key < all_low || key + kBlock - 1 > all_high) hide(s, key);", ""),
    Fault("minus infinity minus itself", "highest == -fn::infinity ? 0.0f : highest;", "highest;"),
    Fault("output not moved", "      Way::move_output(o, p, tile.head);\n", ""),
    Fault("output moved by the first head's numbers", "move_output(o, p, tile.head)", "move_output(o, p, 0)"),
    Fault("cap without its height", "outer * fn::tanh", "fn::tanh"),
    Fault("cap without the block's scale", "inner = descale * p.cap_inner", "inner = p.cap_inner"),
]  # fmt: skip
CONTROL = Fault("none", "", "")


def source(number: int) -> str:
    """The kernel with the fault, in a namespace of its own."""
    fault = [*FAULTS, CONTROL][number]
    text = "".join((KERNELS / "attention_fp8" / name).read_text() for name in SOURCES)
    assert text.count(fault.old) >= 1, f"{fault}: the source has changed"
    text = text.replace(fault.old, fault.new, 1)
    kept = [line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))]
    body = "\n".join(kept).split("#define TKPY_ATTENTION_FP8")[0]
    body = body.replace("namespace tkpy::attention_fp8", f"namespace tkpy::attention_fp8_{number}")
    space = f"tkpy::attention_fp8_{number}"
    entry = (
        f'extern "C" __global__ void __launch_bounds__(384, 1) fp8_{number}'
        f"(const __grid_constant__ {space}::Params p) {{ {space}::Forward<0>::run(p); }}\n"
    )
    return body + "\n" + entry


@pytest.fixture(scope="module")
def text(compile_kernel, toolchain, tmp_path_factory):
    """The PTX of all faults: one run of nvcc, none of ptxas."""
    shared = [path for name in ("attention_forward", "block_lists") for path in (KERNELS / name).glob("*.*h")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(shared)))  # or an old PTX would serve
    sources = "".join(map(source, range(len(FAULTS) + 1)))
    headers = "".join(f'#include "kernels/attention_forward/{name}.cuh"\n' for name in ("output", "softmax"))
    whole = f"{headers}// {key.hexdigest()}\n{sources}"
    return compiled(compile_kernel, toolchain, tmp_path_factory.mktemp("faults"), "attention_fp8_faults", whole)


def calls() -> list[dict]:
    moved = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(1))
    return [
        inputs(1, 260, 530, 4, 2, 64, causal=True),
        inputs(1, 140, 300, 2, 1, 64, window=(90, 30), sinks=torch.tensor([0.5, 3.0])),
        inputs(1, 200, 140, 1, 1, 64, window=(60, 9)),
        inputs(1, 70, 150, 2, 1, 64, softcap=2.0, out_scale=moved[0], out_bias=moved[1]),
    ]


def found(text: str, tmp_path, monkeypatch, number: int, seeds: range) -> str:
    write_module(tmp_path, "attention_fp8", module(text, {f"fp8_{number}": "attention_fp8_64"}))
    for seed in seeds:
        for kwargs in calls():
            on_machine(monkeypatch, tmp_path, seed, multiprocessors=2)
            try:
                what = disagreement(kwargs)
            except tkpy.InternalError as error:
                what = str(error)
            if what:
                print(what)
                return what
    return ""


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: str(FAULTS[number]))
def test_every_fault_is_caught(text, tmp_path, monkeypatch, number):
    assert found(text, tmp_path, monkeypatch, number, SEEDS)


def test_the_right_kernel_is_not_accused(text, tmp_path, monkeypatch):
    assert found(text, tmp_path, monkeypatch, len(FAULTS), SEEDS[:2]) == ""
