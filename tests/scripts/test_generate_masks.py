"""`GenerateMasks.py` as a user calls it: annotations of real images to labels that all other scripts take."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest
import scipy.io
from stubs import disc_labels, write_rgb

import compute_stats
import convert_format
import GenerateMasks
from dataset import get_dataset
from metrics.stats_utils import get_fast_pq
from misc.formats.nuclei_json import write_json
from misc.ihc.stain import DAB_RGB, WHITE
from misc.nuclei_features import nucleus_mask
from models.hovernet.post_proc import measure


def call(folder, *options) -> int:
    places = [f"--{name}_dir={folder / name}" for name in ("image", "annotation", "output")]
    return GenerateMasks.main([*places, *options])


def label(folder, name="a") -> dict:
    return scipy.io.loadmat(folder / "output" / f"{name}.mat")


def write_geojson(path, contours, names) -> None:
    features = []
    for ring, name in zip(contours, names, strict=True):
        points = (np.asarray(ring) + 0.5).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
        features.append({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(features))


@pytest.fixture
def discs(tmp_path):
    """An image, its nuclei, and their JSON as inference writes it."""
    labels = disc_labels((200, 260))
    labels[:, 240:] = 0
    nuclei = measure(labels)
    write_rgb(tmp_path / "image" / "a.b c.png", np.full((200, 260, 3), 200, np.uint8))
    (tmp_path / "json").mkdir()
    slide = {"name": "a.b c.png", "width": 260, "height": 200, "scale": 1.0, "mpp": 0.25}
    write_json(tmp_path / "json" / "a.b c.json", nuclei, header={"slide": slide, "mpp": 0.25})
    return tmp_path, labels


@pytest.mark.parametrize(("to", "suffix"), [("sedeen", ".session.xml"), ("qupath", ".geojson")])
def test_nuclei_come_back_to_the_pixel(discs, to, suffix):
    """JSON, to a session or GeoJSON, to label maps: the same instances."""
    folder, labels = discs
    arguments = [f"--input={folder / 'json'}", f"--output_dir={folder / 'annotation'}", f"--to={to}"]
    if convert_format.main(arguments) != 0:
        pytest.fail("convert_format failed")
    made = sorted((folder / "annotation").rglob(f"*{suffix}"))
    assert made
    if made[0].parent != folder / "annotation":
        made[0].rename(folder / "annotation" / made[0].name)
    assert call(folder, "--untyped") == 0
    found = label(folder, "a.b c")["inst_map"]
    np.testing.assert_array_equal(found > 0, labels > 0)
    for nucleus in np.unique(labels)[1:]:
        assert len(np.unique(found[labels == nucleus])) == 1


@pytest.mark.parametrize("name", ["Test_same/Labels/TCGA-B0-5710-01Z-00-DX1", "Train/Labels/TCGA-HE-7130-01Z-00-DX1"])
def test_real_nuclei_and_types_come_back_from_a_session(kumar, tmp_path, name):
    """Label map, JSON, Sedeen in the lab's pens, label map: one instance each, filled and in one piece, of its type."""
    labels = scipy.io.loadmat(kumar / f"{name}.mat")["inst_map"][300:800, 300:800].astype(np.int32)
    nuclei = measure(labels, labels % 4 + 1)
    slide = {"name": "a.png", "width": 500, "height": 500, "scale": 1.0, "mpp": 0.25}
    write_json(tmp_path / "a.json", nuclei, header={"slide": slide})
    write_rgb(tmp_path / "image" / "a.png", np.zeros((500, 500, 3), np.uint8))
    arguments = [f"--input={tmp_path / 'a.json'}", f"--output_dir={tmp_path / 'annotation'}"]
    assert convert_format.main([*arguments, "--to=sedeen", "--pens=lab"]) == 0
    assert call(tmp_path) == 0
    found = label(tmp_path)
    expected = np.zeros_like(labels)
    masks = [(nuclei.ids[i], *nucleus_mask(nuclei.contour(i))) for i in range(len(nuclei))]
    for nucleus_id, mask, (top, left) in sorted(masks, key=lambda item: -int(item[1].sum())):
        expected[top : top + mask.shape[0], left : left + mask.shape[1]][mask > 0] = nucleus_id
    # what an outline cannot hold: other pieces are not there, holes are filled; the rest is as it was, to the pixel
    np.testing.assert_array_equal(found["inst_map"] > 0, expected > 0)
    pairs = np.unique(np.column_stack([found["inst_map"].ravel(), expected.ravel()]), axis=0)
    assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == found["inst_map"].max() + 1
    assert found["inst_map"].max() > 70
    assert found["inst_type"].ravel().tolist() == (pairs[1:, 1] % 4 + 1).tolist()
    differs = (expected != labels) & (labels > 0) & (expected > 0)
    assert differs.sum() < 0.002 * (labels > 0).sum()


