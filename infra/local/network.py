"""Where the nodes of a local cluster live: in network namespaces of their own, or on one loopback interface.

With namespaces each worker has its own address behind a bridge, as machines have: what binds to the wrong interface
or takes two nodes for one fails here and not first on a real cluster. They reach this machine and each other, and
nothing else.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from infra.local.errors import ClusterError

Kind = Literal["namespaces", "loopback"]


@dataclass(frozen=True)
class Network:
    """The addresses of a cluster of ``workers`` nodes; ``name`` (up to 11 characters) prefixes what it creates."""

    kind: Kind
    name: str
    workers: int
    subnet: str = ""

    @property
    def head(self) -> str:
        """The head's address, which this machine and every worker can reach."""
        return "127.0.0.1" if self.kind == "loopback" else str(self._hosts[0])

    def worker(self, index: int) -> str:
        """The address of worker ``index`` (from 1)."""
        return "127.0.0.1" if self.kind == "loopback" else str(self._hosts[index])

    def enter(self, index: int) -> list[str]:
        """What a command of worker ``index`` is prefixed with."""
        return [] if self.kind == "loopback" else ["ip", "netns", "exec", f"{self.name}-{index}"]

    def interface(self, index: int) -> str:
        """The interface that collectives of node ``index`` (0 is the head) use."""
        if self.kind == "loopback":
            return "lo"
        return "eth0" if index else self.name

    def create(self) -> None:
        """Make the bridge and the namespaces. Raises ClusterError with the command that failed."""
        if self.kind == "loopback":
            return
        length = ipaddress.ip_network(self.subnet).prefixlen
        _ip("link", "add", self.name, "type", "bridge")
        _ip("addr", "add", f"{self.head}/{length}", "dev", self.name)
        _ip("link", "set", self.name, "up")
        for index in range(1, self.workers + 1):
            name = f"{self.name}-{index}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", self.name, "up")
            _ip("-netns", name, "addr", "add", f"{self.worker(index)}/{length}", "dev", "eth0")
            for interface in ("eth0", "lo"):
                _ip("-netns", name, "link", "set", interface, "up")

    def remove(self) -> None:
        """Remove what ``create`` made, as far as it is there."""
        if self.kind == "loopback":
            return
        for index in range(1, self.workers + 1):
            name = f"{self.name}-{index}"
            # The link first: a namespace whose last process is only just gone keeps its interfaces for a while.
            for command in (["link", "del", name], ["netns", "del", name]):
                subprocess.run(["ip", *command], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.name], capture_output=True, check=False)

    @property
    def _hosts(self) -> list[ipaddress.IPv4Address]:
        return list(ipaddress.IPv4Network(self.subnet).hosts())


def plan(kind: Literal["auto"] | Kind, name: str, workers: int) -> Network:
    """The network of a new cluster; ``auto`` means namespaces where this user may make them.

    Raises ClusterError when namespaces are asked for and not allowed here.
    """
    reason = _forbidden()
    if kind == "namespaces" and reason:
        raise ClusterError(f"--network namespaces: {reason}; use --network loopback")
    if kind == "loopback" or reason:
        return Network("loopback", name, workers)
    return Network("namespaces", name, workers, _free_subnet())


def free_ports(preferred: int, count: int, taken: set[int]) -> int:
    """The first of ``count`` ports in a row, from ``preferred`` up, that nobody listens at; ``taken`` gets them.

    Raises ClusterError when there are none within the next thousand.
    """
    for first in range(preferred, preferred + 1000, count):
        wanted = set(range(first, first + count))
        if not wanted & taken and all(_is_free(port) for port in wanted):
            taken |= wanted
            return first
    raise ClusterError(f"no {count} free ports in a row from {preferred} to {preferred + 999}")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # On every interface, as some of Ray's servers listen.
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _forbidden() -> str:
    if shutil.which("ip") is None:
        return "the command ip is missing (Debian package iproute2)"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"this system refuses them ({done.stderr.strip()})" if done.returncode else ""


def _free_subnet() -> str:
    done = subprocess.run(["ip", "-json", "addr"], capture_output=True, text=True, check=True)
    used = [
        ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
        for link in json.loads(done.stdout)
        for address in link["addr_info"]
        if address["family"] == "inet"
    ]
    for third in range(256):
        subnet = ipaddress.IPv4Network(f"10.213.{third}.0/24")
        if not any(subnet.overlaps(other) for other in used if isinstance(other, ipaddress.IPv4Network)):
            return str(subnet)
    raise ClusterError("every subnet of 10.213.0.0/16 is in use on this machine; use --network loopback")


def _ip(*arguments: str) -> None:
    command: Sequence[str] = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}; use --network loopback")
