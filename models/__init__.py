"""The architectures: one readable file each, assembled from public tkpy; imported as `tkpy.models`."""

from tkpy.models.m2_bert import M2Bert, M2BertConfig, M2BertOutput
from tkpy.models.mutagenesis import mutation_effects
from tkpy.models.rwkv5 import RWKV5, RWKV5Config
from tkpy.models.sparse_transformer import SparseTransformer, SparseTransformerConfig, TopBlocks
from tkpy.models.striped_hyena import CharTokenizer, StripedHyena, StripedHyenaConfig

__all__ = [
    "RWKV5",
    "CharTokenizer",
    "M2Bert",
    "M2BertConfig",
    "M2BertOutput",
    "RWKV5Config",
    "SparseTransformer",
    "SparseTransformerConfig",
    "StripedHyena",
    "StripedHyenaConfig",
    "TopBlocks",
    "mutation_effects",
]
