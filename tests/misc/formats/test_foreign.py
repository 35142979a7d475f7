"""Nuclei of other programs: small files in exactly their layout become the same nuclei of ours.

The `.dat` was written by joblib itself; the other layouts by hand.
"""

from __future__ import annotations

import base64
import json
import pickle
import sqlite3
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from scipy.io import loadmat

import convert_format
from misc.formats import foreign_labels
from misc.formats.foreign_outlines import border_pixels
from misc.formats.joblib_file import load_plain
from misc.formats.nuclei_json import read_json
from misc.nuclei import Nuclei
from models.hovernet.post_proc import measure

# Border pixels of two nuclei, 5 x 7 and 3 x 3 px, x and y.
SQUARES = np.array([[[10, 20], [14, 20], [14, 26], [10, 26]], [[30, 40], [32, 40], [32, 42], [30, 42]]])
CENTRES = [[12, 23], [31, 41]]
# {"a1b2": {"box", "centroid", "contour", "prob": 0.75, "type": 2}, "c3": ... "prob": 0.5, "type": 1}, contours
# [[10, 20], [14, 20], [14, 26], [10, 26]] and 20 px to the right, as joblib 1.5 wrote it.
DAT = """
c-oCp!D`z;5RGNoaZOV@B)BvNLmEOH3WBDA<WPu<4}}U$(@T$HS5`AhC9POVv_1rqLlPJE*75)K&_n+sT}dm&D5P{jdLwCO-kUeN)EB>3@^gVh
p_AA20Mn>W*>@Bh=ZtzTHG;$sXIALiUp)uK`XqgP$2pmO<|GUqjz4k#DywTn3AH^EMJO6s6^hkhO43}JBpMNr&_PqbmNDZ~St@E{8BgPxd=Kp+
lDV3Dj6deL_z8z*UDV#<WHR}1Cr@@WS7M~1O+1f%vwWX~I2Zj~XU1j`&piu#Cx|UNi=7C~ZbG|vmD5(kZz}94>?>S+RDo#OvK43U6rq{V3QyoE
teM(1LI=9A4jV%IvLqRvKNJiv=CGA2Y3BTS^WiARqtW8D;9Ip>5VM3=>2y=OSt4`~|C6v$&YRBqYzepI)mFHO3VuE0jH2jemKv7LxMTQ<7rXf`
MKiLAN7Bv1_PCW7{W-xKDMjen3Qa8$n*AozUawA3n${~7)}_8dWgk1$ee9|L`j4(*yX;s~{*Lbb-
7D&M{^9F>*`ZVUUj|Cs%Oy;G8x;N(g5lNslV2)400VmCR!x1%JW3MdFEDN$kp
"""


def convert(path: Path, *options: str) -> int:
    return convert_format.main([f"--input={path}", f"--output_dir={path.parent / 'out'}", "--to=json", *options])


def converted(path: Path, *options: str, name: str | None = None) -> tuple[Nuclei, dict]:
    assert convert(path, "--overwrite", *options) == 0
    return read_json(path.parent / "out" / f"{name or path.name.split('.')[0]}.json")


def check_squares(nuclei: Nuclei, header: dict, names: tuple[str, ...] = ()) -> None:
    """The two squares, whatever the order of their points; their types by name."""
    for index, square in enumerate(SQUARES):
        assert {tuple(p) for p in nuclei.contour(index).tolist()} == {tuple(p) for p in square.tolist()}
        assert nuclei.boxes_yx[index].tolist() == [square[0][::-1].tolist(), (square[2][::-1] + 1).tolist()]
    np.testing.assert_allclose(nuclei.centroids_xy, CENTRES)
    if names:
        assert [header["types"][str(t)][0] for t in nuclei.types] == list(names)


def cell(index: int, type_id: int) -> dict:
    (x0, y0), (x1, y1) = SQUARES[index][0].tolist(), SQUARES[index][2].tolist()
    return {
        "bbox": [[y0, x0], [y1 + 1, x1 + 1]],
        "centroid": CENTRES[index],
        "contour": SQUARES[index].tolist(),
        "type_prob": 0.5 + index / 4,
        "type": type_id,
        "patch_coordinates": [0, 1],
        "cell_status": 0,
        "offset_global": [0, 0],
        "edge_position": False,
    }


