"""DICOM slides that OpenSlide refuses: where their frames lie, how pixels are stored, what is refused."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from dicom_series import write_instance
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from misc.slides.dicom_frames import DicomSource
from misc.slides.folder import find_slides
from misc.slides.handler import SlideError, get_file_handler
from misc.slides.sources import OpenSlideSource, open_source
from misc.slides.tissue import thumbnail

TILE = 64
RGB = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 230, 3)).astype(np.uint8), (25, 25), 0)
ROWS, COLUMNS = 5, 4  # of tiles; neither side is a multiple of them


def write(
    path: Path, pixels: np.ndarray, order=None, syntax=ExplicitVRLittleEndian, drop=("ImageType",), **tags
) -> Path:
    """Write pixels without loss; `order` lists (row, column) of the frames, row by row where it is `None`."""
    order = order or list(itertools.product(range(ROWS), range(COLUMNS)))
    data = dcmread(write_instance(path, RGB, "1.2.3", "VOLUME", TILE, 0.5))
    pad = ((0, ROWS * TILE - pixels.shape[0]), (0, COLUMNS * TILE - pixels.shape[1]), *[(0, 0)] * (pixels.ndim - 2))
    padded = np.pad(pixels, pad)
    frames = [padded[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] for y, x in order]
    data.file_meta.TransferSyntaxUID = syntax
    data.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.NumberOfFrames = len(order)
    if syntax == JPEG2000Lossless:
        data.PhotometricInterpretation = "YBR_RCT"
        data.PixelData = encapsulate([imagecodecs.jpeg2k_encode(frame, level=0, reversible=True) for frame in frames])
    else:
        data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        raw = [frame.tobytes() for frame in frames]
        data.PixelData = encapsulate(raw) if syntax.is_encapsulated else b"".join(raw)
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name in drop:
        del data[name]
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def whole(path: Path) -> np.ndarray:
    source = open_source(path)
    assert type(source) is DicomSource
    with ThreadPoolExecutor(3) as pool:  # rows of it at once, each across several frames
        parts = list(pool.map(lambda y: source.read(0, 0, y, source.sizes_xy[0][0], 20), range(0, 300, 20)))
    source.close()
    return np.concatenate(parts)


def positions(order: list[tuple[int, int]], off: int = 0) -> list[Dataset]:
    groups = []
    for row, column in order:
        at, group = Dataset(), Dataset()
        at.RowPositionInTotalImagePixelMatrix = row * TILE + 1 + off
        at.ColumnPositionInTotalImagePixelMatrix = column * TILE + 1
        group.PlanePositionSlideSequence = [at]
        groups.append(group)
    return groups


def test_the_real_slide_fits_together_over_the_borders_of_its_frames(shared, tmp_path):
    path = tmp_path / "small_dicom.dcm"
    path.symlink_to(shared / "data" / "slides" / "small_dicom.dcm")
    assert find_slides(tmp_path).slides == [path]
    with get_file_handler(path, mpp=4) as handler:
        # its volume of 15 x 15 mm would give pixels of 4.6 x 5.7 um
        assert (handler._source.mpp_xy, handler._source.power) == (None, None)
        assert handler.shape_yx == (2638, 3236)
        assert any("read down columns" in note for note in handler.metadata["notes"])
        rgb = handler.read_region((0, 0), (3236, 2638)).astype(int)
        small = thumbnail(handler).astype(int)
    for axis in (0, 1):
        jumps = np.abs(np.diff(rgb, axis=axis)).mean(axis=(1 - axis, 2))
        assert jumps[499::500].max() < 2 * np.median(jumps)  # in rows it is 12 times
    assert (rgb.max(axis=2) < 5).mean() < 1e-4  # the black that fills the frames at the edges is not seen
    np.testing.assert_allclose(rgb[1000:1200, 800:1000].mean(axis=(0, 1)), (203, 144, 174), atol=2)
    # as it is stored: the green ring is on top, and its tip on the left
    height, width = small.shape[:2]
    green = small[..., 1] - small[..., 0] > 60
    assert green[: height // 2].sum() > 10 * max(green[height * 6 // 10 :].sum(), 1)
    assert green[:, : width // 10].any()
    assert not green[:, width * 9 // 10 :].any()


def test_pixels_of_any_storage_come_back(tmp_path):
    deep = RGB.astype(np.uint16) * 257
    for pixels, expected in ((RGB, RGB), (deep, RGB), (RGB[..., 1], np.repeat(RGB[..., 1:2], 3, axis=2))):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless):
            np.testing.assert_array_equal(whole(write(tmp_path / "a.dcm", pixels, syntax=syntax)), expected)


def test_frames_lie_where_the_header_says_or_else_where_they_fit(tmp_path):
    by_row = list(itertools.product(range(ROWS), range(COLUMNS)))
    by_column = [(row, column) for column in range(COLUMNS) for row in range(ROWS)]
    shuffled = [by_row[index] for index in np.random.default_rng(1).permutation(len(by_row))]
    no_order = ("ImageType", "DimensionOrganizationType")
    for order, tags in (
        (by_row, {}),
        (by_column, {}),
        (shuffled, {"PerFrameFunctionalGroupsSequence": positions(shuffled)}),
    ):
        np.testing.assert_array_equal(whole(write(tmp_path / "a.dcm", RGB, order, drop=no_order, **tags)), RGB)
    assert not np.array_equal(whole(write(tmp_path / "a.dcm", RGB, by_column)), RGB)  # that says TILED_FULL
    sparse = write(tmp_path / "a.dcm", RGB, shuffled[1:], PerFrameFunctionalGroupsSequence=positions(shuffled[1:]))
    found, (row, column) = whole(sparse), shuffled[0]
    where = np.s_[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
    assert (found[where] == 255).all()
    found[where] = RGB[where]
    np.testing.assert_array_equal(found, RGB)


def test_what_openslide_reads_stays_with_it(tmp_path):
    assert type(open_source(write(tmp_path / "a.dcm", RGB, drop=()))) is OpenSlideSource


def test_a_file_that_is_cut_short_is_refused_in_one_line(shared, tmp_path):
    real = (shared / "data" / "slides" / "small_dicom.dcm").read_bytes()
    for data in (real, write(tmp_path / "a.dcm", RGB).read_bytes()):
        for length in (len(data) - 100, len(data) // 2, len(data) // 2 + 1, 3000, 600, 200):
            (tmp_path / "b.dcm").write_bytes(data[:length])
            with pytest.raises(SlideError, match="b.dcm: ") as error:
                get_file_handler(tmp_path / "b.dcm")
            assert "\n" not in str(error.value)
            assert length < 4000 or "is cut short" in str(error.value)


def test_what_is_not_read_says_why(tmp_path):
    places = list(itertools.product(range(ROWS), range(COLUMNS)))
    for tags, reason in (
        ({"PlanarConfiguration": 1}, "has RGB pixels, 8 of 8 bits"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "has YBR_FULL pixels"),
        ({"TotalPixelMatrixColumns": 600}, "has 20 frames, not the 50 of one picture"),
        ({"PerFrameFunctionalGroupsSequence": positions(places, off=1)}, "lie on each other or on no grid"),
        ({"PerFrameFunctionalGroupsSequence": positions(places[:1] * 20)}, "lie on each other or on no grid"),
        ({"syntax": RLELossless}, "has pixels in RLE Lossless"),
    ):
        with pytest.raises(SlideError, match=f"a.dcm: {reason}|a.dcm: has frames that {reason}"):
            open_source(write(tmp_path / "a.dcm", RGB, **tags))


def test_the_resolution_is_the_spacing_or_a_volume_of_square_pixels(tmp_path):
    no_spacing = {"drop": ("ImageType", "SharedFunctionalGroupsSequence")}
    lens = Dataset()
    lens.ObjectiveLensPower = 20
    for tags, mpp_xy in (
        ({"OpticalPathSequence": [lens]}, (0.5, 0.5)),
        (no_spacing, None),
        (no_spacing | {"ImagedVolumeWidth": 0.23, "ImagedVolumeHeight": 0.3}, (1, 1)),
        (no_spacing | {"ImagedVolumeWidth": 15, "ImagedVolumeHeight": 15}, None),
    ):
        source = open_source(write(tmp_path / "a.dcm", RGB, **tags))
        assert source.mpp_xy == (None if mpp_xy is None else pytest.approx(mpp_xy))
        assert source.power == (20 if "OpticalPathSequence" in tags else None)
