"""The other training that goes on from ihc_30x.py: python run_train.py --config=pretrained/ihc_30x_more.py

It differs from ihc_30x_focus.py in its random numbers alone.
"""

from __future__ import annotations

from pretrained import ihc_30x_focus


class Config(ihc_30x_focus.Config):
    """The recipe of ihc_30x_focus.py with other values."""

    SEED = 12
    LOG_DIR = "logs/ihc_30x_more"
