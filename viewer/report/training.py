"""The report of a training: scores by epoch, the best one, example pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

from misc.formats.nuclei_json import types_from_header
from run_utils.checkpoint_io import read_checkpoint
from run_utils.scores import labelled
from viewer.report.page import Picture, Section, Table, data_uri

STATS = "stats.json"
# Table and curves show the scores of validation, and this loss.
LOSS = "overall_loss"
CURVE_INCHES = (7.0, 3.2)
GREY = "#808080"  # legible on white and on black


def phases_of(folder: Path) -> list[Path]:
    """Return the folders of a training's phases, those with scores by epoch; this may be `folder` itself."""
    return [path.parent for path in [folder / STATS, *sorted(folder.glob(f"*/{STATS}"))] if path.is_file()]


def training_sections(folder: Path) -> list[Section]:
    """Return a section for each phase of a training."""
    return [_section(phase, phase.name if phase != folder else "Training") for phase in phases_of(folder)]


def _section(folder: Path, title: str) -> Section:
    best = folder / "net_best.tar"
    meta = read_checkpoint(best).get("meta", {}) if best.is_file() else {}
    types = types_from_header(meta)
    stats = json.loads((folder / STATS).read_text(encoding="utf-8"))
    epochs = {int(key): {labelled(name, types): value for name, value in of.items()} for key, of in stats.items()}
    section = Section(f"phase-{title}", title)
    names = list(dict.fromkeys(name for values in epochs.values() for name in values if _is_shown(name)))
    rows = [[str(epoch), *(_text(values.get(name)) for name in names)] for epoch, values in sorted(epochs.items())]
    section.tables = [Table("Scores by epoch", ["epoch", *names], rows)]
    section.facts = [("Epochs", str(len(epochs)))]
    if best.is_file():
        by = meta.get("best") or {}
        section.facts += [("Best epoch", str(by["epoch"]))] if "epoch" in by else []
        section.facts += [("Best score", f"{by['metric']} {by['value']:.4f}")] if "metric" in by else []
        section.facts.append(("Best checkpoint", str(best)))
    curves = {
        "Loss": [name for name in names if name.endswith(LOSS)],
        "Scores of validation": [n for n in names if n.startswith("valid-") and "loss" not in n and "mse" not in n],
    }
    section.galleries = [("", [_curve(what, lines, epochs) for what, lines in curves.items() if lines])]
    if examples := _examples(folder):
        section.galleries.append(("Examples: images, truth and prediction", examples))
    return section


def _is_shown(name: str) -> bool:
    return name.startswith("valid") or name.endswith(LOSS)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _curve(title: str, names: list[str], epochs: dict[int, dict]) -> Picture:
    """Draw values by epoch, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=CURVE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle("color", ["#0072b2", "#e66100", "#009e73", "#cc79a7", "#808080", "#56b4e9", "#d0a000"])
    for name in names:
        known = sorted((epoch, values[name]) for epoch, values in epochs.items() if values.get(name) is not None)
        axes.plot(*zip(*known, strict=True), label=name, marker="o", markersize=3)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=GREY, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.tick_params(colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    text = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    words = f"{title} by epoch; the table has the values"
    return Picture(data_uri(text.getvalue(), "image/svg+xml"), words, title, wide=True)


def _examples(folder: Path) -> list[Picture]:
    """Return the last pictures in TensorBoard's events of a training."""
    if not list(folder.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={IMAGES: 1})
    events.Reload()
    shown = []
    for tag in events.Tags()[IMAGES]:
        last = events.Images(tag)[-1]
        words = f"{tag}, epoch {last.step}"
        shown.append(Picture(data_uri(last.encoded_image_string, "image/png"), words, words, wide=True))
    return shown
