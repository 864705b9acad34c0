"""What the tests of this folder share: places, sizes, cases."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "test_cache"

# Dynamic shared memory of the examples that take some: sizeof(Shared), compared with the compiler in test_budgets.py.
SHARED = {"level4_gemm_pipelined": 197632, "level5_gemm_specialised": 214016}

# GEMMs worth trying on every machine.
GEMMS = [
    # m, k, n, A transposed, B transposed, padding, activation, bias and residual
    (64, 64, 64, 0, 1, 0, "none", 0),
    (130, 200, 264, 0, 0, 0, "gelu", 1),  # tails in every dimension
    (136, 72, 130, 1, 1, 6, "gelu_tanh", 1),
    (136, 72, 136, 1, 0, 0, "silu", 0),
    (1, 320, 300, 0, 1, 0, "relu", 1),  # one row, more steps than stages
    (70, 33, 67, 0, 1, 0, "relu_squared", 1),  # pitches that TMA cannot take
    (33, 70, 131, 1, 0, 0, "none", 1),
    (20, 0, 30, 0, 0, 0, "none", 1),  # an empty sum: the epilogue alone
    (600, 96, 520, 0, 1, 0, "none", 0),  # more tiles than clusters: persistent
]

# Sources of the programs that run on either machine.
MACHINE = (
    "tests/kernels/machine_main.cpp",
    "csrc/runtime/machine.cpp",
    "csrc/runtime/launcher.cpp",
    "csrc/runtime/driver_machine.cpp",
    "csrc/runtime/emulator_machine.cpp",
    "csrc/kernels/gemm/launch.cpp",
)
