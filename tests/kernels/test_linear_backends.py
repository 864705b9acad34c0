"""linear on its compiled kernel: in the emulator against float64, under torch.compile, and every refusal in words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import tkpy
from tkpy import build_info, conformance, registry
from tkpy.registry import Maker

OP = registry.get("linear")
CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def built(kernel_folder, monkeypatch):
    """tkpy with the kernel compiled from this checkout's source."""
    folder = kernel_folder("kernels/gemm/kernel.cu")
    monkeypatch.setattr(build_info, "KERNELS", folder)
    return folder


def arguments(dtype=torch.bfloat16, device="cpu", **more):
    x = torch.zeros(3, 16, dtype=dtype, device=device)
    return {"x": x, "weight": torch.zeros(5, 16, dtype=dtype, device=device), **more}


def codes(backend, **kwargs):
    return [refusal.code for refusal in tkpy.explain("linear", **kwargs).refusals[backend]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients_in_the_emulator(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype))
    for result in results:
        assert result.comparison, str(result)
    tensors = sum(isinstance(t, torch.Tensor) for t in case.make(Maker(dtype)).values())
    assert len(results) == 1 + tensors
    ran = [(dispatch.op, dispatch.backend) for dispatch in log]
    assert ran[:2] == [("linear", "emulator"), ("linear_backward", "emulator")]


def test_the_forward_and_three_products_of_the_backward_are_kernels(built, monkeypatch):
    from tkpy import _C

    ran, launch = [], _C.launch
    monkeypatch.setattr(_C, "launch", lambda *args: ran.append((launch(*args), args[-1])) or ran[-1][0])
    make = Maker(torch.bfloat16)
    x, weight = make.randn(24, 40).requires_grad_(), make.randn(16, 40).requires_grad_()
    tkpy.linear(x, weight, activation="silu", backend="emulator").sum().backward()
    assert ran == [
        ("gemm_bf16_mk_nk_tma", "silu"),
        ("gemm_bf16_mk_nk_tma", "none"),  # z again
        ("gemm_bf16_mk_kn_tma", "none"),  # dx = dz W
        ("gemm_bf16_km_kn_tma", "none"),  # dW = dz^T x
    ]


def test_findings_become_internal_errors(built, monkeypatch, tmp_path):
    """The same kernel, whose warps no longer meet between writing their patch and reading it: right by luck or not."""
    for path in built.iterdir():
        shutil.copy(path, tmp_path)
    ptx = (built / "gemm.ptx").read_text()
    broken = re.sub(r"bar\.warp\.sync\s+-1;", "", ptx)
    assert broken != ptx
    (tmp_path / "gemm.ptx").write_text(broken)
    monkeypatch.setattr(build_info, "KERNELS", tmp_path)
    x, weight = torch.ones(3, 33, dtype=torch.float16), torch.ones(5, 33, dtype=torch.float16)
    with pytest.raises(tkpy.InternalError, match="kernel gemm_fp16_mk_nk_generic") as caught:
        tkpy.linear(x, weight, backend="emulator")
    assert "race" in str(caught.value)
    assert "epilogue.cuh:" in str(caught.value)


def test_what_the_launcher_refuses_is_an_internal_error(built, monkeypatch):
    monkeypatch.setattr(OP.module("cuda"), "_operand", lambda matrix: matrix)
    x = torch.zeros(3, 32, dtype=torch.float16)[:, ::2]
    with pytest.raises(tkpy.InternalError, match="one contiguous dimension"):
        tkpy.linear(x, torch.zeros(5, 16, dtype=torch.float16), backend="emulator")


def test_it_lives_under_compile_and_opcheck(built):
    torch._dynamo.reset()
    make = Maker(torch.bfloat16)
    x, weight = make.randn(5, 16).requires_grad_(), make.randn(7, 16).requires_grad_()

    def layer(x, weight):
        return tkpy.linear(x, weight, activation="gelu", backend="emulator")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), layer(x, weight))
    assert tkpy.last_dispatch().backend == "emulator"
    torch.library.opcheck(OP.torch_op, (x, weight, None, None, "gelu", "emulator"))


