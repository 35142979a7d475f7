"""DAB of nuclei and rings in one pass: as pixel by pixel, wherever cells are cut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from misc.ihc import measure as measuring
from misc.ihc.measure import BIN_OD, measure
from misc.ihc.stain import StainModel
from misc.nuclei import Nuclei

SHAPE = (300, 420)


def made_up():
    """Return an image, its label map (squares, two of them touching, one at a corner), and the nuclei."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(60, 250, (*SHAPE, 3)).astype(np.uint8)
    labels, contours = np.zeros(SHAPE, np.int32), []
    corners = [
        (0, 0, 12),
        (120, 122, 17),
        (137, 122, 9),
        (60, 250, 30),
        (290, 410, 10),
        *rng.integers(150, 270, (9, 3)),
    ]
    for y, x, side in corners:
        side = min(side, 10 if side > 30 else side)
        if labels[y : y + side, x : x + side].any():
            continue
        labels[y : y + side, x : x + side] = len(contours) + 1
        y1, x1 = y + side - 1, x + side - 1
        contours.append(np.array([[x, y], [x1, y], [x1, y1], [x, y1]], np.int32))
    contours.append(np.zeros((0, 2), np.int32))  # of a nucleus of which nobody drew an outline
    count = len(contours)
    boxes = np.zeros((count, 2, 2))
    return rgb, labels, Nuclei.from_contours(range(1, count + 1), boxes, np.zeros((count, 2)), contours)


def lower_median(values):
    return np.sort(values)[(len(values) - 1) // 2]


def by_loop(rgb, labels, model, ring_px):
    """Measure pixel by pixel; a ring is what lies within some rows and columns, and is no nucleus' or later ring's."""
    densities = model.densities(rgb)
    grown = ndimage.grey_dilation(labels, size=(2 * ring_px + 1,) * 2, mode="constant")
    rings = np.where(labels > 0, 0, grown)
    thinned = np.zeros(SHAPE, bool)
    thinned[:: measuring.RING_STEP, :: measuring.RING_STEP] = True
    rows = []
    for i in range(1, labels.max() + 1):
        inside, ring = densities[labels == i], densities[(rings == i) & thinned][:, 1]
        middle = np.sort(inside[:, 1])[(len(inside) - 1) // 2]
        rows.append(
            [inside[:, 1].mean(), middle, inside[:, 0].mean(), ring.mean(), np.sort(ring)[(len(ring) - 1) // 2]]
        )
    return np.array(rows)


def test_each_nucleus_as_pixel_by_pixel_wherever_cells_are_cut(monkeypatch, subtests):
    rgb, labels, nuclei = made_up()
    model = StainModel(white_rgb=(250, 245, 240))
    wanted = by_loop(rgb, labels, model, 4)
    assert np.isfinite(wanted).all()
    for side in (32, 64, 130, 2048):
        with subtests.test(side=side):
            monkeypatch.setattr(measuring, "CELL_PX", side)
            reads, finished = np.zeros(SHAPE, int), []

            def read(y, x, height, width, reads=reads):
                reads[y : y + height, x : x + width] += 1
                return rgb[y : y + height, x : x + width]

            found = measure(nuclei, read, SHAPE, model, 0.5, finished.append)
            got = np.stack(list(found.columns().values()), axis=1)
            assert np.isnan(got[-1]).all()
            np.testing.assert_array_equal(found.pixels[:-1], np.bincount(labels.ravel())[1:])
            assert np.abs(got[:-1] - wanted).max() <= BIN_OD / 2 + 1e-4
            assert np.abs(got[:-1, [0, 2]] - wanted[:, [0, 2]]).max() < 1e-4
            assert reads.max() == 1
            assert sum(finished) == len(nuclei) - 1


def test_ground_is_read_off_the_rings_and_dab_around_nuclei_is_noticed():
    def made(dab, ring):
        dab, ring = np.array(dab, np.float32), np.array(ring, np.float32)
        return measuring.Densities(dab, dab, dab, ring, ring, dab)

    nan = np.nan
    assert made([0.5] * 5, [0.02, 0.04, 0.06, 0.4, nan]).ground() == pytest.approx(0.035)
    assert made([0.5], [0.9]).ground() == pytest.approx(measuring.GROUND_OD[1])
    assert made([0.5], [nan]).ground() == made([], []).ground() == 0
    around = made([0.3, 0.3, 0.3, 0.1], [0.6, 0.6, 0.1, 0.0])
    assert around.lies_around(np.array([True, True, True, False]))
    assert not around.lies_around(np.array([True, False, True, False]))
    assert not around.lies_around(np.zeros(4, bool))


def test_no_nuclei_and_nuclei_outside_the_image():
    rgb, _, nuclei = made_up()
    model, read = StainModel(), lambda y, x, h, w: rgb[y : y + h, x : x + w]
    assert len(measure(Nuclei.empty(), read, SHAPE, model)) == 0
    assert np.isnan(measure(nuclei.shift(5000, 0), read, SHAPE, model).dab_median).all()
