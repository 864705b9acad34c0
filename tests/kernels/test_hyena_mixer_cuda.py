"""hyena_mixer's kernels in the emulator, under all checks: every case and option, taps, groups, pitches, segments,
several schedules; pieces of any length; gradients; long times; what they read and cost; what they refuse."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from mixer_runs import ALL, OP, PARTS, disagreement, in_nan, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine, registry  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
cuda = OP.module("cuda")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/{part}.cu") for part in PARTS]
    return gather(tmp_path_factory.mktemp("hyena_mixer"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    """Gradients too, by the kernel of both or, where it does not take the call, by those of the two ops."""
    with tkpy.record_dispatches() as log:
        for result in conformance.check_case(OP, case, backend="emulator", dtype=dtype):
            assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == ("hyena_mixer", "emulator")


@pytest.mark.parametrize("modes", [1, 3, 8, 9, 12, 16, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_modes(built, modes, dtype):
    """Groups of 8 that are filled up, up to four."""
    assert disagreement(inputs(2, 201, 5, modes, dtype=dtype)) == ""


@pytest.mark.parametrize("taps", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_taps(built, taps, dtype):
    assert disagreement(inputs(1, 70, 9, 3, taps, dtype=dtype)) == ""


@pytest.mark.parametrize("width, groups", [(1, 1), (7, 7), (16, 2), (16, 4), (24, 1), (20, 5), (40, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_groups(built, width, groups, dtype):
    """Blocks of channels that are whole rows of 16 bytes, cross groups, or end with the last channel."""
    assert disagreement(inputs(2, 66, width, 2, groups=groups, dtype=dtype)) == ""


@pytest.mark.parametrize("length", [1, 3, 63, 64, 65, 127, 1023, 1024, 1025, 1024 + 64, 2111])
def test_lengths(built, length):
    assert disagreement(inputs(1, length, 8, 4, 4, dtype=torch.float32)) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("modes, length", [(8, 3 * 1024), (8, 3 * 1024 + 77), (12, 3 * 1024 + 77)])
def test_segments_and_schedules(folder, monkeypatch, modes, length, each, seed):
    """Several segments of a channel, which begin with inputs of the one before; in float32, a tight tolerance."""
    on_machine(monkeypatch, folder, seed)
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: each)
    assert disagreement(inputs(2, length, 4, modes, dtype=torch.float32)) == ""


@pytest.mark.parametrize("absent", [*([name] for name in sorted(ALL)), sorted(ALL)], ids=" ".join)
def test_options(built, absent):
    assert disagreement(inputs(1, 1030, 8, 4, options=ALL - set(absent))) == ""


@pytest.mark.parametrize("pieces", [(40, 1, 2, 1024, 33), (1, 1, 1), (1500, 3)], ids=str)
def test_pieces_of_any_length(built, pieces):
    kwargs = inputs(2, sum(pieces), 8, 10, 5, groups=2, dtype=torch.float32)
    whole = tkpy.hyena_mixer(**kwargs, backend="emulator")
    parts = []
    for z in kwargs["z"].split(pieces, 1):
        y, fir, state = tkpy.hyena_mixer(**kwargs | {"z": z}, backend="emulator")
        kwargs |= {"fir_state": fir, "initial_state": state}
        parts.append(y)
    for a, b in zip((torch.cat(parts, 1), fir, state), whole, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    assert torch.equal(fir, whole[1])


@pytest.mark.parametrize("length", [1, 70, 1100])
def test_gradients_with_and_without_what_came_before(built, length):
    for options in (ALL, ALL - {"fir_state", "initial_state"}, frozenset()):
        assert disagreement(inputs(2, length, 8, 4, options=options, radius=(0.3, 0.9)), grad=True) == ""


def test_the_same_call_gives_the_same_bits(folder, monkeypatch):
    monkeypatch.setattr(cuda, "segment_tiles_for", lambda *_: 1)
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        results.append(tkpy.hyena_mixer(**inputs(2, 2500, 9, 4), backend="emulator"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("offset, pitch", [(0, 0), (8, 8), (1, 0), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_any_pitch_and_what_lies_between_is_not_looked_at(built, monkeypatch, offset, pitch, dtype):
    """Rows of z inside a buffer of NaN, aligned to 16 bytes or not; they go in as they are."""
    kwargs, seen = inputs(2, 1024 + 65, 16, 3, groups=2, dtype=dtype), []
    want = tkpy.hyena_mixer(**kwargs, backend="emulator")
    z = in_nan(kwargs["z"], offset, pitch)
    monkeypatch.setattr(cuda, "launch", lambda name, *a, **k: (seen.append(a[0]), machine.launch(name, *a, **k)))
    got = tkpy.hyena_mixer(**kwargs | {"z": z}, backend="emulator")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert [x.data_ptr() for x in seen] == [z.data_ptr()]


def test_no_state_is_written_to(built):
    kwargs = inputs(1, 70, 8, 4)
    before = {key: value.clone() for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    tkpy.hyena_mixer(**kwargs, backend="emulator")
    assert all(torch.equal(kwargs[key], value) for key, value in before.items())


def test_a_long_time(built):
    """A pole so slow that an impulse outlasts 300,000 samples: phase and size, over chunks, tiles and segments."""
    pole = torch.tensor([[0.6 + 0.8j]], dtype=torch.complex128)
    pole = (pole / pole.abs() * (1 - 1e-7)).to(torch.complex64)
    length = 300_000
    z = torch.zeros(1, length, 3)
    z[:, :, 0] = 1
    z[:, 0] = 1
    weight = torch.zeros(3, 2)
    weight[:, 1] = 1
    y, _, state = tkpy.hyena_mixer(z, weight, pole, torch.ones_like(pole), output_final_state=True, backend="emulator")
    exact = pole.to(torch.complex128) ** (length - 1)
    assert (state[0] - exact).abs() < 1e-5
    assert (y[0, -1, 0].double() - exact.real).abs() < 1e-5


@pytest.mark.parametrize("dtype, modes", [(torch.bfloat16, 8), (torch.float32, 8), (torch.bfloat16, 12)], ids=str)
def test_what_a_tile_costs(folder, monkeypatch, dtype, modes):
    """Of 1024 samples more: four elements a sample and channel and the inputs before the tile, no other byte; products
    of 96 flops a sample (64 more for further 8 modes), three times (six for float32); no bank conflict."""
    on_machine(monkeypatch, folder)
    counts = []
    for tiles in (2, 4):
        kwargs = inputs(1, 1024 * tiles, 16, modes, dtype=dtype)
        with torch.no_grad(), machine.counting() as counters:
            tkpy.hyena_mixer(**kwargs, backend="emulator")
            counts.append(asdict(machine.total(counters())))
    more = {name: (counts[1][name] - counts[0][name]) / 2 / 16 for name in counts[0]}
    size = dtype.itemsize
    assert more["global_bytes"] == (4 * 1024 + 3 * 2) * size
    assert more["tensor_flops"] == 1024 * (32 + 64 * -(-modes // 8)) * (3 if size == 2 else 6)
    assert more["bank_conflicts"] == 0
    ideal = OP.nbytes(registry.capture(OP, inputs(1, 1024 * 4, 16, modes, dtype=dtype)))
    assert counts[1]["global_bytes"] <= 1.01 * ideal + 16 * modes * 2 * 8 * 32  # each lane reads all poles and residues


@pytest.mark.parametrize("dtype, ran", [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "f32")])
def test_one_launch(built, monkeypatch, dtype, ran):
    found = []
    monkeypatch.setattr(cuda, "launch", lambda *args, **more: found.append(machine.launch(*args, **more)))
    assert disagreement(inputs(1, 1100, 8, 4, dtype=dtype)) == ""
    assert found == [f"hyena_mixer_{ran}"]


@pytest.mark.parametrize("dtype, modes, code", [(torch.float64, 4, "dtype"), (torch.bfloat16, 33, "modes")])
def test_refusals_are_data(built, dtype, modes, code):
    kwargs = inputs(1, 8, 2, modes, options=frozenset(), dtype=dtype)
    assert [r.code for r in tkpy.explain("hyena_mixer", **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match="needs"):
        tkpy.hyena_mixer(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    z, taps, pairs, state = torch.randn(1, 70, 18), torch.randn(18, 3), torch.randn(6, 4, 2), torch.randn(1, 6, 4, 2)
    long = torch.randn(1, 1025, 18)
    given = {
        "z": z, "weight": taps, "bias": taps[:, 0].clone(), "poles": pairs, "residues": pairs, "skip": torch.randn(6),
        "before": torch.randn(1, 18, 2), "start": state, "y": torch.empty(1, 70, 6), "after": torch.empty(1, 18, 2),
        "end": state.clone(), "local": None, "groups": 2, "segment_tiles": 4,
    }  # fmt: skip
    for words, wrong in [
        (r"z: need \[B, L, 3 W\]", {"z": z[..., :17].contiguous()}),
        ("z: need channels side by side", {"z": z.mT.contiguous().mT}),
        ("weight: need a row of 1 to 8 taps", {"weight": torch.randn(18, 9)}),
        ("poles: need a row of at most 32", {"poles": torch.randn(6, 33, 2)}),
        ("groups: need a divisor of the width 6, got 4", {"groups": 4}),
        ("residues: need 48 contiguous", {"residues": pairs[:, :2]}),
        ("before: need 36 contiguous", {"before": torch.randn(1, 18, 3)}),
        ("start: need 48 contiguous", {"start": state.double()}),
        ("y: need 420 contiguous", {"y": torch.empty(1, 6, 70).mT}),
        ("after: need 36 contiguous", {"after": torch.empty(1, 18, 2).half()}),
        ("weight, bias: need z's type or f32", {"bias": torch.randn(18).half()}),
        ("skip: need 6 contiguous elements of f32", {"skip": torch.randn(6).half()}),
        ("local: need a state for each segment", {"z": long, "y": torch.empty(1, 1025, 6), "segment_tiles": 1}),
    ]:  # fmt: skip
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("hyena_mixer", *(given | wrong).values(), op="hyena_mixer")
    assert machine.launch("hyena_mixer", *given.values(), op="hyena_mixer") == "hyena_mixer_f32"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 5000, 64, 8), (1, 40000, 3, 7), (1, 1024, 4096, 8), (2, 3000, 40, 20), (3, 2, 5, 2)], ids=str
)
def test_on_the_device(shape, dtype):
    kwargs = conformance.map_tensors(inputs(*shape, dtype=dtype), torch.Tensor.cuda)
    assert disagreement(kwargs, "cuda") == ""
