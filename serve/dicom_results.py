"""Findings as DICOM objects of the source's own study: a segmentation, or a structured report (TID 1500)."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import rayzero
from rayzero.studies.orientation import canonical
from rayzero.studies.series import stack_header
from serve import maps
from serve.engine import Answer, Description
from serve.problems import Problem
from serve.prompts import Prompt
from serve.schemas import NOTICE, DicomResult
from serve.service import Asked, Clock, Question, Service
from serve.subjects import Source

DICOM = "application/dicom"

_MAKER = "RayZero"
_SCHEME = "99RAYZERO"
_SERIES = 901
_LABEL_CHARS = 64
# Voxels times findings of one segmentation, a byte each.
_MAX_ELEMENTS = 2**30


async def to_dicom(service: Service, source: Source, question: Question, result: DicomResult) -> Dataset:
    """The object, made of a source that is a file. Raises Problem (4xx): for one that is not DICOM, too."""
    data = source.data
    if data is None:
        raise Problem(422, "invalid-request", "Send either file or pacs with a study.", field="file")
    about = service.model(question.model).description
    headers = [Dataset.from_json(header) for header in await asyncio.to_thread(service.images.headers, data)]
    prompts, asked = await service.look(source, question, {}, Clock(about.name))
    sources = _in_order(headers)
    _check_sources(sources, asked)
    async with service.drawing(asked.subject):
        if result is DicomResult.sr:
            return await asyncio.to_thread(_report, sources, prompts, asked.answer, about)
        level = maps.logit(service.threshold(question, about))
        return await asyncio.to_thread(_segmentation, sources, prompts, asked, about, level)


def to_file(made: Dataset) -> bytes:
    """``made`` as a DICOM file."""
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()


def _in_order(headers: list[Dataset]) -> list[Dataset]:
    """The source's instances as ``series.read_series`` stacks them; each able to stand for its file."""
    for header in headers:
        # What highdicom asks of a source beside its header: the file's own transfer syntax plays no part here.
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
            if name not in header:
                setattr(header, name, None)
        if not header.get("Modality"):
            header.Modality = "CT" if header.SOPClassUID == CTImageStorage else "OT"
        if "ImagePositionPatient" not in header:
            # A projection has no place in the patient, and its spacing is that of the detector.
            for name in ("FrameOfReferenceUID", "PixelSpacing"):
                header.pop(name, None)
    if len(headers) == 1:
        return headers
    axes = np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(axes[0], axes[1])

    def place(header: Dataset) -> float:
        return float(np.array(header.ImagePositionPatient, dtype=float) @ normal)

    ordered = sorted(headers, key=place)
    for header in ordered:
        if not header.get("SliceThickness"):
            header.SliceThickness = f"{(place(ordered[-1]) - place(ordered[0])) / (len(ordered) - 1):.6g}"
    return ordered


def _check_sources(sources: Sequence[Dataset], asked: Asked) -> None:
    shape = asked.subject.image.image.shape
    volume = len(shape) == 3
    if volume and any("FrameOfReferenceUID" not in one for one in sources):
        detail = "The series states no frame of reference, so that nothing can be placed in it."
        raise Problem(422, "unreadable-file", detail, field="file")
    elements = int(np.prod(shape)) * (0 if asked.answer.maps is None else len(asked.answer.maps))
    if elements > _MAX_ELEMENTS:
        detail = f"A segmentation of so many findings takes {elements:,} voxels; ask fewer, {_MAX_ELEMENTS:,} go."
        raise Problem(422, "too-many-prompts", detail, field="prompts")


def _segmentation(
    sources: Sequence[Dataset], prompts: Sequence[Prompt], asked: Asked, about: Description, level: float
) -> Dataset:
    """One segment for each finding: what of its map lies above ``level``, on the source's own grid."""
    assert asked.answer.maps is not None
    rows, columns = int(sources[0].Rows), int(sources[0].Columns)
    pixels = np.zeros((len(sources), rows, columns, len(prompts)), dtype=np.uint8)
    for number, grid in enumerate(asked.answer.maps):
        above = maps.mask(grid, asked.geometry, level)
        if above.ndim == 2:
            pixels[0, :, :, number] = above
        else:
            _turned(pixels[..., number], sources)[...] = above
    algorithm = hd.AlgorithmIdentificationSequence(
        name=about.name,
        version=about.checksum[:16],
        family=codes.cid7162.ArtificialIntelligence,
        source=_MAKER,
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=prompt.finding[:_LABEL_CHARS],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=_code(prompt),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"finding {number}",
        )
        for number, prompt in enumerate(prompts, 1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        content_description="Zero-shot findings",
        content_label="FINDINGS",
        series_description=NOTICE,
        # A mask without a pixel says that nothing was found, and says it about these images.
        omit_empty_frames=bool(pixels.any()),
        **_identity(about),
    )


def _turned(stack: np.ndarray[Any, Any], sources: Sequence[Dataset]) -> np.ndarray[Any, Any]:
    """A view (Z, Y, X) on the lake's axes of ``stack``, which lies as the series does."""
    positions = np.array([one.ImagePositionPatient for one in sources], dtype=float)
    axes = np.array(sources[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = (float(step) for step in sources[0].PixelSpacing)
    header = stack_header(positions, axes, (down, across))
    return canonical(stack, np.asarray(header.axes, dtype=np.float64), header.spacing_mm)[0]


def _report(sources: Sequence[Dataset], prompts: Sequence[Prompt], answer: Answer, about: Description) -> Dataset:
    """A measurement report with the probability of each finding."""
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=about.name[:_LABEL_CHARS], manufacturer_name=_MAKER, model_name=about.system
        ),
    )
    images = [hd.sr.SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in sources[:1]]
    groups = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"finding {number}"),
            finding_type=_code(prompt),
            algorithm_id=hd.sr.AlgorithmIdentification(name=about.name, version=about.checksum[:16]),
            measurements=[
                hd.sr.Measurement(
                    name=_PROBABILITY,
                    value=float(answer.probabilities[number - 1]),
                    unit=codes.UCUM.NoUnits,
                )
            ],
            source_images=images,
        )
        for number, prompt in enumerate(prompts, 1)
    ]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    identity = _identity(about)
    return hd.sr.EnhancedSR(
        evidence=list(sources),
        content=content[0],
        series_instance_uid=identity["series_instance_uid"],
        series_number=identity["series_number"],
        sop_instance_uid=identity["sop_instance_uid"],
        instance_number=identity["instance_number"],
        manufacturer=_MAKER,
        series_description=NOTICE,
        is_complete=True,
        is_final=False,
        is_verified=False,
    )


_PROBABILITY = hd.sr.CodedConcept(value="probability", scheme_designator=_SCHEME, meaning="Probability of finding")


def _code(prompt: Prompt) -> hd.sr.CodedConcept:
    """A finding in words as a code of our own scheme: no published one lists what may be asked."""
    value = hashlib.sha256(prompt.sentence.encode()).hexdigest()[:16]
    return hd.sr.CodedConcept(value=value, scheme_designator=_SCHEME, meaning=prompt.finding[:_LABEL_CHARS])


def _identity(about: Description) -> dict[str, Any]:
    return {
        "series_instance_uid": hd.UID(),
        "series_number": _SERIES,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": _MAKER,
        "manufacturer_model_name": f"{about.system} {about.name}"[:_LABEL_CHARS],
        "software_versions": rayzero.__version__,
        "device_serial_number": about.checksum[:16],
    }
