"""A hospital's PACS by DICOMweb: images found (QIDO-RS) and fetched (WADO-RS), results stored (STOW-RS).

Only what the operator configured is ever talked to: a client names a PACS and UIDs, never an address, and a PACS
cannot send this server elsewhere. What it sends is taken as a stranger's file: counted while it streams, and parsed
in the confined reader alone.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
from dicomweb_client import URI, DICOMwebClient
from pydicom.dataset import Dataset

from rayzero.config import ConfigError
from serve.held import Lease
from serve.images import Kind
from serve.problems import Problem, silence
from serve.settings import Limits, PacsArgs

T = TypeVar("T")

UID = r"^[0-9]+(\.[0-9]+)*$"
"""A UID, of at most 64 characters; leading zeros, which the standard forbids, are in use."""

logger = logging.getLogger("ray.serve")
# These log the address of a request, with the UIDs in it, and what went wrong with it.
silence("dicomweb_client", "retrying", "urllib3")

# In whichever syntax the file is stored: a PACS that cannot transcode refuses to send it otherwise.
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_MODALITIES: dict[Kind, tuple[str, ...]] = {"radiograph": ("CR", "DX"), "volume": ("CT",)}
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_UID = re.compile(UID)
_LEVELS, UID_CHARS = 3, 64
_SEARCH_BYTES = 16 * 2**20
_CONNECT_S = 5.0
# A body that does not end is cut at its deadline; a header that does not, so long after it.
_GRACE_S = 2.0
# Boundaries and headers of the parts of a body.
_PART_BYTES = 1024
_NAMED = 10


@dataclass(frozen=True)
class Address:
    """Where an image lies: the configured name of a PACS, and the UIDs of a study and perhaps of what is in it."""

    pacs: str
    study: str
    series: str | None = None
    instance: str | None = None


def to_address(pacs: str, text: str, field: str) -> Address:
    """``STUDY``, ``STUDY/SERIES`` or ``STUDY/SERIES/INSTANCE``, each a UID. Raises Problem (422)."""
    uids = text.split("/")
    if len(uids) > _LEVELS or not all(len(uid) <= UID_CHARS and _UID.fullmatch(uid) for uid in uids):
        detail = "Give UIDs as STUDY, STUDY/SERIES or STUDY/SERIES/INSTANCE."
        raise Problem(422, "invalid-request", detail, field=field)
    return Address(pacs, *uids)


class Archive:
    """One PACS. Raises ConfigError for credentials or certificates that are not there."""

    def __init__(self, name: str, args: PacsArgs, limits: Limits) -> None:
        self.name = name
        self.args = args
        self._limits = limits
        self._url = args.url.rstrip("/")
        self._authorization = os.environ.get(args.authorization, "").strip()
        if args.authorization and not (self._authorization and self._authorization.isprintable()):
            raise ConfigError(
                f"pacs {name}: authorization names the environment variable {args.authorization}, which has to hold "
                "one line, the value of the Authorization header"
            )
        if args.certificates and not Path(args.certificates).is_file():
            raise ConfigError(f"pacs {name}: there is no file certificates={args.certificates!r}")
        # Threads of its own: a PACS that hangs holds up nobody but those who ask it.
        self._threads = ThreadPoolExecutor(args.at_once, thread_name_prefix="pacs")
        self._turns = asyncio.Semaphore(args.at_once)

    async def fetch(self, address: Address, kind: Kind, lease: Lease) -> bytes:
        """The one film at ``address`` as its DICOM file, or the one CT series as a zip of its files.

        ``lease`` counts the bytes as they arrive. Raises Problem: 404 for UIDs that are not there, 409 for a study
        that holds several such images, 413 beyond a limit, 502 or 504 for a PACS that is away, wrong or too slow.
        """
        return await self._run(partial(self._fetch, address, kind, lease))

    async def store(self, made: Dataset) -> None:
        """Store an object in its study. Raises Problem (502, 504)."""
        await self._run(partial(self._store, made))

    def _fetch(self, address: Address, kind: Kind, lease: Lease, client: DICOMwebClient, session: _Session) -> bytes:
        limits = self._limits
        session.allow(_SEARCH_BYTES, lease)
        found = _find(client, address, kind)
        most = limits.volume_bytes if kind == "volume" else limits.file_bytes
        session.allow(most + _PART_BYTES * limits.slices, lease)
        # The library's own way to fetch an instance would parse it here.
        address_there = URI(self._url, found.study, found.series, found.instance, permissive=True)
        parts = client.iter_bulkdata(str(address_there))
        data = _zipped(parts, limits) if kind == "volume" else b"".join(parts)
        if not data:
            raise _unknown()
        if len(data) > most:
            raise _too_large(most)
        return data

    def _store(self, made: Dataset, client: DICOMwebClient, session: _Session) -> None:
        try:
            answer = client.store_instances([made], made.StudyInstanceUID)
        except requests.HTTPError as error:
            status = _status(error)
            if status in (401, 403):
                raise
            raise Problem(502, "not-stored", f"PACS {self.name} refused it with status {status}.") from None
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason")
            raise Problem(502, "not-stored", f"PACS {self.name} refused it for reason {reason} (PS3.18, table I.2-2).")

    async def _run(self, work: Callable[[DICOMwebClient, _Session], T]) -> T:
        async with self._turns:  # the PACS is given its seconds when it is asked, not while others are
            return await self._talk(work)

    async def _talk(self, work: Callable[[DICOMwebClient, _Session], T]) -> T:
        deadline = time.monotonic() + self.args.seconds

        def talk() -> T:
            with _Session(self._authorization, self.args.certificates, deadline) as session:
                client = DICOMwebClient(self._url, session=session, permissive_uid=True)
                client.set_http_retry_params(retry=False)
                try:
                    return work(client, session)
                except Problem:
                    raise
                except Exception as error:
                    raise self._problem(error, late=time.monotonic() >= deadline) from None

        done = asyncio.get_running_loop().run_in_executor(self._threads, talk)
        try:
            return await asyncio.wait_for(done, self.args.seconds + _GRACE_S)
        except TimeoutError:
            raise self._too_slow() from None

    def _problem(self, error: Exception, *, late: bool) -> Problem:
        """What a client is told of a talk that failed, which may be anything where the other side answers nonsense."""
        if late or isinstance(error, requests.Timeout):
            return self._too_slow()
        status = _status(error)
        if status == 404:
            return _unknown()
        if status in (401, 403):
            reason = "refuses this server's credentials; the operator has to set them"
        elif status:
            reason = f"answers with status {status}"
        elif isinstance(error, requests.exceptions.SSLError):
            reason = "has no certificate that this server trusts; the operator has to name who signed it"
        elif isinstance(error, requests.ConnectionError):
            reason = "cannot be reached"
        else:
            reason = "does not answer as DICOMweb does"
        logger.warning("pacs %s %s (%s)", self.name, reason, type(error).__name__)
        return Problem(502, "pacs-unavailable", f"PACS {self.name} {reason}.", field="pacs", retry_after_s=10)

    def _too_slow(self) -> Problem:
        logger.warning("pacs %s is too slow", self.name)
        detail = f"PACS {self.name} did not answer in full within {self.args.seconds:g} s."
        return Problem(504, "pacs-too-slow", detail, field="pacs", retry_after_s=10)


def check_identity(headers: Sequence[dict[str, Any]], address: Address) -> None:
    """Raises Problem (502) where a file that came is not the one that was asked for: it may be another patient's."""
    for tag, uid in ((_STUDY, address.study), (_SERIES, address.series), (_INSTANCE, address.instance)):
        if uid is not None and any(_value(header, tag) != uid for header in headers):
            detail = f"PACS {address.pacs} sent another image than the one asked for."
            raise Problem(502, "pacs-unavailable", detail, field="pacs", retry_after_s=10)


