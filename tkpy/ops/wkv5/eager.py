"""wkv5 in plain PyTorch: chunks of 32 tokens as matmuls, a state carried between them.

With local positions t, s = 0..n-1 of a chunk of n tokens, state S at its start, and D = dL/dy, G = dL/dS at its end:

    y   = (R w^t) S + A V             A[t,s] = sum_i R[t,i] K[s,i] w[i]^(t-1-s) for s < t,   A[t,t] = sum_i R u K
    S  <- w^n S + (K w^(n-1-s))^T V
    gV  = A^T D + (K w^(n-1-s)) G     gR, gK: through A by gA = D V^T, through the state by D S^T and V G^T
    G  <- w^n G + (R w^t)^T D

No power of a decay is ever divided by, so that every w is exact: the pairs (t, s) are split dyadically. At level
L = 1, 2, 4, .. the queries of an odd block of L tokens meet the keys of the even block before it; with b the first
query, A = (R w^(t-b)) (K w^(b-1-s))^T, and neither exponent is negative. Each level costs half the flops of the one
above it and the whole of A those of its lower triangle. The gradient of ln w sums each exponent times what it
multiplies; all exponents are >= 0, so nothing cancels that does not cancel in the exact sum.

Tokens are taken in groups of chunks small enough to stay in cache; the backward recomputes the states from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

CHUNK = 32  # measured: 16 to 64 are within 20 % at head size 64
GROUP = {"cpu": 1 << 18}  # elements of one tensor of a group: 1 MB
GROUP_ELSEWHERE = 1 << 24

Tensor = torch.Tensor


def _wide(x: Tensor, like: Tensor) -> Tensor:
    return x.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def _rows(tokens: int) -> int:
    """The power of two that holds a chunk of so many tokens."""
    return 1 << (tokens - 1).bit_length()


class _Decay:
    """Powers of the decay w = exp(-rate), (H, exponent, N); w^0 is 1 whatever w is."""

    def __init__(self, w: Tensor, like: Tensor):
        longest = min(CHUNK, _rows(like.shape[1]))
        self.rate = _wide(w, like).exp().clamp_max(1e4)  # exp(-1e4) is 0 in float64 too, and 0 * 1e4 is not NaN
        self.position = torch.arange(longest + 1, dtype=self.rate.dtype, device=w.device)
        self.powers = torch.exp(-self.rate[:, None] * self.position[:, None])

    def read(self, n: int) -> Tensor:
        """w^t for t < n, over the dimensions (H, chunk, t, N)."""
        return self.powers[:, None, :n]

    def write(self, n: int, length: int) -> Tensor:
        """w^(length-1-s) for s < n; the rows beyond `length` hold padding, any finite power does."""
        return F.pad(self.powers[:, :length].flip(1), (0, 0, 0, n - length))[:, None]

    def carry(self, length: int) -> Tensor:
        return self.powers[:, length, :, None]


@dataclass(frozen=True)
class _Group:
    """Tokens start..stop: `chunks` chunks of `n` (a power of two) rows, of which the first `length` are tokens."""

    start: int
    stop: int
    chunks: int
    n: int
    length: int

    def load(self, x: Tensor) -> Tensor:
        """(B, T, H, N) -> (B, H, chunks, n, N), wide."""
        part = x[:, self.start : self.stop].transpose(1, 2)
        part = _wide(F.pad(part, (0, 0, 0, self.n - self.length)), x).contiguous()
        return part.view(*part.shape[:2], self.chunks, self.n, part.shape[-1])

    def store(self, part: Tensor, out: Tensor) -> None:
        out[:, self.start : self.stop] = part.flatten(2, 3)[:, :, : self.stop - self.start].transpose(1, 2)


def _groups(x: Tensor) -> Iterator[_Group]:
    batch, length, heads, size = x.shape
    chunks = max(1, GROUP.get(x.device.type, GROUP_ELSEWHERE) // (batch * heads * size * CHUNK))
    whole = length // CHUNK
    for i in range(0, whole, chunks):
        count = min(chunks, whole - i)
        yield _Group(i * CHUNK, (i + count) * CHUNK, count, CHUNK, CHUNK)
    if tail := length % CHUNK:
        yield _Group(whole * CHUNK, length, 1, _rows(tail), tail)


def _halves(x: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """(.., n, N) -> the even and the odd blocks of `level` rows, (.., n / 2 level, level, N) each."""
    pairs = x.unflatten(-2, (-1, 2, level))
    return pairs.select(-3, 0), pairs.select(-3, 1)


def _blocks(a: Tensor, level: int) -> Tensor:
    """Of (.., n, n), the blocks where odd rows meet the even columns before them: (.., pairs, level, level)."""
    pairs = a.shape[-1] // (2 * level)
    split = a.unflatten(-1, (pairs, 2, level)).unflatten(
        -4, (pairs, 2, level)
    )  # (.., pairs, 2, level, pairs, 2, level)
    return split.select(-2, 0).select(-4, 1).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _scores(R: Tensor, K: Tensor, u: Tensor, decay: _Decay) -> Tensor:
    """A, (B, H, chunks, n, n), lower triangular."""
    n = R.shape[-2]
    a = R.new_zeros(*R.shape[:-1], n)
    a.diagonal(dim1=-2, dim2=-1).copy_((R * u * K).sum(-1))
    level = 1
    while level < n:
        (even, _), (_, odd) = _halves(K, level), _halves(R, level)
        if level == 1:  # all exponents are 0
            block = (odd * even).sum(-1, keepdim=True)
        else:
            power = decay.read(level)[:, None]
            block = (odd * power) @ (even * power.flip(-2)).mT
        _blocks(a, level).copy_(block)
        level *= 2
    return a


def _scan(increments: Tensor, carry: Tensor, state: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """state <- carry * state + increment over the chunks; returns the states before each chunk, and the last."""
    before = torch.empty_like(increments)
    chunks = range(increments.shape[2])
    for j in reversed(chunks) if reverse else chunks:
        before[:, :, j] = state
        state = torch.addcmul(increments[:, :, j], carry, state)
    return before, state


def _step(r: Tensor, k: Tensor, v: Tensor, u: Tensor, decay: _Decay, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: (B, H, N) each."""
    y = (r.unsqueeze(-2) @ state).squeeze(-2) + (r * u * k).sum(-1, keepdim=True) * v
    return y, torch.addcmul(decay.carry(1) * state, k.unsqueeze(-1), v.unsqueeze(-2))


