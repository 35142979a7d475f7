"""The other training: python run_train.py --config=pretrained/he_30x_focus_small.py

It differs from he_30x_focus.py in its windows and its random numbers: twice as many, of 256 px.
"""

from __future__ import annotations

from pretrained import he_30x_focus


class Config(he_30x_focus.Config):
    """The recipe of he_30x_focus.py with other values."""

    PHASES = ((2, 7.0e-4),)
    EMA = 0.997
    WINDOW = 256
    SEED = 14
    LOG_DIR = "logs/he_30x_focus_small"
