"""Calls of attention_fp8 for the tests of its kernel, against the op's float64 reference of the quantised inputs."""

from __future__ import annotations

import torch

import tkpy
from tkpy import numerics, registry
from tkpy.conformance import widen

OP = registry.get("attention_fp8")
MODULES = tuple(f"hd{width}" for width in range(32, 257, 32))


def inputs(b, sq, sk, h, hkv, d, dv=None, *, seed=0, **options):
    """Quantised in blocks whose rows grow, so that scales differ."""
    make = registry.Maker(torch.float32, seed=seed)
    found = {}
    for name, rows, heads, width in (("q", sq, h, d), ("k", sk, hkv, d), ("v", sk, hkv, dv or d)):
        growth = torch.exp2(torch.arange(rows) // 128 % 4).view(1, rows, 1, 1)
        x = make.randn(b, rows, heads, width) * (growth if name == "v" else growth.rsqrt())
        found[name], found[f"descale_{name}"] = tkpy.quantize_blocks(x)
    return {**found, **options}


def packed(lengths_q, lengths_k, h=2, hkv=1, d=64, dv=None, *, seed=0, **options):
    """Packed sequences, quantised in blocks; every sequence and block of a size of its own."""
    make = registry.Maker(torch.float32, seed=seed)
    found = {}
    for name, lengths, heads, width in (
        ("q", lengths_q, h, d),
        ("k", lengths_k, hkv, d),
        ("v", lengths_k, hkv, dv or d),
    ):
        offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
        step = torch.cat([torch.arange(n) // 128 + 2 * i for i, n in enumerate(lengths)])
        growth = torch.exp2(step % 5).view(-1, 1, 1)
        x = make.randn(sum(lengths), heads, width) * (growth if name == "v" else growth.rsqrt())
        found[name], found[f"descale_{name}"] = tkpy.quantize_blocks(x, offsets)
        found["cu_seqlens_q" if name == "q" else "cu_seqlens_k"] = offsets
    return {**found, **options}


def one_by_one(kwargs, op=tkpy.attention_fp8, **options):
    """(out, lse) of packed sequences, each as a batch of its own by the op's unpacked form."""
    kwargs = dict(kwargs)
    offsets = {letter: kwargs.pop(f"cu_seqlens_{letter}") for letter in "qk"}
    outs, lses = [], []
    for n in range(len(offsets["q"]) - 1):
        part = {}
        for name, letter in (("q", "q"), ("k", "k"), ("v", "k")):
            begin, end = int(offsets[letter][n]), int(offsets[letter][n + 1])
            part[name] = kwargs[name][None, begin:end]
            first, blocks = begin // 128 + n, -(-(end - begin) // 128)
            part[f"descale_{name}"] = kwargs[f"descale_{name}"][None, :, first : first + blocks]
        out, lse = op(**{**kwargs, **part}, return_lse=True, **options)
        outs.append(out[0])
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


def disagreement(kwargs, poisoned: range = range(0)) -> str:
    """Empty if out and lse agree with float64, in all rows but the `poisoned` ones, where q, k and v are then NaN."""
    given = dict(kwargs)
    if poisoned:
        for name in "qkv":
            given[name] = kwargs[name].float()
            given[name][poisoned.start : poisoned.stop] = float("nan")
            given[name] = given[name].to(torch.float8_e4m3fn)
    with torch.no_grad():
        got = tkpy.attention_fp8(**given, return_lse=True, backend="emulator")
        want = tkpy.attention_fp8(**widen(kwargs), return_lse=True, backend="reference")
    tolerances = (numerics.TOLERANCE[torch.float8_e4m3fn], 1e-5)
    for name, a, b, tolerance in zip(("out", "lse"), got, want, tolerances, strict=True):
        if poisoned:
            rows = [i for i in range(kwargs["q"].shape[0]) if i not in poisoned]
            a, b = ((t[rows] if name == "out" else t[:, rows]) for t in (a, b))
        comparison = numerics.compare(a, b, tolerance)
        if not comparison:
            return f"{name}: {comparison}"
    return ""
