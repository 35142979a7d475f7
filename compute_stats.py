"""Score predictions against truth: instances (Dice, AJI, DQ, SQ, PQ, AJI+) or types (detection and type F1).

Usage:
  compute_stats.py --pred_dir=<dir> --true_dir=<dir> [options]
  compute_stats.py (-h | --help)

Options:
  -h --help               Show this text.
  --mode=<mode>           `instance` or `type`. [default: instance]
  --pred_dir=<dir>        Folder with the predictions' .mat files (`mat/` of run_infer.py).
  --true_dir=<dir>        Folder with the truth's .mat files, of the same names.
  --ext=<ext>             How the files of both folders end. [default: .mat]
  --out=<dir>             Write scores.csv and scores.json there: a row for each image, and one for all.
  --merge=<preset>        Merge types of the truth before scoring them: `consep` (3,4 -> 3; 5,6,7 -> 4).
  --type_uid_list=<ids>   Types to score, comma-separated; those of the truth when left out.
  --not_exhaustive        Type -1 in the truth means "not looked at".
  --print_img_stats       Print the scores of every image too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docopt import docopt

TYPE_COLUMNS = ("F1 detection", "accuracy of type")


def run_nuclei_inst_stat(pred_dir, true_dir, print_img_stats=False, ext=".mat"):
    """Score instance maps, print the means, and return (6, N): Dice, AJI, DQ, SQ, PQ, AJI+ of N images."""
    from metrics.folders import score_instances

    scores = score_instances(pred_dir, true_dir, ext)
    _print_instances(str(pred_dir), scores, print_img_stats)
    return scores.values


def run_nuclei_type_stat(pred_dir, true_dir, type_uid_list=None, exhaustive=True, merge=None):
    """Score types, print and return them: F1 of detection, accuracy, then the F1 of each type."""
    from metrics.folders import score_types

    scores = score_types(pred_dir, true_dir, type_uid_list, exhaustive, merge)
    _print_array(scores.values)
    return scores.values


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__, argv=argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"compute_stats.py: {error}", file=sys.stderr)
        return 1


def run(args: dict) -> int:
    from metrics.folders import score_instances, score_types

    pred_dir, true_dir, ext = args["--pred_dir"], args["--true_dir"], args["--ext"]
    if args["--mode"] == "instance":
        if args["--merge"]:
            raise ValueError(f"--merge={args['--merge']} is about types; it goes with --mode=type")
        scores = score_instances(pred_dir, true_dir, ext)
        _print_instances(pred_dir, scores, args["--print_img_stats"])
        rows = _instance_table(scores)
    elif args["--mode"] == "type":
        type_ids = _ids(args["--type_uid_list"])
        scores = score_types(pred_dir, true_dir, type_ids, not args["--not_exhaustive"], args["--merge"] or None, ext)
        _print_array(scores.values)
        rows = _type_table(scores)
    else:
        raise ValueError(f"--mode must be `instance` or `type`, got `{args['--mode']}`")
    _print_table([rows[0], rows[-1]])
    _print_problems(scores, args["--mode"])
    if args["--out"]:
        _write(Path(args["--out"]), rows, scores.failed)
    return 1 if scores.failed else 0


def _ids(text: str | None) -> list[int] | None:
    if not text:
        return None
    try:
        return [int(item) for item in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--type_uid_list takes whole numbers such as 1,2,3; got `{text}`") from error


def _instance_table(scores) -> list[list]:
    from metrics.folders import INSTANCE_SCORES

    rows = [[name, *column] for name, column in zip(scores.names, scores.values.T, strict=True)]
    return [["", *INSTANCE_SCORES], *rows, [f"mean of {len(scores.names) - len(scores.undefined())}", *scores.mean()]]


def _type_table(scores) -> list[list]:
    """Scores of each image and of all together, and how many nuclei there are, were found, and were matched."""
    from metrics.folders import DETECTION_COUNTS

    names = ["", *TYPE_COLUMNS, *(f"F1 type {k}" for k in scores.type_ids), *DETECTION_COUNTS]
    each = zip(scores.names, scores.each_image, scores.counts.tolist(), strict=True)
    rows = [[name, *values, *counts] for name, values, counts in each]
    return [names, *rows, ["all images", *scores.values, *scores.counts.sum(axis=0).tolist()]]


def _print_instances(pred_dir: str, scores, each_image: bool) -> None:
    """Print what the original prints: the folder, on request every image, and the six means."""
    print(pred_dir)
    if each_image:
        for name, column in zip(scores.names, scores.values.T, strict=True):
            print(name, end="\t")
            print("".join(f"{value:f}   " for value in column))
    _print_array(scores.mean())


def _print_array(values) -> None:
    import numpy as np

    print(np.array2string(np.asarray(values), formatter={"float": "{: 0.5f}".format}))


def _print_table(rows: list[list]) -> None:
    cells = [[f"{v:.5f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _print_problems(scores, mode: str) -> None:
    if mode == "instance" and scores.undefined():
        names = ", ".join(scores.undefined())
        print(f"no nucleus in truth and prediction, so no score, left out of the mean: {names}", file=sys.stderr)
    for name, reason in sorted(scores.failed.items()):
        print(f"not scored: {name}: {reason}", file=sys.stderr)


def _write(folder: Path, rows: list[list], failed: dict[str, str]) -> None:
    """Write the table as CSV and JSON; undefined scores are empty, or null."""
    import csv
    import io
    import json
    import math

    from misc.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    header = ["image", *rows[0][1:]]
    clean = [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows[1:]]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *clean])
    write_atomic(folder / "scores.csv", text.getvalue())
    named = [dict(zip(header, row, strict=True)) for row in clean]
    write_atomic(folder / "scores.json", json.dumps({"scores": named, "failed": failed}, indent=1))
    print(f"written: {folder / 'scores.csv'}, {folder / 'scores.json'}")


if __name__ == "__main__":
    sys.exit(main())
