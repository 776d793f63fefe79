"""What all benchmarks share: bytes saved, peak memory, paired timings, the table, the JSON with bars."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """Two ways to compute the same tensor, and the tensors that both start from.

    ``inputs`` are shared by both; those that require a gradient get one. List parameters of modules here too.
    """

    ours: Work
    other: Work
    inputs: Sequence[Tensor]


@dataclass(frozen=True)
class Row:
    """One measured figure. ``bar`` bounds the ratio ours / other, or ``ours`` itself where there is no other."""

    figure: str
    ours: float
    other: float | None = None
    bar: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def ratio(self) -> float | None:
        """Ours over the other; None where there is no other."""
        return None if self.other is None else self.ours / self.other

    @property
    def ok(self) -> bool | None:
        """Whether the bar is reached; None where there is none."""
        if self.bar is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value <= self.bar if self.better == "lower" else value >= self.bar


def saved_bytes(forward: Work, inputs: Sequence[Tensor]) -> int:
    """Bytes of distinct storage that autograd keeps for the backward pass, the inputs' own storage left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = forward()  # the graph stays alive until the sum, so that no address is used twice
        total = sum(kept.values())
    del alive
    return total


def forward_backward(forward: Work, inputs: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output and the gradients of its sum with respect to the inputs that require one."""
    output = forward()
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return output, torch.autograd.grad(output.sum(), leaves, allow_unused=True)


def peak_bytes(build: Callable[[torch.device], Problem], which: Literal["ours", "other"], device: str = "cpu") -> int:
    """Peak memory of one forward and backward pass in a fresh process, above the inputs and their gradients.

    On a CPU this is the peak of the resident set as the kernel counts it (Linux), on CUDA that of the allocator.
    ``build`` must be importable by name.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, build, which, device).result()


def paired_seconds(
    ours: Callable[[], Any], other: Callable[[], Any], *, rounds: int = 7, device: str = "cpu"
) -> tuple[float, float]:
    """Median wall seconds of each, after one round that is not timed; see ``paired_medians``."""
    for work in (ours, other):
        work()
    return paired_medians(lambda: seconds(ours, device), lambda: seconds(other, device), rounds=rounds)


def paired_medians(ours: Callable[[], float], other: Callable[[], float], *, rounds: int) -> tuple[float, float]:
    """Median of what each measures, in turn so that whatever else the machine does weighs on both alike."""
    figures: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            figures[which].append((ours, other)[which]())
    return statistics.median(figures[0]), statistics.median(figures[1])


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Wall seconds of one call, the device's own work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(benchmark: str, rows: Sequence[Row], out: Path | None, *, note: str = "") -> bool:
    """Print the table and write it to ``out`` as JSON where asked. Returns whether every bar is reached."""
    width = max((len(row.figure) for row in rows), default=6)
    print(f"{'figure':{width}} {'ours':>12} {'other':>12} {'ratio':>9} {'bar':>11}  ok")
    for row in rows:
        sign = "<=" if row.better == "lower" else ">="
        bar = "" if row.bar is None else f"{sign} {row.bar:.4g}"
        verdict = {True: "yes", False: "NO", None: ""}[row.ok]
        print(
            f"{row.figure:{width}} {_short(row.ours):>12} {_short(row.other):>12} {_short(row.ratio):>9} {bar:>11}  "
            f"{verdict}"
        )
    reached = all(row.ok is not False for row in rows)
    if out is not None:
        document = {
            "benchmark": benchmark,
            "machine": machine(),
            "note": note,
            "rows": [{**asdict(row), "ratio": row.ratio, "ok": row.ok} for row in rows],
            "ok": reached,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n")
    return reached


def machine() -> dict[str, object]:
    """The hardware and the versions that a figure was measured on."""
    info: dict[str, object] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
        info["cuda"] = torch.version.cuda
    return info


def _peak_here(build: Callable[[torch.device], Problem], which: str, device: str) -> int:
    problem = build(torch.device(device))
    # Thread pools and the matrix library's buffers belong to no variant.
    warm = torch.randn(512, 512, device=device, requires_grad=True)
    torch.autograd.grad((warm @ warm).exp().sum(), warm)
    if device == "cpu":
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    else:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    _, gradients = forward_backward(getattr(problem, which), problem.inputs)
    if device == "cpu":
        peak = _status("VmHWM")
    else:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    return max(0, peak - before - sum(g.untyped_storage().nbytes() for g in gradients if g is not None))


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory of a CPU is measured on Linux only")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def _short(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g} {unit}"
    return f"{value:.4g}"
