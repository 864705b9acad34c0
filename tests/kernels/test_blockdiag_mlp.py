"""blockdiag_mlp as one kernel in the emulator: against float64 with gradients, widths, schedules, what must not be
read, what it costs, when it serves, what its launcher refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402
from tkpy.registry import Case, Maker  # noqa: E402

OP = registry.get("blockdiag_mlp")
CUDA = OP.module("cuda")
DTYPES = [torch.bfloat16, torch.float16]


def sized(name, rows, nblocks, c, i, o, activation="gelu", bias=True):
    """c, i and o of a block; nothing is kept for a backward."""

    def make(m: Maker):
        gated, wo = m.randn(nblocks, 2 * i, c, scale=c**-0.5), m.randn(nblocks, o, i, scale=i**-0.5)
        more = {"bias": m.randn(nblocks * o)} if bias else {}
        x = m.randn(rows, nblocks * c)
        return {"x": x, "gated": gated, "wo": wo, "activation": activation, "recompute": True, **more}

    return Case(name, make, "")


WIDTHS = {
    sized("smallest", 1, 1, 8, 8, 8): 128,
    sized("odd blocks, chunks that end early", 70, 3, 24, 136, 40, "silu"): 128,
    sized("several tiles and chunks", 530, 2, 128, 328, 72, "gelu_tanh"): 128,
    sized("more outputs than inputs", 130, 2, 40, 64, 192, "relu"): 192,
    sized("the width of M2-BERT-80M", 300, 4, 192, 72, 192): 192,
    sized("no bias, y through x's tile", 270, 2, 248, 136, 256, bias=False): 256,
}


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/{name}.cu") for name in ("blockdiag_mlp/kernel", "gemm/kernel", "gemm/gated")]
    return gather(tmp_path_factory.mktemp("blockdiag_mlp"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    monkeypatch.setattr(CUDA, "FEWEST_TILES", 1)
    return folder


@pytest.fixture
def ran(monkeypatch):
    """The kernels that the op launches, but for the GEMM's second product, in order."""
    names, launch = [], machine.launch

    def record(*args, **more):
        names.append(launch(*args, **more))
        return names[-1]

    for module in (CUDA, registry.get("gated_mlp").module("cuda")):
        monkeypatch.setattr(module, "launch", record)
    return names


def check(case, dtype=torch.bfloat16, backend="emulator", device="cpu", **more):
    results = list(conformance.check_case(OP, case, backend=backend, dtype=dtype, device=device, **more))
    for result in results:
        assert result.comparison, str(result)
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WIDTHS, ids=lambda case: case.name)
def test_every_width_and_its_gradients(built, ran, case, dtype):
    with tkpy.record_dispatches() as log:
        results = check(case, dtype)
    assert len(results) == 1 + sum(isinstance(t, torch.Tensor) for t in case.make(Maker(dtype)).values())
    assert [(d.op, d.backend) for d in log][:2] == [
        ("blockdiag_mlp", "emulator"),
        ("blockdiag_mlp_backward", "emulator"),
    ]
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    again = [f"gemm_gated_{kind}_two_tma", f"gemm_gated_{kind}_slopes_tma"]
    assert ran == [f"blockdiag_mlp_{kind}_{WIDTHS[case]}", *again]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WIDTHS, ids=lambda case: case.name)
def test_what_it_keeps_for_a_backward(built, ran, case, dtype):
    """The same gradients as without: from the bits that the GEMM's gated product would have kept."""
    kwargs = case.make(Maker(dtype)) | {"backend": "emulator"}
    leaves = [t.requires_grad_() for t in kwargs.values() if isinstance(t, torch.Tensor)]
    y = tkpy.blockdiag_mlp(**kwargs)
    grads = torch.autograd.grad(y.sin().sum(), leaves)
    again = tkpy.blockdiag_mlp(**kwargs | {"recompute": False})
    kept = torch.autograd.grad(again.sin().sum(), leaves)
    fused = WIDTHS[case] <= CUDA.WIDEST_KEPT
    assert ("gemm_gated" in ran[3]) != fused
    assert bool((again - y).norm() <= (0 if fused else 1e-2) * y.norm())
    assert not fused or all(torch.equal(a, b) for a, b in zip(kept, grads, strict=True))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", list(WIDTHS)[2:], ids=lambda case: case.name)
