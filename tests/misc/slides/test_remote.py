"""Slides that lie on servers; the S3 server is moto's, on the loopback address."""

from __future__ import annotations

import sys

import pytest

from misc.formats.nuclei_json import write_json
from misc.slides.remote import fetch, is_uri, local_path, read_uploaded_header, size_of, upload


def test_what_a_uri_is_and_where_it_goes(tmp_path):
    assert is_uri("s3://bucket/a.svs")
    assert not is_uri("C:/slides/a.svs")
    one, other = (local_path(f"s3://{bucket}/x/a 1.svs", tmp_path) for bucket in ("b", "c"))
    assert one.name == other.name == "a 1.svs"
    assert one.parent != other.parent
    assert local_path("https://host/a.svs?token=1/2", tmp_path).name == "a.svs"


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match="pip install -r requirements-storage.txt"):
        size_of("s3://bucket/a.svs")


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on the loopback address, and the file system that is there."""
    server = pytest.importorskip("moto.server", reason='pip install -r requirements-storage.txt "moto[server]"')
    s3fs = pytest.importorskip("s3fs", reason="pip install -r requirements-storage.txt")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
    finally:
        running.stop()


def test_s3(s3, tmp_path):
    s3.mkdir("slides")
    s3.pipe("slides/a b/1.svs", b"x" * 1000)
    uri = "s3://slides/a b/1.svs"
    path = local_path(uri, tmp_path)
    assert size_of(uri) == 1000
    fetch(uri, path)
    assert path.read_bytes() == b"x" * 1000
    with pytest.raises(FileNotFoundError):
        size_of("s3://slides/none.svs")


def test_results_are_uploaded_or_stay_and_are_named(s3, tmp_path):
    s3.mkdir("results")
    paths = {kind: tmp_path / kind / f"a.{kind}" for kind in ("png", "json")}
    for path in paths.values():
        path.parent.mkdir()
    write_json(paths["json"], [], 20, {"run": {"window": 256}})
    paths["png"].write_bytes(b"picture")
    whole = paths["json"].read_bytes()
    with pytest.raises(OSError, match=r"cannot be uploaded to s3://none/x .*stays? here: .*a\.png, .*a\.json"):
        upload(paths, "s3://none/x")
    assert read_uploaded_header("s3://results/x/json/a.json") is None
    upload(paths, "s3://results/x")
    assert not any(path.exists() for path in paths.values())
    assert s3.cat("results/x/json/a.json") == whole
    assert s3.cat("results/x/png/a.png") == b"picture"
    assert read_uploaded_header("s3://results/x/json/a.json")["run"] == {"window": 256}
