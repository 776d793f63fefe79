"""Answers on disk or in an object store, one small file each, by a hash of all that decided them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from fsspec.implementations.local import LocalFileSystem

from rayzero.errors import first_line
from rayzero.reports.extraction.base import ExtractionError
from rayzero.reports.extraction.styles import Style, report_text
from rayzero.storage import make_parent, open_url, whole_file
from rayzero.studies.study import Report, Sentence

_BUFFER = 64
"""Answers written to an object store at once, side by side: one at a time its latency would set the pace."""


class AnswerCache:
    """Sentences by (strategy, style and its version, text). Only answers are kept, never fallbacks.

    A file that is damaged counts as absent and is written anew.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._fs, self._root = open_url(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._pending: dict[str, bytes] = {}

    def get(self, keys: Iterable[str]) -> dict[str, tuple[Sentence, ...]]:
        """The sentences of those of ``keys`` that are kept; read side by side where the store can.

        Raises ExtractionError when the store does not answer.
        """
        paths = {self._path(key): key for key in keys}
        read = self._fs.cat(list(paths), on_error="return") if paths else {}
        for path in [path for path, data in read.items() if isinstance(data, FileNotFoundError)]:
            del read[path]
        if error := next((data for data in read.values() if isinstance(data, Exception)), None):
            # Taken for absent, every answer would be paid for once more.
            raise ExtractionError(
                f"the cache of answers at {self._url} cannot be read ({first_line(error)}); see that its store is "
                "reachable and that the key may read and list it"
            ) from error
        found = {paths[path]: _decode(data) for path, data in read.items()}
        return {key: sentences for key, sentences in found.items() if sentences is not None}

    def put(self, key: str, sentences: tuple[Sentence, ...]) -> None:
        """Keep ``sentences``; a reader never sees half a file. In an object store they may wait for ``flush``."""
        data = json.dumps({"sentences": [vars(sentence) for sentence in sentences]}).encode()
        path = self._path(key)
        if self._local:
            make_parent(self._fs, path)
            with whole_file(self._fs, path) as file:
                file.write(data)
            return
        self._pending[path] = data
        if len(self._pending) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._pending:
            self._fs.pipe(self._pending)
            self._pending = {}

    def _path(self, key: str) -> str:
        return f"{self._root}/{key[:2]}/{key}.json"


def cache_key(report: Report, style: Style, identity: Mapping[str, object]) -> str:
    """A hash of the text that is read, the style and its version, and the strategy's identity."""
    parts = [report_text(report), style.name, style.version, dict(identity)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _decode(data: bytes) -> tuple[Sentence, ...] | None:
    try:
        return tuple(Sentence(**sentence) for sentence in json.loads(data)["sentences"])
    except (ValueError, KeyError, TypeError):
        return None
