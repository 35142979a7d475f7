"""The recipe for cross-validation: python benchmarks/folds.py --gpu= --average=2 consep/Train

A short training at 0.3333 um/px, with the patches of he_30x.py, from a checkpoint that knows only Kumar's images. So the
networks of the folds never see the images that they are scored on. Two epochs of about 450 steps keep four trainings
affordable on a CPU; what ships has trained for several times as many steps at this pixel size. The weights of both are
averaged, as those of what ships are.
"""

from __future__ import annotations

from pretrained import he_30x


class Config(he_30x.Config):
    """The recipe of he_30x.py with other values."""

    START = "../logs/he_30x_kumar/net_epoch=4.tar"  # made by he_30x_kumar.py
    PHASES = ((1, 1.0e-3), (1, 8.0e-4))  # the first alone, with `--epochs=1`, costs half
    MUON = True
    EMA = 0.995
    LOG_DIR = "logs/he_30x_folds"
