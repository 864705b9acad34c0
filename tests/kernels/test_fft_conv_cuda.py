"""fft_conv's kernels in the emulator, under all checks: every option, plan and alignment, forward and gradients,
several schedules; what rounding costs and no more; what they read and how often; which spectra are kept; what they
refuse."""

import gc
import importlib
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from fft_conv_runs import EVERYTHING, OP, disagreement, inputs, results  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]
STEMS = ("kernel", "spectrum", "backward", "long", "long_filter", "long_backward")
cuda = importlib.import_module("tkpy.ops.fft_conv.cuda")
spectra = importlib.import_module("tkpy.ops.fft_conv.spectra")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/fft_conv/{stem}.cu") for stem in STEMS]
    return gather(tmp_path_factory.mktemp("fft_conv"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    spectra.forget()
    return folder


@pytest.fixture
def ran(built, monkeypatch):
    """The names of the kernels that run."""
    names, launch = [], machine.launch
    monkeypatch.setattr(cuda, "launch", lambda *args, **more: names.append(launch(*args, **more)))
    return names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, dtype):
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, case, backend="emulator", dtype=dtype))
    for result in results:
        assert result.comparison, str(result)
    assert {d.backend for d in log} == {"emulator", "reference"}
    assert {d.op for d in log} == {"fft_conv", "fft_conv_backward"}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 255, 256, 257, 1000, 1023, 1024])
def test_lengths_and_schedules(folder, monkeypatch, length, dtype, seed):
    """Below, at and above a plan's length; rows that begin at 16 bytes and rows that do not."""
    on_machine(monkeypatch, folder, seed)
    assert disagreement(inputs(3, 2, length, *EVERYTHING, dtype=dtype, seed=seed)) == ""


@pytest.mark.parametrize(
    "length, points", [(9, 256), (600, 1024), (2043, 2048), (4096, 4096), (8187, 8192), (16384, 16384)]
)
def test_every_plan(ran, length, points):
    """Outputs, and gradients of everything, each by its kernel."""
    assert disagreement(inputs(2, 1, length, *EVERYTHING, dtype=torch.float16)) == ""
    prefixes = ["fft_conv_spectrum", "fft_conv", "fft_conv_spectrum", "fft_conv_backward"]
    assert ran == [f"{prefix}_{points}" for prefix in prefixes]


@pytest.mark.parametrize(
    "dtype, length, options",
    [(torch.bfloat16, 16385, EVERYTHING), (torch.float16, 32768, ("reverse",)), (torch.bfloat16, 33000, ("gates",))],
)
def test_rows_longer_than_a_cta_holds(ran, dtype, length, options):
    assert disagreement(inputs(2, 2, length, *options, dtype=dtype)) == ""
    inner = 2048 if length <= 32768 else 4096
    ends = {"fft_conv_long_in", "fft_conv_long_out", "fft_conv_long_filter_out"}
    assert set(ran) == ends | {f"fft_conv_long_{name}_{inner}" for name in ("inner", "filter_values", "backward")}


def test_factors_of_long_rows():
    factors_for = cuda.factors_for
    assert [factors_for(n) for n in (16385, 2**15 + 1, 2**17, 2**18, 2**20, 2**22)] == [
        (16, 2048), (16, 4096), (32, 4096), (16, 16384), (64, 16384), (256, 16384),
    ]  # fmt: skip
    assert importlib.import_module("tkpy.ops.fft_conv.op").LONGEST == 256 * 16384


@pytest.mark.parametrize("outer, inner", [(80, 2048), (16, 16384)])
def test_other_factors_of_long_rows(ran, monkeypatch, outer, inner):
    """Whatever the number of outer rows and the inner kernel, mostly of zeros."""
    monkeypatch.setattr(cuda, "factors_for", lambda length: (outer, inner))
    assert disagreement(inputs(2, 1, 16999, "reverse", "skip", "gates"), grad=inner > 4096) == ""
    values, forward = f"fft_conv_long_filter_values_{inner}", f"fft_conv_long_inner_{inner}"
    assert ran[:4] == [values, "fft_conv_long_in", forward, "fft_conv_long_out"]


