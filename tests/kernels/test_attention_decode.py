"""attention_decode's kernels in the emulator, under all checks: every option, head dimension and page size, splits with
and without keys, several schedules; what they read; what they refuse."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import on_machine  # noqa: E402  (after the skips)
from decode_runs import OP, disagreement, inputs  # noqa: E402

import tkpy  # noqa: E402
from tkpy import conformance, machine  # noqa: E402

CASES = [case for case in OP.cases if not case.bench]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/attention_decode/kernel.cu")


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_of_the_op(built, case, splits, dtype):
    split = type(case)(case.name, lambda m: {**case.make(m), "num_splits": splits}, case.why)
    with tkpy.record_dispatches() as log:
        results = list(conformance.check_case(OP, split, backend="emulator", dtype=dtype, grad=False))
    for result in results:
        assert result.comparison, str(result)
    assert (log[0].op, log[0].backend) == ("attention_decode", "emulator")


@pytest.mark.parametrize("d, dv", [(n, n) for n in (8, *range(32, 257, 32))] + [(192, 128), (40, 72), (136, 24)])
@pytest.mark.parametrize("splits", [1, 2])
def test_head_dimensions(built, d, dv, splits):
    assert disagreement(inputs([150, 37], 3, 4, 2, d, dv, page=16, causal=True, num_splits=splits)) == ""


@pytest.mark.parametrize("d, kernel", [(64, "64"), (96, "128"), (128, "128"), (192, "192x128"), (256, "256")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_that_ran(built, monkeypatch, d, kernel, dtype):
    ran, launch = [], machine.launch
    module = OP.module("cuda")
    monkeypatch.setattr(module, "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    assert disagreement(inputs([9], 1, 2, 2, d, 128 if d == 192 else d, dtype=dtype)) == ""
    assert ran == [f"attention_decode_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_{kernel}"]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name, at", [("q", (1, 2, 1)), ("k_cache", (1, 1, 0)), ("v_cache", (1, 1, 0))])
def test_nan_stays_where_it_belongs(built, name, at, splits):
    """A query that is NaN is not one that saw no key: its result is NaN, its log-sum-exp too; no other's is."""
    kwargs = inputs([150, 137], 3, 4, 2, 64, num_splits=splits)
    kwargs[name][at] = float("nan")
    for backend in ("emulator", "eager", "reference"):
        out, lse = tkpy.attention_decode(**kwargs, return_lse=True, backend=backend)
        wrong = torch.zeros(2, 3, 4, dtype=torch.bool)  # of sequence, query and head
        wrong[1, 2, 1] |= name == "q"
        wrong[1, :, :2] |= name != "q"
        assert torch.equal(out.isnan().all(-1), wrong), backend
        assert torch.equal(out.isnan().any(-1), wrong), backend
        assert torch.equal(lse.mT.isnan(), wrong & (name != "v_cache")), backend


