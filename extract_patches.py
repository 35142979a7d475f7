"""Cut training patches out of labelled images.

Usage:
  extract_patches.py [options] [--overwrite]
  extract_patches.py --check=<dir> [--nr_types=<n>]
  extract_patches.py unpack --images=<file> --masks=<file> --output_dir=<dir> [--overwrite]
  extract_patches.py rois --wsi_dir=<dir> --output_dir=<dir> [--size=<px>] [--per_slide=<n>] [--mpp=<um>]
                     [--slide_mpp=<um>] [--seed=<n>] [--pattern=<glob>] [--overwrite]
  extract_patches.py (-h | --help)

Options:
  -h --help              Show this text.
  --dataset=<name>       A name that dataset.py knows. Left out: config.py's `dataset_name`.
  --type                 Write the types, too. With neither: config.py's `type_classification`.
  --no_type              Write instances alone.
  --type_info=<file>     type_info.json of the network: patches get its ids, matched by the names of the types; others
                         become unknown (255), which training leaves out of the loss of the types.
  --rename_types=<list>  Names that differ, as theirs:ours, e.g. lymphocyte:inflammatory,macrophage:inflammatory.
  --split=<name>         Which split: a folder of the result. Left out: all of DATASET_INFO in this file; `train` with
                         folders of your own.
  --img_dir=<dir>        Folder with the images of that split. Left out: what DATASET_INFO says.
  --ann_dir=<dir>        Folder with their labels, which have the same names.
  --mode=<mode>          `original` (step of 80 px) or `fast` (164 px), windows of 540 px both. Left out: config.py's.
  --win_size=<px>        Window: one number, or height,width. Left out: that of the mode.
  --step_size=<px>       Step: the same.
  --extract_type=<type>  mirror: reflect the image at its edges, so that its border counts as much as its middle.
                         valid: windows inside the image only.
                         whole: every image is one patch as it is, for small ones such as PanNuke's. [default: mirror]
  --scale=<f>            Resize images and labels first; 0.5 makes 20x of 40x. [default: 1]
  --save_root=<dir>      Where to write. Left out: dataset/training_data/<dataset>.
                         Patches go to <save_root>/<dataset>/<split>/<window>_<step>/<image>_<number>.npy
  --overwrite            Write anew what is there. Without it equal patches are skipped and different ones an error.

  --check=<dir>          Read the patches in a folder, and print what is in them and what is wrong with them.
  --nr_types=<n>         Number of types, background included, that the patches may have.

  unpack                 Turn the arrays that PanNuke comes as into Images/ and Labels/ for --dataset=pannuke.
  --images=<file>        images.npy
  --masks=<file>         masks.npy
  --output_dir=<dir>     Folder to write to; made if it is not there.

  rois                   Crop fields worth annotating (tissue, spread over the slide) as PNG, with a table rois.csv.
  --wsi_dir=<dir>        Folder with the slides.
  --size=<px>            Side of a field. [default: 1000]
  --per_slide=<n>        Fields of each slide. [default: 5]
  --mpp=<um>             Micrometres per pixel of the fields. Left out: the slide's own.
  --slide_mpp=<um>       Micrometres per pixel of the slides at level 0, where the files are silent or wrong.
  --seed=<n>             Another number, other fields. [default: 0]
  --pattern=<glob>       Which files of the folder are slides. [default: *]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from docopt import docopt

if TYPE_CHECKING:
    from dataloader.extraction import Cut, Report, Split

# Where the images and labels of each split are: (how the files' names end, folder). Edit it, or use the options.
DATASET_INFO: dict[str, dict[str, tuple[str, str]]] = {
    "train": {
        "img": (".png", "dataset/CoNSeP/Train/Images/"),
        "ann": (".mat", "dataset/CoNSeP/Train/Labels/"),
    },
    "valid": {
        "img": (".png", "dataset/CoNSeP/Test/Images/"),
        "ann": (".mat", "dataset/CoNSeP/Test/Labels/"),
    },
}


@dataclass(frozen=True)
class Options:
    """What to extract, as typed values; the text above explains each."""

    dataset: str
    with_type: bool
    type_names: dict[int, str]
    type_ids: dict[int, int] | None
    splits: tuple[Split, ...]
    cut: Cut
    save_root: Path
    overwrite: bool

    def out_dir(self, split: Split) -> Path:
        """Return the folder for the patches of a split."""
        return self.save_root / self.dataset / split.name / self.cut.folder


def main(argv: list[str] | None = None) -> int:
    from misc.batch import run_script

    args = docopt(__doc__, argv)
    return run_script("extract_patches.py", lambda: run(args))


def run(args: dict) -> int:
    """Do what the command asks for."""
    if args["--check"]:
        return check(args)
    if args["unpack"]:
        return unpack(args)
    if args["rois"]:
        return rois(args)
    return extract(parse(args))


def parse(args: dict) -> Options:
    """Turn docopt's strings into values, with what config.py says where nothing is said; nothing is written yet."""
    from config import Config
    from dataloader.extraction import Cut
    from dataset import get_dataset
    from misc.patch_extractor import EXTRACT_TYPES

    config = Config()
    name, mode, extract_type = args["--dataset"] or config.dataset_name, args["--mode"], args["--extract_type"]
    for option, value, allowed in (
        ("--mode", mode or config.model_mode, config.patch_sizes),
        ("--extract_type", extract_type, EXTRACT_TYPES),
    ):
        if value not in allowed:
            raise ValueError(f"{option} is one of {', '.join(allowed)}, got `{value}`")
    if args["--type"] and args["--no_type"]:
        raise ValueError("give --type or --no_type, not both")
    with_type = args["--type"] or (config.type_classification and not args["--no_type"])
    if get_dataset(name).typed is False and with_type:
        raise ValueError(
            f"the labels of `{name}` have no types; add --no_type (or see type_classification in config.py)"
        )
    window, step = config.patch_sizes[mode or config.model_mode]
    type_names, type_ids = find_types(args, name, with_type)
    return Options(
        dataset=name.lower(),
        with_type=with_type,
        type_names=type_names,
        type_ids=type_ids,
        splits=find_splits(args["--split"], args["--img_dir"], args["--ann_dir"]),
        cut=Cut(
            win_size=_size(args["--win_size"], "--win_size") or (window, window),
            step_size=_size(args["--step_size"], "--step_size") or (step, step),
            extract_type=extract_type,
            scale=_number(args["--scale"], "--scale"),
        ),
        save_root=Path(args["--save_root"] or f"dataset/training_data/{name.lower()}"),
        overwrite=args["--overwrite"],
    )


