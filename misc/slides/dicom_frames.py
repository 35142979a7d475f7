"""A DICOM slide that OpenSlide refuses, such as one that says no ImageType: one instance, read frame by frame.

It is read as it is stored, as OpenSlide reads other DICOM slides: ImageOrientationSlide does not rotate it. The places
of frames follow from their positions, or from TILED_FULL, which means row by row. If a file has neither, the reader
tries row by row and column by column, and takes the order in which the borders of the frames fit together.
"""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from misc.slides.blocks import BlockCache, fill
from misc.slides.dicom import read_instance
from misc.slides.pixels import WHITE, ImageError, to_rgb

# transfer syntaxes: little endian with and without the types of values, JPEG, JPEG 2000
_NATIVE, _JPEG = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.4.50"
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_COLOURS = ("RGB", "MONOCHROME2", "YBR_ICT", "YBR_RCT")  # colours of the decoded pixels; a JPEG has its own entry
SEAMS = 32  # pairs of frames whose borders are compared
ASPECT = 1.1  # largest ratio of a pixel's sides; beyond it, the size of the imaged volume is not a real measurement


class DicomSource:
    """One instance as the only level.

    Attributes: see `misc.slides.sources`.

    Raises:
        ImageError: it is not a level of a slide, is cut short, or has an unsupported encoding.
    """

    vendor = "dicom"
    bounds_xywh = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path):
        import pydicom

        instance = read_instance(path)
        if instance is None or not instance.is_volume:
            raise ImageError("is no level of a DICOM slide (ImageType), or has a damaged header")
        with open(path, "rb") as file:
            self._header = header = pydicom.dcmread(file, stop_before_pixels=True)
            _check_pixels(header)
            self._spans = _frame_spans(file, header)
        self.sizes_xy = [(int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows))]
        self.is_deep = header.BitsAllocated > 8
        self.power = _first(header, "OpticalPathSequence").get("ObjectiveLensPower")
        self.mpp_xy, self.mpp_from = _mpp(header)
        self._file, self._lock, self._frames = open(path, "rb"), threading.Lock(), BlockCache()
        self._places = _said_places(header, len(self._spans))
        if self._places is None:
            is_down = self._fits_below()
            self._places = _grid(header, is_down)
            self.notes = (f"does not say where its frames lie; read {'down columns' if is_down else 'along rows'}",)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region of the only level, (height, width, 3) uint8; where no frame lies it is white."""
        region = np.full((height, width, 3), WHITE, np.uint8)
        size = self._header.Columns, self._header.Rows
        return fill(region, x, y, size, lambda row, column: self._frame(self._places.get((row, column))))

    def close(self) -> None:
        self._file.close()

    def _fits_below(self) -> bool:
        """Tell whether frames continue the ones before them below, rather than to the right."""
        right = below = 0.0
        for index in np.unique(np.linspace(0, max(len(self._spans) - 2, 0), SEAMS).astype(int)).tolist():
            one, other = (self._frame(min(at, len(self._spans) - 1)).astype(int) for at in (index, index + 1))
            right += np.abs(one[:, -1] - other[:, 0]).mean()
            below += np.abs(one[-1] - other[0]).mean()
        return below < right

    def _frame(self, index: int | None) -> np.ndarray | None:
        return None if index is None else self._frames.get(index, lambda: self._decode(index))

    def _decode(self, index: int) -> np.ndarray:
        """Return a frame, (Rows, Columns, 3) uint8."""
        start, stop = self._spans[index]
        with self._lock:
            self._file.seek(start)
            data = self._file.read(stop - start)
        header = self._header
        shape = header.Rows, header.Columns, header.SamplesPerPixel
        if header.file_meta.TransferSyntaxUID in _NATIVE:
            return to_rgb(np.frombuffer(data, f"<u{header.BitsAllocated // 8}").reshape(shape))
        import imagecodecs
        from pydicom.encaps import generate_fragments

        decode = imagecodecs.jpeg8_decode if header.file_meta.TransferSyntaxUID == _JPEG else imagecodecs.jpeg2k_decode
        pixels = decode(b"".join(generate_fragments(data)))
        if pixels.shape[:2] != shape[:2]:
            raise ImageError(f"frame {index + 1} is {pixels.shape[:2]} px high and wide, not {shape[:2]}")
        return to_rgb(pixels)


def _check_pixels(header) -> None:
    """Raise an `ImageError` for unsupported encodings of pixels."""
    syntax, bits, colour = header.file_meta.TransferSyntaxUID, header.BitsAllocated, header.PhotometricInterpretation
    if syntax not in (*_NATIVE, _JPEG, *_JPEG_2000):
        raise ImageError(f"has pixels in {syntax.name}; JPEG, JPEG 2000 or little endian is needed")
    is_planar = syntax in _NATIVE and header.get("PlanarConfiguration", 0)
    if is_planar or bits not in (8, 16) or header.BitsStored != bits or not (syntax == _JPEG or colour in _COLOURS):
        raise ImageError(f"has {colour} pixels, {header.BitsStored} of {bits} bits; 8 or 16 bit RGB or grey is needed")


def _frame_spans(file: BinaryIO, header) -> list[tuple[int, int]]:
    """Return where frames begin and end in a file that has been read up to its pixels, bytes.

    Raises:
        ImageError: the file is cut short.
    """
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    number, syntax = int(header.get("NumberOfFrames", 1)), header.file_meta.TransferSyntaxUID
    file.seek(8 if syntax.is_implicit_VR else 12, os.SEEK_CUR)  # tag, type of the value, length
    if syntax in _NATIVE:
        size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
        bounds = range(file.tell(), file.tell() + number * size + 1, size)
    else:
        offsets, first = parse_basic_offsets(file), file.tell()
        count, items = parse_fragments(file)
        if count < number:
            raise ImageError(f"is cut short: {count} of {number} frames")
        file.seek(items[-1] + 4)  # its tag, then its length
        end = items[-1] + 8 + int.from_bytes(file.read(4), "little")
        bounds = [*([first + offset for offset in offsets] or items), end]
    if bounds[-1] > os.fstat(file.fileno()).st_size:
        raise ImageError("is cut short")
    if len(bounds) != number + 1:
        raise ImageError(f"has {number} frames in {len(bounds) - 1} pieces, and no table of them")
    return list(itertools.pairwise(bounds))


def _said_places(header, number: int) -> dict[tuple[int, int], int] | None:
    """Return the frame at each row and column of the grid, or `None` where the header does not say it.

    Raises:
        ImageError: frames overlap or lie on no grid, or their number does not fit one picture.
    """
    groups = header.get("PerFrameFunctionalGroupsSequence") or ()
    positions = [_first(group, "PlanePositionSlideSequence") for group in groups]
    if positions and all("RowPositionInTotalImagePixelMatrix" in position for position in positions):
        corners = [
            (int(at.RowPositionInTotalImagePixelMatrix) - 1, int(at.ColumnPositionInTotalImagePixelMatrix) - 1)
            for at in positions
        ]
        places = {(y // header.Rows, x // header.Columns): index for index, (y, x) in enumerate(corners)}
        if len(places) != number or any(y % header.Rows or x % header.Columns for y, x in corners):
            raise ImageError("has frames that lie on each other or on no grid")
        return places
    rows, columns = _grid_shape(header)
    if number != rows * columns:
        raise ImageError(f"has {number} frames, not the {rows * columns} of one picture")
    return _grid(header, is_down=False) if header.get("DimensionOrganizationType") == "TILED_FULL" else None


def _grid(header, is_down: bool) -> dict[tuple[int, int], int]:
    rows, columns = _grid_shape(header)
    indices = np.arange(rows * columns)
    return dict(np.ndenumerate(indices.reshape(columns, rows).T if is_down else indices.reshape(rows, columns)))


def _grid_shape(header) -> tuple[int, int]:
    return -(-header.TotalPixelMatrixRows // header.Rows), -(-header.TotalPixelMatrixColumns // header.Columns)


def _mpp(header) -> tuple[tuple[float, float] | None, str]:
    """Return um a pixel (x, y) and where it comes from; uses the size of the volume only if pixels are then square."""
    spacing = _first(_first(header, "SharedFunctionalGroupsSequence"), "PixelMeasuresSequence").get("PixelSpacing")
    if spacing:
        return (1000 * float(spacing[1]), 1000 * float(spacing[0])), "the scanner"
    volume = [header.get(f"ImagedVolume{side}") or 0 for side in ("Width", "Height")]
    x, y = 1000 * volume[0] / header.TotalPixelMatrixColumns, 1000 * volume[1] / header.TotalPixelMatrixRows
    return ((x, y) if 0 < max(x, y) < ASPECT * min(x, y) else None), "the size of the imaged volume"


def _first(data, sequence: str):
    """Return the first item of a sequence, an empty one where there is none."""
    return (data.get(sequence) or [{}])[0]
