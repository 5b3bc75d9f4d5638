"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the place of `path` in one step.

    It has reached the disk by then. When something fails on the way, what was at `path` stays and the temporary file
    is removed. Raises `OSError` when the folder can't be written or the disk is full.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        put_in_place(Path(temporary), path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Let the file `temporary`, in the same folder, take the place of `path` once it has reached the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    with suppress(OSError):  # not every file system lets folders be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text_whole(path: Path, text: str) -> None:
    """Write `text` to `path` in one step; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporaries(folder: Path, name: str) -> None:
    """Remove what a process that was killed while it wrote `name` left in `folder`."""
    for path in folder.glob(f".{name}.*"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
