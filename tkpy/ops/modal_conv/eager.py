"""modal_conv in chunks of C samples, a block of G chunks at a time: never an (H, S, L) tensor, nor an (H, L) filter.

With v = pre_gate * u, q = p^C, and X the S states at the start of a chunk,

    y_i = sum_{j <= i} h_{i-j} v_j + Re sum_s R p^{i+1} X     i, j = 0..C-1       (two matmuls, tables M and W)
    X'  = q X + sum_j p^{C-1-j} v_j                                               (a matmul, table V, and a scan)

The skip is added to h_0. All tables come from one table of the powers p^0..p^C, products of two powers that are each
formed in complex128 and rounded once; the states that pass from block to block are complex128 too, so a pole near the
unit circle keeps its phase over millions of steps. Complex numbers enter the (real) matmuls as interleaved pairs. A
single sample, as in decoding, takes one step of the recurrence instead.

The backward runs the blocks backwards with the adjoint states (the same scan with conj q), after a forward pass that
recomputes the state at the start of each block. It collects the gradients of the tables, then goes from the tables to
poles, residues and skip once.

Conjugates are made physically: torch's lazy ones are read unconjugated in the body of an op that torch.compile runs.
"""

from __future__ import annotations

import copy
import functools

import torch

CHUNK = 64  # fastest of 16 to 128 on a CPU at 32k samples, for 2 to 16 states; less where the tables would cost more
#: Samples (of all channels) that one block may hold: on a CPU what stays in cache, elsewhere what fills the device.
BLOCK = {"cpu": 1 << 19}
BLOCK_ELSEWHERE = 1 << 25
GROUP = 128  # most chunks of a block: within one, q is a rounded number and applied once a chunk
TINY = torch.finfo(torch.float32).tiny  # smaller powers are 0: subnormal numbers are slow


def _wide(device: torch.device) -> torch.dtype:
    """The widest complex dtype that a device has."""
    return torch.complex64 if device.type == "mps" else torch.complex128


def power(base: torch.Tensor, n: int) -> torch.Tensor:
    """base^n for n >= 1, by repeated squaring."""
    result = base
    for bit in bin(n)[3:]:
        result = result * result
        if bit == "1":
            result = result * base
    return result


