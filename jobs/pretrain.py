"""Pretrain an alignment model on Ray Train + DeepSpeed, or continue a run that was interrupted.

python -m jobs.pretrain --preset radzero data.lake=s3://bucket/lake training.workers=8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import connect, main, preset_config, preset_names
from rayzero.alignment import registry
from rayzero.config import dump_yaml
from rayzero.training.run import pretrain


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and train."""
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or the path of a YAML file")
    parser.add_argument("--show-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as training.workers=2")
    options = parser.parse_args(arguments)
    config = registry.resolve(preset_config(options.preset, options.overrides))
    if options.show_config:
        print(dump_yaml(config), end="")
        return
    connect()
    result = pretrain(config)
    shown = {name: round(value, 4) for name, value in result.metrics.items() if isinstance(value, float)}
    print(f"run folder  {result.run_folder}\ncheckpoint  {result.checkpoint.path}\nmetrics     {shown}")


if __name__ == "__main__":
    main(run)
