"""hyena_mixer in Triton: short filters, gates and the recurrence itself, one thread a channel, on z as it lies.

With u = x1 v and g = x2 dy, the recurrence needs no table and no product of matrices: 6 multiply-adds a mode and
sample, of which a thread takes one channel's. Time is cut into tiles of T samples:

_ahead     from zero, what a tile adds to the states x and, for the backward, to their derivative s = dx/dp,
           s_t = p s_{t-1} + x_{t-1}
_carry     x and s as every tile finds them, in float64
_mix       y; tiles one after the other in one program, where there are channels enough to fill the device, and then
           the carry within; otherwise all tiles at once, with what _ahead and _carry found
_ahead     again, from what _carry found: dx2 = y dy, and shares of sum g x and sum g s, which are the conjugates of
           dresidues and of dpoles over the residues
_back      the adjoint states a_{t-1} = conj(p) (a_t + conj(R) g_t) from the last sample to the first, twice too: what a
           tile adds; then du, and from it dx1 = du v, dv = du x1

With d for dx2, dx1 or dv, each goes back through its filter where it is made, and reaches no memory:

    dz_t = sum_l w_{K-1-l} d_{t+l} (+ the gradient of the last inputs)     dw_{K-1-l} = sum d_t z_{t-l}     db = sum d_t

dz from the last K samples of d, in registers, and sums of a tile as shares, of which torch adds the tiles', as of all
the parameters'. dz at a tile's border takes d of both sides: the one program goes on for K - 1 samples beyond its tile,
in _back before it. So it comes by dz of what lies before the sequence, too.

shapes     z, dy (B, L, ..) of any strides with channels side by side (else copied); y, dz (B, L, ..) contiguous; tables
           and states (.., 2, S, W), taps (K, 3 W) float32; shares of the filters (tiles, B, K + 1, 3 W), bias first
programs   128 channels (fewer: 32, 64) x a tile x a sequence
precision  everything float32, nothing rounded between filter and output; dz once, to z's dtype; what passes from tile
           to tile float64. No sum passes between threads, so products may be fused with them
limits     up to 16 modes, then by the Triton kernels of short_conv and modal_conv; B, and tiles, below 65536; compute
           capability 8.0 or newer; with more than 8 modes _mix over all tiles and _ahead with its sums spill registers,
           with more than 3 taps the latter up to five
cost       elements moved a sample and channel: 4, by tiles at once 6; backward 15: 2 + 5 ahead, 2 + 6 back
"""

from __future__ import annotations

import torch
import triton

from tkpy.ops.hyena_mixer import eager
from tkpy.ops.hyena_mixer.triton_kernels import _ahead, _back, _carry, _mix
from tkpy.ops.modal_conv import triton as modal
from tkpy.ops.modal_conv.eager import power
from tkpy.ops.rows import multiprocessors
from tkpy.ops.short_conv import triton as short
from tkpy.ops.short_conv.eager import final_state

TILE, UNROLLED = 256, (4, 2)  # samples of a tile; at a time, with up to 8 modes and with more
TAPS = (3, 4, 8)  # of a compiled kernel
MOST_MODES = 16
RESIDENT = 256  # channels a multiprocessor needs before one program goes through all tiles of its channels


def _planes(x: torch.Tensor) -> torch.Tensor:
    """(.., W, S) complex -> (.., 2, S, W)"""
    return torch.view_as_real(x.resolve_conj()).transpose(-1, -3).contiguous()


def _numbers(x: torch.Tensor) -> torch.Tensor:
    """(.., 2, S, W) -> (.., W, S) complex"""
    return torch.complex(*x.unbind(-3)).mT.contiguous()


