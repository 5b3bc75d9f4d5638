"""A plugin distribution made of text, found through an entry point as a real one is."""

import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from detcli import registry, signature

MANIFEST = """
from detcli.plugin import Overlay, Part, Plugin, Recipe

plugin = Plugin(
    name="toy",
    models={"toy": ".model:toy", "toy_two": ".model:toy_two"},
    backbones={
        "tiny": ".model:tiny",
        "tiny_deep": Part(".model:tiny", {"depth": 9}, {"input": {"mean": [1.0, 2.0, 3.0]}}),
        "bare": ".model:bare",
    },
    necks={"ladder": ".model:ladder", "tower": ".model:tower"},
    schedules={
        "short": {"sched": {"length": 3, "drops": [2]}},
        "scratch": {"weights": "none", "sched": {"length": 5}},
        "slim": {"model": {"neck": {"num_outs": 3}}, "optim": {"lr": 0.1}},
    },
    recipes=[
        Recipe(
            "toy",
            sched="short",
            args={"depth": 2},
            sched_args={"warmup_iters": 7},
            under={"slim": {"optim": {"lr": 0.3}}},
        ),
        Recipe("toy_wide", model="toy", backbone={"name": "tiny", "width": 8}, sched="short"),
        Recipe("toy_two", sched="short"),
    ],
    overlays=[
        Overlay("grouped", {"model": {"neck": {"norm": "gn"}}}, applies_to=("toy",), recipe="toy"),
        Overlay("slow", {"optim": {"lr": 0.001}}),
    ],
)
"""

MODEL = """
import torch_is_not_imported_here
from typing import Literal
from detcli.plugin import Backbone, Neck


def tiny(*, depth: int = 3, width: int = 4, frozen_stages: int = 1, norm_eval: bool = True): ...


def bare(*, width: int = 4): ...


def ladder(*, in_channels: tuple[int, ...], num_outs: int = 5, norm: Literal["none", "gn"] = "none"): ...


def tower(*, in_channels: tuple[int, ...], num_outs: int = 4, floors: int = 2): ...


def toy(
    *,
    num_classes: int,
    backbone: Backbone = "tiny",
    neck: Neck = {"name": "ladder", "num_outs": 6},
    depth: int = 1,
    ratios: tuple[float, ...] = (0.5, 1.0),
    limit: float | None = None,
): ...


def toy_two(*, num_classes: int, backbone: Backbone = "bare", depth: int = 4): ...
"""


@pytest.fixture
def plugin_package(tmp_path, monkeypatch):
    """Return a function that writes the package of a plugin and lets the registry find it beside `others`."""
    entries = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(entries))
    packages = []

    def write(name, manifest=MANIFEST, model=MODEL, entry=None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(manifest)
        (folder / "model.py").write_text(model)
        entries.append(EntryPoint(entry or name, f"{name}:plugin", registry.GROUP))
        packages.append(name)
        _forget()
        return folder

    yield write
    for module in [module for module in sys.modules if module.partition(".")[0] in packages]:
        del sys.modules[module]
    _forget()


def _forget():
    registry.plugins.cache_clear()
    registry._index.cache_clear()
    registry.names.cache_clear()
    signature.read.cache_clear()


@pytest.fixture
def toy(plugin_package):
    """Install the plugin `toy`."""
    return plugin_package("toy")
