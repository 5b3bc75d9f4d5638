"""A distribution of somebody else's: written by `detcli new plugin`, installed into its own environment, and
used.
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
    install = ["install", "--no-deps", "--no-build-isolation", "--no-index", folder / NAME]
    done = subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


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
