"""Matrix descriptors: bit fields, addresses against the canonical layouts, and what is refused or doubted."""

from __future__ import annotations

import numpy as np
import pytest
from canonical import layouts

WIDTH_CODE = {16: 0, 128: 1, 64: 2, 32: 3}


def encoded(native, layout, start=None):
    start = layout.start if start is None else start
    return native.encode_descriptor(start, layout.leading, layout.stride, layout.base_offset, layout.width)


@pytest.mark.parametrize("width", WIDTH_CODE)
def test_bit_fields(native, width):
    bits = native.encode_descriptor(0x2A5F0, 0x11220, 0x3C3C0, 5, width)
    want = 0x2A5F | 0x1122 << 16 | 0x3C3C << 32 | 5 << 49 | WIDTH_CODE[width] << 62
    assert bits == want
    assert native.decode_descriptor(bits) == (0x2A5F0, 0x11220, 0x3C3C0, 5, width)


@pytest.mark.parametrize("mn", [8, 16, 24, 40, 64, 72, 128, 200, 256])
@pytest.mark.parametrize("mn_major", [False, True])
def test_addresses_are_the_canonical_layout(native, mn, mn_major):
    for layout in layouts(mn, 32, (mn_major,), 0x1400):
        got = native.operand_addresses(encoded(native, layout), mn, 2, mn_major)
        want = layout.unit_addresses(mn, 16 if mn_major else 32)
        np.testing.assert_array_equal(got, want.reshape(-1))
        assert native.descriptor_reason(encoded(native, layout), mn, 2, mn_major) == ""
        assert native.descriptor_doubt(encoded(native, layout), mn, 2, mn_major) == ""


@pytest.mark.parametrize("width", [32, 64, 128])
def test_every_pattern_start_with_its_base_offset(native, width):
    """A pattern may start at any multiple of 128; the base offset says where."""
    for row in range(16):
        start = 0x2000 + 128 * row
        for mn_major in (False, True):
            for layout in layouts(64, 32, (mn_major,), start, (width,)):
                base = (start >> 7) & 7
                right = native.encode_descriptor(start, layout.leading, layout.stride, base, width)
                want = layout.unit_addresses(64, 16 if mn_major else 32).reshape(-1)
                np.testing.assert_array_equal(native.operand_addresses(right, 64, 2, mn_major), want)
                assert native.descriptor_doubt(right, 64, 2, mn_major) == ""
                wrong = native.encode_descriptor(start, layout.leading, layout.stride, base ^ 1, width)
                assert (native.operand_addresses(wrong, 64, 2, mn_major) != want).any()
                assert "swizzle pattern" in native.descriptor_doubt(wrong, 64, 2, mn_major)


@pytest.mark.parametrize("width", [64, 128])
def test_a_k_step_inside_the_atom_only_moves_the_start(native, width):
    layout = layouts(64, 32, (False,), 0x4000, (width,))[0]
    whole = layout.unit_addresses(64, width)
    for step in range(width // 32):
        got = native.operand_addresses(encoded(native, layout, 0x4000 + 32 * step), 64, 2, False)
        np.testing.assert_array_equal(got.reshape(64, 2), whole[:, 2 * step : 2 * step + 2])


@pytest.mark.parametrize("width, repeat", [(16, 16), (32, 256), (64, 512), (128, 1024)])
def test_the_swizzle_is_an_involution_on_its_repeat(native, width, repeat):
    addresses = range(0, 4096, 16)
    moved = [native.swizzle_address(a, width, 0) for a in addresses]
    assert sorted(moved) == list(addresses)
    assert [native.swizzle_address(m, width, 0) for m in moved] == list(addresses)
    xor = [a ^ m for a, m in zip(addresses, moved, strict=True)]
    assert xor[: repeat // 16] == xor[repeat // 16 : 2 * repeat // 16]
    assert max(xor) == width - 16


def test_reasons(native):
    good = native.encode_descriptor(0x4000, 16, 1024, 0, 128)
    for bit in (14, 15, 30, 31, 46, 47, 48, *range(52, 62)):
        assert "reserved" in native.descriptor_reason(good | 1 << bit, 64, 2, False)
    assert "tcgen05" in native.descriptor_reason(good | 1 << 46, 64, 2, False)
    assert "K-major" in native.descriptor_reason(good, 64, 1, True)
    assert "K-major" in native.descriptor_reason(good, 64, 4, True)
    assert "base offset" in native.descriptor_reason(native.encode_descriptor(0x4000, 128, 256, 3, 16), 64, 2, False)


@pytest.mark.parametrize(
    "descriptor, mn_major, why",
    [
        ((0x4000, 0, 256, 0, 16), False, "leading byte offset is 0"),
        ((0x4000, 128, 0, 0, 16), False, "stride byte offset is 0"),
        ((0x4000, 16, 512, 0, 128), False, "stride byte offset 512 is not a multiple of 1024"),
        ((0x4000, 512, 1024, 0, 64), True, ""),
        ((0x4000, 256, 512, 0, 64), True, "leading byte offset 256 is not a multiple of 512"),
        ((0x4080, 16, 1024, 0, 128), False, "row 1 of its swizzle pattern"),
        ((0x4080, 16, 1024, 1, 128), False, ""),
        ((0x4020, 16, 1024, 0, 128), False, ""),
        ((0x4200, 16, 512, 0, 64), False, ""),
    ],
)
def test_doubts(native, descriptor, mn_major, why):
    doubt = native.descriptor_doubt(native.encode_descriptor(*descriptor), 64, 2, mn_major)
    assert why in doubt
    assert bool(doubt) == bool(why)
