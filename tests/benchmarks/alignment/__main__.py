"""Run the cases: ``python -m tests.benchmarks.alignment [--out FILE] [--device cpu|cuda] [--only NAME]``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import tests.benchmarks.alignment as package
from tests.benchmarks.alignment.case import Case
from tests.benchmarks.harness import report


def cases() -> list[Case]:
    """The cases of all modules of this package, in the order of their names."""
    modules = [
        module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in ("__main__", "case")
    ]
    return [case for name in modules for case in importlib.import_module(f"{package.__name__}.{name}").CASES]


def main() -> None:
    """Measure, print the table and write it as JSON where asked; exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=package.__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", metavar="NAME", help="one case, by name")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; medians are reported")
    arguments = parser.parse_args()
    known = [case for case in cases() if arguments.device in case.devices]
    chosen = [case for case in known if arguments.only in (None, case.name)]
    if not chosen:
        parser.error(
            f"--only {arguments.only}: on {arguments.device} there is {', '.join(case.name for case in known)}"
        )
    rows = [row for case in chosen for row in case.measure(arguments.device, arguments.rounds)]
    note = "forward and backward of one op beside the formula as published, timed in turn in one run"
    raise SystemExit(0 if report("alignment", rows, arguments.out, note=note) else 1)


if __name__ == "__main__":
    main()
