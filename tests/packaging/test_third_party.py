"""Distributions of somebody else's, installed into an environment of their own, and used: a model, written by
`detcli new plugin`, and a paper that brings nothing but a backbone.
"""

import json
import os
import site
import subprocess
import sys
import venv

import pytest

NAME = "neighbour_net"


@pytest.fixture(scope="module")
def environment(tmp_path_factory, run_detcli):
    """Return the Python of an environment that sees this one's packages and has the new plugin installed."""
    folder = tmp_path_factory.mktemp("third_party")
    written = run_detcli("new", "plugin", NAME, cwd=folder)
    assert written.returncode == 0, written.stderr
    assert f"{NAME}/pyproject.toml" in written.stdout.replace("\\", "/")

    venv.create(folder / "env")
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    packages = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    with open(os.path.join(packages, "outer.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    install(python, folder / NAME)
    return python


def install(python, distribution):
    arguments = ["install", "--no-deps", "--no-build-isolation", "--no-index", distribution]
    done = subprocess.run([sys.executable, "-m", "pip", "--python", python, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_there_for_who_installed_it_and_for_nobody_else(environment, run_detcli):
    listed = run_detcli("list", "models", python=environment)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"\n{NAME} " in listed.stdout
    assert NAME not in run_detcli("list", "models").stdout


def test_its_config_resolves_with_the_parts_of_the_core(environment, run_detcli):
    shown = run_detcli("config", NAME, "--backbone", "r18", "--json", python=environment)
    model = json.loads(shown.stdout)["model"]
    assert (model["name"], model["backbone"]["name"], model["cls_loss"]["name"]) == (NAME, "r18", "focal")
    wrong = run_detcli("config", NAME, "--set", "model.stacked_conv=1", python=environment)
    hint = "error: unknown setting 'model.stacked_conv': did you mean 'model.stacked_convs'"
    assert wrong.stderr.startswith(hint)


def test_its_own_test_passes(environment, tmp_path):
    source = environment.parents[2] / NAME / "tests"
    done = subprocess.run([environment, "-m", "pytest", "-q", source], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_its_model_trains_and_is_measured_from_the_command_line(environment, run_detcli, tmp_path):
    small = ["--data", "shapes", "--set", "data.args={train_images=8, val_images=4}", "--workers", "0"]
    run = ["--backbone", "r18", "--sched", "demo", "--iters", "2", "--batch", "2", "--out", tmp_path / "run"]
    trained = run_detcli("train", NAME, *small, *run, python=environment)
    assert trained.returncode == 0, trained.stderr
    assert "box_AP" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    without = run_detcli("eval", tmp_path / "run", "--data", "shapes")
    assert without.returncode != 0
    assert without.stderr.startswith(f"error: model: unknown model '{NAME}'")


BACKBONE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "narrow-net"
version = "1.0"

[project.entry-points."detcli.plugins"]
narrow_net = "narrow_net:plugin"

[tool.setuptools.package-data]
narrow_net = ["README.md"]
""",
    "narrow_net/__init__.py": """
from detcli.plugin import Part, Plugin

plugin = Plugin(name="narrow_net", arxiv="2001.00001", backbones={"narrow18": Part(".model:narrow", {"depth": 18})})
""",
    "narrow_net/model.py": """
from detcli.nn.blocks import make_conv
from detcli.nn.resnet import ResidualBlock, ResNet, residual_stages


def narrow(*, depth: int = 18, norm_eval: bool = True, norm_trained: bool = True, frozen_stages: int = 1) -> ResNet:
    strides = (1, 2, 2, 2)
    return ResNet(
        residual_stages(depth, Bottle, num_stages=4, strides=strides, dilations=(1, 1, 1, 1)),
        "bn",
        out_stages=(1, 2, 3, 4),
        strides=strides,
        frozen_stages=frozen_stages,
        norm_eval=norm_eval,
        norm_trained=norm_trained,
        norm_eps=1e-5,
    )


class Bottle(ResidualBlock):
    def __init__(self, place):
        first = make_conv(place.in_channels, 16, 1)
        super().__init__({1: first, 2: make_conv(16, place.channels, 3, stride=place.stride)}, place.stride, "bn")

    def residual(self, x):
        return super().residual(x).tanh()
""",
    "narrow_net/README.md": "arXiv 2001.00001",
}


@pytest.fixture(scope="module")
def narrow_net(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow_net")
    for name, text in BACKBONE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    install(environment, folder)
    return environment


def test_a_paper_with_nothing_but_a_backbone_is_a_plugin(narrow_net):
    check = "from detcli.testing import check_plugin; check_plugin('narrow_net')"
    done = subprocess.run([narrow_net, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_backbone_trains_in_every_model(narrow_net, run_detcli, tmp_path):
    for model in ("atss", "mask_rcnn"):
        shown = run_detcli("config", model, "--backbone", "narrow18", "--weights", "none", "--json", python=narrow_net)
        backbone = json.loads(shown.stdout)["model"]["backbone"]
        assert backbone == {
            "name": "narrow18",
            "depth": 18,
            "norm_eval": False,
            "norm_trained": True,
            "frozen_stages": 0,
        }
    small = ["--data", "shapes", "--set", "data.args={train_images=4, val_images=2}", "--workers", "0"]
    run = ["--backbone", "narrow18", "--sched", "demo", "--iters", "1", "--batch", "2", "--out", tmp_path / "run"]
    trained = run_detcli("train", "faster_rcnn", *small, *run, python=narrow_net)
    assert trained.returncode == 0, trained.stderr
    assert "box_AP" in json.loads((tmp_path / "run" / "metrics.json").read_text())
