"""Tensor maps and tiles against plain numpy slicing."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from canonical import Layout

BASE, SIZE = 1024, 64 * 1024
DTYPES = {
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": ml_dtypes.bfloat16,
}  # fmt: skip


class Tensor:
    """Global memory: a padded, 16-byte aligned array of small integers, outermost dimension first."""

    def __init__(self, kind: str, shape: tuple[int, ...], seed: int = 0) -> None:
        self.kind, self.dtype = kind, np.dtype(DTYPES[kind])
        size = self.dtype.itemsize
        pitch = -(-shape[-1] * size // 16) * 16 + 16  # rows padded, so that strides are not derived from dims
        padded = (*shape[:-1], pitch // size)
        self.raw = np.zeros(int(np.prod(padded)) * size + 16, np.uint8)
        skip = -self.raw.ctypes.data % 16
        self.storage = self.raw[skip : skip + int(np.prod(padded)) * size].view(self.dtype).reshape(padded)
        self.storage[...] = np.random.default_rng(seed).integers(1, 100, padded).astype(self.dtype)
        self.data = self.storage[..., : shape[-1]]

    def words(self, box: tuple[int, ...], **changes) -> dict:
        """Arguments of encode_tensor_map; `box` outermost first, like the shape."""
        return {
            "type": self.kind,
            "rank": self.data.ndim,
            "address": self.storage.ctypes.data,
            "dim": list(self.data.shape[::-1]),
            "stride": list(self.data.strides[-2::-1]),
            "box": list(box[::-1]),
            **changes,
        }

    def encode(self, native, box: tuple[int, ...], **changes) -> np.ndarray:
        words = self.words(box, **changes)
        assert native.tensor_map_reason(**words) == ""
        return native.encode_tensor_map(**words)


def indices(tensor: Tensor, box, at, steps) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Positions of the tile's elements in the tensor, clipped, and which are inside."""
    axes = []
    for i, (extent, first, step) in enumerate(zip(box, at, steps, strict=True)):
        inner = i == len(box) - 1
        axes.append(first + np.arange(extent if inner else -(-extent // step)) * (1 if inner else step))
    grids = np.meshgrid(*axes, indexing="ij")
    inside = np.ones(grids[0].shape, bool)
    for grid, dim in zip(grids, tensor.data.shape, strict=True):
        inside &= (grid >= 0) & (grid < dim)
    clipped = tuple(np.clip(g, 0, d - 1) for g, d in zip(grids, tensor.data.shape, strict=True))
    return clipped, inside


def expected(tensor: Tensor, box, at, steps=None, fill=0) -> np.ndarray:
    where, inside = indices(tensor, box, at, steps or (1,) * len(box))
    return np.where(inside, tensor.data[where], np.array(fill, tensor.dtype))


def shared_positions(rows: int, row_bytes: int, width: int, start: int) -> np.ndarray:
    """[row, 16-byte unit] -> address: lines of the swizzle width, permuted by the row of their 128-byte line."""
    if width > 16 and start % (8 * width) == 0:
        return Layout(width, False, 16, 8 * width, start).unit_addresses(rows, row_bytes)
    flat = start + np.arange(rows)[:, None] * max(width, row_bytes) + np.arange(row_bytes // 16)[None, :] * 16
    return flat ^ (flat // 128 % (width // 16) * 16)


def swizzled(tile: np.ndarray, width: int, start: int) -> np.ndarray:
    lines = np.ascontiguousarray(tile).view(np.uint8).reshape(-1, tile.shape[-1] * tile.dtype.itemsize)
    memory = np.full(SIZE, 0xEE, np.uint8)
    where = shared_positions(*lines.shape, width, start) - BASE
    memory[where[..., None] + np.arange(16)] = lines.reshape(len(lines), -1, 16)
    return memory


def load(native, tensor, box, at, start, **changes) -> np.ndarray:
    bytes_ = tensor.encode(native, box, **changes)
    assert native.tile_reason(bytes_, start) == ""
    return native.tile_load(bytes_, list(at[::-1]), start, np.full(SIZE, 0xEE, np.uint8), BASE)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", DTYPES)
def test_loads_of_every_type_and_swizzle_at_every_edge(native, kind, width):
    size = np.dtype(DTYPES[kind]).itemsize
    tensor = Tensor(kind, (13, 160 // size + 1))
    inner = (width if width > 16 else 48) // size
    for rows, first_row, column in itertools.product((1, 8, 13), (-20, -3, 0, 5, 12, 13), (-inner, -1, 0, 3, 10**6)):
        box, at = (rows, inner), (first_row, column)
        memory = load(native, tensor, box, at, 0x2000, swizzle=width)
        np.testing.assert_array_equal(memory, swizzled(expected(tensor, box, at), width, 0x2000))


@pytest.mark.parametrize("width", [32, 64, 128])
def test_rows_narrower_than_the_swizzle_and_starts_off_its_repeat(native, width):
    tensor = Tensor("f16", (40, 64))
    for row_bytes, start in itertools.product(range(16, width + 1, 16), range(0x2000, 0x2400, 128)):
        box, at = (17, row_bytes // 2), (3, 5)
        bytes_ = tensor.encode(native, box, swizzle=width)
        assert native.tile_sizes(bytes_) == (17 * row_bytes, width, 17 * width)
        memory = load(native, tensor, box, at, start, swizzle=width)
        np.testing.assert_array_equal(memory, swizzled(expected(tensor, box, at), width, start))
        assert bool(native.tile_doubt(bytes_, start)) == bool(start % (8 * width))


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_sabotaged_tiles_are_seen(native, width):
    """Another swizzle, an edge one off in any direction, a step: each changes shared memory."""
    tensor = Tensor("u32", (30, 50))
    box, at = (12, max(width, 32) // 4), (20, 44)
    wide_enough = [w for w in (16, 32, 64, 128) if w == 16 or w >= 4 * box[1]]
    wrong: list[dict] = [{"swizzle": w} for w in wide_enough if w != width]
    wrong += [{"swizzle": width, "element_stride": [1, 2]}]
    wrong += [{"swizzle": width, "dim": dim} for dim in ([51, 30], [49, 30], [50, 29])]
    right = swizzled(expected(tensor, box, at), width, 0x1000)
    np.testing.assert_array_equal(load(native, tensor, box, at, 0x1000, swizzle=width), right)
    for changes in wrong:
        assert (load(native, tensor, box, at, 0x1000, **changes) != right).any(), changes
    for rows in (11, 13):
        assert (load(native, tensor, (rows, box[1]), at, 0x1000, swizzle=width) != right).any()
    for moved in ((21, 44), (19, 44), (20, 45), (20, 43)):
        assert (load(native, tensor, box, moved, 0x1000, swizzle=width) != right).any()


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [16, 64])
def test_every_rank_with_coordinates_over_every_edge(native, rank, width):
    tensor = Tensor("f32", (3, 4, 2, 5, 20)[5 - rank :], rank)
    box = (2, 3, 2, 3, 8)[5 - rank :]
    edges = [sorted({-b, -1, 0, d - b + 1, d}) for b, d in zip(box, tensor.data.shape, strict=True)]
    rng = np.random.default_rng(rank)
    every = list(itertools.product(*edges))
    for i in rng.permutation(len(every))[:150]:
        at = every[i]
        memory = load(native, tensor, box, at, 0x1000, swizzle=width)
        np.testing.assert_array_equal(memory, swizzled(expected(tensor, box, at), width, 0x1000))


@pytest.mark.parametrize("steps", [(1, 2), (3, 1), (8, 5)])
def test_element_strides(native, steps):
    """elementStrides[0] is ignored; the others take ceil(box / stride) elements."""
    tensor = Tensor("bf16", (9, 40, 24))
    for extent in range(1, 12):
        box, at = (3, extent, 16), (-1, 30, 4)
        full = (*steps, 7)
        words = {"element_stride": list(full[::-1])}
        memory = load(native, tensor, box, at, 0x1000, **words)
        tile = expected(tensor, box, at, full)
        np.testing.assert_array_equal(memory, swizzled(tile, 16, 0x1000))
        assert native.tile_sizes(tensor.encode(native, box, **words))[0] == tile.nbytes


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_nan_fill(native, kind):
    tensor = Tensor(kind, (4, 16))
    memory = load(native, tensor, (4, 16), (-2, 8), 0x1000, nan_fill=True)
    size = tensor.dtype.itemsize
    got = memory[0x1000 - BASE :][: 64 * size].view(tensor.dtype).reshape(4, 16)
    _, inside = indices(tensor, (4, 16), (-2, 8), (1, 1))
    np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), ~inside)


@pytest.mark.parametrize("width", [16, 32, 128])
def test_stores_skip_what_is_out_of_bounds(native, width):
    for first, column in itertools.product((-3, 0, 9, 12), (-5, 0, 30, 39)):
        tensor = Tensor("f16", (12, 40))
        before = tensor.raw.copy()
        box, at = (6, width // 2 if width > 16 else 24), (first, column)
        tile = np.random.default_rng(1).integers(100, 200, box).astype(np.float16)
        want = tensor.data.copy()
        where, inside = indices(tensor, box, at, (1, 1))
        want[tuple(w[inside] for w in where)] = tile[inside]
        bytes_ = tensor.encode(native, box, swizzle=width)
        native.tile_store(bytes_, list(at[::-1]), 0x1000, swizzled(tile, width, 0x1000), BASE)
        np.testing.assert_array_equal(tensor.data, want)
        outside = np.ones(tensor.storage.shape, bool)
        outside[:, :40] = False
        old = before[tensor.storage.ctypes.data - tensor.raw.ctypes.data :][: tensor.storage.nbytes]
        old = old.view(np.float16).reshape(tensor.storage.shape)
        np.testing.assert_array_equal(tensor.storage[outside], old[outside])  # the padding is untouched


def reduced(op: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    plain = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
    if op == "inc":
        return np.where(old >= new, 0, old + 1)
    if op == "dec":
        return np.where((old == 0) | (old > new), new, old - 1)
    return np.bitwise_xor(old, new) if op == "xor" else plain[op](old, new)


@pytest.mark.parametrize("op", ["add", "min", "max", "inc", "dec", "and", "or", "xor"])
@pytest.mark.parametrize("kind", DTYPES)
def test_reductions(native, kind, op):
    tensor = Tensor(kind, (10, 40))
    box, at = (8, 16), (5, 30)
    bytes_ = tensor.encode(native, box)
    if native.tile_reduce_reason(bytes_, op):
        supported = {"add": {"u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64"}, "inc": {"u32"}, "dec": {"u32"}}
        supported |= {key: {"u32", "s32", "u64", "s64", "f16", "bf16"} for key in ("min", "max")}
        assert kind not in supported.get(op, {"u32", "s32", "u64", "s64"})
        return
    tile = np.random.default_rng(2).integers(1, 100, box).astype(tensor.dtype)
    want = tensor.data.copy()
    where, inside = indices(tensor, box, at, (1, 1))
    spot = tuple(w[inside] for w in where)
    want[spot] = reduced(op, want[spot], tile[inside])
    native.tile_reduce(bytes_, op, list(at[::-1]), 0x1000, swizzled(tile, 16, 0x1000), BASE)
    np.testing.assert_array_equal(tensor.data, want)


def test_tf32_rounds_and_ftz_flushes(native):
    tensor = Tensor("f32", (4, 16))
    tensor.data.view(np.uint32)[...] = np.random.default_rng(0).integers(0x00800000, 0x7F7FFFFF, (4, 16))
    tensor.data[0] = [1e-40, -1e-40, *range(14)]
    for kind in ("f32.ftz", "tf32", "tf32.ftz"):
        tensor.kind = kind
        got = load(native, tensor, (4, 16), (0, 0), 0x1000)[0x1000 - BASE :][:256].view(np.uint32).reshape(4, 16)
        want = tensor.data.view(np.uint32).copy()
        if kind.endswith("ftz"):
            want[0, :2] = 0, 0x80000000
        if kind.startswith("tf32"):
            want = (want + 0xFFF + (want >> 13 & 1)) & np.uint32(0xFFFFE000)
        np.testing.assert_array_equal(got, want)


def test_runs_name_every_byte_once(native):
    tensor = Tensor("u16", (20, 100))
    for width in (16, 64):
        bytes_ = tensor.encode(native, (9, 32), swizzle=width)
        runs = native.tile_runs(bytes_, [90, 15], 0x1000)
        assert sum(r[3] for r in runs) == native.tile_sizes(bytes_)[0]
        covered = [a for r in runs for a in range(r[2], r[2] + r[3])]
        assert sorted(covered) == list(range(0x1000, 0x1000 + 9 * 64))
        inside = sum(r[3] for r in runs if r[0])
        assert inside == 5 * 10 * 2
        lo, hi = tensor.storage.ctypes.data, tensor.storage.ctypes.data + tensor.storage.nbytes
        assert all(lo <= r[1] and r[1] + r[3] <= hi for r in runs if r[0])


def test_fields_replaced_on_zeroed_bytes_make_the_same_map(native):
    tensor = Tensor("bf16", (6, 9, 40))
    words = tensor.words((2, 4, 32), swizzle=64, element_stride=[1, 2, 1], nan_fill=True)
    bytes_ = np.zeros(128, np.uint8)
    numbers = dict(native.map_types())
    steps = [("elemtype", 0, numbers["bf16"]), ("rank", 0, 2), ("global_address", 0, words["address"])]
    steps += [("swizzle_mode", 0, 2), ("interleave_layout", 0, 0), ("fill_mode", 0, 1)]
    for i in range(3):
        steps += [("global_dim", i, words["dim"][i]), ("box_dim", i, words["box"][i])]
        steps += [("element_stride", i, words["element_stride"][i])]
    steps += [("global_stride", i, words["stride"][i]) for i in range(2)]
    for field, ordinal, value in steps:
        reason, bytes_ = native.replace_tensor_map(bytes_, field, ordinal, value)
        assert reason == ""
    np.testing.assert_array_equal(bytes_, native.encode_tensor_map(**words))
    assert "neither" in native.replace_tensor_map(np.full(128, 7, np.uint8), "rank", 0, 1)[0]
    assert "no ordinal 4" in native.replace_tensor_map(bytes_, "global_stride", 4, 16)[0]
    assert "no value 5" in native.replace_tensor_map(bytes_, "rank", 0, 5)[0]
    assert "no value 13" in native.replace_tensor_map(bytes_, "elemtype", 0, 13)[0]
    _, broken = native.replace_tensor_map(bytes_, "box_dim", 0, 300)
    assert native.decode_tensor_map(broken) == "boxDim[0] must be 1 to 256, got 300"


def test_numbers_of_the_types(native):
    """Driver order to PTX order: bf16 is 9 for the driver and 10 for .elemtype, f64 8 and 9, f32.ftz 10 and 8."""
    names = ["u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32.ftz", "tf32", "tf32.ftz"]
    assert native.map_types() == list(zip(names, [*range(8), 9, 10, 8, 11, 12], strict=True))


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"rank": 0}, "tensorRank must be 1 to 5"),
        ({"rank": 6}, "tensorRank must be 1 to 5"),
        ({"interleave": 16}, "at least 3 with interleave"),
        ({"rank": 3, "interleave": 32, "swizzle": 64}, "interleave 32 needs swizzle 32"),
        ({"address": 4104}, "globalAddress must be a multiple of 16 bytes, is 8 over"),
        ({"rank": 3, "interleave": 32, "swizzle": 32, "address": 4112}, "globalAddress must be a multiple of 32"),
        ({"stride": [136]}, "globalStrides[0] must be a multiple of 16 bytes, got 136"),
        ({"stride": [1 << 40]}, "globalStrides[0] must be less than 2^40"),
        ({"stride": [(1 << 40) - 16]}, ""),
        ({"dim": [0, 4]}, "globalDim[0] must be 1 to 2^32"),
        ({"dim": [8, 1 << 32]}, ""),
        ({"dim": [8, (1 << 32) + 1]}, "globalDim[1] must be 1 to 2^32"),
        ({"box": [0, 4]}, "boxDim[0] must be 1 to 256"),
        ({"box": [64, 257]}, "boxDim[1] must be 1 to 256"),
        ({"box": [64, 256]}, ""),
        ({"box": [12, 4]}, "multiple of 16 bytes, got 24"),
        ({"box": [64, 4], "swizzle": 64}, "at most 64 bytes with swizzle 64, got 128"),
        ({"box": [64, 4], "swizzle": 128}, ""),
        ({"element_stride": [0, 1]}, ""),
        ({"element_stride": [1, 0]}, "elementStrides[1] must be 1 to 8"),
        ({"element_stride": [1, 9]}, "elementStrides[1] must be 1 to 8"),
        ({"type": "u16", "nan_fill": True}, "NaN fill needs a floating-point type, got u16"),
        ({"nan_fill": True}, ""),
        ({}, ""),
    ],
)
def test_rules(native, changes, why):
    words = {"type": "f16", "rank": 2, "address": 4096, "dim": [64, 64, 8], "stride": [128, 8192], "box": [32, 8]}
    reason = native.tensor_map_reason(**{**words, **changes})
    assert why in reason
    assert bool(reason) == bool(why)


def test_garbage_and_misaligned_tiles(native):
    for junk in (np.zeros(128, np.uint8), np.full(128, 0xF7, np.uint8)):
        assert "not a tensor map" in native.decode_tensor_map(junk)
    bytes_ = Tensor("f16", (8, 64)).encode(native, (8, 64))
    assert native.decode_tensor_map(bytes_) == ""
    assert "multiple of 128, got 4112 (16 over)" in native.tile_reason(bytes_, 4112)
    words = {"type": "f16", "rank": 3, "address": 4096, "dim": [64, 64, 8], "stride": [128, 8192], "box": [32, 8, 1]}
    interleaved = native.encode_tensor_map(**words, interleave=16)
    assert "not modelled" in native.tile_reason(interleaved, 4096)
