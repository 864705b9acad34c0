"""What a launch leaves behind: findings, counters, printed text."""

from __future__ import annotations

import json
import linecache
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Site:
    """One instruction as executed by one thread."""

    function: str
    ptx_line: int
    text: str
    source: tuple[str, int] | None
    cta: int
    warp: int
    lane: int

    @classmethod
    def _from(cls, raw: Mapping[str, Any]) -> Site:
        source = (raw["file"], raw["source_line"]) if raw["source_line"] and raw["file"] else None
        return cls(raw["function"], raw["ptx_line"], raw["text"], source, raw["cta"], raw["warp"], raw["lane"])

    def __str__(self) -> str:
        where = f"{self.source[0]}:{self.source[1]}, " if self.source else ""
        text = f"{where}PTX line {self.ptx_line} `{self.text}` (CTA {self.cta}, warp {self.warp}, lane {self.lane})"
        code = linecache.getline(*self.source).strip() if self.source else ""
        return f"{text}\n        | {code}" if code else text


@dataclass(frozen=True)
class Finding:
    """Something wrong with the program. `code` is explained in docs/findings.md; `times` counts repeats."""

    code: str
    message: str
    site: Site
    other: Site | None
    times: int

    @property
    def ptx_line(self) -> int:
        return self.site.ptx_line

    @property
    def source(self) -> tuple[str, int] | None:
        return self.site.source

    @property
    def warp(self) -> int:
        return self.site.warp

    @property
    def lane(self) -> int:
        return self.site.lane

    @classmethod
    def _from(cls, raw: Mapping[str, Any]) -> Finding:
        other = Site._from(raw["other"]) if raw["other"] else None
        return cls(raw["code"], raw["message"], Site._from(raw["site"]), other, raw["times"])

    def __str__(self) -> str:
        repeats = f" ({self.times} times)" if self.times > 1 else ""
        text = f"{self.code}{repeats}: {self.message}\n    at   {self.site}"
        return f"{text}\n    with {self.other}" if self.other else text


class KernelError(RuntimeError):
    """The kernel could not go on (deadlock, trap, instruction budget, unmodelled instruction) or had findings."""

    def __init__(self, findings: Iterable[Finding], output: str = ""):
        self.findings = tuple(findings)
        self.output = output
        super().__init__("\n".join(str(f) for f in self.findings) or "the kernel stopped")


@dataclass(frozen=True)
class Count:
    """Counters of one instruction, or a sum of them."""

    issues: int = 0  # warp instructions
    lanes: int = 0  # thread instructions
    shared_requests: int = 0
    shared_wavefronts: int = 0  # passes through the 32 banks: equal to the least possible when conflict-free
    global_requests: int = 0
    global_sectors: int = 0  # of 32 bytes
    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Count)))


@dataclass(frozen=True)
class CountRow:
    """An instruction with its counters."""

    function: str
    ptx_line: int
    text: str
    source: tuple[str, int] | None
    count: Count


class Counters:
    """Counters per instruction; only those that ran."""

    def __init__(self, rows: Iterable[CountRow]):
        self.rows = tuple(rows)

    @property
    def total(self) -> Count:
        return sum((r.count for r in self.rows), Count())

    def by_source(self) -> dict[tuple[str, int], Count]:
        out: dict[tuple[str, int], Count] = {}
        for r in self.rows:
            if r.source:
                out[r.source] = out.get(r.source, Count()) + r.count
        return out

    def select(self, opcode: str) -> Count:
        """The sum over instructions whose text starts with `opcode`, such as "ld.shared"."""
        return sum((r.count for r in self.rows if r.text.startswith(opcode)), Count())

    def table(self, top: int | None = 40, key: str = "issues") -> str:
        names = [f.name for f in fields(Count)]
        head = ["line", *names, "instruction"]
        rows = sorted(self.rows, key=lambda r: getattr(r.count, key), reverse=True)[:top]
        body = [[str(r.ptx_line), *(str(getattr(r.count, n)) for n in names), r.text[:80]] for r in rows]
        total = self.total
        body.append(["", *(str(getattr(total, n)) for n in names), "total"])
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head) - 1)]
        lines = [
            "  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in [head, *body]
        ]
        return "\n".join(lines)

    def json(self) -> str:
        return json.dumps([{**asdict(r), "count": asdict(r.count)} for r in self.rows])


class Run:
    """The outcome of one launch."""

    def __init__(self, kernel: str, raw: Mapping[str, Any], listing: Callable[[int], list[Any]], names: list[str]):
        self.kernel = kernel
        self.findings = tuple(Finding._from(f) for f in raw["findings"])
        self.fatal: bool = raw["fatal"]
        self.output: str = raw["output"].decode("utf-8", "replace")
        self.warp_instructions: int = raw["warp_instructions"]
        self.thread_instructions: int = raw["thread_instructions"]
        self._raw_counts = raw["counters"]
        self._listing = listing
        self._names = names
        self._counters: Counters | None = None

    @property
    def counters(self) -> Counters:
        if self._counters is None:
            texts: dict[int, list[Any]] = {}
            rows = []
            for function, index, *numbers in self._raw_counts:
                if function not in texts:
                    texts[function] = self._listing(function)
                line, text, file, source_line = texts[function][index]
                source = (file, source_line) if file else None
                rows.append(CountRow(self._names[function], line, " ".join(text.split()), source, Count(*numbers)))
            self._counters = Counters(rows)
        return self._counters

    def raise_on_findings(self) -> None:
        if self.findings:
            raise KernelError(self.findings, self.output)

    def report(self) -> str:
        total = self.counters.total
        lines = [
            f"{self.kernel}: {self.warp_instructions} warp instructions, {len(self.findings)} findings",
            *(str(f) for f in self.findings),
        ]
        if total.issues:
            lines.append(
                f"{total.lanes} thread instructions, {total.flops} flops, {total.bytes} bytes moved, "
                f"{total.global_sectors} global sectors in {total.global_requests} requests, "
                f"{total.shared_wavefronts} shared wavefronts in {total.shared_requests} requests"
            )
        return "\n".join(lines)
