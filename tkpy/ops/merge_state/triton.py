"""merge_state in Triton.

forward    w_i = sigmoid(lse_i - lse_j),  out = w_1 out1 + w_2 out2,  lse = max(lse1, lse2) + log(1 + e^-|lse1 - lse2|)
backward   dout_i = w_i dout,  dlse1 = w_1 (dlse + w_2 s),  dlse2 = w_2 (dlse - w_1 s),  s = dout . (out1 - out2)
tiles      a program takes ROWS tokens of one head, whole rows: their log-sum-exps are neighbours in memory
shapes     out (B, S, H, D), lse (B, H, S), of any strides; what is written is contiguous
precision  float32; weights of the difference of the log-sum-exps; out and its gradients rounded once. Products are not
           fused into the sum over a row: the lanes that share it would have sums that differ in the last bit
limits     D below 2^16; compute capability 8.0 or newer
cost       3 elements moved forward and 5 backward, and 3 and 5 flops: bound by memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _place(S, D, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """(batch, head, tokens, channels, which rows there are, which elements)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    batch, head, place = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), row.to(tl.int64)
    return batch, head, place, column, row < S, (row < S)[:, None] & (column < D)[None, :]


@triton.jit
def _weights(lse1, lse2):
    """(w_1, w_2, lse): a part of infinite log-sum-exp saw no key."""
    lse1 = tl.where(lse1 == float("inf"), -float("inf"), lse1)
    lse2 = tl.where(lse2 == float("inf"), -float("inf"), lse2)
    empty = (lse1 == -float("inf")) & (lse2 == -float("inf"))
    ahead = tl.where(empty, 0.0, lse1) - tl.where(empty, 0.0, lse2)
    w1 = tl.where(empty, 0.0, 1.0 / (1.0 + tl.exp(-ahead)))
    w2 = tl.where(empty, 0.0, 1.0 / (1.0 + tl.exp(ahead)))
    return w1, w2, tl.maximum(lse1, lse2) + tl.log(1.0 + tl.exp(-tl.abs(ahead)))


@triton.jit
def _part(pointer, offset, inside, weight):
    """A part's elements in float32, 0 where it has no say: they may be anything then."""
    x = tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)
    return tl.where(weight[:, None] == 0.0, 0.0, x)


