"""Faults seeded into fft_conv's kernels: each is one edit of their sources, and a finding or a wrong result must give
it away on a few small calls and schedules. The faulty kernel works beside the right ones of the other modules."""

import importlib

import pytest
from seeded_faults import Entry, Fault, Suite, Unit

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from fft_conv_runs import disagreement, inputs  # noqa: E402  (after the skips)

POINTS = 2048  # three factors, of which the second and the third differ: all barriers count
#: The module and the name of a kernel, its parameters, how it is entered.
KERNELS = {
    "convolution": ("fft_conv", f"fft_conv_{POINTS}", "ConvParams", "Convolution<2>(memory, p.tables).run(p)"),
    "spectrum": ("fft_conv_spectrum", f"fft_conv_spectrum_{POINTS}", "SpectrumParams", "spectrum<2>(p, memory)"),
    "backward": ("fft_conv_backward", f"fft_conv_backward_{POINTS}", "BackwardParams", "backward<2>(p, memory)"),
    "in": ("fft_conv_long", "fft_conv_long_in", "LongParams", "long_in(p, memory)"),
    "inner": ("fft_conv_long", f"fft_conv_long_inner_{POINTS}", "LongParams", "long_inner<2>(p, memory)"),
    "out": ("fft_conv_long", "fft_conv_long_out", "LongParams", "long_out(p, memory)"),
    "taps in": ("fft_conv_long_filter", "fft_conv_long_filter_in", "LongFilterParams", "filter_in(p, memory)"),
    "taps' values": (
        "fft_conv_long_filter",
        f"fft_conv_long_filter_values_{POINTS}",
        "LongFilterParams",
        "filter_values<2>(p, memory)",
    ),
    "long backward": (
        "fft_conv_long_backward",
        f"fft_conv_long_backward_{POINTS}",
        "LongBackwardParams",
        "long_backward<2>(p, memory)",
    ),
    "cluster": ("fft_conv_cluster", "fft_conv_cluster_4096", "ClusterParams", "cluster_rows<3>(p, memory)"),
    "cluster backward": (
        "fft_conv_cluster_backward",
        "fft_conv_cluster_backward_4096",
        "BackwardParams",
        "cluster_backward<3>(p, memory)",
    ),
    "taps out": ("fft_conv_long_filter", "fft_conv_long_filter_out", "LongFilterParams", "filter_out(p, memory)"),
}
MODULES = ("kernel", "spectrum", "backward", "cluster", "cluster_backward", "long", "long_filter", "long_backward")
HEADERS = [f"{name}.cuh" for name in ("transform", "filter", "rows", "outer", "cluster", "backward")]
FILES = ("params.h", *HEADERS, *(f"{name}.cu" for name in MODULES))
SHARES = {1: (1, 1), 2: (2, 2), 3: (4, 2), 4: (3, 3), 5: (4, 4)}  # and the cluster, by the batch
LONG = 30001  # samples of the rows whose kernels are shown by what comes out alone


def fault(what: str, old: str, new: str, kernel: str = "convolution") -> Fault:
    return Fault(what, old, new, kernel)


