"""Evaluate a bundle on a lake under a protocol; writes report.json and report.html, and prints the figures.

python -m jobs.evaluate --bundle bundles/radzero --lake lakes/phantom --protocol phantom
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from jobs.command import connect, main, whole_number
from rayzero.bundle import Bundle, load_bundle
from rayzero.config import EvaluationConfig, override, validate
from rayzero.evaluation.inference import InProcess, OnRay, Scorer
from rayzero.evaluation.protocols.registry import find_protocol, protocol_names
from rayzero.evaluation.report import headline_name, write_report
from rayzero.evaluation.result import EvaluationResult
from rayzero.studies.examples import COMPANIONS
from rayzero.studies.lake import open_lake


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, evaluate, and write the report. Raises EvaluationError when the lake cannot answer."""
    _evaluate(_parse(arguments))


def summary(result: EvaluationResult) -> str:
    """The headline figures as a table of text."""
    rows = [f"{result.system} on {result.lake}, split {result.split}, protocol {result.protocol}", ""]
    rows.append(f"{'figure':<38}{'value':>8}{'95 % interval':>18}{'chance':>9}{'n':>7}")
    for name, (value, chance) in result.headline().items():
        interval = f"[{value.low:.3f}, {value.high:.3f}]" if value.low == value.low else "-"
        shown = f"{value.value:.3f}" if value.value == value.value else "-"
        rows.append(f"{headline_name(name):<38}{shown:>8}{interval:>18}{chance:>9.3f}{value.n:>7}")
    rows.extend(f"note: {note}" for note in result.notes)
    return "\n".join(rows)


def _evaluate(options: argparse.Namespace) -> None:
    protocol = find_protocol(options.protocol)
    lake = open_lake(options.lake)
    # With workers, this process scores nothing and needs no accelerator.
    device = "cuda" if torch.cuda.is_available() and not options.workers else "cpu"
    bundle = load_bundle(options.bundle, device)
    if options.companions is not None:
        chosen_views = [name for name in options.companions.split(",") if name]
        bundle = replace(bundle, config=override(bundle.config, {"data.companions": chosen_views}))
    given = {"bootstrap": options.bootstrap, "batch_size": options.batch_size}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = validate(EvaluationConfig, {**bundle.config.evaluation.model_dump(), **chosen}, where="evaluation")
    scorer = _scorer(options, bundle, settings)
    result = protocol.run(bundle, lake, config=settings, split=options.split, scorer=scorer)
    where = write_report(result, options.out, overlays=settings.overlays)
    print(f"{summary(result)}\n\nreport  {where}/report.html")


def _scorer(options: argparse.Namespace, bundle: Bundle, settings: EvaluationConfig) -> Scorer:
    if not options.workers:
        return InProcess(bundle, settings.batch_size)
    connect()
    return OnRay(
        options.bundle, bundle.config, settings.batch_size, options.workers, gpus_per_worker=options.gpus_per_worker
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", required=True, help="folder or URL of an exported model")
    parser.add_argument("--lake", required=True, help="folder or URL of a lake")
    parser.add_argument("--protocol", required=True, help=f"what to measure: {', '.join(protocol_names())}")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--companions",
        help=f"for a model that reads studies: which of {','.join(COMPANIONS)} it sees ('' for none; default: all)",
    )
    parser.add_argument("--out", default="runs/evaluation", help="folder or URL for report.json and report.html")
    parser.add_argument(
        "--workers", type=whole_number(0), default=0, help="Ray actors that score (default: this process)"
    )
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--bootstrap", type=whole_number(0), help="replicates per interval (default: the bundle's)")
    parser.add_argument("--batch-size", type=whole_number(1), help="images per batch (default: the bundle's)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(run)
