"""Every tensor map and launch of every case of every op, forward and backward, against the driver's documentation.

Nothing runs: tensors are on torch's device `meta`, which holds no data, so the benchmarks' shapes cost nothing. They
get addresses, count as a GPU's, and are launched through strict_cuda.cpp, a libcuda that writes down what it is asked.
Meta tensors have no values: an op that waited for one would fail here, as it would while a CUDA graph is captured. So
would a tensor of the host that meets a kernel.
"""

from __future__ import annotations

import bisect
import json
import types
from collections import defaultdict
from functools import cache

import pytest
import torch
from driver_rules import COOPERATIVE, Facts, facts_of, launch_faults, map_faults
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")

from tkpy import build_info, machine, registry
from tkpy.cases import Case, Maker
from tkpy.conformance import map_tensors

OPS = [op for op in registry.ops().values() if "cuda" in op.available]
DTYPES = [torch.bfloat16, torch.float32]
LONG = Case(
    "rows on clusters",
    lambda m: {"u": m.randn(8, 64, 30000), "k": m.randn(64, 30000, dtype=torch.float32)},
    "the longest that stay on the chip",
    bench=True,
)


class Shapes(Maker):
    """Inputs without values, of the benchmarks' sizes."""

    def randn(self, *shape, scale=1.0, dtype=None):
        return torch.empty(*shape, dtype=dtype or self.dtype, device="meta")

    def uniform(self, low, high, *shape, dtype=None):
        return self.randn(*shape, dtype=dtype)

    def randint(self, low, high, *shape):
        return self.randn(*shape, dtype=torch.int64)


