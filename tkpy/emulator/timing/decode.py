"""What a PTX instruction needs, read from its text: its kind, the registers it reads and writes, its unit."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Instructions that ptxas folds into others or turns into nothing.
FREE = ("mov", "cvta", "ld.param", "ld.const", "pragma", ".loc")
#: No result, or results that no register holds until a wait.
NO_RESULT = (
    "st.", "red.", "bar.", "barrier.", "mbarrier.init", "mbarrier.inval", "mbarrier.expect_tx", "mbarrier.complete_tx",
    "cp.", "wgmma.", "bra", "brx", "ret", "exit", "fence", "membar", "prefetch", "griddepcontrol", "setmaxnreg",
    "nanosleep", "trap", "tensormap.", "stmatrix", "discard", "applypriority", "brkpt",
)  # fmt: skip

_REGISTER = re.compile(r"[%A-Za-z_$][\w$.]*")
_SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid|laneid|warpid|clock|smid|cluster|globaltimer|lanemask|is_explicit)")


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction of the program. `kind` says what the replay does with it, `unit` which arithmetic it is."""

    text: str
    line: int
    kind: str
    unit: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    n: int = 0  # of wgmma
    k: int = 0
    operands: str = ""  # type of a tensor core's operands
    from_registers: bool = False  # A of wgmma
    sparse: bool = False  # A of wgmma: half of its values are there
    flops: int = 0  # of mma.sync, a warp's
    pending: int = 0  # groups that a wait leaves
    read_only: bool = False  # a wait for sources only
    sync: bool = True  # of a barrier: not an arrive only
    past_l1: bool = False  # of a load


_CLOCK = re.compile(r"%(clock|globaltimer)")


