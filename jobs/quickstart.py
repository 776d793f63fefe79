"""The whole path on one machine: simulate, ingest, pretrain, evaluate, sweep, export, serve.

python -m jobs.quickstart                   what `make demo` runs
python -m jobs.quickstart --no-serve        stops before serving
python -m jobs.quickstart --system brgsa    another system, here with CT in the place of films
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.command import connect, main, preset_config, whole_number
from jobs.evaluate import summary
from jobs.examples import write_examples
from jobs.host import Host
from jobs.phantom import simulate
from rayzero.alignment import registry
from rayzero.bundle import load_bundle, update_card
from rayzero.config import Config, ConfigError, nearest, override
from rayzero.evaluation.inference import OnRay
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.report import write_report
from rayzero.evaluation.result import EvaluationResult
from rayzero.phantom.vocabulary import FINDINGS
from rayzero.studies.ingest import ingest
from rayzero.studies.lake import open_lake
from rayzero.training.export import export_run
from rayzero.training.run import pretrain
from tune.space import load_space
from tune.sweep import prepare, run_sweep

_SPACES = Path("tune/spaces")
# Fine enough for the volumes that the preset asks for.
_CT_SPACING_MM = 3.0
# Shares of train, validation and test patients: a test split large enough for narrow intervals.
_FRACTIONS = (0.62, 0.1, 0.28)


@dataclass
class Demo:
    """Where the demonstration keeps its files, and how long each stage took."""

    folder: Path
    config: Config
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bundle(self) -> str:
        """The exported model."""
        return str(self.folder / "bundle")

    @property
    def reads_ct(self) -> bool:
        """Whether the system reads CT volumes in the place of films."""
        return self.config.data.input == "volume"

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        print(f"\n== {text}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        print(f"   {name}: {self.seconds[name]:.0f} s", flush=True)


def build(demo: Demo, *, patients: int, sweep: bool) -> EvaluationResult:
    """Everything up to a bundle and its report."""
    what = "NIfTI CT volumes" if demo.reads_ct else "DICOM films"
    with demo.stage("phantom", f"Simulating {patients} patients as {what} and reports"):
        _simulate(demo, patients)
    with demo.stage("ingest", "Ingesting images and reports into a Parquet lake"):
        _ingest(demo)
    with demo.stage("pretrain", f"Pretraining {demo.config.system} on Ray Train + DeepSpeed"):
        result = pretrain(_staged(demo))
    with demo.stage("evaluate", "Evaluating zero-shot on held-out patients"):
        export_run(result.run_folder, demo.bundle)
        evaluated = _evaluate(demo)
    with demo.stage("examples", "Choosing example studies for the page"):
        lake = open_lake(demo.config.data.lake)
        image = "ct.nii.gz" if demo.reads_ct else "pa.dcm"
        write_examples(demo.folder / "phantom", lake, demo.folder / "examples", image=image, findings=FINDINGS)
    if sweep:
        with demo.stage("sweep", "Sweeping the temperature with Ray Tune + Optuna"):
            _sweep(demo)
    return evaluated


def _staged(demo: Demo) -> Config:
    """The demonstration's config; for a system that adapts the towers of MRM, that run is made first."""
    if demo.config.model.get("mrm", None) != "":
        return demo.config
    shared = {"storage": demo.config.storage, "data.lake": demo.config.data.lake, "seed": demo.config.seed}
    first = pretrain(override(preset_config(_preset("mrm"), []), shared))
    towers = export_run(first.run_folder, str(demo.folder / "mrm-bundle"))
    return override(demo.config, {"model.mrm": towers})


def _simulate(demo: Demo, patients: int) -> None:
    simulate(
        demo.folder / "phantom",
        patients=patients,
        seed=demo.config.seed,
        fractions=_FRACTIONS,
        films=not demo.reads_ct,
        ct="nifti" if demo.reads_ct else "none",
        ct_spacing=_CT_SPACING_MM,
    )


def _ingest(demo: Demo) -> None:
    done = ingest("phantom", str(demo.folder / "phantom"), demo.config.data.lake)
    counts = done.lake.counts
    print(f"   {counts['total']}  {dict(counts['split'])}  quarantined {len(done.quarantined)}")


