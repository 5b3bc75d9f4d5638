"""Where a run computes and in which precision."""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from detcli.errors import DetcliError

Precision = Literal["fp32", "bf16", "fp16"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of options in glibc's malloc.h."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device called `name`; ``auto`` is the first GPU, or the CPU.

    With the `local_rank` of one of several processes, ``auto`` and ``cuda`` are the GPU of that number. Raises
    `DetcliError` when there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise DetcliError(
                f"device {name!r} is one device, and this is one of several processes. Say --device cuda."
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DetcliError(f"unknown device {name!r}: it is cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"there are {count} CUDA devices" if count else "this machine has no usable CUDA device"
            raise DetcliError(f"device {name!r} is not there: {there}. Try `--device cpu`.")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DetcliError("device 'mps' is not there on this machine. Try `--device cpu`.")
    elif device.type == "cpu":
        _keep_memory()
    return device


@cache
def _keep_memory() -> None:
    """Have the C library keep the memory of tensors up to 32 MiB for the next ones, where it is glibc.

    By default it gives much of it back at once, and the system clears each page again in every step.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, 2**25)


def make_current(device: torch.device) -> None:
    """Have this process compute on `device`: where it is a GPU, products of float32 matrices in TF32."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs: autocast to bf16 or fp16, or nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes of this run: of the GPU's allocator, or the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # What getrusage says begins with the peak of the process that started this one.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine(device: torch.device) -> str:
    """Return the name of what computes: the GPU, or the processor with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
