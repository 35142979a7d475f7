"""Pictures: the right bin lies over the right tissue, and drawing leaves nothing behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex

from misc.formats.sedeen import RANK_PENS
from misc.ihc.plots import MapPicture, blend, dab_histogram, describe, heat_map, overlay, save
from misc.ihc.scores import classify, score

ROOT = Path(__file__).resolve().parents[3]


def picture(density, tile_size=50, width=200, height=100, mpp_xy=(0.5, 0.5)):
    boxes = np.array([[50, 0, 150, 100]])
    return MapPicture(np.asarray(density, float), "nuclei per mm²", tile_size, width, height, mpp_xy, boxes, "a slide")


def test_only_the_tissue_under_a_full_bin_changes():
    density = np.zeros((2, 4))
    density[1, 2] = 7
    tissue = np.full((50, 100, 3), 128, np.uint8)  # half the size of the slide
    changed = (blend(picture(density), tissue) != tissue).any(axis=2)
    assert changed[25:50, 50:75].all()
    assert changed.sum() == 25 * 25


def test_bins_that_reach_beyond_the_slide_and_thumbnails_larger_than_it():
    density = np.zeros((2, 3))
    density[1, 2] = 1
    tissue = np.full((300, 440, 3), 200, np.uint8)  # four times the size of a slide of 110 x 75 px
    changed = (blend(picture(density, width=110, height=75), tissue) != tissue).any(axis=2)
    assert changed[200:, 400:].all()
    assert changed.sum() == 100 * 40


def test_an_empty_map_leaves_the_tissue_alone():
    tissue = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    assert np.array_equal(blend(picture(np.zeros((2, 4))), tissue), tissue)


def test_a_map_of_many_bins_is_drawn_small_and_in_place():
    """matplotlib takes 70 bytes for each bin it is given; 16 million bins are to fit into 1 GB."""
    density = np.zeros((3000, 4000))
    density[2900:, 3900:] = 1
    figure = heat_map(picture(density, width=200_000, height=150_000))
    (drawn,) = figure.axes[0].images
    assert drawn.get_array().shape == (1500, 2000, 4)
    lit = (drawn.get_array()[..., :3] != drawn.get_array()[0, 0, :3]).any(axis=2)
    assert lit[1450:, 1950:].all()
    assert lit.sum() == 50 * 50
    assert list(drawn.get_extent()) == [0, 100, 75, 0]


def test_axes_are_in_mm_where_the_pixel_size_is_known():
    assert heat_map(picture(np.ones((2, 4)))).axes[0].get_xlim() == (0, 0.1)
    figure = overlay(picture(np.ones((2, 4)), mpp_xy=None), np.zeros((10, 20, 3), np.uint8))
    assert figure.axes[0].get_xlim() == (0, 200)
    assert figure.axes[0].get_ylim() == (100, 0)
    assert figure.axes[0].get_xlabel() == "x [px]"


def test_the_best_hot_spot_lies_on_top_where_boxes_touch():
    boxes = np.array([[0, 0, 50, 50], [50, 0, 100, 50], [100, 0, 150, 50]])
    for figure in (
        heat_map(replace(picture(np.ones((2, 4))), boxes=boxes)),
        overlay(replace(picture(np.ones((2, 4))), boxes=boxes), np.zeros((10, 20, 3), np.uint8)),
    ):
        drawn = figure.axes[0].patches
        assert len({patch.get_zorder() for patch in drawn}) == 1  # the last one is on top
        assert [to_hex(patch.get_edgecolor(), keep_alpha=True) for patch in drawn] == list(RANK_PENS[2::-1])
        assert [text.get_text() for text in figure.axes[0].texts] == ["3", "2", "1"]


def test_histogram_counts_every_nucleus_once_in_the_colour_of_its_class():
    dab = np.array([-0.05, 0.0, 0.2, 0.2001, 0.39, 0.4, 0.6, 0.75, np.nan])
    scored = score(classify(dab))
    for classes, counts in ((None, [2, 3, 1, 2]), (np.array([1, 1, 2, 1, 2, 3, 4, 4, 0]), [3, 2, 1, 2])):
        bars = [
            p.get_data() for p in dab_histogram(dab, (0.2, 0.4, 0.6), scored, "a slide", "x", classes).axes[0].patches
        ]
        assert [(bar.values - bar.baseline).sum() for bar in bars] == counts
        for below, bar in itertools.pairwise(bars):  # stacked
            np.testing.assert_array_equal(bar.baseline, below.values)
    assert describe(scored).startswith("8 nuclei, H-score 138, positive 75.0 %")
    assert describe(score(np.zeros(0, int))) == "no nucleus was measured"


def test_p41_drawing_touches_no_global_state(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from misc.ihc.plots import MapPicture, heat_map, save\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"p = MapPicture(np.eye(3), 'x', 50, 150, 150, None, np.zeros((0, 4)), 't')\n"
        f"save(heat_map(p), r'{tmp_path / 'a.png'}')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_slide_much_longer_than_wide_is_drawn(tmp_path):
    save(heat_map(picture(np.ones((200, 1)), width=150, height=10_000)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
