"""The last training of the coarse half of two resolutions: python run_train.py --config=pretrained/he_20x_muon.py

It goes on from the mean that he_20x_focus.py describes, with its samples, and Muon trains the filters. The coarse
network that ships is the mean of the start's weights and of this one's.
"""

from __future__ import annotations

from pretrained import he_20x_focus


class Config(he_20x_focus.Config):
    """The recipe of he_20x_focus.py with other values."""

    START = "../logs/he_20x_mean.tar"  # made by the command in he_20x_focus.py
    MUON = True
    PHASES = ((1, 8.0e-4),)
    WINDOW = 256
    SEED = 17
    LOG_DIR = "logs/he_20x_muon"
