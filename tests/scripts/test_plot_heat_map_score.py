"""`plot_heat_map.py --score`: densities, classes and scores, from the pixels to the tables."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
import scipy.io
from test_plot_heat_map import FEW, nucleus, run, table, write_slide

from misc.formats.nuclei_json import write_json
from misc.ihc.stain import DAB_RGB, WHITE
from models.hovernet.post_proc import measure


def brown(dab):
    return WHITE * 10 ** -(dab * np.array(DAB_RGB) / np.linalg.norm(DAB_RGB))


def test_scores_from_the_pixels(tmp_path, capsys):
    densities = [0.0, 0.1, 0.3, 0.31, 0.5, 1.2]
    image = np.full((100, 400, 3), 255, np.uint8)
    for i, dab in enumerate(densities):
        image[40:61, 40 * i + 30 : 40 * i + 51] = np.rint(brown(dab))
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    nuclei = [nucleus(40 * i + 40, 50, None, radius=8) for i in range(6)]
    for n in nuclei:  # upstream's boxes on slides lie elsewhere
        n["bbox"] = [[0, 0], [1, 1]]
    write_slide(tmp_path / "json", "a", nuclei)
    wsi = f"--wsi_dir={tmp_path}"
    assert run(tmp_path, wsi, "--score") == 0
    (row,) = table(tmp_path, "summary.csv")
    wanted = {"dab_negative": "2", "dab_weak": "2", "dab_moderate": "1", "dab_strong": "1", "positive": "4"}
    wanted |= {"weak_from_od": "0.2", "strong_from_od": "0.6", "ki67_index": "0.666667"}
    assert {key: row[key] for key in wanted} == wanted
    assert float(row["h_score"]) == pytest.approx(100 * (2 * 1 + 2 + 3) / 6, abs=1e-3)
    assert float(row["ki67_index_low"]) < 2 / 3 < float(row["ki67_index_high"])
    assert "H-score 117, positive 66.7 % (95 % CI 30.0-90.3)" in capsys.readouterr().out
    histogram = cv2.imread(str(tmp_path / "out" / "score" / "a.png"))
    assert len(np.unique(histogram.reshape(-1, 3), axis=0)) > 50
    assert run(tmp_path, wsi, "--score", "--kmeans", "--overwrite") == 0
    (row,) = table(tmp_path, "summary.csv")
    assert float(row["moderate_from_od"]) == pytest.approx((0.305 + 0.5) / 2, abs=0.01)
    assert float(row["strong_from_od"]) == pytest.approx((0.5 + 1.2) / 2, abs=0.01)


def test_a_row_for_each_nucleus_and_scores_of_each_hot_spot(tmp_path):
    densities = [0.0, 0.3, 0.5, 1.2, 0.9]
    image = np.full((100, 700, 3), 255, np.uint8)
    for i, dab in enumerate(densities):
        image[40:61, 120 * i + 30 : 120 * i + 51] = np.rint(brown(dab))
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    nuclei = [nucleus(60 * i + 20, 25, 2, radius=4) for i in range(5)]  # found at half the size
    nuclei.append(nucleus(300, 25, 2) | {"contour": []})
    write_slide(tmp_path / "json", "a", nuclei, slide={"scale": 2.0})
    assert run(tmp_path, f"--wsi_dir={tmp_path}", "--score", "--hotspot_size=350", "--top_k=2", "--mpp=0.5") == 0
    with open(tmp_path / "out" / "score" / "a.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["id"] for row in rows] == list("123456")
    assert [float(row["x_px"]) for row in rows] == [*(120 * i + 40.5 for i in range(5)), 600.5]
    assert {row["y_px"] for row in rows} == {"50.5"}
    assert [row["class"] for row in rows] == ["negative", "weak", "moderate", "strong", "strong", ""]
    assert [float(row["dab_od"]) for row in rows[:5]] == pytest.approx(densities, abs=0.02)
    assert rows[5]["dab_od"] == ""
    first, second = table(tmp_path, "hotspots.csv")
    for spot in (first, second):
        inside = [row["class"] for row in rows if int(spot["x0_px"]) <= float(row["x_px"]) < int(spot["x1_px"])]
        for name in ("negative", "weak", "moderate", "strong"):
            assert spot[f"dab_{name}"] == str(inside.count(name))
        weights = {"weak": 1, "moderate": 2, "strong": 3}
        measured = [name for name in inside if name]
        h_score = 100 * sum(weights.get(name, 0) for name in measured) / len(measured)
        assert float(spot["h_score"]) == pytest.approx(h_score, abs=1e-3)
    assert first["h_score"] != second["h_score"]


@pytest.mark.parametrize("types", [1, None])
def test_what_could_not_be_measured_is_in_no_denominator(tmp_path, types):
    """With DAB density deciding, the positive share and the Ki-67 index of a row are the same number."""
    image = np.full((100, 200, 3), 255, np.uint8)
    image[:, :100] = np.rint(brown(0.5))
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    nuclei = [nucleus(x, 50, types) for x in (30, 60, 150)] + [nucleus(90, 50, types) | {"contour": []}]
    write_slide(tmp_path / "json", "a", nuclei)
    by_dab = ["--positive_types=dab"] if types else []
    assert run(tmp_path, f"--wsi_dir={tmp_path}", "--score", *by_dab) == 0
    rows = table(tmp_path, "summary.csv") + table(tmp_path, "hotspots.csv")
    for row in rows:
        wanted = {"nuclei": "4", "positive": "2", "positive_share": "0.666667", "ki67_index": "0.666667"}
        assert {key: row[key] for key in wanted} == wanted
    assert len(rows) == 2


def test_positive_and_negative_of_real_images_by_dab_alone(tmp_path, shared, capsys):
    """Outlines of the two labelled IHC images, without their types."""
    true = {}
    for name in ("Bladder1", "Lung1"):
        label = scipy.io.loadmat(shared / "data" / "ihc" / "Labels" / f"{name}.mat")
        nuclei = measure(label["inst_map"].astype(np.int32))
        (tmp_path / "json").mkdir(exist_ok=True)
        write_json(tmp_path / "json" / f"{name}.json", nuclei)
        types = dict(zip(np.unique(label["inst_map"])[1:].tolist(), label["inst_type"].ravel().tolist(), strict=True))
        true |= {(name, str(nucleus_id)): types[nucleus_id] for nucleus_id in nuclei.ids.tolist()}
    images = f"--wsi_dir={shared / 'data' / 'ihc' / 'Images'}"
    assert run(tmp_path, images, "--score", "--hotspot_size=200", "--top_k=2", "--mpp=0.5") == 0
    assert "nuclei have no types: positive is by DAB density" in capsys.readouterr().out
    right = {1: [], 2: []}
    for name in ("Bladder1", "Lung1"):
        with open(tmp_path / "out" / "score" / f"{name}.csv", newline="") as handle:
            for row in csv.DictReader(handle):
                type_id = true[name, row["id"]]
                right[type_id].append((row["class"] != "negative") == (type_id == 1))
    assert len(right[1]) + len(right[2]) == len(true) > 200
    assert np.mean(right[1] + right[2]) > 0.9
    assert np.mean(right[1]) > 0.7  # there are few positive ones: all negative would nearly do


def test_kmeans_of_too_few_nuclei_is_said_and_the_rest_is_there(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((200, 400, 3), 255, np.uint8))
    write_slide(tmp_path / "json", "a", FEW)
    assert run(tmp_path, f"--wsi_dir={tmp_path}", "--score", "--kmeans") == 1
    assert "--kmeans: k-means of three needs positive nuclei" in capsys.readouterr().err
    assert table(tmp_path, "summary.csv")[0]["positive"] == "4"
