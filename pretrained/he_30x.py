"""The configuration of the typed H&E checkpoint at 0.3333 um/px: python run_train.py --config=pretrained/he_30x.py

The recipe of he.py goes on at a finer pixel size. At 0.5 um/px even perfect maps give back only PQ .82 on Kumar and
.68 on CoNSeP; at 0.3333 it is .92 and .82 (`benchmarks/resolution.py`), for 2.25 times the work. The patches:

    python extract_patches.py --dataset=kumar --no_type --scale=0.75 --mode=fast --step_size=164 \
        --save_root=dataset/training_30x/kumar --img_dir=kumar/Train/Images --ann_dir=kumar/Train/Labels
    python extract_patches.py --dataset=consep --type --type_info=pretrained/he_types.json --scale=0.75 --mode=fast \
        --step_size=164 --save_root=dataset/training_30x/consep \
        --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels

Validation images are those of he.py: looked at, nothing is chosen by them.
"""

from __future__ import annotations

from pathlib import Path

from models.hovernet import opt_scratch
from models.hovernet.net_desc import output_size

FOLDER = Path(__file__).resolve().parent
NR_TYPES = 5  # background, and the four of he_types.json
WIDTH = 0.25  # of HoVer-Net's channels
START = "hovernet_he_fast_w025_20x.tar"  # of this folder, made by he.py
PHASES = ((2, 1.0e-3),)  # (epochs of 538 steps, learning rate)
EMA = 0.997
BATCH = 2
WINDOW = 256
KUMAR_WEIGHT = 675 / 400  # patches of CoNSeP to patches of Kumar
# Dice, summed over five classes, would outweigh the other branches; nuclei without a type are no background.
TP_LOSS = {"bce": 1, "dice": 0.25, "any_type": 0.5}
PATCHES = "dataset/training_30x"


class Config:
    """Attributes as in the root config.py."""

    def __init__(self):
        self.seed = 10
        self.logging = True
        self.debug = False
        self.type_classification = True
        self.dataset_name = "consep"
        self.log_dir = "logs/he_30x"

        self.train_dir_list = [
            (f"{PATCHES}/kumar/kumar/train/540x540_164x164", KUMAR_WEIGHT),
            f"{PATCHES}/consep/consep/train/540x540_164x164",
        ]
        self.valid_dir_list = ["dataset/training_data/mat/mat/valid/whole"]
        self.valid_image_dir_list = []
        self.type_info_path = FOLDER / "he_types.json"
        self.meta = {
            "mpp": 0.3333,
            "licence": "CC BY-NC-SA 4.0 (Kumar); CoNSeP for research",
            "data": "Kumar et al. (2017), 16 training images; Graham et al. (2019), CoNSeP, 27 training images",
        }

        mode = "fast"
        shape = {"input_shape": [WINDOW] * 2, "mask_shape": [output_size(mode, WINDOW)] * 2}
        self.shape_info = {"train": shape, "valid": shape}
        self.model_config = opt_scratch.get_config(NR_TYPES, mode, WIDTH, PHASES, EMA)
        phases = self.model_config["phase_list"]
        for phase in phases:
            phase["batch_size"]["train"] = BATCH
            phase["run_info"]["net"]["extra_info"]["loss"]["tp"] = TP_LOSS
        phases[0]["run_info"]["net"]["pretrained"] = str(FOLDER / START)
