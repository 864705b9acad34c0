"""The layers that the architectures are assembled from, each usable alone."""

from tkpy.nn.cache import Cache
from tkpy.nn.common import GatedMLP, HeadEdit, LayerNorm, Linear, LinearClass, RMSNorm
from tkpy.nn.generation import generate, sample, score, token_logprobs

__all__ = [
    "Cache",
    "GatedMLP",
    "HeadEdit",
    "LayerNorm",
    "Linear",
    "LinearClass",
    "RMSNorm",
    "generate",
    "sample",
    "score",
    "token_logprobs",
]
