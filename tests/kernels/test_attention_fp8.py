"""fp8 attention in the emulator, under all checks: every case of the op, every width, odd lengths, packed sequences,
several schedules; its error beside that of the inputs' own rounding; what it costs; what it refuses."""

import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from fp8_runs import MODULES, OP, disagreement, inputs, one_by_one, packed  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine, numerics  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/attention_fp8/{module}.cu") for module in MODULES]
    return gather(tmp_path_factory.mktemp("attention_fp8"), parts)


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


@pytest.mark.parametrize(
    "d, dv, kernel",
    [
        (16, 16, "32"), (32, 128, "128"), (48, 80, "96"), (128, 64, "128"), (144, 160, "160"), (192, 128, "192x128"),
        (176, 192, "192"), (16, 208, "224"), (256, 240, "256"),
    ],
)  # fmt: skip
def test_head_dimensions(built, monkeypatch, d, dv, kernel):
    """The narrowest kernel that takes a width serves it."""
    ran, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    assert disagreement(inputs(1, 70, 150, 2, 1, d, dv, softcap=1.5, window=(70, 20))) == ""
    assert ran == [f"attention_fp8_{kernel}"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (150, 60), "softcap": 4.0, "scale": 0.3}], ids=str
)
@pytest.mark.parametrize("d, multiprocessors", [(64, 2), (128, 1), (256, 1)])
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "d, dv, multiprocessors", [(64, 64, 2), (80, 96, 2), (128, 128, 1), (192, 224, 2), (256, 256, 1)]
)
def test_packed_with_all_options(folder, monkeypatch, d, dv, multiprocessors, seed):
    on_machine(monkeypatch, folder, seed, multiprocessors)
    make = torch.Generator().manual_seed(seed)
    options = {
        "sinks": torch.randn(3, generator=make),
        "out_scale": torch.randn(3, dv, generator=make),
        "out_bias": torch.randn(3, dv, generator=make),
        "kv_head_map": torch.tensor([1, 1, 0], dtype=torch.int32),
        "window": (200, 30),
        "softcap": 4.0,
        "scale": 0.3,
    }
    kwargs = packed([70, 0, 200, 1, 33], [150, 5, 257, 0, 64], 3, 2, d, dv, seed=seed, **options)
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("d", [64, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_as_if_alone(built, d, causal):
    """The same bits: scales are counted from each sequence's start."""
    kwargs = packed([1, 127, 128, 0, 129, 300], [129, 3, 256, 9, 128, 257], 4, 2, d, causal=causal)
    with torch.no_grad():
        together = tkpy.attention_fp8(**kwargs, return_lse=True, backend="emulator")
        alone = one_by_one(kwargs, backend="emulator")
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    assert disagreement(kwargs) == ""


def test_many_short_sequences(built):
    """More than a warp looks at at once; with and without a bound on the lengths; offsets of either size."""
    lengths = [n % 4 for n in range(70)]
    assert disagreement(packed(lengths, lengths, causal=True)) == ""
    kwargs = packed(lengths, lengths, causal=True, max_seqlen_q=3, max_seqlen_k=3)
    offsets = {name: kwargs[name].long() for name in ("cu_seqlens_q", "cu_seqlens_k")}
    assert disagreement({**kwargs, **offsets}) == ""


def test_packed_views_go_in_as_they_are(built, monkeypatch):
    """Slices of a fused projection are strides that TMA takes; others are copied."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a[1:4]), launch(*a, **k)))
    kwargs = packed([70, 131], [70, 131], 2, 2)
    fused = torch.stack([kwargs[name].float() for name in "qkv"], 1).to(torch.float8_e4m3fn)
    views = dict(zip("qkv", fused.unbind(1), strict=True))
    assert disagreement(kwargs | views) == ""
    assert [t.data_ptr() for t in given[-1]] == [views[name].data_ptr() for name in "qkv"]
    odd = torch.zeros(201, 2, 65).to(torch.float8_e4m3fn)[..., :64]
    odd.copy_(kwargs["q"])
    assert disagreement(kwargs | {"q": odd}) == ""
    assert given[-1][0].data_ptr() != odd.data_ptr()


@pytest.mark.parametrize("length", [70, 129])
@pytest.mark.parametrize("d", [64, 96, 256])
def test_packed_sequences_do_not_see_each_other(built, d, length):
    """NaN in one sequence stays there (0 * NaN would be NaN), and what no block has for a scale is not read."""
    lengths = [length, 40, 150]
    kwargs = packed(lengths, lengths, d=d, causal=True)
    used = {*range(length // 128 + 1), length // 128 + 1, (length + 40) // 128 + 2, (length + 40) // 128 + 3}
    for name in ("q", "k", "v"):
        unused = [i for i in range(kwargs[f"descale_{name}"].shape[1]) if i not in used]
        kwargs[f"descale_{name}"][:, unused] = float("nan")
    assert disagreement(kwargs, poisoned=range(length, length + 40)) == ""


@pytest.mark.parametrize("d", [64, 128, 256])
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


@pytest.mark.parametrize("d", range(32, 257, 32))
def test_no_more_work_than_needed(built, d):
    """Products of whole blocks only; every block turned once, in whole passes: 512 bytes in and out of shared memory
    are 4 each."""
    with torch.no_grad(), machine.counting() as counters:
        tkpy.attention_fp8(**inputs(1, 256, 384, 1, 1, d), backend="emulator")
    total, ideal = machine.total(counters()), 4 * d * 256 * 384
    assert total.bank_conflicts == 0
    assert total.shared_requests > 0
    assert ideal <= total.flops <= 1.1 * ideal


def test_values_beyond_the_sequence_are_not_read(built):
    """NaN right behind v and k."""
    kwargs = inputs(1, 40, 200, 1, 1, 64)
    for name in ("k", "v"):
        longer = torch.full((1, 260, 1, 64), float("nan")).to(torch.float8_e4m3fn)
        longer[:, :200] = kwargs[name]
        kwargs[name] = longer[:, :200]
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"out_dtype": torch.float16}, "needs an output of bfloat16, got float16"),
        ({"d": 24}, "needs head dimensions that are multiples of 16 from 16 to 256, got (24, 24)"),
        ({"d": 256, "dv": 272}, "needs head dimensions that are multiples of 16 from 16 to 256, got (256, 272)"),
    ],
    ids=["dtype", "width", "too wide"],
)
def test_refusals_are_data(built, change, sentence):
    kwargs = inputs(1, 3, 5, 1, 1, **{"d": 64, **change})
    assert [r.message for r in tkpy.explain("attention_fp8", **kwargs).refusals["emulator"]] == [sentence]
    with pytest.raises(tkpy.Unsupported, match=re.escape(sentence)):
        tkpy.attention_fp8(**kwargs, backend="emulator")
    assert [r.code for r in tkpy.explain("attention_fp8", **kwargs).refusals["triton"]][-1:] == ["not_written"]


def test_the_launcher_checks_again(built):
    good = inputs(1, 130, 140, 2, 1, 64)
    out, lse = torch.empty(1, 130, 2, 64, dtype=torch.bfloat16), torch.empty(1, 2, 130)
    tensors = {"q": good["q"], "k": good["k"], "v": good["v"], "out": out, "lse": lse}
    tensors |= {name: good[name] for name in ("descale_q", "descale_k", "descale_v")}
    tensors |= dict.fromkeys(("sinks", "kv_head_map", "out_scale", "out_bias", "cu_seqlens_q", "cu_seqlens_k"))
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
    assert_checked(tensors, wrong)


def test_the_launcher_checks_packed_calls_again(built):
    good = packed([130, 3], [140, 0])
    out, lse = torch.empty(133, 2, 64, dtype=torch.bfloat16), torch.empty(2, 133)
    tensors = {"q": good["q"], "k": good["k"], "v": good["v"], "out": out, "lse": lse}
    tensors |= {name: good[name] for name in ("descale_q", "descale_k", "descale_v")}
    tensors |= dict.fromkeys(("sinks", "kv_head_map", "out_scale", "out_bias"))
    tensors |= {name: good[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    wrong = {
        "q: need three dimensions of e4m3": {"q": good["q"][None]},
        "out: need three dimensions of bf16": {"out": out[None]},
        "cu_seqlens_q: need at least one offset, and cu_seqlens_k": {"cu_seqlens_k": None},
        "cu_seqlens_q: need 3 contiguous elements of i32": {"cu_seqlens_q": good["cu_seqlens_q"].long()},
        "cu_seqlens_k: need 3 contiguous elements of i32": {"cu_seqlens_k": good["cu_seqlens_k"][:2].contiguous()},
        "descale_q: need 6 contiguous elements of f32": {"descale_q": good["descale_q"][:, :2].contiguous()},
        "descale_k: need 3 contiguous elements of f32": {"descale_k": good["descale_k"][:, :2].contiguous()},
    }
    assert_checked(tensors, wrong)


def assert_checked(tensors, wrong):
    def call(tensors):
        return machine.launch("attention_fp8", *tensors.values(), 0.1, -1, -1, 0.0, -1, op="attention_fp8")

    for words, change in wrong.items():
        with pytest.raises(tkpy.InternalError, match=words):
            call(tensors | change)
    assert call(tensors) == "attention_fp8_64"


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_on_the_gpu(case):
    for result in conformance.check_case(OP, case, backend="cuda", dtype=torch.bfloat16, device="cuda", grad=False):
        assert result.comparison, str(result)
