"""The configuration that goes on from he_30x.py: python run_train.py --config=pretrained/he_30x_long.py

It trains the result of he_30x.py further, with its patches, on larger windows, and without recolouring: the network
reads H&E alone, and need not learn brown nuclei (those are for ihc.py).
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he_30x


class Config(he_30x.Config):
    """The recipe of he_30x.py with other values."""

    START = "../logs/he_30x/net_epoch=2.tar"  # made by he_30x.py
    PHASES = ((4, 1.0e-3),)
    EMA = 0.998
    WINDOW = 344
    STAIN_JITTER: ClassVar[dict] = {"recoloured_share": 0}
    LOG_DIR = "logs/he_30x_long"
