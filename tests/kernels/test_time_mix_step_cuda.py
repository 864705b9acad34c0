"""The kernels of time_mix_step in the emulator, under all checks: every case and dtype, sizes that divide nothing,
clusters of every size, addresses that begin anywhere among NaN, several schedules; what they move; what they refuse."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from time_mix_runs import OP, among_nan, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import build_info, conformance, machine, registry  # noqa: E402
from tkpy.emulator.run import Counters, CountRow  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16]
CASES = [case for case in OP.cases if not case.bench]
#: b, c, h, n: slices that are empty, whole and cut; one to three passes over a state's rows; each width of heads.
SIZES = [(1, 640, 2, 64), (3, 200, 1, 32), (5, 72, 3, 100), (9, 136, 2, 45), (16, 65, 1, 61), (2, 40, 9, 12)]
EVERY = ("last", "gate", "weight", "bias", "initial_state")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    return gather(tmp_path_factory.mktemp("time_mix_step"), [kernel_folder("kernels/time_mix_step/kernel.cu")])


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case(folder, monkeypatch, case, dtype, seed):
    """Gradients too, once: they are the eager form's."""
    on_machine(monkeypatch, folder, seed)
    with tkpy.record_dispatches() as log:
        for result in conformance.check_case(OP, case, backend="emulator", dtype=dtype, seed=seed, grad=seed == 0):
            assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == (OP.name, "emulator")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_and_addresses(built, sizes, dtype):
    kwargs = inputs(*sizes, dtype=dtype)
    assert disagreement(among_nan(kwargs)) == ""
    assert disagreement(among_nan(kwargs, 1)) == ""


@pytest.mark.parametrize("ranks", range(1, 9))
def test_clusters_of_every_size(folder, monkeypatch, ranks):
    """A head has as many CTAs as the device has multiprocessors for each of three."""
    for multiprocessors in (3 * ranks, 3 * ranks + 2):
        on_machine(monkeypatch, folder, ranks, multiprocessors)
        assert disagreement(inputs(5, 328, 3, 60)) == ""


@pytest.mark.parametrize("b, c", [(16, 1100), (16, 2056), (12, 1288)])
def test_slices_that_shared_memory_takes_in_parts(folder, monkeypatch, b, c):
    on_machine(monkeypatch, folder, multiprocessors=1)
    assert disagreement(inputs(b, c, 1, 16)) == ""


@pytest.mark.parametrize("without", [*((name,) for name in EVERY), EVERY])
def test_what_is_not_given(built, without):
    assert disagreement(inputs(3, 104, 2, 40, without=without, eps=0.3)) == ""


@pytest.mark.parametrize("names", [("mix",), ("weight", "bias"), ("mix", "weight", "bias")])
def test_parameters_in_float32(built, names):
    kwargs = inputs(3, 104, 2, 40)
    assert disagreement(kwargs | {name: kwargs[name].float() for name in names}) == ""
    assert disagreement(among_nan(kwargs | {name: kwargs[name].float() for name in names}, 1)) == ""


