"""Reading slides by region: the same pixels whichever way they are cut, from levels of any size."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tifffile
from stubs import write_rgb

from misc.slides import handler as slide_handler
from misc.slides.handler import SlideError, get_file_handler, read_reflect

SHAPE = (700, 900)  # level 0, px
LEVELS = {"powers of two": (1, 2, 4), "odd": (1, 2.7, 7.3), "one": (1,)}


def picture(shape=SHAPE, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def write_pyramid(path, factors, mpp: float = 0.25, tile=(128, 128), **options) -> list[np.ndarray]:
    """Write a tiled pyramid (OpenSlide's generic TIFF) at 40x; returns its levels."""
    per_cm = 1e4 / mpp
    defaults = {"photometric": "rgb", "tile": tile, "resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    levels = []
    with tifffile.TiffWriter(path) as file:
        for factor in factors:
            size = (round(SHAPE[1] / factor), round(SHAPE[0] / factor))
            levels.append(cv2.resize(picture(), size, interpolation=cv2.INTER_AREA))
            subfile = {"subfiletype": int(factor > 1)}
            file.write(levels[-1], compression="zlib", metadata=None, **subfile, **{**defaults, **options})
    return levels


@pytest.fixture(scope="module", params=LEVELS)
def pyramid(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.tif"
    return path, write_pyramid(path, LEVELS[request.param])


def cuts(length: int, rng: np.random.Generator, count: int = 4) -> list[tuple[int, int]]:
    """Cut a range at random places."""
    inner = sorted(set(rng.integers(1, max(length, 2), count).tolist()) & set(range(1, length)))
    return list(itertools.pairwise([0, *inner, length]))


@pytest.mark.parametrize("mag", [40, 20, 16.3, 10, 3.1, 1.25, 53])
def test_pixels_do_not_depend_on_how_a_region_is_cut(pyramid, mag):
    path, _ = pyramid
    rng = np.random.default_rng(1)
    with get_file_handler(path) as handler:
        handler.prepare_reading(read_mag=mag)
        height, width = handler.shape_yx
        whole = handler.read_region((0, 0), (width, height))
        np.testing.assert_array_equal(whole, handler.get_full_img(read_mag=mag))
        pieced = np.zeros_like(whole)
        for (y0, y1), (x0, x1) in itertools.product(cuts(height, rng), cuts(width, rng)):
            pieced[y0:y1, x0:x1] = handler.read_region((x0, y0), (x1 - x0, y1 - y0))
    np.testing.assert_array_equal(pieced, whole)


def test_levels_come_as_they_are_and_between_them_from_the_next_larger(pyramid):
    path, levels = pyramid
    with get_file_handler(path) as handler:
        assert handler.metadata["vendor"] == "generic-tiff"
        for level in levels[:2]:  # of the smallest, half a px of rounding is more than its own 1 %
            mag = 40 * level.shape[1] / SHAPE[1]
            np.testing.assert_array_equal(handler.get_full_img(read_mag=mag), level)
        between = handler.get_full_img(read_mag=15)
        source = levels[1] if len(levels) > 1 and levels[1].shape[1] >= between.shape[1] else levels[0]
        expected = cv2.resize(source, between.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(between.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("mag", "shape"), [(20, (350, 450)), (16, (280, 360)), (1.25, (21, 28)), (80, (1400, 1800))])
def test_size_and_scale_of_a_plane(pyramid, mag, shape):
    with get_file_handler(pyramid[0]) as handler:
        assert handler.get_dimensions(read_mag=mag).tolist() == [shape[1], shape[0]]
        assert handler.get_dimensions(read_mpp=10 / mag).tolist() == [shape[1], shape[0]]
        handler.prepare_reading(read_mag=mag)
        assert handler.shape_yx == shape
        assert handler.scale_yx == (SHAPE[0] / shape[0], SHAPE[1] / shape[1])


def test_several_threads_read_from_one_handler(pyramid):
    with get_file_handler(pyramid[0]) as handler, ThreadPoolExecutor(4) as threads:
        handler.prepare_reading(read_mag=17)
        height, width = handler.shape_yx
        whole = handler.read_region((0, 0), (width, height))
        corners = list(itertools.product(range(0, height - 40, 23), range(0, width - 40, 31)))
        regions = threads.map(lambda corner: handler.read_region(corner[::-1], (40, 40)), corners)
        for (y, x), region in zip(corners, regions, strict=True):
            np.testing.assert_array_equal(region, whole[y : y + 40, x : x + 40])


def test_p16_no_more_is_read_at_once_than_a_piece_needs(tmp_path, monkeypatch):
    """At a magnification that is no level, the whole level was loaded."""
    monkeypatch.setattr(slide_handler, "PIECE_PX", 200)
    write_pyramid(tmp_path / "a.tif", (1,))
    with get_file_handler(tmp_path / "a.tif") as handler:
        read, sizes = handler._source.read, []
        monkeypatch.setattr(handler._source, "read", lambda *args: (sizes.append(args[3:]), read(*args))[1])
        handler.get_full_img(read_mag=7)
    assert len(sizes) > 10
    assert max(max(size) for size in sizes) <= 210


def test_p21_who_says_the_resolution_goes_in_order(tmp_path):
    """Option, scanner, TIFF tags, objective power; else an error that names the options."""
    write_pyramid(tmp_path / "tags.tif", (1,), mpp=0.5)
    write_pyramid(tmp_path / "nothing.tif", (1,), resolution=(1, 1), resolutionunit="NONE")
    write_aperio(tmp_path / "scanner.svs", "MPP = 0.4|AppMag = 20")
    write_aperio(tmp_path / "power.svs", "AppMag = 20")
    expected = {
        ("tags.tif", None, None): (0.5, 20, "the TIFF resolution"),
        ("tags.tif", 0.3, None): (0.3, 40, "--mpp"),  # 33x goes by the name of the next nominal
        ("scanner.svs", None, None): (0.4, 20, "the scanner"),
        ("scanner.svs", 0.25, None): (0.25, 40, "--mpp"),
        ("scanner.svs", None, 40): (0.25, 40, "--mag"),
        ("power.svs", None, None): (0.5, 20, "the objective power"),
        ("power.svs", 0.45, None): (0.45, 20, "--mpp"),
        ("nothing.tif", None, 40): (0.25, 40, "--mag"),
    }
    for (name, mpp, mag), (found, power, said_by) in expected.items():
        with get_file_handler(tmp_path / name, mpp=mpp, mag=mag) as handler:
            data = handler.metadata
            assert data["base_mpp"].tolist() == pytest.approx([found] * 2), name
            assert data["mpp_from"] == said_by
            assert data["base_mag"] == pytest.approx(power, rel=0.2)
    with get_file_handler(tmp_path / "nothing.tif") as handler, pytest.raises(SlideError, match=r"--mpp.*--mag"):
        handler.prepare_reading(read_mag=20)


def write_aperio(path, description: str) -> None:
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(
        path, picture((128, 128)), description=f"Aperio Image Library v1\r\n128x128|{description}", **options
    )


def test_p21_a_resolution_that_is_none_is_named_in_the_refusal(tmp_path):
    """72 dpi is what editors write; that the file "does not say its resolution" alone is not what a viewer shows."""
    write_pyramid(tmp_path / "a.tif", (1,), mpp=25400 / 72)
    with get_file_handler(tmp_path / "a.tif") as handler, pytest.raises(SlideError, match=r"--mpp.*352.8 um/px is no"):
        handler.prepare_reading(read_mag=20)


def test_p22_alpha_lies_on_white_however_the_slide_is_opened(tmp_path):
    rgba = np.zeros((300, 300, 4), np.uint8)
    rgba[100:200, 100:200] = (10, 200, 30, 255)
    rgba[200:, 200:] = (0, 0, 0, 128)
    cv2.imwrite(str(tmp_path / "a.png"), rgba[..., [2, 1, 0, 3]])
    alpha = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "stripped.tif", rgba, **alpha)
    tifffile.imwrite(tmp_path / "tiled.tif", rgba, tile=(64, 64), **alpha)
    for name in ("a.png", "stripped.tif", "tiled.tif"):
        with get_file_handler(tmp_path / name, mag=40) as handler:
            region = handler.read_region((0, 0), (300, 300))
        assert region[0, 0].tolist() == [255, 255, 255], name
        assert region[150, 150].tolist() == [10, 200, 30], name
        assert region[250, 250, 0] in (127, 128), name


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (40, 50)])
@pytest.mark.parametrize("window", [(0, 0, 10, 10), (-7, -95, 30, 200), (30, 45, 25, 25), (-130, 100, 300, 20)])
def test_outside_a_slide_is_reflected(tmp_path, shape, window):
    image = picture(shape)
    write_rgb(tmp_path / "a.png", image)
    y, x, height, width = window
    far = 400
    whole = np.pad(image, ((far, far), (far, far), (0, 0)), "reflect")
    with get_file_handler(tmp_path / "a.png", mag=40) as handler:
        found = read_reflect(handler, y, x, height, width)
    np.testing.assert_array_equal(found, whole[far + y : far + y + height, far + x : far + x + width])


def test_a_region_outside_the_slide_is_refused(tmp_path):
    write_rgb(tmp_path / "a.png", picture((20, 30)))
    with get_file_handler(tmp_path / "a.png", mag=40) as handler:
        for corner, size in (((-1, 0), (5, 5)), ((26, 0), (5, 5)), ((0, 16), (5, 5)), ((0, 0), (0, 5))):
            with pytest.raises(ValueError, match="not inside the slide, 30x20 px"):
                handler.read_region(corner, size)
