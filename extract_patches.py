"""Cut training patches out of labelled images.

Usage:
  extract_patches.py [options] [--overwrite]
  extract_patches.py --check=<dir> [--nr_types=<n>]
  extract_patches.py unpack --images=<file> --masks=<file> --output_dir=<dir> [--overwrite]
  extract_patches.py rois --wsi_dir=<dir> --output_dir=<dir> [--size=<px>] [--per_slide=<n>] [--mpp=<um>]
                     [--slide_mpp=<um>] [--seed=<n>] [--pattern=<glob>] [--recursive] [--overwrite]
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
  --overwrite            Replace files that exist. Without it equal patches are skipped; a different one is an error.

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
  --slide_mpp=<um>       Micrometres per pixel of the slides at level 0, if the files do not say it or are wrong.
  --seed=<n>             Another number, other fields. [default: 0]
  --pattern=<glob>       Which files of the folder are slides. [default: *]
  --recursive            Look into its folders too.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from misc.batch import print_failed, recorded
from misc.cli import number, numbers, run_command
from misc.text import counted, first_names, print_table

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
# Of rois.csv.
ROI_COLUMNS = ("slide", "file", "x_level0_px", "y_level0_px", "size_px", "mpp_um")


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
    return run_command(__doc__, run, argv)


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
            win_size=_size(args, "--win_size") or (window, window),
            step_size=_size(args, "--step_size") or (step, step),
            extract_type=extract_type,
            scale=number(args, "--scale"),
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
        print_failed("extract_patches.py", report.failed)
    print_reports(reports, options.type_names)
    failed, lone = sum(len(r.failed) for r in reports), sum(len(s.lone) for s in options.splits)
    folders = ", ".join(str(options.out_dir(split)) for split in options.splits)
    print(
        f"{counted(sum(r.new for r in reports), 'patch')} written, {sum(r.there for r in reports)} there already, "
        f"{counted(failed, 'image')} failed, {counted(lone, 'file')} without partner, "
        f"{time.perf_counter() - start:.1f} s; in {folders}"
    )
    return 1 if failed or lone else 0


def print_reports(reports: list[Report], type_names: dict[int, str]) -> None:
    """Print images, patches and nuclei by type, one row a split."""
    from misc.type_info import UNKNOWN_TYPE

    type_names = {**type_names, UNKNOWN_TYPE: "unknown"}
    types = sorted({t for r in reports for t in r.nuclei if t is not None} | set(type_names) - {UNKNOWN_TYPE})
    header = ["split", "images", "patches", "nuclei", *(f"{t} {type_names.get(t, '')}".strip() for t in types)]
    rows = [[r.split, r.images, r.new + r.there, r.nuclei.total(), *(r.nuclei[t] for t in types)] for r in reports]
    print_table([header, *rows])
    for report in reports:
        if report.nuclei[0]:
            print(f"{report.split}: {counted(report.nuclei[0], 'nucleus')} of type 0, background to the training")
        if report.empty:
            empty = counted(len(report.empty), "image")
            print(f"{report.split}: {empty} without a nucleus: {first_names(report.empty)}")
        if report.vanished:
            print(f"{report.split}: {counted(report.vanished, 'nucleus')} vanished when scaled")


def check(args: dict) -> int:
    """Print what is in a folder of patches; 1 where training could not use it."""
    from misc.type_info import UNKNOWN_TYPE
    from run_utils.checks import list_patches
    from run_utils.patch_report import report_patches

    nr_types = number(args, "--nr_types", int)
    files = list_patches([args["--check"]], "--check")
    report = report_patches(files, nr_types)
    print_failed("extract_patches.py", report.failed)
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
    print_table([["type", "nuclei", "share", "pixels", "share"], *rows])
    if report.nuclei[None]:
        print("no types: beside typed patches, a typed network treats the types of these nuclei as unknown")
    for names, what in ((report.empty, "no nucleus"), *((names, what) for what, names in report.odd.items())):
        if names:
            print(f"{counted(len(names), 'patch')} with {what}: {first_names(names)}")
    print(
        f"{counted(len(files), 'patch')} ({_counts(report.shapes)}; {_counts(report.dtypes)}; "
        f"{report.size / 1e6:.1f} MB), {counted(len(report.failed), 'error')}; "
        "a nucleus counts in every patch that shows it"
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
        f"{counted(written, 'image')} written, {there} there already, {counted(hidden, 'nucleus')} hidden under "
        f"others; in {Path(args['--output_dir']) / 'Images'} and Labels"
    )
    return 0


def rois(args: dict) -> int:
    """Crop fields out of the slides of a folder; slides that fail are reported, the others are done."""
    from tqdm import tqdm

    from dataloader.extraction import ROIS_TABLE
    from dataloader.rois import extract_rois
    from misc.slides.folder import find_slides
    from misc.tables import earlier_rows, merge_table

    size, count, mpp = number(args, "--size", int), number(args, "--per_slide", int), number(args, "--mpp")
    seed, own_mpp = number(args, "--seed", int, zero=True), number(args, "--slide_mpp")
    files, out_dir = find_slides(args["--wsi_dir"], args["--pattern"], args["--recursive"]), Path(args["--output_dir"])
    if not files.slides:
        reasons = "".join(f"; {reason}" for reason in files.unusable.values())
        there = counted(len(files.others) + len(files.unusable), "file")
        raise ValueError(f"no slide among the {there} of {args['--wsi_dir']} ({args['--pattern']}){reasons}")
    table = out_dir / ROIS_TABLE
    there = set() if args["--overwrite"] else {row["slide"] for row in earlier_rows(table, ())}
    slides = [path for path in files.slides if path.name not in there]
    if not slides and not files.unusable:
        raise ValueError(f"{table} has all slides; --overwrite crops again, another --output_dir keeps both")
    out_dir.mkdir(parents=True, exist_ok=True)
    found, failed = [], {path.name: reason for path, reason in files.unusable.items()}
    for path in tqdm(slides, unit=" slides", disable=None):
        with recorded(failed, path.name):
            found += extract_rois(path, out_dir, size, count, mpp, seed, own_mpp)
    rows = [(roi.slide, Path(roi.file).name, roi.x, roi.y, size, roi.mpp) for roi in found]
    if rows:  # slides that failed are not in it: the next run does them
        rows = [dict(zip(ROI_COLUMNS, row, strict=True)) for row in rows]
        merge_table(table, rows, [path.name for path in slides], ROI_COLUMNS)
    print_failed("extract_patches.py", failed)
    _complain(f"no slide, skipped: {path}" for path in files.others)
    nr_slides, there = len(slides) + len(files.unusable) - len(failed), len(files.slides) - len(slides)
    print(
        f"{counted(len(found), 'field')} of {size} px from {counted(nr_slides, 'slide')}, {there} there already, "
        f"{len(failed)} failed, {counted(len(files.others), 'other file')} skipped"
        f"{f'; listed in {table}' if table.exists() else ''}"
    )
    return 1 if failed else 0


def _complain(lines) -> None:
    for line in lines:
        print(f"extract_patches.py: {line}", file=sys.stderr)


def _counts(counter: Counter) -> str:
    """Write shapes or types, with how many there are of each where there are several."""
    if len(counter) == 1:
        return str(*counter)
    return ", ".join(f"{count} {key}" for key, count in counter.most_common(3)) + ", ..." * (len(counter) > 3)


def _size(args: dict, option: str) -> tuple[int, int] | None:
    """Read `540` or `540,480`."""
    sides = numbers(args, option, int)
    if sides is None:
        return None
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"{option} is one whole number above 0, or height,width, got `{args[option]}`")
    return sides[0], sides[-1]


if __name__ == "__main__":
    sys.exit(main())
