"""Classes of the nuclei of a slide: DAB that lies around a nucleus makes no positive one of it."""

from __future__ import annotations

import numpy as np
import pytest

from misc.ihc.dab.slide import _not_from_around
from misc.ihc.measure import Densities
from misc.ihc.scores import MODERATE, NEGATIVE, NOT_COUNTED, STRONG, WEAK


@pytest.mark.parametrize(
    ("min_contrast", "expected"),
    [
        (0.05, [NEGATIVE, WEAK, NEGATIVE, MODERATE, STRONG, WEAK, NOT_COUNTED]),
        (0.3, [NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE, STRONG, WEAK, NOT_COUNTED]),
        (0, [NEGATIVE, WEAK, MODERATE, MODERATE, STRONG, WEAK, NOT_COUNTED]),
    ],
)
def test_weak_and_moderate_nuclei_are_browner_than_the_ring_around_them(min_contrast, expected):
    """The last but one has no ring, the last one was not measured."""
    dab = np.array([0.05, 0.2, 0.4, 0.4, 0.7, 0.2, np.nan], np.float32)
    ring = np.array([0.0, 0.1, 0.38, 0.2, 0.9, np.nan, 0.1], np.float32)
    classes = np.array([NEGATIVE, WEAK, MODERATE, MODERATE, STRONG, WEAK, NOT_COUNTED], np.uint8)
    found = _not_from_around(classes, Densities(dab, dab, dab, ring, ring, dab), min_contrast)
    assert found.tolist() == expected
    assert found.dtype == classes.dtype
