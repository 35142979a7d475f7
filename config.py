"""What a person edits before training.

`run_train.py` and `extract_patches.py` read it; losses, learning rate and epochs are in `models/hovernet/opt.py`.
"""

from __future__ import annotations

import importlib


class Config:
    """The configuration of a training run."""

    def __init__(self):
        self.seed = 10  # same seed, same run
        self.logging = True  # write checkpoints, statistics and TensorBoard files
        self.debug = False  # load in the main process, so that errors are easy to trace

        model_name = "hovernet"
        model_mode = "original"  # `original` (270 px in, 80 out) or `fast` (256 in, 164 out)
        recipe = "opt"  # file in models/<model_name>/: `opt` (upstream's) or `opt_scratch` (quarter width, no ImageNet)

        nr_type = 5  # number of nuclear types, background included
        self.type_classification = True  # False: segmentation alone, whatever nr_type says

        self.dataset_name = "consep"  # a name that dataset.py knows
        self.log_dir = "logs/"  # where checkpoints go

        # folders with the .npy patches that extract_patches.py wrote; ("folder", 2.0) has its patches drawn twice as
        # often. Some may be without types: their nuclei are left out of the loss of the types
        self.train_dir_list = ["train_patches_path"]
        self.valid_dir_list = ["valid_patches_path"]

        # folders with `Images/` and `Labels/` (.mat): whole images that are scored every few epochs; may be empty
        self.valid_image_dir_list = []
        self.valid_image_scale = 1.0  # 0.5 where those images are 40x and the patches 20x

        # said in every checkpoint: pixel size of the patches in um (run_infer.py goes by it), licence of the data, ...
        self.meta = {"mpp": 0.25}
        self.type_info_path = None  # type_info.json: names and colours of the types, said in the checkpoint too

        # ---------------------------------------------------------------- what follows from the values above
        if self.type_classification and (not isinstance(nr_type, int) or nr_type < 2):
            raise ValueError(f"config.py: nr_type counts the background too, so a number from 2 up; got {nr_type!r}")
        opt = _import(f"models.{model_name}.opt", "model_name")
        if model_mode not in opt.SHAPES:
            raise ValueError(f"config.py: model_mode must be one of {list(opt.SHAPES)}, got `{model_mode}`")
        self.model_mode = model_mode
        self.patch_sizes = {mode: (s.aug, s.step) for mode, s in opt.SHAPES.items()}  # what extract_patches.py cuts
        shape = opt.SHAPES[model_mode]
        act_shape, out_shape = [shape.act, shape.act], [shape.out, shape.out]
        self.shape_info = {
            "train": {"input_shape": act_shape, "mask_shape": out_shape},
            "valid": {"input_shape": act_shape, "mask_shape": out_shape},
        }
        module = _import(f"models.{model_name}.{recipe}", "recipe")
        self.model_config = module.get_config(nr_type if self.type_classification else None, model_mode)


def _import(module: str, setting: str):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # a module that the recipe itself imports
        raise ValueError(f"config.py: {setting}: there is no {module.replace('.', '/')}.py") from error