def _find(client: DICOMwebClient, address: Address, kind: Kind) -> Address:
    """``address`` down to the series of a volume or the instance of a film. Raises Problem (404, 409)."""
    series = address.series
    if series is None:
        found = client.search_for_series(address.study)
        if not found:
            raise _unknown()
        fitting = [one for one in found if _value(one, _MODALITY) in _MODALITIES[kind]]
        series = _only([_value(one, _SERIES) for one in fitting], "series", kind)
    if kind == "volume" or address.instance is not None:
        return replace(address, series=series)
    instances = client.search_for_instances(address.study, series, limit=_NAMED + 1)
    if not instances:
        raise _unknown()
    return replace(
        address, series=series, instance=_only([_value(one, _INSTANCE) for one in instances], "instance", kind)
    )


def _only(uids: list[str], level: str, kind: Kind) -> str:
    if not all(_UID.fullmatch(uid) for uid in uids):
        raise ValueError("these are no UIDs")
    if len(uids) == 1:
        return uids[0]
    modality = " or ".join(_MODALITIES[kind])
    if not uids:
        detail = f"The study holds no series of modality {modality}; name the series if it is of another."
        raise Problem(404, "unknown-study", detail, field="series")
    named = ", ".join(uids[:_NAMED]) + (" and more" if len(uids) > _NAMED else "")
    raise Problem(409, "ambiguous-study", f"Name the {level}, one of {named}.", field=level)


