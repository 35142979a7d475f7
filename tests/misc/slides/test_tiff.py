"""TIFF files that OpenSlide refuses: every layout gives the same pixels, by region."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from misc.slides.handler import get_file_handler
from misc.slides.pixels import ImageError
from misc.slides.tiff import TiffSource


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (310, 270, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0)


LAYOUTS = {
    "mapped": {},
    "strips": {"rowsperstrip": 32, "compression": "zlib"},
    "one strip": {"rowsperstrip": 310, "compression": "zlib"},
    "tiles": {"tile": (64, 48), "compression": "zlib"},
    "planar": {"planarconfig": "separate", "rowsperstrip": 50, "compression": "zlib"},
    "planar mapped": {"planarconfig": "separate"},
    "big endian": {"byteorder": ">", "rowsperstrip": 20},
    "predictor": {"predictor": 2, "compression": "zlib", "rowsperstrip": 16},
}


def test_every_layout_gives_the_same_pixels_however_cut(tmp_path, picture):
    for layout, options in LAYOUTS.items():
        data = np.ascontiguousarray(np.moveaxis(picture, 2, 0)) if "planar" in layout else picture
        tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", metadata=None, **options)
        source = TiffSource(tmp_path / "a.tif")
        np.testing.assert_array_equal(source.read(0, 0, 0, 270, 310), picture, layout)
        for y, x in itertools.product((0, 31, 200), (0, 47, 150)):
            np.testing.assert_array_equal(source.read(0, x, y, 77, 66), picture[y : y + 66, x : x + 77], layout)
        source.close()


def test_compressions_of_another_program_are_read(tmp_path, picture):
    compressions = {"tiff_lzw": 0, "packbits": 0, "zstd": 0, "lzma": 0, "jpeg": 5}
    for (compression, slack), mode in itertools.product(compressions.items(), ("RGB", "YCbCr")):
        quality = {"quality": 95} if compression == "jpeg" else {}
        Image.fromarray(picture).convert(mode).save(tmp_path / "a.tif", compression=compression, **quality)
        source = TiffSource(tmp_path / "a.tif")
        off = np.abs(source.read(0, 20, 30, 100, 90).astype(int) - picture[30:120, 20:120])
        assert off.mean() <= slack + (mode == "YCbCr"), (compression, mode)


def test_ome_pyramid_with_its_own_resolution(tmp_path, picture):
    """The usual OME-TIFF: smaller levels as sub-images, um a pixel in the XML.

    OpenSlide takes tiled ones for generic TIFF, and sees neither.
    """
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    small = cv2.resize(picture, (100, 115), interpolation=cv2.INTER_AREA)  # 2.7 times smaller
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(picture, subifds=1, metadata=metadata, **options)
        file.write(small, subfiletype=1, **options)
    source = TiffSource(tmp_path / "a.ome.tif")
    assert source.sizes_xy == [(270, 310), (100, 115)]
    assert source.mpp_xy == pytest.approx((0.5, 0.5))
    assert source.mpp_from == "the OME metadata"
    np.testing.assert_array_equal(source.read(1, 10, 20, 50, 60), small[20:80, 10:60])
    with get_file_handler(tmp_path / "a.ome.tif") as handler:
        assert handler.metadata["base_mag"] == 20
        np.testing.assert_array_equal(handler.get_full_img(read_mag=20 / 2.7), small)


def test_three_grey_channels_are_red_green_and_blue(tmp_path, picture):
    channels = np.ascontiguousarray(np.moveaxis(picture, 2, 0))
    tifffile.imwrite(tmp_path / "a.ome.tif", channels, photometric="minisblack", metadata={"axes": "CYX"})
    np.testing.assert_array_equal(TiffSource(tmp_path / "a.ome.tif").read(0, 5, 6, 50, 40), picture[6:46, 5:55])


def test_stacks_of_other_kinds_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((5, 40, 50), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match="stack"):
        TiffSource(tmp_path / "a.ome.tif")


def test_negatives_and_palettes(tmp_path, picture):
    grey = picture[..., 0]
    tifffile.imwrite(tmp_path / "white.tif", 255 - grey, photometric="miniswhite")
    np.testing.assert_array_equal(TiffSource(tmp_path / "white.tif").read(0, 0, 0, 270, 310)[..., 1], grey)
    palette = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", grey, photometric="palette", colormap=palette * 257)
    found = TiffSource(tmp_path / "palette.tif").read(0, 0, 0, 270, 310)
    np.testing.assert_array_equal(found, np.moveaxis(palette[:, grey], 0, 2))


def test_a_file_that_is_cut_short_says_so(tmp_path, picture):
    for options in ({}, {"compression": "zlib", "rowsperstrip": 20}):
        tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", **options)
        data = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="cut short"):
            TiffSource(tmp_path / "a.tif").read(0, 0, 0, 270, 310)


def test_the_real_stripped_slide_that_openslide_refuses(shared):
    path = shared / "data" / "slides" / "kidney-48-5_not_openslide.tif"
    source = TiffSource(path)
    assert source.sizes_xy == [(1493, 901)]
    np.testing.assert_array_equal(source.read(0, 700, 400, 100, 80), tifffile.imread(path)[400:480, 700:800])
