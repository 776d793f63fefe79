"""The demonstration says before any work which port is taken, and how to take another."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jobs.host import Host
from rayzero.config import ConfigError
from tests.ports import free_port


@pytest.mark.parametrize("option", ["--port", "--page-port", "--tensorboard-port"])
def test_a_port_that_is_taken_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        ports = {name: free_port() for name in ("--port", "--page-port", "--tensorboard-port")} | {option: taken}
        with pytest.raises(ConfigError, match=f"port {taken} is in use; give another one with {option}"):
            Host(tmp_path, *ports.values()).check_ports()


def test_free_ports_are_no_trouble_and_are_shown(tmp_path: Path) -> None:
    host = Host(tmp_path, *(free_port() for _ in range(3)))
    host.check_ports()
    shown = host.addresses("http://127.0.0.1:8265")
    for port in (host.port, host.page_port, host.tensorboard_port):
        assert f"http://127.0.0.1:{port}" in shown
