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
  --out=<dir>          Write scores.csv and scores.md there.
  --bootstrap=<n>      Resamples of the images for the 95 % interval of the means. [default: 2000]
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Published for Kumar's 14 test images: the HoVer-Net paper (TensorFlow, 16 training images), and the PyTorch port.
PUBLISHED = (
    ("HoVer-Net paper, Kumar", {"Dice": 0.826, "AJI": 0.618, "DQ": 0.770, "SQ": 0.773, "PQ": 0.597}),
    ("HoVer-Net PyTorch port, Kumar", {"Dice": 0.821, "PQ": 0.590}),
)


def main() -> int:
    args = docopt(__doc__)
    from infer.tile import InferManager
    from metrics.folders import INSTANCE_SCORES, score_instances
    from misc.files import full_stem, list_files, write_atomic

    folders = [Path(folder) for folder in args["<folder>"]]
    try:
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
        trained_on = set(manager.checkpoint.meta.get("images", {}).get("train", []))
        rows, per_split = [], {}
        for folder in folders:
            names = {full_stem(path) for path in list_files(folder / "Images")}
            if seen := sorted(names & trained_on):
                raise ValueError(
                    f"{len(seen)} images of {folder} were trained on, by the checkpoint's word: {seen[0]}, ..."
                )
            with tempfile.TemporaryDirectory() as out:
                start = time.perf_counter()
                report = manager.process_file_list(
                    {
                        "input_dir": folder / "Images",
                        "output_dir": out,
                        "mpp": float(args["--mpp"]) if args["--mpp"] else None,
                        "patch_input_shape": int(args["--window"]) if args["--window"] else None,
                    }
                )
                seconds = (time.perf_counter() - start) / max(len(report.done), 1)
                scores = score_instances(Path(out) / "mat", folder / "Labels")
            for failed, reason in {**report.failed, **scores.failed}.items():
                print(f"failed: {failed}: {reason}", file=sys.stderr)
            per_split[folder.name] = scores.values
            rows += [
                [folder.name, name, *column]
                for name, column in zip(scores.names, scores.values.T.tolist(), strict=True)
            ]
            print(f"{folder.name}: {len(scores.names)} images, {seconds:.1f} s an image", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 1
    if len(per_split) > 1:
        per_split["all"] = np.concatenate(list(per_split.values()), axis=1)
    table = markdown(per_split, INSTANCE_SCORES, int(args["--bootstrap"]))
    print(table)
    if args["--out"]:
        folder = Path(args["--out"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "scores.md", table + "\n")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["split", "image", *INSTANCE_SCORES], *rows])
        write_atomic(folder / "scores.csv", text.getvalue())
    return 0


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