@pytest.mark.parametrize("options", [(), ("skip",), ("pre_gate",), ("post_gate", "skip"), ("reverse", "pre_gate")])
def test_options(built, options):
    assert disagreement(inputs(2, 3, 200, *options)) == ""


@pytest.mark.parametrize("taps, reverse", [(3, 0), (0, 5), (500, 500), (1, 299), (300, 1)])
def test_filters_of_any_length(built, taps, reverse):
    assert disagreement(inputs(2, 2, 300, "reverse", "skip", taps=taps, reverse=reverse)) == ""


NEEDS = ["u", "k", "k_reverse", "skip", "pre_gate", "post_gate", "u pre_gate", "u post_gate", "u k", "pre_gate k"]


@pytest.mark.parametrize("needed", [*NEEDS, "post_gate k_reverse", "u post_gate skip"])
def test_some_gradients_alone(ran, needed):
    """As with all others; only the kernels they need run."""
    kwargs, needed = inputs(2, 2, 70, *EVERYTHING), needed.split()
    dy = torch.randn(2, 2, 70).bfloat16()
    want = results(kwargs, "emulator", dy)
    leaves = [kwargs[name].requires_grad_(True) for name in needed]
    y = tkpy.fft_conv(**kwargs, backend="emulator")
    ran.clear()
    for name, got in zip(needed, torch.autograd.grad(y, leaves, dy), strict=True):
        assert torch.equal(got, want[f"d{name}"]), name
    summed, rows = {"k", "k_reverse", "skip"} & set(needed), {"u", "pre_gate", "post_gate"} & set(needed)
    apart = ["fft_conv_256"] * (1 + (rows == {"u", "post_gate"}))
    again = ["fft_conv_spectrum_256"] if summed and rows else []  # else none is needed, or it is kept
    assert ran == again + (["fft_conv_backward_256"] if summed else apart)


@pytest.mark.parametrize("needed", ["k", "pre_gate k", "post_gate k_reverse"])
def test_some_gradients_of_long_rows(ran, needed):
    assert disagreement(inputs(1, 1, 16500, *EVERYTHING, taps=300), grad=needed.split()) == ""
    assert ran.count("fft_conv_long_out") == len(needed.split())  # forward's, and that of a row's gradient


@pytest.mark.parametrize("shares, cluster", [(1, 1), (3, 1), (3, 3), (4, 2), (8, 8)])
def test_parts_of_the_batch_sum_on_their_own(built, monkeypatch, shares, cluster):
    """Shares of unequal size, and empty ones; the same bits every time, whatever the schedule."""
    kwargs, dy = inputs(5, 2, 100, *EVERYTHING), torch.randn(5, 2, 100).bfloat16()
    monkeypatch.setattr(cuda, "shares_and_cluster", lambda *_: (shares, cluster))
    assert disagreement(kwargs) == ""
    found = []
    for seed in (1, 2):
        on_machine(monkeypatch, built, seed)
        found.append(results(kwargs, "emulator", dy))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_how_many_sum():
    """Two CTAs of every multiprocessor where there are so many rows, sixteen warps of short ones."""
    cpu = torch.device("cpu")
    found = [
        cuda.shares_and_cluster(*sizes, cpu) for sizes in ((64, 768, 4096), (8, 64, 4096), (2, 1, 256), (32, 4, 1024))
    ]
    assert found == [(1, 1), (4, 4), (2, 2), (32, 8)]
    assert cuda.shares_and_cluster(64, 24, 4096, cpu) == (16, 8)  # for 11
    assert [cuda.shares_and_cluster(64, 64, points, cpu)[0] for points in (256, 1024, 2048)] == [40, 16, 4]