def find_types(args: dict, name: str, with_type: bool) -> tuple[dict[int, str], dict[int, int] | None]:
    """Return the names of the types of the patches, and which id each type of the labels gets (`None`: its own)."""
    from dataset import get_dataset
    from misc.type_info import load_type_info, types_by_name

    path, renames, names = args["--type_info"], args["--rename_types"], get_dataset(name).type_names
    if path is None:
        if renames:
            raise ValueError("--rename_types goes with --type_info")
        return names if with_type else {}, None
    if not with_type or not names:
        raise ValueError(
            f"--type_info matches the names of types: `{name}` has none in dataset.py, or none are extracted"
        )
    pairs = [pair.split(":") for pair in renames.split(",")] if renames else []
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"--rename_types is theirs:ours,theirs:ours, got `{renames}`")
    info = load_type_info(path)
    return {key: name for key, (name, _) in info.items() if key}, types_by_name(names, info, dict(pairs))


def find_splits(name: str | None, img_dir: str | None, ann_dir: str | None) -> tuple[Split, ...]:
    """Find and pair the files of the splits that the options or DATASET_INFO name."""
    from dataloader.extraction import pair_files

    if bool(img_dir) != bool(ann_dir):
        raise ValueError("--img_dir and --ann_dir go together")
    if img_dir:
        return (pair_files(name or "train", ("", img_dir), (".mat", ann_dir)),)
    if name and name not in DATASET_INFO:
        raise ValueError(
            f"DATASET_INFO in extract_patches.py has no split `{name}`, only {', '.join(DATASET_INFO)}; "
            "or give --img_dir and --ann_dir"
        )
    return tuple(pair_files(key, info["img"], info["ann"]) for key, info in DATASET_INFO.items() if name in (None, key))


