"""The memory benchmark in small: peak memory does not go with the area of a slide, the spool with its nuclei alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from benchmarks import pairs_slide, slide_memory
from benchmarks.pyramid import block_px, write_pyramid
from misc.slides.handler import get_file_handler
from misc.slides.tissue import otsu_mask, thumbnail

ARGS = {"--workers": "0", "--readers": "1", "--tile_shape": "1024", "--batch_size": "4"}
TISSUE_SHARES = {4096: 1 / 16, 16384: 1 / 32}  # by side of the slide, px; little, so that the test is short
SPOOL_BYTES, BLOCK_BYTES = 320, 4096  # a nucleus, and what each file takes beside its nuclei


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """A run on a slide of each side, and what it found."""
    result = {}
    for side, share in TISSUE_SHARES.items():
        place = tmp_path_factory.mktemp(str(side))
        (place / "in").mkdir()
        painted = write_pyramid(place / "in" / "made_up.tif", (side, side), share).nr_nuclei
        peak = slide_memory.measure(place, ARGS)
        with open(place / "out" / "summary.csv", newline="") as handle:
            result[side] = {**peak, "painted": painted, "found": int(next(csv.DictReader(handle))["nuclei"])}
    return result


def test_p15_p20_memory_does_not_go_with_the_slide_and_the_spool_with_its_nuclei(peaks):
    """16 times the area, 8 times the nuclei; the maps of the whole slide alone would take 3 GB."""
    small, large = (peaks[side] for side in TISSUE_SHARES)
    assert abs(large["main"] / small["main"] - 1) < 0.2
    assert large["main"] < 2e9
    for peak, blocks in ((small, 16), (large, 28)):
        assert peak["found"] == pytest.approx(peak["painted"], rel=0.05)
        assert peak["cache"] < SPOOL_BYTES * peak["found"] + BLOCK_BYTES * blocks


def test_made_up_slides_have_tissue_and_glass(tmp_path):
    """Where 30 % of the blocks are less than one, there was no tissue."""
    for side in (600, 8192, 20000, 50000):
        block, downsamples = block_px((side, side))
        slide = write_pyramid(tmp_path / f"{side}.tif", (side, side), 0.3)
        assert slide.nr_nuclei > 0
        with get_file_handler(slide.path) as handler:
            assert handler.metadata["base_shape"].tolist() == [side, side]
            assert block == 512 * downsamples[-1]
            share = otsu_mask(thumbnail(handler)).share
        assert 0.05 < share
        assert share < 0.8 or side == 600  # holes as large as that picture are filled


def test_comparing_with_no_nuclei_on_either_side():
    """Of two results, one or both may be empty, or have nothing away from the edges."""
    square = [[500, 500], [520, 500], [520, 520], [500, 520]]
    one = {"1": {"contour": square, "centroid": [510.0, 510.0]}}
    far = {str(i): {"contour": [[x, x], [x + 9, x], [x, x + 9]], "centroid": [x, x]} for i, x in enumerate((0, 900))}
    assert pairs_slide.compare({}, one) == (0, 0, 0)
    assert pairs_slide.compare(one, {}) == (0, 0, 0)
    assert pairs_slide.compare(far | {"2": one["1"]}, {}) == (0, 1, 0)
    assert pairs_slide.compare(far | {"2": one["1"]}, one) == (1, 1, 0)


def spend(root, *_) -> None:
    """Take memory in a helper process until it has been seen."""
    script = f"held = bytearray(300 << 20); open({str(root / 'seen')!r}).read()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_peak_of_a_run_counts_its_helpers(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "seen")
    family_rss, seen = pairs_slide.family_rss, []

    def look(pid):
        rss = family_rss(pid)
        if not seen and max(rss[1:], default=0) > 300 << 20:
            seen.append((tmp_path / "seen").write_text("yes"))
        return rss

    monkeypatch.setattr(pairs_slide, "family_rss", look)
    run = pairs_slide.measured(spend, tmp_path, tmp_path, "cpu", 20)
    assert seen
    assert run.peak > 300 << 20
    assert run.cache == 0
