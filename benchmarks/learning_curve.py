"""Write and draw the learning curve of a training, or compare it with a published one.

Usage:
  learning_curve.py draw --log_dir=<dir> --out=<path> [--mpp=<um>] [--gpu=<ids>] [<folder>...]
  learning_curve.py compare --log_dir=<dir> --published=<csv>
  learning_curve.py (-h | --help)

`draw` writes <out>.csv, the losses averaged over blocks of steps, and <out>.png. With folders (Images/, Labels/) it
scores every checkpoint in the log on them, after the training: no choice depends on these scores.
`compare` prints the losses of another training of the same recipe, as far as it ran, beside the published ones.

Options:
  -h --help          Show this text.
  --log_dir=<dir>    Log folder of run_train.py.
  --out=<path>       Path of the two files, without an ending.
  --published=<csv>  A file that `draw` wrote.
  --mpp=<um>         um/px of the images in the folders. [default: 0.25]
  --gpu=<ids>        GPUs; empty for the CPU. [default: 0]
"""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BLOCK_STEPS = 49  # a quarter of an epoch of the recipe that made the shipped checkpoint
LOSSES = ("overall_loss", "loss_np_bce", "loss_np_dice", "loss_hv_mse", "loss_hv_msge")
SCORES = ("Dice", "AJI", "PQ")
SHOWN_LOSSES = ("overall_loss", "loss_hv_mse", "loss_np_dice")
# Two runs agree if their losses differ by no more than this, in standard deviations of the loss within a block.
NOISE_SD = 1.0
FIGURE_INCH = (11, 4)


def main() -> int:
    args = docopt(__doc__)
    try:
        curve = read_losses(Path(args["--log_dir"]) / "steps.csv")
        if args["compare"]:
            return compare(curve, read_published(Path(args["--published"])))
        scores = score_checkpoints(args) if args["<folder>"] else {}
        draw(curve, scores, args)
    except (ValueError, OSError) as error:
        print(f"learning_curve.py: {error}", file=sys.stderr)
        return 1
    return 0


def read_losses(path: Path) -> dict[str, np.ndarray]:
    """Return the mean of each loss over blocks of `BLOCK_STEPS` steps, and the standard deviation of the overall loss.

    Returns:
        `step` (last of each block), `sd` and each of `LOSSES`; all (N,).

    Raises:
        ValueError: fewer steps than a block.
    """
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    count = len(rows) // BLOCK_STEPS
    if not count:
        raise ValueError(f"{path} holds {len(rows)} steps, a block has {BLOCK_STEPS}")
    blocks = {
        name: np.array([float(row[name]) for row in rows[: count * BLOCK_STEPS]]).reshape(count, -1) for name in LOSSES
    }
    curve = {name: values.mean(axis=1) for name, values in blocks.items()}
    return {"step": np.arange(1, count + 1) * BLOCK_STEPS, "sd": blocks["overall_loss"].std(axis=1), **curve}


def read_published(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a file that `draw` wrote."""
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return {name: np.array([float(row[name]) for row in rows]) for name in ("step", "sd", *LOSSES)}


def compare(curve: dict[str, np.ndarray], published: dict[str, np.ndarray]) -> int:
    """Print both curves and whether they agree; return 0 if they do."""
    count = min(len(curve["step"]), len(published["step"]))
    print("| steps | loss, published | sd of a step | loss, here | difference in sd | HV error, published | here |")
    print("|---" * 7 + "|")
    difference = (curve["overall_loss"][:count] - published["overall_loss"][:count]) / published["sd"][:count]
    for i in range(count):
        print(
            f"| {published['step'][i]:.0f} | {published['overall_loss'][i]:.3f} | {published['sd'][i]:.3f} | "
            f"{curve['overall_loss'][i]:.3f} | {difference[i]:+.2f} | {published['loss_hv_mse'][i]:.4f} | "
            f"{curve['loss_hv_mse'][i]:.4f} |"
        )
    agree = bool((np.abs(difference) <= NOISE_SD).all())
    print(f"\n{'within' if agree else 'NOT within'} {NOISE_SD:g} sd of the loss of a step, {count} blocks")
    return 0 if agree else 1


def score_checkpoints(args: dict) -> dict[int, np.ndarray]:
    """Return `{epoch: (3,) mean Dice, AJI, PQ over the images of all folders}` for the checkpoints in the log."""
    from benchmarks.accuracy import score_folder
    from infer.tile import InferManager
    from metrics.folders import INSTANCE_SCORES

    which = [INSTANCE_SCORES.index(name) for name in SCORES]
    scores = {}
    for path in Path(args["--log_dir"]).glob("net_epoch=*.tar"):
        manager = InferManager({"model_path": path}, gpu=args["--gpu"])
        values = [score_folder(manager, Path(f), {"mpp": float(args["--mpp"])}).values for f in args["<folder>"]]
        epoch = int(re.search(r"epoch=(\d+)", path.name)[1])
        scores[epoch] = np.nanmean(np.concatenate(values, axis=1), axis=1)[which]
    return dict(sorted(scores.items()))


def draw(curve: dict[str, np.ndarray], scores: dict[int, np.ndarray], args: dict) -> None:
    """Write the table and the picture."""
    from matplotlib.figure import Figure

    from misc.files import write_atomic
    from misc.ihc import plots

    out = Path(args["--out"])
    with open(Path(args["--log_dir"]) / "steps.csv", newline="", encoding="utf-8") as handle:
        steps_an_epoch = sum(row["epoch"] == "1" for row in csv.DictReader(handle))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "sd", *LOSSES])
    names = ("step", "sd", *LOSSES)
    table.writerows([f"{curve[name][i]:.5g}" for name in names] for i in range(len(curve["step"])))
    write_atomic(out.with_suffix(".csv"), text.getvalue())
    figure = Figure(figsize=FIGURE_INCH, layout="constrained")
    left, *others = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for name in SHOWN_LOSSES:
        left.plot(curve["step"], curve[name], label=name)
    left.set(xlabel="step", yscale="log", title="training loss")
    left.legend(frameon=False)
    for right in others:
        for k, name in enumerate(SCORES):
            right.plot([e * steps_an_epoch for e in scores], [v[k] for v in scores.values()], "o-", label=name)
        right.set(xlabel="step", title="images that were never trained on", ylim=(0, 1))
        right.grid(alpha=0.3)
        right.legend(frameon=False)
    plots.save(figure, out.with_suffix(".png"))
    for epoch, values in scores.items():
        print(f"epoch {epoch}: " + ", ".join(f"{name} {v:.3f}" for name, v in zip(SCORES, values, strict=True)))
    print(f"{len(curve['step'])} blocks of {BLOCK_STEPS} steps; {out.with_suffix('.csv')}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(main())
