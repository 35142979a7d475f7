"""The configuration of the first checkpoint: python run_train.py --config=pretrained/config.py

The commands that make the patches are in README.md beside this file.
"""

from __future__ import annotations

from models.hovernet import opt_scratch
from models.hovernet.opt import SHAPES


class Config:
    """Kumar: 16 training images at 0.5 um/px, quarter width, without types; attributes as in the root config.py."""

    MUON = False  # as in he.py

    def __init__(self):
        self.seed = 10
        self.logging = True
        self.debug = False
        self.type_classification = False
        self.dataset_name = "kumar"
        self.log_dir = "logs/pretrained"

        self.train_dir_list = ["dataset/training_data/kumar/kumar/train/540x540_82x82"]
        # other organs, another stain, another archive; no choice depends on them: the last epoch ships
        self.valid_dir_list = ["dataset/training_data/mat/mat/valid/whole"]
        self.valid_image_dir_list = []
        self.meta = {
            "mpp": 0.5,
            "window": 600,  # px, for inference: four times faster on a CPU, with the same scores
            "precision": "bf16",  # if the processor has it
            "licence": "CC BY-NC-SA 4.0",
            "data": "Kumar et al. (2017), 16 training images",
        }

        model_mode = "fast"
        act_shape, out_shape = [SHAPES[model_mode].act] * 2, [SHAPES[model_mode].out] * 2
        self.shape_info = {
            "train": {"input_shape": act_shape, "mask_shape": out_shape},
            "valid": {"input_shape": act_shape, "mask_shape": out_shape},
        }
        self.model_config = opt_scratch.get_config(None, model_mode, muon=self.MUON)
