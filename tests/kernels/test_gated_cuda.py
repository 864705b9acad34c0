"""gated_mlp and blockdiag_mlp on the GEMM's gated kernels in the emulator: every case against float64 with gradients,
the kernels that ran, schedules, what must not be read, what it costs, what the launcher refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402
from tkpy.registry import Case, Maker  # noqa: E402

OPS = {name: registry.get(name) for name in ("gated_mlp", "blockdiag_mlp")}
CASES = [(name, case) for name, op in OPS.items() for case in op.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/gemm/{name}.cu") for name in ("kernel", "gated")]
    return gather(tmp_path_factory.mktemp("gemm"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture
def ran(monkeypatch):
    """The gated kernels that the ops launch, in order."""
    names, launch = [], machine.launch

    def record(*args, **more):
        names.append(launch(*args, **more))
        return names[-1]

    monkeypatch.setattr(OPS["gated_mlp"].module("cuda"), "launch", record)
    return names


def dense(rows=150, c=72, i=136, o=24, activation="silu"):
    def make(m: Maker):
        w1, w2 = m.randn(i, c, scale=c**-0.5), m.randn(i, c, scale=c**-0.5)
        return {"x": m.randn(rows, c), "w1": w1, "w2": w2, "w3": m.randn(o, i, scale=i**-0.5), "activation": activation}

    return "gated_mlp", Case("dense", make, "")


def blocks(rows=150, nblocks=4, c=72, i=136, o=24):
    """c, i and o of a block."""

    def make(m: Maker):
        gated, wo = m.randn(nblocks, 2 * i, c, scale=c**-0.5), m.randn(nblocks, o, i, scale=i**-0.5)
        return {"x": m.randn(rows, nblocks * c), "gated": gated, "wo": wo, "bias": m.randn(nblocks * o)}

    return "blockdiag_mlp", Case("blocks", make, "")


def check(named, dtype=torch.bfloat16, backend="emulator", device="cpu", **more):
    results = list(conformance.check_case(OPS[named[0]], named[1], backend=backend, dtype=dtype, device=device, **more))
    for result in results:
        assert result.comparison, str(result)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("named", CASES, ids=lambda named: f"{named[0]} {named[1].name}")
def test_every_case_and_its_gradients(built, named, dtype):
    with tkpy.record_dispatches() as log:
        results = check(named, dtype)
    tensors = sum(isinstance(t, torch.Tensor) for t in named[1].make(Maker(dtype)).values())
    assert len(results) == 1 + tensors
    assert [(d.op, d.backend) for d in log][:2] == [(named[0], "emulator"), (f"{named[0]}_backward", "emulator")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "named, kernel",
    [
        (dense(), "shared_tma"), (dense(c=71), "shared_generic"), (blocks(), "two_tma"), (blocks(i=100), "two_tma"),
        (blocks(c=36), "two_generic"), (blocks(nblocks=3), "two_tma"), (blocks(nblocks=1, rows=3), "two_tma"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1].name,
)  # fmt: skip
def test_one_launch_makes_the_gated_product(built, ran, named, kernel, dtype):
    check(named, dtype, grad=False)
    assert ran == [f"gemm_gated_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_{kernel}"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("multiprocessors", [2, 132])
@pytest.mark.parametrize("named", [dense(300, c=328, i=264), blocks(300, 2, c=264, i=264), blocks(300, 2, 13, 35, 7)])
def test_schedules(folder, monkeypatch, seed, multiprocessors, named):
    """One cluster walks through all tiles and groups, or each has its own; more steps than slots."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    check(named, grad=False)


def test_what_lies_outside_is_not_looked_at(built):
    """x and the weights are parts of larger ones that hold NaN; a NaN block reaches what is made of it alone."""
    kwargs = blocks(70)[1].make(Maker(torch.bfloat16))
    want = tkpy.blockdiag_mlp(**kwargs, backend="emulator")
    x, gated = kwargs["x"], kwargs["gated"]
    around = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    around[1:-1, 8:-8] = x
    kwargs["x"] = around[1:-1, 8:-8]
    assert torch.equal(tkpy.blockdiag_mlp(**kwargs, backend="emulator"), want)
    kwargs["x"][:, : gated.shape[2]] = float("nan")  # block 0: the gate of wo's blocks 0 and 1
    y = tkpy.blockdiag_mlp(**kwargs, backend="emulator")
    half = y.shape[1] // 2
    assert y[:, :half].isnan().all()
    assert torch.equal(y[:, half:], want[:, half:])


@pytest.mark.parametrize("named", [dense(512, 128, 256, 256), blocks(512, 2, 128, 128, 256)], ids=["dense", "blocks"])
def test_what_the_gated_product_costs(folder, monkeypatch, named):
    """x once for each group (all columns are one or two tiles), the weights once for every 256 rows, h once."""
    on_machine(monkeypatch, folder)
    kwargs = named[1].make(Maker(torch.bfloat16))
    kwargs = {k: v for k, v in kwargs.items() if k != "bias"}
    with torch.no_grad(), machine.counting() as counters:
        getattr(tkpy, named[0])(**kwargs, backend="emulator")
        (count,) = (c for c in counters() if "gated" in c.kernel)
    counts = asdict(count.counters.total)
    weights = kwargs["w1"].numel() * 2 if named[0] == "gated_mlp" else kwargs["gated"].numel()
    assert counts["tensor_flops"] == 2 * 512 * weights
    moved = (
        512 * (2 * kwargs["x"].shape[1] + 256) + 2 * weights
    )  # x twice: two tiles of columns, or gate and value of two groups
    assert 1.0 <= counts["global_bytes"] / (2 * moved) <= 1.03


def test_refusals_are_data(built):
    for name, case in (dense(3), blocks(3)):
        kwargs = case.make(Maker(torch.float32))
        assert [r.code for r in tkpy.explain(name, **kwargs).refusals["emulator"]] == ["dtype"]
        with pytest.raises(tkpy.Unsupported, match="dtype: needs bfloat16 or float16, got float32"):
            getattr(tkpy, name)(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    x, w, h = (torch.zeros(*shape).bfloat16() for shape in ((6, 32), (4, 16, 8), (6, 64)))

    def call(x=x, b1=w, b2=w, out=h, gate=h, value=h, halves=True, activation="silu"):
        return machine.launch("gemm_gated", x, b1, b2, out, gate, value, halves, activation, op="gated_mlp")

    for words, wrong in {
        "x: need two dimensions, bf16 or f16": {"x": x.float()},
        "b1: need three dimensions, bf16 or f16": {"b1": w[0]},
        "b1: need the dtype and device": {"b1": w.half()},
        "b2: need the shape of b1": {"b2": w[:, :8]},
        "b1: need a contiguous last dimension": {"b1": torch.zeros(4, 16, 16).bfloat16()[..., ::2]},
        "b1: need one group": {"halves": False},
        "out: need 6 rows of 64": {"out": h[:5]},
        "out: need the dtype and device": {"out": h.float()},
        "out: need it, or gate and value": {"out": None, "gate": None, "value": None},
        "value: need both or neither": {"value": None},
        "value: need contiguous rows, as far apart": {"value": torch.zeros(6, 72).bfloat16()[:, :64]},
        "x: need at most 32 channels": {"x": torch.zeros(6, 40).bfloat16()},
        "activation must be": {"activation": "mish"},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == "gemm_gated_bf16_two_tma"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("named", [*CASES, dense(5000, 328, 520), blocks(5000)], ids=lambda n: f"{n[0]} {n[1].name}")
def test_on_the_device(built, named, dtype):
    check(named, dtype, "cuda", "cuda")
