"""Put systems on the same studies side by side; writes comparison.json and .html, and prints the table.

python -m jobs.compare radzero=runs/radzero carzero=runs/carzero --out runs/comparison
python -m jobs.compare radzero=bundles/radzero brgsa=bundles/brgsa --lakes lakes/siim lakes/ct-rate --out runs/table

The first compares reports that ``jobs.evaluate`` wrote. With ``--lakes``, bundles are evaluated first, each by every
protocol of the lakes' corpora that reads what it reads; what has been scored is not scored again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

import torch

from jobs.command import main
from jobs.evaluate import evaluate, own_folder, read_table_of_labels, scoring_options
from rayzero.bundle import fingerprint, load_bundle, read_bundle_card
from rayzero.config import Config, ConfigError
from rayzero.evaluation.comparison import compare, write_comparison
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.overview import Overview
from rayzero.evaluation.protocols.registry import Protocol, find_protocol, protocol_names
from rayzero.evaluation.report import write_pages
from rayzero.studies.lake import Lake, open_lake


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, compare, and write the page. Raises EvaluationError when reports do not belong together."""
    options = _parse(arguments)
    sources = _pairs(options.sources, "label=folder, such as radzero=runs/radzero", "reports are labelled")
    if not options.lakes:
        comparison = compare(sources)
        out = options.out or own_folder("comparison", "-".join(sources), comparison.to_json())
        where = write_comparison(comparison, out)
        print(f"{comparison.to_text()}\n\ncomparison  {where}/comparison.html")
        return
    lakes = [open_lake(url) for url in options.lakes]
    out = (options.out or _own_folder(sources, lakes, options)).rstrip("/")
    overview = _measure(sources, lakes, options, out)
    pages = {"overview.json": json.dumps(overview.to_json(), indent=2, allow_nan=False)}
    where = write_pages(out, {**pages, "overview.html": overview.to_html()})
    print(f"{overview.to_text()}\n\noverview  {where}/overview.html")


def _own_folder(sources: Mapping[str, str], lakes: Sequence[Lake], options: argparse.Namespace) -> str:
    """Where the table of these bundles on these lakes goes by default."""
    bundles = {label: fingerprint(url) for label, url in sources.items()}
    return own_folder("comparison", "-".join(sources), [bundles, [lake.fingerprint for lake in lakes], options.labels])


def _measure(sources: Mapping[str, str], lakes: Sequence[Lake], options: argparse.Namespace, folder: str) -> Overview:
    """Every bundle by every protocol that fits, and their comparisons by protocol, written below ``folder``."""
    tables = _pairs(options.labels, "protocol=CSV, such as ct-rate-lt=labels.csv", "tables are given for")
    # What is wrong with any table, bundle or lake is told before hours go into the others.
    labels = {name: read_table_of_labels(url, find_protocol(name)) for name, url in tables.items()}
    plans = {label: _plan(read_bundle_card(url)[0], lakes) for label, url in sources.items()}
    reports: dict[str, dict[str, str]] = {name: {} for name in protocol_names()}
    refused: list[tuple[str, str, str]] = []
    for label, url in sources.items():
        bundle = load_bundle(url, "cuda" if torch.cuda.is_available() and not options.workers else "cpu")
        for protocol, lake in plans[label]:
            out = f"{folder}/{protocol.name}/{label}"
            print(f"{label} on {protocol.name}", flush=True)
            try:
                evaluate(protocol, lake, url, bundle, options, out=out, labels=labels.get(protocol.name))
            except EvaluationError as error:
                refused.append((label, protocol.name, str(error)))
            else:
                reports[protocol.name][label] = out
    if not any(reports.values()):
        raise EvaluationError(
            "no protocol measures these lakes with these bundles: "
            + ("; ".join(reason for *_, reason in refused) or "their corpora or kinds of image do not fit")
        )
    comparisons = {name: compare(found) for name, found in reports.items() if found}
    for name, comparison in comparisons.items():
        write_comparison(comparison, f"{folder}/{name}")
    return Overview(tuple(sources), comparisons, refused)


def _plan(config: Config, lakes: Sequence[Lake]) -> list[tuple[Protocol, Lake]]:
    """What a bundle of ``config`` is measured by, and on which lake. Raises EvaluationError for two lakes of one."""
    plan = []
    for protocol in map(find_protocol, protocol_names()):
        fitting = [lake for lake in lakes if protocol.fits(lake, config)]
        if len(fitting) > 1:
            raise EvaluationError(f"two lakes are of protocol {protocol.name!r}; the second is {fitting[1].url}")
        plan += [(protocol, lake) for lake in fitting]
    return plan


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.compare", description=__doc__.split("\n")[0], parents=[scoring_options()]
    )
    parser.add_argument(
        "sources", nargs="+", metavar="label=folder", help="a name, and its report; with --lakes, its bundle"
    )
    parser.add_argument("--lakes", nargs="+", default=(), help="folders or URLs of lakes to evaluate bundles on")
    parser.add_argument(
        "--labels", nargs="+", default=(), metavar="protocol=CSV", help="labels of protocols that have their own table"
    )
    parser.add_argument(
        "--out", help="folder or URL for the table and its reports (default: one of its own in runs/comparison)"
    )
    return parser.parse_args(arguments)


def _pairs(words: Sequence[str], form: str, twice: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        label, separator, value = word.partition("=")
        if not (separator and label and value):
            raise ConfigError(f"{word!r} is not of the form {form}")
        if label in found:
            raise ConfigError(f"two {twice} {label!r}; give each its own")
        found[label] = value
    return found


if __name__ == "__main__":
    main(run)
