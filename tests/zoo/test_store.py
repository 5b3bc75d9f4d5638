"""``detcli zoo verify``, ``cache``, ``bundle`` and ``import``."""

import hashlib
import json
import random
import tarfile

import pytest

from detcli import download as module
from detcli.download import beside, cache_path, fetch, read_record

WEIGHTS = random.Random(0).randbytes(100_000)
OTHER = random.Random(1).randbytes(100_000)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
NAME = f"atss_r50_fpn_1x_coco-{DIGEST[:8]}.pth"
ATSS = "mmdet-v2/atss_r50_fpn_1x_coco"

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def url(server):
    return server.put(f"v2/{NAME}", WEIGHTS)


@pytest.fixture
def log(server):
    return server.put("v2/atss.log.json", b"{}\n")


@pytest.fixture(autouse=True)
def zoo(url, log, made_up_zoo):
    files = [
        {"kind": "weights", "url": url, "hash": DIGEST[:8], "hash_kind": "sha256"},
        {"kind": "log", "url": log},
    ]
    made_up_zoo.write([{"id": ATSS, "files": files}, {"id": "mmdet-v2/retinanet_r50_fpn_1x_coco"}])


@pytest.fixture
def downloaded(detcli, zoo):
    assert detcli("zoo", "download", ATSS, "--all")[0] == 0


@pytest.fixture
def bundle(detcli, downloaded, tmp_path, monkeypatch):
    """A bundle of the row's two files, before an empty cache."""
    out = tmp_path / "models.tar"
    assert detcli("zoo", "bundle", ATSS, "--all", "--offline", "-o", out)[0] == 0
    monkeypatch.setenv("DETCLI_CACHE", str(tmp_path / "empty"))
    return out


def cached_files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


# verify


def test_verify(detcli, downloaded, cache, url, log):
    host = cache_path(url).parts[-3]
    assert detcli("zoo", "verify") == (0, f"ok       {host}/v2/atss.log.json\nok       {host}/v2/{NAME}\n", "")
    cache_path(log).write_bytes(b"[]\n")
    status, out, err = detcli("zoo", "verify", ATSS)
    assert status == 1
    assert out.startswith(f"damaged  {host}/v2/atss.log.json: its SHA-256 is ")
    assert out.endswith(f"\nok       {host}/v2/{NAME}\n")
    remove = f"detcli zoo cache remove {host}/v2/atss.log.json"
    assert err == f"error: 1 of 2 files is damaged. Run `{remove}`, and download it again.\n"
    assert detcli("zoo", "verify", NAME)[0] == 0
    assert detcli("zoo", "cache", "remove", f"{host}/v2/atss.log.json", "--yes")[0] == 0
    assert detcli("zoo", "download", ATSS, "--all")[0] == 0
    assert detcli("zoo", "verify")[0] == 0


def test_verify_holds_weights_to_the_published_hash_and_the_record(detcli, downloaded, url):
    path = cache_path(url)
    record = beside(path, "json")
    beside(path, "json").write_text(json.dumps({"url": url, "sha256": hashlib.sha256(OTHER).hexdigest(), "size": 1}))
    assert detcli("zoo", "verify", ATSS)[0] == 1
    record.unlink()
    assert detcli("zoo", "verify", ATSS)[0] == 0
    path.write_bytes(OTHER)
    assert detcli("zoo", "verify", ATSS)[0] == 1


def test_verify_knows_nothing_of_files_put_there_by_hand(detcli, cache):
    (cache / "host").mkdir(parents=True)
    (cache / "host" / "file.pth").write_bytes(b"x")
    status, out, _ = detcli("zoo", "verify")
    assert status == 0
    assert out.startswith("unknown  host/file.pth: no hash was published")


def test_verify_of_other_downloads(detcli, server, cache):
    path = fetch(server.put("backbone.pth", OTHER))
    assert detcli("zoo", "verify")[:2] == (0, f"ok       {path.relative_to(cache).as_posix()}\n")
    path.write_bytes(WEIGHTS)
    assert detcli("zoo", "verify")[0] == 1


def test_verify_what_is_not_there(detcli):
    assert detcli("zoo", "verify") == (0, "", "")
    status, _, err = detcli("zoo", "verify", "atss_r50_fpn_1x")
    assert (status, f"no file of {ATSS} is in the cache. Run `detcli zoo download {ATSS}`." in err) == (1, True)
    assert detcli("zoo", "verify", "atss_r50_fpn_2x")[0] == 2


# cache


def test_cache_path_list_and_size(detcli, downloaded, cache, server, url):
    assert detcli("zoo", "cache", "path")[1] == f"{cache}\n"
    assert detcli("zoo", "cache", "size")[1] == "100.0 kB in 2 files\n"
    server.put("x.pth", OTHER, faults=[{"cut": 2000}] * 9)
    with pytest.raises(module.DetcliError):
        fetch(server.url("x.pth"))
    host = cache_path(url).parts[-3]
    assert detcli("zoo", "cache", "list")[1].splitlines() == [
        "    size  row                            file",
        f"  2.0 kB                                 {host}/x.pth (unfinished)",
        f"     3 B  {ATSS}  {host}/v2/atss.log.json",
        f"100.0 kB  {ATSS}  {host}/v2/{NAME}",
    ]
    assert detcli("zoo", "cache", "size")[1] == "102.0 kB in 3 files\n"


