"""The registry: choice, refusals, contexts, records, discovery; and what torch.compile sees of them."""

from __future__ import annotations

import pickle
import textwrap
import threading

import pytest
import torch

import tkpy
from tkpy import conformance, registry
from tkpy.bench import facts, runner
from tkpy.bench.op_rows import from_cases
from tkpy.cli import check_rows, doctor_text
from tkpy.registry import Maker

pytestmark = pytest.mark.fast


@pytest.fixture
def x():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weight():
    return torch.ones(8)


def test_the_cpu_gets_eager_and_says_so(x, weight):
    tkpy.rms_norm(x, weight)
    dispatch = tkpy.last_dispatch()
    assert (dispatch.op, dispatch.backend, dispatch.automatic) == ("rms_norm", "eager", True)
    tkpy.rms_norm(x, weight, backend="reference")
    dispatch = tkpy.last_dispatch()
    assert (dispatch.backend, dispatch.automatic) == ("reference", False)


def test_use_backend_nests_and_an_argument_wins(x, weight):
    with tkpy.use_backend("reference"):
        tkpy.rms_norm(x, weight)
        assert tkpy.last_dispatch().backend == "reference"
        with tkpy.use_backend("eager"):
            tkpy.rms_norm(x, weight)
            assert tkpy.last_dispatch().backend == "eager"
        tkpy.rms_norm(x, weight)
        assert tkpy.last_dispatch().backend == "reference"
        tkpy.rms_norm(x, weight, backend="eager")
        assert tkpy.last_dispatch().backend == "eager"
    tkpy.rms_norm(x, weight)
    assert tkpy.last_dispatch().backend == "eager"


def test_use_backend_is_of_one_thread(x, weight):
    seen = []

    def work():
        tkpy.rms_norm(x, weight)
        seen.append(tkpy.last_dispatch().backend)

    with tkpy.use_backend("reference"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == ["eager"]


def test_use_backend_recovers_from_errors(x, weight):
    with pytest.raises(ValueError, match="needle"), tkpy.use_backend("reference"):
        raise ValueError("needle")
    tkpy.rms_norm(x, weight)
    assert tkpy.last_dispatch().backend == "eager"
    with pytest.raises(ValueError, match="backend"), tkpy.use_backend("gpu"):
        pass


def test_a_named_backend_that_cannot_serve_raises_with_its_reasons(x, weight, monkeypatch):
    monkeypatch.setattr(registry.get("rms_norm"), "available", ("triton", "eager", "reference"))
    for backend, code in (("cuda", "not_built"), ("emulator", "not_built"), ("triton", "needs_gpu")):
        if backend == "triton" and registry.triton_interpreted():
            continue
        with pytest.raises(tkpy.Unsupported, match=code) as caught:
            tkpy.rms_norm(x, weight, backend=backend)
        assert caught.value.op == "rms_norm"
        assert [r.code for r in caught.value.refusals[backend]] == [code]
        with pytest.raises(tkpy.Unsupported), tkpy.use_backend(backend):
            tkpy.rms_norm(x, weight)


def test_a_refusal_goes_from_one_process_to_another(x, weight):
    with pytest.raises(tkpy.Unsupported) as caught:
        tkpy.rms_norm(x.double(), weight, backend="cuda")
    there = pickle.loads(pickle.dumps(caught.value))
    assert (str(there), there.op, there.refusals) == (str(caught.value), caught.value.op, caught.value.refusals)


def test_explain_names_every_backend(x, weight, capsys):
    explanation = tkpy.explain(tkpy.rms_norm, x, weight, eps=1e-5)
    assert explanation.chosen == "eager"
    assert list(explanation.refusals) == list(tkpy.BACKENDS)
    printed = capsys.readouterr().out
    for backend in tkpy.BACKENDS:
        assert backend in printed
    assert tkpy.explain("rms_norm", x, weight).chosen == "eager"
    with pytest.raises(ValueError, match="weight"):
        tkpy.explain(tkpy.rms_norm, x, weight[:3])
    with pytest.raises(ValueError, match="no op"):
        tkpy.explain("nonsense", x)


def test_explain_runs_nothing(x, weight):
    with tkpy.record_dispatches() as log:
        tkpy.explain(tkpy.rms_norm, x, weight)
    assert log == []


def test_support_matrix_holds_every_op():
    matrix = tkpy.support_matrix("cpu")
    assert set(matrix) == set(registry.ops())
    assert all(e.chosen == "eager" for e in matrix.values())


def test_the_backward_runs_on_the_forwards_backend(x, weight):
    for backend in ("eager", "reference"):
        leaf = x.clone().requires_grad_()
        with tkpy.record_dispatches() as log:
            y = tkpy.rms_norm(leaf, weight, backend=backend)
            with tkpy.use_backend("eager"):
                y.sum().backward()
        assert [(d.op, d.backend) for d in log] == [("rms_norm", backend), ("rms_norm_backward", backend)]


def test_compiled_code_follows_use_backend(x, weight):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: tkpy.rms_norm(x, weight), fullgraph=True, backend="aot_eager")
    for backend in ("eager", "reference", "eager"):
        with tkpy.use_backend(backend):
            compiled(x)
        assert tkpy.last_dispatch().backend == backend
    compiled(x)
    assert tkpy.last_dispatch().backend == "eager"


