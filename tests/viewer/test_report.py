"""The report page: every number is the tables', nothing in it runs or asks for anything that is not in it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

import compute_stats
import make_report
import plot_heat_map
from misc.formats.nuclei_json import write_json
from misc.nuclei import Nuclei
from viewer.report import make
from viewer.report.fields import choose

ENOUGH_MS = 120_000  # no state takes as long to come; a page that hangs ends there
TYPES = {"1": ["Positive", [200, 30, 30]], "2": ["<b>Negative</b>", [30, 30, 200]]}


def nuclei(count: int, seed: int = 0, size: int = 500) -> Nuclei:
    rng = np.random.default_rng(seed)
    corners = rng.integers(5, size - 20, (count, 2))
    contours = [corner + np.array([[0, 0], [8, 0], [8, 11], [0, 11]]) for corner in corners]
    boxes = [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] for c in contours]
    types, probs = rng.integers(1, 3, count).astype(np.int32), rng.random(count)
    return Nuclei.from_contours(
        np.arange(count) + 1, boxes, [c.mean(axis=0) for c in contours], contours, types=types, type_prob=probs
    )


def write_image(folder, name: str, found: Nuclei, size: int = 500, mpp: float = 0.5) -> None:
    (folder / "in").mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    cv2.imwrite(str(folder / "in" / f"{name}.png"), rng.integers(150, 255, (size, size, 3), np.uint8))
    slide = {"name": f"{name}.png", "width": size, "height": size, "scale": 1.0, "mpp": mpp}
    header = {"mpp": mpp, "slide": slide, "types": TYPES, "model": "a.tar", "run": {"window": 600}}
    write_json(folder / "out" / "json" / f"{name}.json", found, None, header)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "json").mkdir(parents=True)
    write_image(tmp_path, "a", nuclei(40))
    write_image(tmp_path, "<script>alert(1)</script>".replace("/", "_"), nuclei(7))
    return tmp_path


class Tables(HTMLParser):
    """Cells of all tables of a page, row by row, and the texts of its parts."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.inside, self.tags = [], False, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th") or (self.inside and tag == "a")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def page(folder, *options: str) -> str:
    assert make_report.main([f"--results_dir={folder}", *options]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_numbers_pictures_and_names_of_a_run_over_images(folder):
    text = page(folder / "out", f"--image_dir={folder / 'in'}")
    parsed = Tables(text)
    (row,) = [row for row in parsed.rows if row[0] == "a" and len(row) > 3]
    types = nuclei(40).types
    area = (500 * 0.5e-3) ** 2
    assert row[1:4] == ["done", "40", f"{40 / area:.6g}"]
    assert row[4:6] == [str((types == t).sum()) for t in (1, 2)]
    pictures = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert len(pictures) >= 2 * 4
    assert all(attrs["src"].startswith("data:image/") and attrs["alt"] for attrs in pictures)
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;Negative" in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    assert "alert" not in scripts[0]


def test_the_page_asks_for_nothing(folder):
    text = page(folder / "out", f"--image_dir={folder / 'in'}")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1).replace("&#39;", "'")
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attrs in Tables(text).tags:
        assert not {"onclick", "onload", "style"} & attrs.keys()
        for address in (attrs.get("src"), attrs.get("href")):
            assert address is None or address.startswith(("data:image/", "#")), (tag, address)


def test_what_failed_is_in_it(folder):
    (folder / "out" / "json" / "b.json").write_text('{"nuc": ')
    text = page(folder / "out")
    assert re.search(r"<li>b: [^<]*b\.json[^<]*</li>", text)
    page_of = make.make_report(folder / "out", failed={"c": "is empty (0 bytes)"})
    rows = {row[0]: row for row in Tables(page_of.read_text(encoding="utf-8")).rows if row}
    assert "is empty (0 bytes)" in rows["c"]


def test_of_many_slides_each_has_its_own_page(folder, monkeypatch):
    monkeypatch.setattr(make, "MAX_INLINE", 1)
    text = page(folder / "out", f"--image_dir={folder / 'in'}")
    links = [attrs["href"] for tag, attrs in Tables(text).tags if tag == "a" and "report_pages" in attrs["href"]]
    assert len(links) == 2
    own = sorted((folder / "out" / "report_pages").iterdir())
    assert len(own) == 2
    assert all("../report.html" in path.read_text(encoding="utf-8") for path in own)


def test_tables_of_density_maps_are_the_csv_files(folder):
    (folder / "out" / "json" / "_script_alert(1)_script_.json").unlink(missing_ok=True)
    maps = folder / "maps"
    common = [f"--json_dir={folder / 'out' / 'json'}", f"--wsi_dir={folder / 'in'}"]
    assert plot_heat_map.main([*common, f"--output_dir={maps}", "--hotspot_size=100", "--top_k=2"]) == 0
    parsed = Tables(page(maps, *common))
    for name in ("summary", "hotspots"):
        with open(maps / f"{name}.csv", newline="", encoding="utf-8") as handle:
            for line in csv.DictReader(handle):
                cells = [value for key, value in line.items() if value and key != "slide"]
                assert any(set(cells) <= set(row) for row in parsed.rows), (name, line)
    assert len([tag for tag, attrs in parsed.tags if tag == "img" and "hot spot" in attrs["alt"]]) >= 2


