"""hyena_mixer's backward in the emulator, under all checks, against float64: every gradient; lengths around all that is
a border, taps, groups, pitches, segments and schedules, states at both ends; that it ran; what it costs and refuses."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from mixer_runs import ALL, OP, PARTS, disagreement, in_nan, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import machine  # noqa: E402

cuda = OP.module("cuda")
STATELESS = ALL - {"output_final_state"}  # no gradient of the last state: within a chunk it takes more than the kernel


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/{part}.cu") for part in (*PARTS, "short_conv/forward", "short_conv/backward")]
    return gather(tmp_path_factory.mktemp("hyena_mixer_backward"), parts)


@pytest.fixture
def ran(folder, monkeypatch):
    """The kernels that a test launched."""
    on_machine(monkeypatch, folder)
    found: list[str] = []

    def launch(*args, **more):
        found.append(machine.launch(*args, **more))
        return found[-1]

    monkeypatch.setattr(cuda, "launch", launch)
    return found


def gradients(kwargs: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
    y, *_ = tkpy.hyena_mixer(**kwargs | leaves, backend="emulator")
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype))
    return {k: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 65, 131, 1025, 2 * 1024 + 70])
def test_lengths(ran, length, dtype):
    options = STATELESS if length % 2 else STATELESS - {"fir_state", "initial_state"}
    assert disagreement(inputs(2, length, 8, 4, 4, dtype=dtype, options=options), grad=True) == ""
    assert ran[-1].startswith("hyena_mixer_backward_")


@pytest.mark.parametrize("length", [5, 64, 64 + 1, 1024 + 128, 1024 + 63])
def test_the_gradient_of_the_last_state(ran, length):
    """At the end of a chunk, in this kernel; within one, all but the samples after the last whole chunk are this
    kernel's."""
    options = ALL - {"fir_state", "initial_state"} if length == 1024 + 63 else ALL
    kwargs = inputs(2, length, 8, 5, 3, dtype=torch.float32, radius=(0.9, 0.999), options=options)
    assert disagreement(kwargs, grad=True) == ""
    assert ("hyena_mixer_backward_f32" in ran) == (length >= 64)


@pytest.mark.parametrize("taps", range(1, 9))
def test_taps(ran, taps):
    assert disagreement(inputs(1, 70, 9, 3, taps, options=STATELESS), grad=True) == ""
    assert disagreement(inputs(1, 64, 8, 3, taps, dtype=torch.float32), grad=True) == ""
    assert ran[1::2] == ["hyena_mixer_backward_bf16", "hyena_mixer_backward_f32"]


@pytest.mark.parametrize("length", [1, 2, 6])
def test_the_last_inputs_of_a_piece_shorter_than_the_filter(ran, length):
    """Their gradient reaches inputs before the first; the state's, which lies within a chunk, is not asked for."""
    kwargs = inputs(2, length, 4, 2, 8, dtype=torch.float32)
    leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if k in ("z", "fir_state")}
    found = {}
    for backend in ("emulator", "reference"):
        y, after, _ = tkpy.hyena_mixer(**kwargs | leaves, backend=backend)
        found[backend] = torch.autograd.grad(y.sum() + (after * (after + 1)).sum(), list(leaves.values()))
    assert "hyena_mixer_backward_f32" in ran
    for got, want in zip(found["emulator"], found["reference"], strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("width, groups", [(1, 1), (7, 7), (16, 2), (24, 1), (20, 5), (40, 5)])
def test_groups(ran, width, groups):
    for dtype in (torch.bfloat16, torch.float32):
        kwargs = inputs(2, 66, width, 2, groups=groups, dtype=dtype, options=STATELESS)
        assert disagreement(kwargs, grad=True) == ""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("each, length", [(1, 2 * 1024), (1, 3 * 1024 + 77), (2, 3 * 1024 + 1)])
def test_segments_and_schedules(folder, monkeypatch, each, length, seed):
    """Several segments of a channel, whose filters reach over the borders; in float32, a tight tolerance."""
    on_machine(monkeypatch, folder, seed)
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: each)
    options = ALL if length % 64 == 0 else STATELESS
    assert disagreement(inputs(1, length, 4, 8, 5, dtype=torch.float32, options=options), grad=True) == ""


