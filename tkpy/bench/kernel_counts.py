"""What kernels did in the emulator beside what their op needs: tensor-core flops, bytes of HBM, bank conflicts.

Bytes of HBM are those of the distinct sectors of 32 bytes that each launch reads, and writes: what moves if L2 keeps
everything until the launch ends, and nothing longer. Requested bytes are what threads and copies ask for, re-reads
included, whichever cache gives them.
Conflicts are passes through shared memory beyond those that the width of an access takes, within the innermost loops
that hold matrix instructions (anywhere, in a kernel without such); what matrix instructions read is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tkpy.emulator.module import read_text
from tkpy.emulator.run import Counters
from tkpy.machine import KernelCount

SECTOR = 32  # bytes
_LABEL = re.compile(r"\s*([$\w]+):")
_BRANCH = re.compile(r"bra(?:\.uni)?\s+([$\w]+)\s*;")

Lines = tuple[int, int]


@dataclass(frozen=True)
class KernelWork:
    """One kernel of a call. `products`: wgmma of a warpgroup or mma of a warp, whichever the kernel has."""

    kernel: str
    launches: int
    tensor_flops: int
    hbm_bytes: int
    requested_bytes: int
    products: int
    conflicts: int  # cycles, in the main loops
    shared_requests: int

    @classmethod
    def of(cls, count: KernelCount) -> KernelWork:
        """What a counted kernel did, its main loops found in its PTX."""
        total, counters = count.counters.total, count.counters
        loops = main_loops(read_text(count.module).splitlines(), counters)
        products = counters.select("wgmma.mma").issues // 4 + counters.select("mma").issues
        inside = [row for row in counters.rows if not products or any(a <= row.ptx_line <= b for a, b in loops)]
        return cls(
            count.kernel,
            count.launches,
            total.tensor_flops,
            SECTOR * (count.sectors_read + count.sectors_written),
            total.global_bytes,
            products,
            sum(row.count.bank_conflicts for row in inside),
            total.shared_requests,
        )


def _loops(lines: Sequence[str], first: int, last: int) -> Iterator[Lines]:
    """(line of the label, line of the branch) of every backward branch between two lines, which count from 1."""
    labels: dict[str, int] = {}
    for number in range(first, last + 1):
        text = lines[number - 1]
        if label := _LABEL.match(text):
            labels[label[1]] = number
        for branch in _BRANCH.finditer(text):
            if branch[1] in labels:
                yield labels[branch[1]], number


def main_loops(lines: Sequence[str], counters: Counters) -> list[Lines]:
    """The innermost loops around matrix instructions that ran, those that hold another one left out."""
    products = [row.ptx_line for row in counters.rows if row.count.tensor_flops]
    if not products:
        return []
    ran = [row.ptx_line for row in counters.rows]
    loops = list(_loops(lines, max(min(ran) - 1, 1), max(ran)))
    around = {
        min((loop for loop in loops if loop[0] <= line <= loop[1]), key=lambda loop: loop[1] - loop[0], default=None)
        for line in products
    }
    found = [loop for loop in around if loop is not None]
    return [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]


@dataclass(frozen=True)
class Promise:
    """What a counted case must not exceed: issued / useful flops, HBM bytes / needed bytes, conflict cycles. None: not
    promised; then `why` says why not."""

    flops: float | None = 1.10
    bytes: float | None = 1.25
    conflicts: int | None = 0
    why: str = ""

    def broken(self, work: Sequence[Mapping[str, Any]], flops: int, nbytes: int) -> list[str]:
        """Where the kernels exceed it, in words."""
        issued, moved = (sum(one[name] for one in work) for name in ("tensor_flops", "hbm_bytes"))
        conflicts = sum(one["conflicts"] for one in work)
        wrong = []
        if self.flops is not None and issued > self.flops * flops:
            wrong.append(f"tensor-core flops: {issued / flops:.2f} times those needed, promised {self.flops:.2f}")
        if self.bytes is not None and moved > self.bytes * nbytes:
            wrong.append(f"HBM bytes: {moved / nbytes:.2f} times those needed, promised {self.bytes:.2f}")
        if self.conflicts is not None and conflicts > self.conflicts:
            wrong.append(f"bank conflicts in the main loops: {conflicts} cycles, promised {self.conflicts}")
        return wrong


STRICT = Promise()


def works(counted: Sequence[KernelCount]) -> list[dict[str, Any]]:
    """Every kernel of a call, in a form for a row."""
    return [asdict(KernelWork.of(one)) for one in counted]