def test_cache_that_is_empty(detcli):
    assert detcli("zoo", "cache", "list") == (0, "", "")
    assert detcli("zoo", "cache", "size")[1] == "0 B in 0 files\n"


def test_cache_remove_asks(detcli, downloaded, cache, url):
    for answer in ("n\n", ""):
        assert detcli("zoo", "cache", "remove", ATSS, answer=answer)[0] != 0
        assert cache_path(url).exists()
    status, out, _ = detcli("zoo", "cache", "remove", ATSS, answer="y\n")
    assert status == 0
    assert "Remove these 2 files?" in out
    assert cached_files(cache) == []


def test_cache_remove_one_file_and_an_unfinished_one(detcli, downloaded, server, cache, log):
    server.put("x.pth", OTHER, faults=[{"cut": 2000}] * 9)
    with pytest.raises(module.DetcliError):
        fetch(server.url("x.pth"))
    assert detcli("zoo", "cache", "remove", "x.pth", "atss.log.json", "--yes")[0] == 0
    assert cached_files(cache) == [f".{NAME}.json", NAME]
    status, _, err = detcli("zoo", "cache", "remove", "retinanet_r50_fpn_1x", "--yes")
    assert (status, "no file of mmdet-v2/retinanet_r50_fpn_1x_coco is in the cache" in err) == (1, True)


# bundle and import


def test_bundle_and_import(detcli, bundle, url, log, server):
    asked = len(server.asked)
    assert detcli("zoo", "import", bundle) == (0, f"imported  {url}\nimported  {log}\n", "")
    assert cache_path(url).read_bytes() == WEIGHTS
    assert read_record(cache_path(url)) == module.Record(url, DIGEST, len(WEIGHTS))
    assert detcli("zoo", "verify")[0] == 0
    assert detcli("zoo", "download", ATSS, "--all", "--offline")[0] == 0
    assert detcli("zoo", "import", bundle) == (0, f"was there  {url}\nwas there  {log}\n", "")
    assert len(server.asked) == asked


def test_bundle_is_a_plain_tar_that_is_always_the_same(detcli, bundle, tmp_path, monkeypatch, cache):
    with tarfile.open(bundle, "r:") as tar:
        assert tar.getnames() == ["manifest.json", f"0001/{NAME}", "0002/atss.log.json"]
        assert tar.extractfile(f"0001/{NAME}").read() == WEIGHTS
    monkeypatch.setenv("DETCLI_CACHE", str(cache))
    again = tmp_path / "again.tar"
    assert detcli("zoo", "bundle", ATSS, "--all", "--offline", "-o", again)[0] == 0
    assert again.read_bytes() == bundle.read_bytes()


def test_bundle_downloads_what_is_missing(detcli, tmp_path):
    out = tmp_path / "models.tar"
    status, _, err = detcli("zoo", "bundle", ATSS, "--offline", "-o", out)
    assert (status, "is not in the cache" in err, out.exists()) == (1, True, False)
    status, said, _ = detcli("zoo", "bundle", ATSS, "-o", out)
    assert (status, said) == (0, f"{out}: 1 file. Read it with `detcli zoo import {out}`.\n")
    status, _, err = detcli("zoo", "bundle", ATSS, "-o", out)
    assert (status, "is there already" in err) == (1, True)
    assert detcli("zoo", "bundle", ATSS, "-o", out, "--overwrite")[0] == 0


def test_import_never_replaces_a_good_file(detcli, bundle, url, log):
    path = cache_path(log)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    status, out, err = detcli("zoo", "import", bundle)
    assert (status, out) == (1, f"imported  {url}\n")
    assert "another file than the bundle's: it stays" in err
    assert path.read_bytes() == b"mine"


def test_import_replaces_a_damaged_file(detcli, bundle, url):
    path = cache_path(url)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    assert detcli("zoo", "import", bundle)[0] == 0
    assert path.read_bytes() == WEIGHTS


def described(name, url, content, **options):
    return {
        "member": name,
        "url": url,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        **options,
    }


