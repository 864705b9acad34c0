"""The kernels of rms_norm and layer_norm in the emulator, under all checks: every case and dtype, rows held and rows
that go by stretches, every alignment, several rows a team, several schedules; what they move; what they refuse."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from norm_runs import MODULES, OPS, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402
from tkpy.emulator.run import Counters, CountRow  # noqa: E402
from tkpy.ops import rows  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
STREAMS = [(d, r) for d in DTYPES for r in dict.fromkeys((d, torch.float32))]  # x's dtype, the residual's
KINDS = list(OPS)
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases if not case.bench
]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    return gather(tmp_path_factory.mktemp("norms"), [kernel_folder(f"kernels/rows/{name}.cu") for name in MODULES])


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


def few_ctas(monkeypatch, folder, count, seed=0):
    """A GPU of so many multiprocessors: CTAs have several rows."""
    on_machine(monkeypatch, folder, seed, multiprocessors=count)
    monkeypatch.setattr(rows, "multiprocessors", lambda x: count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_every_case_of_the_ops(built, op, case, dtype):
    with tkpy.record_dispatches() as log:
        for result in conformance.check_case(op, case, backend="emulator", dtype=dtype):
            assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == (op.name, "emulator")


@pytest.mark.parametrize(
    "dtype, residual", [(d, r) for d in DTYPES for r in dict.fromkeys((d, torch.float32))], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 8, 24, 130, 250, 515, 1032])
def test_several_rows_a_team(folder, monkeypatch, kind, width, dtype, residual):
    """Rows of part of a warp, of warps that share a sum, in pieces of 2, 4 and 16 bytes; more rows than teams."""
    few_ctas(monkeypatch, folder, 1, seed=width)
    wide = width == 1 and kind == "layer"  # the variance is 0
    rows_, options = (270, {}) if width <= 24 else (11, {"dropout": 0.25})
    kwargs = inputs(kind, rows_, width, dtype=dtype, residual=residual, **options)
    assert disagreement(kind, kwargs, grad=not wide) == ""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width, residual", [(4104, torch.bfloat16), (8203, torch.float32)])
def test_rows_by_stretches(folder, monkeypatch, kind, width, residual, seed):
    """Wider than what a CTA holds, in the backward and in both."""
    few_ctas(monkeypatch, folder, 1, seed)
    assert disagreement(kind, inputs(kind, 3, width, residual=residual, dropout=0.5)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_an_eps_outside_the_root_and_a_row_of_zeros(built, kind):
    kwargs = inputs(kind, 5, 72, eps=0.01, **({"eps_inside_sqrt": False} if kind == "rms" else {}))
    kwargs["x"][3] = 0.0
    assert disagreement(kind, kwargs, grad=kind == "layer") == ""  # the root has no derivative at 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 66, 67])
def test_what_lies_between_rows_is_not_looked_at(built, kind, width):
    kwargs = inputs(kind, 9, width, residual=torch.bfloat16, pitch=72)
    whole = torch.full((9, 72), float("nan"), dtype=torch.bfloat16)
    whole[:, :width] = kwargs["x"]
    kwargs["x"] = whole[:, :width]
    assert disagreement(kind, kwargs) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_bits(folder, monkeypatch, kind):
    found = []
    for seed in range(3):
        few_ctas(monkeypatch, folder, 2, seed)
        kwargs = inputs(kind, 40, 96)
        leaf = kwargs["weight"].requires_grad_(True)
        y, _ = OPS[kind].public(**kwargs, backend="emulator")
        found.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), leaf)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _total(emulator) -> dict[str, int]:
    rows_ = (CountRow.of(*row) for *_, found in emulator.counters().values() for row in found)
    return dataclasses.asdict(Counters(rows_).total)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_moved(folder, monkeypatch, kind, residual, dropout):
    """Each byte once: the parameters and the shares of their gradients are few beside 128 rows a CTA."""
    few_ctas(monkeypatch, folder, 1)
    counted = tkpy.machine.compiled().Machine.emulator(str(folder), multiprocessors=1, threads=2, counters=True)
    monkeypatch.setattr(machine, "_machine", lambda kind, folder: counted)
    count, width, joined = 256, 2048, residual or dropout > 0
    kwargs = inputs(kind, count, width, residual=torch.bfloat16 if residual else None, dropout=dropout)
    leaves = [kwargs[name].requires_grad_(True) for name in ("x", "weight", "residual") if name in kwargs]
    y, z = OPS[kind].public(**kwargs, backend="emulator")
    forward = _total(counted)
    outputs = (y, z) if joined else (y,)
    torch.autograd.grad(outputs, leaves, [t.detach() for t in outputs])
    backward = {name: n - forward[name] for name, n in _total(counted).items()}
    matrix = 2 * count * width  # bytes
    assert 1.0 <= forward["global_bytes"] / (matrix * (2 + residual + joined)) <= 1.05
    assert 1.0 <= backward["global_bytes"] / (matrix * (3 + joined + residual)) <= 1.15  # statistics by every lane
    for counts in (forward, backward):
        assert 32 * counts["global_sectors"] <= 1.15 * counts["global_bytes"]  # but for weights, once a CTA
        assert counts["shared_wavefronts"] <= 1.01 * counts["shared_requests"]


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_data(built, kind):
    explained = tkpy.explain(OPS[kind].name, **inputs(kind, 2, 8, dtype=torch.float64)).refusals
    assert [r.code for r in explained["emulator"]] == ["dtype"]
    explained = tkpy.explain(OPS[kind].name, **inputs(kind, 2, 8)).refusals
    assert not explained["emulator"]
    assert [r.code for r in explained["cuda"]] == ["needs_gpu"]


def test_the_launchers_check_again(built):
    x, y, z = (torch.randn(3, 8).bfloat16() for _ in range(3))
    row, weight, seed = torch.empty(3), torch.randn(8), torch.tensor([5])

    def forward(
        x=x, residual=None, weight=weight, bias=None, seed=None, y=y, z=None, mean=None, rstd=None, dropout=0.0
    ):
        return machine.launch(
            "norm_forward", x, residual, weight, bias, seed, y, z, mean, rstd, 1e-6, True, dropout, op="n"
        )

    def backward(dy=y, z=x, dz=None, mean=None, rstd=None, dx=z, dresidual=None, partial=None, dbias=None, dropout=0.0):
        partial = torch.empty(1, 2, 8) if partial is None else partial
        return machine.launch("norm_backward", dy, z, dz, weight, mean, rstd, None, dx, dresidual, partial, None, dbias,
                              1e-6, True, dropout, op="n")  # fmt: skip

    for words, call, wrong in [
        ("x: need two dimensions", forward, {"x": x[0]}),
        ("x: need two dimensions of bf16, f16 or f32", forward, {"x": x.double()}),
        ("residual: need x's type or f32", forward, {"residual": x.half()}),
        ("residual: need 3 rows of 8", forward, {"residual": x[:2], "z": z}),
        ("x: need contiguous rows", forward, {"x": torch.randn(8, 3).bfloat16().t()}),
        ("z: need it with a residual", forward, {"z": z}),
        ("z: need it with a residual", forward, {"dropout": 0.5, "seed": seed}),
        ("seed: need one i64", forward, {"dropout": 0.5, "z": z}),
        ("dropout: need a number", forward, {"dropout": 1.0, "z": z, "seed": seed}),
        ("weight, bias: need x's type or f32", forward, {"weight": weight.half()}),
        ("weight: need 8 contiguous", forward, {"weight": weight[:4]}),
        ("mean: need mean and rstd", forward, {"mean": row}),
        ("rstd: need 3 contiguous", forward, {"mean": row, "rstd": row[:2]}),
        ("z: need dy's type or f32", backward, {"z": x.half()}),
        ("dz: need bf16", backward, {"dz": x.float()}),
        ("dx: need 3 rows", backward, {"dx": z[:2]}),
        (r"partial: need \[1", backward, {"partial": torch.empty(2, 2, 8)}),
        ("mean: need mean and rstd, or neither and no dbias", backward, {"dbias": weight}),
        ("seed: need one i64", backward, {"dropout": 0.5}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert forward() == "rows_rms_norm_forward_bf16_bf16"
    assert forward(residual=x.float(), z=z.float(), mean=row, rstd=row) == "rows_layer_norm_forward_bf16_f32"
    assert backward() == "rows_rms_norm_backward_bf16_bf16"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype, residual", [(d, r) for d in DTYPES for r in dict.fromkeys((d, torch.float32))], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 515, 768, 4096, 8192, 20001])
def test_on_the_device(kind, width, dtype, residual):
    kwargs = inputs(kind, 1201, width, dtype=dtype, residual=residual, dropout=0.1)
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    assert disagreement(kind, moved, "cuda") == ""
