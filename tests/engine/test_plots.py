"""Curves of a run from its metrics.jsonl."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from detcli.engine.plots import plot_run


def train(step, **figures):
    return {
        "kind": "train",
        "iter": step,
        "epoch": step / 10,
        "loss": 10 / step,
        "loss_cls": 6 / step,
        "lr": 0.01,
        **figures,
    }


def write(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, by file name, to look at what is in them."""
    saved = {}
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (saved.update({path.name: self}), save(self, path)))
    return saved


def curves(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_losses_are_smoothed_over_the_raw_ones_with_the_learning_rate(tmp_path, figures):
    random = np.random.default_rng(0)
    lines = [train(step, loss=5 + random.normal()) for step in range(1, 301)]
    write(tmp_path, *lines)
    assert plot_run(tmp_path) == [tmp_path / "losses.png"]
    axes, rate = figures["losses.png"].axes
    assert set(curves(axes)) == {"loss", "loss_cls"}
    smooth = curves(axes)["loss"].get_ydata()
    assert len(smooth) == 300
    assert smooth.std() < 0.5
    assert smooth.mean() == pytest.approx(5, abs=0.2)
    np.testing.assert_allclose(curves(rate)["learning rate"].get_ydata(), 0.01)
    assert set(np.unique(np.round(axes.get_lines()[0].get_ydata() - [line["loss"] for line in lines], 9))) == {0}
    assert cv2.imread(str(tmp_path / "losses.png")).shape == (600, 1080, 3)


def test_an_early_spike_does_not_press_the_curves_flat(tmp_path, figures):
    write(tmp_path, train(1, loss=1e6), *(train(step) for step in range(2, 200)))
    plot_run(tmp_path)
    assert figures["losses.png"].axes[0].get_ylim()[1] < 10


def test_ap_of_boxes_and_masks_without_what_was_not_measured(tmp_path, figures):
    write(
        tmp_path,
        {"kind": "eval", "iter": 10, "box_AP": 20.0, "box_AP50": -1.0, "mask_AP": 15.0},
        {"kind": "eval", "iter": 20, "box_AP": 42.25, "box_AP50": -1.0, "mask_AP": -1.0},
    )
    assert plot_run(tmp_path) == [tmp_path / "ap.png"]
    (axes,) = figures["ap.png"].axes
    assert set(curves(axes)) == {"boxes AP", "masks AP"}
    assert list(curves(axes)["boxes AP"].get_ydata()) == [20.0, 42.25]
    assert [text.get_text() for text in axes.texts] == ["42.2"]


def test_recall_of_proposals(tmp_path, figures):
    write(
        tmp_path,
        {
            "kind": "eval",
            "iter": 10,
            "prop_AR": 61.0,
            "prop_AR100": 40.0,
            "prop_AR300": 50.0,
            "prop_AR1000": 61.0,
        },
    )
    plot_run(tmp_path)
    (axes,) = figures["ap.png"].axes
    assert axes.get_title() == "Average recall"
    assert set(curves(axes)) == {"proposals AR100", "proposals AR300", "proposals AR1000"}


@pytest.mark.filterwarnings("error")
def test_a_short_run_that_diverged_and_was_killed(tmp_path):
    write(tmp_path, train(1, loss=float("nan"), loss_cls=float("inf")))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert plot_run(tmp_path) == [tmp_path / "losses.png"]


def test_nothing_to_draw(tmp_path):
    write(tmp_path)
    assert plot_run(tmp_path) == []


def test_matplotlib_is_imported_when_it_is_used():
    code = "import sys, detcli.engine.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
