"""The op registry: which ops exist, which backend serves a call, and why the others do not.

An op is a folder `tkpy/ops/<op>/`, found by its name; nothing else is edited to add one:

    op.py          the public function, its argument checks, and `OP = Op(...)`
    reference.py   forward(*args): the float64-clear oracle
    eager.py       forward(*args): vectorised PyTorch for any device; optionally backward(...)
    triton.py      forward(*args) and backward(...), optional
    cuda.py        launches the compiled kernel (backends `cuda` and `emulator`: tkpy/machine.py), optional

A call runs in three steps. The public function checks and normalises its arguments and calls `OP(*args, backend=...)`;
`Op.resolve` picks a backend from metadata alone; the torch op `torch.ops.tkpy.<op>` runs that backend. The torch op
carries the backend's name as an argument, so a compiled graph and the backward use the same backend as the forward.

Every op `name(<args>, str backend) -> outs` gets a second torch op for its gradient, derived from its schema,
`name_backward(Tensor?[] grads, Tensor[] outputs, <args>, str backend, bool[] needs) -> Tensor[]`, which returns one
gradient per tensor argument with `needs` set. A backend module that defines

    backward(grads, outputs, *args, needs) -> list[Tensor | None]      # one entry per tensor argument

computes it; for `reference` and `eager` without one, the forward is differentiated by autograd inside the op.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch

from tkpy import machine, transforms
from tkpy.cases import Case, Maker
from tkpy.errors import InternalError, Refusal, Unsupported

BACKENDS = ("cuda", "triton", "eager", "reference", "emulator")

#: Order of the automatic choice by device type; every other device has `eager`. Never `reference` or `emulator`.
AUTOMATIC = {"cuda": ("cuda", "triton", "eager")}

_MODULES = {"cuda": "cuda", "emulator": "cuda", "triton": "triton", "eager": "eager", "reference": "reference"}
_DIFFERENTIATED = ("reference", "eager")  # written in differentiable PyTorch

_library = torch.library.Library("tkpy", "DEF")
_ops: dict[str, Op] = {}


# --------------------------------------------------------------------------------------------------- per-thread state
class _State(threading.local):
    # Set on the instance, not the class: torch.compile guards a graph on instance attributes only.
    def __init__(self) -> None:
        self.forced: str | None = None  # innermost use_backend()
        self.last: Dispatch | None = None
        self.chosen: tuple[str, str, bool, tuple[Refusal, ...]] | None = None  # op, backend, automatic, passed over
        self.capturing: bool = False
        self.watcher: Watcher | None = None  # of watch_calls()
        self.device: torch.device | None = None  # where watch_calls() takes all tensors to be


Watcher = Callable[["Explanation"], None]
_state = _State()
_recordings: list[list[Dispatch]] = []


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """One run of an op. `automatic`: nobody named the backend; `refused`: why earlier ones in the order were passed."""

    op: str
    backend: str
    automatic: bool | None  # None inside a compiled graph, where the choice was made at trace time
    refused: tuple[Refusal, ...] = ()


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one op call by schema name, as `supports`, `flops` and `nbytes` see them (metadata only)."""

    op: str
    args: Mapping[str, Any]
    on: torch.device | None = None  # where to take the tensors to be, if not where they are

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in self.args.values() if isinstance(t, torch.Tensor)]

    @property
    def device(self) -> torch.device:
        return self.on or self.tensors[0].device


class _Captured(Exception):
    def __init__(self, call: Call):
        self.call = call


