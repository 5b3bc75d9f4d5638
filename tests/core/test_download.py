"""The download cache, against a server on the loopback interface."""

import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from detcli.download import cache_path, fetch
from detcli.errors import DetcliError

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at any path but /missing; sends only `limit` bytes, or ignores ranges, where told to."""

    daemon_threads = True

    def __init__(self):
        self.requests = []
        self.limit = len(CONTENT)
        self.ranges = True
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/files/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.requests.append(wanted)
        if "missing" in self.path:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


def others(path):
    return sorted(other.name for other in path.parent.iterdir() if other != path and other.suffix != ".lock")


def test_downloads_once(server, cache):
    path = fetch(server.url("weights.pth"))
    assert path == cache / f"127.0.0.1_{server.server_port}" / "files" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert others(path) == []
    assert fetch(server.url("weights.pth")) == path
    assert server.requests == [None]


def test_path_stays_in_the_cache(cache):
    assert cache_path("https://host/a/../../%2e%2e/b.pth?x=1") == cache / "host" / "a" / "b.pth"


def test_cut_connection_is_named_and_continued(server):
    server.limit = 100_000
    with pytest.raises(DetcliError, match=r"can't download http.*Try again, or put the file at .*weights\.pth by hand"):
        fetch(server.url("weights.pth"))
    assert not cache_path(server.url("weights.pth")).exists()
    server.limit = len(CONTENT)
    assert fetch(server.url("weights.pth")).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]


def test_server_without_ranges_sends_all_again(server):
    server.limit = 100_000
    with pytest.raises(DetcliError):
        fetch(server.url("weights.pth"))
    server.limit, server.ranges = len(CONTENT), False
    assert fetch(server.url("weights.pth")).read_bytes() == CONTENT


def test_partial_file_with_nothing_left_to_continue(server):
    path = cache_path(server.url("weights.pth"))
    path.parent.mkdir(parents=True)
    path.with_name("weights.pth.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url("weights.pth")).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT) + 4}-", None]


def test_hash_is_given_or_in_the_name(server):
    assert fetch(server.url("weights.pth"), DIGEST).exists()
    assert fetch(server.url(f"resnet50-{DIGEST[:8]}.pth")).exists()
    for url, digest in [(server.url("other.pth"), "0" * 8), (server.url("resnet50-00000000.pth"), "")]:
        with pytest.raises(DetcliError, match=f"gave another file, of SHA-256 {DIGEST[:8]}"):
            fetch(url, digest)
        assert not cache_path(url).exists()
        assert "part" not in " ".join(others(cache_path(url)))


def test_damaged_file_is_named_and_left_alone(server):
    path = fetch(server.url("weights.pth"), DIGEST[:8])
    path.write_bytes(b"something else")
    with pytest.raises(DetcliError, match=r"weights\.pth is damaged.*Delete it"):
        fetch(server.url("weights.pth"), DIGEST[:8])
    assert path.read_bytes() == b"something else"


def test_file_put_there_by_hand_is_taken(server):
    path = cache_path(server.url("weights.pth"))
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(server.url("weights.pth"), DIGEST) == path
    assert server.requests == []


def test_missing_file(server):
    with pytest.raises(DetcliError, match=r"can't download http.*/missing\.pth: 404 Not Found"):
        fetch(server.url("missing.pth"))


def test_without_a_network_the_way_out_is_named(server):
    url = server.url("weights.pth")
    server.shutdown()
    server.server_close()
    with pytest.raises(DetcliError) as caught:
        fetch(url)
    message = str(caught.value)
    assert url in message
    assert str(cache_path(url)) in message
    assert "\n" not in message


def test_unwritable_cache_is_named(server, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DetcliError, match="cache"):
        fetch(server.url("weights.pth"))


def test_two_processes_download_once(server):
    code = f"from detcli.download import fetch; print(fetch({server.url('weights.pth')!r}).stat().st_size)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [str(len(CONTENT))] * 2
    assert server.requests == [None]


def test_needs_no_torch():
    code = "import sys, detcli.download; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
