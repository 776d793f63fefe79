"""A real Ray cluster on this machine, with token authentication, Prometheus, TensorBoard and the Optuna dashboard.

python -m infra.local up --workers 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.local import cluster
from infra.local.errors import ClusterError
from infra.local.processes import memory_mib
from infra.local.settings import Settings, load


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and do it."""
    options = _parser().parse_args(arguments)
    if options.command == "up":
        settings = cluster.up(
            options.folder,
            runs=options.runs,
            workers=options.workers,
            cpus=options.cpus,
            network=options.network,
            redis=options.redis,
        )
        print(cluster.describe(settings))
    elif options.command == "down":
        print("the cluster is down" if cluster.down(options.folder) else f"no cluster is up in {options.folder}")
    elif options.command == "status":
        _print_status(_running(options.folder))
    elif options.command == "kill":
        count = cluster.kill(_running(options.folder), options.component)
        print(f"{options.component}: {count} processes killed")
    else:
        cluster.restart(_running(options.folder), options.component)
        print(f"{options.component} answers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/cluster"), help="state, token, logs and metrics")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it and print its addresses")
    up.add_argument("--workers", type=int, choices=range(1, 9), default=2, metavar="1-8", help="worker nodes")
    up.add_argument("--cpus", type=int, default=2, help="what each worker offers (default 2)")
    up.add_argument("--runs", type=Path, default=Path("runs"), help="what TensorBoard and Optuna's dashboard show")
    up.add_argument(
        "--network",
        choices=("auto", "namespaces", "loopback"),
        default="auto",
        help="a namespace per worker (needs root; reaches this machine only), or all on loopback",
    )
    up.add_argument("--redis", action="store_true", help="keep the head's state in Redis, so that it survives the head")
    commands.add_parser("down", help="end every process of it")
    commands.add_parser("status", help="its processes, their memory, and its nodes")
    for name, text in (("kill", "SIGKILL a component, as a fault does"), ("restart", "start a component again")):
        command = commands.add_parser(name, help=text)
        command.add_argument("component", help="head, worker-1, ..., redis, prometheus, tensorboard or optuna")
    return parser


def _running(folder: Path) -> Settings:
    settings = load(folder.resolve())
    if settings is None or not cluster.status(folder):
        raise ClusterError(f"no cluster is up in {folder}; `make cluster` starts one")
    return settings


def _print_status(settings: Settings) -> None:
    for name, pids in cluster.status(settings.folder).items():
        print(f"{name:<12} {f'{len(pids):>3} processes {memory_mib(pids):>6} MiB' if pids else 'down'}")
    print(cluster.describe(settings))


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
