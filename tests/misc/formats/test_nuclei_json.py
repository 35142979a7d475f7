"""The JSON of nuclei: upstream's readers read ours, ours reads theirs, and neither holds a slide in memory."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from misc.formats import json_text, nuclei_json
from misc.formats.nuclei_json import iter_json, read_header, read_json, types_from_header, types_to_header, write_json
from misc.nuclei import Nuclei
from misc.type_info import default_type_info

# What upstream's `json.dump` writes for two nuclei: blanks after the marks, `mag` first.
UPSTREAM = {
    "mag": None,
    "nuc": {
        "7": {
            "bbox": [[2, 1], [5, 4]],
            "centroid": [2.0, 3.25],
            "contour": [[1, 2], [3, 2], [3, 4], [1, 4]],
            "type_prob": 0.75,
            "type": 2,
        },
        "3": {
            "bbox": [[0, 0], [2, 2]],
            "centroid": [0.5, 0.5],
            "contour": [[0, 0], [1, 0], [1, 1]],
            "type_prob": 1.0,
            "type": 0,
        },
    },
}


def make(count: int, start: int = 1, typed: bool = True, probs: int = 0, corners: int = 4) -> Nuclei:
    rng = np.random.default_rng(start)
    corner = rng.integers(0, 90_000, (count, 1, 2))
    contours = corner + rng.integers(0, 30, (count, corners, 2))
    return Nuclei.from_contours(
        np.arange(start, start + count),
        np.stack([contours.min(axis=1)[:, ::-1], contours.max(axis=1)[:, ::-1] + 1], axis=1),
        contours.mean(axis=1),
        list(contours),
        types=rng.integers(0, 5, count).astype(np.int32) if typed else None,
        type_prob=rng.random(count) if typed else None,
        class_probs=rng.random((count, probs)).astype(np.float32) if probs else None,
    )


def assert_same(found: Nuclei, expected: Nuclei) -> None:
    for field in fields(Nuclei):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert a.dtype == b.dtype, field.name


def test_written_as_upstream_reads_it(tmp_path):
    nuclei = Nuclei.from_dict({int(key): info for key, info in UPSTREAM["nuc"].items()})
    assert write_json(tmp_path / "a.json", nuclei) == 2
    assert json.loads((tmp_path / "a.json").read_text()) == UPSTREAM
    write_json(tmp_path / "b.json", nuclei, mag=40, header={"mpp": 0.25, "types": {1: ["a", [1, 2, 3]]}})
    content = json.loads((tmp_path / "b.json").read_text())
    assert list(content) == ["mag", "mpp", "types", "nuc"]
    assert (content["mag"], content["types"]["1"]) == (40, ["a", [1, 2, 3]])


def test_type_probs_and_missing_types(tmp_path):
    write_json(tmp_path / "a.json", make(1, probs=3))
    info = json.loads((tmp_path / "a.json").read_text())["nuc"]["1"]
    assert len(info["type_probs"]) == 3
    write_json(tmp_path / "b.json", make(1, typed=False))
    info = json.loads((tmp_path / "b.json").read_text())["nuc"]["1"]
    assert info["type"] is None
    assert info["type_prob"] is None
    assert "type_probs" not in info


def test_what_is_written_in_pieces_comes_back(tmp_path, subtests):
    for typed, probs in [(True, 0), (True, 4), (False, 0)]:
        with subtests.test(typed=typed, probs=probs), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(json_text, "BLOCK_BYTES", 1000)
            monkeypatch.setattr(nuclei_json, "WRITE_NUCLEI", 7)
            parts = [make(n, start, typed, probs) for n, start in ((20, 1), (0, 21), (1, 21), (30, 40))]
            header = {"mpp": 0.5, "slide": {"name": "ä .b [1].svs", "width": 9, "height": 8, "scale": 2.0, "mpp": 0.25}}
            assert write_json(tmp_path / "a.json", iter(parts), 20, header) == 51
            expected = Nuclei.concat([part for part in parts if len(part)])
            nuclei, found = read_json(tmp_path / "a.json")
            assert_same(nuclei, expected)
            assert found == {"mag": 20, **header}
            assert read_header(tmp_path / "a.json") == found
            chunks = list(iter_json(tmp_path / "a.json", chunk=10))
            assert len(chunks) > 2
            assert all(len(chunk) >= 10 for chunk in chunks[:-1])
            assert_same(Nuclei.concat(chunks), expected)


def test_files_of_others(tmp_path, subtests):
    orders = [["mag", "nuc"], ["nuc", "mag", "mpp"], ["mpp", "nuc", "mag"]]
    turns = [(), ("3",), ("7", "3")]  # nuclei whose keys come the other way round
    for block, order, indent, turned in itertools.product([64, 1 << 20], orders, [None, 2], turns):
        case = {"block": block, "order": order, "indent": indent, "turned": turned}
        with subtests.test(**case), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
            content = {**UPSTREAM, "mag": 40, "mpp": {"x": [{"}": ']},\\"'}]}}
            content["nuc"] = {
                key: dict(reversed(info.items())) if key in turned else info for key, info in UPSTREAM["nuc"].items()
            }
            text = json.dumps({key: content[key] for key in order}, indent=indent)
            (tmp_path / "a.json").write_text(f"\ufeff{text}\n")
            nuclei, header = read_json(tmp_path / "a.json")
            assert_same(nuclei, Nuclei.from_dict(UPSTREAM["nuc"]))
            assert header == {key: content[key] for key in order if key != "nuc"}
            assert read_header(tmp_path / "a.json") == header


def test_nuclei_with_more_in_them(tmp_path):
    """Objects, lists and brackets in strings inside a nucleus are what the fast way of reading cannot do."""
    infos = {
        key: {**info, "user": {"note": 'a "}},{" ]], [', "c": {"d": [[1], [2]]}}}
        for key, info in UPSTREAM["nuc"].items()
    }
    infos["9"] = {**UPSTREAM["nuc"]["3"], "contour": [[1.0, 2.0], [3.4, 2.6], [5, 6]]}
    (tmp_path / "a.json").write_text(json.dumps({"nuc": infos, "mag": 1}))
    nuclei, header = read_json(tmp_path / "a.json")
    assert nuclei.ids.tolist() == [7, 3, 9]
    assert nuclei.contour(0).tolist() == UPSTREAM["nuc"]["7"]["contour"]
    assert nuclei.contour(2).tolist() == [[1, 2], [3, 3], [5, 6]]
    assert header == {"mag": 1}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_usual_files_are_read_the_fast_way(tmp_path, monkeypatch, indent):
    def plainly(*args):
        raise AssertionError("ten times slower")

    monkeypatch.setattr(nuclei_json, "_read_plainly", plainly)
    expected = make(50, probs=2)
    write_json(tmp_path / "a.json", expected)
    content = json.loads((tmp_path / "a.json").read_text())
    content["nuc"]["7"] |= {"type": None, "type_prob": None}
    expected.types[6], expected.type_prob[6] = 0, np.nan
    (tmp_path / "b.json").write_text(json.dumps(content, indent=indent))
    assert_same(read_json(tmp_path / "b.json")[0], expected)


def test_no_nuclei(tmp_path):
    assert write_json(tmp_path / "a.json", Nuclei.empty(typed=True), 40, {"mpp": None}) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == {"mag": 40, "mpp": None, "nuc": {}}
    nuclei, header = read_json(tmp_path / "a.json")
    assert len(nuclei) == 0
    assert header == {"mag": 40, "mpp": None}
    assert list(iter_json(tmp_path / "a.json")) == []
    assert read_header(tmp_path / "a.json") == header


def test_untyped_among_typed_is_type_0_whichever_comes_first(tmp_path, subtests):
    for untyped_first, block in itertools.product([False, True], [64, 1 << 20]):
        with subtests.test(untyped_first=untyped_first, block=block), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
            typed = UPSTREAM["nuc"]["7"] | {"type": 2, "type_prob": 0.9}
            bare = typed | {"type": None, "type_prob": None}
            both = [typed] + [bare] * 30
            content = {"mag": None, "nuc": dict(enumerate(both[::-1] if untyped_first else both))}
            (tmp_path / "a.json").write_text(json.dumps(content))
            parts = list(iter_json(tmp_path / "a.json", chunk=1))
            types = np.concatenate([part.types for part in parts]).tolist()
            assert types == ([0] * 30 + [2] if untyped_first else [2] + [0] * 30)
            assert sum(int(np.isnan(part.type_prob).sum()) for part in parts) == 30


def test_untyped_nuclei_stay_untyped_whatever_else_the_file_says(tmp_path):
    bare = UPSTREAM["nuc"]["7"] | {"type": None, "type_prob": None}
    content = {"nuc": {"1": bare}, "types": {"1": ["type", [1, 2, 3]]}, "model": {"type": "fast"}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "a.json")[0].types is None


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_p04_every_truncation_is_refused(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_text, "BLOCK_BYTES", block)
    text = json.dumps(UPSTREAM).encode()
    path = tmp_path / "a.json"
    for length in range(len(text)):
        path.write_bytes(text[:length])
        with pytest.raises(ValueError, match=r"a\.json: byte \d+: .*truncated") as error:
            read_json(path)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="truncated"):
            read_header(path)


def test_broken_files_say_where(tmp_path, subtests):
    cases = [
        ("[1, 2]", r"byte 0: broken JSON: expected '\{', found '\['"),
        ('{"mag": 1}', 'no "nuc" in it'),
        ('{"mag": nope, "nuc": {}}', "byte 8: broken JSON"),
        ('{"mag": 1, "nuc": []}', r"byte 18: .*expected '\{'"),
        ('{"nuc": {}} x', "byte 12: more text after the end"),
        (json.dumps(UPSTREAM)[:-2] + ",}}", r"byte \d+: expected the next nucleus after the comma"),
        ('{"nuc": {"1": {"centroid": [0, 0]}}}', "nucleus '1' is not valid: KeyError 'contour'"),
    ]
    for text, reason in cases:
        with subtests.test(text=text, reason=reason):
            path = tmp_path / "a.json"
            path.write_text(text)
            with pytest.raises(ValueError, match=reason) as error:
                read_json(path)
            assert str(error.value).startswith(str(path))


def test_broken_nuclei_are_refused(tmp_path, subtests):
    cases = [
        ('}, "3"', '} "3"'),  # no comma between two nuclei
        ('"type": 0}}', '"type": 0},}'),  # a comma after the last
        ("[3, 2]", "[3]"),  # a point of one number
        ("[3, 2]", "[3, 2, 1, 0]"),
        ("[3, 2]", '[3, "2x"]'),
        ("[3, 2]", "[3, 99999999999]"),
        ('"7"', '"seven"'),
        ('"7"', '"99999999999999999999"'),
        ('"type": 2', '"type": "x"'),
        ('"type": 2', '"type": [1]'),
        ('"type": 0', '1"type": 0'),  # two numbers with a key or a bracket between them
        ('[0.5, 0.5], "contour"', '[0.5, 0.5], 1"contour"'),
        ("[0.5, 0.5]", "1[0.5, 0.5]"),
        ('"type": 2', '"type": 3000000000'),
        ('"type": 2', '"type_probs": 5, "type": 2'),
        ("[[2, 1], [5, 4]]", "[[2, 1], [5, 3000000000]]"),
        ("[2.0, 3.25]", "[2.0]"),
        ("[[2, 1], [5, 4]]", "[[2, 1], [5]]"),
        ('"3": {', '"7": {'),  # an id twice
    ]
    for old, new in cases:
        with subtests.test(old=old, new=new):
            text = json.dumps(UPSTREAM)
            assert old in text
            (tmp_path / "a.json").write_text(text.replace(old, new, 1))
            with pytest.raises(ValueError, match=r"a\.json: "):
                read_json(tmp_path / "a.json")


def test_a_missing_bracket_does_not_pull_the_file_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(json_text, "MAX_VALUE_BYTES", 5000)
    text = json.dumps({"mag": [1], "nuc": {str(i): UPSTREAM["nuc"]["3"] for i in range(100)}})
    (tmp_path / "a.json").write_text(text.replace("[1]", "[1", 1))
    with pytest.raises(ValueError, match=r"byte 8: a value of more than .* a bracket is missing"):
        read_json(tmp_path / "a.json")


def test_a_long_value_in_the_header_is_read_in_time_by_its_length(tmp_path, monkeypatch):
    """What is searched again when another block comes is no more than was there before."""
    path, searched = tmp_path / "a.json", []
    real = json_text._value_end
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(json_text, "MAX_VALUE_BYTES", 100_000)
    monkeypatch.setattr(json_text, "_value_end", lambda text, at: searched.append(len(text) - at) or real(text, at))
    for note, said in (
        ("x" * 99_000, None),
        ([1] * 30_000, None),
        ("x" * 400_000, "a value of more than"),
    ):
        searched.clear()
        path.write_text(json.dumps({"note": note, "nuc": {}}))
        if said is None:
            assert read_header(path)["note"] == note
        else:
            with pytest.raises(ValueError, match=said):
                read_header(path)
        assert sum(searched) < 5 * 200_000
    path.write_text('{"note": ' + "[" * 5000)
    with pytest.raises(ValueError, match="byte 9: brackets within brackets"):
        read_header(path)


def test_missing_file(tmp_path):
    for read in (read_json, read_header, lambda path: list(iter_json(path))):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "a.json")


def test_failed_writing_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="id 2 occurs more than once"):
        write_json(tmp_path / "a.json", [make(2), make(1, start=2)])
    with pytest.raises(ValueError, match="mag"):
        write_json(tmp_path / "a.json", make(1), header={"mag": 3})

    def breaks():
        yield make(3)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "a.json", breaks())
    assert list(tmp_path.iterdir()) == []


def test_p20_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 1 << 16)

    def peak(work) -> float:
        tracemalloc.start()
        work()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    def write(pieces: int):
        write_json(tmp_path / f"{pieces}.json", (make(500, 1 + 500 * i, corners=20) for i in range(pieces)))

    def read(pieces: int):
        assert sum(len(part) for part in iter_json(tmp_path / f"{pieces}.json", chunk=500)) == 500 * pieces

    for work in (write, read):
        small, large = peak(lambda w=work: w(3)), peak(lambda w=work: w(12))
        assert large < 1.1 * small + 100_000, work  # 8 bytes an id stay: 36 KB
    assert (tmp_path / "12.json").stat().st_size > 2_000_000


def test_types_in_the_header():
    info = default_type_info(3)
    header = json.loads(json.dumps({"types": types_to_header(info)}))
    assert header["types"]["1"] == [info[1][0], list(info[1][1])]
    assert types_from_header(header) == info
    assert types_from_header({}) is None
    with pytest.raises(ValueError, match="types"):
        types_from_header({"types": {"1": "x"}})
