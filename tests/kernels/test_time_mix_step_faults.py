"""Faults seeded into the kernels of time_mix_step: each is one edit of their source, and a finding or a wrong output or
state must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from time_mix_runs import among_nan, disagreement, inputs  # noqa: E402  (after the skips)

SLICE = "at < rows && row0 + at < p.size && col < p.size;"
MIX = "fmaf(share[of][e], now[e], (1.0f - share[of][e]) * before[e])"
FAULTS = [
    Fault("weights past the head", "first + down < p.size ? eight(", "true ? eight("),
    Fault("channels past the slice", "if (channel >= end) return make_uint4(0, 0, 0, 0);", ""),
    Fault("16 bytes read anywhere", "if (p.whole) return ptx", "if (true) return ptx"),
    Fault("an element past the slice", "channel + 2 * i < end ? bits[2 * i] : 0u", "bits[2 * i]"),
    Fault("the second element past the slice", "channel + 2 * i + 1 < end ? static", "channel + 2 * i < end ? static"),
    Fault("rows of weights exchanged", "{upper.x, lower.x, upper.y, lower.y}", "{lower.x, upper.x, upper.y, lower.y}"),
    Fault(
        "halves of weights exchanged", "{upper.x, lower.x, upper.y, lower.y}", "{upper.x, upper.y, lower.x, lower.y}"
    ),
    Fault("other channels of the mixed rows", "lower.w}, x.z, x.w", "lower.w}, x.x, x.y"),
    Fault("eight rows of the batch", "if (8 * n >= p.batch) continue;", "if (n > 0) continue;"),
    Fault("rows mixed for another projection", "mixed(projection, b,", "mixed(0, b,"),
    Fault("mixes of another projection", "at = 1ll * of * p.channels;", "at = 0;"),
    Fault("mixes in another type", "} else if (p.mix.kind == rows::kF32) {", "} else if (false) {"),
    Fault("mixed the other way", MIX, "fmaf(share[of][e], before[e], (1.0f - share[of][e]) * now[e])"),
    Fault("only the new token", MIX, "share[of][e] * now[e]"),
    Fault("a token before that is not there", "p.last ? eight(", "true ? eight("),
    Fault(
        "mixed rows of the first row", "b = i / pieces; b < p.batch; b += teams", "b = i / pieces; b < 1; b += teams"
    ),
    Fault("mixed over what is still read", "if (from > 0) __syncthreads();", ""),
    Fault("mixed rows not waited for", "mix(from, span);\n      __syncthreads();", "mix(from, span);"),
    Fault("a projection that is not there", "if (projection >= p.projections) continue;", ""),
    Fault("weights of the first part again", "from / 32 + i + j + kAhead", "i + j + kAhead"),
    Fault("weights of another step", "from / 32 + i + j + kAhead", "from / 32 + i + j + kAhead + 1"),
    Fault("sums of the rows above", "[first + 16 * m + e / 2 * 8]", "[first + 16 * m]"),
    Fault("sums of another row", "lane % 4 * 2 + e % 2", "lane % 4 * 2 + e / 2"),
    Fault("sums of one CTA", "mapa(address, static_cast<u32>(r))", "mapa(address, 0)"),
    Fault("a CTA's sums left out", "part[r] = r < p.ranks ?", "part[r] = r < p.ranks - 1 ?"),
    Fault("sums of CTAs that are not there", "part[r] = r < p.ranks ?", "part[r] = true ?"),
    Fault("sums not waited for", "cluster_sync();\n    collect();", "__syncthreads();\n    collect();"),
    Fault("r k v not waited for", "collect();\n    __syncthreads();", "collect();"),
    Fault("r and k of the first rows", "of_all(sums.of[of][b][row0 + n])", "of_all(sums.of[of][b][n])"),
    Fault("decay of the first rows", "p.size + row0 + thread;\n    s.decay", "p.size + thread;\n    s.decay"),
    Fault("decay past the last head", "thread < rows && row0 + thread < p.size;", "true;"),
    Fault("one exponential", "expf(-expf(p.w[at]))", "expf(-p.w[at])"),
    Fault("no bonus", "fmaf(bonus, __uint_as_float(v[j]), y[j])", "y[j]"),
    Fault("the output of a decayed state", "fmaf(r, state.x[j], fmaf", "fmaf(r, decay * state.x[j], fmaf"),
    Fault("no decay", "fmaf(decay, state.x[j], k", "fmaf(1.0f, state.x[j], k"),
    Fault("states of the first row", "(1ll * (i / passes) * p.heads + head)", "(1ll * head)"),
    Fault("states of other CTAs", SLICE, "row0 + at < p.size && col < p.size;"),
    Fault("states past the rows", SLICE, "at < rows && col < p.size;"),
    Fault("states past the columns", SLICE, "at < rows && row0 + at < p.size;"),
    Fault("a state that is not there", "if (!p.initial || !inside(i)) return;", "if (!inside(i)) return;"),
    Fault("16 bytes of a state read anywhere", "if (p.whole_states) {\n      const", "if (true) {\n      const"),
    Fault("16 bytes of a state written anywhere", "if (p.whole_states) {\n      ptx", "if (true) {\n      ptx"),
    Fault("a tail read", "if (col + j < p.size) state.x[j] = from[j]", "state.x[j] = from[j]"),
    Fault("a tail written", "if (col + j < p.size) to[j] = state.x[j]", "to[j] = state.x[j]"),
    Fault("states asked for twice", "fetch(under_way[j], i + j + kStates)", "fetch(under_way[j], i + j)"),
    Fault("y of one pass", "% passes == passes - 1) share", "% passes == 0) share"),
    Fault("y of the row before", "each : y) each = 0.0f", "each : y) each += 0.0f"),
    Fault("a step of the sum", "int step = kQuads; step < 32", "int step = kQuads; step < 16"),
    Fault("shares of y not waited for", "way);\n    __syncthreads();\n    join", "way);\n    join"),
    Fault("a warp's share", "for (int w = 0; w < kWarps; ++w)", "for (int w = 0; w < kWarps - 1; ++w)"),
    Fault("y not waited for", "join_warps();\n    cluster_sync();", "join_warps();\n    __syncthreads();"),
    Fault("gone while others read", "finish(b);\n    cluster_sync();", "finish(b);"),
    Fault("rows of the batch left out", "b += kWarps * p.ranks", "b += p.batch"),
    Fault("the mean of the padding", "warp_sum(sum) / static_cast<float>(p.size)", "warp_sum(sum) / W"),
    Fault("the variance of the padding", "lane + 32 * e < p.size ? y[e] - mean : 0.0f", "y[e] - mean"),
    Fault("a norm without its mean", "lane + 32 * e < p.size ? y[e] - mean", "lane + 32 * e < p.size ? y[e]"),
    Fault("no eps", " + p.eps)", ")"),
    Fault("a linear gate", "fn::silu(of_all(", "(of_all("),
    Fault("a gate that is not there", "p.projections == kProjections ?", "true ?"),
    Fault("no gate", "p.projections == kProjections ?", "false ?"),
    Fault("no bias", "weight[e], bias[e])", "weight[e], 0.0f)"),
    Fault("no weight", "weight[e], bias[e])", "1.0f, bias[e])"),
    Fault("parameters of the first head", "1ll * head * p.size * (", "0ll * ("),
    Fault("outputs past the last channel", "      if (lane + 32 * e < p.size)\n        write", "      write"),
]


def calls(kernel: str) -> list[dict]:
    """With six multiprocessors: clusters of 3, of 6 and of one CTA; rows that are whole and odd; nothing given; slices
    that shared memory takes in two parts."""
    odd = among_nan(inputs(3, 139, 1, 45), 1)
    shifted = inputs(9, 200, 2, 52)
    shifted["initial_state"] += 4.0  # a mean that is not 0
    return [
        among_nan(shifted),
        inputs(2, 96, 2, 60, without=("last", "gate", "initial_state"), eps=0.5),
        odd | {name: odd[name].float() for name in ("mix", "weight")},
        inputs(16, 1300, 6, 36, eps=2.0),
    ]


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "time_mix_step",
    {
        "time_mix_step": Unit(
            ("time_mix_step/params.h", "time_mix_step/kernel.cu"),
            [
                Entry(
                    "time_mix_step_bf16_64",
                    "time_mix_step",
                    "tkpy::time_mix_step::Params",
                    "tkpy::time_mix_step::time_mix_step<tk::bf16, 64>(p)",
                    "256, 1",
                ),
            ],
            given=("rows/params.h", "rows/rows.cuh"),
        )
    },
    FAULTS,
    calls,
    wrong=disagreement,
    right=["time_mix_step/kernel.cu"],
    multiprocessors=6,
).tests()
