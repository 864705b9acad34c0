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
from fft_conv_runs import OP, disagreement, inputs, results  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]
STEMS = ("kernel", "spectrum", "gradient", "long", "long_filter")
EVERYTHING = ("reverse", "skip", "gates")
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
    prefixes = ["fft_conv_spectrum", "fft_conv", "fft_conv_spectrum", "fft_conv", "fft_conv", "fft_conv_gradient"]
    assert ran == [f"{prefix}_{points}" for prefix in prefixes]


@pytest.mark.parametrize(
    "dtype, length, options",
    [(torch.bfloat16, 16385, EVERYTHING), (torch.float16, 32768, ("reverse",)), (torch.bfloat16, 33000, ("gates",))],
)
def test_rows_longer_than_a_cta_holds(ran, dtype, length, options):
    assert disagreement(inputs(2, 2, length, *options, dtype=dtype)) == ""
    inner = 2048 if length <= 32768 else 4096
    ends = {"fft_conv_long_in", "fft_conv_long_filter_out"}
    assert set(ran) == ends | {f"fft_conv_long_{name}_{inner}" for name in ("inner", "filter_values", "filter_sum")}


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
    assert ran[:2] == [f"fft_conv_long_filter_values_{inner}", f"fft_conv_long_inner_{inner}"]


@pytest.mark.parametrize("options", [(), ("skip",), ("pre_gate",), ("post_gate", "skip"), ("reverse", "pre_gate")])
def test_options(built, options):
    assert disagreement(inputs(2, 3, 200, *options)) == ""


@pytest.mark.parametrize("taps, reverse", [(3, 0), (0, 5), (500, 500), (1, 299), (300, 1)])
def test_filters_of_any_length(built, taps, reverse):
    assert disagreement(inputs(2, 2, 300, "reverse", "skip", taps=taps, reverse=reverse)) == ""


@pytest.mark.parametrize("needed", ["u", "k", "k_reverse", "skip", "pre_gate", "post_gate"])
def test_one_gradient_at_a_time(ran, needed):
    """Alone as with all others; only the kernels it needs run."""
    kwargs = inputs(2, 2, 70, *EVERYTHING)
    dy = torch.randn(2, 2, 70).bfloat16()
    want = results(kwargs, "emulator", dy)[f"d{needed}"]
    ran.clear()
    leaf = kwargs[needed].requires_grad_(True)
    y = tkpy.fft_conv(**kwargs, backend="emulator")
    forward = len(ran)
    (got,) = torch.autograd.grad(y, leaf, dy)
    assert torch.equal(got, want)
    summed = needed in ("k", "k_reverse", "skip")  # these need no spectrum; for the others it is kept
    assert ran[forward:] == ["fft_conv_gradient_256" if summed else "fft_conv_256"]


def test_parts_of_the_batch_sum_on_their_own(built, monkeypatch):
    """Shares of unequal size; the same bits every time, whatever the schedule."""
    kwargs, dy = inputs(5, 2, 100, *EVERYTHING), torch.randn(5, 2, 100).bfloat16()
    found = []
    for seed, shares in ((0, 1), (1, 3), (2, 3), (3, 5)):
        on_machine(monkeypatch, built, seed)
        monkeypatch.setattr(cuda, "shares_for", lambda *_, shares=shares: shares)
        assert disagreement(kwargs) == ""
        found.append(results(kwargs, "emulator", dy))
    assert all(torch.equal(found[1][name], found[2][name]) for name in found[1])
    monkeypatch.undo()
    assert (cuda.shares_for(64, 768, 132), cuda.shares_for(8, 64, 132), cuda.shares_for(2, 1, 132)) == (1, 4, 2)


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
    conflict; once each u, the gates and y, u and a gate again for the skip. What else is read are tables and the
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
    rows = 2 * length * 6
    assert rows <= more["global_bytes"] <= rows + 8 * length * {256: 9, 8192: 14}.get(length, 8)
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
    assert disagreement(kwargs, grad=False) == ""


