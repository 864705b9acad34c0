"""Rounding of exact rationals to binary formats, straight from the definition. Slow and obvious."""

from __future__ import annotations

import math
from fractions import Fraction

# precision, smallest normal exponent, largest exponent
FORMATS = {
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
    "tf32": (11, -126, 127),
    "f32": (24, -126, 127),
    "f64": (53, -1022, 1023),
}


def round_fraction(value: Fraction, fmt: str, mode: str = "rn") -> float:
    """The number of format `fmt` for an exact value; every one of them is a Python float."""
    precision, least, most = FORMATS[fmt]
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, least) - precision + 1)
    count, rest = divmod(magnitude, unit)
    negative = value < 0
    half = rest * 2 - unit
    up = {
        "rn": half > 0 or (half == 0 and count % 2 == 1),
        "rna": half >= 0,
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    result = (count + up) * unit
    sign = -1.0 if negative else 1.0
    if result >= Fraction(2) ** (most + 1):
        largest = (Fraction(2) - Fraction(2) ** (1 - precision)) * Fraction(2) ** most
        to_infinity = mode in ("rn", "rna") or (mode == "rm" and negative) or (mode == "rp" and not negative)
        return math.copysign(math.inf if to_infinity else float(largest), sign)
    return math.copysign(float(result), sign)