def test_the_real_session_names_each_graphic_that_is_no_nucleus(shared, tmp_path, capsys):
    """Its slide of 27818 x 31316 px is not here: an image of a hundredth of that is annotated instead."""
    write_rgb(tmp_path / "image" / "TUPAC-TE-234.png", np.zeros((313, 278, 3), np.uint8))
    (tmp_path / "annotation").mkdir()
    session = shared / "data" / "annotations" / "TUPAC-TE-234.session.xml"
    (tmp_path / "annotation" / "of the lab.session.xml").symlink_to(session)  # paired by the name it holds
    assert call(tmp_path, "--untyped", "--scale=0.01") == 0
    printed = capsys.readouterr().out
    assert "no nuclei: 1 arrow, 1 point, 1 polyline, 1 ruler, 1 text" in printed
    assert "   1        4" in printed  # two polygons, a rectangle and an ellipse
    assert label(tmp_path, "TUPAC-TE-234")["inst_map"].max() == 4


def test_broken_annotations_stop_nobody_else(tmp_path, capsys):
    square = [[[2, 2], [9, 2], [9, 9], [2, 9]]]
    for name in ("good", "null"):
        write_rgb(tmp_path / "image" / f"{name}.png", np.zeros((30, 30, 3), np.uint8))
        write_geojson(tmp_path / "annotation" / f"{name}.geojson", square, ["weak"])
    (tmp_path / "annotation" / "null.geojson").write_text('{"features": null}')
    (tmp_path / "annotation" / "deep.geojson").write_text("[" * 100_000)
    (tmp_path / "annotation" / "alone.geojson").write_text("[]")
    assert call(tmp_path) == 1
    printed = capsys.readouterr()
    assert "without a partner: alone.geojson\n" in printed.out
    assert "failed: deep.geojson: " in printed.err
    assert "1 nucleus in 1 label map, 0 there already (--overwrite replaces them), 2 failed" in printed.out
    assert "failed: null.png: " in printed.err
    assert "null.geojson: not GeoJSON: its features are no list" in printed.err
    assert "Traceback" not in printed.err
    assert label(tmp_path, "good")["inst_type"].tolist() == [[2]]
    (tmp_path / "annotation" / "null.geojson").unlink()
    assert call(tmp_path, "--overwrite") == 1  # a broken one may belong to any image
    (tmp_path / "annotation" / "deep.geojson").unlink()
    assert call(tmp_path, "--overwrite") == 1  # and one without a partner is a failure, too


