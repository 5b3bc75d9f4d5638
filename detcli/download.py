"""One download cache for weights and other published files."""

from __future__ import annotations

import hashlib
import os
import re
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock
from platformdirs import user_cache_dir
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from detcli.errors import DetcliError

CHUNK = 1 << 20
TIMEOUT = 30.0
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def cache_path(url: str) -> Path:
    """Return where the file at `url` is kept, below DETCLI_CACHE or else the user's cache folder."""
    parts = urlsplit(url)
    root = os.environ.get("DETCLI_CACHE") or user_cache_dir("detcli")
    names = [name for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    return Path(root, parts.netloc.replace(":", "_"), *names)


def fetch(url: str, sha256_prefix: str = "") -> Path:
    """Return the path of the file at `url`, downloaded unless it is in the cache.

    The file's SHA-256 has to start with `sha256_prefix` or, without one, with the hex digits that end its
    name (``resnet50-0676ba61.pth``). An interrupted download is continued; of several processes, one
    downloads.

    Raises `DetcliError` when the file can't be had or its hash is wrong.
    """
    path = cache_path(url)
    if not sha256_prefix and (match := HASH_IN_NAME.search(path.name)):
        sha256_prefix = match[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                partial = path.with_name(f"{path.name}.part")
                _download(url, partial)
                digest = _sha256(partial)
                if not digest.startswith(sha256_prefix):
                    partial.unlink()
                    raise DetcliError(f"{url} gave another file, of SHA-256 {digest[:8]}…. {_by_hand(path)}")
                partial.replace(path)
            elif sha256_prefix and not (digest := _sha256(path)).startswith(sha256_prefix):
                raise DetcliError(
                    f"{path} is damaged: its SHA-256 is {digest[:8]}…. Delete it, and it is downloaded again."
                )
    except HTTPError as error:
        raise DetcliError(f"can't download {url}: {error.code} {error.reason}. {_by_hand(path)}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DetcliError(f"can't download {url}: {reason}. {_by_hand(path)}") from error
    return path


def _by_hand(path: Path) -> str:
    return f"Try again, or put the file at {path} by hand."


def _download(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks of the file at `url`; raises `OSError` when that fails half-way."""
    size = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "detcli"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        partial.unlink()  # It has as many bytes as the file or more: nothing to continue.
        return _download(url, partial)
    with response:
        continued = response.status == HTTPStatus.PARTIAL_CONTENT
        size = size if continued else 0
        total = size + response.length if response.length is not None else None
        with partial.open("ab" if continued else "wb") as file, _progress() as progress:
            task = progress.add_task(partial.stem, total=total, completed=size)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
            size = file.tell()
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _progress() -> Progress:
    """Return a bar on stderr, where that is a terminal, which goes away when the download has ended."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
