"""The last training of the typed H&E checkpoint: python run_train.py --config=pretrained/he_30x_muon.py

It goes on from the mean that he_30x_focus.py describes, with its samples, and Muon trains the filters. The mean of the
start's weights and of this one's ships:

    python convert_chkpt_tf2pytorch.py --half --tf_path=logs/he_30x_muon/net_epoch=1.tar \
        --average=logs/he_30x_focused.tar --meta=pretrained/he_recommends.json \
        --pt_path=hovernet_he_fast_w025_30x.tar
"""

from __future__ import annotations

from pretrained import he_30x_focus


class Config(he_30x_focus.Config):
    """The recipe of he_30x_focus.py with other values."""

    START = "../logs/he_30x_focused.tar"  # made by the command in he_30x_focus.py
    MUON = True
    PHASES = ((1, 8.0e-4),)
    WINDOW = 256
    SEED = 15
    LOG_DIR = "logs/he_30x_muon"