@pytest.mark.parametrize("absent", [*([name] for name in sorted(ALL)), sorted(ALL)], ids=" ".join)
def test_options(ran, absent):
    assert disagreement(inputs(1, 1088, 8, 4, options=ALL - set(absent)), grad=True) == ""
    assert ran[-1] == "hyena_mixer_backward_bf16"


@pytest.mark.parametrize("wanted", ["z", "weight", "bias", "poles", "residues", "skip", "fir_state", "initial_state"])
def test_one_gradient_alone(ran, wanted):
    kwargs = inputs(1, 70, 8, 4, options=STATELESS)
    leaf = kwargs[wanted].clone().requires_grad_()
    tkpy.hyena_mixer(**kwargs | {wanted: leaf}, backend="emulator")[0].float().square().sum().backward()
    wide = {k: v.to(torch.promote_types(v.dtype, torch.float64)) for k, v in kwargs.items() if torch.is_tensor(v)}
    want = wide[wanted].requires_grad_()
    tkpy.hyena_mixer(**kwargs | wide, backend="reference")[0].square().sum().backward()
    assert (leaf.grad - want.grad).abs().max() <= 2e-2 * want.grad.abs().max()
    assert ran[-1] == "hyena_mixer_backward_bf16"


@pytest.mark.parametrize("wanted", ["z", "weight", "poles", "initial_state"])
def test_one_gradient_alone_of_the_state_alone(ran, wanted):
    """That lies within a chunk; y has none."""
    kwargs, found = inputs(1, 70, 8, 4), []
    for backend in ("emulator", "reference"):
        wide = {k: v.to(torch.promote_types(v.dtype, torch.float64)) for k, v in kwargs.items() if torch.is_tensor(v)}
        tensors = wide if backend == "reference" else {k: v for k, v in kwargs.items() if torch.is_tensor(v)}
        leaf = tensors[wanted].clone().requires_grad_()
        tkpy.hyena_mixer(**kwargs | tensors | {wanted: leaf}, backend=backend)[2].abs().square().sum().backward()
        found.append(leaf.grad)
    assert (found[0] - found[1]).abs().max() <= 2e-2 * found[1].abs().max()
    assert "hyena_mixer_backward_bf16" in ran


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: 1)
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        results.append(gradients(inputs(2, 1100, 9, 4, options=STATELESS)))
    for other in results[1:]:
        assert all(torch.equal(other[name], grad) for name, grad in results[0].items())


