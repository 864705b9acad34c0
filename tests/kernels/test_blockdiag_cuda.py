"""blockdiag_linear on the GEMM's blocks in the emulator: every case against float64 with gradients, the kernels that
ran, schedules, shares, what must not be read, what it costs, what it refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402
from tkpy.registry import Case, Maker  # noqa: E402

OP = registry.get("blockdiag_linear")
CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/gemm/kernel.cu")


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture
def ran(monkeypatch):
    """The kernels that the op launches, in order."""
    names, launch = [], machine.launch

    def record(*args, **more):
        names.append(launch(*args, **more))
        return names[-1]

    monkeypatch.setattr(OP.module("cuda"), "launch", record)
    return names


def aligned(rows=150, blocks=4, o=72, i=40, bias=True, **more):
    """Blocks of multiples of 8 channels: everything goes by TMA."""

    def make(m: Maker):
        weight = m.randn(blocks, o, i, scale=i**-0.5)
        return {"x": m.randn(rows, blocks * i), "weight": weight, "bias": m.randn(blocks * o) if bias else None, **more}

    return Case("aligned", make, "by TMA")


def check(case, dtype=torch.bfloat16, backend="emulator", device="cpu"):
    results = list(conformance.check_case(OP, case, backend=backend, dtype=dtype, device=device))
    for result in results:
        assert result.comparison, str(result)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = check(case, dtype)
    tensors = sum(isinstance(t, torch.Tensor) for t in case.make(Maker(dtype)).values())
    assert len(results) == 1 + tensors
    assert [(d.op, d.backend) for d in log][:2] == [
        ("blockdiag_linear", "emulator"), ("blockdiag_linear_backward", "emulator")
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes", [{}, {"rows": 260, "o": 264, "i": 72}, {"blocks": 2, "o": 8, "i": 136}, {"blocks": 1, "rows": 3}], ids=str
)
def test_whole_blocks_go_by_tma(built, ran, dtype, sizes):
    check(aligned(**sizes), dtype)
    name = "gemm_bf16" if dtype == torch.bfloat16 else "gemm_fp16"
    assert ran == [f"{name}_mk_nk_tma", f"{name}_mk_kn_tma", f"{name}_km_kn_tma"]


@pytest.mark.parametrize("sizes, route", [({"i": 36}, "generic"), ({"o": 20}, "tma"), ({"shuffle": True}, "generic")])
def test_other_blocks_go_by_masked_loads(built, ran, sizes, route):
    check(aligned(**sizes))
    assert ran[0].endswith(route)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("multiprocessors", [2, 132])
@pytest.mark.parametrize("more", [{}, {"i": 39}], ids=["tma", "generic"])
def test_schedules(folder, monkeypatch, seed, multiprocessors, more):
    """One cluster walks through all blocks and tiles, or each has its own; more steps than slots."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    check(aligned(rows=300, blocks=3, o=264, **{"i": 328, **more}))


@pytest.mark.parametrize("rows", [1024, 2048, 2500])
def test_the_gradient_in_shares(built, monkeypatch, rows):
    """Sums over shares of the rows, the last one shorter; the same call gives the same bits."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a[3]), launch(*a, **k))[1])
    check(aligned(rows=rows, blocks=2, o=24, i=16))
    assert given[-1].shape[:-3] == ((rows // 1024,) if rows >= 2048 else ())
    kwargs = aligned(rows=rows, blocks=2, o=24, i=16).make(Maker(torch.bfloat16))
    weight = kwargs["weight"].requires_grad_(True)
    found = [
        torch.autograd.grad(tkpy.blockdiag_linear(**kwargs, backend="emulator").square().sum(), weight)[0]
        for _ in range(2)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("more", [{}, {"i": 39}, {"shuffle": True}], ids=str)
def test_what_lies_outside_is_not_looked_at(built, more):
    """x, y's cotangent and the weight are parts of larger ones that hold NaN; so is a neighbouring block's x."""
    make = Maker(torch.bfloat16)
    kwargs = aligned(rows=70, blocks=3, **more).make(make)
    x, weight = kwargs["x"], kwargs["weight"]
    around = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    around[1:-1, 8:-8] = x
    wide = torch.full((5, weight.shape[1], weight.shape[2] + 8), float("nan"), dtype=x.dtype)
    wide[1:4, :, :-8] = weight
    inside = {**kwargs, "x": around[1:-1, 8:-8], "weight": wide[1:4, :, :-8]}
    y, want = (tkpy.blockdiag_linear(**k, backend="emulator") for k in (inside, kwargs))
    assert torch.equal(y, want)
    if not more.get("shuffle"):
        i, o = weight.shape[2], weight.shape[1]
        inside["x"][:, i : 2 * i] = float("nan")
        y = tkpy.blockdiag_linear(**inside, backend="emulator")
        assert y[:, o : 2 * o].isnan().all()
        y[:, o : 2 * o] = want[:, o : 2 * o]
        assert torch.equal(y, want)


def test_nothing_is_copied(built, monkeypatch):
    """Slices of a wider projection, and their gradients, go in as they are."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a), launch(*a, **k))[1])
    kwargs = aligned(rows=20).make(Maker(torch.bfloat16))
    whole = torch.randn(20, 400).bfloat16()
    x = whole[:, 8:168].requires_grad_(True)
    y = tkpy.blockdiag_linear(x, kwargs["weight"], backend="emulator")
    dy = torch.randn(20, 2 * y.shape[1]).bfloat16()[:, : y.shape[1]]
    y.backward(dy)
    assert [args[1].data_ptr() for args in given] == [x.data_ptr(), dy.data_ptr()]
    assert all(args[2].data_ptr() == kwargs["weight"].data_ptr() for args in given)


