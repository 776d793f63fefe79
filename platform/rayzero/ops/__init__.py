"""Exact, memory-lean kernels that the systems stand on, usable on their own."""

from rayzero.ops.contrastive import multi_positive_nce
from rayzero.ops.similarity_attention import vl_cabs

__all__ = ["multi_positive_nce", "vl_cabs"]
