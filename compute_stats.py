"""Score predictions against truth: instances (Dice, AJI, DQ, SQ, PQ, AJI+) or types (detection and type F1).

Usage:
  compute_stats.py --pred_dir=<dir> --true_dir=<dir> [options]
  compute_stats.py (-h | --help)

Options:
  -h --help               Show this text.
  --mode=<mode>           `instance` or `type`. [default: instance]
  --pred_dir=<dir>        Folder with the predictions (`mat/` of run_infer.py).
  --true_dir=<dir>        Folder with the truth, files of the same names. Predictions there are an error.
  --ext=<ext>             How the files of both folders end: .mat (version 5 to 7.3), or .npy of (H, W) instances or
                          (H, W, 2) with types. [default: .mat]
  --out=<dir>             Write scores.csv and scores.json there: a row for each image, and one for all. And
                          report.html, with the images that score lowest and highest.
  --no_report             Leave report.html out.
  --merge=<preset>        Merge types of the truth before scoring them: `consep` (3,4 -> 3; 5,6,7 -> 4), or a JSON file
                          {"new type": [types], ...}, by name or number.
  --true_types=<map>      What types of the truth are scored as, e.g. weak=Positive,moderate=Positive,strong=Positive,
                          negative=Negative; by name or number, or a JSON file {"weak": "Positive", ...}.
  --pred_types=<map>      The same for types of the prediction.
  --type_uid_list=<list>  Types to score, comma-separated, by name or number; those of the truth when left out.
  --type_info_path=<file> type_info.json: names of the types. Left out: those that the files say.
  --not_exhaustive        Type -1 in the truth means "not looked at".
  --print_img_stats       Print the scores of every image too.

Types are what a label file says: lists (`inst_type`, or `class` as Lizard has it) or `type_map`. Of a network without
types the F1 score of detection is printed alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from misc.batch import print_failed
from misc.cli import run_command
from misc.text import print_table

TYPE_COLUMNS = ("F1 detection", "accuracy of type")
# Options that say something of types.
TYPE_OPTIONS = ("--merge", "--true_types", "--pred_types", "--type_uid_list", "--type_info_path")


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
    return run_command(__doc__, run, argv)


def run(args: dict) -> int:
    from metrics.folders import score_instances, score_types

    pred_dir, true_dir, ext = args["--pred_dir"], args["--true_dir"], args["--ext"]
    if args["--mode"] == "instance":
        for option in TYPE_OPTIONS:
            if args[option]:
                raise ValueError(f"{option}={args[option]} is about types; it goes with --mode=type")
        scores = score_instances(pred_dir, true_dir, ext)
        _print_instances(pred_dir, scores, args["--print_img_stats"])
        rows = _instance_table(scores)
    elif args["--mode"] == "type":
        scores = score_types(pred_dir, true_dir, exhaustive=not args["--not_exhaustive"], ext=ext, **type_options(args))
        _print_array(scores.values)
        rows = _type_table(scores)
    else:
        raise ValueError(f"--mode must be `instance` or `type`, got `{args['--mode']}`")
    print_table([rows[0], rows[-1]])
    _print_problems(scores, args["--mode"])
    if args["--out"]:
        _write(Path(args["--out"]), rows, scores.failed)
        if not args["--no_report"]:
            from viewer.report.make import say_report

            print(say_report(Path(args["--out"]), pred_dir=Path(pred_dir), true_dir=Path(true_dir), ext=ext))
    return 1 if scores.failed else 0


def type_options(args: dict) -> dict:
    """Return what the options say of types, as `score_types` takes it."""
    from metrics.type_maps import read_type_map
    from misc.type_info import load_type_info, split_types

    path, uids = args["--type_info_path"], args["--type_uid_list"]
    maps = {
        option.removeprefix("--"): read_type_map(args[option], option) if args[option] else None
        for option in ("--true_types", "--pred_types")
    }
    return {
        "merge": args["--merge"] or None,
        "type_uids": split_types(uids) if uids else None,
        "type_info": load_type_info(path) if path else None,
        **maps,
    }


def _instance_table(scores) -> list[list]:
    from metrics.folders import INSTANCE_SCORES

    rows = [[name, *column] for name, column in zip(scores.names, scores.values.T, strict=True)]
    return [["", *INSTANCE_SCORES], *rows, [f"mean of {len(scores.names) - len(scores.undefined())}", *scores.mean()]]


def _type_table(scores) -> list[list]:
    """Scores of each image and of all together, and how many nuclei there are, were found, and were matched."""
    from metrics.folders import DETECTION_COUNTS

    known = {k: scores.type_info[k][0] for k in scores.type_ids if k in scores.type_info}
    unique = {k for k, name in known.items() if name != str(k) and list(known.values()).count(name) == 1}
    types = [f"F1 {known[k]}" if k in unique else f"F1 type {k}" for k in scores.type_ids]
    names = ["", *TYPE_COLUMNS[: len(scores.values) - len(types)], *types, *DETECTION_COUNTS]
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


def _print_problems(scores, mode: str) -> None:
    if mode == "instance" and scores.undefined():
        names = ", ".join(scores.undefined())
        print(f"no nucleus in truth and prediction, so no score, left out of the mean: {names}", file=sys.stderr)
    for note in scores.notes:
        print(note, file=sys.stderr if note.startswith("WARNING") else sys.stdout)
    print_failed("compute_stats.py", scores.failed)


def _write(folder: Path, rows: list[list], failed: dict[str, str]) -> None:
    """Write the table as CSV and JSON; undefined scores are empty, or null."""
    import io
    import json
    import math

    from misc.files import CsvWriter, write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    header = ["image", *rows[0][1:]]
    clean = [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows[1:]]
    text = io.StringIO()
    CsvWriter(text).writerows([header, *clean])
    write_atomic(folder / "scores.csv", text.getvalue())
    named = [dict(zip(header, row, strict=True)) for row in clean]
    write_atomic(folder / "scores.json", json.dumps({"scores": named, "failed": failed}, indent=1))
    print(f"written: {folder / 'scores.csv'}, {folder / 'scores.json'}")


if __name__ == "__main__":
    sys.exit(main())