def test_imagescope_to_labels_to_scores(shared, kumar, tmp_path, capsys):
    name = "TCGA-B0-5710-01Z-00-DX1"
    for source, target in (
        (kumar / "Test_same" / "Images" / f"{name}.png", "image"),
        (shared / "data" / "annotations" / f"{name}.xml", "annotation"),
        (kumar / "Test_same" / "Labels" / f"{name}.mat", "true"),
    ):
        (tmp_path / target).mkdir()
        (tmp_path / target / source.name).symlink_to(source)
    (tmp_path / "mapping.json").write_text('{"#00ff00": 2}')
    assert call(tmp_path, f"--mapping={tmp_path / 'mapping.json'}") == 0
    printed = capsys.readouterr().out
    assert "   2      359" in printed
    assert "1524 px hidden under smaller nuclei" in printed
    ann = get_dataset("mat").load_ann(str(tmp_path / "output" / f"{name}.mat"), with_type=True)
    assert ann.shape == (1000, 1000, 2)
    assert set(np.unique(ann[..., 1])) == {0, 2}
    arguments = [f"--pred_dir={tmp_path / 'output'}", f"--true_dir={tmp_path / 'true'}"]
    assert compute_stats.main(["--mode=instance", *arguments]) == 0
    assert (
        compute_stats.main(["--mode=type", f"--pred_dir={tmp_path / 'output'}", f"--true_dir={tmp_path / 'output'}"])
        == 0
    )
    true = scipy.io.loadmat(tmp_path / "true" / f"{name}.mat")["inst_map"]
    assert get_fast_pq(true, label(tmp_path, name)["inst_map"])[0][0] > 0.99


def test_unknown_classes_fail_one_image_and_not_the_others(tmp_path, capsys):
    for name, names in (("good", ["negative"]), ("bad", ["what"])):
        write_rgb(tmp_path / "image" / f"{name}.png", np.zeros((30, 30, 3), np.uint8))
        write_geojson(tmp_path / "annotation" / f"{name}.geojson", [[[2, 2], [9, 2], [9, 9], [2, 9]]], names)
    write_rgb(tmp_path / "image" / "alone.png", np.zeros((30, 30, 3), np.uint8))
    (tmp_path / "image" / "rois.csv").write_text("slide,file")  # what `extract_patches.py rois` leaves there
    assert call(tmp_path) == 1
    printed = capsys.readouterr()
    assert "rois.csv" not in printed.out + printed.err
    assert "bad.png: no type for `what` (1)" in printed.err
    assert "without a partner: alone.png" in printed.out
    assert label(tmp_path, "good")["inst_type"].tolist() == [[1]]
    assert not (tmp_path / "output" / "bad.mat").exists()


def test_p05_labels_that_are_there_are_kept(tmp_path, capsys):
    write_rgb(tmp_path / "image" / "a.png", np.zeros((30, 30, 3), np.uint8))
    write_geojson(tmp_path / "annotation" / "a.geojson", [[[2, 2], [9, 2], [9, 9], [2, 9]]], ["weak"])
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "a.mat").write_bytes(b"mine")
    assert call(tmp_path) == 0
    assert (tmp_path / "output" / "a.mat").read_bytes() == b"mine"
    assert call(tmp_path, "--overwrite") == 0
    assert label(tmp_path)["inst_map"].max() == 1


def test_scale_halves_the_contours(tmp_path):
    write_rgb(tmp_path / "image" / "a.png", np.zeros((30, 30, 3), np.uint8))
    write_geojson(tmp_path / "annotation" / "a.geojson", [[[10, 10], [29, 10], [29, 29], [10, 29]]], ["weak"])
    assert call(tmp_path, "--scale=0.5") == 0
    assert (label(tmp_path)["inst_map"] > 0).sum() == 100  # 20 px square to 10 px square


def test_p12_an_image_without_nuclei_is_a_label_too(tmp_path, capsys):
    write_rgb(tmp_path / "image" / "a.png", np.zeros((30, 30, 3), np.uint8))
    write_geojson(tmp_path / "annotation" / "a.geojson", [], [])
    assert call(tmp_path) == 0
    assert "images without a nucleus: a.png" in capsys.readouterr().out
    assert not label(tmp_path)["inst_map"].any()