def test_cellvit(tmp_path, capsys):
    """`cells.json` in a folder of the slide, level 0; and its GeoJSON, one MultiPolygon a type, on pixel centres."""
    folder = tmp_path / "slide 1" / "cell_detection"
    folder.mkdir(parents=True)
    head = {
        "wsi_metadata": {"base_magnification": 40, "downsampling": 1, "base_mpp": 0.25, "patch_size": 1024},
        "processed_patches": ["0_1"],
        "type_map": {"Background": 0, "Neoplastic": 1, "Inflammatory": 2},
    }
    (folder / "cells.json").write_text(json.dumps({**head, "cells": [cell(0, 2), cell(1, 1)]}, indent=2))
    nuclei, header = converted(folder / "cells.json", name="slide 1")
    check_squares(nuclei, header, ("Inflammatory", "Neoplastic"))
    assert (header["mag"], header["mpp"], header["slide"]["scale"]) == (40, 0.25, 1)
    assert nuclei.type_prob.tolist() == [0.5, 0.75]
    assert "level-0 px" in capsys.readouterr().out

    features = [
        {
            "type": "Feature",
            "id": "x",
            "geometry": {"type": "MultiPolygon", "coordinates": [[[*square.tolist(), square[0].tolist()]]]},
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [255, 0, 9]}},
        }
        for square, name in zip(SQUARES, ("Neoplastic", "Dead"), strict=True)
    ]
    (folder / "cells.geojson").write_text(json.dumps(features))
    nuclei, header = converted(folder / "cells.geojson", name="slide 1")
    check_squares(nuclei, header, ("Neoplastic", "Dead"))
    assert header["types"]["1"] == ["Dead", [255, 0, 9]]

    points = {**head, "cells": [{key: cell(0, 1)[key] for key in ("bbox", "centroid", "type")}]}
    (folder / "cell_detection.json").write_text(json.dumps(points))
    assert convert(folder / "cell_detection.json") == 1
    assert "'contour' is missing" in capsys.readouterr().err


def test_types_of_the_user_go_by_name(tmp_path, capsys):
    """A network's own numbers; a name that it does not have is refused, and named."""
    cells = {"wsi_metadata": {}, "type_map": {"Background": 0, "Epithelial": 5, "Dead": 4}, "cells": [cell(0, 5)]}
    (tmp_path / "a_cells.json").write_text(json.dumps(cells))
    info = tmp_path / "info.json"
    info.write_text('{"0": ["none", [0, 0, 0]], "7": ["epithelial", [1, 2, 3]], "9": ["dead", [4, 5, 6]]}')
    nuclei, header = converted(tmp_path / "a_cells.json", f"--type_info_path={info}", name="a")
    assert nuclei.types.tolist() == [7]
    assert header["types"]["7"] == ["epithelial", [1, 2, 3]]
    info.write_text('{"7": ["epithelial", [1, 2, 3]]}')
    assert convert(tmp_path / "a_cells.json", f"--type_info_path={info}", "--overwrite") == 1
    assert "no type called 'Dead'" in capsys.readouterr().err


def test_geojson_of_qupath_and_our_own(tmp_path, capsys):
    """Traced on the corners of pixels; regions around detections are left out. Our own comes back to the pixel."""
    rings = [square + [[0, 0], [1, 0], [1, 1], [0, 1]] for square in SQUARES]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]},
            "properties": {"objectType": "detection", "classification": {"name": name}},
        }
        for ring, name in zip(rings, ("Tumor", "Stroma"), strict=True)
    ]
    region = {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 90], [0, 0]]]}
    features.append({"type": "Feature", "geometry": region, "properties": {"objectType": "annotation"}})
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    nuclei, header = converted(tmp_path / "a.geojson")
    check_squares(nuclei, header, ("Tumor", "Stroma"))
    assert len(nuclei) == 2

    result = tmp_path / "out" / "a.json"
    assert convert_format.main([f"--input={result}", f"--output_dir={tmp_path}", "--to=geojson", "--gz"]) == 0
    back, header = converted(tmp_path / "a.geojson.gz")
    check_squares(back, header, ("Tumor", "Stroma"))
    own = [f"--input={result}", f"--output_dir={result.parent}", "--to=json", "--overwrite"]
    assert convert_format.main(own) == 1
    assert "overwrite the input" in capsys.readouterr().err

    line = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}
    (tmp_path / "a.geojson").write_text(json.dumps([{"type": "Feature", "geometry": line, "properties": {}}]))
    assert convert(tmp_path / "a.geojson", "--overwrite") == 1
    assert "nothing in it outlines a nucleus: 1 LineString" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [True, False])
