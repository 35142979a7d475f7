"""The command line of convert_format.py: JSON in, other programs' files out."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import convert_format
from misc.formats.nuclei_json import write_json
from misc.formats.sedeen import read_session
from misc.nuclei import Nuclei

ROOT = Path(convert_format.__file__).parent
SQUARE = np.array([[10, 20], [14, 20], [14, 26], [10, 26]])
EXTRAS = {"parquet", "h5ad", "spatialdata", "dicom"}  # formats that need packages of requirements-*.txt
SLIDE = {"name": "b.c [1] ü.svs", "width": 200, "height": 100, "scale": 2.0, "mpp": 0.25}


def nuclei(count: int = 2, types: int | None = 1) -> Nuclei:
    contours = [SQUARE + i for i in range(count)]
    return Nuclei.from_contours(
        np.arange(count) + 1,
        [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] for c in contours],
        [c.mean(axis=0) for c in contours],
        contours,
        types=None if types is None else np.full(count, types, np.int32),
        type_prob=None if types is None else np.ones(count),
    )


@pytest.fixture
def folder(tmp_path):
    """One file as upstream writes it, one with all that ours says."""
    (tmp_path / "json").mkdir()
    infos = {str(k): {a: np.asarray(v).tolist() for a, v in i.items()} for k, i in nuclei().to_dict().items()}
    (tmp_path / "json" / "a.json").write_text(json.dumps({"mag": None, "nuc": infos}))
    header = {"mpp": 0.5, "slide": SLIDE, "types": {"1": ["tumour", [1, 2, 3]]}}
    write_json(tmp_path / "json" / "b.c [1] ü.json", nuclei(3), 20, header)
    return tmp_path


def run(folder: Path, *options: str, source: str = "json") -> int:
    return convert_format.main([f"--input={folder / source}", f"--output_dir={folder / 'out'}", *options])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "out").iterdir())


def features(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["features"]


def test_geojson_at_level_0(folder, capsys):
    assert run(folder) == 0
    assert names(folder) == ["a.geojson", "b.c [1] ü.geojson"]
    upstream, ours = (features(folder / "out" / name) for name in names(folder))
    assert (len(upstream), len(ours)) == (2, 3)
    assert upstream[0]["geometry"]["coordinates"][0][0] == [10.5, 20.5]
    assert ours[0]["geometry"]["coordinates"][0][0] == [21, 41]
    assert ours[0]["properties"]["classification"] == {"name": "tumour", "color": [1, 2, 3]}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("2 of 2 files converted (5 nuclei")


def test_what_qupath_reads_counts_from_the_corner_of_what_was_scanned(shared, tmp_path):
    """The header says which part of level 0 that is; for files of before, the slide does."""
    slide = {"name": "leica.scn", "width": 1600, "height": 1400, "scale": 2.0, "mpp": 0.5}
    wsi_dir = f"--wsi_dir={shared / 'cases' / '04-qupath-bounds' / 'in'}"
    for bounds, options in (({"bounds": [500, 400, 800, 600]}, ()), ({}, (wsi_dir,))):
        (tmp_path / "json").mkdir(exist_ok=True)
        write_json(tmp_path / "json" / "leica.json", nuclei(), 10, {"slide": {**slide, **bounds}})
        assert run(tmp_path, "--to=qupath", "--overwrite", *options) == 0
        (first, *_) = features(tmp_path / "out" / "leica.geojson")
        assert first["geometry"]["coordinates"][0][0] == [21 - 500, 41 - 400]
        point = (tmp_path / "out" / "leica.tsv").read_text().splitlines()[1].split("\t")
        assert [float(value) for value in point[:2]] == [25 - 500, 47 - 400]
        assert run(tmp_path, "--to=sedeen", "--overwrite", *options) == 0
        graphics = read_session(tmp_path / "out" / "leica.session.xml")
        assert np.min([graphic.points_xy.min(axis=0) for graphic in graphics.graphics], axis=0).tolist() == [20.5, 40.5]


def test_options_go_before_the_header(folder, tmp_path):
    info = tmp_path / "types.json"
    info.write_text('{"1": ["mine", [9, 8, 7]]}')
    assert run(folder, "--scale=4", f"--type_info_path={info}", "--gz") == 0
    assert names(folder) == ["a.geojson.gz", "b.c [1] ü.geojson.gz"]
    (first, *_) = json.loads(gzip.decompress((folder / "out" / "a.geojson.gz").read_bytes()))["features"]
    assert first["geometry"]["coordinates"][0][0] == [42, 82]
    assert first["properties"]["classification"] == {"name": "mine", "color": [9, 8, 7]}


def test_qupath_writes_outlines_and_points(folder):
    assert run(folder, "--to=qupath") == 0
    assert names(folder) == ["a.geojson", "a.tsv", "b.c [1] ü.geojson", "b.c [1] ü.tsv"]
    header, first, *rest = (folder / "out" / "b.c [1] ü.tsv").read_text().splitlines()
    assert header == "x\ty\tclass\tname\tcolor"
    assert first.split("\t")[:4] == ["25.0", "47.0", "tumour", "tumour"]  # (12 + 0.5) * 2
    assert len(rest) == 2


def test_json_to_sedeen_and_back(folder):
    """Issue 2: the polygons come back to the pixel."""
    assert run(folder, "--to=sedeen", "--scale=1", source="json/b.c [1] ü.json") == 0
    session = read_session(folder / "out" / "b.c [1] ü.session.xml")
    assert (session.image_name, session.width, session.height) == (SLIDE["name"], 200, 100)
    assert session.pixel_size_um == (0.25, 0.25)
    assert [g.points_xy.tolist() for g in session.graphics] == [(SQUARE + i).tolist() for i in range(3)]
    assert {g.pen_colour for g in session.graphics} == {"#010203ff"}
    assert run(folder, "--to=sedeen", "--pens=lab", "--overwrite", source="json/b.c [1] ü.json") == 0
    session = read_session(folder / "out" / "b.c [1] ü.session.xml")
    assert {g.pen_colour for g in session.graphics} == {"#ff0000ff"}
    assert session.graphics[0].points_xy[0].tolist() == [20.5, 40.5]


def test_sedeen_says_what_it_lacks(folder, capsys):
    assert run(folder, "--to=sedeen") == 1
    assert names(folder) == ["b.c [1] ü.session.xml"]
    assert "a.json: a Sedeen session needs the image's name, width, height" in (err := capsys.readouterr().err)
    assert "--image_dir" in err
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((50, 80, 3), np.uint8))
    (folder / "images" / "a.xml").write_text("<no image/>")
    assert run(folder, "--to=sedeen", f"--image_dir={folder / 'images'}") == 1
    assert "a.json: a Sedeen session needs the pixel size; give --mpp" in capsys.readouterr().err
    assert run(folder, "--to=sedeen", f"--image_dir={folder / 'images'}", "--mpp=0.5") == 0
    session = read_session(folder / "out" / "a.session.xml")
    assert (session.image_name, session.width, session.height) == ("a.png", 80, 50)
    assert session.pixel_size_um == (0.5, 0.5)


def test_csv_with_and_without_images(folder, capsys):
    assert run(folder, "--to=csv") == 0
    header, first = (folder / "out" / "a.csv").read_text().splitlines()[:2]
    assert header.endswith("eccentricity,solidity")
    assert first.startswith("1,1,1,1.0,12.0,23.0,,,35.0,,")
    assert ",12.5," not in first
    (folder / "images").mkdir()
    for name, size in (("a.png", (50, 80)), ("b.c [1] ü.png", (100, 200))):
        cv2.imencode(".png", np.full((*size, 3), 128, np.uint8))[1].tofile(folder / "images" / name)
    options = ("--to=csv", f"--image_dir={folder / 'images'}", "--overwrite")
    assert run(folder, *options, "--stain=hdab") == 0
    lines = (folder / "out" / "b.c [1] ü.csv").read_text().splitlines()
    assert lines[0].endswith("hematoxylin_mean_od,dab_mean_od")
    assert all(field for line in lines for field in line.split(","))  # mpp of the header: no empty field
    cv2.imwrite(str(folder / "images" / "a.tif"), np.zeros((50, 80, 3), np.uint8))
    assert run(folder, *options) == 1
    assert "more than one image of this name: a.png, a.tif" in capsys.readouterr().err
    cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tofile(folder / "images" / "b.c [1] ü.png")
    assert run(folder, *options) == 1
    assert "is of a slide of 200 x 100 px, but b.c [1] ü.png has 9 x 9" in capsys.readouterr().err


def test_mag_of_the_json_against_that_of_the_slide(shared, tmp_path_factory, capsys, subtests):
    """Upstream's JSON of a slide has `mag` and no scale; the slide is 20x."""
    for target in ["geojson", "sedeen", "csv"]:
        with subtests.test(target=target):
            tmp_path = tmp_path_factory.mktemp("case")
            name, slides = "CMU-1-Small-Region", f"--wsi_dir={shared / 'data' / 'slides'}"
            write_json(tmp_path / f"{name}.json", nuclei(), 40)
            assert run(tmp_path, f"--to={target}", slides, source=f"{name}.json") == 0
            said = f"{name}.json: found at 40x in a slide of 20x: coordinates are multiplied by 0.5"
            assert said in capsys.readouterr().out
            (written,) = (tmp_path / "out").iterdir()
            if target == "geojson":
                assert features(written)[0]["geometry"]["coordinates"][0][0] == [5.25, 10.25]
            elif target == "sedeen":
                assert read_session(written).graphics[0].points_xy[0].tolist() == [4.75, 9.75]
            else:
                assert written.read_text().splitlines()[1].split(",")[4:6] == ["5.75", "11.25"]  # of (12, 23)
            assert run(tmp_path, f"--to={target}", slides, "--scale=1", "--overwrite", source=f"{name}.json") == 0
            assert "multiplied" not in capsys.readouterr().out


