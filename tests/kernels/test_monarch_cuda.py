"""monarch_multiply on its compiled kernels in the emulator: against float64 with gradients, tiles and clusters of every
size, what must not be read, what it refuses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402
from tkpy.registry import Case, Maker  # noqa: E402

OP = registry.get("monarch_multiply")
DTYPES = [torch.bfloat16, torch.float16]


def sized(rows, k, q, p, l, s, name=""):
    """r follows from k q = l r."""
    r = k * q // l

    def make(m: Maker):
        factors = {"w1": m.randn(k, q, p, scale=p**-0.5), "w2": m.randn(l, s, r, scale=r**-0.5)}
        return {"x": m.randn(rows, k * p), **factors}

    return Case(name or "x".join(map(str, (rows, k, q, p, l, s))), make, "")


CASES = [
    sized(16, 8, 8, 8, 8, 8, "smallest"),
    sized(70, 4, 48, 24, 8, 40, "six sizes"),
    sized(33, 9, 64, 40, 24, 8, "an odd number of blocks, steps of K that end early"),
    sized(130, 16, 16, 8, 32, 72, "l > k, three granules of a rank"),
    sized(3, 2, 160, 72, 40, 24, "few rows, wide blocks"),
]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/{name}.cu") for name in ("monarch/kernel", "monarch/gradient", "gemm/kernel")]
    return gather(tmp_path_factory.mktemp("monarch"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


def check(case, dtype=torch.bfloat16, **more):
    results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype, **more))
    for result in results:
        assert result.comparison, str(result)
    return results


@pytest.fixture
def cut(monkeypatch):
    """Fixes rows of a tile and CTAs of a cluster; gives the launches, in order."""
    names, launch, chosen = [], machine.launch, [0, 0]

    def run(name, *args, **more):
        args = (*args[:-2], *chosen) if name in ("monarch", "monarch_backward") else args
        names.append(launch(name, *args, **more))
        return names[-1]

    monkeypatch.setattr(OP.module("cuda"), "launch", run)
    return names, chosen


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients(folder, monkeypatch, cut, case, dtype, seed):
    on_machine(monkeypatch, folder, seed)
    with tkpy.record_dispatches() as log:
        assert len(check(case, dtype)) == 4
    assert [(d.op, d.backend) for d in log][:2] == [
        ("monarch_multiply", "emulator"), ("monarch_multiply_backward", "emulator")
    ]  # fmt: skip
    suffix = "bf16" if dtype == torch.bfloat16 else "fp16"
    kernels = ("forward", "backward", "gradient_strided", "gradient_consecutive")
    assert cut[0] == [f"monarch_{kernel}_{suffix}" for kernel in kernels]


@pytest.mark.parametrize("tile", [16, 32, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_tiles_and_clusters(built, cut, tile, ranks):
    """More CTAs than granules or blocks; shares that do not divide; rows that end inside a tile."""
    cut[1][:] = tile, ranks
    check(sized(75, 5, 64, 16, 40, 16))


def test_short_rows_are_cut_into_more_tiles(folder, monkeypatch):
    """The same call on many and few multiprocessors: other tiles, the same numbers."""
    kwargs = sized(128, 8, 16, 16, 16, 16).make(Maker(torch.bfloat16))
    found = []
    for multiprocessors in (1, 132):
        on_machine(monkeypatch, folder, multiprocessors=multiprocessors)
        found.append(tkpy.monarch_multiply(**kwargs, backend="emulator"))
    assert torch.equal(*found)


def test_factors_gradients_in_shares(built, monkeypatch):
    """Sums over shares of the rows, the last one shorter; tiles of 64 x 64 that end inside a block, odd blocks."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a), launch(*a, **k))[1])
    check(sized(600, 3, 128, 16, 8, 72))
    assert [a[3].shape[0] for a in given if a[0] == "monarch_gradient"] == [2, 2]


def test_the_middle_is_kept_where_a_gradient_wants_it(built):
    kwargs = CASES[1].make(Maker(torch.bfloat16))
    lead, middle = len(kwargs["x"]), kwargs["w1"].shape[0] * kwargs["w1"].shape[1]
    for keep in (False, True):
        y, h = OP(*kwargs.values(), keep, backend="emulator")
        want, expected = OP(*kwargs.values(), keep, backend="reference")
        assert h.shape == (lead, middle if keep else 0)
        assert (h.double() - expected.double()).norm() <= 4e-3 * expected.double().norm()
        assert (y.double() - want.double()).norm() <= 1e-2 * want.double().norm()