def extract(options: Options) -> int:
    """Extract one split after the other; what fails is reported, the others are done."""
    from dataloader.extraction import extract_split
    from dataset import get_dataset
    from misc.type_info import renumber_types

    start, reports, dataset = time.perf_counter(), [], get_dataset(options.dataset)

    def load_ann(path: Path):
        label = dataset.load_ann(path, options.with_type)
        return label if options.type_ids is None else renumber_types(label, options.type_ids)

    for split in options.splits:
        report = extract_split(
            split,
            dataset.load_img,
            load_ann,
            options.cut,
            options.out_dir(split),
            options.overwrite,
        )
        reports.append(report)
        _complain(f"no partner: {path}" for path in split.lone)
        _complain(f"failed: {name}: {reason}" for name, reason in report.failed.items())
    print_reports(reports, options.type_names)
    failed, lone = sum(len(r.failed) for r in reports), sum(len(s.lone) for s in options.splits)
    folders = ", ".join(str(options.out_dir(split)) for split in options.splits)
    print(
        f"{sum(r.new for r in reports)} patches written, {sum(r.there for r in reports)} were there already, "
        f"{failed} images failed, {lone} files without partner, {time.perf_counter() - start:.1f} s; in {folders}"
    )
    return 1 if failed or lone else 0


def print_reports(reports: list[Report], type_names: dict[int, str]) -> None:
    """Print images, patches and nuclei by type, one row a split."""
    from misc.type_info import UNKNOWN_TYPE

    type_names = {**type_names, UNKNOWN_TYPE: "unknown"}
    types = sorted({t for r in reports for t in r.nuclei if t is not None} | set(type_names) - {UNKNOWN_TYPE})
    header = ["split", "images", "patches", "nuclei", *(f"{t} {type_names.get(t, '')}".strip() for t in types)]
    print_table(
        header,
        [[r.split, r.images, r.new + r.there, r.nuclei.total(), *(r.nuclei[t] for t in types)] for r in reports],
    )
    for report in reports:
        if report.nuclei[0]:
            print(f"{report.split}: {report.nuclei[0]} nuclei of type 0, which training takes for background")
        if report.empty:
            print(f"{report.split}: {len(report.empty)} images without a nucleus: {_some(report.empty)}")
        if report.vanished:
            print(f"{report.split}: {report.vanished} nuclei vanished when scaled")


def check(args: dict) -> int:
    """Print what is in a folder of patches; 1 where training could not use it."""
    from misc.type_info import UNKNOWN_TYPE
    from run_utils.checks import list_patches
    from run_utils.patch_report import report_patches

    nr_types = args["--nr_types"] and _number(args["--nr_types"], "--nr_types", int)
    files = list_patches([args["--check"]], "--check")
    report = report_patches(files, nr_types)
    _complain(f"failed: {name}: {reason}" for name, reason in report.failed.items())
    total, pixels = max(report.nuclei.total(), 1), max(report.pixels.total(), 1)
    rows = [["all", report.nuclei.total(), "", "", ""]]
    for t in sorted(report.pixels):
        count = report.nuclei[t]
        rows.append(
            [
                "unknown" if t == UNKNOWN_TYPE else t,
                count,
                f"{count / total:.1%}",
                report.pixels[t],
                f"{report.pixels[t] / pixels:.1%}",
            ]
        )
    print_table(["type", "nuclei", "share", "pixels", "share"], rows)
    if report.nuclei[None]:
        print("no types: beside typed patches, a typed network takes the types of these nuclei for unknown")
    for names, what in ((report.empty, "no nucleus"), *((names, what) for what, names in report.odd.items())):
        if names:
            print(f"{len(names)} patches with {what}: {_some(names)}")
    print(
        f"{len(files)} patches ({_counts(report.shapes)}; {_counts(report.dtypes)}; {report.size / 1e6:.1f} MB), "
        f"{len(report.failed)} errors; a nucleus counts in every patch that shows it"
    )
    return 1 if report.failed else 0


