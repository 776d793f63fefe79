"""Corpora into a Parquet lake: ``python -m jobs.ingest --corpus phantom --root DIR --lake URL``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from jobs.command import main, whole_number
from rayzero.studies.card import write_card
from rayzero.studies.corpora import corpus_names
from rayzero.studies.ingest import Ingested, Progress, ingest

REPORT_EVERY = 5.0
"""Seconds between lines of progress."""


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, run one ingest, and describe the lake in its data card."""
    options = _parser().parse_args(arguments)
    result = ingest(
        options.corpus,
        options.root,
        options.lake,
        limit=options.limit,
        cpus=options.cpus,
        exclude=options.exclude,
        on_progress=_Printer(),
    )
    print(summary(result))
    for source in result.strangers:
        print(
            f"warning: --exclude {source} names ids of {options.corpus}, none of which is under {options.root}: it "
            "left nothing out; see that the ids are written alike",
            file=sys.stderr,
        )
    print(f"data card    {write_card(result.lake)}")


def summary(result: Ingested) -> str:
    """What was written and what was refused, for a terminal."""
    lake, total = result.lake, result.lake.counts["total"]
    images = total.get("images", 0)
    read = images - result.resumed_images
    before = f", {result.resumed_images} images before an interruption" if result.resumed_images else ""
    lines = [
        f"lake         {lake.url}  (fingerprint {lake.fingerprint[:12]})",
        f"studies      {total.get('studies', 0)}  ({_listed(lake.counts['split'])})",
        f"images       {images}  ({_listed(lake.counts['view'])})",
        f"sentences    {total.get('sentences', 0)}  ({total.get('without_sentences', 0)} studies have none)",
        f"quarantined  {len(result.quarantined)}",
        f"speed        {read / max(result.seconds, 1e-9):.0f} images/s over {result.seconds:.1f} s{before}",
    ]
    reasons = Counter((item.stage, item.reason) for item in result.quarantined)
    lines[5:5] = [f"    {count:6d}  {stage}: {reason}" for (stage, reason), count in reasons.most_common(10)]
    if len(reasons) > 10:
        lines.insert(15, f"            and {len(reasons) - 10} more reasons; see Lake.quarantine()")
    if result.excluded:
        lines.insert(4, f"excluded     {sum(result.excluded.values())} studies  ({_listed(result.excluded)})")
    return "\n".join(lines)


def progress_line(progress: Progress) -> str:
    """How far an ingest is, how fast, and how long it will take, for a terminal."""
    share = 100 * progress.studies / max(progress.total, 1)
    left = progress.seconds_left
    parts = [
        f"ingest: {progress.studies:,}/{progress.total:,} studies ({share:.0f} %)",
        f"{progress.images_per_second:.0f} images/s",
        f"{progress.quarantined:,} quarantined",
    ]
    if progress.studies < progress.total and left is not None:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(parts)


class _Printer:
    """One line of progress every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.seconds < self._next and progress.studies < progress.total:
            return
        self._next = progress.seconds + REPORT_EVERY
        print(progress_line(progress), flush=True)


def _listed(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "none"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.ingest",
        description="Read a corpus and write it as a Parquet lake. A lake that is already there is replaced as a "
        "whole once everything is written; until then the old one stays in force. After an interruption, whatever "
        "its cause, the same command continues where it stood. Object stores are found and authorised by the AWS_* "
        "environment variables (AWS_ENDPOINT_URL, AWS_MAX_ATTEMPTS, ...) on every machine.",
    )
    parser.add_argument("--corpus", required=True, help=f"one of: {', '.join(corpus_names())}")
    parser.add_argument("--root", required=True, help="folder or URL of the corpus; every worker must reach it")
    parser.add_argument("--lake", required=True, help="folder or URL (s3://...) of the lake to write")
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="SET",
        help="evaluation sets whose patients to leave out of train and validation: lakes (LAKE, or LAKE#split for one "
        "split), compared by id and by pixels, or CSV files with patient_id, study_id, image_id or sha256",
    )
    parser.add_argument("--limit", type=whole_number(1), help="take the first N studies only")
    parser.add_argument("--cpus", type=whole_number(1), help="tasks that run at once (default: one per CPU)")
    return parser


if __name__ == "__main__":
    main(run)
