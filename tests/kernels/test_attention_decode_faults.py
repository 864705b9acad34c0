"""Faults seeded into attention_decode: each is one edit of its source, and a finding or a wrong result must give it
away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from decode_runs import disagreement, inputs  # noqa: E402  (after the skips)

WAIT, SHARE = "    ptx::cp_async_wait_group<0>();\n", "    leave_share(merge, o, soft);\n"
COMMIT, HEAD = "    ptx::cp_async_commit_group();\n  }", "return head + (first_row + row)"
ROWS = "if (t.first_row + row >= t.rows || col >= p.dim_v) continue;"
FAULTS = [
    Fault("slots read before they have landed", "      ptx::cp_async_wait_group<Stages - 2>();\n", ""),
    Fault("one slot too early", "cp_async_wait_group<Stages - 2>", "cp_async_wait_group<Stages - 1>"),
    Fault("a slot filled while it is read", "slots[slot == 0 ? Stages - 1 : slot - 1]", "slots[slot]"),
    Fault("a group less", COMMIT, "    if (tile < t.end_tile)" + COMMIT),
    Fault("shares left over slots in use", WAIT + "    __syncthreads();\n", WAIT),
    Fault("shares read before they are there", SHARE + "    __syncthreads();\n", SHARE),
    Fault("rows without a key not cleared", "exists ? 16u : 0u", "16u"),
    Fault("columns past the end", "first >= 0 && col < columns", "first >= 0"),
    Fault("one key too many", "key >= t.end) return", "key > t.end) return"),
    Fault("a page late", "const int n = key / p.page, row", "const int n = (key + 1) / p.page, row"),
    Fault("pages without the table", "if (p.block_table) page", "if (false) page"),
    Fault("tiles of one warp", "ahead += kWarps;", "ahead += 1;"),
    Fault("wrong tile's place", "      place = locate(p, t, ahead);", "      place = locate(p, t, ahead + 1);"),
    Fault("first tile of a warp", "int ahead = t.first_tile + warp_index()", "int ahead = t.first_tile"),
    Fault("top-left alignment", "t.diagonal = t.length - p.seq_q;", "t.diagonal = 0;"),
    Fault("last key hidden", "at <= high[half]", "at < high[half]"),
    Fault("edge tiles not masked, above", "all_high = t.high(p, t.query(p, 0))", "all_high = 1 << 30"),
    Fault("edge tiles not masked, below", "key < all_low ||", "false ||"),
    Fault("start not looked at", "p.starts ? max(p.starts[t.batch], 0) : 0", "0"),
    Fault("old sums not scaled", "total[half] * factor[half] + sum", "total[half] + sum"),
    Fault("old output not scaled", "o[c].x[0][e] *= factor[e / 2 % 2];", "o[c].x[0][e] *= 1.0f;"),
    Fault("minus infinity minus itself", "highest == -fn::infinity ? 0.0f : highest;", "highest;"),
    Fault("shares by their own maximum", "fn::exp2(best - top) * fn::rcp(sum)", "fn::rcp(sum)"),
    Fault("an empty share", "if (higher == -fn::infinity) return;\n", ""),
    Fault("log-sum-exp to base 2", "fn::ln2 * (top", "1.0f * (top"),
    Fault("sink in every split", "p.splits == 1 && p.sinks", "p.sinks"),
    Fault("no sink at all", "  if (p.sinks) join.add(p.sinks[head]", "  if (false) join.add(p.sinks[head]"),
    Fault("sink without its base", "p.sinks[t.head_of(p, row)] * fn::log2e", "p.sinks[t.head_of(p, row)]"),
    Fault("an empty split's output", "if (share == -fn::infinity) continue;", ""),
    Fault("an empty split says nothing", "p.partial_lse[t.split * rows + t.lse_at(p, row)] = -fn::infinity;", ""),
    Fault("shares of all splits in one place", "p.partial_out + t.split * rows * p.dim_v + at", "p.partial_out + at"),
    Fault("last tile of the splits", "(tiles + p.splits - 1) / p.splits", "max(tiles / p.splits, 1)"),
    Fault("heads and queries swapped", HEAD + " % p.group;", HEAD + " / p.seq_q;"),
    Fault("second tile of rows", "% p.row_tiles * kRows;", "% p.row_tiles;"),
    Fault("rows past the last", ROWS, "if (col >= p.dim_v) continue;"),
    Fault("cap without its height", "outer * fn::tanh", "fn::tanh"),
    Fault("wrong key head", "+ t.kv_head * at.head", "+ t.batch * at.head"),
]  # fmt: skip
FILES = [f"attention_decode/{name}" for name in ("params.h", "softmax.cuh", "kernel.cu")]
SPACE = "tkpy::attention_decode"
ENTRIES = [
    Entry(f"attention_{name}", "attention_decode", f"{SPACE}::Params", f"{SPACE}::{run}(p)")
    for name, run in (("decode_bf16_64", "Decode<tk::bf16, 0>::run"), ("combine_bf16", "combine<tk::bf16>"))
]


def calls(unit: str) -> list[dict]:
    sinks = torch.tensor([0.5, 3.0, -1.0, 9.0])
    poisoned = inputs([300, 40], 1, 4, 2, 40, page=64, num_splits=1)  # 300 is in the middle of a page
    table = poisoned["block_table"]
    table[table == 0] = next(page for page in range(1, 20) if page not in table)
    for name in ("k_cache", "v_cache"):
        poisoned[name][table[0, 4], 44:] = poisoned[name][0] = float("nan")
    return [
        inputs([560, 70, 0], 2, 4, 2, 64, page=16, num_splits=1, sinks=sinks, window=(400, None)),
        inputs([700, 40], 3, 12, 2, 64, page=7, num_splits=3, softcap=2.0),
        inputs([520, 33], 1, 4, 2, 64, num_splits=4, sinks=sinks, starts=torch.tensor([140, 3], dtype=torch.int32)),
        inputs([100], 8, 4, 2, 64, num_splits=1),  # the last tile's keys are hidden from the first queries
        poisoned,
    ]


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "attention_decode", {"": Unit(FILES, ENTRIES)}, FAULTS, calls, wrong=disagreement, seeds=4
).tests()
