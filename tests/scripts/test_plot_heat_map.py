"""The density map script from the command line, on small slides whose counts can be checked by eye."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from docopt import docopt

import plot_heat_map
from misc.formats.sedeen import read_session

ROOT = Path(__file__).resolve().parents[2]


def nucleus(x, y, type_id=2, radius=3):
    x, y = float(x), float(y)
    left, top, right, bottom = (int(v) for v in (x - radius, y - radius, x + radius, y + radius))
    return {
        "bbox": [[top, left], [bottom + 1, right + 1]],
        "centroid": [x, y],
        "contour": [[left, top], [right, top], [right, bottom], [left, bottom]],
        "type_prob": None if type_id is None else 1.0,
        "type": type_id,
    }


def write_slide(folder, name, nuclei, mag=None, **header):
    folder.mkdir(exist_ok=True)
    text = {"mag": mag, **header, "nuc": {str(i + 1): n for i, n in enumerate(nuclei)}}
    (folder / f"{name}.json").write_text(json.dumps(text))


def run(tmp_path, *options):
    return plot_heat_map.main([f"--json_dir={tmp_path / 'json'}", f"--output_dir={tmp_path / 'out'}", *options])


def table(tmp_path, name):
    with open(tmp_path / "out" / name, newline="") as handle:
        return list(csv.DictReader(handle))


# Three positive nuclei near (25, 25), one near (325, 75), negatives elsewhere; the slide is 400 x 200 px.
NEGATIVE = [nucleus(25, 40, 1), nucleus(399, 199, 1)]
FEW = [nucleus(20, 20), nucleus(30, 20, 3), nucleus(25, 30, 4), nucleus(325, 75), *NEGATIVE]
SLIDE = {"slide": {"name": "one.two.svs", "width": 400, "height": 200, "scale": 1.0, "mpp": 0.5}, "mpp": 0.5}


def test_the_text_of_the_script_gives_these_options_and_defaults():
    args = docopt(plot_heat_map.__doc__, ["--json_dir=a", "--output_dir=b"])
    expected = {"--tile_size": "50", "--positive_types": None, "--top_k": "5", "--hotspot_size": "1000"}
    expected |= {"--sigma": "0.8", "--thresholds": "0.2,0.4,0.6", "--wsi_dir": None, "--hotspot_um": None}
    expected |= {"--score": False, "--kmeans": False, "--ome_tiff": False, "--overwrite": False, "--mpp": None}
    expected |= {"--scale": None, "--type_info_path": None}
    assert {key: args[key] for key in expected} == expected
    assert len(args) == len(expected) + 5  # --json_dir, --output_dir, --pattern, --no_report, --help


def test_a_slide_with_everything_in_its_json(tmp_path, capsys):
    slide = SLIDE | {"slide": SLIDE["slide"] | {"tissue_share": 0.25}}
    write_slide(tmp_path / "json", "one.two", FEW, 20, **slide)
    assert run(tmp_path, "--hotspot_size=100", "--top_k=2", "--ome_tiff") == 0
    assert "1 of 1 slide mapped (6 nuclei, 2 hot spots" in capsys.readouterr().out
    (row,) = table(tmp_path, "summary.csv")
    wanted = {"slide": "one.two", "nuclei": "6", "positive": "4", "positive_share": "0.666667", "slide_mm2": "0.02"}
    wanted |= {"nuclei_per_slide_mm2": "300", "positive_per_slide_mm2": "200", "tissue_mm2": "0.005"}
    wanted |= {"nuclei_per_tissue_mm2": "1200", "positive_per_tissue_mm2": "800"}
    wanted |= {"hot_spots": "2", "hot_spot_share": "1", "failed": ""}
    wanted |= {"type_1": "2", "type_2": "2", "type_3": "1", "type_4": "1", "type_4_share": "0.166667"}
    assert {key: row[key] for key in wanted} == wanted
    first, second = table(tmp_path, "hotspots.csv")
    wanted = {"rank": "1", "x0_px": "0", "y0_px": "0", "x1_px": "100", "y1_px": "100", "x1_mm": "0.05"}
    wanted |= {"nuclei": "4", "positive": "3", "positive_share": "0.75", "area_mm2": "0.0025", "type_1": "1"}
    assert {key: first[key] for key in wanted} == wanted
    assert (second["x0_px"], second["y0_px"], second["x1_px"], second["positive"]) == ("250", "0", "350", "1")
    picture = cv2.imread(str(tmp_path / "out" / "heatmap" / "one.two.png"))
    assert picture.shape[1] > picture.shape[0] > 100
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_the_map_is_the_density_to_the_digit(tmp_path):
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.uniform(4, [1230, 770], (400, 2)), [[1233, 776]]])  # the last one on the last pixel
    write_slide(tmp_path / "json", "a", [nucleus(x, y) for x, y in xy], slide={"width": 1234, "height": 777})
    assert run(tmp_path, "--tile_size=40", "--sigma=0", "--ome_tiff") == 0
    rate = tifffile.imread(tmp_path / "out" / "ome_tiff" / "a.ome.tif")
    expected = np.zeros((20, 31), np.float32)
    for x, y in xy:
        expected[int(y // 40), int(x // 40)] += 1
    assert np.array_equal(rate, (expected / 1600).astype(np.float32))


def test_p46_the_session_has_the_slides_own_size_pixel_size_and_name(tmp_path):
    write_slide(tmp_path / "json", "one.two", FEW, 20, **SLIDE)
    assert run(tmp_path, "--hotspot_size=100", "--top_k=2") == 0
    session = read_session(tmp_path / "out" / "xml" / "one.two.session.xml")
    assert (session.width, session.height, session.image_name) == (400, 200, "one.two.svs")
    assert session.pixel_size_um == (0.5, 0.5)
    assert [(g.type, g.description, g.pen_colour) for g in session.graphics] == [
        ("rectangle", "top1", "#ffff00ff"),
        ("rectangle", "top2", "#ff0000ff"),
    ]
    assert session.graphics[1].points_xy.tolist() == [[250, 0], [350, 0], [350, 100], [250, 100]]


def test_p46_a_session_is_not_made_of_what_nobody_said(tmp_path, capsys):
    """Size, pixel size and name: with one of them missing there is no session, and a note says what gives it."""
    for known, missing in (
        ({}, "the name of the slide (--wsi_dir), its size (--wsi_dir), its pixel size (--mpp"),
        ({"slide": {"name": "a.svs", "width": 400, "height": 200}}, "needs its pixel size (--mpp"),
        ({"slide": {"name": "a.svs", "mpp": 0.5}}, "needs its size (--wsi_dir)\n"),
        ({"slide": {"width": 400, "height": 200, "mpp": 0.5}}, "needs the name of the slide (--wsi_dir)\n"),
    ):
        write_slide(tmp_path / "json", "a", FEW, **known)
        assert run(tmp_path, "--overwrite") == 0
        out = capsys.readouterr().out
        assert out.count("no session for Sedeen") == 1
        assert missing in out
        assert (tmp_path / "out" / "heatmap" / "a.png").is_file()
        assert not (tmp_path / "out" / "xml").exists()
    cv2.imwrite(str(tmp_path / "a.png"), np.full((200, 400, 3), 230, np.uint8))
    assert run(tmp_path, "--overwrite", f"--wsi_dir={tmp_path}", "--mpp=0.25") == 0
    session = read_session(tmp_path / "out" / "xml" / "a.session.xml")
    assert (session.width, session.height, session.image_name) == (400, 200, "a.png")
    assert session.pixel_size_um == (0.25, 0.25)


def test_create_xml_as_upstream_calls_it(tmp_path):
    boxes = plot_heat_map.most_positive_cord_center(np.eye(50), 2) * 50
    path = plot_heat_map.create_xml("Case 5AP", 3000, 2500, boxes, str(tmp_path) + "/")
    session = read_session(path)
    assert path == tmp_path / "xml" / "Case 5AP.session.xml"
    assert (session.width, session.height, session.image_name) == (3000, 2500, "Case 5AP.svs")
    assert session.graphics[0].points_xy.tolist() == [[0, 0], [1000, 0], [1000, 1000], [0, 1000]]


def test_most_positive_cord_center_as_upstream_calls_it():
    counts = np.zeros((60, 80))
    counts[25:40, 50:62] = 1
    counts[5, 5] = 7
    boxes = plot_heat_map.most_positive_cord_center(counts, 5)
    assert boxes.tolist() == [[42, 20, 62, 40], [0, 0, 20, 20]]
    assert plot_heat_map.most_positive_cord_center(counts, 1, window=(15, 12)).tolist() == [[50, 25, 62, 40]]


def test_plot_density_map_as_upstream_calls_it(tmp_path):
    write_slide(tmp_path / "json", "a", FEW)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((200, 400, 3), 230, np.uint8))
    report = plot_heat_map.plot_density_map(str(tmp_path / "json") + "/", str(tmp_path / "out") + "/", str(tmp_path))
    assert report.exit_code == 0
    assert report.summary[0]["positive"] == 4
    assert (tmp_path / "out" / "overlay" / "a.png").is_file()
    with pytest.raises(ValueError, match="no such option: tilesize"):
        plot_heat_map.plot_density_map(tmp_path / "json", tmp_path / "out", tilesize=3)


def test_upstreams_json_without_a_slide_takes_the_extent_of_the_nuclei(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, 40)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert "the size of the slide is not known: 403 x 203 px hold all nuclei" in out
    (row,) = table(tmp_path, "summary.csv")
    assert (row["width_px"], row["height_px"], row["positive_per_slide_mm2"]) == ("403", "203", "")
    assert "found at 40x, and nothing says the slide's own magnification" in out
    assert not (tmp_path / "out" / "xml").exists()  # neither pixel size nor name are made up (P46)
    assert not (tmp_path / "out" / "overlay").exists()


def test_scale_takes_nuclei_to_level_0(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, 20, slide={"width": 800, "height": 400})
    assert run(tmp_path, "--scale=2", "--hotspot_size=200", "--top_k=2") == 0
    assert "magnification" not in capsys.readouterr().out
    _, second = table(tmp_path, "hotspots.csv")
    assert int(second["x0_px"]) <= 650 < int(second["x1_px"])


def test_a_real_slide_and_nuclei_found_at_twice_its_magnification(tmp_path, shared, capsys):
    name = "CMU-1-Small-Region"
    write_slide(tmp_path / "json", name, [nucleus(1010, 2010), nucleus(4437, 5930)], 40)  # the slide is 20x
    assert run(tmp_path, f"--wsi_dir={shared / 'data' / 'slides'}", "--hotspot_um=100") == 0
    assert "found at 40x in a slide of 20x: coordinates are multiplied by 0.5" in capsys.readouterr().out
    session = read_session(tmp_path / "out" / "xml" / f"{name}.session.xml")
    assert (session.width, session.height, session.image_name) == (2220, 2967, f"{name}.svs")
    assert session.pixel_size_um == pytest.approx((0.499, 0.499))
    first, _ = table(tmp_path, "hotspots.csv")
    assert float(first["x1_px"]) - float(first["x0_px"]) == 200  # 100 um are 200.4 px, four bins
    assert int(first["x0_px"]) <= 504 < int(first["x1_px"])
    assert int(first["y0_px"]) <= 1004 < int(first["y1_px"])
    overlay = cv2.imread(str(tmp_path / "out" / "overlay" / f"{name}.png"))
    assert overlay.shape[0] > overlay.shape[1]


def test_few_or_no_nuclei(tmp_path_factory, capsys, subtests):
    none_or_one = [[], [nucleus(50, 60)], [nucleus(50, 60, 1)], [nucleus(50, 60, None)]]
    for known, nuclei in itertools.product([True, False], none_or_one):
        with subtests.test(known=known, nuclei=nuclei):
            tmp_path = tmp_path_factory.mktemp("case")
            write_slide(tmp_path / "json", "a", nuclei, **({"slide": {"width": 100, "height": 90}} if known else {}))
            assert run(tmp_path, "--ome_tiff", "--top_k=7") == 0
            (row,) = table(tmp_path, "summary.csv")
            spots = table(tmp_path, "hotspots.csv")
            assert row["nuclei"] == str(len(nuclei))
            assert len(spots) == int(row["hot_spots"]) == sum(n["type"] != 1 for n in nuclei)
            assert (tmp_path / "out" / "heatmap" / "a.png").exists() == bool(known or nuclei)
            out = capsys.readouterr().out
            if spots:
                assert "1 of 7 hot spots: no further window holds a positive nucleus" in out
                assert int(spots[0]["x1_px"]) == int(row["width_px"])  # the slide is smaller than a hot spot
            if nuclei and nuclei[0]["type"] is None:
                assert "nuclei have no types: all of them are counted" in out
                assert (spots[0]["nuclei"], spots[0]["positive"], row["positive_share"]) == ("1", "", "")
            elif nuclei and nuclei[0]["type"] == 1:
                assert "no nucleus is of type 2 weak, 3 moderate, 4 strong: an empty map" in out


def test_nuclei_without_contours_on_a_slide_of_unknown_size(tmp_path):
    bare = [nucleus(x, y) | {"contour": []} for x, y in ((10.5, 20), (300, 90.25))]
    write_slide(tmp_path / "json", "a", bare)
    assert run(tmp_path) == 0
    (row,) = table(tmp_path, "summary.csv")
    assert (row["width_px"], row["height_px"], row["positive"], row["failed"]) == ("301", "91", "2", "")


def test_absurd_numbers_do_not_print_hundreds_of_digits(tmp_path, capsys):
    write_slide(tmp_path / "json", "size", FEW, slide={"width": 1e300, "height": 1e300})
    write_slide(tmp_path / "json", "far", [nucleus(5, 5) | {"centroid": [1e300, 5], "contour": []}])
    write_slide(tmp_path / "json", "outside", [nucleus(5, 5) | {"centroid": [1e300, 5]}], **SLIDE)
    write_slide(tmp_path / "json", "scale", FEW, slide={"scale": 1e300})
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 4
    assert '"slide.width" is a number of px from 1 to 2147483647, got 1e+300' in error
    assert "nuclei lie as far as 1e+300 px" in error
    assert max(map(len, error.splitlines())) < 300


def test_p32_broken_json_is_named_and_the_others_are_done(tmp_path, capsys):
    write_slide(tmp_path / "json", "good", FEW, **SLIDE)
    write_slide(tmp_path / "json", "outside", [nucleus(5000, 50)], **SLIDE)
    (tmp_path / "json" / "cut.json").write_text((tmp_path / "json" / "good.json").read_text()[:300])
    (tmp_path / "json" / "list.json").write_text("[1, 2]")
    write_slide(tmp_path / "json", "mpp", FEW, mpp="large")
    assert run(tmp_path) == 1
    said = capsys.readouterr()
    rows = {row["slide"]: row for row in table(tmp_path, "summary.csv")}
    assert sorted(rows) == ["cut", "good", "list", "mpp", "outside"]
    assert [name for name, row in rows.items() if row["failed"]] == ["cut", "list", "mpp", "outside"]
    assert "1 of 1 nucleus outside the slide of 400 x 200 px" in rows["outside"]["failed"]
    assert said.err.count("plot_heat_map.py: failed: ") == 4
    assert "Traceback" not in said.err
    assert "1 of 5 slides mapped" in said.out


def test_bad_options_are_one_line(tmp_path, capsys, subtests):
    cases = [
        ("--tile_size=0", "--tile_size is a whole number above 0, got `0`"),
        ("--tile_size=x", "--tile_size is a whole number above 0, got `x`"),
        ("--tile_size=1,2", "--tile_size is a whole number above 0, got `1,2`"),
        ("--positive_types=dab", "need --score"),
        ("--kmeans", "need --score"),
        ("--score", "give --wsi_dir"),
        ("--thresholds=0.3,0.2,0.6", "three rising DAB densities"),
        ("--sigma=-1", "--sigma is a number from 0 on, got `-1`"),
        ("--wsi_dir=/no/such", "no such folder: /no/such"),
        ("--pattern=*.txt", "matches *.txt"),
    ]
    for option, message in cases:
        with subtests.test(option=option, message=message):
            write_slide(tmp_path / "json", "a", FEW)
            assert run(tmp_path, option) == 1
            said = capsys.readouterr().err
            assert message in said
            assert said.count("\n") == 1
            assert not (tmp_path / "out").exists()


def test_hotspot_um_without_a_pixel_size_says_what_to_give(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW)
    assert run(tmp_path, "--hotspot_um=100") == 1
    assert "a: --hotspot_um needs the pixel size; give --mpp or --wsi_dir" in capsys.readouterr().err
    assert run(tmp_path, "--hotspot_um=100", "--mpp=0.5") == 0
    assert table(tmp_path, "hotspots.csv")[0]["x1_px"] == "200"


def test_pictures_that_are_there_stay_and_overwrite_redoes_them(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, **SLIDE)
    session = tmp_path / "out" / "xml" / "a.session.xml"
    session.parent.mkdir(parents=True)
    session.write_text("edited by hand")
    assert run(tmp_path) == 0
    assert session.read_text() == "edited by hand"
    assert "kept: 1 file of earlier runs" in capsys.readouterr().out
    assert run(tmp_path, "--overwrite") == 0
    assert read_session(session).width == 400


def test_results_of_other_options_are_not_mixed(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, **SLIDE)
    write_slide(tmp_path / "json", "b", FEW, **SLIDE)
    assert run(tmp_path) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert run(tmp_path) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    for option, message in (
        ("--tile_size=40", "made with --tile_size=50, this run is with --tile_size=40"),
        ("--positive_types=2", "made without --positive_types, this run is with --positive_types=2"),
        ("--hotspot_um=50", "made without --hotspot_um, this run is with --hotspot_um=50.0"),
        (f"--wsi_dir={tmp_path}", "made without --wsi_dir"),
    ):
        capsys.readouterr()
        assert run(tmp_path, option) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "--overwrite" in error
        assert error.count("\n") == 1
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert run(tmp_path, "--tile_size=40", "--pattern=a*", "--overwrite") == 0
    assert "made with other options, and not redone by this run: b\n" in capsys.readouterr().out
    assert run(tmp_path, "--tile_size=40") == 1
    assert "the results of b were made with another --tile_size" in capsys.readouterr().err
    assert run(tmp_path, "--tile_size=40", "--overwrite") == 0
    assert run(tmp_path, "--tile_size=40") == 0


def test_slides_of_earlier_runs_stay_in_the_tables(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, **SLIDE)
    write_slide(tmp_path / "json", "b, c", FEW, **SLIDE)
    write_slide(tmp_path / "json", "d", [nucleus(9, 9, 7)], **SLIDE)
    options = ["--positive_types=2,3,4", "--top_k=2"]
    assert run(tmp_path, "--pattern=[bd]*", *options) == 0
    assert run(tmp_path, "--pattern=a*", *options) == 0
    assert "1 of 1 slide mapped" in capsys.readouterr().out
    assert [row["slide"] for row in table(tmp_path, "summary.csv")] == ["a", "b, c", "d"]
    assert [(row["slide"], row["rank"]) for row in table(tmp_path, "hotspots.csv")] == [("a", "1"), ("b, c", "1")]
    together = [(tmp_path / "out" / name).read_text() for name in ("summary.csv", "hotspots.csv")]
    assert plot_heat_map.main([f"--json_dir={tmp_path / 'json'}", f"--output_dir={tmp_path / 'all'}", *options]) == 0
    for name, text in zip(("summary.csv", "hotspots.csv"), together, strict=True):
        with open(tmp_path / "all" / name, newline="") as handle:
            assert list(csv.DictReader(text.splitlines())) == list(csv.DictReader(handle))
    (tmp_path / "out" / "summary.csv").write_text("no,table\n1,2\n")
    assert run(tmp_path, *options) == 1
    assert "summary.csv: is no table of an earlier run" in capsys.readouterr().err


def test_a_hot_spot_of_another_size_than_asked_for_is_said(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, **SLIDE)
    assert run(tmp_path, "--hotspot_size=120", "--tile_size=50") == 0
    said = "a hot spot is 100 x 100 px, whole bins, where 120 x 120 px were asked for; a smaller --tile_size"
    assert said in capsys.readouterr().out
    assert run(tmp_path, "--hotspot_um=60", "--tile_size=50", "--overwrite") == 0
    assert said in capsys.readouterr().out
    assert run(tmp_path, "--hotspot_size=104", "--tile_size=50", "--overwrite") == 0
    assert "asked for" not in capsys.readouterr().out


def test_the_tiff_has_the_size_of_the_slide_and_a_pyramid(tmp_path):
    nuclei = [nucleus(x, y) for x, y in np.random.default_rng(0).uniform(10, 29_000, (500, 2))]
    slide = {"width": 30_010, "height": 29_990, "mpp": 0.25}
    write_slide(tmp_path / "json", "a", nuclei, slide=slide)
    assert run(tmp_path, "--ome_tiff") == 0
    with tifffile.TiffFile(tmp_path / "out" / "ome_tiff" / "a.ome.tif") as tif:
        assert tif.is_ome
        assert 'PhysicalSizeX="12.5" PhysicalSizeXUnit="µm"' in tif.ome_metadata
        shapes = [level.shape for level in tif.series[0].levels]
        assert shapes == [(600, 601), (300, 301), (150, 151)]
        density = tif.series[0].asarray()
        half = tif.series[0].levels[1].asarray()
        # programs that read no OME take these: px per cm, at each level
        for page, pixel_um in ((tif.pages[0], 12.5), (tif.pages[0].pages[0], 25), (tif.pages[0].pages[1], 50)):
            assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
            for tag in ("XResolution", "YResolution"):
                numerator, denominator = page.tags[tag].value
                assert numerator / denominator == pytest.approx(10_000 / pixel_um, rel=1e-6)
    area_mm2 = (50 * 0.25 / 1000) ** 2
    assert density.sum() * area_mm2 == pytest.approx(500, rel=1e-4)
    assert half[3, 4] == pytest.approx(density[6:8, 8:10].mean(), rel=1e-6)


def test_an_image_of_another_size_or_none_is_refused(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", FEW, **SLIDE)
    write_slide(tmp_path / "json", "b", FEW)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((300, 400, 3), np.uint8))
    assert run(tmp_path, f"--wsi_dir={tmp_path}") == 1
    said = capsys.readouterr().err
    assert "is of a slide of 400 x 200 px, but a.png has 400 x 300" in said
    assert "b: " in said
    assert "has no image of this name" in said