@pytest.mark.parametrize("length", [40, 200])
def test_what_lies_outside_is_not_looked_at(built, length):
    """NaN past the end of rows, in taps that reach nothing, and in another row of the batch."""
    kwargs = inputs(2, 2, length, *EVERYTHING)
    clean = results(kwargs, "emulator", torch.ones(2, 2, length))
    for name in ("u", "pre_gate", "post_gate", "k", "k_reverse"):
        rows = kwargs[name]
        wide = torch.full((*rows.shape[:-1], rows.shape[-1] + 24), float("nan"), dtype=rows.dtype)
        wide[..., : rows.shape[-1]] = rows
        kwargs[name] = wide if rows.dim() == 2 else wide[..., : rows.shape[-1]]
    found = results(kwargs, "emulator", torch.ones(2, 2, length))
    for name, want in clean.items():
        assert torch.equal(found[name][..., : want.shape[-1]], want), name
        assert not found[name][..., want.shape[-1] :].any(), name
    kwargs["u"][1, 0, 3] = float("nan")
    y = results(kwargs, "emulator", torch.ones(2, 2, length), grad=False)["y"]
    assert y[1, 0].isnan().all()
    y[1, 0] = clean["y"][1, 0]
    assert torch.equal(y, clean["y"])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extremes(built, scale):
    """Two bf16 terms have the range of a float: nothing is scaled, nothing overflows before the result does."""
    kwargs = inputs(2, 1, 300, "reverse")
    kwargs["u"][0] *= scale
    assert disagreement({**kwargs, "u": kwargs["u"][:1]}) == ""
    assert disagreement({**kwargs, "u": kwargs["u"][1:]}) == ""
    both = results(kwargs, "emulator", torch.ones(2, 1, 300), grad=False)["y"]
    assert torch.equal(both[1:], results({**kwargs, "u": kwargs["u"][1:]}, "emulator", torch.ones(1), grad=False)["y"])


def test_views_go_in_as_they_are(built, monkeypatch):
    """Slices, expanded and permuted tensors; only where samples are not neighbours a copy is made."""
    given, launch = [], machine.launch
    monkeypatch.setattr(cuda, "launch", lambda *a, **k: (given.append(a), launch(*a, **k))[1])
    base = torch.randn(3, 2, 4, 310).bfloat16()
    kwargs = inputs(2, 3, 300, "skip")
    kwargs["u"] = base.transpose(0, 1)[:, :, 1, 3:303]
    kwargs["pre_gate"] = torch.randn(1, 1, 300).bfloat16().expand(2, 3, 300)
    kwargs["post_gate"] = torch.randn(2, 300, 3).bfloat16().transpose(1, 2)
    assert disagreement(kwargs) == ""
    convolve = next(a for a in given if a[0] == "fft_conv")
    same = [convolve[i].data_ptr() == kwargs[n].data_ptr() for i, n in ((1, "u"), (2, "pre_gate"), (3, "post_gate"))]
    assert same == [True, True, False]


# Floating-point operations of the products a sample: 3 terms, 4 real products where both operands are complex and 2
# where one end is real, of factors N1 N2 N3, there and back.
FLOPS = {length: 3 * 8 * (n1 + 2 * (n2 if n2 > 1 else 0) + 2 * n3) for length, (n1, n2, n3) in cuda.PLANS.items()}


@pytest.mark.parametrize("length", [256, 1024, 4096, 8192])
def test_what_a_row_costs(folder, monkeypatch, length):
    """One row more: its products, and a fourth for twiddles, the spectrum and gates; shared memory without a bank
    conflict; once each u, the gates and y. What else is read are tables and the
    spectrum, out of the caches: 8 times 8 bytes a sample, more where a warp has one strip (256) and where matrices of
    32 do not stay in registers (8192)."""
    on_machine(monkeypatch, folder)
    counts = []
    for batch in (1, 2):
        kwargs = inputs(batch, 1, length, "skip", "gates")
        with torch.no_grad(), machine.counting() as counters:
            tkpy.fft_conv(**kwargs, backend="emulator")
            counts.append(asdict(machine.total(counters())))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["tensor_flops"] == FLOPS[length] * length
    assert more["flops"] <= 1.25 * more["tensor_flops"]
    assert more["bank_conflicts"] == 0
    assert more["shared_bytes"] <= 8 * length * (9 if cuda.PLANS[length][1] > 1 else 5) + 8 * length
    rows = 2 * length * 4
    assert rows <= more["global_bytes"] <= rows + 8 * length * {256: 9, 8192: 14}.get(length, 8)
    assert more["local_bytes"] == 0


