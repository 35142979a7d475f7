"""A DICOM slide made up for tests: levels, label and overview, each a file of one series."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class: VL Whole Slide Microscopy Image Storage


def write_series(folder: Path, rgb: np.ndarray, mpp: float = 0.5, prefix: str = "") -> list[Path]:
    """Write a slide of two levels, with label, overview and thumbnail; returns the files, level 0 the second."""
    uid = pytest.importorskip("pydicom", reason="needs pydicom").uid.generate_uid()
    half = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    parts = (("VOLUME", half, 64, 2 * mpp), ("VOLUME", rgb, 64, mpp), ("LABEL", rgb[:100, :100], 100, mpp))
    parts += (("OVERVIEW", rgb[:200, :200], 200, mpp), ("THUMBNAIL", half[:100, :100], 100, 2 * mpp))
    return [
        write_instance(folder / f"{prefix}{number}.dcm", pixels, uid, kind, tile, um)
        for number, (kind, pixels, tile, um) in enumerate(parts)
    ]


def write_instance(path: Path, rgb: np.ndarray, series: str, kind: str, tile: int, mpp: float, **tags) -> Path:
    """Write one file; `tags` by keyword replace what it says."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = rgb.shape[:2]
    data, pixel, shared = Dataset(), Dataset(), Dataset()
    pixel.PixelSpacing = [mpp / 1000] * 2
    shared.PixelMeasuresSequence = [pixel]
    values = {
        "SOPClassUID": WHOLE_SLIDE, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": series,
        "StudyInstanceUID": series, "Modality": "SM", "ImageType": ["ORIGINAL", "PRIMARY", kind, "NONE"],
        "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0,
        "Rows": tile, "Columns": tile, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height, "DimensionOrganizationType": "TILED_FULL",
        "SharedFunctionalGroupsSequence": [shared],
    }  # fmt: skip
    frames = _frames(rgb, tile)
    values |= {"NumberOfFrames": len(frames), "PixelData": _encapsulated(frames)} | tags
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    for name, value in values.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    return path


def _frames(rgb: np.ndarray, tile: int) -> list[bytes]:
    rows, columns = (-(-side // tile) for side in rgb.shape[:2])
    padded = np.pad(rgb, ((0, rows * tile - rgb.shape[0]), (0, columns * tile - rgb.shape[1]), (0, 0)), "edge")
    corners = [(y * tile, x * tile) for y in range(rows) for x in range(columns)]
    tiles = (padded[y : y + tile, x : x + tile, ::-1] for y, x in corners)
    return [cv2.imencode(".jpg", piece, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for piece in tiles]


def _encapsulated(frames: list[bytes]) -> bytes:
    from pydicom.encaps import encapsulate

    return encapsulate(frames)
