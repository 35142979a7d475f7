"""Make the report of a folder of results: `report.html`, and with more than `MAX_INLINE` slides a page for each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from misc.batch import recorded
from misc.files import full_stem, list_files, short_stem
from misc.tables import earlier_rows
from viewer.report import nuclei
from viewer.report.page import Page, Section, write_page
from viewer.report.scores import score_sections
from viewer.report.training import phases_of, training_sections
from viewer.slides import json_dir as json_dir_of

REPORT = "report.html"
# Folder of the slides' own pages, if there are more than `MAX_INLINE` slides.
PAGES = "report_pages"
MAX_INLINE = 100
# Details of a run in a results file that readers of the report do not need.
NOT_SHOWN = ("checkpoint", "mpp", "slide_bytes", "mask", "post_proc")  # the um/px stands with each image
# Tables of a results folder that are shown in full, in this order, with their titles.
TABLES = {"scores.csv": "Scores", "hotspots.csv": "Hot spots"}


def make_report(
    results_dir: Path,
    image_dir: Path | None = None,
    json_dir: Path | None = None,
    pred_dir: Path | None = None,
    true_dir: Path | None = None,
    failed: Mapping[str, str] | None = None,
    ext: str = ".mat",
) -> Path:
    """Write the report of a folder.

    Args:
        results_dir: of run_infer.py, run_ihc.py, plot_heat_map.py, compute_stats.py (--out) or a training.
        image_dir: the slides or images, for pictures.
        json_dir: the nuclei, if they are in another folder (plot_heat_map.py).
        pred_dir, true_dir: scored label files, for pictures of them; `ext` is the ending of their names.
        failed: the reason for each failed input, by name, if no `summary.csv` has it.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: there is no such folder, or no results in it.
    """
    if not results_dir.is_dir():
        raise FileNotFoundError(f"no such folder: {results_dir}")
    target = results_dir / REPORT
    if phases_of(results_dir):
        sections = training_sections(results_dir)
    elif (results_dir / "scores.json").is_file():
        sections = score_sections(results_dir, pred_dir, true_dir, image_dir, ext)
    else:
        sections = _nuclei_sections(results_dir, image_dir, json_dir or results_dir, dict(failed or {}))
    write_page(target, Page(results_dir.resolve().name, "Made from the files in this folder.", sections))
    return target


def say_report(results_dir: Path, **what) -> str:
    """Write the report at the end of a run, and return words for the run's last line; a failed report fails no run.

    Args:
        results_dir, what: as of `make_report`.
    """
    failed: dict[str, str] = {}
    with recorded(failed, REPORT):
        return f"report in {make_report(results_dir, **what)}"
    return f"no report ({failed[REPORT]})"


def _nuclei_sections(
    results_dir: Path, image_dir: Path | None, json_dir: Path, failed: dict[str, str]
) -> list[Section]:
    files = {full_stem(path): path for path in list_files(json_dir_of(json_dir), "*.json")}
    # run_infer.py names slides by their file, plot_heat_map.py by their results
    names = {row["slide"]: row for row in earlier_rows(results_dir / "summary.csv", ())}
    summary = {name if name in files else full_stem(name): row for name, row in names.items()}
    if not files and not summary and not failed:
        raise FileNotFoundError(f"{json_dir}: holds no results: no json/, summary.csv, scores.csv or stats.json")
    spots: dict[str, list] = {}
    for row in earlier_rows(results_dir / "hotspots.csv", ()):
        spots.setdefault(row["slide"], []).append(row)
    inline = len(files) <= MAX_INLINE
    rows: dict[str, dict] = {name: dict(row) for name, row in summary.items()}
    items, links, first = [], {}, None
    for number, (name, path) in enumerate(sorted(files.items()), 1):
        section = Section(f"item-{number}", name)
        with recorded(failed, name):
            image = nuclei.open_image_of(name, image_dir, failed)
            found = nuclei.load(path, image)
            first = first or found
            rows.setdefault(name, {}).update({k: v for k, v in nuclei.item_row(found).items() if k not in rows[name]})
            section = nuclei.slide_section(found, image, spots.get(name, []), results_dir)
            section.key = f"item-{number}"
        section.notes += [f"not shown: {failed[name]}"] if name in failed else []
        links[name] = f"#{section.key}"
        if inline:
            items.append(section)
        else:
            links[name] = _own_page(results_dir, name, section)
    for name, why in failed.items():
        if name not in files:
            rows.setdefault(name, {"status": "failed", "reason": why})
    return [_first_section(results_dir, first, rows, links, failed), *_tables(results_dir), *items]


def _first_section(
    results_dir: Path, first: nuclei.Found | None, rows: dict, links: dict, failed: Mapping[str, str]
) -> Section:
    """Return the section with all slides in one table, and the settings of the run."""
    section = Section("all", "All results")
    header = first.header if first else {}
    run = header.get("run") if isinstance(header.get("run"), dict) else {}
    facts = {"Checkpoint": header.get("model"), "Version": header.get("version")}
    facts |= {name.replace("_", " ").capitalize(): value for name, value in run.items() if name not in NOT_SHOWN}
    section.facts = [(name, str(value)) for name, value in facts.items() if value not in (None, "", False)]
    section.notes = [f"{name}: {why}" for name, why in sorted(failed.items())]
    table = nuclei.table_of(dict(sorted(rows.items())), "A row for each slide or image", links)
    if first is not None:  # columns such as `type_1` get the name of their type
        names = {f"type_{t}": f"{n} (type_{t})" for t, (n, _) in first.types.items() if t is not None and n != str(t)}
        table = type(table)(table.caption, [names.get(c, c) for c in table.columns], table.rows, table.links)
    section.tables = [table]
    return section


def _tables(results_dir: Path) -> list[Section]:
    """Return a section for each further table of the folder."""
    sections = []
    for file, title in TABLES.items():
        rows = earlier_rows(results_dir / file, ())
        if rows:
            table = nuclei.Table(f"{title} ({file})", list(rows[0]), [list(row.values()) for row in rows])
            sections.append(Section(file.removesuffix(".csv"), title, tables=[table]))
    return sections


def _own_page(results_dir: Path, name: str, section: Section) -> str:
    """Write the page of one slide, and return its address relative to the report."""
    file = f"{short_stem(name)}.html"
    (results_dir / PAGES).mkdir(exist_ok=True)
    write_page(results_dir / PAGES / file, Page(name, "", [section], back=f"../{REPORT}"))
    return quote(f"{PAGES}/{file}".replace(os.sep, "/"))