@pytest.mark.parametrize("offset, pitch", [(0, 0), (8, 8), (1, 0), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_any_pitch_and_what_lies_between_is_not_looked_at(ran, offset, pitch, dtype):
    """Rows of z and of y's gradient inside buffers of NaN, aligned to 16 bytes or not."""
    kwargs = inputs(2, 64 + 5, 16, 3, groups=2, dtype=dtype, options=STATELESS)
    want = gradients(kwargs)["z"]
    z = in_nan(kwargs["z"], offset, pitch).requires_grad_()
    y = tkpy.hyena_mixer(**kwargs | {"z": z}, backend="emulator")[0]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y.backward(in_nan(dy, offset, pitch))
    assert torch.equal(z.grad, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_a_tile_costs(folder, monkeypatch, dtype):
    """Of 1024 samples more: nine elements a sample and channel, the inputs before the tile, the states that it finds;
    products of 40 blocks, the first sweep's among them, of two pieces of each operand, in float32 of three."""
    on_machine(monkeypatch, folder)
    counts = []
    for tiles in (2, 4):
        kwargs = inputs(1, 1024 * tiles, 16, 8, dtype=dtype, options=STATELESS)
        leaves = {k: v.clone().requires_grad_() for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
        y = tkpy.hyena_mixer(**kwargs | leaves, backend="emulator")[0]
        with machine.counting() as counters:
            y.backward(torch.ones_like(y))
            counts.append(asdict(machine.total(counters())))
    more = {name: (counts[1][name] - counts[0][name]) / 2 / 16 for name in counts[0]}
    size = dtype.itemsize
    assert more["global_bytes"] == (9 * 1024 + (3 + 2) * 2) * size + 2 * 8 * 8
    products = 2 * 16 * 16 * 16 * 40 * (3 if size == 2 else 6)
    assert 1.0 <= more["tensor_flops"] / products <= 1.001


def test_the_launcher_checks_again(ran):
    z, taps, pairs = torch.randn(1, 70, 18), torch.randn(18, 3), torch.randn(6, 4, 2)
    state, shares = torch.randn(1, 6, 4, 2), torch.empty(1, 1, 6, 4, 2)
    given = {
        "z": z, "weight": taps, "bias": taps[:, 0].clone(), "poles": pairs, "residues": pairs, "skip": torch.randn(6),
        "before": torch.randn(1, 18, 2), "start": state, "dy": torch.randn(1, 70, 6), "dafter": torch.randn(1, 18, 2),
        "dend": None, "dz": torch.empty(1, 70, 18), "borders": torch.empty(2, 1, 1, 18, 2),
        "starts": torch.empty(1, 1, 6, 4, 2), "local": None, "dstart": state.double(), "dpoles": shares,
        "dresidues": shares.clone(), "dskip": torch.empty(1, 1, 6), "dweight_shares": torch.empty(1, 1, 54),
        "dbias_shares": torch.empty(1, 1, 18), "dweight": torch.empty(18, 3), "dbias": torch.empty(18), "groups": 2,
        "segment_tiles": 4,
    }  # fmt: skip
    long = {"z": torch.randn(1, 1025, 18), "dy": torch.randn(1, 1025, 6), "dz": torch.empty(1, 1025, 18)}
    for words, wrong in [
        ("weight: need a row of 1 to 8 taps", {"weight": torch.randn(18, 9)}),
        ("poles: need a row of at most 8", {"poles": torch.randn(6, 9, 2)}),
        (r"dy: need \[B, L, W\] of z's type", {"dy": torch.randn(1, 70, 7)}),
        (r"dy: need \[B, L, W\] of z's type", {"dy": torch.randn(1, 6, 70).mT}),
        ("dz: need 1260 contiguous", {"dz": torch.empty(1, 18, 70).mT}),
        ("dafter: need 36 contiguous", {"dafter": torch.randn(1, 18, 1)}),
        ("borders: need 72 contiguous elements of f32", {"borders": torch.empty(1, 1, 1, 18, 2)}),
        ("z: need whole chunks of 64", {"dend": state}),
        ("starts: need 48 contiguous", {"starts": state[..., :1].clone()}),
        ("starts: need a state for each tile", {"starts": None}),
        ("dpoles: need dresidues and dskip beside it", {"dskip": None}),
        ("dweight_shares: need dbias_shares beside it", {"dbias_shares": None}),
        ("local: need two states for each segment", long | {"segment_tiles": 1}),
    ]:  # fmt: skip
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("hyena_mixer_backward", *(given | wrong).values(), op="hyena_mixer")
    assert machine.launch("hyena_mixer_backward", *given.values(), op="hyena_mixer") == "hyena_mixer_backward_f32"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 4992, 64, 8), (1, 40000, 8, 7), (1, 1024, 1024, 8), (3, 2, 5, 2)], ids=str)
def test_on_the_device(shape, dtype):
    from tkpy import conformance

    kwargs = conformance.map_tensors(inputs(*shape, dtype=dtype), torch.Tensor.cuda)
    assert disagreement(kwargs, "cuda", grad=True) == ""
