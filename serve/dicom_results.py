"""Findings as DICOM objects of the source's own study: segmentation, parametric map, or report (TID 1500)."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import rayzero
from rayzero.studies.orientation import canonical
from rayzero.studies.series import stack_header
from serve import maps
from serve.engine import Answer, Description
from serve.problems import Problem, failure, silence
from serve.prompts import Prompt
from serve.schemas import NOTICE, DicomResult
from serve.service import Asked, Clock, Question, Service
from serve.source_headers import IDENTITY, checked_headers
from serve.subjects import Source

DICOM = "application/dicom"

# What pydicom warns of, it repeats: a date of birth that is none would stand in the log.
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
pydicom_config.settings.writing_validation_mode = pydicom_config.IGNORE
silence("pydicom", "highdicom")

_MAKER = "RayZero"
_SCHEME = "99RAYZERO"
_SERIES = 901
_LABEL_CHARS = 64
# Voxels of one object, of all its findings together.
_MAX_BYTES = 2**30
# What pydicom and highdicom raise for a header that they cannot work with.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
_VOXEL_BYTES = {DicomResult.seg: 1, DicomResult.pm: 2, DicomResult.sr: 0}


class _Gone(Exception):
    """Nobody waits for the object any more."""


async def to_dicom(service: Service, source: Source, question: Question, result: DicomResult) -> Dataset:
    """The object, made of a source that is a file, here or in a PACS.

    Raises Problem: 4xx for one that is not DICOM, too, and as ``Service.opened`` does.
    """
    client = service.model(question.model)
    about = client.description
    if result is DicomResult.pm and about.kind != "volume":
        # PS3.3, table A.75-1: the object has to stand in a frame of reference, and a projection has none.
        detail = "A parametric map has to lie in space, as a film does not: ask for seg or sr, or for maps=array."
        raise Problem(415, "unsupported-image", detail, field="result")
    # What is wrong with the question is told before anything is fetched.
    service.prompts(question, about)
    clock = Clock(about.name)
    async with service.opened(source, about, clock) as at_hand:
        if at_hand.data is None:
            raise Problem(422, "invalid-request", "Send either file or pacs with a study.", field="file")
        headers = await asyncio.to_thread(checked_headers, await service.headers(at_hand), about.kind)
        prompts, asked = await service.look(client, at_hand, question, {}, clock)

    gone = Event()

    def make() -> Dataset:
        with _of_the_headers():
            sources = _in_order([Dataset.from_json(header) for header in headers])
            _check_sources(sources, asked, result)
            patient = _taken_out(sources)
        if result is DicomResult.sr:
            made = _report(sources, prompts, asked.answer, about)
        elif result is DicomResult.pm:
            made = _parametric_map(sources, prompts, asked, about, gone)
        else:
            level = maps.logit(service.threshold(question, about))
            made = _segmentation(sources, prompts, asked, about, level, gone)
        made.update(patient)
        return made

    async with service.drawing(asked.subject):
        try:
            return await asyncio.to_thread(make)
        finally:
            # A thread is not cancelled with the request that waits for it.
            gone.set()


@contextmanager
def _of_the_headers() -> Iterator[None]:
    """Where a stranger's headers are worked with: what they make a library raise is a fault of the file.

    Raises Problem (422) in its place, and the log says where. Anything else that is raised is a fault of ours.
    """
    try:
        yield
    except _REFUSALS as error:
        incident = failure(error)
        detail = f"No object can be made from the headers of this file ({type(error).__name__}). {incident.detail}"
        raise Problem(422, "unreadable-file", detail, field="file") from None


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
        # Their texts are read by now; and a finding may be asked in any language.
        header.SpecificCharacterSet = "ISO_IR 192"
        if not header.get("Modality"):
            header.Modality = "CT" if header.SOPClassUID == CTImageStorage else "OT"
    if len(headers) == 1:
        return headers
    axes = np.array(headers[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(axes[0], axes[1])

    def place(header: Dataset) -> float:
        return float(np.array(header.ImagePositionPatient, dtype=float) @ normal)

    ordered = sorted(headers, key=place)
    for header in ordered:
        # ``read_series`` lets them differ by what is rounded; highdicom does not.
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        if not header.get("SliceThickness"):
            header.SliceThickness = f"{(place(ordered[-1]) - place(ordered[0])) / (len(ordered) - 1):.6g}"
    return ordered


def _taken_out(sources: Sequence[Dataset]) -> Dataset:
    """What the first of ``sources`` says of patient and study, for the object made of them to repeat as it stands.

    It is taken out of all ``sources``: highdicom warns of names and refuses dates that are not as they should be, and
    says them. What it takes for granted is left there, empty.
    """
    kept = Dataset()
    for name in IDENTITY:
        setattr(kept, name, sources[0].get(name))
        for one in sources:
            setattr(one, name, None)
    return kept


def _check_sources(sources: Sequence[Dataset], asked: Asked, result: DicomResult) -> None:
    shape = asked.subject.image.image.shape
    volume = len(shape) == 3
    size = (sources[0].Rows, sources[0].Columns)
    # A volume lies on the lake's axes, which may be others than the series has.
    same = sorted((len(sources), *size)) == sorted(shape) if volume else size == shape
    if not same:
        detail = "The header states another size (Rows, Columns) than the image has."
        raise Problem(422, "unreadable-file", detail, field="file")
    voxels = int(np.prod(shape)) * (0 if asked.answer.maps is None else len(asked.answer.maps))
    most = _MAX_BYTES // _VOXEL_BYTES[result] if _VOXEL_BYTES[result] else voxels
    if voxels > most:
        detail = f"An object of so many findings takes {voxels:,} voxels; ask fewer, {most:,} go."
        raise Problem(422, "too-many-prompts", detail, field="prompts")


def _segmentation(
    sources: Sequence[Dataset], prompts: Sequence[Prompt], asked: Asked, about: Description, level: float, gone: Event
) -> Dataset:
    """One segment for each finding: what of its map lies above ``level``, on the source's own grid."""
    pixels = _drawn(sources, asked, np.uint8, lambda grid: maps.mask(grid, asked.geometry, level), gone)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=about.name,
        version=about.checksum[:16],
        family=codes.cid7162.ArtificialIntelligence,
        source=_MAKER,
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_label(prompt),
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=_code(prompt),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"finding {number}",
        )
        for number, prompt in enumerate(prompts, 1)
    ]
    with _of_the_headers():
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


