"""Every instruction form of a census over public Hopper kernels decodes, but for those that are listed here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

#: By path: `coverage` is also the name of a well-known package.
_spec = importlib.util.spec_from_file_location("instruction_coverage", Path(__file__).with_name("coverage.py"))
assert _spec is not None
assert _spec.loader is not None
coverage_forms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage_forms)

CENSUS = Path(__file__).with_name("ptx_forms.tsv")
#: Families that docs/emulator.md names as not modelled: sparse products.
NOT_MODELLED = re.compile(r"(wgmma\.mma_async\.sp|mma\.sp)")


def test_all_but_the_listed_families_are_modelled() -> None:
    forms = [line.split("\t")[0] for line in CENSUS.read_text().splitlines()[1:] if line]
    assert len(forms) > 1300
    missing = {form: reason for form in forms if (reason := coverage_forms.modelled(form))}
    unexpected = {form: why for form, why in missing.items() if not NOT_MODELLED.match(form)}
    assert not unexpected, unexpected
    assert len(missing) == len([f for f in forms if NOT_MODELLED.match(f)])  # what becomes modelled leaves the list


@pytest.mark.parametrize("form", ["add.q32 r,r,r", "frobnicate.b32 r,r", "wgmma.mma_async.sync.aligned.m64n12k16 {r4}"])
def test_the_measure_can_say_no(form: str) -> None:
    assert coverage_forms.modelled(form)
