"""What opens as a slide, and how: by content, whatever the name."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile

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


@pytest.mark.parametrize("name", ["notes.txt", "Slidedat.ini", "Data0001.dat", "mask.npy"])
def test_p25_side_files_are_no_slides(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever this is")
    assert not is_slide(tmp_path / name)
    with pytest.raises(SlideError, match="is no slide"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("suffix", [".svs", ".NDPI", ".mrxs", ".tif"])
def test_a_broken_file_with_a_slides_name_counts_and_says_why(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"not a slide", b"II*\0" + b"x" * 50):
        path.write_bytes(content)
        assert is_slide(path)
        with pytest.raises(SlideError, match=path.name):
            open_source(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_that_is_cut_short_is_refused(tmp_path, picture, suffix):
    data = encoded(picture, suffix)
    (tmp_path / "a").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(SlideError, match="truncated"):
        open_source(tmp_path / "a")


def test_a_folder_and_a_link_to_nothing_are_no_slides(tmp_path):
    (tmp_path / "a.svs").mkdir()
    (tmp_path / "b.svs").symlink_to(tmp_path / "nowhere")
    for name in ("a.svs", "b.svs"):
        assert not is_slide(tmp_path / name)
        with pytest.raises(SlideError, match="cannot be read"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_pngs_of_any_depth(tmp_path, dtype, top, channels):
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
