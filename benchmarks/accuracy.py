"""Score a checkpoint on labelled images: Dice, AJI, DQ, SQ, PQ and AJI+ of each image, means with an interval.

The images are segmented by the code of `run_infer.py tile`, and scored by that of `compute_stats.py`. If labels and
checkpoint have types, a second table has Fd, Fc and the F1 of each type, PanNuke's mPQ and bPQ, and CoNIC's mPQ+ and R2
(`metrics/typed.py` defines them).

Usage:
  accuracy.py --model_path=<file> [options] <folder>...
  accuracy.py (-h | --help)

Each folder has Images/ and Labels/ (.mat with inst_map, maybe types), and is one split in the table.

Options:
  -h --help            Show this text.
  --model_path=<file>  Checkpoint.
  --mpp=<um>           um/px of the images; they are resized to the um/px of the checkpoint's training.
  --window=<n>         Side in px of the patches that the network reads. Left out: what the checkpoint recommends, or
                       the patch of its mode.
  --precision=<p>      auto, fp32, bf16 or fp16. [default: auto]
  --gpu=<ids>          GPUs; empty for the CPU. [default: 0]
  --original           Find nuclei in the network's maps as the original does, whatever the checkpoint recommends.
  --tta                As for run_infer.py.
  --groups=<file>      JSON {group: [names of images]}: a row of the table for each, e.g. kumar_organs.json.
  --merge=<preset>     Merge types of the labels before scoring: `consep`, or a JSON file as for compute_stats.py.
  --train=<dirs>       Folders (with Images/) that the checkpoint was trained on, comma-separated. An image that is
                       also in one of them, by name or by content, is an error.
  --out=<dir>          Write scores.csv (a row an image), scores.md (the tables) and scores.json (the means, for
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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from docopt import docopt

if TYPE_CHECKING:
    from infer.tile import InferManager
    from metrics.folders import Scores
    from metrics.typed import TypedCounts

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Published for the 14 test images of Kumar and of CoNSeP: the HoVer-Net paper (TensorFlow, 16 and 27 training images),
# and the PyTorch port.
PUBLISHED = (
    ("HoVer-Net paper, Kumar", {"Dice": 0.826, "AJI": 0.618, "DQ": 0.770, "SQ": 0.773, "PQ": 0.597}),
    ("HoVer-Net PyTorch port, Kumar", {"Dice": 0.821, "PQ": 0.590}),
    ("HoVer-Net paper, CoNSeP", {"Dice": 0.853, "AJI": 0.571, "DQ": 0.702, "SQ": 0.778, "PQ": 0.547}),
)
PUBLISHED_TYPES = (
    (
        "HoVer-Net paper, CoNSeP",
        {
            "Fd": 0.748,
            "F1 miscellaneous": 0.426,
            "F1 inflammatory": 0.631,
            "F1 epithelial": 0.635,
            "F1 spindle": 0.566,
        },
    ),
)


def main() -> int:
    args = docopt(__doc__)
    from infer.tile import InferManager
    from metrics.folders import INSTANCE_SCORES
    from metrics.type_maps import read_merge
    from models.hovernet.post_proc import REFERENCE

    folders = [Path(folder) for folder in args["<folder>"]]
    options = {
        "mpp": float(args["--mpp"]) if args["--mpp"] else None,
        "patch_input_shape": int(args["--window"]) if args["--window"] else None,
        "tta": args["--tta"],
        **(asdict(REFERENCE) if args["--original"] else {}),
    }
    try:
        if args["--merge"]:
            read_merge(args["--merge"])  # before anything is segmented
        check_held_out(folders, [Path(folder) for folder in (args["--train"] or "").split(",") if folder])
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
        groups = json.loads(Path(args["--groups"]).read_text()) if args["--groups"] else {}
        per_split, typed = score_folders(manager, folders, options, args["--merge"])
    except (ValueError, OSError) as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 1
    values, resamples = values_by_split(per_split), int(args["--bootstrap"])
    table = markdown(values | values_by_group(per_split, groups), INSTANCE_SCORES, resamples)
    if typed:
        table += "\n\n" + typed_markdown(typed, type_names(manager.checkpoint.meta), resamples)
    print(table)
    if args["--out"]:
        write_scores(Path(args["--out"]), table, values, per_split)
    return 0


def write_scores(folder: Path, table: str, values: dict[str, np.ndarray], per_split: dict[str, Scores]) -> None:
    """Write scores.md, scores.json and scores.csv."""
    from metrics.folders import INSTANCE_SCORES
    from misc.files import write_atomic

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


def check_held_out(folders: list[Path], trained: list[Path]) -> None:
    """Check that no image is in a training folder too.

    Raises:
        ValueError: an image is, by name or by content.
    """
    from dataloader.leakage import same_names, same_pictures
    from misc.files import list_files
    from misc.slides.images import read_image

    held, train = ([p for folder in group for p in list_files(folder / "Images")] for group in (folders, trained))
    if names := same_names(held, train):
        raise ValueError(f"{len(names)} images are also in the training folders, by name: {names[0]}, ...")
    if train and (pairs := same_pictures(held, train, read_image)):
        shown = " and ".join(map(str, pairs[0]))
        raise ValueError(f"{len(pairs)} pairs of test and training images show the same tissue: {shown}, ...")


def score_folders(manager: InferManager, folders: list[Path], options: dict, merge: str | None) -> tuple[dict, dict]:
    """Segment and score folders: `{split: Scores}`, and `{split: TypedCounts}` of splits with types."""
    from metrics.label_lists import has_types
    from metrics.typed import TypedCounts, score_typed
    from misc.files import list_files

    per_split, typed = {}, {}
    for folder in folders:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary)
            per_split[folder.name] = score_folder(manager, folder, options, out)
            labels = list_files(folder / "Labels", "*.mat")
            if manager.checkpoint.nr_types is not None and all(map(has_types, labels)):
                type_ids = range(1, manager.checkpoint.nr_types)
                typed[folder.name] = score_typed(out / "mat", folder / "Labels", merge, type_ids)
    if len(typed) > 1:
        typed["all"] = TypedCounts.joined(typed.values())
    return per_split, typed


def score_folder(manager: InferManager, folder: Path, options: dict, keep: Path | None = None) -> Scores:
    """Segment the images of a folder and score them against its labels.

    Args:
        manager: with a loaded checkpoint.
        folder: has Images/ and Labels/.
        options: of `infer.options.TileOptions`, without folders.
        keep: folder for the results; `None` uses a temporary one.

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
    """Check that the checkpoint's list of training images has none of a folder's images.

    Raises:
        ValueError: it has one.
    """
    from misc.files import full_stem, list_files

    trained_on = set(manager.checkpoint.meta.get("images", {}).get("train", []))
    if seen := sorted({full_stem(path) for path in list_files(folder / "Images")} & trained_on):
        raise ValueError(f"the checkpoint says that {len(seen)} images of {folder} were in training: {seen[0]}, ...")


