"""The recipe for cross-validation: python benchmarks/folds.py --gpu= consep/Train

A short training at 0.3333 um/px, with the patches of he_30x.py, from the checkpoint that knows only Kumar's images. So
the networks of the folds never see the images that they are scored on. Three epochs of about 450 steps keep four
trainings affordable on a CPU; what ships has trained for several times as many steps at this pixel size. The weights
of the last two are averaged, as those of what ships are: `folds.py --average=2`.
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he_30x


class Config(he_30x.Config):
    """The recipe of he_30x.py with other values."""

    START = "hovernet_fast_w025_20x.tar"  # trained on Kumar's 16 images alone
    PHASES = ((1, 1.0e-3), (1, 7.0e-4), (1, 8.0e-4))  # the first alone, with `--epochs=1`, costs a third
    MUON: ClassVar[tuple[bool, ...]] = (False, False, True)
    EMA = 0.995
    LOG_DIR = "logs/he_30x_folds"
