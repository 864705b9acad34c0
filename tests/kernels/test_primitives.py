"""The tile primitives in the emulator, one at a time, against float64. Findings fail a test."""

import pytest
from kernel_cases import CACHE, ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from tkpy import emulator  # noqa: E402  (after the skip)


@pytest.fixture(scope="module")
def module(compile_kernel, toolchain):
    source = ROOT / "tests/kernels/primitives.cu"
    return emulator.load(compile_kernel.compile_cached(source, "primitives", CACHE, toolchain) / "primitives.ptx")


def launch(module, name, args, threads, seed=0):
    module.launch(name, block=(threads, 1, 1), args=args, seed=seed).raise_on_findings()


@pytest.mark.parametrize("m, n, k", [(64, None, 64), (64, None, 33), (50, 41, 64), (1, 1, 1), (63, 17, 50)])
@pytest.mark.parametrize("order", ["ab", "abt", "atb", "atbt"])
@pytest.mark.parametrize(
    "dtype, swizzle, width", [("bf16", 128, 128), ("bf16", 64, 96), ("bf16", 32, 48), ("fp16", 128, 256)]
)
def test_products(module, order, dtype, swizzle, width, m, n, k):
    torch.manual_seed(0)
    n = n or width
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    a, b = torch.randn(m, k).to(kind), torch.randn(k, n).to(kind)
    stored_a = a.T.contiguous() if order.startswith("at") else a
    stored_b = b.T.contiguous() if order.endswith("bt") else b
    d = torch.full((m, n), float("nan"))
    launch(module, f"{order}_{dtype}_{swizzle}", [stored_a, stored_b, d, m, n, k], 128)
    want = a.double() @ b.double()
    assert d.isfinite().all()
    assert (d.double() - want).norm() <= 1e-6 * want.norm()


def test_a_register_operand(module):
    torch.manual_seed(1)
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    d = torch.full((64, 64), float("nan"))
    launch(module, "register_a", [a, b, d], 128)
    want = a.double() @ b.double()
    assert d.isfinite().all()
    assert (d.double() - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("swizzles", ["128_64", "32_128", "0_32"])
def test_register_tiles_through_shared_memory(module, swizzles, seed):
    x = torch.arange(32 * 64).view(32, 64).to(torch.int16).view(torch.bfloat16)
    y = torch.full_like(x, float("nan"))
    launch(module, f"roundtrip_{swizzles}", [x, y], 32, seed)
    assert torch.equal(x.view(torch.int16), y.view(torch.int16))


@pytest.mark.parametrize("rows, cols", [(32, 72), (31, 71), (1, 1), (17, 8)])
def test_row_reductions(module, rows, cols):
    torch.manual_seed(2)
    x = torch.rand(rows, cols)
    best, total = torch.full((rows,), float("nan")), torch.full((rows,), float("nan"))
    scaled = torch.full_like(x, float("nan"))
    launch(module, "reductions", [x, best, total, scaled, rows, cols], 32)
    assert torch.equal(best, x.amax(1))
    torch.testing.assert_close(total, x.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled, x * x.sum(1, keepdim=True), rtol=1e-5, atol=0)
