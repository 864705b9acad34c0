"""Every product: types, storage orders, widths, A from shared memory or registers, of a warpgroup and of a warp."""

from dataclasses import dataclass

import pytest
from kernel_cases import CACHE, ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, launcher  # noqa: E402  (after the skips)

TORCH = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2, "int8": torch.int8, "uint8": torch.uint8,
}  # fmt: skip
FP8 = [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")]
BYTES = [("int8", "int8"), ("int8", "uint8"), ("uint8", "int8"), ("uint8", "uint8")]
WGMMA = [
    *(("float", t, t) for t in ("bf16", "fp16", "tf32")),
    *(("float", *pair) for pair in FP8),
    ("fp16", "fp16", "fp16"),
    *(("fp16", *pair) for pair in FP8),
    *(("int", *pair) for pair in BYTES),
]
ORDERS = {"ab": ("k", "mn"), "abt": ("k", "k"), "atb": ("mn", "mn"), "atbt": ("mn", "k")}
ALL_WIDTHS = [("float", "bf16", "bf16"), ("fp16", "fp16", "fp16"), ("int", "int8", "int8")]


@dataclass(frozen=True)
class Product:
    scope: str
    d: str
    a: str
    b: str
    order: str
    n: int
    k: int
    register: bool = False

    def __str__(self) -> str:
        return (
            f"{self.scope}_{self.d}_{self.a}_{self.b}_{self.order}_{self.n}_{self.k}_{'rs' if self.register else 'ss'}"
        )

    def source(self) -> str:
        types = f"{self}, {self.d}, {self.a}, {self.b}, {', '.join(ORDERS[self.order])}"
        if self.scope == "warp":
            return f"MMA({types}, {self.k})"
        return f"WGMMA({types}, {self.n}, {self.k}, {'true' if self.register else 'false'})"


def step(kind: str) -> int:
    """K of one instruction: 32 bytes."""
    return {"bf16": 16, "fp16": 16, "tf32": 8}.get(kind, 32)


def served(d: str, n: int) -> bool:
    """Integers have fewer widths; tiles of fp16 have pairs of columns in each lane."""
    return d == "float" or n % 16 == 0 or (d == "int" and n in (8, 24))


def cases() -> list[Product]:
    found = []
    for d, a, b in WGMMA:
        two_bytes = a in ("bf16", "fp16")
        widths = range(8, 257, 8) if (d, a, b) in ALL_WIDTHS else (24, 64, 256)
        for n in filter(lambda n: served(d, n), widths):
            found.append(Product("wgmma", d, a, b, "abt", n, 2 * step(a)))
        for n in filter(lambda n: served(d, n), (8, 96)):
            found.append(Product("wgmma", d, a, b, "abt", n, 4 * step(a), True))
        if two_bytes:
            # 16, 48 and 64 columns give B the 32-, 32- and 128-byte swizzles; 96 the 64-byte one.
            found += [Product("wgmma", d, a, b, o, n, 48) for o in ("ab", "atb", "atbt") for n in (16, 48, 96, 64, 256)]
            found += [Product("wgmma", d, a, b, "ab", n, 48, True) for n in (16, 96, 128)]
    for d, a, b in WGMMA:
        if not (d == "fp16" and a in ("e4m3", "e5m2")):
            found += [Product("warp", d, a, b, o, 32, 2 * step(a)) for o in ORDERS]
    return found


CASES = cases()


@pytest.fixture(scope="module", params=PLACES)
def run(request, compile_kernel, toolchain):
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / "products.cu"
    header = (ROOT / "tests/kernels/products.cuh").read_text()
    text = header + "\n".join(case.source() for case in CASES) + "\n"
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    return launcher(request.param, compile_kernel.compile_cached(source, "products", CACHE, toolchain), "products")


def integers(rows: int, cols: int, kind: str) -> "torch.Tensor":
    low = 0 if kind == "uint8" else -3
    return torch.randint(low, 4, (rows, cols))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_product(run, case):
    torch.manual_seed(0)
    m, n = (32, 32) if case.scope == "warp" else (64, case.n)
    a, b = integers(m, case.k, case.a), integers(case.k, n, case.b)
    stored_a = a.T.contiguous() if case.order.startswith("at") else a
    stored_b = b.T.contiguous() if case.order.endswith("bt") else b
    d = torch.full((m, n), float("nan"))
    arguments = [stored_a.to(TORCH[case.a]), stored_b.to(TORCH[case.b]), d]
    run(str(case), arguments, block=32 if case.scope == "warp" else 128)
    assert torch.equal(d, 2.0 * (a @ b))