def test_mag_that_nobody_can_compare_is_said(tmp_path, capsys):
    write_json(tmp_path / "a.json", nuclei(), 40)
    assert run(tmp_path, source="a.json") == 0
    said = "a.json: found at 40x, and nothing says the slide's own magnification: coordinates are assumed to be "
    assert said + "level-0 px; give --scale" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["sedeen", "csv"])
def test_nuclei_outside_the_image_are_refused_in_one_line(tmp_path, capsys, target):
    write_json(tmp_path / "a.json", nuclei(), header={"slide": SLIDE | {"scale": 9.0}})
    assert run(tmp_path, f"--to={target}", source="a.json") == 1
    err = capsys.readouterr().err
    assert "a.json: 2 of 2 nuclei outside the slide of 200 x 100 px, the first at (112, 211)" in err
    assert "another slide, or another scale" in err
    assert err.count("\n") == 1
    assert names(tmp_path) == []


def test_absurd_sizes_do_not_print_hundreds_of_digits(tmp_path, capsys):
    write_json(tmp_path / "a.json", nuclei(), header={"slide": SLIDE | {"width": 1e300}})
    assert run(tmp_path, "--to=sedeen", source="a.json") == 1
    err = capsys.readouterr().err
    assert '"slide.width" is a number of px from 1 to 2147483647, got 1e+300' in err
    assert len(err) < 300


