"""GeoParquet: read back by pyarrow and shapely alone, against the table and the GeoJSON of the same nuclei."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from scipy.io import loadmat

import convert_format
from misc.formats import nuclei_table, parquet
from misc.formats.nuclei_json import write_json
from misc.formats.nuclei_table import COLUMNS, NucleiTable
from misc.formats.parquet import BBOX, write_parquet
from misc.nuclei import Nuclei
from misc.type_info import UNTYPED
from models.hovernet.post_proc import measure

pq = pytest.importorskip("pyarrow.parquet", reason="pip install -r requirements-parquet.txt")


@pytest.fixture(scope="module")
def real(kumar) -> Nuclei:
    label = next((kumar / "Train" / "Labels").glob("*.mat"))
    return measure(loadmat(label)["inst_map"][:400, :400].astype(np.int32))


def test_rows_are_the_csv_and_outlines_the_geojson(real, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_NUCLEI", 50)
    monkeypatch.setattr(nuclei_table, "PIECE_NUCLEI", 30)
    write_json(tmp_path / "a.json", real, 20, {"slide": {"name": "a.svs", "width": 800, "height": 800, "scale": 2.0}})
    for target in ("parquet", "csv", "geojson"):
        assert (
            convert_format.main([f"--input={tmp_path / 'a.json'}", f"--output_dir={tmp_path}", f"--to={target}"]) == 0
        )
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == -(-len(real) // 50)
    table = file.read().sort_by("id").to_pydict()
    head, *lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    rows = sorted(
        (dict(zip(head.split(","), line.split(","), strict=True)) for line in lines), key=lambda r: int(r["id"])
    )
    for name in COLUMNS:
        assert [str(v if v is not None else "") for v in table[name]] == [row[name] for row in rows]
    outlines = [
        shapely.geometry.shape(feature["geometry"])
        for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]
    ]
    polygons = shapely.from_wkb(table["geometry"])
    assert shapely.is_valid(polygons).all()
    assert shapely.equals(polygons, outlines).all()
    boxes = np.array([[box[side] for side in BBOX] for box in table["bbox"]])
    np.testing.assert_array_equal(boxes, shapely.bounds(polygons))
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert geo["columns"]["geometry"]["bbox"] == [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]


def test_neighbours_are_together(real, tmp_path, monkeypatch):
    """A row group covers some squares of the slide, whatever the order that the nuclei came in."""
    monkeypatch.setattr(parquet, "GROUP_NUCLEI", 40)
    shuffled = real.select(np.random.default_rng(0).permutation(len(real)))
    for name, nuclei in (("a", real), ("b", shuffled)):
        write_parquet(tmp_path / name, NucleiTable(nuclei.scale(16, 16), {None: UNTYPED}))
    file = pq.ParquetFile(tmp_path / "b")
    squares = []
    for group in range(file.num_row_groups):
        columns = file.read_row_group(group, ["centroid_x_px", "centroid_y_px"])
        squares.append({(x // 1024, y // 1024) for x, y in zip(*(c.to_pylist() for c in columns), strict=True)})
    assert sum(map(len, squares)) <= len(set.union(*squares)) + file.num_row_groups


def test_geopandas_reads_a_part_of_the_slide(real, tmp_path, monkeypatch):
    geopandas = pytest.importorskip("geopandas", reason="pip install geopandas")
    monkeypatch.setattr(parquet, "GROUP_NUCLEI", 40)
    write_parquet(tmp_path / "a.parquet", NucleiTable(real, {None: UNTYPED}))
    whole = geopandas.read_parquet(tmp_path / "a.parquet")
    assert sorted(whole["id"]) == sorted(real.ids)
    box = shapely.box(100, 50, 200, 150)
    part = geopandas.read_parquet(tmp_path / "a.parquet", bbox=box.bounds)
    bounds = shapely.bounds(whole.geometry.to_numpy())
    expected = whole["id"][(bounds[:, :2] <= (200, 150)).all(axis=1) & (bounds[:, 2:] >= (100, 50)).all(axis=1)]
    assert 0 < len(part) < len(whole)
    assert sorted(part["id"]) == sorted(expected)


def test_no_nuclei_and_no_package(tmp_path, monkeypatch):
    assert write_parquet(tmp_path / "a", NucleiTable([], {None: UNTYPED})) == 0
    assert pq.ParquetFile(tmp_path / "a").metadata.num_rows == 0
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install -r requirements-parquet.txt"):
        write_parquet(tmp_path / "b", NucleiTable([], {None: UNTYPED}))
