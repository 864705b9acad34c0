"""Triton kernels with no GPU: in Triton's interpreter against the reference, and compiled ahead of time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tkpy import registry

triton = pytest.importorskip("triton", reason="needs the package triton")

TRITON_OPS = [op for op in registry.ops().values() if "triton" in op.available]

#: Runs every case of the op named on the command line, forward and gradients, in this process's interpreter: in float32
#: and float16 by turns, since the emulator runs what is compiled of each case in every dtype (test_triton_programs.py).
RUNNER = """
import json, sys, torch
from tkpy import conformance, registry
op, rows = registry.get(sys.argv[1]), []
for number, case in enumerate(case for case in op.cases if not case.bench):
    dtype = (torch.float32, torch.float16)[number % 2]
    made = case.make(registry.Maker(dtype)).values()
    if not any(v.dtype == torch.bfloat16 for v in made if isinstance(v, torch.Tensor)):
        for r in conformance.check_case(op, case, backend="triton", dtype=dtype):
            rows.append([str(r), bool(r.comparison), registry.last_dispatch().backend])
made = op.cases[0].make(registry.Maker(torch.bfloat16))
refused = [r.code for r in op.refusals("triton", registry._capture(op, (), made))]
narrow = any(v.dtype == torch.bfloat16 for v in made.values() if isinstance(v, torch.Tensor))
print(json.dumps({"rows": rows, "bf16": refused, "wanted": ["dtype"] if narrow else []}))
"""


@pytest.mark.parametrize("op", TRITON_OPS, ids=lambda op: op.name)
def test_every_case_in_the_interpreter(op):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RUNNER, op.name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    wrong = [text for text, ok, _ in result["rows"] if not ok]
    assert not wrong, "\n".join(wrong)
    cases = sum(not case.bench for case in op.cases)
    assert len(result["rows"]) >= cases - 1  # a comparison for each case; one may ask for bfloat16
    assert {backend for _, _, backend in result["rows"]} <= {"triton", "reference"}
    assert result["bf16"] == result["wanted"]  # the interpreter's bfloat16 is refused, not trusted


def compiled(kernel, types, constants, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    signature = dict(types) | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constexprs), target=GPUTarget("cuda", capability, 32))


KERNELS = [
    pytest.param(*entry, id=f"{op.name}-{entry[0].__name__}")
    for op in TRITON_OPS
    for entry in op.module("triton").AHEAD_OF_TIME
]


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("kernel, types, constants", KERNELS)
def test_compiles_ahead_of_time(kernel, types, constants, capability):
    binary = compiled(kernel, types, constants, capability)
    assert f"sm_{capability}" in binary.asm["ptx"]
    assert len(binary.asm["cubin"]) > 0


def test_a_broken_kernel_fails_with_no_gpu(tmp_path):
    """The gate above can turn red: a kernel that adds a pointer to a pointer does not compile."""
    source = tmp_path / "broken.py"
    source.write_text(
        "import triton\nimport triton.language as tl\n\n\n"
        "@triton.jit\ndef broken(x_ptr, y_ptr):\n    tl.store(y_ptr, tl.load(x_ptr + y_ptr))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from broken import broken
    finally:
        sys.path.remove(str(tmp_path))
    with pytest.raises(triton.compiler.errors.CompilationError):
        compiled(broken, {"x_ptr": "*fp32", "y_ptr": "*fp32"}, {}, 90)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", TRITON_OPS, ids=lambda op: op.name)
def test_every_case_on_the_gpu(op, dtype):
    from tkpy import conformance

    for case in op.cases:
        if not case.bench:
            for result in conformance.check_case(op, case, backend="triton", dtype=dtype, device="cuda"):
                assert result.comparison, str(result)