class HostTensors(TorchDispatchMode):
    """Notes the tensors of the host that an op moves to the GPU: that waits, and no graph can hold it."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        moved = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.device.type == "cpu"]
        if moved and any(isinstance(t, torch.Tensor) and t.is_meta for t in tree_leaves(out)):
            self.moved.append(f"{function}: {[tuple(t.shape) for t in moved]}")
        return out


class Memory:
    """Addresses for meta tensors, which keep theirs to the end."""

    def __init__(self):
        self.starts, self.ends, self.known = [], [], {}

    def address(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            start = self.ends[-1] // 512 * 512 + 1024 if self.ends else 1 << 40
            self.known[storage._cdata] = (start, storage)
            self.starts.append(start)
            self.ends.append(start + storage.nbytes())
        return self.known[storage._cdata][0] + tensor.storage_offset() * tensor.element_size()

    def end(self, address: int) -> int:
        return self.ends[bisect.bisect_right(self.starts, address) - 1]


@cache
def facts() -> dict[str, Facts]:
    reports = [path for path in build_info.KERNELS.glob("*.json") if path.stem != "toolchain"]
    return {name: found for report in reports for name, found in facts_of(report).items()}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("strict") / "log"


@pytest.fixture(scope="module")
def driver(host_program, log):
    if reason := build_info.missing_reason("gemm", build_info.KERNELS):
        pytest.skip(reason)
    library = host_program("libstrict_cuda.so", "tests/kernels/strict_cuda.cpp", flags=("-shared", "-fPIC"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRICT_CUDA_LOG", str(log))  # read at the first call that is written down
        yield machine.compiled().Machine.driver(str(build_info.KERNELS), str(library))


@pytest.fixture
def memory(driver, monkeypatch):
    memory = Memory()

    def view(tensor):
        assert tensor.is_meta, f"a kernel would meet a tensor on {tensor.device}"
        return memory.address(tensor), machine._NAMES[tensor.dtype], tuple(tensor.shape), tensor.stride(), 0

    monkeypatch.setattr(machine, "view", view)
    monkeypatch.setattr(machine, "_machine_of", lambda tensor: driver)
    monkeypatch.setattr(machine, "_stream_of", lambda tensor: 0x5000)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.is_meta))
    hopper, stream = types.SimpleNamespace(multi_processor_count=132), types.SimpleNamespace(cuda_stream=0x5000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: hopper)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return memory


def without_values(kwargs, grad):
    """The same tensors on `meta`: shapes, strides, places in shared storages."""
    made = {}

    def moved(t):
        storage = t.untyped_storage()
        if storage._cdata not in made:
            made[storage._cdata] = (storage, torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta"))
        whole = made[storage._cdata][1].view(t.dtype)
        there = whole.as_strided(t.shape, t.stride(), t.storage_offset())
        return there.detach().requires_grad_(grad and (t.is_floating_point() or t.is_complex()))

    return map_tensors(kwargs, moved)


def run(op: registry.Op, case: Case, dtype: torch.dtype) -> list[str]:
    """What crossed from the host, of a case that is served; the first time an op may make tables."""
    try:
        kwargs = case.make(Shapes(dtype, "meta") if case.bench else Maker(dtype))
    except NotImplementedError:  # a benchmark's case that looks at values
        return []
    call = registry.capture(op, without_values(kwargs, case.grad and op.differentiates("cuda")))
    if op.refusals("cuda", registry.Call(call.op, call.args, torch.device("cuda"))):
        return []
    module, args = op.module("cuda"), tuple(call.args.values())

    def once():
        found = module.forward(*args)
        outputs = found if isinstance(found, tuple) else (found,)
        tensors = [args[i] for i in op.tensor_args]
        needs = [t is not None and (t.is_floating_point() or t.is_complex()) for t in tensors]
        if hasattr(module, "backward") and case.grad and any(needs):
            grads = [torch.empty_like(o) if o.is_floating_point() or o.is_complex() else None for o in outputs]
            if len(outputs[0]) and not outputs[-1].numel():  # an output that nobody wants has no gradient
                grads[-1] = None
            module.backward(grads, [outputs[i] for i in op._saves], *args, needs=needs)

    with torch.no_grad():
        once()
        with HostTensors() as watch:
            once()
    return watch.moved


def faults(events: list[dict], memory: Memory) -> list[str]:
    """`events` in their order."""
    allowed: dict[str, dict[int, int]] = defaultdict(dict)
    found = []
    for event in events:
        if "map" in event:
            found += [
                f"tensor map {event['dims']}: {fault}" for fault in map_faults(event, memory.end(event["address"]))
            ]
        elif "allow" in event:
            allowed[event["kernel"]][event["allow"]] = event["value"]
        else:
            name = event["kernel"]
            found += [f"{name}: {fault}" for fault in launch_faults(event, facts()[name], allowed[name])]
    return found


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_what_the_driver_is_asked_is_what_it_takes(op, memory, log):
    skipped = len(log.read_text().splitlines()) if log.exists() else 0
    moved = []
    for case in [*op.cases, *([LONG] if op.name == "fft_conv" else [])]:
        for dtype in DTYPES:
            moved += [f"{case.name}: {one}" for one in run(op, case, dtype)]
    events = [json.loads(line) for line in log.read_text().splitlines()]
    earlier = [event for event in events[:skipped] if "allow" in event]  # kernels that several ops launch
    assert any("grid" in event for event in events[skipped:])
    assert faults(earlier + events[skipped:], memory) == []
    assert moved == []


GOOD_MAP = {"map": 0, "type": 9, "address": 4096, "modes": [0, 3, 2, 0], "dims": [[72, 0, 64, 1], [100, 160, 64, 1]]}
GOOD_LAUNCH = {"kernel": "k", "grid": [6, 2, 1], "block": [384, 1, 1], "shared": 200_000, "bytes": 8,
               "attributes": [[4, 2, 1, 1]]}  # fmt: skip
OF_GOOD = Facts(registers=168, shared=1024, parameters=[8], most_threads=384, cluster=None)


@pytest.mark.parametrize(
    "change",
    [{"map": 8}, {"address": 4104}, {"modes": [0, 2, 2, 0]}, {"modes": [0, 3, 2, 1]}, {"type": 7},
     {"dims": [[72, 0, 64, 1], [100, 152, 64, 1]]}, {"dims": [[72, 0, 60, 1], [100, 160, 64, 1]]},
     {"dims": [[72, 0, 64, 1], [100, 160, 257, 1]]}, {"dims": [[72, 0, 64, 1], [101, 160, 64, 1]]},
     {"dims": [[0, 0, 64, 1], [100, 160, 64, 1]]}, {"dims": [[72, 0, 64, 1], [1, 0, 64, 1]]}],
    ids=str,
)  # fmt: skip
def test_a_broken_map_shows(change):
    end = 4096 + 99 * 160 + 72 * 2
    assert list(map_faults(GOOD_MAP, end)) == []
    assert list(map_faults(GOOD_MAP | change, end))


@pytest.mark.parametrize(
    "change",
    [{"grid": [6, 65536, 1]}, {"grid": [5, 2, 1]}, {"block": [512, 1, 1]}, {"shared": 232_000}, {"shared": 210_000},
     {"bytes": 16}, {"attributes": [[4, 16, 1, 1]], "grid": [16, 1, 1]},
     {"attributes": [[COOPERATIVE, 1, 0, 0]], "grid": [133, 1, 1]}],
    ids=str,
)  # fmt: skip
def test_a_broken_launch_shows(change):
    assert list(launch_faults(GOOD_LAUNCH, OF_GOOD, {8: 200_000})) == []
    assert list(launch_faults(GOOD_LAUNCH | change, OF_GOOD, {8: 200_000}))


def test_a_kernel_of_too_many_registers_shows():
    assert list(launch_faults(GOOD_LAUNCH, Facts(176, 0, [8], 384, None), {8: 200_000}))
