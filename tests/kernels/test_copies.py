"""Asynchronous copies, barriers and the producer-consumer template: in the emulator under all checks, and on a GPU."""

import itertools

import pytest
from kernel_cases import CACHE, ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, Map, launcher  # noqa: E402  (after the skips)

SEEDS = range(3)


@pytest.fixture(scope="module", params=PLACES)
def run(request, compile_kernel, toolchain):
    folder = compile_kernel.compile_cached(ROOT / "tests/kernels/copies.cu", "copies", CACHE, toolchain)
    return launcher(request.param, folder, "copies")


def reference_copy(x, y, box, source, target):
    """y with the box at `source` of x written at `target`; zero outside x, not written outside y."""
    y = y.clone()
    for place in itertools.product(*map(range, box)):
        at = tuple(s + p for s, p in zip(source, place, strict=True))
        to = tuple(t + p for t, p in zip(target, place, strict=True))
        if all(0 <= t < n for t, n in zip(to, y.shape, strict=True)):
            y[to] = x[at] if all(0 <= a < n for a, n in zip(at, x.shape, strict=True)) else 0
    return y


# rank: (dtype, shape, box of the tile, box of a panel, swizzle)
BOXES = {
    1: (torch.int32, (300,), (128,), (128,), 0),
    2: (torch.bfloat16, (40, 200), (16, 128), (16, 32), 64),
    3: (torch.bfloat16, (3, 20, 136), (1, 16, 128), (1, 16, 32), 64),
    4: (torch.float32, (2, 3, 9, 12), (1, 1, 8, 8), (1, 1, 8, 8), 32),
    5: (torch.float32, (2, 2, 3, 9, 12), (1, 1, 1, 8, 8), (1, 1, 1, 8, 8), 32),
}
PLACES_IN_BOX = {
    "inside": lambda shape, box: (
        tuple((n - b) // 2 // 4 * 4 for n, b in zip(shape, box, strict=True)),
        (0,) * len(box),
    ),
    "past the end": lambda shape, box: (tuple(n - (b + 1) // 2 for n, b in zip(shape, box, strict=True)),) * 2,
    "before the start": lambda shape, box: (tuple(-(b // 4) for b in box), tuple(-(b // 2) for b in box)),
}


@pytest.mark.parametrize("place", PLACES_IN_BOX)
@pytest.mark.parametrize("rank", BOXES)
def test_boxes_of_every_rank(run, rank, place):
    dtype, shape, box, panel, swizzle = BOXES[rank]
    x = torch.arange(torch.Size(shape).numel()).remainder(251).add(1).to(dtype).view(shape)
    y = torch.full(shape, -7).to(dtype)
    source, target = PLACES_IN_BOX[place](shape, box)
    want = reference_copy(x, y, box, source, target)
    pad = (0,) * (5 - rank)
    run(f"copy_{rank}", [Map(x, panel, swizzle), Map(y, panel, swizzle), *source, *pad, *target, *pad], block=32)
    assert torch.equal(y, want)


REDUCTIONS = {
    "add": lambda a, b: a + b,
    "min": torch.minimum,
    "max": torch.maximum,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "inc": lambda a, b: torch.where(a >= b, 0, a + 1),
    "dec": lambda a, b: torch.where((a == 0) | (a > b), b, a - 1),
}
REDUCED = [
    ("float", "add"), *((t, op) for t in ("bf16", "fp16") for op in ("add", "min", "max")),
    *(("int", op) for op in ("add", "min", "max", "and", "or", "xor")), ("u32", "inc"), ("u32", "dec"),
]  # fmt: skip
DTYPES = {
    "float": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int": torch.int32,
    "u32": torch.uint32,
}


@pytest.mark.parametrize("how", ["tile", "bulk"])
@pytest.mark.parametrize("kind, op", REDUCED)
def test_reductions(run, how, kind, op):
    torch.manual_seed(0)
    low = 0 if kind == "u32" else -9
    x, y = (torch.randint(low, 9, (8, 16)) for _ in range(2))  # exact in every type
    want = REDUCTIONS[op](y, x)
    x, y = x.to(DTYPES[kind]), y.to(DTYPES[kind])
    arguments = [Map(x, (8, 16), 0), Map(y, (8, 16), 0)] if how == "tile" else [x, y]
    run(f"{how}_{op}_{kind}", arguments, block=32)
    assert torch.equal(y.long(), want)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_shares_and_sends(run, seed):
    torch.manual_seed(seed)
    x, y = torch.randn(8, 16), torch.full((2, 3, 128), float("nan"))
    run("across", [Map(x, (8, 16), 0), x, y], block=32, grid=2, seed=seed)
    numbers = torch.arange(128.0)
    for rank in range(2):
        assert torch.equal(y[rank, 0], x.flatten())
        assert torch.equal(y[rank, 1], x.flatten())
        assert torch.equal(y[rank, 2], 1000.0 * (1 - rank) + numbers)


@pytest.mark.parametrize("seed", SEEDS)
def test_stores_reach_the_cta_they_name(run, seed):
    y = torch.full((4, 4, 32, 4), -1, dtype=torch.int32)
    run("scatter", [y], block=32, grid=4, seed=seed)
    to, row, lane = torch.meshgrid(*map(torch.arange, (4, 4, 32)), indexing="ij")
    sent = torch.stack([row + 1, lane, row * lane, ~lane], -1)
    assert torch.equal(y, torch.where(((row + lane) % 4 == to)[..., None], sent, 0).int())


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_count_leave_and_live_twice(run, seed):
    x, y = torch.arange(128, dtype=torch.int32), torch.full((65,), -1, dtype=torch.int32)
    run("barriers", [x, y], block=128, seed=seed)
    assert torch.equal(y[:64], x[:64] + x[64:])
    assert y[64] == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grid", [1, 2, 5])
@pytest.mark.parametrize("m, n, k", [(130, 200, 330), (64, 64, 64), (1, 8, 8)])
def test_the_template_is_a_gemm(run, m, n, k, grid, seed):
    torch.manual_seed(seed)
    pitch = -(-k // 8) * 8
    a, b = (torch.randn(rows, pitch).bfloat16()[:, :k] for rows in (m, n))
    c = torch.full((m, -(-n // 8) * 8), float("nan"), dtype=torch.bfloat16)[:, :n]
    maps = [Map(t, (64, 64)) for t in (a, b, c)]
    run("pipeline", [*maps, m, n, k], block=384, grid=grid, shared=91136, seed=seed)
    want = a.double() @ b.double().T
    assert c.isfinite().all()
    assert (c.double() - want).norm() <= 4e-3 * want.norm()
