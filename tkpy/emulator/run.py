"""What a launch leaves behind: findings, counters, printed text."""

from __future__ import annotations

import json
import linecache
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tkpy.emulator.timing.record import Trace


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

    def __reduce__(self) -> tuple[type[KernelError], tuple[tuple[Finding, ...], str]]:
        """From one process to another: by default an exception is made again of its text alone."""
        return type(self), (self.findings, self.output)


@dataclass(frozen=True)
class Count:
    """Counters of one instruction, or a sum of them. A copy counts its bytes where it reads and where it writes."""

    issues: int = 0  # warp instructions
    lanes: int = 0  # thread instructions
    shared_requests: int = 0
    shared_wavefronts: int = 0  # passes through the 32 banks
    bank_conflicts: int = 0  # those of them that conflicts cost
    global_requests: int = 0
    global_sectors: int = 0  # of 32 bytes
    global_bytes: int = 0
    shared_bytes: int = 0
    local_bytes: int = 0
    flops: int = 0
    tensor_flops: int = 0  # those of mma, wmma and wgmma

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, name) + getattr(other, name) for name in COUNTS))

    @property
    def sectors_per_request(self) -> float:
        return self.global_sectors / max(self.global_requests, 1)

    @property
    def wavefronts_per_request(self) -> float:
        """1 without bank conflicts for accesses of at most 4 bytes; 2 for 8 bytes, 4 for 16."""
        return self.shared_wavefronts / max(self.shared_requests, 1)


COUNTS = tuple(f.name for f in fields(Count))
_TENSOR = re.compile(r"(@!?\S+ )?w?g?mma\.")


@dataclass(frozen=True)
class CountRow:
    """An instruction with its counters."""

    function: str
    ptx_line: int
    text: str
    source: tuple[str, int] | None
    count: Count

    @classmethod
    def of(cls, function: str, place: tuple[int, str, str, int], numbers: tuple[int, ...]) -> CountRow:
        """Of what the compiled part gives: PTX line, text, source file and line; the numbers."""
        line, text, file, source_line = place
        text = " ".join(text.split())
        count = Count(*[*numbers, numbers[-1] if _TENSOR.match(text) else 0])
        return cls(function, line, text, (file, source_line) if file else None, count)


def _table(rows: Sequence[tuple[str, Count, str]], total: Count, what: str) -> str:
    """Lines of numbers; columns in which everything is zero are left out."""
    names = [name for name in COUNTS if getattr(total, name)]
    body = [[place, *(str(getattr(count, n)) for n in names), text] for place, count, text in rows]
    body.append(["", *(str(getattr(total, n)) for n in names), "total"])
    head = ["line", *names, what]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in [head, *body]
    )


class Counters:
    """Counters per instruction; only those that ran."""

    def __init__(self, rows: Iterable[CountRow]):
        self.rows = tuple(rows)

    @property
    def total(self) -> Count:
        return sum((r.count for r in self.rows), Count())

    def by_source(self) -> dict[tuple[str, int], Count]:
        """Per line of the source, for code compiled with -lineinfo."""
        out: dict[tuple[str, int], Count] = {}
        for r in self.rows:
            if r.source:
                out[r.source] = out.get(r.source, Count()) + r.count
        return out

    def select(self, opcode: str) -> Count:
        """The sum over instructions whose text starts with `opcode`, such as "ld.shared", guarded ones included."""
        return sum((r.count for r in self.rows if re.sub(r"^@!?\S+ ", "", r.text).startswith(opcode)), Count())

    def table(self, top: int | None = 40, key: str = "issues", by: str = "instruction") -> str:
        """The `top` rows with the largest `key` (a field of Count): by "instruction" or by "source" line."""
        if key not in COUNTS:
            raise ValueError(f"no counter {key!r}; there are {', '.join(COUNTS)}")
        if by not in ("instruction", "source"):
            raise ValueError(f'by must be "instruction" or "source", got {by!r}')
        if by == "source":
            rows = [
                (f"{os.path.basename(file)}:{line}", count, linecache.getline(file, line).strip()[:80])
                for (file, line), count in self.by_source().items()
            ]
        else:
            rows = [(str(r.ptx_line), r.count, r.text[:80]) for r in self.rows]
        rows.sort(key=lambda row: getattr(row[1], key), reverse=True)
        return _table(rows[:top], self.total, by)

    def json(self) -> str:
        return json.dumps([{**asdict(r), "count": asdict(r.count)} for r in self.rows])


@dataclass(frozen=True)
class Geometry:
    """How a traced launch was laid out; `shared`: bytes of a CTA, `slots`: clusters that run at once."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared: int
    slots: int


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
        #: Distinct 32-byte sectors of global memory that the launch read, and wrote; (0, 0) without counters.
        self.sectors: tuple[int, int] = raw["sectors"]
        self._listing = listing
        self._names = names
        self._counters: Counters | None = None
        self._raw_trace = raw.get("trace")
        self.geometry: Geometry | None = None

    @property
    def trace(self) -> Trace:
        """What a launch with `trace` recorded: the input of `tkpy.emulator.timing.predict`."""
        from tkpy.emulator.timing import record

        if self._raw_trace is None or self.geometry is None:
            raise ValueError("this launch recorded no trace: it needs launch(..., trace=132)")
        g = self.geometry
        return record.read(
            self._raw_trace,
            self._listing,
            kernel=self.kernel,
            grid=g.grid,
            cluster=g.cluster,
            threads=g.block[0] * g.block[1] * g.block[2],
            shared=g.shared,
            slots=g.slots,
        )

    @property
    def counters(self) -> Counters:
        if self._counters is None:
            texts: dict[int, list[Any]] = {}
            rows = []
            for function, index, numbers in self._raw_counts:
                if function not in texts:
                    texts[function] = self._listing(function)
                rows.append(CountRow.of(self._names[function], texts[function][index], numbers))
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
                f"{total.lanes} thread instructions, {total.flops} flops ({total.tensor_flops} by matrix units), "
                f"bytes: {total.global_bytes} global, {total.shared_bytes} shared, {total.local_bytes} local, "
                f"{total.global_sectors} global sectors in {total.global_requests} requests, "
                f"{total.shared_wavefronts} shared wavefronts in {total.shared_requests} requests"
            )
        return "\n".join(lines)
