"""`run_ihc.py` as a user calls it: on labelled images, with the network once, and with what it found for the rest."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from skimage.measure import points_in_poly

import run_ihc
from misc.formats.nuclei_json import read_json, write_json
from misc.formats.sedeen import read_session
from misc.ihc import panel
from misc.ihc.dab import files
from misc.ihc.scores import CLASS_NAMES, NEGATIVE, h_score, wilson_interval
from misc.nuclei import Nuclei
from misc.nuclei_features import pixel_areas

NAMES = ["Bladder1", "Lung1"]


def call(images, out, *options):
    common = ["--mpp=0.25", "--marker=ki67", "--gpu=", "--nr_post_proc_workers=0"]
    return run_ihc.main([f"--input_dir={images}", f"--output_dir={out}", *common, *options])


def table(out, slide=None, name="scores.csv"):
    with open(out / name, encoding="utf-8", newline="") as handle:
        return [row for row in csv.DictReader(handle) if slide is None or row["slide"] == slide]


@pytest.fixture(scope="session")
def ihc(shared, tmp_path_factory):
    """A folder with two images, a broken one, a dark one and a text, and what a run over it made, in `out`."""
    root = tmp_path_factory.mktemp("ihc")
    (root / "in").mkdir()
    for name in NAMES:
        shutil.copy(shared / "data" / "ihc" / "Images" / f"{name}.png", root / "in")
    (root / "in" / "broken.png").write_bytes((root / "in" / "Lung1.png").read_bytes()[:9000])
    dark = np.zeros((300, 300, 3), np.uint8)
    cv2.circle(dark, (150, 150), 40, (255, 60, 60), -1)
    cv2.imwrite(str(root / "in" / "dapi.png"), dark)
    (root / "in" / "notes.txt").write_text("counted by hand: 10 %")
    assert call(root / "in", root / "out") == 1  # two files are bad
    (root / "good").mkdir()
    for name in NAMES:
        shutil.copy(root / "in" / f"{name}.png", root / "good")
    return root


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(panel, "MIN_SIDE_PX", 100)


def scored(row, classes):
    """Check a row of the table against counting its nuclei one by one."""
    counts = {c: sum(1 for own in classes if own == c) for c in CLASS_NAMES}
    total, positive = sum(counts.values()), sum(counts.values()) - counts[NEGATIVE]
    assert [int(row[name]) for name in CLASS_NAMES.values()] == list(counts.values())
    assert int(row["nuclei"]) == total
    if total:
        low, high = wilson_interval(positive, total)
        expected = (100 * positive / total, 100 * low, 100 * high, h_score(counts))
        columns = ("positive_percent", "positive_percent_low", "positive_percent_high", "h_score")
        assert [float(row[name]) for name in columns] == pytest.approx(expected, rel=1e-5)
    else:
        assert row["positive_percent"] == row["h_score"] == ""


def test_a_folder_of_images_in_one_command(ihc, capsys):
    out = ihc / "out"
    failed = {row["slide"]: row["failed"] for row in table(out) if row["failed"]}
    assert sorted(failed) == ["broken", "dapi"]
    assert "truncated" in failed["broken"]
    assert "fluorescence" in failed["dapi"]
    for name in NAMES:
        nuclei, header = read_json(out / "json" / f"{name}.json")
        assert header["types"]["4"][0] == "strong"
        row, spot = table(out, name)
        scored(row, nuclei.types)
        assert len(nuclei) == len(read_json(out / "segmentation" / "json" / f"{name}.json")[0])
        assert (row["scope"], row["global"], spot["scope"], spot["rank"]) == ("slide", "1", "hot spot", "1")
        assert row["hot_spot_percent"] == spot["positive_percent"]
        assert 0 < float(spot["tissue_percent"]) < 70  # the image is smaller than a field
        assert "less than 70 % of it is tissue" in spot["flags"]
        features = json.loads((out / "qupath" / f"{name}.geojson").read_text())["features"]
        assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in features)
        said = [feature["properties"]["classification"]["name"] for feature in features]
        assert {c: said.count(c) for c in CLASS_NAMES.values()} == {c: int(row[c]) for c in CLASS_NAMES.values()}
        assert all("dab_median_od" in feature["properties"]["measurements"] for feature in features)
        listed = table(out, name=f"nuclei/{name}.csv")
        assert [r["class"] for r in listed] == [panel.CLASS_TYPES[c][0] for c in nuclei.types]
        assert float(listed[0]["x_px"]) == pytest.approx(nuclei.centroids_xy[0, 0], abs=1e-3)
        graphics = read_session(out / "sedeen" / f"{name}.session.xml").graphics
        assert [g.description for g in graphics].count("strong") == int(row["strong"])
        for kind in ("overlay", "density", "histogram"):
            assert cv2.imread(str(out / kind / f"{name}.png")).std() > 10
    assert (out / "cohort_index.png").is_file()
    assert (out / "cohort_classes.png").is_file()


def test_a_second_run_keeps_what_is_there_and_other_thresholds_need_no_pixel(ihc, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(ihc / "out", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    assert call(ihc / "good", out) == 0
    assert "0 scored, 2 there already, 0 failed" in capsys.readouterr().out
    assert call(ihc / "good", out, f"--json_dir={out}/segmentation/json", "--thresholds=0.3,0.4,0.5") == 0
    text = capsys.readouterr().out
    assert "2 scored, 0 there already" in text
    rows = {name: table(out, name)[0] for name in NAMES}
    for name, row in rows.items():
        percent, low, high = (f"{float(row[f'positive_percent{end}']):.1f}" for end in ("", "_low", "_high"))
        assert (
            f"{name}: {row['nuclei']} nuclei, {percent} % positive ({low}-{high}), H-score {float(row['h_score']):.0f}"
            in text
        )
    same = {path for path, when in before.items() if path.stat().st_mtime_ns == when}
    assert {path.parent.name for path in same} == {"measured", "json", "mat", "overlay"}
    assert {path for path in before if path.parent.name == "measured" or "segmentation" in path.parts} == same


def test_classes_by_k_means_of_all_images_or_by_the_types_of_the_network(ihc, tmp_path, capsys):
    nuclei = tmp_path / "json"
    nuclei.mkdir()
    for name in NAMES:
        found, _ = read_json(ihc / "out" / "segmentation" / "json" / f"{name}.json")
        kinds = np.where(np.arange(len(found)) % 4 == 0, 2, 1).astype(np.int32)
        header = {"types": {"1": ["Negative", [0, 0, 255]], "2": ["Positive", [255, 0, 0]]}}
        write_json(nuclei / f"{name}.json", replace(found, types=kinds), header=header)
    assert call(ihc / "good", tmp_path / "out", f"--json_dir={nuclei}", "--classes=types") == 0
    for name in NAMES:
        row = table(tmp_path / "out", name)[0]
        assert int(row["negative"]) == int(row["nuclei"]) - -(-int(row["nuclei"]) // 4)
        assert row["min_contrast_od"] == "0"  # the network decides
    assert call(ihc / "good", tmp_path / "out", f"--json_dir={nuclei}", "--classes=kmeans") == 0
    assert "k-means of 2 slides: weak, moderate, strong from 0.100" in capsys.readouterr().out
    limits = {
        tuple(row[f"{name}_from_od"] for name in ("weak", "moderate", "strong")) for row in table(tmp_path / "out")
    }
    assert len(limits) == 1
    assert next(iter(limits)) != ("0.1", "0.3", "0.5")
    for name in NAMES:
        write_json(nuclei / f"{name}.json", replace(found, types=None, type_prob=None))
    assert call(ihc / "good", tmp_path / "two", f"--json_dir={nuclei}", "--classes=types") == 1
    assert "needs a network with types" in table(tmp_path / "two", "Lung1")[0]["failed"]


def test_only_strong_nuclei_need_no_contrast_with_the_ring_around_them(ihc, tmp_path, capsys):
    options = f"--json_dir={ihc / 'out' / 'segmentation' / 'json'}", "--pattern=Bladder1*", "--min_contrast=9"
    assert call(ihc / "good", tmp_path, *options) == 0
    assert "weak and moderate: at least 9 OD above the ring" in capsys.readouterr().out
    strict, usual = table(tmp_path)[0], table(ihc / "out", "Bladder1")[0]
    assert int(usual["weak"]) + int(usual["moderate"]) > 0
    assert (strict["weak"], strict["moderate"], strict["strong"]) == ("0", "0", usual["strong"])
    assert strict["nuclei"] == usual["nuclei"]
    assert (strict["min_contrast_od"], usual["min_contrast_od"]) == ("9", "0.05")


def test_small_nuclei_are_outlined_and_in_no_share(ihc, tmp_path, capsys):
    """All other tests run with the default; 0 counts all nuclei, a large value none."""
    options = f"--json_dir={ihc / 'out' / 'segmentation' / 'json'}", "--pattern=Bladder1*"
    found, _ = read_json(ihc / "out" / "segmentation" / "json" / "Bladder1.json")
    areas_um2 = pixel_areas(found) * 0.25**2
    for limit in (0, 10, 30, 1e6):
        assert call(ihc / "good", tmp_path, *options, f"--min_area={limit}") == 0
        said, row = capsys.readouterr().out, table(tmp_path)[0]
        counted = np.count_nonzero(areas_um2 >= limit)
        assert int(row["nuclei"]) == counted
        assert ("smaller than --min_area: in no share" in said) == (counted < len(found))
        assert (f"counted: nuclei of at least {limit:g} um2" in said) == (limit > 0)
        assert ("most nuclei are that small: is 0.25 um/px right?" in said) == (2 * counted < len(found))
        kept, _ = read_json(tmp_path / "json" / "Bladder1.json")
        np.testing.assert_array_equal(kept.types == 0, areas_um2 < limit)
        assert len(kept) == len(found)


def annotation(name, label, rings):
    rings = [[*ring, ring[0]] for ring in rings]
    properties = {"objectType": "annotation", "name": name, "classification": {"name": label, "color": [1, 2, 3]}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


REGIONS = {
    "left": ("Tumor", [box(0, 0, 300.3, 512), box(100.2, 100.2, 200.2, 260.2)]),
    "right": ("Tumor", [box(200.7, 50.1, 511, 500)]),
    "corner": ("Tumor", [box(0, 509, 3, 512)]),
    "dead": ("Necrosis", [box(250.4, 300.4, 420.4, 512)]),
    "out": ("Stroma", [box(0, 0, 50, 50)]),
}


def drawn_with_holes(name, xy):
    rings = [points_in_poly(xy + 0.5, np.array(ring)) for ring in REGIONS[name][1]]
    return rings[0] & ~rings[1] if len(rings) > 1 else rings[0]


def test_scores_of_regions_are_those_of_counting_and_come_back_from_the_files_that_people_edit(ihc, tmp_path):
    (tmp_path / "regions").mkdir()
    features = [annotation(name, label, rings) for name, (label, rings) in REGIONS.items()]
    (tmp_path / "regions" / "Bladder1.geojson").write_text(json.dumps(features))
    nuclei = f"--json_dir={ihc / 'out' / 'segmentation' / 'json'}"
    options = (nuclei, "--pattern=Bladder1.png", "--include=Tumor", "--exclude=necrosis", "--min_nuclei=20")
    options = (*options, "--hotspot_field_mm2=0.002", "--top_k=2")
    assert call(ihc / "good", tmp_path / "one", f"--regions={tmp_path / 'regions'}", *options) == 0
    rows = {(row["scope"], row["name"]): row for row in table(tmp_path / "one")}
    found, _ = read_json(tmp_path / "one" / "json" / "Bladder1.json")
    inside = {name: drawn_with_holes(name, found.centroids_xy) for name in REGIONS}
    counted = ~inside["dead"]
    together = (inside["left"] | inside["right"] | inside["corner"]) & counted
    for name in ("left", "right", "corner"):
        scored(rows["region", name], found.types[inside[name] & counted])
    expected = {"slide": counted, "all regions": together, "rest": counted & ~together, "excluded": ~counted}
    for scope, which in expected.items():
        scored(rows[scope, ""], found.types[which])
        assert bool(rows[scope, ""]["global"]) == (scope == "all regions")
    assert (inside["left"] & inside["right"] & counted).any()
    assert rows["region", "corner"]["flags"] == "no nuclei"
    assert ("region", "out") not in rows
    boxes = [
        [float(row[k]) for k in ("x0_px", "y0_px", "x1_px", "y1_px")]
        for key, row in rows.items()
        if key[0] == "hot spot"
    ]
    for row, (x0, y0, x1, y1) in zip([row for key, row in rows.items() if key[0] == "hot spot"], boxes, strict=True):
        x, y = found.centroids_xy.T
        scored(row, found.types[(x >= x0) & (x < x1) & (y >= y0) & (y < y1) & together])
    for kind, out in (("regions", "two"), ("sedeen", "three")):
        assert call(ihc / "good", tmp_path / out, f"--regions={tmp_path / 'one' / kind}", *options) == 0
        again = {(row["scope"], row["name"]): row for row in table(tmp_path / out)}
        assert again.keys() == rows.keys()
        for key in rows:
            for column in ("nuclei", *CLASS_NAMES.values(), "positive_percent", "h_score"):
                assert again[key][column] == rows[key][column], (kind, key)


def test_what_a_slide_lacks_is_said(ihc, shared, tmp_path, capsys):
    """H&E by mistake, no positive nucleus, no nuclei, no region of a class that is asked for."""
    folder, nuclei = tmp_path / "in", tmp_path / "json"
    folder.mkdir(), nuclei.mkdir()
    found, header = read_json(ihc / "out" / "segmentation" / "json" / "Bladder1.json")
    pink = cv2.imread(str(sorted((shared / "data" / "kumar" / "Train" / "Images").iterdir())[0]))[:512, :512]
    bladder = cv2.imread(str(ihc / "good" / "Bladder1.png"))
    blue = np.array([90, 80, 60])[None, None] + bladder // 3  # nothing is brown
    pale = np.full((512, 512, 3), 235, np.uint8)
    header = {"types": header["types"]}
    for name, image, of in (("he", pink, found), ("blue", blue, found), ("empty", pale, Nuclei.empty())):
        cv2.imwrite(str(folder / f"{name}.png"), image.astype(np.uint8))
        write_json(nuclei / f"{name}.json", of, header=header)
    assert call(folder, tmp_path / "out", f"--json_dir={nuclei}", "--thresholds=0.4,0.5,0.6", "--stain=default") == 0
    text = capsys.readouterr().out
    assert "empty: no nuclei" in text
    large = np.count_nonzero(pixel_areas(found) * 0.25**2 >= 10)  # --min_area
    none = f"{100 * wilson_interval(0, large)[1]:.1f}"
    assert f"blue: {large} nuclei, 0.0 % positive (0.0-{none}), H-score 0, no hot spot" in text
    assert "no positive nucleus, so no hot spot" in table(tmp_path / "out", "blue")[0]["flags"]
    assert "looks like H&E" in table(tmp_path / "out", "he")[0]["flags"]
    assert table(tmp_path / "out", "empty")[0]["flags"].startswith("no nuclei")
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "blue.geojson").write_text(json.dumps([annotation("a", "Stroma", [box(0, 0, 9, 9)])]))
    options = (f"--json_dir={nuclei}", f"--regions={tmp_path / 'regions'}", "--include=Tumor")
    assert call(folder, tmp_path / "out", *options) == 1
    failed = {row["slide"]: row["failed"] for row in table(tmp_path / "out")}
    assert "no region of class Tumor (--include); the classes drawn are: Stroma" in failed["blue"]
    assert "--regions has no file of it" in failed["he"]


def test_a_slide_gives_an_overview_and_a_picture_of_each_hot_spot_in_one_range_of_colours(ihc, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_PX", 512 * 512)
    folder, nuclei = tmp_path / "in", tmp_path / "json"
    folder.mkdir(), nuclei.mkdir()
    image = cv2.cvtColor(cv2.imread(str(ihc / "good" / "Bladder1.png")), cv2.COLOR_BGR2RGB)
    found, _ = read_json(ihc / "out" / "segmentation" / "json" / "Bladder1.json")
    slide = np.full((700, 1300, 3), 240, np.uint8)
    slide[100:612, 700:1212] = image
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", "photometric": "rgb", "tile": (256, 256)}
    tifffile.imwrite(folder / "slide.tif", slide, **options)
    shutil.copy(ihc / "good" / "Bladder1.png", folder)
    header = {"slide": {"name": "slide.tif", "width": 1300, "height": 700, "scale": 1.0, "mpp": 0.25, "bounds": None}}
    write_json(nuclei / "slide.json", found.shift(100, 700), mag=40, header=header)
    shutil.copy(ihc / "out" / "segmentation" / "json" / "Bladder1.json", nuclei)
    out = tmp_path / "out"
    rules = ("--hotspot_field_mm2=0.002", "--min_nuclei=20", "--top_k=2", "--hotspot_shape=circle")
    assert call(folder, out, f"--json_dir={nuclei}", *rules) == 0
    whole, *spots = table(out, "slide")
    assert all(float(spot["tissue_percent"]) > 69 for spot in spots)
    regions = json.loads((out / "regions" / "slide.geojson").read_text())["features"]
    measured = [region["properties"].get("measurements", {}) for region in regions]
    shown = [values["tissue %"] for values in measured if "tissue %" in values]
    assert shown == pytest.approx([float(spot["tissue_percent"]) for spot in spots], abs=0.01)
    assert float(whole["area_mm2"]) == pytest.approx(512**2 * 0.25**2 / 1e6, rel=0.35)
    assert [row["scope"] for row in spots] == ["hot spot"] * 2
    names = sorted(path.name for path in (out / "overlay").glob("slide*"))
    assert names == ["slide.png", "slide_hotspot1.png", "slide_hotspot2.png"]
    about = [json.loads(str(np.load(out / "density" / f"{name}.npz")["about"])) for name in ("slide", "Bladder1")]
    assert about[0]["drawn_to"] == about[1]["drawn_to"] > 0
    glass = cv2.imread(str(out / "density" / "slide.png"))[200:, 50:500]
    assert np.abs(glass.astype(int) - glass[..., :1]).max() == 0  # grey: not coloured


def test_two_runs_are_compared(ihc, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(ihc / "out", out)
    theirs = {
        name: float(table(out, name)[0]["positive_percent"]) - shift for name, shift in zip(NAMES, (1, 3), strict=True)
    }
    rows = [f"{name},{value}" for name, value in theirs.items()]
    (tmp_path / "hand.csv").write_text("\n".join(["slide,positive_percent", *rows, "other,5"]))
    assert call(ihc / "good", out, f"--compare={tmp_path / 'hand.csv'}") == 0
    text = capsys.readouterr().out
    assert "bias +2.00 points, limits of agreement -0.77 to 4.77" in text
    assert "in one table only: other" in text
    assert [float(row["difference_points"]) for row in table(out, name="compare.csv")] == pytest.approx(
        [1, 3], abs=1e-4
    )
    (row,) = table(out, name="agreement.csv")
    assert (row["slides"], float(row["bias_points"])) == ("2", pytest.approx(2, abs=1e-4))
    assert (out / "agreement.png").is_file()
    (tmp_path / "hand.csv").write_text("slide,positive_percent\nLung1,5")
    assert call(ihc / "good", out, f"--compare={tmp_path / 'hand.csv'}") == 1
    assert "1 slides have an index in both tables" in capsys.readouterr().err


def test_images_may_lie_in_the_output_folder_and_results_in_the_input_folder(ihc, tmp_path):
    shutil.copytree(ihc / "good", tmp_path / "study" / "images")
    (tmp_path / "study" / "images" / "scores").mkdir()
    for output_dir in (tmp_path / "study", tmp_path / "study" / "images" / "scores"):
        found = run_ihc.find_inputs(tmp_path / "study" / "images", "*", output_dir, None)
        assert found.names == sorted(NAMES)


def test_options_that_make_no_sense_are_one_line(ihc, tmp_path, capsys):
    (tmp_path / "no.csv").write_text("a,b\n1,2")
    for option, said in (
        ("--marker=her2", "membranes"),
        ("--marker=cd8", "there are ki67"),
        ("--stain=blue", "--stain is default, auto or r,g,b:r,g,b"),
        ("--classes=hand", "--classes is od, kmeans, types"),
        ("--min_tissue=2", "--min_tissue is a share from 0 to 1"),
        ("--min_contrast=-1", "--min_contrast is a number from 0 on"),
        ("--min_area=-1", "--min_area is a number from 0 on"),
        ("--thresholds=0.3,0.2,0.1", "rising"),
        ("--thresholds=a", "--thresholds takes three numbers"),
        ("--include=Tumor", "give --regions"),
        ("--regions=nowhere", "no such folder: nowhere"),
        ("--compare=nowhere.csv", "nowhere.csv"),
        (f"--compare={tmp_path / 'no.csv'}", "columns slide and positive_percent"),
        ("--vmax=-1", "--vmax is a number above 0"),
        ("--top_k=many", "--top_k is a whole number above 0"),
        ("--pattern=*.svs", "no image or slide matches"),
        (f"--output_dir={ihc / 'good'}", "holds the images: give --output_dir a folder of its own"),
    ):
        argv = [f"--input_dir={ihc / 'good'}", f"--json_dir={tmp_path}", option]
        argv += [] if option.startswith("--output_dir") else [f"--output_dir={tmp_path / 'out'}"]
        assert run_ihc.main(argv) == 1
        error = capsys.readouterr().err
        assert said in error, option
        assert error.count("\n") == 1
