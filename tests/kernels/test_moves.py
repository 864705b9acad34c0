"""Moves between global memory, shared memory and registers: types, layouts, swizzles, scopes, tails; conversions."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, launcher  # noqa: E402  (after the skips)
from sweeps import TORCH, bits, compile_sweep, uses_no_local_memory, values  # noqa: E402


@dataclass(frozen=True)
class Stage:
    kind: str
    rows: int  # of a warp's tile
    cols: int
    layout: str
    swizzle: int
    warps: int

    def __str__(self) -> str:
        return f"stage_{self.kind}_{self.rows}x{self.cols}_{self.layout}_{self.swizzle}_{self.warps}"

    def source(self) -> str:
        return f"STAGE({self}, {self.kind}, {self.rows}, {self.cols}, {self.layout}, {self.swizzle}, {self.warps})"


STAGES = [
    Stage("bf16", 16, 64, "row", 128, 4),
    Stage("bf16", 32, 160, "row", 64, 1),  # five panels
    Stage("bf16", 32, 48, "row", 32, 2),
    Stage("bf16", 16, 48, "row", 0, 1),
    Stage("bf16", 32, 64, "col", 128, 1),
    Stage("bf16", 16, 96, "col", 64, 4),
    Stage("fp16", 32, 32, "col", 32, 8),
    Stage("fp16", 16, 256, "row", 128, 1),
    Stage("float", 32, 64, "row", 128, 1),
    Stage("float", 16, 16, "row", 64, 4),
    Stage("float", 16, 8, "row", 32, 8),
    Stage("float", 16, 72, "row", 0, 1),
    Stage("float", 16, 32, "col", 128, 4),
    Stage("int", 32, 32, "row", 128, 4),
    Stage("int", 16, 16, "col", 64, 1),
    Stage("tf32", 16, 40, "row", 32, 4),
    Stage("tf32", 32, 16, "col", 64, 1),
    Stage("e4m3", 16, 64, "row", 64, 8),
    Stage("e4m3", 32, 128, "row", 128, 1),
    Stage("e4m3", 32, 32, "col", 32, 2),
    Stage("e5m2", 32, 96, "row", 32, 1),
    Stage("e5m2", 64, 64, "col", 64, 1),
    Stage("int8", 16, 32, "row", 32, 1),
    Stage("uint8", 32, 32, "col", 0, 1),
]
# (memory, registers): values convert on the way.
DIRECTS = [
    (t, d, rows, cols, layout, warps)
    for t, d, rows, cols, layout, warps in [
    ("bf16", "bf16", 16, 64, "row", 4), ("bf16", "float", 32, 40, "row", 1), ("fp16", "float", 16, 16, "col", 8),
        ("float", "bf16", 16, 48, "row", 1), ("float", "float", 16, 8, "row", 4), ("float", "float", 8, 16, "col", 1),
        ("int", "int", 32, 24, "row", 1), ("int", "float", 16, 16, "col", 4), ("tf32", "tf32", 16, 24, "row", 1),
        ("float", "e4m3", 16, 32, "row", 1), ("e4m3", "float", 16, 32, "row", 4), ("e5m2", "bf16", 32, 32, "col", 1),
        ("e4m3", "e4m3", 32, 64, "row", 1), ("bf16", "fp16", 16, 16, "col", 1), ("int8", "int", 16, 8, "row", 1),
        ("e5m2", "e5m2", 32, 16, "col", 1),
        ("tf32", "tf32", 32, 32, "row", 1), ("fp16", "fp16", 32, 96, "row", 1), ("uint8", "uint8", 16, 64, "row", 4),
    ]
]  # fmt: skip
ASYNCS = [
    ("bf16", 64, 64, 128, 4),
    ("float", 32, 16, 64, 1),
    ("e4m3", 16, 96, 32, 8),
    ("fp16", 8, 40, 0, 1),
]
PARTS = [
    ("bf16", 16, 32, "row", 128), ("bf16", 32, 16, "col", 64), ("fp16", 16, 16, "row", 32),
    ("float", 32, 32, "row", 128), ("float", 16, 16, "row", 64), ("e4m3", 16, 32, "row", 128),
    ("float", 16, 16, "col", 0), ("tf32", 16, 8, "row", 32),
]  # fmt: skip
TURNS = [("bf16", 16, 16), ("fp16", 32, 48), ("float", 16, 32), ("int", 48, 16), ("tf32", 32, 16), ("e4m3", 32, 32),
         ("e5m2", 32, 64), ("uint8", 32, 32)]  # fmt: skip
KINDS = ["float", "bf16", "fp16", "tf32", "e4m3", "e5m2", "int"]
CONVERTS = [(a, b, 16, 32, "row") for a in KINDS for b in KINDS if a != b] + [
    ("float", "e5m2", 32, 64, "row"), ("e4m3", "bf16", 32, 32, "col"), ("bf16", "float", 48, 16, "col"),
    ("float", "tf32", 32, 16, "col"), ("float", "bf16", 16, 256, "row"),
]  # fmt: skip
PRODUCTS = [("bf16", "k", "k", 128), ("fp16", "k", "mn", 64), ("bf16", "mn", "k", 32), ("fp16", "mn", "mn", 128)]
SPREADS = ["across", "along", "lanes"]
VECTORS = [("float", 64, a, b, 2) for a in SPREADS for b in SPREADS] + [
    ("bf16", 48, "across", "along", 4), ("fp16", 16, "along", "across", 4), ("e4m3", 80, "lanes", "along", 1),
    ("float", 16, "along", "lanes", 1), ("bf16", 96, "across", "lanes", 2), ("float", 48, "lanes", "across", 2),
    ("float", 32, "across", "along", 1),
]  # fmt: skip


def joined(prefix: str, case: tuple) -> str:
    return "_".join([prefix, *map(str, case)])


def kernels() -> list[str]:
    found = [case.source() for case in STAGES]
    for prefix, cases in [
        ("DIRECT", DIRECTS), ("ASYNC", ASYNCS), ("PARTS", PARTS), ("TURN", TURNS), ("CONVERT", CONVERTS),
        ("VECTORS", VECTORS), ("PRODUCT_OF_PARTS", PRODUCTS),
    ]:  # fmt: skip
        found += [f"{prefix}({joined(prefix.lower(), case)}, {', '.join(map(str, case))})" for case in cases]
    return found


@pytest.fixture(scope="module")
def folder(compile_kernel, toolchain):
    return compile_sweep(compile_kernel, toolchain, "moves", kernels())


@pytest.fixture(scope="module", params=PLACES)
def run(request, folder):
    return launcher(request.param, folder, "moves")


def window(x, row, col, height, width, fill):
    """x[row : row + height, col : col + width] with `fill` outside x."""
    out = torch.full((height, width), 0.0).to(x.dtype)
    out[:] = fill
    for r in range(max(0, -row), min(height, x.shape[0] - row)):
        for c in range(max(0, -col), min(width, x.shape[1] - col)):
            out[r, c] = x[row + r, col + c]
    return out


def paste(y, tile, row, col):
    """y with `tile` written at (row, col), what falls outside left out."""
    y = y.clone()
    height, width = tile.shape
    r, c = max(0, -row), max(0, -col)
    part = tile[r : min(height, y.shape[0] - row), c : min(width, y.shape[1] - col)]
    y[row + r : row + r + part.shape[0], col + c : col + c + part.shape[1]] = part
    return y


# What the view is, against the tile, and where the tile begins: (extra rows, extra columns, extra pitch, row, col).
TAILS = {
    "whole": (0, 0, 0, 0, 0),
    "inside": (9, 32, 16, 4, 16),
    "rows and columns": (-3, -5, 5, 0, 0),
    "aligned columns": (-1, -16, 16, 0, 0),
    "last element": (0, 0, 0, None, None),  # the tile begins at the last one
    "before the start": (0, 0, 0, -3, -16),
    "odd everything": (5, 3, 1, 2, 1),
}


def tail(name, height, width):
    rows, cols, pitch, row, col = TAILS[name]
    rows, cols = max(1, height + rows), max(1, width + cols)
    pitch = cols + pitch if name != "aligned columns" else width
    return rows, cols, pitch, rows - 1 if row is None else row, cols - 1 if col is None else col


def strided(x, pitch):
    """The same values with rows `pitch` apart; NaN or 77 between them."""
    wide = torch.full((x.shape[0], pitch), 77.0).to(x.dtype)
    wide[:, : x.shape[1]] = x
    return wide


@pytest.mark.parametrize("where", TAILS)
@pytest.mark.parametrize("case", STAGES, ids=str)
def test_through_shared_memory(run, case, where):
    height = case.warps * case.rows
    rows, cols, pitch, row, col = tail(where, height, case.cols)
    x = strided(values(case.kind, rows, cols), pitch)
    fill = values(case.kind, 1, seed=1)
    registers, y = values(case.kind, height, case.cols, seed=2), values(case.kind, rows, pitch, seed=3)
    expected = window(x[:, :cols], row, col, height, case.cols, fill)
    want = torch.cat([paste(y[:, :cols], expected, row, col), y[:, cols:]], 1)
    done = run(str(case), [x, fill, registers, y, rows, cols, pitch, row, col], block=32 * case.warps)
    assert torch.equal(bits(registers), bits(expected))
    assert torch.equal(bits(y), bits(want))
    if where == "whole" and done is not None:
        free_of_conflicts(done.counters, case)


def free_of_conflicts(counters, case):
    """As many passes through the banks as the bytes need."""
    for opcode, passes in [("ldmatrix", 4), ("stmatrix", 4), ("ld.shared.v2", 2), ("st.shared.v2", 2),
                           ("ld.shared.v4", 4), ("st.shared.v4", 4)]:  # fmt: skip
        count = counters.select(opcode)
        if case.swizzle != 0:
            lanes = -(-count.lanes // 32) if opcode.endswith("v4") else count.issues
            assert count.shared_wavefronts == passes * lanes, opcode


@pytest.mark.parametrize("where", TAILS)
@pytest.mark.parametrize("case", DIRECTS, ids=lambda c: joined("direct", c))
def test_registers_and_global_memory(run, case, where):
    t, d, tile_rows, width, _, warps = case
    height = warps * tile_rows
    rows, cols, pitch, row, col = tail(where, height, width)
    x = strided(values(t, rows, cols), pitch)
    registers, y = values(d, height, width, seed=2), values(t, rows, pitch, seed=3)
    fill = torch.tensor(3.0).to(TORCH[t])
    wide = window(x[:, :cols], row, col, height, width, fill)
    expected = converted(wide, d)
    want = torch.cat([paste(y[:, :cols], converted(expected, t), row, col), y[:, cols:]], 1)
    done = run(joined("direct", case), [x, registers, y, rows, cols, pitch, row, col], block=32 * warps)
    assert torch.equal(bits(registers), bits(expected))
    assert torch.equal(bits(y), bits(want))
    if where == "whole" and done is not None and t == d and t not in ("float", "int") and "row" in case:
        size = height * width * x.element_size()
        if width * x.element_size() % 64 == 0:  # 16 bytes a lane, every sector once
            for opcode in ("ld.global.v4", "st.global.v4"):
                count = done.counters.select(opcode)
                assert (count.lanes, count.global_sectors) == (size // 16, size // 32)


def converted(x, kind):
    """Rounded to nearest even (tf32: ties away), 8-bit types saturated."""
    wide = x.double()
    if kind == "tf32":
        b = x.float().view(torch.int32)
        return ((b + 0x1000) & ~0x1FFF).view(torch.float32)
    if kind in ("int", "int8", "uint8"):
        low, high = {"int": (-(2**31), 2**31 - 1), "int8": (-128, 127), "uint8": (0, 255)}[kind]
        return wide.round().clamp(low, high).to(TORCH[kind])
    if kind in ("e4m3", "e5m2"):
        most = {"e4m3": 448.0, "e5m2": 57344.0}[kind]
        return x.float().clamp(-most, most).to(TORCH[kind])
    return x.float().to(TORCH[kind])


@pytest.mark.parametrize("where", ["whole", "inside", "rows and columns", "aligned columns", "before the start"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", ASYNCS, ids=lambda c: joined("async", c))
def test_cp_async(run, case, where, transposed):
    kind, height, width, _, warps = case
    rows, cols, pitch, row, col = tail(where, height, width)
    x = strided(values(kind, rows, cols), pitch)
    y = values(kind, height, width, seed=2)
    expected = window(x[:, :cols], row, col, height, width, torch.tensor(0.0).to(x.dtype))
    stored, strides = (x, (pitch, 1)) if not transposed else (x.T.contiguous(), (1, rows))
    run(joined("async", case), [stored, y, rows, cols, *strides, row, col], block=32 * warps)
    assert torch.equal(bits(y), bits(expected))


@pytest.mark.parametrize("place", [(0, 0, 32, 64), (16, 32, 0, 16), (24, 8, 8, 88), (32, 72, 16, 8)])
@pytest.mark.parametrize("case", PARTS, ids=lambda c: joined("parts", c))
def test_sub_tiles(run, case, place):
    kind, rows, cols, _, _ = case
    align = 16 // values(kind, 1).element_size()
    row, col, to_row, to_col = (p // align * align if i % 2 else p for i, p in enumerate(place))
    x, small = values(kind, 64, 128), values(kind, 16, 16, seed=5)
    part, y, z = values(kind, rows, cols, seed=2), values(kind, 64, 128, seed=3), values(kind, rows, cols, seed=4)
    run(joined("parts", case), [x, small, part, y, z, row, col, to_row, to_col], block=32)
    expected = x[row : row + rows, col : col + cols]
    want = paste(paste(x, expected, to_row, to_col), small, 0, 0)
    assert torch.equal(bits(part), bits(expected))
    assert torch.equal(bits(z), bits(expected))
    assert torch.equal(bits(y), bits(want))


@pytest.mark.parametrize("a_row, b_row", [(0, 0), (8, 16), (32, 24)])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("case", PRODUCTS, ids=lambda c: joined("product", c))
def test_products_of_sub_tiles(run, case, a_row, b_row, place):
    kind, a_order, b_order, swizzle = case
    panel = swizzle // 2  # K along the rows: any 32 bytes; otherwise at a panel
    a_col, b_col = (16 * (place + i) if o == "k" else panel * place for i, o in enumerate((a_order, b_order), 1))
    a_col, b_col = (min(c, 128 - (32 if o == "k" else 64)) for c, o in ((a_col, a_order), (b_col, b_order)))
    a, b = (torch.randint(-3, 4, (96, 128)).to(TORCH[kind]) for _ in range(2))
    part_a = (
        a[a_row : a_row + 64, a_col : a_col + 32] if a_order == "k" else a[a_row : a_row + 32, a_col : a_col + 64].T
    )
    part_b = (
        b[b_row : b_row + 64, b_col : b_col + 32].T if b_order == "k" else b[b_row : b_row + 32, b_col : b_col + 64]
    )
    d = torch.full((64, 64), float("nan"))
    run(joined("product_of_parts", case), [a, b, d, a_row, a_col, b_row, b_col], block=128)
    left, right = part_a.double(), part_b.double()
    assert torch.equal(d.double(), left @ right + left[:, 16:] @ right[16:])


@pytest.mark.parametrize("case", TURNS, ids=lambda c: joined("turn", c))
def test_layouts_and_transposes(run, case):
    kind, rows, cols = case
    x = values(kind, rows, cols)
    other, back = (values(kind, rows, cols, seed=s) for s in (2, 3))
    turned = [values(kind, cols, rows, seed=s) for s in (4, 5, 6)]
    run(joined("turn", case), [x, other, back, *turned], block=32)
    for got in (other, back):
        assert torch.equal(bits(got), bits(x))
    for got in turned:
        assert torch.equal(bits(got), bits(x.T))


@pytest.mark.parametrize("case", CONVERTS, ids=lambda c: joined("convert", c))
def test_conversions(run, case):
    a, b, rows, cols, _ = case
    x = values(a, rows, cols)
    if a not in ("int", "e4m3", "e5m2"):
        x = converted(x.float() * torch.logspace(-3, 5, cols), a)  # some beyond the range of 8 bits
    y = values(b, rows, cols, seed=1)
    run(joined("convert", case), [x, y], block=32)
    assert torch.equal(bits(y), bits(converted(x, b)))


@pytest.mark.parametrize("first, length", [(0, None), (3, None), (2, 9), (-2, 7)])
@pytest.mark.parametrize("case", VECTORS, ids=lambda c: joined("vectors", c))
def test_vectors(run, case, first, length):
    kind, size, _, _, _ = case
    length = length or size
    x, y = values(kind, length), values(kind, length, seed=1)
    z = torch.full((size,), float("nan"))
    inside = torch.tensor([0 <= first + i < length for i in range(size)])
    at = torch.arange(first, first + size).clamp(0, length - 1)
    filled = torch.where(inside, x.float()[at], -1.0)
    want = y.clone()
    want[max(first, 0) : max(0, min(length, first + size))] = filled[inside].to(y.dtype)
    run(joined("vectors", case), [x, y, z, length, first], block=32)
    assert torch.equal(bits(y), bits(want))
    assert torch.equal(z, filled + torch.where(inside, x.float()[at], 0.0))


@pytest.mark.parametrize("b, h", [(0, 0), (1, 2)])
def test_parts_of_registers_and_tensors(run, b, h):
    x = values("bf16", 2, 32, 3, 64)
    y, z = values("bf16", 16, 32, seed=1), values("bf16", 16, 16, seed=2)
    run("slices", [x, y, z, b, h], block=32)
    assert torch.equal(bits(y), bits(x[b, 16:, h, 32:]))
    assert torch.equal(bits(z), bits(x[b, 16:, h, 48:]))


def test_moves_stay_in_registers(folder):
    report = uses_no_local_memory(folder, "moves")
    sass = report["kernels"][str(STAGES[0])]["sass"]
    if sass is not None:  # 16 rows x 64 columns a warp
        assert sass["LDSM"] == sass["STSM"] == 4
