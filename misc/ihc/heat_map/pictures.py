"""What is drawn of a slide's density map: pictures, the session for Sedeen, the TIFF for QuPath."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from misc.formats.sedeen import box_graphics, write_session
from misc.ihc import plots
from misc.ihc.heat_map.slide import SlideMap, SlideNuclei
from misc.ihc.heat_map.tiff import write_ome_tiff
from misc.slides.image import SlideImage


def draw(found: SlideMap, image: SlideImage | None, folder: Path, ome_tiff: bool, overwrite: bool) -> list[Path]:
    """Write the pictures, the session and the TIFF of a slide; a session only where nothing in it is made up.

    Args:
        found: the map.
        image: the slide, for the overlay, or `None`.
        folder: results go to `heatmap`, `xml`, `overlay` and `ome_tiff` in it.
        ome_tiff: write the TIFF, too.
        overwrite: redo what is there.

    Returns:
        Files that were there and are kept.
    """
    slide = found.slide
    density, unit = found.density()
    picture = plots.MapPicture(
        density, unit, found.tile_size, slide.width, slide.height, slide.mpp_xy, found.boxes_px, slide.name
    )
    tasks: dict[Path, Callable[[Path], object]] = {
        folder / "heatmap" / f"{slide.name}.png": lambda path: plots.save(plots.heat_map(picture), path)
    }
    if not missing_for_session(slide):
        tasks[folder / "xml" / f"{slide.name}.session.xml"] = lambda path: write_session(
            path, slide.image_name, slide.width, slide.height, slide.mpp_xy, box_graphics(found.boxes_px)
        )
    if image:
        tasks[folder / "overlay" / f"{slide.name}.png"] = lambda path: plots.save(
            plots.overlay(picture, image.thumbnail()), path
        )
    tiff = folder / "ome_tiff" / f"{slide.name}.ome.tif"
    if ome_tiff or (overwrite and tiff.exists()):  # one of other options would stay behind
        bin_um = None if slide.mpp_xy is None else tuple(mpp * found.tile_size for mpp in slide.mpp_xy)
        tasks[tiff] = lambda path: write_ome_tiff(path, found.density(shown=True)[0], bin_um, slide.name, unit)
    return _write_missing(tasks, overwrite)


def missing_for_session(slide: SlideNuclei) -> str:
    """Return what a session needs and nobody says, each with the option that gives it; empty where all is known."""
    needed = {
        "the name of the slide (--wsi_dir)": slide.image_name,
        "its size (--wsi_dir)": slide.size_known,
        "its pixel size (--mpp, or a slide in --wsi_dir that says it)": slide.mpp_xy,
    }
    return ", ".join(what for what, known in needed.items() if not known)


def _write_missing(tasks: dict[Path, Callable[[Path], object]], overwrite: bool) -> list[Path]:
    """Write the files that are not there yet, or all of them; return those that were there and are kept."""
    kept = []
    for path, write in tasks.items():
        if path.exists() and not overwrite:
            kept.append(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    return kept
