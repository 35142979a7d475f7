"""Pictures whose headers declare more than memory holds: refused with both sizes, before anything is decoded."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile

from misc.slides.handler import get_file_handler
from misc.slides.images import ImageError, read_image


def png_of(width, height):
    """Return a PNG of a hundred bytes that declares a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_images_larger_than_memory_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png_of(200_000, 150_000))
    glass = np.full((512, 4096, 3), 255, np.uint8)
    tifffile.imwrite(tmp_path / "strip.tif", glass, compression="zlib", photometric="rgb", rowsperstrip=512)
    tifffile.imwrite(tmp_path / "tiles.tif", glass, compression="zlib", photometric="rgb", tile=(256, 256))
    monkeypatch.setattr("misc.machine.available_memory", lambda: 5_000_000)
    monkeypatch.setattr(cv2, "imdecode", None)
    for name, size in (("a.png", "200000 x 150000"), ("strip.tif", "4096 x 512"), ("tiles.tif", "4096 x 512")):
        with pytest.raises(ValueError, match=rf"{size} px: .* GB of memory are needed, 0.005 GB are free"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="its strip of 4096 x 512 px"):
        get_file_handler(tmp_path / "strip.tif")  # a strip is decoded whole whatever is read of it
    with get_file_handler(tmp_path / "tiles.tif", mpp=0.25) as slide:
        assert slide.read_region((0, 0), (10, 10)).shape == (10, 10, 3)
        with pytest.raises(ValueError, match="4096 x 512 px: "):
            slide.get_full_img(read_mpp=0.25)


def test_a_png_whose_header_or_chunk_says_another_size_is_refused_before_it_is_decoded(tmp_path):
    good = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8))[1].tobytes()
    path, at = tmp_path / "a.png", good.index(b"IDAT") - 4
    for bad, said in (
        (good[:18] + b"\x7f" + good[19:], "another checksum"),  # the width
        (good[:at] + b"\x7f\xff\xff\xff" + good[at + 4 :], "truncated"),  # 2 GB of pixels
        (good[: len(good) // 2], "truncated"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ImageError, match=said):
            read_image(path)
    path.write_bytes(good)
    assert read_image(path).shape == (40, 30, 3)