def powers(base: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """(H, count, S) in complex `dtype`: base^0, base^1, ... of a base (H, S) in complex128. Subnormal numbers are 0."""

    def few(base: torch.Tensor, count: int) -> torch.Tensor:
        ones = torch.ones_like(base)[:, None]
        return torch.cat([ones, base[:, None].expand(-1, count - 1, -1).cumprod(1)], 1).to(dtype)

    low = min(8, count)
    table = few(power(base, low), -(-count // low))[:, :, None] * few(base, low)[:, None]
    return _flush(table.flatten(1, 2)[:, :count])


def _flush(table: torch.Tensor) -> torch.Tensor:
    """Subnormal numbers as 0: they make a matmul many times slower."""
    if table.is_complex():
        return torch.view_as_complex(torch.nn.functional.hardshrink(torch.view_as_real(table), TINY))
    return torch.nn.functional.hardshrink(table, TINY)


def scan_in_order(chunks: torch.Tensor, carry: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """x_0 = carry, x_{n+1} = q x_n + chunks_n: x_0..x_{G-1}, (H, B, G, S). Fewest operations; best on a CPU."""
    x = torch.empty_like(chunks)
    x[:, :, 0] = carry
    for n in range(1, chunks.shape[2]):
        torch.addcmul(chunks[:, :, n - 1], x[:, :, n - 1], q[:, None, 1], out=x[:, :, n])
    return x


def scan_by_doubling(chunks: torch.Tensor, carry: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The same in log2(G) steps (Kogge and Stone 1973), for devices where every call costs; q[:, n] = q^n."""
    x = chunks.clone()
    count, step = chunks.shape[2], 1
    while step < count - 1:
        x[:, :, step:] += q[:, None, step, None] * x[:, :, :-step]
        step *= 2
    return q[:, None, :count] * carry.to(x.dtype)[:, :, None] + torch.nn.functional.pad(x[:, :, :-1], (0, 0, 1, 0))


class _Tables:
    """What depends on poles, residues and skip only: for chunks of C samples in blocks of at most `group` chunks."""

    def __init__(self, poles, residues, skip, chunk: int, group: int, dtype: torch.dtype):
        self.chunk, self.modes = chunk, poles.shape[1]
        self.complex = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.poles, self.residues = poles.to(_wide(poles.device)), residues.to(self.complex)
        self.powers = powers(self.poles, chunk + 1, self.complex)  # (H, C+1, S)
        weighted = self.residues[:, None] * self.powers  # R p^k
        h = weighted[:, :chunk].real.sum(-1)
        if skip is not None:
            h[:, 0] += skip
        self.h = _flush(h)  # (H, C)
        self.into = torch.view_as_real(self.powers[:, :chunk].flip(1)).flatten(2)  # V (H, C, 2S)
        self.out_of = torch.view_as_real(_flush(weighted[:, 1:].conj_physical())).flatten(2).mT  # W (H, 2S, C)
        self.strides = powers(power(self.poles, chunk), group + 1, self.complex)  # (H, G+1, S): q^n

    @functools.cached_property
    def within(self) -> torch.Tensor:
        """M (H, C, C): M[j, i] = h[i - j] for j <= i, else 0. Rows in reverse order are windows of (0, ..., 0, h)."""
        return torch.nn.functional.pad(self.h, (self.chunk - 1, 0)).unfold(-1, self.chunk, 1).flip(1)

    def shorter(self, chunk: int) -> _Tables:
        """The same tables for one chunk of fewer samples."""
        if chunk == self.chunk:
            return self
        cut = copy.copy(self)
        cut.chunk = chunk
        cut.within, cut.out_of = self.within[:, :chunk, :chunk], self.out_of[..., :chunk]
        cut.into = self.into[:, self.chunk - chunk :]
        cut.strides = self.powers[:, [0, chunk]]
        return cut

    def states(self, pairs: torch.Tensor, batch: int) -> torch.Tensor:
        """(H, B*G, 2S) real -> (H, B, G, S) complex"""
        return torch.view_as_complex(pairs.unflatten(-1, (self.modes, 2))).unflatten(1, (batch, -1))

    def pairs(self, states: torch.Tensor) -> torch.Tensor:
        """(H, B, G, S) complex -> (H, B*G, 2S) real"""
        return torch.view_as_real(states).flatten(3).flatten(1, 2)

    def pass_on(self, chunks: torch.Tensor, carry: torch.Tensor, adjoint: bool = False):
        """The states at the start of every chunk (H, B, G, S), and after the last one (H, B, S) in complex128.

        With `adjoint`, from the last chunk to the first with conj(q).
        """
        count = chunks.shape[2]
        q, all_of_it = self.strides[:, :count], power(self.poles, count * self.chunk)[:, None]
        if adjoint:
            chunks, q, all_of_it = chunks.flip(2), q.conj_physical(), all_of_it.conj_physical()
        scan = scan_in_order if chunks.device.type == "cpu" else scan_by_doubling
        x = scan(chunks, carry, q)
        # The carry takes its own way in complex128: q rounded to complex64 and applied thousands of times would drift.
        end = all_of_it * carry + (q[:, None].flip(2) * chunks).sum(2)
        return (x.flip(2) if adjoint else x), end


class _Layout:
    """How a call is cut: blocks (first sample, chunks, chunk length), in order; the last may be one shorter chunk."""

    def __init__(self, u: torch.Tensor):
        self.batch, self.channels, self.length = u.shape
        self.dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        self.chunk = min(CHUNK if self.batch * self.length > 4096 else CHUNK // 2, self.length)
        whole = self.length // self.chunk
        budget = BLOCK.get(u.device.type, BLOCK_ELSEWHERE)
        self.group = max(1, min(whole, GROUP, budget // (self.batch * self.channels * self.chunk)))
        self.blocks = [
            (first * self.chunk, min(self.group, whole - first), self.chunk) for first in range(0, whole, self.group)
        ]
        if self.length % self.chunk:
            self.blocks.append((whole * self.chunk, 1, self.length % self.chunk))

    def take(self, x: torch.Tensor, block: tuple[int, int, int]) -> torch.Tensor:
        return x.narrow(-1, block[0], block[1] * block[2])

    def fold(self, x, block, gate=None) -> torch.Tensor:
        """A block of x (times a gate) in the working precision: (B, H, L) -> (H, B*G, C)."""
        part = self.take(x, block).to(self.dtype)
        if gate is not None:
            part = part * self.take(gate, block)
        part = part.unflatten(-1, block[1:]).transpose(0, 1).reshape(self.channels, -1, block[2])
        return part if part.stride(-1) == 1 else part.contiguous()  # what a batched matmul takes as it is

    def unfold(self, x: torch.Tensor) -> torch.Tensor:
        """(H, B*G, C) -> (B, H, G*C)"""
        return x.unflatten(1, (self.batch, -1)).transpose(0, 1).flatten(2)

    def start(self, poles: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """The first carry, (H, B, S) complex128."""
        if state is None:
            return poles.new_zeros(self.channels, self.batch, poles.shape[1], dtype=_wide(poles.device))
        return state.transpose(0, 1).to(_wide(state.device))


def _step(u, poles, residues, skip, pre_gate, post_gate, state):
    """One sample: x' = p x + v, y = Re sum R x' + skip v."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate
    if state is None:
        state = (v + poles.new_zeros(poles.shape)).to(v.dtype.to_complex())
    else:
        state = (poles * state + v).to(v.dtype.to_complex())
    y = (residues * state).real.sum(-1, keepdim=True)
    if skip is not None:
        y = y + skip[:, None] * v
    return (y if post_gate is None else y * post_gate).to(u.dtype), state


def _mix(tab: _Tables, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y before the post gate: the chunk's own samples and the states at its start."""
    return torch.bmm(tab.pairs(x), tab.out_of).baddbmm_(v, tab.within)


def forward(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state):
    state_dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    if u.numel() == 0:
        y = u.new_empty(u.shape)
        state = poles.new_zeros(u.shape[0], *poles.shape) if initial_state is None else initial_state
    elif u.shape[-1] == 1:
        y, state = _step(u, poles, residues, skip, pre_gate, post_gate, initial_state)
    else:
        lay = _Layout(u)
        tables = _Tables(poles, residues, skip, lay.chunk, lay.group, lay.dtype)
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        carry = lay.start(poles, initial_state)
        for block in lay.blocks:
            tab, v = tables.shorter(block[2]), lay.fold(u, block, pre_gate)
            x, carry = tab.pass_on(tab.states(v @ tab.into, lay.batch), carry)
            part = lay.unfold(_mix(tab, v, x))
            lay.take(y, block).copy_(part if post_gate is None else part * lay.take(post_gate, block))
        state = carry.transpose(0, 1)
    return y, state.to(state_dtype) if output_final_state else u.new_empty(0, dtype=state_dtype)


class _Gradients:
    """Gradients of the tables, collected over blocks, and what follows from them for poles, residues and skip."""

    def __init__(self, tables: _Tables):
        self.tables = tables
        self.within, self.into = torch.zeros_like(tables.within), torch.zeros_like(tables.into)
        self.out_of = torch.zeros_like(tables.out_of, memory_format=torch.contiguous_format)
        self.powers = torch.zeros_like(tables.powers)

    def add(self, chunk: int, v, g, x, adjoint) -> None:
        """One block: samples v, cotangents g (H, B*G, C); states x before, adjoint after each chunk (H, B, G, S)."""
        self.within[:, :chunk, :chunk].baddbmm_(v.mT, g)
        self.into[:, self.tables.chunk - chunk :].baddbmm_(v.mT, self.tables.pairs(adjoint))
        self.out_of[..., :chunk].baddbmm_(self.tables.pairs(x).mT, g)
        self.powers[:, chunk] += (adjoint * x.conj_physical()).sum((1, 2))

    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dpoles, dresidues, dskip) by the chain rule through h, V, W, q, each a function of the powers p^k."""
        chunk, shape = self.tables.chunk, (self.tables.modes, 2)
        powers, residues = self.tables.powers.conj_physical(), self.tables.residues.conj_physical()[:, None]
        dh = torch.stack([self.within.diagonal(k, 1, 2).sum(-1) for k in range(chunk)], -1)  # (H, C)
        into = torch.view_as_complex(self.into.unflatten(-1, shape))  # (H, C, S)
        read = torch.view_as_complex(self.out_of.mT.unflatten(-1, shape).contiguous()).conj_physical()  # of R p^{i+1}
        dpowers = self.powers
        dpowers[:, :chunk] += dh[..., None] * residues + into.flip(1)
        dpowers[:, 1:] += read * residues
        dresidues = (dh[..., None] * powers[:, :-1] + read * powers[:, 1:]).sum(1)
        k = torch.arange(1, chunk + 1, device=powers.device)[:, None]
        dpoles = (dpowers[:, 1:] * k * powers[:, :-1]).sum(1)
        return dpoles, dresidues, dh[:, 0]


def backward(
    grads, outputs, u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state, *, needs
):
    """The adjoint recurrence, lambda_t = conj(R) g_t + conj(p) lambda_{t+1} with g = post_gate dy, chunk by chunk."""
    dy, dstate = grads[0], grads[1] if output_final_state else None
    if dy is None and dstate is None:
        return [None] * 7
    if u.numel() == 0:
        return [None] * 6 + [dstate]
    dy = torch.zeros_like(u) if dy is None else dy
    lay = _Layout(u)
    tables = _Tables(poles, residues, skip, lay.chunk, lay.group, lay.dtype)
    found = _Gradients(tables) if any(needs[1:4]) else None
    du, dpre, dpost = (torch.empty(u.shape, dtype=u.dtype, device=u.device) if needs[i] else None for i in (0, 4, 5))
    starts = None
    if found is not None or dpost is not None:
        starts = _starts(lay, tables, u, pre_gate, lay.start(poles, initial_state))
    carry = lay.start(poles, dstate)
    for n in reversed(range(len(lay.blocks))):
        block = lay.blocks[n]
        tab, v, g = tables.shorter(block[2]), lay.fold(u, block, pre_gate), lay.fold(dy, block, post_gate)
        adjoint, carry = tab.pass_on(tab.states(g @ tab.out_of.mT, lay.batch), carry, adjoint=True)
        if starts is not None:
            x, _ = tab.pass_on(tab.states(v @ tab.into, lay.batch), starts[n])
        if found is not None:
            found.add(block[2], v, g, x, adjoint)
        if dpost is not None:
            lay.take(dpost, block).copy_(lay.unfold(_mix(tab, v, x)) * lay.take(dy, block))
        if du is not None or dpre is not None:
            dv = lay.unfold(torch.bmm(tab.pairs(adjoint), tab.into.mT).baddbmm_(g, tab.within.mT))
            if dpre is not None:
                lay.take(dpre, block).copy_(dv * lay.take(u, block))
            if du is not None:
                lay.take(du, block).copy_(dv if pre_gate is None else dv * lay.take(pre_gate, block))
    parameters = (None, None, None) if found is None else found.parameters()
    return [du, *parameters, dpre, dpost, carry.transpose(0, 1)]


def _starts(lay: _Layout, tables: _Tables, u, pre_gate, carry: torch.Tensor) -> list[torch.Tensor]:
    """The states at the start of every block."""
    starts = [carry]
    for block in lay.blocks[:-1]:
        tab = tables.shorter(block[2])
        _, carry = tab.pass_on(tab.states(lay.fold(u, block, pre_gate) @ tab.into, lay.batch), carry)
        starts.append(carry)
    return starts
