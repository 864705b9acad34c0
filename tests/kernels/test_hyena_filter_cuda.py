"""hyena_filter on its compiled kernels: in the emulator against float64, gradients included."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy import conformance, registry  # noqa: E402
from tkpy.numerics import compare  # noqa: E402
from tkpy.ops.hyena_filter.op import _case  # noqa: E402

OP = registry.get("hyena_filter")
ROUNDS = registry.Case("three rounds of channels", _case(150, 128, 128, 3, 300), "features and network at their widest")
CASES = [*(case for case in OP.cases if not case.bench), ROUNDS]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/hyena_filter/kernel.cu")


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
    call = ROUNDS.make(registry.Maker(torch.float32))
    call = {name: t.requires_grad_() for name, t in call.items()}
    found = []
    for seed in (3, 4):
        on_machine(monkeypatch, folder, seed)
        taps = tkpy.hyena_filter(**call, backend="emulator")
        found.append([taps, *torch.autograd.grad(taps.square().sum(), list(call.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
