"""Compare scores of slides and images: the same labelled images, as files for `tile` and as one slide for `wsi`.

The slide is a mosaic of the images on glass, so far apart that none affects another. Its nuclei, at level 0, are
painted into a label map of each image, and both results are scored on the same labels.

Usage:
  slide_score.py --model_path=<file> [options] <folder>...
  slide_score.py (-h | --help)

Each folder has Images/ and Labels/ (.mat with inst_map), as for accuracy.py.

Options:
  -h --help            Show this text.
  --model_path=<file>  Checkpoint.
  --mpp=<um>           um/px of the images, and so of the slide. [default: 0.25]
  --window=<n>         Side in px of the patches that the network reads. Left out: as run_infer.py.
  --precision=<p>      As `run_infer.py --precision`. [default: auto]
  --tile_shape=<px>    As `run_infer.py wsi`. [default: 2048]
  --gpu=<ids>          GPUs; empty for the CPU. [default: 0]
  --seed=<n>           Seed of the images' places on the slide. [default: 0]
  --bootstrap=<n>      Resamples of the images for the 95 % intervals. [default: 2000]
  --out=<dir>          Folder that keeps the slide and all results. Left out: a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from docopt import docopt

if TYPE_CHECKING:
    from misc.nuclei import Nuclei

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Range of the glass around every image, px: more than network (190 px), post-processing and a nucleus reach, and not a
# multiple of a patch, a block or a tile.
GLASS_PX = (311, 499)
GLASS = 244  # grey value, as scanners show it
LEVELS = 3  # of the pyramid, each half the size of the one before
TIFF_TILE_PX = 256
SHOWN = ("Dice", "AJI", "DQ", "SQ", "PQ")
NAME = "mosaic"  # of the slide


@dataclass(frozen=True)
class Piece:
    """An image on the slide.

    Attributes:
        split: index of its folder.
        name: of the image.
        tl_yx, shape_yx: its top left corner and its size, level-0 px.
    """

    split: int
    name: str
    tl_yx: tuple[int, int]
    shape_yx: tuple[int, int]


def main() -> int:
    args = docopt(__doc__)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            print(compare(args, Path(args["--out"] or temporary)))
    except (ValueError, OSError) as error:
        print(f"slide_score.py: {error}", file=sys.stderr)
        return 1
    return 0


def compare(args: dict, out: Path) -> str:
    """Segment and score the images both ways, and return the table."""
    from benchmarks.accuracy import refuse_trained_on
    from infer import tile, wsi

    loaded = {"model_path": args["--model_path"]}, None, args["--gpu"], args["--precision"]
    common = {"patch_input_shape": int(args["--window"])} if args["--window"] else {}
    folders, mpp = [Path(folder) for folder in args["<folder>"]], float(args["--mpp"])
    manager = tile.InferManager(*loaded)
    for index, folder in enumerate(folders):
        refuse_trained_on(manager, folder)
        options = {"input_dir": folder / "Images", "output_dir": out / "tile" / str(index), "mpp": mpp, **common}
        _check(manager.process_file_list(options))
    (out / "in").mkdir(parents=True)
    pieces = write_mosaic(out / "in" / f"{NAME}.tif", folders, mpp, int(args["--seed"]))
    options = {"input_dir": out / "in", "output_dir": out / "wsi", "tile_shape": int(args["--tile_shape"]), **common}
    _check(wsi.InferManager(*loaded).process_wsi_list(options))
    return markdown(*score(out, folders, pieces), int(args["--bootstrap"]))


def _check(report) -> None:
    if report.failed:
        raise ValueError(f"not all images could be segmented: {report.failed}")


def write_mosaic(path: Path, folders: list[Path], mpp: float, seed: int) -> list[Piece]:
    """Write a pyramidal TIFF of all images of the folders, on glass.

    Raises:
        ValueError: there is no image.
    """
    from misc.files import full_stem, list_files

    files = [(split, file) for split, folder in enumerate(folders) for file in list_files(folder / "Images")]
    if not files:
        raise ValueError(f"no images in {', '.join(str(folder / 'Images') for folder in folders)}")
    images = [read_rgb(file) for _, file in files]
    corners, size_yx = places([image.shape[:2] for image in images], seed)
    slide = np.full((*size_yx, 3), GLASS, np.uint8)
    for image, (y, x) in zip(images, corners, strict=True):
        slide[y : y + image.shape[0], x : x + image.shape[1]] = image
    write_tiff(path, slide, mpp)
    return [
        Piece(split, full_stem(file), corner, image.shape[:2])
        for (split, file), image, corner in zip(files, images, corners, strict=True)
    ]


def read_rgb(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8.

    Raises:
        ValueError: it is not a picture.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{path} cannot be read as a picture")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def places(shapes_yx: list[tuple[int, int]], seed: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Place images in rows, with glass of random widths between them.

    Returns:
        (y, x) of the top left corner of each, and (height, width) of the slide, px.
    """
    rng = np.random.default_rng(seed)
    in_a_row = int(np.ceil(np.sqrt(len(shapes_yx))))
    corners, bottom, right = [], 0, 0
    for first in range(0, len(shapes_yx), in_a_row):
        row, top, x = shapes_yx[first : first + in_a_row], bottom, 0
        for height, width in row:
            y, x = top + int(rng.integers(*GLASS_PX)), x + int(rng.integers(*GLASS_PX))
            corners.append((y, x))
            x, bottom = x + width, max(bottom, y + height)
        right = max(right, x)
    return corners, (bottom + GLASS_PX[0], right + GLASS_PX[0])


