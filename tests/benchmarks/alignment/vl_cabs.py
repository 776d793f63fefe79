"""VL-CABS at RadZero's sizes: 64 images of 518 px on a CPU; the published global batch of 256 on a GPU, in bf16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rayzero.ops.similarity_attention import vl_cabs, vl_cabs_reference
from tests.benchmarks.alignment.case import Case
from tests.benchmarks.harness import Problem, Row, paired_seconds

_TOKENS, _WIDTH = 1370, 768
_GPU_IMAGES, _GPU_TEXTS = 256, 1651


def on_cpu(device: torch.device) -> Problem:
    """64 images, 6.45 sentences each."""
    return _problem(64, 413, device, torch.float32)


def on_gpu(device: torch.device) -> Problem:
    """256 images, 6.45 sentences each."""
    return _problem(_GPU_IMAGES, _GPU_TEXTS, device, torch.bfloat16)


def _problem(images: int, texts: int, device: torch.device, dtype: torch.dtype) -> Problem:
    torch.manual_seed(0)
    text, tokens = (_unit(shape, device, dtype) for shape in ((texts, _WIDTH), (images, _TOKENS, _WIDTH)))
    temperature = torch.full((1,), 0.07, device=device, requires_grad=True)
    return Problem(
        ours=lambda: vl_cabs(text, tokens, temperature),
        other=lambda: vl_cabs_reference(text, tokens, temperature.to(dtype)),
        inputs=(text, tokens, temperature),
    )


def _unit(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(shape, device=device), dim=-1).to(dtype).requires_grad_()


def _share_of_matmul_rate(device: str, problem: Problem, seconds: float) -> list[Row]:
    """Useful floating-point operations per second, against the card's own rate for one large bf16 GEMM.

    Useful is what the plain formula needs: 4 B T N D forward and twice that backward. Recomputed scores do not count.
    """
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    seconds_of_gemm, _ = paired_seconds(lambda: square @ square, lambda: square @ square, device=device)
    useful = 12 * _GPU_IMAGES * _GPU_TEXTS * _TOKENS * _WIDTH / seconds
    return [
        Row(
            "vl_cabs_gpu: useful FLOP/s of the measured matmul rate",
            useful,
            2 * 8192**3 / seconds_of_gemm,
            0.4,
            "higher",
        )
    ]


CASES = [
    Case("vl_cabs", on_cpu, saved=1 / 50, peak=1 / 5, seconds=0.9),
    Case("vl_cabs_gpu", on_gpu, saved=1 / 50, seconds=1 / 3, devices=("cuda",), extra=_share_of_matmul_rate),
]
