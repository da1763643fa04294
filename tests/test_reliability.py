"""The page on reliability names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())))


def test_the_page_names_tests():
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file, name):
    defined = ast.walk(ast.parse((ROOT / file).read_text()))
    assert name in {one.name for one in defined if isinstance(one, ast.FunctionDef | ast.ClassDef)}
