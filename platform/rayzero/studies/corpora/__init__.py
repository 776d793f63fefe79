"""Corpora by name. A new one is one file here and one line in ``_ALL``."""

from __future__ import annotations

from rayzero.config import nearest
from rayzero.studies.corpora.base import Corpus, FileRef, StudyRef, load, unique
from rayzero.studies.corpora.bimcv import BimcvCovid19
from rayzero.studies.corpora.chestxdet import ChestXDet10
from rayzero.studies.corpora.chexpert import CheXpert
from rayzero.studies.corpora.chexpert_plus import CheXpertPlus
from rayzero.studies.corpora.chexpert_retrieval import CheXpert5x200, CheXpert8x200
from rayzero.studies.corpora.ct_rate import CtRate
from rayzero.studies.corpora.folder import FolderCorpus
from rayzero.studies.corpora.inspect_ct import Inspect
from rayzero.studies.corpora.mimic import MimicCxr
from rayzero.studies.corpora.mscxr import MsCxr, MsCxrMedRpg
from rayzero.studies.corpora.nih import NihChestXray14
from rayzero.studies.corpora.openi import OpenI
from rayzero.studies.corpora.padchest import PadChest
from rayzero.studies.corpora.phantom import PhantomCorpus
from rayzero.studies.corpora.rad_chestct import RadChestCt
from rayzero.studies.corpora.rsna import RsnaPneumonia
from rayzero.studies.corpora.siim import SiimPneumothorax
from rayzero.studies.corpora.vindr import VinDrCxr, VinDrCxrKaggle
from rayzero.studies.errors import CorpusError

__all__ = ["Corpus", "FileRef", "StudyRef", "corpus", "corpus_names", "load", "unique"]

_ALL: tuple[Corpus, ...] = (
    PhantomCorpus(),
    FolderCorpus(),
    MimicCxr("mimic-cxr", ".dcm", "chexpert"),
    MimicCxr("mimic-cxr-jpg", ".jpg", "chexpert"),
    MimicCxr("mimic-cxr-jpg-negbio", ".jpg", "negbio"),
    MsCxr(),
    MsCxrMedRpg(),
    CheXpert(),
    CheXpertPlus(),
    CheXpert5x200(),
    CheXpert8x200(),
    PadChest(),
    OpenI(),
    NihChestXray14("nih-chestxray14"),
    NihChestXray14("nih-chestxray14-community", community=True),
    RsnaPneumonia("rsna-pneumonia"),
    RsnaPneumonia("rsna-pneumonia-medklip", "medklip"),
    RsnaPneumonia("rsna-pneumonia-alta", "alta"),
    SiimPneumothorax(),
    VinDrCxr(),
    VinDrCxrKaggle(),
    ChestXDet10(),
    CtRate("ct-rate", fixed=False),
    CtRate("ct-rate-fixed", fixed=True),
    RadChestCt(),
    Inspect(),
    BimcvCovid19("bimcv-covid19-cxr", "radiograph"),
    BimcvCovid19("bimcv-covid19", "ct"),
)
_CORPORA = {item.name: item for item in _ALL}


def corpus(name: str) -> Corpus:
    """The corpus of that name. Raises CorpusError with the nearest valid name."""
    if name not in _CORPORA:
        raise CorpusError(f"unknown corpus {name!r}; {nearest(name, corpus_names())}")
    return _CORPORA[name]


def corpus_names() -> tuple[str, ...]:
    """The corpora that can be ingested."""
    return tuple(sorted(_CORPORA))
