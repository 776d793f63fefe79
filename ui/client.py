"""The server as the page sees it: HTTP, and nothing else."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image as PillowImage

Grey = np.ndarray[Any, np.dtype[np.uint8]]

_ANSWER_S = 60.0
# Of pictures that were shown lately: a volume is leafed through to and fro.
_KEPT_BYTES = 64 * 2**20


class ServerError(RuntimeError):
    """The server refused a request, or gave no answer. ``passing`` says that the same request may succeed soon."""

    def __init__(self, title: str, detail: str, *, slug: str = "", passing: bool = False) -> None:
        super().__init__(title)
        self.title = title
        self.detail = detail
        self.slug = slug
        self.passing = passing


class Server:
    """A client of one server; safe to share between sessions.

    What it keeps are previews of the examples, and pictures of images by ids that nobody can guess.
    """

    def __init__(self, url: str, token: str | None = None, *, answer_s: float = _ANSWER_S) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(answer_s, connect=3.0)
        self._answer_s = answer_s
        # The address is the operator's own: a proxy of the environment has no business with patients' images.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self._thumbnails: dict[str, Grey] = {}
        self._slices: OrderedDict[str, Grey] = OrderedDict()
        self._lock = threading.Lock()

    def models(self) -> list[dict[str, Any]]:
        """The server's models, the default first."""
        return list(self._json("GET", "/v1/models")["models"])

    def examples(self) -> list[dict[str, Any]]:
        """The studies that the operator ships."""
        return list(self._json("GET", "/v1/examples")["examples"])

    def indexes(self) -> list[dict[str, Any]]:
        """What can be searched beside the examples."""
        return list(self._json("GET", "/v1/indexes")["indexes"])

    def file(self, path: str) -> bytes:
        """The file of an example."""
        return self._send("GET", path).content

    def preview(self, path: str) -> Grey:
        """A preview as (H, W) uint8."""
        content = self._send("GET", path).content
        return np.asarray(PillowImage.open(io.BytesIO(content), formats=("PNG",)).convert("L"))

    def slice(self, path: str, plane: str, window: str) -> Grey:
        """One slice of a volume as (H, W) uint8, one pixel a voxel."""
        return self._kept(f"{path}?plane={plane}&window={window}")

    def windowed(self, path: str, level: float, width: float) -> Grey:
        """A film in a window of its stored values as (H, W) uint8."""
        return self._kept(f"{path}?level={level:g}&width={width:g}")

    def _kept(self, address: str) -> Grey:
        with self._lock:
            if address in self._slices:
                self._slices.move_to_end(address)
                return self._slices[address]
        picture = self.preview(address)
        with self._lock:
            self._slices[address] = picture
            while len(self._slices) > 1 and sum(one.nbytes for one in self._slices.values()) > _KEPT_BYTES:
                self._slices.popitem(last=False)
        return picture

    def thumbnail(self, path: str, side: int = 320) -> Grey:
        """An example's preview with its longest side at ``side``, fetched once."""
        with self._lock:
            if path in self._thumbnails:
                return self._thumbnails[path]
        picture = PillowImage.fromarray(self.preview(path))
        picture.thumbnail((side, side), PillowImage.Resampling.LANCZOS)
        with self._lock:
            self._thumbnails[path] = np.asarray(picture)
            return self._thumbnails[path]

    def query(
        self,
        image: str | bytes,
        prompts: Sequence[str],
        model: str | None,
        companions: Mapping[str, str | bytes] | None = None,
    ) -> dict[str, Any]:
        """Scores and maps of findings in an image: a file's bytes, or the id of an image that the server knows.

        ``companions`` are further films of the study by their role, likewise.
        """
        form: dict[str, Any] = {"prompts": list(prompts), "maps": "array"}
        return self._ask("/v1/query", image, form, model, companions)

    def sentences(self, image: str | bytes, model: str | None, index: str | None, count: int = 10) -> dict[str, Any]:
        """Sentences of the example reports, or of an index, that fit an image."""
        return self._ask("/v1/retrieve", image, {"count": count, **_named(index)}, model)

    def images(self, text: str, model: str | None, index: str | None, count: int = 9) -> dict[str, Any]:
        """Example images, or images of an index, that fit a text."""
        return self._ask("/v1/retrieve", None, {"text": text, "count": count, **_named(index)}, model)

    def dicom(self, data: bytes, prompts: Sequence[str], model: str | None, threshold: float, result: str) -> bytes:
        """Findings as a DICOM object of the source's own study; ``result`` is ``seg`` or ``sr``."""
        form: dict[str, Any] = {"prompts": list(prompts), "threshold": threshold, "result": result}
        if model is not None:
            form["model"] = model
        return self._send("POST", "/v1/dicom", data=form, files={"file": ("image", data)}).content

    def _ask(
        self,
        path: str,
        image: str | bytes | None,
        form: dict[str, Any],
        model: str | None,
        companions: Mapping[str, str | bytes] | None = None,
    ) -> dict[str, Any]:
        if model is not None:
            form["model"] = model
        files: dict[str, tuple[str, bytes]] = {}
        for name, source in {"file": image, **(companions or {})}.items():
            if isinstance(source, bytes):
                # A neutral name: the one on disk may hold a patient's.
                files[name] = ("image", source)
            elif source is not None:
                form["image_id" if name == "file" else f"{name}_id"] = source
        return self._json("POST", path, data=form, files=files or None)

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(method, path, **content).json()
        return answer

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.ReadTimeout:
            detail = f"No answer within {self._answer_s:g} s."
            raise ServerError("The server is slow to answer", detail, passing=True) from None
        except httpx.HTTPError:
            detail = f"No answer from {self.url}."
            raise ServerError("The server cannot be reached", detail, passing=True) from None
        if response.is_success:
            return response
        raise _refusal(response)


def _named(index: str | None) -> dict[str, str]:
    return {"index": index} if index else {}


def _refusal(response: httpx.Response) -> ServerError:
    # Busy, starting or over the rate: the server itself says when to come back.
    passing = response.status_code == 429 or (response.status_code == 503 and "retry-after" in response.headers)
    try:
        document = response.json()
        slug = str(document["type"]).rpartition(":")[2]
        return ServerError(str(document["title"]), str(document["detail"]), slug=slug, passing=passing)
    except (ValueError, KeyError, TypeError):
        # Not ours: a proxy in front, or Serve itself while the application starts or restarts.
        detail = f"It answered {response.status_code}; it may be starting."
        passing = response.status_code >= 500 or response.status_code == 404
        return ServerError("The server is not ready", detail, passing=passing)
