"""LiveMemory counts storages once, until their last view is gone, on tensors with data and without."""

from __future__ import annotations

import gc

import pytest
import torch

import tkpy
from tkpy.live_memory import LiveMemory

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_storage_lives_until_its_last_view_is_gone(device):
    weight = torch.ones(256, device=device)
    with LiveMemory([weight, weight[3:]]) as memory:
        assert memory.live == 1024
        a = torch.ones(1024, device=device)
        b = a.view(32, 32).t()
        del a
        assert memory.live == memory.peak == 5120
        c = b + 1
        del b
        c.add_(1)
        assert (memory.live, memory.peak) == (5120, 9216)
        low, high = c.to(torch.bfloat16), c.double()
        del c, low, high
        assert (memory.live, memory.peak) == (1024, 5120 + 2048 + 8192)


def test_what_the_backward_needs_is_held():
    x = torch.ones(1000, requires_grad=True)
    with LiveMemory([x]) as memory:
        y = x.exp().sin()  # exp's result is kept for both derivatives
        assert memory.live == 3 * 4000
        y.sum().backward()
        del y
        gc.collect()
        assert memory.live == 2 * 4000  # x and its gradient


def test_an_op_of_ours_is_one_operator():
    """What eager code makes within it is a kernel's own affair."""
    x, weight = torch.ones(10, 64), torch.ones(64)
    with LiveMemory([x, weight]) as memory:
        before = memory.live
        y = tkpy.rms_norm(x, weight)
        del y
    assert memory.peak <= before + x.nbytes + 10 * 4
    assert memory.live == before
