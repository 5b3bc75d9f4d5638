"""``detcli zoo download``, and downloads that are killed at any moment."""

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detcli.download import beside, cache_path

AHEAD = 200_000
"""How many bytes the server sends before they are written, so that it is not the connection that holds the file."""

WEIGHTS = random.Random(0).randbytes(200_000)
LOG = b'{"epoch": 1}\n' * 100
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
MD5 = hashlib.md5(WEIGHTS).hexdigest()

pytestmark = pytest.mark.usefixtures("cache")


def weights(url, digest=DIGEST[:8], kind="sha256"):
    return {"kind": "weights", "url": url, "hash": digest, "hash_kind": kind}


@pytest.fixture
def zoo(server, made_up_zoo):
    """Two rows: one with weights, a log and a mirror; one of another source, of which the MD5 is known."""
    url = server.put(f"v2/atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth", WEIGHTS)
    log = {"kind": "log", "url": server.put("v2/atss_r50_fpn_1x_coco.log.json", LOG)}
    mirrors = [(server.url("v2"), server.url("mirror"))]
    made_up_zoo.write([{"id": "mmdet-v2/atss_r50_fpn_1x_coco", "files": [weights(url), log]}], mirrors=mirrors)
    rows = [
        {"id": f"detectron2/mask_rcnn_R_50_FPN_{sched}", "sched": sched, "files": files}
        for sched, files in {
            "1x": [
                weights(server.put(f"d2/1/model_final_{MD5[:6]}.pkl", WEIGHTS), MD5[:6], "md5"),
                {"kind": "metrics", "url": server.put("d2/1/metrics.json", LOG)},
            ],
            "3x": [
                weights(server.put("d2/3/model_final_ffffff.pkl", WEIGHTS), "ffffff", "md5"),
                {"kind": "metrics", "url": server.put("d2/3/metrics.json", LOG + b"more")},
            ],
            "9x": [],
        }.items()
    ]
    made_up_zoo.write(rows, source="detectron2")
    return server


def path_of(server, path):
    return cache_path(server.url(path))


def test_prints_where_the_file_is(detcli, zoo):
    status, out, err = detcli("zoo", "download", "ATSS_r50_fpn_1x")
    path = path_of(zoo, f"v2/atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth")
    assert (status, out) == (0, f"{path}\n")
    assert err == f"{path.name}: 200.0 kB, SHA-256 as published\n"
    assert path.read_bytes() == WEIGHTS
    assert detcli("zoo", "download", "ATSS_r50_fpn_1x") == (0, f"{path}\n", "")
    assert len(zoo.asked) == 1


def test_all_files_of_several_rows(detcli, zoo):
    status, out, _ = detcli("zoo", "download", "--all", "mask_rcnn_R_50_FPN_1x", "atss_r50_fpn_1x_coco", "--jobs", "2")
    assert status == 0
    assert [Path(line).read_bytes() for line in out.splitlines()] == [WEIGHTS, LOG, WEIGHTS, LOG]


def test_unknown_and_ambiguous_names(detcli, zoo, made_up_zoo):
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_2x_coco")
    assert status == 2
    assert "atss_r50_fpn_1x_coco" in err
    made_up_zoo.write(
        [{"id": "mmdet-v0/atss_r50_fpn_1x_coco", "files": [weights(zoo.url("v0.pth"))]}], source="mmdet-v0"
    )
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x_coco")
    assert status == 2
    assert "mmdet-v0/atss_r50_fpn_1x_coco" in err
    assert "mmdet-v2/atss_r50_fpn_1x_coco" in err
    assert zoo.asked == []


def test_row_without_weights(detcli, zoo):
    status, _, err = detcli("zoo", "download", "mask_rcnn_R_50_FPN_9x")
    assert status == 1
    assert "links no weights for detectron2/mask_rcnn_R_50_FPN_9x. See `detcli zoo show" in err


def test_one_of_several_fails(detcli, zoo):
    status, out, err = detcli("zoo", "download", "mask_rcnn_R_50_FPN_3x", "atss_r50_fpn_1x")
    assert status == 1
    assert out.endswith(f"-{DIGEST[:8]}.pth\n")
    assert f"its MD5 is {MD5[:8]}…, not ffffff…" in err
    assert not path_of(zoo, "d2/3/model_final_ffffff.pkl").exists()


