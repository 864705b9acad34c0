"""The emulator's record of what warps did (csrc/emulator/trace.h), as Python sees it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tkpy.emulator.timing.decode import Instruction, decode, folded

EVENT = np.dtype([(n, "<u4") for n in ("cta", "warp", "function", "instr", "lanes", "wavefronts", "note", "notes")])

MAX_POLL = 12  # instructions between two polls of one loop, at most


@dataclass(frozen=True)
class Event:
    """One warp instruction that took effect; `notes` mean what trace.h says for its kind."""

    instruction: Instruction
    lanes: int
    wavefronts: int
    notes: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What the CTAs of one place of the machine did: for each CTA and warp, its instructions in order.

    `clusters`: the CTAs of each cluster, by rank, in the order in which the place gets them.
    """

    kernel: str
    grid: tuple[int, int, int]
    cluster: tuple[int, int, int]
    threads: int  # of a CTA
    shared: int  # bytes of a CTA
    slots: int
    clusters: tuple[tuple[int, ...], ...]
    warps: Mapping[tuple[int, int], tuple[Event, ...]]
    truncated: bool

    @property
    def ctas(self) -> int:
        """In the whole grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def cluster_size(self) -> int:
        return self.cluster[0] * self.cluster[1] * self.cluster[2]


def without_failed_polls(events: list[Event]) -> tuple[Event, ...]:
    """A wait that spins is one wait: polls that failed go, with the few instructions up to the next poll."""
    kept: list[Event] = []
    i = 0
    while i < len(events):
        event = events[i]
        if event.instruction.kind == "mbarrier_wait" and event.notes and not any(event.notes[3::3]):
            after = range(i + 1, min(i + 1 + MAX_POLL, len(events)))
            again = next((j for j in after if events[j].instruction is event.instruction), None)
            between = events[i + 1 : again]
            if again is not None and all(e.instruction.kind in ("free", "control", "arithmetic") for e in between):
                i = again
                continue
        kept.append(event)
        i += 1
    return tuple(kept)


def _cluster_of(cta: int, grid: tuple[int, int, int], cluster: tuple[int, int, int]) -> tuple[int, int]:
    """(cluster's number, rank of the CTA) of a CTA's number in the grid."""
    x, y, z = cta % grid[0], cta // grid[0] % grid[1], cta // grid[0] // grid[1]
    number = x // cluster[0] + grid[0] // cluster[0] * (y // cluster[1] + grid[1] // cluster[1] * (z // cluster[2]))
    rank = x % cluster[0] + cluster[0] * (y % cluster[1] + cluster[1] * (z % cluster[2]))
    return number, rank


def read(
    raw: tuple[bytes, bytes, bool],
    listing: Callable[[int], list[Any]],
    *,
    kernel: str,
    grid: tuple[int, int, int],
    cluster: tuple[int, int, int],
    threads: int,
    shared: int,
    slots: int,
) -> Trace:
    """What the binding returned, decoded: instructions once each, events by warp."""
    events = np.frombuffer(raw[0], EVENT)
    notes = np.frombuffer(raw[1], "<u8").tolist()
    known: dict[tuple[int, int], Instruction] = {}
    texts: dict[int, list[tuple[int, str]]] = {}
    offsets: dict[int, set[str]] = {}
    by_warp: dict[tuple[int, int], list[Event]] = {}
    for cta, warp, function, instr, lanes, wavefronts, note, count in events.tolist():
        if (function, instr) not in known:
            if function not in texts:
                texts[function] = [(line, re.sub(r"\s+", " ", text)) for line, text, *_ in listing(function)]
                offsets[function] = folded(text for _, text in texts[function])
            line, text = texts[function][instr]
            instruction = decode(text, line)
            known[function, instr] = replace(instruction, kind="free") if text in offsets[function] else instruction
        event = Event(known[function, instr], lanes, wavefronts, tuple(notes[note : note + count]))
        by_warp.setdefault((cta, warp), []).append(event)
    members: dict[int, dict[int, int]] = {}
    for cta, _ in by_warp:
        number, rank = _cluster_of(cta, grid, cluster)
        members.setdefault(number, {})[rank] = cta
    clusters = tuple(tuple(members[n][r] for r in sorted(members[n])) for n in sorted(members))
    warps = {key: without_failed_polls(found) for key, found in by_warp.items()}
    return Trace(kernel, grid, cluster, threads, shared, slots, clusters, warps, raw[2])
