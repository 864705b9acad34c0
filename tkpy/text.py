"""Tables for terminals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest entry; the last one is wrapped."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    room = max(40, 118 - sum(widths) - 2 * len(widths))
    lines = []
    for row in cells:
        first = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        wrapped = textwrap.wrap(row[-1], room) or [""]
        lines.append(f"{first}  {wrapped[0]}".rstrip())
        lines += [" " * (len(first) + 2) + rest for rest in wrapped[1:]]
    lines.insert(1, "-" * min(118, max(map(len, lines))))
    return "\n".join(lines)
