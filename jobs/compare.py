"""Put reports of several systems on the same studies side by side; writes comparison.html and prints the table.

python -m jobs.compare radzero=runs/radzero carzero=runs/carzero --out runs/comparison
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import main
from rayzero.config import ConfigError
from rayzero.evaluation.comparison import compare, write_comparison


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments``, compare, and write the page. Raises EvaluationError when reports do not belong together."""
    parser = argparse.ArgumentParser(prog="python -m jobs.compare", description=__doc__.split("\n")[0])
    parser.add_argument("reports", nargs="+", metavar="label=folder", help="a name, and where its report.json is")
    parser.add_argument("--out", default="runs/comparison", help="folder or URL for comparison.json and .html")
    options = parser.parse_args(arguments)
    comparison = compare(_sources(options.reports))
    where = write_comparison(comparison, options.out)
    print(f"{comparison.to_text()}\n\ncomparison  {where}/comparison.html")


def _sources(words: Sequence[str]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for word in words:
        label, separator, folder = word.partition("=")
        if not (separator and label and folder):
            raise ConfigError(f"{word!r} is not of the form label=folder, such as radzero=runs/radzero")
        if label in sources:
            raise ConfigError(f"two reports are labelled {label!r}; give each its own label")
        sources[label] = folder
    return sources


if __name__ == "__main__":
    main(run)
