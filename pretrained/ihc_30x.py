"""The configuration for DAB at 0.3333 um/px: python run_train.py --config=pretrained/ihc_30x.py

As ihc.py, but from the typed H&E checkpoint at 0.3333 um/px. Patches and validation patches are those of he_30x.py,
CoNSeP's again without types:

    python extract_patches.py --dataset=consep --no_type --scale=0.75 --mode=fast --step_size=164 \
        --save_root=dataset/training_30x/consep_untyped \
        --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels
"""

from __future__ import annotations

from pretrained import ihc


class Config(ihc.Config):
    """The recipe of ihc.py with other values."""

    MPP = 0.3333
    START = "../logs/he_30x_mean.tar"  # the mean that he_30x_more.py describes
    PHASES = ((1, 7.0e-4),)  # (epochs of 738 steps, learning rate)
    EMA = 0.997
    PATCHES = "dataset/training_30x"
    UNTYPED_PATCHES = "dataset/training_30x/consep_untyped"
    LOG_DIR = "logs/ihc_30x"
