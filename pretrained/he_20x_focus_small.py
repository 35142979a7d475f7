"""The other training: python run_train.py --config=pretrained/he_20x_focus_small.py

It differs from he_20x_focus.py in its windows and its random numbers: twice as many, of 256 px.
"""

from __future__ import annotations

from pretrained import he_20x_focus


class Config(he_20x_focus.Config):
    """The recipe of he_20x_focus.py with other values."""

    PHASES = ((4, 7.0e-4),)
    EMA = 0.997
    WINDOW = 256
    SEED = 16
    LOG_DIR = "logs/he_20x_focus_small"
