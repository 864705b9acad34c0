"""The kernels of short_conv in the emulator, under all checks: every case and dtype, both layouts of x, every phase of
a row, runs and steps, several schedules; what they move; what they must not read; what they refuse."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather  # noqa: E402  (after the skips)
from row_runs import few_ctas  # noqa: E402
from short_conv_runs import SOURCES, disagreement, packed, run, runs_of, short_conv  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402
from tkpy.emulator.run import Counters, CountRow  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
OP = registry.get("short_conv")
CASES = [pytest.param(case, id=case.name) for case in OP.cases if not case.bench]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    return gather(tmp_path_factory.mktemp("short_conv"), [kernel_folder(f"kernels/{name}") for name in SOURCES])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_case_of_the_op(folder, monkeypatch, case, dtype):
    for seed in range(2):
        few_ctas(monkeypatch, folder, 1 + seed, seed)
        with tkpy.record_dispatches() as log:
            for result in conformance.check_case(OP, case, backend="emulator", dtype=dtype):
                assert result.comparison, str(result)
        assert (log[0].op, log[0].backend) == ("short_conv", "emulator")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", range(1, 9))
@pytest.mark.parametrize("layout", ["times", "channels"])
def test_any_number_of_taps(folder, monkeypatch, layout, taps, dtype):
    """Several steps of several runs, which end within a sequence, without and with the activation."""
    few_ctas(monkeypatch, folder, seed=taps)
    runs_of(monkeypatch, 64)
    make = registry.Maker(dtype)
    kwargs = short_conv(make, 1, 7, 200 + taps, taps, layout=layout, silu=taps % 2 == 0, wide=taps % 3 == 0)
    assert disagreement(kwargs) == ""
    runs_of(monkeypatch, 4096)
    kwargs = short_conv(make, 1, 3, 600 + taps, taps, layout=layout, silu=taps % 2 == 1, states=taps % 3 == 0)
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 9, 16, 63, 64, 65, 127, 136])
@pytest.mark.parametrize("layout", ["times", "channels"])
def test_any_length(folder, monkeypatch, layout, length, dtype):
    """Teams of 1 to 32 lanes; rows of which each begins at another phase of 16 bytes, or all at none."""
    few_ctas(monkeypatch, folder, seed=length)
    kwargs = short_conv(registry.Maker(dtype), 3, 11, length, 1 + length % 8, layout=layout, silu=length % 2 == 0)
    assert disagreement(kwargs) == ""


#: Sequences that end where runs do, within and beside; shorter than a state, and empty, at the beginning and the end.
PACKED = {
    "many": (4, (0, 0, 3, 64, 64, 65, 70, 192, 192)),
    "long": (8, (0, 200, 201, 203, 206, 500)),
    "empty": (3, (0, 0, 0, 130, 130)),
    "blocks": (4, (0, 49, 98, 147)),  # which some channels fill to their last sample
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps, bounds", list(PACKED.values()), ids=list(PACKED))
@pytest.mark.parametrize("layout", ["times", "channels"])
def test_packed_sequences(folder, monkeypatch, layout, taps, bounds, dtype):
    """In runs of 64 times and in one; 64-bit offsets too."""
    few_ctas(monkeypatch, folder, seed=taps)
    for tokens in (64, 4096):
        runs_of(monkeypatch, tokens)
        kwargs = packed(registry.Maker(dtype), 11, taps, bounds, layout=layout, silu=tokens == 64)
        assert disagreement(kwargs) == ""
    assert disagreement(kwargs | {"cu_seqlens": kwargs["cu_seqlens"].long()}, grad=False) == ""


def test_offsets_that_are_none_stay_within_the_tensors(folder, monkeypatch):
    """A GPU's are not looked at: they read and write nothing that is not theirs. What is in two sequences is written
    twice, in no order; here nothing is."""
    few_ctas(monkeypatch, folder)
    x, w, state = torch.randn(1, 6, 90).bfloat16(), torch.randn(6, 4), torch.randn(4, 1, 6, 3).bfloat16()
    for bounds in ([-5, 30, 40, 200, 10**9], [90, 0, 0, 90, 90], [7, 7, 7, 7, 7]):
        offsets = torch.tensor(bounds, dtype=torch.int32)
        y, final = torch.zeros_like(x), torch.zeros(4, 6, 3).bfloat16()
        machine.launch("short_conv_forward", x, w, None, state[:, 0], offsets, y, final, 64, True, op="short_conv")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("pitch, skew", [(72, 0), (72, 3), (67, 1), (65, 8)])
@pytest.mark.parametrize("layout", ["times", "channels"])
def test_any_alignment_of_x(folder, monkeypatch, layout, pitch, skew, dtype):
    """Rows of x that begin where those of y do, elsewhere, and each at another phase."""
    few_ctas(monkeypatch, folder, seed=pitch)
    channels, length = (3, 64) if layout == "times" else (64, 21)
    kwargs = short_conv(registry.Maker(dtype), 2, channels, length, 4, layout=layout, pitch=pitch, skew=skew)
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("layout", ["times", "channels"])
def test_what_is_not_x_is_not_read(folder, monkeypatch, layout):
    """NaN and infinities around x, and products with taps that are not there."""
    few_ctas(monkeypatch, folder)
    runs_of(monkeypatch, 64)
    make = registry.Maker(torch.bfloat16)
    kwargs = short_conv(make, 2, 24, 100, 3, layout=layout, pitch=104, skew=8)
    around = torch.full((kwargs["x"].untyped_storage().nbytes() // 2,), torch.nan, dtype=torch.bfloat16)
    x = around.as_strided(kwargs["x"].shape, kwargs["x"].stride(), kwargs["x"].storage_offset()).copy_(kwargs["x"])
    assert disagreement(kwargs | {"x": x}) == ""


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("layout", ["times", "channels"])
def test_nan_goes_as_far_as_the_taps(folder, monkeypatch, layout, silu):
    few_ctas(monkeypatch, folder)
    runs_of(monkeypatch, 64)
    make = registry.Maker(torch.bfloat16)
    kwargs = short_conv(make, 1, 9, 150, 3, layout=layout, silu=silu, states=False)
    for place, t in enumerate((0, 63, 64, 100, 149)):
        kwargs["x"][0, place, t] = torch.nan
    got, want = (run(kwargs, backend, True) for backend in ("emulator", "reference"))
    for key, tensor in want.items():
        assert torch.equal(got[key].isnan(), tensor.isnan()), key


@pytest.mark.parametrize("layout", ["times", "channels"])
def test_gradients_of_any_layout(folder, monkeypatch, layout):
    """dy broadcast, with channels beside each other, begun at another phase; none at all."""
    few_ctas(monkeypatch, folder)
    make = registry.Maker(torch.bfloat16)
    kwargs = short_conv(make, 2, 16, 40, 4, layout=layout)
    dy = make.randn(2, 16, 40)
    skewed = torch.cat([dy.new_zeros(3), dy.flatten()])[3:].view(dy.shape)
    wide = torch.randn(2, 16, 80).bfloat16()
    state = make.randn(2, 16, 3)
    names = ("x", "weight", "bias", "initial_state")
    for gradients in [(dy.mT.contiguous().mT, state), (skewed, state.mT.contiguous().mT), (wide[..., 40:], None),
                      (dy[:1, :1, :1].expand(dy.shape), state), (None, state)]:  # fmt: skip
        found = []
        for backend in ("emulator", "reference"):
            leaves = [kwargs[n].detach().requires_grad_() for n in names]
            outputs = tkpy.short_conv(**kwargs | dict(zip(names, leaves, strict=True)), backend=backend)
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
            found.append(torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True))
        for got, want in zip(*found, strict=True):
            want = torch.zeros_like(got) if want is None else want
            assert tkpy.numerics.compare(got, want, 2e-2) or not (want.any() or got.any())


def _total(emulator) -> dict[str, int]:
    """Counters, and the bytes of the distinct sectors that launches read, and write."""
    found = emulator.counters().values()
    total = dataclasses.asdict(Counters(CountRow.of(*row) for *_, rows_ in found for row in rows_).total)
    return total | {"hbm": 32 * sum(read + written for _, _, read, written, _ in found)}


@pytest.mark.parametrize("layout", ["times", "channels"])
def test_what_is_moved(folder, monkeypatch, layout):
    """Each byte once, in whole sectors and without bank conflicts."""
    counted = few_ctas(monkeypatch, folder, counters=True)
    kwargs = short_conv(registry.Maker(torch.bfloat16), 1, 64, 2048, 3, layout=layout, states=False)
    run(kwargs, "emulator", False)
    forward = _total(counted)
    run(kwargs, "emulator", True)
    backward = {key: n - 2 * forward[key] for key, n in _total(counted).items()}
    for counts, share in ((forward, 2 * 2), (backward, 3 * 2)):
        ideal = kwargs["x"].numel() * share
        assert 1.0 <= counts["hbm"] / ideal <= 1.05
        assert counts["global_bytes"] / ideal <= 1.08  # taps, once a warp
        assert 32 * counts["global_sectors"] <= 1.1 * counts["global_bytes"]
        assert counts["bank_conflicts"] == 0


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    found = []
    for seed in range(3):
        few_ctas(monkeypatch, folder, 2, seed)
        runs_of(monkeypatch, 64)
        found.append(run(short_conv(registry.Maker(torch.bfloat16), 2, 40, 300), "emulator", True))
    for other in found[1:]:
        assert all(torch.equal(t, other[key]) for key, t in found[0].items())


def test_refusals_are_data(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    explained = tkpy.explain("short_conv", **short_conv(registry.Maker(torch.float64))).refusals
    assert [r.code for r in explained["emulator"]] == ["dtype"]
    explained = tkpy.explain("short_conv", **short_conv(registry.Maker(torch.bfloat16))).refusals
    assert not explained["emulator"]
    assert [r.code for r in explained["cuda"]] == ["needs_gpu"]
    huge = {"x": torch.zeros(1).bfloat16().expand(1, 1, 2**30), "weight": torch.zeros(1, 2).bfloat16()}
    explained = tkpy.explain("short_conv", **huge).refusals
    assert [r.message for r in explained["emulator"]] == [
        "needs fewer than 2^28 channels and 2^30 samples, got (1, 1073741824)"
    ]


def test_the_launchers_check_again(folder, monkeypatch):
    few_ctas(monkeypatch, folder)
    x, w, bias, state = (torch.randn(s).bfloat16() for s in ((2, 6, 9), (6, 3), (6,), (2, 6, 2)))
    y, shares, few = torch.empty_like(x), torch.empty(1, 2, 18), torch.empty(1, 2, 6)

    def forward(x=x, w=w, bias=bias, state=state, bounds=None, y=y, final=None, tokens=64):
        arguments = (x, w, bias, state, bounds, y, final, tokens, True)
        return machine.launch("short_conv_forward", *arguments, op="short_conv")

    def backward(dy=y, dfinal=None, dx=y, dstate=None, shares=shares, few=few, dw=None, db=None):
        arguments = (x, w, bias, state, None, dy, dfinal, dx, dstate, shares, few, dw, db, 64, True)
        return machine.launch("short_conv_backward", *arguments, op="short_conv")

    for words, call, wrong in [
        ("x: need three dimensions", forward, {"x": x[0]}),
        ("x: need three dimensions of bf16, f16 or f32", forward, {"x": x.double()}),
        ("x: need times or channels beside", forward, {"x": torch.randn(2, 12, 18).bfloat16()[:, ::2, ::2]}),
        ("weight: need 1 to 8 taps", forward, {"w": torch.randn(6, 9).bfloat16()}),
        ("weight: need 1 to 8 taps", forward, {"w": torch.randn(5, 3).bfloat16()}),
        ("weight: need 18 contiguous", forward, {"w": w.half()}),
        ("weight: need 18 contiguous", forward, {"w": torch.randn(3, 6).t()}),
        ("bias: need 6 contiguous", forward, {"bias": bias[:5]}),
        ("initial_state: need x's sequences", forward, {"state": state[:1]}),
        ("initial_state: need x's sequences", forward, {"state": state.float()}),
        ("x: need one row where there are offsets", forward, {"bounds": torch.tensor([0, 9], dtype=torch.int32)}),
        ("cu_seqlens: need two or more", forward, {"x": x[:1], "bounds": torch.tensor([0, 9])}),
        ("y: need x's sequences", forward, {"y": y[..., :8]}),
        ("y: need contiguous", forward, {"y": torch.empty(2, 9, 6).bfloat16().mT}),
        ("final_state: need x's sequences", forward, {"final": torch.empty(2, 6, 3).bfloat16()}),
        ("tokens: need a multiple of 64, got 65", forward, {"tokens": 65}),
        ("dy: need x's sequences", backward, {"dy": y.float()}),
        ("dy: need times beside", backward, {"dy": torch.empty(2, 9, 6).bfloat16().mT}),
        ("dfinal_state: need x's", backward, {"dfinal": y}),
        ("dx: need contiguous", backward, {"dx": torch.empty(2, 9, 6).bfloat16().mT}),
        ("dinitial_state: need x's", backward, {"dstate": y}),
        (r"dweight_shares: need \[1", backward, {"shares": few}),
        (r"dbias_shares: need \[1", backward, {"few": shares}),
        ("need shares of both", backward, {"few": None}),
        ("dweight: need 18 contiguous", backward, {"dw": torch.empty(6, 2)}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert forward() == "short_conv_forward_bf16_times"
    assert forward(torch.randn(2, 9, 6).bfloat16().mT) == "short_conv_forward_bf16_channels"
    assert backward() == "short_conv_backward_bf16_times"
