"""wkv5 in Triton: chunks of C tokens as products on tensor cores, the state carried in registers; exact for any decay.

With local positions t, s of a chunk of n tokens, S the state before it, G = dL/dS after it, D = dL/dy (as in eager.py):

forward       y = (R w^t) S + A V         S <- w^n S + (K w^(n-1-s))^T V
backward_r    the same sweep: gR = (D S^T) w^t + (through A) and gu
backward_kv   the sweep back: gV = A^T D + (K w^(n-1-s)) G, gK, G <- w^n G + (R w^t)^T D, and with E = dG / d ln w,
              E <- w^n (E + n G) + (R w^t t)^T D, the share of every later token in dL/d ln w: no state is stored for it
A             by levels L = 1, 2, 4, .. < C: a query of an odd block of L tokens meets the keys of the even one before,
              A = (R w^(t mod L)) (K w^(L-1 - s mod L))^T there: no exponent is negative, nothing is divided
programs      one a sequence, head and tile of BV value channels; sums over value channels (gR, gK, gu, dL/d ln w) are
              left as shares, one a tile, that torch adds, in fixed order
shapes        r, k, v, gy (B, T, H, N) contiguous; rate (H, N) = exp(w); states (S, H, N, N); shares (tiles, B, T, H, N)
precision     float32 inputs: ieee products; bfloat16, float16: tf32 products of float32 operands; all else in float32
limits        N <= 128; compute capability 8.0 or newer
cost          a token and head: 4 N^2 + (3 + log2 C) 2 C N flops forward; in time sequential, T / C steps
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _power(rate2, exponent):
    """w^exponent (rows) of every channel (columns); w = 2^-rate2."""
    return tl.exp2(-rate2[None, :] * exponent[:, None].to(tl.float32))


@triton.jit
def _pairs(t, L: tl.constexpr):
    """Whether query t (rows) and key s (columns) meet at level L."""
    return ((t // L) % 2 == 1)[:, None] & ((t // L)[:, None] == (t // L)[None, :] + 1)


@triton.jit
def _scores(R, K, rate2, t, C: tl.constexpr, PRECISION: tl.constexpr):
    """A below the diagonal."""
    A = tl.zeros([C, C], tl.float32)
    for level in tl.static_range(6):
        if 1 << level < C:
            query = t % (1 << level)
            left, right = R * _power(rate2, query), K * _power(rate2, (1 << level) - 1 - query)
            product = tl.dot(left, tl.trans(right), input_precision=PRECISION)
            A += tl.where(_pairs(t, 1 << level), product, 0.0)
    return A


@triton.jit
def _tokens(pointer, start, t, stop, head, channel, H, N):
    """Rows `start` + t of one head, (C, channels), zeros from `stop` on."""
    row = start + t
    at = (row.to(tl.int64) * H + head)[:, None] * N + channel[None, :]
    return tl.load(pointer + at, mask=(row < stop)[:, None] & (channel < N)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, x, start, t, stop, head, channel, H, N):
    row = start + t
    at = (row.to(tl.int64) * H + head)[:, None] * N + channel[None, :]
    tl.store(pointer + at, x.to(pointer.dtype.element_ty), mask=(row < stop)[:, None] & (channel < N)[None, :])


@triton.jit
def _bounds(sequence, cu_ptr, T, PACKED: tl.constexpr):
    if PACKED:
        return tl.load(cu_ptr + sequence).to(tl.int64), tl.load(cu_ptr + sequence + 1).to(tl.int64)
    else:
        return sequence.to(tl.int64) * T, sequence.to(tl.int64) * T + T


@triton.jit
def _forward(
    r_ptr, k_ptr, v_ptr, rate_ptr, u_ptr, initial_ptr, cu_ptr, y_ptr, final_ptr, T, H, N,
    PACKED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    channel, value, t = tl.arange(0, BN), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    start, stop = _bounds(sequence, cu_ptr, T, PACKED)
    rate2 = tl.load(rate_ptr + head * N + channel, mask=channel < N, other=0.0) * 1.4426950408889634
    u = tl.load(u_ptr + head * N + channel, mask=channel < N, other=0.0).to(tl.float32)
    at = (tl.program_id(0).to(tl.int64) * N + channel)[:, None] * N + value[None, :]
    inside = (channel < N)[:, None] & (value < N)[None, :]
    S = tl.zeros([BN, BV], tl.float32)
    if INITIAL:
        S += tl.load(initial_ptr + at, mask=inside, other=0.0)
    for first in range(start, stop, C):
        n = tl.minimum(stop - first, C)
        R = _tokens(r_ptr, first, t, stop, head, channel, H, N)
        K = _tokens(k_ptr, first, t, stop, head, channel, H, N)
        V = _tokens(v_ptr, first, t, stop, head, value, H, N)
        A = _scores(R, K, rate2, t, C, PRECISION)
        y = tl.dot(A, V, input_precision=PRECISION) + tl.sum(R * K * u[None, :], 1)[:, None] * V
        y = tl.dot(R * _power(rate2, t), S, y, input_precision=PRECISION)
        _store(y_ptr, y, first, t, stop, head, value, H, N)
        update = K * _power(rate2, tl.maximum(n - 1 - t, 0))
        S = tl.dot(tl.trans(update), V, S * tl.exp2(-rate2 * n.to(tl.float32))[:, None], input_precision=PRECISION)
    if FINAL:
        tl.store(final_ptr + at, S, mask=inside)


@triton.jit
def _backward_r(
    r_ptr, k_ptr, v_ptr, rate_ptr, u_ptr, initial_ptr, cu_ptr, gy_ptr, gr_ptr, gu_ptr, log_ptr, total, T, H, N,
    PACKED: tl.constexpr, INITIAL: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """gR and gu, and of dL/d ln w what the exponents of the queries within a chunk give."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    channel, value, t = tl.arange(0, BN), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    start, stop = _bounds(sequence, cu_ptr, T, PACKED)
    gr_ptr += tl.program_id(1).to(tl.int64) * total
    rate2 = tl.load(rate_ptr + head * N + channel, mask=channel < N, other=0.0) * 1.4426950408889634
    u = tl.load(u_ptr + head * N + channel, mask=channel < N, other=0.0).to(tl.float32)
    S = tl.zeros([BN, BV], tl.float32)
    if INITIAL:
        at = (tl.program_id(0).to(tl.int64) * N + channel)[:, None] * N + value[None, :]
        S += tl.load(initial_ptr + at, mask=(channel < N)[:, None] & (value < N)[None, :], other=0.0)
    gu = tl.zeros([BN], tl.float32)
    along = tl.zeros([BN], tl.float32)
    for first in range(start, stop, C):
        n = tl.minimum(stop - first, C)
        R = _tokens(r_ptr, first, t, stop, head, channel, H, N)
        K = _tokens(k_ptr, first, t, stop, head, channel, H, N)
        V = _tokens(v_ptr, first, t, stop, head, value, H, N)
        D = _tokens(gy_ptr, first, t, stop, head, value, H, N)
        own = tl.sum(D * V, 1)[:, None]
        gA = tl.dot(D, tl.trans(V), input_precision=PRECISION)
        gR = tl.dot(D, tl.trans(S), input_precision=PRECISION) * _power(rate2, t) + own * u[None, :] * K
        for level in tl.static_range(6):
            if 1 << level < C:
                query = t % (1 << level)
                block = tl.where(_pairs(t, 1 << level), gA, 0.0)
                through = tl.dot(block, K * _power(rate2, (1 << level) - 1 - query), input_precision=PRECISION)
                through *= _power(rate2, query)
                gR += through
                along += tl.sum(R * through * query[:, None].to(tl.float32), 0)
        _store(gr_ptr, gR, first, t, stop, head, channel, H, N)
        gu += tl.sum(own * R * K, 0)
        update = K * _power(rate2, tl.maximum(n - 1 - t, 0))
        S = tl.dot(tl.trans(update), V, S * tl.exp2(-rate2 * n.to(tl.float32))[:, None], input_precision=PRECISION)
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * N + channel
    tl.store(gu_ptr + at, gu, mask=channel < N)
    tl.store(log_ptr + at, along, mask=channel < N)


