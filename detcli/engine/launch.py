"""Start a command in several processes of this machine, through torch's elastic launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detcli.engine.interrupts import Interrupted
from detcli.errors import DetcliError

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""What a process says when another one has died."""


def launch(arguments: Sequence[str], processes: int, max_restarts: int, folder: Path) -> None:
    """Run ``detcli`` with `arguments` in so many `processes` until all have ended well.

    When one fails, all are stopped and, up to `max_restarts` times, started again; a run then continues from the last
    checkpoint in `folder`. Raises `DetcliError` naming the process that failed first, `Interrupted` when this process
    is asked to stop.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=max_restarts,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "detcli", *arguments)
    except ChildFailedError as error:
        raise _failure(error.failures, processes, folder) from None
    except SignalException as error:
        where = f"continue with `detcli train --resume {folder} --devices {processes}`."
        raise Interrupted(error.sigval, f"and told all {processes} processes; {where}") from None


def report_to_launcher(path: Path, message: str) -> None:
    """Write the one-line `message` of this process's error to the file where its launcher looks for it."""
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    path.write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")


def _failure(failures: dict[int, Any], processes: int, folder: Path) -> DetcliError:
    """Return the error of the process that failed first, and not for the loss of another."""
    rank, failure = min(failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp))
    who = f"rank {rank} of {processes} (process {failure.pid})"
    if failure.exitcode < 0:
        what = f"was killed by {signal.Signals(-failure.exitcode).name}"
        if -failure.exitcode == signal.SIGKILL:
            what += " (by hand, or by the system for want of memory)"
    else:
        what = _message(failure) or f"ended with exit status {failure.exitcode}"
    ends = "." if not what.endswith(".") else ""
    error = DetcliError(
        f"{who}: {what}{ends} All processes were stopped. Continue from the last checkpoint with "
        f"`detcli train --resume {folder} --devices {processes}`; `--max-restarts 3` does so by itself."
    )
    error.exit_code = failure.exitcode if failure.exitcode > 0 else 1
    return error


def _is_consequence(failure: Any) -> bool:
    if failure.exitcode == -signal.SIGTERM:
        return True
    return failure.exitcode > 0 and any(text in _message(failure) for text in LOST_PEER)


def _message(failure: Any) -> str:
    content = failure.error_file_data.get("message", "")
    return str(content["message"] if isinstance(content, dict) else content)
