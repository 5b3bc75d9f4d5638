"""Published files in one tar file, for a machine without a network.

The first member is a manifest; the others are files as they were downloaded, in its order. A bundle may come from
anyone: a file gets its place in the cache from its URL, never from a name in the tar, and has to have the hash that was
published.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from detcli.download import CHUNK, Record, beside, cache_path, compare, locked, read_record, sha256, write_record
from detcli.errors import DetcliError
from detcli.files import put_in_place, written_whole
from detcli.zoo.rows import rows
from detcli.zoo.store import Wanted, published

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 24
FORMAT = "detcli bundle 1"
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a bundle: its URL, its SHA-256 as the manifest says, and its place in the tar in bytes."""

    url: str
    sha256: str
    offset: int
    size: int


def write_bundle(files: Sequence[tuple[Wanted, Path]], out: Path) -> None:
    """Write `files`, given with their paths in the cache, and their manifest to `out`. Raises `OSError`."""
    described, members = [], []
    for number, (file, path) in enumerate(files, 1):
        record = read_record(path)
        name = f"{number:04d}/{path.name[-80:]}"
        digest, size = record.sha256 if record else sha256(path), path.stat().st_size
        described.append({"member": name, "url": file.request.url, "sha256": digest, "size": size})
        members.append((name, size, path))
    manifest = json.dumps({"format": FORMAT, "files": described}, indent=1).encode()
    with written_whole(out) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_header(MANIFEST, len(manifest)), io.BytesIO(manifest))
        for name, size, path in members:
            with path.open("rb") as content:
                tar.addfile(_header(name, size), content)


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def import_bundle(path: Path) -> Iterator[tuple[Member, bool | DetcliError]]:
    """Put the files of a bundle into the cache; yield each with whether it is new there, or why it is not taken.

    A file that is in the cache and not damaged is never replaced. Raises `DetcliError` before anything is written when
    the bundle as a whole is not sound, and `OSError`.
    """
    known = {file.url: (row, file) for row in rows() for file in row.files}
    members = read_bundle(path)
    with path.open("rb") as bundle:
        for member in members:
            if member.url not in known:
                yield member, DetcliError(f"{path}: no published row has the file {member.url}.")
                continue
            try:
                yield member, _take(bundle, member, published(*known[member.url]))
            except DetcliError as error:
                yield member, error


def _take(bundle: IO[bytes], member: Member, wanted: Wanted) -> bool:
    """Put a file into the cache; return False when it is there already. Raises `DetcliError` and `OSError`."""
    path = cache_path(member.url)
    with locked(path):
        first = read_record(path)
        if path.is_file():
            problem, there = compare(path, wanted.request, first)
            if not problem and there.sha256 == member.sha256:
                return False
            if not problem:
                raise DetcliError(f"{path} is there already, and another file than the bundle's: it stays.")
        temporary = beside(path, "import")
        try:
            _copy(bundle, member, temporary)
            problem, record = compare(temporary, wanted.request, first)
            if problem or record != Record(member.url, member.sha256, member.size):
                problem = problem or f"its SHA-256 is {record.sha256[:8]}…, not {member.sha256[:8]}… as in the manifest"
                raise DetcliError(f"{bundle.name} has another file for {member.url}: {problem}.")
            put_in_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        write_record(path, record)
    return True


def _copy(bundle: IO[bytes], member: Member, target: Path) -> None:
    bundle.seek(member.offset)
    left = member.size
    with target.open("wb") as file:
        while left and (chunk := bundle.read(min(CHUNK, left))):
            file.write(chunk)
            left -= len(chunk)


def read_bundle(path: Path) -> list[Member]:
    """Return the files of the bundle at `path`, which are as many and as long as its manifest says.

    Raises `DetcliError` when it holds anything but a manifest and plain files, or something twice, and `OSError`.
    """
    try:
        with path.open("rb") as file:
            headers = list(_headers(file, path.stat().st_size))
            if not headers or headers[0][0] != MANIFEST or headers[0][2] > LARGEST_MANIFEST:
                raise ValueError("it does not begin with a manifest")
            _, offset, size = headers[0]
            file.seek(offset)
            described = _manifest(json.loads(file.read(size)))
    except (ValueError, LookupError, TypeError, RecursionError, tarfile.TarError) as error:
        raise DetcliError(f"{path} is no bundle of `detcli zoo bundle`: {error}.") from None
    if [(name, size) for name, _, size in headers[1:]] != [(name, size) for name, _, _, size in described]:
        raise DetcliError(f"{path} does not hold what its manifest says. Write it again with `detcli zoo bundle`.")
    return [
        Member(url, digest, offset, size)
        for (_, offset, _), (_, url, digest, size) in zip(headers[1:], described, strict=True)
    ]


def _headers(file: IO[bytes], length: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, offset and size of each member of a tar file of `length` bytes.

    Only plain files with short names, which are all that a bundle has: the tarfile module follows what a header says to
    links, devices and sizes below zero. Raises `ValueError` and `tarfile.TarError`.
    """
    offset, seen = 0, set()
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            if len(block) < BLOCK:
                raise ValueError("it ends too early")
            return
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        offset += BLOCK
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{info.name!r} is not a plain file")
        if info.name in seen:
            raise ValueError(f"{info.name!r} is there twice")
        if not 0 <= info.size <= length - offset:
            raise ValueError(f"{info.name!r} is said to be {info.size} bytes long, which it can't be")
        seen.add(info.name)
        yield info.name, offset, info.size
        offset += -(-info.size // BLOCK) * BLOCK


def _manifest(manifest: Any) -> list[tuple[str, str, str, int]]:
    """Return the member, URL, SHA-256 and size of each file. Raises `ValueError`, `LookupError` or `TypeError`."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
    described = []
    for file in manifest["files"]:
        member, url, digest, size = (file[name] for name in ("member", "url", "sha256", "size"))
        if not (isinstance(url, str) and isinstance(size, int) and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ValueError(f"its manifest does not describe {member!r}")
        described.append((member, url, digest, size))
    if len({cache_path(url) for _, url, _, _ in described}) < len(described):
        raise ValueError("its manifest has a URL twice")
    return described
