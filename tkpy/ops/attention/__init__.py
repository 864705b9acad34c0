from tkpy.ops.attention.block_mask import BlockMask

__all__ = ["BlockMask"]
