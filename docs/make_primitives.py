"""docs/primitives.md from the headers in csrc/tk: every noun and verb, what its comment says, how it is called.

python docs/make_primitives.py          # writes docs/primitives.md
python docs/make_primitives.py --check  # exit status 1 when it is not up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADERS = {
    "Nouns": ["types.cuh", "layout.h", "group.cuh", "tiles.cuh"],
    "Moves": ["global_memory.cuh", "shared_memory.cuh", "tma.cuh"],
    "Registers": ["convert.cuh", "shape.cuh", "maps.cuh", "shared_maps.cuh", "functions.cuh", "reduce.cuh", "scan.cuh",
                  "mask.cuh", "complex.cuh"],
    "Products": ["mma.cuh"],
    "Order": ["sync.cuh", "pipeline.cuh"],
    "Instructions": ["ptx_data.cuh", "ptx_async.cuh", "ptx.cuh", "ptx_mma.cuh",
                     "ptx_wgmma.cuh", "ptx_wgmma_sparse.cuh", "ptx_micro.cuh"],
}  # fmt: skip
PREFACE = """# Tile primitives

Generated from `csrc/tk` by `python docs/make_primitives.py`: do not edit. A kernel includes `tk/tk.cuh` and nothing
else; [tutorial.md](tutorial.md) shows them at work. Calls are written without types: the destination comes first,
`<Scope>` is who acts (`warp` unless given, `warpgroup`, `group<warps, first>`), and a parameter with `=` may be left
out.
"""
#: The macros that declare one verb a line, and how such a verb is called.
MACROS = {
    "TK_MAP1": ["{0}(dst, a)"],
    "TK_MAP2": ["{0}(dst, a, b)"],
    "TK_REDUCE": ["row_{0}(dst, src, init =)", "col_{0}(dst, src, init =)",
                  "col_{0}<Scope>(dst, src, scratch, barrier)", "{0}(src)"],
    "TK_SCAN": ["{0}_cumsum<Direction>(dst, src, state =)", "{0}_decay_scan<Direction>(dst, src, decay, state =)"],
    "TK_COMPLEX_MMA": ["{0}(d, a, b, accumulate =)", "{0}(d, a, minus_im, b, accumulate =)"],
    "TK_BULK_REDUCE": ["bulk_{0}(dst, src, count)"],
    "TK_APPROXIMATION": ["{0}(x)"],
}  # fmt: skip
DECLARATION = re.compile(
    r"^(template\b|TK_DEVICE\b|TK_HD\b|constexpr\b|struct\b|union\b|enum class\b|using\b|concept\b)"
)


@dataclass
class Entry:
    calls: list[str]
    text: str


@dataclass
class Section:
    title: str
    entries: list[Entry] = field(default_factory=list)


def split_arguments(text: str) -> list[str]:
    """At commas outside every kind of bracket."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += c in "(<[{"
        depth -= c in ")>]}"
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [part.strip() for part in [*parts, current] if part.strip()]


def argument(text: str) -> str:
    """`typename T::type fill = 0` -> `fill =`"""
    head, equals, _ = text.partition("=")
    array = re.search(r"\(&\s*(\w+)\)\[", head)
    name = array[1] if array else re.findall(r"\w+", re.sub(r"\[.*", "", head))[-1]
    return name + (" =" if equals else "")


def call_of(declaration: str) -> str | None:
    """How what is declared is used, or its name if it is a type; None for what is no interface."""
    template = re.match(r"template <", declaration)
    parameters = ""
    if template:
        depth, end = 0, 0
        for end in range(template.end() - 1, len(declaration)):
            depth += declaration[end] == "<"
            depth -= declaration[end] == ">"
            if depth == 0:
                break
        parameters, declaration = declaration[template.end() : end], declaration[end + 1 :].strip()
    declaration = re.sub(r"^requires\s*(\(.*?\)\)?|.*?(?=TK_DEVICE))\s*(?=TK_DEVICE)", "", declaration)
    if named := re.match(r"(?:struct|union|enum class|using|concept)\s+(?:alignas\(.*?\)\s+)?(\w+)", declaration):
        if "<" in declaration.split("{")[0].split("=")[0]:
            return None  # a specialisation
        names = [re.findall(r"\w+", p.split("=")[0])[-1] for p in split_arguments(parameters)]
        return named[1] + (f"<{', '.join(names)}>" if names else "")
    function = re.search(r"([\w~]+)\s*(<[^()]*>)?\((.*)\)", declaration)
    if not function or not re.search(r"TK_DEVICE|TK_HD", declaration) or function[2]:
        return None
    explicit = []
    for p in split_arguments(parameters):
        name = re.findall(r"\w+", p.split("=")[0])[-1]
        if name == "Scope" or not re.search(rf"\b{name}\b", function[3]):
            explicit.append(name + (" =" if "=" in p and name != "Scope" else ""))
    arguments = ", ".join(argument(a) for a in split_arguments(function[3]))
    hidden = {"F", "Keep"}
    shown = [e for e in explicit if e not in hidden]
    return function[1] + (f"<{', '.join(shown)}>" if shown else "") + f"({arguments})"


def public_lines(text: str) -> list[str]:
    """What lies at namespace level, without bodies, preprocessor lines and namespace detail."""
    text = re.sub(r"namespace detail \{.*?\}  // namespace detail", "", text, flags=re.DOTALL)
    text = re.sub(r"^#define(.*\\\n)*.*\n|^#.*\n", "", text, flags=re.MULTILINE)
    lines, depth = [], 0
    for line in text.splitlines():
        code = line.split("//")[0]
        opens, closes = code.count("{"), code.count("}")
        if depth == 0:
            lines.append(line)
        if not code.startswith(("namespace", "}  ")):
            depth += opens - closes
    return [line for line in lines if not line.startswith(("namespace", "}"))]


def parse(path: Path) -> tuple[str, list[Section]]:
    """The header's own comment and its sections."""
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    intro = "\n".join(line[3:] for line in lines[:first])
    sections = [Section("")]
    comment: list[str] = []
    pending, together = "", False
    for line in public_lines("\n".join(lines[first:]) + "\n"):
        if heading := re.match(r"// ---- (.*?) -*$", line):
            sections.append(Section(heading[1]))
            comment, together = [], False
        elif line.startswith("//"):
            comment.append(line[3:])
        elif macro := re.match(r"(TK_\w+)\((\w+).*?\)\s*(?://\s*(.*))?$", line):
            if macro[1] in MACROS:
                calls = [call.format(macro[2]) for call in MACROS[macro[1]]]
                sections[-1].entries.append(Entry(calls, macro[3] or " ".join(comment)))
                comment, together = [], False
        elif not line.strip():
            comment, pending, together = [], "", False
        elif pending or DECLARATION.match(line):
            code, _, trailing = line.partition("//")
            pending = f"{pending} {code.strip()}".strip()
            body = pending.split(") {")[0] + ")" if ") {" in pending else pending
            finished = re.search(r"\)\s*(const\s*)?\{|;\s*$|\{\s*$|\}\s*$", pending)
            if finished:
                call = call_of(body)
                entries = sections[-1].entries
                if trailing and not comment:
                    comment = [trailing.strip()]
                if (
                    call and entries and not comment and together
                ):  # what follows without a blank line shares the comment
                    entries[-1].calls.append(call)
                elif call:
                    entries.append(Entry([call], " ".join(comment)))
                pending, comment, together = "", [], together or bool(call)
    if not path.name.startswith("ptx"):  # what is not explained there is not for use
        for section in sections:
            section.entries = [entry for entry in section.entries if entry.text]
    return intro, [s for s in sections if s.entries]


def render() -> str:
    out = [PREFACE]
    for title, headers in HEADERS.items():
        out.append(f"## {title}\n")
        for header in headers:
            intro, sections = parse(ROOT / "csrc/tk" / header)
            out.append(f"### `{header}`\n\n```text\n{intro}\n```\n")
            for section in sections:
                if section.title:
                    out.append(f"**{section.title}**\n")
                out.append("| call | what |\n|---|---|")
                for entry in section.entries:
                    calls = "<br>".join(f"`{call}`" for call in dict.fromkeys(entry.calls))
                    out.append(f"| {calls} | {entry.text.replace('|', chr(92) + '|')} |")
                out.append("")
    return "\n".join(out).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    target, text = ROOT / "docs/primitives.md", render()
    if check:
        return int(not target.exists() or target.read_text() != text)
    target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
