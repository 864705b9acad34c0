"""Figures that others have published, as data: tkpy/bench/published/*.json, each file one source.

    {"source": {"title": ..., "reference": ..., "note": ...},
     "device": "h800-pcie",                      an id of devices.json
     "clock_mhz": 1755,                          that the figures were taken at, if it is known
     "figures": [{"id": "ipdps24/latency/l1", "what": ..., "where": "Table 4", "value": 40.7, "unit": "clk",
                  "scales": "none"}, ...]}

`scales` says what a figure is proportional to when it is carried to another device: "none" (cycles, or bytes per
cycle of one SM), "sms" (bytes per cycle of all SMs), "sms*clock" (a rate of all SMs), "clock" (a rate of one unit),
"bandwidth" (a rate that the memory bounds). devices.json holds the devices' data sheets. Everything is checked when
it is read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "bench" / "published"
SCALES = ("none", "sms", "sms*clock", "clock", "bandwidth")


@dataclass(frozen=True)
class Device:
    """A data sheet. `names`: parts of the names by which CUDA calls the device; `flops`: dense peaks by dtype."""

    id: str
    names: tuple[str, ...]
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes per second
    flops: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Figure:
    """One published number."""

    id: str
    what: str
    value: float
    unit: str
    scales: str
    where: str  # in the source: a table, a figure
    source: str
    reference: str
    device: Device
    clock: float  # Hz

    def on(self, multiprocessors: int, clock: float, bandwidth: float) -> float:
        """The value carried to another device by what it is proportional to."""
        factor = {
            "none": 1.0,
            "sms": multiprocessors / self.device.multiprocessors,
            "sms*clock": multiprocessors * clock / (self.device.multiprocessors * self.clock),
            "clock": clock / self.clock,
            "bandwidth": bandwidth / self.device.bandwidth,
        }[self.scales]
        return self.value * factor


def _need(where: str, entry: Any, kinds: Mapping[str, type | tuple[type, ...]], optional: tuple[str, ...] = ()) -> None:
    """ValueError unless `entry` is an object with exactly these keys, of these kinds."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: needs an object, got {type(entry).__name__}")
    for key, kind in kinds.items():
        if key not in entry:
            if key in optional:
                continue
            raise ValueError(f"{where}: needs {key!r}")
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise ValueError(f"{where}: {key!r} is {entry[key]!r}, of the wrong kind")
    if unknown := sorted(set(entry) - set(kinds)):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}")


_Kinds = Mapping[str, type | tuple[type, ...]]
_NUMBER = (int, float)
_DEVICE: _Kinds = {"names": list, "multiprocessors": int, "clock_mhz": _NUMBER, "bandwidth_gb": _NUMBER, "tflops": dict,
           "source": str}  # fmt: skip
_FIGURE: _Kinds = {"id": str, "what": str, "value": _NUMBER, "unit": str, "scales": str, "where": str}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


def read_devices(path: Path) -> dict[str, Device]:
    """The data sheets of a devices.json, by id."""
    found = {}
    for name, entry in _json(path).items():
        where = f"{path.name}, {name}"
        _need(where, entry, _DEVICE)
        if not all(isinstance(v, _NUMBER) and v > 0 for v in entry["tflops"].values()):
            raise ValueError(f"{where}: tflops must be positive numbers")
        found[name] = Device(
            name,
            tuple(entry["names"]),
            entry["multiprocessors"],
            1e6 * entry["clock_mhz"],
            1e9 * entry["bandwidth_gb"],
            {dtype: 1e12 * value for dtype, value in entry["tflops"].items()},
            entry["source"],
        )
    return found


def read_figures(path: Path, known: Mapping[str, Device]) -> dict[str, Figure]:
    """The figures of one source, by id."""
    text = _json(path)
    kinds: _Kinds = {"source": dict, "device": str, "clock_mhz": _NUMBER, "figures": list}
    _need(path.name, text, kinds, optional=("clock_mhz",))
    _need(f"{path.name}, source", text["source"], {"title": str, "reference": str, "note": str}, optional=("note",))
    if text["device"] not in known:
        raise ValueError(f"{path.name}: no device {text['device']!r} in devices.json")
    device = known[text["device"]]
    found: dict[str, Figure] = {}
    for entry in text["figures"]:
        where = f"{path.name}, {entry.get('id') if isinstance(entry, dict) else entry!r}"
        _need(where, entry, _FIGURE)
        if entry["scales"] not in SCALES:
            raise ValueError(f"{where}: scales must be one of {', '.join(SCALES)}, got {entry['scales']!r}")
        if entry["id"] in found or not entry["value"] > 0:
            raise ValueError(f"{where}: given twice, or not positive")
        found[entry["id"]] = Figure(
            entry["id"],
            entry["what"],
            float(entry["value"]),
            entry["unit"],
            entry["scales"],
            entry["where"],
            text["source"]["title"],
            text["source"]["reference"],
            device,
            1e6 * text["clock_mhz"] if "clock_mhz" in text else device.clock,
        )
    return found


@functools.cache
def devices(folder: Path = FOLDER) -> tuple[Device, ...]:
    """Every data sheet."""
    return tuple(read_devices(folder / "devices.json").values())


@functools.cache
def figures(folder: Path = FOLDER) -> Mapping[str, Figure]:
    """Every published figure, by id; ids are unique over all sources."""
    known = {device.id: device for device in devices(folder)}
    found: dict[str, Figure] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "devices.json":
            continue
        for name, figure in read_figures(path, known).items():
            if name in found:
                raise ValueError(f"{path.name}, {name}: another source has this id")
            found[name] = figure
    return found
