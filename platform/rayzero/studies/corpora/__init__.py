"""Corpora by name. A new one is one file here and one line in ``_CORPORA``."""

from __future__ import annotations

from rayzero.config import nearest
from rayzero.studies.corpora.base import Corpus, FileRef, StudyRef, load, unique
from rayzero.studies.corpora.folder import FolderCorpus
from rayzero.studies.corpora.phantom import PhantomCorpus
from rayzero.studies.errors import CorpusError

__all__ = ["Corpus", "FileRef", "StudyRef", "corpus", "corpus_names", "load", "unique"]

_CORPORA: dict[str, Corpus] = {item.name: item for item in (PhantomCorpus(), FolderCorpus())}


def corpus(name: str) -> Corpus:
    """The corpus of that name. Raises CorpusError with the nearest valid name."""
    if name not in _CORPORA:
        raise CorpusError(f"unknown corpus {name!r}; {nearest(name, corpus_names())}")
    return _CORPORA[name]


def corpus_names() -> tuple[str, ...]:
    """The corpora that can be ingested."""
    return tuple(sorted(_CORPORA))