@pytest.mark.parametrize("kmeans", [False, True])
def test_staining_tells_positive_from_negative(shared, tmp_path, capsys, kmeans):
    """Contours of the two real IHC images, without any class: DAB density alone finds the labelled one."""
    right = total = 0
    for name in ("Bladder1", "Lung1"):
        truth = scipy.io.loadmat(shared / "data" / "ihc" / "Labels" / f"{name}.mat")["inst_map"].astype(np.int32)
        nuclei = measure(truth)
        rings = [nuclei.contour(i) for i in range(len(nuclei))]
        write_geojson(tmp_path / "annotation" / f"{name}.geojson", rings, [""] * len(rings))
        (tmp_path / "image").mkdir(exist_ok=True)
        (tmp_path / "image" / f"{name}.png").symlink_to(shared / "data" / "ihc" / "Images" / f"{name}.png")
    assert call(tmp_path, "--intensity", *(["--kmeans"] if kmeans else [])) == 0
    for name in ("Bladder1", "Lung1"):
        truth = scipy.io.loadmat(shared / "data" / "ihc" / "Labels" / f"{name}.mat")
        found = label(tmp_path, name)
        xy = np.rint(found["inst_centroid"]).astype(int)
        ids = truth["inst_map"][xy[:, 1], xy[:, 0]].astype(int)
        inside = ids > 0
        positive = truth["inst_type"].ravel()[np.searchsorted(np.unique(truth["inst_map"])[1:], ids[inside])] == 1
        right += ((found["inst_type"].ravel()[inside] > 1) == positive).sum()
        total += inside.sum()
    assert right / total > 0.9
    with open(tmp_path / "output" / "intensity.csv") as handle:
        assert len(list(csv.DictReader(handle))) >= total
    assert cv2.imread(str(tmp_path / "output" / "intensity.png")) is not None
    assert "H-score" in capsys.readouterr().out


@pytest.fixture
def stained(tmp_path):
    """Two images of three nuclei each, of DAB density 0, 0.3 and 0.5, and 0, 0.5 and 0.9; the names have commas."""
    for name, densities in (("a, b", (0, 0.3, 0.5)), ("c", (0, 0.5, 0.9))):
        image = np.full((30, 90, 3), 255, np.uint8)
        rings = [[[30 * i + 5, 5], [30 * i + 20, 5], [30 * i + 20, 20], [30 * i + 5, 20]] for i in range(3)]
        for i, dab in enumerate(densities):
            image[5:21, 30 * i + 5 : 30 * i + 21] = np.rint(WHITE * 10 ** -(dab * np.array(DAB_RGB)))
        write_rgb(tmp_path / "image" / f"{name}.png", image)
        write_geojson(tmp_path / "annotation" / f"{name}.geojson", rings, [""] * 3)
    return tmp_path


def rows(folder, name):
    with open(folder / "output" / name, newline="") as handle:
        return list(csv.DictReader(handle))


def test_intensities_of_images_whose_labels_are_there_stay_in_the_tables(stained, capsys):
    assert call(stained, "--intensity") == 0
    first = {name: (stained / "output" / name).read_bytes() for name in ("intensity.csv", "intensity_summary.csv")}
    assert [(row["image"], row["nucleus"], row["class"]) for row in rows(stained, "intensity.csv")] == [
        *(("a, b", "1", "negative"), ("a, b", "2", "weak"), ("a, b", "3", "moderate")),
        *(("c", "1", "negative"), ("c", "2", "moderate"), ("c", "3", "strong")),
    ]
    one, two = rows(stained, "intensity_summary.csv")
    wanted = {"image": "a, b", "nuclei": "3", "dab_negative": "1", "dab_weak": "1", "dab_moderate": "1"}
    wanted |= {"dab_strong": "0", "h_score": "100", "ki67_index": "0.666667", "weak_from_od": "0.2"}
    assert {key: one[key] for key in wanted} == wanted
    assert float(one["ki67_index_low"]) < 2 / 3 < float(one["ki67_index_high"])
    assert (two["image"], two["h_score"]) == ("c", "166.667")
    (stained / "output" / "c.mat").unlink()
    kept = (stained / "output" / "a, b.mat").stat().st_mtime_ns
    capsys.readouterr()
    assert call(stained, "--intensity") == 0
    printed = capsys.readouterr().out
    assert "3 nuclei in 1 label map, 1 there already" in printed
    assert "2 images: 6 nuclei" in printed
    assert {name: (stained / "output" / name).read_bytes() for name in first} == first
    assert (stained / "output" / "a, b.mat").stat().st_mtime_ns == kept
    assert label(stained, "c")["inst_type"].ravel().tolist() == [1, 3, 4]


