"""Export a run's best checkpoint as a bundle that evaluation and serving load.

python -m jobs.export --run runs/quickstart --bundle bundles/radzero
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import main
from rayzero.training.export import export_run


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and export."""
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, help="run folder or URL, as jobs.pretrain printed it")
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="best by training.monitor on the validation split (default; the newest where none was validated), newest, "
        "or a name such as checkpoint-00000100",
    )
    parser.add_argument("--bundle", required=True, help="folder or URL to write")
    options = parser.parse_args(arguments)
    print(f"bundle  {export_run(options.run, options.bundle, checkpoint=options.checkpoint)}")


if __name__ == "__main__":
    main(run)
