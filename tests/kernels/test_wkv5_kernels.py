"""wkv5's kernels in the emulator, under all checks: every case, head size and length, segments, packed sequences,
extreme decays, several schedules; what they read and cost; what they refuse."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from wkv5_runs import OP, disagreement, in_segments, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

REFUSED = ("head size 7", "non-contiguous")  # heads of 7 and 9 channels
CASES = [case for case in OP.cases if not case.bench and case.name not in REFUSED]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/wkv5/kernel.cu")


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype, grad=False))
    for result in results:
        assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == ("wkv5", "emulator")


@pytest.mark.parametrize("size", [8, 24, 32, 40, 64, 72, 120, 128])
def test_head_sizes(built, size):
    assert disagreement(inputs(2, 37, 2, size)) == ""


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 64, 80, 97])
@pytest.mark.parametrize("segment", [None, 16, 48])
def test_lengths_and_segments(built, monkeypatch, length, segment):
    """More chunks than slots, tails in every segment; with a state and without."""
    in_segments(monkeypatch, segment)
    for state in (True, False):
        assert disagreement(inputs(2, length, 2, 32, state=state, seed=length)) == ""


BOUNDS = [0, 1, 18, 18, 81, 86, 118, 150]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("segment", [16, 32, 160])
@pytest.mark.parametrize("size", [32, 64])
def test_packed(built, monkeypatch, size, segment, dtype):
    in_segments(monkeypatch, segment)
    assert disagreement(inputs(1, 150, 2, size, bounds=BOUNDS, dtype=dtype)) == ""


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("size, segment", [(32, 16), (64, 160), (128, 48)])
def test_schedules(folder, monkeypatch, size, segment, seed):
    on_machine(monkeypatch, folder, seed)
    in_segments(monkeypatch, segment)
    assert disagreement(inputs(1, 150, 2, size, bounds=BOUNDS, seed=seed)) == ""


@pytest.mark.parametrize("raw", [-float("inf"), -100.0, -12.0, 0.0, 6.0, 80.0, float("inf")])
@pytest.mark.parametrize("segment", [16, 160])
def test_one_decay_for_all(built, monkeypatch, raw, segment):
    """No decay at all, one just below the resolution of bf16, and no memory."""
    in_segments(monkeypatch, segment)
    kwargs = inputs(1, 150, 2, 32, low=raw, high=raw) if abs(raw) < 1e9 else inputs(1, 150, 2, 32)
    kwargs["w"] = torch.full_like(kwargs["w"], raw)
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("segment", [16, 48, 4096])
def test_a_state_lives_through_a_thousand_tokens(built, monkeypatch, segment):
    """Decays between 1 - 6e-6 and 0 in one head."""
    in_segments(monkeypatch, segment)
    assert disagreement(inputs(1, 1000, 1, 32, low=-12.0, high=6.0)) == ""


@pytest.mark.parametrize("segment", [16, 32, 160])
def test_what_lies_outside_is_not_looked_at(built, monkeypatch, segment):
    """A sequence of NaN leaves its neighbours as they are, to the bit; so does what a view cuts off."""
    in_segments(monkeypatch, segment)
    kwargs = inputs(1, 150, 2, 32, bounds=BOUNDS)
    clean = tkpy.wkv5(**kwargs, backend="emulator")
    for bad in (1, 3, 5):
        spoiled = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
        for name in "rkv":
            spoiled[name][:, BOUNDS[bad] : BOUNDS[bad + 1]] = torch.nan
        y, final = tkpy.wkv5(**spoiled, backend="emulator")
        same = [t for t in range(150) if not BOUNDS[bad] <= t < BOUNDS[bad + 1]]
        assert torch.equal(y[:, same], clean[0][:, same])
        assert torch.isnan(y[:, BOUNDS[bad] : BOUNDS[bad + 1]]).all()
        others = [i for i in range(len(BOUNDS) - 1) if i != bad]
        assert torch.equal(final[others], clean[1][others])


def test_a_later_token_does_not_touch_an_earlier_one(built, monkeypatch):
    in_segments(monkeypatch, 32)
    kwargs = inputs(1, 70, 2, 32)
    y, _ = tkpy.wkv5(**kwargs, backend="emulator")
    for t in (0, 1, 15, 16, 31, 32, 69):
        changed = kwargs | {name: kwargs[name].clone() for name in "rkv"}
        for name in "rkv":
            changed[name][:, t] = 100.0
        z, _ = tkpy.wkv5(**changed, backend="emulator")
        assert torch.equal(z[:, :t], y[:, :t])
        assert not torch.equal(z[:, t], y[:, t])


def test_the_same_bits_under_every_schedule(folder, monkeypatch):
    results = []
    for seed in range(3):
        on_machine(monkeypatch, folder, seed)
        in_segments(monkeypatch, 32)
        results.append(tkpy.wkv5(**inputs(2, 90, 2, 64), backend="emulator"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_views_go_in_as_they_are(built, monkeypatch):
    """Slices of a fused projection, heads before tokens; what TMA cannot take is copied."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a[1:4]), launch(*a, **k)))
    kwargs = inputs(2, 20, 2, 32)
    fused = torch.randn(2, 20, 2, 96).bfloat16()
    kwargs |= {"r": fused[..., :32], "k": fused[..., 64:], "v": torch.randn(2, 2, 20, 32).bfloat16().transpose(1, 2)}
    assert disagreement(kwargs) == ""
    assert [t.data_ptr() for t in given[-1]] == [kwargs[n].data_ptr() for n in "rkv"]
    kwargs["v"] = torch.randn(2, 20, 2, 33).bfloat16()[..., :32]
    assert disagreement(kwargs) == ""
    assert given[-1][2].data_ptr() != kwargs["v"].data_ptr()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_what_a_token_costs(folder, monkeypatch, size):
    """128 tokens more: their bytes once and no more, the products of the header, at most 4 passes for an access."""
    on_machine(monkeypatch, folder)
    in_segments(monkeypatch, 4096)
    counts = []
    for length in (128, 256):
        with torch.no_grad(), machine.counting() as counters:
            tkpy.wkv5(**inputs(1, length, 1, size), backend="emulator")
            counts.append(asdict(machine.total(counters())))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["global_bytes"] == 4 * 2 * 128 * size
    useful = 128 * 4 * size * size  # the recurrence; its update in two parts of k, and 16 tokens with each other
    assert 1.5 <= more["flops"] / useful <= 4.6 * (1 + 8 / size)
    assert more["shared_wavefronts"] <= 4.0 * more["shared_requests"]


