"""Slides that lie on servers; the S3 server is moto's, on the loopback address."""

from __future__ import annotations

import sys

import pytest

from misc.slides.remote import fetch, is_uri, local_path, size_of


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


def test_s3(tmp_path, monkeypatch):
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
        bucket = s3fs.S3FileSystem()
        bucket.mkdir("slides")
        bucket.pipe("slides/a b/1.svs", b"x" * 1000)
        uri = "s3://slides/a b/1.svs"
        path = local_path(uri, tmp_path)
        assert size_of(uri) == 1000
        fetch(uri, path)
        assert path.read_bytes() == b"x" * 1000
        with pytest.raises(FileNotFoundError):
            size_of("s3://slides/none.svs")
    finally:
        running.stop()
