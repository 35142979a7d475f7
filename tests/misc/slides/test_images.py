"""Reading image files: every kind becomes 8-bit RGB or says why not."""

from __future__ import annotations

import itertools
import logging

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from misc.slides.handler import get_file_handler
from misc.slides.image import open_image
from misc.slides.images import ImageError, no_image_because, probe_size, read_image, resize

RNG = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 255, (60, 90, 3), dtype=np.uint8), (9, 9), 0)  # BGR for OpenCV


def slide_pixels(path) -> np.ndarray:
    with get_file_handler(path, mag=40) as handler:
        return handler.get_full_img(read_mag=40)


def test_lossless_formats_come_back_as_rgb(tmp_path):
    for suffix in (".png", ".tif", ".bmp", ".ppm", ".PNG", ".TIFF"):
        path = tmp_path / f"größe [1] x{suffix}"
        path.write_bytes(cv2.imencode(suffix.lower(), IMAGE)[1].tobytes())
        assert np.array_equal(read_image(path), IMAGE[..., ::-1])
        assert np.array_equal(slide_pixels(path), IMAGE[..., ::-1])
        assert probe_size(path) == (60, 90)


def test_every_layout_of_the_shared_case_shows_the_same_field(shared):
    folder = shared / "cases" / "01-tile-tiff-layouts" / "in"
    expected = cv2.imread(str(folder / "ref.png"))[..., ::-1]
    for path in sorted(folder.iterdir()):
        assert np.array_equal(read_image(path), expected), path.name
        assert np.array_equal(slide_pixels(path), expected), path.name
        assert probe_size(path) == expected.shape[:2]


def test_tiffs_of_any_layout_are_the_same_image_and_the_same_slide(tmp_path):
    """Stripped, tiled, compressed: OpenSlide takes channels of a tiled file for alpha, pages and 16 bits for grey."""
    rgb, grey = IMAGE[..., ::-1], np.repeat(IMAGE[..., 1:2], 3, axis=2)
    nothing, opaque = np.zeros((60, 90, 1), np.uint8), np.full((60, 90, 1), 255, np.uint8)
    deep, planes = rgb.astype(np.uint16) * 257, np.moveaxis(rgb, 2, 0).copy()
    layouts = {
        "rgb": (rgb, {"photometric": "rgb"}),
        "fourth channel": (np.dstack([rgb, nothing]), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        "alpha": (np.dstack([rgb, opaque]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "premultiplied": (np.dstack([rgb, opaque]), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        "deep": (deep, {"photometric": "rgb"}),
        "deep planes": (np.moveaxis(deep, 2, 0).copy(), {"photometric": "rgb", "planarconfig": "separate"}),
        "not called rgb": (rgb, {"photometric": "minisblack", "planarconfig": "contig"}),
        "three pages": (planes, {"photometric": "minisblack"}),
        "cmyk": (np.dstack([255 - rgb, nothing]), {"photometric": "separated"}),
        "big": (rgb, {"photometric": "rgb", "bigtiff": True}),
        "grey": (grey[..., 0], {"photometric": "minisblack"}),
        "deep grey": (grey[..., 0].astype(np.uint16) * 257, {"photometric": "minisblack"}),
        "negative": (255 - grey[..., 0], {"photometric": "miniswhite"}),
    }
    ways = (
        {},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"tile": (32, 48), "compression": "zlib"},
    )
    for (name, (samples, options)), way in itertools.product(layouts.items(), ways):
        tifffile.imwrite(tmp_path / "a.tif", samples, **options, **way)
        expected = grey if "grey" in name or name == "negative" else rgb
        assert np.array_equal(read_image(tmp_path / "a.tif"), expected), (name, way)
        assert np.array_equal(slide_pixels(tmp_path / "a.tif"), expected), (name, way)


def test_fewer_bits_than_a_byte_or_two_fill_the_range(tmp_path):
    dark = IMAGE.astype(np.uint16) * 16  # a 12-bit camera's
    tifffile.imwrite(tmp_path / "12.tif", dark, photometric="rgb", bitspersample=12)
    assert np.abs(read_image(tmp_path / "12.tif").astype(int) - IMAGE).max() <= 1
    for compression in (None, "group4"):
        Image.fromarray(IMAGE).convert("1", dither=Image.Dither.NONE).save(tmp_path / "1.tif", compression=compression)
        assert np.array_equal(read_image(tmp_path / "1.tif")[..., 0], cv2.imread(str(tmp_path / "1.tif"))[..., 0])


def test_kinds_of_pixels_that_are_no_picture_are_refused_by_name(tmp_path):
    for samples, message in (
        (IMAGE.astype(np.float32), "float32"),
        (IMAGE.astype(np.int16), "int16"),
    ):
        tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb")
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / "a.tif")


def test_jpeg_reads_as_opencv_reads_it(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), IMAGE)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])


def test_sixteen_bits_grey_and_alpha(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), IMAGE.astype(np.uint16) * 257)
    assert np.array_equal(read_image(tmp_path / "deep.png"), IMAGE[..., ::-1])
    cv2.imwrite(str(tmp_path / "grey.png"), IMAGE[..., 0])
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(IMAGE[..., :1], 3, axis=2))
    alpha = np.full((60, 90, 1), 255, np.uint8)
    alpha[:30] = 0
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([IMAGE, alpha]))
    read = read_image(tmp_path / "alpha.png")
    assert (read[:30] == 255).all()  # glass, not black tissue
    assert np.array_equal(read[30:], IMAGE[30:, :, ::-1])