def test_what_is_left_out_is_no_nucleus_with_intensity(stained, capsys):
    """The lab's outline of the tumour bed and what --mapping leaves out; other classes are nuclei."""
    path = stained / "annotation" / "c.geojson"
    features = json.loads(path.read_text())
    for feature, name in zip(features, ("what", "ink", ""), strict=True):
        feature["properties"]["classification"] = {"name": name}
    features[2]["properties"]["classification"]["color"] = [0, 255, 255]
    path.write_text(json.dumps(features))
    (stained / "mapping.json").write_text('{"ink": null}')
    assert call(stained, "--intensity", f"--mapping={stained / 'mapping.json'}") == 0
    assert label(stained, "c")["inst_type"].ravel().tolist() == [1]
    assert "2 left out" in capsys.readouterr().out


def test_labels_that_are_there_and_say_something_else_are_named(stained, capsys):
    assert call(stained, "--intensity") == 0
    assert call(stained, "--intensity", "--thresholds=0.1,0.2,0.3") == 1
    error = capsys.readouterr()
    assert "a, b.mat has other types than these annotations and options give; give --overwrite" in error.err
    assert "c.mat has other types" in error.err
    assert "0 nuclei in 0 label maps, 2 there already" in error.out
    assert label(stained, "c")["inst_type"].ravel().tolist() == [1, 3, 4]
    assert call(stained, "--intensity", "--thresholds=0.1,0.2,0.3", "--overwrite") == 0
    assert label(stained, "c")["inst_type"].ravel().tolist() == [1, 4, 4]


def test_kmeans_over_labels_that_are_there_is_refused(stained, capsys):
    assert call(stained, "--intensity", "--kmeans") == 0
    assert label(stained, "c")["inst_type"].ravel().tolist() == [1, 3, 4]
    (stained / "output" / "c.mat").unlink()
    capsys.readouterr()
    assert call(stained, "--intensity", "--kmeans") == 1
    error = capsys.readouterr().err
    assert "(1 of 2, a, b.png is one): give --overwrite" in error
    assert error.count("\n") == 1
    assert not (stained / "output" / "c.mat").exists()
    assert call(stained, "--intensity", "--kmeans", "--overwrite") == 0


def test_too_few_positive_nuclei_for_kmeans_are_said_in_one_line(stained, capsys):
    assert call(stained, "--intensity", "--kmeans", "--thresholds=0.8,0.9,1") == 1
    error = capsys.readouterr().err
    assert "GenerateMasks.py: k-means of three needs positive nuclei" in error
    assert error.count("\n") == 1
    assert not list((stained / "output").glob("*.mat"))


def test_bad_options_are_one_line(tmp_path, capsys, subtests):
    cases = [
        (["--kmeans"], "need --intensity"),
        (["--scale=x"], "--scale"),
        (["--scale=-1"], "--scale is a number above 0, got `-1`"),
        (["--intensity", "--thresholds=3,2,1"], "rising"),
        (["--type_info_path=no.json"], "no.json"),
        (["--mapping=a.json", "--untyped"], "--mapping has no effect with --untyped"),
        (["--type_info_path=a.json", "--untyped"], "--type_info_path has no effect"),
    ]
    for options, message in cases:
        with subtests.test(options=options, message=message):
            assert call(tmp_path, *options) == 1
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
