"""Faults seeded into the kernels of hyena_filter: each is one edit of their source, and a finding or a wrong result
must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from test_hyena_filter_cuda import exact_phases  # noqa: E402  (after the skips)

from tkpy import conformance, registry  # noqa: E402
from tkpy.ops.hyena_filter import cuda  # noqa: E402
from tkpy.ops.hyena_filter.op import _case  # noqa: E402

OP = registry.get("hyena_filter")
PUBLISH = "  publish_tile();\n  __syncthreads();\n"
FORWARD = [  # of what both share, and of the forward
    Fault("h written while products read it", "      __syncthreads();\n      put(h, d);", "      put(h, d);"),
    Fault("h not published", PUBLISH, "  __syncthreads();\n"),
    Fault("h read before all of it is there", PUBLISH, "  publish_tile();\n"),
    Fault("registers without a fence", "    mma_fence();\n", ""),
    Fault("products not waited for", "    mma_wait(d);\n", ""),
    Fault("products not committed", "    mma_commit();\n", ""),
    Fault("one term of three", "    mma_ABt(d, hi, b_lo);\n", ""),
    Fault("another term of three", "    mma_ABt(d, lo, b_hi);\n", ""),
    Fault("the rest of h not split off", "ptx::to_tf32(x - hi)", "ptx::to_tf32(x)"),
    Fault("the rest of the weights not split off", "to_tf32(value - hi.x[0][e])", "to_tf32(value)"),
    Fault("columns in another order", "return (k & ~7) | (k & 7) >> 1 | (k & 1) << 2;", "return k;"),
    Fault("elements in another order", "from[4] = {0, 2, 1, 3}", "from[4] = {0, 1, 2, 3}"),
    Fault("both warpgroups the same rows", "return 16 * warp_index();", "return 16 * (warp_index() % 4);"),
    Fault("too few warpgroups", "64 * warpgroup_index() >= weights.rows", "72 * warpgroup_index() >= weights.rows"),
    Fault("depth rounded down", "for (int k = -32; k < depth; k += 32)", "for (int k = -32; k + 31 < depth; k += 32)"),
    Fault("the same columns again", "row + first_row(), col + k + 32);", "row + first_row(), col);"),
    Fault("old sums kept", "    zero(d);\n    product(d, h", "    product(d, h"),
    Fault("pi / 2 in one part", "  r = fmaf(n, 4.37113883e-8f, r);\n", ""),
    Fault("sine and cosine swapped", "quadrant & 1 ? cosine : sine", "quadrant & 1 ? sine : cosine"),
    Fault("a sign lost", "quadrant & 2 ? -value : value", "value"),
    Fault("growing window", "    neg(factor, factor);\n", ""),
    Fault("signed decay", "    abs(rate, rate);\n", ""),
    Fault("channels of the first round again", "channel = (n - p.layers - 1) * kWidth;", "channel = 0;"),
    Fault("the wrong hidden layer", "p.hidden + (n - 1ll) * p.width * p.width", "p.hidden + (n - n)"),
    Fault("the wrong bias", "p.hidden_bias + (n - 1ll) * p.width", "p.hidden_bias"),
    Fault("a round less", "(p.channels + kWidth - 1) / kWidth", "p.channels / kWidth"),
]  # fmt: skip
BACKWARD = [
    Fault("the gradient of taps put where products read h",
          "      __syncthreads();\n      put(s.turned, g);", "      put(s.turned, g);"),
    Fault("nobody says that it is done with the product", "  cluster_arrive();\n#pragma unroll 1", "#pragma unroll 1"),
    Fault("parts sent before others are done with the product",
          "    if (half == 0) cluster_wait();\n    send(s, sum, half, team);",
          "    send(s, sum, half, team);\n    if (half == 0) cluster_wait();"),
    Fault("parts added up before they have come", "    send(s, sum, half, team);\n  }\n  cluster_sync();\n",
          "    send(s, sum, half, team);\n  }\n"),
    Fault("halves in one place", "(half * 8 + (rank", "((rank"),
    Fault("parts kept", "ptx::mapa(to, q & team.size - 1)", "ptx::mapa(to, team.rank)"),
    Fault("gradients of the last step only", "= before[i] + sum[i]", "= sum[i]"),
    Fault("gradients added to what was there",
          "inside[i] && !team.fresh()", "inside[i]"),
    Fault("sums of rows of the last step only", "team.fresh() ? x.x[k] : share[i] + x.x[k]", "x.x[k]"),
    Fault("the shares of all CTAs in one place", "1ll * team.rank * (p.layers + 2) * p.width", "0"),
    Fault("the decay's of all CTAs in one place", "1ll * team.rank * p.channels", "0"),
    Fault("a gradient added to before the step before has",
          "    while (team.seen <= team.added) team.seen = ptx::ld_acquire_gpu(progress(p, team, team.step - 1));\n",
          "    ;\n"),
    Fault("a turn too early", "team.seen <= team.added", "team.seen < team.added"),
    Fault("only one thread awaits its turn", "team.step - 1));\n  __syncthreads();\n", "team.step - 1));\n"),
    Fault("a turn ended before all have added", "  ++team.added;\n  __syncthreads();\n", "  ++team.added;\n"),
    Fault("what an earlier step had done", "  team.seen = 0;\n", ""),
    Fault("clusters that count steps by themselves", "atomicAdd(p.progress, 1)", "team.step + 1"),
    Fault("a step's number over what is read", "(&s.turned);\n  cluster_sync();\n", "(&s.turned);\n"),
    Fault("a step's number read before it is there",
          "  cluster_sync();\n  team.step = static_cast", "  team.step = static_cast"),
    Fault("a step's number told to one CTA", "ptx::mapa(ptx::shared_address(number), rank)",
          "ptx::mapa(ptx::shared_address(number), 0)"),
    Fault("lags in another order", "place(turned ? row : lag)", "turned ? place(row) : lag"),
    Fault("outer products without a term", "      mma_ABt(sum, lo, b_hi);\n", ""),
    Fault("outer products not waited for", "      mma_wait(sum);\n", ""),
    Fault("the sines of the layer itself", "recall(p, s, h, n - 1);", "recall(p, s, h, n);"),
    Fault("the frequency's gradient of one layer", "add(dfrequency, dfrequency, sum);", "copy(dfrequency, sum);"),
    Fault("a decay's sign", "decay < 0.0f ? x", "decay < 0.0f ? -x"),
    Fault("times read before all are there",
          "own[Result::per_col::index(k)] = dtime.x[k];\n  __syncthreads();",
          "own[Result::per_col::index(k)] = dtime.x[k];"),
    Fault("the sums of deep layers in one place", "+ n - kKept) * kTile", ") * kTile"),
    Fault("a cluster's CTAs at the same lags", " + team.rank) * kLags", ") * kLags"),
]  # fmt: skip
RUN = (
    "extern __shared__ __align__(1024) unsigned char memory[]; tkpy::hyena_filter::{}(p,"
    " *reinterpret_cast<tkpy::hyena_filter::{}*>(memory){})"
)


def unit(part: str, shared: str, more: str, bounds: str) -> Unit:
    name = f"hyena_filter_{part}"
    entry = Entry(name, name, "tkpy::hyena_filter::Params", RUN.format(part, shared, more), bounds)
    return Unit([f"hyena_filter/{file}" for file in ("params.h", "network.cuh", f"{part}.cu")], [entry])


CASES = {
    "forward": [
        registry.Case("two rounds", _case(70, 3, 72, 2, 140), ""),
        registry.Case("large phases", exact_phases, ""),
    ],
    "backward": [
        registry.Case("three tiles, two rounds", _case(130, 3, 72, 1, 140), ""),
        registry.Case("deep", _case(66, 3, 16, 4, 8), ""),
        registry.Case("five steps", _case(520, 3, 16, 0, 8), ""),
    ],
}


def arrange(monkeypatch, fault):
    """Two clusters of two."""
    monkeypatch.setattr(cuda, "TEAM", 2)
    monkeypatch.setattr(cuda.rows, "multiprocessors", lambda x: 4)


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "hyena_filter",
    {
        "forward": unit("forward", "Turned", ", int(blockIdx.x) * tkpy::hyena_filter::kLags", "256, 2"),
        "backward": unit("backward", "Shared", "", "256, 1"),
    },
    [*FORWARD, *(Fault(fault.what, fault.old, fault.new, "backward") for fault in BACKWARD)],
    calls=lambda unit: CASES[unit],
    wrong=lambda case: first_wrong(conformance.check_case(OP, case, backend="emulator", dtype=torch.float32)),
    right=["rows/norm_backward.cu"],
    arrange=arrange,
).tests()
