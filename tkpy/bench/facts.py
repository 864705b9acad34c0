"""What a row must say about where it was measured: device, driver, clocks, power, versions, commit.

Clocks and power come from NVML (package nvidia-ml-py, if it is installed), else from nvidia-smi, else they are absent.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import tkpy
from tkpy import build_info
from tkpy.bench.roofs import Roofs, of_device
from tkpy.bench.spec import Environment
from tkpy.bench.timer import CudaTimer, WallTimer

Facts = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]  # of a checkout

#: Fields of a condition -> what nvidia-smi calls them.
SMI = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
    "throttle": "clocks_throttle_reasons.active",
}


def _output(*command: str) -> str | None:
    """What a program prints; None where it is absent, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(root: Path = ROOT) -> str | None:
    """The commit of the checkout that this code lies in, with "+" if files differ; None for an installed package."""
    if not (root / ".git").exists():
        return None
    head = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")


def nvcc() -> str | None:
    """The nvcc that made the kernels of this build."""
    path = build_info.KERNELS / "toolchain.json"
    return json.loads(path.read_text()).get("version") if path.exists() else None


def host() -> Facts:
    """Facts of any machine."""
    return {
        "tkpy": tkpy.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nvcc": nvcc(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def from_nvml(nvml: Any, index: int) -> Facts:
    """The condition of a device, by NVML; what a device does not tell is left out."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    asked: dict[str, Callable[[], float]] = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttle": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    found: Facts = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except (nvml.NVMLError, AttributeError):  # functions come and go with the package's versions
            continue
    return found


def from_smi(text: str) -> Facts:
    """The condition of a device, from nvidia-smi's CSV line for `SMI`; what a device does not tell is left out."""
    found: Facts = {}
    for name, part in zip(SMI, text.split(","), strict=False):
        try:
            found[name] = int(part, 16) if name == "throttle" else float(part)
        except ValueError:
            continue
    return found


def condition_reader(index: int) -> Callable[[], Mapping[str, Any]]:
    """A function that reads clocks, power and temperature now."""
    if importlib.util.find_spec("pynvml") is not None:
        nvml = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            return lambda: from_nvml(nvml, index)
        except nvml.NVMLError:
            pass  # nvidia-smi may still answer
    query = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(SMI.values())}", "--format=csv,noheader,nounits"]
    return lambda: from_smi(_output(*query) or "")


def gpu(index: int) -> Facts:
    """Facts of one CUDA device that do not change."""
    properties = torch.cuda.get_device_properties(index)
    driver = _output("nvidia-smi", f"--id={index}", "--query-gpu=driver_version", "--format=csv,noheader")
    top = _output("nvidia-smi", f"--id={index}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits")
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "max_sm_mhz": float(top) if top and top.replace(".", "").isdigit() else None,
    }


def environment(device: str) -> tuple[Environment, Roofs | None]:
    """This machine as benchmarks see it: a CUDA device, or the CPU, whose rows are marked."""
    if device == "cuda":
        index = torch.cuda.current_device()
        facts = {**host(), **gpu(index)}
        where = torch.device("cuda", index)
        env = Environment(
            where, CudaTimer.here(where), facts=facts, condition=condition_reader(index), alive=torch.cuda.synchronize
        )
        return env, of_device(facts["device"])
    facts = {**host(), "device": f"CPU, {torch.get_num_threads()} threads"}
    return Environment(torch.device("cpu"), WallTimer(), ours=(), facts=facts), None