def test_a_float32_residual_stays_float32_under_autocast(built):
    make = Maker()
    x, weight, residual = make.randn(5, 16), make.randn(7, 16), make.randn(5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = tkpy.linear(x, weight, residual=residual, backend="emulator")
    assert y.dtype == torch.float32
    product = x.bfloat16().double() @ weight.bfloat16().double().t()
    assert tkpy.numerics.compare(y, residual + product.bfloat16().double(), 1e-6)


def test_negative_control_a_wrong_product_fails(built, monkeypatch):
    right = OP.module("cuda").product
    for wrong in (
        lambda *a: torch.zeros_like(right(*a)),
        lambda *a: right(*a).roll(1, 0),
        lambda a, b, bias=None, *rest: right(a, b, None, *rest),
    ):
        monkeypatch.setattr(OP.module("cuda"), "product", wrong)
        assert not all(r.comparison for r in conformance.check_case(OP, CASES[0], backend="emulator", dtype=DTYPES[0]))


ON_A_DRIVER = """
import sys, timeit
import torch
from tkpy.machine import compiled, view
machine = compiled().Machine.driver(sys.argv[1])
a, b, out = torch.zeros(64, 32).half(), torch.zeros(32, 48).half(), torch.zeros(64, 48).half()

def launch():
    views = [(*view(t)[:4], 0) for t in (a, b, out)]
    return compiled().launch("gemm", machine, 0x5000, *views, None, None, "silu")

print(machine.name, launch(), flush=True)
if len(sys.argv) > 2:
    print(min(timeit.repeat(launch, number=1000, repeat=5)) * 1e3)
"""


class TestTheDriver:
    """Through Python to a libcuda that only writes down what it is asked."""

    @pytest.fixture
    def run(self, host_program, built, tmp_path):
        fake = host_program("libfake_cuda.so", "tests/kernels/fake_cuda.cpp", flags=("-shared", "-fPIC"))
        (tmp_path / "libcuda.so.1").symlink_to(fake)

        def call(*arguments, **environment):
            environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), **environment}
            command = [sys.executable, "-c", ON_A_DRIVER, str(built), *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        return call

    def test_a_launch_goes_to_the_stream_and_the_kernel(self, run):
        done = run()
        assert done.returncode == 0, done.stderr
        assert "cuda gemm_fp16_mk_kn_tma" in done.stdout
        assert "cuLibraryGetKernel gemm_fp16_mk_kn_tma" in done.stdout
        launches = [line for line in done.stdout.splitlines() if line.startswith("cuLaunchKernelEx")]
        assert len(launches) == 1
        assert "block 384 1 1" in launches[0]
        assert "stream 5000 device 0" in launches[0]

    def test_failures_name_the_call_and_the_kernel(self, run):
        done = run(FAKE_FAIL="cuLaunchKernelEx=1")
        assert done.returncode == 1
        assert "MachineError: cuLaunchKernelEx failed" in done.stderr
        assert "kernel gemm_fp16_mk_kn_tma" in done.stderr

    def test_a_launch_from_python_costs_little_on_the_host(self, run):
        done = run("time", FAKE_QUIET="1")
        assert done.returncode == 0, done.stderr
        microseconds = float(done.stdout.splitlines()[-1])
        print(f"{microseconds:.2f} microseconds a launch")
        assert microseconds < 50  # 10 on a machine with nothing else to do


class TestRefusals:
    @pytest.fixture
    def without_nvcc(self, monkeypatch, tmp_path):
        (tmp_path / "toolchain.json").write_text(json.dumps({"reason": "nvcc not found"}))
        monkeypatch.setattr(build_info, "KERNELS", tmp_path)

    def test_no_nvcc(self, without_nvcc):
        for backend in ("cuda", "emulator"):
            with pytest.raises(tkpy.Unsupported, match="not_built: nvcc not found") as caught:
                tkpy.linear(**arguments(), backend=backend)
            assert caught.value.refusals[backend][0].code == "not_built"
        assert codes("emulator", **arguments()) == ["not_built"]
        assert tkpy.linear(**arguments()).shape == (3, 5)

    def test_a_build_without_kernels(self, monkeypatch, tmp_path):
        monkeypatch.setattr(build_info, "KERNELS", tmp_path)
        with pytest.raises(tkpy.Unsupported, match="not_built: the package was built without its kernels"):
            tkpy.linear(**arguments(), backend="emulator")

    def test_no_gpu(self, built):
        with pytest.raises(tkpy.Unsupported, match="needs_gpu: needs CUDA tensors, got cpu tensors"):
            tkpy.linear(**arguments(), backend="cuda")
        assert codes("cuda", **arguments()) == ["needs_gpu"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_dtype(self, built, dtype):
        assert codes("emulator", **arguments(dtype)) == ["dtype"]
        with pytest.raises(tkpy.Unsupported, match=f"dtype: needs bfloat16 or float16, got {str(dtype)[6:]}"):
            tkpy.linear(**arguments(dtype), backend="emulator")

    def test_sizes(self, built):
        big = torch.zeros(1, dtype=torch.float16).expand(2**31 - 512, 1)
        assert codes("emulator", x=big, weight=torch.zeros(1, 1, dtype=torch.float16)) == ["size"]
        assert codes("emulator", x=big[1:], weight=torch.zeros(1, 1, dtype=torch.float16)) == []

    @pytest.mark.parametrize("capability, expected", [((9, 0), []), ((8, 0), ["compute_capability"])])
    def test_of_a_gpu_only_hopper(self, built, monkeypatch, capability, expected):
        monkeypatch.setattr(registry.machine, "compute_capability", lambda device: capability)
        given = {**arguments(), "bias": None, "residual": None, "activation": None}
        call = registry.Call("linear", given, torch.device("cuda:0"))
        assert [refusal.code for refusal in OP.refusals("cuda", call)] == expected
        assert [refusal.code for refusal in OP.refusals("emulator", call)] == ["needs_cpu"]

    def test_the_emulator_is_never_chosen(self, built):
        assert tkpy.explain("linear", **arguments()).chosen == "eager"
        tkpy.linear(**arguments())
        assert tkpy.last_dispatch().backend == "eager"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients_on_the_gpu(built, case, dtype):
    for result in conformance.check_case(OP, case, backend="cuda", dtype=dtype, device="cuda"):
        assert result.comparison, str(result)
