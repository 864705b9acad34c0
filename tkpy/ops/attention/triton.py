"""attention in Triton: tiles, launches and the small sums around the kernels.

forward    triton_forward.py: one kernel; two where few queries meet many keys (split over the keys, then joined)
backward   triton_backward.py: delta, dQ by query tiles, dK and dV by key tiles; no atomics, so the same bits every time
packed     tiles of all sequences in one grid: a table on the device says whose each tile is; the host never waits
shapes     as in op.py, any strides of q, k, v; dout contiguous
precision  products of the inputs' dtype (float32: ieee, no tf32), softmax, sums and accumulators in float32
limits     D, Dv <= 256; compute capability 8.0 or newer
cost       forward 2 (D + Dv) flops a seen pair, backward 2 (4 D + 3 Dv): both of its kernels form the scores anew
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from tkpy.ops.attention.triton_backward import _backward_kv, _backward_q, _delta
from tkpy.ops.attention.triton_forward import _combine, _forward

FAR = 1 << 30  # further than any key


class Problem(NamedTuple):
    """The arguments of the op, in its order."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor | None
    kv_head_map: torch.Tensor | None
    out_scale: torch.Tensor | None
    out_bias: torch.Tensor | None
    cu_seqlens_q: torch.Tensor | None
    cu_seqlens_k: torch.Tensor | None
    blocks: list[torch.Tensor]
    block: int
    scale: float
    left: int
    right: int
    softcap: float
    max_seqlen_q: int
    max_seqlen_k: int

    @property
    def packed(self) -> bool:
        return self.cu_seqlens_q is not None

    @property
    def batch(self) -> int:
        return 1 if self.packed else self.q.shape[0]

    @property
    def lengths(self) -> tuple[int, int]:
        """Of q and k; packed: of all sequences together."""
        return self.q.shape[-3], self.k.shape[-3]

    def strides(self) -> list[int]:
        return [s for t in (self.q, self.k, self.v) for s in ((0,) if self.packed else ()) + t.stride()]

    def or_q(self, *tensors: torch.Tensor | None) -> list[torch.Tensor]:
        """Pointers: an absent tensor is never read."""
        return [self.q if t is None else t.contiguous() for t in tensors]

    def lists(self, transposed: bool = False) -> tuple[list[torch.Tensor], list[int]]:
        """The block lists (of query blocks, or of key blocks), and the strides of their rows."""
        if not self.blocks:
            return [self.q] * 6, [0, 0, 0, 0]
        some = self.blocks[6:11] if transposed else self.blocks[:5]
        count = some[0]
        strides = [0 if count.shape[0] == 1 else count.shape[1] * count.shape[2]]
        strides += [0 if count.shape[1] == 1 else count.shape[2], some[1].shape[-1], some[3].shape[-1]]
        return [t.contiguous() for t in (*some, self.blocks[5])], strides

    def rules(self) -> list[Any]:
        return [min(self.left, FAR), min(self.right, FAR), self.scale, self.softcap]

    def sizes(self) -> list[int]:
        return [self.q.shape[-2], self.k.shape[-2], self.q.shape[-1], self.v.shape[-1], self.lengths[0]]

    def options(self, tiles: dict[str, int]) -> dict[str, Any]:
        known = {"PACKED": self.packed, "MAP": self.kv_head_map is not None, "SCALE": self.out_scale is not None}
        known |= {"LEFT": self.left >= 0, "RIGHT": self.right >= 0, "SOFTCAP": self.softcap != 0}
        return {**known, "BLOCK": self.block if self.blocks else 0, **tiles}


def _tiles(p: Problem, backward: bool) -> dict[str, int]:
    """Tiles that fill registers at 4 or 8 warps, no larger than the problem, within a block of a block mask."""
    wide_q, wide_v = (max(16, triton.next_power_of_2(t.shape[-1])) for t in (p.q, p.v))
    wide = max(wide_q, wide_v)
    if p.q.dtype == torch.float32:
        most_q = most_k = 64 if wide <= 32 else 32
    elif backward:
        most_q = most_k = 64 if wide <= 128 else 32
    else:
        most_q, most_k = (128, 64) if wide <= 128 else (64, 32)
    length_q, length_k = p.lengths
    if p.blocks:
        most_q, length_q, length_k = min(most_q, 64), most_q, most_k
    rows = min(most_q, max(16, triton.next_power_of_2(length_q)))
    keys = min(most_k, max(16, triton.next_power_of_2(length_k)))
    warps = 8 if max(rows, keys) * wide >= 128 * 128 else 4
    return {"BM": rows, "BN": keys, "BD": wide_q, "BV": wide_v, "num_warps": warps, "num_stages": 2}


