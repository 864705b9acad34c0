"""Interfaces that people already use, over `tkpy.attention` and `tkpy.attention_decode`; docs/interop.md.

* `flash_attn_func` and its relatives: the signatures of flash-attn 2;
* `scaled_dot_product_attention`: torch's;
* `tkpy.interop.transformers.register()`: attn_implementation="tkpy" in Hugging Face transformers;
* `BlockMask.from_flex` and `.to_flex`: FlexAttention's block masks.

What tkpy cannot do (dropout, ALiBi, an additive mask) raises `tkpy.Unsupported` with the reason; nothing is ignored.
"""

from tkpy.interop.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from tkpy.interop.sdpa import scaled_dot_product_attention

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "scaled_dot_product_attention",
]
