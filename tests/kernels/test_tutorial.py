"""The kernels of docs/tutorial.md, taken from the page, compiled and run under all checks, against float64."""

import re

import pytest
from kernel_cases import CACHE, ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from launchers import PLACES, Map, launcher  # noqa: E402  (after the skips)

from tkpy.numerics import compare  # noqa: E402

SEEDS = range(2)


@pytest.fixture(scope="module", params=PLACES)
def run(request, compile_kernel, toolchain):
    page = (ROOT / "docs/tutorial.md").read_text()
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / "tutorial.cu"
    source.write_text("\n".join(re.findall(r"```cuda\n(.*?)```", page, re.DOTALL)))
    return launcher(request.param, compile_kernel.compile_cached(source, "tutorial", CACHE, toolchain), "tutorial")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def blocks(size: int, tile: int) -> int:
    return -(-size // tile)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(64, 64), (1, 1), (65, 130), (100, 72)])
def test_1_copy(run, rows, cols, seed):
    x, y = torch.randn(rows, cols).bfloat16(), torch.full((rows, cols), float("nan")).bfloat16()
    run("tutorial_copy", [x, y, rows, cols], grid=(blocks(cols, 64), blocks(rows, 64)), block=128, seed=seed)
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows, cols", [(16, 128), (1, 1), (33, 101)])
def test_2_softmax(run, rows, cols, seed):
    x, y = 10 * torch.randn(rows, cols), torch.full((rows, cols), float("nan"))
    run("tutorial_softmax", [x, y, rows, cols], grid=blocks(rows, 16), block=32, seed=seed)
    assert compare(y, x.double().softmax(1), 1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, n, k", [(64, 64, 64), (1, 1, 8), (100, 70, 136)])
def test_3_product(run, m, n, k, seed):
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    c = torch.full((m, n), float("nan"))
    maps = [Map(a, (64, 64)), Map(b, (64, 64))]
    run("tutorial_product", [*maps, c, m, n, k], grid=(blocks(n, 64), blocks(m, 64)), block=128, seed=seed)
    assert compare(c, a.double() @ b.double().T, 1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("queries, keys", [(64, 64), (1, 1), (100, 33)])
def test_4_attend_once(run, queries, keys, seed):
    q, k, v = (torch.randn(n, 64).bfloat16() for n in (queries, keys, keys))
    o = torch.full((queries, 64), float("nan")).bfloat16()
    run("tutorial_attend_once", [q, k, v, o, queries, keys, 0.125], grid=blocks(queries, 64), block=128, seed=seed)
    want = (0.125 * q.double() @ k.double().T).softmax(1) @ v.double()
    assert compare(o, want, 1e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("queries, keys", [(64, 64), (1, 1), (1, 200), (100, 130), (130, 300), (150, 70)])
def test_5_attention(run, queries, keys, causal, seed):
    q, k, v = (torch.randn(2, n, 64).bfloat16() for n in (queries, keys, keys))
    o = torch.full((2, queries, 64), float("nan")).bfloat16()
    maps = [Map(x, (1, 64, 64)) for x in (q, k, v, o)]
    run("tutorial_attention", [*maps, queries, keys, 0.125, causal], grid=(blocks(queries, 64), 2), block=128,
        seed=seed)  # fmt: skip
    scores = 0.125 * q.double() @ k.double().transpose(1, 2)
    if causal:
        hidden = torch.ones(queries, keys).triu(keys - queries + 1).bool()
        scores.masked_fill_(hidden, float("-inf"))
    want = scores.softmax(2).nan_to_num(0.0) @ v.double()  # a query that sees no key gets 0
    assert compare(o, want, 1e-2)