def _status(error: Exception) -> int:
    """The status that the other side answered with; 0 for another kind of failure."""
    return error.response.status_code if isinstance(error, requests.HTTPError) and error.response is not None else 0


def _value(item: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON; empty where there is none."""
    values = item.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _zipped(parts: Iterable[bytes], limits: Limits) -> bytes:
    """The files of a series in one archive, which is the same whenever they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, part in enumerate(parts):
            if number == limits.slices:
                raise Problem(
                    413, "too-many-slices", f"The series has more than {limits.slices} slices.", field="series"
                )
            archive.writestr(zipfile.ZipInfo(f"{number:04d}.dcm"), part)
    return file.getvalue() if archive.namelist() else b""


def _unknown() -> Problem:
    detail = "The PACS has no such study, series or instance; check the UIDs."
    return Problem(404, "unknown-study", detail, field="study")


def _too_large(most: int) -> Problem:
    return Problem(
        413, "file-too-large", f"The PACS sends more than {most} bytes, the most that is read.", field="study"
    )


class _Session(requests.Session):
    """Requests to one PACS that end at ``deadline``, follow no redirect and take no more bytes than allowed."""

    def __init__(self, authorization: str, certificates: str, deadline: float) -> None:
        super().__init__()
        # Neither a proxy nor a .netrc of the environment has a part in this.
        self.trust_env = False
        # Pixels hardly compress; and of the answer to a stored object's request, JSON.
        self.headers.update({"Accept-Encoding": "identity", "Accept": "application/dicom+json"})
        if authorization:
            self.headers["Authorization"] = authorization
        self.verify = certificates or True
        self._deadline = deadline
        self._timers: list[threading.Timer] = []
        self._left = self._most = _SEARCH_BYTES
        self._lease: Lease | None = None

    def allow(self, most: int, lease: Lease) -> None:
        """From now on ``most`` bytes may come, and ``lease`` counts them."""
        self._left, self._most, self._lease = most, most, lease

    def request(self, method: str, url: str | bytes, *args: Any, **options: Any) -> requests.Response:
        """See requests. Raises requests.RequestException."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise requests.Timeout
        headers = dict(options.pop("headers", None) or {})
        if "*/*" in headers.get("Accept", ""):
            headers["Accept"] = _AS_STORED
        options |= {
            "headers": headers,
            "timeout": (min(_CONNECT_S, left), left),
            "allow_redirects": False,
            "stream": True,
        }
        response = super().request(method, url, *args, **options)
        if response.is_redirect:
            raise requests.TooManyRedirects
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), partial(_cut, response.raw))
        timer.daemon = True
        timer.start()
        self._timers.append(timer)
        response.raw = _Metered(response.raw, self._spend)  # type: ignore[assignment]
        return response

    def close(self) -> None:
        """End all connections."""
        for timer in self._timers:
            timer.cancel()
        super().close()

    def _spend(self, size: int) -> None:
        # A body without a length looks whole where it was cut.
        if time.monotonic() >= self._deadline:
            raise requests.Timeout
        self._left -= size
        if self._lease is not None:
            self._lease.take(size)
        if self._left < 0:
            raise _too_large(self._most)


def _cut(raw: Any) -> None:
    # It may have ended just now.
    with suppress(OSError, RuntimeError, ValueError):
        raw.shutdown()


class _Metered:
    """The body of a response, of which every piece is counted."""

    def __init__(self, raw: Any, spend: Callable[[int], None]) -> None:
        self._raw = raw
        self._spend = spend

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """See urllib3."""
        for piece in self._raw.stream(amount, decode_content=decode_content):
            self._spend(len(piece))
            yield piece
        self._spend(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)
