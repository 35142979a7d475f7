"""Turn hand-drawn contours into label maps to train and score on.

Usage:
  GenerateMasks.py --image_dir=<dir> --annotation_dir=<dir> --output_dir=<dir> [options]
  GenerateMasks.py (-h | --help)

Options:
  -h --help                Show this text.
  --image_dir=<dir>        Folder with the images (the whole picture or tile that was annotated).
  --annotation_dir=<dir>   Folder with the contours: Sedeen .session.xml, QuPath .geojson, ASAP, ImageScope or HALO
                           .xml. An annotation belongs to the image of the same name (a.geojson or a.png.geojson to
                           a.png), or to the one that it names.
  --output_dir=<dir>       Where <image>.mat goes: inst_map, type_map, inst_type, inst_centroid.
  --type_info_path=<file>  type_info.json: names and colours of the types, as used in the annotation. Left out: these
                           pens: 1 negative red, 2 weak blue, 3 moderate purple, 4 strong green. Cyan outlines (tumour
                           bed) are left out.
  --mapping=<file>         JSON {"class name or #rrggbb": type, ...} for more classes; types by name or number. null
                           leaves a class out. "unclassified" stands for contours without a class.
  --untyped                All contours are nuclei of type 1, whatever their class or colour.
  --scale=<f>              Multiply the contours' coordinates: 0.5 for images halved after annotation. [default: 1]
  --intensity              Take the types from the staining: 1 negative, 2 weak, 3 moderate, 4 strong by the mean
                           DAB density of each nucleus. Unknown classes and colours count too. Writes intensity.csv
                           (nuclei), intensity_summary.csv (images) and intensity.png. They hold all images, also
                           those whose label maps exist already.
  --thresholds=<a,b,c>     DAB densities from which a nucleus is weak, moderate, strong. [default: 0.2,0.4,0.6]
  --kmeans                 Find the limits of moderate and strong by three-way k-means over all images. This may
                           change the types of every image, so it needs --overwrite if label maps exist.
  --keep_negative          Nuclei that are annotated as type 1 stay negative. All others are positive, at least weak.
  --pattern=<glob>         Which files of image_dir are images. [default: *]
  --overwrite              Replace results that exist.

If a QuPath file has detections or cells, its annotations are regions. If it has only annotations, an unclassified one
that contains others is a region. The run says how many objects are not nuclei. The exit code is 1 if an image failed,
or if an image or an annotation has no partner.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from misc.batch import print_failed, recorded
from misc.cli import number, numbers, run_command
from misc.text import counted, first_names

if TYPE_CHECKING:
    import numpy as np

    from misc.formats.contours import Annotations
    from misc.formats.masks import LabelMask
    from misc.formats.type_mapping import TypeMapping
    from misc.type_info import TypeInfo


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
    names: TypeInfo  # what the types are called
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


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, lambda args: run(read_options(args)), argv)


def read_options(args: dict) -> Options:
    """Check the options.

    Raises:
        ValueError, FileNotFoundError: an option makes no sense.
    """
    from misc.ihc.scores import check_thresholds

    if not args["--intensity"] and (args["--kmeans"] or args["--keep_negative"]):
        raise ValueError("--kmeans and --keep_negative need --intensity")
    thresholds = check_thresholds(numbers(args, "--thresholds"))
    mapping, names = read_types(args)
    return Options(
        image_dir=Path(args["--image_dir"]),
        annotation_dir=Path(args["--annotation_dir"]),
        output_dir=Path(args["--output_dir"]),
        pattern=args["--pattern"],
        overwrite=args["--overwrite"],
        scale=number(args, "--scale"),
        mapping=mapping,
        names=names,
        unknown=1 if args["--intensity"] and not args["--keep_negative"] else None,
        thresholds=thresholds if args["--intensity"] else None,
        kmeans=args["--kmeans"],
        keep_negative=args["--keep_negative"],
    )


def read_types(args: dict) -> tuple[TypeMapping | None, TypeInfo]:
    """Return what classes and colours mean, `None` with --untyped, and what the types are called.

    Raises:
        ValueError, FileNotFoundError: a file is not as it should be, or an option has no effect.
    """
    from misc.formats.sedeen import LAB_TYPES
    from misc.formats.type_mapping import TypeMapping
    from misc.type_info import UNTYPED, load_type_info

    if args["--untyped"]:
        for option in ("--mapping", "--type_info_path", "--keep_negative"):
            if args[option]:
                raise ValueError(f"{option} has no effect with --untyped, which takes all contours alike")
        return None, LAB_TYPES if args["--intensity"] else {1: UNTYPED}
    path = args["--type_info_path"]
    type_info = load_type_info(path) if path else None
    mapping = TypeMapping.of_lab() if type_info is None else TypeMapping.of_type_info(type_info)
    if args["--mapping"]:
        mapping |= TypeMapping.read(args["--mapping"], type_info, type_info or LAB_TYPES)
    return mapping, LAB_TYPES if args["--intensity"] or type_info is None else type_info


def run(options: Options) -> int:
    """Make all label maps, and say what was found."""
    from tqdm import tqdm

    from misc.ihc.label_scores import Measured, grade

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
        kept, target = image.name in report.skipped, label_path(image, options)
        if kept and options.thresholds is None:
            continue
        with recorded(report.failed, image.name):
            mask, dab = paint(image, annotation, options, Report() if kept else report)
            if dab is None:
                mask.save(target, options.names if options.mapping else None)
                count(mask, report)
            else:
                measured[image.name] = Measured(target, mask, dab, kept)
    if measured:
        written, failed = grade(measured, options.thresholds, options.kmeans, options.keep_negative)
        report.failed |= failed
        for mask in written.values():
            count(mask, report)
    print_report(report, options)
    return 1 if report.failed or report.unpaired else 0


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
    pairs: dict[Path, Path] = {}
    for image in images:
        own = [by_stem.pop(name) for name in dict.fromkeys((full_stem(image), image.name)) if name in by_stem]
        if len(own) > 1:
            raise ValueError(f"{image.name} has two annotations, {own[0].name} and {own[1].name}; move one away")
        if own:
            pairs[image] = own[0]
    broken: dict[str, str] = {}
    for stem, annotation in list(by_stem.items()):
        # a session may be called anything: it says which image it belongs to
        named = ""
        with recorded(broken, annotation.name):
            named = read_annotations(annotation).image_name
        if annotation.name in broken:
            del by_stem[stem]
        for image in images:
            if image not in pairs and named and full_stem(image) in (full_stem(named), named):
                pairs[image] = by_stem.pop(stem)
                break
    alone = [path.name for path in images if path not in pairs] + [path.name for path in by_stem.values()]
    if not pairs:
        named = [first_names([path.name for path in paths]) or "no such file" for paths in (annotations, images)]
        reasons = "".join(f"; {reason}" for reason in broken.values())
        raise ValueError(
            f"no annotation in {options.annotation_dir} ({named[0]}) belongs to an image in {options.image_dir} "
            f"({named[1]}){reasons}"
        )
    return list(pairs.items()), alone, broken


def paint(image: Path, annotation: Path, options: Options, report: Report) -> tuple[LabelMask, np.ndarray | None]:
    """Paint the contours of one image; with --intensity also measure the DAB density of each nucleus."""
    from misc.formats.annotations import read_annotations
    from misc.formats.masks import paint_contours
    from misc.ihc.scores import nuclear_dab
    from misc.slides.image import open_image
    from misc.slides.images import probe_size, read_image

    found = read_annotations(annotation)
    try:
        found.check_understood()
    except ValueError as error:
        raise ValueError(f"{annotation}: {error}") from error
    rgb = None if options.thresholds is None else read_image(image)
    shape = probe_size(image) if rgb is None else rgb.shape[:2]
    if shape is None:  # a slide, perhaps
        slide = open_image(image)
        shape = slide.height, slide.width
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
    types = [1] * len(found.contours)
    if options.mapping is not None:
        types = options.mapping.types_of(found.contours, options.unknown)
    kept = [(contour, type_id) for contour, type_id in zip(found.contours, types, strict=True) if type_id is not None]
    scaled = [contour if options.scale == 1 else contour.scaled(options.scale) for contour, _ in kept]
    return scaled, [type_id for _, type_id in kept]


def count(mask: LabelMask, report: Report) -> None:
    report.made += 1
    report.nuclei.update(mask.types.tolist())


def print_report(report: Report, options: Options) -> None:
    """Say what was painted, what lies under what, and what was left out."""
    from misc.type_info import type_name

    print("type   nuclei")
    for type_id, nuclei in sorted(report.nuclei.items()):
        print(f"{type_id:4d} {nuclei:8d}  {type_name(type_id, options.names)}")
    print(
        f"{report.hidden_px} px hidden under smaller nuclei, {counted(report.buried, 'contour')} wholly hidden, "
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
    print_failed("GenerateMasks.py", report.failed)
    print(
        f"{counted(sum(report.nuclei.values()), 'nucleus')} in {counted(report.made, 'label map')}, "
        f"{len(report.skipped)} there already "
        f"(--overwrite replaces them), {len(report.failed)} failed; in {options.output_dir}"
    )


if __name__ == "__main__":
    sys.exit(main())
