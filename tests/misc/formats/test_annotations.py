"""Contours of four programs, read as one kind of object."""

from __future__ import annotations

import gzip
import itertools
import json

import numpy as np
import pytest
import scipy.io

from metrics.stats_utils import get_dice_1, get_fast_pq, remap_label
from misc.formats.annotations import read_annotations
from misc.formats.contours import Contour
from misc.formats.masks import paint_contours
from misc.formats.type_mapping import TypeMapping
from misc.type_info import load_type_info

SQUARE = [[10, 20], [30, 20], [30, 40], [10, 40]]


def geojson(**properties) -> dict:
    ring = [*SQUARE, SQUARE[0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def feature_text(type="Polygon", coordinates=([[1, 2], [9, 2], [9, 9]],), properties=None) -> str:
    geometry = {"type": type, "coordinates": coordinates}
    return json.dumps([{"type": "Feature", "geometry": geometry, "properties": properties}])


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


def test_geojson_is_moved_from_corners_to_centres(tmp_path, subtests):
    for suffix, bare in itertools.product([".geojson", ".geojson.gz", ".json"], [False, True]):
        with subtests.test(suffix=suffix, bare=bare):
            features = [geojson(classification={"name": "Tumor", "color": [1, 2, 255]}), geojson()]
            features.append({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}})
            text = json.dumps(features if bare else {"type": "FeatureCollection", "features": features}).encode()
            path = tmp_path / f"a{suffix}"
            path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else b"\xef\xbb\xbf" + text)
            found = read_annotations(path)
            assert [(c.label, c.colour) for c in found.contours] == [("Tumor", "#0102ff"), ("", "")]
            np.testing.assert_array_equal(found.contours[0].rings[0][:4], np.array(SQUARE) - 0.5)
            assert found.others == {"point": 1}


def test_a_classification_may_be_its_name_alone(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([geojson(classification="Tumor"), geojson(classification=" weak ", color=[1, 2, 3])]))
    found = read_annotations(path).contours
    assert [(c.label, c.colour) for c in found] == [("Tumor", ""), ("weak", "#010203")]