def values_by_split(per_split: dict[str, Scores]) -> dict[str, np.ndarray]:
    """Return the (K, N) scores of each split and, if there are several, of `all` images."""
    values = {split: scores.values for split, scores in per_split.items()}
    return values | ({"all": np.concatenate(list(values.values()), axis=1)} if len(values) > 1 else {})


def values_by_group(per_split: dict[str, Scores], groups: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Return the (K, N) scores of the images of each group; groups without an image are left out."""
    names = [name for scores in per_split.values() for name in scores.names]
    values = np.concatenate([scores.values for scores in per_split.values()], axis=1)
    members = {group: np.isin(names, listed) for group, listed in groups.items()}
    return {group: values[:, chosen] for group, chosen in members.items() if chosen.any()}


def markdown(per_split: dict[str, np.ndarray], names: tuple[str, ...], resamples: int) -> str:
    """Return the table: means and 95 % intervals over the images, and published scores."""
    rows = [(split, values.shape[1], interval(values, resamples)) for split, values in per_split.items()]
    return _table(names, rows, PUBLISHED)


def type_names(meta: dict) -> dict[int, str]:
    """Return the checkpoint's names of types."""
    return {int(key): name for key, (name, _) in meta.get("types", {}).items()}


def typed_markdown(typed: dict[str, TypedCounts], names: dict[int, str], resamples: int, seed: int = 0) -> str:
    """Return the table of the types: scores of all images together, and 95 % intervals over resampled images."""
    rows = []
    for split, counts in typed.items():
        picks = np.random.default_rng(seed).integers(0, len(counts.names), (resamples, len(counts.names)))
        scores = counts.scores()
        drawn = np.ma.masked_invalid([list(counts.scores(pick).values()) for pick in picks])
        limits = [
            np.quantile(column.compressed(), [0.025, 0.975]) if column.count() else (np.nan,) * 2 for column in drawn.T
        ]
        rows.append((split, len(counts.names), (scores.values(), *zip(*limits, strict=True))))
    columns = [
        f"F1 {names.get(int(column[3:]), column[3:])}" if column.startswith("F1 ") else column for column in scores
    ]
    return _table(columns, rows, PUBLISHED_TYPES)


def _table(names: Sequence[str], rows: list[tuple], published: tuple) -> str:
    """Format rows of (split, number of images, (means, low, high)), and the published scores."""
    lines = ["| split | images | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for split, count, values in rows:
        cells = [
            "" if np.isnan(mean) else f"{mean:.3f} ({low:.3f}-{high:.3f})"
            for mean, low, high in zip(*values, strict=True)
        ]
        lines.append(f"| {split} | {count} | " + " | ".join(cells) + " |")
    for source, scores in published:
        cells = [f"{scores[name]:.3f}" if name in scores else "" for name in names]
        lines.append(f"| {source} | 14 | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(values: np.ndarray, resamples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, 2.5 % and 97.5 % quantile of the mean over resampled images; (K, N) scores, NaN left out."""
    picks = np.random.default_rng(seed).integers(0, values.shape[1], (resamples, values.shape[1]))
    means = np.nanmean(values[:, picks], axis=2)  # (K, resamples)
    return np.nanmean(values, axis=1), *np.quantile(means, [0.025, 0.975], axis=1)


if __name__ == "__main__":
    sys.exit(main())