def _parametric_map(
    sources: Sequence[Dataset], prompts: Sequence[Prompt], asked: Asked, about: Description, gone: Event
) -> Dataset:
    """One channel for each finding: sigmoid(map) on the source's own grid."""
    steps = maps.LEVELS
    mappings = [
        [
            hd.pm.RealWorldValueMapping(
                lut_label=f"finding {number}",
                lut_explanation=_label(prompt),
                unit=codes.UCUM.NoUnits,
                value_range=(0, steps),
                slope=1 / steps,
                intercept=0.0,
                quantity_definition=_code(prompt),
            )
        ]
        for number, prompt in enumerate(prompts, 1)
    ]
    pixels = _drawn(sources, asked, np.uint16, lambda grid: maps.levels(grid, asked.geometry), gone)
    with _of_the_headers():
        return hd.pm.ParametricMap(
            source_images=sources,
            pixel_array=pixels,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=mappings,
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=(steps + 1) / 2, window_width=steps + 1)],
            content_description="Zero-shot findings",
            content_label="FINDINGS",
            series_description=NOTICE,
            **_identity(about),
        )


def _drawn(
    sources: Sequence[Dataset],
    asked: Asked,
    kind: type[np.generic],
    draw: Callable[[maps.Float], np.ndarray[Any, Any]],
    gone: Event,
) -> np.ndarray[Any, Any]:
    """What ``draw`` makes of each finding's map, as (slices, rows, columns, findings) of the source.

    Raises _Gone where ``gone`` tells that nobody waits any more: hundreds of masks of a volume take minutes.
    """
    assert asked.answer.maps is not None
    shape = (len(sources), int(sources[0].Rows), int(sources[0].Columns), len(asked.answer.maps))
    pixels = np.zeros(shape, dtype=kind)
    for number, grid in enumerate(asked.answer.maps):
        if gone.is_set():
            raise _Gone
        drawn = draw(grid)
        if drawn.ndim == 2:
            pixels[0, :, :, number] = drawn
        else:
            with _of_the_headers():
                turned = _turned(pixels[..., number], sources)
            turned[...] = drawn
    return pixels


def _turned(stack: np.ndarray[Any, Any], sources: Sequence[Dataset]) -> np.ndarray[Any, Any]:
    """A view (Z, Y, X) on the lake's axes of ``stack``, which lies as the series does."""
    positions = np.array([one.ImagePositionPatient for one in sources], dtype=float)
    axes = np.array(sources[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, across = (float(step) for step in sources[0].PixelSpacing)
    header = stack_header(positions, axes, (down, across))
    return canonical(stack, np.asarray(header.axes, dtype=np.float64), header.spacing_mm)[0]


def _report(sources: Sequence[Dataset], prompts: Sequence[Prompt], answer: Answer, about: Description) -> Dataset:
    """A measurement report with the probability of each finding, and its interval where the bundle has one."""
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=about.name[:_LABEL_CHARS], manufacturer_name=_MAKER, model_name=about.system
        ),
    )
    with _of_the_headers():
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
                    properties=_uncertainty(answer, number - 1),
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
    with _of_the_headers():
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


def _uncertainty(answer: Answer, row: int) -> hd.sr.MeasurementProperties | None:
    """How far the 95 % interval of a probability reaches above and below it (TID 310)."""
    if answer.intervals is None:
        return None
    low, high = (float(edge) for edge in answer.intervals[row])
    value = float(answer.probabilities[row])
    return hd.sr.MeasurementProperties(
        upper_measurement_uncertainty=high - value, lower_measurement_uncertainty=value - low
    )


_PROBABILITY = hd.sr.CodedConcept(value="probability", scheme_designator=_SCHEME, meaning="Probability of finding")


def _code(prompt: Prompt) -> hd.sr.CodedConcept:
    """A finding in words as a code of our own scheme: no published one lists what may be asked."""
    value = hashlib.sha256(prompt.sentence.encode()).hexdigest()[:16]
    return hd.sr.CodedConcept(value=value, scheme_designator=_SCHEME, meaning=_label(prompt))


def _label(prompt: Prompt) -> str:
    """A finding as a Long String: cut, and without the backslash that would part it in two."""
    return prompt.finding.replace("\\", "/")[:_LABEL_CHARS]


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
