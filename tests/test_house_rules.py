"""What the design states and a script can see: who may import whom, what an op folder holds, sizes, error habits."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from tkpy import registry
from tkpy.registry import Maker

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted(p for room in ("tkpy", "models", "bench", "tests") for p in (ROOT / room).rglob("*.py"))
LIBRARY = [p for p in PYTHON if p.relative_to(ROOT).parts[0] in ("tkpy", "models")]
OPS = sorted(p for p in (ROOT / "tkpy/ops").iterdir() if (p / "op.py").is_file())
MODELS = sorted(p for p in (ROOT / "models").glob("*.py"))

#: Rooms from the ground up; a room imports only from rooms below it (and from itself).
ROOMS = (
    "errors",
    "transforms",
    "arguments",
    "numerics",
    "text",
    "published",
    "emulator",
    "build_info",
    "machine",
    "cases",
    "registry",
    "ops",
    "interop",
    "conformance",
    "checkpoint",
    "nn",
    "models",
    "explain_model",
    "bench",
    "demo",
    "cli",
)
OP_FILES = {"__init__", "op", "reference", "eager", "triton", "triton_kernels", "cuda"}


CPP = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
KERNELS = sorted([*(ROOT / "csrc/kernels").glob("*/kernel.cu"), *(ROOT / "csrc/examples").glob("*.cu")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Full names of the modules a file imports, function-level imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "models" if parts[0] == "models" else parts[1]


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return  # the front door gathers the public names
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tkpy" and len(parts) > 1 and parts[1] in ROOMS:
            below = ROOMS.index(parts[1]) <= ROOMS.index(room)
            assert below, f"{relative(path)} ({room}) imports {name} from a room above it"


@pytest.mark.parametrize("path", MODELS, ids=relative)
def test_models_import_torch_and_public_tkpy_only(path):
    standard = {
        "__future__",
        "collections",
        "dataclasses",
        "functools",
        "math",
        "os",
        "pathlib",
        "re",
        "typing",
        "warnings",
    }
    allowed = standard | {"torch", "einops", "tkpy"}
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] in allowed, f"{relative(path)} imports {name}"
        if parts[0] == "tkpy" and len(parts) > 1:
            private = parts[1] in ("registry", "ops", "conformance", "arguments") or any(
                p.startswith("_") for p in parts
            )
            assert not private, f"{relative(path)} imports {name}, which is not public"


@pytest.mark.parametrize("path", [*MODELS, *sorted((ROOT / "tkpy/nn").glob("*.py"))], ids=relative)
def test_models_and_layers_never_name_a_backend(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert all(k.arg != "backend" for k in node.keywords), f"{relative(path)}:{node.lineno}"


def test_the_registry_names_no_op():
    for path in (ROOT / "tkpy").glob("*.py"):
        if path.stem in ("demo", "__init__"):
            continue
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not strings & set(registry.ops()), f"{relative(path)} names an op: adding one must edit no existing file"


@pytest.mark.parametrize("folder", OPS, ids=lambda p: p.name)
def test_an_op_folder_is_complete(folder):
    stems = {p.stem for p in folder.glob("*.py")}
    assert {"__init__", "op", "reference", "eager"} <= stems
    if folder.name not in ("attention", "attention_fp8", "fft_conv"):  # block mask; scales; tables and kept spectra
        assert stems <= OP_FILES, f"unexpected files in {relative(folder)}: {sorted(stems - OP_FILES)}"


@pytest.mark.parametrize("op", registry.ops().values(), ids=lambda op: op.name)
def test_an_op_explains_itself(op):
    text = inspect.getdoc(op.public) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, f"tkpy.{op.name}'s docstring has no '{section}'"
    names = [p for p in inspect.signature(op.public).parameters if p != "backend"]
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"tkpy.{op.name}'s docstring does not mention {missing}"
    parameter = inspect.signature(op.public).parameters["backend"]
    assert parameter.default is None
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("op", registry.ops().values(), ids=lambda op: op.name)
def test_a_table_of_cases_is_adversarial(op):
    """Every op has a zero-size case, a non-contiguous one and a real shape; every case says why it is there."""
    names = [case.name for case in op.cases]
    assert len(set(names)) == len(names)
    assert all(case.why for case in op.cases)
    assert any(case.bench for case in op.cases)
    tensors = [
        [t for t in case.make(Maker()).values() if isinstance(t, torch.Tensor)] for case in op.cases if not case.bench
    ]
    assert any(t.numel() == 0 for ts in tensors for t in ts), "no zero-size case"
    assert any(not t.is_contiguous() for ts in tensors for t in ts), "no non-contiguous case"


@pytest.mark.parametrize("folder", OPS, ids=lambda p: p.name)
def test_references_are_short(folder):
    lines = (folder / "reference.py").read_text().count("\n")
    assert lines <= 80, f"{relative(folder)}/reference.py has {lines} lines; an oracle is at most 80"


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_sizes(path):
    """Functions under 60 lines of code (docstrings apart), models at most about 400, other files at most 600."""
    text = path.read_text()
    limit = 420 if path in MODELS else 600
    assert text.count("\n") <= limit, f"{relative(path)} has {text.count(chr(10))} lines (limit {limit})"
    for node in functions(path):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert length < 60, f"{relative(path)}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_error_habits(path):
    """No swallowed errors, no bare asserts on arguments, no printing from the library, nothing left to do."""
    text = path.read_text()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{relative(path)}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            explains = path.name in ("registry.py", "explain_model.py")  # tkpy.explain and tkpy.explain_model print
            assert explains, f"{relative(path)}:{node.lineno} prints"
    marks = re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    assert not marks, f"{relative(path)} holds {marks}"


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_modules_and_public_functions_are_documented(path):
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{relative(path)} has no docstring"
    if "ops" in path.parts and path.stem not in ("op", "block_mask"):
        return  # backend modules implement the contract stated in the registry
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            contract = path.stem == "op" and node.name in ("fake", "supports", "flops", "nbytes", "values")
            assert contract or ast.get_docstring(node), f"{relative(path)}: {node.name} has no docstring"


@pytest.mark.parametrize("folder", [f for f in OPS if (f / "triton.py").is_file()], ids=lambda p: p.name)
def test_triton_kernels_have_a_header(folder):
    header = ast.get_docstring(ast.parse((folder / "triton.py").read_text())) or ""
    for part in ("shapes", "precision", "limits", "cost"):
        assert part in header, f"{relative(folder)}/triton.py: the header block does not state '{part}'"


def test_text_files_name_no_registry_host_or_private_path():
    private = re.compile(r"pypi\.org|pythonhosted|/root/|/home/\w+|/tmp/\w+|registry\.npmjs")
    for path in [*PYTHON, *ROOT.glob("*.*"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]:
        if path.is_file() and path.suffix in ("", ".py", ".md", ".toml", ".txt") and path != Path(__file__).resolve():
            found = private.findall(path.read_text())
            assert not found, f"{relative(path)} holds {found}"


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_cpp_rooms(path):
    """Python stays in csrc/bindings, the emulator knows no kernel; inline PTX stands in csrc/tk only."""
    room = path.relative_to(ROOT / "csrc").parts[0]
    text = path.read_text()
    includes = re.findall(r'#\s*include\s*[<"]([^">]+)[">]', text)
    for name in includes:
        assert not name.startswith(("torch/", "ATen/", "c10/")), f"{relative(path)} includes {name}"
        if room != "bindings":
            assert not name.startswith(("pybind11/", "Python.h")), f"{relative(path)} includes {name}"
        if room == "emulator":
            assert not re.search(r"runtime|kernels|tk/", name), f"{relative(path)} includes {name}"
    if room != "emulator" and not (room == "tk" and path.name.startswith("ptx")):
        assert not re.search(r"\basm\s*(volatile)?\s*\(", text), f"{relative(path)} holds inline assembly"
    assert text.count("\n") <= 600, f"{relative(path)} has {text.count(chr(10))} lines (limit 600)"
    assert not re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", text)


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_kernels_have_a_header_and_no_test_hooks(path):
    text = path.read_text()
    header = "\n".join(line for line in text.split("#include")[0].splitlines() if line.startswith("//"))
    for part in ("precision", "limits", "cost"):
        assert part in header, f"{relative(path)}: the header block does not state '{part}'"
    assert not re.search(r"#\s*if(n?def)?\b.*(TEST|EMULAT|DEBUG)", text), f"{relative(path)} has a test hook"
