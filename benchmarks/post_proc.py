"""Choose how nuclei are found in the maps of a checkpoint: score ways on labelled images.

The network reads each image once; all combinations of the values are scored. Each folder has Images/ and Labels/ (.mat
with inst_map), and is a set: its scores are means over its images, and each set counts the same, whatever its size. Use
images that are not for testing, such as those of training. Write the choice into the checkpoint, by a file for
`convert_chkpt_tf2pytorch.py --meta`: `{"np_threshold": 0.45, "edges": "directions", "min_prob": 0.7, "ink": "drop"}`.

Usage:
  post_proc.py --model_path=<file> [options] <folder>...
  post_proc.py (-h | --help)

Options:
  -h --help              Show this text.
  --model_path=<file>    Checkpoint.
  --np_threshold=<list>  Least probabilities of a nuclear pixel. [default: .4,.45,.5]
  --edges=<list>         Ways to part nuclei that touch. [default: axes,directions]
  --min_prob=<list>      Least mean probabilities of a nucleus. [default: 0,.65,.7]
  --ink=<list>           What to do with nuclei in ink. [default: keep]
  --folds=<n>            Folds for cross-validation: each is scored in the way that is best on the others. The
                         mean shows the score on images that did not take part in the choice. [default: 4]
  --mpp=<um>             um/px of the images; they are resized to the um/px of the checkpoint's training.
  --window=<n>           Side in px of the patches that the network reads. Left out: what the checkpoint recommends, or
                         the patch of its mode.
  --precision=<p>        auto, fp32, bf16 or fp16. [default: auto]
  --gpu=<ids>            GPUs; empty for the CPU. [default: 0]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from docopt import docopt

if TYPE_CHECKING:
    from models.hovernet.post_proc import PostProc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Areas of nuclei are compared in pairs whose IoU is above this.
MATCH_IOU = 0.5


def main() -> int:
    args = docopt(__doc__)
    from infer.tile import InferManager
    from models.hovernet.post_proc import PostProc

    options = {
        "mpp": float(args["--mpp"]) if args["--mpp"] else None,
        "patch_input_shape": int(args["--window"]) if args["--window"] else None,
    }
    try:
        if (folds := int(args["--folds"])) < 2:
            raise ValueError(f"--folds must be 2 or more, got {folds}: the rest of the images chooses for each fold")
        ways = ways_of(*(args[f"--{field.name}"].split(",") for field in fields(PostProc)))
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
        sets = {folder: score_set(manager, Path(folder), options, ways) for folder in args["<folder>"]}
    except (ValueError, OSError) as error:
        print(f"post_proc.py: {error}", file=sys.stderr)
        return 1
    print(markdown(sets, ways))
    pq = {name: values[..., 0] for name, values in sets.items()}
    print(f"\nchosen: {' | '.join(cells(ways[choose(pq)]))}")
    if max(values.shape[1] for values in pq.values()) > 1:
        print(f"PQ on images that did not take part in the choice: {cross_validated(pq, folds):.3f}")
    return 0


def ways_of(thresholds: list[str], edges: list[str], least: list[str], inks: list[str]) -> list[PostProc]:
    """Return all combinations.

    Raises:
        ValueError: a value is no number, or cannot be.
    """
    from models.hovernet.post_proc import PostProc

    combined = itertools.product(edges, thresholds, least, inks)
    return [PostProc(float(t), e, float(p), ink) for e, t, p, ink in combined]


def cells(how: PostProc) -> list[str]:
    """Return the first cells of the row of a way."""
    return [how.edges, f"{how.np_threshold:g}", f"{how.min_prob:g}", how.ink]


def score_set(manager, folder: Path, options: dict, ways: list[PostProc]) -> np.ndarray:
    """Segment the images of a folder once, and score the nuclei that each way finds.

    Returns:
        (K, N, 3): for K ways and N images, PQ, AJI, and the median ratio of predicted to true area of matched nuclei.

    Raises:
        ValueError: an image failed.
    """
    from misc.files import full_stem, list_files
    from models.hovernet.post_proc import DROP, KEEP

    labels = {full_stem(path): path for path in list_files(folder / "Labels", "*.mat")}
    with tempfile.TemporaryDirectory() as out:
        ink = DROP if any(how.ink == DROP for how in ways) else KEEP  # the maps are the same but for one more
        options = {"save_raw_map": True, "nr_post_proc_workers": 0, "ink": ink, **options}
        report = manager.process_file_list({"input_dir": folder / "Images", "output_dir": out, **options})
        if report.failed:
            raise ValueError(f"{folder}: {report.failed}")
        images = [(Path(out, "mat", f"{name}.mat"), labels[name]) for name in sorted(report.done) if name in labels]
        scores = [score_image(*paths, manager.nr_types, ways) for paths in images]
    if not scores:
        raise ValueError(f"no image in {folder / 'Images'} has a label in {folder / 'Labels'}")
    return np.array(scores).swapaxes(0, 1)


def score_image(pred: Path, label: Path, nr_types: int | None, ways: list[PostProc]) -> list[tuple[float, ...]]:
    """Return PQ, AJI and median ratio of areas for each way, from a result with the network's maps."""
    from infer.grid import Planes
    from infer.segment import segment
    from metrics.label_lists import load, read_map
    from metrics.overlap import Overlap
    from metrics.stats_utils import aji, panoptic_quality
    from models.hovernet.post_proc import DROP

    true, raw = read_map(load(label), "inst_map", label), np.moveaxis(load(pred)["raw"], -1, 0)
    plain = raw[: 3 if nr_types is None else 4]
    whole, planes = (0, 0, *true.shape), Planes(tuple(raw.shape[1:]), true.shape)
    scores = []
    for how in ways:
        maps = raw if how.ink == DROP else plain
        overlap = Overlap.of(true, segment(maps, nr_types, planes, whole, whole, how)[0])
        matched = overlap.inter > MATCH_IOU * overlap.union
        areas = overlap.pred_areas[overlap.cols[matched]] / overlap.true_areas[overlap.rows[matched]]
        ratio = float(np.median(areas)) if len(areas) else np.nan
        scores.append((panoptic_quality(overlap)[0][2], aji(overlap), ratio))
    return scores


