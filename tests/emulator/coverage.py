"""Which instruction forms of a census the emulator models.

    python tests/emulator/coverage.py forms.tsv [--list]

The first column of the file is a form: an opcode with its modifiers, a space, and operand shapes separated by commas.
r register, p predicate, i immediate, [a] address, {r4} vector, S special register, L label, sym variable, F function,
(n) arguments, proto prototype. Register sizes are not part of a form, so a form counts as modelled when some assignment of
32-, 64- and 128-bit registers decodes.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tkpy.emulator

PROLOGUE = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
.func (.param .b32 ret) callee (.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; st.param.b32 [ret], %x; ret; }
.entry kernel (.param .u64 kp)
{
.reg .pred %p<16>;
.reg .b32 %w<300>;
.reg .b64 %d<300>;
.reg .b128 %q<8>;
.param .b32 in; .param .b32 out;
proto: .callprototype (.param .b32 _) _ (.param .b32 _);
table: .branchtargets label;
label:
"""


def split_operands(shape: str) -> list[str]:
    out, depth, current = [], 0, ""
    for c in shape:
        depth += c in "[{("
        depth -= c in "]})"
        if c == "," and depth == 0:
            out.append(current)
            current = ""
        else:
            current += c
    return [*out, current] if current else out


class Writer:
    """Writes one operand list; every register, and every vector as a whole, is a choice of size."""

    def __init__(self, sizes: tuple[str, ...], values: tuple[str, str]):
        self.sizes, self.values = iter(sizes), values
        self.numbers: Counter[str] = Counter()

    def register(self, kind: str | None = None) -> str:
        kind = kind or next(self.sizes)
        self.numbers[kind] += 1
        return f"%{kind}{self.numbers[kind]}"

    def vector(self, body: str) -> str:
        kind = next(self.sizes) if "r" in body else "w"
        items = []
        for letter, count in re.findall(r"([a-z_])(\d*)", body):
            for _ in range(int(count or 1)):
                items.append({"r": self.register(kind) if letter == "r" else "", "i": "1", "_": "_"}[letter])
        return "{" + ", ".join(items) + "}"

    def operand(self, shape: str) -> str:
        if "|" in shape:
            return "|".join(self.operand(s) for s in shape.split("|"))
        if shape == "r":
            return self.register()
        if re.fullmatch(r"r\.[bh]\d", shape):
            return self.register() + shape[1:]
        if shape == "p":
            return self.register("p")
        if shape.startswith("[a"):
            inner = re.search(r"\{(.*?)\}", shape)
            return f"[{self.register()}, {self.coordinates(inner[1])}]" if inner else f"[{self.register()}]"
        if shape.startswith("{"):
            return self.vector(shape[1:-1])
        fixed = {
            "i": self.values[0],
            "_": "_",
            "S": self.values[1],
            "L": "label",
            "sym": "smem",
            "F": "callee",
            "(n)": "(in)",
        }
        return fixed.get(shape, shape)

    def coordinates(self, body: str) -> str:
        items = []
        for letter, count in re.findall(r"([ir])(\d*)", body):
            items += [self.register("w") if letter == "r" else "0" for _ in range(int(count or 1))]
        return "{" + ", ".join(items) + "}"


def spellings(form: str) -> Iterator[str]:
    """Statements that have this form, over register sizes and a few immediates."""
    opcode, _, shape = form.partition(" ")
    operands = split_operands(shape)
    if opcode.startswith("call"):
        if "proto" in shape:
            yield "call (out), %d1, (in), proto;"
        elif operands[0] == "(n)":
            yield "call.uni (out), callee, (in);"
        else:
            yield ".reg .b32 %unused; call.uni (out), callee, (in);"
        return
    if opcode.startswith("brx"):
        operands = ["r", "table"]
    choices = len(re.findall(r"(?<![a-z.])r(?![a-z])", re.sub(r"\[a,\{.*?\}\]", "[a]", shape))) + shape.count("[a")
    kinds = "wd" if ".b128" not in opcode else "wdq"
    special = "%clock64" if "64" in opcode else "%tid.x"
    for sizes in itertools.product(kinds, repeat=min(choices, 7)):
        for immediate in ("1", "16", "0", "24", "128"):
            writer = Writer((*sizes, *"w" * 16), (immediate, special))
            yield f"{opcode} {', '.join(writer.operand(o) for o in operands)};"
            if "i" not in shape:
                break


def modelled(form: str) -> str:
    """ "" when the form decodes, else the reason that it does not."""
    statements = list(dict.fromkeys(spellings(form)))
    reason = "no spelling"
    for start in range(0, len(statements), 64):
        part = statements[start : start + 64]
        body = "\n".join(part)
        try:
            module = tkpy.emulator.load(PROLOGUE + body + "\nret;\n}\n")
        except ValueError as error:
            reason = str(error)
            continue
        bad = module.unmodelled
        if len(bad) < len(part):
            return ""
        reason = bad[0].reason
    return reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forms", type=Path)
    parser.add_argument("--list", action="store_true", help="print every form that is not modelled")
    options = parser.parse_args()
    forms = [line.split("\t")[0] for line in options.forms.read_text().splitlines() if line]
    forms = [f for f in forms if f != "form"]
    missing: dict[str, str] = {}
    for form in forms:
        if reason := modelled(form):
            missing[form] = reason
    by_family = Counter(f.split(".")[0].split(" ")[0] for f in missing)
    if options.list:
        for form, reason in missing.items():
            print(f"{form}    # {reason}")
    print(", ".join(f"{name} {n}" for name, n in by_family.most_common()))
    print(f"{len(forms) - len(missing)} of {len(forms)} forms modelled")


if __name__ == "__main__":
    main()
