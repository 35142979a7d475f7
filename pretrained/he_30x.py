"""The configuration of the typed H&E checkpoint at 0.3333 um/px: python run_train.py --config=pretrained/he_30x.py

It continues the training of he.py at a finer pixel size. At 0.5 um/px even perfect maps reach only PQ .82 on Kumar and
.68 on CoNSeP; at 0.3333 they reach .92 and .82 (`benchmarks/resolution.py`), for 2.25 times the work. The patches:

    python extract_patches.py --dataset=kumar --no_type --scale=0.75 --mode=fast --step_size=164 \
        --save_root=dataset/training_30x/kumar --img_dir=kumar/Train/Images --ann_dir=kumar/Train/Labels
    python extract_patches.py --dataset=consep --type --type_info=pretrained/he_types.json --scale=0.75 --mode=fast \
        --step_size=164 --save_root=dataset/training_30x/consep \
        --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels

Validation patches are those of he.py; no choice depends on them.
"""

from __future__ import annotations

from typing import ClassVar

from pretrained import he


class Config(he.Config):
    """The recipe of he.py with other values."""

    MPP = 0.3333
    START = "hovernet_he_fast_w025_20x.tar"  # made by he.py
    PHASES = ((2, 1.0e-3),)  # (epochs of 538 steps, learning rate)
    EMA = 0.997
    WINDOW = 256
    KUMAR_WEIGHT = 675 / 400
    # `any_type`: nuclei without a type must not be predicted as background.
    TP_LOSS: ClassVar[dict] = {"bce": 1, "dice": 0.25, "any_type": 0.5}
    PATCHES = "dataset/training_30x"
    LOG_DIR = "logs/he_30x"
