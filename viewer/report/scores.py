"""The report of compute_stats.py --out: the scores, and the worst and best images with truth and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from skimage.segmentation import find_boundaries

from misc.batch import recorded
from misc.files import is_number
from misc.formats.labels import read_label
from misc.slides.image import SlideImage
from misc.tables import earlier_rows
from viewer.report import pictures
from viewer.report.nuclei import open_image_of
from viewer.report.page import Bars, Picture, Section, Table

# Images are sorted by the first of these scores that the table has.
RANKED_BY = ("PQ", "F1 detection")
SHOWN_EACH = 3  # worst and best images
MAX_BARS = 60
# Colours that colour-blind readers can tell apart.
TRUE_RGB, PRED_RGB = (0, 114, 178), (230, 97, 0)
BLANK_RGB = (240, 240, 240)


def score_sections(
    folder: Path, pred_dir: Path | None, true_dir: Path | None, image_dir: Path | None, ext: str = ".mat"
) -> list[Section]:
    """Return the sections of a folder of scores.

    Args:
        folder: holds `scores.csv`.
        pred_dir, true_dir: the scored label files, for pictures; or `None`.
        image_dir: their images; without them outlines are drawn on grey.
        ext: ending of the label files' names.
    """
    rows = earlier_rows(folder / "scores.csv", (), "image")
    section = Section("scores", "Scores")
    if not rows:
        return [section]
    columns = list(rows[0])
    cells = [[_short(cell) for cell in row.values()] for row in rows]
    section.tables = [Table("Scores of each image, and of all together", columns, cells)]
    ranked_by = next((name for name in RANKED_BY if name in columns), columns[1])
    images = [row for row in rows[:-1] if row[ranked_by] != ""]
    images.sort(key=lambda row: float(row[ranked_by]))
    shown = images if len(images) <= MAX_BARS else images[: MAX_BARS // 2] + images[-MAX_BARS // 2 :]
    title = f"{ranked_by} by image" + ("" if shown is images else f", the {MAX_BARS // 2} lowest and highest")
    section.bars = [Bars(title, [row["image"] for row in shown], [round(float(row[ranked_by]), 3) for row in shown])]
    if pred_dir and true_dir:
        parts = {"Lowest": images[:SHOWN_EACH], "Highest": images[max(SHOWN_EACH, len(images) - SHOWN_EACH) :][::-1]}
        for word, some in parts.items():
            drawn = _draw(some, ranked_by, pred_dir, true_dir, image_dir, ext, section.notes)
            if drawn:
                section.galleries.append((f"{word} {ranked_by}: truth blue, prediction orange", drawn))
    return [section]


def _short(cell: str) -> str:
    """Return a number of a table with five digits after the point, as compute_stats.py prints it."""
    return f"{float(cell):.5f}" if "." in cell and is_number(cell) else cell


def _draw(
    rows: Sequence[Mapping[str, str]],
    ranked_by: str,
    pred_dir: Path,
    true_dir: Path,
    image_dir: Path | None,
    ext: str,
    notes: list[str],
) -> list[Picture]:
    """Draw images, truth and prediction side by side; an image that cannot be drawn becomes a note."""
    shown: list[Picture] = []
    failed: dict[str, str] = {}
    for row in rows:
        name = row["image"]
        with recorded(failed, name):
            maps = [read_label(folder / f"{name}{ext}")["inst_map"] for folder in (true_dir, pred_dir)]
            image = open_image_of(name, image_dir, failed)
            words = f"{name}, {ranked_by} {float(row[ranked_by]):.3f}"
            for who, labels, rgb in zip(("truth", "prediction"), maps, (TRUE_RGB, PRED_RGB), strict=True):
                picture = pictures.inline(_outlined(labels, image, rgb))
                shown.append(Picture(picture, f"{words}: {who}", f"{words}: {who}", wide=True))
    notes += [f"no picture of {name}: {why}" for name, why in failed.items()]
    return shown


def _outlined(labels: np.ndarray, image: SlideImage | None, rgb: tuple[int, int, int]) -> np.ndarray:
    """Draw the outlines of an instance map (H, W) on its image, or on grey."""
    height, width = labels.shape
    if image is None or (image.height, image.width) != (height, width):
        picture = np.full((height, width, 3), BLANK_RGB, np.uint8)
    else:
        picture = image.read(0, 0, height, width).copy()
    picture[find_boundaries(labels, mode="inner")] = rgb
    return pictures.fit(picture, 2 * pictures.OVERVIEW_PX)
