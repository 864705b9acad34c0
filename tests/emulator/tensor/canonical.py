"""The canonical shared-memory layouts of wgmma operands, stated with atoms and rows rather than with address bits.

PTX ISA 9.7.15.5.1: an atom is 8 lines of `width` bytes. Line i of an atom has its 16-byte units permuted by XOR with
i, i // 2 or i // 4 for 128, 64 and 32 bytes, since 1, 2 or 4 lines fill the 128 bytes of a shared-memory row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    width: int  # swizzle: 16 (none), 32, 64, 128
    mn_major: bool
    leading: int
    stride: int
    start: int  # where the pattern starts
    base_offset: int = 0

    def unit_addresses(self, mn: int, k_bytes_or_k: int) -> np.ndarray:
        """K-major: [row, 16-byte unit along K]; MN-major: [k, block of 8 elements]."""
        if self.mn_major:
            line = np.arange(k_bytes_or_k)[:, None]  # lines run along K
            unit = np.arange(mn // 8)[None, :]
        else:
            line = np.arange(mn)[:, None]
            unit = np.arange(k_bytes_or_k // 16)[None, :]
        atom, i = line // 8, line % 8
        if self.width == 16:
            pitch = (self.stride, self.leading) if self.mn_major else (self.leading, self.stride)
            return self.start + unit * pitch[0] + atom * pitch[1] + i * 16
        units = self.width // 16
        swizzled = (unit % units) ^ (i * units // 8)
        panel = unit // units * self.leading if self.mn_major else 0
        return self.start + panel + atom * self.stride + i * self.width + swizzled * 16

    def write(self, memory: np.ndarray, base: int, matrix: np.ndarray) -> None:
        """`matrix` holds the raw bits, [mn, k]."""
        lines = np.ascontiguousarray(matrix.T if self.mn_major else matrix)
        data = lines.view(np.uint8).reshape(len(lines), -1, 16)
        where = self.unit_addresses(matrix.shape[0], matrix.shape[1] if self.mn_major else data.shape[1] * 16)
        memory[(where - base)[..., None] + np.arange(16)] = data


def layouts(mn: int, k_bytes: int, majors: tuple[bool, ...], start: int, widths=(16, 32, 64, 128)) -> list[Layout]:
    """Every major-ness and swizzle with two arrangements of strides each: atoms along K first, or along M/N first."""
    found = []
    for mn_major in majors:
        for width in widths:
            atom = 8 * width
            if mn_major:
                units = -(-mn // (width // 2))  # panels of M/N
                pairs = [
                    (k_bytes // 16 * atom, atom),
                    (atom, units * atom),
                ]  # (between panels, between groups of 8 columns)
                pairs = [(leading, stride) if width > 16 else (stride, leading) for leading, stride in pairs]
            else:
                pairs = (
                    [(128, k_bytes // 16 * 128), (mn // 8 * 128, 128)] if width == 16 else [(16, atom), (16, 2 * atom)]
                )
            found += [Layout(width, mn_major, *pair, start) for pair in pairs]
    return found
