"""One download cache for weights and other published files.

A file is kept under its URL's host and path. Beside it are others whose names begin with a dot, as no name in the cache
does: ``.NAME.lock``; ``.NAME.part``, what has come so far, with ``.NAME.part.json``, where that came from; and
``.NAME.json``, its record. What was downloaded is hashed and never read in any other way here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, Literal, TypeVar
from urllib import request as http
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from detcli.errors import DetcliError, UsageError
from detcli.files import put_in_place, remove_temporaries, write_text_whole

HashKind = Literal["", "md5", "sha256", "md5sum"]
Result = TypeVar("Result")

CHUNK = 1 << 20
"""The most bytes that are read at once; an attempt that brings less counts as one without progress."""

JOBS = 4
TRIES = 4
"""Attempts without progress before the next address is asked."""

BACKOFF = 1.0
"""Seconds before the second attempt; each further one waits twice as long, give or take a half."""

LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer wait is given up."""

TIMEOUT = 30.0
"""Seconds without a byte, unless DETCLI_TIMEOUT says otherwise, after which a connection counts as dead."""

AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""The answers after which the same address is tried again."""

UNREACHABLE = {errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH}

PAGES = {"drive.google.com", "docs.google.com"}
"""Hosts whose links lead to a page for people, not to the file."""

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
RESERVED = re.compile(r"^[.-]|\.$|\.part$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that the cache or a file system keeps for itself."""

LONGEST_NAME = 120
LONGEST_PATH = 400


@dataclass(frozen=True, slots=True)
class Request:
    """A published file: its URL, the addresses to ask for it in order (the URL alone without any), and its hash.

    `hash` is the beginning of its MD5 or SHA-256 in lower-case hex, as `hash_kind` says. With the kind ``md5sum`` it is
    empty, and the whole MD5 is in the file at an address + ``.md5sum``.
    """

    url: str
    addresses: tuple[str, ...] = ()
    hash: str = ""
    hash_kind: HashKind = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a file in the cache since it was first verified; `sha256` is whole, `size` in bytes."""

    url: str
    sha256: str
    size: int


def cache_folder() -> Path:
    """Return the folder of the cache: DETCLI_CACHE, or else the user's cache folder."""
    return Path(os.environ.get("DETCLI_CACHE") or user_cache_dir("detcli"))


