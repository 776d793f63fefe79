"""Exact, memory-lean kernels that the systems stand on, usable on their own."""

from rayzero.ops.contrastive import multi_positive_nce
from rayzero.ops.local_alignment import local_alignment
from rayzero.ops.matching import matching_loss
from rayzero.ops.similarity_attention import vl_cabs

__all__ = ["local_alignment", "matching_loss", "multi_positive_nce", "vl_cabs"]
