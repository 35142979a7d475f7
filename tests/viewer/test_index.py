"""The index of nuclei: finds what looking at every nucleus finds, keeps their values, and knows when it is old."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from made_up import random_nuclei, write_results

from misc.nuclei import Nuclei
from misc.nuclei_features import pixel_areas
from viewer.index import BIN_PX, build_index, open_index
from viewer.results import INDEX_DIR
from viewer.slides import Library, Options


@pytest.fixture
def nuclei() -> Nuclei:
    return random_nuclei(3_000, 2_000)


def build(tmp_path, *parts, dab=None):
    return build_index(tmp_path / "index", {"of": 1}, parts, dab)


def test_fields_hold_what_looking_at_every_nucleus_finds(tmp_path, nuclei):
    index = build(tmp_path, nuclei.select(slice(0, 1000)), nuclei.select(slice(1000, None)))
    low, high = nuclei.boxes_yx[:, 0, ::-1], nuclei.boxes_yx[:, 1, ::-1] - 1
    rng = np.random.default_rng(1)
    for side in (1, 40, 512, 3000):
        for x, y in rng.integers(0, 1900, (20, 2)).tolist():
            box = (x, y, x + side - 1, y + side - 1)
            expected = nuclei.ids[((low <= box[2:]) & (high >= box[:2])).all(axis=1)]
            assert sorted(index.field(*box).nuclei["id"].tolist()) == sorted(expected.tolist())
    assert not len(index.field(-50, -50, -10, -10).nuclei)


def test_values_and_contours_come_back(tmp_path, nuclei):
    dab = np.random.default_rng(2).uniform(0, 1, len(nuclei)).astype(np.float32)
    index = build(tmp_path, nuclei, dab=dab)
    found = index.field(0, 0, 2000, 2000).nuclei
    where = {key: i for i, key in enumerate(nuclei.ids.tolist())}
    order = np.array([where[key] for key in found["id"].tolist()])
    assert len(order) == len(nuclei)
    points, offsets = index.contours(found)
    expected = nuclei.select(order)
    assert np.array_equal(points, expected.points_xy)
    assert np.array_equal(offsets, expected.offsets)
    assert found["centre"] + found["corner"] == pytest.approx(expected.centroids_xy, abs=1e-3)
    assert found["prob"] == pytest.approx(expected.type_prob)
    assert found["area"] == pytest.approx(pixel_areas(expected))
    assert np.array_equal(found["dab"], dab[order])
    assert [index.meta["types"][code] for code in found["code"]] == expected.types.tolist()


def test_every_level_counts_every_nucleus_once(tmp_path, nuclei):
    index = build(tmp_path, nuclei)
    for level, counts in enumerate(index.counts):
        assert counts.sum(axis=(0, 1)).tolist() == index.meta["counts"]
        rows, columns = (nuclei.centroids_xy[:, ::-1] // (BIN_PX << level)).astype(int).T
        expected = np.zeros(counts.shape[:2], int)
        np.add.at(expected, (rows, columns), 1)
        assert np.array_equal(counts.sum(axis=2), expected)


def test_odd_nuclei_have_a_place_too(tmp_path):
    giant = np.array([[0, 0], [700, 0], [700, 900], [0, 900]], np.int32) + 11
    nuclei = Nuclei.from_contours(
        [5, 6], [[[11, 11], [912, 712]], [[3, 2], [4, 3]]], [[361, 461], [2, 3]], [giant, np.zeros((0, 2), np.int32)]
    )
    index = build(tmp_path, nuclei)
    found = index.field(700, 900, 701, 901).nuclei
    assert found["id"].tolist() == [5]
    assert np.abs(index.contours(found)[0] - giant).max() <= 3  # rounded: no nucleus is as large
    assert index.field(2, 3, 2, 3).nuclei["id"].tolist() == [6]
    assert index.meta["types"] == [None]
    assert len(build_index(tmp_path / "none", {}, [])) == 0


def test_an_index_is_made_again_when_what_it_was_made_of_changed(tmp_path, nuclei, subtests):
    build(tmp_path, nuclei)
    assert len(open_index(tmp_path / "index", {"of": 1})) == len(nuclei)
    assert open_index(tmp_path / "index", {"of": 2}) is None
    (tmp_path / "index" / "index.json").write_text("{")
    assert open_index(tmp_path / "index", {"of": 1}) is None
    with pytest.raises(ValueError, match="7 DAB densities for 3000 nuclei"):
        build(tmp_path, nuclei, dab=np.zeros(7))
    assert not list(tmp_path.glob(".*.part"))


def test_results_that_were_made_again_are_seen(tmp_path, nuclei):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2000, 2000), np.uint8))
    write_results(tmp_path, "a", nuclei)
    library = Library(Options(results_dir=tmp_path, wsi_dir=tmp_path))
    first = library.slide(0)
    assert library.slide(0) is first
    write_results(tmp_path, "a", nuclei.select(slice(0, 10)))
    (result,) = library.slide(0).results
    assert sum(kind["count"] for kind in result.types()) == len(result.index) == 10
    assert [kind["name"] for kind in result.types()] == ["round", "flat"]
    assert len(first.results[0].index) == len(nuclei)  # who looks at the old one still can
    assert [entry.name for entry in (tmp_path / "json" / INDEX_DIR).glob("[!.]*")] == ["a"]
