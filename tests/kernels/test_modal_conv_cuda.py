"""modal_conv's kernels in the emulator, under all checks: every option, modes, segments, pitches, several schedules,
gradients; long times; what they read and what they cost; what they refuse."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from modal_runs import ALL, MODULES, OP, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
cuda = OP.module("cuda")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/modal_conv/{name}.cu") for name in MODULES]
    return gather(tmp_path_factory.mktemp("modal_conv"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture
def launched(monkeypatch):
    """(launcher, its tensors) of every launch from here on."""
    log, launch = [], machine.launch
    monkeypatch.setattr(cuda, "launch", lambda *a, **k: (log.append((launch(*a, **k), a)), log[-1][0])[1])
    return log


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype))
    for result in results:
        assert result.comparison, str(result)
    assert {(d.op, d.backend) for d in log} <= {
        (op, b) for op in ("modal_conv", "modal_conv_backward") for b in ("emulator", "reference")
    }


@pytest.mark.parametrize("modes", [1, 3, 8, 9, 12, 16, 20, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_modes(built, modes, dtype):
    assert disagreement(inputs(1, 2, modes, 200, dtype)) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("modes, length", [(3, 64 * 49), (8, 64 * 48), (9, 3333)])
def test_segments_and_schedules(folder, monkeypatch, modes, length, each, seed):
    """Several segments of a channel: the last tile whole or not, chunks left over. In float32, whose tolerance is a
    thousandth of bfloat16's."""
    on_machine(monkeypatch, folder, seed)
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: each)
    assert disagreement(inputs(1, 2, modes, length, torch.float32)) == ""


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("each", [5, 7])
def test_rows_longer_than_the_backward_keeps(built, monkeypatch, each, final):
    """Seven tiles, the last chunk not whole: one segment, and one with a second of two tiles, which are kept."""
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: each)
    options = ALL if final else ALL - {"output_final_state"}
    assert disagreement(inputs(1, 1, 3, 1024 * 6 + 70, torch.float32, options=options)) == ""


@pytest.mark.parametrize(
    "absent",
    [{name} for name in sorted(ALL)] + [ALL, {"pre_gate", "post_gate"}],
    ids=lambda names: " ".join(sorted(names)),
)
def test_options(built, absent):
    assert disagreement(inputs(1, 2, 4, 64 * 17 + 3, options=ALL - absent)) == ""


