"""Faults in the source of an op's Triton kernels, run in Triton's interpreter, which needs a process of its own.

found = shown(tmp_path, "tkpy.ops.gated_mlp.triton", ("_gated",), {"name": ("old", "new")}, "runs:disagreement")
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tkpy import conformance, registry
from tkpy.numerics import TOLERANCE, compare
from tkpy.registry import Maker


def gradients(
    function: Callable[..., torch.Tensor], kwargs: dict, wanted: tuple[str, ...], backend: str, **more: object
) -> dict[str, torch.Tensor]:
    """y, and the gradients of those wanted, from a gradient of y that is the same for every backend."""
    given = {k: v.detach().requires_grad_(k in wanted) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    y = function(**given, **more, backend=backend)
    dy = Maker(torch.bfloat16, seed=5).randn(*y.shape).to(y)
    return {"y": y.detach()} | dict(zip(wanted, torch.autograd.grad(y, [given[k] for k in wanted], dy), strict=True))


def disagreement(name: str, kwargs: dict, *wanted: str) -> str:
    """Empty if y and the gradients, of those `wanted` or of all, agree with float64."""
    function, dtype = registry.get(name).public, kwargs["x"].dtype
    names = wanted or tuple(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
    found = gradients(function, kwargs, names, "triton")
    expected = gradients(function, conformance.widen(kwargs), names, "reference")
    for what, value in found.items():
        comparison = compare(value, expected[what], TOLERANCE[dtype])
        if not comparison:
            return f"{name} {names}, {what}: {comparison}"
    return ""


def shown(folder: Path, module: str, faults: Mapping[str, tuple[str, str]], check: str) -> dict[str, str]:
    """What `check` ("module:function", which returns a text) says of each fault; "none" is the source as it is.

    A fault replaces a text wherever it stands in `module`'s source, whose functions are then those. None may write
    outside: the interpreter does not look.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    told = json.dumps([str(folder), module, {"none": ("", "")} | dict(faults), check])
    command = [sys.executable, "-W", "ignore", __file__, told]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run(folder: str, module: str, faults: dict[str, list[str]], check: str) -> dict[str, str]:
    backend = importlib.import_module(module)
    source, found = Path(str(backend.__file__)).read_text(), {}
    runs, function = check.split(":")
    says = getattr(importlib.import_module(runs), function)
    for number, (name, (old, new)) in enumerate(faults.items()):
        assert old in source, name
        path = Path(folder) / f"kernels{number}.py"
        changed = source.replace(old, new) if old else source
        path.write_text(changed)  # which the interpreter reads
        exec(compile(changed, path, "exec"), vars(backend))
        found[name] = says()
    return found


if __name__ == "__main__":
    print(json.dumps(_run(*json.loads(sys.argv[1]))))
