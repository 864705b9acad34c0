"""The attention kernels on a machine of the test's choice, against the op's float64 reference."""

from __future__ import annotations

from pathlib import Path

import torch

import tkpy
from tkpy import build_info, machine, numerics, registry

MODULES = tuple(f"hd{width}" for width in range(32, 257, 32))
BLOCK_MODULES = tuple(f"{module}_blocks{block}" for module in MODULES for block in (64, 128))
BACKWARD_MODULES = ("rows", *MODULES, "hd192x128")
BACKWARD_BLOCK_MODULES = (
    *(f"hd{width}_blocks{block}" for width in (32, 64, 96, 128) for block in (64, 128)),
    *(f"hd{width}_blocks" for width in (160, "192x128", 192, 224, 256)),
)
OP = registry.get("attention")


def gather(folder: Path, parts: list[Path]) -> Path:
    """One folder with the files of all parts: a machine has one folder."""
    for part in parts:
        for path in part.iterdir():
            if path.suffix in (".ptx", ".cubin", ".json") and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def on_machine(monkeypatch, folder: Path, seed: int = 0, multiprocessors: int = 132) -> None:
    """Launches of this test go to an emulator with this seed and so many multiprocessors (persistent CTAs)."""
    from tkpy import _C

    made = _C.Machine.emulator(str(folder), seed=seed, multiprocessors=multiprocessors, threads=2)
    monkeypatch.setattr(build_info, "KERNELS", folder)
    monkeypatch.setattr(machine, "_machine", lambda kind, folder: made)


def inputs(b, sq, sk, h, hkv, d, dv=None, dtype=torch.bfloat16, seed=0, **options):
    make = registry.Maker(dtype, seed=seed)
    return {
        "q": make.randn(b, sq, h, d),
        "k": make.randn(b, sk, hkv, d),
        "v": make.randn(b, sk, hkv, dv or d),
        **options,
    }


def block_mask(b, h, sq, sk, block, seed=0, full=0.3, partial=0.3, bits=0.5, empty=None) -> tkpy.BlockMask:
    """Blocks that are full, partial (`bits` of their pairs seen) or neither, at random; row `empty` has none."""
    make = torch.Generator().manual_seed(seed)
    kind = torch.rand(b, h, -(-sq // block), -(-sk // block), generator=make)
    if empty is not None:
        kind[:, :, empty] = 2.0
    pair = torch.rand(b, h, sq, sk, generator=make)

    def seen(b, h, q, k):
        x = kind[b, h, q // block, k // block]
        return (x < full) | ((x > 1 - partial) & (x < 1) & (pair[b, h, q, k] < bits))

    return tkpy.BlockMask.from_predicate(seen, sq, sk, block, batch=b, heads=h)


def packed(lengths_q, lengths_k, h=2, hkv=1, d=64, dv=None, dtype=torch.bfloat16, seed=0, **options):
    make = registry.Maker(dtype, seed=seed)
    offsets = [torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int() for lengths in (lengths_q, lengths_k)]
    tensors = {name: make.randn(sum(n), heads, width) for name, n, heads, width in
               (("q", lengths_q, h, d), ("k", lengths_k, hkv, d), ("v", lengths_k, hkv, dv or d))}  # fmt: skip
    return {**tensors, "cu_seqlens_q": offsets[0], "cu_seqlens_k": offsets[1], **options}


def wide(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def disagreement(kwargs, backend: str = "emulator", op=tkpy.attention) -> str:
    """Empty if out and lse agree with float64; the tolerance is the dtype's own."""
    with torch.no_grad():
        got = op(**kwargs, return_lse=True, backend=backend)
        want = op(**{k: wide(v) for k, v in kwargs.items()}, return_lse=True, backend="reference")
    tolerances = (numerics.TOLERANCE[kwargs["q"].dtype], 1e-5)
    for name, a, b, tolerance in zip(("out", "lse"), got, want, tolerances, strict=True):
        comparison = numerics.compare(a, b, tolerance)
        if not comparison:
            return f"{name}: {comparison}"
    return ""


def cotangents(out: torch.Tensor, lse: torch.Tensor) -> list[torch.Tensor]:
    """Random, values that every dtype holds; a row that sees no key has a constant lse."""
    make = torch.Generator().manual_seed(1)
    dout, dlse = (torch.randn(t.shape, generator=make).bfloat16() for t in (out, lse))
    return [dout.to(out), torch.where(lse.isfinite(), dlse.to(lse), 0.0)]


def gradients(kwargs, backend: str) -> dict[str, torch.Tensor]:
    """Of every floating input."""
    kwargs = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    floating = (k for k, v in kwargs.items() if isinstance(v, torch.Tensor) and v.is_floating_point())
    leaves = {name: kwargs[name].requires_grad_(True) for name in floating}
    outputs = tkpy.attention(**kwargs, return_lse=True, backend=backend)
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents(*outputs))
    return dict(zip(leaves, found, strict=True))


def wrong_gradient(kwargs, backend: str = "emulator") -> str:
    """Empty if all gradients agree with float64."""
    got = gradients(kwargs, backend)
    want = gradients({k: wide(v) for k, v in kwargs.items()}, "reference")
    for name, gradient in got.items():
        comparison = numerics.compare(gradient, want[name], numerics.TOLERANCE[kwargs["q"].dtype])
        if not comparison:
            return f"{name}: {comparison}"
    return ""