def _split(text: str) -> list[str]:
    """Operands at the top level: commas inside {}, [] and () do not separate."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [p for p in parts if p]


def _registers(text: str) -> list[str]:
    return [name for name in _REGISTER.findall(text) if name != "_" and not _SPECIAL.match(name)]


@functools.cache
def decode(text: str, line: int = 0) -> Instruction:
    """`@%p1 fma.rn.f32 %f1, %f2, %f3, %f4;` as an `Instruction`."""
    body = text.strip().rstrip(";").strip()
    guard: list[str] = []
    if body.startswith("@"):
        first, _, body = body.partition(" ")
        guard = _registers(first.lstrip("@!"))
    opcode, _, rest = body.strip().partition(" ")
    operands = _split(rest)
    kind, fields = _classify(opcode, operands)
    writes: list[str] = []
    sources = operands
    if operands and not opcode.startswith(NO_RESULT) and kind != "control":
        writes = _registers(operands[0]) if not operands[0].startswith("[") else []
        sources = operands[1:]
    if opcode.startswith("mbarrier.arrive") and operands and operands[0].startswith("["):
        writes, sources = [], operands
    reads = [*guard, *(name for operand in sources for name in _registers(operand))]
    return Instruction(text, line, kind, reads=tuple(dict.fromkeys(reads)), writes=tuple(writes), **fields)


def _classify(opcode: str, operands: list[str]) -> tuple[str, dict[str, Any]]:
    """(kind, further fields)."""
    if opcode.startswith("mov") and len(operands) > 1 and _CLOCK.match(operands[1]):
        return "clock", {}
    for prefix, kind in _PREFIXES:
        if opcode.startswith(prefix):
            return kind, _FIELDS.get(kind, lambda opcode, operands: {})(opcode, operands)
    return "arithmetic", {"unit": _unit(opcode)}


def _pending(opcode: str, operands: list[str]) -> dict[str, Any]:
    number = operands[0] if operands else "0"
    return {"pending": int(number) if number.isdigit() else 0, "read_only": ".read" in opcode}


def _barrier(opcode: str, operands: list[str]) -> dict[str, Any]:
    return {"sync": ".arrive" not in opcode}


def _wgmma(opcode: str, operands: list[str]) -> dict[str, Any]:
    m = re.search(r"m64n(\d+)k(\d+)", opcode)
    types = [t for t in opcode.split(".") if t in ("f16", "bf16", "tf32", "e4m3", "e5m2", "s8", "u8", "b1")]
    return {
        "n": int(m[1]) if m else 0,
        "k": int(m[2]) if m else 0,
        "operands": types[-1] if types else "f16",
        "from_registers": len(operands) > 1 and operands[1].startswith("{"),
        "sparse": ".sp." in opcode,
    }


def _mma(opcode: str, operands: list[str]) -> dict[str, Any]:
    m = re.search(r"m(\d+)n(\d+)k(\d+)", opcode)
    types = [t for t in opcode.split(".") if re.fullmatch(r"f16|bf16|tf32|f64|[su][48]|e[45]m[0-9]|b1", t)]
    flops = 2 * int(m[1]) * int(m[2]) * int(m[3]) if m else 0
    operands_type = types[-2] if len(types) >= 2 else "f16"
    return {"flops": flops, "operands": operands_type}


_FIELDS = {
    "async_wait": _pending,
    "bulk_wait": _pending,
    "wgmma_wait": _pending,
    "load": lambda opcode, operands: {"past_l1": ".cg" in opcode or ".cv" in opcode},
    "barrier": _barrier,
    "wgmma": _wgmma,
    "mma": _mma,
}

#: Longest first where one is the beginning of another.
_PREFIXES = (
    *((name, "free") for name in FREE),
    ("wgmma.mma_async", "wgmma"),
    ("wgmma.commit", "wgmma_commit"),
    ("wgmma.wait", "wgmma_wait"),
    ("wgmma.fence", "control"),
    ("mma.", "mma"),
    ("wmma.mma", "mma"),
    ("mbarrier.test_wait", "mbarrier_wait"),
    ("mbarrier.try_wait", "mbarrier_wait"),
    ("mbarrier.", "mbarrier"),
    ("cp.async.mbarrier", "mbarrier"),
    ("cp.async.bulk.commit", "bulk_commit"),
    ("cp.async.bulk.wait", "bulk_wait"),
    ("cp.async.bulk.prefetch", "control"),
    ("cp.async.bulk", "bulk"),
    ("cp.reduce.async.bulk", "bulk"),
    ("cp.async.commit", "async_commit"),
    ("cp.async.wait", "async_wait"),
    ("cp.async", "async_"),
    ("barrier.cluster.arrive", "cluster_arrive"),
    ("barrier.cluster.wait", "cluster_wait"),
    ("bar.warp", "control"),
    ("bar.", "barrier"),
    ("barrier.", "barrier"),
    ("ld.shared", "shared"),
    ("st.shared", "shared"),
    ("ldmatrix", "shared"),
    ("stmatrix", "shared"),
    ("atom.shared", "shared"),
    ("red.shared", "shared"),
    ("st.async", "shared"),
    ("red.async", "shared"),
    ("ld.local", "local"),
    ("st.local", "local"),
    ("ld", "load"),
    ("atom", "atomic"),
    ("st", "store"),
    ("red.", "store"),
    ("redux", "arithmetic"),
    ("bra", "control"),
    ("brx", "control"),
    ("ret", "control"),
    ("exit", "control"),
    ("call", "control"),
    ("fence", "control"),
    ("membar", "control"),
    ("griddepcontrol", "control"),
    ("setmaxnreg", "control"),
    ("nanosleep", "control"),
    ("tensormap", "control"),
    ("prefetch", "control"),
)


def _unit(opcode: str) -> str:
    """Which row of the guide's table an arithmetic instruction belongs to."""
    head, *types = opcode.split(".")
    last = types[-1] if types else ""
    if head in ("rcp", "rsqrt", "sqrt", "ex2", "lg2", "sin", "cos", "tanh", "div"):
        return "special"
    if head == "cvt":
        return "convert64" if any(t.endswith("64") for t in types) else "convert"
    if head in ("shfl", "movmatrix"):
        return "shuffle"
    if head in ("vote", "match", "activemask", "elect"):
        return "vote"
    if head == "redux":
        return "reduce"
    if head in ("popc", "clz", "bfind", "brev", "fns"):
        return "count"
    if last == "f64" or "f64" in types:
        return "f64"
    if head in ("add", "sub", "mul", "fma", "mad", "max", "min", "neg", "abs"):
        if last in ("f16", "f16x2", "bf16", "bf16x2"):
            return "f16"
        if last == "f32" and head in ("add", "sub", "mul", "fma", "mad"):
            return "f32"
    return "integer"


_OFFSET = re.compile(r"add\.[su](?:32|64) (\S+), [^,]+, -?\d+;?$")
_ADDRESS = re.compile(r"\[[^\]]*\]")


def folded(texts: Iterable[str]) -> set[str]:
    """Of one function's instructions, those that ptxas makes the offset of an access: they add a constant, and nothing
    uses the sum but as an address."""
    made: dict[str, list[str]] = {}
    used: set[str] = set()
    for text in texts:
        if match := _OFFSET.match(text):
            made.setdefault(match[1], []).append(text)
        plain = _registers(_ADDRESS.sub("", text.partition(" ")[2] if not text.startswith("@") else text))
        for name in decode(text).writes:
            plain.remove(name)
        used.update(plain)
    return {text for name, texts in made.items() if name not in used for text in texts}
