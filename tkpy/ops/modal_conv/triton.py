"""modal_conv in Triton: chunks of C samples as products on tensor cores, tiles of M chunks, all tiles at the same time.

With v = pre_gate u, q = p^C, X the S states at the start of a chunk and the tables of eager.py (M_ji = h_{i-j}, V, W):

_local     what the samples of a tile add to the states at its end:      sum_m q^(n-1-m) (v_m V), n chunks in the tile
_carry     the states at the start of every tile, in float64:            X' = q^n X + local
_mix       y = (X W + v M) post_gate; X of a tile's chunks by a scan (Blelloch 1990) of v_{m-1} V with q
_gradient  the adjoint states A after every chunk by the scan with conj(q) from the end, fed by g W^T, g = post_gate dy;
           dv = A V^T + g M^T, and from there du, dpre_gate; dpost_gate = dy y; the tables' gradients (v^T g, v^T A,
           X^T g, sum of A conj(X)) as shares, one a program, that torch adds; eager.py goes from them to the parameters
_steps     what is left after the last chunk, and decoding: the recurrence, sample by sample

_local and _carry serve the backward too: with g, W and conj(q), from the last tile to the first.

pieces     chunks of 64 samples, then of 16, then at most 15 steps, whose gradient is formed by eager.py
shapes     u, gates, dy (B, H, L) of any strides; y, du, dpre, dpost contiguous; tables (H, C, 2 S) float32, complex
           numbers as pairs; states of tiles (T, B, H, S, 2) float32, S / 32 C of a sample's bytes at C = 64, M = 32
programs   _local, _mix: tile x channel x sequence. _gradient: a channel, and a share of its tiles if channels are few
precision  products of float32 operands in three tf32 products; sums in float32; powers of the poles are formed, and
           carried from tile to tile, in float64. Sizes are not specialised: one compiled kernel serves all of them
limits     B and H below 65536; compute capability 8.0 or newer
cost       a sample: 2 C + 8 S flops; u and pre_gate are read twice, all else once: 6 elements moved of the ideal 4
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tkpy.ops.modal_conv import eager

#: The memory is slower than three tf32 products, and a single one cuts off what a sum over a whole sequence needs.
PRODUCTS = tl.constexpr("tf32x3")


@triton.jit
def _samples(
    x_ptr, gate_ptr, x_b, x_h, x_t, g_b, g_h, g_t, b, h, chunk, low, high, GATE: tl.constexpr, C: tl.constexpr
):
    """Chunks low <= chunk < high of one channel (times a gate), a row each; the other rows are 0."""
    t = chunk.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    mask = ((chunk >= low) & (chunk < high))[:, None]
    v = tl.load(x_ptr + b * x_b + h * x_h + t * x_t, mask=mask, other=0.0).to(tl.float32)
    if GATE:
        v *= tl.load(gate_ptr + b * g_b + h * g_h + t * g_t, mask=mask, other=0.0).to(tl.float32)
    return v


@triton.jit
def _table(table_ptr, h, S, C: tl.constexpr, SP: tl.constexpr):
    """V, or W transposed: (C, 2 SP), zeros beyond 2 S."""
    column = tl.arange(0, 2 * SP)[None, :]
    at = (h * C + tl.arange(0, C)[:, None]) * 2 * S + column
    return tl.load(table_ptr + at, mask=column < 2 * S, other=0.0)


@triton.jit
def _within(h_ptr, h, C: tl.constexpr):
    """M_ji = h_{i-j} for j <= i, else 0."""
    lag = tl.arange(0, C)[None, :] - tl.arange(0, C)[:, None]
    return tl.load(h_ptr + h * C + lag, mask=lag >= 0, other=0.0)


@triton.jit
def _complex(pointer, row, s, S, mask):
    """Rows of S complex numbers: real and imaginary parts."""
    at = pointer + (row * S + s) * 2
    return tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)


@triton.jit
def _parts(c, M: tl.constexpr, SP: tl.constexpr):
    return tl.split(tl.reshape(c, [M, SP, 2]))


@triton.jit
def _after(ar, ai, xr, xi, br, bi, yr, yi):
    """x -> a x + .. followed by x -> b x + y: the factor b a, the sum b x + y."""
    return br * ar - bi * ai, br * ai + bi * ar, br * xr - bi * xi + yr, br * xi + bi * xr + yi


@triton.jit
def _scan(q_ptr, h, cr, ci, S, M: tl.constexpr, SP: tl.constexpr, ADJOINT: tl.constexpr):
    """x_m = q x_{m-1} + c_m down the rows, or x_m = conj(q) x_{m+1} + c_m up the rows."""
    s = tl.arange(0, SP)[None, :]
    qr, qi = _complex(q_ptr, h * (M + 1) + 1 + tl.zeros([M, 1], tl.int64), s, S, s < S)
    if ADJOINT:
        qi = -qi
    _, _, xr, xi = tl.associative_scan((qr, qi, cr, ci), 0, _after, reverse=ADJOINT)
    return xr, xi


@triton.jit
def _states(V, table, start_ptr, q_ptr, row, h, edge, S, M: tl.constexpr, SP: tl.constexpr, ADJOINT: tl.constexpr
):  # fmt: skip
    """The states next to every chunk, (M, SP) twice: V holds the neighbours' samples, the tile's own start enters at
    row `edge`."""
    m, s = tl.arange(0, M)[:, None], tl.arange(0, SP)[None, :]
    cr, ci = _parts(tl.dot(V, table, input_precision=PRODUCTS), M, SP)
    xr, xi = _complex(start_ptr, row, s, S, s < S)
    return _scan(q_ptr, h, tl.where(m == edge, xr, cr), tl.where(m == edge, xi, ci), S, M, SP, ADJOINT)


@triton.jit(do_not_specialize=["H", "chunks", "S"])
def _local(
    x_ptr, gate_ptr, table_ptr, q_ptr, local_ptr, x_b, x_h, x_t, g_b, g_h, g_t, H, chunks, S,
    GATE: tl.constexpr, ADJOINT: tl.constexpr, C: tl.constexpr, M: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    tile, h, b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    m, s = tl.arange(0, M), tl.arange(0, SP)
    v = _samples(x_ptr, gate_ptr, x_b, x_h, x_t, g_b, g_h, g_t, b, h, tile * M + m, 0, chunks, GATE, C)
    cr, ci = _parts(tl.dot(v, _table(table_ptr, h, S, C, SP), input_precision=PRODUCTS), M, SP)
    n = m if ADJOINT else tl.minimum(M, chunks - tile * M) - 1 - m
    qr, qi = _complex(q_ptr, h * (M + 1) + n[:, None], s[None, :], S, (n >= 0)[:, None] & (s < S)[None, :])
    if ADJOINT:
        qi = -qi
    at = local_ptr + (((tile.to(tl.int64) * tl.num_programs(2) + b) * H + h) * S + s) * 2
    tl.store(at, tl.sum(qr * cr - qi * ci, 0), mask=s < S)
    tl.store(at + 1, tl.sum(qr * ci + qi * cr, 0), mask=s < S)


@triton.jit(do_not_specialize=["tiles", "N", "HS"])
def _carry(
    local_ptr, start_ptr, state_ptr, step_ptr, last_ptr, N, HS, tiles, ADJOINT: tl.constexpr, BLOCK: tl.constexpr
):
    """start: the carried state as each tile finds it; state: before, and after all of them. step, last: its factor over
    a tile, over the last one."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    xr, xi = _complex(state_ptr, i, 0, 1, inside)
    for t in range(tiles):
        tile = tiles - 1 - t if ADJOINT else t
        row = tl.cast(tile, tl.int64) * N + i
        at = row * 2
        tl.store(start_ptr + at, xr.to(tl.float32), mask=inside)
        tl.store(start_ptr + at + 1, xi.to(tl.float32), mask=inside)
        factor_ptr = last_ptr if tile == tiles - 1 else step_ptr
        fr, fi = _complex(factor_ptr, i % HS, 0, 1, inside)
        lr, li = _complex(local_ptr, row, 0, 1, inside)
        xr, xi = fr * xr - fi * xi + lr, fr * xi + fi * xr + li
    tl.store(state_ptr + 2 * i, xr, mask=inside)
    tl.store(state_ptr + 2 * i + 1, xi, mask=inside)


