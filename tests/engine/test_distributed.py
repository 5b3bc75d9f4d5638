"""Runs in two processes: as one with the whole batch, and what happens when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detcli.engine.checkpoint import open_checkpoint

# The norm of groups and SGD keep the rounding of sums in another order from growing as a batch norm of few pixels does.
SETTINGS = [
    *("--backbone", "r18", "--data", "shapes", "--sched", "demo", "--batch", "4", "--workers", "0"),
    *("--set", "data.args.train_images=24", "--set", "data.args.val_images=3", "--set", "eval.show=2"),
    *("--set", "data.resize=[[64,64]]", "--set", "data.test_resize=[64,64]", "--set", "model.neck.out_channels=64"),
    *("--set", "model.backbone.norm=gn", "--set", "optim.name=sgd", "--set", "train.ema=null"),
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments):
    return [sys.executable, "-m", "detcli", "train", *map(str, arguments)]


def run(*arguments):
    result = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def records(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def children(pid):
    """Return the process ids of the children of a process, oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("model", "steps", "settings"),
    [
        ("retinanet", 20, ["--set", "train.accumulate=2"]),
        # With random weights proposals are nearly ties, and after more steps rounding decides which are kept; earlier
        # where fewer of them are drawn.
        ("mask_rcnn", 8, ["--set", "model.roi_head.sampler.num=64"]),
    ],
)
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path, model, steps, settings):
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders, 1):
        run(model, *SETTINGS, "--lr", "0.01", *settings, "--iters", steps, "--devices", number, "--out", folder)
    one, two = (open_checkpoint(folder / "last.safetensors") for folder in folders)
    weights = two.weights()
    for name, value in one.weights().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)
    for ours, theirs in zip(*(records(folder, "train") for folder in folders), strict=True):
        losses = {name: value for name, value in ours.items() if "loss" in name}
        assert losses == pytest.approx({name: theirs[name] for name in losses}, rel=1e-5)
    # Each picture was evaluated once, and by one of the processes.
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    places = [[(result["image_id"], result["category_id"]) for result in part] for part in results]
    assert places[0] == places[1]
    assert len(list((folders[1] / "pictures").glob("*.png"))) == 3


def test_a_process_that_dies_is_named_and_the_run_continues(tmp_path):
    straight, folder = tmp_path / "straight", tmp_path / "run"
    run("atss", *SETTINGS, "--iters", "13", "--out", straight, "--devices", 2)

    begun = command("atss", *SETTINGS, "--iters", "13", "--out", folder, "--devices", 2)
    process = subprocess.Popen(begun, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(folder / "last.safetensors", process)
    victim = children(process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"(process {victim}): was killed by SIGKILL" in error
    assert "rank 1 of 2" in error or "rank 0 of 2" in error
    assert f"`detcli train --resume {folder} --devices 2`" in error
    assert "Traceback" not in error

    resumed = command("--resume", folder, "--devices", 2, "--max-restarts", 1)
    process = subprocess.Popen(resumed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    saved = (folder / "last.safetensors").stat().st_mtime_ns
    while (folder / "last.safetensors").stat().st_mtime_ns == saved:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert "restart 1 from" in output
    ours, theirs = (open_checkpoint(path / "last.safetensors").weights() for path in (folder, straight))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_signal_ends_all_processes_with_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    begun = command("atss", *SETTINGS, "--iters", "200", "--out", folder, "--devices", 2)
    process = subprocess.Popen(begun, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for(folder / "last.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143, error
    assert f"stopped by SIGTERM and told all 2 processes; continue with `detcli train --resume {folder}" in error
    training = open_checkpoint(folder / "last.safetensors").training
    assert training["step"] < 200


def test_an_error_in_a_process_is_one_line(tmp_path):
    begun = command(
        "atss", *SETTINGS, "--iters", "3", "--out", tmp_path, "--devices", 2, "--weights", "nowhere.safetensors"
    )
    result = subprocess.run(begun, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 1
    assert "there is no checkpoint nowhere.safetensors" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_batch_that_processes_cant_share_is_refused(tmp_path):
    begun = command("atss", *SETTINGS, "--iters", "3", "--out", tmp_path, "--devices", 2, "--batch", 3)
    result = subprocess.run(begun, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 1
    assert (
        "a batch of 3 images can't be split into 2 equal parts (2 devices x --accumulate 1). Try --batch 4"
        in result.stderr
    )
