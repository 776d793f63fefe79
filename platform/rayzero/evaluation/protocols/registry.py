"""Protocols by name. A protocol is one file of this package that registers itself; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol as Interface

import rayzero.evaluation.protocols
from rayzero.bundle import Bundle
from rayzero.config import Config, EvaluationConfig, nearest
from rayzero.evaluation.benchmark import VOLUME, Benchmark
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import Scorer
from rayzero.evaluation.result import EvaluationResult
from rayzero.studies.lake import Lake


class Run(Interface):
    """Evaluates a bundle on a lake under one protocol."""

    def __call__(
        self,
        bundle: Bundle,
        lake: Lake,
        *,
        config: EvaluationConfig | None = None,
        split: str = "test",
        scorer: Scorer | None = None,
        labels: Mapping[str, Mapping[str, int]] | None = None,
    ) -> EvaluationResult:
        """``config`` defaults to the bundle's own, ``scorer`` to this process, ``labels`` to those of the lake.

        Raises EvaluationError when the lake lacks what the protocol measures.
        """


@dataclass(frozen=True)
class Protocol:
    """A registered protocol: its name, what it is in a sentence, the corpora it measures, and how to run it.

    ``volumes`` says whether it reads CT volumes, or either kind of image (None).
    """

    name: str
    title: str
    corpora: tuple[str, ...]
    run: Run
    volumes: bool | None = None
    benchmark: Benchmark | None = None

    def fits(self, lake: Lake, config: Config) -> bool:
        """Whether it measures what ``lake`` holds with a bundle that reads what ``config`` says."""
        reads = self.volumes is None or self.volumes == (config.data.input == "volume")
        return reads and set(lake.counts["corpus"]) <= set(self.corpora)


_PROTOCOLS: dict[str, Protocol] = {}


def register(protocol: Protocol) -> None:
    """Make a protocol known under its name. Raises ValueError when the name is taken."""
    if protocol.name in _PROTOCOLS:
        raise ValueError(f"two protocols are registered as {protocol.name!r}")
    _PROTOCOLS[protocol.name] = protocol


def publish(benchmark: Benchmark) -> None:
    """Make a benchmark known as a protocol. Raises ValueError when the name is taken."""
    volumes = benchmark.views == VOLUME
    register(Protocol(benchmark.name, benchmark.title, benchmark.corpora, benchmark.run, volumes, benchmark))


def find_protocol(name: str) -> Protocol:
    """The protocol called ``name``. Raises EvaluationError with the nearest name."""
    _discover()
    if name not in _PROTOCOLS:
        raise EvaluationError(f"unknown protocol {name!r}: {nearest(name, list(_PROTOCOLS))}")
    return _PROTOCOLS[name]


def protocol_names() -> list[str]:
    """The names of all protocols."""
    _discover()
    return sorted(_PROTOCOLS)


def _discover() -> None:
    for module in pkgutil.iter_modules(rayzero.evaluation.protocols.__path__):
        importlib.import_module(f"rayzero.evaluation.protocols.{module.name}")
