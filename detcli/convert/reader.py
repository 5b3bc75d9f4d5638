"""Files of weights that others wrote, read without running anything of them.

PyTorch's zip archives (since 1.6) and its stream of pickles before that, plain pickles of Python 2 and 3 with arrays of
numpy, and safetensors; which it is, the content says. Tensors lie on the file, which is mapped into memory. Of a
pickle only what detcli.convert.reader_names admits is made; no length that a file claims is believed, and what reading
takes is bounded by the size of the file.

Sources: torch/serialization.py of PyTorch; PKWARE's APPNOTE.TXT for zip.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from detcli.convert.reader_objects import HOSTILE, Budget, Objects, StandIn, Storage, Unreadable, let_go
from detcli.convert.reader_pickle import Unpickler
from detcli.errors import DetcliError

__all__ = ["StandIn", "read"]

STEPS = 1_000_000
"""Steps of all pickles of a file, at most a second; a tensor with its name takes about 50."""

TIMES_LARGER = 4
"""How often a file may hold its own size in tensors: some are in it under two names."""

ALWAYS = 16 << 20
"""Bytes that tensors of a small file may take."""

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""What PyTorch's stream of pickles begins with."""

LONGEST_COMMENT = 65535
"""Bytes after the end of a zip archive."""

UNPACK = "If you trust it, unpack it and give the file within it."

OTHERS = {
    b"<": ("it is a web page", "Download the file itself."),
    b"version https://git-lfs": ("it is a pointer of Git LFS", "Fetch the file itself with `git lfs pull`."),
    b"\x1f\x8b": ("it is compressed", "Unpack it with gunzip."),
    b"BZh": ("it is compressed", "Unpack it with bunzip2."),
    b"\xfd7zXZ": ("it is compressed", "Unpack it with unxz."),
    b"\x89HDF": ("it is an HDF5 file", "Keras wrote it; detcli does not read those."),
    b"\x93NUMPY": ("it is a single array of numpy", "Give the whole checkpoint."),
}
"""First bytes of files that are often taken for weights, what they are and what to do."""


def read(path: Path) -> Any:
    """Return what a file of weights holds: plain containers, numbers, texts and tensors on the CPU.

    Arrays of numpy become tensors; dicts of every kind become dict. Byte strings of 64 KiB and more are memoryviews of
    the file. An object of any other class is a `StandIn` without content. Tensors change with the file until they are
    copied. Raises `DetcliError` for a file that is missing, damaged, of another kind, or that names what it must not.
    """
    try:
        if not path.is_file():
            raise DetcliError(f"there is no file {path}. Give the path of a .pth, .pkl or .safetensors file.")
        with path.open("rb") as file:
            # A copy on write: who changes a tensor does not change the file.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if path.stat().st_size else b"")
        return _read(path, content)
    except OSError as error:
        raise DetcliError(f"{path} can't be read as weights: {error.strerror or error}. See that it may be.") from error
    except Unreadable as error:
        raise DetcliError(f"{path} can't be read as weights: {error}. {error.advice}") from error


def _read(path: Path, content: memoryview) -> Any:
    if not content:
        raise Unreadable("it is empty", "Download it again.")
    start = bytes(content[:512])
    for first, (what, advice) in OTHERS.items():
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(first):
            raise Unreadable(what, advice)
    if start[257:262] == b"ustar":
        raise Unreadable("it is a tar archive", "Unpack it; if PyTorch 0.1 wrote it, save it again with a newer one.")
    budget = Budget(STEPS, TIMES_LARGER * len(content) + ALWAYS)
    if start.startswith(b"PK\x03\x04"):
        return _archive(content, budget)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _safetensors(path)
    return _pickles(content, budget)


