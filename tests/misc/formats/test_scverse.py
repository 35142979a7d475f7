"""AnnData and SpatialData: opened by their own libraries, and by squidpy, against the table of the same nuclei."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.io import loadmat

import convert_format
from misc.formats import nuclei_table
from misc.formats.nuclei_json import write_json
from misc.type_info import UNTYPED
from models.hovernet.post_proc import measure

HEADER = {
    "slide": {"name": "a.svs", "width": 800, "height": 800, "scale": 2.0, "mpp": 0.25},
    "types": {"1": ["tumour", [255, 0, 9]], "2": ["stroma", [0, 9, 255]]},
}


@pytest.fixture(scope="module")
def folder(kumar, tmp_path_factory):
    """Real nuclei of two types, in a JSON of ours and as a table."""
    label = loadmat(next((kumar / "Train" / "Labels").glob("*.mat")))["inst_map"][:400, :400].astype(np.int32)
    folder = tmp_path_factory.mktemp("scverse")
    write_json(folder / "a.json", measure(label, label % 2 + 1), 20, HEADER)
    assert run(folder, "csv") == 0
    return folder


@pytest.fixture
def several_pieces(monkeypatch):
    monkeypatch.setattr(nuclei_table, "PIECE_NUCLEI", 50)


def run(folder, target: str, *options: str) -> int:
    options = [f"--input={folder / 'a.json'}", f"--output_dir={folder}", f"--to={target}", "--overwrite", *options]
    return convert_format.main(options)


def check_table(table, folder) -> None:
    """Each value is the one of the CSV table, each position in um."""
    with open(folder / "a.csv", newline="") as handle:
        rows = {row["id"]: row for row in csv.DictReader(handle)}
    assert set(table.obs_names) == rows.keys()
    assert len(table.var_names) == len(nuclei_table.COLUMNS) - 8
    x = np.asarray(table.X)
    for name, values, xy in zip(table.obs_names, x, table.obsm["spatial"], strict=True):
        row = rows[name]
        assert xy.tolist() == [float(row["centroid_x_um"]), float(row["centroid_y_um"])]
        np.testing.assert_array_equal(values, [np.float32(row[column]) for column in table.var_names])
        assert table.obs.loc[name, "cell_type"] == row["name"]
    assert table.uns["mpp"] == 0.25
    colours = dict(zip(table.obs["cell_type"].cat.categories, table.uns["cell_type_colors"], strict=True))
    assert colours == {"tumour": "#ff0009", "stroma": "#0009ff"}


def test_anndata(folder, several_pieces, capsys):
    anndata = pytest.importorskip("anndata", reason="pip install -r requirements-anndata.txt")
    assert run(folder, "h5ad") == 0
    check_table(anndata.read_h5ad(folder / "a.h5ad"), folder)
    (folder / "b").mkdir()
    write_json(folder / "b" / "a.json", measure(np.zeros((9, 9), np.int32)), header={"slide": HEADER["slide"]})
    assert run(folder / "b", "h5ad") == 0
    assert len(anndata.read_h5ad(folder / "b" / "a.h5ad")) == 0
    write_json(folder / "b" / "a.json", measure(np.ones((9, 9), np.int32)))
    assert run(folder / "b", "h5ad") == 1
    assert "give --mpp" in capsys.readouterr().err
    assert run(folder / "b", "h5ad", "--mpp=0.5") == 0
    assert anndata.read_h5ad(folder / "b" / "a.h5ad").obs["cell_type"].tolist() == [UNTYPED[0]]


def test_spatialdata(folder, several_pieces):
    spatialdata = pytest.importorskip("spatialdata", reason="pip install -r requirements-spatialdata.txt")
    for _ in range(2):  # the second takes the place of the first
        assert run(folder, "spatialdata") == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    data = spatialdata.read_zarr(folder / "a.zarr")
    check_table(data["table"], folder)
    shapes, table = data["nuclei"], data["table"]
    assert sorted(shapes.index) == sorted(table.obs["instance_id"])
    positions = dict(zip(table.obs["instance_id"], table.obsm["spatial"], strict=True))
    in_um = spatialdata.transform(shapes, to_coordinate_system="um")
    for index, centroid in in_um.geometry.centroid.items():
        np.testing.assert_allclose([centroid.x, centroid.y], positions[index], atol=1)
    elements, joined = spatialdata.join_spatialelement_table(data, "nuclei", table_name="table", match_rows="left")
    assert len(joined) == len(elements["nuclei"]) == len(table)


def test_squidpy_finds_neighbours(folder):
    anndata = pytest.importorskip("anndata", reason="pip install -r requirements-anndata.txt")
    squidpy = pytest.importorskip("squidpy", reason="pip install squidpy")
    assert run(folder, "h5ad") == 0
    table = anndata.read_h5ad(folder / "a.h5ad")
    squidpy.gr.spatial_neighbors(table, radius=30.0, coord_type="generic")
    xy = table.obsm["spatial"]
    near = np.linalg.norm(xy[:, None] - xy[None], axis=-1) <= 30
    assert table.obsp["spatial_connectivities"].nnz == near.sum() - len(table)
    squidpy.gr.nhood_enrichment(table, cluster_key="cell_type", n_perms=10, show_progress_bar=False)
    assert table.uns["cell_type_nhood_enrichment"]["count"].sum() == near.sum() - len(table)
