"""The kernels of rotary (and of the other ops on rows that are no norms) in the emulator, under all checks: every case
and dtype, every alignment, several units of work a thread, several schedules; what they move; what they refuse."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather  # noqa: E402  (after the skips)
from row_runs import MODULES, OPS, disagreement, few_ctas, run  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine, numerics, registry  # noqa: E402
from tkpy.emulator.run import Counters, CountRow  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases if not case.bench
]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    modules = sorted({module for modules in MODULES.values() for module in modules})
    return gather(tmp_path_factory.mktemp("rows"), [kernel_folder(f"kernels/rows/{name}.cu") for name in modules])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_every_case_of_the_ops(folder, monkeypatch, op, case, dtype, seed):
    few_ctas(monkeypatch, folder, 1 + seed, seed)
    with tkpy.record_dispatches() as log:
        for result in conformance.check_case(op, case, backend="emulator", dtype=dtype):
            assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == (op.name, "emulator")


def rotary(make, tokens=5, heads=3, width=64, pitch=None, batch=2):
    x = make.randn(batch, tokens, heads, pitch or width)[..., :width]
    return {"x": x, "positions": make.randint(-50, 9000, batch, tokens), "base": 500.0, "scaling": 3.0}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 7, 21])
@pytest.mark.parametrize("width, pitch", [(2, 2), (6, 7), (12, 14), (22, 24), (128, 136), (254, 256), (512, 512)])
def test_rotary_of_any_head(folder, monkeypatch, width, pitch, heads, dtype):
    """Pieces of 2, 4 and 16 bytes, part of a block of heads and several, more units than threads."""
    few_ctas(monkeypatch, folder, seed=width)
    kwargs = rotary(registry.Maker(dtype), 67 if width < 20 else 3, heads, width, pitch)
    assert disagreement("rotary", kwargs) == ""


def token_shift(make, batch=2, length=9, channels=40, mixes=4, last=True, pitch=None, wide_mix=False):
    x = make.randn(batch, length, pitch or channels)[..., :channels]
    mix = make.uniform(-0.2, 1.2, mixes, channels, dtype=make.wide if wide_mix else None)
    return {"x": x, "mix": mix} | ({"last": make.randn(batch, channels)} if last else {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, pitch", [(1, 3), (7, 8), (10, 12), (264, 272)])
@pytest.mark.parametrize("length, mixes", [(3, 16), (70, 3), (261, 1)])
def test_token_shift_in_runs(folder, monkeypatch, channels, pitch, length, mixes, dtype):
    """Pieces of 2, 4 and 16 bytes; runs that end within 4 tokens, one and several of a sequence."""
    few_ctas(monkeypatch, folder, seed=length)
    kwargs = token_shift(registry.Maker(dtype), 2, length, channels, mixes, length != 70, pitch, mixes == 3)
    assert disagreement("token_shift", kwargs) == ""


def group_norm(make, count=9, heads=3, width=40, options=("weight", "bias", "gate"), wide=False, eps=0.01):
    dtype = make.wide if wide else None
    kwargs = {"x": make.randn(count, heads, width) + 1.5, "eps": eps}
    kwargs |= {name: make.randn(heads, width, dtype=dtype) for name in ("weight", "bias") if name in options}
    return kwargs | ({"gate": make.randn(count, heads, width)} if "gate" in options else {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count, heads, width", [(270, 5, 2), (150, 7, 15), (67, 3, 64), (9, 2, 130), (37, 1, 515),
                                                 (3, 3, 4096)])  # fmt: skip
def test_group_norm_of_any_head(folder, monkeypatch, count, heads, width, dtype):
    """Heads of a thread, of teams within a warp and of CTAs, in pieces of 2, 4 and 16 bytes; many rows a team."""
    few_ctas(monkeypatch, folder, seed=width)
    kwargs = group_norm(registry.Maker(dtype), count, heads, width, wide=width == 15)
    assert disagreement("group_norm", kwargs) == ""


def merge_state(make, batch=2, tokens=9, heads=3, width=40, pitch=None, unseen=True):
    kwargs = {}
    for i in (1, 2):
        kwargs[f"out{i}"] = make.randn(batch, tokens, heads, pitch or width)[..., :width]
        kwargs[f"lse{i}"] = make.randn(batch, heads, tokens, dtype=make.wide) * 3
        if unseen:
            hidden = (torch.arange(tokens) & i) > 0  # tokens 1 and 3 of 4, 2 and 3 of 4
            kwargs[f"lse{i}"][:, :, hidden] = float("inf") if i == 1 else -float("inf")
            kwargs[f"out{i}"][:, hidden] = float("nan")
    return kwargs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("width, pitch", [(1, 1), (7, 8), (10, 12), (64, 72), (130, 130), (515, 515), (4096, 4096)])
def test_merge_state_of_any_head(folder, monkeypatch, width, pitch, heads, dtype):
    """Rows of a thread, of teams within a warp and of CTAs, in pieces of 2, 4 and 16 bytes; parts that saw no key."""
    few_ctas(monkeypatch, folder, seed=width)
    kwargs = merge_state(registry.Maker(dtype), 2, 3 if width > 130 else 67, heads, width, pitch)
    assert disagreement("merge_state", kwargs) == ""


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=str)
def test_merge_state_with_some_gradients(folder, monkeypatch, asked):
    """Gradients of one output or both, for some of the inputs."""
    few_ctas(monkeypatch, folder)
    make = registry.Maker(torch.float32)
    kwargs = merge_state(make)
    cotangents = make.randn(2, 9, 3, 40), make.randn(2, 3, 9)
    for wanted in (["out1"], ["lse2"], ["lse1", "out2"]):
        found = []
        for backend in ("emulator", "reference"):
            leaves = {name: kwargs[name].clone().requires_grad_() for name in wanted}
            outputs = tkpy.merge_state(**{**kwargs, **leaves}, backend=backend)
            given = [outputs[i] for i in asked], list(leaves.values()), [cotangents[i] for i in asked]
            found.append(torch.autograd.grad(*given, allow_unused=True, materialize_grads=True))
        for got, want in zip(*found, strict=True):
            assert numerics.compare(got, want, numerics.TOLERANCE[torch.float32])


def _total(emulator) -> dict[str, int]:
    """Counters, and the bytes of the distinct sectors that launches read, and write."""
    found = emulator.counters().values()
    total = dataclasses.asdict(Counters(CountRow.of(*row) for *_, rows_ in found for row in rows_).total)
    return total | {"hbm": 32 * sum(read + written for _, _, read, written, _ in found)}


#: A call, and the bytes that its forward and its backward need for an element of x.
MOVED = {
    "rotary": (lambda make: rotary(make, 64, 16, 128), 2 * 2, 2 * 2),
    "group_norm": (lambda make: group_norm(make, 256, 16, 64), 3 * 2 + 8 / 64, 5 * 2 + 8 / 64),
    "token_shift": (lambda make: token_shift(make, 1, 256, 1024), 2 + 4 * 2, 2 + 4 * 2 + 2),
    "merge_state": (lambda make: merge_state(make, 1, 128, 8, 128, unseen=False), 3 * 2 + 12 / 128, 5 * 2 + 20 / 128),
}
#: Requested bytes, with those that L1 has: each mix for 4 tokens, a head's numbers for 4 threads or 8.
AGAIN = {"token_shift": 1.3, "group_norm": 1.1, "merge_state": 1.1}


@pytest.mark.parametrize("name", MOVED)
def test_what_is_moved(folder, monkeypatch, name):
    """Each byte once, in whole sectors and without bank conflicts."""
    counted = few_ctas(monkeypatch, folder, counters=True)
    make, *needed = MOVED[name]
    kwargs = make(registry.Maker(torch.bfloat16))
    run(name, kwargs, "emulator", False)
    forward = _total(counted)
    run(name, kwargs, "emulator", True)
    backward = {key: n - 2 * forward[key] for key, n in _total(counted).items()}
    for counts, share, most in ((forward, needed[0], 1.05), (backward, needed[1], 1.10)):
        ideal = next(iter(kwargs.values())).numel() * share
        assert 1.0 <= counts["hbm"] / ideal <= most
        assert counts["global_bytes"] / ideal <= AGAIN.get(name, 1.05) + most - 1.05
        assert 32 * counts["global_sectors"] <= 1.15 * counts["global_bytes"]
        assert counts["shared_wavefronts"] <= 1.01 * counts["shared_requests"]


@pytest.mark.parametrize("name", OPS)
def test_the_same_call_gives_the_same_bits(folder, monkeypatch, name):
    (case,) = (c for c in OPS[name].cases[:1])
    found = []
    for seed in range(3):
        few_ctas(monkeypatch, folder, 2, seed)
        found.append(run(name, case.make(registry.Maker(torch.bfloat16)), "emulator", True))
    for other in found[1:]:
        assert all(torch.equal(t, other[key]) for key, t in found[0].items())


@pytest.mark.parametrize("name", OPS)
def test_refusals_are_data(folder, monkeypatch, name):
    few_ctas(monkeypatch, folder)
    make = OPS[name].cases[0].make
    explained = tkpy.explain(name, **make(registry.Maker(torch.float64))).refusals
    assert [r.code for r in explained["emulator"]] == ["dtype"]
    explained = tkpy.explain(name, **make(registry.Maker(torch.bfloat16))).refusals
    assert not explained["emulator"]
    assert [r.code for r in explained["cuda"]] == ["needs_gpu"]


def test_sizes_that_the_kernels_do_not_take(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    explained = tkpy.explain("rotary", **rotary(registry.Maker(torch.bfloat16), 2, 1, 514)).refusals
    assert [r.message for r in explained["emulator"]] == ["needs heads of at most 512 channels, got 514"]
    assert [r.code for r in explained["cuda"]] == ["needs_gpu", "size"]
    explained = tkpy.explain("token_shift", **token_shift(registry.Maker(torch.bfloat16), mixes=17)).refusals
    assert [r.message for r in explained["emulator"]] == ["needs at most 16 mixes, got 17"]
    explained = tkpy.explain("group_norm", **group_norm(registry.Maker(torch.bfloat16), 1, 1, 4097)).refusals
    assert [r.message for r in explained["emulator"]] == ["needs heads of at most 4096 channels, got 4097"]
    explained = tkpy.explain("merge_state", **merge_state(registry.Maker(torch.bfloat16), 1, 1, 1, 4097)).refusals
    assert [r.message for r in explained["emulator"]] == ["needs heads of at most 4096 channels, got 4097"]


def test_the_launcher_of_rotary_checks_again(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    x, y, at = torch.randn(1, 3, 2, 8).bfloat16(), torch.randn(1, 3, 2, 8).bfloat16(), torch.arange(3)[None]

    def call(x=x, at=at, y=y, base=10.0, scaling=1.0):
        return machine.launch("rotary", x, at, y, base, scaling, False, op="rotary")

    for words, wrong in [
        ("x: need four dimensions", {"x": x[0]}),
        ("x: need four dimensions of bf16, f16 or f32", {"x": x.double()}),
        ("x: need an even last dimension", {"x": x[..., :7]}),
        ("x: need contiguous elements", {"x": torch.randn(1, 3, 2, 16).bfloat16()[..., ::2]}),
        ("y: need x's shape and type", {"y": y.float()}),
        ("y: need x's shape and type", {"y": y[:, :2]}),
        ("positions: need one i32 or i64", {"at": at.float()}),
        ("positions: need one i32 or i64", {"at": at[:, :2]}),
        ("need numbers above 0", {"base": 0.0}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == "rows_rotary_bf16"


def test_the_launchers_of_token_shift_check_again(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    x, mix, last = torch.randn(2, 3, 8).bfloat16(), torch.randn(4, 8), torch.randn(2, 8).bfloat16()
    y, partial = torch.randn(4, 2, 3, 8).bfloat16(), torch.empty(1, 1, 32)
    gradient, first = torch.empty_like(x), torch.empty_like(last)

    def forward(x=x, mix=mix, last=last, y=y, tokens=4):
        return machine.launch("shift_forward", x, mix, last, y, tokens, op="token_shift")

    def backward(dy=y, dx=gradient, dlast=first, partial=partial, dmix=None):
        return machine.launch("shift_backward", x, mix, last, dy, dx, dlast, partial, dmix, 4, op="token_shift")

    for words, call, wrong in [
        ("x: need three dimensions", forward, {"x": x[0]}),
        ("x: need three dimensions of bf16, f16 or f32", forward, {"x": x.double()}),
        ("x: need contiguous channels", forward, {"x": torch.randn(2, 3, 16).bfloat16()[..., ::2]}),
        ("mix: need 1 to 16 rows", forward, {"mix": torch.randn(17, 8)}),
        ("mix: need 1 to 16 rows of x's type", forward, {"mix": mix.half()}),
        ("mix: need 32 contiguous", forward, {"mix": torch.randn(8, 4).t()}),
        ("y: need its shape", forward, {"y": y[:3]}),
        ("y: need contiguous", forward, {"y": torch.randn(4, 2, 3, 16).bfloat16()[..., :8]}),
        ("last: need its shape", forward, {"last": last.float()}),
        ("tokens: need at least 1", forward, {"tokens": 0}),
        ("dy: need its shape, x's type", backward, {"dy": y.float()}),
        ("dx: need its shape", backward, {"dx": x[:1]}),
        ("dlast: need its shape", backward, {"dlast": last[:1]}),
        (r"partial: need \[1, the CTAs along the runs", backward, {"partial": torch.empty(1, 2, 32)}),
        ("dweight: need 32 contiguous", backward, {"dmix": torch.empty(3, 8)}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert forward() == "rows_shift_forward_bf16"
    assert backward() == "rows_shift_backward_bf16"


def test_the_launchers_of_group_norm_check_again(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    x, w, row = torch.randn(5, 2, 8).bfloat16(), torch.randn(2, 8), torch.zeros(5, 2)
    y, partial = torch.empty_like(x), torch.empty(2, 1, 16)

    def forward(x=x, weight=w, gate=None, y=y, mean=row, splits=2):
        return machine.launch("head_norm_forward", x, weight, None, gate, y, mean, row, splits, 1e-5, op="group_norm")

    def backward(gate=None, dy=y, dgate=None, partial=partial, dweight=None):
        return machine.launch("head_norm_backward", x, w, None, gate, row, row, dy, y, dgate, partial, dweight, None,
                              op="group_norm")  # fmt: skip

    for words, call, wrong in [
        ("x: need three dimensions", forward, {"x": x[0]}),
        ("x: need three dimensions of bf16, f16 or f32", forward, {"x": x.double()}),
        ("x: need fewer than 2.30 heads of at most 4096", forward, {"x": torch.randn(1, 1, 4097).bfloat16()}),
        ("x: need x's shape, type and device, contiguous", forward, {"x": x.transpose(0, 1)}),
        ("weight: need x's type or f32", forward, {"weight": w.half()}),
        ("weight: need 16 contiguous", forward, {"weight": w[:1]}),
        ("gate: need x's shape", forward, {"gate": x.float()}),
        ("y: need x's shape", forward, {"y": y[:4]}),
        ("mean: need 10 contiguous", forward, {"mean": row[:4]}),
        ("splits: need at least 1", forward, {"splits": 0}),
        ("dy: need x's shape", backward, {"dy": y.float()}),
        ("dgate: need it with a gate", backward, {"dgate": y}),
        (r"partial: need \[2", backward, {"partial": partial[:1]}),
        ("dweight: need 16 contiguous", backward, {"dweight": w[:1]}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert forward() == "rows_head_norm_forward_bf16"
    assert backward() == "rows_head_norm_backward_bf16"


def test_the_launchers_of_merge_state_check_again(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    x, lse = torch.randn(2, 5, 3, 8).bfloat16(), torch.randn(2, 3, 5)
    rows, numbers = torch.empty_like(x), torch.empty_like(lse)

    def forward(out1=x, lse1=lse, out2=x, lse2=lse, out=rows, to=numbers):
        return machine.launch("merge_forward", out1, lse1, out2, lse2, out, to, op="merge_state")

    def backward(dout=x, dlse=lse, dout1=rows, dlse1=None, dout2=None, dlse2=numbers):
        given = x, lse, x, lse, dout, dlse, dout1, dlse1, dout2, dlse2
        return machine.launch("merge_backward", *given, op="merge_state")

    for words, call, wrong in [
        ("out1: need four dimensions", forward, {"out1": x[0]}),
        ("out1: need four dimensions of bf16, f16 or f32", forward, {"out1": x.double()}),
        ("out1: need fewer than 2.30 tokens", forward, {"out1": torch.randn(1, 1, 1, 4097).bfloat16()}),
        ("out1: need contiguous channels", forward, {"out1": torch.randn(2, 5, 3, 16).bfloat16()[..., ::2]}),
        ("lse1: need an f32 for each", forward, {"lse1": lse.mT}),
        ("lse2: need an f32 for each", forward, {"lse2": lse.bfloat16()}),
        ("out2: need out1's shape", forward, {"out2": x.float()}),
        ("out: need out1's shape", forward, {"out": x[:1]}),
        ("lse: need an f32 for each", forward, {"to": lse[:1]}),
        ("dout: need out1's shape", backward, {"dout": x[:, :4]}),
        ("dlse: need an f32 for each", backward, {"dlse": lse[:, :2]}),
        ("dout1: need out1's shape", backward, {"dout1": x.half()}),
        ("dlse2: need an f32 for each", backward, {"dlse2": lse.double()}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert forward() == "rows_merge_forward_bf16"
    assert backward() == "rows_merge_backward_bf16"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_on_the_device(name, dtype):
    for case in OPS[name].cases:
        kwargs = case.make(registry.Maker(dtype))
        if case.bench:
            continue
        moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        assert disagreement(name, moved, "cuda") == "", case.name