def _schedule(p: Problem, offsets: torch.Tensor | None, length: int, size: int) -> tuple[int, list[torch.Tensor]]:
    """(number of tiles, [sequence of each tile, first tile of each sequence]); some tiles may be of no sequence."""
    if offsets is None:
        return triton.cdiv(length, size), [p.q, p.q]
    needed = (offsets.diff() + (size - 1)) // size
    ends = needed.cumsum(0)
    tiles = length // size + len(offsets) - 1
    table = torch.searchsorted(ends, torch.arange(tiles, device=ends.device), right=True)
    return tiles, [table.to(torch.int32), (ends - needed).to(torch.int32)]


def _splits(p: Problem, tiles: int) -> int:
    """Stretches of the keys, of at least 256, so that few queries still fill the machine."""
    length_q, length_k = p.lengths
    if p.packed or p.blocks or length_q > 16:
        return 1
    return max(1, min(triton.cdiv(length_k, 256), 512 // max(1, tiles * p.q.shape[-2] * p.batch)))


def forward(*args):
    p = Problem(*args)
    heads, width = p.q.shape[-2], p.v.shape[-1]
    out = p.q.new_empty(*p.q.shape[:-1], width)
    lse = p.q.new_empty((heads, p.lengths[0]) if p.packed else (p.batch, heads, p.lengths[0]), dtype=torch.float32)
    moved = p.out_scale is not None or p.out_bias is not None
    z = p.q.new_empty(out.shape if moved else 0)
    if not lse.numel():
        return out, lse, z
    tiles = _tiles(p, backward=False)
    count, tables = _schedule(p, p.cu_seqlens_q, p.lengths[0], tiles["BM"])
    splits = _splits(p, count)
    share, share_lse = z, lse
    if splits > 1:
        share, share_lse = (p.q.new_empty(splits, *t.shape, dtype=torch.float32) for t in (out, lse))
    ends = {"SINKS": p.sinks is not None, "SCALE": p.out_scale is not None, "BIAS": p.out_bias is not None}
    lists, mask_strides = p.lists()
    _forward[(count, heads, p.batch * splits)](
        p.q, p.k, p.v, *p.or_q(p.sinks, p.kv_head_map, p.out_scale, p.out_bias, p.cu_seqlens_q, p.cu_seqlens_k),
        *tables, *lists, out, share_lse, share,
        0 if p.cu_seqlens_q is None else len(p.cu_seqlens_q) - 1, p.batch, *p.lengths, *p.sizes(), *p.rules(),
        *p.strides(), *mask_strides, **(p.options(tiles) | ends), SPLITS=splits,
    )  # fmt: skip
    if splits > 1:
        _combine[(count, heads, p.batch)](
            share, share_lse, *p.or_q(p.sinks, p.out_scale, p.out_bias), out, lse, z, p.batch, p.lengths[0], heads,
            width, **ends, SPLITS=splits, BM=tiles["BM"], BV=tiles["BV"], num_warps=4,
        )  # fmt: skip
    return out, lse, z


def backward(grads, outputs, *args, needs):
    p = Problem(*args)
    dout, dlse, _ = grads
    out, lse, unmoved = outputs
    dout = torch.zeros_like(out) if dout is None else dout.contiguous()
    z = unmoved if p.out_scale is not None or p.out_bias is not None else out
    dq, dk, dv = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (p.q, p.k, p.v))
    delta = torch.zeros_like(lse)
    tiles = _tiles(p, backward=True)
    options, strides, rules = p.options(tiles), p.strides(), p.rules()
    heads, width = p.q.shape[-2], p.v.shape[-1]
    if lse.numel():
        rows = p.lengths[0] * p.batch
        _delta[(triton.cdiv(rows, 32), heads)](
            z, dout, *p.or_q(dlse, p.out_scale), delta, p.lengths[0], rows, heads, width,
            SCALE=p.out_scale is not None, DLSE=dlse is not None, BM=32, BV=tiles["BV"], num_warps=4,
        )  # fmt: skip
    if lse.numel() and p.k.shape[-3]:
        inputs = [p.q, p.k, p.v, dout, lse, delta]
        inputs += p.or_q(p.kv_head_map, p.out_scale, p.cu_seqlens_q, p.cu_seqlens_k)
        sizes = [0 if p.cu_seqlens_q is None else len(p.cu_seqlens_q) - 1, *p.lengths, *p.sizes()]
        count, tables = _schedule(p, p.cu_seqlens_q, p.lengths[0], tiles["BM"])
        lists, mask_strides = p.lists()
        _backward_q[(count, heads, p.batch)](
            *inputs, *tables, *lists, dq, *sizes, *rules, *strides, *mask_strides, **options
        )
        count, tables = _schedule(p, p.cu_seqlens_k, p.lengths[1], tiles["BN"])
        lists, mask_strides = p.lists(transposed=True)
        _backward_kv[(count, p.k.shape[-2], p.batch)](
            *inputs, *tables, *lists, dk, dv, *sizes, *rules, *strides, *mask_strides, **options
        )
    return [dq, dk, dv, *_head_gradients(p, dout, z, lse, delta, needs), None, None]


def _head_gradients(p: Problem, dout, z, lse, delta, needs):
    """Of sinks, kv_head_map, out_scale and out_bias: sums over all rows."""
    dsinks = dscale = dbias = None
    rows = tuple(range(dout.dim() - 2))
    if p.sinks is not None and needs[3]:
        weight = (p.sinks.float().unsqueeze(-1) - lse).exp().masked_fill(lse == -torch.inf, 0.0)
        dsinks = -(weight * delta).sum(-1)
        dsinks = dsinks.sum(0) if dsinks.dim() == 2 else dsinks
    if needs[5]:
        dscale = (dout.float() * z).sum(rows)
    if needs[6]:
        dbias = dout.sum(rows, dtype=torch.float32)
    return dsinks, None, dscale, dbias


_WORDS = {"scale": "fp32", "cap": "fp32"}
_FLOATS = ("lse_ptr", "delta_ptr", "dlse_ptr", "share_ptr", "share_lse_ptr", "sinks_ptr", "scale_ptr", "bias_ptr")
_NUMBERS = ("cu_q_ptr", "cu_k_ptr", "map_ptr", "table_ptr", "first_ptr")


def _type(name: str) -> str:
    if not name.endswith("_ptr"):
        return "i64" if name[1:] in ("_b", "_s", "_h", "_d") else _WORDS.get(name, "i32")
    if name in _FLOATS:
        return "*fp32"
    return "*u8" if name == "masks_ptr" else "*i32" if name in _NUMBERS or "full" in name or "part" in name else "*bf16"


def _ahead(kernel: Any, **constants: Any) -> tuple[Any, dict[str, str], dict[str, Any]]:
    return kernel, {n: _type(n) for n in kernel.arg_names if n not in constants}, constants


_ON = {"PACKED": False, "MAP": False, "SCALE": False, "LEFT": True, "RIGHT": True, "SOFTCAP": False, "BLOCK": 0}
_ENDS = {"SINKS": True, "SCALE": True, "BIAS": True}
_TILES = {"BM": 64, "BN": 64, "BD": 128, "BV": 128}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    _ahead(_forward, **(_ON | _ENDS | {"SPLITS": 1} | _TILES | {"BM": 128})),
    _ahead(_forward, **(_ON | _ENDS | {"SPLITS": 1, "BLOCK": 128} | _TILES)),
    _ahead(_combine, **_ENDS, SPLITS=16, BM=16, BV=128),
    _ahead(_delta, SCALE=True, DLSE=True, BM=32, BV=128),
    _ahead(_backward_q, **(_ON | _TILES)),
    _ahead(_backward_kv, **(_ON | _TILES | {"PACKED": True})),
)
