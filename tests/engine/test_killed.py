"""A run that is killed at any point and continued ends as one that was left alone.

DETCLI_CHAOS is how many seeded random points are tried, in place of a few chosen ones.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detcli.engine.checkpoint import open_checkpoint

CHAOS = int(os.environ.get("DETCLI_CHAOS", "0"))


@pytest.fixture(scope="module")
def train_in():
    """Return a function that trains in a folder, is killed where it is told, and returns the calls that were made."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(folder, workers=0, **where):
        print(json.dumps({"folder": str(folder), "workers": workers, **where}), file=server.stdin, flush=True)
        answer = json.loads(server.stdout.readline())
        assert answer["status"] in ((-signal.SIGKILL, 0) if where else (0,))
        return int(answer["calls"] or 0)

    yield run
    server.stdin.close()
    assert server.wait(60) == 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train_in):
    """The folder of a run that was left alone, and how many calls it made."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train_in(folder)


def tensors(folder):
    checkpoint = open_checkpoint(folder / "last.safetensors")
    return {**checkpoint.weights(), **{f"training.{k}": v for k, v in checkpoint.training_tensors().items()}}


def evaluations(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "eval"]


def assert_same(folder, straight):
    ours, theirs = tensors(folder), tensors(straight)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert evaluations(folder) == evaluations(straight)
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((straight / "metrics.json").read_text())
    assert list(folder.glob(".*")) == []


@pytest.mark.skipif(CHAOS > 0, reason="random points are tried in place of these")
@pytest.mark.parametrize("share", [0.05, 0.4, 0.75, 0.999])
def test_killed_at_a_call(tmp_path, train_in, straight, share):
    folder, calls = straight
    assert train_in(tmp_path / "run", call=int(calls * share)) == 0
    train_in(tmp_path / "run")
    assert_same(tmp_path / "run", folder)


@pytest.mark.skipif(CHAOS > 0, reason="random points are tried in place of these")
def test_killed_in_the_middle_of_a_checkpoint_and_again(tmp_path, train_in, straight):
    run = tmp_path / "run"
    train_in(run, workers=1, write=(3, 0.5))
    assert len(list(run.glob(".*"))) == 1
    train_in(run, workers=1, write=(1, 0.9))
    train_in(run, workers=1)
    assert_same(run, straight[0])


@pytest.mark.parametrize("seed", range(CHAOS))
def test_killed_at_random(tmp_path, train_in, straight, seed):
    folder, calls = straight
    random, run = np.random.default_rng(seed), tmp_path / "run"
    workers = int(random.integers(2))
    for _ in range(int(random.integers(1, 4))):
        if random.random() < 0.3:
            train_in(run, workers, write=(int(random.integers(1, 6)), float(random.random())))
        else:
            train_in(run, workers, call=int(random.integers(1, calls)))
    train_in(run, workers)
    assert_same(run, folder)
