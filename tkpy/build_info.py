"""What the build made: which kernels are here, with what nvcc, and whether each keeps its budget.

Reports are the JSON files that cmake/compile_kernel.py writes beside each kernel; nothing is loaded or compiled here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).resolve().parent / "kernels"

Report = dict[str, Any]
Budget = dict[str, dict[str, Any]]


def reports(folder: Path = KERNELS) -> dict[str, Report]:
    """Module name -> report, for every module whose files are all here."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem != "toolchain" and all(_is_there(path.with_suffix(end)) for end in (".ptx", ".cubin")):
            found[path.stem] = json.loads(path.read_text())
    return found


def _is_there(image: Path) -> bool:
    """As it was made, or packed, as in an installed package."""
    return image.exists() or image.with_name(f"{image.name}.gz").exists()


def missing_reason(module: str, folder: Path = KERNELS) -> str | None:
    """Why a module cannot be loaded, in words; None when it can."""
    if module in reports(folder):
        return None
    toolchain = folder / "toolchain.json"
    if not toolchain.exists():
        return "the package was built without its kernels"
    return str(json.loads(toolchain.read_text()).get("reason", f"the build made no kernel called {module}"))


def over_budget(reports: Iterable[Report], budget: Budget) -> list[str]:
    """Every promise of `budget` that the modules of `reports` break. A budget maps a pattern of kernel names to limits:
    registers, shared and barriers at most so many; stack and spills none unless it says otherwise; required SASS
    instructions at least so often, forbidden ones never; and not one warning, such as that wgmma was serialised. The
    first pattern that a kernel matches is its own."""
    reports = list(reports)
    where = ", ".join(report["name"] for report in reports)
    broken = [f"{report['name']}: {warning}" for report in reports for warning in report["warnings"]]
    kernels = {name: facts for report in reports for name, facts in report["kernels"].items()}
    own = {name: next((p for p in budget if fnmatch(name, p)), None) for name in kernels}
    broken += [f"{where}: no kernel matches {pattern}" for pattern in budget if pattern not in own.values()]
    for name, facts in kernels.items():
        pattern = own[name]
        if pattern is None:
            broken.append(f"{name}: no budget")
        else:
            broken += [f"{name}: {line}" for line in _over_limits(facts, budget[pattern])]
    return broken


def _over_limits(facts: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    broken = []
    for key, default in (("registers", 255), ("shared", None), ("barriers", None)):
        limit = limits.get(key, default)
        if limit is not None and facts[key] > limit:
            broken.append(f"{key} {facts[key]}, budget {limit}")
    for key in ("stack", "spill_stores", "spill_loads"):
        if facts[key] > limits.get(key, 0):
            broken.append(f"{key} {facts[key]} bytes, budget {limits.get(key, 0)}")
    sass = facts["sass"]
    if sass is None:  # no cuobjdump where it was built
        return broken
    for opcode, least in limits.get("required", {}).items():
        if sass.get(opcode, 0) < least:
            broken.append(f"{opcode} {sass.get(opcode, 0)} times, needs {least}")
    for opcode in limits.get("forbidden", ("LDL", "STL")):
        if sass.get(opcode, 0):
            broken.append(f"{opcode} {sass[opcode]} times, must not occur")
    return broken
