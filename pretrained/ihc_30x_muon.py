"""The last training of the checkpoint for DAB: python run_train.py --config=pretrained/ihc_30x_muon.py

It goes on from the mean that ihc_30x_focus.py describes, with its samples, and Muon trains the filters. The mean of the
start's weights and of this one's ships:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/ihc_30x_muon/net_epoch=1.tar \
        --average=logs/ihc_30x_focused.tar --meta=pretrained/ihc_recommends.json \
        --pt_path=hovernet_ihc_fast_w025_30x.tar
"""

from __future__ import annotations

from pretrained import ihc_30x_focus


class Config(ihc_30x_focus.Config):
    """The recipe of ihc_30x_focus.py with other values."""

    START = "../logs/ihc_30x_focused.tar"  # made by the command in ihc_30x_focus.py
    MUON = True
    PHASES = ((1, 8.0e-4),)
    SEED = 15
    LOG_DIR = "logs/ihc_30x_muon"