def test_what_it_costs(folder, monkeypatch):
    """At tiles that fit: x once, W once for every 256 rows, y once; products as issued; no bank conflicts."""
    on_machine(monkeypatch, folder)
    rows, blocks, o, i = 512, 4, 256, 128
    kwargs = aligned(rows, blocks, o, i, bias=False).make(Maker(torch.bfloat16))
    call = registry.capture(OP, kwargs)
    with torch.no_grad(), machine.counting() as counters:
        tkpy.blockdiag_linear(**kwargs, backend="emulator")
        counts = asdict(machine.total(counters()))
    assert OP.nbytes(call) == 2 * (rows * blocks * (i + o) + blocks * o * i)
    assert OP.flops(call) == 2 * rows * blocks * o * i
    again = 2 * blocks * o * i * (rows // 256 - 1)  # the weight, for the next rows
    assert 1.0 <= counts["global_bytes"] / (OP.nbytes(call) + again) <= 1.02
    assert 1.0 <= counts["flops"] / OP.flops(call) <= 1.02  # products, and the bias of none
    assert counts["shared_wavefronts"] / counts["shared_requests"] <= 2.05  # 8 bytes a lane: two passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_refusals_are_data(built, dtype):
    kwargs = aligned(rows=3).make(Maker(dtype))
    assert [r.code for r in tkpy.explain("blockdiag_linear", **kwargs).refusals["emulator"]] == ["dtype"]
    with pytest.raises(tkpy.Unsupported, match=f"dtype: needs bfloat16 or float16, got {str(dtype)[6:]}"):
        tkpy.blockdiag_linear(**kwargs, backend="emulator")


def test_sizes_that_are_refused(built):
    big = torch.zeros(1, dtype=torch.float16).expand(2**31 - 512, 1)
    weight = torch.zeros(1, 1, 1, dtype=torch.float16)
    assert [r.code for r in tkpy.explain("blockdiag_linear", big, weight).refusals["emulator"]] == ["size"]
    assert tkpy.explain("blockdiag_linear", big[1:], weight).refusals["emulator"] == ()


def test_the_launcher_checks_again(built):
    x, weight, y = torch.zeros(6, 32), torch.zeros(4, 8, 12), torch.zeros(6, 48)
    x, weight, y = x.bfloat16(), weight.bfloat16(), y.bfloat16()

    def call(a=x, b=weight, out=y, bias=None, orders=("consecutive", "", "consecutive")):
        return machine.launch("gemm_blocks", a, b, out, bias, *orders, op="blockdiag_linear")

    for words, wrong in {
        "a: need dtype bf16 or f16": {"a": x.float()},
        "b: need the dtype of a": {"b": weight.half()},
        "out: need the dtype of a": {"out": y.float()},
        "out: need the rows of a": {"out": y[:5]},
        "a: need at most 32 channels": {"a": torch.zeros(6, 33).bfloat16()},
        "out: need at most 48 channels": {"out": torch.zeros(6, 49).bfloat16()},
        "a: need contiguous channels": {"a": torch.zeros(32, 6).bfloat16().t()},
        "b: need one contiguous dimension": {"b": torch.zeros(4, 8, 24).bfloat16()[..., ::2]},
        "bias: need a contiguous vector of 48": {"bias": y[0, :7]},
        "a_order: need consecutive, interleaved or shuffled, got backwards": {"orders": ("backwards", "", "shuffled")},
        "out: need two dimensions": {"out": weight},
        "out: need three dimensions, or four for shares": {"b": x, "out": y},
        "b: need as many rows as a has columns": {"b": x, "out": weight},
        "out: need contiguous rows": {"a": x.t(), "b": y, "out": torch.zeros(4, 12, 8).bfloat16().mT,
                                      "orders": ("consecutive", "consecutive", "")},
    }.items():  # fmt: skip
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == "gemm_bf16_mk_kn_generic"  # blocks of 12


def test_negative_control(built, monkeypatch):
    module = OP.module("cuda")
    right = module.product
    monkeypatch.setattr(module, "product", lambda *a, **k: right(*a, **k).copy_(a[2].roll(1, -1)))
    case = aligned(rows=20)
    assert not all(r.comparison for r in conformance.check_case(OP, case, backend="emulator", dtype=torch.bfloat16))


def test_it_lives_under_compile_and_opcheck(built):
    torch._dynamo.reset()
    kwargs = aligned(rows=9).make(Maker(torch.bfloat16))
    x, weight, bias = (t.requires_grad_() for t in kwargs.values())

    def layer(x, weight, bias):
        return tkpy.blockdiag_linear(x, weight, bias, backend="emulator")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias), layer(x, weight, bias))
    torch.library.opcheck(OP.torch_op, (x, weight, bias, False, weight.shape[0] * weight.shape[1], "emulator"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, aligned(), aligned(rows=5000, o=264, i=328)], ids=lambda case: case.name)
def test_on_the_device(built, case, dtype):
    check(case, dtype, "cuda", "cuda")
