"""Turn hand-drawn contours into label maps to train and score on.

Usage:
  GenerateMasks.py --image_dir=<dir> --annotation_dir=<dir> --output_dir=<dir> [options]
  GenerateMasks.py (-h | --help)

Options:
  -h --help                Show this text.
  --image_dir=<dir>        Folder with the images (the whole picture or tile that was annotated).
  --annotation_dir=<dir>   Folder with the contours: Sedeen .session.xml, QuPath .geojson, ASAP or ImageScope .xml. An
                           annotation belongs to the image of the same name, or to the one that it names.
  --output_dir=<dir>       Where <image>.mat goes: inst_map, type_map, inst_type, inst_centroid.
  --type_info_path=<file>  type_info.json: names and colours of the types, as used in the annotation. Left out: the pens
                           of the seed's lab, 1 negative red, 2 weak blue, 3 moderate purple, 4 strong green; its
                           outline of the tumour bed, cyan, is left out.
  --mapping=<file>         JSON {"class name or #rrggbb": type, ...} on top of that; null leaves contours out.
  --untyped                All contours are nuclei of type 1, whatever their class or colour.
  --scale=<f>              Multiply the contours' coordinates: 0.5 for images halved after annotation. [default: 1]
  --intensity              Types from the staining instead: 1 negative, 2 weak, 3 moderate, 4 strong by the mean DAB
                           density of each nucleus, unknown classes and colours included; what is left out above is
                           left out here. Writes intensity.csv (nuclei), intensity_summary.csv (images) and
                           intensity.png of all images, those whose label maps are there already included.
  --thresholds=<a,b,c>     DAB densities from which a nucleus is weak, moderate, strong. [default: 0.2,0.4,0.6]
  --kmeans                 Find moderate and strong by three-way k-means over all images, which may change the types
                           of all: where label maps are there it needs --overwrite.
  --keep_negative          What is annotated as type 1 stays negative; all others are positive, weak at least.
  --pattern=<glob>         Which files of image_dir are images. [default: *]
  --overwrite              Make anew what is there.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from docopt import docopt

if TYPE_CHECKING:
    import numpy as np

    from misc.formats.annotations import Annotations, TypeMapping
    from misc.formats.masks import LabelMask


# Files that may hold contours; what they are is told by their content.
ANNOTATION_SUFFIXES = (".xml", ".geojson", ".json", ".gz")


@dataclass(frozen=True)
class Options:
    """The command line, with real types."""

    image_dir: Path
    annotation_dir: Path
    output_dir: Path
    pattern: str
    overwrite: bool
    scale: float
    mapping: TypeMapping | None  # None: untyped
    unknown: int | None  # type of what the mapping does not know; None: an error
    thresholds: tuple[float, float, float] | None  # None: no intensity
    kmeans: bool
    keep_negative: bool


@dataclass
class Report:
    """What became of the images."""

    unpaired: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    nuclei: Counter = field(default_factory=Counter)
    others: Counter = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    left_out: int = 0
    hidden_px: int = 0
    buried: int = 0
    outside: int = 0
    clipped: int = 0
    too_small: int = 0
    made: int = 0


@dataclass(frozen=True)
class Measured:
    """An image with --intensity: its nuclei, their DAB densities (N,), and whether its label map is kept."""

    stem: str
    mask: LabelMask
    dab: np.ndarray
    kept: bool


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__, argv=argv)
    try:
        return run(read_options(args))
    except (ValueError, OSError) as error:
        print(f"GenerateMasks.py: {error}", file=sys.stderr)
        return 1


def read_options(args: dict) -> Options:
    """Check the options.

    Raises:
        ValueError, FileNotFoundError: an option makes no sense.
    """
    from misc.ihc.scores import check_thresholds

    if not args["--intensity"] and (args["--kmeans"] or args["--keep_negative"]):
        raise ValueError("--kmeans and --keep_negative need --intensity")
    try:
        scale = float(args["--scale"])
        thresholds = check_thresholds([float(part) for part in args["--thresholds"].split(",")])
    except ValueError as error:
        raise ValueError(f"--scale takes a number and --thresholds three that rise: {error}") from error
    if not 0 < scale < float("inf"):
        raise ValueError(f"--scale must be positive, got {args['--scale']}")
    return Options(
        image_dir=Path(args["--image_dir"]),
        annotation_dir=Path(args["--annotation_dir"]),
        output_dir=Path(args["--output_dir"]),
        pattern=args["--pattern"],
        overwrite=args["--overwrite"],
        scale=scale,
        mapping=read_mapping(args),
        unknown=1 if args["--intensity"] and not args["--keep_negative"] else None,
        thresholds=thresholds if args["--intensity"] else None,
        kmeans=args["--kmeans"],
        keep_negative=args["--keep_negative"],
    )


def read_mapping(args: dict) -> TypeMapping | None:
    """Return what classes and colours mean; `None` with --untyped.

    Raises:
        ValueError, FileNotFoundError: a file is not as it should be, or an option has no effect.
    """
    from misc.formats.annotations import TypeMapping
    from misc.type_info import load_type_info

    if args["--untyped"]:
        for option in ("--mapping", "--type_info_path", "--keep_negative"):
            if args[option]:
                raise ValueError(f"{option} has no effect with --untyped, which takes all contours alike")
        return None
    path = args["--type_info_path"]
    type_info = load_type_info(path) if path else None
    mapping = TypeMapping.of_lab() if type_info is None else TypeMapping.of_type_info(type_info)
    return mapping | TypeMapping.read(args["--mapping"], type_info) if args["--mapping"] else mapping


def run(options: Options) -> int:
    """Make all label maps, and say what was found."""
    from tqdm import tqdm

    pairs, unpaired, broken = pair_files(options)
    report = Report(unpaired=unpaired, failed=broken)
    if not options.overwrite:
        report.skipped = [image.name for image, _ in pairs if label_path(image, options).exists()]
    if options.kmeans and report.skipped:
        raise ValueError(
            f"--kmeans finds limits on all images, which change the labels that are there ({len(report.skipped)} of "
            f"{len(pairs)}, {report.skipped[0]} is one): give --overwrite"
        )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Measured] = {}
    for image, annotation in tqdm(pairs, desc="painting", unit="image", disable=None):
        kept = image.name in report.skipped
        if kept and options.thresholds is None:
            continue
        try:
            mask, dab = paint(image, annotation, options, Report() if kept else report)
            if dab is None:
                mask.save(label_path(image, options))
                count(mask, report)
            else:
                measured[image.name] = Measured(label_path(image, options).stem, mask, dab, kept)
        except (ValueError, OSError) as error:
            report.failed[image.name] = str(error)
    if measured:
        save_intensities(measured, options, report)
    print_report(report, options)
    return 1 if report.failed else 0


def label_path(image: Path, options: Options) -> Path:
    """Return where the label map of an image goes: `a.ome.tif` has `a.mat`, as the next steps look for it."""
    from misc.files import full_stem

    return options.output_dir / f"{full_stem(image)}.mat"


def pair_files(options: Options) -> tuple[list[tuple[Path, Path]], list[str], dict[str, str]]:
    """Return (image, annotation) pairs, the names of the files that are alone, and what is wrong with broken ones.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, or two files have one stem, or nothing pairs.
    """
    from dataloader.extraction import ROIS_TABLE
    from misc.files import check_unique_stems, full_stem, list_files
    from misc.formats.annotations import read_annotations

    images, annotations = list_files(options.image_dir, options.pattern), list_files(options.annotation_dir)
    annotations = [path for path in annotations if path.suffix.lower() in ANNOTATION_SUFFIXES]
    images = [p for p in images if p.suffix.lower() not in ANNOTATION_SUFFIXES and p.name != ROIS_TABLE]
    check_unique_stems(images)
    check_unique_stems(annotations)
    by_stem = {full_stem(path): path for path in annotations}
    pairs = {image: by_stem.pop(full_stem(image)) for image in images if full_stem(image) in by_stem}
    broken: dict[str, str] = {}
    for stem, annotation in list(by_stem.items()):
        # a session may be called anything: it says which image it belongs to
        try:
            named = read_annotations(annotation).image_name
        except ValueError as error:
            broken[by_stem.pop(stem).name] = str(error)
            continue
        for image in images:
            if image not in pairs and named and full_stem(image) in (full_stem(named), named):
                pairs[image] = by_stem.pop(stem)
                break
    alone = [path.name for path in images if path not in pairs] + [path.name for path in by_stem.values()]
    if not pairs:
        reasons = "".join(f"; {reason}" for reason in broken.values())
        raise ValueError(
            f"no annotation in {options.annotation_dir} belongs to an image in {options.image_dir}{reasons}"
        )
    return list(pairs.items()), alone, broken


def paint(image: Path, annotation: Path, options: Options, report: Report) -> tuple[LabelMask, np.ndarray | None]:
    """Paint the contours of one image; with --intensity also measure the DAB density of each nucleus."""
    from misc.formats.annotations import read_annotations
    from misc.formats.masks import paint_contours
    from misc.ihc.scores import nuclear_dab
    from misc.slides.images import probe_size, read_image

    found = read_annotations(annotation)
    rgb = None if options.thresholds is None else read_image(image)
    shape = probe_size(image) if rgb is None else rgb.shape[:2]
    if shape is None:
        raise ValueError("is no image that can be read")
    contours, types = choose(found, options)
    mask = paint_contours(contours, types, shape)
    report.others += found.others
    report.left_out += len(found.contours) - len(contours)
    report.hidden_px += mask.hidden_px
    report.buried += mask.buried
    report.outside += mask.outside
    report.clipped += mask.clipped
    report.too_small += mask.too_small
    if not mask.inst_map.any():
        report.empty.append(image.name)
    return mask, None if rgb is None else nuclear_dab(rgb, mask.inst_map)[1]


def choose(found: Annotations, options: Options) -> tuple[list, list[int]]:
    """Return the contours to paint, scaled, and their types."""
    from dataclasses import replace

    types = [1] * len(found.contours)
    if options.mapping is not None:
        types = options.mapping.types_of(found.contours, options.unknown)
    scaled = [
        replace(contour, rings=[(ring + 0.5) * options.scale - 0.5 for ring in contour.rings])
        if options.scale != 1
        else contour
        for contour in found.contours
    ]
    kept = [(contour, type_id) for contour, type_id in zip(scaled, types, strict=True) if type_id is not None]
    return [contour for contour, _ in kept], [type_id for _, type_id in kept]


def save_intensities(measured: dict[str, Measured], options: Options, report: Report) -> None:
    """Classify every nucleus by its staining, and write label maps, tables and histogram.

    Raises:
        ValueError: k-means has too few positive nuclei.
    """
    from dataclasses import replace

    import numpy as np

    from misc.ihc import plots
    from misc.ihc.scores import NEGATIVE, classify, score

    negative = {n: one.mask.types == NEGATIVE if options.keep_negative else None for n, one in measured.items()}
    thresholds = find_thresholds(measured, negative, options) if options.kmeans else options.thresholds
    types = {n: classify(one.dab, thresholds, negative[n]) for n, one in measured.items()}
    for name, one in measured.items():
        target = options.output_dir / f"{one.stem}.mat"
        if one.kept:
            check_kept(target, name, types[name], report)
            continue
        mask = replace(one.mask, types=types[name])
        mask.save(target)
        count(mask, report)
    write_intensity_tables(measured, types, thresholds, options.output_dir)
    scored = score(np.concatenate(list(types.values())))
    title = f"{len(measured)} images"
    figure = plots.dab_histogram(np.concatenate([one.dab for one in measured.values()]), thresholds, scored, title)
    plots.save(figure, options.output_dir / "intensity.png")
    print(f"{title}: {plots.describe(scored)}")


def find_thresholds(measured: dict[str, Measured], negative: dict, options: Options) -> tuple[float, float, float]:
    """Find the limits between weak, moderate and strong on the positive nuclei of all images, and say them."""
    from misc.ihc.scores import cohort_thresholds

    positive = [one.dab if negative[n] is None else one.dab[~negative[n]] for n, one in measured.items()]
    thresholds = cohort_thresholds(positive, None if options.keep_negative else options.thresholds[0])
    limits = ", ".join(f"{t:.3f}" for t in thresholds)
    print(f"k-means of {len(measured)} images: weak, moderate, strong from {limits}")
    return thresholds


def check_kept(target: Path, name: str, types: np.ndarray, report: Report) -> None:
    """Report a label map that is kept although it says something else than the tables that are made anew."""
    import numpy as np
    import scipy.io

    try:
        same = np.array_equal(scipy.io.loadmat(target)["inst_type"].ravel(), types)
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError):
        same = False
    if not same:
        report.failed[name] = f"{target} has other types than these annotations and options give; give --overwrite"


def write_intensity_tables(
    measured: dict[str, Measured], types: dict[str, np.ndarray], thresholds: tuple, folder: Path
) -> None:
    """Write intensity.csv, a row a nucleus, and intensity_summary.csv, a row an image."""
    from misc.ihc.scores import CLASS_NAMES, score
    from misc.ihc.tables import score_columns, write_table

    columns = ("image", "nucleus", "dab_od", "type", "class")
    nuclei = [
        dict(zip(columns, (one.stem, i, round(float(d), 4), int(t), CLASS_NAMES.get(int(t))), strict=True))
        for name, one in measured.items()
        for i, (d, t) in enumerate(zip(one.dab, types[name], strict=True), 1)
    ]
    write_table(folder / "intensity.csv", nuclei, columns)
    images = [
        {"image": one.stem, "nuclei": len(one.dab)} | score_columns(score(types[name]), thresholds)
        for name, one in measured.items()
    ]
    write_table(folder / "intensity_summary.csv", images, ("image",))


def count(mask: LabelMask, report: Report) -> None:
    report.made += 1
    report.nuclei.update(mask.types.tolist())


def print_report(report: Report, options: Options) -> None:
    """Say what was painted, what lies under what, and what was left out."""
    print("type   nuclei")
    for type_id, number in sorted(report.nuclei.items()):
        print(f"{type_id:4d} {number:8d}")
    print(
        f"{report.hidden_px} px hidden under smaller nuclei, {report.buried} contours wholly hidden, "
        f"{report.clipped} cut at the edge of the image, {report.outside} outside of it, "
        f"{report.too_small} too small for a pixel, {report.left_out} left out"
    )
    if report.others:
        listed = ", ".join(f"{number} {name}" for name, number in sorted(report.others.items()))
        print(f"no nuclei: {listed}")
    if report.empty:
        print(f"images without a nucleus: {', '.join(report.empty)}")
    if report.unpaired:
        print(f"without a partner: {', '.join(report.unpaired)}")
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(
        f"{sum(report.nuclei.values())} nuclei in {report.made} label maps, {len(report.skipped)} there already "
        f"(--overwrite makes them anew), {len(report.failed)} failed; in {options.output_dir}"
    )


if __name__ == "__main__":
    sys.exit(main())
