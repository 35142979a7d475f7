"""The coarse half of the cross-validation of two networks in one: benchmarks/folds.py --coarse_config=<this file>

As he_30x_folds.py, at 0.5 um/px, with the patches of he.py.
"""

from __future__ import annotations

from pretrained import he_20x_focus


class Config(he_20x_focus.Config):
    """The recipe of he_20x_focus.py with other values."""

    START = "hovernet_fast_w025_20x.tar"  # trained on Kumar's 16 images alone
    PHASES = ((2, 1.0e-3),)  # (epochs of 288 steps, learning rate)
    WINDOW = 256
    LOG_DIR = "logs/he_20x_folds"
