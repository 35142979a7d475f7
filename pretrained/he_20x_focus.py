"""One of two trainings that go on from he.py at 0.5 um/px: python run_train.py --config=pretrained/he_20x_focus.py

Its samples vary as those of he_30x_focus.py do; the patches are those of he.py. he_20x_muon.py goes on from the mean of
the weights of the start, this one, and he_20x_focus_small.py. The mean of both is the coarse network of
`hovernet_he_fast_w025_2scales.tar`:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/he_20x_focus/net_epoch=2.tar \\
        --average=logs/he_20x_focus_small/net_epoch=4.tar,pretrained/hovernet_he_fast_w025_20x.tar \\
        --pt_path=logs/he_20x_mean.tar
    python run_train.py --gpu= --config=pretrained/he_20x_muon.py
    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/he_20x_muon/net_epoch=1.tar \\
        --average=logs/he_20x_mean.tar --pt_path=logs/he_20x.tar
    python convert_chkpt_tf2pytorch.py --half --tf_path=pretrained/hovernet_he_fast_w025_30x.tar \\
        --coarse=logs/he_20x.tar --meta=pretrained/he_2scales_recommends.json \\
        --pt_path=hovernet_he_fast_w025_2scales.tar
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he


class Config(he.Config):
    """The recipe of he.py with other values."""

    START = "hovernet_he_fast_w025_20x.tar"  # made by he.py
    PHASES = ((2, 7.0e-4),)  # (epochs of 344 steps, learning rate)
    EMA = 0.995
    # `any_type`: nuclei without a type must not be predicted as background.
    TP_LOSS: ClassVar[dict] = {"bce": 1, "dice": 0.25, "any_type": 0.5}
    STAIN_JITTER: ClassVar[dict] = {"factor": (0.6, 1.6), "recoloured_share": 0}
    DEFOCUS: ClassVar[dict] = {"sigma_px": (0.5, 2.0)}
    SEED = 15
    LOG_DIR = "logs/he_20x_focus"
