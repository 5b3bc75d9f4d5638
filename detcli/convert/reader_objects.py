"""What the names, calls and persistent ids in a pickle become: plain data, tensors, or stand-ins.

Which name becomes what is written in detcli.convert.reader_names; here are the functions that make it. Nothing is
imported, and nothing of the file is called. What they make is paid for from a `Budget`, since a few bytes may name a
copy of all that came before them.

Sources: torch/_utils.py and torch/serialization.py of PyTorch; numpy/_core/src/multiarray/methods.c of numpy.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detcli.convert.reader_names import ADMITTED, DICTS, MODULES, NUMPY_TYPES, STORAGES, TYPES, refusal

LONG = 1 << 16
"""Bytes from which on a byte string is a view: of the file, where it is in there as it is."""

SMALL_KEY = 1 << 60
"""Larger numbers, as tuples, can be made to collide in a dict; a few are admitted."""

LONGEST_NAME = 300
MOST_DIMENSIONS = 32

TENSOR = 10
"""Steps that a tensor counts for: it takes more memory than other objects."""

DAMAGED = "It is cut short, damaged or no file of weights: download it again."
HOSTILE = "Don't use this file; get it from where it was published."


class Unreadable(Exception):
    """What is wrong with a file, in half a sentence, and what to do about it."""

    def __init__(self, reason: str, advice: str = DAMAGED) -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(slots=True)
class Budget:
    """What may still be spent on a file: steps, bytes of tensors and copies, keys that can be made to collide."""

    steps: int
    bytes: int
    odd_keys: int = 1000

    def spend(self, steps: int, size: int = 0) -> None:
        """Take some of it away. Raises `Unreadable` when too little is left."""
        self.steps -= steps
        self.bytes -= size
        if self.steps < 0:
            raise Unreadable("it takes more steps to read than a checkpoint does", HOSTILE)
        if self.bytes < 0:
            raise Unreadable("it claims many times its own size", HOSTILE)


@dataclass(frozen=True, slots=True, eq=False)
class StandIn:
    """A class or function that a pickle names ("module.Class"), or an object of it; it holds and does nothing."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class NumpyType(StandIn):
    """A numpy.dtype: the code of its kind and size ("f4"), and its byte order, the last of `orders`."""

    code: str
    orders: list[str] = field(default_factory=lambda: ["<"])


@dataclass(frozen=True, slots=True, eq=False)
class UnfilledArray(StandIn):
    """An array of numpy whose content comes later, and where the pickle's memo has it."""

    memorised: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Storage(StandIn):
    """Memory that tensors share: `count` elements of `dtype`, whose bytes come from elsewhere in the file."""

    key: str
    dtype: torch.dtype
    count: int
    raw: list[tuple[memoryview, bool]] = field(default_factory=list)
    flat: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def fill(self, raw: memoryview, big_endian: bool) -> None:
        """Set the bytes. Raises `Unreadable` unless there are as many as the pickle said."""
        if len(raw) != self.count * self.dtype.itemsize:
            raise Unreadable(f"storage {self.key!a:.40} has {len(raw)} bytes for {self.count} elements")
        self.raw.append((raw, big_endian))

    def elements(self, dtype: torch.dtype) -> Tensor:
        """Return the elements as a flat tensor. Raises `Unreadable` when there are none."""
        if dtype not in self.flat:
            if not self.raw:
                raise Unreadable(f"storage {self.key!a:.40} is missing")
            self.flat[dtype] = flat(*self.raw[-1], dtype)
        return self.flat[dtype]


def flat(raw: bytes | memoryview, big_endian: bool, dtype: torch.dtype) -> Tensor:
    """Return bytes as a flat tensor, on the same memory unless its order, alignment or type ask for a copy."""
    if not len(raw):
        return torch.empty(0, dtype=dtype)
    read_only = isinstance(raw, bytes) or raw.readonly
    content = torch.frombuffer(bytearray(raw) if read_only else raw, dtype=torch.uint8)
    if big_endian:
        number = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        content = content.view(-1, number).flip(1).flatten()
    if content.data_ptr() % dtype.itemsize:
        content = content.clone()
        if not read_only:
            let_go(raw)
    # Other values than 0 and 1 are not defined for a bool.
    return content.ne(0) if dtype == torch.bool else content.view(dtype)


