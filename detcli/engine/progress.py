"""What a run tells: a live bar on a terminal, a line now and then elsewhere, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from detcli.errors import DetcliError
from detcli.eval.evaluator import MAIN
from detcli.files import write_text_whole

PLAIN_INTERVAL = 10.0


class Reporter:
    """Shows the figures of a run and writes them to `folder`/metrics.jsonl; use it as a context manager.

    A run that continues after iteration `start` keeps the figures up to there, those of its evaluation where it was
    `evaluated`. A `silent` one neither shows nor writes.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        total: int,
        *,
        start: int = 0,
        evaluated: bool = True,
        tensorboard: bool = False,
        silent: bool = False,
    ) -> None:
        self.console = console
        self.total = total
        self.started = time.monotonic()
        self.first = start
        self.said = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=silent or not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=total, completed=start, figures="")
        self.silent = silent
        self.file: TextIO | None = None
        self.writer: Any = None
        if not silent:
            path = folder / "metrics.jsonl"
            lines = _lines(path) if start else []
            pending = ("eval", start) if not evaluated else None
            kept = [line for line in lines if line["iter"] <= start and (line["kind"], line["iter"]) != pending]
            write_text_whole(path, "".join(f"{json.dumps(line)}\n" for line in kept))
            self.file = path.open("a", buffering=1)
            self.writer = _summary_writer(folder) if tensorboard else None

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.file:
            self.file.close()
        if self.writer:
            self.writer.close()

    def training(self, step: int, epoch: str, figures: dict[str, float]) -> None:
        """Report the figures of the steps up to `step`: losses, images/s, share of time waiting for data, memory."""
        self._record("train", step, figures)
        losses = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in figures.items() if "loss" in name
        )
        shown = (
            f"{losses}  {figures['images_per_second']:.1f} img/s  "
            f"data {figures['data_share']:.0%}  {figures['memory_gb']:.1f} GB"
        )
        self.bar.update(self.task, completed=step, description=epoch, figures=shown)
        now = time.monotonic()
        if self.silent or self.console.is_terminal:
            return
        if (now - self.said > PLAIN_INTERVAL) or step == self.total:
            self.said = now
            left = (now - self.started) / max(step - self.first, 1) * (self.total - step)
            self.console.print(
                f"{epoch}  {step}/{self.total}  {_clock(left)} left  {shown}", soft_wrap=True, highlight=False
            )

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Report the figures of an evaluation after `step`."""
        self._record("eval", step, metrics)
        if self.silent:
            return
        names = [name for name in MAIN.values() if name in metrics]
        shown = "  ".join(f"{name} {metrics[name]:.1f}" for name in names)
        self.console.print(f"iteration {step}: {shown}", highlight=False)

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        self.bar.update(self.task, description=f"evaluating {done}/{total}")

    def _record(self, kind: str, step: int, figures: dict[str, float]) -> None:
        if self.file:
            self.file.write(json.dumps({"kind": kind, "iter": step, **figures}) + "\n")
        if self.writer:
            for name, value in figures.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the records in the file at `path`; a line that a killed process cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DetcliError(
            "TensorBoard is not installed. Run `pip install tensorboard`, or leave out --tensorboard."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
