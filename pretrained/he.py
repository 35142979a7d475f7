"""The configuration of the typed H&E checkpoint: python run_train.py --config=pretrained/he.py

Kumar's 16 training images (no types) and CoNSeP's 27 (four types) train one network at 0.5 um/px; each set gives half
of the samples. It starts from the first checkpoint, which was trained on Kumar's images without types. The patches:

    python extract_patches.py --dataset=kumar --no_type --scale=0.5 --mode=fast --step_size=164 \
        --img_dir=kumar/Train/Images --ann_dir=kumar/Train/Labels
    python extract_patches.py --dataset=consep --type --type_info=pretrained/he_types.json --scale=0.5 --mode=fast \
        --step_size=164 --img_dir=consep/Train/Images --ann_dir=consep/Train/Labels
    python extract_patches.py --dataset=mat --no_type --scale=0.5 --mode=fast --extract_type=whole --split=valid \
        --img_dir=others/Images --ann_dir=others/Labels

The last command makes validation patches from another archive (PanNuke's breast patches); no choice depends on them.
Add more typed sets in the same way. Types match by name: MoNuSAC with --rename_types=lymphocyte:inflammatory,...
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from models.hovernet import opt_scratch
from models.hovernet.net_desc import output_size

FOLDER = Path(__file__).resolve().parent


class Config:
    """Attributes as in the root config.py; values in capitals are those that other runs of the recipe change."""

    MPP = 0.5
    NR_TYPES = 5  # background, and the four of he_types.json
    WIDTH = 0.25  # of HoVer-Net's channels
    START = "hovernet_fast_w025_20x.tar"  # of this folder
    PHASES = ((5, 1.0e-3),)  # (epochs of 344 steps, learning rate)
    STAIN_JITTER: ClassVar[bool | dict] = True  # or options of dataloader.augs.jitter_stains
    DEFOCUS: ClassVar[bool | dict] = False  # or options of dataloader.augs.draw_out_of_focus
    MUON: ClassVar[bool | tuple[bool, ...]] = False  # True: Muon trains the filters; may be one value for each phase
    EMA = 0.998  # half of the average comes from the last 350 steps
    BATCH = 2
    # For the same work, a window of 344 px predicts 18 % more pixels than one of 256 px (measured on a CPU).
    WINDOW = 344
    KUMAR_WEIGHT = 432 / 256  # number of CoNSeP's patches / number of Kumar's
    # The TP branch starts from random weights: its Dice, summed over five classes, would outweigh the other branches.
    TP_LOSS: ClassVar[dict] = {"bce": 1, "dice": 0.5}
    PATCHES = "dataset/training_data"
    VALID_PATCHES = "dataset/training_data/mat/mat/valid/whole"
    LOG_DIR = "logs/he"
    SEED = 10

    def __init__(self):
        self.seed = self.SEED
        self.logging = True
        self.debug = False
        self.type_classification = True
        self.dataset_name = "consep"
        self.log_dir = self.LOG_DIR

        self.train_dir_list = [
            (f"{self.PATCHES}/kumar/kumar/train/540x540_164x164", self.KUMAR_WEIGHT),
            f"{self.PATCHES}/consep/consep/train/540x540_164x164",
        ]
        self.valid_dir_list = [self.VALID_PATCHES]
        self.valid_image_dir_list = []
        self.type_info_path = FOLDER / "he_types.json"
        self.meta = {
            "mpp": self.MPP,
            "licence": "CC BY-NC-SA 4.0 (Kumar); CoNSeP for research",
            "data": "Kumar et al. (2017), 16 training images; Graham et al. (2019), CoNSeP, 27 training images",
        }

        mode = "fast"
        shape = {"input_shape": [self.WINDOW] * 2, "mask_shape": [output_size(mode, self.WINDOW)] * 2}
        self.shape_info = {"train": shape, "valid": shape}
        self.model_config = opt_scratch.get_config(
            self.NR_TYPES,
            mode,
            self.WIDTH,
            self.PHASES,
            self.EMA,
            stain_jitter=self.STAIN_JITTER,
            defocus=self.DEFOCUS,
            muon=self.MUON,
        )
        phases = self.model_config["phase_list"]
        for phase in phases:
            phase["batch_size"]["train"] = self.BATCH
            phase["run_info"]["net"]["extra_info"]["loss"]["tp"] = self.TP_LOSS
        phases[0]["run_info"]["net"]["pretrained"] = str(FOLDER / self.START)
