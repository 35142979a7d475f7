"""What opens as a slide, and how: by content, whatever the name."""

from __future__ import annotations

import itertools
import struct

import cv2
import numpy as np
import pytest
import tifffile
from dicom_series import write_instance

from misc.slides.handler import get_file_handler
from misc.slides.sources import ImageSource, OpenSlideSource, SlideError, is_slide, open_source
from misc.slides.tiff import TiffSource


@pytest.fixture
def picture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0)


def whole(source) -> np.ndarray:
    return source.read(0, 0, 0, *source.sizes_xy[0])


def encoded(picture, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def test_p23_content_says_what_a_slide_is_not_its_name(tmp_path, picture):
    tifffile.imwrite(tmp_path / "TILED.SVS", picture, tile=(64, 64), photometric="rgb")
    tifffile.imwrite(tmp_path / "stripped.unknown", picture, photometric="rgb")
    (tmp_path / "png.tif").write_bytes(encoded(picture, ".png"))
    (tmp_path / "jpeg").write_bytes(encoded(picture, ".jpg"))
    kinds = {
        "TILED.SVS": OpenSlideSource,
        "stripped.unknown": TiffSource,
        "png.tif": ImageSource,
        "jpeg": ImageSource,
    }
    for name, kind in kinds.items():
        assert is_slide(tmp_path / name), name
        source = open_source(tmp_path / name)
        assert type(source) is kind, name
        off = np.abs(whole(source).astype(int) - picture)
        assert off.max() == 0 if name != "jpeg" else off.mean() < 5
        source.close()


def test_p25_side_files_are_no_slides(tmp_path):
    for name in ("notes.txt", "Slidedat.ini", "Data0001.dat", "mask.npy"):
        (tmp_path / name).write_bytes(b"whatever this is")
        assert not is_slide(tmp_path / name)
        with pytest.raises(SlideError, match="is no slide"):
            open_source(tmp_path / name)


def test_a_broken_file_with_a_slides_name_counts_and_says_why(tmp_path):
    for suffix in (".svs", ".NDPI", ".mrxs", ".tif", ".dcm"):
        path = tmp_path / f"a{suffix}"
        for content in (b"", b"not a slide", b"II*\0" + b"x" * 50, b"\0" * 128 + b"DICM" + b"x" * 50):
            path.write_bytes(content)
            assert is_slide(path)
            with pytest.raises(SlideError, match=path.name):
                open_source(path)


def test_a_picture_that_is_cut_short_is_refused(tmp_path, picture):
    for suffix in (".png", ".jpg"):
        data = encoded(picture, suffix)
        (tmp_path / "a").write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(SlideError, match="truncated"):
            open_source(tmp_path / "a")


def test_a_tile_size_that_ends_openslide_is_refused(tmp_path, picture):
    """OpenSlide asks for the memory of a tile and aborts the process where there is none."""
    width, height, tile_width, tile_height = 256, 257, 322, 323  # tags
    crafted = (
        {tile_width: 2**31 - 16},
        {tile_height: 2**31 - 16},
        {tile_width: 2**31 - 16, tile_height: 2**31 - 16},
        {tile_width: 2**20, tile_height: 2**20},
        {width: 2**31 - 1, height: 2**31 - 1, tile_width: 2**30, tile_height: 2**30},
        {width: 2**32 - 1, height: 2**32 - 1},
        {tile_width: 0, tile_height: 0},
    )
    aperio = {"description": "Aperio Image Library v1\r\n200x150|AppMag = 20|MPP = 0.5"}
    for options, compression, tags in itertools.product(({}, aperio), (None, "zlib", "jpeg"), crafted):
        path = tmp_path / "a.svs"
        tifffile.imwrite(
            path, picture, tile=(64, 64), photometric="rgb", compression=compression, metadata=None, **options
        )
        patch_tags(path, tags)
        with pytest.raises(SlideError, match="a.svs: "):
            open_source(path)
        with pytest.raises(SlideError, match="a.svs: "), get_file_handler(path, mpp=0.5) as handler:
            handler.read_region((0, 0), (10, 10))


def patch_tags(path, values: dict[int, int]) -> None:
    """Write other values into the first page of a little-endian TIFF."""
    with tifffile.TiffFile(path) as file:
        at = {code: file.pages[0].tags[code].offset for code in values}
    with open(path, "r+b") as handle:
        for code, value in values.items():
            handle.seek(at[code] + 2)
            handle.write(struct.pack("<HII", 4, 1, value))


def test_a_header_that_ends_openslide_is_tried_by_another_process(tmp_path, picture):
    """The table of a DICOM slide's tiles is made when it is opened: one for 2 ** 62 px ends the process."""
    pytest.importorskip("pydicom", reason="needs pydicom")
    sides = {f"TotalPixelMatrix{side}": 2**31 - 1 for side in ("Rows", "Columns")}
    good = write_instance(tmp_path / "good" / "a.dcm", picture, "1.2.3", "VOLUME", 64, 0.5)
    large = write_instance(tmp_path / "large" / "a.dcm", picture, "1.2.4", "VOLUME", 64, 0.5, **sides)
    sides["DimensionOrganizationType"] = "TILED_SPARSE"
    bad = write_instance(tmp_path / "bad" / "a.dcm", picture, "1.2.5", "VOLUME", 64, 0.5, **sides)
    assert open_source(good).sizes_xy == [(200, 150)]
    with pytest.raises(SlideError, match="a.dcm: says that it has 2147483647 x 2147483647 px"):
        open_source(large)
    with pytest.raises(SlideError, match=r"a.dcm: ends OpenSlide \(code"):
        open_source(bad)


def test_the_part_that_was_scanned(shared, tmp_path, picture):
    source = open_source(shared / "cases" / "04-qupath-bounds" / "in" / "leica.scn")
    assert source.bounds_xywh == (500, 400, 800, 600)
    tifffile.imwrite(tmp_path / "a.tif", picture, tile=(64, 64), photometric="rgb")
    assert open_source(tmp_path / "a.tif").bounds_xywh is None


def test_a_folder_and_a_link_to_nothing_are_no_slides(tmp_path):
    (tmp_path / "a.svs").mkdir()
    (tmp_path / "b.svs").symlink_to(tmp_path / "nowhere")
    for name in ("a.svs", "b.svs"):
        assert not is_slide(tmp_path / name)
        with pytest.raises(SlideError, match="cannot be read"):
            open_source(tmp_path / name)


def test_pngs_of_any_depth(tmp_path):
    for (dtype, top), channels in itertools.product([(np.uint8, 255), (np.uint16, 65535)], [None, 3, 4]):
        values = np.linspace(0, top, 30).astype(dtype)
        image = np.tile(values, (20, 1)) if channels is None else np.tile(values[:, None], (20, 1, channels))
        if channels == 4:
            image[..., 3] = top
        cv2.imwrite(str(tmp_path / "a.png"), image)
        found = whole(open_source(tmp_path / "a.png"))
        assert found.shape == (20, 30, 3)
        np.testing.assert_allclose(found[0, :, 0], np.linspace(0, 255, 30), atol=1)


def test_a_tiff_that_is_turned_is_read_as_it_is_stored(tmp_path, picture):
    tags = [(274, "H", 1, 6, False)]
    tifffile.imwrite(tmp_path / "a.tif", picture, tile=(64, 64), photometric="rgb", extratags=tags)
    source = open_source(tmp_path / "a.tif")
    assert source.sizes_xy == [(200, 150)]
    np.testing.assert_array_equal(whole(source), picture)
