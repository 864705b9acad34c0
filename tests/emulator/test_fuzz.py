"""PTX is untrusted text: whatever it holds, loading and running it ends in a result or a Python exception."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tkpy.emulator

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("fuzz_corpus", HERE / "fuzz" / "corpus.py")
assert _spec is not None
assert _spec.loader is not None
corpus = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(corpus)

SEED = (Path(__file__).parent / "fuzz_seed.ptx").read_text()
TOKENS = SEED.replace(",", " , ").replace(";", " ; ").replace("[", " [ ").replace("]", " ] ").split(" ")


def survive(text: str) -> None:
    try:
        module = tkpy.emulator.load(text)
    except ValueError:
        return
    data = np.zeros(256, np.uint32)
    for name, function in module.kernels.items():
        args = [data if p.bytes == 8 and not p.is_array else bytes(p.bytes) for p in function.params]
        with contextlib.suppress(ValueError, TypeError, tkpy.emulator.KernelError):
            module.launch(name, block=64, shared=4096, args=args, max_instructions=3000, threads=1).report()


def test_the_seed_itself_runs() -> None:
    module = tkpy.emulator.load(SEED)
    assert not module.unmodelled
    survive(SEED)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_text(data: st.DataObject) -> None:
    text = SEED
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        action = data.draw(st.sampled_from(["cut", "insert", "replace", "swap", "repeat"]))
        length = data.draw(st.integers(1, 60))
        if action == "cut":
            text = text[:at] + text[at + length :]
        elif action == "insert":
            text = text[:at] + data.draw(st.text(max_size=8)) + text[at:]
        elif action == "replace":
            text = text[:at] + data.draw(st.sampled_from(TOKENS)) + text[at + length :]
        elif action == "swap":
            text = text[:at] + text[at + length : at + 2 * length] + text[at : at + length] + text[at + 2 * length :]
        else:
            text = text[:at] + text[at : at + length] * data.draw(st.integers(2, 5)) + text[at + length :]
    survive(text)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_tokens(seed: int) -> None:
    """Operands, modifiers and immediates exchanged for others: mostly still PTX, so that it runs."""
    rng = random.Random(seed)
    lines = SEED.splitlines()
    for _ in range(60):
        mutated = list(lines)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(mutated))
            action = rng.randrange(4)
            if action == 0:
                mutated[at] = mutated[rng.randrange(len(mutated))]
            elif action == 1:
                words = mutated[at].split(" ")
                words[rng.randrange(len(words))] = rng.choice(TOKENS)
                mutated[at] = " ".join(words)
            elif action == 2:
                mutated[at] = "".join(
                    str(rng.choice([0, 1, 7, 31, 32, 255, 2**31, 2**32 - 1, 2**63]))
                    if c.isdigit() and rng.random() < 0.3
                    else c
                    for c in mutated[at]
                )
            else:
                del mutated[at]
        survive("\n".join(mutated))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SEED)))
def test_truncated(length: int) -> None:
    survive(SEED[:length])


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_arbitrary_text(text: str) -> None:
    survive(".version 8.0\n" + text)
    survive(".version 8.0\n.entry k() {\n" + text)


def test_every_form_of_the_census_runs_on_odd_operands() -> None:
    """The seeds of the fuzzer: addresses that are wrong, barriers misused, whatever an instruction makes of them."""
    census = (HERE / "ptx_forms.tsv").read_text().splitlines()[1:]
    programs = corpus.programs([line.split("\t")[0] for line in census if line])
    assert len(programs) > 300
    for text in programs.values():
        survive(text)


@pytest.mark.parametrize("path", sorted((HERE / "fuzz" / "regressions").glob("*")), ids=lambda path: path.name)
def test_inputs_that_once_were_faults(path: Path) -> None:
    survive(path.read_text(encoding="utf-8", errors="surrogateescape"))