def _safetensors(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise Unreadable(f"it is no valid safetensors file ({reason[:120]})") from error


def _pickles(content: memoryview, budget: Budget, nested: bool = False) -> Any:
    """Read a pickle, or PyTorch's stream of them: magic number, protocol, system, object, keys; then its storages."""
    objects = Objects(budget, None if nested else _nested)
    machine = Unpickler(content, objects)
    value = machine.load()
    if type(value) is not int or value != MAGIC:
        objects.finish()
        if machine.position < len(content):
            raise Unreadable(f"{len(content) - machine.position} bytes follow its end")
        return value
    protocol, system = machine.load(), machine.load()
    if protocol != PROTOCOL or not isinstance(system, dict):
        raise Unreadable(f"its format {protocol!a:.20} is not PyTorch's {PROTOCOL}")
    big_endian = system.get("little_endian") is False
    storages = objects.storages = {}
    value = machine.load()
    objects.storages = None
    keys = machine.load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Unreadable("its storages are not those of its tensors")
    for key in keys:
        _put(storages[key], machine, big_endian)
    if machine.position < len(content):
        raise Unreadable(f"{len(content) - machine.position} bytes follow its end")
    objects.finish()
    return value


def _put(storage: Storage, machine: Unpickler, big_endian: bool) -> None:
    """Give `storage` its content, which follows in the stream: how many elements it has, then those."""
    count = int.from_bytes(machine.take(8), "big" if big_endian else "little")
    if count != storage.count:
        raise Unreadable(f"storage {storage.key!a:.40} has {count} elements, not {storage.count}")
    storage.fill(machine.take(count * storage.dtype.itemsize), big_endian)


def _nested(content: memoryview, budget: Budget) -> Any:
    return _pickles(content, budget, nested=True)


def _archive(content: memoryview, budget: Budget) -> Any:
    """Read PyTorch's archive: a pickle, and a file for each of the storages that it names."""
    files = _entries(content)
    if "data.pkl" not in files:
        raise Unreadable("it is a zip archive, but not one of PyTorch's", UNPACK)
    objects = Objects(budget, _nested)
    storages = objects.storages = {}
    machine = Unpickler(files["data.pkl"], objects)
    value = machine.load()
    if machine.position < len(machine.data):
        raise Unreadable(f"{len(machine.data) - machine.position} bytes follow the end of its pickle")
    big_endian = bytes(files.get("byteorder", b"little")) == b"big"
    for key, storage in storages.items():
        if f"data/{key}" not in files:
            raise Unreadable(f"storage {key!a:.40} is missing")
        storage.fill(files[f"data/{key}"], big_endian)
    objects.finish()
    return value


def _entries(content: memoryview) -> dict[str, memoryview]:
    """Return the files of a zip archive that compresses none, without the name of the folder that all are in.

    Raises `Unreadable` unless each is there once, whole, as it is, and beside the others.
    """
    try:
        start, end, count = _directory(content)
        files: dict[str, memoryview] = {}
        checksums: dict[str, int] = {}
        folders = set()
        position = start
        for _ in range(count):
            entry = struct.unpack_from("<4s6H3I5H2I", content, position)
            signature, _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size, comment_size = entry[
                :13
            ]
            if signature != b"PK\x01\x02":
                raise Unreadable("its list of files is damaged")
            raw_name = bytes(content[position + 46 : position + 46 + name_size])
            name = raw_name.decode()
            extra = content[position + 46 + name_size : position + 46 + name_size + extra_size]
            size, packed, offset = _large(extra, size, packed, entry[16])
            position += 46 + name_size + extra_size + comment_size
            folder, _, inner = name.partition("/")
            folders.add(folder)
            if inner == "constants.pkl" or inner.startswith("code/"):
                raise Unreadable("it is a TorchScript program", "Save its state dict instead, with torch.save.")
            if method or flags & 1 or packed != size:
                raise Unreadable("its files are compressed or encrypted, as PyTorch's never are", UNPACK)
            if "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/")) or len(folders) > 1:
                raise Unreadable(f"it has a file {name!a:.80}, which is no name of PyTorch's", HOSTILE)
            local = struct.unpack_from("<4s5H3I2H", content, offset)
            begin = offset + 30 + local[9] + local[10]
            if local[0] != b"PK\x03\x04" or bytes(content[offset + 30 : offset + 30 + local[9]]) != raw_name:
                raise Unreadable(f"its list of files has {name!a:.80} where it is not")
            if begin + size > start:
                raise Unreadable(f"its file {name!a:.80} reaches beyond its end")
            if inner in files:
                raise Unreadable(f"it has two files {name!a:.80}", HOSTILE)
            files[inner] = content[begin : begin + size]
            checksums[inner] = checksum
        if position != end:
            raise Unreadable("its list of files is damaged")
    except (struct.error, UnicodeDecodeError) as error:
        raise Unreadable("its list of files is damaged") from error
    if sum(map(len, files.values())) > len(content):
        raise Unreadable("its files overlap", HOSTILE)
    for name, file in files.items():
        # PyTorch writes 0 where it was told not to compute them.
        if checksums[name] not in (0, zlib.crc32(file)):
            raise Unreadable(f"its file {name!a:.80} is damaged: the checksum is another")
        let_go(file)
    return files


def _directory(content: memoryview) -> tuple[int, int, int]:
    """Return where a zip archive's list of files begins and ends and how many it has."""
    tail = bytes(content[-22 - LONGEST_COMMENT :])
    found = tail.rfind(b"PK\x05\x06")
    if found < 0:
        raise Unreadable("its end, with the list of its files, is missing")
    end = len(content) - len(tail) + found
    _, _, _, _, count, size, start, comment = struct.unpack_from("<4s4H2IH", content, end)
    if end + 22 + comment != len(content):
        raise Unreadable("other bytes follow its end")
    if end >= 20 and bytes(content[end - 20 : end - 16]) == b"PK\x06\x07":
        (end,) = struct.unpack_from("<Q", content, end - 12)
        signature, *_, count, size, start = struct.unpack_from("<4sQ2H2I4Q", content, end)
        if signature != b"PK\x06\x06":
            raise Unreadable("its list of files is damaged")
    return start, start + size, count


def _large(extra: memoryview, *sizes: int) -> tuple[int, ...]:
    """Return `sizes`, where those that fill 32 bits are instead in the extra field of type 1, in order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            large = iter(struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8]))
            return tuple(next(large, (size,))[0] if size == 0xFFFFFFFF else size for size in sizes)
        extra = extra[4 + length :]
    return sizes
