"""Seconds and memory of converting a checkpoint of MMDetection, against reading and writing its tensors as they are."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.report import Row, apart, at_most, quiet_rounds
from detcli.config import resolve
from detcli.convert.convert import convert, write
from detcli.engine.device import memory_in_use
from detcli.engine.model import build_model

ROW = "mmdet-v2/faster_rcnn_x101_64x4d_fpn_1x_coco"
SIZE = "400 MB"
FORMATS = {"zip": True, "before PyTorch 1.6": False}
"""How files are laid out, and whether torch calls that the new way; most published ones are of the old one."""
WANTED, TRIES = 5, 15
TIMES = 3.0
MEMORY = 1.5


def on_paper() -> nn.Module:
    """Return the model of `ROW` without memory for its weights."""
    with torch.device("meta"):
        return build_model(resolve("faster_rcnn", backbone="x101_64x4d").config, 80)


def write_checkpoint(path: Path, *, new: bool) -> None:
    """Write random weights of the model of `ROW` as MMDetection publishes them, without the state of an optimiser."""
    model = on_paper()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in model.state_dict().items()
    }
    content = {"meta": {"mmdet_version": "2.0.0"}, "state_dict": weights}
    torch.save(content, path, _use_new_zipfile_serialization=new)


def conversion(side: str, path: str, out: str) -> Callable[[], None]:
    """Return what `side`, "ours" or "theirs", does with the file at `path`; it writes `out`."""

    def ours() -> None:
        write(convert("mmdet", Path(path), as_id=ROW), Path(out))

    def theirs() -> None:
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=False, weights_only=True)
        save_file(content["state_dict"], out)

    return ours if side == "ours" else theirs


def extra_memory(side: str, path: Path, out: Path) -> float:
    """Return the bytes that converting takes at its peak, in a process of its own, beyond what models need."""
    command = [sys.executable, "-m", "benchmarks.convert", side, str(path), str(out)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(wanted: int = WANTED, tries: int = TRIES) -> list[Row]:
    """Return rows of seconds and of peak memory for each of `FORMATS`."""
    rows = []
    with TemporaryDirectory() as folder:
        for name, new in FORMATS.items():
            path = Path(folder) / "checkpoint.pth"
            outs = [Path(folder) / f"{side}.safetensors" for side in ("ours", "theirs")]
            write_checkpoint(path, new=new)
            with (
                apart(conversion, "ours", str(path), str(outs[0])) as ours,
                apart(conversion, "theirs", str(path), str(outs[1])) as theirs,
            ):
                rounds = quiet_rounds([ours, theirs], wanted, tries)
            title = f"convert {SIZE} of MMDetection ({name})"
            rows.append(rounds.compare(title, 0, 1, TIMES, "theirs: torch.load and save_file"))
            size = path.stat().st_size
            used, plain = (extra_memory(side, path, out) for side, out in zip(("ours", "theirs"), outs, strict=True))
            note = f"theirs: the file's size; torch.load and save_file take {plain / size:.2f} times as much"
            rows.append(at_most(f"{title}: peak memory", used / 1e9, size / 1e9, "GB", MEMORY, note))
    return rows


if __name__ == "__main__":
    on_paper()  # imports what models need, which is no part of the conversion
    function = conversion(*sys.argv[1:])
    before = memory_in_use(torch.device("cpu"))
    function()
    print(memory_in_use(torch.device("cpu")) - before)
