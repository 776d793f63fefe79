"""Pretrain an alignment model on Ray Train + DeepSpeed, or continue a run that was interrupted.

python -m jobs.pretrain --preset radzero data.lake=s3://bucket/lake training.workers=8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import connect, main, preset_config, preset_names
from rayzero.alignment import registry
from rayzero.config import dump_yaml
from rayzero.training.manifest import SCORE
from rayzero.training.plan import describe, plan
from rayzero.training.run import count_examples, open_training_lake, pretrain


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and train."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or the path of a YAML file")
    parser.add_argument("--show-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved settings, parameters, steps per epoch and memory at each ZeRO stage, and stop",
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of three steps to profile/trace.json in the run folder"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.workers=2")
    options = parser.parse_args(arguments)
    config = registry.resolve(preset_config(options.preset, options.overrides))
    if options.show_config:
        print(dump_yaml(config), end="")
        return
    if options.dry_run:
        print(dump_yaml(config))
        print(describe(plan(config, count_examples(config, open_training_lake(config))), config))
        return
    connect()
    result = pretrain(config, profile=options.profile)
    metrics = {name: value for name, value in result.metrics.items() if name != SCORE}
    shown = {name: round(value, 4) for name, value in metrics.items() if isinstance(value, float)}
    print(f"run folder  {result.run_folder}\ncheckpoint  {result.checkpoint.path}\nmetrics     {shown}")


if __name__ == "__main__":
    main(run)