def let_go(content: bytes | memoryview) -> None:
    """Free the memory of the pages of a mapped file that `content` has to itself; they are read again when needed."""
    if not (isinstance(content, memoryview) and isinstance(content.obj, mmap.mmap) and len(content)):
        return
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    first, begin = (torch.frombuffer(view, dtype=torch.uint8).data_ptr() for view in (content.obj, content))
    start = -(-(begin - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (begin - first + len(content)) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        content.obj.madvise(mmap.MADV_DONTNEED, start, length)


class Objects:
    """Makes the objects of one file.

    `storages` collects what persistent ids name; while it is None, there must be none. `nested` reads the bytes of a
    file within the file, which is a storage. Tensors on storages are empty until `finish`.

    Arguments of the wrong number, type or value raise whatever Python or torch raise; the caller knows where they were.
    """

    def __init__(self, budget: Budget, nested: Callable[[memoryview, Budget], Any] | None = None) -> None:
        self.budget = budget
        self.nested = nested
        self.storages: dict[str, Storage] | None = None
        self._unfinished: list[tuple[Tensor, Storage, tuple[int, ...], tuple[int, ...], int]] = []

    def name(self, module: Any, name: Any) -> Any:
        """Return what stands for a name: a type of elements, or a `StandIn`. Raises `Unreadable` if it is refused."""
        if type(module) is not str or type(name) is not str or len(module) + len(name) > LONGEST_NAME:
            raise Unreadable("it has an impossible name")
        full = f"{MODULES.get(module, module)}.{name}"
        why = refusal(full)
        if why:
            raise Unreadable(f"it names {f'{module}.{name}'!a}, which is refused: {why}", HOSTILE)
        return TYPES[full] if full in TYPES else StandIn(full)

    def call(self, made: Any, arguments: Any) -> Any:
        """Return what an object of `made` is here."""
        if not isinstance(made, StandIn) or not isinstance(arguments, tuple):
            raise TypeError
        if made.name in MAKERS:
            return MAKERS[made.name](self, *arguments)
        if made.name in DICTS:
            return self._dict(*arguments)
        return StandIn(made.name)

    def new(self, made: Any, arguments: Any) -> Any:
        """Return what `made.__new__` makes: of a dict, one whose items come later, whatever the arguments."""
        return {} if isinstance(made, StandIn) and made.name in DICTS else self.call(made, arguments)

    def build(self, target: Any, state: Any) -> Any:
        """Return `target` with its state: arrays have their content there, and all others what is not needed."""
        if isinstance(target, NumpyType):
            target.orders.append(state[1])
        elif isinstance(target, UnfilledArray):
            shape, dtype, fortran, raw = state[-4:]
            tensor = self._array(raw, dtype, shape, "F" if fortran else "C")
            return target if tensor is None else tensor
        elif not isinstance(target, StandIn | Tensor | dict | list | set):
            raise TypeError
        return target

    def persistent(self, identity: Any) -> Any:
        """Return the storage that ("storage", class, key, place, count[, None]) names.

        A class of a model, ("module", class, file, source), is one without its source.
        """
        if self.storages is None:
            raise Unreadable("it refers to parts outside of itself")
        if identity[0] == "module":
            return identity[1]
        kind, storage_type, key, _, count, *view = identity
        if view not in ([], [None]):
            raise Unreadable("it has views of storages", "Save it again with PyTorch 1.0 or newer.")
        if kind != "storage" or type(key) is not str or type(count) is not int or count < 0:
            raise TypeError
        name = storage_type.name
        if name not in STORAGES:
            raise Unreadable(f"it has tensors on a {name!a}", "Only plain numbers are read: dequantise them first.")
        self.budget.spend(5)
        storage = self.storages.setdefault(key, Storage(name, key, STORAGES[name], count))
        if (storage.name, storage.count) != (name, count):
            raise Unreadable(f"it describes storage {key!a:.40} in two ways")
        return storage

    def finish(self) -> None:
        """Give the tensors that were made their elements, now that the bytes of storages are known."""
        for tensor, storage, size, stride, offset in self._unfinished:
            try:
                elements = storage.elements(tensor.dtype)
                tensor.set_(elements.untyped_storage(), offset, size, stride)
            except RuntimeError as error:
                raise Unreadable(f"a tensor on storage {storage.key!a:.40} has an impossible layout") from error
        self._unfinished.clear()

    def key(self, key: Any) -> Any:
        """Return `key` if it is hashed quickly and few others have the same hash; else raise `Unreadable`."""
        kind = type(key)
        if kind is str or kind is bytes or (kind is int and -SMALL_KEY < key < SMALL_KEY):
            return key
        if kind is tuple:
            plain = len(key) <= 16 and all(type(item) in (str, bytes, *NUMBERS) for item in key)
        else:
            plain = kind in NUMBERS or isinstance(key, StandIn)
        if not plain:
            raise Unreadable("a key of a dict or an element of a set is neither a text nor a number", HOSTILE)
        self.budget.odd_keys -= 1
        if self.budget.odd_keys < 0:
            raise Unreadable("too many keys are neither a text nor a small number", HOSTILE)
        return key

    # What the names in `MAKERS` make.

    def _dict(self, *arguments: Any) -> dict[Any, Any]:
        # Factories and the like come first; the items, where there are some, last.
        items = arguments[-1] if arguments else ()
        if isinstance(items, dict):
            items = tuple(items.items())
        elif not isinstance(items, list | tuple):
            items = ()
        self.budget.spend(len(items))
        return {self.key(key): value for key, value in items}

    def _list(self, items: Any = (), *_: Any) -> list[Any]:
        self.budget.spend(len(items))
        return list(items)

    def _tuple(self, items: Any = ()) -> tuple[Any, ...]:
        return tuple(self._list(items))

    def _set(self, items: Any = ()) -> set[Any]:
        return {self.key(item) for item in self._list(items)}

    def frozenset(self, items: Any = ()) -> frozenset[Any]:
        """Return a frozenset of `items`."""
        return frozenset(self._set(items))

    def _complex(self, real: Any, imaginary: Any) -> complex:
        return complex(real, imaginary)

    def _slice(self, *bounds: Any) -> slice[Any, Any, Any]:
        if not all(type(bound) in (int, type(None)) for bound in bounds):
            raise TypeError
        return slice(*bounds)

    def _range(self, *bounds: int) -> range:
        return range(*bounds)

    def _bytes(self, content: Any = b"", encoding: Any = "latin1") -> bytes | memoryview:
        if encoding not in ("latin1", "latin-1"):
            raise TypeError
        self.budget.spend(0, len(content))
        raw = content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))
        # What can be written to, an array is made of without a further copy.
        return memoryview(bytearray(raw)) if len(raw) >= LONG else raw

    def _part(self, made: Any, name: Any) -> Any:
        if not isinstance(made, StandIn):
            raise TypeError
        return self.name(made.name, name)

    def _new(self, made: Any, *arguments: Any) -> Any:
        return self.new(made, arguments)

    def new_of_names(self, made: Any, arguments: Any, names: Any) -> Any:
        """Return what `made.__new__` makes with named arguments, which nothing that is admitted takes."""
        return StandIn(made.name) if names else self.new(made, arguments)

    def _object_of_python2(self, made: Any, base: StandIn, state: Any) -> Any:
        return self.call(made, (state,) if base.name == "builtins.dict" else ())

    def _numpy_type(self, code: Any, *_: Any) -> NumpyType:
        return NumpyType("numpy.dtype", code if isinstance(code, str) else "")

    def _unfilled_array(self, *_: Any) -> UnfilledArray:
        return UnfilledArray("numpy.ndarray")

    def _array_of_buffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Tensor | StandIn:
        tensor = self._array(raw, dtype, shape, order, axes)
        return StandIn("numpy.ndarray") if tensor is None else tensor

    def _number(self, dtype: Any, raw: Any = None) -> Any:
        tensor = self._array(raw, dtype, (), "C")
        return StandIn("numpy.generic") if tensor is None else tensor.item()

    def _array(self, raw: Any, dtype: NumpyType, shape: Any, order: Any, axes: Any = None) -> Tensor | None:
        # None: torch has no such elements.
        if dtype.code not in NUMPY_TYPES or not isinstance(raw, str | bytes | memoryview):
            return None
        kind = NUMPY_TYPES[dtype.code]
        size = _extent(shape) * kind.itemsize
        if isinstance(raw, str):
            raw = self._bytes(raw)
        if len(raw) != size:
            raise Unreadable(f"an array of {size} bytes has {len(raw)}")
        self.budget.spend(TENSOR, size)
        elements = flat(raw, dtype.orders[-1] == ">", kind)
        if order == "F":
            return elements.view(tuple(shape[::-1])).permute(*range(len(shape))[::-1])
        return elements.view(tuple(shape)) if axes is None else elements.view(tuple(shape)).permute(*axes)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        return self._tensor_of_type(storage, offset, size, stride, None, None, storage.dtype)

    def _tensor_of_type(
        self, storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
    ) -> Tensor:
        elements = _extent(size)
        _extent((offset,))
        _extent(stride)
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or len(size) != len(stride):
            raise TypeError
        self.budget.spend(TENSOR, elements * dtype.itemsize)
        if not elements:
            return torch.empty(tuple(size), dtype=dtype)
        end = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
        if end * dtype.itemsize > storage.count * storage.dtype.itemsize:
            raise Unreadable(f"a tensor reaches beyond the end of storage {storage.key!a:.40}")
        tensor = torch.empty(0, dtype=dtype)
        self._unfinished.append((tensor, storage, tuple(size), tuple(stride), offset))
        return tensor

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _tensor_with_attributes(self, function: Any, _: Any, arguments: Any, __: Any) -> Any:
        return self.call(function, arguments)

    def _storage(self, raw: Any) -> Storage:
        if self.nested is None:
            raise Unreadable("it has files within files within files", HOSTILE)
        if not isinstance(raw, memoryview):
            raw = memoryview(self._bytes(raw))
        storage = self.nested(raw, self.budget)
        if not isinstance(storage, Storage):
            raise TypeError
        return storage


