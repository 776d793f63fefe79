"""Score tables of others in the published formats: joined by id and name, refused when they do not belong together."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from jobs.command import main
from jobs.evaluate import run
from rayzero.config import EvaluationConfig
from rayzero.evaluation.comparison import compare
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.metrics.operating import stratified_folds
from rayzero.evaluation.prompts import expand, with_prompts, with_queries
from rayzero.evaluation.protocols.ct_rate import LONG_TAIL
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.report import write_pages
from rayzero.evaluation.scores import evaluate_scores, identify, patient_of, read_labels, read_table
from rayzero.studies.corpora.ct_rate import LABELS

# The published table of labels has its columns in this order, the published prompts in that of LONG_TAIL.
LABEL_ORDER = (
    "Pneumonia", "Atherosclerosis", "Spondylosis", "Pneumothorax", "Bronchial thickening", "Osteophyte", "Empyema",
    "Lung cyst", "Lung mass", "Pericardial calcification", "Pneumomediastinum", "Pulmonary fibrosis", "Tuberculosis",
    "Pleural calcification", "Rib fracture",
)  # fmt: skip


class Published:
    """CT-RATE-LT's files in miniature: 40 scans of two reconstructions, which score nearly alike."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.volumes = [f"valid_{n}_a_{k}" for n in range(1, 41) for k in (1, 2)]
        self.truth = np.repeat(rng.random((40, 15)) < 0.3, 2, axis=0)
        self.truth[:4] = [[True] * 15, [True] * 15, [False] * 15, [False] * 15]
        scan = rng.normal(size=(40, 15)).repeat(2, axis=0)
        self.scores = np.round(0.1 * (self.truth + scan + 0.2 * rng.normal(size=(80, 15))), 5)
        self.root = root
        self.images, self.labels, self.table = root / "image.csv", root / "labels.csv", root / "scores.csv"
        rows = [[f"/home/them/{name}.nii.gz", "seg.nii.gz"] for name in self.volumes]
        write(self.images, ["Path", "TotalSegPath"], rows)
        columns = [LONG_TAIL.index(name) for name in LABEL_ORDER]
        order = rng.permutation(80)
        rows = [[f"{self.volumes[k]}.nii.gz", *(int(self.truth[k, c]) or "" for c in columns)] for k in order]
        write(self.labels, ["VolumeName", *LABEL_ORDER], rows)
        self.write_scores(np.arange(80))

    def write_scores(self, order: np.ndarray, header: list[str] | None = None) -> None:
        write(self.table, header or [str(c) for c in range(15)], self.scores[order].tolist())

    @property
    def words(self) -> list[str]:
        files = ["--scores", str(self.table), "--images", str(self.images), "--labels", str(self.labels)]
        return [*files, "--protocol", "ct-rate-lt", "--bootstrap", "50", "--out", str(self.root / "out")]


