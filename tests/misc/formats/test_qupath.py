"""What QuPath reads: points (TSV) and detections (GeoJSON)."""

from __future__ import annotations

import gzip
import json
import uuid

import cv2
import numpy as np
import pytest

from misc.formats import qupath
from misc.formats.qupath import FINE, qupath_colour, qupath_xy, simple_ring, to_qupath, write_geojson
from misc.nuclei import Nuclei
from misc.nuclei_features import touches_itself
from misc.type_info import UNTYPED

TYPES = {None: UNTYPED, 0: ("nolabe", (0, 0, 0)), 1: ("neopla", (255, 0, 0)), 2: ("tab\there", (0, 255, 255))}
# 5 x 7 px
SQUARE = np.array([[10, 20], [14, 20], [14, 26], [10, 26]])


def nuclei(**columns) -> Nuclei:
    contours = [SQUARE, SQUARE[:3], SQUARE[:2]]
    boxes = [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] for c in contours]
    return Nuclei.from_contours([4, 9, 11], boxes, [c.mean(axis=0) for c in contours], contours, **columns)


def typed() -> Nuclei:
    return nuclei(types=np.array([1, 2, 1], np.int32), type_prob=np.array([0.75, np.nan, 1]))


def features(path) -> list[dict]:
    data = path.read_bytes()
    content = json.loads(gzip.decompress(data) if path.name.endswith(".gz") else data)
    assert list(content) == ["type", "features"]
    assert content["type"] == "FeatureCollection"
    return content["features"]


def test_colours_are_signed_argb():
    assert qupath_colour((255, 0, 0)) == -65536
    assert qupath_colour((255, 255, 255)) == -1
    assert qupath_colour((0, 0, 0)) == -(2**24)
    assert qupath_colour(np.array([0, 0, 255], np.uint8)) == -(2**24) + 255  # P30: no overflow


def test_p47_tsv_takes_class_name_and_colour_from_type_info(tmp_path):
    to_qupath(tmp_path / "a.tsv", np.array([[1.5, 2], [3, 4], [5, 6]]), np.array([1, 2, 0]), TYPES)
    assert (tmp_path / "a.tsv").read_bytes().decode() == (
        "x\ty\tclass\tname\tcolor\n"
        "1.5\t2.0\tneopla\tneopla\t-65536\n"
        "3.0\t4.0\ttab here\ttab here\t-16711681\n"
        "5.0\t6.0\tnolabe\tnolabe\t-16777216\n"
    )


def test_tsv_of_untyped_and_of_nothing(tmp_path):
    to_qupath(tmp_path / "a.tsv", [[1, 2]], [None], TYPES)
    assert (tmp_path / "a.tsv").read_text().splitlines()[1].split("\t")[:4] == ["1", "2", "nucleus", "nucleus"]
    to_qupath(tmp_path / "b.tsv", [], [], TYPES)
    assert (tmp_path / "b.tsv").read_text() == "x\ty\tclass\tname\tcolor\n"


def test_tsv_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="1 positions, but 2 types"):
        to_qupath(tmp_path / "a.tsv", [[1, 2]], [1, 1], TYPES)
    with pytest.raises(ValueError, match="types 3, 9, which type_info does not name"):
        to_qupath(tmp_path / "a.tsv", [[1, 2]] * 3, np.array([9, 1, 3]), TYPES)
    assert list(tmp_path.iterdir()) == []


def test_geojson_feature(tmp_path):
    path = tmp_path / "a.geojson"
    assert write_geojson(path, typed(), TYPES) == 2  # two points are no outline
    first, second = features(path)
    assert first["type"] == "Feature"
    assert uuid.UUID(first["id"]) != uuid.UUID(second["id"])
    assert first["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[10.5, 20.5], [14.5, 20.5], [14.5, 26.5], [10.5, 26.5], [10.5, 20.5]]],
    }
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "neopla", "color": [255, 0, 0]},
        "measurements": {"area_px": 35, "type_prob": 0.75},
    }
    assert second["properties"]["measurements"]["type_prob"] == "NaN"


def test_geojson_at_level_0_comes_back_to_the_pixel(tmp_path):
    for scale in (1.0, 2.0, 4.0073, 0.5):
        write_geojson(tmp_path / "a.geojson", typed(), TYPES, scale=scale)
        first = features(tmp_path / "a.geojson")[0]
        ring = np.array(first["geometry"]["coordinates"][0])
        assert np.rint(ring[:-1] / scale - 0.5).tolist() == SQUARE.tolist()
        np.testing.assert_allclose(ring, (np.array([*SQUARE, SQUARE[0]]) + 0.5) * scale, atol=0.005)
        assert first["properties"]["measurements"]["area_px"] == pytest.approx(35 * scale**2, abs=1e-4)
    assert qupath_xy(np.array([0, 3]), 2).tolist() == [1, 7]
    assert qupath_xy(np.array([[10, 3]]), 2, (20, 1)).tolist() == [[1, 6]]


