"""Seeds for the fuzzer: every instruction form of the census in runnable programs, fuzz_seed.ptx, the small kernels that
the build has made, and a dictionary of PTX words.

    python tests/emulator/fuzz/corpus.py build/fuzz
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))

import coverage  # noqa: E402  (tests/emulator/coverage.py)

import tkpy.emulator  # noqa: E402

FORMS_A_PROGRAM = 4
LARGEST = 40_000  # bytes: small inputs are what a fuzzer is fast on

# Registers hold what an instruction may want: addresses of global and of shared memory, an mbarrier, small numbers.
SETUP = """
.shared .align 128 .b8 tile[2048];
ld.param.u64 %d1, [kp];
mov.u32 %w90, %tid.x;
mov.u32 %w91, tile;
setp.eq.u32 %p1, %w90, 0;
@%p1 mbarrier.init.shared.b64 [%w91], 64;
bar.sync 0;
"""


def registers() -> str:
    lines = [f"add.u64 %d{i}, %d1, {16 * i};" for i in range(2, 12)]
    lines += [f"add.u32 %w{i}, %w91, {16 * (i - 1)};" if i % 2 else f"mov.u32 %w{i}, {i};" for i in range(1, 16)]
    lines += [f"setp.ne.u32 %p{i}, %w90, {i};" for i in range(1, 8)]
    return "\n".join(lines)


def runs(statement: str) -> bool:
    try:
        return not tkpy.emulator.load(f"{coverage.PROLOGUE}{statement}\nret;\n}}\n").unmodelled
    except ValueError:
        return False


def programs(forms: list[str]) -> dict[str, str]:
    prologue = re.sub(r"label:\s*$", "", coverage.PROLOGUE) + SETUP + registers() + "\nlabel:\n"
    made = {}
    for start in range(0, len(forms), FORMS_A_PROGRAM):
        body = []
        for form in forms[start : start + FORMS_A_PROGRAM]:
            statements = list(dict.fromkeys(coverage.spellings(form)))
            body.append(next((s for s in statements if runs(s)), statements[0]))
        made[f"forms{start:05}.ptx"] = prologue + "\n".join(body) + "\nret;\n}\n"
    return made


def dictionary(forms: list[str]) -> str:
    words = {part for form in forms for part in form.split(" ")[0].split(".")}
    words |= {".entry", ".func", ".param", ".reg", ".shared", ".local", ".align", ".b8", ".pred", "@%p1", "@!%p1", "bra",
              "%tid.x", "%laneid", "0x7fffffff", "0xffffffffffffffff", "0f7FC00000", "4294967296", "-1"}  # fmt: skip
    return "".join(f'"{word}"\n' for word in sorted(words) if word)


def main() -> None:
    out = Path(sys.argv[1])
    seeds = out / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    census = (HERE.parent / "ptx_forms.tsv").read_text().splitlines()[1:]
    forms = [line.split("\t")[0] for line in census if line]
    made = programs(forms)
    made["fuzz_seed.ptx"] = (HERE.parent / "fuzz_seed.ptx").read_text()
    for path in (ROOT / "tkpy/kernels").glob("*.ptx"):
        text = re.sub(
            r"(?m)^\s*(//.*|\.loc .*|\$L__tmp\d+:)\n", "", path.read_text()
        )  # debug information is dead weight
        if len(text) < LARGEST:
            made[path.name] = text
    for name, text in made.items():
        (seeds / name).write_text(text)
    (out / "words.dict").write_text(dictionary(forms))
    print(f"{len(made)} seeds in {seeds}")


if __name__ == "__main__":
    main()