def test_slide_gives_size_name_and_pixel_size(shared, tmp_path):
    write_json(tmp_path / "CMU-1-Small-Region.json", nuclei())
    slides = shared / "data" / "slides"
    assert run(tmp_path, "--to=sedeen", f"--wsi_dir={slides}", source="CMU-1-Small-Region.json") == 0
    session = read_session(tmp_path / "out" / "CMU-1-Small-Region.session.xml")
    assert (session.image_name, session.width, session.height) == ("CMU-1-Small-Region.svs", 2220, 2967)
    assert session.pixel_size_um == (0.499, 0.499)


def test_bad_files_are_reported_and_the_others_done(folder, capsys):
    whole = (folder / "json" / "a.json").read_bytes()
    (folder / "json" / "cut.json").write_bytes(whole[:-30])
    (folder / "json" / "empty.JSON").write_bytes(b"")
    (folder / "json" / "other.json").write_text('{"epoch": 3}')
    (folder / "json" / "header.json").write_text('{"nuc": {}, "slide": 3}')
    (folder / "json" / "notes.txt").write_text("no JSON, not looked at")
    assert run(folder) == 1
    assert names(folder) == ["a.geojson", "b.c [1] ü.geojson"]
    out, err = capsys.readouterr()
    assert "2 of 6 files converted" in out
    assert "4 failed" in out
    lines = err.splitlines()
    assert len(lines) == 4
    for line, (name, reason) in zip(
        sorted(lines),
        [("cut.json", "truncated"), ("empty.JSON", "truncated"), ("header.json", "slide"), ("other.json", '"nuc"')],
        strict=True,
    ):
        assert name in line
        assert reason in line