def write_tiff(path: Path, slide: np.ndarray, mpp: float) -> None:
    """Write a lossless tiled TIFF with `LEVELS` levels, each in its own directory."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level in range(LEVELS):
            per_cm = 1e4 / (mpp * 2**level)
            shape = {"tile": (TIFF_TILE_PX, TIFF_TILE_PX), "photometric": "rgb", "compression": "zlib"}
            scale = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "subfiletype": int(level > 0)}
            out.write(slide, metadata=None, **shape, **scale)
            slide = cv2.resize(slide, (slide.shape[1] // 2, slide.shape[0] // 2), interpolation=cv2.INTER_AREA)


def score(out: Path, folders: list[Path], pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Return (2, N, 6) scores of N images by `tile` and `wsi`, and (3, N) numbers of nuclei: both, then the truth."""
    import scipy.io

    from metrics.folders import instance_scores
    from misc.formats.nuclei_json import read_json

    nuclei, header = read_json(out / "wsi" / "json" / f"{NAME}.json")
    scale = float(header["slide"]["scale"])
    nuclei = nuclei.scale(scale, scale)
    scores, counts = [], []
    for piece in pieces:
        paths = out / "tile" / str(piece.split) / "mat", folders[piece.split] / "Labels"
        found, true = (scipy.io.loadmat(path / f"{piece.name}.mat")["inst_map"] for path in paths)
        maps = found, painted(nuclei, piece)
        scores.append([instance_scores(true, labels) for labels in maps])
        counts.append([np.count_nonzero(np.unique(labels)) for labels in (*maps, true)])
    return np.array(scores).transpose(1, 0, 2), np.array(counts).T


def painted(nuclei: Nuclei, piece: Piece) -> np.ndarray:
    """Paint the nuclei whose centroid lies in an image into its label map, (H, W) int32, 1..N."""
    (y, x), (height, width) = piece.tl_yx, piece.shape_yx
    shifted = nuclei.shift(-y, -x)
    inside = ((shifted.centroids_xy > -0.5) & (shifted.centroids_xy < np.array([width, height]) - 0.5)).all(axis=1)
    labels = np.zeros((height, width), np.int32)
    for label, index in enumerate(np.flatnonzero(inside), 1):
        cv2.fillPoly(labels, [shifted.contour(index)], label)
    return labels


def markdown(scores: np.ndarray, counts: np.ndarray, resamples: int) -> str:
    """Return the table of both results and of their paired difference; arguments as `score` returns them."""
    from benchmarks.accuracy import interval
    from metrics.folders import INSTANCE_SCORES

    tile, slide = scores[:, :, [INSTANCE_SCORES.index(name) for name in SHOWN]].transpose(0, 2, 1)
    lines = [f"| {tile.shape[1]} images | nuclei | {' | '.join(SHOWN)} |", "|---" * (2 + len(SHOWN)) + "|"]
    for road, values, found in (("tile", tile, counts[0]), ("wsi", slide, counts[1])):
        means = " | ".join(f"{mean:.4f}" for mean in np.nanmean(values, axis=1))
        lines.append(f"| {road} | {found.sum()} of {counts[2].sum()} | {means} |")
    spans = zip(*interval(slide - tile, resamples), strict=True)
    cells = " | ".join(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in spans)
    lines.append(f"| wsi - tile | {counts[1].sum() - counts[0].sum():+d} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
