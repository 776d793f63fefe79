"""A trace of a few steps for chrome://tracing or Perfetto."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch

from rayzero.storage import open_url
from rayzero.training.run_storage import patiently

_SKIPPED, _TRACED = 3, 3


class Profile:
    """Traces steps 4 to 6 that this worker takes, and writes ``trace.json`` to a folder or URL; None traces nothing."""

    def __init__(self, folder: str | None) -> None:
        self._folder, self._written = folder or "", False
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(skip_first=_SKIPPED - 1, wait=0, warmup=1, active=_TRACED, repeat=1)
        self._profiler = (
            torch.profiler.profile(
                activities=activities, schedule=schedule, on_trace_ready=self._write, profile_memory=True
            )
            if folder
            else None
        )

    def __enter__(self) -> Profile:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def step(self) -> None:
        """Tell that a step has ended."""
        if self._profiler is not None:
            self._profiler.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            if kind is None and not self._written:
                print(f"no profile: fewer than {_SKIPPED + 1} steps were left to take", flush=True)

    def _write(self, profiler: torch.profiler.profile) -> None:
        fs, root = open_url(self._folder)
        fs.makedirs(root, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            patiently(lambda: fs.put_file(str(path), f"{root}/trace.json"), "saving the profile")
        self._written = True
        print(f"profile of {_TRACED} steps: {self._folder}/trace.json", flush=True)