OPTIONS = {
    "full": {"causal": False},
    "causal": {},
    "window": {"causal": False, "window": (150, 2)},
    "together": {"window": (300, None), "softcap": 3.0, "scale": 0.4, "sinks": torch.tensor([0.5, 3.0, -1.0, 9.0])},
    "starts": {"starts": torch.tensor([0, 130, 700], dtype=torch.int32)},
    "mapped": {"kv_head_map": torch.tensor([1, 1, 0, 1], dtype=torch.int32)},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("d, page, splits", [(64, 64, 1), (128, 16, 3), (256, 7, 2), (64, 1, 5)])
def test_rings_splits_and_schedules(folder, monkeypatch, d, page, splits, options, seed):
    """More tiles than slots, shares of several warps and splits, lengths from nothing to all."""
    on_machine(monkeypatch, folder, seed)
    kwargs = inputs([701, 130, 0], 2, 4, 2, d, page=page, seed=seed, num_splits=splits, **OPTIONS[options])
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize(
    "seq_q, heads, kv_heads", [(1, 16, 1), (1, 17, 1), (5, 4, 1), (33, 2, 2), (16, 8, 4), (40, 1, 1)]
)
@pytest.mark.parametrize("splits", [1, 3])
def test_rows_of_a_key_head(built, seq_q, heads, kv_heads, splits):
    """Heads and queries fill one tile of 16 rows, a part of it, or several."""
    assert disagreement(inputs([90, 20], seq_q, heads, kv_heads, 64, page=16, num_splits=splits)) == ""


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("page", [None, 8])
def test_what_lies_outside_is_not_looked_at(built, page, splits):
    """Rows before a start, after a length, and unused pages hold NaN; the table holds nonsense past the length."""
    kwargs = inputs([70, 33], 2, 4, 2, 64, page=page, num_splits=splits, starts=torch.tensor([3, 9], dtype=torch.int32))
    clean = {**kwargs, "k_cache": kwargs["k_cache"].clone(), "v_cache": kwargs["v_cache"].clone()}
    seen = torch.zeros(kwargs["k_cache"].shape[:2], dtype=torch.bool)
    for b, (start, length) in enumerate(((3, 70), (9, 33))):
        for j in range(start, length):
            seen[(b, j) if page is None else (int(kwargs["block_table"][b, j // page]), j % page)] = True
    for name in ("k_cache", "v_cache"):
        kwargs[name][~seen] = float("nan")
    if page:
        kwargs["block_table"][1, 5:] = 2**31 - 1
    with torch.no_grad():
        got, want = (tkpy.attention_decode(**k, backend="emulator") for k in (kwargs, clean))
    assert got.isfinite().all()
    assert torch.equal(got, want)
    assert disagreement(kwargs) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0}, {"scale": -0.7}, {"scale": 30.0}, {"softcap": 1e6}, {"softcap": 1e-3}, {"scale": 1e-42},
        {"sinks": torch.tensor([-torch.inf, 300.0])}, {"sinks": torch.tensor([-300.0, 0.0]), "scale": 20.0},
        {"window": (2**40, 2**40), "causal": False}, {"window": (0, 0)},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("splits", [1, 3])
def test_extremes(built, options, splits):
    assert disagreement(inputs([133, 40], 3, 2, 2, 64, num_splits=splits, **options)) == ""


def test_views_go_in_as_they_are(built, monkeypatch):
    """Caches with heads before rows, and slices of a fused projection; what 16-byte copies cannot take is copied."""
    given, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *a, **k: (given.append(a[1:4]), launch(*a, **k)))
    kwargs = inputs([33, 20], 1, 4, 2, 64)
    kwargs["k_cache"] = kwargs["k_cache"].transpose(1, 2).contiguous().transpose(1, 2)
    kwargs["q"] = torch.randn(2, 1, 8, 64).bfloat16()[:, :, :4]
    assert disagreement(kwargs) == ""
    assert [t.data_ptr() for t in given[-1]] == [kwargs[n].data_ptr() for n in ("q", "k_cache", "v_cache")]
    kwargs["v_cache"] = torch.randn(2, 33, 2, 65).bfloat16()[..., :64]
    assert disagreement(kwargs) == ""
    assert given[-1][2].data_ptr() != kwargs["v_cache"].data_ptr()


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("splits", [1, 4])
def test_what_a_key_costs(folder, monkeypatch, d, splits):
    """Twice the keys: their bytes once more for all heads (and their pages' numbers, 1 %), products of 16 rows (and
    their softmax, 10 %), and no bank conflict into and out of shared memory: 4 passes for 512 bytes."""
    on_machine(monkeypatch, folder)
    counts = []
    for keys in (2048, 4096):
        kwargs = inputs([keys], 1, 8, 1, d, page=64, num_splits=splits)
        with torch.no_grad(), machine.counting() as counters:
            tkpy.attention_decode(**kwargs, backend="emulator")
            counts.append(asdict(machine.total(counters())))
    more = {name: counts[1][name] - counts[0][name] for name in counts[0]}
    assert 1.0 <= more["global_bytes"] / (2 * 2 * 2048 * d) <= 1.02
    assert counts[0]["global_bytes"] <= (1.05 + 0.12 * (splits - 1)) * 2 * 2 * 2048 * d  # shares go out and come back
    assert 1.0 <= more["flops"] / (2 * 16 * 2048 * 2 * d) <= 1.1
    assert 3.9 <= more["shared_wavefronts"] / more["shared_requests"] <= 4.02


def test_the_number_of_splits_fills_the_gpu():
    splits_for = OP.module("cuda").splits_for
    assert splits_for(132, 32768, 128, 132) == 1
    assert splits_for(2000, 32768, 128, 132) in range(1, 4)
    assert 120 <= 8 * splits_for(8, 131072, 128, 132) <= 132
    assert splits_for(1, 100, 128, 132) == 1
    assert splits_for(1, 0, 128, 132) == 1
    assert splits_for(1, 2**20, 64, 132) == 128


def test_flash_attn_with_kvcache_comes_here(built):
    kwargs = inputs([40, 12], 1, 4, 2, 64, page=8)
    caches, new = [kwargs["k_cache"], kwargs["v_cache"]], [torch.randn(2, 1, 2, 64).bfloat16() for _ in "kv"]
    lengths = kwargs["seqlens"] - 1
    copies = [c.clone() for c in caches]
    with tkpy.record_dispatches() as log:
        out = tkpy.flash_attn_with_kvcache(kwargs["q"], *caches, *new, cache_seqlens=lengths,
                                           block_table=kwargs["block_table"], backend="emulator")  # fmt: skip
    assert [(d.op, d.backend) for d in log] == [("attention_decode", "emulator")]
    want = tkpy.flash_attn_with_kvcache(kwargs["q"], *copies, *new, cache_seqlens=lengths,
                                        block_table=kwargs["block_table"], backend="eager")  # fmt: skip
    assert torch.equal(caches[0], copies[0])
    assert tkpy.numerics.compare(out, want, tkpy.numerics.TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize(
    "kwargs, code",
    [
        (inputs([3], 1, 1, 1, 64, dtype=torch.float32), "dtype"),
        (inputs([3], 1, 1, 1, 60), "head_dim"),
        (inputs([3], 1, 1, 1, 264), "head_dim"),
        (inputs([3], 1, 1, 1, 64, 4), "head_dim"),
        (inputs([3], 1, 1, 1, 64, num_splits=2000), "num_splits"),
    ],
    ids=["dtype", "width", "wide", "narrow", "splits"],
)
def test_refusals_are_data(built, kwargs, code):
    explained = tkpy.explain("attention_decode", **kwargs).refusals
    assert [r.code for r in explained["emulator"]] == [code]
    assert explained["triton"][0].code == "needs_gpu"
    with pytest.raises(tkpy.Unsupported, match=code):
        tkpy.attention_decode(**kwargs, backend="emulator")


def test_there_is_no_gradient(built):
    kwargs = inputs([3], 1, 1, 1, 64)
    kwargs["q"].requires_grad_(True)
    with pytest.raises(tkpy.Unsupported, match="no_backward"):
        tkpy.attention_decode(**kwargs, backend="emulator")


def test_the_launcher_checks_again(built):
    q, k, v = torch.randn(2, 1, 4, 64).bfloat16(), *(torch.randn(6, 16, 2, 64).bfloat16() for _ in "kv")
    out, lse, lengths = torch.empty_like(q), torch.empty(2, 4, 1), torch.tensor([5, 20], dtype=torch.int32)
    table = torch.arange(6, dtype=torch.int32).view(2, 3)
    parts = [torch.empty(3, *t.shape) for t in (out, lse)]

    def call(q=q, k=k, v=v, out=out, lse=lse, lengths=lengths, parts=(None, None), table=table):
        rest = [None, None, None, 0.1, -1, -1, 0.0]
        tensors = (q, k, v, out, lse, lengths, *parts, table)
        return machine.launch("attention_decode", *tensors, *rest, op="attention_decode")

    for words, wrong in {
        "q: need bf16 or f16": {"q": q.float()},
        "k_cache: need the columns of q": {"k": k[..., :32].contiguous()},
        "v_cache: need the rows of k_cache": {"v": v[:, :4].contiguous()},
        "out: need the rows of q": {"out": out[:1].contiguous()},
        "lse: need 8 contiguous elements of f32": {"lse": lse[:, :2].contiguous()},
        "q: need columns contiguous": {"q": q.transpose(2, 3).contiguous().transpose(2, 3)},
        "seqlens: need 2 contiguous elements of i32": {"lengths": lengths.long()},
        "block_table: need a row for each": {"table": table.view(3, 2)},
        "k_cache: need a row for each sequence": {"table": None},
        "partial_lse: need as many splits": {"parts": (parts[0], None)},
        "partial_lse: need 24 contiguous": {"parts": (parts[0], parts[1][:2])},
    }.items():
        with pytest.raises(tkpy.InternalError, match=words):
            call(**wrong)
    assert call() == call(parts=parts) == "attention_decode_bf16_64"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [0, 1, 7])
@pytest.mark.parametrize("d, dv", [(64, 64), (128, 128), (192, 128), (256, 256)])
def test_on_the_device(d, dv, splits, dtype):
    kwargs = inputs([4001, 1, 2500], 2, 8, 2, d, dv, page=16, dtype=dtype, window=(3000, None), num_splits=splits)
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    assert disagreement(moved, "cuda") == ""
