"""The attention backward kernels in the emulator, under all checks: every option, head dimensions, odd lengths, packed
sequences, persistence, several schedules, the order of sums; what they cost; what they refuse."""

import ctypes
import itertools
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import (  # noqa: E402  (after the skips)
    BACKWARD_BLOCK_MODULES,
    BACKWARD_MODULES,
    BLOCK_MODULES,
    MODULES,
    OP,
    cotangents,
    gather,
    gradients,
    inputs,
    on_machine,
    packed,
    wrong_gradient,
)

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/attention_forward/{module}.cu") for module in MODULES + BLOCK_MODULES]
    parts += [
        kernel_folder(f"kernels/attention_backward/{module}.cu") for module in BACKWARD_MODULES + BACKWARD_BLOCK_MODULES
    ]
    return gather(tmp_path_factory.mktemp("attention_backward"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture(autouse=True)
def any_order(monkeypatch):
    """All tests run with `torch.use_deterministic_algorithms(True)`, for its NaN-filled memory."""
    assert OP.module("cuda")._in_order()
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: False)


@pytest.fixture
def in_order(monkeypatch, any_order):
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: True)


def refused(case) -> bool:
    return case.name == "value width"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not refused(case)], ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype))
    for result in results:
        assert result.comparison, str(result)
    assert "grad q" in [result.what for result in results]
    assert ("attention_backward", "emulator") in [(run.op, run.backend) for run in log]


@pytest.mark.parametrize("options", ["causal", "softcap"])
@pytest.mark.parametrize(
    "d, dv", [(n, n) for n in (8, *range(32, 257, 32))] + [(192, 128), (168, 120), (40, 72), (152, 24), (200, 216)]
)
def test_head_dimensions(built, d, dv, options):
    options = {"causal": True} if options == "causal" else {"softcap": 1.5, "window": (70, 20)}
    assert wrong_gradient(inputs(1, 70, 150, 2, 1, d, dv, **options)) == ""


@pytest.mark.parametrize(
    "d, width",
    [(32, "32"), (40, "64"), (96, "96"), (128, "128"), (136, "160"), (192, "192x128"), (200, "224"), (256, "256")],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_kernels_that_ran(built, monkeypatch, d, width, dtype, softcap):
    """Values of 24."""
    ran, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    assert wrong_gradient(inputs(1, 3, 5, 2, 2, d, 24, dtype=dtype, softcap=softcap)) == ""
    dtype, kind = "bf16" if dtype == torch.bfloat16 else "fp16", "capped" if softcap else "plain"
    forward = "capped" if width in ("160", "224") else kind
    backward = "capped" if width == "192x128" else forward
    assert ran == [f"attention_forward_{dtype}_{width}_{forward}", f"attention_backward_{dtype}_{width}_{backward}"]


@pytest.mark.parametrize(
    "sq, sk", [(1, 1), (17, 17), (1, 300), (63, 129), (129, 257), (64, 128), (128, 128), (257, 31)]
)
@pytest.mark.parametrize(
    "d, causal", [(32, True), (64, False), (64, True), (96, True), (128, True), (160, True), (192, True), (256, True)]
)
def test_lengths(built, sq, sk, d, causal):
    assert wrong_gradient(inputs(1, sq, sk, 1, 1, d, causal=causal)) == ""


OPTIONS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (150, 60)},
    "causal window softcap": {"causal": True, "window": (200, None), "softcap": 3.0},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("d, multiprocessors", [(32, 3), (64, 3), (96, 2), (128, 2), (160, 2), (224, 2), (256, 3)])