@pytest.mark.parametrize("wanted", [["x"], ["w1"], ["w2"], ["x", "w2"], ["w1", "w2"]], ids=str)
def test_gradients_of_some(built, wanted):
    kwargs = CASES[1].make(Maker(torch.bfloat16))
    found = {}
    for backend in ("emulator", "reference"):
        leaves = {name: t.clone().requires_grad_(name in wanted) for name, t in kwargs.items()}
        y = tkpy.monarch_multiply(**leaves, backend=backend)
        found[backend] = torch.autograd.grad(y.square().sum(), [leaves[name] for name in wanted])
    for got, want in zip(found["emulator"], found["reference"], strict=True):
        assert bool((got.double() - want.double()).norm() <= 2e-2 * want.double().norm())


def test_a_cotangent_of_the_middle(built):
    """Of a caller of the torch op itself."""
    kwargs = CASES[1].make(Maker(torch.bfloat16))
    found = {}
    for backend in ("emulator", "eager"):
        leaves = [t.clone().requires_grad_() for t in kwargs.values()]
        y, h = OP(*leaves, True, backend=backend)
        cotangents = [Maker(torch.bfloat16, seed=5).randn(*t.shape) for t in (y, h)]
        both = torch.autograd.grad([y, h], leaves, cotangents, retain_graph=True)
        found[backend] = [*both, *torch.autograd.grad(h, leaves[:2], cotangents[1])]
    for got, want in zip(found["emulator"], found["eager"], strict=True):
        assert bool((got.double() - want.double()).norm() <= 2e-2 * want.double().norm())


def test_other_layouts_are_copied(built):
    """Rows off the multiples of 16 bytes, transposed and strided factors."""

    def make(m: Maker):
        w1, w2 = m.randn(4, 8, 32, scale=0.3).mT[:, ::2], m.randn(8, 16, 8, scale=0.3).mT[..., ::2]
        return {"x": m.randn(21, 3, 50)[..., 1:33].transpose(0, 1), "w1": w1, "w2": w2}

    check(Case("strided", make, ""))


def test_a_nan_stays_in_its_row_and_nothing_outside_is_read(built):
    kwargs = CASES[1].make(Maker(torch.bfloat16))
    want = tkpy.monarch_multiply(**kwargs, backend="emulator")
    wide = torch.full((len(kwargs["x"]) + 2, kwargs["x"].shape[1] + 16), float("nan"), dtype=torch.bfloat16)
    wide[1:-1, 8:-8] = kwargs["x"]
    wide[7, 20] = float("nan")
    y = tkpy.monarch_multiply(wide[1:-1, 8:-8], kwargs["w1"], kwargs["w2"], backend="emulator")
    others = torch.arange(len(y)) != 6
    assert torch.equal(y[others], want[others])
    assert y[6].isnan().any()


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    found = []
    for seed in (3, 4):
        on_machine(monkeypatch, folder, seed)
        kwargs = {name: t.requires_grad_() for name, t in CASES[2].make(Maker(torch.float16)).items()}
        y = tkpy.monarch_multiply(**kwargs, backend="emulator")
        found.append([y, *torch.autograd.grad(y.square().sum(), list(kwargs.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "case, dtype, code",
    [
        (OP.cases[1], torch.bfloat16, "sizes"),
        (CASES[0], torch.float32, "dtype"),
        (sized(0, 64, 1024, 8, 512, 8), torch.bfloat16, "shared_memory"),
    ],
    ids=["sizes", "dtype", "shared memory"],
)
def test_refusals(built, case, dtype, code):
    kwargs = case.make(Maker(dtype))
    for backend in ("emulator", "cuda"):
        assert code in [reason.code for reason in tkpy.explain("monarch_multiply", **kwargs).refusals[backend]]
    with pytest.raises(tkpy.Unsupported, match="needs"):
        tkpy.monarch_multiply(**kwargs, backend="emulator")


def test_no_rows(built):
    check(sized(0, 8, 16, 8, 16, 24))