SYNC, MEET = "    __syncthreads();\n", "      between_second_and_third();\n"
TO, FROM, THIRD = "TK_DEVICE void to_values() const {\n", "      second_back();\n    }\n", "if constexpr (N2 > 1) {\n"
STRIPS = "s < columns / 2; s += Warps) {\n      const Strip strip = outer_strip(s);\n      fill"
CONJUGATE = "const float2 p = times_conj({x.x, x.y}, {a.x, a.y}), q = times_conj({x.z, x.w}, {a.z, a.w});"
ADD = "make_float4(s.x + x.x, s.y + x.y, s.z + x.z, s.w + x.w)"
PUSH = "        const u32 there = ptx::mapa(Base::memory, static_cast<u32>(rank - step));\n"
PUT, IMAGINARY = "    strip.put(0, 1, i / 8, i % 8, x);\n  }\n", "    strip.put(1, 3, i / 8, i % 8, im);\n  }\n"
WORK = "  get_work(p, t, strip);\n"
FAULTS = [
    # The passes
    fault("no barrier before the second pass", TO + SYNC, TO),
    fault("no barrier before the third pass", "      second();\n" + MEET, "      second();\n"),
    fault("no barrier before the way back", THIRD + MEET, THIRD),
    fault("no barrier before the last pass", FROM + SYNC, FROM),
    fault("a barrier of a warp for all", "if constexpr (N2 == N3)", "if constexpr (N2 > 1)"),
    fault(
        "samples read before they are there",
        "strip.eight_rows(), x);\n        }\n      __syncwarp();\n",
        "strip.eight_rows(), x);\n        }\n",
    ),
    fault(
        "columns overwritten while they are read", "      }\n    }\n    __syncwarp();\n  }\n", "      }\n    }\n  }\n"
    ),
    fault("upper terms of the matrix only", "if (which == 0) ptx::mma", "if (false) ptx::mma"),
    fault("upper terms of the data only", "if (which == 1) ptx::mma", "if (false) ptx::mma"),
    fault(
        "lower terms of what they are not",
        "low = ptx::pack<bf16>(x - ptx::low<bf16>(high), y",
        "low = ptx::pack<bf16>(x - ptx::high<bf16>(high), y",
    ),
    fault(
        "the way back with the way there's signs",
        "{{high.x, minus(high.y), minus(high.z), high.w}",
        "{{high.x, high.y, high.z, high.w}",
    ),
    fault("third factor not conjugated on the way back", "if constexpr (Back) re.y", "if constexpr (false) re.y"),
    fault(
        "twiddle not conjugated on the way back",
        "const float2 x = times_conj({r0, i0}, {w.x, w.y})",
        "const float2 x = times({r0, i0}, {w.x, w.y})",
    ),
    fault("coarse twiddle left out", "          z[0] = times(z[0], coarse);\n", ""),
    fault(
        "fine twiddle of the next row",
        "(8 * m + lane_index() / 4) * N3 + 8 * b",
        "(8 * m + lane_index() / 4 + 1) * N3 + 8 * b",
    ),
    fault(
        "coarse twiddle of another column",
        "const u32 n2 = strip.first[u] / chunks;",
        "const u32 n2 = strip.first[u] / (2 * chunks);",
    ),
    fault("imaginary parts for real ones", "return (place(lane / 16,", "return (place(0,"),
    fault("every step of the same rows", "(Complex ? k : 2 * k) * strip.eight_rows()", "0 * strip.eight_rows()"),
    fault("terms exchanged", "^ 16 * b) + 4 * M * term", "^ 16 * b) + 4 * M * (term ^ 1)"),
    fault("columns of one chunk", "unit)) ^ 16 * b)", "unit)))"),
    fault("chunks of a strip over each other", "permuted(left) ^ permuted(to_right)", "permuted(left)"),
    fault("rows of a strip over each other", "+ m * strip.eight_rows(), words);", ", words);"),
    fault("strips of one row", "{2 * s / chunks * columns + 2 * s % chunks,", "{2 * s % columns,"),
    fault("columns of a neighbour", "const int t = lane % 4, n1 = 16 * m", "const int t = lane % 4 ^ 1, n1 = 16 * m"),
    fault("a strip left out", STRIPS, STRIPS.replace("/ 2;", "/ 2 - 1;")),
    # Rows
    fault(
        "samples past the end",
        "if (vectors && n + 8 <= length) return",
        "if (vectors && n < length) return",
    ),
    fault("a sample past the end", "const u32 low = n + 2 * i < length", "const u32 low = n + 2 * i <= length"),
    fault("vectors of rows that do not begin at one", "vectors(rows.vectors != 0)", "vectors(true)"),
    fault("written past the end", "if (n + i < length) data[n + i] =", "if (n + i <= length) data[n + i] ="),
    fault("rows of one batch entry", "+ batch * rows.batch +", "+"),
    fault("bf16 taken for fp16", "half(is_half)", "half(false)"),
    # The convolution
    fault("spectrum of another channel", "static_cast<long long>(channel) * (M / 2)", "0LL * (M / 2)"),
    fault(
        "spectrum of another unit",
        "__ldg(spectrum + Transform<Index>::value_at(unit,",
        "__ldg(spectrum + Transform<Index>::value_at(0,",
    ),
    fault("the adjoint by the same spectrum", "conjugate ? -1.0f : 1.0f", "1.0f"),
    fault("both outputs through one gate", "row(p.out2), row(p.post2)", "row(p.out2), row(p.post)"),
    # The spectrum
    fault(
        "not divided by the number of points",
        "constexpr float scale = 1.0f / F::M;",
        "constexpr float scale = 1.0f;",
        "spectrum",
    ),
    fault("taps that reach nothing", "n + i < p.used ?", "n + i < p.taps ?", "spectrum"),
    fault("lag of a tap behind", "const int j = F::M - (n + i);", "const int j = F::M - (n + i) + 1;", "spectrum"),
    fault("reversed taps out of reach", "j <= p.used_reverse ?", "j <= p.taps_reverse ?", "spectrum"),
    fault("skip left out", "if (i == 0 && n == 0 && p.skip)", "if (false)", "spectrum"),
    fault("skip of one channel", "x[i] += p.skip[channel]", "x[i] += p.skip[0]", "spectrum"),
    fault("skip at every chunk", "if (i == 0 && n == 0 && p.skip)", "if (i == 0 && p.skip)", "spectrum"),
    fault("values of another unit", "out[F::value_at(unit, b, half)]", "out[F::value_at(i, b, half)]", "spectrum"),
    # The backward
    fault("the next row before this one is read", "leave() const { __syncthreads(); }", "leave() const {}", "backward"),
    fault("back over what is still read", "    __syncthreads();  // all has been read", "    // all", "backward"),
    fault(
        "v correlated with g",
        CONJUGATE,
        CONJUGATE.replace("x.", "t.").replace("a.", "x.").replace("t.", "a."),
        "backward",
    ),
    fault("the last row only", "s.x + p.x, s.y + p.y, s.z + q.x, s.w + q.y", "p.x, p.y, q.x, q.y", "backward"),
    fault("sums that do not begin at zero", "make_float4(0.0f, 0.0f,", "make_float4(0.0f, 1.0f,", "backward"),
    fault("values kept where the row is", "v{Base::memory + behind,", "v{Base::memory,", "backward"),
    fault("values of v kept for every unit", "v.set(unit, b, half, x)", "v.set(0, b, half, x)", "backward"),
    fault("a share beyond the batch", "end = min(begin + each, rows)", "end = begin + each", "backward"),
    fault("shares of the wrong size", "begin = min(share * each, rows)", "begin = min(share, rows)", "backward"),
    fault("the share of another cluster", "slot / channels * cluster + rank", "rank", "backward"),
    fault("channels side by side", "channel = slot % channels", "channel = slot / channels", "backward"),
    fault("dy without its gate", "row(g ? p.post : p.pre, batch)}", "row(p.pre, batch)}", "backward"),
    fault("gradients by the same taps", "g ? -1.0f : 1.0f", "1.0f", "backward"),
    fault("the convolution by the adjoint", "g ? -1.0f : 1.0f", "-1.0f", "backward"),
    fault("taps of one channel", "static_cast<long long>(channel) * (Transform<Index>::M / 2)", "0LL", "backward"),
    fault("the wrong one wanted", "g ? p.du.data || p.dpre.data", "!g ? p.du.data || p.dpre.data", "backward"),
    fault("gradient of v past its gate", "gate = row(g ? p.pre : p.dy, batch)", "gate = row(p.dy, batch)", "backward"),
    fault("gradient of the gate by the gate", "gate2 = row(p.u, batch)", "gate2 = row(p.pre, batch)", "backward"),
    fault("gradients of one batch entry", "row(g ? p.du : p.dpost, batch)", "row(g ? p.du : p.dpost, 0)", "backward"),
    fault("lag of a tap behind, back", "back = B::M - lag;", "back = B::M - lag - 1;", "backward"),
    fault("one tap too many", "if (lag < p.used)", "if (lag <= p.used)", "backward"),
    fault("real for imaginary parts", "+ back - 1] = z[e].y;", "+ back - 1] = z[e].x;", "backward"),
    fault("sums not divided", "constexpr float scale = 1.0f / B::M;", "constexpr float scale = 1.0f;", "backward"),
    fault(
        "pushed while the last row is read",
        "      cluster_sync();\n      if (gives) {",
        "      if (gives) {",
        "backward",
    ),
    fault("taken before it is pushed", "      cluster_sync();\n      if (takes)", "      if (takes)", "backward"),
    fault("pushed to itself", PUSH, PUSH.replace("rank - step", "rank"), "backward"),
    fault("neighbours only", "step < cluster; step *= 2", "step < 2; step *= 2", "backward"),
    fault("taken from what is not there", " && rank + step < cluster;", ";", "backward"),
    fault("the last pushed only", ADD, "x", "backward"),
    fault("every CTA's sums to memory", "return rank == 0;", "return true;", "backward"),
    # Long rows
    fault("strip read before it is there", PUT + SYNC[2:], PUT, "in"),
    fault("values read before they are there", WORK + SYNC[2:] + "  const Row", WORK + "  const Row", "out"),
    fault("upper terms for lower ones", "plane = Complex ? lane / 8 : lane / 16;", "plane = 0;", "in"),
    fault("whole frequencies", "column * (4 * j0 + 1)", "column * 4 * j0", "in"),
    fault("factor of a neighbour's column", "outer_twiddle(p, column + 1, j0)", "outer_twiddle(p, column, j0)", "in"),
    fault("imaginary parts left out", "to + p.inner) = make_float2(x.y, y.y)", "to) = make_float2(x.y, y.y)", "in"),
    fault("samples of another row", "v.load(x, i / 8 * p.inner + t", "v.load(x, i % 8 * p.inner + t", "in"),
    fault(
        "values of one batch entry",
        "(static_cast<long long>(batch) * p.channels * p.outer + group)",
        "(group)",
        "inner",
    ),
    fault("taps of one frequency", "static_cast<long long>(group) * (F::M / 2)", "0LL * (F::M / 2)", "inner"),
    fault("the wrong part back", "(row + M + n) = make_float2(z[0].y", "(row + M + n) = make_float2(z[0].x", "inner"),
    fault("factor not conjugated", "times_conj({re[e], im[e]}, outer", "times({re[e], im[e]}, outer", "out"),
    fault("one factor for eight", "outer_twiddle(p, column + e, j0)", "outer_twiddle(p, column, j0)", "out"),
    fault("upper rows only", "8 * (quad / 2), n = n0", "0 * (quad / 2), n = n0", "out"),
    fault("a row tile left out", "m < p.outer / 16; m", "m < p.outer / 16 - 1; m", "out"),
    # Long rows on clusters
    fault("written before all have begun", "    cluster_wait();\n#pragma", "#pragma", "cluster"),
    fault("samples read before they are there", "low);\n    }\n    cluster_sync();\n", "low);\n    }\n", "cluster"),
    fault(
        "values read before they are there",
        "gather(float2 (&z)[4][kRowCluster]) const {\n    cluster_sync();\n",
        "gather(float2 (&z)[4][kRowCluster]) const {\n",
        "cluster",
    ),
    fault("left before others have read", "finish() { cluster_wait(); }", "finish() {}", "cluster"),
    fault("all into one CTA", "there(j0);\n      uint4", "there(rank);\n      uint4", "cluster"),
    fault("all from one CTA", "there((rank + i) % kRowCluster)", "there(rank)", "cluster"),
    fault(
        "shifted in order only",
        "powers(wave, -static_cast<float>(4 * begin() + 1)",
        "powers(wave, -static_cast<float>(1)",
        "cluster",
    ),
    fault(
        "shifted back in order only",
        "powers(wave, static_cast<float>(4 * rank + 1)",
        "powers(wave, static_cast<float>(1)",
        "cluster",
    ),
    fault("shifted another way back", "there((rank + i) % kRowCluster)", "there(i)", "cluster"),
    fault("whole frequencies", "* (4 * j0 + 1)) * (0.5f", "* 4 * j0) * (0.5f", "cluster"),
    fault(
        "turned the other way",
        "    return {cosine, -sine};\n  }\n  // Plane",
        "    return {cosine, sine};\n  }\n  // Plane",
        "cluster",
    ),
    fault("one factor for eight", "++e, turn = times(turn, step))", "++e)", "cluster"),
    fault("factor not conjugated", "z = times_conj({x[1], x[3]}, odd)", "z = times({x[1], x[3]}, odd)", "cluster"),
    fault("factor of a neighbour's column", "odd = times(even, step)", "odd = even", "cluster"),
    fault("factor of another row", "8 * (8 * m + lane / 4) * F::columns", "8 * (lane / 4) * F::columns", "cluster"),
    fault(
        "imaginary parts over lower terms",
        "st_cluster_v4(to + plane, high)",
        "st_cluster_v4(to + 2 * plane, high)",
        "cluster",
    ),
    fault("lower terms left out", "      ptx::st_cluster_v4(to + 3 * plane, low);\n", "", "cluster"),
    fault("even columns for odd ones", "+ half * plane;", ";", "cluster"),
    fault(
        "real for imaginary parts", "ptx::load_cluster_v4(from + 2 * plane)", "ptx::load_cluster_v4(from)", "cluster"
    ),
    fault("rows exchanged", "kept = half ? b : a, taken", "kept = half ? a : b, taken", "cluster"),
    fault(
        "columns exchanged",
        "rows[i][2 * e] = half ? taken : kept;",
        "rows[i][2 * e] = half ? kept : taken;",
        "cluster",
    ),
    fault("upper rows over lower ones", "(4 * half + i) * M", "i * M", "cluster"),
    fault("the same columns in every CTA", "(rank * F::Warps + warp_index()) * 16", "warp_index() * 16", "cluster"),
    fault("four turned one way only", "Back ? float2{-d.y, d.x} :", "false ? float2{-d.y, d.x} :", "cluster"),
    fault("an eighth of a turn too many", "{-root, root}};", "{root, -root}};", "cluster"),
    fault("upper rows by the factors of lower ones", "x[j + 2][e] * high.x", "x[j + 2][e] * low.x", "cluster"),
    fault(
        "rows of a strip over each other",
        "row_place(strip, u) + m * strip.eight_rows(), words);\n        }\n      }\n    }",
        "row_place(strip, u), words);\n        }\n      }\n    }",
        "cluster",
    ),
    fault("one row for all", "words[i] = u.words(at(i))", "words[i] = u.words(at(0))", "cluster"),
    fault(
        "one gate for all", "gates[i] = gate.words(at(i));\n    if", "gates[i] = gate.words(at(0));\n    if", "cluster"
    ),
    fault("no gate before", "if (gate.data) to[0] *=", "if (false) to[0] *=", "cluster"),
    fault("no gate behind", "y[e] = gate.data ? y[e] * rows[i][e] :", "y[e] = false ? y[e] * rows[i][e] :", "cluster"),
    fault(
        "both outputs through one gate",
        "back.store(row(p.out2), row(p.post2)",
        "back.store(row(p.out2), row(p.post)",
        "cluster",
    ),
    fault("taps of one frequency", "(channel) * kRowCluster + cluster.rank)", "(channel) * kRowCluster)", "cluster"),
    fault("rows of one batch entry", "batch = task % p.batch, channel", "batch = 0, channel", "cluster"),
    # .. and their spectra on the chip
    fault("taps of the channel before", "task == tasks.begin || batch == 0", "task == tasks.begin", "cluster"),
    fault("written before the spectrum is made", "    cluster.open();\n  }\n", "  }\n", "cluster"),
    fault("a row over the spectrum", "memory(transform.memory + 8 * F::M)", "memory(transform.memory)", "cluster"),
    fault("units over each other", "((3 * unit + i) * 32", "((2 * unit + i) * 32", "cluster"),
    fault("the upper byte of another", "rounded(pair.z), 0x7653)", "rounded(pair.z), 0x7652)", "cluster"),
    fault("bytes in another order", "__byte_perm(a, b, 0x0400)", "__byte_perm(b, a, 0x0400)", "cluster"),
    fault("the fourth for the third", "of_upper(c), of_upper(fourth)", "of_upper(fourth), of_upper(c)", "cluster"),
    fault("not divided by the number of points", "1.0f / (kRowCluster * F::M)", "1.0f / F::M", "cluster"),
    fault("kept values of another unit", "kept[F::value_at(unit, ", "kept[F::value_at(i, ", "cluster"),
    fault("values of another unit", "Taps<Index>(spectrum, unit).x", "Taps<Index>(spectrum, i).x", "cluster"),
    fault("taps of one channel", "k(p.k + static_cast<long long>(channel) * p.taps)", "k(p.k)", "cluster"),
    fault("taps that reach nothing", "used(p.used),", "used(p.taps),", "cluster"),
    fault("reversed taps out of reach", "used_reverse(p.used_reverse),", "used_reverse(p.taps_reverse),", "cluster"),
    fault("vectors of taps that do not begin at one", "(taps) % 16 == 0", "(taps) % 4 == 0", "cluster"),
    fault("a tap past the end", "i + e < count ? __ldg", "i + e <= count ? __ldg", "cluster"),
    fault("lag of a tap behind", "z[0] = {ahead.x, back.w}", "z[0] = {ahead.x, back.z}", "cluster"),
    fault("reversed taps from the start", "k_reverse, points - n - 4,", "k_reverse, n,", "cluster"),
    fault("skip of one channel", "p.skip + channel : nullptr", "p.skip : nullptr", "cluster"),
    fault(
        "skip of every row of columns",
        "if (n == 0 && skip) ahead",
        "if (n % (points / 8) == 0 && skip) ahead",
        "cluster",
    ),
    fault("upper taps by the factors of lower ones", "times(x[e], wave[n0])", "times(x[e], wave[n0 % 4])", "cluster"),
    fault("upper taps only", "n0 < 4 ? y :", "true ? y :", "cluster"),
    # The backward of long rows on clusters
    fault(
        "written before all have begun",
        "  ClusterRow<Index>::open();\n  if (p.filter.k)",
        "  if (p.filter.k)",
        "cluster backward",
    ),
    fault(
        "the next row with no barrier",
        "leave() const { ClusterRow<Index>::open(); }",
        "leave() const {}",
        "cluster backward",
    ),
    fault("sums over what others still read", "  cluster_wait();\n  of.back", "  of.back", "cluster backward"),
    fault(
        "left before others have read", "turned);\n  }\n  cluster.finish();\n", "turned);\n  }\n", "cluster backward"
    ),
    fault(
        "dy without its gate",
        "here.bring(Gated{row(g ? p.dy : p.u, batch), row(g ? p.post : p.pre, batch)})",
        "here.bring(Gated{row(g ? p.dy : p.u, batch), row(p.pre, batch)})",
        "cluster backward",
    ),
    fault(
        "v correlated with itself",
        "here.bring(Gated{row(g ? p.dy : p.u, batch)",
        "here.bring(Gated{row(p.u, batch)",
        "cluster backward",
    ),
    fault(
        "the wrong one wanted",
        "p.pre, batch)});\n  }\n  TK_DEVICE bool wants(bool g) const { return g ?",
        "p.pre, batch)});\n  }\n  TK_DEVICE bool wants(bool g) const { return !g ?",
        "cluster backward",
    ),
    fault("taps of one channel", "(p.filter, share.channel, points)", "(p.filter, 0, points)", "cluster backward"),
    fault("V over the spectrum", "behind = row_cluster_bytes(F::plan)", "behind = 8 * F::M", "cluster backward"),
    fault(
        "gradient of v past its gate",
        "here.store(out, row(g ? p.pre : p.dy, batch)",
        "here.store(out, row(p.dy, batch)",
        "cluster backward",
    ),
    fault(
        "gradient of the gate by the gate",
        "here.store(row(p.dpre, batch), row(p.u, batch)",
        "here.store(row(p.dpre, batch), row(p.pre, batch)",
        "cluster backward",
    ),
    fault(
        "gradients of one batch entry",
        "row(g ? p.du : p.dpost, batch);",
        "row(g ? p.du : p.dpost, 0);",
        "cluster backward",
    ),
    fault(
        "the share of another cluster",
        "/ kRowCluster, p.channels, p.shares, 1,",
        "/ kRowCluster, p.channels, p.shares, 2,",
        "cluster backward",
    ),
    fault(
        "the rest of the sum over V",
        "sum.shared = v.shared + 8 * M",
        "sum.shared = v.shared",
        "cluster backward",
    ),
    fault(
        "the rest of the sum past the end",
        "value_at(unit - Kept * Warps, b, half)",
        "value_at(unit, b, half)",
        "cluster backward",
    ),
    fault("sums not divided", "of.back(sum, 1.0f / points)", "of.back(sum, 1.0f)", "cluster backward"),
    fault(
        "imaginary for real parts",
        "cluster.as_rows(ahead, z)",
        "cluster.template as_rows<true>(ahead, z)",
        "cluster backward",
    ),
    fault("reversed taps in order", "turned[e] = behind[i][7 - e]", "turned[e] = behind[i][e]", "cluster backward"),
    fault("lag of eight taps behind", "points - 8 - cluster.place(i)", "points - cluster.place(i)", "cluster backward"),
    fault("one tap too many", "if (n + i < used) taps[n + i]", "if (n + i <= used) taps[n + i]", "cluster backward"),
    fault("eight taps too many", "if (n + 8 <= used &&", "if (n < used &&", "cluster backward"),
    fault(
        "vectors of taps that do not begin at one",
        "if (n + 8 <= used && reinterpret_cast<unsigned long long>(taps) % 16 == 0)",
        "if (n + 8 <= used)",
        "cluster backward",
    ),
    fault("sums of one share", "p.dk + static_cast<long long>(share.slot) * p.used;", "p.dk;", "cluster backward"),
    # Filters of long rows
    fault("taps read before they are there", IMAGINARY + SYNC[2:], IMAGINARY, "taps in"),
    fault("taps that reach nothing", "ahead < p.used ?", "ahead < p.taps ?", "taps in"),
    fault("reversed taps out of reach", "back <= p.used_reverse ?", "back <= p.taps_reverse ?", "taps in"),
    fault("lag of a tap behind", "back = points - ahead;", "back = points - ahead + 1;", "taps in"),
    fault("taps of one channel", "static_cast<long long>(t.channel) * p.taps + ahead", "ahead", "taps in"),
    fault("points of one row", "1.0f / static_cast<float>(p.outer * F::M)", "1.0f / F::M", "taps' values"),
    fault("values of one row", "+ row * (F::M / 2),", "+ 0 * (F::M / 2),", "taps' values"),
    fault("skip left out", "if (n == 0 && p.skip)", "if (false)", "taps in"),
    fault("skip of every row", "if (n == 0 && p.skip)", "if (n % p.inner == 0 && p.skip)", "taps in"),
    # The backward of long rows
    fault("v correlated with itself", "(g ? p.g_work : p.v_work)", "p.v_work", "long backward"),
    fault(
        "rows of one batch entry", "(static_cast<long long>(batch) * p.rows + channel)", "(channel)", "long backward"
    ),
    fault("sums not divided", "of.back(sum, p.scale)", "of.back(sum, 1.0f)", "long backward"),
    fault("sums of one row", "static_cast<long long>(share.slot) * 2 * B::M", "0LL", "long backward"),
    fault("taps of one frequency", "(channel) * (M / 2);\n  }", "(0) * (M / 2);\n  }", "long backward"),
    fault("imaginary for real parts", "work(batch, g) + im * M + n", "work(batch, g) + n", "long backward"),
    fault("the wrong one wanted", "(g ? p.wants_g : p.wants_v)", "(g ? p.wants_v : p.wants_g)", "long backward"),
    fault("sums read before they are there", WORK + SYNC[2:] + "  const int", WORK + "  const int", "taps out"),
    fault("one tap too many", "if (lag < p.used) dk[lag]", "if (lag <= p.used) dk[lag]", "taps out"),
    fault("imaginary for real parts", "dk[lag] = acc[s][e];", "dk[lag] = acc[s][2 + e];", "taps out"),
    fault("lag of a tap behind, back", "back = points - lag;", "back = points - lag - 1;", "taps out"),
]