def test_persistent_ctas_go_round_their_rings(folder, monkeypatch, d, multiprocessors, options, seed):
    """Several tiles for each CTA, several heads for each tile, under several schedules."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    assert wrong_gradient(inputs(1, 300, 390, 2, 1, d, seed=seed, **OPTIONS[options])) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "d, multiprocessors", [(32, 2), (64, 2), (96, 2), (128, 132), (152, 2), (184, 2), (224, 2), (256, 2)]
)
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
    assert wrong_gradient(kwargs) == ""


@pytest.mark.parametrize("d", [64, 128])
def test_many_short_sequences(built, d):
    """More than a warp looks at at once."""
    lengths = [n % 4 for n in range(70)]
    assert wrong_gradient(packed(lengths, lengths, d=d, causal=True)) == ""


def test_some_inputs_and_outputs_only(built):
    """Gradients of one input, and of one output."""
    q, k, v = (inputs(1, 20, 33, 2, 1, 64)[name] for name in "qkv")
    want = gradients({"q": q, "k": k, "v": v}, "emulator")
    k.requires_grad_(True)
    out, lse = tkpy.attention(q, k, v, return_lse=True, backend="emulator")
    dout, dlse = cotangents(out, lse)
    assert torch.equal(torch.autograd.grad([out, lse], k, [dout, dlse], retain_graph=True)[0], want["k"])
    both = torch.autograd.grad(out, k, dout, retain_graph=True)[0] + torch.autograd.grad(lse, k, dlse)[0]
    assert (both - want["k"]).norm() <= 1e-2 * want["k"].norm()


def test_cotangents_that_are_no_plain_tensor(built):
    """sum().backward() gives an expanded one, transposed heads another order: read as it is, or copied."""
    kwargs = inputs(2, 20, 33, 2, 1, 64)
    q = kwargs["q"].requires_grad_(True)
    out = tkpy.attention(**kwargs, backend="emulator")
    make = torch.Generator().manual_seed(0)
    dout = torch.randn(2, 2, 20, 64, generator=make).bfloat16().transpose(1, 2)
    for strange in (torch.ones(()).bfloat16().expand(out.shape), dout):
        got, want = (torch.autograd.grad(out, q, d, retain_graph=True)[0] for d in (strange, strange.contiguous()))
        assert torch.equal(got, want)


@pytest.mark.parametrize("d", range(32, 257, 32))
def test_sequences_do_not_see_each_other(built, d):
    """NaN and infinity in one sequence stay there: 0 * NaN would be NaN."""
    lengths = [70, 40, 150]
    kwargs = packed(lengths, lengths, d=d, causal=True)
    want = gradients(kwargs, "emulator")
    for name in ("q", "k", "v"):
        kwargs[name][70:110] = float("nan") if name != "v" else float("inf")
    got = gradients(kwargs, "emulator")
    rest = [*range(70), *range(110, 260)]
    for name in want:
        assert got[name][70:110].isnan().any()
        assert torch.equal(got[name][rest], want[name][rest])


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0}, {"scale": -0.7}, {"scale": 30.0}, {"softcap": 1e6}, {"softcap": 1e-3}, {"scale": 1e-20},
        {"sinks": torch.tensor([-torch.inf, 300.0])}, {"sinks": torch.tensor([-5.0, 30.0]), "scale": 2.0},
        {"window": (2**40, 2**40)}, {"window": (0, 0)}, {"window": (0, 0), "sinks": torch.tensor([1.0, -torch.inf])},
    ],
    ids=str,
)  # fmt: skip
def test_extremes(built, options):
    assert wrong_gradient(inputs(1, 20, 33, 2, 2, 64, **options)) == ""


def test_sums_have_one_order_where_that_is_asked_for(folder, monkeypatch, request):
    """The same bits under every schedule and number of CTAs; without it, not."""
    places = list(itertools.product(range(3), (2, 5)))

    def bits(kwargs):
        found = []
        for seed, multiprocessors in places:
            on_machine(monkeypatch, folder, seed, multiprocessors)
            found.append(gradients(kwargs, "emulator")["q"])
        return all(torch.equal(found[0], other) for other in found)

    full = inputs(1, 130, 700, 2, 1, 64, dtype=torch.float16)
    assert not bits(full)
    request.getfixturevalue("in_order")
    assert bits(full)
    assert bits(inputs(1, 300, 390, 1, 1, 128, causal=True))
    assert bits(inputs(1, 70, 200, 1, 1, 96))
    assert bits(inputs(1, 70, 200, 1, 1, 160))
    assert bits(inputs(1, 70, 200, 1, 1, 256))
    assert bits(packed([70, 0, 200], [150, 5, 330], window=(200, 60)))


def test_ctas_that_wait_for_each_other_are_launched_together(built, host_program, monkeypatch, request, capfd):
    """In turn, the main kernel is launched cooperatively (attribute 2): the driver leaves none of its CTAs waiting."""
    cuda, calls = OP.module("cuda"), []
    launch = cuda.launch
    monkeypatch.setattr(cuda, "launch", lambda *call, op: calls.append(call) or launch(*call, op=op))
    gradients(inputs(1, 20, 33, 1, 1, 32), "emulator")
    request.getfixturevalue("in_order")
    gradients(inputs(1, 20, 33, 1, 1, 32), "emulator")
    fake = host_program("libfake_cuda.so", "tests/kernels/fake_cuda.cpp", flags=("-shared", "-fPIC"))
    driver = tkpy._C.Machine.driver(str(built), str(fake))
    capfd.readouterr()
    for name, *values in calls:
        if name == "attention_backward":  # as if the tensors were on a GPU
            views = [(*machine.view(x)[:4], 0) if isinstance(x, torch.Tensor) else x for x in values]
            tkpy._C.launch(name, driver, 0, *views)
    ctypes.CDLL(None).fflush(None)
    launches = capfd.readouterr().out.split("cuLaunchKernelEx")[1:]
    assert ["attribute 2 " in text for text in launches] == [False, False, False, False, True, False]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
def test_taking_turns_is_right_too(folder, monkeypatch, in_order, options, seed):
    on_machine(monkeypatch, folder, seed, 3)
    assert wrong_gradient(inputs(1, 300, 500, 2, 1, 64, seed=seed, **OPTIONS[options])) == ""
    kwargs = packed([70, 0, 200], [150, 5, 330], h=3, hkv=2, d=128, seed=seed, **OPTIONS[options])
    assert wrong_gradient({**kwargs, "kv_head_map": torch.tensor([1, 0, 1], dtype=torch.int32)}) == ""
    assert wrong_gradient(inputs(1, 130, 200, 1, 1, 256, seed=seed, **OPTIONS[options])) == ""


def counted(kwargs):
    kwargs["q"].requires_grad_(True)
    out = tkpy.attention(**kwargs, backend="emulator")
    with machine.counting() as counters:
        torch.autograd.grad(out, kwargs["q"], torch.ones_like(out))
        return asdict(machine.total(counters()))


@pytest.mark.parametrize(
    "d, dv, rows, keys",
    [(32, 32, 128, 128), (64, 64, 128, 128), (96, 96, 64, 128), (128, 128, 64, 128), (192, 128, 64, 64)]
    + [(d, d, 64, 64) for d in (160, 192, 224, 256)],
)
def test_no_more_work_than_needed(folder, monkeypatch, d, dv, rows, keys):
    """Five products for every pair in tiles that are seen, within 5 %; and no bank conflicts: 512 bytes take 4 passes,
    and what lanes know of two queries 2."""
    on_machine(monkeypatch, folder)
    full = counted(inputs(1, 256, 384, 2, 2, d, dv))
    ideal = 2 * (3 * d + 2 * dv) * 2 * 256 * 384
    assert ideal <= full["flops"] <= 1.05 * ideal
    steps, queries = 2 * (384 // keys) * (256 // rows), 32 if d > 128 else rows
    known = steps * 8 * 2 * queries // 8  # by 8 warps: log-sum-exp and delta
    assert full["shared_wavefronts"] <= 4 * (full["shared_requests"] - known) + 2 * known
    causal = counted(inputs(1, 512, 512, 1, 1, d, dv, causal=True))
    ideal = 2 * (3 * d + 2 * dv) * rows * keys * sum((512 - keys * tile) // rows for tile in range(512 // keys))
    assert ideal <= causal["flops"] <= 1.05 * ideal


def test_the_launcher_checks_again(built):
    good = inputs(1, 3, 5, 2, 1, 64)
    q, k, v = (good[name] for name in "qkv")
    z, lse, stats, sums = torch.zeros_like(q), torch.zeros(1, 2, 3), torch.zeros(2 * 256), torch.zeros(2 * 8192)
    tensors = {"q": q, "k": k, "v": v, "z": z, "dout": z, "lse": lse}
    tensors |= dict.fromkeys(("dlse", "out_scale", "kv_head_map", "cu_seqlens_q", "cu_seqlens_k"))
    tensors |= {"dq": q.clone(), "dk": k.clone(), "dv": v.clone(), "dz": None, "delta": None}
    tensors |= {"stats": stats, "dq_sum": sums, "turns": None}
    wrong = {
        "q: need bf16 or f16": {"q": q.float()},
        "q: need 8 to 256 columns": {"q": torch.zeros(1, 3, 2, 264).bfloat16()},
        "v: need the rows of k": {"v": v[:, :4].contiguous()},
        "z: need the rows of q": {"z": z[:, :2].contiguous()},
        "z: need the rows of q and the columns of v, contiguous": {"z": z.transpose(1, 2).contiguous().transpose(1, 2)},
        "dout: need the shape of z": {"dout": z[:, :2].contiguous()},
        "dq: need the shape of what": {"dq": k.clone()},
        "dz: need given with out_scale": {"dz": z.clone()},
        "stats: need 512 contiguous elements": {"stats": stats[:-1].clone()},
        "dq_sum: need 16384 contiguous elements": {"dq_sum": sums[:-1].clone()},
        "turns: need 4 contiguous elements of i32": {"turns": torch.zeros(3, dtype=torch.int32)},
    }
    for words, change in wrong.items():
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("attention_backward", *(tensors | change).values(), 0.1, -1, -1, 0.0, op="attention")
    ran = machine.launch("attention_backward", *tensors.values(), 0.1, -1, -1, 0.0, op="attention")
    assert ran == "attention_backward_bf16_64_plain"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not refused(case)], ids=lambda case: case.name)
def test_every_case_on_the_gpu(case, dtype):
    for result in conformance.check_case(OP, case, backend="cuda", dtype=dtype, device="cuda"):
        assert result.comparison, str(result)


@pytest.mark.gpu
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("d, options", list(itertools.product(range(32, 257, 32), OPTIONS)))
def test_real_lengths_on_the_gpu(d, options, ordered, request):
    if ordered:
        request.getfixturevalue("in_order")
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs(2, 1000, 1300, 8, 2, d).items()}
    kwargs |= OPTIONS[options]
    assert wrong_gradient(kwargs, backend="cuda") == ""
    if ordered:
        first, second = (gradients(kwargs, "cuda")["q"] for _ in range(2))
        assert torch.equal(first, second)
