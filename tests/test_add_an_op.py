"""docs/add_an_op.md does what it says: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_works_as_written(tmp_path):
    page = (ROOT / "docs/add_an_op.md").read_text()
    blocks = re.findall(r"```python\n# (file: (\S+)|run)\n(.*?)```", page, flags=re.DOTALL)
    files = {name: body for _, name, body in blocks if name}
    (script,) = [body for kind, _, body in blocks if kind == "run"]
    assert len(files) == 3
    for name, body in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    (tmp_path / "my_ops/scaled_add/__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == 3 * 2 * 4  # cases x dtypes x (output and three gradients)
    assert "eager      chosen" in done.stdout
    assert "scaled_add/small/bfloat16 torch eager" in done.stdout