def unit(kernel: str) -> Unit:
    module, name, params, call = KERNELS[kernel]
    run = f"extern __shared__ __align__(1024) unsigned char memory[]; tkpy::fft_conv::{call}"
    entry = Entry(name, module, f"tkpy::fft_conv::{params}", run, "256")
    return Unit([f"fft_conv/{file}" for file in FILES], [entry])


def calls(kernel: str) -> list[tuple[dict, bool | tuple[str, ...]]]:
    """Arguments, and whose gradients are looked at."""
    if kernel == "cluster":  # rows and taps that do not begin at 16 bytes; the adjoint, with two outputs
        beyond = inputs(2, 1, LONG, "reverse", "skip", "gates", taps=LONG + 9, reverse=LONG + 9)
        beyond["k"][:, LONG:] = beyond["k_reverse"][:, LONG - 1 :] = float("nan")
        return [
            (beyond, ("u",)),  # whose spectrum is read again where it was left
            (inputs(1, 2, 17000, "reverse", "skip", "gates", taps=9001, dtype=torch.float16), ("u", "pre_gate")),
        ]
    if kernel == "cluster backward":  # a cluster of two rows and one of one; taps that reach nothing
        beyond = inputs(3, 1, 17001, "reverse", "skip", "gates", taps=17100, reverse=17100)
        beyond["k"][:, 17001:] = beyond["k_reverse"][:, 17000:] = float("nan")
        return [(beyond, True), (inputs(2, 2, 16400, "reverse", dtype=torch.float16), ("u", "k"))]
    if kernel in ("in", "inner", "out"):
        return [(inputs(2, 1, LONG, "reverse", "skip", "gates"), False)]
    if kernel.startswith("taps"):
        beyond = inputs(2, 2, 17001, "reverse", "skip", taps=17100, reverse=17100)
        beyond["k"][:, 17001:] = beyond["k_reverse"][:, 17000:] = float("nan")
        return [(beyond, ("k", "k_reverse"))]
    if kernel == "long backward":
        return [(inputs(2, 2, 17001, "reverse", "post_gate", "skip"), ("k", "k_reverse", "post_gate"))]
    poisoned = inputs(3, 2, 1100, "reverse", "skip", taps=1200, reverse=1200)
    wide = torch.full((3, 2, 1104), float("nan"), dtype=torch.bfloat16)
    wide[..., :1100] = poisoned["u"]
    poisoned["k"][:, 1100:] = poisoned["k_reverse"][:, 1099:] = float("nan")
    gated = inputs(3, 2, 1100, "reverse", "skip", "gates")
    alone = [(gated, ("u", "pre_gate"))]  # by the convolution; with the filters' gradients by the backward
    several = [(inputs(4, 2, 1100, "reverse"), True), (inputs(5, 1, 1100, "post_gate"), True)]
    return [
        (gated, True),
        *{"convolution": alone, "backward": several}.get(kernel, []),
        ({**poisoned, "u": wide[..., :1100]}, True),
        (inputs(2, 1, 1333, "gates", dtype=torch.float16), True),
        (inputs(1, 1, 2048, "reverse"), True),
    ]


