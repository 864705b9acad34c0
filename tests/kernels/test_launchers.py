"""Launchers are called by name, with any parameters; what does not fit is named, and ends no process."""

import subprocess

import pytest
import torch

from tkpy import build_info, machine
from tkpy.errors import InternalError

EXPECTED = """\
none 0x10 | f32[3] stride [1] | None | -7 1099511627776 4000000000 | 2.5 3 | 1 silu | None
ran
none 0x10 | f32[3] stride [1] | f32[3] stride [1] | -7 1099511627776 4000000000 | 2.5 3 | 1 silu | None
ran
none 0x10 | f32[3] stride [1] | None | -7 1099511627776 4000000000 | 2.5 3 | 1 silu | 0.500000
ran
everything: x: need a tensor, got None
everything: mask: need a tensor or None, got True
everything: small: need an int of 32 bits, got 2147483648
everything: small: need an int of 32 bits, got True
everything: large: need an int of 64 bits, got 2.000000
everything: count: need an int of 32 bits, not negative, got -1
everything: factor: need a number, got "2"
everything: flag: need a bool, got 1
everything: text: need a str, got None
everything: scale: need a number or None, got f32[3] stride [1]
everything: need 10 arguments, got 0
two launchers are called twice
no launcher nowhere; there are: everything, twice, twice
"""


def test_parameters_of_every_kind(host_program):
    program = host_program(
        "launcher", "tests/kernels/launcher_main.cpp", "csrc/runtime/launcher.cpp", "csrc/runtime/machine.cpp"
    )
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == EXPECTED


@pytest.fixture
def extension():
    return pytest.importorskip("tkpy._C")


@pytest.fixture
def emulator(extension, tmp_path):
    return extension.Machine.emulator(str(tmp_path))


def test_every_launcher_is_listed(extension):
    launchers = extension.launchers()
    assert launchers["gemm"][3:] == [
        ("bias", "a tensor or None"),
        ("residual", "a tensor or None"),
        ("activation", "a str"),
    ]
    assert all(name and kind for parameters in launchers.values() for name, kind in parameters)


X = machine.view(torch.zeros(4, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "gemm: need 6 arguments, got 0"),
        ((X, X, X, None, None, 3), "gemm: activation: need a str, got 3"),
        ((X, X, X, None, None, "silu"), "gemm: b: need shape [8, 8], got bf16[4, 8]"),
        (
            (X, (*X[:4], 0), X, None, None, "silu"),
            "gemm: b: need a tensor on the CPU for the emulator, got one on cuda:0",
        ),
        (((0, *X[1:]), X, X, None, None, "silu"), "a tensor without storage: bf16[4, 8]"),
        ((X[:4], X, X, None, None, "silu"), "a view is (address, dtype, shape, strides, device)"),
        (((16, "f7", (1,), (1,), -1),), "no kernel knows the dtype f7"),
        (((16, "f32", (1,) * 9, (1,) * 9, -1),), "at most 8"),
        (((16, "f32", (-1,), (1,), -1),), "must not be negative"),
        ((2**70,), "an int argument must fit 64 bits"),
    ],
)
def test_bad_arguments_are_named(extension, emulator, arguments, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        extension.launch("gemm", emulator, 0, *arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("odd", [object(), b"bytes", [1], {}])
def test_other_objects_are_a_type_error(extension, emulator, odd):
    with pytest.raises(TypeError, match="a view, bool, int, float, str or None, got <class"):
        extension.launch("gemm", emulator, 0, odd)


def test_from_torch_errors_are_internal_and_name_the_op(extension, monkeypatch, tmp_path):
    monkeypatch.setattr(build_info, "KERNELS", tmp_path)
    x = torch.zeros(8, 8, dtype=torch.bfloat16)
    with pytest.raises(InternalError, match=r"tkpy\.some_op: no launcher nowhere"):
        machine.launch("nowhere", x, op="some_op")
    with pytest.raises(InternalError, match=r"tkpy\.some_op: .*gemm\.ptx: no such kernel image"):
        machine.launch("gemm", x, x, x.clone(), None, None, "none", op="some_op")
