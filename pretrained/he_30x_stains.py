"""The configuration of the typed H&E checkpoint that ships: python run_train.py --config=pretrained/he_30x_stains.py

It trains the result of he_30x_long.py further, with the same patches, and varies the amounts of the stains more: the
95th percentile of haematoxylin lies between 0.4 and 1.7 times its median among Kumar's training images, and slides of
other labs are paler or darker still. A tenth of the samples is recoloured (brown nuclei).
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he_30x


class Config(he_30x.Config):
    """The recipe of he_30x.py with other values."""

    START = "../logs/he_30x_long/net_epoch=4.tar"  # made by he_30x_long.py
    PHASES = ((2, 1.0e-3),)
    STAIN_JITTER: ClassVar[dict] = {"factor": (0.5, 1.7), "recoloured_share": 0.1}
    LOG_DIR = "logs/he_30x_stains"