def cache_path(url: str) -> Path:
    """Return where the file at `url` is kept, always below `cache_folder`.

    A query makes a difference; the scheme does not. Raises `DetcliError` when it is no URL.
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or 'none'}{f'_{parts.port}' if parts.port else ''}"
    except ValueError:
        raise DetcliError(f"{url!r} is no URL.") from None
    folders = [name for name in re.split(r"[/\\]", unquote(parts.path)) if name not in ("", ".", "..")]
    *folders, name = folders or ["index"]
    place = [_safe_name(folder) for folder in (host, *folders)]
    if len("/".join(place)) > LONGEST_PATH:
        place = [place[0], _short_hash("/".join(folders))]
    return cache_folder().joinpath(*place, _safe_name(name, parts.query))


def _safe_name(name: str, query: str = "") -> str:
    """Return `name` as any file system takes it, with a hash before its extension where that, or `query`, needs it."""
    safe = re.sub(r"[^A-Za-z0-9._+=@,-]", "_", name)
    if RESERVED.search(safe):
        safe = f"_{safe.rstrip('.')}"
    if safe == name and not query and len(name) <= LONGEST_NAME:
        return name
    stem, dot, extension = safe.rpartition(".")
    if not stem or len(extension) > 12:
        stem, dot, extension = safe, "", ""
    return f"{stem[:LONGEST_NAME]}~{_short_hash(f'{name}?{query}')}{dot}{extension}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def beside(path: Path, what: str) -> Path:
    """Return the file of the cache that belongs to the one at `path`: its lock, part, part.json or json."""
    return path.with_name(f".{path.name}.{what}")


def read_record(path: Path) -> Record | None:
    """Return the record of the file at `path` in the cache; `None` when there is none that can be read."""
    try:
        values = json.loads(beside(path, "json").read_text(encoding="utf-8"))
        record = Record(str(values["url"]), str(values["sha256"]), int(values["size"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return record if re.fullmatch(r"[0-9a-f]{64}", record.sha256) else None


def write_record(path: Path, record: Record) -> None:
    """Write the record of the file at `path` in the cache. Raises `OSError`."""
    write_text_whole(beside(path, "json"), json.dumps(asdict(record)) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path` in hex. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(path: Path, kinds: Iterable[str]) -> tuple[dict[str, str], int]:
    """Return the hashes of the file at `path` in hex, by their `kinds`, and its size; it is read once.

    Raises `OSError`.
    """
    running = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            for one in running.values():
                one.update(chunk)
    return {kind: one.hexdigest() for kind, one in running.items()}, size


def compare(path: Path, request: Request, known: Record | None) -> tuple[str, Record]:
    """Return how the hash of the file at `path` differs from what is published or `known`, and the record of it.

    The first is empty when nothing differs. Raises `OSError` when the file can't be read.
    """
    kinds = ("sha256", "md5") if request.hash_kind in ("md5", "md5sum") else ("sha256",)
    found, size = digests(path, kinds)
    record = Record(request.url, found["sha256"], size)
    if request.hash and request.hash_kind:
        digest = found["sha256" if request.hash_kind == "sha256" else "md5"]
        if not digest.startswith(request.hash.lower()):
            name = "SHA-256" if request.hash_kind == "sha256" else "MD5"
            return f"its {name} is {digest[:8]}…, not {request.hash[:8]}…", record
    if known and known.sha256 != record.sha256:
        return f"its SHA-256 is {record.sha256[:8]}…, not {known.sha256[:8]}… as when it was first fetched", record
    return "", record


def cached(request: Request) -> Path | None:
    """Return the path of a file when it is in the cache.

    Its SHA-256 is recorded when a published hash vouches for it; one that was put there by hand without any is not held
    to what it first was. Raises `DetcliError` when its hash is not that which was published and recorded.
    """
    path = cache_path(request.url)
    if not path.is_file():
        return None
    known = read_record(path)
    problem, record = compare(path, request, known)
    if problem:
        raise DetcliError(f"{path} is damaged: {problem}. Delete it, and it is downloaded again.")
    if not known and request.hash:
        write_record(path, record)
    return path


@contextmanager
def locked(path: Path, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of the file at `path` in the cache; `wait` is called each second that another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside(path, "lock"))
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            wait()
    try:
        yield
    finally:
        lock.release()


def fetch(url: str, sha256_prefix: str = "") -> Path:
    """Return the path of the file at `url`, downloaded unless it is in the cache.

    The file's SHA-256 has to start with `sha256_prefix` or, without one, with the hex digits that end its
    name (``resnet50-0676ba61.pth``). An interrupted download is continued; of several processes, one
    downloads.

    Raises `DetcliError` when the file can't be had or its hash is wrong.
    """
    if not sha256_prefix and (match := HASH_IN_NAME.search(urlsplit(url).path)):
        sha256_prefix = match[1]
    (outcome,) = download([Request(url, (), sha256_prefix, "sha256" if sha256_prefix else "")])
    if isinstance(outcome, DetcliError):
        raise outcome
    return outcome


def download(requests: Sequence[Request], jobs: int = JOBS) -> list[Path | DetcliError]:
    """Return for each of the `requests` the path of its file in the cache, or why it can't be had; `jobs` at a time.

    What is not in the cache comes from its addresses in order, continued where an earlier download was stopped, and is
    put in its place when its size and hash are right. How far each is is shown on stderr.

    Raises `UsageError` when DETCLI_TIMEOUT is no number of seconds.
    """
    outcomes: dict[Request, Path | DetcliError | BaseException] = {}
    waiting: SimpleQueue[Request] = SimpleQueue()
    for request in dict.fromkeys(requests):
        waiting.put(request)
    stopped = threading.Event()
    with _Display() as display:
        fetcher = _Fetcher(display, stopped, _timeout())

        def work() -> None:
            while not stopped.is_set():
                try:
                    request = waiting.get_nowait()
                except Empty:
                    return
                try:
                    outcomes[request] = fetcher.fetch(request)
                except BaseException as error:
                    outcomes[request] = error

        # Daemons, so that Ctrl-C need not wait for a server; what they leave half-done is continued.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(set(requests))))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stopped.set()
    results: list[Path | DetcliError] = []
    for request in requests:
        outcome = outcomes[request]
        if not isinstance(outcome, (Path, DetcliError)):
            raise outcome
        results.append(outcome)
    return results


def _timeout() -> float:
    text = os.environ.get("DETCLI_TIMEOUT") or str(TIMEOUT)
    try:
        seconds = float(text)
        if not 0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise UsageError(f"DETCLI_TIMEOUT is {text!r}, no number of seconds. Unset it, or try 30.") from None
    return seconds


class _Failed(Exception):
    """Something did not come from an address; `again` tells whether another attempt may help, in `wait` seconds."""

    def __init__(self, reason: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait


class _Stopped(Exception):
    """The download is no longer wanted."""


class _Part:
    """What has come of a file so far, and the version of it that this belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = beside(path, "part")
        self.notes = beside(path, "part.json")
        self.address = ""
        self.validators: dict[str, str] = {}
        self.total: int | None = None

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, address: str, validators: dict[str, str], total: int | None) -> None:
        """Start anew with the version that `address` has."""
        self.discard()  # first, or a process killed here would leave the old bytes with the new notes
        self.address, self.validators, self.total = address, validators, total
        notes = {"address": address, "validators": validators, "total": total}
        write_text_whole(self.notes, json.dumps(notes) + "\n")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.address, self.validators, self.total = "", {}, None

    def resume(self, address: str, has_hash: bool) -> int:
        """Return from which byte `address` can continue; what nothing would hold together is discarded.

        Bytes of the same address and version belong together; those of another one only where a hash tells.
        """
        size = self.size
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            self.address, self.validators, self.total = notes["address"], dict(notes["validators"]), notes["total"]
        except (OSError, ValueError, LookupError, TypeError):
            self.discard()
            return 0
        same = self.address == address and bool(self.validators)
        if size == 0 or (self.total is not None and size > self.total) or not (same or has_hash):
            self.discard()
            return 0
        return size

    def condition(self, address: str) -> dict[str, str]:
        """Return the header that asks for the rest only if the file has not changed since."""
        if self.address != address:
            return {}
        validator = self.validators.get("ETag") or self.validators.get("Last-Modified")
        return {"If-Range": validator} if validator else {}

    def continues(self, address: str, headers: Message) -> bool:
        """Return whether a partial answer has exactly what comes next of the same version."""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", "").strip())
        if not match or int(match[1]) != self.size or int(match[2]) >= int(match[3]):
            return False
        if self.total is not None and int(match[3]) != self.total:
            return False
        seen = _validators(headers)
        changed = self.address == address and any(
            name in seen and seen[name] != value for name, value in self.validators.items()
        )
        self.total = int(match[3])
        return not changed


