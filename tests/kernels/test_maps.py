"""Maps: every function, operands broadcast every way, types and layouts, against float64."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, launcher  # noqa: E402  (after the skips)
from sweeps import bits, compile_sweep, uses_no_local_memory, values  # noqa: E402

from tkpy.numerics import compare  # noqa: E402

FUNCTIONS = {
    "exp2": torch.exp2,
    "exp": torch.exp,
    "log2": lambda x: x.abs().log2(),
    "log": lambda x: x.abs().log(),
    "rcp": lambda x: 1 / x,
    "rsqrt": lambda x: x.abs().rsqrt(),
    "sqrt": lambda x: x.abs().sqrt(),
    "tanh": torch.tanh,
    "tanh_fast": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "square": torch.square,
    "abs": torch.abs,
    "neg": torch.neg,
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x) ** 2,
    "copy": lambda x: x,
}
POSITIVE = ("log2", "log", "rsqrt", "sqrt")
TOLERANCE = {"float": 1e-6, "tf32": 1e-3, "bf16": 6e-3, "fp16": 8e-4, "e4m3": 6e-2, "e5m2": 0.12, "int": 0.0}
UNARIES = [("float", 16, 24, "row"), ("bf16", 16, 32, "row"), ("fp16", 32, 16, "col"), ("e4m3", 16, 32, "row"),
           ("tf32", 16, 8, "row"), ("int", 8, 16, "col")]  # fmt: skip
BINARIES = [("float", 32, 24, "row"), ("float", 8, 32, "col"), ("bf16", 16, 48, "row"), ("fp16", 32, 16, "col"),
            ("e4m3", 32, 32, "row"), ("tf32", 16, 16, "col"), ("int", 16, 8, "row")]  # fmt: skip
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "div": torch.div,
    "pow": torch.pow,
}
SHARED = [("float", "float", 24, 48, 64), ("bf16", "float", 16, 64, 0), ("float", "bf16", 40, 32, 64),
          ("fp16", "fp16", 16, 24, 0), ("e4m3", "bf16", 24, 64, 128), ("tf32", "e5m2", 16, 48, 0)]  # fmt: skip
MODES = ["tile", "per row", "per column", "number", "number first", "in place"]


def name(prefix: str, case: tuple) -> str:
    return "_".join([prefix, *map(str, case)])


@pytest.fixture(scope="module")
def folder(compile_kernel, toolchain):
    kernels = [f"UNARY({name('unary', c)}, {', '.join(map(str, c))})" for c in UNARIES]
    kernels += [f"BINARY({name('binary', c)}, {', '.join(map(str, c))})" for c in BINARIES]
    kernels += [f"SHARED({name('shared', c)}, {', '.join(map(str, c))})" for c in SHARED]
    return compile_sweep(compile_kernel, toolchain, "maps", kernels)


@pytest.fixture(scope="module", params=PLACES)
def run(request, folder):
    return launcher(request.param, folder, "maps")


INTEGER = ("square", "abs", "neg", "relu", "relu_squared", "copy", "add", "sub", "mul", "max", "min")


def served(prefix, cases, functions):
    """Integers have fewer functions."""
    return [
        pytest.param(c, f, id=f"{name(prefix, c)}-{f}")
        for c in cases
        for f in functions
        if c[0] != "int" or f in INTEGER
    ]


@pytest.mark.parametrize("case, function", served("unary", UNARIES, FUNCTIONS))
def test_functions(run, case, function):
    kind, rows, cols, _ = case
    x = values(kind, rows, cols)
    if function in POSITIVE:
        x = x.float().abs().to(x.dtype)
    if kind == "float" and function in ("sin", "cos", "tanh", "sigmoid", "erf"):
        x *= 10
    if kind == "int":
        x[::2] *= -1
    y = values(kind, rows, cols, seed=1)
    run(name("unary", case), [x, y, list(FUNCTIONS).index(function)], block=32)
    want = FUNCTIONS[function](x.double())
    tolerance = 6e-4 if function == "tanh_fast" and kind in ("float", "tf32") else 0.0
    assert compare(y.float() if kind != "int" else y, want, max(tolerance, TOLERANCE[kind]))


def test_special_values(run):
    """What matters to a softmax and to an activation: infinities, zeros, NaN, a wide range."""
    x = torch.zeros(16, 24)
    special = [-math.inf, math.inf, 0.0, -0.0, math.nan, -1e4, 1e4, 1e-30]
    x[0, : len(special)] = torch.tensor(special)
    for function in ("exp2", "exp", "tanh", "sigmoid", "silu", "relu", "relu_squared", "rcp", "sqrt", "abs"):
        y = torch.full_like(x, 7.0)
        run("unary_float_16_24_row", [x, y, list(FUNCTIONS).index(function)], block=32)
        for given, got in zip(special, y[0], strict=False):
            if function == "silu" and given == -1e4:
                assert got == 0  # e^10000 overflows: 0 for -1e-4339
            elif function != "sqrt" or not given < 0:
                want = FUNCTIONS[function](torch.tensor(given, dtype=torch.float64)).float()
                torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case, operation", served("binary", BINARIES, BINARY))
def test_operands_broadcast(run, case, operation, mode):
    kind, rows, cols, _ = case
    x, z = values(kind, rows, cols), values(kind, rows, cols, seed=1)
    if operation == "pow":
        x, z = x.float().abs().to(x.dtype), z.float().abs().to(z.dtype)
    y = values(kind, rows, cols, seed=2)
    run(name("binary", case), [x, z, y, list(BINARY).index(operation), MODES.index(mode)], block=32)
    a, b = x.double(), z.double()
    operands = [(a, b), (a, b[:, :1]), (a, b[:1]), (a, b[0, 0]), (b[0, 0], a), (a, b)][MODES.index(mode)]
    want = BINARY[operation](*operands)
    if kind == "e4m3":
        want = want.clamp(-448, 448)
    assert compare(y.float() if kind != "int" else y, want, TOLERANCE[kind])


def test_the_other_maps(run):
    x, v = values("float", 64, 24), values("float", 64, seed=1)
    wide = x.double()
    rows, cols = v.double()[:, None].expand(64, 24), v.double()[:24].expand(64, 24)
    places = 100.0 * torch.arange(64)[:, None] + torch.arange(24)
    expected = [
        torch.zeros(64, 24), torch.ones(64, 24), torch.full((64, 24), 2.5), rows, cols, wide * rows + cols, 3 * wide,
        places + wide, torch.zeros(64, 24), 3 * torch.exp2(2 * rows), torch.where(wide > rows, wide, -rows),
    ]  # fmt: skip
    for op, want in enumerate(expected):
        y, z = torch.full((64, 24), float("nan")), values("bf16", 64, 16)
        run("others", [x, v, y, z, op], block=128)
        assert compare(y, want.double(), 1e-6), op
        if op == 8:
            assert compare(z.float(), torch.exp2(wide[:, 8:]), TOLERANCE["bf16"])


@pytest.mark.parametrize("case", SHARED, ids=lambda c: name("shared", c))
def test_maps_in_shared_memory(run, case):
    kind, other, rows, cols, _ = case
    x, z = values(kind, rows, cols), values(other, rows, cols, seed=1)
    a, b = x.double(), z.double()
    down, along = torch.arange(rows)[:, None], torch.arange(cols)
    corner = torch.ones_like(a)
    corner[-8:, -16:] = -a[:8, :16]
    expected = [
        torch.zeros_like(a), torch.full_like(a, 2.5), b, a.sigmoid(), a * b, 3 - a, a * 0.5 + b, (a.abs() + 1).sqrt(),
        torch.where(along <= down, b, -1.0), torch.where(a > b, a, -b), 2 * a - b, corner, torch.exp2(b),
        2 * torch.maximum(a[0], b[0]).expand(rows, cols),
    ]  # fmt: skip
    for op, want in enumerate(expected):
        y = torch.full_like(x.float(), float("nan")).to(x.dtype)
        run(name("shared", case), [x, z, y, op], block=96)
        assert compare(y.float(), want, 2 * TOLERANCE[kind] if op in (7, 13) else TOLERANCE[kind]), op


def test_complex_tiles(run):
    parts = [values("float", 16, 16, seed=s) for s in range(4)]
    a, b = torch.complex(*parts[:2]).to(torch.complex128), torch.complex(*parts[2:]).to(torch.complex128)
    expected = [a + b, a - b, a * b, a * b[:1], a * b, a.conj(), (a * a.conj()).real + 0j, a.exp(), a.T, a.T]
    for op, want in enumerate(expected):
        re, im = (torch.full((16, 16), float("nan")) for _ in range(2))
        run("complexes", [*parts, re, im, op], block=32)
        assert compare(torch.complex(re, im), want, 2e-6), op


def test_complex_products(run):
    def numbers(rows, cols, dtype):
        parts = [torch.randint(-3, 4, (rows, cols)).to(dtype) for _ in range(2)]
        return parts, torch.complex(*(p.double() for p in parts))

    torch.manual_seed(0)
    (a_parts, a), (b_parts, b) = (numbers(16, 16, torch.float32) for _ in range(2))
    re, im = (torch.full((16, 16), float("nan")) for _ in range(2))
    run("complexes", [*a_parts, *b_parts, re, im, 10], block=32)
    assert torch.equal(torch.complex(re.double(), im.double()), 2 * (a @ b))
    (a_parts, a), (b_parts, b) = (numbers(n, 32, torch.bfloat16) for n in (64, 32))
    re, im = (torch.full((64, 32), float("nan")) for _ in range(2))
    run("complex_product", [*a_parts, *b_parts, re, im], block=128)
    assert torch.equal(torch.complex(re.double(), im.double()), a @ b.T)


def test_copies_keep_every_bit(run):
    x = values("bf16", 16, 32)
    x[0, :4] = torch.tensor([math.inf, -math.inf, 0.0, -0.0]).bfloat16()
    y = values("bf16", 16, 32, seed=1)
    run("unary_bf16_16_32_row", [x, y, list(FUNCTIONS).index("copy")], block=32)
    assert torch.equal(bits(x), bits(y))


def test_maps_stay_in_registers(folder):
    uses_no_local_memory(folder, "maps")
