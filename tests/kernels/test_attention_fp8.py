"""fp8 attention in the emulator, under all checks: every case of the op, odd lengths, several schedules; its error
beside that of the inputs' own rounding; what it refuses; quantize_blocks."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from fp8_runs import OP, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine, numerics  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/attention_fp8/kernel.cu")


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=torch.bfloat16, grad=False))
    for result in results:
        assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == ("attention_fp8", "emulator")


@pytest.mark.parametrize("sq, sk", [(1, 1), (1, 1000), (127, 129), (128, 128), (129, 257), (257, 31)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(built, sq, sk, causal):
    assert disagreement(inputs(1, sq, sk, 1, 1, 64, causal=causal)) == ""


@pytest.mark.parametrize("d, dv", [(16, 16), (48, 80), (112, 112), (128, 64), (32, 128)])
def test_head_dimensions(built, d, dv):
    assert disagreement(inputs(1, 70, 150, 2, 1, d, dv, softcap=1.5, window=(70, 20))) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (150, 60), "softcap": 4.0, "scale": 0.3}], ids=str
)
@pytest.mark.parametrize("d, multiprocessors", [(64, 2), (128, 1)])
def test_persistent_ctas_go_round_their_rings(folder, monkeypatch, d, multiprocessors, options, seed):
    """Several tiles for each CTA, more blocks than slots, under several schedules."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    sinks = torch.tensor([0.5, 2.0])
    assert disagreement(inputs(1, 300, 530, 2, 1, d, seed=seed, sinks=sinks, **options)) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"scale": -0.7},
        {"scale": 3.0},
        {"softcap": 1e-3},
        {"window": (0, 0)},
        {"window": (2**40, 2**40)},
    ],
    ids=str,
)
def test_extremes(built, options):
    assert disagreement(inputs(1, 20, 133, 2, 2, 64, **options)) == ""