def few_shares(monkeypatch, fault: Fault) -> None:
    """Several shares a cluster, of faults in the backward also several clusters and one that is not a power of two; a
    few long rows are enough for clusters where these have the fault, all of them by one, or summed by two; the spectrum
    of several channels is not kept."""
    cuda = importlib.import_module("tkpy.ops.fft_conv.cuda")
    few = fault.kernel.startswith("cluster")
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 1 if few else 132)
    monkeypatch.setattr(cuda, "shares_on_clusters", lambda *_: 2)
    monkeypatch.setattr(cuda, "shares_and_cluster", lambda batch, *_: SHARES[batch])
    if fault.kernel == "cluster":
        monkeypatch.setattr(cuda, "keepable", lambda filters: len(filters[0]) == 1)


def wrong(call: tuple[dict, bool | tuple[str, ...]]) -> str:
    importlib.import_module("tkpy.ops.fft_conv.spectra").forget()
    return disagreement(call[0], grad=call[1])


test_every_fault_is_caught, test_the_right_kernels_are_not_accused = Suite(
    "fft_conv",
    {kernel: unit(kernel) for kernel in KERNELS},
    FAULTS,
    calls,
    wrong,
    right=[f"fft_conv/{name}.cu" for name in MODULES],
    multiprocessors=1,
    arrange=few_shares,
).tests()
