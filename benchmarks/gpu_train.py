"""Train pretrained/he_30x_long.py at half width by Muon, from random weights, for the available time on a CUDA GPU.

Usage:
  gpu_train.py prepare --kumar=<dir> --consep=<dir> --others=<dir> [--out=<dir>]
  gpu_train.py train [--data=<dir>] [--rehearse]
  gpu_train.py (-h | --help)

`prepare` writes the training images at 0.3333 um/px (lossless WebP) and their labels: one folder of 34 MB to copy.
`train` cuts them into patches, times two epochs, and trains as many as fit into the seconds of the environment variable
SECONDS_LEFT (480 without it). It writes the checkpoint in half precision and the log to the folder OUT (logs/gpu).

Options:
  -h --help       Show this text.
  --kumar=<dir>   Kumar's training images at 0.25 um/px, with Images/ and Labels/.
  --consep=<dir>  CoNSeP's.
  --others=<dir>  Images of other archives (PanNuke's breast patches), for validation; no choice depends on them.
  --out=<dir>     Folder to write. [default: .gpu]
  --data=<dir>    The folder that `prepare` wrote. [default: .gpu]
  --rehearse      Run on the CPU with one image of each set and an eighth of the width, as a test of the script.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SCALE = 0.75  # from 0.25 to 0.3333 um/px
WITH_TYPES = {"kumar": False, "consep": True, "others": False}
WIDTH, BATCH, LEARNING_RATE, EMA = 0.5, 16, 2.0e-3, 0.999
REHEARSAL_WIDTH, REHEARSAL_BATCH = 0.125, 4
REHEARSAL_IMAGES = 1  # of each set
PROBE_EPOCHS = 2  # the second one is timed
DEFAULT_SECONDS = 480
RESERVE_S = 25  # for starting the loaders again, and for writing the checkpoint
SLOWER = 1.05  # margin for epochs that are slower than the timed one
NAME = "hovernet_he_fast_w050_30x.tar"
RECOMMENDS = ROOT / "pretrained" / "he_recommends.json"  # so that both are scored in the same way


def main() -> int:
    from misc.batch import run_script

    args = docopt(__doc__)
    return run_script("gpu_train.py", lambda: prepare(args) if args["prepare"] else train(args))


def prepare(args: dict) -> int:
    """Write images and labels at 0.3333 um/px."""
    import scipy.io
    from PIL import Image

    from dataloader.extraction import pair_files
    from dataloader.patch_files import stack
    from dataset import get_dataset

    for name, with_type in WITH_TYPES.items():
        source, target = Path(args[f"--{name}"]), Path(args["--out"]) / name
        dataset = get_dataset("consep" if with_type else "mat")  # `consep` merges types
        for part in ("Images", "Labels"):
            (target / part).mkdir(parents=True, exist_ok=True)
        for stem, (image, label) in pair_files(
            name, ("", source / "Images"), (".mat", source / "Labels")
        ).pairs.items():
            stacked = stack(dataset.load_img(image), dataset.load_ann(label, with_type), SCALE)
            picture = Image.fromarray(stacked[..., :3].astype(np.uint8))
            picture.save(target / "Images" / f"{stem}.webp", lossless=True)  # two thirds of a PNG
            maps = {"inst_map": stacked[..., 3].astype(np.int32)}
            if with_type:
                maps["type_map"] = stacked[..., 4].astype(np.int32)
            scipy.io.savemat(target / "Labels" / f"{stem}.mat", maps, do_compression=True)
    size = sum(path.stat().st_size for path in Path(args["--out"]).rglob("*") if path.is_file())
    print(f"{args['--out']}: {size / 1e6:.1f} MB")
    return 0


def train(args: dict) -> int:
    """Cut patches, time the recipe, train it for the rest of the time, and write the checkpoint."""
    ends = time.monotonic() + float(os.environ.get("SECONDS_LEFT") or DEFAULT_SECONDS)
    # SIGTERM ends this run after its time: `finally` below still writes the checkpoint of the last epoch
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    rehearse, out = args["--rehearse"], Path(os.environ.get("OUT") or "logs/gpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders = {name: cut_patches(Path(args["--data"]) / name, folder, rehearse) for name in WITH_TYPES}
        epoch_s = timed_epoch(folders, folder / "probe", rehearse)
        epochs = max(1, int((ends - RESERVE_S - time.monotonic()) / (epoch_s * SLOWER)))
        epochs = min(epochs, 1) if rehearse else epochs
        print(f"an epoch takes {epoch_s:.1f} s: {epochs} epochs", flush=True)
        try:
            run(folders, folder / "he", epochs, rehearse)
        finally:
            ship(folder / "he", out)
    return 0


def cut_patches(source: Path, root: Path, rehearse: bool) -> Path:
    """Extract the patches of one set, as the recipe says, and return their folder.

    Raises:
        ValueError: an image failed.
    """
    import extract_patches

    name = source.name
    if rehearse:
        source = first_images(source, root / "first" / name)
    folders = [f"--img_dir={source / 'Images'}", f"--ann_dir={source / 'Labels'}", f"--save_root={root / name}"]
    kind = "--type" if WITH_TYPES[name] else "--no_type"
    cut = ["--extract_type=whole"] if name == "others" else ["--step_size=164"]
    if extract_patches.main(["--dataset=mat", kind, "--mode=fast", *cut, *folders]):
        raise ValueError(f"{source}: not all images could be cut into patches, see above")
    return next((root / name / "mat" / "train").iterdir())


def first_images(source: Path, target: Path) -> Path:
    """Copy the first images of a folder, and their labels."""
    from misc.files import list_files

    for part in ("Images", "Labels"):
        (target / part).mkdir(parents=True, exist_ok=True)
        for path in list_files(source / part)[:REHEARSAL_IMAGES]:
            shutil.copy(path, target / part)
    return target


def timed_epoch(folders: dict[str, Path], log_dir: Path, rehearse: bool) -> float:
    """Return the seconds of the second epoch, with validation and checkpoint."""
    from run_utils.callbacks.base import BaseCallbacks

    class Clock(BaseCallbacks):
        def __init__(self):
            self.times: list[float] = []

        def run(self, state, event) -> None:
            self.times.append(time.monotonic())

    clock = Clock()
    run(folders, log_dir, PROBE_EPOCHS, rehearse, clock)
    return clock.times[-1] - clock.times[-2]


def run(folders: dict[str, Path], log_dir: Path, epochs: int, rehearse: bool, last=None) -> None:
    """Train the recipe; `last` is a callback that runs at the end of each epoch."""
    from pretrained.he_30x_long import Config
    from run_train import Commands
    from run_utils.engine import Events

    width, batch = (REHEARSAL_WIDTH, REHEARSAL_BATCH) if rehearse else (WIDTH, BATCH)
    values = {"WIDTH": width, "BATCH": batch, "PHASES": ((epochs, LEARNING_RATE),), "EMA": EMA, "MUON": True}
    manager = type("TrainManager", (Commands, Config), values)()
    manager.log_dir = str(log_dir)
    manager.train_dir_list = [(folders["kumar"], manager.KUMAR_WEIGHT), folders["consep"]]
    manager.valid_dir_list = [folders["others"]]
    recipe = manager.model_config
    recipe["phase_list"][0]["run_info"]["net"]["pretrained"] = None
    engines = recipe["run_engine"]
    if rehearse:
        engines["train"]["nr_procs"] = engines["valid"]["nr_procs"] = 0
    if last is not None:
        engines["train"]["callbacks"][Events.EPOCH_COMPLETED].append(last)
    manager.run("" if rehearse else "0")


def ship(log_dir: Path, out: Path) -> None:
    """Write the weights of the last epoch in half precision, and the log."""
    import convert_chkpt_tf2pytorch
    from run_utils.checkpoint_io import last_checkpoint

    out.mkdir(parents=True, exist_ok=True)
    for name in ("steps.csv", "stats.json", "config.json"):
        if (log_dir / name).exists():
            shutil.copy(log_dir / name, out / f"he_{name}")
    if path := last_checkpoint(log_dir, "net"):
        paths = [f"--tf_path={path}", f"--pt_path={out / NAME}", f"--meta={RECOMMENDS}"]
        convert_chkpt_tf2pytorch.main([*paths, "--half", "--overwrite"])


if __name__ == "__main__":
    sys.exit(main())
