"""The table of nuclei: units, level 0, empty fields."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from misc.formats import nuclei_table
from misc.formats.csv_table import write_csv
from misc.formats.nuclei_table import COLUMNS, NucleiTable
from misc.nuclei import Nuclei
from misc.slides.image import open_image
from misc.type_info import UNTYPED

TYPES = {None: UNTYPED, 1: ("neopla", (255, 0, 0)), 2: ("in, flam", (0, 255, 0))}
# 5 x 7 px
SQUARE = np.array([[10, 20], [14, 20], [14, 26], [10, 26]])


def nuclei(**columns) -> Nuclei:
    contours = [SQUARE, SQUARE + 30]
    boxes = [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] for c in contours]
    return Nuclei.from_contours([4, 9], boxes, [c.mean(axis=0) for c in contours], contours, **columns)


def rows(path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_one_row_a_nucleus_in_px_and_um(tmp_path):
    typed = nuclei(types=np.array([1, 2], np.int32), type_prob=np.array([0.75, np.nan]))
    assert write_csv(tmp_path / "a.csv", NucleiTable(typed, TYPES, scale=2.0, mpp=0.25)) == 2
    first, second = rows(tmp_path / "a.csv")
    assert tuple(first) == COLUMNS
    assert (first["id"], first["type"], first["name"], first["type_prob"]) == ("4", "1", "neopla", "0.75")
    assert (second["id"], second["name"], second["type_prob"]) == ("9", "in, flam", "")
    number = {key: float(first[key]) for key in COLUMNS[4:]}
    # pixel centre (12, 23), twice as fine: the corner-based 12.5 and 23.5 become 25 and 47
    assert (number["centroid_x_px"], number["centroid_y_px"]) == (24.5, 46.5)
    assert (number["centroid_x_um"], number["centroid_y_um"]) == (6.25, 11.75)
    assert (number["area_px"], number["area_um2"]) == (35 * 4, 35 * 4 / 16)
    assert (number["perimeter_px"], number["perimeter_um"]) == (2 * 20, 10)
    assert number["major_axis_px"] == 2 * 4 * 2  # variance of 0..6 is 4
    assert number["major_axis_um"] == number["major_axis_px"] / 4
    assert number["minor_axis_px"] == pytest.approx(2 * 4 * np.sqrt(2), abs=1e-3)
    assert number["eccentricity"] == pytest.approx(np.sqrt(0.5), abs=1e-4)
    assert number["solidity"] == 1


def test_what_is_not_known_is_empty(tmp_path):
    write_csv(tmp_path / "a.csv", NucleiTable(nuclei(), TYPES))
    first = rows(tmp_path / "a.csv")[0]
    assert (first["type"], first["name"], first["type_prob"]) == ("", "nucleus", "")
    assert {key for key in COLUMNS if first[key] == ""} == {
        *("type", "type_prob"),
        *(key for key in COLUMNS if key.endswith(("_um", "_um2"))),
    }
    assert write_csv(tmp_path / "b.csv", NucleiTable([], TYPES)) == 0
    assert (tmp_path / "b.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_stains_are_measured_at_level_0(tmp_path):
    image = np.full((160, 160, 3), 255, np.uint8)
    image[40:54, 20:30] = (60, 40, 150)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    level0 = open_image(tmp_path / "a.png")
    write_csv(tmp_path / "a.csv", NucleiTable(nuclei(), TYPES, scale=2.0, image=level0))
    stained, glass = rows(tmp_path / "a.csv")
    assert tuple(stained) == (*COLUMNS, "hematoxylin_mean_od", "eosin_mean_od")
    assert float(stained["hematoxylin_mean_od"]) > 0.3
    assert abs(float(glass["hematoxylin_mean_od"])) < 1e-6
    write_csv(tmp_path / "b.csv", NucleiTable(nuclei(), TYPES, image=level0, stain="hdab"))
    assert "dab_mean_od" in rows(tmp_path / "b.csv")[0]


def test_pieces_make_the_same_table(tmp_path, monkeypatch):
    write_csv(tmp_path / "a.csv", NucleiTable(nuclei(), TYPES, mpp=0.5))
    monkeypatch.setattr(nuclei_table, "PIECE_NUCLEI", 1)
    parts = [nuclei().select(slice(0, 1)), Nuclei.empty(), nuclei().select(slice(1, 2))]
    assert write_csv(tmp_path / "b.csv", NucleiTable(iter(parts), TYPES, mpp=0.5)) == 2
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_refusals_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="types 5"):
        write_csv(tmp_path / "a.csv", NucleiTable(nuclei(types=np.array([1, 5], np.int32)), TYPES))
    assert list(tmp_path.iterdir()) == []
