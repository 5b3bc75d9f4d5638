"""The download cache, against a server on the loopback interface that does everything wrong."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from email.utils import formatdate

import pytest

from detcli import download as module
from detcli.download import Request, beside, cache_folder, cache_path, cached, download, fetch, read_record
from detcli.errors import DetcliError

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def url(server):
    return server.put("files/weights.pth", CONTENT)


def ranges(server):
    return server.ranges("files/weights.pth")


def faults(server, *faults):
    server.files["/files/weights.pth"].faults = list(faults)


def get(url, **options):
    """Return the outcome of a download with a published hash."""
    (outcome,) = download([Request(url, **{"hash": DIGEST[:8], "hash_kind": "sha256", **options})])
    return outcome


def stop_at(server, url, size):
    """Leave `size` bytes of the file behind, as a process that was killed would."""
    faults(server, {"cut": size})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRIES", 1)
        with pytest.raises(DetcliError):
            fetch(url)
    assert beside(cache_path(url), "part").stat().st_size == size


def names(path):
    """Return what is in the folder of a cached file, locks apart."""
    return sorted(other.name for other in path.parent.iterdir() if other.suffix != ".lock")


def test_downloads_once(server, url, cache):
    path = fetch(url)
    assert path == cache / f"127.0.0.1_{server.server_port}" / "files" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert names(path) == [".weights.pth.json", "weights.pth"]
    assert read_record(path) == module.Record(url, DIGEST, len(CONTENT))
    assert fetch(url) == path
    assert ranges(server) == [None]


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a/../../%2e%2e/b.pth",
        "https://host/..%2f..%2Fetc%2fpasswd",
        r"https://host/..\..\b.pth",
        "https://host/C:/b.pth",
        "https://host/a/b%00.pth",
        "https://host/con.pth",
        "https://host/.hidden/.b.pth.lock",
        "https://../b.pth",
        "https://user:secret@[::1]:80/~root/$HOME/`id`",
        "https://host/" + "x" * 5000 + ".pth",
        "https://host/" + "y/" * 3000,
        "https://host/%ff%fe\ud800.pth",
        "https://host",
        "file:///etc/passwd",
        "https://host/x.part",
    ],
)
def test_path_stays_in_the_cache(cache, url):
    path = cache_path(url)
    assert path.is_relative_to(cache)
    place = path.relative_to(cache).parts
    assert len(place) >= 2
    assert len("/".join(place)) < 800
    for name in place:
        assert name[0] not in ".-"
        assert len(name) < 160
        assert all(character.isascii() and (character.isalnum() or character in "._+=@,~-") for character in name)
    assert "secret" not in str(path)


def test_urls_with_a_query_or_odd_names_have_a_path_of_their_own():
    urls = ["https://h/b.pth", "https://h/b.pth?id=1", "https://h/b.pth?id=2", "https://h/b$.pth", "https://h/b&.pth"]
    assert len(set(map(cache_path, urls))) == len(urls)
    assert cache_path("https://h/a/./b.pth") == cache_path("http://h/a/b.pth") == cache_folder() / "h" / "a" / "b.pth"
    assert cache_path("https://h/b.pth?id=1").suffix == ".pth"
    own = {beside(path, what) for path in map(cache_path, urls) for what in ("lock", "part", "part.json", "json")}
    for name in (".b.pth.lock", ".b.pth.part", ".b.pth.part.json", ".b.pth.json"):
        assert cache_path(f"https://h/{name}") not in own
    assert beside(cache_path("https://h/b.pth.part"), "json") not in own


@pytest.mark.parametrize("url", ["https://[::1/b.pth", "https://host:port/b.pth"])
def test_no_url(url):
    with pytest.raises(DetcliError, match="no URL"):
        cache_path(url)


def test_other_schemes_are_refused(tmp_path):
    with pytest.raises(DetcliError, match="only http and https"):
        fetch(f"file://{tmp_path}/weights.pth")


def test_cut_connection_is_named_and_continued(server, url):
    faults(server, *[{"cut": 100_000}] * 5)
    with pytest.raises(DetcliError, match=r"can't download http.* after 100000 of 300000 bytes\. Try again, or put"):
        fetch(url)
    assert names(cache_path(url)) == [".weights.pth.part", ".weights.pth.part.json"]
    faults(server)
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, *["bytes=100000-"] * 4]
    assert server.asked[-1].headers["If-Range"] == '"1"'
    assert names(cache_path(url)) == [".weights.pth.json", "weights.pth"]


def test_server_that_dies_half_way_is_asked_for_the_rest(server, url):
    faults(server, {"cut": 100_000}, {"cut": 200_000})
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]
    assert server.sent == len(CONTENT)


def test_attempts_that_bring_much_do_not_count(server):
    content = bytes(7 << 20)
    url = server.put("large.pth", content, faults=[{"cut": n << 20} for n in range(1, 7)])
    assert fetch(url).read_bytes() == content
    assert server.sent == len(content)


def test_server_without_ranges_sends_all_again(server, url):
    stop_at(server, url, 100_000)
    server.files["/files/weights.pth"].ranges = False
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


@pytest.mark.parametrize("etag", ['"2"', ""])
def test_file_that_changed_meanwhile_is_not_glued_together(server, url, etag):
    stop_at(server, url, 100_000)
    server.put("files/weights.pth", OTHER, etag=etag)
    assert fetch(url).read_bytes() == OTHER


def test_change_is_seen_where_if_range_is_ignored(server, url):
    stop_at(server, url, 100_000)
    server.files["/files/weights.pth"].content = OTHER
    faults(server, {"etag": '"2"'})  # beside the rest that only the version with the old one should have had
    assert fetch(url).read_bytes() == OTHER
    assert ranges(server) == [None, "bytes=100000-", None]


def test_file_of_another_length_is_not_glued_together(server, url):
    stop_at(server, url, 100_000)
    server.files["/files/weights.pth"].content = OTHER + b"more"
    assert fetch(url).read_bytes() == OTHER + b"more"
    assert ranges(server) == [None, "bytes=100000-", None]


def test_without_a_validator_only_a_hash_lets_a_download_go_on(server):
    url = server.put("files/weights.pth", CONTENT, etag="")
    stop_at(server, url, 100_000)
    assert get(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]
    other = server.put("files/other.pth", CONTENT, etag="", faults=[{"cut": 100_000}])
    assert fetch(other).read_bytes() == CONTENT
    assert server.ranges("files/other.pth") == [None, None]


def test_weak_etag_is_no_validator(server):
    url = server.put("files/weights.pth", CONTENT, etag='W/"1"')
    stop_at(server, url, 100_000)
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_glued_file_is_found_by_its_hash_and_fetched_whole(server):
    url = server.put("files/weights.pth", OTHER, etag="")
    stop_at(server, url, 100_000)
    server.put("files/weights.pth", CONTENT, etag="")
    assert get(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", None]


def test_partial_file_that_is_whole_needs_no_request(server, url):
    stop_at(server, url, 100_000)
    beside(cache_path(url), "part").write_bytes(CONTENT)
    assert get(url).read_bytes() == CONTENT
    assert ranges(server) == [None]


@pytest.mark.parametrize("content", [CONTENT + b"more", b""])
def test_partial_file_that_fits_nothing_is_discarded(server, url, content):
    stop_at(server, url, 100_000)
    beside(cache_path(url), "part").write_bytes(content)
    assert get(url).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_partial_file_of_unknown_origin_is_discarded(server, url):
    part = beside(cache_path(url), "part")
    part.parent.mkdir(parents=True)
    part.write_bytes(OTHER[:1000])
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None]


def test_file_that_became_shorter(server, url):
    stop_at(server, url, 100_000)
    server.put("files/weights.pth", CONTENT[:50_000], etag='"1"')
    assert fetch(url).read_bytes() == CONTENT[:50_000]
    assert ranges(server) == [None, "bytes=100000-", None]


def test_hash_is_given_or_in_the_name(server, url):
    assert fetch(url, DIGEST).exists()
    assert fetch(server.put(f"resnet50-{DIGEST[:8]}.pth", CONTENT)).exists()
    for wrong, digest in [("other.pth", "0" * 8), ("resnet50-00000000.pth", "")]:
        wrong = server.put(wrong, CONTENT)
        with pytest.raises(DetcliError, match=f"sent another file: its SHA-256 is {DIGEST[:8]}…, not 00000000…"):
            fetch(wrong, digest)
        assert not [name for name in names(cache_path(wrong)) if "other" in name or "0000" in name]


def test_md5(server, url):
    assert get(url, hash=MD5[:6], hash_kind="md5").read_bytes() == CONTENT
    other = server.put("model_final_000000.pkl", CONTENT)
    outcome = get(other, hash="000000", hash_kind="md5")
    assert f"its MD5 is {MD5[:8]}…, not 000000…" in str(outcome)
    assert not cache_path(other).exists()


def test_md5_in_a_file_beside(server, url):
    server.put("files/weights.pth.md5sum", f"{MD5}  weights.pth\n".encode())
    assert get(url, hash="", hash_kind="md5sum").read_bytes() == CONTENT
    other = server.put("other.pth", CONTENT)
    server.put("other.pth.md5sum", b"0" * 32)
    assert "its MD5 is" in str(get(other, hash="", hash_kind="md5sum"))
    server.put("other.pth.md5sum", b"<html>")
    assert "no MD5 in" in str(get(other, hash="", hash_kind="md5sum"))
    del server.files["/other.pth.md5sum"]
    assert "404 Not Found" in str(get(other, hash="", hash_kind="md5sum"))
    assert not cache_path(other).exists()


def test_what_was_fetched_first_is_expected_ever_after(server, url):
    path = fetch(url)
    path.unlink()
    server.put("files/weights.pth", OTHER)
    with pytest.raises(DetcliError, match=r"sent another file.*as when it was first fetched"):
        fetch(url)
    assert not path.exists()
    server.put("files/weights.pth", CONTENT)
    assert fetch(url).read_bytes() == CONTENT


@pytest.mark.parametrize("digest", [DIGEST[:8], ""])
def test_damaged_file_is_named_and_left_alone(url, digest):
    path = fetch(url, digest)
    path.write_bytes(b"something else")
    with pytest.raises(DetcliError, match=r"weights\.pth is damaged.*Delete it"):
        fetch(url, digest)
    assert path.read_bytes() == b"something else"


def test_file_put_there_by_hand_is_taken(server, url):
    path = cache_path(url)
    stop_at(server, url, 1000)
    path.write_bytes(CONTENT)
    assert fetch(url, DIGEST) == path
    assert read_record(path).sha256 == DIGEST
    assert ranges(server) == [None]
    assert names(path) == [".weights.pth.json", "weights.pth"]


def test_file_put_there_by_hand_without_a_hash_may_be_replaced(server, url):
    path = cache_path(url)
    path.parent.mkdir(parents=True)
    for content in (OTHER, CONTENT):
        path.write_bytes(content)
        assert fetch(url) == path
    assert read_record(path) is None
    assert server.asked == []


@pytest.mark.parametrize("record", ["", "[]", '{"url": "x", "sha256": "../..", "size": 1}', "\0"])
def test_unreadable_record_is_written_again(url, record):
    path = fetch(url, DIGEST)
    beside(path, "json").write_text(record)
    assert read_record(path) is None
    assert fetch(url, DIGEST) == path
    assert json.loads(beside(path, "json").read_text())["sha256"] == DIGEST


@pytest.mark.parametrize(("status", "reason"), [(403, "403 Forbidden"), (404, "404 Not Found"), (410, "410 Gone")])
def test_refusal_is_not_repeated_and_the_mirror_is_asked(server, url, status, reason, capsys):
    faults(server, *[{"status": status}] * 2)
    with pytest.raises(DetcliError, match=f"can't download http.*/weights.pth: {reason}"):
        fetch(url)
    mirror = server.put("mirror/weights.pth", CONTENT)
    assert get(url, addresses=(url, mirror)).read_bytes() == CONTENT
    assert f"{url}: {reason}; asking {mirror}" in capsys.readouterr().err
    assert [asked.path for asked in server.asked] == ["/files/weights.pth"] * 2 + ["/mirror/weights.pth"]


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 503}, {"status": 429}, {"drop": True}, {"stall": True}, {"stall": 1000}]
)
def test_hiccups_are_tried_again(server, url, fault):
    faults(server, fault, fault)
    assert get(url).read_bytes() == CONTENT
    assert len(ranges(server)) == 3


def test_attempts_are_bounded(server, url):
    faults(server, *[{"status": 502}] * 100)
    assert "502 Bad Gateway" in str(get(url))
    assert len(ranges(server)) == module.TRIES


def test_stalled_server_is_given_up(server, url):
    faults(server, *[{"stall": 1000}] * 100)
    started = time.monotonic()
    assert "the server stalled" in str(get(url))
    assert time.monotonic() - started < 5
    assert not cache_path(url).exists()


def test_retry_after_is_honoured_within_bounds(server, url):
    faults(server, {"status": 503, "headers": {"Retry-After": "1"}})
    started = time.monotonic()
    assert get(url).read_bytes() == CONTENT
    assert time.monotonic() - started >= 1
    for wait in ("3600", "9" * 500, formatdate(time.time() + 3600, usegmt=True)):
        other = server.put("busy.pth", CONTENT, faults=[{"status": 503, "headers": {"Retry-After": wait}}])
        assert "503" in str(get(other))


def test_mirrors_are_asked_in_order_and_all_reasons_given(server, url):
    nobody, missing = server.nobody("weights.pth"), server.url("missing.pth")
    wrong = server.put("wrong.pth", OTHER)
    outcome = str(get(url, addresses=(nobody, missing, wrong)))
    assert f"{nobody}: [Errno" in outcome
    assert f"{missing}: 404 Not Found; {wrong}: it sent another file: its SHA-256 is" in outcome
    assert str(cache_path(url)) in outcome
    assert "\n" not in outcome
    assert names(cache_path(url)) == []
    assert get(url, addresses=(nobody, missing, wrong, url)).read_bytes() == CONTENT
    assert [asked.path for asked in server.asked] == ["/missing.pth", "/wrong.pth"] * 2 + ["/files/weights.pth"]


def test_mirror_continues_what_another_began(server, url):
    mirror = server.put("mirror/weights.pth", CONTENT, etag='"of the mirror"')
    faults(server, {"cut": 100_000}, *[{"status": 404}])
    assert get(url, addresses=(url, mirror)).read_bytes() == CONTENT
    assert server.ranges("mirror/weights.pth") == ["bytes=100000-"]
    assert "If-Range" not in server.asked[-1].headers


def test_mirror_starts_anew_without_a_hash(server, url):
    mirror = server.put("mirror/weights.pth", OTHER)
    faults(server, {"cut": 100_000}, *[{"status": 404}])
    assert get(url, addresses=(url, mirror), hash="", hash_kind="").read_bytes() == OTHER
    assert server.ranges("mirror/weights.pth") == [None]


def redirect(server, path, target, status=302):
    return server.put(path, b"", faults=[{"status": status, "headers": {"Location": target}}] * 99)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, url, status):
    far = redirect(server, "1", redirect(server, "2", url, status), status)
    assert fetch(far).read_bytes() == CONTENT


def test_redirected_download_is_continued(server, url):
    far = redirect(server, "1", url)
    faults(server, {"cut": 100_000})
    assert fetch(far).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


def test_redirects_in_a_loop_end(server):
    loop = redirect(server, "loop", server.url("loop"))
    with pytest.raises(DetcliError, match=r"can't download .*/loop: 302") as caught:
        fetch(loop)
    assert "\n" not in str(caught.value)
    assert len(server.asked) < 12


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_elsewhere_are_not_followed(server, target):
    with pytest.raises(DetcliError, match=r"302 .*edirect.*not (followed|allowed)"):
        fetch(redirect(server, "1", target))


def test_redirects_from_https_to_http_are_not_followed():
    request = module.http.Request("https://host/x")
    for target, followed in [("https://other/x", True), ("http://other/x", False)]:
        try:
            module._Redirects().redirect_request(request, None, 302, "Found", {}, target)
        except module.HTTPError:
            assert not followed
        else:
            assert followed


def test_too_little(server, url):
    faults(server, *[{"content": CONTENT[:1000], "length": len(CONTENT)}] * 99)
    outcome = get(url)
    assert "the connection ended after 1000 of 300000 bytes" in str(outcome)
    assert not cache_path(url).exists()


def test_more_than_was_announced_is_not_read(server, url):
    faults(server, {"content": CONTENT + b"more", "length": len(CONTENT)})
    assert fetch(url).read_bytes() == CONTENT


def test_more_than_the_rest_is_refused(server, url):
    stop_at(server, url, 100_000)
    described = f"bytes 100000-{len(CONTENT) - 1}/{len(CONTENT)}"
    faults(server, {"content": CONTENT + OTHER, "chunked": True, "content_range": described})
    with pytest.raises(DetcliError, match="sent more than the 300000 bytes"):
        fetch(url)
    assert names(cache_path(url)) == []


@pytest.mark.parametrize("described", ["bytes 0-299999/300000", "bytes 100000-400000/300000", "nonsense", "bytes */3"])
def test_partial_answer_that_does_not_fit_is_not_used(server, url, described):
    stop_at(server, url, 100_000)
    faults(server, {"content_range": described})
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", None]


def test_without_a_length_a_hash_is_needed(server, url):
    faults(server, {"length": None})
    assert get(url).read_bytes() == CONTENT
    for fault in ({"length": None}, {"chunked": True}):
        other = server.put("other.pth", CONTENT, faults=[fault])
        with pytest.raises(DetcliError, match="does not say how long the file is"):
            fetch(other)


def test_chunked_answer_that_breaks_off_is_continued(server, url):
    faults(server, {"chunked": True, "cut": 150_000})
    assert get(url).read_bytes() == CONTENT
    assert ranges(server)[1].startswith("bytes=")


def test_compressed_answer_is_refused(server, url):
    faults(server, {"headers": {"Content-Encoding": "gzip"}})
    assert "as gzip, which was not asked for" in str(get(url))
    assert server.asked[0].headers["Accept-Encoding"] == "identity"


def test_web_page_in_place_of_a_file(server, url):
    faults(server, {"content": b"<html>log in", "headers": {"Content-Type": "text/html; charset=utf-8"}})
    with pytest.raises(DetcliError, match="sent a web page"):
        fetch(url)


def test_answer_that_is_no_http(server, url):
    faults(server, {"status": 204})
    with pytest.raises(DetcliError, match="answered 204 No Content"):
        fetch(url)


def test_link_to_a_page_is_named_with_what_to_do():
    link = "https://drive.google.com/open?id=1q6z"
    with pytest.raises(DetcliError, match=r"is a page for a browser, not a file.*put the file at") as caught:
        fetch(link)
    assert link in str(caught.value)
    path = cache_path(link)
    path.write_bytes(CONTENT)
    assert fetch(link) == path


def test_without_a_network_the_way_out_is_named_at_once(server, capsys):
    url = server.nobody("weights.pth")
    with pytest.raises(DetcliError) as caught:
        fetch(url)
    message = str(caught.value)
    assert "trying again" not in capsys.readouterr().err
    assert url in message
    assert str(cache_path(url)) in message
    assert "\n" not in message


def test_unwritable_cache_is_named(url, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DetcliError, match="cache"):
        fetch(url)


def test_full_disk_is_named_and_no_mirror_asked(server, url):
    code = (
        "import resource, sys; from detcli.download import Request, download; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "print(*download([Request(sys.argv[1], tuple(sys.argv[1:]))]))"
    )
    mirror = server.put("mirror.pth", CONTENT)
    done = subprocess.run([sys.executable, "-c", code, url, mirror], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"can't write {cache_path(url)}: File too large.\n"
    assert len(server.asked) == 1
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


def test_timeout_that_is_no_number(url, monkeypatch):
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("DETCLI_TIMEOUT", text)
        with pytest.raises(DetcliError, match=f"DETCLI_TIMEOUT is '{text}', no number of seconds"):
            fetch(url)


def test_cached_asks_no_server(server, url):
    request = Request(url, (), DIGEST[:8], "sha256")
    assert cached(request) is None
    assert get(url) == cached(request)
    assert len(server.asked) == 1


def test_several_at_a_time_and_each_file_once(server):
    urls = [server.put(f"{number}.pth", bytes([number]) * 100_000, faults=[{"stall": 10}]) for number in range(6)]
    requests = [Request(url) for url in urls]
    outcomes = download([*requests, requests[0]], jobs=3)
    assert outcomes == [*map(cache_path, urls), cache_path(urls[0])]
    assert server.busiest >= 3
    assert all(server.ranges(f"{number}.pth") == [None, "bytes=10-"] for number in range(6))


def test_one_that_fails_does_not_stop_the_others(server, url):
    missing, fine = download([Request(server.url("missing.pth")), Request(url)], jobs=1)
    assert "404" in str(missing)
    assert fine.read_bytes() == CONTENT


def test_a_line_a_file_without_a_terminal(server, url, capsys):
    get(url)
    fetch(server.put("plain.pth", CONTENT))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "weights.pth: 300.0 kB, SHA-256 as published",
        "plain.pth: 300.0 kB, no published hash",
    ]


def test_two_processes_download_once(server, url):
    server.watch = lambda asked: time.sleep(0.1)
    code = f"from detcli.download import fetch; print(fetch({url!r}).stat().st_size)"
    environment = {**os.environ, "DETCLI_TIMEOUT": "30"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [str(len(CONTENT))] * 2
    assert ranges(server) == [None]


def test_interrupted_download_ends_at_once(server, url):
    faults(server, {"stall": 1000})
    # Where the tests run in the background, children would ignore the signal.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from detcli.download import fetch; fetch({url!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env={**os.environ, "DETCLI_TIMEOUT": "60"}
    )
    part = beside(cache_path(url), "part")
    server.wait_until(lambda: part.exists() and part.stat().st_size == 1000)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert fetch(url).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-"]


def test_needs_no_torch():
    code = "import sys, detcli.download; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
