"""docs/build_an_architecture.md: its script, run as it stands, learns the task in time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_hybrid_learns_to_recall(tmp_path):
    page = (ROOT / "docs/build_an_architecture.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(script.splitlines()) < 80
    for layer in ("nn.HyenaMixer(", "nn.Attention(", "nn.TimeMix("):
        assert layer in script
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"recall accuracy ([\d.]+)%", done.stdout)
    assert accuracy, done.stdout
    assert float(accuracy[1]) > 95, done.stdout
