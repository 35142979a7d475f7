"""The viewer in a real browser: what it shows is what was found, its links lead where they say, and nothing leaves."""

from __future__ import annotations

import json
import re
import shutil
import threading

import cv2
import numpy as np
import pytest
from made_up import CMU, TYPES, dark_nuclei, random_nuclei, write_results

from benchmarks.pyramid import block_px, write_pyramid
from misc.formats.nuclei_json import read_json
from misc.slides.image import open_image
from viewer.export import export_places
from viewer.server import Server
from viewer.slides import Library, Options
from viewer.tiles import LINE_PX, THIN_LINE_PX

VIEW = {"width": 1088, "height": 700}  # of which the panel takes 288
READY = "body[data-view=slide][data-tiles=loaded]"
SIDE = 50_000
ENOUGH_MS = 120_000  # no state takes as long to come; a page that hangs ends there


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared):
    """Results of a real slide, whose nuclei are its dark spots, and of a made-up one of 50,000 px."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "slides").mkdir()
    shutil.copy(shared / "data" / "slides" / f"{CMU}.svs", folder / "slides")
    image = open_image(folder / "slides" / f"{CMU}.svs")
    size = {"name": image.name, "width": image.width, "height": image.height}
    write_results(folder, CMU, dark_nuclei(folder / "slides" / f"{CMU}.svs"), **size)
    write_results(folder / "other", CMU, random_nuclei(500, 2000), **size)
    tissue = write_pyramid(folder / "slides" / "made_up.tif", (SIDE, SIDE)).tissue
    row, column = np.argwhere(tissue[:-1, :-1])[0] * block_px((SIDE, SIDE))[0]
    write_results(folder, "made_up", random_nuclei(3000, 4000).shift(int(row), int(column)), width=SIDE, height=SIDE)
    spots = f"slide,rank,x0_px,y0_px,x1_px,y1_px,nuclei\n{CMU},1,700,400,1300,1000,9\n"
    (folder / "hotspots.csv").write_text(spots + f"made_up,1,{column},{row},{column + 2000},{row + 2000},7\n")
    return folder


@pytest.fixture(scope="module")
def library(place):
    return Library(Options(results_dir=place, wsi_dir=place / "slides"))


@pytest.fixture(scope="module")
def address(library):
    with Server(library) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser):
    """A page that may say nothing in its console and ask nobody but the one who sent it."""
    context = browser.new_context(viewport=VIEW, reduced_motion="reduce", color_scheme="light")
    context.set_default_timeout(ENOUGH_MS)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    own = re.match(r"(https?://[^/]+/|file:)", page.url)[1]
    context.close()
    assert not said
    assert not [url for url in asked if not url.startswith((own, "data:", f"blob:{own}"))]


def shown(page) -> np.ndarray:
    """Return what the page shows of the slide, (H, W, 3) uint8 RGB."""
    data = page.locator("#canvas").screenshot()
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def go(page, address: str, name: str, x: float, y: float, zoom: float) -> None:
    page.goto(f"{address}#{name}&{x}&{y}&{zoom}")
    page.wait_for_selector(READY)


def drawn(place, x: float, y: float, zoom: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the slide and its polygons directly, as the view from (x, y) shows them; and where outlines are, (H, W)."""
    nuclei, _ = read_json(place / "json" / f"{CMU}.json")
    height, width = shape
    left, top = x - width / 2 / zoom, y - height / 2 / zoom
    region = open_image(place / "slides" / f"{CMU}.svs").read(int(top), int(left), height // zoom, width // zoom)
    view = cv2.resize(region, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    points = np.rint((((nuclei.points_xy + 0.5 - (left, top)) * zoom) - 0.5) * 16).astype(np.int32)
    rings, outlined = np.split(points, nuclei.offsets[1:-1]), np.zeros(shape, bool)
    for type_id, (_, colour) in TYPES.items():
        cover = np.zeros(shape, np.uint8)
        ours = [ring for ring, kind in zip(rings, nuclei.types, strict=True) if kind == type_id]
        cv2.polylines(cover, ours, True, 255, LINE_PX if zoom > 1 else THIN_LINE_PX, cv2.LINE_AA, 4)
        share = cover[..., None] / np.float32(255)
        view = view * (1 - share) + np.array(colour, np.float32) * share
        outlined |= cover > 200
    return view, outlined


def test_the_view_is_what_drawing_the_polygons_gives(page, address, place, subtests):
    """Within what JPEG takes from the slide; scale bar and buttons are left out."""
    for zoom in (1, 2):
        with subtests.test(zoom=zoom):
            go(page, address, CMU, 1000, 700, zoom)
            page.locator("#places-on").set_checked(False)
            page.locator("#on").set_checked(True)
            page.wait_for_selector(READY)
            view = shown(page)[20:-60, 20:-60]
            expected, outlined = (part[20:-60, 20:-60] for part in drawn(place, 1000, 700, zoom, (700, 800)))
            assert np.abs(view - expected).mean() < 5
            assert np.abs(view - expected)[outlined].mean() < 12
            page.locator("#on").set_checked(False)
            page.wait_for_selector(READY)
            assert np.abs(shown(page)[20:-60, 20:-60] - expected)[outlined].mean() > 50


def test_a_click_on_a_nucleus_shows_what_its_file_says(page, address, place):
    nuclei = json.loads((place / "json" / f"{CMU}.json").read_text())["nuc"]
    key, nucleus = next(item for item in nuclei.items() if 200 < item[1]["centroid"][0] < 1800)
    x, y = (round(value) for value in nucleus["centroid"])
    go(page, address, CMU, x, y, 4)
    page.locator("#canvas").click()
    page.wait_for_selector("#card:not([hidden])")
    values = dict(
        zip(page.locator("#card dt").all_inner_texts(), page.locator("#card dd").all_inner_texts(), strict=True)
    )
    assert values["id"] == key
    assert values["type"] == f"{nucleus['type']} {TYPES[nucleus['type']][0]}"
    assert float(values["probability"]) == pytest.approx(nucleus["type_prob"], abs=1e-4)
    found = [float(value) for value in values["centroid x, y"].split(",")]
    assert found == pytest.approx(nucleus["centroid"], abs=0.01)
    page.keyboard.press("Escape")
    page.wait_for_selector("#card", state="hidden")


def coloured(page, colour: tuple[int, int, int]) -> int:
    """Return how many px of the view have a type's colour."""
    return int((np.abs(shown(page).astype(int) - colour).max(axis=2) < 40).sum())


def test_types_and_the_slider_take_effect_at_once(page, address):
    go(page, address, CMU, 1000, 700, 2)
    page.locator("#places-on").set_checked(False)
    red, blue = (colour for _, colour in TYPES.values())
    before = coloured(page, red), coloured(page, blue)
    page.get_by_role("checkbox", name="round").uncheck()
    page.wait_for_selector(READY)
    assert coloured(page, red) < 0.1 * before[0]
    assert coloured(page, blue) > 0.9 * before[1]
    page.get_by_role("checkbox", name="round").check()
    page.wait_for_selector(READY)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#step").fill("64")
    assert page.locator("#limit").inner_text() == "1.00"
    page.wait_for_selector(READY)
    assert coloured(page, red) < 0.1 * before[0]
    assert not asked, "the slider takes no request"


def test_a_slide_of_50000_px_is_walked_through_by_keys_and_links(page, address, place):
    page.goto(address)
    page.locator("#cards a", has_text="made_up").click()
    page.wait_for_selector(f"{READY}[data-far=true]")
    assert page.locator("#density").is_visible()
    page.keyboard.press("n")
    page.wait_for_selector(f"{READY}[data-far=true]")
    for _ in range(8):
        page.keyboard.press("+")
    page.wait_for_selector(f"{READY}[data-far=false]")
    _, x, y, zoom = page.url.split("#")[1].split("&")
    assert float(zoom) > 1
    outlined = sum(coloured(page, colour) for _, colour in TYPES.values())
    page.keyboard.press("t")
    page.wait_for_selector(READY)
    assert sum(coloured(page, colour) for _, colour in TYPES.values()) < outlined - 100
    page.keyboard.press("t")
    page.evaluate("link => { location.hash = link; }", f"#made_up&{float(x) + 200}&{y}&0.5")
    page.locator("#times", has_text=re.compile("^20×$")).wait_for()
    page.wait_for_selector(READY)
    assert float(page.url.split("&")[1]) == pytest.approx(float(x) + 200, abs=0.2)
    page.keyboard.press("P")
    page.locator("#name", has_text=CMU).wait_for()
    page.wait_for_selector(READY)


def test_what_was_exported_opens_from_disk(page, library, place, tmp_path):
    written, failed = export_places(library, tmp_path / "for you", None)
    assert (written, failed) == (2, {})
    page.goto((tmp_path / "for you" / "index.html").as_uri())
    page.evaluate("""() => { Promise.all([0, 1].map(Source.info)).then((both) => {
        document.body.dataset.both = both.every((info, i) => info.name === EXPORTED.slides[i].name); }); }""")
    page.wait_for_selector("body[data-both='true']")
    page.locator("#cards a", has_text=CMU).click()
    page.wait_for_selector(READY)
    assert coloured(page, TYPES[1][1]) > 100
    nuclei, _ = read_json(place / "json" / f"{CMU}.json")
    inside = np.flatnonzero((np.abs(nuclei.centroids_xy - (1000, 700)) < 250).all(axis=1))[0]
    x, y = nuclei.centroids_xy[inside] - (700, 400)
    page.evaluate("link => { location.hash = link; }", f"{page.url.split('#')[1].split('&')[0]}&{x}&{y}&4")
    page.wait_for_selector(READY)
    page.locator("#canvas").click()
    page.wait_for_selector("#card:not([hidden])")
    assert page.locator("#card dd").first.inner_text() == str(nuclei.ids[inside])
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename.startswith(f"{CMU}, Hot spot 1_")
