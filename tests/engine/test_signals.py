"""SIGINT and SIGTERM end a run of the command line at a step, and it continues from there."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from detcli.engine.checkpoint import open_checkpoint

SETTINGS = [
    *("--backbone", "r18", "--data", "shapes", "--sched", "demo", "--iters", "6", "--batch", "2", "--workers", "1"),
    *("--set", "data.args.train_images=8", "--set", "data.args.val_images=2", "--set", "eval.show=0"),
    *("--set", "data.resize=[[64,64]]", "--set", "data.test_resize=[64,64]", "--set", "model.neck.out_channels=64"),
]


def command(*arguments):
    return [sys.executable, "-m", "detcli", "train", *map(str, arguments)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    subprocess.run(command("atss", *SETTINGS, "--out", folder), check=True, capture_output=True)
    return open_checkpoint(folder / "last.safetensors").weights()


def started(process, folder):
    """Wait until the first steps of a run are under way."""
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, straight, number, status):
    folder = tmp_path / "run"
    process = subprocess.Popen(command("atss", *SETTINGS, "--out", folder), stderr=subprocess.PIPE, text=True)
    started(process, folder)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert f"stopped by {number.name} after iteration" in error
    assert f"`detcli train --resume {folder}`" in error
    step = open_checkpoint(folder / "last.safetensors").training["step"]
    assert 1 <= step < 6
    subprocess.run(command("--resume", folder), check=True, capture_output=True)
    weights = open_checkpoint(folder / "last.safetensors").weights()
    assert [name for name in straight if not torch.equal(straight[name], weights[name])] == []
    assert json.loads((folder / "metrics.json").read_text())["box_AP"] >= 0