def choose(pq: dict[str, np.ndarray]) -> int:
    """Return the position of the best of K ways, by the mean over sets of the mean PQ of their (K, N) images."""
    return int(np.mean([np.nanmean(values, axis=1) for values in pq.values()], axis=0).argmax())


def cross_validated(pq: dict[str, np.ndarray], folds: int) -> float:
    """Return the mean over sets of the PQ of images, found in the way that is best on the images of other folds."""
    scored: dict[str, list[np.ndarray]] = {name: [] for name in pq}
    for fold in range(folds):
        held = {name: np.arange(values.shape[1]) % folds == fold for name, values in pq.items()}
        rest = {name: values[:, ~held[name]] for name, values in pq.items() if not held[name].all()}
        best = choose(rest)
        for name, values in pq.items():
            scored[name].append(values[best, held[name]])
    return float(np.mean([np.nanmean(np.concatenate(parts)) for parts in scored.values()]))


def markdown(sets: dict[str, np.ndarray], ways: list[PostProc]) -> str:
    """Return the table: PQ, AJI and ratio of areas of each set, and the mean of PQ over the sets."""
    names = [f"{Path(name).parent.name}/{Path(name).name}" for name in sets]
    heads = ["edges", "NP threshold", "least probability", "ink"]
    heads += [head for name in names for head in (f"{name}: PQ", "AJI", "area / true area")] + ["mean PQ"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, how in enumerate(ways):
        means = [np.nanmean(values[row], axis=0) for values in sets.values()]
        scores = [text for pq, aji, area in means for text in (f"{pq:.3f}", f"{aji:.3f}", f"{area:.2f}")]
        lines.append(f"| {' | '.join([*cells(how), *scores, f'{np.mean([m[0] for m in means]):.3f}'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
