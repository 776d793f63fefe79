"""Rule-based sentences against Open-I's own labels: ``python -m tests.benchmarks.sentences [--out FILE]``.

The rules were tuned on one half of the reports; the figures are of the other half, which a hash of the report's id
fixes (``open_i.py``). Errors are counted by kind for the held-out half and listed for the tuning half alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayzero.reports.open_i import OPEN_I, open_i_labels
from rayzero.reports.sentences import extract_sentences, read_statement
from rayzero.studies.study import Sentence
from tests.benchmarks.open_i import LabelledReport, load_reports

MICRO_BAR, MACRO_BAR, SPEED_BAR = 0.85, 0.80, 500.0
MIN_POSITIVES = 20
"""Classes with fewer positives do not enter the macro F1."""
RESULT = Path(__file__).parent / "results" / "sentences.json"


@dataclass
class ClassScore:
    """One class: counts, and what the errors were."""

    name: str
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """``stated`` and ``doubted`` false positives; ``denied`` and ``unnamed`` false negatives."""

    @property
    def positives(self) -> int:
        """Reports that carry the label."""
        return self.true_positives + self.false_negatives

    @property
    def f1(self) -> float:
        """F1, 0 without any positive."""
        errors = self.false_positives + self.false_negatives
        return 2 * self.true_positives / (2 * self.true_positives + errors) if self.true_positives else 0.0


def score(reports: Iterable[LabelledReport]) -> list[ClassScore]:
    """The rules against the labels of ``reports``, class by class."""
    scores = {name: ClassScore(name) for name in OPEN_I}
    for labelled in reports:
        sentences = extract_sentences(labelled.report)
        predicted = open_i_labels(sentences)
        for name, counts in scores.items():
            if name in predicted and name in labelled.positives:
                counts.true_positives += 1
            elif name in predicted:
                counts.false_positives += 1
                counts.kinds[_kind(name, sentences)] += 1
            elif name in labelled.positives:
                counts.false_negatives += 1
                counts.kinds[_kind(name, sentences)] += 1
    return list(scores.values())


def micro_f1(scores: Sequence[ClassScore]) -> float:
    """F1 of all decisions pooled."""
    total = ClassScore("all")
    for counts in scores:
        total.true_positives += counts.true_positives
        total.false_positives += counts.false_positives
        total.false_negatives += counts.false_negatives
    return total.f1


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Mean F1 of the classes with enough positives."""
    chosen = [counts.f1 for counts in scores if counts.positives >= MIN_POSITIVES]
    return sum(chosen) / len(chosen)


def reports_per_second(reports: Sequence[LabelledReport]) -> float:
    """Reports a second of processor time, with nothing remembered from before."""
    read_statement.cache_clear()
    start = time.process_time()
    for labelled in reports:
        extract_sentences(labelled.report)
    return len(reports) / (time.process_time() - start)


def measure() -> dict[str, object]:
    """Every figure, as it is written to JSON."""
    reports = load_reports()
    speed = reports_per_second(reports)
    held_out = score(r for r in reports if r.held_out)
    tuning = score(r for r in reports if not r.held_out)
    rows = [
        _row("held-out micro F1", micro_f1(held_out), MICRO_BAR),
        _row(f"held-out macro F1, classes with {MIN_POSITIVES} or more positives", macro_f1(held_out), MACRO_BAR),
        _row("reports/s of one core", speed, SPEED_BAR),
    ]
    return {
        "benchmark": "sentences",
        "reports": {"held_out": sum(r.held_out for r in reports), "tuning": sum(not r.held_out for r in reports)},
        "rows": rows,
        "tuning": {"micro_f1": round(micro_f1(tuning), 4), "macro_f1": round(macro_f1(tuning), 4)},
        "classes": [{**vars(s), "f1": round(s.f1, 4), "kinds": dict(sorted(s.kinds.items()))} for s in held_out],
    }


def _kind(name: str, sentences: Sequence[Sentence]) -> str:
    statuses = {s.status for s in sentences if s.finding in OPEN_I[name]}
    if "present" in statuses:
        return "stated"
    if "uncertain" in statuses:
        return "doubted"
    return "denied" if statuses else "unnamed"


def _row(figure: str, measured: float, bar: float) -> dict[str, object]:
    return {"figure": figure, "measured": round(measured, 4), "bar": bar, "ok": measured >= bar}


def _list_errors() -> None:
    """Each error of the tuning half, for whoever tunes the rules."""
    for labelled in load_reports():
        if labelled.held_out:
            continue
        sentences = extract_sentences(labelled.report)
        for name in sorted(open_i_labels(sentences) ^ labelled.positives):
            error = "missed" if name in labelled.positives else "invented"
            print(f"{labelled.uid}\t{name}\t{error}\t{_kind(name, sentences)}")


def main() -> None:
    """Print the tables and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--errors", action="store_true", help="list the errors of the tuning half and stop")
    arguments = parser.parse_args()
    if arguments.errors:
        _list_errors()
        return
    result = measure()
    print(f"{'figure':58} {'measured':>9} {'bar':>7}  ok")
    for row in result["rows"]:  # type: ignore[attr-defined]
        print(f"{row['figure']:58} {row['measured']:>9.3f} {row['bar']:>7.2f}  {'yes' if row['ok'] else 'NO'}")
    print(f"\n{'class (held out)':20} {'positive':>8} {'tp':>5} {'fp':>5} {'fn':>5} {'F1':>6}  errors by kind")
    for row in result["classes"]:  # type: ignore[attr-defined]
        positives = row["true_positives"] + row["false_negatives"]
        kinds = ", ".join(f"{kind} {count}" for kind, count in row["kinds"].items())
        print(
            f"{row['name']:20} {positives:>8} {row['true_positives']:>5} {row['false_positives']:>5} "
            f"{row['false_negatives']:>5} {row['f1']:>6.3f}  {kinds}"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
