"""What NVIDIA's documentation asks of tensor maps and launches on an H100, written from it (CUDA driver API:
cuTensorMapEncodeTiled, cuLaunchKernelEx, cuKernelSetAttribute; CUDA programming guide: compute capability 9.0), and not
from what the launchers or the emulator check. Each rule that a call breaks is a line of text."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DYNAMIC_SHARED, NON_PORTABLE_CLUSTER = 8, 14  # CUfunction_attribute
COOPERATIVE, CLUSTER = 2, 4  # CUlaunchAttributeID
BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2}  # CUtensorMapDataType
SWIZZLES = {1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle
REGISTERS, THREADS = 65536, 1024
SHARED_OF_A_BLOCK, SHARED_WITHOUT_ASKING = 227 * 1024, 48 * 1024
SHARED_OF_A_MULTIPROCESSOR, SHARED_RESERVED, MULTIPROCESSORS = 228 * 1024, 1024, 132
PARAMETERS = 32764  # bytes, since CUDA 12.1


@dataclass(frozen=True)
class Facts:
    """What the compiler says of a kernel."""

    registers: int
    shared: int
    parameters: list[int]
    most_threads: int | None
    cluster: int | None


def _image(path: Path) -> str:
    packed = path.with_name(path.name + ".gz")
    return gzip.decompress(packed.read_bytes()).decode() if packed.exists() else path.read_text()


def facts_of(report: Path) -> dict[str, Facts]:
    """Of every kernel of a module, from its report and the heads in its PTX."""
    heads = {
        m[1]: m[0] for m in re.finditer(r"\.entry (\w+)\((.*?)\n\{", _image(report.with_suffix(".ptx")), re.DOTALL)
    }

    def number(head: str, pattern: str) -> int | None:
        found = re.search(pattern, head)
        return int(found[1]) if found else None

    return {
        name: Facts(
            facts["registers"],
            facts.get("shared", 0),
            [int(size) for size in re.findall(r"\.param [^,)]*\[(\d+)\]", heads[name])],
            number(heads[name], r"\.maxntid (\d+)"),
            number(heads[name], r"\.reqnctapercluster (\d+)"),
        )
        for name, facts in json.loads(report.read_text())["kernels"].items()
    }


def map_faults(m: dict[str, Any], end: int) -> Iterator[str]:
    """`end`: where the memory that the map's address is in ends."""
    size, dims, (interleave, swizzle, promotion, fill) = BYTES[m["type"]], m["dims"], m["modes"]
    if m["map"]:
        yield "the map itself must be aligned to 64 bytes"
    if not 1 <= len(dims) <= 5:
        yield f"rank {len(dims)}"
    if m["address"] % 16:
        yield f"address {m['address']:#x}"
    if interleave or fill or promotion not in range(4) or swizzle not in range(4):
        yield f"modes {m['modes']}"
    for d, (count, stride, box, step) in enumerate(dims):
        if not 1 <= count <= 2**32 or not 1 <= box <= 256 or step != 1:
            yield f"dimension {d}: size {count}, box {box}, step {step}"
        if d and (stride % 16 or not 0 < stride < 2**40):
            yield f"dimension {d}: stride {stride}"
    inner = dims[0][2] * size
    if inner % 16 or inner > SWIZZLES.get(swizzle, inner):
        yield f"a box of {inner} bytes, swizzle {swizzle}"
    if (last := m["address"] + dims[0][0] * size + sum((n - 1) * stride for n, stride, *_ in dims[1:])) > end:
        yield f"{last - end} bytes beyond its memory"


def registers(launch: dict[str, Any], facts: Facts) -> int:
    """Of a CTA: given to warps, 256 at a time, and warps to the four quarters of a multiprocessor."""
    x, y, z = launch["block"]
    return -(-x * y * z // 128) * 4 * (-(-facts.registers * 32 // 256) * 256)


def resident(launch: dict[str, Any], facts: Facts) -> int:
    """CTAs that one multiprocessor holds at once."""
    x, y, z = launch["block"]
    shared = launch["shared"] + facts.shared + SHARED_RESERVED
    return min(REGISTERS // registers(launch, facts), 2048 // (x * y * z), SHARED_OF_A_MULTIPROCESSOR // shared, 32)


def launch_faults(launch: dict[str, Any], facts: Facts, allowed: dict[int, int]) -> Iterator[str]:
    """`allowed`: what cuKernelSetAttribute has set for this kernel."""
    attributes = {which: values for which, *values in launch["attributes"]}
    (x, y, z), (bx, by, bz), cluster = launch["grid"], launch["block"], attributes.get(CLUSTER, [1, 1, 1])
    threads, ctas = bx * by * bz, cluster[0] * cluster[1] * cluster[2]
    if not (1 <= x < 2**31 and 1 <= y < 65536 and 1 <= z < 65536):
        yield f"grid {launch['grid']}"
    if not 1 <= threads <= min(THREADS, facts.most_threads or THREADS) or bz > 64:
        yield f"block {launch['block']}, at most {facts.most_threads} threads"
    if ctas > (16 if allowed.get(NON_PORTABLE_CLUSTER) else 8) or (
        CLUSTER in attributes and facts.cluster not in (None, ctas)
    ):
        yield f"cluster {cluster}, compiled for {facts.cluster}"
    if any(size % of for size, of in zip(launch["grid"], cluster, strict=True)):
        yield f"grid {launch['grid']} of clusters {cluster}"
    if launch["shared"] + facts.shared > SHARED_OF_A_BLOCK:
        yield f"{launch['shared']} + {facts.shared} bytes of shared memory"
    if launch["shared"] > max(SHARED_WITHOUT_ASKING - facts.shared, allowed.get(DYNAMIC_SHARED, 0)):
        yield f"{launch['shared']} bytes of dynamic shared memory, {allowed.get(DYNAMIC_SHARED)} allowed"
    if registers(launch, facts) > REGISTERS:
        yield f"{facts.registers} registers of {threads} threads"
    if len(facts.parameters) != 1 or facts.parameters[0] != launch["bytes"] or launch["bytes"] > PARAMETERS:
        yield f"{launch['bytes']} bytes of parameters, compiled for {facts.parameters}"
    if attributes.get(COOPERATIVE, [0])[0] and x * y * z > MULTIPROCESSORS * resident(launch, facts):
        yield f"{x * y * z} CTAs of a cooperative launch, {resident(launch, facts)} at once on each multiprocessor"
