"""The GEMM ladder, run by the emulator under all checks, against float64."""

import pytest
from kernel_cases import SHARED

torch = pytest.importorskip("torch")
emulator = pytest.importorskip("tkpy.emulator")
if not hasattr(emulator, "TensorMap"):
    pytest.skip("this emulator has no tensor maps", allow_module_level=True)

SEEDS = [0, 1, 2, 3]
GUARD = 64  # elements of NaN before and after every tensor


class Guarded:
    """A tensor inside a NaN-filled buffer: what it does not hold must stay NaN."""

    def __init__(self, rows: int, cols: int, fill: bool = True, pad: int = 0):
        self.pitch = (cols + pad + 7) // 8 * 8
        self.buffer = torch.full((2 * GUARD + rows * self.pitch,), float("nan"), dtype=torch.bfloat16)
        self.tensor = self.buffer[GUARD:-GUARD].view(rows, self.pitch)[:, :cols]
        if fill:
            self.tensor.copy_(torch.randn(rows, cols))

    def intact(self) -> bool:
        outside = self.buffer.clone()
        rows, cols = self.tensor.shape
        outside[GUARD:-GUARD].view(rows, self.pitch)[:, :cols] = float("nan")
        return bool(outside.isnan().all())


@pytest.fixture(scope="module")
def modules(kernel_folder):
    loaded = {}

    def load(name: str):
        if name not in loaded:
            loaded[name] = emulator.load(kernel_folder(f"examples/{name}.cu") / f"{name}.ptx")
        return loaded[name]

    return load


def box(tensor, rows: int = 64):
    return emulator.TensorMap(tensor, (rows, 64), swizzle=128)


def check(run, out: Guarded, want, tolerance: float):
    run.raise_on_findings()
    got = out.tensor.double()
    assert got.isfinite().all()
    assert (got - want).norm() <= tolerance * want.norm()
    assert out.intact(), "nothing outside the result was written"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(64, 64), (1, 8), (63, 64), (65, 67), (130, 200)])
def test_level1_copies(modules, rows, cols, seed):
    x, y = Guarded(rows, cols), Guarded(rows, cols, fill=False)
    grid = (-(-cols // 64), -(-rows // 64), 1)
    args = [box(x.tensor), box(y.tensor)]
    run = modules("level1_copy_tile").launch("level1_copy_tile", grid=grid, block=(32, 1, 1), args=args, seed=seed)
    check(run, y, x.tensor.double(), 0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(64, 256), (1, 1), (65, 255), (130, 67)])
def test_level2_is_a_softmax(modules, rows, cols, seed):
    x, y = Guarded(rows, cols), Guarded(rows, cols, fill=False)
    x.tensor.mul_(10)
    args = [box(x.tensor), box(y.tensor), cols]
    run = modules("level2_row_softmax").launch(
        "level2_row_softmax", grid=(-(-rows // 64), 1, 1), block=(128, 1, 1), args=args, seed=seed
    )
    check(run, y, x.tensor.double().softmax(1), 3e-3)


GEMM_SIZES = [(64, 64, 128), (1, 1, 1), (65, 63, 129), (64, 320, 256), (130, 200, 264)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, k, n", GEMM_SIZES)
@pytest.mark.parametrize(
    "name, cols, shared", [("level3_gemm", 128, 0), ("level4_gemm_pipelined", 256, SHARED["level4_gemm_pipelined"])]
)
def test_levels_3_and_4_are_gemms(modules, name, cols, shared, m, k, n, seed):
    a, b, c = Guarded(m, k), Guarded(k, n), Guarded(m, n, fill=False)
    args = [box(a.tensor), box(b.tensor), box(c.tensor), k]
    grid = (-(-n // cols), -(-m // 64), 1)
    run = modules(name).launch(name, grid=grid, block=(128, 1, 1), shared=shared, args=args, seed=seed)
    check(run, c, a.tensor.double() @ b.tensor.double(), 3e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("m, k, n", [(256, 64, 256), (1, 1, 1), (130, 200, 264), (257, 320, 513)])
def test_level5_is_a_gemm(modules, m, k, n, clusters, seed):
    a, b, c = Guarded(m, k), Guarded(k, n), Guarded(m, n, fill=False)
    args = [box(a.tensor), box(b.tensor), box(c.tensor), m, n, k]
    run = modules("level5_gemm_specialised").launch(
        "level5_gemm_specialised", grid=(2 * clusters, 1, 1), block=(384, 1, 1), cluster=(2, 1, 1),
        shared=SHARED["level5_gemm_specialised"], args=args, seed=seed,
    )  # fmt: skip
    check(run, c, a.tensor.double() @ b.tensor.double(), 3e-3)
