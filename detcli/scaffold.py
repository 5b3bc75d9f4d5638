"""Writes a new plugin: a distribution with a manifest, a model that works, a card and a test."""

from __future__ import annotations

import importlib.util
import keyword
from importlib.resources import files
from pathlib import Path
from string import Template

from detcli.errors import UsageError
from detcli.registry import SLOTS, names, plugins

FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "{name}/__init__.py": "init.py.txt",
    "{name}/model.py": "model.py.txt",
    "{name}/README.md": "README.md.txt",
    "tests/test_{name}.py": "test.py.txt",
}
"""The path of each file, and its template in ``detcli/templates``."""


def write_plugin(name: str, folder: Path) -> list[Path]:
    """Write the distribution of a plugin called `name` into `folder` and return its files.

    Raises `UsageError` when the name can't be a package or is taken, or when `folder` is there and not empty.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} can't be a plugin's name: it must be a Python name such as 'my_detector'.")
    taken = next((slot for slot in SLOTS if name in names(slot)), None)
    if name in plugins() or taken:
        raise UsageError(f"the name {name!r} is taken: see `detcli list {taken or 'plugins'}`. Choose another.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is already there and stays as it is. Choose another place with --out.")
    spec = importlib.util.find_spec(name)
    if spec and spec.origin:
        raise UsageError(f"{name!r} is the name of an installed package ({spec.origin}). Choose another.")
    words = {"name": name, "dashed": name.replace("_", "-"), "title": name.replace("_", " ").capitalize()}
    written = []
    for path, template in FILES.items():
        text = files("detcli").joinpath("templates", template).read_text(encoding="utf-8")
        target = folder / path.format(name=name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(words), encoding="utf-8")
        written.append(target)
    return written
