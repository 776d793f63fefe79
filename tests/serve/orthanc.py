"""A real PACS for tests: Debian's Orthanc with its DICOMweb plugin."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.ports import free_port

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

USER, PASSWORD = "rayzero", "of-tests"
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Orthanc:
    """A running one, at ``url``."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        settings = {
            "Name": "tests",
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "Plugins": [str(PLUGIN)],
            "HttpPort": port,
            "DicomServerEnabled": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.log = folder / "orthanc.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=log, stderr=log)
        self._root = f"http://127.0.0.1:{port}"
        self.url = f"{self._root}/dicom-web"
        self._http = requests.Session()
        self._http.auth, self._http.trust_env = (USER, PASSWORD), False
        self._wait()

    def put(self, file: bytes) -> None:
        """Store a DICOM file."""
        self._http.post(f"{self._root}/instances", data=file).raise_for_status()

    def files(self, modality: str) -> list[bytes]:
        """The files of that modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        found = self._http.post(f"{self._root}/tools/find", json=query).json()
        return [self._http.get(f"{self._root}/instances/{one}/file").content for one in found]

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Takes connections and answers none."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self._http.get(f"{self.url}/studies").raise_for_status()
            except requests.RequestException:
                time.sleep(0.05)
            else:
                return
        self._process.kill()
        raise RuntimeError(f"Orthanc does not start: {self.log.read_text()[-2000:]}")