def test_annotation_store_of_tiatoolbox(tmp_path, packed):
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE metadata (key TEXT UNIQUE, value TEXT)")
        said = {"version": "1.0.1", "compression": "zlib" if packed else None, "compression_level": 9}
        store.executemany("INSERT INTO metadata VALUES (?, ?)", [(k, json.dumps(v)) for k, v in said.items()])
        store.execute(
            "CREATE TABLE annotations (id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, "
            "cy FLOAT NOT NULL, geometry BLOB, properties TEXT, area FLOAT NOT NULL)"
        )
        names = ("Neoplastic epithelial", "Dead")
        for index, (square, name) in enumerate(zip(SQUARES, names, strict=True)):
            data = shapely.to_wkb(shapely.Polygon(square))
            properties = json.dumps({"type": name, "prob": 0.75})
            row = (f"k{index}", "", *CENTRES[index], zlib.compress(data) if packed else data, properties, 24.0)
            store.execute("INSERT INTO annotations VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", row)
        store.execute("INSERT INTO annotations VALUES (NULL, 'p', '', 5, 5, NULL, '{}', 0)")  # a point
    store.close()
    nuclei, header = converted(path)
    check_squares(nuclei, header, names)
    assert len(nuclei) == 2
    assert nuclei.type_prob.tolist() == [0.75, 0.75]


