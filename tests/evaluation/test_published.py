"""What papers did and report, written down again from the tables of the datasets spec, against the protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rayzero.config import EvaluationConfig
from rayzero.evaluation.benchmark import Benchmark, Measured, Target
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.protocols import padchest, rad_chestct, registry
from rayzero.evaluation.protocols.registry import find_protocol, protocol_names
from rayzero.evaluation.rankings import label_overlap
from rayzero.evaluation.records import ImageScores
from rayzero.evaluation.scores import evaluate_scores
from rayzero.evaluation.sections import Scored
from rayzero.evaluation.truth import Truth
from rayzero.studies.corpora.padchest import TAIL_COUNT
from rayzero.studies.study import Study


def benchmark(name: str) -> Benchmark:
    found = find_protocol(name).benchmark
    assert found is not None
    return found


_AUROC = """
method       open-i padchest padchest20 chestxray14 chexpert chestxdet10 siim rsna-medklip
GLoRIA       .589   .565     .558       .610        .750     .645        -    -
BioViL-T     .702   .655     .608       .729        .789     .708        -    -
MedKLIP      .759   .629     .688       .726        .879     .713        .897 .869
KAD          .807   .750     .735       .789        .905     .735        -    -
CARZero      .838   .810     .837       .811        .923     .796        .924 .747
RadZero_224  .851   .841     .879       .807        .903     .785        .914 .839
RadZero_518  .847   .841     .871       .804        .900     .787        .924 .834
AlphaRAD     -      .873     -          .808        .893     .797        .948 .841
"""
_OTHERS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("vindr-cxr", "macro_auroc"): {"AlphaRAD": 0.924},
    ("vindr-cxr", "pointing"): {"AlphaRAD": 0.554},
    ("chestxdet10", "pointing"): {
        "GLoRIA": 0.367, "KAD": 0.391, "BioViL-T": 0.351, "MedKLIP": 0.481, "CARZero": 0.543, "RadZero 224": 0.537,
        "RadZero 518": 0.622, "AlphaRAD": 0.669,
    },
    ("ms-cxr-medrpg", "pointing"): {
        "BioViL-T": 0.719, "MedKLIP": 0.407, "CARZero": 0.749, "RadZero 224": 0.832, "RadZero 518": 0.844,
    },
    ("rsna-medklip", "dice"): {
        "GLoRIA": 0.347, "BioViL": 0.439, "MedKLIP": 0.465, "G2D": 0.477, "CARZero": 0.540, "CARZero, logits": 0.529,
        "RadZero 224": 0.562, "RadZero 518": 0.546,
    },
    ("siim", "dice"): {
        "MedKLIP": 0.044, "G2D": 0.051, "CARZero": 0.100, "CARZero, logits": 0.081, "RadZero 224": 0.121,
        "RadZero 518": 0.171, "AlphaRAD": 0.229,
    },
    ("siim", "pixel_auroc"): {
        "MedKLIP": 0.648, "CARZero": 0.856, "CARZero, logits": 0.928, "RadZero 224": 0.943, "RadZero 518": 0.947,
    },
    ("chexpert-5x200", "accuracy"): {"AlphaRAD": 0.760},
    ("chexpert-5x200", "precision_at_100"): {"GLoRIA": 0.5378, "ConVIRT": 0.4903, "VSE++": 0.2689, "DSVE": 0.2474},
    ("ct-rate", "macro_auroc"): {
        "CT-CLIP": 0.731, "VocabFine": 0.756, "BIUD": 0.713, "Merlin": 0.595, "fVLM": 0.778, "MedVista3D": 0.782,
        "RadZero3D": 0.762, "T3D": 0.737, "EXACT": 0.830,
    },
    ("ct-rate", "weighted_f1"): {
        "CT-CLIP": 0.707, "VocabFine": 0.738, "BIUD": 0.716, "fVLM": 0.751, "MedVista3D": 0.770, "RadZero3D": 0.742,
        "T3D": 0.725, "EXACT": 0.836,
    },
    ("ct-rate", "accuracy"): {
        "CT-CLIP": 0.668, "VocabFine": 0.705, "BIUD": 0.681, "fVLM": 0.718, "MedVista3D": 0.745, "RadZero3D": 0.701,
        "T3D": 0.690, "EXACT": 0.768,
    },
    ("rad-chestct", "macro_auroc"): {
        "CT-CLIP": 0.629, "VocabFine": 0.650, "fVLM": 0.644, "MedVista3D": 0.710, "BIUD": 0.629, "EXACT": 0.728,
    },
    **{
        ("ct-rate-retrieval", f"report_to_image_recall_at_{cutoff}"): dict(
            zip(("BrgSA", "CT-CLIP", "Merlin", "MPS-CT", "GreenRFM", "ARC-CT"), values, strict=True)
        )
        for cutoff, values in {
            5: (0.058, 0.029, 0.015, 0.100, 0.095, 0.114),
            10: (0.101, 0.050, 0.027, 0.163, 0.160, 0.180),
            50: (0.286, 0.180, 0.077, 0.390, 0.399, 0.404),
            100: (0.420, 0.287, 0.127, 0.522, 0.543, 0.521),
        }.items()
    },
}  # fmt: skip


def test_the_figures_of_papers_are_those_of_their_tables() -> None:
    expected: dict[tuple[str, str], dict[str, float]] = {key: dict(values) for key, values in _OTHERS.items()}
    (_, *names), *rows = (line.split() for line in _AUROC.strip().splitlines())
    for system, *cells in rows:
        for name, cell in zip(names, cells, strict=True):
            if cell != "-":
                expected.setdefault((name, "macro_auroc"), {})[system.replace("_", " ")] = float(cell)
    found = {}
    for name in protocol_names():
        one = find_protocol(name).benchmark
        for key, values in (one.reference if one else {}).items():
            found[name, key] = dict(values)
    assert found == expected


def test_the_readme_lists_every_protocol_and_which_papers_report_of() -> None:
    readme = Path(registry.__file__).with_name("README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in readme.splitlines() if line.startswith("| `")][1:]
    found = {tuple(re.findall(r"`([^`]+)`", cells[0])): cells[3] for cells in rows}
    assert sorted(name for names in found for name in names) == protocol_names()
    for names, figures in found.items():
        references = [find_protocol(name).benchmark for name in names]
        assert (figures != "-") == any(one is not None and one.reference for one in references), names


_FIVE = "Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion"
_CT_RATE = (
    "Medical material, Arterial wall calcification, Cardiomegaly, Pericardial effusion, Coronary artery wall "
    "calcification, Hiatal hernia, Lymphadenopathy, Emphysema, Atelectasis, Lung nodule, Lung opacity, Pulmonary "
    "fibrotic sequela, Pleural effusion, Mosaic attenuation pattern, Peribronchial thickening, Consolidation, "
    "Bronchiectasis, Interlobular septal thickening"
)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (
            "open-i",
            "Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, Edema, "
            "Emphysema, Fibrosis, Pleural Thickening, Hernia, Fracture, Opacity, Lesion, Calcified Granuloma, "
            "Granuloma",
        ),
        (
            "chestxray14",
            "Atelectasis, Cardiomegaly, Effusion, Infiltration, Lung Mass, Lung Nodule, Pneumonia, Pneumothorax, "
            "Consolidation, Edema, Emphysema, Fibrosis, Pleural Thickening, Hernia",
        ),
        ("chexpert", _FIVE),
        ("chexpert-5x200", _FIVE),
        (
            "chexpert-8x200",
            "Atelectasis, Cardiomegaly, Edema, Fracture, No Finding, Pleural Effusion, Pneumonia, Pneumothorax",
        ),
        (
            "chestxdet10",
            "Atelectasis, Tissue Calcification, Pulmonary Consolidation, Pleural Effusion, Pulmonary Emphysema, "
            "Fibrosis, Bone Fracture, Pulmonary Mass, Lung Nodule, Pneumothorax",
        ),
        ("siim", "Pneumothorax"),
        ("rsna-medklip", "Pneumonia"),
        ("rsna-gloria", "Pneumonia"),
        ("rsna-alta", "pneumonia"),
        ("inspect", "lung embolism"),
        ("ct-rate", _CT_RATE),
        (
            "ct-rate-lt",
            "Pneumonia, Pneumothorax, Empyema, Tuberculosis, Pulmonary fibrosis, Lung cyst, Bronchial thickening, Lung "
            "mass, Osteophyte, Rib fracture, Atherosclerosis, Pericardial calcification, Spondylosis, Pleural "
            "calcification, Pneumomediastinum",
        ),
    ],
)
def test_prompts_are_the_published_ones_in_their_order(name: str, asked: str) -> None:
    one = benchmark(name)
    assert not callable(one.targets)
    prompts = [text for _, text in one._prompts(one.targets, EvaluationConfig())]
    expected = [f"There is {phrase}" for phrase in asked.split(", ")]
    assert prompts == (["There is pneumonia", "There is no pneumonia"] if name == "rsna-alta" else expected)


def test_padchest_asks_with_a_capital() -> None:
    labels = {"pleural effusion": 1, "COPD signs": 0}
    truth = Truth({"s": Study(study_id="s", patient_id="p", corpus="padchest", split="test", labels=labels)}, "here")
    assert [one.asked for one in padchest.every_class(truth)] == [("COPD signs",), ("Pleural effusion",)]
    assert [one.name for one in padchest.every_class(truth)] == ["COPD signs", "pleural effusion"]
    assert padchest.rare_classes(truth) == (Target("pleural effusion", ("Pleural effusion",)),)
    assert TAIL_COUNT == 10


def test_scores_of_the_long_tail_of_rad_chestct_have_its_67_columns(tmp_path: Path) -> None:
    """The order in which its prompts were published, which is that of the numbered columns."""
    assert len(rad_chestct.PROMPTED) == 67
    assert rad_chestct.DEVICES.issubset(rad_chestct.PROMPTED)
    assert len(rad_chestct.LONG_TAIL) == 56
    assert rad_chestct.PROMPTED[:2] == ("catheter/port", "pleural thickening")
    assert rad_chestct.PROMPTED[61:] == (
        "cyst", "band-like/linear", "pericardial thickening", "granuloma", "pneumonitis", "cancer",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    truth = rng.random((40, 56)) < 0.4
    ids = [f"tst{number:05d}" for number in range(40)]
    header = ["NoteAcc_DEID", *(rad_chestct._label(name) for name in rad_chestct.LONG_TAIL)]
    rows = [[name, *map(str, row)] for name, row in zip(ids, truth, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(map(",".join, [header, *rows])))
    # Perfect scores, a column for each prompt, of which those of devices say the opposite of anything.
    scores = np.zeros((40, 67))
    kept = [place for place, name in enumerate(rad_chestct.PROMPTED) if name not in rad_chestct.DEVICES]
    scores[:, kept] = truth
    lines = [",".join(map(str, range(67))), *(",".join(map(str, row)) for row in scores)]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    (tmp_path / "images.csv").write_text("\n".join(["Path", *(f"/x/{name}.npz" for name in ids)]))
    files = [str(tmp_path / name) for name in ("scores.csv", "labels.csv", "images.csv")]
    result = evaluate_scores(benchmark("rad-chestct-lt"), files[0], files[1], images=files[2])
    assert result.headline()["rad-chestct-lt.macro_auroc"][0].value == 1.0


def test_overlap_of_labels_asks_with_the_volume_itself_and_without_its_study() -> None:
    rng = np.random.default_rng(1)
    classes = ("a", "b", "c")
    labels = (rng.random((6, 3)) < 0.5).repeat(2, axis=0)
    labels[4:6] = False
    ids = [f"v{number // 2:02d}" for number in range(12)]
    studies = {
        name: Study(
            study_id=name, patient_id=name, corpus="ct-rate", split="test",
            labels={one: int(value) for one, value in zip(classes, row, strict=True)},
        )
        for name, row in zip(ids, labels, strict=True)
    }  # fmt: skip
    vectors = rng.normal(size=(12, 4)).astype(np.float32)
    none = np.zeros(0, dtype=np.float32)
    images = [
        ImageScores(name, name, f"{name}-{number % 2}", (), none, none, embedding=vector)
        for number, (name, vector) in enumerate(zip(ids, vectors, strict=True))
    ]
    measured = Measured(Scored(Truth(studies, "here"), images, ()), None, Bootstrap(ids, 20), None)
    figures = label_overlap(benchmark("ct-rate-retrieval"), measured, classes=classes, cutoffs=(2, 3, 50))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [row for row in range(12) if labels[row].any()]
    for figure, cutoff in zip(figures, (2, 3), strict=True):
        for estimate, itself in ((figure.published, True), (figure.strict, False)):
            values = []
            for query in rows:
                others = [row for row in rows if itself or ids[row] != ids[query]]
                nearest = sorted(others, key=lambda row: -float(unit[row] @ unit[query]))[:cutoff]
                values.append(
                    np.mean([(labels[r] & labels[query]).sum() / (labels[r] | labels[query]).sum() for r in nearest])
                )
            assert estimate is not None
            assert estimate.value == pytest.approx(np.mean(values))
