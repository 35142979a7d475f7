"""Choose the NP threshold, the least probability of nuclear pixels: score several on labelled images.

The network reads each image once. Each folder has Images/ and Labels/ (.mat with inst_map), and is a set: its scores
are means over its images, and each set counts the same, whatever its size. Use images that are not for testing, such as
those of training. Write the choice into the checkpoint: `{"np_threshold": 0.4}` in a file for
`convert_chkpt_tf2pytorch.py --meta`.

Usage:
  np_threshold.py --model_path=<file> [options] <folder>...
  np_threshold.py (-h | --help)

Options:
  -h --help              Show this text.
  --model_path=<file>    Checkpoint.
  --np_threshold=<list>  Thresholds. [default: .3,.35,.4,.45,.5,.55,.6]
  --folds=<n>            Folds for cross-validation: each is scored at the threshold that is best on the others. The
                         mean shows the score on images that did not take part in the choice. [default: 4]
  --mpp=<um>             um/px of the images; they are resized to the um/px of the checkpoint's training.
  --window=<n>           Side in px of the patches that the network reads. Left out: what the checkpoint recommends, or
                         the patch of its mode.
  --precision=<p>        auto, fp32, bf16 or fp16. [default: auto]
  --gpu=<ids>            GPUs; empty for the CPU. [default: 0]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Areas of nuclei are compared in pairs whose IoU is above this.
MATCH_IOU = 0.5


def main() -> int:
    args = docopt(__doc__)
    from infer.options import check_probability
    from infer.tile import InferManager

    options = {
        "mpp": float(args["--mpp"]) if args["--mpp"] else None,
        "patch_input_shape": int(args["--window"]) if args["--window"] else None,
    }
    try:
        if (folds := int(args["--folds"])) < 2:
            raise ValueError(f"--folds must be 2 or more, got {folds}: the rest of the images chooses for each fold")
        thresholds = [check_probability(float(text), "--np_threshold") for text in args["--np_threshold"].split(",")]
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
        sets = {folder: score_set(manager, Path(folder), options, thresholds) for folder in args["<folder>"]}
    except (ValueError, OSError) as error:
        print(f"np_threshold.py: {error}", file=sys.stderr)
        return 1
    print(markdown(sets, thresholds))
    pq = {name: values[..., 0] for name, values in sets.items()}
    best = thresholds[choose(pq)]
    print(f"\nchosen: {best:g}")
    if max(values.shape[1] for values in pq.values()) > 1:
        print(f"PQ on images that did not take part in the choice: {cross_validated(pq, folds):.3f}")
    return 0


def score_set(manager, folder: Path, options: dict, thresholds: list[float]) -> np.ndarray:
    """Segment the images of a folder once, and score them at each threshold.

    Returns:
        (K, N, 2): for K thresholds and N images, PQ and the median ratio of predicted to true area of matched nuclei.

    Raises:
        ValueError: an image failed.
    """
    from misc.files import full_stem, list_files

    labels = {full_stem(path): path for path in list_files(folder / "Labels", "*.mat")}
    with tempfile.TemporaryDirectory() as out:
        options = {"save_raw_map": True, "nr_post_proc_workers": 0, **options}
        report = manager.process_file_list({"input_dir": folder / "Images", "output_dir": out, **options})
        if report.failed:
            raise ValueError(f"{folder}: {report.failed}")
        images = [(Path(out, "mat", f"{name}.mat"), labels[name]) for name in sorted(report.done) if name in labels]
        scores = [score_image(*paths, manager.nr_types, thresholds) for paths in images]
    if not scores:
        raise ValueError(f"no image in {folder / 'Images'} has a label in {folder / 'Labels'}")
    return np.array(scores).swapaxes(0, 1)


def score_image(pred: Path, label: Path, nr_types: int | None, thresholds: list[float]) -> list[tuple[float, float]]:
    """Return PQ and median ratio of areas at each threshold, from a result with the network's maps."""
    from infer.grid import Planes
    from infer.segment import segment
    from metrics.label_lists import load, read_map
    from metrics.overlap import Overlap
    from metrics.stats_utils import panoptic_quality

    true, maps = read_map(load(label), "inst_map", label), np.moveaxis(load(pred)["raw"], -1, 0)
    whole, planes = (0, 0, *true.shape), Planes(tuple(maps.shape[1:]), true.shape)
    scores = []
    for threshold in thresholds:
        overlap = Overlap.of(true, segment(maps, nr_types, planes, whole, whole, threshold)[0])
        matched = overlap.inter > MATCH_IOU * overlap.union
        areas = overlap.pred_areas[overlap.cols[matched]] / overlap.true_areas[overlap.rows[matched]]
        scores.append((panoptic_quality(overlap)[0][2], float(np.median(areas)) if len(areas) else np.nan))
    return scores


def choose(pq: dict[str, np.ndarray]) -> int:
    """Return the position of the best of K thresholds, by the mean over sets of the mean PQ of their (K, N) images."""
    return int(np.mean([np.nanmean(values, axis=1) for values in pq.values()], axis=0).argmax())


def cross_validated(pq: dict[str, np.ndarray], folds: int) -> float:
    """Return the mean over sets of the PQ of images at the threshold that is best on the images of other folds."""
    scored: dict[str, list[np.ndarray]] = {name: [] for name in pq}
    for fold in range(folds):
        held = {name: np.arange(values.shape[1]) % folds == fold for name, values in pq.items()}
        rest = {name: values[:, ~held[name]] for name, values in pq.items() if not held[name].all()}
        best = choose(rest)
        for name, values in pq.items():
            scored[name].append(values[best, held[name]])
    return float(np.mean([np.nanmean(np.concatenate(parts)) for parts in scored.values()]))


def markdown(sets: dict[str, np.ndarray], thresholds: list[float]) -> str:
    """Return the table: PQ and ratio of areas of each set, and the mean of PQ over the sets."""
    names = [Path(name).name for name in sets]
    lines = [f"| threshold | {' | '.join(f'{n}: PQ | area / true area' for n in names)} | mean PQ |"]
    lines.append("|---" * (2 * len(names) + 2) + "|")
    for row, threshold in enumerate(thresholds):
        means = [np.nanmean(values[row], axis=0) for values in sets.values()]
        cells = " | ".join(f"{pq:.3f} | {area:.2f}" for pq, area in means)
        lines.append(f"| {threshold:g} | {cells} | {np.mean([pq for pq, _ in means]):.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
