"""bench/cpu.py on small sizes: rows come out, wrong results are not timed, memory is what is held at one time."""

from __future__ import annotations

import pytest
import torch

from bench import cpu
from tkpy import registry


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(cpu, "ROUNDS", (1, 1))


@pytest.mark.parametrize("part", [cpu.modal, cpu.m2])
def test_rows_of_small_sizes(part):
    (line,) = part([(96, 0.0)])
    cells = line.cells()
    assert "96" in cells[0]
    assert cells[-1] == ">= 0x met"
    assert line.ours_seconds > 0 < line.peer_seconds


def test_a_wrong_result_is_not_timed(monkeypatch):
    eager = registry.get("modal_conv").module("eager")
    right = eager.forward
    monkeypatch.setattr(eager, "forward", lambda *args: (2 * right(*args)[0], right(*args)[1]))
    with pytest.raises(SystemExit, match="modal_conv at 96 computes something else"):
        list(cpu.modal([(96, 0.0)]))


def test_peak_memory_counts_what_is_held_together():
    kilobyte = 1 << 10

    def call() -> torch.Tensor:
        for _ in range(3):  # one after the other: not added up
            torch.zeros(64 * kilobyte)
        a, b = torch.zeros(32 * kilobyte), torch.zeros(64 * kilobyte)
        return torch.cat([a, b])

    assert cpu.peak_bytes(call) == pytest.approx(4 * 192 * kilobyte, rel=0.01)


def test_an_unknown_part_gets_one_sentence():
    with pytest.raises(SystemExit, match="no part nonsense; the parts are rwkv, modal, m2"):
        cpu.main(["nonsense"])
