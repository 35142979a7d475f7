"""One of two trainings that go on from he_30x_long.py: python run_train.py --config=pretrained/he_30x_more.py

The next trainings (he_30x_focus.py, ihc_30x.py) start from the mean of the weights of three: the start, this one, and
he_30x_stains.py. The two trainings can run at the same time, one on each core:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/he_30x_more/net_epoch=2.tar \
        --average=logs/he_30x_stains/net_epoch=2.tar,logs/he_30x_long/net_epoch=4.tar \
        --pt_path=logs/he_30x_mean.tar
"""

from __future__ import annotations

from pretrained import he_30x_long


class Config(he_30x_long.Config):
    """The recipe of he_30x_long.py with other values."""

    START = "../logs/he_30x_long/net_epoch=4.tar"  # made by he_30x_long.py
    PHASES = ((2, 7.0e-4),)
    EMA = 0.997
    SEED = 11
    LOG_DIR = "logs/he_30x_more"
