"""Faults in the source of an op's Triton kernels, run in Triton's interpreter, which needs a process of its own.

found = shown(tmp_path, "tkpy.ops.gated_mlp.triton", ("_gated",), {"name": ("old", "new")}, "runs:disagreement")
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def shown(
    folder: Path, module: str, kernels: Sequence[str], faults: Mapping[str, tuple[str, str]], check: str
) -> dict[str, str]:
    """What `check` ("module:function", which returns a text) says of each fault; "none" is the source as it is.

    A fault replaces a text wherever it stands in `module`'s source; the module's `kernels` are then those of that.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    told = json.dumps([str(folder), module, list(kernels), {"none": ("", "")} | dict(faults), check])
    command = [sys.executable, "-W", "ignore", __file__, told]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _run(folder: str, module: str, kernels: list[str], faults: dict[str, list[str]], check: str) -> dict[str, str]:
    backend = importlib.import_module(module)
    source, found = Path(str(backend.__file__)).read_text(), {}
    runs, function = check.split(":")
    says = getattr(importlib.import_module(runs), function)
    for number, (name, (old, new)) in enumerate(faults.items()):
        assert old in source, name
        path = Path(folder) / f"kernels{number}.py"
        path.write_text(source.replace(old, new) if old else source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec
        assert spec.loader
        changed = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(changed)
        for kernel in kernels:
            setattr(backend, kernel, getattr(changed, kernel))
        found[name] = says()
    return found


if __name__ == "__main__":
    print(json.dumps(_run(*json.loads(sys.argv[1]))))
