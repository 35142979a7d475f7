"""Agreement of two runs, against published numbers and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from misc.ihc.dab.agreement import bland_altman, icc_2_1

# Shrout and Fleiss (1979), table 2: six targets, four judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_icc_2_1_of_shrout_and_fleiss():
    """They give .29 from the mean squares 11.24, 32.49 and 1.02; the interval is that of R's psych: .019 to .761."""
    found = icc_2_1(np.array(SHROUT_FLEISS))
    by_hand = (11.2417 - 1.0194) / (11.2417 + 3 * 1.0194 + 4 * (32.4861 - 1.0194) / 6)
    assert found.icc == pytest.approx(by_hand, abs=1e-4) == pytest.approx(0.29, abs=0.005)
    assert (found.low, found.high) == pytest.approx((0.019, 0.761), abs=5e-4)


def test_icc_of_equal_shifted_and_constant_ratings():
    same = np.array([[1, 1], [2, 2], [4, 4]], float)
    assert icc_2_1(same) == icc_2_1(same + 7)
    assert icc_2_1(same).icc == 1
    # rows: mean square 2 * 2.33.., columns 1.5, error 0: 4.667 / (4.667 + 2 * 1.5 / 3)
    assert icc_2_1(same + [0, 1]).icc == pytest.approx((14 / 3) / (14 / 3 + 1))
    assert np.isnan(icc_2_1(np.ones((3, 2))).icc)
    with pytest.raises(ValueError, match="two slides"):
        icc_2_1(np.ones((1, 2)))


def test_limits_of_agreement_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.3027."""
    found = bland_altman([10, 20, 30], [11, 22, 33])
    assert found.difference.tolist() == [1, 2, 3]
    assert found.mean.tolist() == [10.5, 21, 31.5]
    assert (found.bias, found.low, found.high) == pytest.approx((2, 0.04, 3.96))
    assert (found.bias_low, found.bias_high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    with pytest.raises(ValueError, match="at least two slides"):
        bland_altman([1], [2])
