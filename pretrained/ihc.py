"""The configuration of the checkpoint for DAB: python run_train.py --config=pretrained/ihc.py

It uses no label of immunohistochemistry, but the H&E images of `he.py`. A share of the samples is re-stained with
haematoxylin and DAB while loading, so that positive nuclei are known (`dataloader/restain.py`). Nuclei in H&E samples
have no type. The training starts from the typed H&E checkpoint.

Kumar's patches are those of `he.py`; CoNSeP's are without types:

    python extract_patches.py --dataset=consep --no_type --scale=0.5 --mode=fast --step_size=164 \
        --save_root=dataset/training_data/consep_untyped --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels

Validation patches are those of `he.py`, re-stained in the same way; no choice depends on them.
"""

from __future__ import annotations

from pathlib import Path

from models.hovernet import opt_scratch
from models.hovernet.net_desc import output_size

FOLDER = Path(__file__).resolve().parent
MPP = 0.5
NR_TYPES = 3  # background, negative, positive
RESTAIN = {"share": 0.6, "classes": NR_TYPES - 1, "mpp": MPP}
WIDTH = 0.25  # of HoVer-Net's channels
START = "hovernet_he_fast_w025_20x.tar"  # of this folder
PHASES = ((1, 5.0e-4),)  # (epochs of 472 steps, learning rate)
EMA = 0.995
BATCH, WINDOW = 2, 344  # as in he.py
PATCHES = "dataset/training_data"


class Config:
    """Attributes as in the root config.py."""

    def __init__(self):
        self.seed = 10
        self.logging = True
        self.debug = False
        self.type_classification = True
        self.dataset_name = "kumar"
        self.log_dir = "logs/ihc"

        self.train_dir_list = [
            f"{PATCHES}/kumar/kumar/train/540x540_164x164",
            f"{PATCHES}/kumar/kumar/train/540x540_164x164",  # twice: about as many samples as from CoNSeP
            f"{PATCHES}/consep_untyped/consep/train/540x540_164x164",
        ]
        self.valid_dir_list = [f"{PATCHES}/mat/mat/valid/whole"]
        self.valid_image_dir_list = []
        self.type_info_path = FOLDER / "ihc_types.json"
        self.meta = {
            "mpp": MPP,
            "licence": "CC BY-NC-SA 4.0 (Kumar); CoNSeP for research",
            "data": "Kumar et al. (2017), 16 training images; Graham et al. (2019), CoNSeP, 27; re-stained in part",
        }

        mode = "fast"
        shape = {"input_shape": [WINDOW] * 2, "mask_shape": [output_size(mode, WINDOW)] * 2}
        self.shape_info = {"train": shape, "valid": shape}
        self.model_config = opt_scratch.get_config(NR_TYPES, mode, WIDTH, PHASES, EMA, RESTAIN)
        phase = self.model_config["phase_list"][0]
        phase["batch_size"]["train"] = BATCH
        phase["run_info"]["net"]["pretrained"] = str(FOLDER / START)