@triton.jit
def _merge(
    out1_ptr, lse1_ptr, out2_ptr, lse2_ptr, out_ptr, lse_ptr, S, H, D,
    a_b, a_s, a_h, a_d, b_b, b_s, b_h, b_d, la_b, la_h, la_s, lb_b, lb_h, lb_s,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    batch, head, place, column, there, inside = _place(S, D, BLOCK, ROWS)
    lse1 = tl.load(lse1_ptr + batch * la_b + head * la_h + place * la_s, mask=there, other=0.0)
    lse2 = tl.load(lse2_ptr + batch * lb_b + head * lb_h + place * lb_s, mask=there, other=0.0)
    w1, w2, lse = _weights(lse1, lse2)
    x1 = _part(out1_ptr, batch * a_b + head * a_h + place[:, None] * a_s + column[None, :] * a_d, inside, w1)
    x2 = _part(out2_ptr, batch * b_b + head * b_h + place[:, None] * b_s + column[None, :] * b_d, inside, w2)
    out = w1[:, None] * x1 + w2[:, None] * x2
    target = ((batch * S + place[:, None]) * H + head) * D + column[None, :]
    tl.store(out_ptr + target, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + (batch * H + head) * S + place, lse, mask=there)


@triton.jit
def _merge_backward(
    out1_ptr, lse1_ptr, out2_ptr, lse2_ptr, dout_ptr, dlse_ptr, dout1_ptr, dlse1_ptr, dout2_ptr, dlse2_ptr, S, H, D,
    a_b, a_s, a_h, a_d, b_b, b_s, b_h, b_d, d_b, d_s, d_h, d_d, la_b, la_h, la_s, lb_b, lb_h, lb_s, dl_b, dl_h, dl_s,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    batch, head, place, column, there, inside = _place(S, D, BLOCK, ROWS)
    lse1 = tl.load(lse1_ptr + batch * la_b + head * la_h + place * la_s, mask=there, other=0.0)
    lse2 = tl.load(lse2_ptr + batch * lb_b + head * lb_h + place * lb_s, mask=there, other=0.0)
    w1, w2, _ = _weights(lse1, lse2)
    x1 = _part(out1_ptr, batch * a_b + head * a_h + place[:, None] * a_s + column[None, :] * a_d, inside, w1)
    x2 = _part(out2_ptr, batch * b_b + head * b_h + place[:, None] * b_s + column[None, :] * b_d, inside, w2)
    source = batch * d_b + head * d_h + place[:, None] * d_s + column[None, :] * d_d
    dout = tl.load(dout_ptr + source, mask=inside, other=0.0).to(tl.float32)
    dlse = tl.load(dlse_ptr + batch * dl_b + head * dl_h + place * dl_s, mask=there, other=0.0)
    slope = tl.sum(dout * (x1 - x2), 1)
    target = ((batch * S + place[:, None]) * H + head) * D + column[None, :]
    tl.store(dout1_ptr + target, (w1[:, None] * dout).to(dout1_ptr.dtype.element_ty), mask=inside)
    tl.store(dout2_ptr + target, (w2[:, None] * dout).to(dout2_ptr.dtype.element_ty), mask=inside)
    target = (batch * H + head) * S + place
    tl.store(dlse1_ptr + target, w1 * (dlse + w2 * slope), mask=there)
    tl.store(dlse2_ptr + target, w2 * (dlse - w1 * slope), mask=there)


def _launch(kernel, tensors, rows, numbers):
    """`rows` (B, S, H, D) and `numbers` (B, H, S) are those of the tensors that may have any strides."""
    rows, numbers = ([t if t.dim() == rank else t[None] for t in ts] for ts, rank in ((rows, 4), (numbers, 3)))
    batches, length, heads, width = rows[0].shape
    block = triton.next_power_of_2(max(width, 1))
    tokens = max(1, min(triton.next_power_of_2(length), 2048 // block))
    strides = [stride for t in (*rows, *numbers) for stride in t.stride()]
    grid = (triton.cdiv(length, tokens), heads, batches)
    kernel[grid](
        *tensors, length, heads, width, *strides, BLOCK=block, ROWS=tokens, num_warps=4, enable_fp_fusion=False
    )


def forward(out1, lse1, out2, lse2):
    out, lse = out1.new_empty(out1.shape), lse1.new_empty(lse1.shape)
    if lse.numel():
        _launch(_merge, (out1, lse1, out2, lse2, out, lse), (out1, out2), (lse1, lse2))
    return out, lse


def backward(grads, outputs, out1, lse1, out2, lse2, *, needs):
    dout, dlse = (torch.zeros_like(t) if d is None else d for d, t in zip(grads, (out1, lse1), strict=True))
    found = [t.new_empty(t.shape) for t in (out1, lse1, out2, lse2)]
    if lse1.numel():
        tensors = (out1, lse1, out2, lse2, dout, dlse, *found)
        _launch(_merge_backward, tensors, (out1, out2, dout), (lse1, lse2, dlse))
    return found


def _types(names: str, strides: str) -> dict[str, str]:
    kinds = {f"{name}_ptr": "*fp32" if "lse" in name else "*bf16" for name in names.split()}
    return kinds | dict.fromkeys("SHD", "i32") | dict.fromkeys(strides.split(), "i64")


_CONSTANTS = {"BLOCK": 128, "ROWS": 16}
_PARTS = "out1 lse1 out2 lse2"
_STRIDES = "a_b a_s a_h a_d b_b b_s b_h b_d la_b la_h la_s lb_b lb_h lb_s"

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (_merge, _types(f"{_PARTS} out lse", _STRIDES), _CONSTANTS),
    (
        _merge_backward,
        _types(f"{_PARTS} dout dlse dout1 dlse1 dout2 dlse2", f"{_STRIDES} d_b d_s d_h d_d dl_b dl_h dl_s"),
        _CONSTANTS,
    ),
)