def test_the_same_bits_under_every_schedule(folder, monkeypatch):
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        results.append(OP.public(**inputs(9, 200, 2, 64), backend="emulator"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_argument_is_written_to(built):
    kwargs = inputs(2, 64, 2, 32)
    before = {key: value.clone() for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    OP.public(**kwargs, backend="emulator")
    assert all(torch.equal(kwargs[key], value) for key, value in before.items())


def test_nothing_is_rounded_between_the_projections_and_the_state(built):
    """Of what the dtype holds exactly: mixes of 0 and 1, so that float32 is all that is left."""
    kwargs = inputs(2, 128, 2, 64)
    kwargs["mix"] = kwargs["mix"].round()
    _, state = OP.public(**kwargs, backend="emulator")
    _, want = OP.public(**conformance.widen(kwargs), backend="reference")
    assert (state - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("size, ran", [(32, "bf16_32"), (40, "bf16_64"), (65, "bf16_128")])
def test_the_kernel_that_ran(built, monkeypatch, size, ran):
    found, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *args, **more: found.append(launch(*args, **more)))
    assert disagreement(inputs(1, 24, 1, size)) == ""
    assert found == [f"time_mix_step_{ran}"]


@pytest.mark.parametrize(
    "sizes, multiprocessors, requested", [((1, 512, 2, 64), 8, 1.05), ((16, 512, 1, 128), 2, 1.15)]
)
def test_what_is_moved(folder, monkeypatch, sizes, multiprocessors, requested):
    """Every weight and state once, the rest once a head; nothing waits for a bank."""
    counted = machine.compiled().Machine.emulator(
        str(folder), multiprocessors=multiprocessors, threads=2, counters=True
    )
    monkeypatch.setattr(build_info, "KERNELS", folder)
    monkeypatch.setattr(machine, "_machine", lambda kind, folder: counted)
    kwargs = inputs(*sizes)
    ideal = OP.nbytes(registry.capture(OP, kwargs))
    with torch.no_grad():
        OP.public(**kwargs, backend="emulator")
    total = Counters([CountRow.of(*row) for *_, found in counted.counters().values() for row in found]).total
    assert 0.95 <= total.global_bytes / ideal <= requested
    assert 32 * total.global_sectors <= (requested + 0.05) * ideal
    assert total.bank_conflicts == 0


@pytest.mark.parametrize("sizes, dtype, code", [
    ((1, 8, 1, 8), torch.float32, "dtype"),
    ((1, 8, 1, 129), torch.bfloat16, "head_size"),
    ((17, 8, 1, 8), torch.bfloat16, "size"),
])  # fmt: skip
def test_refusals_are_data(built, sizes, dtype, code):
    kwargs = inputs(*sizes, dtype=dtype)
    assert [r.code for r in tkpy.explain("time_mix_step", **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match="needs"):
        OP.public(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    x, w, states = torch.randn(2, 16).bfloat16(), torch.randn(3, 8), torch.randn(2, 3, 8, 8)
    matrix = torch.randn(24, 16).bfloat16()
    given = {
        "x": x, "last": x, "mix": matrix[:4].clone(), "receptance": matrix, "key": matrix, "value": matrix,
        "gate": matrix, "w": w, "u": w, "weight": w, "bias": w, "initial": states, "z": torch.empty(2, 3, 8).bfloat16(),
        "final": states.clone(), "eps": 1e-5,
    }  # fmt: skip
    for words, wrong in [
        ("x: need two dimensions of bf16 or f16", {"x": x.float()}),
        ("x: need at most 16 rows", {"x": torch.randn(17, 16).bfloat16()}),
        ("w: need heads of at most 128", {"w": torch.randn(1, 129)}),
        ("last: need 32 contiguous elements of bf16", {"last": x.half()}),
        ("mix: need 64 contiguous", {"mix": matrix[:3].clone()}),
        ("mix: need x's type or f32", {"mix": matrix[:4].half()}),
        ("receptance: need 24 rows of 16", {"receptance": matrix[:23]}),
        ("key: need bf16 on the device", {"key": matrix.half()}),
        ("value: need contiguous rows", {"value": torch.randn(16, 24).bfloat16().T}),
        ("gate: need 24 rows of 16", {"gate": matrix[:, :15]}),
        ("u: need 24 contiguous", {"u": w.double()}),
        ("weight: need x's type or f32", {"weight": w.half()}),
        ("bias: need 24 contiguous", {"bias": w[:2]}),
        ("initial: need 384 contiguous", {"initial": states[:1]}),
        ("z: need 48 contiguous", {"z": torch.empty(2, 3, 7).bfloat16()}),
        ("final: need 384 contiguous", {"final": states.half()}),
        ("eps: need a number that is not negative", {"eps": -1.0}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch("time_mix_step", *(given | wrong).values(), op="time_mix_step")
    assert machine.launch("time_mix_step", *given.values(), op="time_mix_step") == "time_mix_step_bf16_32"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [*SIZES, (1, 2048, 32, 64), (8, 2048, 32, 64), (16, 4096, 64, 64), (3, 2560, 40, 64)])
def test_on_the_device(sizes, dtype):
    kwargs = conformance.map_tensors(inputs(*sizes, dtype=dtype), torch.Tensor.cuda)
    assert disagreement(kwargs, "cuda") == ""
