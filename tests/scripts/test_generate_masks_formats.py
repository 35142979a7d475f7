"""`GenerateMasks.py` on what QuPath, ImageScope and HALO write: what is a nucleus, its type, and what is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import scipy.io
from stubs import write_rgb

import GenerateMasks
from misc.formats import annotations
from misc.formats.annotations import read_annotations
from misc.formats.labels import read_label, types_of
from misc.type_info import type_name

MONUSAC = {
    "1": ["Epithelial", [255, 0, 0]],
    "2": ["Lymphocyte", [0, 255, 0]],
    "3": ["Macrophage", [0, 0, 255]],
    "4": ["Neutrophil", [255, 255, 0]],
}


@pytest.fixture
def folder(tmp_path):
    write_rgb(tmp_path / "image" / "x.png", np.full((200, 200, 3), 200, np.uint8))
    (tmp_path / "annotation").mkdir()
    (tmp_path / "types.json").write_text(json.dumps(MONUSAC))
    return tmp_path


def call(folder, *options) -> int:
    places = [f"--{name}_dir={folder / name}" for name in ("image", "annotation", "output")]
    return GenerateMasks.main([*places, "--overwrite", *options])


def areas(folder) -> list[int]:
    return np.bincount(scipy.io.loadmat(folder / "output" / "x.mat")["inst_map"].ravel())[1:].tolist()


def square(x, y, side) -> dict:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def feature(geometry, kind=None, name=None, **more) -> dict:
    properties = {"objectType": kind} if kind else {}
    if name:
        properties["classification"] = {"name": name}
    return {"type": "Feature", "geometry": geometry, "properties": properties | more}


def test_qupath_hierarchies(folder, capsys):
    """The object's type decides what is a nucleus; a cell is not its nucleus; an ellipse is one."""
    region, nuclei = square(5, 5, 180), [feature(square(10 + 30 * i, 10, 16), "detection") for i in range(5)]
    collection = {"type": "GeometryCollection", "geometries": [square(10, 10, 30), square(100, 10, 30)]}
    within = {"nucleusGeometry": square(30, 30, 15)}
    cell = feature(square(10, 10, 60), "cell")
    cases = {
        "parent": ([feature(region, "annotation"), *nuclei], [256] * 5, "1 region"),
        "parent with a class": ([feature(region, "annotation", "Tumor"), *nuclei], [256] * 5, "1 region"),
        "children": ([feature(region, "annotation", childObjects=nuclei[:1])], [256], "1 region"),
        "nucleus in properties": ([feature(square(10, 10, 60), "cell", **within)], [225], ""),
        "nucleus as QuPath has it": ([cell | within], [225], ""),
        "nucleus as QuBaLab has it": (
            [feature(square(10, 10, 60), "cell", extra_geometries={"nucleus": square(30, 30, 15)})],
            [225],
            "",
        ),
        "a collection": (
            [feature(collection, "detection"), feature(square(10, 100, 20), "detection")],
            [900, 900, 400],
            "",
        ),
        "cells of both kinds": ([cell, cell | within], [225], "1 cell without nucleus"),
        "annotations alone": (
            [feature(region, "annotation"), *(feature(square(10 + 30 * i, 10, 16), "annotation") for i in range(3))],
            [256] * 3,
            "1 region",
        ),
        "classes around classes": (
            [feature(square(10, 10, 40), "annotation", "a"), feature(square(20, 20, 10), "annotation", "a")],
            [1500, 100],
            "",
        ),
        "old ids": (
            [
                {**feature(region), "id": "PathAnnotationObject"},
                {**feature(square(10, 10, 16)), "id": "PathCellObject"},
            ],
            None,
            "1 cell without nucleus, 1 region",
        ),
        "only a cell": ([cell], None, "nothing in it outlines a nucleus: 1 cell without nucleus"),
        "points": (
            [feature({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]})],
            None,
            "nothing in it outlines a nucleus: 1 multipoint",
        ),
    }
    for case, (features, expected, said) in cases.items():
        (folder / "annotation" / "x.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": features})
        )
        (folder / "output" / "x.mat").unlink(missing_ok=True)
        assert call(folder, "--untyped") == (expected is None), case
        printed = capsys.readouterr()
        assert said in printed.out + printed.err, case
        assert (folder / "output" / "x.mat").exists() == (expected is not None), case
        if expected is not None:
            assert areas(folder) == expected, case


def test_qupaths_ellipse_is_one(folder):
    ellipse = square(20, 20, 80) | {"isEllipse": True}
    for features in ([feature(ellipse, "detection")], [feature(square(20, 20, 80), "detection", isEllipse=True)]):
        (folder / "annotation" / "x.geojson").write_text(json.dumps(features))
        assert call(folder, "--untyped") == 0
        assert areas(folder)[0] == pytest.approx(np.pi * 40**2, rel=0.01)