def write(path: Path, header: list[str], rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def test_scores_without_ids_meet_labels_in_another_order(
    published: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run, published.words)
    report = json.loads((published.root / "out/report.json").read_text())
    figures = report["figures"]
    assert figures["macro_auroc"]["strict"]["value"] == pytest.approx(roc_auc_score(published.truth, published.scores))
    expected = average_precision_score(published.truth, published.scores)
    assert figures["macro_average_precision"]["published"]["value"] == pytest.approx(expected)
    assert "oracle" in figures["weighted_f1"]["rule"]
    for column, name in enumerate(LONG_TAIL):
        value = report["classification"]["per_class"][name]["auroc"]["value"]
        assert value == pytest.approx(roc_auc_score(published.truth[:, column], published.scores[:, column]))
    assert report["counts"]["patients"] == 40
    assert any("the order of the list fits the scores" in note for note in report["notes"])
    assert "Macro AUROC" in capsys.readouterr().out


def test_columns_by_name_and_rows_by_id_need_no_order(published: Published) -> None:
    order = np.random.default_rng(1).permutation(80)
    rows = [[published.volumes[k], *published.scores[k, ::-1]] for k in order]
    write(published.table, ["VolumeName", *(f"There is {name}" for name in LONG_TAIL[::-1])], rows)
    benchmark = find_protocol("ct-rate-lt").benchmark
    assert benchmark is not None
    result = evaluate_scores(benchmark, str(published.table), str(published.labels))
    assert result.headline()["ct-rate-lt.macro_auroc"][0].value == pytest.approx(
        roc_auc_score(published.truth, published.scores)
    )


def test_prompts_number_the_columns(published: Published) -> None:
    order = np.random.default_rng(2).permutation(15)
    write(published.table, [str(c) for c in range(15)], published.scores[:, order].tolist())
    prompts = published.root / "prompts.json"
    prompts.write_text(json.dumps({str(c): [f"There is {LONG_TAIL[k]}"] for c, k in enumerate(order)}))
    main(run, [*published.words, "--prompts", str(prompts)])
    report = json.loads((published.root / "out/report.json").read_text())
    assert report["figures"]["macro_auroc"]["strict"]["value"] == pytest.approx(
        roc_auc_score(published.truth, published.scores)
    )


def test_tables_of_two_systems_are_compared_under_the_same_labels_alone(published: Published) -> None:
    benchmark = find_protocol("ct-rate-lt").benchmark
    assert benchmark is not None

    def reported(name: str) -> str:
        files = str(published.table), str(published.labels)
        result = evaluate_scores(benchmark, *files, images=str(published.images), config=EvaluationConfig(bootstrap=0))
        return write_pages(str(published.root / name), {"report.json": json.dumps(result.to_json())})

    one = reported("one")
    published.scores[:, 0] *= -1
    published.write_scores(np.arange(80))
    cells = compare({"one": one, "other": reported("other")}).rows["ct-rate-lt.macro_auroc"]
    assert all(cells.values())
    assert cells["other"] != cells["one"]
    labels = list(csv.reader(published.labels.open()))
    labels[1][1] = "0" if labels[1][1] == "1" else "1"
    write(published.labels, labels[0], labels[1:])
    with pytest.raises(EvaluationError, match=r"cannot be compared: lake\.fingerprint"):
        compare({"one": one, "third": reported("third")})


def test_probabilities_are_cut_on_the_grid_that_they_were_published_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(80) < 0.4
    scores = np.round(np.clip(0.3 * truth + 0.7 * rng.random(80), 0, 1), 2)
    names = [f"i{number}" for number in range(80)]
    # An image without label counts for nothing.
    rows = [[name, int(value)] for name, value in zip(names, truth, strict=True)]
    write(tmp_path / "labels.csv", ["id", "Pneumonia"], [*rows, ["blank", ""]])
    rows = [[name, value] for name, value in zip(names, scores, strict=True)]
    write(tmp_path / "scores.csv", ["id", "Pneumonia"], [*rows, ["blank", 0.5]])
    benchmark = find_protocol("rsna-alta").benchmark
    assert benchmark is not None
    result = evaluate_scores(
        benchmark, str(tmp_path / "scores.csv"), str(tmp_path / "labels.csv"), config=EvaluationConfig(bootstrap=0)
    )
    expected = stratified_folds(scores, truth)
    found = {one.key: one.published.value for one in result.figures if one.published and "folds" in one.key}
    assert found == pytest.approx({f"folds_{name}": value for name, value in expected.items()}, abs=1e-12)
    assert any("taken to be probabilities" in note for note in result.notes)


def test_a_cell_without_label_is_no_negative(tmp_path: Path) -> None:
    benchmark = find_protocol("rad-chestct").benchmark
    assert benchmark is not None
    assert not callable(benchmark.targets)
    medical = next(one for one in benchmark.targets if len(one.sources) > 2)
    rows = [["a", 1, ""], ["b", 0, ""], ["c", 0, -1], ["d", 0, 0], ["e", "", ""]]
    two = replace(medical, labels=medical.sources[:2])
    write(tmp_path / "labels.csv", ["id", *two.sources], rows)
    found = read_labels(str(tmp_path / "labels.csv"), [two], blank=benchmark.blank_label)
    assert {name: set(row.values()) for name, row in found.items()} == {
        "a": {1}, "b": set(), "c": {-1}, "d": {0}, "e": set(),
    }  # fmt: skip
    # The table that a benchmark brings with it leaves its negatives blank.
    table = find_protocol("ct-rate-lt").benchmark
    assert table is not None
    assert table.blank_label == 0


def test_a_table_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("id,Ödem\na,1\n".encode("utf-16"))
    with pytest.raises(EvaluationError, match=r"labels.csv cannot be read"):
        read_table(str(tmp_path / "labels.csv"))
    write(tmp_path / "query.csv", ["Variable", "Text"], [["Edema", "Pulmonary\nedema."]])
    assert read_table(str(tmp_path / "query.csv")).columns["Text"] == ["Pulmonary\nedema."]


def test_what_does_not_belong_together_is_refused(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(words: list[str]) -> str:
        with pytest.raises(SystemExit) as ended:
            main(run, words)
        assert ended.value.code == 2
        return capsys.readouterr().err

    published.write_scores(np.random.default_rng(3).permutation(80))
    assert "is not in the order of" in refusal(published.words)
    published.write_scores(np.roll(np.arange(80), 1))
    assert "rows of one patient are no more alike" in refusal(published.words)
    published.write_scores(np.arange(79))
    assert "has 79 rows and" in refusal(published.words)
    published.write_scores(np.arange(80))
    assert "no column of ids; give the list of images" in refusal([w for w in published.words if "image" not in w])
    labels = list(csv.reader(published.labels.open()))
    write(published.labels, labels[0], labels[1:-1])
    assert "1 scored ones have no label and 0 labelled ones no score" in refusal(published.words)
    write(published.labels, labels[0], [*labels[1:], labels[1]])
    assert "more than once" in refusal(published.words)
    write(published.labels, [*labels[0][:-1], "Gout"], labels[1:])
    assert "has no column 'Rib fracture'" in refusal(published.words)
    write(published.labels, labels[0], [[labels[1][0], "maybe", *labels[1][2:]], *labels[2:]])
    assert "row 1, Pneumonia: 'maybe' is no label" in refusal(published.words)
    write(published.labels, labels[0], labels[1:])
    published.write_scores(np.arange(80), [str(c + 1) for c in range(15)])
    assert "15 numbered columns for the 15 classes" in refusal(published.words)
    published.scores[5, 3] = np.nan
    published.write_scores(np.arange(80))
    assert "row 6, column '3': the score is not finite" in refusal(published.words)


def test_rad_chestct_scores_have_the_eighteen_columns_of_ct_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    truth, scores = rng.random((30, 18)) < 0.4, rng.normal(size=(30, 18))
    truth[:, 4] = truth[:, 1]
    names = [f"tst{n:05d}" for n in range(30)]
    write(
        tmp_path / "labels.csv",
        ["VolumeName", *LABELS],
        [[f"{n}.nii.gz", *row.astype(int)] for n, row in zip(names, truth, strict=True)],
    )
    write(tmp_path / "images.csv", ["Path"], [[f"/x/{n}.npz"] for n in names])
    write(tmp_path / "scores.csv", [str(c) for c in range(18)], scores.tolist())
    benchmark = find_protocol("rad-chestct").benchmark
    assert benchmark is not None
    files = [str(tmp_path / name) for name in ("scores.csv", "labels.csv", "images.csv")]
    result = evaluate_scores(benchmark, files[0], files[1], images=files[2])
    # As published: mosaic attenuation dropped, the two calcifications merged by their higher score.
    merged = scores.copy()
    merged[:, 1] = scores[:, [1, 4]].max(axis=1)
    kept = [c for c in range(18) if c not in (4, 13)]
    expected = roc_auc_score(truth[:, kept], merged[:, kept])
    assert result.headline()["rad-chestct.macro_auroc"][0].value == pytest.approx(expected)
    assert any("which is not tested" in note for note in result.notes)


@pytest.mark.parametrize(
    ("path", "image", "patient"),
    [
        ("/a/valid_1_a_2.nii.gz", "valid_1_a_2", "valid_1"),
        ("CheXpert-v1.0/test/patient64741/study1/view1.jpg", "patient64741/study1/view1", "patient64741"),
        ("images/00000013_005.png", "00000013_005", "00000013"),
        ("tst34883.npz", "tst34883", "tst34883"),
        ("1.2.276.0.7230010.3.1", "1.2.276.0.7230010.3.1", "1.2.276.0.7230010.3.1"),
    ],
)  # fmt: skip
def test_ids_of_paths(path: str, image: str, patient: str) -> None:
    assert identify(path) == image
    assert patient_of(image) == patient


def test_a_grammar_of_prompts_is_every_combination(tmp_path: Path) -> None:
    grammar = {"severity": ["", "mild"], "subtype": ["edema", "oedema"], "location": ["", "at the base"]}
    assert expand(grammar, "x") == (
        "edema", "edema at the base", "oedema", "oedema at the base", "mild edema", "mild edema at the base",
        "mild oedema", "mild oedema at the base",
    )  # fmt: skip
    benchmark = find_protocol("chexpert-5x200").benchmark
    assert benchmark is not None
    prompts = {one.name: ["a", "b"] for one in benchmark.targets}  # type: ignore[union-attr]
    (tmp_path / "prompts.json").write_text(json.dumps({**prompts, "Edema": grammar}))
    asked = with_prompts(benchmark, str(tmp_path / "prompts.json"))
    assert [len(one.prompts) for one in asked.targets] == [2, 2, 2, 8, 2]  # type: ignore[union-attr]
    # The report names the file, and not a template that nothing was asked with.
    assert "2 of Consolidation, 8 of Edema" in asked.quirks[-1]
    assert asked._templates(asked.targets, EvaluationConfig()) == ()  # type: ignore[arg-type]
    assert benchmark._templates(benchmark.targets, EvaluationConfig()) == ("There is {}",)  # type: ignore[arg-type]
    (tmp_path / "prompts.json").write_text(json.dumps({"Edema": grammar}))
    with pytest.raises(EvaluationError, match=r"those of Atelectasis, .* are needed"):
        with_prompts(benchmark, str(tmp_path / "prompts.json"))
    with pytest.raises(EvaluationError, match="a grammar has lists of severity, subtype, location alone"):
        expand({"place": ["left"]}, "x")
    write(tmp_path / "query.csv", ["Variable", "Text"], [["Edema", "Pulmonary edema."]])
    queried = with_queries(benchmark, str(tmp_path / "query.csv"))
    assert queried.queries == (("Edema", "Pulmonary edema."),)
    assert queried.quirks[-1] == f"Asked with the sentences of {tmp_path / 'query.csv'}."
