"""modal_conv in complex128, one step of the recurrence at a time."""

import torch


def forward(u, poles, residues, skip, pre_gate, post_gate, initial_state, output_final_state):
    p, r = poles.to(torch.complex128), residues.to(torch.complex128)
    v = u.double() if pre_gate is None else u.double() * pre_gate.double()
    batch, channels, length = u.shape
    state = p.new_zeros(batch, *p.shape) if initial_state is None else initial_state.to(torch.complex128)
    steps = [v.new_zeros(batch, channels, 0)]
    for t in range(length):
        state = p * state + v[:, :, t, None]
        steps.append((r * state).real.sum(-1, keepdim=True))
    y = torch.cat(steps, -1)
    if skip is not None:
        y = y + skip.double()[:, None] * v
    if post_gate is not None:
        y = post_gate.double() * y
    state_dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    if not output_final_state:
        state = state.new_empty(0)
    return y.to(u.dtype), state.to(state_dtype)