def test_what_has_no_class_is_a_key_of_the_mapping(folder, capsys):
    text = json.dumps([feature(square(10, 10, 16)), feature(square(60, 10, 16), name="Tumor")])
    (folder / "annotation" / "x.geojson").write_text(text)
    (folder / "mapping.json").write_text('{"unclassified": "macrophage", "tumor": 1}')
    assert call(folder, f"--type_info_path={folder / 'types.json'}") == 1
    assert "`unclassified` is what has no class" in capsys.readouterr().err
    assert call(folder, f"--type_info_path={folder / 'types.json'}", f"--mapping={folder / 'mapping.json'}") == 0
    assert scipy.io.loadmat(folder / "output" / "x.mat")["inst_type"].ravel().tolist() == [3, 1]
    printed = capsys.readouterr().out
    assert "1  Epithelial" in printed
    assert "1  Macrophage" in printed
    names = types_of(read_label(folder / "output" / "x.mat"))
    assert type_name(3, names) == "Macrophage"


def test_files_named_after_the_images_file(folder, capsys):
    text = json.dumps([feature(square(10, 10, 16))])
    for name, data in (("x.png.geojson", text.encode()), ("x.png.geojson.gz", gzip.compress(text.encode()))):
        (folder / "annotation" / name).write_bytes(data)
        assert call(folder, "--untyped") == 0
        assert areas(folder) == [256]
        (folder / "annotation" / name).unlink()
    (folder / "annotation" / "y.geojson").write_text(text)
    assert call(folder, "--untyped") == 1
    error = capsys.readouterr().err
    assert "(y.geojson) belongs to an image" in error
    assert "(x.png)" in error
    (folder / "annotation" / "x.geojson").write_text(text)
    assert call(folder, "--untyped") == 1  # y.geojson has no image
    assert "without a partner: y.geojson" in capsys.readouterr().out
    (folder / "annotation" / "x.png.geojson").write_text(text)
    assert call(folder, "--untyped") == 1
    assert "x.png has two annotations, x.geojson and x.png.geojson" in capsys.readouterr().err


def imagescope(*layers) -> str:
    """(class in the attribute, regions), each region (x, y, side, NegativeROA)."""
    text = ""
    for name, regions in layers:
        text += (
            f'<Annotation Name="" LineColor="65280"><Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
        )
        text += "<Regions><RegionAttributeHeaders/>"
        for x, y, side, negative in regions:
            corners = ((x, y), (x + side, y), (x + side, y + side), (x, y + side))
            vertices = "".join(f'<Vertex X="{a}" Y="{b}" Z="0"/>' for a, b in corners)
            text += f'<Region Type="0" Text="" NegativeROA="{negative}"><Attributes/>'
            text += f"<Vertices>{vertices}</Vertices></Region>"
        text += "</Regions><Plots/></Annotation>"
    return f'<Annotations MicronsPerPixel="0.25">{text}</Annotations>'


def test_monusacs_classes_stand_in_the_attribute(folder, capsys):
    """All layers have the colour of Lymphocyte: it decides nothing."""
    layers = [
        ("Epithelial", [(10, 10, 20, 0), (60, 10, 20, 0)]),
        ("Lymphocyte", [(10, 60, 14, 0)]),
        ("Neutrophil", [(60, 60, 14, 0)]),
        ("Ambiguous", [(100, 100, 14, 0)]),
    ]
    (folder / "annotation" / "x.xml").write_text(imagescope(*layers))
    types = f"--type_info_path={folder / 'types.json'}"
    assert call(folder, types) == 1
    assert "no type for `Ambiguous` #00ff00 (1)" in capsys.readouterr().err
    (folder / "mapping.json").write_text('{"Ambiguous": null}')
    assert call(folder, types, f"--mapping={folder / 'mapping.json'}") == 0
    assert scipy.io.loadmat(folder / "output" / "x.mat")["inst_type"].ravel().tolist() == [1, 1, 2, 4]


def test_real_monusac_slides(shared, tmp_path, capsys):
    (tmp_path / "types.json").write_text(json.dumps(MONUSAC))
    options = [f"--{name}_dir={shared / 'data' / 'monusac'}" for name in ("image", "annotation")]
    options += [f"--output_dir={tmp_path}", "--pattern=*.svs", f"--type_info_path={tmp_path / 'types.json'}"]
    assert GenerateMasks.main(options) == 0
    assert "326 nuclei in 2 label maps" in capsys.readouterr().out
    found = scipy.io.loadmat(tmp_path / "A9K0_1.mat")
    assert found["inst_map"].shape == (1153, 1307)
    assert np.bincount(found["inst_type"].ravel()).tolist() == [0, 314, 0, 7]  # regions of each layer of the XML


def test_imagescopes_negative_regions_are_holes_of_the_smallest_region_around(folder, capsys):
    layers = [("a", [(10, 10, 90, 0), (20, 20, 40, 0), (30, 30, 9, 1), (150, 150, 9, 1)])]
    (folder / "annotation" / "x.xml").write_text(imagescope(*layers))
    assert call(folder, "--untyped") == 0
    assert areas(folder) == [91**2 - 41**2 + 10**2, 41**2 - 10**2]  # the large one shows in the hole
    assert "no nuclei: 1 negative region" in capsys.readouterr().out


