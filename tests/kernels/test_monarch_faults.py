"""Faults seeded into the kernels of monarch_multiply: each is one edit of their source, and a finding or a wrong result
must give it away on a few small calls and schedules."""

import pytest
from seeded_faults import Entry, Fault, Suite, Unit, first_wrong

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from test_monarch_cuda import sized  # noqa: E402  (after the skips)

from tkpy import conformance, machine, registry  # noqa: E402

OP = registry.get("monarch_multiply")
FORWARD, BACKWARD, STRIDED, CONSECUTIVE = "forward", "backward", "gradient_strided", "gradient_consecutive"
WHOLE, HALF, PRODUCT = "whole_48", "half", "product"

MEET = "  meet();\n"
FIRST = "if (m < tiles)\n#pragma unroll\n          for"
PAIR = "d[m][j][2 * half + 1]"
FAULTS = [
    Fault("h read before all have written it", MEET + "  strided", "  strided", FORWARD),
    Fault("h sent to CTAs that have not begun", "  cluster_sync();\n  consecutive", "  consecutive", FORWARD),
    Fault("lanes that ended early not waited for", "  __syncwarp();\n", "", FORWARD),
    Fault("h sent to another CTA", "granule / each)", "granule % p.ranks)", FORWARD),
    Fault("h in another CTA's place", "h.at(granule % each,", "h.at(granule % each / 2,", FORWARD),
    Fault("h not permuted", "flat / p.second.blocks, row", "flat % p.second.in, row", FORWARD),
    Fault("rows beyond the last read", "if (first_row + row >= p.rows) return nothing();", "", FORWARD),
    Fault("rows beyond the last written", "data != nullptr && row < p.rows", "data != nullptr", FORWARD),
    Fault("h not kept", "put<T>(p, p.middle, middle, first_row + row, flat, x);", "", FORWARD),
    Fault("x without its pitch", "(first_row + row) * p.in_pitch +\n", "row * p.in_pitch +\n", FORWARD),
    Fault("x of the first block", "1ll * block * p.first.in + channel);", "channel);", FORWARD),
    Fault("the last step of K", "step < f.in; step += 32", "step + 31 < f.in; step += 32", FORWARD),
    Fault("half of a step twice", "second, b.z, b.w", "second, b.x, b.y", FORWARD),
    Fault("rows exchanged", "{low.x, high.x, low.y, high.y}", "{high.x, low.x, high.y, low.y}", FORWARD),
    Fault("halves of words exchanged", "j % 2 ? 0x7632u : 0x5410u", "j % 2 ? 0x5410u : 0x7632u", FORWARD),
    Fault("the wrong word", "word = j / 2", "word = j % 4", FORWARD),
    Fault("outputs in the instruction's order", "base + 8 * (g / 2) + 2 * j + g % 2", "base + 8 * j + g", FORWARD),
    Fault("one of a pair twice", PAIR, "d[m][j][2 * half]", FORWARD),
    Fault("half of the rows twice", "16 * m + g + 8 * half, make", "16 * m + g, make", FORWARD),
    Fault("channels overlap", "base = item % groups * 32", "base = item % groups * 24", FORWARD),
    Fault("channels past the block", "if (base + 8 * t >= f.out) continue;", "", FORWARD),
    Fault("only the first tile of 16 rows", FIRST, FIRST.replace("tiles", "1"), FORWARD),
    Fault("weights of the first of eight blocks", "        at += 1ll * f.out * f.in;\n", "", FORWARD),
    Fault("weights of the first eight outputs", "weights(at + 8 * f.in,", "weights(at,", FORWARD),
    Fault("weights of the first granule", "weights_at<T>(f, 8 * granule,", "weights_at<T>(f, 8 * local,", FORWARD),
    Fault("one of two outputs", "2 * t + e % 2", "2 * t", FORWARD),
    Fault("one of two rows", "row + e / 2 * 8", "row", FORWARD),
    Fault("outputs past the last", "if (channel < f.out) sink", "sink", FORWARD),
    Fault("granules past the last", "min(each, all - first)", "each", FORWARD),
    Fault("y not permuted", "1ll * channel * p.second.blocks + 8 * granule, x", "channel + 8ll * granule, x", FORWARD),
    Fault("every tile the first", "/ p.ranks * p.tile; }", "* 0; }", FORWARD),
    Fault("dy not waited for", "  ptx::cp_async_wait_group<0>();\n", "", BACKWARD),
    Fault("dy read before all have loaded it", "dy, first_row);\n  cluster_sync();\n", "dy, first_row);\n", BACKWARD),
    Fault("dh read before all have written it", MEET + "  consecutive", "  consecutive", BACKWARD),
    Fault("dh over dy", "memory + static_cast<u32>(strided_bytes(p, p.second.in))", "memory", BACKWARD),
    Fault("dh sent to another CTA", "block / blocks.each)", "block % p.ranks)", BACKWARD),
    Fault("dh of another block", "block - blocks.first, channel", "(block - blocks.first) / 2, channel", BACKWARD),
    Fault("dh not permuted", "flat % p.first.in / 8, row", "flat / 8 % 2, row", BACKWARD),
    Fault("dy of the first granule", "8 * (mine.first + local)", "8 * local", BACKWARD),
    Fault("dx of the first block", "1ll * block * p.first.out + channel, x", "channel, x", BACKWARD),
    Fault("stages read before they are written", "    __syncthreads();\n", "", STRIDED),
    Fault("one stage for both", "stage ^= 1", "stage ^= 0", STRIDED),
    Fault("not turned", "    turn(x);\n", "", STRIDED),
    Fault("shares overlap", "min(p.rows, begin + p.share_rows)", "p.rows", STRIDED),
    Fault("shares begin together", "begin = static_cast<int>(blockIdx.y) * p.share_rows", "begin = 0", STRIDED),
    Fault("shares in one place", "(1ll * blockIdx.y * p.blocks + block)", "(1ll * block)", STRIDED),
    Fault("rows of the next share", "there && row + i < end", "there", STRIDED),
    Fault("blocks apart", "1ll * channel * p.blocks + block", "1ll * channel * 8 + block", STRIDED),
    Fault("half of the outputs twice", "16 * m + 8 + g)", "16 * m + g)", STRIDED),
    Fault("the first tile of outputs", "out = tile / across * kSide", "out = 0", STRIDED),
    Fault("the first tile of inputs", "in = tile % across * kSide", "in = 0", CONSECUTIVE),
    Fault("blocks past the last", "  if (block >= p.blocks) return;\n", "", CONSECUTIVE),
    Fault("channels past the last", "if (i < p.out && j < p.in)", "if (i < p.out)", CONSECUTIVE),
    Fault("the first of eight channels", "place() % 8 * 8 + j", "place() % 8 * 8", CONSECUTIVE),
    Fault("the first eight blocks", "int block = 8 * group + warp;", "int block = warp;", CONSECUTIVE),
    Fault("a tile read before it has landed", "wait_group<0>();\n    __syncthreads",
          "wait_group<1>();\n    __syncthreads", WHOLE),
    Fault("a stage filled before all have left it", "wait_group<0>();\n    __syncthreads();\n",
          "wait_group<0>();\n", WHOLE),
    Fault("the next tile into this one's stage", "load(tile + shares, stage ^ 1)", "load(tile + shares, stage)", WHOLE),
    Fault("dy read before all have transposed it", "turn_blocks(second, dy.at(stage));\n    __syncthreads();\n",
          "turn_blocks(second, dy.at(stage));\n", WHOLE),
    Fault("dy not transposed", "    turn_blocks(second, dy.at(stage));\n", "", WHOLE),
    Fault("middles written while they are read", "    cluster_wait();\n    uint4 sent",
          "    uint4 sent", WHOLE),
    Fault("middles read before they are there", "    cluster_sync();\n", "    __syncthreads();\n", WHOLE),
    Fault("middles of other CTAs not waited for", "    cluster_sync();\n    add_gradient<T>(of_second,",
          "    __syncthreads();\n    cluster_arrive();\n    add_gradient<T>(of_second,", WHOLE),
    Fault("h sent to another CTA", "static_cast<u32>(block / 8)", "static_cast<u32>(block % 2)", WHOLE),
    Fault("h of another block", "second.middle_at(at, block % 8", "second.middle_at(at, block / 8", WHOLE),
    Fault("h not permuted", "flat / second.blocks), static", "flat % second.out), static", WHOLE),
    Fault("h of the first block", "(first.first + warp_index()) * first.out + channel",
          "warp_index() * first.out + channel",
          WHOLE),
    Fault("dh sent to another CTA", "static_cast<u32>(block / each)", "static_cast<u32>(block % 2)", WHOLE),
    Fault("dh of another block", "first.middle_at(at, block % each", "first.middle_at(at, block / each", WHOLE),
    Fault("dh not permuted", "channel * second.blocks + second.first + warp_index()",
          "channel + (second.first + warp_index()) * second.out", WHOLE),
    Fault("warps without a block", "has_first = warp_index() < first.count", "has_first = true", WHOLE),
    Fault("sums of warps without a block", "  if (warp_index() >= side.count) return;\n", "", WHOLE),
    Fault("blocks past the last", "min(each, f.blocks - first)", "each", WHOLE),
    Fault("dx read before all have written it", "    __syncwarp();\n    cluster_arrive();\n    if (has_first",
          "    cluster_arrive();\n    if (has_first", WHOLE),
    Fault("tiles left out", "tile < tiles; tile += shares", "tile < tiles; tile += shares + 1", WHOLE),
    Fault("every cluster from the first tile", "for (int tile = share;", "for (int tile = 0;", WHOLE),
    Fault("rows beyond the last read", "there = tile * kWholeRows + row < rows", "there = true", WHOLE),
    Fault("rows beyond the last left as they are", "from, there ? 16u : 0u", "there ? from : from, 16u", WHOLE),
    Fault("rows beyond the last written", "    if (of_dx < p.rows)\n", "", WHOLE),
    Fault("every tile the first", "(1ll * tile * kWholeRows + row) * pitch", "1ll * row * pitch", WHOLE),
    Fault("dy of the first granule", "1ll * unit * side.blocks + side.first", "1ll * unit * side.blocks", WHOLE),
    Fault("x of the first block", "1ll * side.first * side.in + 8 * unit", "8ll * unit", WHOLE),
    Fault("weights of the first block", "+ 1ll * side.first * side.out * (side.in / 8)", "", WHOLE),
    Fault("the last step of K", "k < side.in / 16; ++k", "k + 1 < side.in / 16; ++k", WHOLE),
    Fault("K not halved", "side.weight_at(warp, 2 * k + which / 2", "side.weight_at(warp, 2 * k", WHOLE),
    Fault("rows in the instruction's order", "8 * (i / 2) + 4 * j + 2 * (which / 2) + i % 2",
          "16 * j + 8 * (which / 2) + i", WHOLE),
    Fault("one of a pair of rows twice", "d[m][j][2 * half + 1])", "d[m][j][2 * half])", WHOLE),
    Fault("half of the channels twice", "lane_row(), lane_chunk()), x[m][half]",
          "lane_row(), lane_chunk()), x[m][0]", WHOLE),
    Fault("channels past the block", "    if (16 * m < side.out)\n#pragma unroll\n      for (int half",
          "#pragma unroll\n      for (int half", WHOLE),
    Fault("the first sixteen rows alone", "        ptx::mma<form>(sums[m][n], a[m][1], b[2], b[3]);\n", "", WHOLE),
    Fault("rows of the wrong half", "sums[m][n], a[m][1], b[2], b[3]", "sums[m][n], a[m][1], b[0], b[1]", WHOLE),
    Fault("the last step of dx", "k < side.out / 16; ++k", "k + 1 < side.out / 16; ++k", WHOLE),
    Fault("dx of the first sixteen rows twice", "side.middle_at(middle, warp, 2 * m + which % 2",
          "side.middle_at(middle, warp, which % 2", WHOLE),
    Fault("dx in the first block", "1ll * (side.first + warp) * side.in", "1ll * warp * side.in", WHOLE),
    Fault("shares in one place", "1ll * share * side.blocks + side.first", "1ll * side.first", WHOLE),
    Fault("an input read before it has landed", "wait_group<0>();\n    __syncthreads",
          "wait_group<1>();\n    __syncthreads", HALF),
    Fault("buffers filled before all have left them", "wait_group<0>();\n    __syncthreads();\n",
          "wait_group<0>();\n", HALF),
    Fault("an operand read before it has landed", "wait_group<1>()", "wait_group<2>()", HALF),
    Fault("a middle over an input that is read", "    __syncwarp();\n    cluster_sync();\n    if (First) {\n      send",
          "    if (First) {\n      send", HALF),
    Fault("a middle read before it is there", "    cluster_sync();\n    if (!First)",
          "    __syncthreads();\n    if (!First)", HALF),
    Fault("the input read before all have transposed it", "second, a);\n      __syncthreads();\n",
          "second, a);\n", HALF),
    Fault("the operand read before all have transposed it", "second, b);\n      __syncthreads();\n",
          "second, b);\n", HALF),
    Fault("the input not transposed", "      turn_blocks(second, a);\n", "", HALF),
    Fault("the operand not transposed", "      turn_blocks(second, b);\n", "", HALF),
    Fault("the next input into the operand", "load_input(tile + shares, c)", "load_input(tile + shares, b)", HALF),
    Fault("the next input over this one", "    c = b;\n", "    c = a;\n", HALF),
    Fault("buffers that keep their parts", "    a = next;\n", "", HALF),
    Fault("dh over the operand", "places.of_dh(a,", "places.of_dh(b,", HALF),
    Fault("h over the operand", "places.of_h(a,", "places.of_h(b,", HALF),
    Fault("the operand of the first tile", "load_x(tile, b)", "load_x(share, b)", HALF),
    Fault("the input of this tile again", "load_input(tile + shares, c)", "load_input(tile, c)", HALF),
    Fault("middle and operand exchanged", "add_gradient<T>(sums, first, a, b)",
          "add_gradient<T>(sums, first, b, a)", HALF),
    Fault("dx of the operand", "tall, false>(first, a, b)", "tall, false>(first, b, b)", HALF),
    Fault("dx read before all have written it", "        __syncwarp();\n        store", "        store", HALF),
    Fault("the weights of dy not loaded", "  if (First) load_weights<T>(second, p.second.weight);\n", "", HALF),
    Fault("weights over weights", "after = memory + static_cast<u32>(weight_bytes(p.first))", "after = memory", HALF),
    Fault("warps without a block", "has_first = warp_index() < first.count", "has_first = true", HALF),
    Fault("the sums of the other factor", "(sums, second, p.of_second", "(sums, second, p.of_first", HALF),
    Fault("x read before it has landed", "wait_group<0>();\n    __syncthreads",
          "wait_group<1>();\n    __syncthreads", PRODUCT),
    Fault("x into a stage that is still y", "wait_group<0>();\n    __syncthreads();\n", "wait_group<0>();\n", PRODUCT),
    Fault("the next x over this one", "load(tile + clusters, stage ^ 1)", "load(tile + clusters, stage)", PRODUCT),
    Fault("h written while it is read", "    cluster_wait();\n    if (has_first)", "    if (has_first)", PRODUCT),
    Fault("h read before it is there", "    cluster_sync();\n", "    __syncthreads();\n", PRODUCT),
    Fault("y transposed before all is there", "    __syncthreads();\n    turn_blocks", "    turn_blocks", PRODUCT),
    Fault("y not transposed", "    turn_blocks(second, at);\n", "", PRODUCT),
    Fault("y read before all lanes have transposed it", "second, at);\n    __syncwarp();\n", "second, at);\n", PRODUCT),
    Fault("rows of y beyond the last", "    if (of_y < p.rows)\n", "", PRODUCT),
    Fault("y in the first granule", "static_cast<T*>(p.y) + side.first", "static_cast<T*>(p.y)", PRODUCT),
    Fault("y not permuted", "channel) * side.blocks", "channel) * 8", PRODUCT),
    Fault("rows of another warp", "row = 4 * warp_index() + i", "row = i", PRODUCT),
    Fault("weights of the first factor twice", "last(p.second, 8, after)", "last(p.second, 8, memory)", PRODUCT),
    Fault("outputs of y twice", "8 * (n + which / 2) + i", "8 * n + i", PRODUCT),
    Fault("half of K twice", "turned_weight_at(warp, 2 * k + which % 2", "turned_weight_at(warp, 2 * k", PRODUCT),
    Fault("y over x of the next tile", "const u32 at = stages + static_cast<u32>(stage *",
          "const u32 at = stages + static_cast<u32>((stage ^ 1) *", PRODUCT),
    Fault("tiles left out", "tile += clusters, stage", "tile += 2 * clusters, stage", PRODUCT),
]  # fmt: skip


