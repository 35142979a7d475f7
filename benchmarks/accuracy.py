"""Score a checkpoint on labelled images: Dice, AJI, DQ, SQ, PQ and AJI+ of each image, means with an interval.

The images are segmented by the same code as `run_infer.py tile`, and scored by that of `compute_stats.py`.

Usage:
  accuracy.py --model_path=<file> [options] <folder>...
  accuracy.py (-h | --help)

Each folder has Images/ and Labels/ (.mat with inst_map), and is a split of its own in the table.

Options:
  -h --help            Show this text.
  --model_path=<file>  Checkpoint.
  --mpp=<um>           um/px of the images; they are resized to what the checkpoint was trained at.
  --window=<n>         Side in px of what the network reads at once. Left out: the patch of its mode.
  --precision=<p>      auto, fp32, bf16 or fp16. [default: auto]
  --gpu=<ids>          GPUs; empty for the CPU. [default: 0]
  --groups=<file>      JSON {group: [names of images]}: a row of the table for each, e.g. kumar_organs.json.
  --out=<dir>          Write scores.csv (a row an image), scores.md (the table) and scores.json (the means, for
                       `convert_chkpt_tf2pytorch.py --meta`) there.
  --bootstrap=<n>      Resamples of the images for the 95 % interval of the means. [default: 2000]
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from docopt import docopt

if TYPE_CHECKING:
    from infer.tile import InferManager
    from metrics.folders import Scores

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Published for Kumar's 14 test images: the HoVer-Net paper (TensorFlow, 16 training images), and the PyTorch port.
PUBLISHED = (
    ("HoVer-Net paper, Kumar", {"Dice": 0.826, "AJI": 0.618, "DQ": 0.770, "SQ": 0.773, "PQ": 0.597}),
    ("HoVer-Net PyTorch port, Kumar", {"Dice": 0.821, "PQ": 0.590}),
)


def main() -> int:
    args = docopt(__doc__)
    from infer.tile import InferManager
    from metrics.folders import INSTANCE_SCORES
    from misc.files import write_atomic

    folders = [Path(folder) for folder in args["<folder>"]]
    options = {
        "mpp": float(args["--mpp"]) if args["--mpp"] else None,
        "patch_input_shape": int(args["--window"]) if args["--window"] else None,
    }
    try:
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
        groups = json.loads(Path(args["--groups"]).read_text()) if args["--groups"] else {}
        per_split = {folder.name: score_folder(manager, folder, options) for folder in folders}
    except (ValueError, OSError) as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 1
    values = values_by_split(per_split)
    table = markdown(values | values_by_group(per_split, groups), INSTANCE_SCORES, int(args["--bootstrap"]))
    print(table)
    if args["--out"]:
        folder = Path(args["--out"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "scores.md", table + "\n")
        means = {
            split: dict(zip(INSTANCE_SCORES, np.nanmean(v, axis=1).round(4).tolist(), strict=True))
            for split, v in values.items()
        }
        write_atomic(folder / "scores.json", json.dumps({"scores": means}, indent=1) + "\n")
        rows = [
            [split, name, *column]
            for split, scores in per_split.items()
            for name, column in zip(scores.names, scores.values.T.tolist(), strict=True)
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["split", "image", *INSTANCE_SCORES], *rows])
        write_atomic(folder / "scores.csv", text.getvalue())
    return 0


def score_folder(manager: InferManager, folder: Path, options: dict, keep: Path | None = None) -> Scores:
    """Segment the images of a folder and score them against its labels.

    Args:
        manager: a checkpoint, loaded.
        folder: has Images/ and Labels/.
        options: of `infer.options.TileOptions`, but for the folders.
        keep: where the results go; a temporary folder if left out.

    Raises:
        ValueError: the checkpoint was trained on one of the images.
    """
    from metrics.folders import score_instances

    refuse_trained_on(manager, folder)
    with tempfile.TemporaryDirectory() as temporary:
        out, start = keep or Path(temporary), time.perf_counter()
        report = manager.process_file_list({"input_dir": folder / "Images", "output_dir": out, **options})
        seconds = (time.perf_counter() - start) / max(len(report.done), 1)
        scores = score_instances(out / "mat", folder / "Labels")
    for failed, reason in {**report.failed, **scores.failed}.items():
        print(f"failed: {failed}: {reason}", file=sys.stderr)
    print(f"{folder.name}: {len(scores.names)} images, {seconds:.1f} s an image", file=sys.stderr)
    return scores


def refuse_trained_on(manager: InferManager, folder: Path) -> None:
    """Refuse the images of a folder where the checkpoint says that it was trained on one of them.

    Raises:
        ValueError: it was.
    """
    from misc.files import full_stem, list_files

    trained_on = set(manager.checkpoint.meta.get("images", {}).get("train", []))
    if seen := sorted({full_stem(path) for path in list_files(folder / "Images")} & trained_on):
        raise ValueError(f"{len(seen)} images of {folder} were trained on, by the checkpoint's word: {seen[0]}, ...")


def values_by_split(per_split: dict[str, Scores]) -> dict[str, np.ndarray]:
    """Return the (K, N) scores of each split and, of several, those of `all` images."""
    values = {split: scores.values for split, scores in per_split.items()}
    return values | ({"all": np.concatenate(list(values.values()), axis=1)} if len(values) > 1 else {})


def values_by_group(per_split: dict[str, Scores], groups: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Return the (K, N) scores of the images of each group; groups without an image are left out."""
    names = [name for scores in per_split.values() for name in scores.names]
    values = np.concatenate([scores.values for scores in per_split.values()], axis=1)
    members = {group: np.isin(names, listed) for group, listed in groups.items()}
    return {group: values[:, chosen] for group, chosen in members.items() if chosen.any()}


def markdown(per_split: dict[str, np.ndarray], names: tuple[str, ...], resamples: int) -> str:
    """Return the table: means and 95 % intervals over the images, beside what was published."""
    lines = ["| split | images | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for split, values in per_split.items():
        cells = [
            f"{mean:.3f} ({low:.3f}-{high:.3f})" for mean, low, high in zip(*interval(values, resamples), strict=True)
        ]
        lines.append(f"| {split} | {values.shape[1]} | " + " | ".join(cells) + " |")
    for source, published in PUBLISHED:
        cells = [f"{published[name]:.3f}" if name in published else "" for name in names]
        lines.append(f"| {source} | 14 | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: np.ndarray, resamples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, 2.5 % and 97.5 % quantile of the mean over resampled images; (K, N) scores, NaN left out."""
    picks = np.random.default_rng(seed).integers(0, values.shape[1], (resamples, values.shape[1]))
    means = np.nanmean(values[:, picks], axis=2)  # (K, resamples)
    return np.nanmean(values, axis=1), *np.quantile(means, [0.025, 0.975], axis=1)


if __name__ == "__main__":
    sys.exit(main())
