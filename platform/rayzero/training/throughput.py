"""How much of the hardware a run uses: floating-point operations of a step, the device's peak, and memory."""

from __future__ import annotations

import resource
from typing import Any, cast

import torch
from torch.distributed import ProcessGroup
from torch.utils.flop_counter import FlopCounterMode

from rayzero.alignment.base import Batch, PretrainingModel
from rayzero.ops import similarity_attention
from rayzero.ops.recomputation import is_computed_again

# By the name that the driver gives them. Dense bf16 with fp32 accumulation, in operations per second, from NVIDIA's
# data sheets; of those that tell the rate with sparsity alone, half.
_PEAKS = {
    "A10": 125e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100-PCIE-40GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "L4": 121e12,
    "L40": 181.05e12,
    "L40S": 362.05e12,
    "RTX 6000 Ada Generation": 364.25e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100 80GB HBM3": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200 120GB": 989e12,
    "GH200 480GB": 989e12,
    "GH200 144G HBM3e": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}


def peak_flops(device: str) -> float | None:
    """The peak rate of the accelerator of exactly this name; None for one that is not listed.

    A part of a name tells nothing: an A10G has half the rate of an A10, and a MIG slice a part of its GPU's.
    """
    return _PEAKS.get(device.removeprefix("NVIDIA "))


class FlopCounter(FlopCounterMode):
    """Counts what is of use to a model; what a backward pass computes again to save memory is not."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_FORMULAS)

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        return out if is_computed_again() else super()._count_flops(func_packet, out, args, kwargs)


def model_flops(model: PretrainingModel, batch: Batch, group: ProcessGroup | None = None, *, bf16: bool = False) -> int:
    """Floating-point operations of this process for one step on ``batch``: forward and backward, multiply and add
    counted as two. Gradients, buffers and random generators are left as they were found.

    What is computed again to save memory is no use of the model, and not counted: give the model before
    ``recompute_activations``. ``vl_cabs`` counts as its plain formula, whichever code computes it, the other lean
    operations as they run.
    """
    device = batch.positives.device
    was_training = model.training
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            FlopCounter() as counter,
        ):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model.loss(batch, group)["loss"]
            loss.backward()
    finally:
        # Also of a pass that broke off for want of memory.
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        model.train(was_training)
    return cast("int", counter.get_total_flops())


def _added_product(total: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    return 2 * left.numel() * right[-1]


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


def _attention_backward(upstream: torch.Size, *shapes: Any, **_: object) -> int:
    # Each product has two gradients. Fused kernels compute the first product again, which torch's own formula counts.
    return 2 * _attention(*shapes)


_ATEN = torch.ops.aten
# What torch's counter does not know, cannot see into (GEMMs of Triton kernels), or counts otherwise.
_FORMULAS = {
    torch.ops.rayzero.vl_cabs: similarity_attention.forward_flops,
    torch.ops.rayzero.vl_cabs_backward: similarity_attention.backward_flops,
    _ATEN.addmm_: _added_product,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _ATEN._scaled_dot_product_flash_attention_backward: _attention_backward,
    _ATEN._scaled_dot_product_efficient_attention_backward: _attention_backward,
    _ATEN._scaled_dot_product_cudnn_attention_backward: _attention_backward,
}


def memory_gib() -> float:
    """Peak memory of this process so far: the device's where there is one, else the host's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
