"""The pixel size in OME metadata: of the image that is read, in any unit."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from misc.slides.ome import ome_mpp
from misc.slides.sources import open_source


def xml(*images: str) -> str:
    body = "".join(f"<Image><Pixels {pixels}/></Image>" for pixels in images)
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{body}</OME>'


def pixels(size: str, unit: str = "", side: str = "") -> str:
    x, y = size.split("x")
    sides = [f'PhysicalSize{axis}="{side}"' + (f' PhysicalSize{axis}Unit="{unit}"' if unit else "") for axis in "XY"]
    return f'SizeX="{x}" SizeY="{y}" ' + " ".join(sides if side else [])


def test_units():
    expected = {
        "": 0.5, "µm": 0.5, "μm": 0.5, "um": 0.5, "nm": 0.5e-3, "mm": 500, "cm": 5000, "pm": 0.5e-6, "m": 5e5,
        "in": 12700, "Å": 0.5e-4,
    }  # fmt: skip
    for unit, um in expected.items():
        assert ome_mpp(xml(pixels("9x8", unit, "0.5")), 0, (9, 8)) == pytest.approx((um, um)), unit
    for unit in ("pixel", "reference frame", "parsec"):
        assert ome_mpp(xml(pixels("9x8", unit, "0.5")), 0, (9, 8)) is None


def test_it_is_that_of_the_image_that_is_read():
    text = xml(pixels("9x8", "µm", "5"), pixels("90x80", "µm", "0.5"), pixels("90x80", "µm", "0.25"))
    assert [ome_mpp(text, index, (90, 80)) for index in (1, 2)] == [(0.5, 0.5), (0.25, 0.25)]
    assert ome_mpp(text, 0, (90, 80)) == (0.5, 0.5)  # the reader has left an image out: by its size
    assert ome_mpp(text, 0, (70, 80)) is None
    assert ome_mpp(xml(pixels("9x8")), 0, (9, 8)) is None
    assert ome_mpp("<broken", 0, (9, 8)) is None
    assert ome_mpp(None, 0, (9, 8)) is None


def test_a_file_with_a_label_first(tmp_path):
    options = {"photometric": "rgb", "tile": (64, 64)}
    for unit, side in (("cm", 0.5e-4), ("μm", 0.5)):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
            for shape, um in (((80, 90, 3), 100 * side), ((300, 400, 3), side)):
                size = {f"PhysicalSize{axis}": um for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
                file.write(np.zeros(shape, np.uint8), metadata={"axes": "YXS", **size}, **options)
        source = open_source(tmp_path / "a.ome.tif")
        assert source.sizes_xy == [(400, 300)]
        assert source.mpp_xy == pytest.approx((0.5, 0.5))
        assert source.notes == ("has 2 pages; only number 2, the largest, is read",)
        source.close()