def test_truncated_files_are_refused(tmp_path):
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        data = cv2.imencode(suffix, IMAGE)[1].tobytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(ImageError):
            read_image(tmp_path / f"cut{suffix}")
        if suffix in (".png", ".jpg"):  # the header is enough for its size
            assert probe_size(tmp_path / f"cut{suffix}") == (60, 90)


def test_probed_sizes_are_those_of_turned_images(tmp_path):
    for suffix in (".jpg", ".png", ".tif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(IMAGE).save(tmp_path / f"turned{suffix}", exif=exif)
        assert probe_size(tmp_path / f"turned{suffix}") == read_image(tmp_path / f"turned{suffix}").shape[:2]


def test_tiles_and_slides_are_turned_alike(tmp_path):
    """DAB scores and overlays put the nuclei of a tile run onto what the slide reader reads."""
    for suffix, orientation in itertools.product((".jpg", ".png", ".tif", "-16.tif"), range(1, 9)):
        path = tmp_path / f"a{suffix}"
        if path.suffix == ".tif":
            pixels = IMAGE.astype(np.uint16) * 257 if "16" in suffix else IMAGE
            byteorder, tags = "<>"[orientation % 2], [(274, "H", 1, orientation, True)]
            tifffile.imwrite(path, pixels, photometric="rgb", byteorder=byteorder, extratags=tags)
        else:
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(IMAGE).save(path, exif=exif)
        tile, slide = read_image(path), open_image(path)
        assert np.array_equal(tile, slide.read(0, 0, slide.height, slide.width))
        assert probe_size(path) == tile.shape[:2] == (slide.height, slide.width)
        if suffix == ".jpg":
            assert tile.shape[:2] == ((60, 90) if orientation < 5 else (90, 60))
        else:
            assert np.array_equal(tile, IMAGE)  # as it is stored


def test_damaged_tiff_strip_is_refused(tmp_path):
    big = cv2.GaussianBlur(RNG.integers(0, 255, (300, 400, 3), dtype=np.uint8), (9, 9), 0)
    data = bytearray(cv2.imencode(".tif", big)[1].tobytes())
    for k in range(len(data) // 2, len(data) // 2 + 40):
        data[k] ^= 0xFF
    (tmp_path / "bad.tif").write_bytes(bytes(data))
    with pytest.raises(ImageError, match="damaged TIFF"):
        read_image(tmp_path / "bad.tif")


def test_no_images_say_why(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match="empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "text.png")
    assert probe_size(tmp_path / "text.png") is None
    assert "empty" in no_image_because(tmp_path / "empty.png")
    assert "not an image" in no_image_because(tmp_path / "text.png")
    assert "cannot be read" in no_image_because(tmp_path / "nowhere.png")
    cv2.imwrite(str(tmp_path / "größe.png"), IMAGE)
    assert no_image_because(tmp_path / "größe.png") is None


def test_images_larger_than_pillow_likes_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".tif"):
        cv2.imwrite(str(tmp_path / f"a{suffix}"), IMAGE)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(tmp_path / f"a{suffix}")
        assert probe_size(tmp_path / f"a{suffix}") == (60, 90)
        assert read_image(tmp_path / f"a{suffix}").shape == (60, 90, 3)
        assert Image.MAX_IMAGE_PIXELS == 100


def test_pages_that_are_not_read_are_mentioned_once(tmp_path, caplog):
    cv2.imwritemulti(str(tmp_path / "two.tif"), [IMAGE, IMAGE[:30]])
    cv2.imwritemulti(str(tmp_path / "same.tif"), [IMAGE, IMAGE[::-1], IMAGE])
    with tifffile.TiffWriter(tmp_path / "tiled.tif") as file:
        for page in (IMAGE, IMAGE[::-1]):
            file.write(page, photometric="rgb", tile=(32, 32), metadata=None)
    cv2.imwrite(str(tmp_path / "one.tif"), IMAGE)
    for name in ("two.tif", "one.tif", "two.tif", "same.tif", "tiled.tif"):
        read = read_image(tmp_path / name)
        assert np.array_equal(read, IMAGE if name == "tiled.tif" else IMAGE[..., ::-1])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name}: has {pages} pages; only the first is read"
        for name, pages in (("two.tif", 2), ("same.tif", 3), ("tiled.tif", 2))
    ]


def test_dark_sixteen_bits_are_mentioned(tmp_path, caplog):
    for name, brightest in (("dark.png", 4095), ("bright.png", 4500)):
        image = np.zeros((20, 20, 3), np.uint16)
        image[5, 5] = brightest
        cv2.imwrite(str(tmp_path / name), image)
        with caplog.at_level(logging.WARNING):
            read_image(tmp_path / name)
    assert "dark.png: its 16 bits are used up to 6%" in caplog.text
    assert "bright.png" not in caplog.text


def test_resize_keeps_what_fits_and_averages_when_shrinking():
    array = np.array([[0, 4], [8, 12]], np.float32)
    assert resize(array, (2, 2)) is array
    assert resize(array, (1, 1)).tolist() == [[6]]
    assert resize(array, (4, 4), nearest=True)[0].tolist() == [0, 0, 4, 4]
