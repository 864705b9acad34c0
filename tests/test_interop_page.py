"""docs/interop.md does what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs/interop.md").read_text()


def test_the_page_runs_as_written():
    blocks = re.findall(r"```python\n# (run[^\n]*)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == PAGE.count("```python") == 6
    installed = importlib.util.find_spec("transformers") is not None
    names: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "run" or installed:
            exec(block, names)
