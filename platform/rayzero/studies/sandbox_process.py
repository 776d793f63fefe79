"""The reading process behind ``rayzero.studies.sandbox``: files come in, pixels or reasons go out.

A request and an answer are alike: two lengths, a JSON header, then bytes. The header of a request has ``name``; that
of an answer has the fields of an image, or ``stage`` and ``reason``.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

from PIL import Image as PillowImage

from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image

LENGTHS = struct.Struct("<QQ")
"""Bytes of the header and of what follows it."""

READY = b"ready\n"
"""What the process says when it has confined itself."""


def confine(memory_bytes: int) -> None:
    """Limit this process for good: address space beyond the present, and no further file or connection."""
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # descriptors that are open stay so


def _warm_up() -> None:
    """Read one raster of each kind: Pillow loads what it needs on first use, which is too late once confined."""
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        PillowImage.new("L", (8, 8)).save(file, kind)
        read_image(file.getvalue())


def _allow_seconds(seconds: int) -> None:
    """Let this process compute for ``seconds`` more; then the kernel ends it with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds + 1, most))


def _read(data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    try:
        image = read_image(data, name=name)
    except StudyFileError as error:
        return {"stage": error.stage, "reason": error.reason}, b""
    except MemoryError:
        return {"stage": "decode", "reason": "reading the file takes more memory than is allowed"}, b""
    except Exception as error:  # a stranger's bytes: whatever they make a library raise is a fault of the file
        return {"stage": "decode", "reason": f"the file is damaged ({type(error).__name__})"}, b""
    return {**vars(image), "pixels": None}, image.pixels


def _serve(requests: BinaryIO, answers: BinaryIO, cpu_seconds: int) -> None:
    while lengths := requests.read(LENGTHS.size):
        header_bytes, payload_bytes = LENGTHS.unpack(lengths)
        header = json.loads(requests.read(header_bytes))
        _allow_seconds(cpu_seconds)
        answer, pixels = _read(requests.read(payload_bytes), header["name"])
        text = json.dumps(answer).encode()
        answers.write(LENGTHS.pack(len(text), len(pixels)) + text)
        answers.write(pixels)
        answers.flush()
        del answer, pixels  # nothing of this file is held while the next one is read


def _main(arguments: list[str]) -> None:
    memory_bytes, cpu_seconds = (int(argument) for argument in arguments)
    # What a library prints must not get between the answers.
    answers, requests = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _warm_up()
    confine(memory_bytes)
    answers.write(READY)
    answers.flush()
    _serve(requests, answers, cpu_seconds)


if __name__ == "__main__":
    _main(sys.argv[1:])