@pytest.mark.parametrize("length", [256, 1024, 2048, 4096])
def test_what_the_gradients_of_a_row_cost(folder, monkeypatch, length):
    """One row more: u and dy there once and back once; their values twice through shared memory, without a bank
    conflict; nothing through local memory."""
    on_machine(monkeypatch, folder)
    monkeypatch.setattr(cuda, "shares_and_cluster", lambda *_: (1, 1))
    counts = []
    for batch in (1, 2):
        kwargs = {name: t.requires_grad_(True) for name, t in inputs(batch, 1, length, "skip", "gates").items()}
        y = tkpy.fft_conv(**kwargs, backend="emulator")
        with machine.counting() as counters:
            y.sum().backward()
            counts.append(asdict(machine.total(counters())))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["tensor_flops"] == 2 * FLOPS[length] * length
    assert more["flops"] <= 1.25 * more["tensor_flops"]
    assert more["bank_conflicts"] == 0
    assert more["shared_bytes"] <= 2 * (8 * length * (9 if cuda.PLANS[length][1] > 1 else 5) + 8 * length) + 16 * length
    assert more["local_bytes"] == 0


# ---- Spectra that are kept ----------------------------------------------------------------------------------------
def transforms(ran, **kwargs) -> int:
    ran.clear()
    tkpy.fft_conv(**kwargs, backend="emulator")
    return sum(name.startswith("fft_conv_spectrum") for name in ran)


def test_a_spectrum_is_made_once(ran):
    kwargs = inputs(1, 2, 40, "reverse")
    assert [transforms(ran, **kwargs) for _ in range(3)] == [1, 0, 0]
    assert transforms(ran, **{**kwargs, "u": kwargs["u"][..., :30]}) == 1  # fewer taps count
    assert transforms(ran, **kwargs) == 1  # one entry a filter
    assert transforms(ran, **kwargs, skip=torch.ones(2)) == 1  # which is added to it
    assert disagreement(kwargs, grad=False) == ""


CHANGES = [
    lambda k: k.mul_(2), lambda k: k[0].zero_(), lambda k: k.view(-1)[1:].add_(1), lambda k: k.detach().neg_(),
    lambda k: k.copy_(torch.ones_like(k)), lambda k: setattr(k, "data", k * 3), lambda k: k.resize_(2, 20),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, change", [(n, c) for n in ("k", "k_reverse") for c in CHANGES] + [("skip", CHANGES[0]), ("skip", CHANGES[2])]
)
def test_a_filter_that_changed_is_transformed_again(ran, name, change):
    kwargs = inputs(1, 2, 40, "reverse", "skip", reverse=40)
    assert transforms(ran, **kwargs) == 1
    change(kwargs[name])
    assert transforms(ran, **kwargs) == 1
    assert disagreement(kwargs, grad=False) == ""


def test_a_filter_at_the_address_of_another_is_transformed(ran):
    kwargs, memory = inputs(1, 2, 40), torch.randn(2, 40)
    for _ in range(3):
        kwargs["k"] = torch.from_numpy(memory.numpy())  # another tensor of the same memory, the same version
        assert transforms(ran, **kwargs) == 1
    other = kwargs["k"].view(2, 40)
    assert transforms(ran, **{**kwargs, "k": other}) == 1


def test_spectra_die_with_their_filters(built):
    kwargs = inputs(1, 2, 40, "reverse")
    tkpy.fft_conv(**kwargs, backend="emulator")
    assert len(spectra._kept) == 1
    del kwargs["k_reverse"]
    gc.collect()
    assert not spectra._kept
    tkpy.fft_conv(**kwargs, backend="emulator")
    assert len(spectra._kept) == 1
    del kwargs
    gc.collect()
    assert not spectra._kept


