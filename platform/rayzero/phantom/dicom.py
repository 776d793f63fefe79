"""DICOM files as equipment writes them: several classes, photometric senses, bit depths and transfer syntaxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from .films import Film
from .patient import Patient, Study
from .volume import CtVolume

COMPRESSED_SHARE = {uid.RLELossless: 0.04, uid.JPEG2000Lossless: 0.03}
"""Share of films in each compressed transfer syntax; the rest are explicit little endian."""

_MAKERS = (("Fenwick Imaging", "DR-9"), ("Halden Medical", "Claro 500"), ("Orsted Systems", "Panel CR 2"))
_SLOPE, _INTERCEPT = 1, -1024


def write_film(path: Path, patient: Patient, study: Study, film: Film, view: str, number: int) -> None:
    """Write one radiograph. Sense, bits, class and syntax follow from the study, so a rewrite is identical."""
    rng = np.random.default_rng([study.seed, 2, number])
    digital = bool(rng.random() < 0.6)
    bits = int(rng.choice([10, 12, 15], p=[0.2, 0.6, 0.2]))
    inverted = bool(rng.random() < 0.3)
    ds = _dataset(patient, study, uid.DigitalXRayImageStorageForPresentation if digital
                  else uid.ComputedRadiographyImageStorage, number + 1, 1)  # fmt: skip
    values = np.rint(film.pixels * (2**bits - 1)).astype(np.uint16)
    ds.Modality = "DX" if digital else "CR"
    ds.ViewPosition = "PA" if view == "frontal" else "LL"
    ds.BodyPartExamined = "CHEST"
    ds.SeriesDescription = "Chest PA" if view == "frontal" else "Chest lateral"
    ds.PatientOrientation = ["L", "F"] if view == "frontal" else ["P", "F"]
    ds.ImagerPixelSpacing = [round(film.pixel_mm, 6)] * 2
    if digital:
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
        ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1 if inverted else 1
    if rng.random() < 0.85:
        ds.WindowCenter, ds.WindowWidth = 2 ** (bits - 1), 2**bits
    values = (2**bits - 1 - values) if inverted else values
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    _set_pixels(ds, values, bits, signed=False)
    syntax = _syntax(rng)
    if syntax == uid.RLELossless:
        _set_runs(ds, values)
    elif syntax is not None:
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)


def write_ct_series(folder: Path, patient: Patient, study: Study, volume: CtVolume) -> None:
    """Write a volume as one axial slice a file, feet to head, with the position of each in patient coordinates."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y, z = volume.origin
    dz, dy, dx = volume.spacing
    ds = _dataset(patient, study, uid.CTImageStorage, 9, 1)
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesDescription = "Chest CT"
    ds.FrameOfReferenceUID = _make_uid(study.study_id, "frame")
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [dy, dx]
    ds.SliceThickness = dz
    ds.KVP = "120"
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = _SLOPE, _INTERCEPT, "HU"
    ds.WindowCenter, ds.WindowWidth = [40, -600], [400, 1500]
    ds.PhotometricInterpretation = "MONOCHROME2"
    for k, plane in enumerate(volume.hu):
        # One dataset serves all slices: to build its header takes longer than to write it.
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = _make_uid(study.study_id, 9, k + 1)
        ds.InstanceNumber = k + 1
        ds.ImagePositionPatient = [round(v, 4) for v in (x, y, z + k * dz)]
        ds.SliceLocation = round(z + k * dz, 4)
        _set_pixels(ds, (plane - _INTERCEPT).astype(np.uint16), 12, signed=False)
        ds.save_as(folder / f"{k + 1:04d}.dcm", enforce_file_format=True)


def _make_uid(*parts: object) -> uid.UID:
    return uid.generate_uid(entropy_srcs=[str(part) for part in parts])


def _dataset(patient: Patient, study: Study, sop_class: uid.UID, series: int, instance: int) -> FileDataset:
    """The attributes that every file of a study shares, its synthetic identifiers among them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _make_uid(study.study_id, series, instance)
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    maker, model = _MAKERS[study.seed % len(_MAKERS)]
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = _make_uid(study.study_id)
    ds.SeriesInstanceUID = _make_uid(study.study_id, series)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{study.time:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{study.time:%H%M%S}"
    ds.AccessionNumber = f"A{study.seed:010d}"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", series, instance
    ds.PatientName, ds.PatientID = patient.name, patient.patient_id
    ds.PatientBirthDate = f"{patient.birthdate:%Y%m%d}"
    ds.PatientSex, ds.PatientAge = patient.sex, f"{study.age:03d}Y"
    ds.ReferringPhysicianName = "REFERRER^SIMULATED"
    ds.InstitutionName = "Simulated General Hospital"
    ds.Manufacturer, ds.ManufacturerModelName = maker, model
    ds.StudyDescription = "CHEST"
    return ds


def _set_pixels(ds: Dataset, values: np.ndarray, bits: int, *, signed: bool) -> None:
    ds.SamplesPerPixel = 1
    ds.Rows, ds.Columns = values.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
    ds.PixelRepresentation = int(signed)
    ds.PixelData = values.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"


def _set_runs(ds: Dataset, values: np.ndarray) -> None:
    """Compress the pixels as RLE Lossless; the encoder that comes with pydicom takes as long as several films."""
    planes = [values >> 8, values & 255]
    segments = [b"".join(_pack_row(row) for row in plane.astype(np.uint8)) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    header = np.zeros(16, "<u4")
    header[:3] = len(segments), header.nbytes, header.nbytes + len(segments[0])
    ds.PixelData = encapsulate([header.tobytes() + b"".join(segments)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.RLELossless


def _pack_row(row: np.ndarray) -> bytes:
    """One row of bytes in the PackBits code: runs of three and more are repeated, all else is copied."""
    data, packed, done = row.tobytes(), bytearray(), 0
    starts = np.flatnonzero(np.diff(row.astype(np.int16), prepend=-1))
    lengths = np.diff(starts, append=len(row))
    chosen = lengths >= 3
    runs = [*zip(starts[chosen].tolist(), lengths[chosen].tolist(), strict=True), (len(row), 0)]
    for start, length in runs:
        for k in range(done, start, 128):
            piece = data[k : min(k + 128, start)]
            packed += bytes([len(piece) - 1]) + piece
        for k in range(0, length, 128):
            # One byte left over comes out as the code of one literal, which is right.
            count = min(128, length - k)
            packed += bytes([(257 - count) % 256, data[start]])
        done = start + length
    return bytes(packed)


def _syntax(rng: np.random.Generator) -> uid.UID | None:
    draw = rng.random()
    for syntax, share in COMPRESSED_SHARE.items():
        if draw < share:
            return syntax
        draw -= share
    return None