def member(name, content=b"", /, **options):
    """Return a tar header with any field, and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in options.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def write(path, manifest, *members, end=bytes(1024)):
    """Write a bundle by hand; a list as `manifest` is that of its files."""
    if isinstance(manifest, list):
        manifest = json.dumps({"format": "detcli bundle 1", "files": manifest}).encode()
    path.write_bytes(member("manifest.json", manifest) + b"".join(members) + end)
    return path


def test_import_of_another_file_than_the_manifest_says(detcli, tmp_path, url, cache):
    out = write(tmp_path / "b.tar", [described("1", url, WEIGHTS)], member("1", OTHER))
    status, _, err = detcli("zoo", "import", out)
    assert (status, f"has another file for {url}: its SHA-256 is" in err) == (1, True)
    assert cached_files(cache) == []


def test_import_of_another_file_than_was_published(detcli, tmp_path, url, cache):
    out = write(tmp_path / "b.tar", [described("1", url, OTHER)], member("1", OTHER))
    status, _, err = detcli("zoo", "import", out)
    assert (status, f"not {DIGEST[:8]}…" in err) == (1, True)
    assert cached_files(cache) == []


def test_import_of_a_log_with_another_hash_than_in_the_manifest(detcli, tmp_path, log, cache):
    out = write(tmp_path / "b.tar", [described("1", log, WEIGHTS)], member("1", OTHER))
    status, _, err = detcli("zoo", "import", out)
    assert (status, "as in the manifest" in err) == (1, True)
    assert cached_files(cache) == []


@pytest.mark.parametrize(
    "unknown", ["https://download.pytorch.org/models/resnet50-0676ba61.pth", "file:///etc/passwd", "../../x", ""]
)
def test_import_of_a_file_that_no_row_has(detcli, tmp_path, url, unknown):
    files = [described("1", unknown, OTHER), described("2", url, WEIGHTS)]
    status, out, err = detcli(
        "zoo", "import", write(tmp_path / "b.tar", files, member("1", OTHER), member("2", WEIGHTS))
    )
    assert (status, out) == (1, f"imported  {url}\n")
    assert f"no published row has the file {unknown}" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is not a plain file"),
        ({"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "is not a plain file"),
        ({"type": tarfile.CHRTYPE}, "is not a plain file"),
        ({"type": tarfile.FIFOTYPE}, "is not a plain file"),
        ({"type": tarfile.DIRTYPE}, "is not a plain file"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "is not a plain file"),
        ({"type": tarfile.XHDTYPE}, "is not a plain file"),
        ({"size": -512}, "which it can't be"),
        ({"size": 1 << 40}, "which it can't be"),
        ({"size": 10}, "is no bundle of `detcli zoo bundle`: invalid header"),
        ({"name": "/etc/passwd"}, "does not hold what its manifest says"),
        ({"name": "../../1"}, "does not hold what its manifest says"),
        ({"name": "2"}, "does not hold what its manifest says"),
    ],
)
def test_import_of_members_that_are_not_what_they_should_be(detcli, tmp_path, url, cache, options, said):
    out = write(tmp_path / "b.tar", [described("1", url, WEIGHTS)], member("1", WEIGHTS, **options))
    status, _, err = detcli("zoo", "import", out)
    assert (status, said in err, cached_files(cache)) == (1, True, []), err


def test_import_of_members_that_are_there_twice_or_not_at_all(detcli, tmp_path, url, cache):
    one = member("1", WEIGHTS)
    for members, said in [
        ((one, one), "'1' is there twice"),
        ((), "does not hold"),
        ((one, member("2", OTHER)), "does not hold"),
        ((one, member("manifest.json", b"{}")), "is there twice"),
    ]:
        out = write(tmp_path / "b.tar", [described("1", url, WEIGHTS)], *members)
        status, _, err = detcli("zoo", "import", out)
        assert (status, said in err, cached_files(cache)) == (1, True, []), err


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": "detcli bundle 2", "files": []}',
        b'{"format": "detcli bundle 1"}',
        b'{"format": "detcli bundle 1", "files": [1]}',
        b'{"format": "detcli bundle 1", "files": [{"member": "1", "url": 1, "sha256": 1, "size": "1"}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_import_with_a_manifest_that_is_none(detcli, tmp_path, manifest):
    status, _, err = detcli("zoo", "import", write(tmp_path / "b.tar", manifest))
    assert status == 1
    assert "b.tar is no bundle of `detcli zoo bundle`: " in err
    assert err.count("\n") == 1
    assert len(err) < 500


def test_import_of_a_manifest_with_a_url_twice(detcli, tmp_path, url):
    files = [described("1", url, WEIGHTS), described("2", url, WEIGHTS)]
    out = write(tmp_path / "b.tar", files, member("1", WEIGHTS), member("2", WEIGHTS))
    assert "has a URL twice" in detcli("zoo", "import", out)[2]


def test_import_of_what_is_cut_off_or_no_tar(detcli, bundle, tmp_path):
    content = bundle.read_bytes()
    broken = tmp_path / "broken.tar"
    for length in [0, 100, 512, 700, 2000, 50_000, len(content) // 512 * 512 - 20 * 512]:
        broken.write_bytes(content[:length])
        status, _, err = detcli("zoo", "import", broken)
        assert (status, "broken.tar" in err) == (1, True), length
        assert not any(path.suffix == ".pth" for path in tmp_path.glob("empty/**/*")), length
    broken.write_bytes(random.Random(3).randbytes(5000))
    assert detcli("zoo", "import", broken)[0] == 1
    assert detcli("zoo", "import", tmp_path / "missing.tar")[0] == 1
    assert detcli("zoo", "import", tmp_path)[0] == 1
