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


class Config:
    """Attributes as in the root config.py; in capitals, what another run of the same recipe changes."""

    MPP = 0.5
    NR_TYPES = 3  # background, negative, positive
    RESTAINED_SHARE = 0.6  # of the samples
    WIDTH = 0.25  # of HoVer-Net's channels
    START = "hovernet_he_fast_w025_20x.tar"  # of this folder
    PHASES = ((1, 5.0e-4),)  # (epochs of 472 steps, learning rate)
    MUON = False  # as in he.py
    EMA = 0.995
    BATCH = 2
    WINDOW = 344  # as in he.py
    KUMAR_TIMES = 2  # about as many samples as from CoNSeP
    PATCHES = "dataset/training_data"
    UNTYPED_PATCHES = "dataset/training_data/consep_untyped"
    VALID_PATCHES = "dataset/training_data/mat/mat/valid/whole"
    LOG_DIR = "logs/ihc"
    SEED = 10

    def __init__(self):
        self.seed = self.SEED
        self.logging = True
        self.debug = False
        self.type_classification = True
        self.dataset_name = "kumar"
        self.log_dir = self.LOG_DIR

        self.train_dir_list = [
            *[f"{self.PATCHES}/kumar/kumar/train/540x540_164x164"] * self.KUMAR_TIMES,
            f"{self.UNTYPED_PATCHES}/consep/train/540x540_164x164",
        ]
        self.valid_dir_list = [self.VALID_PATCHES]
        self.valid_image_dir_list = []
        self.type_info_path = FOLDER / "ihc_types.json"
        self.meta = {
            "mpp": self.MPP,
            "licence": "CC BY-NC-SA 4.0 (Kumar); CoNSeP for research",
            "data": "Kumar et al. (2017), 16 training images; Graham et al. (2019), CoNSeP, 27; re-stained in part",
        }

        mode = "fast"
        shape = {"input_shape": [self.WINDOW] * 2, "mask_shape": [output_size(mode, self.WINDOW)] * 2}
        self.shape_info = {"train": shape, "valid": shape}
        restain = {"share": self.RESTAINED_SHARE, "classes": self.NR_TYPES - 1, "mpp": self.MPP}
        self.model_config = opt_scratch.get_config(
            self.NR_TYPES, mode, self.WIDTH, self.PHASES, self.EMA, restain, muon=self.MUON
        )
        phase = self.model_config["phase_list"][0]
        phase["batch_size"]["train"] = self.BATCH
        phase["run_info"]["net"]["pretrained"] = str(FOLDER / self.START)