HALO = """<Annotations><Annotation LineColor="65535" Name="Tumor" Visible="True"><Regions>
<Region Type="Polygon" HasEndcaps="0" NegativeROA="0"><Vertices><V X="10" Y="10"/><V X="40" Y="10"/><V X="40" Y="40"/>
<V X="10" Y="40"/></Vertices><Comments/></Region>
<Region Type="Ellipse" NegativeROA="0"><Vertices><V X="60" Y="10"/><V X="90" Y="40"/></Vertices></Region>
<Region Type="Rectangle" NegativeROA="1"><Vertices><V X="15" Y="15"/><V X="20" Y="20"/></Vertices></Region>
</Regions></Annotation></Annotations>"""


def test_halo(folder):
    (folder / "annotation" / "x.xml").write_text(HALO)
    assert {c.label for c in read_annotations(folder / "annotation" / "x.xml").contours} == {"Tumor"}
    assert call(folder, "--untyped") == 0
    polygon, ellipse = areas(folder)
    assert polygon == 31**2 - 6**2
    assert ellipse == pytest.approx(np.pi * 15**2, rel=0.02)


def test_xml_that_is_not_understood_makes_no_label_map(folder, capsys):
    """Each has the root of ImageScope's and HALO's, or a shape that is none; nothing is silently "no nuclei"."""
    for text, said in (
        (
            "<Annotations><Object><Points/></Object></Annotations>",
            "<Object> in <Annotations>: neither ASAP",
        ),
        ("<Annotations><Annotation><Polygons/></Annotation></Annotations>", "<Polygons> in <Annotation>"),
        (HALO.replace("<V ", "<P "), "<P> in <Vertices>"),
        (HALO.replace('"Polygon"', '"Blob"').replace("Ellipse", "Blob").replace("Rectangle", "Blob"), "3 blob"),
        ("<annotations/>", "its first element is <annotations>"),
        ("<ASAP_Annotations><Shapes/></ASAP_Annotations>", "<Shapes> in <ASAP_Annotations>"),
    ):
        (folder / "annotation" / "x.xml").write_text(text)
        assert call(folder, "--untyped") == 1, text
        assert said in capsys.readouterr().err
        assert not (folder / "output" / "x.mat").exists()


def test_elements_that_are_not_known_beside_regions_are_no_fault(folder):
    text = imagescope(("a", [(10, 10, 20, 0)])).replace("<Plots/>", "<Plots/><Reviewer/>")
    text = text.replace("</Vertices>", "</Vertices><Score/>").replace("<Regions>", "<Regions><Header/>")
    (folder / "annotation" / "x.xml").write_text(text)
    assert call(folder, "--untyped") == 0
    assert areas(folder) == [21**2]


def test_tables_of_intensities_keep_the_rows_of_other_runs(folder):
    write_rgb(folder / "image" / "y.png", np.full((200, 200, 3), 200, np.uint8))
    for name in ("x", "y"):
        (folder / "annotation" / f"{name}.geojson").write_text(json.dumps([feature(square(10, 10, 16))]))
    for name in ("y", "x"):  # each has the other's annotation without a partner
        assert call(folder, "--intensity", f"--pattern={name}.png") == 1
    for table in ("intensity.csv", "intensity_summary.csv"):
        rows = (folder / "output" / table).read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["image", "x", "y"]


def test_one_bad_file_does_not_end_the_batch(folder, capsys, monkeypatch):
    """A picture that declares 200,000 px, gigabytes of gzip, and a type that no label map holds."""
    from struct import pack
    from zlib import crc32

    head = b"IHDR" + pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + head + pack(">I", crc32(head)) + pack(">I", 9) + b"IDAT" + bytes(13)
    text = json.dumps([feature(square(10, 10, 16))])
    for name in ("huge", "packed"):
        (folder / "image" / f"{name}.png").write_bytes(
            png if name == "huge" else (folder / "image" / "x.png").read_bytes()
        )
        (folder / "annotation" / f"{name}.geojson").write_text(text)
    (folder / "annotation" / "x.geojson").write_text(text)
    monkeypatch.setattr(annotations, "available_memory", lambda: 60_000_000)
    (folder / "annotation" / "packed.geojson").write_bytes(gzip.compress(bytes(1_000_000)) * 7)
    assert call(folder, "--untyped") == 1
    printed = capsys.readouterr()
    assert "GenerateMasks.py: failed: huge.png: a label map of 200000 x 200000 px" in printed.err
    assert ": 960 GB of memory are needed" in printed.err
    assert "failed: packed.png: " in printed.err
    assert "more text than 5 MB" in printed.err
    assert "1 nucleus in 1 label map" in printed.out
    for option, text, said in (
        ("type_info_path", '{"3000000000": ["x", [1, 2, 3]]}', "type ids are 0 to 2147483647"),
        ("type_info_path", "[" * 100_000, "maximum recursion depth exceeded"),
        ("type_info_path", '{"1": ["x", [1e999, 2, 3]]}', 'expected {"1":'),
        ("mapping", '{"x": 3000000000}', "3000000000 is no type id"),
        ("mapping", "[" * 100_000, "expected {"),
    ):
        (folder / "option.json").write_text(text)
        assert call(folder, f"--{option}={folder / 'option.json'}") == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
