"""hyena_filter on its compiled kernels: in the emulator against float64, gradients included."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, registry  # noqa: E402
from tkpy.numerics import compare  # noqa: E402
from tkpy.ops.hyena_filter import cuda  # noqa: E402
from tkpy.ops.hyena_filter.op import _case  # noqa: E402

OP = registry.get("hyena_filter")
NAMES = list(OP.cases[0].make(registry.Maker(torch.float32)))
ROUNDS = registry.Case("three rounds of channels", _case(150, 128, 128, 3, 300), "features and network at their widest")
DEEP = registry.Case(
    "five hidden layers", _case(65, 5, 20, 5, 30), "sums of three of them leave the chip in the backward"
)
CLUSTERS = registry.Case(
    "three clusters of eight", _case(1090, 5, 24, 1, 20), "that take turns, and of which the last has CTAs without lags"
)
LAGS = [registry.Case(f"{lags} lags", _case(lags, 5, 72, 1, 24), "around a tile") for lags in (63, 64, 65)]
CASES = [*(case for case in OP.cases if not case.bench), ROUNDS, DEEP, CLUSTERS, *LAGS]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    sources = ("hyena_filter/forward", "hyena_filter/backward", "rows/norm_backward")
    return gather(tmp_path_factory.mktemp("modules"), [kernel_folder(f"kernels/{name}.cu") for name in sources])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients_in_the_emulator(folder, monkeypatch, case, seed):
    on_machine(monkeypatch, folder, seed)
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=torch.float32))
    wrong = [str(result) for result in results if not result.comparison]
    assert not wrong, "\n".join(wrong)
    assert len(results) == 10
    ran = [(dispatch.op, dispatch.backend) for dispatch in log]
    assert ran[:2] == [("hyena_filter", "emulator"), ("hyena_filter_backward", "emulator")]


@pytest.mark.parametrize(
    "length, expected",
    [(1, (1, 1, 1)), (64, (1, 1, 1)), (65, (1, 2, 1)), (257, (1, 8, 1)), (513, (2, 8, 2)), (8192, (16, 8, 16)),
     (131072, (16, 8, 256))],
)  # fmt: skip
def test_clusters(length, expected):
    assert cuda.grid(length, 132) == expected


@pytest.mark.parametrize(
    "wanted", [[name] for name in NAMES] + [["times", "frequency"], ["output_weight", "decay"]], ids="-".join
)
def test_gradients_are_the_same_whichever_are_asked_for(folder, monkeypatch, wanted):
    on_machine(monkeypatch, folder)
    monkeypatch.setattr(cuda, "TEAM", 2)
    call = _case(200, 5, 24, 3, 140)(registry.Maker(torch.float32))
    found = []
    for names in (NAMES, wanted):
        leaves = {name: t.detach().requires_grad_(name in names) for name, t in call.items()}
        taps = tkpy.hyena_filter(**leaves, backend="emulator")
        found.append(
            dict(zip(names, torch.autograd.grad(taps.square().sum(), [leaves[n] for n in names]), strict=True))
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in wanted)


def test_the_window_beyond_the_last_lag_and_channel(folder, monkeypatch):
    """A decay, or a time, without end makes taps that are 0, and what is not there adds nothing to the gradients."""
    on_machine(monkeypatch, folder)
    call = _case(70, 5, 24, 1, 12)(registry.Maker(torch.float32))
    call["times"] += 0.1
    call["times"][3], call["decay"][5] = float("inf"), float("inf")
    call = {name: t.requires_grad_(name not in ("times", "decay")) for name, t in call.items()}
    leaves, found = [t for t in call.values() if t.requires_grad], []
    for backend in ("emulator", "reference"):
        taps = tkpy.hyena_filter(**call, backend=backend)
        assert not taps[5].any()
        assert not taps[:, 3].any()
        found.append(torch.autograd.grad(taps.square().sum(), leaves))
    assert all(compare(got, want, 1e-5) for got, want in zip(*found, strict=True))


def exact_phases(make) -> dict:
    """Sines of 0, 1000, 2000 .. 2^20: no product rounds on the way to them."""
    one = torch.ones(1)
    return {
        "features": torch.arange(1048.0)[:, None], "times": torch.zeros(1048), "input_weight": one[None],
        "input_bias": 0 * one, "hidden_weight": torch.zeros(0, 1, 1), "hidden_bias": torch.zeros(0, 1),
        "frequency": 1000 * one, "output_weight": one[None], "decay": one,
    }  # fmt: skip


def test_sines_and_cosines_of_a_million(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    call = exact_phases(None)
    phase = 1000 * call["features"][:, 0].double()
    call["features"].requires_grad_()
    taps = tkpy.hyena_filter(**call, backend="emulator")
    assert (taps[0] - phase.sin()).abs().max() < 2**-22
    (slope,) = torch.autograd.grad(taps.sum(), call["features"])
    assert (slope[:, 0] / 1000 - phase.cos()).abs().max() < 2**-22


def test_a_nan_stays_in_its_lag(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    call = OP.cases[0].make(registry.Maker(torch.float32))
    want = tkpy.hyena_filter(**call, backend="reference")
    call["features"][4, 1] = float("nan")
    got = tkpy.hyena_filter(**call, backend="emulator")
    assert got[:, 4].isnan().all()
    others = torch.arange(got.shape[1]) != 4
    assert compare(got[:, others], want[:, others], 1e-5)


@pytest.mark.parametrize(
    "sizes, dtype, code",
    [((9, 129, 16, 2, 4), torch.float32, "width"), ((9, 5, 136, 2, 4), torch.float32, "width"),
     ((9, 5, 16, 2, 4), torch.float64, "dtype")],
)  # fmt: skip
def test_refusals(sizes, dtype, code):
    call = {name: t.to(dtype) for name, t in _case(*sizes)(registry.Maker(torch.float32)).items()}
    refused = tkpy.explain("hyena_filter", **call).refusals
    assert code in [reason.code for reason in refused["emulator"]]
    assert code in [reason.code for reason in refused["cuda"]]
    with pytest.raises(tkpy.Unsupported, match=r"128" if code == "width" else r"float32"):
        tkpy.hyena_filter(**call, backend="emulator")


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    """However many clusters take the steps, and however they run; one takes them all, where nobody waits."""
    call = _case(500, 5, 72, 3, 140)(registry.Maker(torch.float32))
    call = {name: t.requires_grad_() for name, t in call.items()}
    monkeypatch.setattr(cuda, "TEAM", 2)
    found = []
    for seed, multiprocessors in ((3, 132), (4, 6), (5, 2)):
        monkeypatch.setattr(cuda.rows, "multiprocessors", lambda x, count=multiprocessors: count)
        on_machine(monkeypatch, folder, seed)
        taps = tkpy.hyena_filter(**call, backend="emulator")
        found.append([taps, *torch.autograd.grad(taps.square().sum(), list(call.values()))])
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))
    exact = {name: t.detach().double().requires_grad_() for name, t in call.items()}
    taps = tkpy.hyena_filter(**exact, backend="reference")
    wanted = [taps, *torch.autograd.grad(taps.square().sum(), list(exact.values()))]
    assert all(compare(got, want, 1e-5) for got, want in zip(found[0], wanted, strict=True))
