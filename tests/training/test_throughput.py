"""What a run says of its use of the hardware."""

from __future__ import annotations

import pytest

from rayzero.training.throughput import peak_flops


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181.05e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.25e12),
    ],
)
def test_the_peak_is_of_that_very_device(device: str, peak: float) -> None:
    assert peak_flops(device) == peak


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA RTX 6000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "GRID A100-40C",
        "NVIDIA B2000",
        "a CPU",
        "",
    ],
)
def test_an_unlisted_device_has_no_peak(device: str) -> None:
    assert peak_flops(device) is None
