"""The server as the page sees it: HTTP, and nothing else."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image as PillowImage

Grey = np.ndarray[Any, np.dtype[np.uint8]]


class ServerError(RuntimeError):
    """The server refused a request, or could not be reached (``away``)."""

    def __init__(self, title: str, detail: str, *, slug: str = "", away: bool = False) -> None:
        super().__init__(title)
        self.title = title
        self.detail = detail
        self.slug = slug
        self.away = away


class Server:
    """A client of one server; safe to share between sessions, for it keeps nothing but previews of the examples."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(60.0, connect=3.0)
        # The address is the operator's own: a proxy of the environment has no business with patients' images.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self._thumbnails: dict[str, Grey] = {}
        self._lock = threading.Lock()

    def models(self) -> list[dict[str, Any]]:
        """The server's models, the default first."""
        return list(self._json("GET", "/v1/models")["models"])

    def examples(self) -> list[dict[str, Any]]:
        """The studies that the operator ships."""
        return list(self._json("GET", "/v1/examples")["examples"])

    def preview(self, path: str) -> Grey:
        """A preview as (H, W) uint8."""
        content = self._send("GET", path).content
        return np.asarray(PillowImage.open(io.BytesIO(content), formats=("PNG",)).convert("L"))

    def thumbnail(self, path: str, side: int = 320) -> Grey:
        """An example's preview with its longest side at ``side``, fetched once."""
        with self._lock:
            if path not in self._thumbnails:
                picture = PillowImage.fromarray(self.preview(path))
                picture.thumbnail((side, side), PillowImage.Resampling.LANCZOS)
                self._thumbnails[path] = np.asarray(picture)
            return self._thumbnails[path]

    def query(self, image: str | bytes, prompts: Sequence[str], model: str | None) -> dict[str, Any]:
        """Scores and maps of findings in an image: a file's bytes, or the id of an image that the server knows."""
        form: dict[str, Any] = {"prompts": list(prompts), "maps": "array"}
        return self._ask("/v1/query", image, form, model)

    def sentences(self, image: str | bytes, model: str | None, count: int = 10) -> dict[str, Any]:
        """Sentences of the example reports that fit an image."""
        return self._ask("/v1/retrieve", image, {"count": count}, model)

    def images(self, text: str, model: str | None, count: int = 12) -> dict[str, Any]:
        """Example images that fit a text."""
        return self._ask("/v1/retrieve", None, {"text": text, "count": count}, model)

    def _ask(self, path: str, image: str | bytes | None, form: dict[str, Any], model: str | None) -> dict[str, Any]:
        if model is not None:
            form["model"] = model
        if isinstance(image, bytes):
            # A neutral name: the one on disk may hold a patient's.
            return self._json("POST", path, data=form, files={"file": ("image", image)})
        if image is not None:
            form["image_id"] = image
        return self._json("POST", path, data=form)

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(method, path, **content).json()
        return answer

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.HTTPError:
            detail = f"No answer from {self.url}. The page tries again by itself every few seconds."
            raise ServerError("The server cannot be reached", detail, away=True) from None
        if response.is_success:
            return response
        raise _refusal(response)


def _refusal(response: httpx.Response) -> ServerError:
    try:
        document = response.json()
        slug = str(document["type"]).rpartition(":")[2]
        return ServerError(str(document["title"]), str(document["detail"]), slug=slug)
    except (ValueError, KeyError, TypeError):
        # Not ours: a proxy in front, or Serve itself while the application starts or restarts.
        detail = f"It answered {response.status_code}; it may be starting. The page tries again by itself."
        return ServerError(
            "The server is not ready", detail, away=response.status_code >= 500 or response.status_code == 404
        )
