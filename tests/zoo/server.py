"""A file server on the loopback interface that misbehaves as it is told."""

import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """A file that is served: what it holds, how it is known, and how the next answers to it go wrong.

    `faults` are taken one an answer, from the front, each a dict of the fields that `Handler.do_GET` reads; without
    any, answers are right.
    """

    content: bytes
    etag: str = '"1"'
    headers: dict = field(default_factory=dict)
    ranges: bool = True
    faults: list = field(default_factory=list)


@dataclass
class Asked:
    """A request as it came, and how many bytes of a file were sent in answer."""

    path: str
    range: str | None
    headers: dict
    start: int = 0
    sent: int = 0


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `asked` lists the requests."""

    daemon_threads = True

    def __init__(self):
        self.files = {}
        self.asked = []
        self.watch = lambda asked: None  # called after each piece of `piece` bytes
        self.piece = 1 << 16
        self.busy = self.busiest = 0
        self.ended = threading.Event()  # lets those that stall go
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, path, content, **options):
        """Serve `content` at `path`; return its URL."""
        self.files[f"/{path}"] = File(content, **options)
        return self.url(path)

    def url(self, path=""):
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def ranges(self, path):
        """Return the Range of each request for `path`."""
        return [asked.range for asked in self.asked if asked.path == f"/{path}"]

    def nobody(self, path=""):
        """Return a URL at a port on which nothing listens."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            return f"http://127.0.0.1:{listening.getsockname()[1]}/{path}"

    @property
    def sent(self):
        return sum(asked.sent for asked in self.asked)

    def settle(self):
        """Wait until no answer is under way."""
        self.wait_until(lambda: not self.busy)

    def wait_until(self, condition):
        """Wait until `condition` is true; fail when that takes more than ten seconds."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def close(self):
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """Say nothing of connections that a client left."""


class Handler(BaseHTTPRequestHandler):
    """Answers GET.

    A fault has some of: `status` (with `headers`) in place of the file; `stall`, True before the headers or the number
    of bytes after which nothing more comes; `cut`, the number of bytes after which the connection is closed; `drop`, to
    close it without an answer; `content`, in place of the file's; `length`, what Content-Length says (None: nothing);
    `chunked`; `content_range`; `etag`; `headers`, further ones.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = Asked(self.path, self.headers["Range"], dict(self.headers))
        server.asked.append(asked)
        server.busy += 1
        server.busiest = max(server.busiest, server.busy)
        try:
            self.close_connection = True
            file = server.files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            self.answer(file, asked, file.faults.pop(0) if file.faults else {})
        finally:
            server.busy -= 1

    def answer(self, file, asked, fault):
        if fault.get("drop"):
            return
        if fault.get("stall") is True:
            self.server.ended.wait()
            return
        if "status" in fault:
            self.send_response(fault["status"])
            for name, value in {"Content-Length": "0", **fault.get("headers", {})}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        content = fault.get("content", file.content)
        known = asked.headers.get("If-Range") in (None, file.etag)
        match = re.fullmatch(r"bytes=(\d+)-", asked.range or "")
        start = int(match[1]) if match and known and file.ranges else 0
        if match and start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        asked.start = start
        self.send_response(206 if start else 200)
        if start:
            described = fault.get("content_range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Range", described)
        if etag := fault.get("etag", file.etag):
            self.send_header("ETag", etag)
        if fault.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        elif (length := fault.get("length", len(content) - start)) is not None:
            self.send_header("Content-Length", str(length))
        for name, value in {**file.headers, **fault.get("headers", {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.send(content, asked, fault)

    def send(self, content, asked, fault):
        end = min(len(content), fault.get("cut", len(content)), fault.get("stall", len(content)))
        for place in range(asked.start, end, self.server.piece):
            piece = content[place : min(place + self.server.piece, end)]
            if fault.get("chunked"):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            else:
                self.wfile.write(piece)
            asked.sent += len(piece)
            self.server.watch(asked)
        if "stall" in fault:
            self.server.ended.wait()
        elif fault.get("chunked") and "cut" not in fault:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        """Say nothing."""
