"""fft_conv's rows that stay on the chip of a cluster's CTAs, in the emulator, under all checks: forward and gradients,
several schedules, parts of the batch; what they read and how often, which rows they are, what launchers refuse."""

import functools
import importlib
from dataclasses import asdict
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import gather, on_machine  # noqa: E402  (after the skips)
from fft_conv_runs import EVERYTHING, disagreement, inputs, results  # noqa: E402

import tkpy  # noqa: E402
from tkpy import machine  # noqa: E402

cuda = importlib.import_module("tkpy.ops.fft_conv.cuda")


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/fft_conv/{stem}.cu") for stem in ("cluster", "cluster_backward")]
    return gather(tmp_path_factory.mktemp("fft_conv_clusters"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    importlib.import_module("tkpy.ops.fft_conv.spectra").forget()
    return folder


@pytest.fixture
def clusters(built, monkeypatch):
    """However few rows there are, they go to clusters; the names of the kernels that run."""
    names, launch = [], machine.launch
    monkeypatch.setattr(cuda, "launch", lambda *args, **more: names.append(launch(*args, **more)))
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(machine, "clusters", lambda *_, op: 1)
    return names


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "dtype, length, options, points",
    [
        (torch.bfloat16, 16385, EVERYTHING, 4096),
        (torch.float16, 24576, ("reverse", "pre_gate"), 4096),
        (torch.float16, 32767, ("post_gate",), 4096),
        (torch.bfloat16, 32768, EVERYTHING, 4096),
        (torch.bfloat16, 32769, ("skip", "pre_gate"), 8192),
        (torch.float16, 49155, EVERYTHING, 8192),
        (torch.bfloat16, 65536, ("reverse",), 8192),
    ],
)
def test_rows_on_clusters(clusters, folder, monkeypatch, dtype, length, options, points, seed):
    """At and around the ends of both classes, rows that begin at 16 bytes and rows that do not, two schedules; every
    sample by itself and the gradients that the same kernel makes. Of spectra that are made on the chip, by a cluster a
    row, and of one that is kept, by one cluster for both rows."""
    keeps = seed == 1
    on_machine(monkeypatch, folder, seed, 1 if keeps else 132)
    monkeypatch.setattr(cuda, "keepable", lambda filters: keeps)
    rows = [name for name in ("u", "pre_gate", "post_gate") if name == "u" or name in options or "gates" in options]
    kwargs = inputs(2, 1, length, *options, dtype=dtype, seed=seed)
    assert disagreement(kwargs, grad=rows) == ""
    assert clusters == [f"fft_conv_cluster_{points}"] * (3 if "post_gate" in rows else 2)


@pytest.mark.parametrize(
    "dtype, sizes, options, seed",
    [
        (torch.bfloat16, (2, 2, 16385), EVERYTHING, 0),
        (torch.float16, (3, 1, 32767), ("reverse", "pre_gate"), 1),
        (torch.bfloat16, (2, 1, 32768), EVERYTHING, 2),
        (torch.bfloat16, (2, 1, 32769), ("skip", "pre_gate"), 1),
        (torch.float16, (2, 1, 49155), EVERYTHING, 2),
        (torch.float16, (1, 2, 65536), ("reverse", "post_gate"), 0),
    ],
    ids=str,
)
def test_all_gradients_of_rows_on_clusters(clusters, folder, monkeypatch, dtype, sizes, options, seed):
    """One launch, whatever there is, of several rows one after another."""
    on_machine(monkeypatch, folder, seed)
    assert disagreement(inputs(*sizes, *options, dtype=dtype, seed=seed)) == ""
    points = 4096 if sizes[2] <= 32768 else 8192
    assert clusters == [f"fft_conv_cluster_{points}", f"fft_conv_cluster_backward_{points}"]


@pytest.mark.parametrize("taps, reverse", [(40, 16700), (16700, 3), (16499, 16499)])
def test_taps_and_channels_of_rows_on_clusters(clusters, taps, reverse):
    """Short and far taps, that begin at 16 bytes and that do not, several channels and batch entries."""
    kwargs = inputs(3, 2, 16500, "reverse", "skip", taps=taps, reverse=reverse)
    assert disagreement(kwargs, grad=("u", "k", "k_reverse", "skip")) == ""
    assert clusters[-1] == "fft_conv_cluster_backward_4096"


@pytest.mark.parametrize("needed", ["k", "k_reverse", "skip", "u skip", "pre_gate k", "post_gate k_reverse"])
def test_some_gradients_of_rows_on_clusters(clusters, needed):
    """Nothing goes back of u, of dy, of both."""
    kwargs = inputs(2, 1, 17001, *EVERYTHING, taps=300)
    assert disagreement(kwargs, grad=needed.split()) == ""
    assert clusters == ["fft_conv_cluster_4096", "fft_conv_cluster_backward_4096"]


@pytest.mark.parametrize("batch, shares", [(3, 2), (2, 3)])
def test_parts_of_the_batch_of_rows_on_clusters(clusters, folder, monkeypatch, batch, shares):
    """Of unequal size, and an empty one; the same bits every time, whatever the schedule."""
    kwargs, dy = inputs(batch, 1, 16400, "reverse", taps=70), torch.randn(batch, 1, 16400).bfloat16()
    monkeypatch.setattr(cuda, "shares_on_clusters", lambda *_: shares)
    found = []
    for seed in (1, 2):
        on_machine(monkeypatch, folder, seed)
        found.append(results(kwargs, "emulator", dy))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize("length", [17000, 17003])
def test_what_lies_outside_rows_on_clusters_is_not_looked_at(clusters, length):
    """NaN past the end of rows, in taps that reach nothing and in another row of the batch; the same bits whatever else
    a batch holds."""
    kwargs = inputs(2, 1, length, "skip", "gates", "reverse", taps=length + 5, reverse=length + 5)
    kwargs["k"][:, length:] = kwargs["k_reverse"][:, length - 1 :] = 0.0
    ones = torch.ones(2, 1, length)
    clean = results(kwargs, "emulator", ones)
    kwargs["k"][:, length:] = kwargs["k_reverse"][:, length - 1 :] = float("nan")
    for name in ("u", "pre_gate", "post_gate"):
        wide = torch.full((2, 1, length + 24), float("nan"), dtype=torch.bfloat16)
        wide[..., :length] = kwargs[name]
        kwargs[name] = wide[..., :length]
    found = results(kwargs, "emulator", ones)
    assert all(torch.equal(found[name], clean[name]) for name in clean)
    kwargs["u"][1, 0, 3] = float("nan")
    found = results(kwargs, "emulator", ones)
    for name in ("y", "du", "dpre_gate", "dpost_gate"):
        assert torch.equal(found[name][0], clean[name][0]), name
    assert found["y"][1].isnan().all()
    assert found["dk"][:, :length].isnan().all()
    assert not found["du"].isnan().any()  # of dy and taps alone


def test_a_nan_among_taps_of_rows_on_clusters_stays_one(clusters):
    """Rounded to 24 bits it would become a zero; the other channel has its own taps."""
    kwargs = inputs(2, 2, 17000, taps=300)
    kwargs["k"][1, 7] = float("nan")
    found = results(kwargs, "emulator", torch.ones(2, 2, 17000))
    for name in ("y", "du"):
        assert found[name][:, 1].isnan().all(), name
        assert found[name][:, 0].isfinite().all(), name


def test_which_rows_go_to_clusters():
    """Those that one holds, where they are enough for a quarter of the machine."""
    found = [
        cuda.factors_on_clusters(torch.empty(batch, channels, length, device="meta"))
        for batch, channels, length in (
            (1, 99, 16384), (1, 5, 16385), (5, 1, 32768), (8, 64, 32769), (2, 3, 65536), (2, 2, 65536), (9, 9, 65537),
        )
    ]  # fmt: skip
    assert found == [None, (8, 4096), (8, 4096), (8, 8192), (8, 8192), None, None]


@pytest.mark.parametrize("length, requested, flops", [(32768, 54, 2304), (65536, 112, 3072)])
def test_what_a_row_on_a_cluster_costs(clusters, monkeypatch, length, requested, flops):
    """One row more: its products; u, the gates and y once each; no bank conflict, nothing through local memory. What
    else is read are tables, out of the caches; a point passes through shared memory as often as in a CTA's own
    transform, once more each way from one CTA to another, and once from the spectrum. The taps are read once, and
    nothing else of the filter passes through memory."""
    compiled = machine.compiled()
    of_one = functools.partial(compiled.Machine.emulator, multiprocessors=1)  # both rows by one cluster
    changed = SimpleNamespace(**{**vars(compiled), "Machine": SimpleNamespace(emulator=of_one)})
    monkeypatch.setattr(machine, "compiled", lambda: changed)
    monkeypatch.setattr(cuda, "keepable", lambda filters: False)
    counts = []
    for batch in (1, 2):
        kwargs = inputs(batch, 1, length, "skip", "gates")
        with torch.no_grad(), machine.counting() as counters:
            tkpy.fft_conv(**kwargs, backend="emulator")
            (found,) = counters()
            counts.append(asdict(machine.total([found])))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["tensor_flops"] == flops * length
    assert more["flops"] <= 1.06 * more["tensor_flops"]
    assert more["bank_conflicts"] == more["local_bytes"] == 0
    assert more["shared_bytes"] == (96 + 6) * length
    assert more["global_bytes"] <= requested * length
    moved = 32 * (found.sectors_read + found.sectors_written)
    assert moved <= 1.04 * (2 * 8 + 4) * length  # two rows and the taps, and tables


def test_how_many_clusters_sum(built, monkeypatch):
    """No more than run at a time, and none without a row."""
    sizes = (8, 1, 4096), (64, 2, 4096), (64, 2, 8192), (5, 8, 4096), (8, 64, 4096), (1, 1, 8192)
    assert [cuda.shares_on_clusters(torch.empty(*of, 1), inner) for *of, inner in sizes] == [8, 16, 8, 3, 1, 1]
    monkeypatch.setattr(machine, "clusters", lambda *_, op: 14)  # a GPU whose GPCs are cut less evenly
    assert [cuda.shares_on_clusters(torch.empty(*of, 1), inner) for *of, inner in sizes] == [8, 13, 7, 3, 1, 1]


@pytest.mark.parametrize("length, flops", [(32768, 4608), (65536, 6144)])
def test_what_all_gradients_of_a_row_on_a_cluster_cost(clusters, monkeypatch, length, flops):
    """One row more: u and dy there and back once each, each tensor once through memory; V and half the sum written
    and read in shared memory besides, and the spectrum read twice; no bank conflict, nothing through local memory."""
    monkeypatch.setattr(cuda, "shares_on_clusters", lambda *_: 1)
    counts, work = [], []
    for batch in (1, 2):
        kwargs = {name: t.requires_grad_(True) for name, t in inputs(batch, 1, length, "skip", "gates").items()}
        y = tkpy.fft_conv(**kwargs, backend="emulator")
        with machine.counting() as counters:
            y.sum().backward()
            name = f"fft_conv_cluster_backward_{length // 8}"
            (found,) = (count for count in counters() if count.kernel == name)
        counts.append(asdict(found.counters.total))
        work.append(32 * (found.sectors_read + found.sectors_written))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert more["tensor_flops"] == flops * length
    assert more["flops"] <= 1.06 * more["tensor_flops"]
    assert more["bank_conflicts"] == more["local_bytes"] == 0
    assert more["shared_bytes"] == (2 * (96 + 6) + 16 + 8) * length
    assert work[1] - work[0] == 7 * 2 * length
    assert work[0] <= 1.04 * (7 * 2 + 4 + 4) * length  # and the taps, their gradient, tables


def test_the_launcher_of_clusters_checks_again(built):
    u, out, spectrum = torch.randn(2, 3, 100).bfloat16(), torch.empty(2, 3, 100).bfloat16(), torch.zeros(3, 8, 4096, 2)
    tables, k = importlib.import_module("tkpy.ops.fft_conv.tables").tables(4096, u.device, 0.0), torch.randn(3, 100)
    no_spectrum = {"spectrum": None, "used": 100}

    def convolve(
        u=u, out=out, pre=None, out2=None, spectrum=spectrum, k=None, skip=None, used=0, points=4096, tables=tables
    ):
        rest = u, pre, None, None, out, out2, spectrum, k, None, skip, used, 0, points, tables, False
        return machine.launch("fft_conv_cluster", *rest, op="fft_conv")

    for words, wrong in (
        ("u: need three dimensions of bf16 or f16", {"u": u.float()}),
        ("pre: need the shape", {"pre": u[:1]}),
        ("out: need .* the type of u", {"out": out.half()}),
        ("out2: need the shape", {"out2": out[:1]}),
        ("spectrum: need .channels, 8, points, 2.", {"spectrum": torch.empty(3, 16, 2048, 2)}),
        ("spectrum: need .channels, 8, points, 2.", {"spectrum": spectrum[:2]}),
        ("spectrum: need .channels, 8, points, 2.", {"spectrum": None}),
        ("spectrum: need 196608 contiguous", {"spectrum": torch.empty(3, 8, 4096, 3)[..., :2]}),
        ("points: need 4096 or 8192", {"points": 16384}),
        ("tables: need", {"tables": tables[:-1]}),
        ("tables: need", {"points": 8192}),
        ("u: need at least one sample", {"u": u[..., :0], "out": out[..., :0]}),
        ("and at most as many as points", {n: torch.empty(1, 3, 32769).half() for n in ("u", "out")}),
        ("k: need the channels and the device of u", {**no_spectrum, "k": k[:2]}),
        ("k: need the taps that count", {**no_spectrum, "k": k, "used": 101}),
        ("skip: need 3 contiguous", {**no_spectrum, "k": k, "skip": torch.randn(4)}),
    ):
        with pytest.raises(tkpy.InternalError, match=words):
            convolve(**wrong)
    assert convolve() == convolve(**no_spectrum, k=k) == "fft_conv_cluster_4096"


def test_the_launcher_of_gradients_on_clusters_checks_again(built):
    u, out, k = torch.randn(2, 3, 100).bfloat16(), torch.empty(2, 3, 100).bfloat16(), torch.randn(3, 100)
    tables = importlib.import_module("tkpy.ops.fft_conv.tables").tables(4096, u.device, 0.0)
    dk, none = torch.empty(1, 3, 100), torch.empty(1, 3, 0)

    def backward(dy=u, du=out, dk=dk, reverse=none, k=k, used=100, points=4096, tables=tables):
        rest = u, None, dy, None, du, None, None, dk, reverse, k, None, None, used, 0, points, tables
        return machine.launch("fft_conv_cluster_backward", *rest, op="fft_conv")

    for words, wrong in (
        ("dy: need the shape", {"dy": u[..., :50]}),
        ("du: need .* the type of u", {"du": out.half()}),
        ("dk: need .groups, channels, taps", {"dk": dk[0]}),
        ("dk_reverse: need .groups", {"reverse": torch.empty(2, 3, 4)}),
        ("k: need at least one channel", {"k": None}),
        ("k: need the channels", {"k": k[:2]}),
        ("k: need the taps that count", {"used": 101}),
        ("tables: need", {"tables": tables[:-1]}),
        ("points: need 4096 or 8192", {"points": 2048}),
    ):
        with pytest.raises(tkpy.InternalError, match=words):
            backward(**wrong)
    assert backward() == backward(du=None, k=None) == "fft_conv_cluster_backward_4096"
