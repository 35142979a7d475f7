"""Tables of slides."""

from __future__ import annotations

from pathlib import Path

import pytest

from misc.slides.cohort import CohortSlide, read_cohort, write_cohort


def table_of(folder, text) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cohort.csv").write_text(text, encoding="utf-8")
    return folder / "cohort.csv"


def test_what_a_table_says_of_each_slide(tmp_path):
    """Relative to the table's folder, as spreadsheets write it, blank lines left out, sorted by path."""
    text = '\ufeffpath,patient,mpp,mag,mask,regions\nb.svs,"Smith, A",0.25,,m/b.png,\n\n/a/a.svs,,,20,,a.geojson\n'
    assert read_cohort(table_of(tmp_path, text)) == [
        CohortSlide(Path("/a/a.svs"), mag=20, regions=tmp_path / "a.geojson", extra={"patient": ""}),
        CohortSlide(tmp_path / "b.svs", 0.25, mask=tmp_path / "m" / "b.png", extra={"patient": "Smith, A"}),
    ]


def test_a_table_that_is_written_says_the_same_from_another_folder(tmp_path):
    text = 'path,mpp,mask,patient,site\nb.svs,0.25,b.png,"a ""b"", c",\na.svs,,,é,1\n'
    slides = read_cohort(table_of(tmp_path / "one", text))
    write_cohort(tmp_path / "two" / "x.csv", slides)
    assert read_cohort(tmp_path / "two" / "x.csv") == slides


def test_a_table_that_makes_no_sense_is_refused(tmp_path, subtests):
    for text, said in [
        ("slide,mpp\na.svs,1\n", "no column `path` in"),
        ("path;mpp\na.svs;1\n", "separated by commas"),
        ("path,mpp\na.svs,big\n", "line 2: mpp must be a positive number, got `big`"),
        ("path,mpp\na.svs,0\n", "line 2: mpp must be"),
        ("path,mpp\na.svs,1\nb.svs,1,2\n", "line 3: not as many values as columns"),
        ("path,status\na.svs,1\n", r"\['status'\] of its own; rename"),
        ("path\na.svs\nx/a.tif\n", "two inputs would write the same results"),
        ("path\n", "no slide in"),
        ("", "no column `path`"),
    ]:
        with subtests.test(text=text), pytest.raises((ValueError, FileNotFoundError), match=said):
            read_cohort(table_of(tmp_path, text))
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_cohort(tmp_path / "nowhere.csv")