def _evaluate(demo: Demo) -> EvaluationResult:
    bundle = load_bundle(demo.bundle)
    settings = bundle.config.evaluation
    scorer = OnRay(demo.bundle, bundle.config, settings.batch_size, workers=2)
    result = find_protocol("phantom").run(bundle, open_lake(demo.config.data.lake), scorer=scorer)
    update_card(demo.bundle, {**result.card(), "vocabulary": list(FINDINGS)})
    print(summary(result))
    return result


def _sweep(demo: Demo) -> None:
    base = [f"storage={demo.config.storage}", f"data.lake={demo.config.data.lake}", f"seed={demo.config.seed}"]
    sweep = prepare(load_space(_space(demo.config.system)), "temperature", base)
    best = run_sweep(sweep)
    for trial in best.trials:
        print(f"   {best.metric} {trial.value:.4f}  {trial.parameters}")
    print(f"   report {sweep.folder}/report.html")


def finish(demo: Demo, evaluated: EvaluationResult) -> None:
    """Write the run's report, with the seconds of each stage."""
    extra: dict[str, Any] = {"seconds": demo.seconds, "system": demo.config.system}
    write_report(evaluated, str(demo.folder), overlays=demo.config.evaluation.overlays, extra=extra)
    print(f"\nreport  {demo.folder / 'report.html'}\n        {json.dumps(demo.seconds)}", flush=True)


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and run the demonstration."""
    options = _parser().parse_args(arguments)
    folder = Path(options.out).resolve()
    if (folder / "phantom").exists():
        raise ConfigError(f"{folder} holds an earlier demonstration; delete it or choose another --out")
    if options.system not in registry.system_names():
        raise ConfigError(f"unknown --system {options.system}: {nearest(options.system, registry.system_names())}")
    if options.system == "mrm":
        raise ConfigError("--system mrm pretrains encoders and answers no queries; --system alta runs it first")
    base = {"name": "quickstart", "system": options.system, "storage": str(folder), "data.lake": str(folder / "lake")}
    config = registry.resolve(override(preset_config(_preset(options.system), options.overrides), base))
    host = None if options.no_serve else Host(folder, options.port, options.page_port, options.tensorboard_port)
    if host:
        host.check_ports()
        # Read where Ray starts: its proxy answers what fails there as the server does (see serve/proxy.py).
        os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.proxy.middlewares")
    dashboard = connect()
    demo = Demo(folder, config)
    sweep = not options.no_sweep and _space(config.system).is_file()
    evaluated = build(demo, patients=options.patients, sweep=sweep)
    if host is None:
        finish(demo, evaluated)
        return
    with host:
        with demo.stage("serve", "Starting the server and the page"):
            host.start(demo.config.system, demo.bundle)
        finish(demo, evaluated)
        print(host.addresses(dashboard), flush=True)
        host.wait()


def _preset(system: str) -> str:
    """The preset of a system at laptop size, and the name of its sweep's space."""
    return "quickstart" if system == "radzero" else f"quickstart-{system}"


def _space(system: str) -> Path:
    return _SPACES / f"{_preset(system)}.yaml"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--system", default="radzero", help=f"one of {', '.join(registry.system_names())}")
    parser.add_argument("--out", default="runs/demo", help="folder for everything that is made")
    parser.add_argument("--patients", type=whole_number(20), default=440)
    parser.add_argument(
        "--no-sweep", action="store_true", help="leave the sweep out; systems without a space in tune/spaces have none"
    )
    parser.add_argument("--no-serve", action="store_true", help="stop before serving")
    parser.add_argument("--port", type=whole_number(1, 65535), default=8000, help="port of the server")
    parser.add_argument("--page-port", type=whole_number(1, 65535), default=7860, help="port of the page")
    parser.add_argument("--tensorboard-port", type=whole_number(1, 65535), default=6006, help="port of TensorBoard")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the pretraining run")
    return parser


if __name__ == "__main__":
    main(run, sys.argv[1:])
