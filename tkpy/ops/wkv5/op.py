"""wkv5: the recurrence of RWKV-5 (Peng et al. 2024, "Eagle and Finch", arXiv:2404.05892, Eagle time mixing)."""

from __future__ import annotations

from typing import Any

import torch

from tkpy.arguments import INTEGERS, Arguments, autocast, sequence_bounds
from tkpy.registry import Call, Case, Maker, Op, Refusal

MAX_SIZE = 128  # of the heads that the kernels take
MAX_GRID, MAX_TOKENS = 65535, 2**30


def wkv5(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Linear attention with a constant decay per key channel and a bonus for the current token.

    Per batch row and head, with key channel i, value channel j and decay d = exp(-exp(w)):

        y_t[j]   = sum_i r_t[i] * (S_{t-1}[i,j] + u[i] k_t[i] v_t[j])
        S_t[i,j] = d[i] * S_{t-1}[i,j] + k_t[i] v_t[j]

    Exact for every w, from no decay (w very negative) to none left (w large). All of r, k, v, w, u and initial_state
    have gradients, and gradients arrive through the final state, so that training may be cut anywhere.

    Args:
        r, k, v: (B, T, H, N) of one dtype, float32, bfloat16 or float16. There is no 1/sqrt(N) scale.
        w: (H, N), the raw decay (`time_decay`); float32 or r's dtype.
        u: (H, N), the bonus (`time_faaaa`); float32 or r's dtype.
        initial_state: (B, H, N, N) float32, the key channel as row; None is zero.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: (S + 1,) int32 or int64 offsets of S sequences packed into one row (B must be 1, T the total
            length); the states are then (S, H, N, N). Sequences may be empty.
        backend: None (automatic), or one of `tkpy.BACKENDS`.

    Returns:
        y: (B, T, H, N) in r's dtype; the final state: float32 in the shape of initial_state, or None.
        (float64 inputs are computed in float64 and give a float64 state.)

    Raises:
        TypeError, ValueError: malformed arguments.
        tkpy.Unsupported: the named backend cannot serve the call.
    """
    r, k, v = autocast(r, k, v)
    check = Arguments("wkv5")
    for name, value in (("r", r), ("k", k), ("v", v)):
        check.tensor(name, value, "B T H N")
    check.same_dtype("r", "k", "v")
    wide = (torch.float32, torch.float64)
    check.tensor("w", w, "H N", dtypes=(*wide, r.dtype))
    check.tensor("u", u, "H N", dtypes=(*wide, r.dtype))
    check.tensor("cu_seqlens", cu_seqlens, "bounds", dtypes=INTEGERS, optional=True)
    if cu_seqlens is not None:
        check.that(cu_seqlens.shape[0] >= 1, "cu_seqlens", "of at least 1 element", cu_seqlens)
        check.that(r.shape[0] == 1, "r", "of batch size 1 with cu_seqlens", r)
        check.sizes["S"] = cu_seqlens.shape[0] - 1
    check.tensor(
        "initial_state", initial_state, "B H N N" if cu_seqlens is None else "S H N N", dtypes=wide, optional=True
    )
    check.same_device()
    check.flag("output_final_state", output_final_state)
    y, state = OP(r, k, v, w, u, initial_state, cu_seqlens, output_final_state, backend=backend)
    return y, state if output_final_state else None


def _values(r, k, v, w, u, initial_state, cu_seqlens, output_final_state):
    if cu_seqlens is not None:
        sequence_bounds("wkv5", "cu_seqlens", cu_seqlens, r.shape[1])


def fake(r, k, v, w, u, initial_state, cu_seqlens, output_final_state):
    heads, size = r.shape[2:]
    count = r.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    wide = torch.float64 if r.dtype == torch.float64 else torch.float32
    shape = (count, heads, size, size) if output_final_state else (0,)
    return r.new_empty(r.shape), r.new_empty(shape, dtype=wide)


def supports(backend: str, call: Call) -> list[Refusal]:
    r = call["r"]
    size = r.shape[-1]
    if backend == "triton" and size > MAX_SIZE:
        return [Refusal("head_size", f"needs heads of at most {MAX_SIZE} channels, got {size}")]
    if backend not in ("cuda", "emulator"):
        return []
    reasons = []
    if r.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(Refusal("dtype", f"needs bfloat16 or float16, got {str(r.dtype).removeprefix('torch.')}"))
    if size % 8 or size > MAX_SIZE:
        reasons.append(Refusal("head_size", f"needs heads of a multiple of 8 channels, at most {MAX_SIZE}, got {size}"))
    if r.shape[2] > MAX_GRID or max(r.shape[:2]) >= MAX_TOKENS:
        reasons.append(
            Refusal("size", f"needs at most {MAX_GRID} heads, rows and tokens below 2^30, got {tuple(r.shape)}")
        )
    return reasons


def flops(call: Call) -> int:
    """The recurrence itself: read and write of an N x N state per token and head."""
    return 4 * call["r"].numel() * call["r"].shape[-1]


def nbytes(call: Call) -> int:
    r, state = call["r"], call["initial_state"]
    count = r.shape[0] if call["cu_seqlens"] is None else call["cu_seqlens"].shape[0] - 1
    states = (state is not None) + call["output_final_state"]
    return 4 * r.numel() * r.element_size() + states * count * r.shape[2] * r.shape[3] ** 2 * 4


def _case(batch: int, length: int, heads: int, size: int, *, state: bool = False, bounds: tuple[int, ...] = ()):
    def make(m: Maker):
        kwargs: dict[str, Any] = {name: m.randn(batch, length, heads, size, scale=0.7) for name in "rkv"}
        kwargs["w"] = m.uniform(-6.0, 1.0, heads, size, dtype=m.wide)
        kwargs["u"] = m.randn(heads, size, dtype=m.wide)
        if bounds:
            kwargs["cu_seqlens"] = m.ints(*bounds)
        if state:
            count = len(bounds) - 1 if bounds else batch
            kwargs["initial_state"] = m.randn(count, heads, size, size, dtype=m.wide)
            kwargs["output_final_state"] = True
        return kwargs

    return make


def _strided(m: Maker):
    kwargs = {name: m.randn(2, 9, 41, 2 * 8).transpose(1, 2)[..., ::2].transpose(2, 3)[..., :9] for name in "rkv"}
    kwargs["w"] = m.uniform(-6.0, 1.0, 9, 8, dtype=m.wide).T
    kwargs["u"] = m.randn(16, 9)[::2]
    kwargs["initial_state"] = m.randn(9, 8, 9, 2, dtype=m.wide).permute(3, 1, 0, 2)
    return kwargs


def _extreme(m: Maker):
    kwargs = _case(1, 70, 2, 16, state=True)(m)
    kwargs["w"] = m.uniform(-20.0, 100.0, 2, 16, dtype=m.wide)
    kwargs["w"][0, :4] = -1e4
    return kwargs


CASES = (
    Case("two rows with a state", _case(2, 48, 2, 16, state=True), "the plain call: a whole chunk and a half"),
    Case("length 1", _case(2, 1, 2, 8, state=True), "a decode step"),
    Case("length 2", _case(1, 2, 1, 8), "the shortest chunk"),
    Case("length 31", _case(1, 31, 2, 8, state=True), "chunk - 1: padding"),
    Case("length 32", _case(1, 32, 2, 8, state=True), "exactly a chunk"),
    Case("length 33", _case(1, 33, 2, 8, state=True), "chunk + 1: a tail of one token"),
    Case("length 101", _case(1, 101, 1, 64, state=True), "a prime; the released head size"),
    Case("several groups", _case(1, 160, 64, 32, state=True), "more chunks than are taken at once"),
    Case("head size 7", _case(2, 19, 3, 7), "no power of two, and no state"),
    Case("packed", _case(1, 86, 2, 8, state=True, bounds=(0, 1, 18, 18, 81, 86)), "lengths 1, 17, 0, 63, 5"),
    Case("packed without a state", _case(1, 12, 1, 8, bounds=(0, 5, 12)), "nothing leaks over a boundary"),
    Case("no sequences", _case(1, 0, 2, 8, state=True, bounds=(0,)), "zero-size states"),
    Case("no rows", _case(0, 5, 2, 8, state=True), "zero-size batch"),
    Case("no tokens", _case(2, 0, 2, 8, state=True), "the state passes through"),
    Case("no heads", _case(2, 5, 0, 8, state=True), "zero-size heads"),
    Case("no channels", _case(2, 5, 2, 0, state=True), "zero-size heads of size 0"),
    Case("non-contiguous", _strided, "every tensor strided"),
    Case("extreme decays", _extreme, "decays that are exactly 0, exactly 1 and all between"),
    Case("1.5B prefill", _case(1, 512, 32, 64, state=True), "RWKV-5 1.5B on a prompt", bench=True),
    Case("3B training", _case(4, 4096, 40, 64), "RWKV-5 3B at its training length", bench=True),
)

OP = Op(
    "wkv5",
    wkv5,
    "(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? initial_state, Tensor? cu_seqlens, "
    "bool output_final_state) -> (Tensor, Tensor)",
    fake=fake,
    cases=CASES,
    flops=flops,
    nbytes=nbytes,
    values=_values,
    supports=supports,
)
