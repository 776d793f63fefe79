"""The demonstration's server, page and TensorBoard on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from rayzero.config import ConfigError


@dataclass
class Host:
    """Starts what a person opens in a browser; leaving the context stops it, also when SIGTERM ends the process."""

    folder: Path
    port: int
    page_port: int
    tensorboard_port: int
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.terminate()

    def check_ports(self) -> None:
        """Raises ConfigError, before any work is done, when a port is taken."""
        ports = {"--port": self.port, "--page-port": self.page_port, "--tensorboard-port": self.tensorboard_port}
        for name, port in ports.items():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise ConfigError(f"port {port} is in use; give another one with {name}")

    def start(self, name: str, bundle: str) -> None:
        """Serve ``bundle`` as model ``name`` on this Ray cluster, then start the page and TensorBoard.

        Returns when the page answers.
        """
        # Imported here: the build stages need neither Serve nor its settings.
        from serve.app import start
        from serve.settings import AppArgs

        server = start(AppArgs(bundles={name: bundle}, examples=str(self.folder / "examples")), port=self.port)
        self._launch("ui.app", "--server", server, "--port", str(self.page_port))
        tensorboard = ("--logdir", str(self.folder), "--port", str(self.tensorboard_port), "--bind_all=false")
        self._launch("tensorboard.main", *tensorboard)
        self._await_page(f"http://127.0.0.1:{self.page_port}")

    def addresses(self, dashboard: str) -> str:
        """What to open."""
        return "\n".join(
            [
                "",
                f"page           http://127.0.0.1:{self.page_port}",
                f"API docs       http://127.0.0.1:{self.port}/docs",
                f"Ray dashboard  {dashboard}",
                f"TensorBoard    http://127.0.0.1:{self.tensorboard_port}",
                "",
                "Research use only. Ctrl-C stops everything.",
            ]
        )

    def wait(self) -> None:
        """Stay until Ctrl-C or until the page ends."""
        try:
            self._processes[0].wait()
        except KeyboardInterrupt:
            print("stopping")

    def _launch(self, module: str, *arguments: str) -> None:
        log = (self.folder / f"{module.split('.')[0]}.log").open("wb")
        command = [sys.executable, "-m", module, *arguments]
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

    def _await_page(self, url: str, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise ConfigError(f"the page did not answer at {url} within {seconds:.0f} s; see {self.folder / 'ui.log'}")
