"""Every instruction form of a census over public Hopper kernels decodes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

#: By path: `coverage` is also the name of a well-known package.
_spec = importlib.util.spec_from_file_location("instruction_coverage", Path(__file__).with_name("coverage.py"))
assert _spec is not None
assert _spec.loader is not None
coverage_forms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage_forms)

CENSUS = Path(__file__).with_name("ptx_forms.tsv")


def test_every_form_is_modelled() -> None:
    forms = [line.split("\t")[0] for line in CENSUS.read_text().splitlines()[1:] if line]
    assert len(forms) > 1300
    missing = {form: reason for form in forms if (reason := coverage_forms.modelled(form))}
    assert not missing


@pytest.mark.parametrize("form", ["add.q32 r,r,r", "frobnicate.b32 r,r", "wgmma.mma_async.sync.aligned.m64n12k16 {r4}"])
def test_the_measure_can_say_no(form: str) -> None:
    assert coverage_forms.modelled(form)
