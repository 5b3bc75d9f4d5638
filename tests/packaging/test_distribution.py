import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from detcli import __version__
from detcli.registry import GROUP

ROOT = Path(__file__).parents[2]
SOURCES = ("detcli", "plugins", "zoo")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
PLUGINS = sorted(folder.parent.name for folder in (ROOT / "plugins").glob("*/__init__.py"))


def test_entry_points_are_the_folders_of_plugins():
    declared = PROJECT["project"]["entry-points"][GROUP]
    assert declared == {name: f"detcli.plugins.{name}:plugin" for name in PLUGINS}
    installed = {entry.name for entry in entry_points(group=GROUP) if entry.value.startswith("detcli.plugins.")}
    assert installed == set(PLUGINS)


def test_the_package_list_is_the_folders_on_disk():
    roots = {"detcli": "detcli", "plugins": "detcli.plugins", "zoo": "detcli.zoo_data"}
    on_disk = {
        ".".join([package, *init.parent.relative_to(ROOT / root).parts])
        for root, package in roots.items()
        for init in (ROOT / root).rglob("__init__.py")
    }
    assert sorted(on_disk) == PACKAGES
    stray = [
        path for root in SOURCES for path in (ROOT / root).rglob("*.py") if not (path.parent / "__init__.py").exists()
    ]
    assert stray == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that nothing an earlier build left is taken for source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copytree(ROOT / name, folder / "source" / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", folder, folder / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_pure_python_with_one_top_level_name(wheel):
    assert wheel.name == f"detcli-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"detcli", f"detcli-{__version__}.dist-info"}


def test_the_wheel_has_every_module_card_and_template(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for root, inside in (("detcli", "detcli"), ("plugins", "detcli/plugins"), ("zoo", "detcli/zoo_data")):
        for path in (ROOT / root).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / root).as_posix()}" in names
    assert {f"detcli/plugins/{name}/README.md" for name in PLUGINS} <= names
    assert {f"detcli/templates/{path.name}" for path in (ROOT / "detcli/templates").iterdir()} <= names
    assert "detcli/py.typed" in names