@triton.jit
def _backward_kv(
    r_ptr, k_ptr, v_ptr, rate_ptr, u_ptr, initial_ptr, cu_ptr, gy_ptr, g_final_ptr, gk_ptr, gv_ptr, g_initial_ptr,
    log_ptr, total, T, H, N,
    PACKED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """gK, gV and that of the initial state, and the rest of dL/d ln w."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    channel, value, t = tl.arange(0, BN), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    start, stop = _bounds(sequence, cu_ptr, T, PACKED)
    gk_ptr += tl.program_id(1).to(tl.int64) * total
    rate2 = tl.load(rate_ptr + head * N + channel, mask=channel < N, other=0.0) * 1.4426950408889634
    u = tl.load(u_ptr + head * N + channel, mask=channel < N, other=0.0).to(tl.float32)
    at = (tl.program_id(0).to(tl.int64) * N + channel)[:, None] * N + value[None, :]
    inside = (channel < N)[:, None] & (value < N)[None, :]
    G = tl.zeros([BN, BV], tl.float32)
    if FINAL:
        G += tl.load(g_final_ptr + at, mask=inside, other=0.0)
    E = tl.zeros([BN, BV], tl.float32)
    along = tl.zeros([BN], tl.float32)
    chunks = tl.cdiv(stop - start, C)
    for chunk in range(0, chunks):
        first = start + (chunks - 1 - chunk) * C
        n = tl.minimum(stop - first, C)
        R = _tokens(r_ptr, first, t, stop, head, channel, H, N)
        K = _tokens(k_ptr, first, t, stop, head, channel, H, N)
        V = _tokens(v_ptr, first, t, stop, head, value, H, N)
        D = _tokens(gy_ptr, first, t, stop, head, value, H, N)
        back = tl.maximum(n - 1 - t, 0)
        update = K * _power(rate2, back)
        gV = tl.dot(update, G, input_precision=PRECISION) + tl.sum(R * K * u[None, :], 1)[:, None] * D
        A = _scores(R, K, rate2, t, C, PRECISION)
        _store(gv_ptr, tl.dot(tl.trans(A), D, gV, input_precision=PRECISION), first, t, stop, head, value, H, N)

        through = tl.dot(V, tl.trans(G), input_precision=PRECISION)
        later = tl.dot(V, tl.trans(E), input_precision=PRECISION)
        along += tl.sum(update * (through * back[:, None].to(tl.float32) + later), 0)
        gK = through * _power(rate2, back) + tl.sum(D * V, 1)[:, None] * u[None, :] * R
        gA = tl.dot(V, tl.trans(D), input_precision=PRECISION)  # transposed: (keys, queries)
        for level in tl.static_range(6):
            if 1 << level < C:
                key = (1 << level) - 1 - t % (1 << level)
                block = tl.where(tl.trans(_pairs(t, 1 << level)), gA, 0.0)
                through = tl.dot(block, R * _power(rate2, t % (1 << level)), input_precision=PRECISION)
                through *= _power(rate2, key)
                gK += through
                along += tl.sum(K * through * key[:, None].to(tl.float32), 0)
        _store(gk_ptr, gK, first, t, stop, head, channel, H, N)

        length = n.to(tl.float32)
        fade = tl.exp2(-rate2 * length)[:, None]
        read = R * _power(rate2, t)
        E = tl.dot(tl.trans(read * t[:, None].to(tl.float32)), D, fade * (E + length * G), input_precision=PRECISION)
        G = tl.dot(tl.trans(read), D, fade * G, input_precision=PRECISION)
    if INITIAL:
        along += tl.sum(tl.load(initial_ptr + at, mask=inside, other=0.0) * E, 1)
        tl.store(g_initial_ptr + at, G, mask=inside)
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * N + channel
    tl.store(log_ptr + at, along, mask=channel < N)


def _plan(r: torch.Tensor, initial_state, cu_seqlens) -> tuple[tuple[int, int], int, dict[str, object]]:
    """(grid, sequences, constants). Small grids take narrower tiles of the value channels."""
    sequences = r.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    heads, size = r.shape[2:]
    block = max(16, triton.next_power_of_2(size))
    values = min(block, 64 if sequences * heads >= 132 else 32)
    exact = r.dtype == torch.float32
    constants: dict[str, object] = {"PACKED": cu_seqlens is not None, "INITIAL": initial_state is not None}
    constants |= {"PRECISION": "ieee" if exact else "tf32", "C": 16 if exact else 32, "BN": block, "BV": values}
    # With fused products, lanes that hold copies of one sum differ in its last bit, and race to store it.
    constants |= {"num_warps": 4, "enable_fp_fusion": False}
    return (sequences * heads, triton.cdiv(size, values)), sequences, constants


def _inputs(r, k, v, w, u, initial_state, cu_seqlens):
    """Pointers, and rate = exp(w), of which 1e4 is as good as infinity: 2^-1e4 = 0, and 0 * 1e4 is not NaN."""
    rate = w.float().exp().clamp_max(1e4).contiguous()
    r, k, v, u = (x.contiguous() for x in (r, k, v, u))
    return [
        r,
        k,
        v,
        rate,
        u,
        r if initial_state is None else initial_state.contiguous(),
        r if cu_seqlens is None else cu_seqlens,
    ]


def forward(r, k, v, w, u, initial_state, cu_seqlens, output_final_state):
    y = r.new_empty(r.shape)
    grid, sequences, constants = _plan(r, initial_state, cu_seqlens)
    heads, size = r.shape[2:]
    final = r.new_empty((sequences, heads, size, size) if output_final_state else 0, dtype=torch.float32)
    if grid[0] and size:
        inputs = _inputs(r, k, v, w, u, initial_state, cu_seqlens)
        _forward[grid](*inputs, y, final, r.shape[1], heads, size, FINAL=output_final_state, **constants)
    return y, final


def backward(grads, outputs, r, k, v, w, u, initial_state, cu_seqlens, output_final_state, *, needs):
    gy, g_final = grads
    (count, tiles), sequences, constants = _plan(r, initial_state, cu_seqlens)
    heads, size = r.shape[2:]
    if not count or not size:
        return [None] * 7
    rate, r, k, v, gy, *inputs = _gradient_inputs(gy, r, k, v, w, u, initial_state, cu_seqlens)
    gr, gk = (r.new_empty(tiles, *r.shape, dtype=torch.float32 if tiles > 1 else r.dtype) for _ in range(2))
    gv = torch.empty_like(r)
    gu, log_r, log_kv = (r.new_empty(tiles, sequences, heads, size, dtype=torch.float32) for _ in range(3))
    g_initial = (
        torch.empty_like(initial_state, memory_format=torch.contiguous_format) if initial_state is not None else r
    )
    g_final = g_final if output_final_state else None
    sizes = [r.numel(), r.shape[1], heads, size]
    given = [r, k, v, rate, *inputs, gy]
    _backward_r[(count, tiles)](*given, gr, gu, log_r, *sizes, **constants)
    _backward_kv[(count, tiles)](
        *given, r if g_final is None else g_final.contiguous(), gk, gv, g_initial, log_kv, *sizes,
        FINAL=g_final is not None, **constants,
    )  # fmt: skip
    log_w = (log_r + log_kv).sum((0, 1))
    gr, gk = (x[0] if tiles == 1 else x.sum(0) for x in (gr, gk))
    # ln w = -rate, so d(ln w) / d(w_raw) = -rate.
    return [gr, gk, gv, -rate * log_w, gu.sum((0, 1)), g_initial if initial_state is not None else None, None]


def _gradient_inputs(gy, r, k, v, w, u, initial_state, cu_seqlens):
    r, k, v, rate, *rest = _inputs(r, k, v, w, u, initial_state, cu_seqlens)
    return rate, r, k, v, torch.zeros_like(r) if gy is None else gy.contiguous(), *rest


def _ahead(kernel, **constants):
    wide = ("rate_ptr", "u_ptr", "initial_ptr", "final_ptr", "g_final_ptr", "g_initial_ptr", "gu_ptr", "log_ptr")
    types = {"cu_ptr": "*i64", "total": "i64"} | dict.fromkeys(wide, "*fp32") | dict.fromkeys(("T", "H", "N"), "i32")
    return kernel, {n: types.get(n, "*bf16") for n in kernel.arg_names if n not in constants}, constants


_TRAINING = {"PACKED": False, "INITIAL": True, "PRECISION": "tf32", "C": 32, "BN": 64, "BV": 64}

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    _ahead(_forward, **_TRAINING, FINAL=True),
    _ahead(_backward_r, **_TRAINING),
    _ahead(_backward_kv, **_TRAINING, FINAL=True),
)
