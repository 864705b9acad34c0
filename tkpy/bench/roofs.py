"""The roofs of a device: how fast its arithmetic and its memory can be, by the vendor's data sheet.

A call that needs `flops` and moves `nbytes` takes at least max(flops / peak, nbytes / bandwidth); the larger of the
two is the roof that binds. Peaks are dense ones at the data sheet's boost clock; the data sheets are in
bench/published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tkpy import published


@dataclass(frozen=True)
class Bound:
    """The roof that binds for one piece of work, and the time it allows at best."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Roofs:
    """Peaks of one device: flops per second by dtype, bytes per second of memory."""

    device: str
    flops: Mapping[str, float]
    bandwidth: float
    multiprocessors: int
    clock: float  # Hz, the data sheet's boost

    def bound(self, flops: int, nbytes: int, dtype: str) -> Bound | None:
        """None where nothing is known of this work."""
        bounds = []
        if flops and dtype in self.flops:
            bounds.append(Bound(f"{dtype} arithmetic", flops / self.flops[dtype]))
        if nbytes:
            bounds.append(Bound("HBM", nbytes / self.bandwidth))
        return max(bounds, key=lambda b: b.seconds, default=None)


def of_device(name: str) -> Roofs | None:
    """The roofs of the device that CUDA calls `name`; None for one that bench/published has no data sheet of."""
    for device in published.devices():
        if any(pattern in name for pattern in device.names):
            return Roofs(device.id, device.flops, device.bandwidth, device.multiprocessors, device.clock)
    return None