def test_last_dispatch_survives_the_gradient(x, weight):
    leaf = x.clone().requires_grad_()
    tkpy.rms_norm(leaf, weight).sum().backward()
    assert tkpy.last_dispatch().op == "rms_norm"


def test_second_derivatives_are_refused_not_wrong(x, weight):
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(tkpy.rms_norm(leaf, weight).square().sum(), leaf, create_graph=True)
    with pytest.raises(tkpy.Unsupported, match="no_second_derivative"):
        grad.sum().backward()


def test_meta_tensors_give_shapes(x, weight):
    y = tkpy.rms_norm(x.to("meta"), weight.to("meta"))
    assert y.shape == x.shape
    assert y.device.type == "meta"


TOY = {
    "op.py": '''
        """toy_scale: y = factor * x."""
        import torch
        from tkpy.arguments import Arguments
        from tkpy.registry import Case, Op

        def toy_scale(x, factor=2.0, *, backend=None):
            """y = factor * x."""
            check = Arguments("toy_scale")
            check.tensor("x", x, "...")
            check.number("factor", factor)
            return OP(x, factor, backend=backend)

        OP = Op(
            "toy_scale", toy_scale, "(Tensor x, float factor) -> Tensor",
            fake=lambda x, factor: x.new_empty(x.shape),
            cases=(Case("small", lambda m: {"x": m.randn(3, 5)}, "plain"),),
            flops=lambda call: call["x"].numel(),
            nbytes=lambda call: 2 * call["x"].numel() * call["x"].element_size(),
        )
    ''',
    "reference.py": "def forward(x, factor):\n    return (x.double() * factor).to(x.dtype)\n",
    "eager.py": "def forward(x, factor):\n    return x * factor\n",
    "__init__.py": "",
}


def test_a_folder_is_an_op(tmp_path):
    """Found, checked, benchmarked and listed, with no existing file edited."""
    folder = tmp_path / "toy_scale"
    folder.mkdir()
    for name, text in TOY.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    try:
        assert list(registry.discover_folder(tmp_path)) == ["toy_scale"]
        assert registry.discover_folder(tmp_path) == {}
        op = registry.get("toy_scale")
        assert torch.equal(tkpy.ops.toy_scale(torch.ones(2)), torch.full((2,), 2.0))
        assert all(r.comparison for r in conformance.check_case(op, op.cases[0]))
        rows, failed = check_rows(["toy_scale"], ["eager"], torch.float32, "cpu", first_only=True)
        assert (len(rows), failed) == (1, 0)
        assert "toy_scale" in doctor_text()
        torch.library.opcheck(op.torch_op, (torch.randn(3, requires_grad=True), 2.0, "eager"))

        env, _ = facts.environment("cpu")
        (row,) = runner.run(from_cases(op, ["small"]), env, seconds=0.01)
        assert (row["status"], row["ours"]) == ("ok", False)
        assert row["value"] > 0
        assert row["bytes"] == 2 * 15 * 2
    finally:
        tkpy.ops.__path__.remove(str(tmp_path))
        registry._ops.pop("toy_scale", None)


def test_a_broken_op_folder_is_named(tmp_path):
    folder = tmp_path / "toy_broken"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "op.py").write_text("OP = None\n")
    try:
        with pytest.raises(tkpy.InternalError, match="toy_broken"):
            registry.discover_folder(tmp_path)
    finally:
        tkpy.ops.__path__.remove(str(tmp_path))


def test_a_wrong_backend_module_is_caught_by_its_case(monkeypatch):
    """The comparison that every op relies on turns red when the eager form is wrong."""
    op = registry.get("rms_norm")
    eager = op.module("eager")
    right = eager.forward
    for wrong in (
        torch.zeros_like,
        lambda y: y * (1 + 1e-3),
        lambda y: torch.full_like(y, float("nan")),
    ):
        monkeypatch.setattr(eager, "forward", lambda *a, change=wrong: (change(right(*a)[0]), right(*a)[1]))
        assert not all(r.comparison for r in conformance.check_case(op, op.cases[0]))


def test_kernels_without_a_backward_are_these():
    """The others' gradients are compared wherever their values are."""
    without = {op.name for op in registry.ops().values() for b in op.available if not op.differentiates(b)}
    assert without == {"attention_decode", "attention_fp8"}


def test_autocast_leaves_the_body_alone():
    """Inside an op's body autocast is off: float32 statistics stay float32."""
    x, weight = Maker().randn(4, 8), torch.ones(8)
    plain = tkpy.rms_norm(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tkpy.rms_norm(x, weight), plain)
