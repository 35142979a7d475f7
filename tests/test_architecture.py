"""The page on the house says what the code is."""

from __future__ import annotations

import ast
import re

from conftest import ROOT

from docs.make_architecture import PICTURE, TEXT, boxes, picture, tree, with_tables

ANEW = "run `python docs/make_architecture.py`"


def test_the_picture_and_the_tables_are_those_of_the_code():
    text = TEXT.read_text(encoding="utf-8")
    assert {"imports", *boxes()} - {"scripts"} == set(re.findall(r"<!-- table: (\S+) -->", text))
    assert with_tables(text) == text, ANEW
    assert picture() == PICTURE.read_text(encoding="utf-8"), ANEW


def test_what_the_page_names_is_there():
    text = re.sub(r"<!-- table.*?<!-- end", "", TEXT.read_text(encoding="utf-8"), flags=re.DOTALL)
    for path in re.findall(r"`(\w[\w/]*(?:/|\.py|\.md|\.json))`", text):
        assert (ROOT / path).exists(), path
    rows = re.findall(r"^\| \d+ \| (.+?) \| `(.+?)\.py` \|", text, re.MULTILINE)
    assert len(rows) == 12
    for calls, module in rows:
        for call in re.findall(r"`(.+?)`", calls):
            *classes, function = call.split(".")
            body = tree(module.replace("/", ".")).body
            for name in classes:
                body = next(part for part in body if isinstance(part, ast.ClassDef) and part.name == name).body
            assert function in {part.name for part in body if isinstance(part, ast.FunctionDef)}, call
