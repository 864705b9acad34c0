"""One CUDA source -> <name>.ptx, <name>.cubin made from that very file, <name>.json about both.

    python cmake/compile_kernel.py csrc/kernels/gemm/kernel.cu --name gemm --out build/kernels
    python cmake/compile_kernel.py --toolchain          # which nvcc, as JSON; exit status 3 when there is none

The build calls it once per kernel, the tests import it: both take the same path. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST_NVCC = (12, 8)
NVCC_FLAGS = ("-ptx", "-gencode=arch=compute_90a,code=compute_90a", "-lineinfo", "-std=c++20", "-O3")
PTXAS_FLAGS = ("-arch=sm_90a", "-v", "--generate-line-info", "-O3")
NOT_FOUND = "nvcc not found"
EXIT_NO_NVCC = 3


class CompileError(RuntimeError):
    """nvcc or ptxas refused; the message holds their words."""


@dataclass(frozen=True)
class Toolchain:
    nvcc: str
    ptxas: str
    version: str
    origin: str  # "CUDA_HOME", "PATH" or "python packages"
    cuobjdump: str | None


def _version(nvcc: Path) -> tuple[int, ...] | None:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release \d+\.\d+, V(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else None


def _package_folders(name: str) -> list[Path]:
    """Folders of an installed Python package, without importing it. pip hides an environment's packages from a build in
    isolation; where they lie is known all the same."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    found = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found += [Path(sysconfig.get_path(scheme)) / name for scheme in ("purelib", "platlib")]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


# What nvcc needs of the Python packages, below nvidia/cu13.
PACKAGE_PARTS = {
    "bin/ptxas": "nvidia-cuda-nvcc",
    "nvvm/bin/cicc": "nvidia-nvvm",
    "include/crt/host_defines.h": "nvidia-cuda-crt",
    "include/cuda_runtime.h": "nvidia-cuda-runtime",
}


def _nvcc_candidates() -> list[tuple[str, Path]]:
    found = []
    if home := os.environ.get("CUDA_HOME"):
        found.append(("CUDA_HOME", Path(home) / "bin" / "nvcc"))
    if on_path := shutil.which("nvcc"):
        found.append(("PATH", Path(on_path)))
    for folder in _package_folders("nvidia"):
        found.append(("python packages", folder / "cu13" / "bin" / "nvcc"))
    return [(origin, nvcc) for origin, nvcc in found if nvcc.exists()]


def _unfit(origin: str, nvcc: Path) -> str | None:
    """Why this nvcc is not taken."""
    if origin == "python packages":
        for part, package in PACKAGE_PARTS.items():
            if not (nvcc.parent.parent / part).exists():
                return f"the Python package {package} is missing beside nvidia-cuda-nvcc"
    version = _version(nvcc)
    if version is None:
        return f"{nvcc} does not run"
    if version[:2] < OLDEST_NVCC:
        return f"{nvcc} is {'.'.join(map(str, version))}, needs {'.'.join(map(str, OLDEST_NVCC))} or newer"
    return None if _beside(nvcc, "ptxas") else f"no ptxas beside {nvcc}"


def _beside(nvcc: Path, tool: str) -> str | None:
    for folder in (nvcc.parent, nvcc.resolve().parent):
        if os.access(folder / tool, os.X_OK):
            return str(folder / tool)
    return shutil.which(tool)


def find_cuobjdump(nvcc: Path | None = None) -> str | None:
    """cuobjdump of the toolkit, of PATH, or of the triton package; it needs nvdisasm beside it or on PATH."""
    places = [shutil.which("cuobjdump"), _beside(nvcc, "cuobjdump") if nvcc else None]
    places += [str(folder / "backends/nvidia/bin/cuobjdump") for folder in _package_folders("triton")]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def find_toolchain() -> Toolchain | None:
    for origin, nvcc in _nvcc_candidates():
        version, ptxas = _version(nvcc), _beside(nvcc, "ptxas")
        if _unfit(origin, nvcc) is None and version and ptxas:
            return Toolchain(str(nvcc), ptxas, ".".join(map(str, version)), origin, find_cuobjdump(nvcc))
    return None


def why_not_found() -> str:
    reasons = [reason for origin, nvcc in _nvcc_candidates() if (reason := _unfit(origin, nvcc))]
    return f"{NOT_FOUND} ({'; '.join(reasons)})" if reasons else NOT_FOUND