def test_several_of_several_fail(detcli, zoo):
    zoo.files.clear()
    status, _, err = detcli("zoo", "download", "mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_50_FPN_1x")
    assert status == 1
    assert err.count("404 Not Found") == 2
    assert err.endswith("error: 2 of 2 files could not be had.\n")


def test_mirror_of_the_document(detcli, zoo):
    name = f"atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth"
    zoo.put(f"mirror/{name}", WEIGHTS)
    zoo.put(f"v2/{name}", b"another file")
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x")
    assert status == 0
    assert f"{zoo.url(f'v2/{name}')}: it sent another file: its SHA-256 is" in err
    assert path_of(zoo, f"v2/{name}").read_bytes() == WEIGHTS
    assert not path_of(zoo, f"mirror/{name}").exists()


def test_own_mirror_is_asked_first(detcli, zoo):
    name = f"atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth"
    zoo.put(f"mine/{name}", WEIGHTS)
    option = f"{zoo.url('v2/')}={zoo.url('mine/')}"
    assert detcli("zoo", "download", "atss_r50_fpn_1x", "--mirror", option)[0] == 0
    assert [asked.path for asked in zoo.asked] == [f"/mine/{name}"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("https://elsewhere=http://127.0.0.1:9", "no URL begins with 'https://elsewhere'"),
        ("elsewhere", "'elsewhere' is not PREFIX=URL"),
        ("https://a=/folder", "is not PREFIX=URL"),
    ],
)
def test_mirror_that_is_none(detcli, zoo, option, said):
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x", "--mirror", option)
    assert status == 2
    assert said in err
    assert zoo.asked == []


def test_mirrors_stand_for_whole_names_only(detcli, zoo):
    prefix = zoo.url("v2/atss")
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x", "--mirror", f"{prefix}={zoo.url('mine')}")
    assert (status, "no URL begins with" in err) == (2, True)


def test_offline(detcli, zoo):
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x", "--offline")
    assert status == 1
    assert "`detcli zoo bundle mmdet-v2/atss_r50_fpn_1x_coco -o atss_r50_fpn_1x_coco.tar`" in err
    assert "`detcli zoo import atss_r50_fpn_1x_coco.tar`" in err
    assert zoo.asked == []
    assert detcli("zoo", "download", "atss_r50_fpn_1x")[0] == 0
    assert detcli("zoo", "download", "atss_r50_fpn_1x", "--offline")[0] == 0
    assert len(zoo.asked) == 1


def test_offline_and_damaged(detcli, zoo):
    _, out, _ = detcli("zoo", "download", "atss_r50_fpn_1x")
    Path(out.strip()).write_bytes(b"x")
    status, _, err = detcli("zoo", "download", "atss_r50_fpn_1x", "--offline")
    assert status == 1
    assert "is damaged" in err


def test_dest(detcli, zoo, tmp_path):
    dest = tmp_path / "a" / "b"
    order = ("zoo", "download", "--all", "atss_r50_fpn_1x", "mask_rcnn_R_50_FPN_1x", "--dest", dest)
    status, out, _ = detcli(*order)
    names = [
        f"atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth",
        "atss_r50_fpn_1x_coco.log.json",
        f"model_final_{MD5[:6]}.pkl",
        "mask_rcnn_R_50_FPN_1x_metrics.json",
    ]
    assert (status, out.splitlines()) == (0, [str(dest / name) for name in names])
    assert sorted(path.name for path in dest.iterdir()) == sorted(names)
    (dest / names[1]).write_text("mine")
    status, _, err = detcli(*order)
    assert status == 1
    assert "is there already, and another file. Choose another --dest, or replace it with --overwrite." in err
    assert (dest / names[1]).read_text() == "mine"
    assert detcli(*order, "--overwrite")[0] == 0
    assert (dest / names[1]).read_bytes() == LOG
    (dest / names[0]).write_bytes(b"changed in place")
    assert detcli("zoo", "verify")[0] == 0, "a copy that is changed leaves the cache alone"


def test_link_to_google_drive(detcli, made_up_zoo):
    url = "https://drive.google.com/file/d/1/view?usp=sharing"
    made_up_zoo.write([{"id": "mmdet-v2/regnet", "files": [{"kind": "weights", "url": url}]}])
    status, _, err = detcli("zoo", "download", "regnet")
    assert status == 1
    assert f"{url} is a page for a browser, not a file" in err


