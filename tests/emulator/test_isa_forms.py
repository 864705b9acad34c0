"""Every spelling of the ISA's instructions that sm_90a has decodes (isa_forms.py), but for those listed here."""

from __future__ import annotations

import isa_forms
import pytest

#: Statements that ptxas assembles for sm_90a and the emulator refuses, and why.
REFUSED = {
    "mov.v2.": "not in the ISA: mov has no vectors on both sides",
    "st.async.weak.b32 [%d1],%w1;": "not in the ISA: st.async completes on an mbarrier",
    "mma.sync.aligned.m16n8k16.row.col.f": "fp8 operands longer than the fragment, which ptxas does not count",
    "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16": "a selector of lanes that do not exist, which ptxas does not check",
    "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16": "the same",
    "cp.async.bulk.tensor": "not modelled: im2col tensor maps",
    "cp.reduce.async.bulk.tensor": "not modelled: im2col tensor maps",
}

#: Statements that ptxas refuses and the emulator runs, as they can mean one thing only.
ACCEPTED = {
    "setp.lt.and.f16": "two results of a comparison of f16",
    "setp.lt.or.f16": "the same",
    "setp.lt.xor.f16": "the same",
    "mov.u32 %w1,%is_explicit_cluster;": "a predicate read as a number",
    "ld.b32 %w1,[4096];": "a constant as a generic address",
    "fence.proxy.async.shared ;": ".shared for .shared::cta",
    "exit.uni ;": "what every exit may be",
}


def test_every_statement_of_the_gpu_is_modelled() -> None:
    statements = isa_forms.of_the_gpu()
    assert len(statements) > 10_000
    missing = {statements[i]: why for i, why in isa_forms.unmodelled(statements).items()}
    assert not {s: why for s, why in missing.items() if not s.startswith(tuple(REFUSED))}
    assert all(
        any(s.startswith(prefix) for s in missing) for prefix in REFUSED
    )  # what becomes modelled leaves the list


def test_what_the_gpu_lacks_is_refused() -> None:
    statements = isa_forms.of_other_gpus()
    assert len(statements) > 6_500
    refused = isa_forms.unmodelled(statements)
    accepted = {s for i, s in enumerate(statements) if i not in refused}
    assert not {s for s in accepted if not s.startswith(tuple(ACCEPTED))}
    assert all(any(s.startswith(prefix) for s in accepted) for prefix in ACCEPTED)


def test_the_table_is_what_ptxas_says() -> None:
    ptxas = isa_forms.find_ptxas()
    if ptxas is None:
        pytest.skip("ptxas not found (PATH, triton)")
    version = isa_forms.ptxas_version(ptxas)
    if version < (13, 0):
        pytest.skip(f"ptxas {version} is older than the table's PTX version")
    rows = isa_forms.read_table()
    said = iter(isa_forms.assembles([s for pattern, _ in rows for s in isa_forms.spellings(pattern)], ptxas))
    for pattern, mask in rows:
        for i, statement in enumerate(isa_forms.spellings(pattern)):
            assert next(said) == bool(mask >> i & 1), statement