def test_one_cluster_walks_through_all_tiles(folder, monkeypatch, built, case, seed):
    """The same bits as when every tile has a cluster of its own."""
    kwargs = case.make(Maker(torch.bfloat16))
    want = tkpy.blockdiag_mlp(**kwargs, backend="emulator")
    on_machine(monkeypatch, folder, seed + 1, multiprocessors=2)
    assert torch.equal(tkpy.blockdiag_mlp(**kwargs, backend="emulator"), want)


def test_other_layouts(built, ran):
    """Rows of a wider matrix; rows off multiples of 16 bytes, broadcast rows, strided weights and biases are copied."""
    m = Maker(torch.bfloat16)
    wide, gated, wo = m.randn(40, 2, 80), m.randn(4, 48, 64, scale=0.3), m.randn(4, 16, 24, scale=0.3)
    for x, more in [
        (wide[:, 0, :64], {}),
        (wide[..., 3:67], {}),
        (wide[:1, :, :64].expand(20, 2, 64), {}),
        (wide[..., :64], {"gated": m.randn(48, 4, 32, scale=0.3).transpose(0, 1)[..., ::2]}),
        (wide[..., :64], {"wo": m.randn(4, 16, 48, scale=0.3)[..., ::2], "bias": m.randn(129)[1::2]}),
    ]:
        kwargs = {"x": x, "gated": gated[..., :16], "wo": wo, "bias": m.randn(64), **more}
        got, want = (tkpy.blockdiag_mlp(**kwargs, backend=backend) for backend in ("emulator", "reference"))
        assert bool((got.double() - want.double()).norm() <= 1e-2 * want.double().norm())
    assert ran == ["blockdiag_mlp_bf16_128"] * 5


def test_what_lies_outside_is_not_looked_at(built, ran):
    """x is part of a larger matrix that holds NaN; a NaN block of a row reaches what is made of it alone."""
    kwargs = sized("", 150, 4, 72, 136, 24).make(Maker(torch.bfloat16))
    want = tkpy.blockdiag_mlp(**kwargs, backend="emulator")
    x, c = kwargs["x"], kwargs["gated"].shape[2]
    around = torch.full((x.shape[0] + 2, x.shape[1] + 16), float("nan"), dtype=x.dtype)
    around[1:-1, 8:-8] = x
    kwargs["x"] = around[1:-1, 8:-8]
    assert torch.equal(tkpy.blockdiag_mlp(**kwargs, backend="emulator"), want)
    kwargs["x"][7, :c] = float("nan")  # block 0: the gate of wo's blocks 0 and 1
    y, half = tkpy.blockdiag_mlp(**kwargs, backend="emulator"), want.shape[1] // 2
    assert y[7, :half].isnan().all()
    y[7, :half] = want[7, :half]
    assert torch.equal(y, want)
    assert len(ran) == 3


