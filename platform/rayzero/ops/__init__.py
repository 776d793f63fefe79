"""Exact, memory-lean kernels that the systems stand on, usable on their own."""

from rayzero.ops.bank_attention import knowledge_bank
from rayzero.ops.contrastive import info_nce, multi_positive_nce, sigmoid_nce
from rayzero.ops.local_alignment import local_alignment
from rayzero.ops.similarity_attention import vl_cabs

__all__ = [
    "info_nce",
    "knowledge_bank",
    "local_alignment",
    "multi_positive_nce",
    "sigmoid_nce",
    "vl_cabs",
]
