"""What sm_90a has: the ISA's mnemonics with their qualifiers, as patterns, and which of their spellings ptxas assembles.

    python tests/emulator/isa_forms.py [--update] [--list]

A pattern is an opcode and its operands. `<a|b>` is a choice (one may be empty); `<u16=h|u32=w>` also names a register
class, which `$1` (the first such choice), `$2`, ... stand for in the operands. Operands: h w d q p registers of 16, 32,
64, 128 bits and predicates; [d] and [w] addresses; {w4} vectors; numbers are immediates; anything else is written as it is.
Each line of isa_forms.tsv is a pattern and, in hexadecimal, which of its spellings (in order) sm_90a has; --update asks
ptxas. --list prints the spellings that the GPU has and the emulator does not model, and the other way round.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tkpy.emulator

TABLE = Path(__file__).with_name("isa_forms.tsv")
PROLOGUE = """.version 9.0
.target sm_90a
.address_size 64
.extern .func (.param .b64 ret) malloc (.param .b64 bytes);
.extern .func free (.param .b64 address);
.global .align 16 .b8 gvar[16];
.const .align 16 .b8 cvar[16];
.func (.param .b32 ret) callee (.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; st.param.b32 [ret], %x; ret; }
"""
BODY = """
.reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %w<300>; .reg .b64 %d<80>; .reg .b128 %q<8>;
.shared .align 16 .b8 svar[16]; .local .align 16 .b8 lvar[16];
.param .b32 in; .param .b32 out; .param .b64 in64; .param .b64 out64;
proto: .callprototype (.param .b32 _) _ (.param .b32 _);
table: .branchtargets label;
label:
"""


def choices(pattern: str) -> Iterator[str]:
    """Every spelling of a pattern, registers still as letters."""
    parts = re.split(r"<([^<>]*)>", pattern)
    options = [part.split("|") for part in parts[1::2]]
    for picked in itertools.product(*options):
        text = parts[0]
        keys: list[str] = []
        for choice, rest in zip(picked, parts[2::2], strict=True):
            name, _, key = choice.partition("=")
            if key:
                keys.append(key)
            text += name + rest
        yield re.sub(r"\$(\d)", lambda m, keys=keys: keys[int(m[1]) - 1], text)


def statement(spelling: str) -> str:
    """Letters become registers, each mention another one."""
    opcode, _, operands = spelling.partition(" ")
    numbers = dict.fromkeys("hwdqp", 0)

    def register(kind: str) -> str:
        numbers[kind] += 1
        return f"%{kind}{numbers[kind]}"

    def vector(m: re.Match[str]) -> str:
        return "{" + ", ".join(register(m[1]) for _ in range(int(m[2]))) + "}"

    operands = re.sub(r"\{([hwdqp])(\d+)\}", vector, operands)
    return f"{opcode} {re.sub(r'(?<![%.:A-Za-z0-9_])[hwdqp](?![A-Za-z0-9_:])', lambda m: register(m[0]), operands)};"


def spellings(pattern: str) -> list[str]:
    return [statement(s) for s in choices(pattern)]


def find_ptxas() -> str | None:
    if found := shutil.which("ptxas"):
        return found
    try:
        import triton.backends.nvidia as backend
    except ImportError:
        return None
    bundled = Path(backend.__file__).parent / "bin" / "ptxas"
    return str(bundled) if bundled.exists() else None


def ptxas_version(ptxas: str) -> tuple[int, int]:
    text = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def assembles(statements: list[str], ptxas: str) -> list[bool]:
    """One module, every statement on a line of its own. A syntax error ends ptxas's reading, so it is started again after
    each; the last line is one, so that no code is ever generated."""
    lines = (PROLOGUE + ".entry k (.param .b64 kp) {\n" + BODY).splitlines()
    bad: set[int] = set()
    start = 0
    while start <= len(statements):
        text = "\n".join([*lines, *statements[start:], "not an instruction", "ret;", "}"])
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "forms.ptx"
            source.write_text(text)
            command = [ptxas, "-arch=sm_90a", "-o", "/dev/null", str(source)]
            errors = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        found = [int(n) - len(lines) - 1 + start for n in re.findall(r"line (\d+);\s*(?:error|fatal)", errors)]
        fatal = re.findall(r"line (\d+);\s*fatal", errors)
        assert fatal, errors[-2000:]
        bad.update(found)
        start = int(fatal[0]) - len(lines) + start
    return [i not in bad for i in range(len(statements))]


def unmodelled(statements: list[str]) -> dict[int, str]:
    """Numbers of the statements that the emulator does not model or cannot read, and why."""
    lines = (PROLOGUE + ".entry k (.param .b64 kp) {\n" + BODY).splitlines()
    refused: dict[int, str] = {}
    statements = list(statements)
    while True:
        try:
            module = tkpy.emulator.load("\n".join([*lines, *statements, "ret;", "}"]))
        except ValueError as error:
            found = re.match(r"line (\d+): (.*)", str(error))
            if not found:
                raise
            bad = int(found[1]) - len(lines) - 1
            refused[bad] = found[2]
            statements[bad] = "ret;"
            continue
        return refused | {entry.line - len(lines) - 1: entry.reason for entry in module.unmodelled}


def read_table() -> list[tuple[str, int]]:
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return [(pattern, int(mask, 16)) for pattern, mask in rows]


def of_the_gpu() -> list[str]:
    """Every statement that sm_90a has."""
    return [s for pattern, mask in read_table() for i, s in enumerate(spellings(pattern)) if mask >> i & 1]


def of_other_gpus() -> list[str]:
    return [s for pattern, mask in read_table() for i, s in enumerate(spellings(pattern)) if not mask >> i & 1]


def update(ptxas: str) -> None:
    lines = [line.split("\t")[0] for line in TABLE.read_text().splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    good = iter(assembles([s for pattern in patterns for s in spellings(pattern)], ptxas))
    masks = {p: sum(1 << i for i, _ in enumerate(spellings(p)) if next(good)) for p in patterns}
    TABLE.write_text("\n".join(f"{line}\t{masks[line]:x}" if line in masks else line for line in lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="ask ptxas again what it assembles")
    parser.add_argument(
        "--list", action="store_true", help="print what the GPU has and the emulator lacks, and vice versa"
    )
    options = parser.parse_args()
    if options.update:
        ptxas = find_ptxas()
        assert ptxas, "ptxas not found (PATH, triton)"
        update(ptxas)
    have, other = of_the_gpu(), of_other_gpus()
    missing, refused = unmodelled(have), unmodelled(other)
    extra = [s for i, s in enumerate(other) if i not in refused]
    if options.list:
        for i, reason in missing.items():
            print(f"{have[i]}    # {reason}")
        for s in extra:
            print(f"accepted though sm_90a has it not: {s}")
    print(f"{len(have) - len(missing)} of {len(have)} statements of sm_90a modelled; "
          f"{len(other) - len(extra)} of {len(other)} that it lacks refused")  # fmt: skip


if __name__ == "__main__":
    main()
