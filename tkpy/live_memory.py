"""LiveMemory: bytes of the tensors alive while PyTorch code runs, and their most; on any device, `meta` too."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Within `with LiveMemory(tensors) as memory:`, `memory.peak` is the most bytes that were alive at once.

    Counted are the storages of `tensors` and of all that operators return, each once however many views it has, until
    the last view is gone. What a kernel allocates and frees within one operator is not seen.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._count(tensors)

    def _count(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._known:
                continue
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.live)

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count(tree_leaves(result))
        return result
