"""Runs that are killed where a number says, each in a process that is forked before torch has computed anything."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console

import detcli
from detcli.config import resolve
from detcli.engine import checkpoint
from detcli.engine.train import starting_point, train

PACKAGE = str(Path(detcli.__file__).parent)
SETTINGS = [
    "data.args.train_images=10",
    "data.args.val_images=3",
    "data.resize=[[64,64]]",
    "data.test_resize=[64,64]",
    "train.batch=2",
    "train.eval_every=3",
    "train.ema=0.9",
    "eval.show=1",
    "sched.length=7",
    "model.neck.out_channels=64",
]


def main() -> None:
    """Answer orders on stdin, one JSON object a line, each with a run in a process of its own."""
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            calls = run(Path(order["folder"]), order["workers"], order.get("call", 0), order.get("write"))
            os.write(writing, str(calls).encode())
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as answer:
            print(json.dumps({"status": os.waitstatus_to_exitcode(status), "calls": answer.read()}), flush=True)


def run(folder: Path, workers: int, call: int, write: list[float] | None) -> int:
    """Train in `folder`, or go on with the run there, and return how many calls detcli's code has made.

    Dies of SIGKILL at the `call`-th of them or, with `write` (number, share), when that share of that checkpoint has
    been written.
    """
    torch.set_num_threads(1)
    if write:
        _break_writing(*write)
    counted = _count_calls(call)
    resume = None
    if (folder / "config.json").exists():
        config, resume = starting_point(folder)
    else:
        flags = {"data.source": "shapes", "data.workers": workers}
        config = resolve("atss", backbone="r18", sched="demo", settings=SETTINGS, flags=flags).config
    state = resume and resume.training
    if not state or state["step"] < config.sched.length or state["pending"]:
        train(config, folder, Console(quiet=True), resume)
    sys.setprofile(None)
    return counted[0]


def _count_calls(number: int) -> list[int]:
    """Count the calls that detcli's code makes, of Python and C functions, and die at the `number`-th."""
    counted, own = [0], os.getpid()

    def look(frame, event, argument):
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE) and os.getpid() == own:
            counted[0] += 1
            if counted[0] == number:
                os.kill(own, signal.SIGKILL)

    sys.setprofile(look)
    return counted


def _break_writing(number: float, share: float) -> None:
    written = [0]
    whole = checkpoint.save_file

    def partly(tensors, path, metadata):
        whole(tensors, path, metadata=metadata)
        written[0] += 1
        if written[0] == number:
            os.truncate(path, int(os.path.getsize(path) * share))
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = partly


if __name__ == "__main__":
    main()
