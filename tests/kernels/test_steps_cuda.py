"""The kernels of wkv5_step and hyena_step in the emulator, under all checks: every case and dtype, sizes that divide
nothing, addresses that begin anywhere, several schedules; what they move; what they refuse."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from step_runs import NAMES, OPS, at_odd_addresses, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import build_info, conformance, machine, registry  # noqa: E402
from tkpy.emulator.run import Counters, CountRow  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases if not case.bench
]
#: b, h, n of wkv5_step; b, w, s, k, groups of hyena_step.
SIZES = {
    "wkv5_step": [(1, 1, 32), (2, 3, 64), (1, 2, 128), (2, 2, 36), (1, 3, 45), (3, 2, 100), (2, 1, 97), (2, 3, 5)],
    "hyena_step": [
        (1, 32, 8, 3, 1), (3, 33, 8, 3, 11), (2, 64, 2, 4, 8), (2, 7, 5, 3, 7), (5, 12, 9, 2, 3), (2, 9, 32, 8, 1),
        (1, 40, 31, 1, 4), (2, 31, 0, 3, 1),
    ],
}  # fmt: skip
SIZED = [(name, sizes) for name in NAMES for sizes in SIZES[name]]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    return gather(tmp_path_factory.mktemp("steps"), [kernel_folder(f"kernels/{name}/kernel.cu") for name in NAMES])


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_every_case_of_the_ops(folder, monkeypatch, op, case, dtype, seed):
    """Gradients too: of a step, they are the eager form's."""
    on_machine(monkeypatch, folder, seed)
    with tkpy.record_dispatches() as log:
        for result in conformance.check_case(op, case, backend="emulator", dtype=dtype, seed=seed, grad=seed == 0):
            assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == (op.name, "emulator")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name, sizes", SIZED)
def test_sizes_and_addresses(built, name, sizes, dtype):
    kwargs = inputs(name, *sizes, dtype=dtype)
    assert disagreement(name, kwargs) == ""
    assert disagreement(name, at_odd_addresses(kwargs)) == ""