def test_scales_far_apart(built):
    """Blocks of values, keys and queries of very different size; a block of zeros."""
    kwargs = inputs(1, 140, 700, 1, 1, 64)
    kwargs["descale_v"] *= torch.tensor([1e-6, 1.0, 1e6, 1e-3, 1e4, 1.0])
    kwargs["descale_k"] *= torch.tensor([1.0, 0.1, 0.5, 1e-3, 1.5, 1.0])
    kwargs["v"][:, 256:384] = 0
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("d", [64, 128])
def test_the_error_against_unquantised_inputs(built, d):
    """e4m3 has a relative step of 1/8 at most: rounding errors of 2.6 % of the norm in q, k, v and weights, each, give
    less than 7 % of the output's; one scale for all would lose what is small."""
    make = tkpy.registry.Maker(torch.float32)
    q, k, v = (make.randn(1, 400, 2, d) * torch.exp2(4 - torch.arange(400) // 128).view(1, -1, 1, 1) for _ in range(3))
    q, k = q / 16, k / 16
    quantised = [tkpy.quantize_blocks(t) for t in (q, k, v)]
    scales = {f"descale_{name}": s for name, (_, s) in zip("qkv", quantised, strict=True)}
    with torch.no_grad():
        got = tkpy.attention_fp8(*(t for t, _ in quantised), **scales, backend="emulator")
        want = tkpy.attention(q.double(), k.double(), v.double(), backend="reference")
    comparison = numerics.compare(got, want, 7e-2)
    assert comparison, str(comparison)


def test_quantize_blocks():
    x = torch.randn(2, 300, 3, 16, dtype=torch.float64)
    x[:, 128:256] *= 1e5
    x[0, :128, 1] = 0
    x[1, 0, 2, 0], x[1, 1, 2, 0] = 448.0 * 4, -448.0 * 4
    x8, descale = tkpy.quantize_blocks(x)
    assert (x8.shape, x8.dtype) == (x.shape, torch.float8_e4m3fn)
    assert (descale.shape, descale.dtype) == ((2, 3, 3), torch.float32)
    assert descale[0, 1, 0] == 1.0
    assert descale[1, 2, 0] == 4.0  # the largest is exactly representable
    of_row = descale.double().transpose(1, 2).repeat_interleave(128, 1)[:, :300, :, None]
    assert ((x8.double() * of_row - x).abs() <= x.abs() / 16 + of_row / 1024).all()  # half a step; below 2^-6, of 2^-9
    peaks = x8.float().abs()[:, :128].amax((1, 3))
    assert ((peaks >= 224) | (peaks == 0)).all()
    assert tkpy.quantize_blocks(torch.zeros(1, 0, 2, 16))[1].shape == (1, 2, 0)


def test_turning_the_values_costs_no_bank_conflict(built):
    """Every block once, in whole passes: 512 bytes in and out of shared memory are 4 each."""
    with torch.no_grad(), machine.counting() as counters:
        tkpy.attention_fp8(**inputs(1, 130, 300, 1, 1, 128), backend="emulator")
    total = machine.total(counters())
    assert total.bank_conflicts == 0
    assert total.shared_requests > 0


def test_values_beyond_the_sequence_are_not_read(built):
    """NaN right behind v and k."""
    kwargs = inputs(1, 40, 200, 1, 1, 64)
    for name in ("k", "v"):
        longer = torch.full((1, 260, 1, 64), float("nan")).to(torch.float8_e4m3fn)
        longer[:, :200] = kwargs[name]
        kwargs[name] = longer[:, :200]
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize(
    "change, code",
    [({"out_dtype": torch.float16}, "out_dtype"), ({}, "head_dim")],
    ids=["dtype", "width"],
)
def test_refusals_are_data(built, change, code):
    kwargs = inputs(1, 3, 5, 1, 1, 64 if change else 24, **change)
    assert [r.code for r in tkpy.explain("attention_fp8", **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.attention_fp8(**kwargs, backend="emulator")
    assert [r.code for r in tkpy.explain("attention_fp8", **kwargs).refusals["triton"]][-1:] == ["not_written"]


def test_the_launcher_checks_again(built):
    good = inputs(1, 130, 140, 2, 1, 64)
    out, lse = torch.empty(1, 130, 2, 64, dtype=torch.bfloat16), torch.empty(1, 2, 130)
    tensors = {"q": good["q"], "k": good["k"], "v": good["v"], "out": out, "lse": lse}
    tensors |= {name: good[name] for name in ("descale_q", "descale_k", "descale_v")}
    tensors |= dict.fromkeys(("sinks", "kv_head_map", "out_scale", "out_bias"))
    wrong = {
        "q: need four dimensions of e4m3": {"q": out},
        "k: need the batch and columns of q": {"k": good["k"][..., :32].contiguous()},
        "v: need the rows of k": {"v": good["v"][:, :9].contiguous()},
        "out: need four dimensions of bf16": {"out": out.half()},
        "out: need the rows of q": {"out": out[:, :5].contiguous()},
        "descale_q: need 4 contiguous elements of f32": {"descale_q": good["descale_q"][..., :1].contiguous()},
        "descale_v: need 2 contiguous elements of f32": {"descale_v": good["descale_v"].double()},
        "kv_head_map: need 2 contiguous elements of i32": {"kv_head_map": torch.zeros(1, dtype=torch.int32)},
        "out_bias: need 128 contiguous elements of f32": {"out_bias": torch.zeros(2, 63)},
        "q: need columns contiguous": {"q": good["q"].transpose(1, 3).contiguous().transpose(1, 3)},
    }
    for words, change in wrong.items():
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("attention_fp8", *(tensors | change).values(), 0.1, -1, -1, 0.0, op="attention_fp8")
    ran = machine.launch("attention_fp8", *tensors.values(), 0.1, -1, -1, 0.0, op="attention_fp8")
    assert ran == "attention_fp8_64"


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_on_the_gpu(case):
    for result in conformance.check_case(OP, case, backend="cuda", dtype=torch.bfloat16, device="cuda", grad=False):
        assert result.comparison, str(result)
