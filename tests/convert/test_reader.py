"""What is read: each format of weights, against the library that writes it."""

import argparse
import collections
import io
import pathlib
import pickle
import pickletools
import sys
import time
import zipfile
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch

from detcli.convert.reader import StandIn, read
from detcli.convert.reader_names import ADMITTED, DICTS, FORMER_LIBRARY, NUMPY_TYPES, REFUSED, STAND_INS, refusal
from detcli.convert.reader_objects import LONG
from detcli.convert.reader_pickle import OPERATIONS, STOP
from detcli.errors import DetcliError

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
]


def content():
    """What a checkpoint may hold."""
    torch.manual_seed(0)
    tensors = {
        "weight": torch.randn(3, 4, 5),
        "transposed": torch.randn(4, 5).t(),
        "part": torch.arange(12).view(3, 4)[1:, ::2],
        "expanded": torch.ones(1).expand(4),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "scalar": torch.tensor(3),
        "dimensions": torch.randn((2,) * 12),
        "empty": torch.empty(0, 3),
        **{str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES},
    }
    meta = {
        "CLASSES": ("person", "Fußgänger", "\U0001f6b2"),
        "numbers": [0, 1, 255, 256, 65536, -1, -(2**31), 2**63, -(2**100), 0.5, -1e300, True, False, None],
        "sets": [{1, 2}, frozenset("ab"), set()],
        "more": [b"bytes", bytearray(b"ab"), 1 + 2j, slice(1, None), range(3), torch.float16, torch.Size([2, 3])],
        ("a", 1): {},
        2: [[], ()],
    }
    return {"state_dict": collections.OrderedDict(tensors), "meta": meta}


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor | np.ndarray):
        expected = torch.as_tensor(expected).detach()
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
        assert found.data_ptr() % found.element_size() == 0
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is (list if isinstance(expected, list) else tuple)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == expected
        assert type(found) is (bytes if type(expected) is bytearray else type(expected))


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def pickled(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_pytorch(tmp_path, zipped, protocol):
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    path = saved(tmp_path / "a.pth", content(), **options)
    assert_same(read(path), content())
    if zipped:  # torch.load can't read all that torch.save writes in the older format
        assert_same(read(path), torch.load(path, weights_only=False))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles(tmp_path, protocol):
    """Tensors in them are files of PyTorch within the file."""
    assert_same(read(pickled(tmp_path / "a.pkl", content(), protocol)), content())


def test_safetensors(tmp_path):
    tensors = {"weight": torch.randn(3, 4), "half": torch.ones(2).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "a.bin")
    found = read(tmp_path / "a.bin")
    assert_same({name: found.pop(name) for name in tensors}, tensors)
    assert not found


ARRAYS = {
    **{code: np.arange(6).reshape(2, 3).astype(code) for code in NUMPY_TYPES},
    "big-endian": np.arange(3, dtype=">f4"),
    "big-endian complex": np.arange(3).astype(">c8") * 1j,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "empty": np.zeros((0, 2)),
    "scalar": np.array(3.0),
    "long": np.arange(LONG, dtype="f4"),
}
NUMBERS = {"float": np.float32(0.5), "int": np.int64(-3), "bool": np.bool_(True), "big-endian": np.array(7, ">i4")[()]}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_arrays_and_numbers_of_numpy(tmp_path, protocol, module):
    raw = pickle.dumps({"arrays": ARRAYS, "same": ARRAYS["f4"], "numbers": NUMBERS}, protocol)
    if protocol < 4:  # names have no length before them
        raw = raw.replace(b"numpy._core", module).replace(b"numpy.core", module)
    (tmp_path / "a.pkl").write_bytes(raw)
    found = read(tmp_path / "a.pkl")
    assert_same(found["arrays"], {name: array.astype(array.dtype.newbyteorder("=")) for name, array in ARRAYS.items()})
    assert found["same"] is found["arrays"]["f4"]
    assert_same(found["numbers"], {name: number.item() for name, number in NUMBERS.items()})


class Python2(pickle._Pickler):
    """Writes what Python 2 wrote, which had one class of strings for texts and bytes."""

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        if self.proto == 0:
            self.write(b"S" + repr(raw).removeprefix("b").encode() + b"\n")
        elif len(raw) < 256:
            self.write(b"U" + bytes([len(raw)]) + raw)
        else:
            self.write(b"T" + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch: ClassVar = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_pickles_of_python_2(tmp_path, protocol):
    value = {
        "blobs": {"conv1_w": ARRAYS["f4"], "fc_w": ARRAYS["long"], "n": np.float32(2)},
        "cfg": "a: 'b'\n\xe9" * 900,
    }
    file = io.BytesIO()
    Python2(file, protocol).dump(value)
    assert b"_codecs" not in file.getvalue()
    raw = file.getvalue().replace(b"numpy._core", b"numpy.core").replace(b"cbuiltins\n", b"c__builtin__\n")
    (tmp_path / "a.pkl").write_bytes(raw)
    assert_same(read(tmp_path / "a.pkl"), value | {"blobs": value["blobs"] | {"n": 2.0}})


def test_objects_of_python_2(tmp_path):
    """Instances of classes old and new, and a dict that is derived from."""
    (tmp_path / "a.pkl").write_bytes(
        b"(lp0\n(iUserDict\nUserDict\np1\n(dp2\nba.".replace(b"UserDict\nUserDict", b"project\nOld")[:-2]
        + b"accopy_reg\n_reconstructor\n(cutils.collections\nAttrDict\nc__builtin__\ndict\n(dS'LR'\nF0.5\nstRa"
        + b"ccopy_reg\n_reconstructor\n(cproject\nNew\nc__builtin__\nobject\nNtR(dbaL7L\na(cproject\nOther\nI1\noa."
    )
    old, config, new, number, other = read(tmp_path / "a.pkl")
    assert [old.name, new.name, other.name] == ["project.Old", "project.New", "project.Other"]
    assert (config, number) == ({"LR": 0.5}, 7)


class ConfigDict(dict):
    """As MMEngine's, which gives its items to its constructor."""

    def __reduce__(self):
        return type(self), (dict(self),)


class CfgNode(dict):
    """As yacs', whose attributes are no items."""

    def __init__(self, items=()):
        super().__init__(items)
        self.__dict__["__immutable__"] = False


class AddictDict(dict):
    """As addict's, which repeats its items as arguments and as its state."""

    def __getnewargs__(self):
        return tuple(self.items())

    def __getstate__(self):
        return self

    def __setstate__(self, state):
        self.update(state)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [
        (ConfigDict, "mmengine.config.config", "ConfigDict"),
        (CfgNode, "yacs.config", "CfgNode"),
        (AddictDict, "addict.addict", "Dict"),
    ],
)
def test_dicts_of_configs_are_dicts(tmp_path, monkeypatch, protocol, kind, module, name):
    kind = type(name, (kind,), {"__module__": module})
    parts = module.split(".")
    for count in range(len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[: count + 1]), argparse.Namespace(**{name: kind}))
    value = kind({"model": kind({"type": "RetinaNet", "strides": [kind({"a": 1})]})})
    assert_same(
        read(pickled(tmp_path / "a.pkl", value, protocol)), {"model": {"type": "RetinaNet", "strides": [{"a": 1}]}}
    )