@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_a_block_takes_several_rows(folder, monkeypatch, multiprocessors):
    for seed in range(2):
        on_machine(monkeypatch, folder, seed, multiprocessors)
        assert disagreement("hyena_step", inputs("hyena_step", 29, 40, 8, 3, 2)) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_under_every_schedule(folder, monkeypatch, name):
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        results.append(OPS[name].public(**inputs(name, *SIZES[name][1]), backend="emulator"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_state_is_written_to(built, name):
    kwargs = inputs(name, *SIZES[name][1])
    before = {key: value.clone() for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    OPS[name].public(**kwargs, backend="emulator")
    assert all(torch.equal(kwargs[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_many_steps_stay_near_float64(built, name):
    """States go from step to step: 40 of them, in float32, beside a double that rounds nothing."""
    given = {"wkv5_step": ("initial_state",), "hyena_step": ("fir_state", "state")}[name]
    kwargs = inputs(name, *SIZES[name][1], dtype=torch.float32)
    exact = conformance.widen(kwargs)
    make, fresh = torch.Generator().manual_seed(5), ("r", "k", "v", "gate", "z")
    for _ in range(40):
        new = {key: torch.randn(kwargs[key].shape, generator=make) for key in fresh if key in kwargs}
        kwargs |= new
        exact |= conformance.widen(new)
        y, *states = OPS[name].public(**kwargs, backend="emulator")
        want, *wanted = OPS[name].public(**exact, backend="reference")
        kwargs |= dict(zip(given, states, strict=True))
        exact |= dict(zip(given, wanted, strict=True))
    for a, b in zip((y, *states), (want, *wanted), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


@pytest.mark.parametrize("name, sizes, ran", [
    ("wkv5_step", (1, 1, 32), "wkv5_step_bf16_32"),
    ("wkv5_step", (1, 1, 40), "wkv5_step_bf16_64"),
    ("wkv5_step", (1, 1, 65), "wkv5_step_bf16_128"),
    ("hyena_step", (1, 4, 8, 3, 1), "hyena_step_bf16_8"),
    ("hyena_step", (1, 4, 9, 3, 1), "hyena_step_bf16_32"),
])  # fmt: skip
def test_the_kernel_that_ran(built, monkeypatch, name, sizes, ran):
    found, launch = [], machine.launch
    monkeypatch.setattr(OPS[name].module("cuda"), "launch", lambda *args, **more: found.append(launch(*args, **more)))
    assert disagreement(name, inputs(name, *sizes)) == ""
    assert found == [ran]


@pytest.mark.parametrize("name, sizes", [("wkv5_step", (4, 2, 64)), ("hyena_step", (64, 64, 8, 3, 4))])
def test_what_is_moved(folder, monkeypatch, name, sizes):
    """Each byte once, poles and residues once for the rows of a block; nothing waits for a bank."""
    counted = machine.compiled().Machine.emulator(str(folder), multiprocessors=1, threads=2, counters=True)
    monkeypatch.setattr(build_info, "KERNELS", folder)
    monkeypatch.setattr(machine, "_machine", lambda kind, folder: counted)
    kwargs = inputs(name, *sizes)
    ideal = OPS[name].nbytes(registry.capture(OPS[name], kwargs))
    with torch.no_grad():
        OPS[name].public(**kwargs, backend="emulator")
    total = Counters([CountRow.of(*row) for *_, found in counted.counters().values() for row in found]).total
    assert 0.95 <= total.global_bytes / ideal <= 1.2
    assert 32 * total.global_sectors <= 1.45 * ideal
    assert total.bank_conflicts == 0


@pytest.mark.parametrize("name, sizes, dtype, code", [
    ("wkv5_step", (1, 1, 8), torch.float64, "dtype"),
    ("wkv5_step", (1, 1, 129), torch.bfloat16, "head_size"),
    ("hyena_step", (1, 2, 4, 3, 1), torch.float64, "dtype"),
    ("hyena_step", (1, 2, 33, 3, 1), torch.bfloat16, "modes"),
])  # fmt: skip
def test_refusals_are_data(built, name, sizes, dtype, code):
    kwargs = inputs(name, *sizes, dtype=dtype)
    assert [r.code for r in tkpy.explain(name, **kwargs).refusals["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match="needs"):
        OPS[name].public(**kwargs, backend="emulator")


def test_the_launchers_check_again(built):
    r, w, states = torch.randn(2, 3, 8), torch.randn(3, 8), torch.randn(2, 3, 8, 8)
    wkv5 = {
        "r": r, "k": r, "v": r, "w": w, "u": w, "weight": w, "bias": w, "gate": r, "initial": states, "y": r.clone(),
        "final": states.clone(), "eps": 1e-5,
    }  # fmt: skip
    z, taps, pairs = torch.randn(2, 18), torch.randn(18, 3), torch.randn(6, 4, 2)
    carried = torch.randn(2, 6, 4, 2)
    hyena = {
        "z": z, "weight": taps, "bias": taps[:, 0].clone(), "poles": pairs, "residues": pairs, "skip": torch.randn(6),
        "before": torch.randn(2, 18, 2), "start": carried, "y": torch.empty(2, 6), "after": torch.empty(2, 18, 2),
        "end": carried.clone(), "groups": 2,
    }  # fmt: skip
    for words, name, given, wrong in [
        ("r: need three dimensions of bf16, f16 or f32", "wkv5_step", wkv5, {"r": r.double()}),
        ("r: need heads of at most 128", "wkv5_step", wkv5, {"r": torch.randn(1, 1, 129)}),
        ("k: need 48 contiguous elements of f32", "wkv5_step", wkv5, {"k": r.half()}),
        ("v: need 48 contiguous", "wkv5_step", wkv5, {"v": r[:1]}),
        ("u: need 24 contiguous", "wkv5_step", wkv5, {"u": w.t()[:3]}),
        ("weight, bias: need r's type or f32", "wkv5_step", wkv5, {"bias": w.half()}),
        ("initial: need 384 contiguous", "wkv5_step", wkv5, {"initial": states[:1]}),
        ("final: need 384 contiguous", "wkv5_step", wkv5, {"final": states.half()}),
        ("eps: need a number that is not negative", "wkv5_step", wkv5, {"eps": -1.0}),
        (r"z: need \[B, 3 W\]", "hyena_step", hyena, {"z": z[:, :17].contiguous()}),
        ("weight: need a row of 1 to 8 taps", "hyena_step", hyena, {"weight": torch.randn(18, 9)}),
        ("poles: need a row of at most 32", "hyena_step", hyena, {"poles": torch.randn(6, 33, 2)}),
        ("groups: need a divisor of the width 6, got 4", "hyena_step", hyena, {"groups": 4}),
        ("residues: need 48 contiguous", "hyena_step", hyena, {"residues": pairs[:, :2]}),
        ("before: need 72 contiguous", "hyena_step", hyena, {"before": torch.randn(2, 18, 3)}),
        ("start: need an address", "hyena_step", hyena, {"start": torch.randn(97)[1:].view(2, 6, 4, 2)}),
        ("end: need 96 contiguous", "hyena_step", hyena, {"end": carried[:1]}),
        ("weight, bias, skip: need z's type or f32", "hyena_step", hyena, {"skip": torch.randn(6).half()}),
    ]:
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch(name, *(given | wrong).values(), op=name)
    assert machine.launch("wkv5_step", *wkv5.values(), op="wkv5_step") == "wkv5_step_f32_32"
    assert machine.launch("hyena_step", *hyena.values(), op="hyena_step") == "hyena_step_f32_8"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name, sizes", [*SIZED, ("wkv5_step", (64, 32, 64)), ("hyena_step", (300, 4096, 8, 3, 256))])
def test_on_the_device(name, sizes, dtype):
    kwargs = conformance.map_tensors(inputs(name, *sizes, dtype=dtype), torch.Tensor.cuda)
    assert disagreement(name, kwargs, "cuda") == ""