def test_segments_add_a_pass_over_keys_and_values(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    counts = []
    for segment in (4096, 256):
        in_segments(monkeypatch, segment)
        with torch.no_grad(), machine.counting() as counters:
            tkpy.wkv5(**inputs(1, 2048, 1, 32, state=False), backend="emulator")
            counts.append(machine.total(counters()).global_bytes)
    states = 8 * 4 * 32 * 32 * 4  # each written, read and written, read
    assert counts[0] <= 1.02 * 4 * 2 * 2048 * 32
    assert counts[1] <= 1.04 * (6 * 2 * 2048 * 32 + states)


@pytest.mark.parametrize("size, width", [(16, 32), (32, 32), (64, 64), (96, 128), (128, 128)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_that_ran(built, monkeypatch, size, width, dtype):
    ran, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    assert disagreement(inputs(1, 9, 1, size, dtype=dtype)) == ""
    assert ran == [f"wkv5_forward_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_{width}"]


def test_segments_fill_the_gpu():
    segment_for = OP.module("cuda").segment_for
    assert segment_for(8, 64, 4096, 64, 132) == 4096  # 512 CTAs fill it
    assert segment_for(1, 32, 4096, 64, 132) in range(128, 1025)
    assert segment_for(1, 1, 2**20, 64, 132) in range(2048, 8193)
    assert segment_for(1, 12, 16, 64, 132) == 16
    assert all(segment_for(b, 40, t, 64, 132) % 16 == 0 for b in (1, 3) for t in (1, 100, 5000))


@pytest.mark.parametrize(
    "kwargs, code",
    [
        (inputs(1, 3, 1, 32, dtype=torch.float32), "dtype"),
        (inputs(1, 3, 1, 20), "head_size"),
        (inputs(1, 3, 1, 136), "head_size"),
    ],
    ids=["dtype", "size", "wide"],
)
def test_refusals_are_data(built, kwargs, code):
    explained = tkpy.explain("wkv5", **kwargs).refusals
    assert [r.code for r in explained["emulator"]] == [code]
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.wkv5(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    r, k, v, y = (torch.randn(2, 40, 2, 32).bfloat16() for _ in range(4))
    w, u, final, states = torch.zeros(2, 32), torch.zeros(2, 32), torch.empty(2, 2, 32, 32), torch.empty(6, 2, 32, 32)

    def call(r=r, k=k, v=v, w=w, u=u, initial=None, cu=None, y=y, final=final, states=states, segment=16):
        return machine.launch("wkv5", r, k, v, w, u, initial, cu, y, final, states, segment, op="wkv5")

    for words, wrong in {
        "r: need four dimensions of bf16": {"r": r.float()},
        "k: need four dimensions .* as r has them": {"k": k[:, :3]},
        "v: need channels contiguous": {"v": v.transpose(2, 3).contiguous().transpose(2, 3)},
        "w: need 64 contiguous elements of f32": {"w": w[:1].contiguous()},
        "y: need a contiguous": {"y": torch.empty(40, 2, 2, 32).bfloat16().transpose(0, 1)},
        "final_state: need 4096 contiguous": {"final": final[:1].contiguous()},
        "initial_state: need 4096 contiguous": {"initial": final.double()},
        "states: need 12288 contiguous": {"states": states[:4].contiguous()},
        "states: need states where": {"states": None},
        "segment: need a multiple of 16": {"segment": 24},
        "r: need one row": {"cu": torch.tensor([0, 40], dtype=torch.int32)},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == call(states=None, segment=48) == "wkv5_forward_bf16_32"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_on_the_device(size, dtype):
    for kwargs in (inputs(2, 3001, 3, size, dtype=dtype), inputs(1, 150, 4, size, bounds=BOUNDS, dtype=dtype)):
        moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        assert disagreement(moved, "cuda") == ""
