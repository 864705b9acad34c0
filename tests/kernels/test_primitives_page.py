"""docs/primitives.md says what the headers say."""

import re
import subprocess
import sys

import pytest
from kernel_cases import ROOT

pytestmark = pytest.mark.fast
PAGE = ROOT / "docs/primitives.md"


def test_the_page_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs/make_primitives.py", "--check"], check=False)
    assert done.returncode == 0, "python docs/make_primitives.py"


def test_every_header_is_on_the_page():
    listed = set(re.findall(r"^### `(\S+)`", PAGE.read_text(), re.MULTILINE))
    headers = {path.name for path in (ROOT / "csrc/tk").glob("*.*h")}
    assert headers - listed == {"tk.cuh", "packed.cuh", "tensor_map.h"}  # the front door; what verbs are made of


@pytest.mark.parametrize(
    "call",
    ["load<Scope>(dst, src, row, col, fill =)", "row_sum(dst, src, init =)",
     "mask_causal<Scope>(dst, src, offset =, fill =)",
     "exp2(dst, a)", "subtile<Rows, Cols>(tile, row, col)", "rt<T, Rows, Cols, L>", "mma_AB(d, a, b, accumulate =)",
     "row_decay_scan<Direction>(dst, src, decay, state =)", "gelu(dst, a)", "mbarrier_arrive_drop(bar)"],
)  # fmt: skip
def test_calls_are_written_as_they_are_made(call):
    assert f"`{call}`" in PAGE.read_text()
