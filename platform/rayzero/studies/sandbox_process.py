"""The reading process behind ``rayzero.studies.sandbox``: files come in, pixels or reasons go out.

A request and an answer are alike: two lengths, a JSON header, then bytes. The header of a request has ``name``,
``kind`` (image, volume or headers), for an image ``attributes`` (JSON text, or ""), and for a volume ``header`` (the
fields of a ``VolumeHeader``, or null); that of an answer has the fields of an image, ``headers``, or ``stage`` and
``reason``. What follows the header lies in the window of ``sandbox_window`` where it fits in there.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import mmap
import os
import resource
import select
import sys
import threading
import zipfile
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PillowImage
from pydicom import dcmwrite, uid
from pydicom.dataset import FileDataset, FileMetaDataset

from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image
from rayzero.studies.headers import read_headers
from rayzero.studies.sandbox import LENGTHS, READY
from rayzero.studies.sandbox_window import WINDOW_BYTES, open_window
from rayzero.studies.volumes import read_volume
from rayzero.studies.voxels import VolumeHeader


def confine(memory_bytes: int) -> None:
    """Limit this process for good: address space beyond the present, no further file, connection or process."""
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # descriptors that are open stay so
    # Does not bind root; what such a process starts all the same is in its group, which Sandbox ends as a whole.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def end_with(descriptor: int) -> None:
    """End this process once nobody can write to the pipe any more, even in the middle of a file.

    The kernel's own signal for a parent's death will not do: it comes when the *thread* ends that started this process.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # a hang-up alone is reported
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _warm_up() -> None:
    """Read one file of each kind: libraries load what they need on first use, which is too late once confined."""
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        PillowImage.new("L", (8, 8)).save(file, kind)
        read_image(file.getvalue(), attributes='{"00280004": {"vr": "CS", "Value": ["MONOCHROME1"]}}')
    series = io.BytesIO()
    with zipfile.ZipFile(series, "w", zipfile.ZIP_DEFLATED) as archive:
        for place in range(3):
            archive.writestr(f"{place}.dcm", _ct_slice(float(place)))
    read_volume(series.getvalue())
    read_headers(_ct_slice(0.0))
    with contextlib.suppress(StudyFileError):
        read_volume(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(200))
    array = io.BytesIO()
    np.savez_compressed(array, ct=np.array([-1000, 0] * 4, np.int16).reshape(2, 2, 2))
    read_volume(array.getvalue(), header=VolumeHeader(axes=((0, 0, 1), (0, 1, 0), (1, 0, 0)), spacing_mm=(1, 1, 1)))
    codecs.lookup("cp437")  # names in a zip archive that are not said to be UTF-8


def _ct_slice(place: float) -> bytes:
    """The smallest CT file that reads."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, "1.2.3"
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientName = "1.2.3", "1.2.3", "Roe^Richard"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0.0, 0.0, place], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = [1.0, 1.0], 1, 0
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 2, 2, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = bytes(8)
    file = io.BytesIO()
    dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def _allow_seconds(seconds: int) -> None:
    """Let this process compute for ``seconds`` more; then the kernel ends it with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds + 1, most))


def _volume_header(values: dict[str, Any] | None) -> VolumeHeader | None:
    return None if values is None else VolumeHeader(**{**values, "axes": tuple(map(tuple, values["axes"]))})


def _read(data: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    name, kind = request["name"], request["kind"]
    try:
        if kind == "headers":
            return {"headers": read_headers(data)}, b""
        if kind == "volume":
            image = read_volume(data, name=name, header=_volume_header(request["header"]), anonymous=True)
        else:
            image = read_image(data, name=name, attributes=request["attributes"])
    except StudyFileError as error:
        return {"stage": error.stage, "reason": error.reason}, b""
    except MemoryError:
        return {"stage": "decode", "reason": "reading the file takes more memory than is allowed"}, b""
    except Exception as error:  # a stranger's bytes: whatever they make a library raise is a fault of the file
        return {"stage": "decode", "reason": f"the file is damaged ({type(error).__name__})"}, b""
    return {**vars(image), "pixels": None}, image.pixels


def _serve(requests: BinaryIO, answers: BinaryIO, window: mmap.mmap, cpu_seconds: int) -> None:
    while lengths := requests.read(LENGTHS.size):
        header_bytes, payload_bytes = LENGTHS.unpack(lengths)
        request = json.loads(requests.read(header_bytes))
        _allow_seconds(cpu_seconds)
        data = window[:payload_bytes] if payload_bytes <= WINDOW_BYTES else requests.read(payload_bytes)
        answer, pixels = _read(data, request)
        del data
        text = json.dumps(answer).encode()
        small = len(pixels) <= WINDOW_BYTES
        if small:
            window[: len(pixels)] = pixels
        answers.write(LENGTHS.pack(len(text), len(pixels)) + text)
        if not small:
            answers.write(pixels)
        answers.flush()
        del answer, pixels  # nothing of this file is held while the next one is read


def _main(arguments: list[str]) -> None:
    memory_bytes, cpu_seconds, descriptor = (int(argument) for argument in arguments)
    window = open_window(descriptor)
    # What a library prints must not get between the answers.
    answers, requests = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    end_with(requests.fileno())
    _warm_up()
    confine(memory_bytes)
    answers.write(READY)
    answers.flush()
    _serve(requests, answers, window, cpu_seconds)


if __name__ == "__main__":
    _main(sys.argv[1:])