def _validators(headers: Message) -> dict[str, str]:
    """Return what tells versions of a file apart; weak ETags don't."""
    found = {name: headers.get(name, "").strip() for name in ("ETag", "Last-Modified")}
    return {name: value for name, value in found.items() if value and not value.startswith("W/")}


class _Redirects(http.HTTPRedirectHandler):
    """Follows redirects to http and https, never from https to http: no one on the way may swap the file."""

    def redirect_request(
        self, req: http.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> http.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise HTTPError(newurl, code, f"redirected to {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Fetcher:
    """Fetches one file at a time in each of several threads."""

    def __init__(self, display: _Display, stopped: threading.Event, timeout: float) -> None:
        self.display = display
        self.stopped = stopped
        self.timeout = timeout
        self.opener = http.build_opener(_Redirects())

    def fetch(self, request: Request) -> Path:
        """Return the path of the file in the cache. Raises `DetcliError` when it can't be had."""
        path = cache_path(request.url)
        try:
            with locked(path, self._other_process(path)):
                if request.hash_kind == "md5sum" and not request.hash and not read_record(path):
                    request = replace(request, hash=self._published_md5(request, path))
                for name in ("json", "part.json"):
                    remove_temporaries(path.parent, beside(path, name).name)
                if cached(request):
                    _Part(path).discard()
                else:
                    self._download(request, path)
        except OSError as error:
            raise DetcliError(f"can't write {error.filename or path}: {error.strerror or error}.") from error
        return path

    def _other_process(self, path: Path) -> Callable[[], None]:
        said: list[bool] = []

        def wait() -> None:
            if self.stopped.is_set():
                raise _Stopped
            if not said:
                said.append(True)
                self.display.say(f"{path.name}: another process downloads it; waiting for it")

        return wait

    def _published_md5(self, request: Request, path: Path) -> str:
        def read(address: str) -> str:
            with self._open(f"{address}.md5sum", {}) as response, _network():
                content = response.read(4096).decode("ascii", "replace")
            if match := re.search(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", content.lower()):
                return match[0]
            raise _Failed(f"no MD5 in {address}.md5sum")

        return self._ask(request, path, read, lambda: 0)

    def _download(self, request: Request, path: Path) -> None:
        """Put the file at `path`, or raise `DetcliError`."""
        part, known = _Part(path), read_record(path)
        with self.display.bar(path.name) as bar:

            def get(address: str) -> Record:
                while True:
                    resumed = self._receive(address, part, bool(request.hash or known), bar)
                    problem, record = compare(part.path, request, known)
                    if not problem:
                        return record
                    part.discard()
                    if not resumed:
                        raise _Failed(f"it sent another file: {problem}")

            record = self._ask(request, path, get, lambda: part.size)
        put_in_place(part.path, path)
        part.discard()
        write_record(path, record)
        how = {"": "no published hash", "sha256": "SHA-256 as published"}.get(request.hash_kind, "MD5 as published")
        self.display.say(f"{path.name}: {decimal(record.size)}, {how}")

    def _ask(
        self, request: Request, path: Path, attempt: Callable[[str], Result], progress: Callable[[], int]
    ) -> Result:
        """Return what `attempt` makes of one of the addresses, each tried until that seems useless."""
        addresses = request.addresses or (request.url,)
        reasons: list[str] = []
        for number, address in enumerate(addresses):
            if urlsplit(address).hostname in PAGES:
                reasons.append(f"{address} is a page for a browser, not a file")
                continue
            try:
                return self._insist(path.name, partial(attempt, address), progress)
            except _Failed as error:
                reasons.append(str(error) if addresses == (request.url,) else f"{address}: {error}")
            if number + 1 < len(addresses):
                self.display.say(f"{path.name}: {reasons[-1]}; asking {addresses[number + 1]}")
        by_hand = f"Try again, or put the file at {path} by hand."
        raise DetcliError(f"can't download {request.url}: {'; '.join(reasons)}. {by_hand}")

    def _insist(self, name: str, attempt: Callable[[], Result], progress: Callable[[], int]) -> Result:
        """Return what `attempt` returns, tried again after back-off where that may help."""
        start = reached = progress()
        tries = 0
        while True:
            try:
                return attempt()
            except _Failed as error:
                if progress() >= reached + CHUNK:
                    reached, tries = progress(), 0
                tries += 1
                # A name that is unknown or a refused connection may be the network's hiccup only if it worked before.
                again = error.again and not (isinstance(error, _Unreachable) and progress() == start)
                if not again or tries >= TRIES or (error.wait or 0) > LONGEST_WAIT:
                    raise
                pause = min(BACKOFF * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.5, 1.5)
                pause = max(pause, error.wait or 0)
                self.display.say(f"{name}: {error}; trying again in {pause:.0f} s")
            if self.stopped.wait(pause):
                raise _Stopped

    def _open(self, address: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Return the answer to a GET. Raises `_Failed`: `_Answered` when the answer is an error."""
        if urlsplit(address).scheme not in ("http", "https"):
            raise _Failed("only http and https are downloaded")
        headers = {"User-Agent": "detcli", **headers}
        with _network():
            response: HTTPResponse = self.opener.open(http.Request(address, headers=headers), timeout=self.timeout)
        return response

    def _receive(self, address: str, part: _Part, has_hash: bool, bar: _Bar) -> bool:
        """Bring `part` to the whole file; return whether it began with bytes of an earlier connection.

        Raises `_Failed`, after which what came is still in `part` unless it was too much.
        """
        start = part.resume(address, has_hash)
        if start and start == part.total:
            return True
        headers = {"Range": f"bytes={start}-", **part.condition(address)} if start else {}
        try:
            response = self._open(address, headers)
        except _Answered as error:
            if not start or error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            part.discard()
            return self._receive(address, part, has_hash, bar)
        with response:
            if start and response.status == HTTPStatus.PARTIAL_CONTENT:
                if not part.continues(address, response.headers):
                    part.discard()
                    return self._receive(address, part, has_hash, bar)
            else:
                start = 0
                self._begin(response, address, part, has_hash)
            self._append(response, part, bar)
        size = part.size
        if part.total is not None and size < part.total:
            raise _Failed(f"the connection ended after {size} of {part.total} bytes", again=True)
        return start > 0

    def _begin(self, response: HTTPResponse, address: str, part: _Part, has_hash: bool) -> None:
        if response.status != HTTPStatus.OK:
            raise _Failed(f"it answered {response.status} {response.reason}")
        if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise _Failed(f"it sent the file as {coding}, which was not asked for")
        if not has_hash and response.headers.get_content_type() == "text/html":
            raise _Failed("it sent a web page in place of the file")
        if not has_hash and response.length is None:
            raise _Failed("it does not say how long the file is, and no hash of the file is known")
        part.begin(address, _validators(response.headers), response.length)

    def _append(self, response: HTTPResponse, part: _Part, bar: _Bar) -> None:
        with part.path.open("ab") as file:
            bar.update(file.tell(), part.total)
            while True:
                with _network():
                    chunk = response.read1(CHUNK)
                if not chunk:
                    return
                if self.stopped.is_set():
                    raise _Stopped
                file.write(chunk)
                file.flush()  # at once: what a killed process held back would be fetched again
                bar.update(file.tell(), part.total)
                if part.total is not None and file.tell() > part.total:
                    break
        total = part.total
        part.discard()
        raise _Failed(f"it sent more than the {total} bytes that it announced")


class _Answered(_Failed):
    """The server answered with an error."""

    def __init__(self, error: HTTPError) -> None:
        reason = " ".join(str(error.reason).split())
        super().__init__(f"{error.code} {reason}", error.code in AGAIN, _retry_after(error.headers))
        self.status = error.code


class _Unreachable(_Failed):
    """There was no connection at all."""


@contextmanager
def _network() -> Iterator[None]:
    """Turn what goes wrong between here and the server into `_Failed`, apart from errors of the own disk."""
    try:
        yield
    except HTTPError as error:
        with error:
            raise _Answered(error) from error
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        reason = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, TimeoutError):
            raise _Failed("the server stalled", again=True) from error
        if isinstance(cause, socket.gaierror) or getattr(cause, "errno", None) in UNREACHABLE:
            raise _Unreachable(reason, again=True) from error
        again = isinstance(error, (OSError, HTTPException)) and not isinstance(cause, ssl.SSLCertVerificationError)
        raise _Failed(reason, again) from error


def _retry_after(headers: Message | None) -> float | None:
    """Return the seconds that the server asks to wait, if it does."""
    text = (headers.get("Retry-After") or "").strip() if headers else ""
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((moment.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)


class _Display:
    """A bar a file on stderr where that is a terminal, which goes away when the file is there; and plain lines."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        self.progress.console.print(line, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def bar(self, name: str) -> Iterator[_Bar]:
        task = self.progress.add_task(name, total=None)
        try:
            yield _Bar(self.progress, task)
        finally:
            self.progress.remove_task(task)


@dataclass(frozen=True, slots=True)
class _Bar:
    progress: Progress
    task: TaskID

    def update(self, done: int, total: int | None) -> None:
        self.progress.update(self.task, completed=done, total=total)
