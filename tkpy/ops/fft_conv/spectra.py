"""Spectra of filters, kept from one call to the next.

An entry serves a call whose filters are the very tensors it was made from (weak references, not addresses: the memory
of a tensor that has died may belong to another), unchanged since (autograd's version counters, which every in-place
operation and every view's advances; writes through `.data` or by foreign kernels do not, after those call `forget`).
It dies with its filter. Of a filter that requires grad nothing is kept: training changes it anyway.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

_lock = threading.RLock()  # a filter may die, and drop its spectrum, while this thread holds it
_kept: dict[int, tuple[list[weakref.ref[torch.Tensor]], tuple[Any, ...], torch.Tensor]] = {}


def forget() -> None:
    """Drop all spectra."""
    with _lock:
        _kept.clear()


def keepable(filters: list[torch.Tensor]) -> bool:
    if any(t.requires_grad or t.is_inference() for t in filters):  # the latter have no version counter
        return False
    # A graph replays with the addresses it was captured with: what it reads must be its own.
    return not (filters[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _state(filters: list[torch.Tensor], key: tuple[Any, ...]) -> tuple[Any, ...]:
    stream = torch.cuda.current_stream(filters[0].device).cuda_stream if filters[0].is_cuda else 0
    each = tuple((t._version, t.data_ptr(), t.dtype, t.shape, t.stride()) for t in filters)
    return (stream, key, each)


def kept(filters: list[torch.Tensor], key: tuple[Any, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """make(), or what it gave for these filters in this state before. `key`: what else the spectrum depends on."""
    if not keepable(filters):
        return make()
    state, first = _state(filters, key), id(filters[0])
    with _lock:
        entry = _kept.get(first)
    if entry and entry[1] == state and all(ref() is t for ref, t in zip(entry[0], filters, strict=True)):
        return entry[2]
    spectrum = make()

    def drop(dead: weakref.ref[torch.Tensor]) -> None:
        with _lock:
            if first in _kept and any(ref is dead for ref in _kept[first][0]):
                del _kept[first]

    with _lock:
        _kept[first] = ([weakref.ref(t, drop) for t in filters], state, spectrum)
    return spectrum
