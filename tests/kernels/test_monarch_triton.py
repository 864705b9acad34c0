"""monarch_multiply's Triton kernel: what the table of cases does not reach. As PTX in the emulator under all checks:
sizes up to the widest and none that divides anything, some gradients only, h kept or made again, what is read and
written; in Triton's interpreter: faults in its source, all of which must show."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the package triton")
from monarch_triton_runs import OP, disagreement_with_h, sized, with_h  # noqa: E402  (after the skips)
from triton_runs import disagreement, gradients, shown  # noqa: E402

import tkpy  # noqa: E402
import tkpy.emulator.triton as emulator  # noqa: E402
from tkpy import registry  # noqa: E402


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """The triton backend takes CPU tensors of every dtype."""
    monkeypatch.setattr(registry, "_triton_refusals", lambda call: [])


@pytest.mark.parametrize(
    "sizes, dtype, capability",
    [
        ((70, 32, 32, 32, 32, 32), torch.bfloat16, 90),
        ((70, 16, 16, 16, 16, 16), torch.float16, 80),
        ((37, 19, 21, 20, 21, 18), torch.float32, 90),
        ((37, 5, 31, 7, 31, 29), torch.bfloat16, 80),
    ],
    ids=["widest", "narrow", "float32", "odd"],
)
def test_sizes(sizes, dtype, capability):
    with emulator.emulated(capability) as runs:
        assert disagreement(OP.name, sized(*sizes, dtype)) == ""
    assert [run.kernel for run in runs].count("_both") == 2


@pytest.mark.parametrize(
    "wanted, launches",
    [
        (("x",), ["_both", "_both"]),
        (("w1",), ["_both", "_factors"]),
        (("w2",), ["_both", "_factors"]),
        (("x", "w1"), ["_both", "_both", "_factors"]),
    ],
    ids=" ".join,
)
def test_only_what_is_wanted(wanted, launches):
    with emulator.emulated() as runs:
        assert disagreement(OP.name, sized(20, 6, 9, 4, 9, 5), *wanted) == ""
    assert [run.kernel for run in runs] == launches


@pytest.mark.parametrize(
    "sizes", [(9, 33, 8, 4, 8, 5), (9, 4, 8, 4, 8, 33), (9, 4, 8, 4, 16, 5)], ids=["blocks", "outputs", "not square"]
)
def test_two_products(sizes):
    """What one program does not take."""
    with emulator.emulated() as runs:
        assert disagreement(OP.name, sized(*sizes), "x") == ""
    assert [run.kernel for run in runs] == ["_blocks"] * 4


@pytest.mark.parametrize("keep", [False, True], ids=["made again", "kept and differentiated"])
def test_h(keep):
    with emulator.emulated():
        assert disagreement_with_h(sized(20, 6, 9, 4, 9, 5), keep) == ""


def test_the_same_bits_and_nothing_from_outside():
    """Under another schedule, kept or not, and as rows of a buffer of NaN; no argument is written to."""
    kwargs, names = sized(20, 6, 9, 4, 9, 5), ("x", "w1", "w2")
    with emulator.emulated(seed=1):
        want = list(gradients(tkpy.monarch_multiply, kwargs, names, "triton").values())
        bits = with_h(kwargs, False, "triton")
    before = {name: value.clone() for name, value in kwargs.items()}
    around = torch.full((22, 40), float("nan"))
    around[1:-1, 4:28] = kwargs["x"]
    with emulator.emulated(seed=20):
        got = list(gradients(tkpy.monarch_multiply, kwargs | {"x": around[1:-1, 4:28]}, names, "triton").values())
    for found in (got, bits):
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    assert all(torch.equal(kwargs[name], value) for name, value in before.items())


def test_h_never_goes_to_memory():
    """x and y; dy and dx; x and dy: each launch moves two matrices, and the factors or sums of theirs."""
    kwargs = sized(64, 32, 32, 32, 32, 32, torch.bfloat16)
    with emulator.emulated() as runs:
        with_h(kwargs, False, "triton")
    matrix, factors = 2 * 64 * 1024, 2 * 2 * 32**3
    assert [run.kernel for run in runs] == ["_both", "_both", "_factors"]
    moved = [[32 * sectors for sectors in run.sectors] for run in runs]
    assert moved == [[matrix + factors, matrix]] * 2 + [[2 * matrix + factors, 2 * factors]]


@pytest.mark.parametrize("capability", [90, 80])
def test_shares_of_the_rows(monkeypatch, capability):
    """Three, the last of which is short."""
    monkeypatch.setattr(OP.module("triton"), "FEWEST_ROWS", 32)
    with emulator.emulated(capability):
        assert disagreement(OP.name, sized(100, 6, 9, 4, 9, 5, torch.bfloat16), "w1", "w2") == ""


#: What is done to the source.
FAULTS = {
    "the block of x": ("blocks * x_a + row", "blocks * x_d + row"),
    "the entry of x": ("deep * x_d", "deep * x_a"),
    "the first factor transposed": ("right * f_b + down * f_d", "right * f_d + down * f_b"),
    "another block's first factor": ("blocks * f_a + right", "right"),
    "the first product begins again": ("h = tl.dot(x, w, h,", "h = tl.dot(x, w, tl.zeros_like(h),"),
    "a step of the first product": ("range(0, D, DEPTH)", "range(0, DEPTH, DEPTH)"),
    "a step of the second": ("range(0, A, OF_A)", "range(0, OF_A, OF_A)"),
    "the second begins again": ("w, y, input", "w, tl.zeros_like(y), input"),
    "h is not permuted": ("tl.permute(h, (2, 1, 0)), w", "h, w"),
    "the second factor transposed": ("e * s_e + down * s_a", "e * s_a + down * s_e"),
    "another block's second factor": ("out * s_b + e", "e"),
    "tiles of rows": ("row = (tl.program_id(0) // tiles", "row = (tl.program_id(0) % tiles"),
    "tiles of blocks": ("b = (tl.program_id(0) % tiles", "b = (tl.program_id(0) * 0"),
    "the last row": ("(out < B) & (row < M)", "(out < B) & (row < M - 1)"),
    "the last output": ("(row < M) & (e < E)", "(row < M) & (e < E - 1)"),
    "h kept doubled": ("tl.store(at, h,", "tl.store(at, 2 * h,"),
    "h of the first steps": ("mask=(blocks < A) & (row < M)", "mask=(blocks < OF_A) & (row < M)"),
    "h kept as of the other side": ("channels_of(middle, a, b, interleaved=interleaved)", "channels_of(middle, a, b)"),
    "y as it was read": ("channels_of(y, b, e, interleaved=not interleaved)", "channels_of(y, b, e)"),
    "x as it will be written": ("channels_of(x, a, d, interleaved=interleaved)", "channels_of(x, a, d)"),
    "h again, strided": ("_product(rows, w1, h, interleaved=False)", "_product(rows, w1, h, interleaved=True)"),
    "dw2 of consecutive blocks": ("_gradient(dy, h, w2, interleaved=True)", "_gradient(dy, h, w2, interleaved=False)"),
    "dh alone": ("else through + dmiddle", "else through"),
    "h's gradient alone": ("dmiddle if through is None else through + dmiddle", "dmiddle"),
    "dw1 of strided blocks": ("rows, w1, interleaved=False)\n    return", "rows, w1, interleaved=True)\n    return"),
    "sums of the last rows": ("permute(h, (2, 1, 0)), dsecond,", "permute(h, (2, 1, 0)), tl.zeros_like(dsecond),"),
    "dfirst of the last rows": ("permute(dh, (2, 1, 0)), dfirst,", "permute(dh, (2, 1, 0)), tl.zeros_like(dfirst),"),
    "dsecond by dh": ("h = tl.dot(x, first,", "h = tl.dot(dy, second,"),
    "dfirst by h": ("dh = tl.dot(dy, second,", "dh = tl.dot(x, first,"),
    "h as it lies": ("tl.permute(h, (2, 1, 0)), dsecond", "h, dsecond"),
    "dh as it lies": ("tl.permute(dh, (2, 1, 0)), dfirst", "dh, dfirst"),
    "the place of dfirst": ("(share * A + a_out) * B + b_in", "(share * A + b_in) * B + a_out"),
    "the place of dsecond": ("(share * B + b_out) * E", "(share * B + b_out * 0) * E"),
    "shares that overlap": ("tl.minimum(M, (share + 1) * SHARE)", "M"),
    "all shares at the first": ("range(share * SHARE,", "range(0,"),
    "rows of another share": ("(row < M) & (e_in < E)", "(row < M - 1) & (e_in < E)"),
    "the factors' tiles of k": ("a = (tl.program_id(0) // tiles", "a = (tl.program_id(0) * 0"),
}  # fmt: skip


def test_faults_show(tmp_path):
    found = shown(tmp_path, "tkpy.ops.monarch_multiply.triton", FAULTS, "monarch_triton_runs:everything")
    assert found.pop("none") == ""
    assert not [name for name, difference in found.items() if not difference]
    assert len(found) == len(FAULTS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_the_device(monkeypatch, dtype):
    monkeypatch.undo()
    for sizes in ((999, 32, 32, 32, 32, 32), (999, 16, 16, 16, 16, 16), (77, 5, 31, 7, 31, 29), (77, 4, 8, 4, 8, 33)):
        kwargs = {name: x.cuda() for name, x in sized(*sizes, dtype).items()}
        assert disagreement(OP.name, kwargs) == ""
        assert disagreement(OP.name, kwargs, "x") == ""
