"""A prediction as a picture: the trace-event JSON that Perfetto and chrome://tracing read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tkpy.emulator.timing.replay import Prediction

LABEL = "predicted by tkpy.emulator.timing, a model: not a measurement"


def events(prediction: Prediction) -> list[dict[str, Any]]:
    """Complete events in microseconds: a process an SM, a thread a warp, copies and tensor cores beside them."""
    per_us = prediction.rates.clock / 1e6
    processes: dict[str, int] = {}
    tracks: dict[tuple[str, str], int] = {}
    made: list[dict[str, Any]] = []
    for process, track, start, end, name in prediction.slices:
        pid = processes.setdefault(process, len(processes))
        tid = tracks.setdefault((process, track), len(tracks))
        made.append(
            {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": track.rstrip("0123456789 "), "ts": start / per_us,
             "dur": (end - start) / per_us, "args": {"cycles": end - start}}
        )  # fmt: skip
    for process, pid in processes.items():
        made.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": f"{process} ({LABEL})"}})
    for (process, track), tid in tracks.items():
        where = {"ph": "M", "pid": processes[process], "tid": tid}
        made.append({**where, "name": "thread_name", "args": {"name": track}})
        first = 0 if track.startswith(("tensor", "TMA")) else 1000
        made.append({**where, "name": "thread_sort_index", "args": {"sort_index": first + tid}})
    return made


def write(prediction: Prediction, path: Path) -> None:
    """Writes the JSON; slices of warps are what they wait for, the gaps between them are where they run."""
    about = {
        "label": LABEL,
        "kernel": prediction.kernel,
        "cycles": prediction.cycles,
        "device": prediction.rates.device,
        "clock_mhz": prediction.rates.clock / 1e6,
        "binding": prediction.binding,
    }
    path.write_text(json.dumps({"traceEvents": events(prediction), "displayTimeUnit": "ns", "otherData": about}))
