"""An S3 server that misbehaves: moto in a process of its own, behind a proxy that fails, stalls and hangs up."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.ports import free_port

_ERROR = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class FaultyStore(ThreadingHTTPServer):
    """Passes requests on to ``port``, except for those that chance picks; ``faults`` counts what was done to them."""

    daemon_threads = True

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._back = 0.0
        self._held = ""
        self._released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def away(self, *, seconds: float) -> None:
        """Hang up on every request for so long."""
        self._back = time.monotonic() + seconds

    def hold(self, name: str) -> None:
        """Leave requests for keys that contain ``name`` unanswered until ``release``, which hangs up on them."""
        self._held = name
        self._released.clear()

    def release(self) -> None:
        """End what ``hold`` began."""
        self._held = ""
        self._released.set()

    def holds(self, path: str) -> bool:
        """Whether a request for ``path`` was held; waits for the release."""
        if not self._held or self._held not in path:
            return False
        self.faults["held"] += 1
        self._released.wait()
        return True

    def draw(self) -> str:
        """What happens to the next request: a tenth fails, a twentieth stalls, a twentieth is cut short."""
        with self._lock:
            if time.monotonic() < self._back:
                self.faults["away"] += 1
                return "away"
            number = self._random.random()
            fault = "fail" if number < 0.10 else "stall" if number < 0.15 else "cut" if number < 0.20 else "none"
            self.faults[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def _pass_on(self) -> None:
        body = self._body()
        fault = "away" if self.server.holds(self.path) else self.server.draw()
        if fault == "away":
            raise ConnectionError
        if fault == "fail":
            self._answer(500, [("Content-Type", "application/xml")], _ERROR)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        kept = [(n, v) for n, v in response.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
        self._answer(response.status, kept, data, slow=fault == "stall", cut=fault == "cut" and self.command == "GET")
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, slow: bool = False, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(data) // 2
        self.wfile.write(data[:half])
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if slow:
            self.wfile.flush()
            time.sleep(0.5)
        self.wfile.write(data[half:])

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError):
            self.close_connection = True


@contextmanager
def faulty_store(seed: int) -> Iterator[FaultyStore]:
    """A running store with a bucket ``bucket``; the environment of this process and its children points to it."""
    port = free_port()
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    store = FaultyStore(port, seed)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    settings = {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _make_bucket(port)
        yield store
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        store.shutdown()
        moto.terminate()
        moto.wait()


def _make_bucket(port: int) -> None:
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("PUT", "/bucket")
            assert connection.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the S3 server does not start")