class _Sweep:
    """The launches on one call."""

    def __init__(self, z, weight, bias, poles, residues, skip, fir_state, groups):
        self.z = z if z.stride(2) == 1 else z.contiguous()
        (self.batch, self.length, columns), (self.width, self.modes) = z.shape, poles.shape
        self.poles, self.tiles = poles, -(-self.length // TILE)
        taps = min(n for n in TAPS if n >= weight.shape[1])
        self.more = more = taps - weight.shape[1]  # zeros in front
        before = self.inputs(taps, fir_state)
        nothing = poles.new_zeros(columns, dtype=torch.float32)
        self.sources = (
            self.z, before, torch.nn.functional.pad(weight.float().mT, (0, 0, more, 0)).contiguous(),
            nothing if bias is None else bias.float().contiguous(), _planes(poles), _planes(residues),
            nothing if skip is None else skip.float().contiguous(),
        )  # fmt: skip
        self.sizes = (self.width // groups, self.width, self.length, self.modes)
        warps = min(4, triton.next_power_of_2(-(-self.width // 32)))
        slots = max(8, triton.next_power_of_2(self.modes))
        self.options = {
            "K": taps, "T": TILE, "U": UNROLLED[slots > 8], "CH": 32 * warps, "SP": slots,
            "num_warps": warps, "num_stages": 1,
        }  # fmt: skip

    def grid(self, tiles: int) -> tuple[int, int, int]:
        return -(-self.width // self.options["CH"]), tiles, self.batch

    def states(self, *outer: int, dtype=torch.float32) -> torch.Tensor:
        return self.z.new_empty(*outer, self.batch, 2, self.modes, self.width, dtype=dtype)

    def inputs(self, taps: int, given: torch.Tensor | None) -> torch.Tensor:
        """(B, 3 W, K-1) or None -> (B, taps - 1, 3 W), what is not there 0."""
        found = self.z.new_zeros(self.batch, taps - 1, self.z.shape[2])
        if given is not None:
            found[:, self.more :].copy_(given.mT)
        return found

    def behind(self, dinputs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Room for the gradients of z and of what lies before it; that of the last inputs."""
        after = self.inputs(self.options["K"], dinputs)
        return self.z.new_empty(self.z.shape), torch.empty_like(after), after

    def filter_shares(self) -> torch.Tensor:
        return self.z.new_empty(self.tiles, self.batch, self.options["K"] + 1, self.z.shape[2], dtype=torch.float32)

    def factors(self) -> torch.Tensor:
        """p^n and its derivative n p^(n-1), of whole tiles and of the last one."""
        wide, found = self.poles.to(torch.complex128), []
        for n in (TILE, (self.length - 1) % TILE + 1):
            found += [power(wide, n), n * power(wide, n - 1) if n > 1 else torch.ones_like(wide)]
        return _planes(torch.stack(found))

    def first(self, state: torch.Tensor | None) -> torch.Tensor:
        """The states before all tiles, and room for their derivative: 0."""
        found = self.states(2, dtype=torch.float64).zero_()
        if state is not None:
            found[0].copy_(_planes(state))
        return found

    def carry(self, local: torch.Tensor, state: torch.Tensor, adjoint: bool = False) -> torch.Tensor:
        """The states that every tile finds; `state` becomes what leaves the last one."""
        start, plane = torch.empty_like(local), self.modes * self.width
        factors = self.factors()
        if adjoint:
            factors[:, 1].neg_()
        if plane:
            _carry[(triton.cdiv(plane, 128), self.batch)](
                local, start, state, factors, self.batch, plane, self.tiles,
                ADJOINT=adjoint, TANGENT=local.shape[0] == 2, BLOCK=128, num_warps=4,
            )  # fmt: skip
        return start

    def starts(self, state: torch.Tensor, kinds: int) -> torch.Tensor:
        """(kinds, tiles, B, 2, S, W): x, or x and s, as every tile finds them."""
        local = self.states(kinds, self.tiles)
        _ahead[self.grid(self.tiles)](
            *self.sources, *[local] * 8, *self.z.stride()[:2], 0, 0, *self.sizes,
            SPEAKS=False, TANGENT=kinds == 2, **self.options,
        )  # fmt: skip
        return self.carry(local, state)


def forward(z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state):
    if not z.numel() or poles.shape[1] > MOST_MODES:
        args = (z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state)
        return eager.forward_by(short, modal, *args)
    sweep = _Sweep(z, weight, bias, poles, residues, skip, fir_state, groups)
    loop = sweep.tiles == 1 or sweep.batch * sweep.width >= RESIDENT * multiprocessors(z)
    state = sweep.first(initial_state)
    start = state[0].float() if loop else sweep.starts(state, 1)
    y, end = z.new_empty(*z.shape[:2], sweep.width), sweep.states()
    _mix[sweep.grid(1 if loop else sweep.tiles)](
        *sweep.sources, sweep.factors(), start, y, end, *sweep.z.stride()[:2], *sweep.sizes,
        LOOP=loop and sweep.tiles > 1, **sweep.options,
    )  # fmt: skip
    if not output_final_state:
        return y, z.new_empty(0), z.new_empty(0, dtype=torch.complex64)
    return y, final_state(z.mT, weight, fir_state), _numbers(end)


def backward(grads, outputs, *args, needs):
    z, weight, bias, poles, residues, skip, fir_state, initial_state, groups, output_final_state = args
    dy, dinputs, dstate = grads
    dstate = dstate if output_final_state else None
    if not z.numel() or poles.shape[1] > MOST_MODES:
        return eager.backward_by(short, modal, grads, *args, needs=needs)
    sweep = _Sweep(z, weight, bias, poles, residues, skip, fir_state, groups)
    dy = z.new_zeros(*z.shape[:2], sweep.width) if dy is None else dy
    dy = dy if dy.stride(2) == 1 else dy.contiguous()
    strides, grid = (*sweep.z.stride()[:2], *dy.stride()[:2]), sweep.grid(sweep.tiles)
    behind, filters = sweep.behind(dinputs if output_final_state else None), sweep.filter_shares()
    state, adjoint = sweep.first(initial_state), sweep.first(dstate)

    start, shares = sweep.starts(state, 2), sweep.states(2, sweep.tiles)
    skips = shares.new_empty(sweep.tiles, sweep.batch, sweep.width)
    _ahead[grid](
        *sweep.sources, start, dy, *behind, shares, skips, filters, *strides, *sweep.sizes,
        SPEAKS=True, TANGENT=True, **sweep.options,
    )  # fmt: skip
    local = sweep.states(1, sweep.tiles)
    _back[grid](
        *sweep.sources, local, dy, *behind, local, filters, *strides, *sweep.sizes, SPEAKS=False, **sweep.options
    )
    end = sweep.carry(local, adjoint, adjoint=True)
    _back[grid](*sweep.sources, end, dy, *behind, local, filters, *strides, *sweep.sizes, SPEAKS=True, **sweep.options)

    by_residues, by_poles = (_numbers(x).conj_physical() for x in shares.sum((1, 2), dtype=torch.float64))
    dpoles = by_poles * residues.conj()
    if dstate is not None:
        dpoles = dpoles + (dstate * _numbers(state[1]).conj()).sum(0)
    dbias, *dtaps = filters.sum((0, 1))
    dweight = torch.stack(dtaps[sweep.more :], 1)
    dfir = None if fir_state is None else behind[1][:, sweep.more :].mT
    return [behind[0], dweight, dbias, dpoles, by_residues, skips.sum((0, 1)), dfir, _numbers(adjoint[0])]


_TABLES = ("weight_ptr", "bias_ptr", "poles_ptr", "residues_ptr", "skip_ptr", "start_ptr", "end_ptr", "out_ptr")
_POINTERS = (
    dict.fromkeys(("z_ptr", "before_ptr", "y_ptr", "dy_ptr", "dz_ptr", "dbefore_ptr", "after_ptr"), "*bf16")
    | dict.fromkeys((*_TABLES, "skip_out_ptr", "filter_out_ptr", "local_ptr"), "*fp32")
    | dict.fromkeys(("step_ptr", "state_ptr", "factor_ptr"), "*fp64")
)
_TYPES = (
    _POINTERS
    | dict.fromkeys(("z_b", "z_t", "d_b", "d_t"), "i64")
    | dict.fromkeys(("part", "W", "L", "S", "B", "plane", "tiles"), "i32")
)
_CONSTANTS = {"K": 3, "T": TILE, "U": UNROLLED[0], "CH": 128, "SP": 8}
_ENTRIES = (
    (_mix, {"LOOP": True} | _CONSTANTS),
    (_ahead, {"SPEAKS": True, "TANGENT": True} | _CONSTANTS),
    (_back, {"SPEAKS": True} | _CONSTANTS),
    (_carry, {"ADJOINT": False, "TANGENT": True, "BLOCK": 128}),
)

#: What `triton.compile` needs to build each kernel with no GPU: (kernel, argument types, constants).
AHEAD_OF_TIME = tuple(
    (kernel, {name: _TYPES[name] for name in kernel.arg_names if name not in constants}, constants)
    for kernel, constants in _ENTRIES
)