@triton.jit(do_not_specialize=["H", "chunks", "S"])
def _mix(
    u_ptr, pre_ptr, post_ptr, h_ptr, into_ptr, out_of_ptr, q_ptr, start_ptr, y_ptr,
    u_b, u_h, u_t, pre_b, pre_h, pre_t, post_b, post_h, post_t, y_b, y_h, H, chunks, S,
    PRE: tl.constexpr, POST: tl.constexpr, C: tl.constexpr, M: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    tile, h, b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    first = tile * M
    chunk = first + tl.arange(0, M)
    row = (tile.to(tl.int64) * tl.num_programs(2) + b) * H + h
    before = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, chunk - 1, first, chunks, PRE, C)
    table = _table(into_ptr, h, S, C, SP)
    xr, xi = _states(before, table, start_ptr, q_ptr, row, h, 0, S, M, SP, False)
    x = tl.reshape(tl.join(xr, xi), [M, 2 * SP])
    y = tl.dot(x, tl.trans(_table(out_of_ptr, h, S, C, SP)), input_precision=PRODUCTS)
    v = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, chunk, 0, chunks, PRE, C)
    y = tl.dot(v, _within(h_ptr, h, C), y, input_precision=PRODUCTS)
    t = chunk.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    mask = (chunk < chunks)[:, None]
    if POST:
        y *= tl.load(post_ptr + b * post_b + h * post_h + t * post_t, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + b * y_b + h * y_h + t, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "chunks", "S", "B", "tiles", "TILES"])