def unit(part: str) -> Unit:
    memory = "extern __shared__ __align__(128) unsigned char memory[];"
    if part == WHOLE:
        run = f"{memory} tkpy::monarch::whole<tk::bf16, 3>(p, tk::ptx::shared_address(memory))"
        entry = Entry("monarch_whole_48_bf16", "monarch_whole", "tkpy::monarch::Whole", run, "256, 1")
        return Unit([f"monarch/{name}" for name in ("params.h", "monarch.cuh", "sides.cuh", "whole.cu")], [entry])
    if part == PRODUCT:
        run = f"{memory} tkpy::monarch::product<tk::bf16>(p, tk::ptx::shared_address(memory))"
        entry = Entry("monarch_product_bf16", "monarch_product", "tkpy::monarch::Product", run, "256, 2")
        return Unit([f"monarch/{name}" for name in ("params.h", "monarch.cuh", "sides.cuh", "product.cu")], [entry])
    if part == HALF:
        entries = [
            Entry(
                f"monarch_half_{name}_bf16",
                "monarch_half",
                "tkpy::monarch::Whole",
                f"{memory} tkpy::monarch::half<tk::bf16, {first}>(p, tk::ptx::shared_address(memory))",
                "256, 1",
            )
            for name, first in (("first", "true"), ("second", "false"))
        ]
        return Unit([f"monarch/{name}" for name in ("params.h", "monarch.cuh", "sides.cuh", "half.cu")], entries)
    gradient = part in (STRIDED, CONSECUTIVE)
    call = f"gradient<tk::bf16, {'true' if part == STRIDED else 'false'}>" if gradient else f"{part}<tk::bf16>"
    more = "" if gradient else ", tkpy::monarch::first_row_of(p)"
    entry = Entry(
        f"monarch_{part}_bf16",
        "monarch_gradient" if gradient else "monarch",
        f"tkpy::monarch::{'Gradient' if gradient else 'Params'}",
        f"{memory} tkpy::monarch::{call}(p, tk::ptx::shared_address(memory){more})",
        "256, 1",
    )
    files = ("params.h", "monarch.cuh", "gradient.cu" if gradient else "kernel.cu")
    return Unit([f"monarch/{name}" for name in files], [entry])