# ------------------------------------------------------------------------------------------------------------- the op
class Op:
    """One op. Constructed at the end of `op.py`; calling it dispatches.

    `schema` is the torch schema without the backend: `"(Tensor x, float eps) -> (Tensor, Tensor)"`.
    `fake(*args)` returns the (contiguous) empty outputs. `supports(backend, call)` lists the op's own refusals.
    `values(*args)` raises ValueError for bad tensor contents; it runs inside the op, so it may read data.
    `saves` are the indices of the outputs that the backward needs. `kernel` is the compiled module that cuda.py
    launches (default: the op's name). `flops(call)`, `nbytes(call)`: the ideal cost.
    """

    def __init__(
        self,
        name: str,
        public: Callable[..., Any],
        schema: str,
        *,
        fake: Callable[..., Any],
        cases: Sequence[Case],
        flops: Callable[[Call], int],
        nbytes: Callable[[Call], int],
        supports: Callable[[str, Call], list[Refusal]] = lambda backend, call: [],
        values: Callable[..., None] | None = None,
        saves: tuple[int, ...] = (),
        kernel: str | None = None,
    ):
        self.name, self.public, self.cases, self.flops, self.nbytes = name, public, tuple(cases), flops, nbytes
        self._supports, self._fake, self._values, self._saves = supports, fake, values, saves
        self.kernel = kernel or name
        self.package = public.__module__.rpartition(".")[0]
        arguments, outputs = schema.split("->")
        arguments = arguments.strip()[1:-1]
        self.schema = f"({arguments}, str backend) -> {outputs.strip()}"
        parsed = torch._C.parse_schema(f"{name}{self.schema}")
        self.arg_names = tuple(a.name for a in parsed.arguments[:-1])
        self.tensor_args = tuple(
            i for i, a in enumerate(parsed.arguments[:-1]) if str(a.type) in ("Tensor", "Optional[Tensor]")
        )
        self.n_outputs = len(parsed.returns)
        self.available = tuple(b for b in BACKENDS if importlib.util.find_spec(f"{self.package}.{_MODULES[b]}"))
        self._define(arguments)

    # -- torch.library
    def _define(self, arguments: str) -> None:
        grad_name = f"{self.name}_backward"
        _library.define(f"{self.name}{self.schema}")
        _library.define(
            f"{grad_name}(Tensor?[] grads, Tensor[] outputs, {arguments}, str backend, bool[] needs) -> Tensor[]"
        )
        _library.impl(self.name, self._forward, "CompositeExplicitAutograd")
        _library.impl(grad_name, self._backward, "CompositeExplicitAutograd")
        qualified = f"tkpy::{self.name}"
        torch.library.register_fake(qualified, lambda *args: self._fake(*args[:-1]), lib=_library)
        torch.library.register_fake(qualified + "_backward", self._fake_backward, lib=_library)
        torch.library.register_autograd(qualified, self._autograd, setup_context=self._setup_context, lib=_library)
        torch.library.register_autograd(qualified + "_backward", self._second_derivative, lib=_library)
        self.torch_op = getattr(torch.ops.tkpy, self.name).default
        self.torch_backward = getattr(torch.ops.tkpy, grad_name).default

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.save_for_backward(*(inputs[i] for i in self.tensor_args), *(outputs[i] for i in self._saves))
        ctx.others = tuple(None if i in self.tensor_args else a for i, a in enumerate(inputs))

    def _autograd(self, ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        saved, n = ctx.saved_tensors, len(self.tensor_args)
        inputs = list(ctx.others)
        for i, tensor in zip(self.tensor_args, saved[:n], strict=True):
            inputs[i] = tensor
        needs = [bool(ctx.needs_input_grad[i]) for i in self.tensor_args]
        found = iter(self.torch_backward(list(grads), list(saved[n:]), *inputs, needs))
        # A `Tensor[]` argument carries index data; torch wants one (absent) gradient for each of its entries.
        result: list[Any] = [[None] * len(a) if _is_tensor_list(a) else None for a in inputs]
        for i, needed in zip(self.tensor_args, needs, strict=True):
            if needed:
                result[i] = next(found)
        return tuple(result)

    def _second_derivative(self, ctx: Any, *grads: Any) -> Any:
        refusal = Refusal("no_second_derivative", "needs a first derivative only; the gradient is not differentiable")
        raise Unsupported(self.name, {"autograd": [refusal]})

    def _fake_backward(self, grads: Any, outputs: Any, *rest: Any) -> list[torch.Tensor]:
        *inputs, _, needs = rest
        tensors = [inputs[i] for i in self.tensor_args]
        return [t.new_empty(t.shape) for t, needed in zip(tensors, needs, strict=True) if needed]

    # -- the bodies of the two torch ops
    def _forward(self, *args: Any) -> Any:
        *inputs, backend = args
        if self._values is not None and (backend in _DIFFERENTIATED or _first_tensor(inputs).device.type == "cpu"):
            self._values(*inputs)
        self._record(self.name, backend)
        with _without_autocast(inputs):
            result = self.module(backend).forward(*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        owned = _own(outputs, [a for a in inputs if isinstance(a, torch.Tensor)])
        return tuple(owned) if self.n_outputs > 1 else owned[0]

    def _backward(self, grads: Any, outputs: Any, *rest: Any) -> list[torch.Tensor]:
        *inputs, backend, needs = rest
        module = self.module(backend)
        self._record(f"{self.name}_backward", backend)
        tensors = [inputs[i] for i in self.tensor_args]
        with _without_autocast(inputs):
            if hasattr(module, "backward"):
                found = module.backward(list(grads), list(outputs), *inputs, needs=list(needs))
            else:
                wide = [_widened(a) for a in inputs] if backend == "reference" else inputs
                found = self._differentiate(module.forward, list(grads), wide, list(needs))
        kept = [
            torch.zeros_like(t, memory_format=torch.contiguous_format) if g is None else g.to(t.dtype)
            for g, t, needed in zip(found, tensors, needs, strict=True)
            if needed
        ]
        return _own(kept, [t for t in [*tensors, *grads, *outputs] if t is not None])

    def _differentiate(
        self, forward: Callable[..., Any], grads: list[Any], inputs: list[Any], needs: list[bool]
    ) -> list[torch.Tensor | None]:
        """The gradient by autograd over the backend's own forward, recomputed inside the backward op."""
        inputs = list(inputs)
        leaves = []
        for i, needed in zip(self.tensor_args, needs, strict=True):
            if inputs[i] is not None:
                inputs[i] = inputs[i].detach().requires_grad_(needed)
            if needed:
                leaves.append(inputs[i])
        with _autograd_recording():
            result = forward(*inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            if not pairs:
                return [None] * len(needs)
            found = iter(
                torch.autograd.grad([o for o, _ in pairs], leaves, [g.to(o.dtype) for o, g in pairs], allow_unused=True)
            )
        return [next(found) if needed else None for needed in needs]

    def _record(self, op: str, backend: str) -> None:
        automatic: bool | None = None
        refused: tuple[Refusal, ...] = ()
        if _state.chosen is not None and _state.chosen[:2] == (op, backend):
            automatic, refused = _state.chosen[2:]
        _state.chosen = None
        dispatch = Dispatch(op, backend, automatic, refused)
        if op == self.name:
            _state.last = dispatch
        for log in _recordings:
            log.append(dispatch)

    # -- dispatch
    def call(self, *args: Any) -> Call:
        return Call(self.name, dict(zip(self.arg_names, args, strict=True)), _state.device)

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        if _state.capturing:
            raise _Captured(self.call(*args))
        if _state.watcher is not None:
            call = self.call(*args)
            _state.watcher(_explain_call(self, call, backend if backend is not None else _state.forced))
        if not torch.compiler.is_compiling() and transforms.active() and (refusal := transforms.refusal(args)):
            raise Unsupported(self.name, {"autograd": [refusal]})
        return self.torch_op(*args, self._choose(args, backend))

    def _choose(self, args: Sequence[Any], backend: str | None) -> str:
        """`resolve`, short for the backends that serve every call: this runs each time, and is traced by dynamo."""
        named = backend if backend is not None else _state.forced
        choice = named
        if named is None and args[self.tensor_args[0]].device.type not in AUTOMATIC:
            choice = "eager"
        if choice != "eager" and choice != "reference":
            return self.resolve(self.call(*args), backend)
        if not torch.compiler.is_compiling():
            _state.chosen = (self.name, choice, named is None, ())
        return choice

    def resolve(self, call: Call, backend: str | None = None) -> str:
        """The backend that serves `call`; raises `Unsupported` with every reason if there is none."""
        named = backend if backend is not None else _state.forced
        if named is not None:
            _check_backend(self.name, named)
        order = (named,) if named is not None else AUTOMATIC.get(call.device.type, ("eager",))
        refused: dict[str, list[Refusal]] = {}
        for name in order:
            refused[name] = self.refusals(name, call)
            if not refused[name]:
                if not torch.compiler.is_compiling():
                    passed = tuple(r for reasons in refused.values() for r in reasons)
                    _state.chosen = (self.name, name, named is None, passed)
                return name
        raise Unsupported(self.name, refused)

    def refusals(self, backend: str, call: Call) -> list[Refusal]:
        """Every reason why `backend` cannot serve `call`; empty if it can. Pure, and needs nothing built."""
        if backend in _DIFFERENTIATED:
            return []  # they serve every call that the argument checks let through
        if backend not in self.available:
            if backend in ("cuda", "emulator"):
                return [Refusal("not_built", f"needs the compiled sm_90a kernel of '{self.name}'; this build has none")]
            return [Refusal("not_written", f"'{self.name}' has no {backend} implementation")]
        reasons = []
        if backend == "triton":
            reasons += _triton_refusals(call)
        if backend in ("cuda", "emulator"):
            reasons += machine.refusals(self.kernel, backend, call.device)
        if backend in ("cuda", "triton") and any(t.dtype in (torch.float64, torch.complex128) for t in call.tensors):
            reasons.append(Refusal("dtype", "needs float32, float16 or bfloat16, got float64"))
        reasons += self._supports(backend, call)
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors)
        if not reasons and needs_grad and not self.differentiates(backend):
            reasons.append(Refusal("no_backward", "needs inputs that do not require grad: there is no backward"))
        return reasons

    def differentiates(self, backend: str) -> bool:
        """Whether it is there and gives gradients; `reference` and `eager` do, by autograd where not by their own."""
        if backend in _DIFFERENTIATED:
            return True
        return backend in self.available and _has_backward(f"{self.package}.{_MODULES[backend]}")

    def module(self, backend: str) -> ModuleType:
        return _module(f"{self.package}.{_MODULES[backend]}")

    def __repr__(self) -> str:
        return f"Op({self.name}{self.schema})"


# ------------------------------------------------------------------------------------------------- helpers of the op
_module = functools.cache(importlib.import_module)


@torch.compiler.assume_constant_result  # dynamo cannot trace an import
def _has_backward(module: str) -> bool:
    return hasattr(_module(module), "backward")


def _first_tensor(args: Sequence[Any]) -> torch.Tensor:
    return next(a for a in args if isinstance(a, torch.Tensor))


def _is_tensor_list(value: object) -> TypeGuard[list[torch.Tensor]]:
    return isinstance(value, (list, tuple)) and all(isinstance(t, torch.Tensor) for t in value)


def _fresh_strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _widened(argument: Any) -> Any:
    """A tensor in float64, or its gradient would be rounded, and summed so, wherever the oracle widens it."""
    if not isinstance(argument, torch.Tensor) or not (argument.is_floating_point() or argument.is_complex()):
        return argument
    return argument.to(torch.complex128 if argument.is_complex() else torch.float64)


def _own(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs made contiguous, and copied where they share memory with an input or with each other."""
    seen = {t.untyped_storage().data_ptr() for t in inputs}
    result = []
    for tensor in outputs:
        tensor = tensor.contiguous()
        if 1 in tensor.shape or not tensor.numel():  # then a contiguous tensor may have other strides than a fresh one
            tensor = tensor.as_strided(tensor.shape, _fresh_strides(tensor.shape))
        if tensor._is_view():  # of something inside the op: autograd would refuse in-place operations on the output
            place = (tensor.storage_offset(), tensor.shape, tensor.stride())
            tensor = tensor.new_empty(0).set_(tensor.untyped_storage(), *place)
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result.append(tensor)
    return result


def _without_autocast(args: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    device = _first_tensor(args).device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _autograd_recording() -> Iterator[None]:
    """Record autograd inside an op's body, where the dispatcher has already passed (and excluded) the autograd keys."""
    keys = ("AutogradFunctionality", "ADInplaceOrView")
    before = [torch._C._dispatch_tls_is_dispatch_key_excluded(k) for k in keys]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for key, excluded in zip(keys, before, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)


def triton_interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter (`TRITON_INTERPRET=1`), which serves CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_refusals(call: Call) -> list[Refusal]:
    if importlib.util.find_spec("triton") is None:
        return [Refusal("not_installed", "needs the package triton >= 3.6; it is not installed")]
    if call.device.type == "cpu":
        if not triton_interpreted():
            return [Refusal("needs_gpu", "needs CUDA tensors (or TRITON_INTERPRET=1), got cpu tensors")]
        if any(t.dtype == torch.bfloat16 for t in call.tensors):
            return [Refusal("dtype", "needs float32 or float16 in Triton's interpreter (its bfloat16 is wrong)")]
        return []
    if call.device.type != "cuda":
        return [Refusal("needs_gpu", f"needs CUDA tensors, got {call.device.type} tensors")]
    major, minor = machine.compute_capability(call.device)
    if major < 8:
        return [Refusal("compute_capability", f"needs compute capability 8.0 or newer, got {major}.{minor}")]
    return []


def _check_backend(op: str, backend: str) -> None:
    if not isinstance(backend, str):
        raise TypeError(f"tkpy.{op}: argument 'backend' must be a string or None, got {backend!r}")
    if backend not in BACKENDS:
        raise ValueError(f"tkpy.{op}: argument 'backend' must be one of {', '.join(BACKENDS)}, got {backend!r}")


# --------------------------------------------------------------------------------------------------------- discovery
def discover(package: ModuleType) -> dict[str, Op]:
    """Import every folder of `package` that holds an op.py and is not known yet; returns the ops found, by name."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        name = f"{package.__name__}.{entry.name}.op"
        if not entry.ispkg or entry.name in _ops or importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        op = getattr(module, "OP", None)
        if not isinstance(op, Op) or op.name != entry.name:
            raise InternalError(f"op folder '{entry.name}' must define OP = Op({entry.name!r}, ...) in op.py")
        _ops[op.name] = found[op.name] = op
        setattr(package, op.name, op.public)
    return found


def discover_folder(folder: str | os.PathLike[str]) -> dict[str, Op]:
    """Add the op folders below `folder` (laid out like `tkpy/ops`) to this process; returns the new ops, by name.

    The way to keep ops of your own outside of tkpy; see docs/add_an_op.md.
    """
    path = str(Path(folder).resolve(strict=True))
    package = importlib.import_module("tkpy.ops")
    if path not in package.__path__:
        package.__path__.append(path)
        importlib.invalidate_caches()
    return discover(package)


def ops() -> dict[str, Op]:
    """All ops, by name."""
    importlib.import_module("tkpy.ops")
    return dict(_ops)


def get(op: str | Callable[..., Any]) -> Op:
    """The `Op` of a name or of a public function."""
    known = ops()
    for candidate in known.values():
        if op == candidate.name or op is candidate.public:
            return candidate
    raise ValueError(f"no op {op!r}; the ops are {', '.join(known)}")


# ------------------------------------------------------------------------------------------------- the user's controls
@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within this context (of this thread), ops without their own `backend=` use `backend`, or raise `Unsupported`."""
    _check_backend("use_backend", backend)
    before = _state.forced
    _state.forced = backend
    try:
        yield
    finally:
        _state.forced = before


def last_dispatch() -> Dispatch | None:
    """What ran last in this thread: op, backend, whether it was chosen automatically, and what was passed over."""
    return _state.last


@contextlib.contextmanager
def record_dispatches() -> Iterator[list[Dispatch]]:
    """Collect every run of every op (backward ops too, from all threads) while the context is open."""
    log: list[Dispatch] = []
    _recordings.append(log)
    try:
        yield log
    finally:
        _recordings.remove(log)


@contextlib.contextmanager
def watch_calls(watcher: Watcher, device: str | torch.device | None = None) -> Iterator[None]:
    """Within this context (of this thread) `watcher` gets an `Explanation` of every call of an op, before it runs.

    With `device`, the choice is made as if all tensors were there, which need not exist: for models on the device meta.
    """
    before = _state.watcher, _state.device
    _state.watcher, _state.device = watcher, None if device is None else torch.device(device)
    try:
        yield
    finally:
        _state.watcher, _state.device = before


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why each backend can or cannot serve one call; `chosen` is what the automatic choice takes (or None)."""

    op: str
    refusals: Mapping[str, tuple[Refusal, ...]]
    chosen: str | None
    call: Call | None = dataclasses.field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        lines = [f"tkpy.{self.op}"]
        for backend, reasons in self.refusals.items():
            mark = "chosen" if backend == self.chosen else "can serve" if not reasons else "refuses"
            lines.append(f"  {backend:<10} {mark:<10}" + "; ".join(map(str, reasons)))
        return "\n".join(line.rstrip() for line in lines)


def _explain_call(op: Op, call: Call, named: str | None = None) -> Explanation:
    refusals = {backend: tuple(op.refusals(backend, call)) for backend in BACKENDS}
    order = (named,) if named is not None else AUTOMATIC.get(call.device.type, ("eager",))
    return Explanation(op.name, refusals, next((b for b in order if not refusals[b]), None), call)


def _capture(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    _state.capturing = True
    try:
        op.public(*args, **kwargs)
    except _Captured as captured:
        return captured.call
    finally:
        _state.capturing = False
    raise InternalError(f"the public function of '{op.name}' returned without calling OP")


def capture(op: Op, kwargs: dict[str, Any]) -> Call:
    """The call that `op`'s public function would make of these arguments; nothing is computed."""
    return _capture(op, (), kwargs)


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Print, and return, every backend with its reasons for this call of `op` (a name or the function itself)."""
    known = get(op)
    explanation = _explain_call(known, _capture(known, args, kwargs))
    print(explanation)
    return explanation


def support_matrix(device: str | torch.device | None = None) -> dict[str, Explanation]:
    """Every op x backend on `device` (a GPU if there is one, else the CPU), for the first case of each op's table.

    A backend that does not serve float32 is asked for bfloat16.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    matrix = {}
    for name, op in sorted(ops().items()):
        wide, low = (
            _explain_call(op, _capture(op, (), op.cases[0].make(Maker(dtype, device))))
            for dtype in (torch.float32, torch.bfloat16)
        )
        refusals = {b: min(reasons, low.refusals[b], key=len) for b, reasons in wide.refusals.items()}
        matrix[name] = Explanation(name, refusals, wide.chosen)
    return matrix
