"""Files that are damaged, or made to run something or to take all memory: each is read or refused, no more."""

import contextlib
import importlib
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from detcli.convert.reader import StandIn, read
from detcli.errors import DetcliError

MEMORY = 100 << 20
TEN_GB = 10 << 30


def resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def bounded(seconds=1.0):
    """Hold what is read to a second and 100 MB, whether it can be read or not."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, begin = resident("VmRSS"), time.process_time()
    yield
    assert time.process_time() - begin < seconds
    assert resident("VmHWM") - before < MEMORY


def refused(path, message=""):
    with bounded(), pytest.raises(DetcliError, match=message) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 500 + len(str(path))


# Operations, written by hand:


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def row(*items):
    return b"(" + b"".join(items) + b"t"


def write(tmp_path, *operations):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + b"".join(operations) + b".")
    return path


FORMATS = ["zip", "stream", "pickle"]


def stored(path, value, kind, pickler=pickle):
    if kind == "pickle":
        path.write_bytes(pickler.dumps(value, 2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    return path


class Reduced:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


ATTACKS = {
    "os.system": (os.system, "touch marker"),
    "eval": (eval, "open('marker', 'w')"),
    "exec": (exec, "open('marker', 'w')"),
    "open": (open, "marker", "w"),
    "import": (__import__, "marker"),
    "importlib": (importlib.import_module, "marker"),
    "subprocess": (subprocess.Popen, ["touch", "marker"]),
    "chmod": (os.mkdir, "marker"),
    "getattr": (getattr, os, "system"),
    "getattr of a class": (getattr, Path, "touch"),
    "type": (type, "marker", (), {}),
    "torch.load": (torch.load, "marker"),
    "torch.hub": (torch.hub.load, "marker"),
    "numpy": (np.load, "marker"),
    "pickle": (pickle.loads, pickle.dumps(1)),
    "interpreter": (sys.exit, 1),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Whatever ran would leave a file, or a name in Python's modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "attack.py").write_text(
        "open('marker', 'w')\nclass Class:\n    __init__ = __setstate__ = __reduce__ = append = exit\n"
    )
    yield
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "a.pkl") == ["attack.py"]
    assert "attack" not in sys.modules


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_runs_code_is_refused(tmp_path, marker, monkeypatch, kind, attack):
    function, *arguments = ATTACKS[attack]
    if attack == "getattr":
        # The module itself can't be pickled by Python, which would not hinder others.
        path = write(tmp_path, name("builtins", "getattr"), row(name("importlib", "os"), text("system")), b"R")
    else:
        path = stored(tmp_path / "a.pkl", {"state_dict": {}, "meta": Reduced(function, *arguments)}, kind)
    refused(path, r"a\.pkl can't be read as weights: it names '.*', which is refused: .*\. Don't use this file")


def test_what_runs_code_is_refused_wherever_it_stands(tmp_path, marker):
    array = np.array([Reduced(os.system, "touch marker")], dtype=object)
    refused(stored(tmp_path / "a.pkl", array, "pickle"), "which is refused")
    refused(write(tmp_path, b"(S'touch marker'\nios\nsystem\n"), "'os.system', which is refused")
    refused(write(tmp_path, b"(", name("posix", "system"), text("touch marker"), b"o"), "'posix.system'")
    refused(write(tmp_path, text("posix"), text("system"), b"\x93"), "'posix.system'")
    refused(write(tmp_path, name("types", "CodeType"), b"(K\x00tR"), r"'types\.CodeType'")
    refused(write(tmp_path, text("logging"), text("os.system"), b"\x93"), r"'logging\.os\.system'")
    refused(write(tmp_path, text("os"), text("a\nb"), b"\x93"), r"'os\.a\\nb'")
    refused(
        write(tmp_path, name("copy_reg", "_reconstructor"), row(name("os", "system"), name("os", "x"), b"N"), b"R"),
        "'os.system'",
    )
    for part in ("system", "path.system"):
        names = row(name("attack", "Class"), text(part))
        assert isinstance(read(write(tmp_path, name("builtins", "getattr"), names, b"R")), StandIn)


@pytest.mark.parametrize(
    "operations",
    [
        [name("attack", "Class"), b")R"],
        [name("attack", "Class"), b")\x81"],
        [name("attack", "Class"), b")}\x92"],
        [b"(iattack\nClass\n"],
        [b"(", name("attack", "Class"), b"o"],
        [name("copy_reg", "_reconstructor"), row(name("attack", "Class"), name("__builtin__", "object"), b"N"), b"R"],
    ],
)
def test_objects_are_not_made(tmp_path, marker, operations):
    """Neither their constructors nor what sets their state, items or parts."""
    state = [b"}", text("marker"), b"K\x01sb", b"(K\x01K\x02u", b"(K\x01e", b"K\x01a"]
    found = read(write(tmp_path, *operations, *state))
    assert type(found) is StandIn
    assert found.name == "attack.Class"
    with pytest.raises((TypeError, AttributeError)):
        found.name = "other"


@pytest.mark.parametrize(
    "operations",
    [
        [b"\x82\x01"],  # a number that Python's registry of extensions would turn into a name
        [b"\x84\x01\x00\x00\x00"],
        [b"Pfile\n"],
        [text("file"), b"Q"],
        [b"\x97"],
        [b"K\x01\x98"],
        [b"\xff"],
        [b"K\x01)R"],
        [text("os.system"), b")R"],
        [b"K\x01}b"],
        [b"K\x01K\x01a"],
        [b"]K\x01K\x01s"],
        [b"K\x01K\x02"],
        [b"h\x07"],
        [b"R"],
        [b"t"],
        [b""],
        [b"(K\x01d"],
        [name("collections", "OrderedDict"), row(row(row(b"K\x01"))), b"R"],
        [name("__builtin__", "bytes"), row(number(TEN_GB)), b"R"],
        [name("__builtin__", "list"), row(name("__builtin__", "range"), row(number(TEN_GB)), b"R"), b"R"],
        [name("_codecs", "encode"), row(text("a"), text("rot13")), b"R"],
        [name("a" * 1000, "b")],
        [b"I" + b"9" * 5000 + b"\n"],
        [b"S'unfinished\n"],
        [name("torch._utils", "_rebuild_tensor_v2"), row(b"K\x01", b"K\x01", b")", b")"), b"R"],
    ],
)
def test_operations_that_make_no_sense(tmp_path, operations):
    refused(write(tmp_path, *operations), r"a\.pkl can't be read as weights")


def archive(path, pickled, **files):
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        for key, content in files.items():
            zipped.writestr(f"archive/data/{key}", content)
    return path


def tensor(kind="FloatStorage", key="k", count=4, offset=0, size=(4,), stride=(1,)):
    """Return the pickle of a tensor on a storage."""
    identity = row(text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    sizes = (row(*map(number, size)), row(*map(number, stride)))
    return name("torch._utils", "_rebuild_tensor_v2") + row(identity + b"Q", number(offset), *sizes) + b"R"


def test_tensors_of_handmade_archives_are_read(tmp_path):
    path = archive(tmp_path / "a.pth", tensor(size=(2, 2), stride=(2, 1)), k=struct.pack("<4f", 0, 1, 2, 3))
    assert read(path).tolist() == [[0, 1], [2, 3]]
    path = archive(tmp_path / "a.pth", tensor(kind="BoolStorage"), k=b"\0\1\2\xff")
    assert read(path).view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"count": TEN_GB, "size": (TEN_GB,)},
        {"count": 2**62},
        {"count": 2**65, "size": (2**65,)},
        {"count": 3},
        {"count": -1},
        {"size": (5,)},
        {"size": (2,), "stride": (4,)},
        {"size": (-1,)},
        {"size": (TEN_GB, 4), "stride": (0, 1)},
        {"size": (2**63, 0), "stride": (1, 1)},
        {"size": (2**40, 2**40, 0), "stride": (1, 1, 1)},
        {"size": (1,) * 1000, "stride": (1,) * 1000},
        {"stride": (-1,)},
        {"stride": (2**62,)},
        {"stride": (1, 1)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**64},
        {"key": "other"},
        {"key": "../data.pkl"},
        {"kind": "QInt8Storage"},
        {"kind": "FloatTensor"},
    ],
    ids=str,
)
def test_tensors_that_their_storage_does_not_hold(tmp_path, changes):
    refused(archive(tmp_path / "a.pth", tensor(**changes), k=bytes(16)), r"a\.pth can't be read as weights")


@pytest.mark.parametrize(
    "identity",
    [
        row(text("other"), name("torch", "FloatStorage"), text("k"), text("cpu"), number(4)),
        row(text("storage"), text("torch.FloatStorage"), text("k"), text("cpu"), number(4)),
        row(text("storage"), name("torch", "FloatStorage"), b"K\x01", text("cpu"), number(4)),
        row(text("storage"), name("torch", "FloatStorage"), text("k"), text("cpu"), b"G" + struct.pack(">d", 4)),
        row(text("storage"), name("torch", "FloatStorage"), text("k")),
        row(text("storage"), name("torch", "FloatStorage"), text("k"), text("cpu"), number(4), row(text("view"))),
        text("storage"),
        b"K\x01",
    ],
)
def test_persistent_ids_of_the_wrong_kind(tmp_path, identity):
    refused(archive(tmp_path / "a.pth", identity + b"Q", k=bytes(16)), r"a\.pth can't be read as weights")


def test_a_storage_is_not_two_things(tmp_path):
    refused(archive(tmp_path / "a.pth", b"(" + tensor() + tensor(kind="IntStorage") + b"l", k=bytes(16)), "two ways")


def numpy_array(raw, shape, code="f4"):
    dtype = name("numpy", "dtype") + row(text(code), b"K\x00", b"K\x01") + b"R"
    made = (
        name("numpy.core.multiarray", "_reconstruct") + row(name("numpy", "ndarray"), row(b"K\x00"), text("b")) + b"R"
    )
    return made + row(b"K\x01", row(*map(number, shape)), dtype, b"\x89", raw) + b"b"


@pytest.mark.parametrize(
    ("raw", "shape"),
    [
        (text("abcd"), (2,)),
        (text("abcd"), (TEN_GB,)),
        (text("abcd"), (-1,)),
        (text(""), (0, 2**70)),
        (text("abcd"), (2**63, 2)),
        (text("\u20ac"), (1,)),
    ],
)
def test_arrays_that_their_bytes_do_not_fill(tmp_path, raw, shape):
    assert read(write(tmp_path, numpy_array(text("\0\0\x80?"), (1,)))).tolist() == [1.0]
    refused(write(tmp_path, numpy_array(raw, shape)), r"a\.pkl can't be read as weights")


@pytest.mark.parametrize(
    "operations",
    [
        b"X" + struct.pack("<I", 2**32 - 1),
        b"T" + struct.pack("<I", 2**31 - 1),
        b"B" + struct.pack("<I", 2**32 - 1),
        b"\x8d" + struct.pack("<Q", TEN_GB),
        b"\x8e" + struct.pack("<Q", TEN_GB),
        b"\x96" + struct.pack("<Q", 2**63),
        b"\x8b" + struct.pack("<I", 2**31 - 1),
    ],
)
def test_lengths_beyond_the_file(tmp_path, operations):
    refused(write(tmp_path, operations), r"a\.pkl can't be read as weights")


def test_places_in_the_memo_take_no_memory(tmp_path):
    with bounded():
        places = b"r" + struct.pack("<I", 2**32 - 1) + b"p18446744073709551615\n\x95" + struct.pack("<Q", TEN_GB)
        assert read(write(tmp_path, b"]", places)) == []


@pytest.mark.parametrize(
    "operations",
    [
        b")" + b"\x85" * 50_000,
        b"(" * 50_000 + b"t" * 50_000,
        b"]" * 50_000 + b"a" * 49_999,
        b"]q\x000" + b"]h\x00aq\x000" * 50_000 + b"h\x00",
        b")" + b"\x85" * 50_000 + b"q\x00}h\x00K\x01s",
        b"]q\x00h\x00a",
        b"}q\x00K\x01h\x00s",
        b")" + b"2\x86" * 60,
        b")" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s",
    ],
    ids=range(9),
)
def test_nesting(tmp_path, operations):
    """Deeper than functions may call themselves, within itself, or 2^60 objects when written out or hashed."""
    refused(write(tmp_path, operations), "its containers hold themselves|is neither a text nor a number")


def test_work_beyond_the_size_of_the_file(tmp_path):
    """What a few bytes repeat: copies of long lists and texts, keys with equal hashes, tensors on one storage."""
    million = b"(" + b"K\x01" * 300_000 + b"lq\x00"
    copies = (name("__builtin__", "list") + b"h\x00\x85R0") * 10_000
    refused(write(tmp_path, million, copies), "more steps")
    refused(write(tmp_path, b"\x8f" * 1_100_000), "more steps")
    long = text("a" * 1_000_000) + b"q\x00"
    refused(
        write(tmp_path, long, (name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R0") * 10_000), "own size"
    )
    same_hash = b"".join(number(factor * (2**61 - 1)) + b"N" for factor in range(1, 50_000))
    refused(write(tmp_path, b"}(", same_hash, b"u"), "too many keys")
    storage = row(text("storage"), name("torch", "FloatStorage"), text("k"), text("cpu"), number(1_000_000)) + b"Qq\x00"
    view = (
        name("torch._utils", "_rebuild_tensor_v2")
        + row(b"h\x00K\x00", number(1_000_000) + b"\x85", b"K\x01\x85")
        + b"R"
    )
    refused(archive(tmp_path / "a.pth", b"(" + storage + view * 1000 + b"l", k=bytes(4_000_000)), "own size")


def test_files_within_files_within_files(tmp_path):
    within = b""
    for _ in range(3):
        within = name("torch.storage", "_load_from_bytes") + b"C" + bytes([len(within)]) + within + b"\x85R."
    refused(write(tmp_path, within[:-1]), "files within files")


def entry(zipped, filename, content=b"", **changes):
    info = zipfile.ZipInfo(filename)
    info.filename = filename  # as it is
    zipped.writestr(info, content, **changes)


@pytest.mark.parametrize(
    "filename",
    [
        "../data.pkl",
        "/etc/passwd",
        "archive/../../data",
        "archive/data/../0",
        "archive\\data",
        "archive//data",
        "archive/./data",
        "other/data.pkl",
        "C:/data",
        "archive/",
        "a" * 300,
    ],
)
def test_names_in_archives_that_lead_elsewhere(tmp_path, filename):
    path = archive(tmp_path / "a.pth", b"K\x01")
    assert read(path) == 1
    with zipfile.ZipFile(path, "a") as zipped:
        entry(zipped, filename)
    refused(path, "is no name of PyTorch's. Don't use this file")
    assert [child.name for child in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_what_they_seem(tmp_path):
    path = archive(tmp_path / "a.pth", b"K\x01")
    with zipfile.ZipFile(path, "a") as zipped:
        entry(zipped, "archive/data.pkl", b"K\x02.")
    refused(path, "it has two files 'archive/data.pkl'")
    path = archive(tmp_path / "a.pth", tensor(count=TEN_GB // 40))
    with zipfile.ZipFile(path, "a") as zipped:
        entry(zipped, "archive/data/k", bytes(1 << 20), compress_type=zipfile.ZIP_DEFLATED)
    refused(path, "its files are compressed or encrypted")
    raw = bytearray(archive(path, b"K\x01").read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    refused(path, "its files are compressed or encrypted")


def test_files_of_an_archive_that_overlap(tmp_path):
    """One begins within another, so that their bytes are more than the file has."""
    inner = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 9000, 9000, 14, 0) + b"archive/data/b"
    path = archive(tmp_path / "a.pth", b"K\x01", a=inner + bytes(9000))
    raw = path.read_bytes()
    begin, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    sizes = (len(inner) + 9000).to_bytes(4, "little"), (9000).to_bytes(4, "little")
    offset = raw.index(b"archive/data/a") - 30, raw.index(inner)
    listed = raw[raw.rindex(b"PK\x01\x02") : end]
    for old, new in [sizes, (b"data/a", b"data/b"), [struct.pack("<I", place) for place in offset]]:
        assert old in listed
        listed = listed.replace(old, new)
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, end - begin + len(listed), begin, 0)
    path.write_bytes(raw[:end] + listed + last)
    refused(path, "its files overlap")


@pytest.mark.parametrize("place", [10, 12, 14, 16, 18, 20])
def test_claims_at_the_end_of_an_archive(tmp_path, place):
    """Two bytes each of how many files are listed, how long the list is, where it begins, and how long a comment is."""
    path = archive(tmp_path / "a.pth", b"K\x01")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, len(raw) - 22 + place, 2**16 - 1)
    path.write_bytes(raw)
    refused(path, r"a\.pth can't be read as weights")


def test_sizes_in_the_list_of_an_archive(tmp_path):
    path = archive(tmp_path / "a.pth", b"K\x01", k=b"")
    raw = bytearray(path.read_bytes())
    for size in (200, 2**32 - 2):
        struct.pack_into("<2I", raw, raw.rindex(b"PK\x01\x02") + 20, size, size)
        path.write_bytes(raw)
        refused(path, "its file 'archive/data/k' reaches beyond its end")


@pytest.mark.parametrize("field", [20, 24, 28, 30, 42])
def test_claims_in_the_list_of_an_archive(tmp_path, field):
    """Sizes (packed, as is), the lengths of the name and of what follows it, and the place."""
    path = archive(tmp_path / "a.pth", b"K\x01")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, raw.index(b"PK\x01\x02") + field, 2**16 - 1)
    path.write_bytes(raw)
    refused(path, r"a\.pth can't be read as weights")


def test_claims_in_the_header_of_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w": {"dtype": "F32", "shape": [%d], "data_offsets": [0, %d]}}'
    for size, content in [
        (TEN_GB, b"{}"),
        (2**64 - 1, b"{}"),
        (100, b"{}"),
        (len(claim := header % (TEN_GB, 4 * TEN_GB)), claim),
        (len(claim := header % (2**62, 8)), claim + bytes(8)),
    ]:
        path.write_bytes(struct.pack("<Q", size) + content)
        refused(path, "it is no valid safetensors file")


def sample(path, kind):
    """A small checkpoint in each of the formats."""
    torch.manual_seed(0)
    tensors = {"backbone.conv1.weight": torch.randn(4, 3, 3), "bias": torch.randn(4).half(), "n": torch.tensor(1)}
    meta = {"epoch": 12, "CLASSES": ("person", "dog"), "lr": [0.01, 0.001], "big": 2**70, "set": {1, 2}}
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {name: value.numpy() for name, value in tensors.items()}, **meta}, 2))
    else:
        stored(path, {"state_dict": tensors, "meta": meta}, kind)
    read(path)
    return path.read_bytes()


def read_or_refused(path, content):
    """Read `content`, whatever it is; return whether it could be read."""
    path.write_bytes(content)
    begin = time.process_time()
    try:
        read(path)
        return True
    except DetcliError:
        return False
    finally:
        assert time.process_time() - begin < 1.0


@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_truncated_files_are_refused(tmp_path, kind):
    path = tmp_path / "a.pth"
    whole = sample(path, kind)
    with bounded(seconds=50):
        for place in random.Random(0).sample(range(len(whole)), 50):
            assert not read_or_refused(path, whole[:place]), place
        assert not read_or_refused(path, whole + b"more")


@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_flipped_bits(tmp_path, kind):
    path = tmp_path / "a.pth"
    whole = sample(path, kind)
    chance = random.Random(1)
    places = [chance.randrange(8 * len(whole)) for _ in range(200)]
    with bounded(seconds=200):
        results = [read_or_refused(path, flipped(whole, place)) for place in places]
    assert not all(results)


def test_flipped_bits_of_weights_in_an_archive(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    first = whole.index(bytes(4000))
    for place in random.Random(2).sample(range(8 * first, 8 * (first + 4000)), 20):
        path.write_bytes(flipped(whole, place))
        refused(path, "its file 'data/0' is damaged")


def test_archives_without_checksums_are_read(tmp_path):
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(path)["w"].tolist() == [1, 1, 1]


def flipped(content, place):
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_tensors_are_not_copied(tmp_path, kind):
    tensors = {"w": torch.ones(16 << 20)}
    path = tmp_path / "a.pth"
    if kind == "zip":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    del tensors
    before = resident("VmRSS")
    with bounded():
        found = read(path)
        assert resident("VmRSS") - before < 16 << 20
    before = resident("RssAnon")
    assert found["w"].sum() == 16 << 20
    assert resident("RssAnon") - before < 16 << 20


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_in_pickles_are_copied_once(tmp_path, protocol):
    """Where they are not aligned; Python 3 at protocol 2 writes bytes as text, which is more."""
    path = tmp_path / "a.pkl"
    size = 32 << 20
    path.write_bytes(pickle.dumps({"w": np.ones(size // 4, "f4")}, protocol))
    before = resident("RssAnon")
    found = read(path)
    assert resident("RssAnon") - before < 1.2 * size
    assert found["w"].sum() == size // 4
