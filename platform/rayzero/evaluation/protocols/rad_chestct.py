"""RAD-ChestCT: the 16 findings that it shares with CT-RATE, and the 56 of its long tail (datasets spec, 2.9)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import VOLUME, Benchmark, Target
from rayzero.evaluation.measures import answers, areas, measure, top_labels
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.ct_rate import LABELS as CT_RATE
from rayzero.studies.corpora.rad_chestct import CT_RATE_CLASSES

_CALCIFICATIONS = ("Arterial wall calcification", "Coronary artery wall calcification")
# What the prompt says, where it is not the label with blanks and strokes for underscores.
_LABELS = {
    "CABG": "cabg", "scattered calcifications": "scattered_calc", "valve replacement": "heart_valve_replacement",
    "ground-glass": "groundglass", "post-surgical": "postsurgical", "CAD": "coronary_artery_disease",
    "abnormal density": "density", "ILD": "interstitial_lung_disease", "scattered nodules": "scattered_nod",
    "band-like/linear": "bandlike_or_linear", "tree-in-bud": "tree_in_bud",
}  # fmt: skip
PROMPTED = (
    "catheter/port", "pleural thickening", "CABG", "infection", "tree-in-bud", "lung resection", "debris",
    "air trapping", "cavitation", "scattered calcifications", "hemothorax", "valve replacement", "dilation/ectasia",
    "sternotomy", "lesion", "deformity", "fibrosis", "bronchiolitis", "ground-glass", "tuberculosis",
    "mucous plugging", "hardware", "mass", "pulmonary edema", "lucency", "arthritis", "pneumonia", "inflammation",
    "bronchitis", "fracture", "secretion", "congestion", "soft tissue", "breast implant", "breast surgery",
    "chest tube", "aspiration", "post-surgical", "pneumothorax", "tracheal tube", "honeycombing", "airspace disease",
    "heart failure", "plaque", "GI tube", "reticulation", "aneurysm", "staples", "CAD", "pacemaker", "distention",
    "infiltrate", "transplant", "clip", "abnormal density", "ILD", "scattered nodules", "suture", "bronchiolectasis",
    "atherosclerosis", "stent", "cyst", "band-like/linear", "pericardial thickening", "granuloma", "pneumonitis",
    "cancer",
)  # fmt: skip
"""The 67 published prompts, in the order of the columns of published scores."""
DEVICES = frozenset(
    {
        "catheter/port", "hardware", "breast implant", "chest tube", "tracheal tube", "GI tube", "staples",
        "pacemaker", "clip", "suture", "stent",
    }
)  # fmt: skip
LONG_TAIL = tuple(name for name in PROMPTED if name not in DEVICES)
"""The 56 that are scored: devices and materials are left out."""
_ALL = (
    "Papers measure all 3,630 volumes that are public, and so are these figures: not for a model that was trained on "
    "some of them."
)


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("/", "_or_").replace(" ", "_"))


publish(
    Benchmark(
        name="rad-chestct",
        title="RAD-ChestCT, the 16 findings shared with CT-RATE",
        corpora=("rad-chestct",),
        targets=tuple(
            Target(name, _CALCIFICATIONS if name == "Calcification" else (), labels)
            for name, labels in CT_RATE_CLASSES.items()
        ),
        views=VOLUME,
        columns=CT_RATE,
        tuned=True,
        every_split=True,
        measures=(areas, measure(answers, criterion="corner"), top_labels),
        reference={
            "macro_auroc": {
                "CT-CLIP": 0.629, "VocabFine": 0.650, "fVLM": 0.644, "MedVista3D": 0.710, "BIUD": 0.629, "EXACT": 0.728,
            }
        },
        quirks=(
            "The score of Calcification is the higher one of CT-RATE's two.",
            _ALL,
        ),
    )
)  # fmt: skip
publish(
    Benchmark(
        name="rad-chestct-lt",
        title="RAD-ChestCT, its long tail without devices",
        corpora=("rad-chestct",),
        targets=tuple(Target(name, (), (_label(name),)) for name in LONG_TAIL),
        views=VOLUME,
        columns=PROMPTED,
        tuned=True,
        every_split=True,
        measures=(areas, measure(answers, criterion="corner"), top_labels),
        quirks=(_ALL,),
    )
)
