"""The attention forward kernels in the emulator, under all checks: every option, every head dimension, odd lengths,
persistence, several schedules; what they cost; what they refuse."""

import itertools
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import BLOCK_MODULES, MODULES, OP, disagreement, gather, inputs, on_machine, packed  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/attention_forward/{module}.cu") for module in MODULES + BLOCK_MODULES]
    return gather(tmp_path_factory.mktemp("attention"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


def refused(case) -> bool:
    return case.name == "value width"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    if refused(case):
        with pytest.raises(tkpy.Unsupported, match="head_dim"):
            list(conformance.check_case(OP, case, backend="emulator", dtype=dtype, grad=False))
        return
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype, grad=False))
    for result in results:
        assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == ("attention", "emulator")


@pytest.mark.parametrize("options", ["causal", "softcap"])
@pytest.mark.parametrize("d, dv", [(n, n) for n in (8, *range(32, 257, 32))] + [(192, 128), (40, 72), (136, 24)])
def test_head_dimensions(built, d, dv, options):
    options = {"causal": True} if options == "causal" else {"softcap": 1.5, "window": (70, 20)}
    assert disagreement(inputs(1, 70, 150, 2, 1, d, dv, **options)) == ""


@pytest.mark.parametrize(
    "d, dv, kernel",
    [
        (24, 24, "32"), (64, 64, "64"), (32, 96, "96"), (128, 128, "128"), (160, 160, "160"), (192, 128, "192x128"),
        (168, 136, "192"), (224, 224, "224"), (256, 256, "256"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_kernel_that_ran(built, monkeypatch, d, dv, kernel, dtype, softcap):
    ran, launch = [], machine.launch
    module = OP.module("cuda")
    monkeypatch.setattr(module, "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    assert disagreement(inputs(1, 3, 5, 2, 2, d, dv, dtype=dtype, softcap=softcap)) == ""
    dtype, kind = "bf16" if dtype == torch.bfloat16 else "fp16", "capped" if softcap else "plain"
    assert ran == [f"attention_forward_{dtype}_{kernel}_{'capped' if kernel in ('160', '192', '224') else kind}"]


@pytest.mark.parametrize(
    "sq, sk", [(1, 1), (17, 17), (1, 1000), (63, 129), (193, 257), (64, 128), (192, 128), (257, 31)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(built, sq, sk, causal):
    assert disagreement(inputs(1, sq, sk, 1, 1, 64, causal=causal)) == ""


OPTIONS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (150, 60)},
    "causal window softcap": {"causal": True, "window": (200, None), "softcap": 3.0},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("d, multiprocessors", [(64, 2), (96, 2), (128, 3), (224, 1), (256, 1)])
def test_persistent_ctas_go_round_their_rings(folder, monkeypatch, d, multiprocessors, options, seed):
    """Several tiles for each CTA, more blocks than slots, under several schedules."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    kwargs = inputs(1, 300, 390, 2, 1, d, seed=seed, **OPTIONS[options])
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d, multiprocessors", [(32, 2), (64, 2), (160, 2), (192, 1), (256, 2)])
def test_all_options_together(folder, monkeypatch, d, multiprocessors, seed):
    on_machine(monkeypatch, folder, seed, multiprocessors)
    make = torch.Generator().manual_seed(seed)
    options = {
        "sinks": torch.randn(3, generator=make),
        "out_scale": torch.randn(3, d, generator=make),
        "out_bias": torch.randn(3, d, generator=make),
        "kv_head_map": torch.tensor([1, 1, 0], dtype=torch.int32),
        "window": (60, 30),
        "softcap": 4.0,
        "scale": 0.3,
    }
    kwargs = packed([70, 0, 200, 1, 33], [150, 5, 130, 0, 64], h=3, hkv=2, d=d, seed=seed, **options)
    assert disagreement(kwargs) == ""


def test_many_short_sequences(built):
    """More than a warp looks at at once."""
    lengths = [n % 4 for n in range(70)]
    assert disagreement(packed(lengths, lengths, causal=True)) == ""
    assert disagreement(packed(lengths, lengths, causal=True, max_seqlen_q=3, max_seqlen_k=3)) == ""


def test_offsets_of_either_size(built):
    kwargs = packed([5, 9], [7, 3])
    for dtype in (torch.int32, torch.int64):
        offsets = {name: kwargs[name].to(dtype) for name in ("cu_seqlens_q", "cu_seqlens_k")}
        assert disagreement({**kwargs, **offsets}) == ""


def test_sequences_do_not_see_each_other(built):
    """NaN and infinity in one sequence stay there: 0 * NaN would be NaN."""
    lengths = [70, 40, 150]
    kwargs = packed(lengths, lengths, causal=True)
    for name in ("q", "k", "v"):
        kwargs[name][70:110] = float("nan") if name != "v" else float("inf")
    with torch.no_grad():
        out = tkpy.attention(**kwargs, backend="emulator")
    assert out[70:110].isnan().any()
    clean = {name: kwargs[name].clone() for name in ("q", "k", "v")}
    for name in clean:
        clean[name][70:110] = 0
    with torch.no_grad():
        want = tkpy.attention(**{**kwargs, **clean}, backend="emulator")
    rest = [*range(70), *range(110, 260)]
    assert torch.equal(out[rest], want[rest])


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0}, {"scale": -0.7}, {"scale": 30.0}, {"softcap": 1e6}, {"softcap": 1e-3}, {"scale": 1e-42},
        {"sinks": torch.tensor([-torch.inf, 300.0])}, {"sinks": torch.tensor([-300.0, 0.0]), "scale": 20.0},
        {"window": (2**40, 2**40)}, {"window": (0, 0)}, {"window": (0, 0), "sinks": torch.tensor([1.0, -torch.inf])},
    ],
    ids=str,
)  # fmt: skip
def test_extremes(built, options):
    assert disagreement(inputs(1, 20, 33, 2, 2, 64, **options)) == ""


def test_a_nan_stays_in_its_row(built):
    kwargs = inputs(1, 20, 33, 1, 1, 64)
    kwargs["q"][0, 7] = float("nan")
    with torch.no_grad():
        out, lse = tkpy.attention(**kwargs, return_lse=True, backend="emulator")
    others = [i for i in range(20) if i != 7]
    assert out[0, 7].isnan().all()
    assert lse[0, 0, 7].isnan()
    assert out[0, others].isfinite().all()
    assert lse[0, 0, others].isfinite().all()


def test_views_go_in_as_they_are(built, monkeypatch):
    """Slices of a fused projection and the (B, H, S, D) order are strides that TMA takes; others are copied."""
    given = []
    launch = machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a[1:4]), launch(*a, **k)))
    fused = torch.randn(2, 33, 6, 64).bfloat16()
    q, k, v = fused[:, :, :2], fused[:, :, 2:4], fused[:, :, 4:]
    assert disagreement({"q": q, "k": k, "v": v}) == ""
    assert [t.data_ptr() for t in given[-1]] == [t.data_ptr() for t in (q, k, v)]
    swapped = torch.randn(2, 2, 33, 64).bfloat16().transpose(1, 2)
    assert disagreement({"q": swapped, "k": k, "v": v}) == ""
    assert given[-1][0].data_ptr() == swapped.data_ptr()
    odd = torch.randn(2, 33, 2, 65).bfloat16()[..., :64]
    assert disagreement({"q": odd, "k": k, "v": v}) == ""
    assert given[-1][0].data_ptr() != odd.data_ptr()
    assert disagreement({"q": q, "k": k, "v": v[:, :, :1].expand(-1, -1, 2, -1)}) == ""


def counted(kwargs):
    with torch.no_grad(), machine.counting() as counters:
        tkpy.attention(**kwargs, backend="emulator")
        return asdict(machine.total(counters()))


@pytest.mark.parametrize(
    "d, rows, keys, softmax",
    [
        (32, 192, 128, 0.1), (64, 192, 128, 0.05), (96, 192, 112, 0.05), (128, 128, 128, 0.05), (160, 128, 128, 0.05),
        (192, 128, 112, 0.05), (224, 128, 96, 0.05), (256, 128, 80, 0.05),
    ],
)  # fmt: skip
def test_no_more_work_than_needed(folder, monkeypatch, d, rows, keys, softmax):
    """Within 5 % of the formula (softmax included; 10 % where products are short) without a mask, of whole blocks under
    a causal one; and no bank conflict on the output's way through shared memory: 4 passes for 512 bytes."""
    on_machine(monkeypatch, folder)
    sq, sk = 2 * rows, 3 * keys
    full = counted(inputs(1, sq, sk, 2, 2, d))
    ideal = 4 * d * 2 * sq * sk
    assert ideal <= full["flops"] <= (1 + softmax) * ideal
    assert full["shared_wavefronts"] == 4 * full["shared_requests"] > 0
    causal = counted(inputs(1, 4 * rows, 4 * rows, 1, 1, d, causal=True))
    ideal = 4 * d * rows * keys * sum(-(-(tile + 1) * rows // keys) for tile in range(4))
    assert ideal <= causal["flops"] <= (1 + softmax) * ideal


@pytest.mark.parametrize(
    "kwargs, code",
    [
        (inputs(1, 3, 3, 1, 1, 64, dtype=torch.float32), "dtype"),
        (inputs(1, 3, 3, 1, 1, 60), "head_dim"),
        (inputs(1, 3, 3, 1, 1, 264), "head_dim"),
        (inputs(1, 3, 3, 1, 1, 64, 4), "head_dim"),
    ],
    ids=["dtype", "width", "wide", "narrow"],
)
def test_refusals_are_data(built, kwargs, code):
    assert [r.code for r in tkpy.explain("attention", **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.attention(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    good = inputs(1, 3, 5, 2, 1, 64)
    q, k, v = (good[name] for name in "qkv")
    out, lse = torch.empty_like(q), torch.empty(1, 2, 3)
    rest = [None] * 7 + [0.1, -1, -1, 0.0, -1]
    wrong = {
        "q: need bf16 or f16": [q.float(), k, v, out, lse],
        "k: need the batch and columns of q": [q, k[..., :32].contiguous(), v, out, lse],
        "v: need the rows of k": [q, k, v[:, :4].contiguous(), out, lse],
        "out: need the rows of q": [q, k, v, out[:, :2].contiguous(), lse],
        "lse: need 6 contiguous elements of f32": [q, k, v, out, lse[..., :2].contiguous()],
        "q: need columns contiguous": [q.transpose(1, 3).contiguous().transpose(1, 3), k, v, out, lse],
    }
    for words, tensors in wrong.items():
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("attention_forward", *tensors, *rest, op="attention")
    assert (
        machine.launch("attention_forward", q, k, v, out, lse, *rest, op="attention")
        == "attention_forward_bf16_64_plain"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not refused(case)], ids=lambda case: case.name)
def test_every_case_on_the_gpu(case, dtype):
    for result in conformance.check_case(OP, case, backend="cuda", dtype=dtype, device="cuda", grad=False):
        assert result.comparison, str(result)


@pytest.mark.gpu
@pytest.mark.parametrize("d, options", list(itertools.product(range(32, 257, 32), OPTIONS)))
def test_real_lengths_on_the_gpu(d, options):
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs(2, 1000, 1300, 8, 2, d).items()}
    assert disagreement({**kwargs, **OPTIONS[options]}, backend="cuda") == ""
