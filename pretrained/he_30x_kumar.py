"""The start of the cross-validation: python run_train.py --config=pretrained/he_30x_kumar.py

The first checkpoint goes on at 0.3333 um/px with Kumar's images alone. So all folds of he_30x_folds.py can start from a
network that reads this pixel size, and has seen none of the images that they are scored on.
"""

from __future__ import annotations

from pretrained import he_30x


class Config(he_30x.Config):
    """The recipe of he_30x.py with other values."""

    NR_TYPES = None
    START = "hovernet_fast_w025_20x.tar"  # trained on Kumar's 16 images alone
    PHASES = ((4, 1.0e-3),)  # (epochs of 200 steps, learning rate)
    MUON = True
    EMA = 0.995
    LOG_DIR = "logs/he_30x_kumar"

    def __init__(self):
        super().__init__()
        self.type_classification = False
        self.train_dir_list = self.train_dir_list[:1]
