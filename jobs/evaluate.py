"""Evaluate a bundle on a lake under a protocol; writes report.json and report.html, and prints the figures.

python -m jobs.evaluate --bundle bundles/radzero --lake lakes/phantom --protocol phantom
python -m jobs.evaluate --scores CT-RATE_LT_epoch38.csv --images valid_image.csv --labels CT-RATE-LT-label.csv \\
    --protocol ct-rate-lt
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.command import connect, main, whole_number
from rayzero.bundle import Bundle, fingerprint, load_bundle
from rayzero.config import EvaluationConfig, override, validate
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import InProcess, OnRay, Scorer
from rayzero.evaluation.kept import Kept
from rayzero.evaluation.prompts import with_prompts, with_queries
from rayzero.evaluation.protocols.registry import Protocol, find_protocol, protocol_names
from rayzero.evaluation.report import headline_name, write_report
from rayzero.evaluation.result import EvaluationResult
from rayzero.evaluation.scores import evaluate_scores, read_labels
from rayzero.studies.examples import COMPANIONS
from rayzero.studies.lake import Lake, normal_url, open_lake


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
        level = f"{chance:.3f}" if chance == chance else "-"
        rows.append(f"{headline_name(name, result.names):<38}{shown:>8}{interval:>18}{level:>9}{value.n:>7}")
    if result.figures:
        rows += ["", f"{'as published':<38}{'ours':>8}  reported"]
        for one in result.figures:
            if one.published is not None:
                reported = ", ".join(f"{name} {value:.3f}" for name, value in one.reference.items())
                rows.append(f"{one.name:<38}{one.published.value:>8.3f}  {reported}".rstrip())
    rows.extend(f"note: {note}" for note in result.notes)
    return "\n".join(rows)


def _evaluate(options: argparse.Namespace) -> None:
    protocol = find_protocol(options.protocol)
    if options.scores:
        _evaluate_scores(options, protocol)
        return
    if not (options.bundle and options.lake):
        raise EvaluationError("give --bundle and --lake, or --scores with --labels")
    protocol = _with_tables(options, protocol)
    labels = read_table_of_labels(options.labels, protocol) if options.labels else None
    lake = open_lake(options.lake)
    # With workers, this process scores nothing and needs no accelerator.
    device = "cuda" if torch.cuda.is_available() and not options.workers else "cpu"
    bundle = load_bundle(options.bundle, device)
    if options.companions is not None:
        chosen_views = [name for name in options.companions.split(",") if name]
        bundle = replace(bundle, config=override(bundle.config, {"data.companions": chosen_views}))
    out = options.out or _own_folder(options, options.bundle, fingerprint(options.bundle), lake.fingerprint)
    result, where = evaluate(
        protocol, lake, options.bundle, bundle, options, out=out, labels=labels, split=options.split
    )
    _finish(result, where)


def evaluate(
    protocol: Protocol,
    lake: Lake,
    url: str,
    bundle: Bundle,
    options: argparse.Namespace,
    *,
    out: str,
    labels: Mapping[str, Mapping[str, int]] | None,
    split: str = "test",
) -> tuple[EvaluationResult, str]:
    """Evaluate ``bundle``, the one at ``url``, and write its report to ``out``; the figures, and where they are.

    ``options`` are those of ``scoring_options``; ``labels`` by image or study id stand in place of the lake's own.
    An evaluation into ``out`` that was interrupted continues. Raises EvaluationError when the lake cannot answer.
    """
    given = {"bootstrap": options.bootstrap, "batch_size": options.batch_size}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = validate(EvaluationConfig, {**bundle.config.evaluation.model_dump(), **chosen}, where="evaluation")
    scorer = _scorer(url, bundle, settings.batch_size, out, options)
    result = protocol.run(bundle, lake, config=settings, split=split, scorer=scorer, labels=labels)
    return result, write_report(result, out, overlays=settings.overlays)


def _evaluate_scores(options: argparse.Namespace, protocol: Protocol) -> None:
    if protocol.benchmark is None or not options.labels:
        raise EvaluationError("--scores needs --labels, and the protocol of a published benchmark")
    chosen = {} if options.bootstrap is None else {"bootstrap": options.bootstrap}
    settings = validate(EvaluationConfig, chosen, where="evaluation")
    result = evaluate_scores(
        protocol.benchmark,
        options.scores,
        options.labels,
        images=options.images,
        prompts=options.prompts,
        config=settings,
        system=options.system,
    )
    out = options.out or _own_folder(options, options.system)
    _finish(result, write_report(result, out, overlays=0))


def _own_folder(options: argparse.Namespace, of: str, *identities: str) -> str:
    """Where a report goes by default; ``identities`` are those of what may change in its place."""
    asked = [getattr(options, name) for name in ("split", "companions", "labels", "prompts", "queries", "scores")]
    name = of.rstrip("/").rsplit("/", 1)[-1]
    return own_folder(
        "evaluation", f"{options.protocol}-{name}", [options.protocol, *identities, *asked, options.images]
    )


def own_folder(kind: str, name: str, identity: Any) -> str:
    """Where results go by default: the same command finds them again, another question has a folder of its own.

    ``identity`` is what decides the results, as JSON values.
    """
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return f"runs/{kind}/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{digest[:8]}"


def _with_tables(options: argparse.Namespace, protocol: Protocol) -> Protocol:
    """The protocol with the prompts and queries of files."""
    benchmark = protocol.benchmark
    for given, name in ((options.prompts, "prompt_table"), (options.queries, "query_table")):
        if given and not (benchmark and getattr(benchmark, name)):
            raise EvaluationError(f"protocol {protocol.name!r} has its own prompts; leave {given} out")
    if benchmark is not None and options.prompts:
        benchmark = with_prompts(benchmark, options.prompts)
    if benchmark is not None and options.queries:
        benchmark = with_queries(benchmark, options.queries)
    return protocol if benchmark is None else replace(protocol, run=benchmark.run, benchmark=benchmark)


def read_table_of_labels(url: str, protocol: Protocol) -> dict[str, dict[str, int]]:
    """A table of labels in place of the lake's. Raises EvaluationError where the lake's own labels count."""
    benchmark = protocol.benchmark
    if benchmark is None or callable(benchmark.targets):
        raise EvaluationError(f"protocol {protocol.name!r} takes its labels from the lake; leave --labels out")
    return read_labels(url, benchmark.targets, blank=benchmark.blank_label)


def _finish(result: EvaluationResult, where: str) -> None:
    print(f"{summary(result)}\n\nreport  {where}/report.html")


def _scorer(url: str, bundle: Bundle, batch_size: int, out: str, options: argparse.Namespace) -> Scorer:
    kept = Kept(normal_url(f"{out.rstrip('/')}/scores"), fingerprint(url))
    if not options.workers:
        return InProcess(bundle, batch_size, kept)
    connect()
    return OnRay(url, bundle.config, batch_size, options.workers, gpus_per_worker=options.gpus_per_worker, kept=kept)


def scoring_options() -> argparse.ArgumentParser:
    """The options of every command that evaluates bundles, as a parent of its parser."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--workers", type=whole_number(0), default=0, help="Ray actors that score (default: this process)"
    )
    parser.add_argument("--gpus-per-worker", type=float, default=0.0)
    parser.add_argument("--bootstrap", type=whole_number(0), help="replicates per interval (default: the bundle's)")
    parser.add_argument("--batch-size", type=whole_number(1), help="images per batch (default: the bundle's)")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.evaluate", description=__doc__.split("\n")[0], parents=[scoring_options()]
    )
    parser.add_argument("--bundle", help="folder or URL of an exported model")
    parser.add_argument("--lake", help="folder or URL of a lake")
    parser.add_argument("--protocol", required=True, help=f"what to measure: {', '.join(protocol_names())}")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--companions",
        help=f"for a model that reads studies: which of {','.join(COMPANIONS)} it sees ('' for none; default: all)",
    )
    parser.add_argument("--labels", help="CSV of labels by image or study id, in place of the lake's")
    parser.add_argument("--prompts", help="JSON of prompts per class (chexpert-5x200), or per column of --scores")
    parser.add_argument("--queries", help="CSV of sentences that ask for images: Variable, Text (chexpert-8x200)")
    parser.add_argument("--scores", help="CSV of scores that were computed elsewhere, in place of a bundle")
    parser.add_argument("--images", help="CSV that lists the images of --scores, row by row, where it has no ids")
    parser.add_argument("--system", default="scores", help="what computed --scores")
    parser.add_argument(
        "--out",
        help="folder or URL for report.json and report.html (default: one of its own in runs/evaluation, by protocol, "
        "bundle, lake and what else is asked)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(run)
