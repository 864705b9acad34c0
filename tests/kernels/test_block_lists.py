"""The kernel that builds lists of blocks, in the emulator under all checks: from scores and from tables of blocks,
against lists sorted out by Python; and faults seeded into it, all of which must show."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import disagreement, inputs, on_machine  # noqa: E402  (after the skips)

import tkpy  # noqa: E402
from tkpy.ops.attention.block_mask import BlockMask  # noqa: E402

LENGTHS = [(70, 70), (300, 300), (200, 333), (333, 200), (64, 64 * 45), (128, 4500), (64 * 45, 64), (0, 100), (100, 0)]


@pytest.fixture(scope="module")
def folder(kernel_folder):
    return kernel_folder("kernels/block_lists/kernel.cu")


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


def blocks_of(seq: int, block: int) -> int:
    return -(-seq // block)


def chosen_rows(scores, most, seq_q, seq_k, block, causal):
    """Of every row, the seen blocks, by sorting; of equal scores the first."""
    n_q, n_k = scores.shape[2:]
    seen = torch.zeros(scores.shape, dtype=torch.bool)
    for i, row in enumerate(scores.flatten(0, 2).tolist()):
        q_last = min(i % n_q * block + block, seq_q) - 1 + seq_k - seq_q
        reach = [k for k in range(n_k) if not causal or k * block <= q_last]
        best = sorted(reach, key=lambda k: (-float("inf") if row[k] != row[k] else -row[k], row[k] == row[k], k))[:most]
        seen.flatten(0, 2)[i, best] = True
    return seen


def wrong_lists(mask: BlockMask, seen: torch.Tensor, causal: bool) -> str:
    """Empty if both kinds of lists say exactly what `seen` (a table of blocks) and the diagonal say."""
    seq_q, seq_k, block = mask.seq_q, mask.seq_k, mask.block
    q, k = torch.arange(seq_q).view(-1, 1), torch.arange(seq_k)
    below = (k <= q + seq_k - seq_q) if causal else torch.ones(seq_q, seq_k, dtype=torch.bool)
    big = seen.repeat_interleave(block, 2)[:, :, :seq_q].repeat_interleave(block, 3)[..., :seq_k]
    if not torch.equal(mask.to_dense(), big & below):
        return "by queries"
    swapped = [getattr(mask, f"{name}_t") for name in mask.TENSORS[:5]]
    for name, by_queries, by_keys in (("full", 0, 0), ("partial", 2, 2)):
        found = [
            {(*at, other) for at, count, row in rows(lists) for other in row[:count]}
            for lists in (mask.tensors[by_queries : by_queries + 2], swapped[by_keys : by_keys + 2])
        ]
        if found[0] != {(b, h, o, r) for b, h, r, o in found[1]}:
            return f"by keys, {name}"
        if any(
            row[:count] != sorted(row[:count]) for lists in (mask.tensors, swapped) for _, count, row in rows(lists[:2])
        ):
            return "not ascending"
    full = seen & ~partial_of(mask, seen.shape)
    whole = [
        below[i * block : (i + 1) * block, j * block : (j + 1) * block].all()
        for i, j in torch.ones(seen.shape[2:]).nonzero().tolist()
    ]
    whole = torch.tensor(whole, dtype=torch.bool).view(seen.shape[2:])
    return "" if torch.equal(full, seen & whole) else "full blocks listed as partial"


def rows(lists):
    count, index = lists
    for at in torch.ones(count.shape).nonzero().tolist():
        yield tuple(at), int(count[tuple(at)]), index[tuple(at)].tolist()


def partial_of(mask: BlockMask, shape) -> torch.Tensor:
    table = torch.zeros(shape, dtype=torch.bool)
    for at, count, row in rows(mask.tensors[2:4]):
        table[at][row[:count]] = True
    return table


def wrong(seq_q, seq_k, block, most, causal, kind="normal", seed=0) -> str:
    make = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 2, blocks_of(seq_q, block), blocks_of(seq_k, block), generator=make)
    if kind == "ties":
        scores = (2 * scores).round()
    if kind == "odd":
        scores.view(-1)[::7], scores.view(-1)[1::5], scores.view(-1)[2::9] = float("nan"), -torch.inf, torch.inf
    mask = BlockMask.topk(scores, most, seq_q, seq_k, block, causal=causal, backend="emulator")
    if what := wrong_lists(mask, chosen_rows(scores, most, seq_q, seq_k, block, causal), causal):
        return what
    table = scores > 0.5
    return wrong_lists(BlockMask.from_dense(table, seq_q, seq_k, block, backend="emulator"), table, False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("seq_q, seq_k", LENGTHS)
def test_lists(built, seq_q, seq_k, block, causal):
    assert wrong(seq_q, seq_k, block, 3, causal) == ""


@pytest.mark.parametrize("kind", ["normal", "ties", "odd"])
@pytest.mark.parametrize("most", [0, 1, 7, 33, 1000])
def test_choices(built, most, kind):
    for causal in (False, True):
        assert wrong(300, 64 * 45, 64, most, causal, kind) == ""


def test_the_same_as_eager(built):
    scores = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    ours, eager = (BlockMask.topk(scores, 3, 300, 420, 64, backend=name) for name in ("emulator", "eager"))
    assert torch.equal(ours.to_dense(), eager.to_dense())
    assert ours.sparsity == eager.sparsity
    assert torch.equal(ours.to_flex().to_dense(), eager.to_flex().to_dense())


def test_sizes_follow_from_shapes(built):
    """They do not depend on the scores, so that a CUDA graph may hold the lists; bf16 scores are taken too."""
    shapes = set()
    for seed in range(3):
        scores = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(seed)).bfloat16()
        mask = BlockMask.topk(scores, 3, 300, 420, 64, backend="emulator")
        shapes.add(tuple(tuple(t.shape) for t in mask.tensors))
    assert len(shapes) == 1


def test_refusals(built):
    scores = torch.randn(1, 1, 2, 2)
    with pytest.raises(tkpy.Unsupported, match="needs_gpu"):
        BlockMask.topk(scores, 1, 128, backend="cuda")
    with pytest.raises(ValueError, match="backend"):
        BlockMask.topk(scores, 1, 128, backend="triton")


FAULTS = [
    Fault("ties from the end", "__popc(equal & before) < ties", "__popc(equal & ~before) <= ties"),
    Fault("ties not counted on", "      ties -= min(ties, __popc(equal));\n", ""),
    Fault("NaN below all", "score != score ? 0xffffffffu", "score != score ? 1u"),
    Fault("negative scores reversed", "bits >> 31 ? ~bits : bits | 0x80000000u", "bits | 0x80000000u"),
    Fault("hidden blocks compete", "k < p.k_blocks && kind(p, q, k) != 0 ? rank", "k < p.k_blocks ? rank"),
    Fault("histogram not cleared", "bins[i] = 0;", ";"),
    Fault("counted before all are in", "    __syncwarp();\n    int own = 0;", "    int own = 0;"),
    Fault("the last digit left out", "shift >= 0; shift -= 8", "shift > 0; shift -= 8"),
    Fault("32 blocks a row", "fulls += __popc(full);", "fulls = __popc(full);"),
    Fault("the diagonal at the top left", "offset = p.seq_k - p.seq_q, q_first", "offset = 0, q_first"),
    Fault("one element mask", "q_first >= k_first ? 2 : 3", "2"),
    Fault("mask one short", "- j + 1, 0), 8)", "- j, 0), 8)"),
    Fault("columns counted by one warp", "  __syncthreads();\n  if (!inside)", "  if (!inside)"),
    Fault("columns overwrite each other", "    if (warp == warp_index()) {", "    if (warp == 0) {"),
    Fault("rows of the last warp", "end = min(first + share, p.q_blocks)", "end = first + share"),
]
UNIT = Unit(
    ("block_lists/params.h", "block_lists/kernel.cu"),
    [Entry(f"block_lists_{part}", "block_lists") for part in ("rows", "columns")],
)


def wrong_choice(kind: str) -> str:
    return wrong(64 * 13, 64 * 40 + 7, 64, 5, True, kind) or wrong(600, 600, 64, 3, True, kind)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "block_lists",
    {"": UNIT},
    FAULTS,
    calls=lambda unit: ("normal", "ties", "odd"),
    wrong=wrong_choice,
    seeds=2,
).tests()


@pytest.mark.gpu
def test_a_graph_holds_the_lists_and_the_attention():
    make = torch.Generator("cuda").manual_seed(0)
    scores = torch.randn(1, 4, 16, 16, device="cuda", generator=make)
    q, k, v = (t.cuda() for t in inputs(1, 1024, 1024, 4, 4, 128).values())

    def run():
        return tkpy.attention(q, k, v, block_mask=BlockMask.topk(scores, 4, 1024), causal=True, backend="cuda")

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    scores.copy_(torch.randn(scores.shape, device="cuda", generator=make))
    graph.replay()
    assert torch.equal(out, run())
    mask = BlockMask.topk(scores, 4, 1024, backend="eager")
    assert disagreement({"q": q, "k": k, "v": v, "block_mask": mask, "causal": True}, backend="cuda") == ""
