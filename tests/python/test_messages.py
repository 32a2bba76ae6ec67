"""Every warning of patching has its text in one table, which the troubleshooting page follows."""

from __future__ import annotations

import pathlib
import re
import string

import pytest

pytest.importorskip("transformers", reason="needs transformers")

import liger_kernel.transformers as lk  # noqa: E402
from liger_kernel.transformers.messages import MESSAGES  # noqa: E402

PATCHING = [pathlib.Path(lk.__file__).parents[1] / part for part in ("transformers", "megatron")]
SOURCES = [path.read_text() for part in PATCHING for path in part.rglob("*.py") if path.name != "messages.py"]
CALL = re.compile(r'warn(?:_once)?\(\s*logger,\s*(?:(?:module|model|cls|owner|about),\s*)?"([a-z-]+)"(.*?)\)\n', re.S)


def test_each_text_is_used_and_each_use_has_a_text():
    used = {name for source in SOURCES for name, _ in CALL.findall(source)}
    assert used == set(MESSAGES)


def test_no_other_place_warns():
    for source in SOURCES:
        assert "logger.warning(" not in source


def test_values_of_texts_are_given():
    described = {"model", "path"}  # also through **described and **where
    for source in SOURCES:
        for name, values in CALL.findall(source):
            given = set(re.findall(r"(\w+)=", values)) | (described if "**" in values else set())
            wanted = {field for _, field, _, _ in string.Formatter().parse(MESSAGES[name]) if field}
            assert wanted <= given, name
