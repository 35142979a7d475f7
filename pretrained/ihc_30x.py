"""The configuration of the checkpoint for DAB at 0.3333 um/px: python run_train.py --config=pretrained/ihc_30x.py

The recipe of ihc.py at the pixel size of he_30x.py, from whose checkpoint it starts. The patches of Kumar are those of
`he_30x.py`; CoNSeP's without types:

    python extract_patches.py --dataset=consep --no_type --scale=0.75 --mode=fast --step_size=164 \
        --save_root=dataset/training_30x/consep_untyped --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels

Validation images are those of ihc.py: looked at, nothing is chosen by them.
"""

from __future__ import annotations

from pretrained import ihc


class Config(ihc.Config):
    """The recipe of ihc.py with other values."""

    MPP = 0.3333
    START = "hovernet_he_fast_w025_30x.tar"  # made by he_30x.py
    PHASES = ((1, 5.0e-4),)  # (epochs of 737 steps, learning rate)
    PATCHES = "dataset/training_30x"
    UNTYPED_PATCHES = "dataset/training_30x/consep_untyped"
    LOG_DIR = "logs/ihc_30x"