@pytest.mark.parametrize("keep", [False, True], ids=["", "kept"])
def test_what_it_costs(built, keep):
    """No h: x for the gate's blocks and for the value's, y, and the weights once for every 256 rows; gate and value."""
    rows, nblocks, width, inner = 512, 2, 128, 192
    kwargs = sized("", rows, nblocks, width, inner, width, bias=False).make(Maker(torch.bfloat16))
    args = registry.capture(OP, kwargs).args | {"keep": keep}
    with machine.counting() as counters:
        CUDA.forward(*args.values())
        (count,) = counters()
    counts, weights = asdict(count.counters.total), kwargs["gated"].numel() + kwargs["wo"].numel()
    assert counts["tensor_flops"] == 2 * rows * weights
    kept = keep * 2 * rows * nblocks * inner
    moved = 2 * (rows * nblocks * width * 3 + rows // 256 * weights + kept)
    assert 1.0 <= counts["global_bytes"] / moved <= 1.01
    once = 2 * (rows * nblocks * width * 2 + weights + kept)
    assert 1.0 <= 32 * (count.sectors_read + count.sectors_written) / once <= 1.01
    assert counts["bank_conflicts"] == 0


def test_when_it_serves(folder, monkeypatch, ran):
    """Enough tiles, blocks of at most 256, multiples of 8; otherwise the GEMM twice."""
    on_machine(monkeypatch, folder)
    small = sized("", 256, 2, 16, 8, 8).make(Maker(torch.bfloat16))
    for tiles, change, kernel in [
        (2, {}, "blockdiag_mlp_bf16_128"),
        (3, {}, "gemm_gated_bf16_two_tma"),
        (1, sized("", 10, 1, 264, 8, 8).make(Maker(torch.bfloat16)), "gemm_gated_bf16_two_tma"),
        (1, sized("", 10, 1, 8, 8, 264).make(Maker(torch.bfloat16)), "gemm_gated_bf16_two_tma"),
        (1, sized("", 10, 1, 12, 8, 8).make(Maker(torch.bfloat16)), "gemm_gated_bf16_two_generic"),
        (1, sized("", 10, 1, 8, 12, 8).make(Maker(torch.bfloat16)), "gemm_gated_bf16_two_tma"),
        (1, sized("", 10, 1, 8, 8, 12).make(Maker(torch.bfloat16)), "gemm_gated_bf16_two_tma"),
    ]:
        monkeypatch.setattr(CUDA, "FEWEST_TILES", tiles)
        tkpy.blockdiag_mlp(**{**small, **change}, backend="emulator")
        assert ran.pop() == kernel


def test_no_rows(built):
    check(sized("", 0, 2, 8, 16, 24))


def test_the_launcher_checks_again(built):
    x, gated, wo, y = (torch.zeros(*shape).bfloat16() for shape in ((6, 32), (4, 24, 16), (2, 8, 24), (6, 16)))

    z = torch.zeros(6, 48).bfloat16()

    def call(x=x, gated=gated, wo=wo, bias=None, y=y, gate=z, value=z, activation="silu"):
        return machine.launch("blockdiag_mlp", x, gated, wo, bias, y, gate, value, activation, op="blockdiag_mlp")

    for words, wrong in {
        "x: need two dimensions of bf16 or f16": {"x": x.float()},
        "x: need 32 channels": {"x": x[:, :24]},
        "x: need rows on multiples of 16 bytes": {"x": torch.zeros(6, 36).bfloat16()[:, :32]},
        "x: need a contiguous last dimension": {"x": torch.zeros(6, 64).bfloat16()[:, ::2]},
        "gated: need two half-blocks of 24 rows": {"gated": gated[:, :16]},
        "gated: need the dtype and device of x": {"gated": gated.half()},
        "gated: need a multiple of 8 inputs": {"gated": torch.zeros(4, 24, 264).bfloat16()},
        "wo: need three dimensions": {"wo": wo[0]},
        "wo: need multiples of 8 channels": {"wo": torch.zeros(2, 264, 24).bfloat16()},
        "bias: need a contiguous vector": {"bias": torch.zeros(15).bfloat16()},
        "y: need the rows of x": {"y": y[:5]},
        "value: need it where there is a gate": {"value": None},
        "gate and value: need the rows": {"gate": z[:5]},
        "gate and value: need contiguous rows on multiples": {"gate": torch.zeros(6, 52).bfloat16()[:, :48]},
        "activation must be": {"activation": "mish"},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == "blockdiag_mlp_bf16_128"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*WIDTHS, sized("long", 20000, 4, 192, 768, 192)], ids=lambda case: case.name)
def test_on_the_device(built, ran, case, dtype):
    check(case, dtype, "cuda", "cuda")
    assert ran[0].startswith("blockdiag_mlp_")