def test_code_in_a_file_is_not_run(detcli, made_up_zoo, server, tmp_path):
    evil = f"cposix\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode()
    url = server.put("evil.pkl", evil)
    made_up_zoo.write([{"id": "mmdet-v2/evil", "files": [{"kind": "weights", "url": url}]}])
    assert detcli("zoo", "download", "evil", "--dest", tmp_path / "dest")[0] == 0
    assert detcli("zoo", "verify", "evil")[0] == 0
    assert not (tmp_path / "ran").exists()


def test_needs_no_torch(zoo, made_up_zoo):
    code = made_up_zoo.command[2].replace(
        "main()", "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()"
    )
    command = [sys.executable, "-c", code, *made_up_zoo.command[3:], "zoo", "download", "atss_r50_fpn_1x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


@pytest.fixture(scope="module")
def download_in_a_process():
    """Return a function that downloads in another process, hands its pid to `started` and returns how it ended."""
    helper = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "*", "DETCLI_TIMEOUT": "30"},
    )

    def run(url, sha256, cache, started=lambda pid: None, call=0):
        print(json.dumps({"url": url, "sha256": sha256, "cache": cache, "call": call}), file=helper.stdin, flush=True)
        started(int(helper.stdout.readline()))
        print("go", file=helper.stdin, flush=True)
        return json.loads(helper.stdout.readline())

    yield run
    helper.stdin.close()
    assert helper.wait(30) == 0


def test_killed_at_ten_random_points(server, cache, download_in_a_process):
    """Only what was on its way when a process was killed is sent again, and no byte more than once more than needed."""
    content = random.Random(1).randbytes(12 << 20)
    digest = hashlib.sha256(content).hexdigest()
    url = server.put("models/large.pth", content)
    path, part = cache_path(url), beside(cache_path(url), "part")
    chance = random.Random(2)
    points = [len(content) * (number + chance.uniform(0, 0.7)) / 10 for number in range(10)]
    on_its_way = 0
    for number, point in enumerate(points):
        pid = []

        def pace(asked, point=point, pid=pid):
            server.wait_until(lambda: asked.start + asked.sent <= size(part) + AHEAD)
            if asked.start + asked.sent >= point:
                os.kill(pid[0], signal.SIGKILL)
                raise ConnectionResetError

        server.watch = pace
        written, sent = size(part), server.sent
        assert download_in_a_process(url, digest, str(cache), pid.append)["status"] == -signal.SIGKILL
        server.settle()
        assert len(server.asked) == number + 1
        assert not path.exists()
        on_its_way += server.sent - sent - (size(part) - written)
    server.watch = lambda asked: None
    ended = download_in_a_process(url, digest, str(cache))
    assert ended["outcome"] == str(path)
    assert path.read_bytes() == content
    assert server.sent == len(content) + on_its_way
    edges = sorted(
        [(asked.start, 1) for asked in server.asked] + [(asked.start + asked.sent, -1) for asked in server.asked]
    )
    depths = list(itertools.accumulate(step for _, step in edges))
    assert max(depths) <= 2
    assert on_its_way <= len(points) * (AHEAD + server.piece)
    assert server.asked[-1].start >= points[-1] - AHEAD - server.piece


def size(path):
    return path.stat().st_size if path.exists() else 0


def test_killed_at_any_step_of_the_code(server, cache, download_in_a_process):
    content = WEIGHTS
    count = download_in_a_process(server.put("straight.pth", content), DIGEST, str(cache))["calls"]
    assert count > 100
    for number, call in enumerate(random.Random(3).sample(range(1, count), 30)):
        url = server.put(f"{number}.pth", content)
        path = cache_path(url)
        ended = download_in_a_process(url, DIGEST, str(cache), call=call)
        assert ended["status"] in (-signal.SIGKILL, 0)
        server.settle()
        assert not path.exists() or path.read_bytes() == content
        ended = download_in_a_process(url, DIGEST, str(cache))
        assert ended["outcome"] == str(path)
        assert path.read_bytes() == content
        left = sorted(other.name for other in path.parent.glob(f".*{number}.pth*") if f".{number}.pth" in other.name)
        assert [name for name in left if not name.endswith(".lock")] == [f".{number}.pth.json"]
