"""Cross-validate a recipe on its images with types, so that choices need no test images.

Usage:
  folds.py [options] <folder>
  folds.py (-h | --help)

<folder> has the Images/ and Labels/ of one of the recipe's sets (CoNSeP/Train); the patches are in the recipe's
folders. The checkpoint from which the recipe starts must not have seen these images, either. Each fold trains the
recipe without its share of the images, and scores that share. So in the table, each image was segmented by a network
that never saw it. Finished trainings are used again, interrupted ones resume. The images of a fold have consecutive
numbers, since neighbours may be from one slide.

Options:
  -h --help               Show this text.
  --folds=<n>             Number of folds. [default: 4]
  --only=<list>           Run only these folds, counted from 1, e.g. 1,3.
  --epochs=<n>            Epochs of each training, in one phase. Left out: the recipe's phases.
  --average=<n>           Score the mean of the weights after each of the last n phases. [default: 1]
  --config=<file>         The recipe: a file with a class Config, as for run_train.py.
                          [default: pretrained/he_30x_folds.py]
  --coarse_config=<file>  Train this recipe, too, for pixels 1.5 times as large, and score both networks as one
                          (convert_chkpt_tf2pytorch.py --coarse).
  --np_threshold=<p>      As for run_infer.py; trainings that are finished are only scored again.
  --edges=<way>           As for run_infer.py.
  --min_prob=<p>          As for run_infer.py.
  --ink=<way>             As for run_infer.py.
  --tta                   As for run_infer.py.
  --log_dir=<dir>         Folder of the trainings. [default: logs/folds]
  --mpp=<um>              um/px of the images. [default: 0.25]
  --merge=<preset>        Merge types of the labels before scoring, as for accuracy.py. [default: consep]
  --gpu=<ids>             GPUs; empty for the CPU. [default: 0]
  --bootstrap=<n>         Resamples of the images for the 95 % interval of the means. [default: 2000]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    args = docopt(__doc__)
    from misc.files import full_stem, list_files

    log_dir = Path(args["--log_dir"])
    try:
        names = [full_stem(path) for path in list_files(Path(args["<folder>"]) / "Images")]
        folds = split(names, int(args["--folds"]))
        chosen = [int(text) for text in args["--only"].split(",")] if args["--only"] else range(1, len(folds) + 1)
        if (average := int(args["--average"])) < 1:
            raise ValueError(f"--average must be 1 or more, got {average}")
        checkpoints = {}
        for fold in chosen:
            ends = train(fold, folds[fold - 1], args["--config"], log_dir, args)
            checkpoints[fold] = mean_of(ends[-average:], log_dir / f"fold_{fold}_mean.tar")
        if args["--coarse_config"]:
            for fold, fine in checkpoints.items():
                coarse = train(fold, folds[fold - 1], args["--coarse_config"], log_dir / "coarse", args)[-1]
                checkpoints[fold] = join(fine, coarse, log_dir / f"fold_{fold}_two_scales.tar")
        print(table(checkpoints, folds, args))
    except (ValueError, OSError) as error:
        print(f"folds.py: {error}", file=sys.stderr)
        return 1
    return 0


def split(names: list[str], count: int) -> list[list[str]]:
    """Sort names by the numbers in them, and cut them into `count` runs of nearly the same length.

    Raises:
        ValueError: there are fewer names than folds, or fewer than two folds.
    """
    if not 2 <= count <= len(names):
        raise ValueError(f"--folds must be from 2 to the number of images, {len(names)}; got {count}")
    ordered = sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    return [part.tolist() for part in np.array_split(np.array(ordered), count)]


def train(fold: int, held: list[str], config: str, root: Path, args: dict) -> list[Path]:
    """Train a recipe without the images of a fold, in a folder of `root`; return the last checkpoint of each phase."""
    from run_train import load_manager

    manager = load_manager(config)()
    manager.log_dir = str(root / f"fold_{fold}")
    entries = [entry if isinstance(entry, tuple) else (entry, 1.0) for entry in manager.train_dir_list]
    manager.train_dir_list = [
        (patches_without(Path(folder), set(held), root / f"patches_{fold}" / str(number)), weight)
        for number, (folder, weight) in enumerate(entries)
    ]
    phases = manager.model_config["phase_list"]
    if args["--epochs"]:
        del phases[1:]
        phases[0]["nr_epochs"] = int(args["--epochs"])
    folders = [f"{number:02d}" for number in range(len(phases))] if len(phases) > 1 else [""]
    ends = [
        Path(manager.log_dir, folder, f"net_epoch={phase['nr_epochs']}.tar")
        for folder, phase in zip(folders, phases, strict=True)
    ]
    if not ends[-1].exists():
        manager.run(args["--gpu"], resume=Path(manager.log_dir).exists())
    return ends


def mean_of(paths: list[Path], target: Path) -> Path:
    """Write the mean of the weights of several checkpoints, and return its file; of one, its own."""
    from models.hovernet.checkpoint import load_checkpoint, save_weights
    from run_utils.averaging import mean_weights

    if len(paths) == 1:
        return paths[0]
    checkpoints = [load_checkpoint(path) for path in paths]
    save_weights(target, mean_weights([each.state_dict for each in checkpoints]), checkpoints[-1].meta)
    return target


def join(fine: Path, coarse: Path, target: Path) -> Path:
    """Write two checkpoints as one file."""
    from convert_chkpt_tf2pytorch import with_coarse
    from models.hovernet.checkpoint import load_checkpoint, save_weights

    both = with_coarse(load_checkpoint(fine), load_checkpoint(coarse))
    save_weights(target, both.state_dict, both.meta)
    return target


def patches_without(source: Path, held: set[str], target: Path) -> Path:
    """Link the patches of a folder into another one, without those of held-out images."""
    from misc.files import list_files
    from run_utils.checks import source_image

    target.mkdir(parents=True, exist_ok=True)
    for patch in list_files(source, "*.npy"):
        link = target / patch.name
        if source_image(patch) not in held and not link.is_symlink():
            link.symlink_to(patch.resolve())
    return target


def images_of(folder: Path, held: list[str], target: Path) -> Path:
    """Link the held-out images and labels into a folder with Images/ and Labels/."""
    from misc.files import full_stem, list_files

    for part in ("Images", "Labels"):
        (target / part).mkdir(parents=True, exist_ok=True)
        for path in list_files(folder / part):
            link = target / part / path.name
            if full_stem(path) in held and not link.is_symlink():
                link.symlink_to(path.resolve())
    return target


def table(checkpoints: dict[int, Path], folds: list[list[str]], args: dict) -> str:
    """Score each fold's images with its checkpoint, and return the tables of accuracy.py."""
    from benchmarks.accuracy import markdown, score_folders, type_names, typed_markdown, values_by_split
    from infer.tile import InferManager
    from metrics.folders import INSTANCE_SCORES
    from metrics.typed import TypedCounts

    per_split, typed, resamples = {}, {}, int(args["--bootstrap"])
    options = {name: args[f"--{name}"] for name in ("mpp", "np_threshold", "edges", "min_prob", "ink", "tta")}
    for fold, path in checkpoints.items():
        manager = InferManager({"model_path": path}, gpu=args["--gpu"])
        folder = images_of(Path(args["<folder>"]), folds[fold - 1], Path(args["--log_dir"]) / f"held_{fold}")
        scores, counts = score_folders(manager, [folder], options, args["--merge"])
        per_split, typed = per_split | scores, typed | counts
    if len(typed) > 1:
        typed["all"] = TypedCounts.joined(typed.values())
    lines = markdown(values_by_split(per_split), INSTANCE_SCORES, resamples)
    return lines + ("\n\n" + typed_markdown(typed, type_names(manager.checkpoint.meta), resamples) if typed else "")


if __name__ == "__main__":
    sys.exit(main())