def _extent(shape: Any) -> int:
    """Return the product of a shape's dimensions. Raises `TypeError` for what is no shape."""
    if not isinstance(shape, tuple | list) or len(shape) > MOST_DIMENSIONS:
        raise TypeError
    if not all(type(length) is int and length >= 0 for length in shape):
        raise TypeError
    return math.prod(shape)


NUMBERS = (int, float, bool, type(None))

MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": Objects._bytes,
    "builtins.bytearray": Objects._bytes,
    "builtins.bytes": Objects._bytes,
    "builtins.complex": Objects._complex,
    "builtins.dict": Objects._dict,
    "builtins.frozenset": Objects.frozenset,
    "builtins.getattr": Objects._part,
    "builtins.list": Objects._list,
    "builtins.range": Objects._range,
    "builtins.set": Objects._set,
    "builtins.slice": Objects._slice,
    "builtins.tuple": Objects._tuple,
    "builtins.xrange": Objects._range,
    "collections.Counter": Objects._dict,
    "collections.OrderedDict": Objects._dict,
    "collections.defaultdict": Objects._dict,
    "collections.deque": Objects._list,
    "copyreg.__newobj__": Objects._new,
    "copyreg.__newobj_ex__": Objects.new_of_names,
    "copyreg._reconstructor": Objects._object_of_python2,
    "numpy.core.multiarray._reconstruct": Objects._unfilled_array,
    "numpy.core.multiarray.scalar": Objects._number,
    "numpy.core.numeric._frombuffer": Objects._array_of_buffer,
    "numpy.dtype": Objects._numpy_type,
    "torch.Size": Objects._tuple,
    "torch._tensor._rebuild_from_type_v2": Objects._tensor_with_attributes,
    "torch._utils._rebuild_parameter": Objects._parameter,
    "torch._utils._rebuild_parameter_with_state": Objects._parameter,
    "torch._utils._rebuild_tensor": Objects._tensor,
    "torch._utils._rebuild_tensor_v2": Objects._tensor,
    "torch._utils._rebuild_tensor_v3": Objects._tensor_of_type,
    "torch.storage._load_from_bytes": Objects._storage,
}
"""What makes the objects of each name in `ADMITTED`."""

if MAKERS.keys() != ADMITTED.keys():
    raise AssertionError("a name is admitted that nothing makes, or made without being admitted")
