"""Matrices of every operand type: values, their float64 meaning and their raw bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np

FLOATS = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f32": np.dtype(np.float32),
}
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1}


def random_operand(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(bits as unsigned integers, value as float64); floats are small integers over 4, so that sums are exact."""
    if kind == "tf32":
        value = rng.integers(-16, 17, shape) / 4
        junk = rng.integers(0, 1 << 13, shape).astype(np.uint32)  # tensor cores ignore the low 13 bits
        return value.astype(np.float32).view(np.uint32) | junk, value
    if kind in FLOATS:
        value = rng.integers(-8, 9, shape) / 4
        bits = value.astype(FLOATS[kind])
        return bits.view(f"u{bits.dtype.itemsize}"), bits.astype(np.float64)
    width = BITS[kind]
    raw = rng.integers(0, 1 << width, shape)
    signed = kind.startswith("s")
    value = np.where(signed & (raw >= 1 << (width - 1)), raw - (1 << width), raw)
    return raw.astype(np.uint8), value.astype(np.float64)


def pack_lanes(cells: np.ndarray, matrix: np.ndarray, bits: int) -> np.ndarray:
    """cells[..., element, 2] of (row, col) to 32-bit registers, element 0 lowest."""
    values = matrix[cells[..., 0], cells[..., 1]].astype(np.uint64)
    shifts = np.arange(cells.shape[-2], dtype=np.uint64) * np.uint64(bits)
    return (values << shifts).sum(-1, dtype=np.uint64).astype(np.uint32)
