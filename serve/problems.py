"""Errors as RFC 9457 problem documents: a stable ``type``, and text that names the field and the remedy.

Nothing a client sent is echoed back or logged: file names and free text may identify a patient.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.meters import request_id

logger = logging.getLogger("ray.serve")

MEDIA_TYPE = "application/problem+json"

SLUG = "rayzero.problem"
"""Key of the request's scope under which the slug of its problem stands, for the log."""

Slug = Literal[
    "ambiguous-study",
    "busy",
    "empty-file",
    "file-too-large",
    "image-too-large",
    "internal",
    "interrupted",
    "invalid-prompts",
    "invalid-request",
    "method-not-allowed",
    "model-unavailable",
    "no-index",
    "not-found",
    "not-stored",
    "pacs-too-slow",
    "pacs-unavailable",
    "rate-limited",
    "request-too-slow",
    "storing-not-allowed",
    "too-many-files",
    "too-many-prompts",
    "too-many-slices",
    "unauthorized",
    "unknown-example",
    "unknown-image",
    "unknown-index",
    "unknown-model",
    "unknown-pacs",
    "unknown-prompt-set",
    "unknown-study",
    "unreadable-file",
    "unsupported-companion",
    "unsupported-image",
]

_TITLES: dict[str, str] = {
    "ambiguous-study": "The study holds several such images",
    "busy": "The server is busy",
    "empty-file": "The file is empty",
    "file-too-large": "The file is too large",
    "image-too-large": "The image has too many pixels",
    "internal": "The server failed to answer",
    "interrupted": "The request was interrupted",
    "invalid-prompts": "The findings cannot be used",
    "invalid-request": "The request is not valid",
    "method-not-allowed": "The method is not allowed here",
    "model-unavailable": "The model is not available",
    "no-index": "There is nothing to search",
    "not-found": "There is nothing at this address",
    "not-stored": "The result was not stored",
    "pacs-too-slow": "The PACS is too slow",
    "pacs-unavailable": "The PACS is not available",
    "rate-limited": "Too many requests",
    "request-too-slow": "The request came too slowly",
    "storing-not-allowed": "Results may not be stored there",
    "too-many-files": "Too many files",
    "too-many-prompts": "Too many findings",
    "too-many-slices": "The volume has too many slices",
    "unauthorized": "A valid token is needed",
    "unknown-example": "There is no such example",
    "unknown-image": "The image is not known",
    "unknown-index": "There is no such index",
    "unknown-model": "There is no such model",
    "unknown-pacs": "There is no such PACS",
    "unknown-prompt-set": "There is no such list of findings",
    "unknown-study": "The PACS has no such study, series or instance",
    "unreadable-file": "The file cannot be read",
    "unsupported-companion": "This model does not read such companions",
    "unsupported-image": "This model does not read such images",
}

_BY_STATUS: dict[int, Slug] = {
    404: "not-found",
    405: "method-not-allowed",
    413: "file-too-large",
    500: "internal",
    503: "busy",
}

# What the framework says of these is terse.
_DETAILS: dict[int, str] = {
    404: "GET /openapi.json lists the addresses of this server.",
    413: "The request is larger than this server reads.",
}


class Problem(HTTPException):
    """An error that a client is told about. ``field`` names the part of the request that is at fault."""

    def __init__(
        self, status: int, slug: Slug, detail: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else None
        if status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        super().__init__(status, detail, headers)
        self.slug = slug
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.status_code, self.slug, self.detail, self.field, self.headers)


def problem_response(problem: Problem) -> JSONResponse:
    """``problem`` as the document a client gets."""
    return JSONResponse(problem_document(problem), problem.status_code, problem.headers, media_type=MEDIA_TYPE)


def problem_document(problem: Problem) -> dict[str, Any]:
    """``problem`` as the fields of its document."""
    body = _document(problem.status_code, problem.slug, problem.detail)
    if problem.field is not None:
        body["field"] = problem.field
    return body


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error, its own and the framework's, with a problem document."""

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error, Problem):
            request.scope[SLUG] = error.slug
            return problem_response(error)
        slug = request.scope[SLUG] = _BY_STATUS.get(error.status_code, "invalid-request")
        detail = _DETAILS.get(error.status_code, str(error.detail))
        body = _document(error.status_code, slug, detail)
        return JSONResponse(body, error.status_code, error.headers, media_type=MEDIA_TYPE)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        request.scope[SLUG] = "invalid-request"
        # ``input`` and ``ctx`` of pydantic's errors repeat what was sent, so neither is passed on.
        errors = [{"field": _field(item["loc"]), "detail": item["msg"]} for item in error.errors()]
        text = "; ".join(f"{item['field']}: {item['detail']}" for item in errors)
        body = {**_document(422, "invalid-request", text), "field": errors[0]["field"], "errors": errors}
        return JSONResponse(body, 422, media_type=MEDIA_TYPE)

    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        request.scope[SLUG] = "internal"
        return problem_response(failure(error))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_failure)


def failure(error: Exception) -> Problem:
    """A fault of the server: logged under the request's id and the incident that the client is told, and nothing else.

    The log has the types of the errors and where they were raised, not their texts: those may repeat a header's value.
    """
    incident = uuid.uuid4().hex[:12]
    told = ""
    raised: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in raised:
        raised.append(cause)
        told += f"\n{type(cause).__name__} raised at\n{''.join(traceback.format_tb(cause.__traceback__))}"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    logger.error("incident %s of request %s:%s", incident, request_id(), told.rstrip())
    return Problem(500, "internal", f"Quote incident {incident} to the operator of this server.")


def silence(*names: str) -> None:
    """Keep the loggers of those names, and those below them, quiet: they repeat what was sent or fetched."""
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _document(status: int, slug: Slug, detail: str) -> dict[str, Any]:
    title = _TITLES.get(slug, HTTPStatus(status).phrase)
    return {"type": f"urn:rayzero:problem:{slug}", "title": title, "status": status, "detail": detail}


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location[1:]) or str(location[0])


def _rebuild(status: int, slug: Slug, detail: str, field: str | None, headers: dict[str, str] | None) -> Problem:
    problem = Problem(status, slug, detail, field=field)
    problem.headers = headers
    return problem
