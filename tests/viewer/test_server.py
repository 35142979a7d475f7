"""The server: what it answers, to whom, and that nothing of a request becomes a path."""

from __future__ import annotations

import http.client
import json
import threading

import cv2
import numpy as np
import pytest
from made_up import random_nuclei, write_results

from viewer.server import Server
from viewer.slides import Library, Options


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    (folder / "slides").mkdir()
    cv2.imwrite(str(folder / "slides" / "a.png"), np.full((900, 1200, 3), 200, np.uint8))
    write_results(folder, "a", random_nuclei(200, 900))
    write_results(folder, "lost", random_nuclei(3, 900))
    write_results(folder / "other", "a", random_nuclei(150, 900, seed=1))
    return folder


@pytest.fixture(scope="module")
def server(place):
    options = Options(results_dir=place, wsi_dir=place / "slides", compare=place / "other")
    with Server(Library(options)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, path: str, method: str = "GET", **headers) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_its_list_and_its_tiles_are_there(server):
    answer, body = ask(server, "/")
    assert answer.status == 200
    assert b"<script" in body
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "Access-Control-Allow-Origin" not in answer.headers
    listing = json.loads(ask(server, "/slides.json")[1])
    assert [(entry["name"], bool(entry["reason"])) for entry in listing] == [("a", False), ("lost", True)]
    info = json.loads(ask(server, "/slide/0/info.json")[1])
    assert info["size"] == [1200, 900]
    assert [result["total"] for result in info["results"]] == [200, 150]
    for path in ("tile/0/2_1.jpg", "nuclei/1/prob/0/0_0.png", "density/0/3/-1/0_0.png", "thumbnail.jpg"):
        answer, body = ask(server, f"/slide/0/{path}")
        assert answer.status == 200, path
        assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED) is not None
    answer, body = ask(server, "/slide/1/info.json")
    assert answer.status == 500
    assert b"lost: no slide of this name" in body


def test_a_nucleus_has_the_values_of_its_file(server, place):
    nuclei = json.loads((place / "json" / "a.json").read_text())["nuc"]
    key, expected = next(iter(nuclei.items()))
    x, y = expected["centroid"]
    found = json.loads(ask(server, f"/slide/0/near/0/{x}_{y}.json")[1])
    (nucleus,) = [one for one in found if one["id"] == int(key)]
    assert nucleus["type"] == expected["type"]
    assert nucleus["prob"] == pytest.approx(expected["type_prob"], abs=1e-6)
    assert nucleus["centroid"] == expected["centroid"]
    assert nucleus["bbox"] == expected["bbox"]
    assert nucleus["contour"] == expected["contour"]


def test_only_this_machine_is_answered(server):
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_address[1]
    for host, status in {f"127.0.0.1:{port}": 200, "localhost:1": 200, "evil.example": 421, "": 421}.items():
        assert ask(server, "/slides.json", Host=host)[0].status == status
    assert ask(server, f"http://evil.example:{port}/slides.json", Host="evil.example")[0].status == 421


def test_no_path_leads_to_a_file(server, place):
    paths = ["/../view_slides.py", "/%2e%2e/view_slides.py", "//etc/passwd", "/static/app.js", f"/{place}/json/a.json"]
    paths += ["/slide/7/info.json", "/slide/0/tile/1/0_0.jpg", "/slide/0/tile/0/99_0.jpg", "/slide/0/near/0/a_b.json"]
    paths += ["/slide/0/nuclei/0/prob/-90/0_0.png", "/slide/0/nuclei/0/../0/0_0.png", "/openseadragon.LICENSE.txt"]
    for path in paths:
        assert ask(server, path)[0].status == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/slides.json", method)[0].status == 501
