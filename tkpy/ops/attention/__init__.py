"""Attention, and the block masks that let it skip keys."""

from tkpy.ops.attention.block_mask import BlockMask

__all__ = ["BlockMask"]