@pytest.mark.parametrize(
    "wanted",
    [
        ("u",),
        ("pre_gate",),
        ("post_gate",),
        ("poles",),
        ("skip",),
        ("initial_state",),
        ("u", "poles"),
        ("post_gate", "u"),
    ],
    ids=",".join,
)
def test_single_gradients(built, wanted):
    """What nobody asked for is not formed, and changes nothing."""
    kwargs = inputs(1, 2, 3, 64 * 17 + 5)

    def gradients(names):
        leaves = {n: kwargs[n].detach().clone().requires_grad_(True) for n in names}
        y, state = tkpy.modal_conv(**kwargs | leaves, backend="emulator")
        return torch.autograd.grad(y.float().square().sum() + state.abs().sum(), list(leaves.values()))

    every = ("u", "poles", "residues", "skip", "pre_gate", "post_gate", "initial_state")
    whole = dict(zip(every, gradients(every), strict=True))
    for name, gradient in zip(wanted, gradients(wanted), strict=True):
        assert torch.equal(gradient, whole[name]), name


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: 1)
    monkeypatch.setattr(cuda, "FEWEST_TILES", 1)  # and several shares of the parameters' gradients
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        kwargs = {
            k: v.requires_grad_(True) if k != "output_final_state" else v for k, v in inputs(2, 1, 4, 2500).items()
        }
        outputs = tkpy.modal_conv(**kwargs, backend="emulator")
        leaves = [v for k, v in kwargs.items() if k != "output_final_state"]
        results.append([*outputs, *torch.autograd.grad(outputs[0].float().sum() + outputs[1].abs().sum(), leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("offset, pitch", [(0, 8), (8, 8), (1, 0), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_any_pitch_and_what_lies_between_is_not_looked_at(built, launched, offset, pitch, dtype):
    """Rows inside a buffer of NaN, aligned to 16 bytes or not; they go in as they are."""
    kwargs = inputs(2, 2, 3, 64 * 17, dtype)
    want = tkpy.modal_conv(**kwargs, backend="emulator")
    launched.clear()
    for name in ("u", "pre_gate", "post_gate"):
        buffer = torch.full((2, 2, 64 * 17 + offset + pitch), float("nan"), dtype=dtype)
        buffer[..., offset : offset + 64 * 17] = kwargs[name]
        kwargs[name] = buffer[..., offset : offset + 64 * 17]
    got = tkpy.modal_conv(**kwargs, backend="emulator")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [launched[0][1][i].data_ptr() for i in (1, 2, 3)] == [
        kwargs[n].data_ptr() for n in ("u", "pre_gate", "post_gate")
    ]
    assert disagreement(kwargs) == ""


def test_time_major_signals_are_copied(built):
    kwargs = inputs(2, 3, 4, 200)
    for name in ("u", "pre_gate"):
        kwargs[name] = kwargs[name].mT.contiguous().mT
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_million_samples(built, dtype):
    """A pole so slow that an impulse outlasts a million samples: phase and size, over chunks, tiles and segments."""
    pole = torch.tensor([[0.6 + 0.8j]], dtype=torch.complex128)
    pole = (pole / pole.abs() * (1 - 1e-7)).to(torch.complex64)
    length = 1_000_000
    u = torch.zeros(1, 1, length, dtype=dtype)
    u[..., 0] = 1
    y, state = tkpy.modal_conv(u, pole, torch.ones_like(pole), output_final_state=True, backend="emulator")
    exact = pole.to(torch.complex128) ** (length - 1)
    assert exact.abs() > 0.5
    assert (state[0] - exact).abs() < 1e-5
    assert (y[0, 0, -1].double() - exact.real).abs() < (1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("segments", [1, 8])
def test_gradients_across_tens_of_thousands_of_samples(built, monkeypatch, segments):
    """An impulse at the start, its cotangent at the end: phase and size, over chunks, tiles and segments."""
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda units, tiles, *_: -(-tiles // segments))
    length = 1024 * 31 + 37
    pole = torch.tensor([[0.6 + 0.8j]], dtype=torch.complex128)
    pole = (pole / pole.abs() * (1 - 1e-6)).to(torch.complex64).requires_grad_(True)
    residue = torch.tensor([[0.5 - 2.0j]], requires_grad=True)
    u, dy = torch.zeros(2, 1, 1, length, dtype=torch.bfloat16)
    u[..., 0] = dy[..., -1] = 1
    u.requires_grad_(True)
    y, _ = tkpy.modal_conv(u, pole, residue, backend="emulator")
    du, dpole, dresidue = torch.autograd.grad(y, (u, pole, residue), dy)
    p, r = pole.detach().to(torch.complex128), residue.detach().to(torch.complex128)
    exact = p ** (length - 1)
    assert (dresidue - exact.conj()).abs() < 1e-5
    wanted = ((length - 1) * r * p ** (length - 2)).conj()
    assert (dpole - wanted).abs() < 1e-5 * wanted.abs()
    assert (du[0, 0, 0].double() - (r * exact).real).abs() < 1e-2


@pytest.mark.parametrize("dtype, modes", [(torch.bfloat16, 8), (torch.float32, 8), (torch.bfloat16, 12)], ids=str)
def test_what_a_tile_costs(folder, monkeypatch, dtype, modes):
    """Of 1024 samples more: each element moved once, no other byte; products of 96 flops a sample (64 more for further
    8 modes), three times (six for float32), and a scan; no bank conflict."""
    on_machine(monkeypatch, folder)
    counts = []
    for tiles in (2, 4):
        kwargs = inputs(1, 1, modes, 1024 * tiles, dtype)
        with torch.no_grad(), machine.counting() as counters:
            tkpy.modal_conv(**kwargs, backend="emulator")
            counts.append(asdict(machine.total(counters())))
    more = {name: (counts[1][name] - counts[0][name]) / 2 for name in counts[0]}
    size = torch.empty(0, dtype=dtype).element_size()
    assert more["global_bytes"] == 4 * 1024 * size
    assert more["global_sectors"] == 1024 * size / 32  # of what is not copied asynchronously: the output
    products = 1024 * (32 + 64 * -(-modes // 8)) * (3 if size == 2 else 6)  # 12 blocks of 16 for 8 modes
    assert more["tensor_flops"] == products
    assert more["flops"] <= 1.1 * products
    assert more["bank_conflicts"] == 0
    ideal = OP.nbytes(tkpy.registry.capture(OP, inputs(1, 1, modes, 1024 * 4, dtype)))
    assert counts[1]["global_bytes"] <= ideal + modes * 2 * 8 * 32  # each lane reads all poles and residues


@pytest.mark.parametrize("gated", [True, False])
def test_what_the_gradients_cost(folder, monkeypatch, gated):
    """Up to four tiles every element is moved once; of a tile more u and its gate are read twice, and a state of 64
    bytes is written and read. Products of 40 blocks a tile, three times, and a scan."""
    on_machine(monkeypatch, folder)
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda units, tiles, *_: tiles)
    options = ALL - {"output_final_state"} - (frozenset() if gated else {"pre_gate", "post_gate"})
    counts = {}
    for tiles in (2, 4, 8, 12):
        kwargs = inputs(1, 1, 8, 1024 * tiles, options=options)
        kwargs = {k: v.requires_grad_(True) for k, v in kwargs.items()}
        y, _ = tkpy.modal_conv(**kwargs, backend="emulator")
        dy = torch.ones_like(y)
        with machine.counting() as counters:
            torch.autograd.grad(y, list(kwargs.values()), dy)
            counts[tiles] = asdict(machine.total(counters()))

    def more(what, few, many):
        return (counts[many][what] - counts[few][what]) / (many - few)

    ideal, again = (7, 2) if gated else (3, 1)
    assert more("global_bytes", 2, 4) == 2048 * ideal + 2 * 64
    assert more("global_bytes", 8, 12) == 2048 * (ideal + again) + 2 * 64
    assert 1.0 <= more("flops", 8, 12) / (3 * 40 * 2 * 16**3) <= 1.1
    assert more("bank_conflicts", 8, 12) == 0


@pytest.mark.parametrize(
    "channels, length, final", [(512, 131072, True), (1, 1 << 20, True), (256, 131072 + 37, False)]
)
def test_only_the_output_and_two_percent_are_allocated(monkeypatch, channels, length, final):
    """Every tensor that the cuda path makes, counted without running a kernel or touching the memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Allocations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.storages = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for t in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(t, torch.Tensor):
                    self.storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return result

    monkeypatch.setattr(cuda, "launch", lambda *args, **more: "")
    signals = [torch.empty(1, channels, length, dtype=torch.bfloat16) for _ in range(3)]
    poles = torch.zeros(channels, 8, dtype=torch.complex64)
    u, pre, post = signals
    args = (
        u,
        poles,
        poles.clone(),
        torch.zeros(channels),
        pre,
        post,
        torch.zeros(1, channels, 8, dtype=torch.complex64),
    )
    given = {t.untyped_storage().data_ptr() for t in args}
    with Allocations() as allocations:
        y, _ = cuda.forward(*args, final)
    made = sum(s.nbytes() for place, s in allocations.storages.items() if place not in given)
    assert y.nbytes <= made <= y.nbytes + 0.02 * (y.nbytes + sum(t.nbytes for t in args))


@pytest.mark.parametrize("length, kernels", [
    (1, ["modal_steps_bf16"]), (63, ["modal_steps_bf16"]), (64, ["modal_conv_bf16"]),
    (100, ["modal_conv_bf16", "modal_steps_bf16"]),
])  # fmt: skip
def test_the_kernels_that_ran(built, launched, length, kernels):
    tkpy.modal_conv(**inputs(1, 2, 3, length), backend="emulator")
    assert [name for name, _ in launched] == kernels


def test_segments_fill_the_gpu():
    each = cuda.segment_tiles_for
    assert each(4096, 128, 132 * 16) == 128  # channels enough: one pass
    assert -(-128 // each(256, 128, 132 * 16)) in range(5, 10)
    assert -(-1024 // each(1, 1024, 132 * 16)) >= 100
    assert each(1, 3, 132 * 16) == 3
    assert each(0, 0, 132 * 16) == 1


@pytest.mark.parametrize("change, code", [
    ({"u": torch.zeros(1, 2, 8, dtype=torch.float64)}, "dtype"),
    (dict.fromkeys(("poles", "residues"), torch.zeros(2, 4, dtype=torch.complex128)), "dtype"),
    (dict.fromkeys(("poles", "residues"), torch.zeros(2, 33, dtype=torch.complex64)), "modes"),
])  # fmt: skip
def test_refusals_are_data(built, change, code):
    kwargs = inputs(1, 2, 4, 8, torch.float32, options=frozenset()) | change
    assert [r.code for r in tkpy.explain("modal_conv", **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.modal_conv(**kwargs, backend="emulator")


def test_the_launchers_check_again(built):
    u, poles = torch.zeros(1, 2, 64).bfloat16(), torch.zeros(2, 3, 2)
    state, long = torch.zeros(1, 2, 3, 2, dtype=torch.float64), torch.zeros(1, 2, 64 * 40).bfloat16()

    def conv(x=u, gate=None, out=None, poles=poles, start=None, end=None):
        out = torch.empty_like(x) if out is None else out
        return machine.launch(
            "modal_conv", x, gate, None, out, poles, poles, None, start, None, end, 1, op="modal_conv"
        )

    for words, wrong in {
        "x: need whole chunks": {"x": u[..., :63]},
        "x: need three dimensions of bf16, f16 or f32": {"x": u.double()},
        "gate: need the shape, type and device of x": {"gate": u.float()},
        "out: need neighbouring samples": {"out": u.mT.contiguous().mT},
        "poles: need a row of at most 32": {"poles": torch.zeros(2, 40, 2)},
        "start: need 12 contiguous elements of f32": {"start": state},
        "end: need 12 contiguous elements of f64": {"end": state.float()},
        "local: need a state for each segment": {"x": long},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            conv(**wrong)
    assert conv(end=state) == "modal_conv_bf16"

    def backward(x=u, dpost=None, end=None, starts=None, dpoles=None):
        return machine.launch(
            "modal_backward", x, None, x, None, None, None, dpost, poles, poles, None, None, end, starts, None, None,
            dpoles, None, None, 1, op="modal_conv",
        )  # fmt: skip

    for words, wrong in {
        "u: need whole chunks of 64 samples where the last state": {"x": u[..., :63], "end": torch.zeros(1, 2, 3, 2)},
        "starts: need a state for each tile": {"dpost": u},
        "starts: need 12 contiguous elements of f32": {"dpost": u, "starts": state},
        "dpoles: need dresidues and dskip": {"dpoles": poles[None]},
        "local: need two states for each segment": {"x": long},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            backward(**wrong)
    assert backward() == "modal_backward_bf16"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 8, 5000), (1, 3, 20, 40000), (1, 4096, 8, 1024), (3, 5, 2, 1)], ids=str)
def test_on_the_device(shape, dtype):
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs(*shape, dtype).items()}
    assert disagreement(kwargs, "cuda") == ""
