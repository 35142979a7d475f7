"""Contours of four programs, read as one kind of object."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import scipy.io

from metrics.stats_utils import get_dice_1, get_fast_pq, remap_label
from misc.annotations import TypeMapping, read_annotations
from misc.masks import paint_contours
from misc.type_info import load_type_info

SQUARE = [[10, 20], [30, 20], [30, 40], [10, 40]]


def geojson(**properties) -> dict:
    ring = [*SQUARE, SQUARE[0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def test_imagescope_contours_give_the_published_label_map(shared):
    """The file is what the label of that image was made from: every nuclear pixel is the same."""
    name = "TCGA-B0-5710-01Z-00-DX1"
    found = read_annotations(shared / "data" / "annotations" / f"{name}.xml")
    assert len(found.contours) == 359
    assert {contour.colour for contour in found.contours} == {"#00ff00"}
    true = scipy.io.loadmat(shared / "data" / "kumar" / "Test_same" / "Labels" / f"{name}.mat")["inst_map"]
    mask = paint_contours(found.contours, [1] * 359, true.shape)
    assert get_dice_1(true, mask.inst_map) == 1
    # where two overlap, the smaller is on top here
    assert get_fast_pq(remap_label(true), mask.inst_map)[0][2] > 0.97


def test_a_real_session_with_all_nine_graphic_types(shared):
    found = read_annotations(shared / "data" / "annotations" / "TUPAC-TE-234.session.xml")
    assert found.image_name == "TUPAC-TE-234.svs"
    assert found.others == {"text": 1, "point": 1, "ruler": 1, "arrow": 1, "polyline": 1}
    assert len(found.contours) == 4


def test_a_real_asap_file(shared):
    found = read_annotations(shared / "data" / "annotations" / "asap1.xml")
    assert len(found.contours) == 3
    assert found.others == {"dot": 1, "measurement": 1}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz", ".json"])
def test_geojson_is_moved_from_corners_to_centres(tmp_path, bare, suffix):
    features = [geojson(classification={"name": "Tumor", "color": [1, 2, 255]}), geojson()]
    features.append({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}})
    text = json.dumps(features if bare else {"type": "FeatureCollection", "features": features}).encode()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else b"\xef\xbb\xbf" + text)
    found = read_annotations(path)
    assert [(c.label, c.colour) for c in found.contours] == [("Tumor", "#0102ff"), ("", "")]
    np.testing.assert_array_equal(found.contours[0].rings[0][:4], np.array(SQUARE) - 0.5)
    assert found.others == {"point": 1}


def test_qupaths_signed_colour(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([geojson(classification={"name": "x", "colorRGB": -65536})]))
    assert read_annotations(path).contours[0].colour == "#ff0000"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "neither XML nor GeoJSON"),
        ("<other/>", "its first element is <other>"),
        ("<Annotations>", "broken XML"),
        ('[{"type": "Feature"}]', "not GeoJSON"),
        ('{"features": ', "Expecting value"),
        ("<Annotations><Annotation LineColor='x'/></Annotations>", "invalid literal"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.xml: ") as error:
        read_annotations(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_p32_xml_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb">]><Annotations>&b;</Annotations>')
    with pytest.raises(ValueError, match="refused"):
        read_annotations(path)


def test_names_decide_before_colours(tmp_path):
    path = tmp_path / "a.geojson"
    red = [255, 0, 0]
    names = ["tumour", "stroma", "tumour", "bed"]
    path.write_text(json.dumps([geojson(classification={"name": n, "color": red}) for n in names]))
    mapping = TypeMapping({"Tumour": 2, "#FF0000ff": 1, "bed": None})
    assert mapping.types_of(read_annotations(path).contours) == [2, 1, 2, None]


def test_unknown_classes_are_all_listed(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([geojson(classification={"name": n}) for n in ("a", "b", "a")] + [geojson()]))
    with pytest.raises(ValueError, match=r"`a` \(2\), `b` \(1\), no class, no colour \(1\); .*--mapping"):
        TypeMapping.of_lab().types_of(read_annotations(path).contours)


def test_type_info_gives_names_and_colours(tmp_path):
    (tmp_path / "types.json").write_text('{"0": ["nolabe", [0, 0, 0]], "2": ["Tumour", [10, 20, 30]]}')
    types = TypeMapping.of_type_info(load_type_info(tmp_path / "types.json")).types
    assert types == {"nolabe": None, "tumour": 2, "#0a141e": 2}