class HistoryBuffer:
    """As MMEngine's, which holds its own functions."""

    def mean(self):
        pass

    def __init__(self):
        self.functions = {"mean": HistoryBuffer.mean}
        self.items = [1.0]


@pytest.mark.parametrize("protocol", range(6))
def test_other_objects_are_stand_ins_without_content(tmp_path, protocol):
    values = {
        "HistoryBuffer": HistoryBuffer(),
        "Namespace": argparse.Namespace(lr=0.1),
        "PosixPath": pathlib.PurePosixPath("a"),
        "ndarray": np.array([{}, HistoryBuffer()], dtype=object),
        "generic": np.datetime64("2020-01-01"),
        "dtype": np.dtype("f4"),
        "generator": np.random.default_rng(0),
    }
    found = read(pickled(tmp_path / "a.pkl", values, protocol))
    assert all(isinstance(value, StandIn) for value in found.values())
    assert found["HistoryBuffer"].name == f"{__name__}.HistoryBuffer"
    assert found["Namespace"].name == "argparse.Namespace"
    assert found["ndarray"].name == "numpy.ndarray"


def test_whole_models_are_stand_ins(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": torch.nn.Linear(2, 2), "epoch": 1})
    found = read(path)
    assert (found["model"].name, found["epoch"]) == ("torch.nn.modules.linear.Linear", 1)


def test_tensors_that_share_memory_still_do(tmp_path):
    weight = torch.zeros(4)
    for zipped in (True, False):
        path = saved(tmp_path / "a.pth", {"a": weight, "b": weight[1:]}, _use_new_zipfile_serialization=zipped)
        found = read(path)
        found["a"][1] = 5.0
        assert found["b"][0] == 5.0
        assert read(path)["a"][1] == 0.0, "the file is not written to"


def big_endian(path, tensors, zipped):
    """Write what PyTorch on a big-endian machine does."""
    saved(path, {name: tensor.clone() for name, tensor in tensors.items()}, _use_new_zipfile_serialization=zipped)
    swaps = [(tensor.numpy().tobytes(), tensor.numpy().byteswap().tobytes()) for tensor in tensors.values()]
    if zipped:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, stored in (files | {"a/byteorder": b"big"}).items():
                archive.writestr(name, dict(swaps).get(stored, stored))
        return
    raw = path.read_bytes()
    counts = [tensor.numel().to_bytes(8, "little") for tensor in tensors.values()]
    for old, new in [*swaps, *((count, count[::-1]) for count in counts), (b"endianq\x02\x88", b"endianq\x02\x89")]:
        assert raw.count(old) == 1
        raw = raw.replace(old, new)
    path.write_bytes(raw)


@pytest.mark.parametrize("zipped", [True, False])
def test_big_endian_files_of_pytorch(tmp_path, zipped):
    tensors = {
        "floats": torch.randn(7),
        "complex": torch.randn(5, dtype=torch.complex64),
        "longs": torch.arange(9) * 3**30,
    }
    big_endian(tmp_path / "a.pth", tensors, zipped)
    assert_same(read(tmp_path / "a.pth"), tensors)


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_long_byte_strings_are_views_of_the_file(tmp_path, protocol):
    raw = bytes(range(256)) * (LONG // 256)
    found = read(pickled(tmp_path / "a.pkl", [raw, raw[1:]], protocol))
    assert [type(value) for value in found] == [memoryview, bytes]
    assert bytes(found[0]) == raw
    assert bytes(found[1]) == raw[1:]


def test_a_comment_does_not_hide_the_files_of_an_archive(tmp_path):
    path = saved(tmp_path / "a.pth", {"w": torch.ones(2)})
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + len(comment := b"PK\x05 a comment").to_bytes(2, "little") + comment)
    assert_same(read(path), {"w": torch.ones(2)})


def test_archives_of_zip64(tmp_path, monkeypatch):
    """As files larger than 4 GiB are: sizes and offsets are in extra fields, the end has a record of its own."""
    path = saved(tmp_path / "a.pth", {"w": torch.arange(5.0)})
    archive = zipfile.ZipFile(path)
    files = {name: archive.read(name) for name in archive.namelist()}
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    with zipfile.ZipFile(path, "w") as archive:
        for name, stored in files.items():
            archive.writestr(name, stored)
    assert b"PK\x06\x06" in path.read_bytes()
    assert_same(read(path), {"w": torch.arange(5.0)})


def test_thousands_of_tensors_are_read_at_once(tmp_path):
    tensors = {f"backbone.layers.{number}.weight": torch.ones(2) for number in range(3000)}
    for zipped in (True, False):
        path = saved(tmp_path / "a.pth", tensors, _use_new_zipfile_serialization=zipped)
        begin = time.process_time()
        assert len(read(path)) == 3000
        assert time.process_time() - begin < 1.0


def test_every_operation_of_pickles_is_decided_on():
    named = {pickletools.code2op[chr(code)].name for code in OPERATIONS} | {pickletools.code2op[chr(STOP)].name}
    left_out = {"PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert named | left_out == {operation.name for operation in pickletools.opcodes}
    assert not named & left_out


def test_every_name_is_decided_on_once():
    tables = [ADMITTED, DICTS, STAND_INS, REFUSED]
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert not any(refusal(name) for table in (ADMITTED, DICTS, STAND_INS) for name in table)
    assert all(refusal(f"{name}.part") for name in (*REFUSED, *FORMER_LIBRARY))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", r"a\.pth can't be read as weights: it is empty\. Download it again"),
        ("a.pth", b"\n<!DOCTYPE html><html>", "it is a web page. Download the file itself"),
        ("a.pkl", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS.*git lfs pull"),
        ("a.pkl", b"\x1f\x8b\x08", "it is compressed. Unpack it with gunzip"),
        ("a.pth", b"weights", "as a pickle, it makes no sense at byte 1"),
        ("a.h5", b"\x89HDF\r\n", "it is an HDF5 file"),
        ("a.safetensors", b"weights, weights", "it is no valid safetensors file"),
        ("a.tar", b"\0" * 257 + b"ustar\0" + b"\0" * 249, "it is a tar archive"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DetcliError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    with pytest.raises(DetcliError, match=r"there is no file .*none\.pth"):
        read(tmp_path / "none.pth")
    with pytest.raises(DetcliError, match="there is no file"):
        read(tmp_path)


def test_programs_and_other_archives_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02K\x01.")
        archive.writestr("a/code/__torch__.py", b"def forward", compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(DetcliError, match=r"it is a TorchScript program\. Save its state dict"):
        read(tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    with pytest.raises(DetcliError, match="it is a zip archive, but not one of PyTorch's"):
        read(tmp_path / "a.npz")