def test_scores_with_the_worst_and_the_best(kumar, tmp_path):
    truth, names = kumar / "Test_same" / "Labels", sorted((kumar / "Test_same" / "Labels").glob("*.mat"))[:2]
    from scipy.io import loadmat, savemat

    for path in names:
        for side in ("true", "pred"):
            (tmp_path / side).mkdir(exist_ok=True)
            labels = loadmat(truth / path.name)["inst_map"][:200, :200]
            savemat(tmp_path / side / path.name, {"inst_map": labels if side == "true" else labels * (labels % 3 > 0)})
    common = [f"--{side}_dir={tmp_path / side}" for side in ("pred", "true")]
    assert compute_stats.main([*common, f"--out={tmp_path / 'scores'}"]) == 0
    parsed = Tables(page(tmp_path / "scores", *common, f"--image_dir={kumar / 'Test_same' / 'Images'}"))
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    for line in scores:
        assert any(
            row[0] == line["image"] and float(row[-1]) == pytest.approx(line["AJI+"], abs=1e-5)
            for row in parsed.rows
            if row
        )
    alts = [attrs["alt"] for tag, attrs in parsed.tags if tag == "img"]
    assert len(alts) >= 4
    assert {alt.rpartition(": ")[2] for alt in alts} == {"truth", "prediction"}


def test_training(tmp_path):
    (tmp_path / "00").mkdir()
    values = {str(epoch): {"train-overall_loss": 3 / epoch, "valid-tp_dice_1": 0.1 * epoch} for epoch in (1, 2, 3)}
    (tmp_path / "00" / "stats.json").write_text(json.dumps(values))
    meta = {"types": {"1": ["tumour", [255, 0, 0]]}, "best": {"metric": "valid-tp_dice", "value": 0.3, "epoch": 3}}
    torch.save({"desc": {}, "meta": meta}, tmp_path / "00" / "net_best.tar")
    parsed = Tables(page(tmp_path))
    assert next(row for row in parsed.rows if row and row[0] == "epoch")[-1] == "valid-tp_dice_1 tumour"
    assert [row for row in parsed.rows if row and row[0] == "2"] == [["2", "1.5", "0.2"]]
    assert sum(tag == "img" and attrs["src"].startswith("data:image/svg") for tag, attrs in parsed.tags) == 2


def test_fields_are_the_densest_and_the_most_doubtful():
    rng = np.random.default_rng(0)
    clusters = {(0, 1000): 200, (300, 400): 50, (100, 200): 30, (700, 800): 6}
    xy = np.concatenate([rng.uniform(*sides, (count, 2)) for sides, count in clusters.items()])
    doubt = np.concatenate([np.full(280, 0.1), np.full(6, 0.9)])
    fields = choose(xy, doubt, 100)
    by_why = {why: [field for field in fields if field.why == why] for why in ("densest", "most doubtful", "at random")}
    assert by_why["densest"][0].corner_xy == (300, 300)
    assert by_why["most doubtful"][0].corner_xy == (700, 700)
    assert len({field.corner_xy for field in fields}) == len(fields) == 6
    for field in fields:
        inside = ((xy >= field.corner_xy) & (xy < np.add(field.corner_xy, 100))).all(axis=1)
        assert inside.sum() == field.nuclei
        assert field.near(xy)[inside].all()


def test_folders_without_results_are_refused(tmp_path, capsys):
    assert make_report.main([f"--results_dir={tmp_path / 'nothing'}"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert make_report.main([f"--results_dir={tmp_path}"]) == 1
    assert "holds no results" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_in_a_browser_it_opens_from_disk_sorts_and_filters(folder, browser):
    """Every picture is shown, the console stays empty, and nothing is asked for but the file."""
    for number in range(9):
        write_image(folder, f"c{number}", nuclei(10 * number + 3, seed=number))
    page(folder / "out", f"--image_dir={folder / 'in'}")
    address, asked, said = (folder / "out" / "report.html").as_uri(), [], []
    with browser.new_page() as shown:
        shown.set_default_timeout(ENOUGH_MS)
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.goto(address)
        assert shown.title() == "out"
        counts = (
            "Array.from(document.querySelectorAll('#all tbody tr:not([hidden])'), row => +row.cells[2].textContent)"
        )
        shown.locator("#all th", has_text="nuclei").click()
        shown.wait_for_selector("#all th[aria-sort=ascending]")
        shown.wait_for_selector("#all tbody tr:first-child td:nth-child(3):text-is('3')")
        assert shown.evaluate(counts) == sorted(shown.evaluate(counts))
        shown.locator("#all input").fill("c7")
        shown.wait_for_selector("#all output:text-is('1 of 11')")
        assert shown.evaluate(counts) == [73]
        # `loading=lazy`: what is far below is loaded when it is scrolled to
        pictures = shown.locator("img")
        for index in range(pictures.count()):
            pictures.nth(index).scroll_into_view_if_needed()
            assert shown.evaluate(
                "image => image.decode().then(() => image.naturalWidth)", pictures.nth(index).element_handle()
            )
        assert said == []
        assert {url for url in asked if not url.startswith("data:")} == {address}