# Rows of a tile, CTAs of a cluster: several of both; rows, granules and blocks that do not divide.
CASES = [
    ((32, 3), sized(41, 8, 40, 24, 40, 24)),
    ((64, 2), sized(75, 5, 64, 16, 40, 40)),
    ((16, 1), sized(600, 12, 48, 72, 8, 72)),
]
# Two clusters of three with ten tiles each, a rank with fewer blocks; warps without a block.
WHOLES = [((0, 0), sized(600, 8, 48, 16, 24, 32)), ((0, 0), sized(70, 8, 32, 16, 16, 48))]
HALVES = [((0, 0), sized(600, 8, 64, 16, 32, 32)), ((0, 0), sized(65, 16, 64, 32, 32, 48))]


def wrong(call: tuple) -> str:
    """Of a case, with a tile and a cluster of the given sizes."""
    chosen, case = call

    def cut(name, *args, **more):
        return machine.launch(
            name, *((*args[:-2], *chosen) if name in ("monarch", "monarch_backward") else args), **more
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OP.module("cuda"), "launch", cut)
        return first_wrong(conformance.check_case(OP, case, backend="emulator", dtype=torch.bfloat16))


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "monarch",
    {part: unit(part) for part in (FORWARD, BACKWARD, STRIDED, CONSECUTIVE, WHOLE, HALF, PRODUCT)},
    FAULTS,
    calls=lambda part: {WHOLE: WHOLES, HALF: HALVES, PRODUCT: HALVES}.get(part, CASES),
    wrong=wrong,
    right_seeds=3,
    multiprocessors=16,  # fewer clusters than tiles
    tried=(FORWARD, WHOLE, HALF, PRODUCT),  # beside the other right ones
).tests()
