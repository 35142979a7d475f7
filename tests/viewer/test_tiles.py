"""Tiles: outlines as drawing every polygon at once gives them, slides as they are read, densities that add up."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from made_up import random_nuclei

from misc.slides.handler import get_file_handler
from viewer import tiles
from viewer.index import build_index
from viewer.tiles import TILE_PX, SlideTiles, draw_outlines

SIZE = 1400


@pytest.fixture
def nuclei():
    return random_nuclei(900, SIZE)


@pytest.fixture
def index(tmp_path, nuclei):
    return build_index(tmp_path / "index", {}, [nuclei])


def mosaic(draw, zoom: int, size: int = SIZE) -> np.ndarray:
    """Put tiles together."""
    side = int(size * 2.0**zoom)
    grid = range(-(-side // TILE_PX))
    rows = [np.hstack([draw(zoom, np.array([column, row]) * TILE_PX) for column in grid]) for row in grid]
    return np.vstack(rows)[:side, :side]


def test_outlines_are_those_of_drawing_all_polygons_at_once(index, nuclei, subtests):
    for zoom in (-2, -1, 0, 1):
        with subtests.test(zoom=zoom):
            made = mosaic(lambda z, corner: draw_outlines(index, 1.0, "prob", (0, 1), z, corner), zoom)
            factor = 2.0**zoom
            fixed = np.rint(((nuclei.points_xy + 0.5) * factor - 0.5) * 16).astype(np.int32)
            rings = np.split(fixed, nuclei.offsets[1:-1])
            width = tiles._line_width(index.meta["mean_area"], factor)
            direct = np.zeros(made.shape[:2], np.uint8)
            cv2.polylines(direct, rings, True, 255, width, cv2.LINE_AA, 4)
            assert np.abs(made[..., 0].astype(int) - direct).mean() < 0.5
            # on a nucleus' own line is its own type, and the step of its value
            for i in range(0, len(nuclei), 7):
                x, y = np.rint((nuclei.points_xy[nuclei.offsets[i]] + 0.5) * factor - 0.5).astype(int)
                near = made[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].reshape(-1, 3)
                code = index.meta["types"].index(nuclei.types[i])
                step = tiles.value_steps(nuclei.type_prob[i : i + 1], (0, 1))[0]
                assert [step, code] in near[:, 1:].tolist()
    steps = tiles.value_steps(np.array([np.nan, 0, 0.5, 1, 7]), (0, 1))
    assert steps.tolist() == [0, 1, 33, 64, 64], "a value that nobody knows has a step of its own"


def test_scale_moves_outlines_with_the_slide(index):
    """A file whose px are two of the slide's, drawn at half the size, is the file itself."""
    corner = np.array([TILE_PX, 0])
    plain = draw_outlines(index, 1.0, "area", (0, 200), 0, corner)
    assert np.array_equal(plain, draw_outlines(index, 2.0, "area", (0, 200), -1, corner))


def test_slide_tiles_are_the_slide(tmp_path, subtests):
    image = np.random.default_rng(0).integers(0, 256, (1104, 1608, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    handler = get_file_handler(tmp_path / "a.png", mag=1.0)
    made = SlideTiles(handler)
    assert made.levels == 3
    for zoom in range(0, -made.levels, -1):
        with subtests.test(zoom=zoom):
            plane = handler.at(read_mag=2.0**zoom)
            height, width = plane.shape_yx
            grid = np.ndindex(-(-height // TILE_PX), -(-width // TILE_PX))
            whole = np.zeros((height, width, 3), np.uint8)
            for row, column in grid:
                part = made.rgb(zoom, column, row)
                y, x = row * TILE_PX, column * TILE_PX
                whole[y : y + part.shape[0], x : x + part.shape[1]] = part
            expected = plane.read_region((0, 0), (width, height))
            assert np.abs(whole.astype(int) - expected).max() <= -2 * zoom  # halved again and again: roundings
    for place in ((0, 9, 0), (1, 0, 0), (-7, 0, 0)):
        with pytest.raises(IndexError):
            made.rgb(*place)


def test_density_adds_up_and_has_no_seams(tmp_path, nuclei, subtests):
    index = build_index(tmp_path / "index", {}, [nuclei.shift(2000, 2000)])  # far from where smoothing would lose some
    codes = list(range(len(index.meta["types"])))
    for zoom in (-3, -2, -1):
        with subtests.test(zoom=zoom):
            rate = mosaic(lambda z, corner: tiles.density(index, 1.0, codes, z, corner), zoom, 4 * SIZE)
            assert rate.sum() / 4.0**zoom == pytest.approx(len(nuclei), rel=0.05)
            middle = rate[:, TILE_PX - 1 : TILE_PX + 1] if rate.shape[1] > TILE_PX else rate[:, :2]
            assert np.abs(np.diff(middle, axis=1)).max() <= 1.5 * np.abs(np.diff(rate, axis=1)).max()
    none = tiles.density(index, 1.0, [], -2, np.array([0, 0]))
    assert not none.any()
