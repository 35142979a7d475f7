"""Regions: what is drawn, who lies in it, and that it comes back from QuPath and Sedeen as it went out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from skimage.measure import points_in_poly

from misc.formats.contours import Contour
from misc.formats.sedeen import TUMOUR_BED_PEN, Graphic, box_graphics, nuclei_graphics, write_session
from misc.ihc.region_files import file_of, find_files, load_regions, region_graphics, write_regions
from misc.ihc.regions import HOT_SPOT, TISSUE, Region, choose, make_regions, outline, union
from misc.nuclei import Nuclei
from misc.type_info import UNTYPED


def square(x, y, side):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def blob(rng, centre, radius, points):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    wave = radius * (1 + 0.3 * np.sin(5 * angle + rng.uniform(0, 6)) + 0.02 * rng.normal(size=points))
    return centre + wave[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_membership_is_that_of_a_test_of_every_point_with_holes_and_overlaps():
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 1000, (3000, 2))
    for _ in range(5):
        rings = [blob(rng, rng.uniform(200, 800, 2), rng.uniform(50, 300), 300) for _ in range(2)]
        hole = blob(rng, rings[0].mean(axis=0), 40, 50)
        region = make_regions([Contour(rings, "Tumor", holes=[hole])])[0]
        in_rings = [points_in_poly(xy, ring) for ring in rings]
        expected = (in_rings[0] ^ in_rings[1]) & ~points_in_poly(xy, hole)
        assert np.array_equal(region.holds(xy), expected)
        assert 0 < expected.sum() < len(xy)
    assert not Region("none", "", shapely.Polygon()).holds(xy).any()


def test_edges_belong_to_a_region_those_of_holes_too_and_a_crossed_line_parts_it():
    region = make_regions([Contour([square(0, 0, 10)], holes=[square(4, 4, 2)])])[0]
    assert region.holds(np.array([[0, 0], [10, 5], [4, 5], [5, 5], [10.1, 5]])).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert region.area_px == 96
    bow_tie = outline(Contour([np.array([[0, 0], [10, 10], [10, 0], [0, 10]], float)]))
    assert bow_tie.is_valid
    assert bow_tie.area == 50
    assert outline(Contour([np.array([[0, 0], [5, 5], [10, 10]], float)])).is_empty


def test_names_are_unique_and_classes_are_parted():
    names = [
        ("", "Tumor"),
        ("", "Tumor"),
        ("Tumor 1", "Tumor"),
        ("", "Necrosis"),
        ("", ""),
        ("", TISSUE),
        ("", HOT_SPOT),
    ]
    regions = make_regions([Contour([square(i, 0, 9)], label, name=name) for i, (name, label) in enumerate(names)])
    assert [one.name for one in regions] == ["Tumor 2", "Tumor 3", "Tumor 1", "Necrosis", "region", TISSUE, HOT_SPOT]
    parts = choose(regions, (), ("necrosis",))
    assert [len(part) for part in (parts.scored, parts.excluded, parts.tissue, parts.hot_spots)] == [4, 1, 1, 1]
    assert [one.label for one in choose(regions, ("TUMOR",), ()).scored] == ["Tumor"] * 3
    assert choose(regions, ("Hot spot",), ()).scored[0].name == HOT_SPOT
    with pytest.raises(
        ValueError, match="no region of class Stroma .*are: Hot spot, Necrosis, Tissue, Tumor, no class"
    ):
        choose(regions, ("Stroma",), ())


def some_regions():
    ring = shapely.Polygon(square(0, 0, 40), [square(10, 10, 5)])
    parted = shapely.MultiPolygon(
        [shapely.box(100, 0, 120, 20), shapely.Polygon(square(130, 0, 30), [square(140, 10, 5)])]
    )
    fields = [Region(f"{HOT_SPOT} {rank}", HOT_SPOT, shapely.box(rank * 10, 50, rank * 10 + 9, 59)) for rank in (1, 2)]
    return [Region(TISSUE, TISSUE, shapely.box(-0.5, -0.5, 199.5, 99.5)), Region("left", "Tumor", ring),
            Region("right", "Tumor", parted), *fields]  # fmt: skip


def test_regions_come_back_from_qupath_whatever_part_of_a_slide_it_shows(tmp_path):
    for origin in ((0, 0), (30, 20)):
        path = tmp_path / "a.geojson"
        write_regions(path, some_regions(), {"left": {"nuclei": 3, "H-score": float("nan")}}, origin)
        content = json.loads(path.read_text())
        assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in content["features"])
        assert content["features"][1]["properties"]["measurements"] == {"nuclei": 3}
        back = load_regions(path, origin)
        assert [(one.name, one.label) for one in back] == [(one.name, one.label) for one in some_regions()]
        assert all(one.area.equals(two.area) for one, two in zip(back, some_regions(), strict=True))


def test_regions_come_back_from_sedeen_from_among_nuclei_and_hot_spots(tmp_path):
    contour = np.array([[1, 1], [4, 1], [4, 4], [1, 4]])
    nuclei = Nuclei.from_contours([1], [[[1, 1], [5, 5]]], [[2.5, 2.5]], [contour], types=np.array([4], np.int32))
    graphics = [
        *region_graphics(some_regions()),
        *nuclei_graphics(nuclei, {None: UNTYPED, 4: ("strong", (9, 9, 9))}),
        *box_graphics(np.array([[50, 50, 60, 60]])),
        Graphic("polygon", square(0, 0, 3), TUMOUR_BED_PEN),
        Graphic("polygon", square(0, 0, 3), "#0000ffff"),
        Graphic("polyline", square(0, 0, 3), "#123456ff", description="Tumor"),
    ]
    write_session(tmp_path / "a.session.xml", "a.svs", 200, 100, 0.5, graphics)
    back = load_regions(tmp_path / "a.session.xml", (30, 20))
    labels = [one.label for one in back]
    assert sorted(labels) == sorted([TISSUE, *["Tumor"] * 3, *[HOT_SPOT] * 3, "tumour bed"])
    assert {one.name for one in back} >= {"left", "right 1", "right 2", "Hot spot 1", "Hot spot 2"}
    tumour = union([one for one in back if one.label == "Tumor"])
    assert tumour.equals(union([one for one in some_regions() if one.label == "Tumor"]))


def test_the_files_that_people_draw_with_give_their_regions(shared, tmp_path):
    folder = shared / "data" / "annotations"
    assert [one.name for one in load_regions(folder / "TUPAC-TE-234.session.xml")] == [f"test {i}" for i in range(4)]
    assert [one.name for one in load_regions(folder / "asap1.xml")] == [f"region {i}" for i in (1, 2, 3)]
    assert len(load_regions(folder / "TCGA-B0-5710-01Z-00-DX1.xml")) == 359
    detections = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square(0, 0, 9).tolist()]}}
    (tmp_path / "d.geojson").write_text(json.dumps([{**detections, "properties": {"objectType": "detection"}}]))
    with pytest.raises(ValueError, match="nothing in it outlines a region: 1 detection"):
        load_regions(tmp_path / "d.geojson")


def test_files_are_found_by_the_slide(tmp_path):
    for name in ("a.geojson", "b.svs.session.xml", "c.xml", "c.geojson.gz", "notes.txt"):
        (tmp_path / name).write_text("")
    files = find_files(tmp_path)
    assert sorted(files) == ["a", "b.svs", "c"]
    assert file_of(files, "a.svs").name == "a.geojson"
    assert file_of(files, "b.svs").name == "b.svs.session.xml"
    assert file_of(files, "d.svs") is None
    with pytest.raises(ValueError, match="more than one"):
        file_of(files, "c.svs")
