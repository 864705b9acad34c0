"""The layers that the architectures are assembled from, each usable alone."""

from tkpy.nn.attention import Attention, MaskProvider
from tkpy.nn.cache import Cache
from tkpy.nn.common import GatedMLP, HeadEdit, LayerNorm, Linear, LinearClass, RMSNorm, bare
from tkpy.nn.generation import generate, sample, score, token_logprobs
from tkpy.nn.hyena import HyenaMixer, ModalFilter
from tkpy.nn.monarch import BlockdiagLinear, HyenaFilter, MonarchMixer, MonarchMLP
from tkpy.nn.rwkv5 import ChannelMix, TimeMix
from tkpy.nn.wordpiece import WordPiece
from tkpy.nn.world_tokenizer import WorldTokenizer

__all__ = [
    "Attention",
    "BlockdiagLinear",
    "Cache",
    "ChannelMix",
    "GatedMLP",
    "HeadEdit",
    "HyenaFilter",
    "HyenaMixer",
    "LayerNorm",
    "Linear",
    "LinearClass",
    "MaskProvider",
    "ModalFilter",
    "MonarchMLP",
    "MonarchMixer",
    "RMSNorm",
    "TimeMix",
    "WordPiece",
    "WorldTokenizer",
    "bare",
    "generate",
    "sample",
    "score",
    "token_logprobs",
]
