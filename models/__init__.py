"""The architectures: one readable file each, assembled from public tkpy; imported as `tkpy.models`."""

from tkpy.models.m2_bert import M2Bert, M2BertConfig, M2BertOutput
from tkpy.models.rwkv5 import RWKV5, RWKV5Config
from tkpy.models.sparse_transformer import SparseTransformer, SparseTransformerConfig, TopBlocks

__all__ = [
    "RWKV5",
    "M2Bert",
    "M2BertConfig",
    "M2BertOutput",
    "RWKV5Config",
    "SparseTransformer",
    "SparseTransformerConfig",
    "TopBlocks",
]
