"""Reading a slide's nuclei for its density map."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from misc.formats.nuclei_json import iter_json, write_json
from misc.ihc.heat_map import slide as slides
from misc.ihc.heat_map.slide import load_slide, map_slide
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage

SQUARE = np.array([[-2, -2], [2, -2], [2, 2], [-2, 2]], np.int32)


def nuclei_at(xy, types=None):
    xy = np.asarray(xy, np.float64)
    points = (np.rint(xy)[:, None] + SQUARE).astype(np.int32)
    boxes = np.stack([points.min(axis=1)[:, ::-1], points.max(axis=1)[:, ::-1] + 1], axis=1)
    offsets = np.arange(len(xy) + 1) * len(SQUARE)
    return Nuclei(np.arange(1, len(xy) + 1), boxes, xy, points.reshape(-1, 2), offsets, types)


def image(width, height, mag=None, rgb=None):
    read = lambda y, x, h, w: rgb[y : y + h, x : x + w]  # noqa: E731
    return SlideImage("a.svs", width, height, (0.5, 0.25), mag, read, lambda: rgb)


def test_p20_a_slide_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "iter_json", functools.partial(iter_json, chunk=1000))
    xy = np.random.default_rng(0).uniform(10, 9990, (6000, 2))
    types = np.full(6000, 2, np.int32)
    write_json(tmp_path / "a.json", nuclei_at(xy, types), 40, {"slide": {"width": 10_000, "height": 10_000}})
    seen = []
    slide = load_slide(tmp_path / "a.json", progress=seen.append)
    assert len(seen) > 1
    assert sum(seen) == len(slide) == 6000
    assert slide.xy == pytest.approx(xy)
    found = map_slide(slide, (2,), (0.2, 0.4, 0.6), 50, (1000, 1000), 3, 0.8)
    assert found.counts.sum() == 6000
    assert [found.counts[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in found.boxes_bins] == found.sums.tolist()


def test_coordinates_are_those_of_level_0(tmp_path):
    header = {"mpp": 2.0, "slide": {"name": "b.svs", "width": 400, "height": 200, "scale": 4.0}}
    write_json(tmp_path / "a.json", nuclei_at([[0, 0], [99, 49]]), 10, header)
    slide = load_slide(tmp_path / "a.json")
    assert slide.xy.tolist() == [[1.5, 1.5], [397.5, 197.5]]  # the middle of four px
    assert slide.mpp_xy == (0.5, 0.5)
    assert (slide.image_name, slide.width, slide.height, slide.notes) == ("b.svs", 400, 200, [])


def test_the_map_for_qupath_is_of_what_was_scanned(tmp_path):
    """Bins from the corner of the bounds, whatever lies at that place of level 0's bins."""
    inside = [[127, 83], [128, 84], [160, 99]]
    header = {"slide": {"name": "b.svs", "width": 400, "height": 200, "bounds": [117, 73, 100, 60]}}
    write_json(tmp_path / "a.json", nuclei_at([*inside, [50, 20]], np.full(4, 2, np.int32)), None, header)
    found = map_slide(load_slide(tmp_path / "a.json"), (2,), (0.2, 0.4, 0.6), 20, (100, 100), 1, 0)
    assert found.counts.sum() == 4
    assert (found.shown_rate * 20**2).tolist() == [[2, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert found.density(shown=True)[0] is found.shown_rate
    header["slide"].pop("bounds")
    write_json(tmp_path / "a.json", nuclei_at(inside), None, header)
    found = map_slide(load_slide(tmp_path / "a.json"), (2,), (0.2, 0.4, 0.6), 20, (100, 100), 1, 0)
    assert found.shown_rate is found.rate


def test_the_slide_says_what_upstreams_json_does_not(tmp_path):
    write_json(tmp_path / "a.json", nuclei_at([[10, 20]]), 40)
    slide = load_slide(tmp_path / "a.json", image(100, 90, 20.0))
    assert (slide.width, slide.height, slide.mpp_xy, slide.image_name) == (100, 90, (0.5, 0.25), "a.svs")
    assert slide.xy.tolist() == [[4.75, 9.75]]
    assert "multiplied by 0.5" in slide.notes[0]
    assert load_slide(tmp_path / "a.json", image(100, 90), mpp=0.3).mpp_xy == (0.3, 0.3)


def test_rounding_at_a_low_magnification_is_no_nucleus_outside(tmp_path):
    # 1001 px at a quarter are 251 px, whose last one reaches to 1004
    write_json(tmp_path / "a.json", nuclei_at([[250, 5]]), 10, {"slide": {"width": 1001, "height": 90, "scale": 4.0}})
    found = map_slide(load_slide(tmp_path / "a.json"), "all", (0.2, 0.4, 0.6), 50, (100, 100), 1, 0)
    assert found.counts[0, 20] == found.counts.sum() == 1
    assert found.boxes_px.tolist() == [[950, 0, 1001, 90]]


def test_dab_is_measured_in_the_image_and_what_lies_outside_is_said(tmp_path):
    rgb = np.full((60, 60, 3), 255, np.uint8)
    rgb[20:31, 20:31] = 100
    write_json(tmp_path / "a.json", nuclei_at([[25, 25], [50, 50], [500, 500]]), None)
    slide = load_slide(tmp_path / "a.json", image(60, 60, rgb=rgb), measure=True)
    assert slide.dab[0] > 0.1
    assert slide.dab[1] == 0
    assert np.isnan(slide.dab[2])
    assert "1 nucleus outside the image" in slide.notes[0]
    with pytest.raises(ValueError, match="give --wsi_dir"):
        load_slide(tmp_path / "a.json", measure=True)