def enclosed(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which pixel centres a ring encloses, border included."""
    ring = ring.astype(np.float32)
    found = [cv2.pointPolygonTest(ring, (x, y), False) >= 0 for y in range(shape[0]) for x in range(shape[1])]
    return np.array(found).reshape(shape)


def test_outlines_that_touch_themselves_are_drawn_apart(tmp_path):
    """QuPath's geometry library takes a ring that runs back along itself for invalid."""
    mask = np.zeros((14, 16), np.uint8)
    mask[2:7, 2:7] = 1
    mask[4, 7:14] = 1  # a line one pixel wide
    mask[7, 1] = mask[8:11, 0:3] = 1  # a second part, hanging by a corner
    contour = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    assert len(contour) == 1
    contour = contour[0].reshape(-1, 2)
    both = Nuclei.from_contours([1, 2], np.zeros((2, 2, 2)), np.zeros((2, 2)), [contour, SQUARE])
    assert touches_itself(both).tolist() == [True, False]
    ring = simple_ring(contour)
    assert (ring[0] == ring[-1]).all()
    np.testing.assert_array_equal(enclosed(ring, mask.shape), mask)
    fine = np.rint(ring[:-1] * FINE).astype(np.int32)
    assert not touches_itself(Nuclei.from_contours([1], np.zeros((1, 2, 2)), np.zeros((1, 2)), [fine])).any()
    write_geojson(tmp_path / "a.geojson", both, TYPES, scale=2.0)
    first, second = (np.array(f["geometry"]["coordinates"][0]) for f in features(tmp_path / "a.geojson"))
    np.testing.assert_allclose(first, (ring + 0.5) * 2)
    assert len(second) == 5


def test_geojson_probabilities_and_untyped(tmp_path):
    probs = np.array([[0.25, 0.5, 0.125, 0.125]] * 3, np.float32)
    write_geojson(tmp_path / "a.geojson", nuclei(types=np.ones(3, np.int32), class_probs=probs), TYPES)
    measured = features(tmp_path / "a.geojson")[0]["properties"]["measurements"]
    assert measured == {
        "area_px": 35,
        "prob_nolabe": 0.25,
        "prob_neopla": 0.5,
        "prob_tab\there": 0.125,
        "prob_3": 0.125,
    }
    write_geojson(tmp_path / "b.geojson", nuclei(), TYPES)
    properties = features(tmp_path / "b.geojson")[0]["properties"]
    assert properties["classification"] == {"name": "nucleus", "color": list(UNTYPED[1])}
    assert properties["measurements"] == {"area_px": 35}


def test_geojson_in_pieces_is_the_same(tmp_path, monkeypatch):
    parts = [typed(), typed().select(np.array([2])), Nuclei.empty(typed=True), typed().select(slice(0, 1))]
    whole = Nuclei.concat(parts)
    write_geojson(tmp_path / "a.geojson", whole, TYPES, name="x")
    monkeypatch.setattr(qupath, "WRITE_NUCLEI", 1)
    assert write_geojson(tmp_path / "b.geojson", iter(parts), TYPES, name="x") == 3
    assert features(tmp_path / "a.geojson") == features(tmp_path / "b.geojson")
    assert write_geojson(tmp_path / "c.geojson", [], TYPES) == 0
    assert features(tmp_path / "c.geojson") == []


def test_geojson_compressed_and_repeatable(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_geojson(tmp_path / folder / "a.1.geojson.gz", typed(), TYPES)
        write_geojson(tmp_path / folder / "a.1.geojson", typed(), TYPES)
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "a.1.geojson.gz").read_bytes() == (two / "a.1.geojson.gz").read_bytes()
    assert features(one / "a.1.geojson.gz") == features(one / "a.1.geojson")
    write_geojson(one / "b.geojson", typed(), TYPES)
    ids = [feature["id"] for name in ("a.1", "b") for feature in features(one / f"{name}.geojson")]
    assert len(set(ids)) == 4  # other image, other objects


def test_geojson_unknown_type_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="types 8"):
        write_geojson(tmp_path / "a.geojson", nuclei(types=np.array([1, 8, 1], np.int32)), TYPES)
    assert list(tmp_path.iterdir()) == []
