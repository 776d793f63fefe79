"""TensorBoard's event files of a run, on local or remote storage."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem
from torch.utils.tensorboard import SummaryWriter

from rayzero.storage import open_url
from rayzero.training.run_storage import patiently


class Events:
    """A ``SummaryWriter`` whose files reach a folder or URL.

    Files for an object store, which has no appending, are written on this machine and copied, as a whole, behind the
    back of training: a store that is away for a while must not stop a run. ``folder`` gets what was logged before the
    last ``flush`` that found the copy before it finished. What an earlier process logged of later steps than
    ``first_step`` is not shown: they are taken again.
    """

    def __init__(self, folder: str, *, first_step: int) -> None:
        self._fs, self._root = open_url(folder)
        remote = not isinstance(self._fs, LocalFileSystem)
        self._local = Path(tempfile.mkdtemp(prefix="rayzero-events-")) if remote else None
        # TensorBoard drops this step, too.
        self.writer = SummaryWriter(str(self._local or self._root), purge_step=first_step + 1)
        self._copier = ThreadPoolExecutor(1) if remote else None
        self._copying: Future[None] | None = None

    def flush(self) -> None:
        """Bring what was logged to the folder."""
        self.writer.flush()
        if self._copier is not None and (self._copying is None or self._copying.done()):
            self._copying = self._copier.submit(self._copy_quietly)

    def close(self) -> None:
        """Finish the files; waits until they are where they belong."""
        self.writer.close()
        if self._copier is not None:
            self._copier.shutdown()
            patiently(self._copy, "saving TensorBoard's events")

    def _copy(self) -> None:
        for path in sorted(self._local.glob("events*")) if self._local else []:
            self._fs.put_file(str(path), f"{self._root}/{path.name}")

    def _copy_quietly(self) -> None:
        try:
            self._copy()
        except (OSError, BotoCoreError) as error:
            print(f"TensorBoard's events are not saved for now: {error or type(error).__name__}", flush=True)