def test_training_keeps_no_spectra(ran):
    kwargs = inputs(1, 2, 40)
    kwargs["k"].requires_grad_(True)
    assert [transforms(ran, **kwargs) for _ in range(2)] == [1, 1]
    with torch.no_grad():
        assert [transforms(ran, **kwargs) for _ in range(2)] == [1, 1]
    with torch.inference_mode():
        frozen = {name: t.clone() for name, t in inputs(1, 2, 40).items()}
        assert [transforms(ran, **frozen) for _ in range(2)] == [1, 1]


# ---- Refusals -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kwargs, code",
    [(inputs(1, 1, 5, dtype=torch.float32), "dtype"), (inputs(1, 1, 2**22 + 1, taps=1), "length")],
    ids=["dtype", "length"],
)
def test_refusals_are_data(built, kwargs, code):
    explained = tkpy.explain("fft_conv", **kwargs).refusals
    assert [r.code for r in explained["emulator"]] == [code]
    assert [r.code for r in explained["triton"]] == ["needs_gpu", *(["length"] if code == "length" else [])]
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.fft_conv(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    u, out, k = torch.randn(2, 3, 100).bfloat16(), torch.empty(2, 3, 100).bfloat16(), torch.randn(3, 100)
    tables = importlib.import_module("tkpy.ops.fft_conv.tables").tables(256, u.device)
    spectrum, dk, back = torch.empty(3, 256, 2), torch.empty(1, 3, 100), torch.empty(1, 3, 0)

    def convolve(u=u, pre=None, out=out, spectrum=spectrum, tables=tables):
        return machine.launch("fft_conv", u, pre, None, None, out, None, spectrum, tables, False, op="fft_conv")

    def transform(k=k, reverse=None, skip=None, used=100, used_reverse=0, spectrum=spectrum):
        taps = k, reverse, skip, used, used_reverse
        return machine.launch("fft_conv_spectrum", *taps, spectrum, tables, op="fft_conv")

    def backward(dy=u, du=out, dk=dk, reverse=back, spectrum=spectrum, scratch=None, points=256, cluster=1):
        found = du, None, None, dk, reverse
        constants = spectrum, scratch, points, cluster, tables
        return machine.launch("fft_conv_backward", u, None, dy, None, *found, *constants, op="fft_conv")

    for words, call, wrong in (
        ("u: need three dimensions of bf16 or f16", convolve, {"u": u.float()}),
        ("u: need contiguous samples", convolve, {"u": u.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("pre: need the shape", convolve, {"pre": u[:1]}),
        ("out: need .* the type of u", convolve, {"out": out.half()}),
        ("skip: need 3 contiguous elements of f32", transform, {"skip": torch.randn(2)}),
        ("tables: need", convolve, {"tables": tables[:-1]}),
        ("need 256, 1024, .* points, got 300", convolve, {"spectrum": torch.empty(3, 300, 2)}),
        ("spectrum: need .channels", convolve, {"spectrum": spectrum[:2]}),
        ("spectrum: need 1536 contiguous", convolve, {"spectrum": torch.empty(3, 256, 3)[..., :2]}),
        ("k: need 300 contiguous elements of f32", transform, {"k": k.double()}),
        ("k: need the taps that count", transform, {"used": 101}),
        ("k_reverse: need the taps that count", transform, {"used_reverse": 1}),
        ("k_reverse: need the taps that count", transform, {"reverse": k[:, :5].contiguous(), "used_reverse": 6}),
        ("dy: need the shape", backward, {"dy": u[..., :50]}),
        ("du: need .* the type of u", backward, {"du": out.half()}),
        ("dk: need .groups, channels, taps", backward, {"dk": dk[0]}),
        ("dk_reverse: need .groups", backward, {"reverse": torch.empty(2, 3, 4)}),
        ("spectrum: need .channels, points", backward, {"spectrum": None}),
        ("need a cluster of 1 to 8, got 9", backward, {"cluster": 9}),
        ("tables: need", backward, {"points": 8192}),
    ):
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert (transform(), convolve(), backward()) == ("fft_conv_spectrum_256", "fft_conv_256", "fft_conv_backward_256")
    assert backward(du=None, spectrum=None) == "fft_conv_backward_256"


def test_the_launchers_of_long_rows_check_again(built):
    tables = importlib.import_module("tkpy.ops.fft_conv.tables")
    u, work, sums = torch.randn(2, 3, 100).bfloat16(), torch.randn(2, 3, 16, 2, 2048), torch.empty(1, 3, 16, 2, 2048)
    k, spectrum = torch.randn(3, 100), torch.empty(3, 16, 2048, 2)
    inner = tables.tables(2048, u.device, 0.0)
    (real, real_back), (there, back) = (tables.outer_matrices(16, u.device, real) for real in (True, False))
    calls = {
        "rows": {"u": u, "pre": None, "work": work, "matrix": real},
        "inner": {"work": work, "spectrum": spectrum, "tables": inner, "correlate": False},
        "out": {"work": work, "matrix": real_back, "post": None, "post2": None, "out": u, "out2": None},
        "spectrum": {
            "k": k, "k_reverse": None, "skip": None, "used": 100, "used_reverse": 0, "work": sums, "spectrum": spectrum,
            "matrix": there, "tables": inner,
        },
        "backward": {
            "v_work": work, "g_work": work, "sums": sums, "spectrum": None, "wants_v": False, "wants_g": False,
            "scratch": None, "cluster": 1, "tables": inner,
        },
        "taps": {"work": sums, "dk": torch.empty(3, 5), "dk_reverse": torch.empty(3, 0), "matrix": back},
    }  # fmt: skip
    for name, words, wrong in (
        ("rows", "work: need the rows of u", {"work": work[:1]}),
        ("rows", "work: need .rows, channels, outer", {"work": work[0]}),
        ("rows", "work: need an outer size of 16", {"work": torch.empty(2, 3, 8, 2, 4096)}),
        ("rows", "an inner size of 2048, 4096 or 16384", {"work": torch.empty(2, 3, 16, 2, 1024)}),
        ("rows", "matrix: need 512 contiguous", {"matrix": there}),
        ("spectrum", "work: need one row", {"work": work}),
        ("spectrum", "k: need .channels, taps., at least those that count", {"used": 101}),
        ("spectrum", "k_reverse: need .channels, taps", {"used_reverse": 1}),
        ("spectrum", "spectrum: need 196608 contiguous", {"spectrum": spectrum[:2]}),
        ("spectrum", "skip: need 3 contiguous", {"skip": torch.randn(4)}),
        ("inner", "spectrum: need 196608 contiguous", {"spectrum": spectrum[:2]}),
        ("inner", "tables: need", {"tables": inner[:-1]}),
        ("out", "work: need the rows of u", {"out": u[:1]}),
        ("out", "out2: need the shape", {"out2": u[:1]}),
        ("out", "matrix: need 512 contiguous", {"matrix": there}),
        ("backward", "g_work: need the shape of v_work", {"g_work": work[:1]}),
        ("backward", "sums: need the shape of v_work but for the rows", {"sums": sums[:, :2].contiguous()}),
        ("backward", "spectrum: need 196608 contiguous", {"wants_g": True}),
        ("backward", "need a cluster of 1 to 8, got 0", {"cluster": 0}),
        ("backward", "tables: need", {"tables": inner[:-1]}),
        ("taps", "dk: need .channels, taps", {"dk": torch.empty(2, 5)}),
        ("taps", "matrix: need 1024 contiguous", {"matrix": real}),
    ):
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch(f"fft_conv_long_{name}", *(calls[name] | wrong).values(), op="fft_conv")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [100, 1000, 1024, 2048, 4093, 4096, 8192, 16384, 33001, 600000])
def test_on_the_device(length, dtype):
    kwargs = {name: t.cuda() for name, t in inputs(5, 7, length, *EVERYTHING, dtype=dtype).items()}
    assert disagreement(kwargs, "cuda") == ""