def _forward(r: Tensor, k: Tensor, v: Tensor, u: Tensor, decay: _Decay, state: Tensor, y: Tensor) -> Tensor:
    """One batch of equally long sequences: fills y, returns the final state."""
    if r.shape[1] == 1:
        R, K, V = (_wide(x[:, 0], r) for x in (r, k, v))
        y[:, 0], state = _step(R, K, V, u, decay, state)
        return state
    bonus = u[:, None, None]
    for group in _groups(r):
        R, K, V = (group.load(x) for x in (r, k, v))
        update = (K * decay.write(group.n, group.length)).mT @ V
        states, state = _scan(update, decay.carry(group.length), state)
        out = (_scores(R, K, bonus, decay) @ V).flatten(0, 2)
        out.baddbmm_((R * decay.read(group.n)).flatten(0, 2), states.flatten(0, 2))
        group.store(out.view_as(V), y)
    return state


def _levels_backward(gA: Tensor, R: Tensor, K: Tensor, gR: Tensor, gK: Tensor, decay: _Decay) -> Tensor:
    """Adds to gR and gK what comes through the pairs s < t; returns that of dL/d(ln w), (H, N)."""
    n, total = R.shape[-2], R.new_zeros(())
    level = 1
    while level < n:
        (even, _), (_, odd), block = _halves(K, level), _halves(R, level), _blocks(gA, level)
        g_even, g_odd = _halves(gK, level)[0], _halves(gR, level)[1]
        if level == 1:
            g_odd.addcmul_(block, even)
            g_even.addcmul_(block, odd)
        else:
            power = decay.read(level)[:, None]
            flipped, position = power.flip(-2), decay.position[:level, None]
            even, odd = even * flipped, odd * power
            to_odd, to_even = block @ even, block.mT @ odd
            g_odd.addcmul_(to_odd, power)
            g_even.addcmul_(to_even, flipped)
            along = odd.mul_(to_odd).sum((0, 2, 3)) * position + even.mul_(to_even).sum((0, 2, 3)) * position.flip(0)
            total = total + along.sum(1)
        level *= 2
    return total


@dataclass
class _Gradients:
    """Where the gradients go: r, k, v in their own dtype, dL/d(ln w) and u (H, N) wide."""

    r: Tensor
    k: Tensor
    v: Tensor
    log_w: Tensor
    u: Tensor


