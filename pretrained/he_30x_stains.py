"""The other training that goes on from he_30x_long.py: python run_train.py --config=pretrained/he_30x_stains.py

It differs from he_30x_more.py in the amounts of the stains, so that pale and dark tissue is learned too, and in its
random numbers.
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he_30x_more


class Config(he_30x_more.Config):
    """The recipe of he_30x_more.py with other values."""

    STAIN_JITTER: ClassVar[dict] = {"factor": (0.6, 1.5), "recoloured_share": 0}
    SEED = 12
    LOG_DIR = "logs/he_30x_stains"