def unpack(args: dict) -> int:
    """Turn PanNuke's arrays into images and labels."""
    from tqdm import tqdm

    from dataset import PanNuke

    written, there, hidden = PanNuke.unpack(
        args["--images"],
        args["--masks"],
        args["--output_dir"],
        args["--overwrite"],
        track=lambda numbers: tqdm(numbers, unit=" images", disable=None),
    )
    print(
        f"{written} images written, {there} were there already, {hidden} nuclei hidden under others; "
        f"in {Path(args['--output_dir']) / 'Images'} and Labels"
    )
    return 0


def rois(args: dict) -> int:
    """Crop fields out of the slides of a folder; slides that fail are reported, the others are done."""
    import io

    from tqdm import tqdm

    from dataloader.extraction import ROIS_TABLE
    from misc.batch import recorded
    from misc.files import CsvWriter, write_atomic
    from misc.slides.folder import find_slides
    from misc.slides.rois import extract_rois

    size, count = _number(args["--size"], "--size", int), _number(args["--per_slide"], "--per_slide", int)
    mpp, own_mpp = (_number(args[o], o) if args[o] else None for o in ("--mpp", "--slide_mpp"))
    seed = _number(args["--seed"], "--seed", int, zero=True)
    files, out_dir = find_slides(args["--wsi_dir"], args["--pattern"]), Path(args["--output_dir"])
    if not files.slides:
        reasons = "".join(f"; {reason}" for reason in files.unusable.values())
        nr_files = len(files.others) + len(files.unusable)
        raise ValueError(f"no slide among the {nr_files} files of {args['--wsi_dir']} ({args['--pattern']}){reasons}")
    table = out_dir / ROIS_TABLE
    if table.exists() and not args["--overwrite"]:
        raise ValueError(f"{table} is there; --overwrite crops anew, another --output_dir keeps both")
    out_dir.mkdir(parents=True, exist_ok=True)
    found, failed = [], {path.name: reason for path, reason in files.unusable.items()}
    for path in tqdm(files.slides, unit=" slides", disable=None):
        with recorded(failed, path.name):
            found += extract_rois(path, out_dir, size, count, mpp, seed, own_mpp)
    text = io.StringIO(newline="")
    rows = CsvWriter(text)
    rows.writerow(["slide", "file", "x_level0_px", "y_level0_px", "size_px", "mpp_um"])
    rows.writerows([roi.slide, Path(roi.file).name, roi.x, roi.y, size, roi.mpp] for roi in found)
    write_atomic(table, text.getvalue())
    _complain(f"failed: {name}: {reason}" for name, reason in failed.items())
    _complain(f"no slide, skipped: {path}" for path in files.others)
    nr_slides = len(files.slides) + len(files.unusable) - len(failed)
    print(
        f"{len(found)} fields of {size} px from {nr_slides} slides, {len(failed)} failed, "
        f"{len(files.others)} other files skipped; listed in {table}"
    )
    return 1 if failed else 0


def print_table(header: list, rows: list[list]) -> None:
    """Print rows under a header: the first column to the left, the others to the right."""
    columns = [[str(row[i]) for row in (header, *rows)] for i in range(len(header))]
    widths = [max(map(len, column)) for column in columns]
    for first, *others in zip(*columns, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


def _complain(lines) -> None:
    for line in lines:
        print(f"extract_patches.py: {line}", file=sys.stderr)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _counts(counter: Counter) -> str:
    """Write shapes or types, with how many there are of each where there are several."""
    if len(counter) == 1:
        return str(*counter)
    return ", ".join(f"{count} {key}" for key, count in counter.most_common(3)) + ", ..." * (len(counter) > 3)


def _size(text: str | None, option: str) -> tuple[int, int] | None:
    """Read `540` or `540,480`."""
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"{option} is one positive number, or height,width, got `{text}`")
    return sides[0], sides[-1]


def _number(text: str, option: str, kind=float, zero: bool = False):
    """Read a positive number, or one that may be 0."""
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise ValueError(
            f"{option} is a {'whole number' if kind is int else 'number'} {'of 0 or more' if zero else 'above 0'}, "
            f"got `{text}`"
        )
    return value


if __name__ == "__main__":
    sys.exit(main())
