"""What hyena_mixer and hyena_step have in common: the arguments of a Hyena layer with modal filters."""

from __future__ import annotations

import torch

from tkpy.arguments import Arguments

COMPLEX = (torch.complex64, torch.complex128)
MAX_TAPS = 8


def check_layer(
    check: Arguments,
    z: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    poles: torch.Tensor,
    residues: torch.Tensor,
    skip: torch.Tensor | None,
    groups: int,
    fir_state: torch.Tensor | None,
    **state: torch.Tensor | None,
) -> None:
    """All but z's own shape, which ends in 3 W and has been checked; `state` is one argument, by its name."""
    check.tensor("weight", weight, "3W K")
    check.that(1 <= weight.shape[1] <= MAX_TAPS, "weight", f"of 1 to {MAX_TAPS} taps", weight)
    check.tensor("bias", bias, "3W", optional=True)
    check.tensor("poles", poles, "W S", dtypes=COMPLEX)
    check.tensor("residues", residues, "W S", dtypes=COMPLEX)
    width = poles.shape[0]
    check.that(z.shape[-1] == 3 * width, "z", f"of three channels for each row of 'poles' {width}", z)
    check.tensor("skip", skip, "W", optional=True)
    check.sizes["K-1"] = weight.shape[1] - 1
    check.tensor("fir_state", fir_state, "B 3W K-1", optional=True)
    for name, tensor in state.items():
        check.tensor(name, tensor, "B W S", dtypes=COMPLEX, optional=True)
    check.same_device()
    check.same_dtype("z", "fir_state")
    check.same_dtype("poles", "residues")
    check.integer("groups", groups, minimum=1)
    check.that(width % groups == 0, "groups", f"a divisor of the width {width}", groups)