def test_a_broken_store_is_named(tmp_path, capsys):
    (tmp_path / "a.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert convert(tmp_path / "a.db") == 1
    assert "no AnnotationStore of tiatoolbox, or broken" in capsys.readouterr().err


def test_dat_of_tiatoolbox(tmp_path, capsys):
    path = tmp_path / "a.dat"
    path.write_bytes(zlib.decompress(base64.b85decode("".join(DAT.split()))))
    nuclei, header = converted(path)
    assert nuclei.contour(0).tolist() == SQUARES[0].tolist()
    assert nuclei.contour(1).tolist() == (SQUARES[0] + [20, 0]).tolist()
    assert nuclei.types.tolist() == [2, 1]
    assert nuclei.type_prob.tolist() == [0.75, 0.5]
    assert header["mag"] == 40
    assert "scale" not in header["slide"]  # a guess that the slide may correct
    assert "40x is assumed" in capsys.readouterr().out
    assert converted(path, "--scale=2")[1]["slide"]["scale"] == 2


def test_a_pickle_runs_nothing(tmp_path, capsys, subtests):
    """Whatever a file asks to call, or to have the memory for, is refused in one line."""

    class Calls:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    evil = b"\x80\x04cposix\nsystem\n(X\x04\x00\x00\x00truetR."
    state = b"\x80\x04cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb."  # a state for a class of ours
    large = b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"."
    for name, data in (
        ("class", pickle.dumps({"a": Calls()})),
        ("system", evil),
        ("state", state),
        ("large", large),
        ("short", pickle.dumps({"a": {"contour": [1] * 99}})[:-30]),
        ("packed", zlib.compress(b"x")),
        ("objects", pickle.dumps({"a": {"contour": np.array([None])}})),
    ):
        with subtests.test(name=name):
            path = tmp_path / f"{name}.dat"
            path.write_bytes(data)
            with pytest.raises(ValueError, match="refused or broken|broken|packed one"):
                load_plain(path)
            assert convert(path) == 1
            assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_label_images_are_what_measure_finds(kumar, tmp_path, monkeypatch, capsys):
    """Whole, and in bands so narrow that most nuclei reach over an edge."""
    labels = loadmat(next((kumar / "Train" / "Labels").glob("*.mat")))["inst_map"].astype(np.int32)[:400, :300]
    whole = measure(labels)
    np.save(tmp_path / "npy.npy", labels)
    tifffile.imwrite(tmp_path / "tif.tif", labels)
    tifffile.imwrite(tmp_path / "zip.tif", labels.astype(np.uint16), compression="zlib")
    cv2.imwrite(str(tmp_path / "png.png"), labels.astype(np.uint16))
    for band in (1 << 26, 1):
        monkeypatch.setattr(foreign_labels, "BAND_PX", band)
        monkeypatch.setattr(foreign_labels, "MARGIN_ROWS", 40)
        for name in ("npy.npy", "tif.tif", "zip.tif", "png.png"):
            found, _ = converted(tmp_path / name, "--from=labels")
            found = found.select(np.argsort(found.ids))
            np.testing.assert_array_equal(found.ids, whole.ids)
            np.testing.assert_allclose(found.centroids_xy, whole.centroids_xy)
            np.testing.assert_array_equal(found.points_xy, whole.points_xy)
    cv2.imwrite(str(tmp_path / "rgb.png"), np.zeros((9, 9, 3), np.uint8))
    assert convert(tmp_path / "rgb.png") == 1
    assert "one channel of whole numbers" in capsys.readouterr().err


def test_hovernext(tmp_path, capsys, shared):
    """Its map is of 20x and counts from the corner of what was scanned; `class_inst.json` has the types."""
    zarr = pytest.importorskip("zarr", reason="pip install -r requirements-zarr.txt")
    folder = tmp_path / "leica"
    folder.mkdir()
    labels = np.zeros((60, 50), np.int32)
    for number, ((x0, y0), _, (x1, y1), _) in zip((3, 8), SQUARES, strict=True):
        labels[y0 : y1 + 1, x0 : x1 + 1] = number
    with zarr.storage.ZipStore(folder / "pinst_pp.zip", mode="w") as store:
        array = zarr.create_array(store, shape=labels.shape, chunks=(32, 32), dtype="i4", zarr_format=2)
        array[:] = labels
    classes = {str(n): [c, [y, x]] for n, c, (x, y) in zip((3, 8), (3, 1), CENTRES, strict=True)}
    (folder / "class_inst.json").write_text(json.dumps(classes))
    (folder / "pred_neutrophil.tsv").write_text("x\ty\tname\tcolor\n")
    nuclei, header = converted(folder / "pinst_pp.zip", name="leica")
    check_squares(nuclei, header, ("lymphocyte", "neutrophil"))
    assert header["mag"] == 20
    assert "trained on Lizard, 20x" in capsys.readouterr().out
    wsi_dir = f"--wsi_dir={shared / 'cases' / '04-qupath-bounds' / 'in'}"
    moved, header = converted(folder / "pinst_pp.zip", wsi_dir, name="leica")
    scale = header["slide"]["scale"]
    np.testing.assert_allclose((moved.centroids_xy - nuclei.centroids_xy) * scale, [[500, 400]] * 2, atol=scale / 2)
    (folder / "class_inst.json").unlink()
    assert convert(folder / "pinst_pp.zip", "--overwrite") == 1
    assert "class_inst.json" in capsys.readouterr().err


def test_outlines_become_border_pixels():
    """A pixel belongs to an outline that its centre lies in; one without a centre is still there."""
    edges = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]
    dot, triangle = np.array([[1.2, 1.2], [1.4, 1.2], [1.4, 1.4]]), np.array([[0.0, 0.0], [4, 0], [4, 4], [0, 0]])
    large = np.array([[0.0, 0.5], [150, 0.5], [150, 90]])
    found = border_pixels([SQUARES[0] + edges, dot, triangle, large, SQUARES[1] + edges, SQUARES[0] + edges])
    for index, square in ((0, 0), (4, 1), (5, 0)):
        assert {tuple(p) for p in found[index].tolist()} == {tuple(p) for p in SQUARES[square].tolist()}
    assert found[1].tolist() == [[1, 1]]
    assert found[2].tolist() == triangle[:3].tolist()
    assert found[3].max(axis=0).tolist() == [150, 90]
    for ring, said in (([[0, 0], [np.nan, 1]], "range"), ([[0, 0], [9e4, 1]], "no nucleus"), ([], "list of points")):
        with pytest.raises(ValueError, match=said):
            border_pixels([np.array(ring)])


def test_our_scripts_read_what_was_converted(tmp_path):
    """The table of the nuclei that CellViT found says the same as the JSON of ours."""
    cells = {"wsi_metadata": {"magnification": 40}, "type_map": {"Dead": 4}, "cells": [cell(0, 4), cell(1, 4)]}
    (tmp_path / "a_cells.json").write_text(json.dumps(cells))
    converted(tmp_path / "a_cells.json", name="a")
    tables = []
    for number, source in enumerate((tmp_path / "a_cells.json", tmp_path / "out" / "a.json")):
        out = tmp_path / str(number)
        assert convert_format.main([f"--input={source}", f"--output_dir={out}", "--to=csv"]) == 0
        tables.append((out / "a.csv").read_text())
    assert tables[0] == tables[1]
    assert ",Dead," in tables[0]