@pytest.mark.parametrize("name", ["k", "k_reverse"])
@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.mul_(2), lambda k: k[0].zero_(), lambda k: k.view(-1)[3:].add_(1), lambda k: k.detach().neg_(),
        lambda k: k.copy_(torch.ones_like(k)), lambda k: setattr(k, "data", k * 3), lambda k: k.resize_(2, 20),
    ],
)  # fmt: skip
def test_a_filter_that_changed_is_transformed_again(ran, name, change):
    kwargs = inputs(1, 2, 40, "reverse", reverse=40)
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
    spectrum, dk = torch.empty(3, 256, 2), torch.empty(1, 3, 100)

    def convolve(u=u, pre=None, out=out, skip=None, spectrum=spectrum, tables=tables):
        return machine.launch(
            "fft_conv", u, pre, None, None, out, None, skip, spectrum, tables, False, op="fft_conv"
        )  # fmt: skip

    def transform(k=k, reverse=None, used=100, used_reverse=0, spectrum=spectrum):
        return machine.launch("fft_conv_spectrum", k, reverse, used, used_reverse, spectrum, tables, op="fft_conv")

    def gradient(dy=u, dk=dk, reverse=None, points=256):
        return machine.launch("fft_conv_gradient", u, None, dy, None, dk, reverse, None, points, tables, op="fft_conv")

    for words, call, wrong in (
        ("u: need three dimensions of bf16 or f16", convolve, {"u": u.float()}),
        ("u: need contiguous samples", convolve, {"u": u.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("pre: need the shape", convolve, {"pre": u[:1]}),
        ("out: need .* the type of u", convolve, {"out": out.half()}),
        ("skip: need 3 contiguous elements of f32", convolve, {"skip": torch.randn(2)}),
        ("tables: need", convolve, {"tables": tables[:-1]}),
        ("need 256, 1024, .* points, got 300", convolve, {"spectrum": torch.empty(3, 300, 2)}),
        ("spectrum: need .channels", convolve, {"spectrum": spectrum[:2]}),
        ("spectrum: need 1536 contiguous", convolve, {"spectrum": torch.empty(3, 256, 3)[..., :2]}),
        ("k: need 300 contiguous elements of f32", transform, {"k": k.double()}),
        ("k: need the taps that count", transform, {"used": 101}),
        ("k_reverse: need the taps that count", transform, {"used_reverse": 1}),
        ("k_reverse: need the taps that count", transform, {"reverse": k[:, :5].contiguous(), "used_reverse": 6}),
        ("dy: need the shape", gradient, {"dy": u[..., :50]}),
        ("dk: need .shares, channels, taps", gradient, {"dk": dk[0]}),
        ("dk_reverse: need .shares", gradient, {"reverse": torch.empty(2, 3, 4)}),
    ):
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert (transform(), convolve(), gradient()) == ("fft_conv_spectrum_256", "fft_conv_256", "fft_conv_gradient_256")


def test_the_launchers_of_long_rows_check_again(built):
    tables = importlib.import_module("tkpy.ops.fft_conv.tables")
    u, work, sums = torch.randn(2, 3, 100).bfloat16(), torch.randn(2, 3, 16, 2, 2048), torch.empty(1, 3, 16, 2, 2048)
    k, spectrum = torch.randn(3, 100), torch.empty(3, 16, 2048, 2)
    inner = tables.tables(2048, u.device, 0.0)
    (real, _), (there, back) = (tables.outer_matrices(16, u.device, real) for real in (True, False))
    calls = {
        "rows": {"u": u, "pre": None, "work": work, "matrix": real},
        "spectrum": {
            "k": k, "k_reverse": None, "used": 100, "used_reverse": 0, "work": sums, "spectrum": spectrum,
            "matrix": there, "tables": inner,
        },
        "gradient": {"v_work": work, "g_work": work, "work": sums, "scratch": None, "tables": inner},
        "taps": {"work": sums, "dk": torch.empty(3, 5), "dk_reverse": torch.empty(3, 0), "matrix": back},
    }  # fmt: skip
    for name, words, wrong in (
        ("rows", "work: need the rows of u", {"work": work[:1]}),
        ("rows", "work: need .rows, channels, outer", {"work": work[0]}),
        ("rows", "an inner size of 2048, 4096 or 16384", {"work": torch.empty(2, 3, 16, 2, 1024)}),
        ("rows", "matrix: need 512 contiguous", {"matrix": there}),
        ("spectrum", "work: need one row", {"work": work}),
        ("spectrum", "k: need .channels, taps., at least those that count", {"used": 101}),
        ("spectrum", "k_reverse: need .channels, taps", {"used_reverse": 1}),
        ("spectrum", "spectrum: need 196608 contiguous", {"spectrum": spectrum[:2]}),
        ("gradient", "g_work: need the shape of v_work", {"g_work": work[:1]}),
        ("gradient", "work: need the shape of v_work but for the rows", {"work": sums[:, :2].contiguous()}),
        ("gradient", "tables: need", {"tables": inner[:-1]}),
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
