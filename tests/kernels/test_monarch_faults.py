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
]  # fmt: skip


def unit(part: str) -> Unit:
    gradient = part in (STRIDED, CONSECUTIVE)
    call = f"gradient<tk::bf16, {'true' if part == STRIDED else 'false'}>" if gradient else f"{part}<tk::bf16>"
    more = "" if gradient else ", tkpy::monarch::first_row_of(p)"
    entry = Entry(
        f"monarch_{part}_bf16",
        "monarch_gradient" if gradient else "monarch",
        f"tkpy::monarch::{'Gradient' if gradient else 'Params'}",
        "extern __shared__ __align__(128) unsigned char memory[];"
        f" tkpy::monarch::{call}(p, tk::ptx::shared_address(memory){more})",
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


def wrong(call: tuple) -> str:
    """Of a case, with a tile and a cluster of the given sizes."""
    chosen, case = call

    def cut(name, *args, **more):
        return machine.launch(name, *((*args[:-2], *chosen) if name != "monarch_gradient" else args), **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OP.module("cuda"), "launch", cut)
        return first_wrong(conformance.check_case(OP, case, backend="emulator", dtype=torch.bfloat16))


test_every_fault_is_caught, test_the_right_kernel_is_not_accused = Suite(
    "monarch",
    {part: unit(part) for part in (FORWARD, BACKWARD, STRIDED, CONSECUTIVE)},
    FAULTS,
    calls=lambda part: CASES,
    wrong=wrong,
    right_seeds=3,
    tried=(FORWARD,),  # beside the other right ones
).tests()
