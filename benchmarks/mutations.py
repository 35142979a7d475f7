"""Ways to damage a file: its bytes, length, numbers or structure; the same seed gives the same damage."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
import torch

# Replacements for numbers in a text, and for values in JSON and in a checkpoint's `meta`.
NUMBERS = (b"0", b"-1", b"1e308", b"-1e308", b"1e-320", b"NaN", b"2147483648", b"9223372036854775808", b"9" * 30)
VALUES = (None, True, 0, -1, 1e300, 2**63, "", "x", "=1+1", [], {}, [[]], [1], [[1, 2]], {"a": 1}, "\0", "é" * 300)
# Replacements for words of a binary header.
WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\1\0", b"\1\0\0\0")
HEADER_BYTES = 4096
DEEP = 100_000
TEXTS = (".json", ".geojson", ".xml", ".csv")
ARRAYS = (".mat", ".npy", ".npz", ".tar")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Payload:
    """A call that runs when it is unpickled, as a malicious file could hold one."""

    def __reduce__(self):
        return os.system, ("exit 0",)


def mutate(path: Path, target: Path, rng: random.Random) -> str:
    """Write a damaged copy of a file, and return the name of the damage."""
    data, suffix = path.read_bytes(), path.suffix.lower()
    ways: list[Callable] = [flip, cut, repeat, words]
    if suffix in TEXTS:
        ways += [numbers, numbers, swap_text, deep]
    if suffix in (".json", ".geojson"):
        ways += [json_values] * 4
    if suffix == ".xml":
        ways += [xml_parts] * 4
    if suffix in ARRAYS and b"\x89HDF" not in data[:HEADER_BYTES]:
        ways += [arrays] * 4
    way = rng.choice(ways)
    target.write_bytes(arrays(path, rng) if way is arrays else way(data, rng))
    return way.__name__


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes; half of the time in the header only."""
    changed = bytearray(data)
    end = min(len(data), HEADER_BYTES) if rng.random() < 0.5 else len(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut off the end."""
    return data[: rng.choice((0, 1, rng.randrange(len(data)), len(data) - 1))]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Copy, repeat or remove a piece."""
    start = rng.randrange(len(data))
    stop, at = min(start + rng.randint(1, 2000), len(data)), rng.randrange(len(data))
    return data[:at] + data[start:stop] * rng.choice((0, 1, 50)) + data[at + rng.choice((0, stop - start)) :]


def words(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a word of the header with an extreme value."""
    at = rng.randrange(max(min(len(data), HEADER_BYTES) // 4, 1)) * 4
    word = rng.choice(WORDS)[: rng.choice((2, 4))]
    return data[:at] + word + data[at + len(word) :]


def numbers(data: bytes, rng: random.Random) -> bytes:
    """Replace one number of a text, or a tenth of them."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    for match in sorted(rng.sample(found, rng.choice((1, -(-len(found) // 10)))), key=lambda m: -m.start()):
        data = data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]
    return data


def swap_text(data: bytes, rng: random.Random) -> bytes:
    """Store a text in another encoding, or replace a character of its syntax by another."""
    if rng.random() < 0.5:
        return data.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    old, new = rng.sample([b'"', b",", b"[", b"]", b"{", b"}", b"<", b">", b"\n", b"\0", b"/", b"&"], 2)
    return data.replace(old, new, rng.choice((1, 3, -1)))


def deep(data: bytes, rng: random.Random) -> bytes:
    """Nest brackets or elements very deeply."""
    opening, closing = (b"<a>", b"</a>") if data.lstrip()[:1] == b"<" else rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    at = rng.choice((0, max(data.find(b":") + 1, 0), max(data.find(b">") + 1, 0)))
    return data[:at] + opening * DEEP + rng.choice((b"", b"1" + closing * DEEP)) + data[at:]


def json_values(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename values anywhere in JSON."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 3))):
        node = content
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.25:
                break
            node = node[key]
        if not isinstance(node, dict | list) or not node:
            break
        if rng.random() < 0.2:
            del node[key]
        elif isinstance(node, dict) and rng.random() < 0.2:
            node[rng.choice(("", "-1", "99999999999999999999", "x"))] = node.pop(key)
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(rng.choice((content, content, content, rng.choice(VALUES)))).encode()


def xml_parts(data: bytes, rng: random.Random) -> bytes:
    """Empty, remove, rename or repeat attributes and elements of XML."""
    pattern = rng.choice((rb'"[^"<>]*"', rb' \w+="[^"]*"', rb"<\w+[^<>]*/>", rb"</?\w+", rb">[^<>]+<"))
    found = list(re.finditer(pattern, data))
    for match in sorted(rng.sample(found, min(rng.choice((1, 5)), len(found))), key=lambda m: -m.start()):
        text = match[0]
        new = rng.choice((b"", text * 2, text[:1] + rng.choice(NUMBERS) + text[-1:], text[:1] + b"x" + text[1:]))
        data = data[: match.start()] + new + data[match.end() :]
    return data


def arrays(path: Path, rng: random.Random) -> bytes:
    """Change shape, type or values of an array in a file of arrays, remove it, or replace it."""
    content = _load(path)
    where = _innermost(content)
    key = rng.choice(list(where))
    odd = _odd_array(where[key], rng)
    if path.suffix == ".tar":
        odd = rng.choice((odd if isinstance(odd, str | Payload) else _tensor(odd), rng.choice(VALUES)))
    if rng.random() < 0.15:
        del where[key]
    elif rng.random() < 0.15:
        where[rng.choice(("x", "inst_type", "type_map", "inst_uid", "conv0/W:0"))] = odd
    else:
        where[key] = odd
    if path.suffix == ".tar" and rng.random() < 0.5:
        content["meta"] = {name: rng.choice(VALUES) for name in ("mpp", "types", "window", "precision")}
    return _save(content, path.suffix)


def _innermost(content: dict) -> dict:
    return content["desc"] if isinstance(content.get("desc"), dict) else content


def _load(path: Path) -> dict:
    if path.suffix == ".mat":
        return {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return dict(stored)
    return torch.load(path, weights_only=True) if path.suffix == ".tar" else {"array": np.load(path)}


def _save(content: dict, suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == ".mat":
        scipy.io.savemat(out, {key: "code" if isinstance(v, Payload) else v for key, v in content.items()})
    elif suffix == ".npz":
        np.savez(out, **content)
    elif suffix == ".tar":
        torch.save(content, out)
    else:
        np.save(out, content.get("array", content.get("x", 0)))
    return out.getvalue()


def _odd_array(array, rng: random.Random):
    array = np.asarray(array)
    numeric = array.astype(np.float64) if array.dtype.kind in "biuf" else np.ones(3)
    shapes = (numeric.reshape(-1), numeric[None], numeric.T, numeric.reshape(-1)[:0], np.float64(3), np.zeros((0, 0)))
    values = (-numeric - 1, numeric + 0.5, numeric * 1e300, np.full_like(numeric, np.nan), numeric + 2**31, numeric > 0)
    kinds = (
        numeric.astype(np.complex64),
        numeric.astype(np.uint8),
        numeric.reshape(-1)[:9].astype(str),
        np.array(["a", "b"]),
    )
    objects = (np.array([Payload()], object), Payload(), "text", np.zeros((3, 0, 2)), np.zeros((1,) * 20))
    return rng.choice(rng.choice((shapes, values, kinds, objects)))


def _tensor(array):
    array = np.asarray(array)
    return torch.from_numpy(array.copy()) if array.dtype.kind in "biufc" else Payload()