def test_p05_results_are_skipped_unless_told_otherwise(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "a.geojson").write_text("mine")
    assert run(folder) == 0
    assert (folder / "out" / "a.geojson").read_text() == "mine"
    assert "1 of 2 files converted (3 nuclei" in (out := capsys.readouterr().out)
    assert "1 there already" in out
    assert run(folder, "--overwrite") == 0
    assert len(features(folder / "out" / "a.geojson")) == 2


def test_p06_one_name_twice_is_refused(folder, capsys):
    (folder / "json" / "x").mkdir()
    (folder / "json" / "x" / "a.json").write_bytes((folder / "json" / "a.json").read_bytes())
    assert run(folder) == 0  # folders in the folder are not looked at
    assert run(folder, "--recursive", "--overwrite") == 1
    assert f"x{'/'}a.json" in capsys.readouterr().err


def test_no_nuclei_and_too_few_points(tmp_path, capsys):
    write_json(tmp_path / "a.json", Nuclei.empty(), header={"slide": SLIDE})
    for target in convert_format.FORMATS.keys() - EXTRAS:
        assert run(tmp_path, f"--to={target}", "--overwrite", source="a.json") == 0
    assert features(tmp_path / "out" / "a.geojson") == []
    assert read_session(tmp_path / "out" / "a.session.xml").graphics == []
    line = Nuclei.from_contours([1], [[[0, 0], [1, 3]]], [[1, 0]], [np.array([[0, 0], [2, 0]])])
    write_json(tmp_path / "a.json", line, header={"slide": SLIDE})
    capsys.readouterr()
    assert run(tmp_path, "--to=qupath", "--overwrite", source="a.json") == 0
    assert capsys.readouterr().out.startswith("left out (no outline): 1 nucleus with fewer")


def test_p30_untyped_and_types_without_type_info(tmp_path):
    write_json(tmp_path / "a.json", nuclei(types=None))
    write_json(tmp_path / "b.json", nuclei(types=200))
    assert run(tmp_path, source="a.json") == run(tmp_path, source="b.json") == 0
    classes = [features(tmp_path / "out" / f"{n}.geojson")[0]["properties"]["classification"] for n in "ab"]
    assert classes[0]["name"] == "nucleus"
    assert classes[1]["name"] == "200"
    assert all(max(c["color"]) > 100 for c in classes)


def test_bad_options_are_refused_before_any_work(folder, capsys, subtests):
    cases = [
        (
            ["--to=xlsx"],
            "--to is one of geojson, tsv, qupath, sedeen, csv, parquet, h5ad, spatialdata, dicom, json, got 'xlsx'",
        ),
        (["--to=csv", "--gz"], "--gz compresses GeoJSON only"),
        (["--scale=0"], "--scale is a number above 0, got `0`"),
        (["--mpp=x"], "--mpp is a number above 0, got `x`"),
        (["--stain=pas"], "--stain is one of he, hdab"),
        (["--pens=red"], "--pens is one of types, lab"),
        (["--image_dir=/no/such"], "no such folder: /no/such"),
        (["--image_dir=a", "--wsi_dir=b"], "not both"),
        (["--type_info_path=/no/such.json"], "no such type_info file"),
        (["--pattern=*.txt"], "matches"),
    ]
    for options, reason in cases:
        with subtests.test(options=options, reason=reason):
            assert run(folder, *options) == 1
            assert not (folder / "out").exists()
            err = capsys.readouterr().err
            assert reason in err
            assert err.count("\n") == 1


def test_missing_input(tmp_path, capsys):
    assert run(tmp_path, source="nothing") == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_to_qupath_is_importable_from_here(tmp_path):
    convert_format.to_qupath(tmp_path / "a.tsv", [[1, 2]], [1], {1: ("a", (255, 0, 0))})
    assert (tmp_path / "a.tsv").read_text().splitlines()[1] == "1\t2\ta\ta\t-65536"


def test_command_line(folder):
    command = [sys.executable, str(ROOT / "convert_format.py")]
    done = subprocess.run(
        [*command, f"--input={folder / 'json'}/", f"--output_dir={folder / 'out'}/", "--to=tsv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"; in {folder / 'out'}\n")
    done = subprocess.run(
        [*command, "--input=/no/such", "--output_dir=/tmp/x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "convert_format.py: no such file or folder: /no/such\n"
