"""Packs the kernel images of a folder for a wheel: <name>.ptx and .cubin -> <name>.ptx.gz and .cubin.gz.

    python cmake/pack_kernels.py tkpy/kernels

The machines and `tkpy.emulator.load` read either. Every byte is kept (the line information that findings and profilers
show is most of it), and the same images make the same files. It needs nothing but Python.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path


def pack(folder: Path) -> None:
    for path in sorted([*folder.glob("*.ptx"), *folder.glob("*.cubin")]):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
