"""What perfect maps are worth at the pixel size of a network."""

from __future__ import annotations

import numpy as np

from benchmarks.resolution import found_again


def two_nuclei(side: int = 96) -> np.ndarray:
    """Two touching discs of 24 px."""
    y, x = np.mgrid[:side, :side]
    label = np.zeros((side, side), np.int32)
    for number, centre in enumerate((36, 60), start=1):
        label[(y - 48) ** 2 + (x - centre) ** 2 < 12**2] = number
    return label


def test_nuclei_come_back_at_their_own_pixel_size_and_merge_when_small():
    label = two_nuclei()
    again = found_again(label, 1.0)
    assert again.shape == label.shape
    assert sorted(np.unique(again)) == [0, 1, 2]
    assert np.mean((again > 0) == (label > 0)) > 0.99
    assert again.max() > found_again(label, 0.125).max(), "of 3 px each, nothing tells them apart"
