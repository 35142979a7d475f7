"""One of two trainings that go on from ihc_30x.py: python run_train.py --config=pretrained/ihc_30x_focus.py

Re-staining draws nuclei above and below the focus as well (`dataloader.restain_scene.unfocused`); no label has them.
The last training, ihc_30x_muon.py, starts from the mean of the weights of this training and of ihc_30x_more.py. Both
can run at the same time, one on each core:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/ihc_30x_focus/net_epoch=1.tar \
        --average=logs/ihc_30x_more/net_epoch=1.tar --pt_path=logs/ihc_30x_focused.tar
"""

from __future__ import annotations

from pretrained import ihc_30x


class Config(ihc_30x.Config):
    """The recipe of ihc_30x.py with other values."""

    START = "../logs/ihc_30x/net_epoch=1.tar"  # made by ihc_30x.py
    PHASES = ((1, 5.0e-4),)
    EMA = 0.995
    WINDOW = 256
    SEED = 11
    LOG_DIR = "logs/ihc_30x_focus"
