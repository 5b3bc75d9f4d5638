"""What the table tests share: the names that detcli gives to what it has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def names_in(place):
    """Return the functions, classes, arguments and words in quotes of the Python files of `place`, in lower case.

    Not those of converters, which know the words of other code bases, nor of tests.
    """
    path = ROOT / place
    found = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        if file.name.startswith("test_") or "convert" in (file.stem, file.parent.name):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    assert found, f"{place} has no names"
    return {name.lower() for name in found}


@pytest.fixture(scope="session")
def named():
    """Return a function: the names that match a pattern in files or folders, separated by spaces."""
    names = cache(names_in)
    return lambda pattern, places: sorted(
        {name for place in places.split() for name in names(place) if re.search(pattern, name)}
    )