def module_name(source: Path) -> str:
    """What the module made from `source` is called: csrc/kernels/gemm/kernel.cu is gemm, another file of that folder
    gemm_<stem>, csrc/microbench/alu.cu microbench_alu, and any other file is called by its stem."""
    folder = source.resolve().parent
    if source.stem == "kernel":
        return folder.name
    return (
        f"{folder.name}_{source.stem}"
        if folder.parent.name == "kernels" or folder.name == "microbench"
        else source.stem
    )


def module_names(sources: Sequence[Path]) -> list[str]:
    names = [module_name(source) for source in sources]
    for name, count in Counter(names).items():
        if count > 1:
            twice = ", ".join(str(source) for source in sources if module_name(source) == name)
            raise CompileError(f"two sources would make the module {name}: {twice}")
    return names


def _run(command: Sequence[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{what}\n$ {' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout + done.stderr


def parse_ptxas(text: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What `ptxas -v` says: per entry function its registers, shared, stack and spill bytes; and every warning."""
    entries: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    current: dict[str, Any] = {}
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '([^']+)'", line):
            current = entries.setdefault(found[1], {"shared": 0, "barriers": 0})
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Device functions that were not inlined report their own frames: count the worst.
            for key, value in zip(("stack", "spill_stores", "spill_loads"), found.groups(), strict=True):
                current[key] = max(current.get(key, 0), int(value))
        elif found := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(found[1])
            for key, pattern in (("shared", r"(\d+) bytes smem"), ("barriers", r"used (\d+) barriers")):
                if extra := re.search(pattern, line):
                    current[key] = int(extra[1])
        elif re.search(r"\bwarning\b|Potential Performance Loss|\(C7\d+\)", line):
            warnings.append(line.strip())
    return entries, warnings


def count_sass(cuobjdump: str, cubin: Path) -> dict[str, dict[str, int]]:
    """Instructions per function by base opcode: {"gemm": {"HGMMA": 16, ...}}."""
    text = _run([cuobjdump, "--dump-sass", str(cubin)], "cuobjdump failed")
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in text.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            current = counts.setdefault(found[1], Counter())
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", line):
            current[found[1]] += 1
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_depfile(text: str, source: Path) -> dict[str, str]:
    """The headers of this project that went into a kernel, and their hashes; those below its root by relative path."""
    words = re.findall(r"(?:\\\s|\S)+", text.partition(":")[2].replace("\\\n", " "))
    paths = {Path(re.sub(r"\\(.)", r"\1", word)).resolve() for word in words} - {source.resolve()}
    mine = sorted(path for path in paths if path.is_relative_to(ROOT) or path.is_relative_to(source.resolve().parent))
    return {str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path): _sha256(path) for path in mine}


def is_current(folder: Path, name: str, source: Path, toolchain: Toolchain, flags: Sequence[str] = ()) -> bool:
    """Whether `folder` holds module `name` as this compiler would make it of `source` and its headers as they are."""
    files = [folder / f"{name}.{end}" for end in ("json", "ptx", "cubin")]
    if not all(file.exists() for file in files):
        return False
    report = json.loads(files[0].read_text())
    made_by = [report.get(key) for key in ("nvcc", "flags", "source_sha256")]
    if made_by != [toolchain.version, [*NVCC_FLAGS, *flags, *PTXAS_FLAGS], _sha256(source)]:
        return False
    if toolchain.cuobjdump and any(facts["sass"] is None for facts in report["kernels"].values()):
        return False  # it was built where there was no cuobjdump
    return all((ROOT / path).exists() and _sha256(ROOT / path) == was for path, was in report["headers"].items())


def _publish(made: Path, target: Path) -> None:
    """A rename within one folder: a reader, or a second build, sees the old file or the new one, never half of one."""
    os.replace(made, target)


def compile_kernel(
    source: Path, name: str, out: Path, toolchain: Toolchain, *, flags: Sequence[str] = (), depfile: Path | None = None
) -> dict[str, Any]:
    """Compiles `source`; returns the report that also lies in `out`/<name>.json."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as scratch:
        ptx, cubin, report_file, deps = (Path(scratch) / f"{name}.{end}" for end in ("ptx", "cubin", "json", "d"))
        command = [toolchain.nvcc, *NVCC_FLAGS, f"-I{ROOT / 'csrc'}", *flags, str(source), "-o", str(ptx)]
        command += ["-MD", "-MF", str(deps), "-MT", str(out / f"{name}.json")]
        said = _run(command, f"{name}: nvcc failed")
        assembled = _run([toolchain.ptxas, *PTXAS_FLAGS, str(ptx), "-o", str(cubin)], f"{name}: ptxas failed")
        entries, warnings = parse_ptxas(assembled)
        sass = count_sass(toolchain.cuobjdump, cubin) if toolchain.cuobjdump else None
        for entry, facts in entries.items():
            facts["sass"] = sass.get(entry, {}) if sass is not None else None
        report = {
            "name": name,
            "arch": "sm_90a",
            "nvcc": toolchain.version,
            "nvcc_from": toolchain.origin,
            "flags": [*NVCC_FLAGS, *flags, *PTXAS_FLAGS],
            "source_sha256": _sha256(source),
            "headers": read_depfile(deps.read_text(), source),
            "ptx_sha256": _sha256(ptx),
            "kernels": entries,
            "warnings": [line for line in said.splitlines() if "warning" in line] + warnings,
            "wgmma_serialized": any("wgmma" in line and "are serialized" in line for line in warnings),
        }
        report_file.write_text(json.dumps(report, indent=1) + "\n")
        if depfile:
            shutil.copyfile(deps, depfile)
        for made in (ptx, cubin, report_file):  # the report last: it is what the build looks at
            _publish(made, out / made.name)
    return report


def reuse(
    source: Path, name: str, out: Path, toolchain: Toolchain, flags: Sequence[str] = (), depfile: Path | None = None
) -> dict[str, Any] | None:
    """What compiling would make, brought to `out` from a folder that TKPY_BUILT_KERNELS names, or there already; its
    report, or None where nobody has it. Builds go by the times of files, and a checkout renews those of equal ones."""
    others = [Path(folder) for folder in os.environ.get("TKPY_BUILT_KERNELS", "").split(os.pathsep) if folder]
    found = next((place for place in (out, *others) if is_current(place, name, source, toolchain, flags)), None)
    if found is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as scratch:
        for end in ("ptx", "cubin", "json"):
            made = Path(scratch) / f"{name}.{end}"
            shutil.copyfile(found / made.name, made)
            _publish(made, out / made.name)
    report: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    if depfile:
        needed = [source.resolve(), *(ROOT / header for header in report["headers"])]
        depfile.write_text(f"{out / name}.json: {' '.join(str(path).replace(' ', chr(92) + ' ') for path in needed)}\n")
    return report


def compile_cached(
    source: Path, name: str, cache: Path, toolchain: Toolchain, flags: Sequence[str] = (), built: Path | None = None
) -> Path:
    """For tests: a folder that holds the compiled `source`: `built`, where the build has put it, if that is current,
    else one below `cache`. Of processes that ask at the same time, one compiles."""
    if built and is_current(built, name, source, toolchain, flags):
        return built
    key = hashlib.sha256(repr((toolchain.version, _sha256(Path(__file__)), tuple(flags))).encode())
    key.update(source.read_bytes())
    out = cache / f"{name}-{key.hexdigest()[:16]}"
    import fcntl  # not on every system that builds

    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(out, name, source, toolchain, flags):
            compile_kernel(source, name, out, toolchain, flags=flags)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--name", help="stem of the three files; default: as --names says")
    parser.add_argument("--out", type=Path, default=Path("build/kernels"))
    parser.add_argument("--depfile", type=Path, help="write the headers this kernel depends on, for ninja and make")
    parser.add_argument("--toolchain", action="store_true", help="print the toolchain and stop")
    parser.add_argument("--names", type=Path, nargs="*", help="print what these sources' modules are called and stop")
    parser.add_argument("flags", nargs="*", help="after --: further nvcc flags")
    options = parser.parse_args(arguments)
    if options.names is not None:
        try:
            print(";".join(module_names(options.names)))
        except CompileError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    toolchain = find_toolchain()
    if options.toolchain:
        print(json.dumps(asdict(toolchain) if toolchain else {"reason": why_not_found()}))
        return 0 if toolchain else EXIT_NO_NVCC
    if toolchain is None:
        print(f"{why_not_found()}: looked in CUDA_HOME, PATH and the Python packages (12.8 or newer)", file=sys.stderr)
        return EXIT_NO_NVCC
    if options.source is None:
        parser.error("a source is needed")
    name = options.name or module_name(options.source)
    what: dict[str, Any] = {"flags": options.flags, "depfile": options.depfile}
    try:
        report = reuse(options.source, name, options.out, toolchain, **what) or compile_kernel(
            options.source, name, options.out, toolchain, **what
        )
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    for line in report["warnings"]:
        print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
