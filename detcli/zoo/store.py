"""The files of published rows: which ones they are, and what the cache has of them."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detcli.download import (
    Request,
    beside,
    cache_folder,
    cache_path,
    cached,
    compare,
    download,
    locked,
    read_record,
    sha256,
)
from detcli.errors import DetcliError, UsageError
from detcli.files import written_whole
from detcli.zoo.names import resolve, short_name
from detcli.zoo.rows import File, Row, rows, source

Mirrors = Sequence[tuple[str, str]]
"""Pairs of a URL's beginning and what may stand in its place."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A published file of a row, and how to ask for it."""

    row: Row
    file: File
    request: Request


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the cache: its place as a POSIX path below the folder, its size in bytes, and the row that it is of.

    `unfinished` is one whose download was stopped; `path` is then where it will be.
    """

    path: Path
    place: str
    size: int
    wanted: Wanted | None
    unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What hashing a file in the cache again showed; `unknown` is one that nothing is known of to compare with."""

    entry: Entry
    state: Literal["ok", "damaged", "unknown"]
    reason: str = ""


def parse_mirror(text: str) -> tuple[str, str]:
    """Return the two URLs of ``PREFIX=URL``. Raises `UsageError` when it is not that."""
    match = re.fullmatch(r"(https?://.+?)=(https?://.+)", text)
    if not match:
        raise UsageError(
            f"{text!r} is not PREFIX=URL, as in `--mirror https://dl.fbaipublicfiles.com=https://my.mirror/models`."
        )
    return match[1], match[2]


def published(row: Row, file: File, mirrors: Mirrors = ()) -> Wanted:
    """Return how to ask for a file: from `mirrors` first, then where it was published, then from its document's."""
    addresses = (*_mirrored(file.url, mirrors), file.url, *_mirrored(file.url, source(row.source).mirrors))
    return Wanted(row, file, Request(file.url, tuple(dict.fromkeys(addresses)), file.hash, file.hash_kind))


def _mirrored(url: str, mirrors: Mirrors) -> Iterator[str]:
    for prefix, mirror in mirrors:
        prefix, mirror = prefix.rstrip("/"), mirror.rstrip("/")
        if url == prefix or url.startswith(f"{prefix}/"):
            yield mirror + url.removeprefix(prefix)


def wanted(names: Iterable[str], everything: bool = False, mirrors: Mirrors = ()) -> list[Wanted]:
    """Return the weights of the rows called `names`, or all their files, each once.

    Raises `UsageError` for a name that is unknown or ambiguous and for a mirror of none of the files, and `DetcliError`
    for a row without such files.
    """
    found: dict[str, Wanted] = {}
    for row in map(resolve, names):
        files = [file for file in row.files if everything or file.kind == "weights"]
        if not files:
            what = "files" if everything else "weights"
            raise DetcliError(f"the document links no {what} for {row.id}. See `detcli zoo show {row.id}`.")
        for file in files:
            found.setdefault(file.url, published(row, file, mirrors))
    for prefix, mirror in mirrors:
        if not any(list(_mirrored(url, [(prefix, mirror)])) for url in found):
            raise UsageError(f"no URL begins with {prefix!r}: the first is {next(iter(found), '')}.")
    return list(found.values())


def obtain(files: Sequence[Wanted], jobs: int, offline: bool = False) -> list[Path | DetcliError]:
    """Return for each of the `files` its path in the cache, or why it can't be had; `offline`, nothing is downloaded.

    Raises as `download` does.
    """
    return [_offline(file) for file in files] if offline else download([file.request for file in files], jobs)


def _offline(file: Wanted) -> Path | DetcliError:
    try:
        path = cached(file.request)
    except DetcliError as error:
        return error
    if path:
        return path
    more = "" if file.file.kind == "weights" else " --all"
    bundle = f"{short_name(file.row)}.tar"
    return DetcliError(
        f"{file.request.url} is not in the cache, and --offline was given. Where there is a network, run "
        f"`detcli zoo bundle {file.row.id}{more} -o {bundle}`, and here `detcli zoo import {bundle}`."
    )


def place(files: Sequence[tuple[Wanted, Path]], folder: Path, overwrite: bool) -> list[Path]:
    """Copy `files`, given with their paths in the cache, into `folder`; return where they are.

    A file has the name that its URL ends in, after that of its row where other rows have files of that name. Raises
    `DetcliError` when another file is in a place and not to be overwritten, and `OSError`.
    """
    urls = {file.url for row in rows() for file in row.files}
    shared = Counter(cache_path(url).name for url in urls)
    folder.mkdir(parents=True, exist_ok=True)
    targets = []
    for file, path in files:
        name = path.name if shared[path.name] < 2 else f"{short_name(file.row)}_{path.name}"
        target = folder / name
        targets.append(target)
        if target.exists():
            if target.is_file() and sha256(target) == sha256(path):
                continue
            if not overwrite:
                raise DetcliError(
                    f"{target} is there already, and another file. "
                    "Choose another --dest, or replace it with --overwrite."
                )
        with written_whole(target) as temporary:
            shutil.copyfile(path, temporary)
    return targets


def entries() -> list[Entry]:
    """Return what the cache has, sorted by place; unfinished downloads among it."""
    known: dict[Path, Wanted] = {}
    for row in rows():
        for file in row.files:
            known.setdefault(cache_path(file.url), published(row, file))
    folder, found = cache_folder(), []
    for path in sorted(folder.rglob("*")):
        unfinished = path.name.startswith(".") and path.name.endswith(".part")
        if not path.is_file() or (path.name.startswith(".") and not unfinished):
            continue
        size = path.stat().st_size
        if unfinished:
            path = path.with_name(path.name[1:].removesuffix(".part"))
        found.append(Entry(path, path.relative_to(folder).as_posix(), size, known.get(path), unfinished))
    return found


def named_entries(names: Iterable[str]) -> list[Entry]:
    """Return what the cache has that is called `names`: places or file names in the cache, or names of rows.

    Raises `UsageError` for a name that is unknown or ambiguous, and `DetcliError` for a row without files in the cache.
    """
    every, found = entries(), dict[str, Entry]()
    for name in names:
        chosen = [entry for entry in every if name in (entry.place, entry.path.name)]
        if not chosen:
            row = resolve(name)
            urls = {cache_path(file.url) for file in row.files}
            chosen = [entry for entry in every if entry.path in urls]
            if not chosen:
                raise DetcliError(f"no file of {row.id} is in the cache. Run `detcli zoo download {row.id}`.")
        found |= {f"{entry.place} {entry.unfinished}": entry for entry in chosen}
    return list(found.values())


def verify(chosen: Iterable[Entry]) -> Iterator[Verdict]:
    """Yield what hashing each of the `chosen` files again shows; unfinished ones are left out. Raises `OSError`."""
    for entry in chosen:
        if entry.unfinished:
            continue
        record = read_record(entry.path)
        request = entry.wanted.request if entry.wanted else Request(record.url if record else "")
        problem, _ = compare(entry.path, request, record)
        if problem:
            yield Verdict(entry, "damaged", problem)
        elif record or request.hash:
            yield Verdict(entry, "ok")
        else:
            yield Verdict(entry, "unknown", "no hash was published, and none recorded when it was fetched")


def remove(entry: Entry) -> None:
    """Remove a file from the cache with all that is known of it, once no process downloads it. Raises `OSError`."""
    with locked(entry.path):
        for path in (entry.path, *(beside(entry.path, what) for what in ("part", "part.json", "json"))):
            path.unlink(missing_ok=True)
