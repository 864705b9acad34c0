"""Microbenchmarks on the host's side: every full plan is one that a GPU takes, and clocks become the right number."""

from __future__ import annotations

import importlib
import math
import struct

import pytest
import torch

from tkpy import published
from tkpy.bench import micro
from tkpy.bench.micro import Map, Place, Records, Struct, Wide
from tkpy.bench.spec import discover
from tkpy.bench.specs import micro_alu, micro_launch, micro_memory, micro_wgmma

pytestmark = pytest.mark.fast

SPECS = ("alu", "wgmma", "shared", "memory", "tma", "cluster", "sync", "atomics")
SHARED_OF_AN_SM, SHARED_OF_A_CTA, RESERVED = 233472, 232448, 1024


def micros(spec):
    return importlib.import_module(f"tkpy.bench.specs.micro_{spec}").micros()


def full(row, sms=132):
    """A full plan; tensors have shapes and no memory."""
    return row.plan(Place(torch.device("meta"), sms, small=False))


@pytest.mark.parametrize("spec", SPECS)
def test_full_plans_fit_the_machine_and_give_numbers(spec):
    for row in micros(spec):
        plan = full(row)
        assert 1 <= plan.block <= 1024, row.name
        assert plan.block % 32 == 0, row.name
        assert plan.grid % plan.cluster == 0, row.name
        assert plan.shared <= SHARED_OF_A_CTA, row.name
        at_once = row.shapes.get("per_sm", 1)
        assert at_once * (plan.shared + RESERVED) <= SHARED_OF_AN_SM, f"{row.name}: {at_once} CTAs do not fit an SM"
        if row.kernel != "chase_each":  # its number comes from the hops
            value = plan.value(Records(torch.tensor([[0, 10**6, 0, 10**6, 0]] * plan.grid)))
            assert math.isfinite(value), row.name
            assert value > 0, row.name


def test_rows_are_many_and_their_published_figures_exist():
    rows = [b for b in discover() if b.suite == "micro"]
    assert len(rows) > 1000
    ids = {i for row in rows for i in row.published}
    assert ids <= set(published.figures())
    reproduced = {i.split("/")[1] for i in ids}
    assert {"wgmma", "mma", "latency", "bandwidth", "dsm", "tma"} <= reproduced
    missed = [i for i in published.figures() if i.startswith(("ipdps24", "logs", "hopper25")) and i not in ids]
    # mma.sp has no wrapper here; what TMA adds to a load is a difference of two rows
    assert set(missed) == {"ipdps24/mma/m16n8k16/f16/sparse/rate", "hopper25/latency/tma_over_load"}


def test_every_wgmma_of_the_isa_is_there():
    names = {row.name for row in micro_wgmma.micros()}
    for kind in micro_wgmma.TYPES:
        assert len(kind.shapes) == (18 if kind.name == "s8" else 32)
        for n in kind.shapes:
            for source in ("ss", "rs"):
                assert f"wgmma/{kind.name}/n{n}/{source}/latency" in names
                assert f"wgmma/{kind.name}/n{n}/{source}/rate/zeros" in names
                assert f"wgmma/{kind.name}/n{n}/{source}/rate/random" in names


def test_random_data_of_further_shapes_come_last():
    """They are many: a run that is cut short has had the others."""
    rows = [b for b in discover() if b.suite == "micro"]
    further = [i for i, row in enumerate(rows) if row.rank == micro_wgmma.LAST]
    assert further == list(range(len(rows) - len(further), len(rows)))
    assert len(further) == 2 * (8 * (32 - 4) + 18 - 4)
    assert {rows[i].name.split("/")[-1] for i in further} == {"random"}
    assert not {rows[i].shapes["n"] for i in further} & set(micro_wgmma.FIRST)


def test_a_published_number_comes_back_from_its_own_clocks():
    """128 cycles a wgmma of m64n256k16 are 729.3 TFLOP/s on 114 SMs at 1755 MHz, less what the paper lost."""
    row = next(r for r in micro_wgmma.micros() if r.name == "wgmma/f16/n256/ss/rate/zeros")
    plan = full(row, sms=114)
    products = 1024 * 4 * 2  # of an SM's two warpgroups, which share its tensor cores
    nanoseconds = round(products * 128 / 1.755)
    value = plan.value(Records(torch.tensor([[0, products * 128, 0, nanoseconds, 0]] * plan.grid)))
    peak = 114 * 4096 * 1.755e9 * 2 / 2e12
    assert value == pytest.approx(peak, rel=1e-3)
    assert 0.85 < published.figures()["ipdps24/wgmma/m64n256k16/f16/ss/rate"].value / value < 1
    latency = next(r for r in micro_wgmma.micros() if r.name == "wgmma/f16/n256/ss/latency")
    assert full(latency).value(Records(torch.tensor([[5, 5 + 1024 * 128, 0, 1, 0]]))) == 128.0


def test_records_take_the_median_of_ctas_and_the_span_of_all():
    records = Records(torch.tensor([[100, 200, 1000, 1500, 3], [50, 170, 900, 1400, 4], [0, 500, 950, 1900, 5]]))
    assert records.clocks == 120
    assert records.first_clocks == 100
    assert records.seconds == pytest.approx(1e-6)


def test_parameters_are_packed_at_their_own_alignment():
    tensor = torch.zeros(4, dtype=torch.int32)
    block = micro.pack([7, tensor, Struct((1, 2, 3)), Wide(1 << 40), Map(tensor, (4,))], lambda m: b"M" * 128)
    assert block[:16] == struct.pack("<IIQ", 7, 0, tensor.data_ptr())
    assert block[16:40] == struct.pack("<IIIIQ", 1, 2, 3, 0, 1 << 40)
    assert block[40:64] == bytes(24)
    assert block[64:] == b"M" * 128
    assert micro.pack([-1], lambda m: b"") == b"\xff" * 4


def test_hops_are_split_where_two_groups_lie_apart():
    near, far = [258, 259, 257, 260, 255] * 20, [414, 415, 410, 418] * 15
    assert micro_memory.split(near + far) == (258.0, 414.5)
    assert micro_memory.split([5.0, 9.0]) == (5.0, 9.0)


def test_the_gap_between_kernels_is_from_an_end_to_the_next_release():
    stamps = torch.tensor([[0, 0, 100], [60, 110, 200], [150, 230, 330], [300, 331, 400]])
    assert micro_launch.gap(stamps) == 10.0


def test_units_compute_what_their_names_say():
    by_name = {unit.name: unit for unit in micro_alu.UNITS}
    np = micro_alu.np

    def step(name, x, before=0, b=None, c=None):
        unit = by_name[name]
        words = np.full(32, x, np.uint32)
        b, c = unit.b if b is None else b, unit.c if c is None else c
        return int(unit.step(words, np.full(32, before, np.uint32), b, c)[0])

    one, two = 0x3F800000, 0x40000000
    assert step("fadd", one, b=one) == two
    assert step("ffma", two, b=two, c=0) == 0x40800000
    assert step("imad", 3, b=5, c=7) == 22
    assert step("viaddmax", 3, b=-10 & 0xFFFFFFFF, c=1) == 1
    assert step("prmt", 0x44332211, b=0x88776655, c=0x7410) == 0x88552211
    assert step("shf", 0xAB000000, b=1, c=8) == 0x1AB
    assert step("popc", 0xF0F0) == 8
    assert step("redux", 2) == 64
    assert step("cvt_bf16x2_f32", one, b=two) == 0x3F804000
    assert step("dp4a", 1, b=0x01FF0000, c=0x02030000) == 0  # 1 + 1 * 2 + (-1) * 3