def _gradient(
    u_ptr, pre_ptr, post_ptr, dy_ptr, h_ptr, into_ptr, out_of_ptr, q_ptr, start_ptr, end_ptr,
    du_ptr, dpre_ptr, dpost_ptr, share_ptr, shared_q_ptr,
    u_b, u_h, u_t, pre_b, pre_h, pre_t, post_b, post_h, post_t, dy_b, dy_h, dy_t, out_b, out_h,
    H, chunks, S, B, tiles, TILES,
    PRE: tl.constexpr, POST: tl.constexpr, TABLES: tl.constexpr, C: tl.constexpr, M: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    """`TILES` tiles of channel h, of all sequences. shares: (programs, H, C + 4 SP, C) rows v^T g, (v^T A)^T, X^T g."""
    h = tl.program_id(1).to(tl.int64)
    m, s = tl.arange(0, M), tl.arange(0, SP)
    into, out_of, within = _table(into_ptr, h, S, C, SP), _table(out_of_ptr, h, S, C, SP), _within(h_ptr, h, C)
    share_within = tl.zeros([C, C], tl.float32)
    share_into, share_out = tl.zeros([2 * SP, C], tl.float32), tl.zeros([2 * SP, C], tl.float32)
    share_r, share_i = tl.zeros([SP], tl.float32), tl.zeros([SP], tl.float32)
    for i in range(tl.program_id(0) * TILES, tl.minimum(B * tiles, (tl.program_id(0) + 1) * TILES)):
        tile, b = i % tiles, (i // tiles).to(tl.int64)
        first, count = tile * M, tl.minimum(M, chunks - tile * M)
        chunk, end = first + m, tile * M + count
        row = (tile.to(tl.int64) * B + b) * H + h
        before = _samples(u_ptr, pre_ptr, u_b, u_h, u_t, pre_b, pre_h, pre_t, b, h, chunk - 1, first, chunks, PRE, C)
        xr, xi = _states(before, into, start_ptr, q_ptr, row, h, 0, S, M, SP, False)
        x = tl.reshape(tl.join(xr, xi), [M, 2 * SP])
        later = _samples(
            dy_ptr, post_ptr, dy_b, dy_h, dy_t, post_b, post_h, post_t, b, h, chunk + 1, first, end, POST, C
        )
        ar, ai = _states(later, out_of, end_ptr, q_ptr, row, h, count - 1, S, M, SP, True)
        a = tl.reshape(tl.join(ar, ai), [M, 2 * SP])
        g = _samples(dy_ptr, post_ptr, dy_b, dy_h, dy_t, post_b, post_h, post_t, b, h, chunk, 0, chunks, POST, C)
        dv = tl.dot(a, tl.trans(into), input_precision=PRODUCTS)
        dv = tl.dot(g, tl.trans(within), dv, input_precision=PRODUCTS)

        t = chunk.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
        mask, at = (chunk < chunks)[:, None], b * out_b + h * out_h + t
        u = tl.load(u_ptr + b * u_b + h * u_h + t * u_t, mask=mask, other=0.0).to(tl.float32)
        v = u
        if PRE:
            pre = tl.load(pre_ptr + b * pre_b + h * pre_h + t * pre_t, mask=mask, other=0.0).to(tl.float32)
            v = u * pre
            tl.store(dpre_ptr + at, (dv * u).to(dpre_ptr.dtype.element_ty), mask=mask)
            dv *= pre
        tl.store(du_ptr + at, dv.to(du_ptr.dtype.element_ty), mask=mask)
        if POST:
            y = tl.dot(x, tl.trans(out_of), input_precision=PRODUCTS)
            y = tl.dot(v, within, y, input_precision=PRODUCTS)
            y *= tl.load(dy_ptr + b * dy_b + h * dy_h + t * dy_t, mask=mask, other=0.0).to(tl.float32)
            tl.store(dpost_ptr + at, y.to(dpost_ptr.dtype.element_ty), mask=mask)
        if TABLES:
            share_within = tl.dot(tl.trans(v), g, share_within, input_precision=PRODUCTS)
            share_into = tl.dot(tl.trans(a), v, share_into, input_precision=PRODUCTS)
            share_out = tl.dot(tl.trans(x), g, share_out, input_precision=PRODUCTS)
            live = (m < count)[:, None]
            share_r += tl.sum(tl.where(live, ar * xr + ai * xi, 0.0), 0)
            share_i += tl.sum(tl.where(live, ai * xr - ar * xi, 0.0), 0)
    if TABLES:
        program = tl.program_id(0).to(tl.int64) * H + h
        column = tl.arange(0, C)[None, :]
        share = share_ptr + program * (C + 4 * SP) * C + column
        tl.store(share + tl.arange(0, C)[:, None] * C, share_within)
        tl.store(share + (C + tl.arange(0, 2 * SP)[:, None]) * C, share_into)
        tl.store(share + (C + 2 * SP + tl.arange(0, 2 * SP)[:, None]) * C, share_out)
        tl.store(shared_q_ptr + (program * SP + s) * 2, share_r)
        tl.store(shared_q_ptr + (program * SP + s) * 2 + 1, share_i)


@triton.jit(do_not_specialize=["H", "S", "steps"])
def _steps(
    u_ptr, pre_ptr, post_ptr, skip_ptr, poles_ptr, residues_ptr, state_ptr, y_ptr,
    u_b, u_h, u_t, pre_b, pre_h, pre_t, post_b, post_h, post_t, y_b, y_h, H, S, steps,
    PRE: tl.constexpr, POST: tl.constexpr, SKIP: tl.constexpr, CHANNELS: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """`state` (B, H, S) in float64 is read, and replaced by the state after the steps."""
    h = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    b, s = tl.program_id(1).to(tl.int64), tl.arange(0, SP)[None, :]
    live = (h < H)[:, None] & (s < S)
    pr, pi = _complex(poles_ptr, h[:, None], s, S, live)
    rr, ri = _complex(residues_ptr, h[:, None], s, S, live)
    xr, xi = _complex(state_ptr, (b * H + h)[:, None], s, S, live)
    skip = tl.zeros([CHANNELS], tl.float64)
    if SKIP:
        skip += tl.load(skip_ptr + h, mask=h < H, other=0.0).to(tl.float64)
    for t in range(steps):
        v = tl.load(u_ptr + b * u_b + h * u_h + t * u_t, mask=h < H, other=0.0).to(tl.float64)
        if PRE:
            v *= tl.load(pre_ptr + b * pre_b + h * pre_h + t * pre_t, mask=h < H, other=0.0).to(tl.float64)
        xr, xi = pr * xr - pi * xi + v[:, None], pr * xi + pi * xr
        y = tl.sum(rr * xr - ri * xi, 1) + skip * v
        if POST:
            y *= tl.load(post_ptr + b * post_b + h * post_h + t * post_t, mask=h < H, other=0.0).to(tl.float64)
        tl.store(y_ptr + b * y_b + h * y_h + t, y.to(tl.float32).to(y_ptr.dtype.element_ty), mask=h < H)
    at = state_ptr + ((b * H + h)[:, None] * S + s) * 2
    tl.store(at, xr, mask=live)
    tl.store(at + 1, xi, mask=live)


# ----------------------------------------------------------------------------------------------------------- the host
class _Piece(NamedTuple):
    """`chunks` chunks of C samples from sample `start` on; C = 1: so many steps."""

    start: int
    chunks: int
    C: int

    @property
    def samples(self) -> slice:
        return slice(self.start, self.start + self.chunks * self.C)

    @property
    def M(self) -> int:
        return 32 if self.C == 64 else 16

    @property
    def tiles(self) -> int:
        return -(-self.chunks // self.M)


def _pieces(length: int) -> list[_Piece]:
    pieces, start = [], 0
    for chunk in (64, 16, 1):
        if count := (length - start) // chunk:
            pieces.append(_Piece(start, count, chunk))
            start += count * chunk
    return pieces


def _modes(poles: torch.Tensor) -> int:
    return max(8, triton.next_power_of_2(poles.shape[1]))


class _Sweep:
    """One piece of a call: its tables, and the launches on it. With fused products, lanes that hold copies of one sum
    differ in its last bit, and race to store it: all kernels are compiled without."""

    def __init__(self, piece: _Piece, u, poles, residues, skip):
        self.piece, self.modes = piece, poles.shape[1]
        self.batch, self.channels = u.shape[:2]
        self.tables = eager._Tables(poles, residues, skip, piece.C, piece.M, torch.float32)
        self.pairs = [
            t.contiguous() for t in (self.tables.into, self.tables.out_of.mT, torch.view_as_real(self.tables.strides))
        ]
        self.options = {
            "C": piece.C,
            "M": piece.M,
            "SP": _modes(poles),
            "enable_fp_fusion": False,
        }

    def carry(self, x, gate, state: torch.Tensor, adjoint: bool = False) -> torch.Tensor:
        """The states that every tile finds; `state` (B, H, S) complex128 is replaced by what leaves the last tile."""
        piece, (into, out_of, q) = self.piece, self.pairs
        gate_or_x = x if gate is None else gate
        start = x.new_empty(piece.tiles, *state.shape, 2, dtype=torch.float32)
        if not start.numel():
            return start
        local = torch.empty_like(start)
        _local[(piece.tiles, self.channels, self.batch)](
            x, gate_or_x, out_of if adjoint else into, q, local, *x.stride(), *gate_or_x.stride(),
            self.channels, piece.chunks, self.modes, GATE=gate is not None, ADJOINT=adjoint, **self.options,
        )  # fmt: skip
        last = (piece.chunks - 1) % piece.M + 1
        factors = [eager.power(self.tables.poles, n * piece.C) for n in (piece.M, last)]
        if adjoint:
            factors = [f.conj_physical() for f in factors]
        _carry[(triton.cdiv(state.numel(), 128),)](
            local, start, torch.view_as_real(state), *(torch.view_as_real(f.contiguous()) for f in factors),
            state.numel(), self.channels * self.modes, piece.tiles, ADJOINT=adjoint, BLOCK=128, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
        return start

    def mix(self, u, pre, post, start: torch.Tensor, y: torch.Tensor) -> None:
        gates = [u if gate is None else gate for gate in (pre, post)]
        _mix[(self.piece.tiles, self.channels, self.batch)](
            u, *gates, self.tables.h, *self.pairs, start, y, *u.stride(), *gates[0].stride(), *gates[1].stride(),
            *y.stride()[:2], self.channels, self.piece.chunks, self.modes,
            PRE=pre is not None, POST=post is not None, **self.options,
        )  # fmt: skip

    def gradient(self, u, pre, post, dy, start, end, outs, tables: bool) -> eager._Gradients | None:
        """Writes du, dpre, dpost (`outs`); the gradients of the tables, if asked for."""
        piece, C, SP = self.piece, self.options["C"], self.options["SP"]
        gates = [u if gate is None else gate for gate in (pre, post)]
        each = -(-self.batch * piece.tiles // max(1, min(self.batch * piece.tiles, -(-1024 // self.channels))))
        programs = -(-self.batch * piece.tiles // each)
        shares = u.new_empty(programs, self.channels, C + 4 * SP, C, dtype=torch.float32)
        shared_q = u.new_empty(programs, self.channels, SP, 2, dtype=torch.float32)
        _gradient[(programs, self.channels)](
            u, *gates, dy, self.tables.h, *self.pairs, start, end, *(outs[0] if o is None else o for o in outs),
            shares, shared_q, *u.stride(), *gates[0].stride(), *gates[1].stride(), *dy.stride(), *outs[0].stride()[:2],
            self.channels, piece.chunks, self.modes, self.batch, piece.tiles, each,
            PRE=pre is not None, POST=post is not None, TABLES=tables, **self.options,
        )  # fmt: skip
        if not tables:
            return None
        found, shares, pairs = eager._Gradients(self.tables), shares.sum(0), 2 * self.modes
        found.within = shares[:, :C]
        found.into = shares[:, C : C + pairs].mT.contiguous()
        found.out_of = shares[:, C + 2 * SP :][:, :pairs]
        found.powers[:, C] += torch.view_as_complex(shared_q.sum(0))[:, : self.modes]
        return found


def _start(u, poles, state) -> torch.Tensor:
    """(B, H, S) complex128, ours to write to."""
    if state is None:
        return poles.new_zeros(u.shape[0], *poles.shape, dtype=torch.complex128)
    return state.to(torch.complex128, memory_format=torch.contiguous_format, copy=True)


def _run_steps(u, poles, residues, skip, pre, post, state, y) -> None:
    gates = [u if gate is None else gate for gate in (pre, post)]
    modes = _modes(poles)
    channels = max(1, 256 // modes)
    wide = [torch.view_as_real(x.to(torch.complex128).contiguous()) for x in (poles, residues, state)]
    _steps[(triton.cdiv(u.shape[1], channels), u.shape[0])](
        u, *gates, u if skip is None else skip.contiguous(), *wide, y,
        *u.stride(), *gates[0].stride(), *gates[1].stride(), *y.stride()[:2], u.shape[1], poles.shape[1], u.shape[2],
        PRE=pre is not None, POST=post is not None, SKIP=skip is not None, CHANNELS=channels, SP=modes,
        enable_fp_fusion=False,
    )  # fmt: skip


def _cut(piece: _Piece, *tensors: Any) -> list[Any]:
    return [None if t is None else t[..., piece.samples] for t in tensors]


def forward(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state):
    y, state = torch.empty(u.shape, dtype=u.dtype, device=u.device), _start(u, poles, initial_state)
    for piece in _pieces(u.shape[-1]) if u.numel() else []:
        part, pre, post, out = _cut(piece, u, pre_gate, post_gate, y)
        if piece.C == 1:
            _run_steps(part, poles, residues, skip, pre, post, state, out)
        else:
            sweep = _Sweep(piece, u, poles, residues, skip)
            sweep.mix(part, pre, post, sweep.carry(part, pre, state), out)
    return y, state.to(torch.complex64) if output_final_state else u.new_empty(0, dtype=torch.complex64)


def backward(
    grads, outputs, u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state, *, needs
):
    dy, dstate = grads[0], grads[1] if output_final_state else None
    if dy is None and dstate is None:
        return [None] * 7
    if u.numel() == 0:
        return [None] * 6 + [dstate]
    dy = torch.zeros_like(u) if dy is None else dy
    present = (True, pre_gate is not None, post_gate is not None)
    outs = [torch.empty(u.shape, dtype=u.dtype, device=u.device) if wanted else None for wanted in present]
    pieces, state, found = _pieces(u.shape[-1]), _start(u, poles, initial_state), list[tuple[torch.Tensor, ...]]()
    swept, before = dict[_Piece, tuple[_Sweep, torch.Tensor]](), state
    for piece in pieces:  # the states that every piece, and every tile in it, finds
        before = state.clone()
        if piece.C > 1:
            sweep = _Sweep(piece, u, poles, residues, skip)
            part, pre = _cut(piece, u, pre_gate)
            swept[piece] = (sweep, sweep.carry(part, pre, state))
    adjoint = _start(u, poles, dstate)
    for piece in reversed(pieces):
        part, pre, post, cotangent = _cut(piece, u, pre_gate, post_gate, dy)
        du, dpre, dpost = _cut(piece, *outs)
        if piece.C == 1:
            args = (part, poles, residues, skip, pre, post, before, True)
            got = eager.backward([cotangent, adjoint], [], *args, needs=[True] * 7)
            for out, grad in zip((du, dpre, dpost), (got[0], got[4], got[5]), strict=True):
                if out is not None:
                    out.copy_(grad)
            found.append(tuple(got[1:4]))
            adjoint = got[6].contiguous()
        else:
            sweep, start = swept[piece]
            end = sweep.carry(cotangent, post, adjoint, adjoint=True)
            tables = sweep.gradient(part, pre, post, cotangent, start, end, (du, dpre, dpost), any(needs[1:4]))
            if tables is not None:
                found.append(tables.parameters())
    parameters = [sum(parts) for parts in zip(*found, strict=True)] if found else [None] * 3
    return [outs[0], *parameters, *outs[1:], adjoint]


_CONSTANTS = {"C": 64, "M": 32, "SP": 8}
_STRIDES = [f"{x}_{d}" for x in ("u", "pre", "post") for d in "bht"]
_INPUTS = dict.fromkeys(("u_ptr", "pre_ptr", "post_ptr"), "*bf16")
_TABLES = dict.fromkeys(("h_ptr", "into_ptr", "out_of_ptr", "q_ptr", "start_ptr"), "*fp32")
_SIZES = dict.fromkeys(("H", "chunks", "S"), "i32")
_GATES = {"PRE": True, "POST": True}
_GRADIENTS = dict.fromkeys(("du_ptr", "dpre_ptr", "dpost_ptr"), "*bf16")
_SHARES = dict.fromkeys(("end_ptr", "share_ptr", "shared_q_ptr"), "*fp32")
_POINTERS = dict.fromkeys(("state_ptr", "step_ptr", "last_ptr"), "*fp64")

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = (
    (
        _local,
        {"x_ptr": "*bf16", "gate_ptr": "*bf16", "table_ptr": "*fp32", "q_ptr": "*fp32", "local_ptr": "*fp32"}
        | dict.fromkeys([f"{x}_{d}" for x in "xg" for d in "bht"], "i64") | _SIZES,
        {"GATE": True, "ADJOINT": True} | _CONSTANTS,
    ),
    (
        _carry,
        {"local_ptr": "*fp32", "start_ptr": "*fp32"} | _POINTERS | dict.fromkeys(("N", "HS", "tiles"), "i32"),
        {"ADJOINT": True, "BLOCK": 128},
    ),
    (
        _mix,
        _INPUTS | _TABLES | {"y_ptr": "*bf16"} | dict.fromkeys([*_STRIDES, "y_b", "y_h"], "i64") | _SIZES,
        _GATES | _CONSTANTS,
    ),
    (
        _gradient,
        _INPUTS | {"dy_ptr": "*bf16"} | _TABLES | _GRADIENTS | _SHARES | _SIZES
        | dict.fromkeys([*_STRIDES, "dy_b", "dy_h", "dy_t", "out_b", "out_h"], "i64")
        | dict.fromkeys(("B", "tiles", "TILES"), "i32"),
        _GATES | {"TABLES": True} | _CONSTANTS,
    ),
    (
        _steps,
        _INPUTS | {"skip_ptr": "*fp32", "y_ptr": "*bf16"}
        | dict.fromkeys(("poles_ptr", "residues_ptr", "state_ptr"), "*fp64")
        | dict.fromkeys([*_STRIDES, "y_b", "y_h"], "i64") | dict.fromkeys(("H", "S", "steps"), "i32"),
        _GATES | {"SKIP": True, "CHANNELS": 32, "SP": 8},
    ),
)  # fmt: skip