def test_points_may_have_a_third_coordinate(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(feature_text(coordinates=[[[1, 2, 0], [9, 2, 0], [9, 9, 0]]]))
    assert read_annotations(path).contours[0].rings[0].tolist() == [[0.5, 1.5], [8.5, 1.5], [8.5, 8.5]]


def test_the_real_session_in_other_encodings_and_compressed(shared, tmp_path, subtests):
    for packed, encoding in itertools.product([False, True], ["utf-8", "utf-16", "utf-16-le", "utf-16-be"]):
        with subtests.test(packed=packed, encoding=encoding):
            real = shared / "data" / "annotations" / "TUPAC-TE-234.session.xml"
            text = real.read_text(encoding="utf-8-sig").replace("UTF-8", encoding[:6]).encode(encoding)
            path = tmp_path / "a.session.xml"
            path.write_bytes(gzip.compress(text) if packed else text)
            found, expected = read_annotations(path), read_annotations(real)
            assert (found.image_name, found.others) == (expected.image_name, expected.others)
            assert [c.rings[0].tolist() for c in found.contours] == [c.rings[0].tolist() for c in expected.contours]


def test_geojson_in_utf_16_and_a_cut_archive(tmp_path):
    text = json.dumps([geojson(classification={"name": "Tumör"})], ensure_ascii=False)
    (tmp_path / "a.geojson").write_bytes(text.encode("utf-16"))
    assert read_annotations(tmp_path / "a.geojson").contours[0].label == "Tumör"
    packed = gzip.compress(text.encode())
    for name, data in (("cut", packed[:-20]), ("damaged", packed[:12] + b"\0\0\0\0" + packed[16:])):
        (tmp_path / f"{name}.gz").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.gz: "):
            read_annotations(tmp_path / f"{name}.gz")


def test_qupaths_signed_colour(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([geojson(classification={"name": "x", "colorRGB": -65536})]))
    assert read_annotations(path).contours[0].colour == "#ff0000"


def test_broken_files_are_named_in_one_line(tmp_path, subtests):
    cases = [
        ("hello", "neither XML nor GeoJSON"),
        ("<other/>", "its first element is <other>"),
        ("<Annotations>", "broken XML"),
        ('[{"type": "Feature"}]', "not GeoJSON"),
        ('{"features": ', "Expecting value"),
        ("<Annotations><Annotation LineColor='x'/></Annotations>", "invalid literal"),
        ('{"type": "FeatureCollection", "features": null}', "its features are no list but NoneType"),
        ('{"features": 3}', "its features are no list but int"),
        ('{"features": [null]}', "not GeoJSON"),
        ("[" * 100_000, "too deep"),
        (feature_text(coordinates=[[[1, 2], [3, 4, 5], [6, 7]]]), "feature 0: a ring is no list of points"),
        (feature_text(coordinates=[[1, 2, 3, 4, 5, 6]]), "feature 0: a ring is no list of points"),
        (feature_text(coordinates=[[["a", 2], [3, 4], [6, 7]]]), "feature 0: a ring is no list of points"),
        (feature_text(coordinates=None), "feature 0: "),
        (feature_text(coordinates=7), "feature 0: "),
        (feature_text(coordinates=[[[1, 2], [3, float("inf")], [6, 7]]]), "no finite numbers"),
        (feature_text(properties=[1]), "feature 0: "),
        (feature_text(properties={"classification": ["Tumor"]}), "feature 0: "),
        (feature_text(properties={"classification": {"color": [1, 2]}}), "feature 0: "),
        (feature_text(properties={"classification": {"color": {"r": 1}}}), "feature 0: "),
        ("<session/>", "no <image>"),
        (
            "<ASAP_Annotations><Annotations><Annotation><Coordinates><Coordinate X='1'/></Coordinates></Annotation>"
            "</Annotations></ASAP_Annotations>",
            "float",
        ),
        ("<?xml version='1.0' encoding='utf-99'?><session/>", ""),
    ]
    for text, message in cases:
        with subtests.test(text=text[:80], message=message):
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


def test_a_colour_of_two_types_decides_nothing(tmp_path):
    """Names do, and so does a mapping that says which is meant."""
    (tmp_path / "types.json").write_text('{"1": ["a", [0, 0, 9]], "2": ["b", [0, 0, 9]], "3": ["c", [0, 9, 0]]}')
    types = TypeMapping.of_type_info(load_type_info(tmp_path / "types.json"))
    named = [Contour([], "A", "#000009"), Contour([], "b", "#000009"), Contour([], "", "#000900")]
    assert types.types_of(named) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"no type for #000009 which means several types \(1\)"):
        types.types_of([*named, Contour([], "", "#000009")])
    assert (types | TypeMapping({"#000009": 2})).types_of([Contour([], "", "#000009")]) == [2]


def test_a_mapping_gives_ids_of_types(tmp_path, subtests):
    for value in ["-1", "1.5", "1.0", "true", '"1"', "[1]", "NaN", "5"]:
        with subtests.test(value=value):
            path = tmp_path / "mapping.json"
            path.write_text('{"bed": 0, "ink": null, "tumour": 4}')
            assert TypeMapping.read(path, {1, 4}).types == {"bed": None, "ink": None, "tumour": 4}
            path.write_text(f'{{"tumour": {value}}}')
            with pytest.raises(ValueError, match=r"mapping\.json: expected .* no type"):
                TypeMapping.read(path, {1, 4})


def test_of_a_cell_the_nucleus_is_read_and_a_derived_class_has_all_its_names(tmp_path):
    """QuPath's cells have the cell's outline as `geometry`."""
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [40, 0], [40, 40]]]}}
    nucleus = {"type": "Polygon", "coordinates": [[[10, 10], [20, 10], [20, 20]]]}
    properties = {"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([{**feature, "nucleusGeometry": nucleus, "properties": properties}]))
    (contour,) = read_annotations(path).contours
    assert contour.rings[0].max() == 19.5
    assert (contour.label, contour.colour) == ("Tumor: Positive", "#010203")


def test_a_feature_without_geometry_is_counted(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([{"type": "Feature", "geometry": None, "properties": {}}]))
    found = read_annotations(path)
    assert (found.contours, dict(found.others)) == ([], {"nothing": 1})


def test_what_imagescope_takes_away_is_no_nucleus(tmp_path):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((0, 0), (9, 0), (9, 9)))
    region = '<Region Type="0" NegativeROA="{}"><Vertices>{}</Vertices></Region>'
    regions = region.format(0, vertices) + region.format(1, vertices)
    path = tmp_path / "a.xml"
    path.write_text(f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>")
    found = read_annotations(path)
    assert (len(found.contours), dict(found.others)) == (1, {"negative region": 1})
