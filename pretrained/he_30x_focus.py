"""One of two trainings that go on from he_30x_more.py's mean: python run_train.py --config=pretrained/he_30x_focus.py

Samples are drawn out of focus and with more variation of the stains, for slides that are blurred or dark. The last
training, he_30x_muon.py, starts from the mean of the weights of three: the start, this one, and he_30x_focus_small.py:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/he_30x_focus/net_epoch=1.tar \
        --average=logs/he_30x_focus_small/net_epoch=2.tar,logs/he_30x_mean.tar --pt_path=logs/he_30x_focused.tar
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he_30x_long


class Config(he_30x_long.Config):
    """The recipe of he_30x_long.py with other values."""

    START = "../logs/he_30x_mean.tar"  # the mean that he_30x_more.py describes
    PHASES = ((1, 7.0e-4),)
    EMA = 0.995
    STAIN_JITTER: ClassVar[dict] = {"factor": (0.6, 1.6), "recoloured_share": 0}
    DEFOCUS = True
    SEED = 13
    LOG_DIR = "logs/he_30x_focus"
