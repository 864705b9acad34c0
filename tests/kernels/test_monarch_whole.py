"""The backward of monarch_multiply whose sums stay on the chip, whole in one launch or a half in each of two, in the
emulator: against float64 for blocks of every size that it takes, rows that end anywhere, clusters of every size; what
it leaves out and what it must not read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from test_monarch_cuda import check, sized  # noqa: E402

import tkpy  # noqa: E402
from tkpy import machine, registry  # noqa: E402
from tkpy.registry import Maker  # noqa: E402

OP = registry.get("monarch_multiply")
CASES = [
    sized(1, 8, 16, 16, 8, 16, "one row, one CTA"),
    sized(63, 16, 16, 16, 16, 16, "a cluster of two"),
    sized(131, 8, 48, 16, 24, 32, "sizes of three kinds, shares of consecutive blocks that do not divide"),
    sized(65, 32, 32, 32, 32, 32, "a square of 1024"),
    sized(33, 48, 48, 48, 48, 48, "a square of 2304: the most shared memory"),
    sized(32, 28, 32, 32, 56, 16, "a cluster of seven"),
    sized(97, 16, 64, 16, 32, 48, "halves: sizes of four kinds"),
    sized(33, 64, 64, 64, 64, 64, "halves: a square of 4096"),
]
SMALL = sized(75, 16, 32, 16, 16, 48, "small")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [
        kernel_folder(f"kernels/{n}.cu") for n in ("monarch/kernel", "monarch/whole", "monarch/half", "monarch/product")
    ]
    return gather(tmp_path_factory.mktemp("monarch_whole"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture
def launched(monkeypatch):
    """The kernels of the test, in order, and what each was given."""
    found, launch = [], machine.launch

    def run(name, *args, **more):
        found.append((launch(name, *args, **more), args))
        return found[-1][0]

    monkeypatch.setattr(OP.module("cuda"), "launch", run)
    return found


def gradients(kwargs, wanted, backend, cotangent=None):
    leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in kwargs.items()}
    y = tkpy.monarch_multiply(**leaves, backend=backend)
    cotangent = Maker(y.dtype, seed=9).randn(*y.shape) if cotangent is None else cotangent
    return torch.autograd.grad(y, [leaves[name] for name in wanted], cotangent)


def agree(found, wanted) -> bool:
    return all(
        bool((a.double() - b.double()).norm() <= 1e-2 * b.double().norm()) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_and_its_gradients(folder, monkeypatch, launched, case, dtype, seed):
    on_machine(monkeypatch, folder, seed)
    assert len(check(case, dtype)) == 4
    suffix = "bf16" if dtype == torch.bfloat16 else "fp16"
    most = max(size for name in ("w1", "w2") for size in case.make(Maker(dtype))[name].shape[1:])
    backward = {64: ["half_first", "half_second"], 48: ["whole_48"]}.get(most, ["whole_32"])
    assert [name for name, _ in launched] == [f"monarch_{kernel}_{suffix}" for kernel in ("product", *backward)]


@pytest.mark.parametrize("side", [16, 64])
def test_several_tiles_of_several_clusters(built, launched, side):
    """Shares of the rows, of tiles that do not divide, the last of them short."""
    check(sized(800, 8, 16, 16, 8, side))
    shares = [t.shape[0] for name, args in launched[1:] for t in args[5:] if t is not None]
    assert shares == [3, 3]


def test_no_more_shares_than_clusters_at_once(built, launched, monkeypatch):
    monkeypatch.setattr(OP.module("cuda"), "clusters", lambda *_, op: 2)
    check(sized(800, 8, 16, 16, 8, 16))
    assert [t.shape[0] for t in launched[1][1][5:]] == [2, 2]


@pytest.mark.parametrize("blocks, clusters", [(8, 128), (32, 32), (48, 16), (64, 16)])
def test_all_clusters_run_at_once(blocks, clusters):
    """Of an emulated H100; of any device no more of them share the rows than fit beside each other."""
    given = machine.clusters(
        torch.empty(0), "monarch_whole", "monarch_whole_48_bf16", blocks // 8, op="monarch_multiply"
    )
    assert given == clusters


@pytest.mark.parametrize("case", [CASES[2], CASES[-2], CASES[-1]], ids=lambda case: case.name)
def test_few_clusters_give_the_same_product(folder, monkeypatch, case):
    """Several tiles of one, or all at once; rows that were there before and are not."""
    kwargs = case.make(Maker(torch.bfloat16))
    found = []
    for multiprocessors, seed in ((8, 0), (16, 1), (132, 2)):
        on_machine(monkeypatch, folder, seed, multiprocessors=multiprocessors)
        found.append(tkpy.monarch_multiply(**kwargs, backend="emulator"))
    assert all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"w1": (16, 24, 16)}, "w1.*blocks of multiples of 16 up to 64"),
        ({"w2": (12, 32, 16)}, "w2.*8, 16, .. 64 blocks"),
        ({"x": (0, 256)}, "x.*1 to 2\\^30 - 1 rows"),
        ({"x": (40, 240)}, "x.*40 16-byte aligned rows of 256"),
        ({"y": (40, 256)}, "y.*shape \\(40, 512"),
    ],
    ids=["of eights", "blocks", "no rows", "width", "y"],
)
def test_the_launcher_of_the_product_checks_again(built, shapes, message):
    right = {"x": (40, 256), "w1": (16, 16, 16), "w2": (16, 32, 16), "y": (40, 512)}
    tensors = [torch.zeros(shape, dtype=torch.bfloat16) for shape in (right | shapes).values()]
    with pytest.raises(tkpy.InternalError, match=message):
        machine.launch("monarch_product", *tensors, op="monarch_multiply")


KERNELS = {
    ("x",): ["backward"],
    ("w1",): ["half_first"],
    ("w2",): ["half_second"],
    ("x", "w1"): ["half_first"],
    ("x", "w2"): ["backward", "half_second"],
    ("w1", "w2"): ["whole_48"],
}


@pytest.mark.parametrize("wanted", list(KERNELS), ids="-".join)
def test_gradients_of_some(built, launched, wanted):
    """Each by the launches that it needs; h is not kept."""
    kwargs = SMALL.make(Maker(torch.bfloat16))
    assert agree(gradients(kwargs, wanted, "emulator"), gradients(kwargs, wanted, "reference"))
    assert [name for name, _ in launched[1:]] == [f"monarch_{kernel}_bf16" for kernel in KERNELS[wanted]]
    assert launched[0][0] == "monarch_product_bf16"


@pytest.mark.parametrize("wanted", [["x"], ["w2"], ["x", "w2"]], ids="-".join)
def test_the_eager_form_makes_h_again(wanted):
    """Which a caller on a GPU may have been told not to keep."""
    kwargs = SMALL.make(Maker(torch.bfloat16))
    found = {}
    for name in ("eager", "reference"):
        leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in kwargs.items()}
        y, _ = OP(*leaves.values(), False, backend=name)
        found[name] = torch.autograd.grad(y, [leaves[n] for n in wanted], Maker(y.dtype, seed=9).randn(*y.shape))
    assert agree(*found.values())


IN_TRITON = """
import torch
from tkpy import registry
op, make, found = registry.get("monarch_multiply"), registry.Maker(torch.float32), []
inputs = [make.randn(20, 64), make.randn(4, 16, 16), make.randn(8, 16, 8)]
for backend in ("triton", "reference"):
    x, w1, w2 = inputs[0].clone().requires_grad_(), inputs[1], inputs[2].clone().requires_grad_()
    found.append(torch.autograd.grad(op(x, w1, w2, False, backend=backend)[0].square().sum(), [x, w2]))
assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(*found, strict=True))
"""


def test_gradients_without_h_in_tritons_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-c", IN_TRITON]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("case", [SMALL, CASES[-2]], ids=["whole", "halves"])
def test_a_nan_stays_in_its_row_and_nothing_outside_is_read(built, case):
    """x and dy lie in NaN; a row of dy is NaN in one place."""
    kwargs = case.make(Maker(torch.bfloat16))
    rows = len(kwargs["x"])
    dy = Maker(torch.bfloat16, seed=9).randn(rows, kwargs["w2"].shape[0] * kwargs["w2"].shape[1])
    want = gradients(kwargs, ["x", "w1", "w2"], "emulator", dy)

    def inside(t):
        wide = torch.full((len(t) + 2, t.shape[1] + 16), float("nan"), dtype=t.dtype)
        wide[1:-1, 8:-8] = t
        return wide[1:-1, 8:-8]

    x, around = inside(kwargs["x"]), inside(dy)
    leaves = [x.requires_grad_(), *(kwargs[n].clone().requires_grad_() for n in ("w1", "w2"))]
    y = tkpy.monarch_multiply(*leaves, backend="emulator")
    got = torch.autograd.grad(y, leaves, around, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    around[6, 20] = float("nan")
    dx, dw1, dw2 = torch.autograd.grad(y, leaves, around)
    others = torch.arange(rows) != 6
    assert torch.equal(dx[others], want[0][others])
    assert dx[6].isnan().any()
    assert dw1.isnan().any()
    assert 0 < int(dw2.isnan().any(-1).sum()) < dw2[..., 0].numel()


@pytest.mark.parametrize("q", [48, 64])
def test_the_same_call_gives_the_same_bits(folder, monkeypatch, q):
    kwargs = sized(600, 8, q, 16, q // 2, 32).make(Maker(torch.float16))
    found = []
    for seed in (3, 4):
        on_machine(monkeypatch, folder, seed)
        found.append(gradients(kwargs, ["x", "w1", "w2"], "emulator"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"w1": (16, 24, 16)}, "w1.*blocks of multiples of 16 up to 48"),
        ({"w1": (16, 64, 16)}, "w1.*blocks of multiples of 16 up to 48"),
        ({"w2t": (12, 16, 32)}, "w2.*8, 16, .. 64 blocks"),
        ({"w2t": (8, 32, 32), "of_second": (2, 8, 32, 32)}, "w2.*as many as w1"),
        ({"x": (0, 256)}, "x.*1 to 2\\^30 - 1 rows"),
        ({"x": (40, 240)}, "x.*40 16-byte aligned rows of 256"),
        ({"dy": (40, 256)}, "dy.*40 16-byte aligned rows of 512"),
        ({"dx": (40, 512)}, "dx.*shape \\(40, 256"),
        ({"of_first": (3, 16, 16, 16)}, "the sums of w1.*no more than tiles"),
        ({"of_second": (1, 16, 16, 32)}, "the sums of w2.*as many of both"),
        ({"of_second": None, "w1": (16, 80, 16)}, "w1.*blocks of multiples of 16 up to 64"),
        ({"of_second": None, "of_first": None}, "the sums.*those of w1 or of w2"),
        ({"of_first": None}, "dx.*the sums of w1 beside it"),
    ],
    ids=[
        "of eights",
        "of 64",
        "blocks",
        "fewer blocks",
        "no rows",
        "width",
        "width of dy",
        "dx",
        "shares",
        "shares of w2",
        "of 80",
        "no shares",
        "dx alone",
    ],
)
def test_the_launcher_checks_again(built, shapes, message):
    right = {"dy": (40, 512), "x": (40, 256), "w1": (16, 16, 16), "w2t": (16, 16, 32), "dx": (40, 256)}
    right |= {"of_first": (2, 16, 16, 16), "of_second": (2, 16, 16, 32)}
    tensors = [
        shape and torch.zeros(shape, dtype=torch.float32 if name.startswith("of_") else torch.bfloat16)
        for name, shape in (right | shapes).items()
    ]
    with pytest.raises(tkpy.InternalError, match=message):
        machine.launch("monarch_whole", *tensors, op="monarch_multiply")