def _group_backward(
    group: _Group, inputs: tuple[Tensor, ...], u: Tensor, decay: _Decay, state: Tensor, G: Tensor, into: _Gradients
) -> Tensor:
    """From the state before the group and the gradient G of the one after it, the gradient of the one before it."""
    R, K, V, D = (group.load(x) for x in inputs)
    n, length, bonus = group.n, group.length, u[:, None, None]
    read, write, carry = decay.read(n), decay.write(n, length), decay.carry(length)
    R_read, K_write = R * read, K * write
    states, _ = _scan(K_write.mT @ V, carry, state)
    G_after, G = _scan(R_read.mT @ D, carry, G, reverse=True)

    gV = (_scores(R, K, bonus, decay).mT @ D).flatten(0, 2)
    group.store(gV.baddbmm_(K_write.flatten(0, 2), G_after.flatten(0, 2)).view_as(V), into.v)

    gA = D @ V.mT
    own = gA.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # v_t . gy_t
    from_state, from_update = D @ states.mT, V @ G_after.mT
    gR = torch.addcmul(from_state * read, own * bonus, K)
    gK = torch.addcmul(from_update * write, own * bonus, R)
    into.log_w += _levels_backward(gA, R, K, gR, gK, decay)
    group.store(gR, into.r)
    group.store(gK, into.k)

    into.u += (R * K).mul_(own).sum((0, 2, 3))
    position = decay.position[:n, None]
    back = (length - 1 - position).clamp_min(0)
    along = R_read.mul_(from_state).sum((0, 2)) * position + K_write.mul_(from_update).sum((0, 2)) * back
    into.log_w += along.sum(1) + length * (carry * states.mul_(G_after).sum((0, 2))).sum(-1)
    return G


def _backward(
    inputs: tuple[Tensor, ...], u: Tensor, decay: _Decay, state: Tensor, G: Tensor, into: _Gradients
) -> Tensor:
    """One batch of equally long sequences, inputs r, k, v, gy: fills `into`, returns dL/d(initial state)."""
    groups, starts = list(_groups(inputs[0])), []
    for group in groups:
        starts.append(state)
        if group is not groups[-1]:
            K, V = group.load(inputs[1]), group.load(inputs[2])
            state = _scan((K * decay.write(group.n, group.length)).mT @ V, decay.carry(group.length), state)[1]
    for group in reversed(groups):
        G = _group_backward(group, inputs, u, decay, starts.pop(), G, into)
    return G


def _spans(length: int, cu_seqlens: Tensor | None) -> list[tuple[slice, slice]]:
    """(rows of the states, tokens) of each batch of equally long sequences: all, or one packed one at a time."""
    if cu_seqlens is None:
        return [(slice(None), slice(0, length))]
    bounds = cu_seqlens.tolist()
    return [(slice(i, i + 1), slice(start, stop)) for i, (start, stop) in enumerate(pairwise(bounds))]


def _states(r: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The given states, wide, or zeros."""
    if state is not None:
        return _wide(state, r)
    count = r.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return _wide(r.new_zeros(count, r.shape[2], r.shape[3], r.shape[3]), r)


def forward(r, k, v, w, u, initial_state, cu_seqlens, output_final_state):
    y, state = torch.empty_like(r, memory_format=torch.contiguous_format), _states(r, initial_state, cu_seqlens)
    if r.numel():
        decay, bonus = _Decay(w, r), _wide(u, r)
        finals = [
            _forward(r[:, span], k[:, span], v[:, span], bonus, decay, state[rows], y[:, span])
            for rows, span in _spans(r.shape[1], cu_seqlens)
        ]
        state = finals[0] if len(finals) == 1 else torch.cat(finals)
    return y, state if output_final_state else state.new_empty(0)


def backward(grads, outputs, r, k, v, w, u, initial_state, cu_seqlens, output_final_state, *, needs):
    gy, g_final = grads
    G = _states(r, g_final if output_final_state else None, cu_seqlens)
    if not r.numel():
        return [None] * 5 + [G if initial_state is not None else None, None]
    gy = torch.zeros_like(r) if gy is None else gy
    state, decay, bonus = _states(r, initial_state, cu_seqlens), _Decay(w, r), _wide(u, r)
    gr, gk, gv = (torch.empty_like(r, memory_format=torch.contiguous_format) for _ in range(3))
    g_log_w, gu, g_initial = torch.zeros_like(bonus), torch.zeros_like(bonus), []
    for rows, span in _spans(r.shape[1], cu_seqlens):
        into = _Gradients(gr[:, span], gk[:, span], gv[:, span], g_log_w, gu)
        inputs = (r[:, span], k[:, span], v[:, span], gy[:, span])
        g_initial.append(_backward(inputs, bonus, decay, state[rows], G[rows], into))
    # ln w = -exp(w_raw), so d(ln w) / d(w_raw) = -rate.
    g_state = torch.cat(g_initial) if initial_state is not None else None
    return [gr, gk, gv, -decay.rate * g_log_w, gu, g_state, None]
