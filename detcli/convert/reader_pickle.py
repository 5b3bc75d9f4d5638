"""Pickles, read without running anything.

A pickle is a program for a small machine with a stack. This is that machine. All that it can do is written down: the
operations in `OPERATIONS`, the names in detcli.convert.reader_names. Long byte strings stay views of the file.

Source: Lib/pickletools.py of CPython, which describes every operation.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detcli.convert.reader_objects import HOSTILE, LONG, Objects, StandIn, UnfilledArray, Unreadable

LONGEST_NUMBER = 256
"""Bytes or digits; of what is of use, the states of random generators have the largest."""

DEEPEST = 100
"""Containers within containers, so that functions that walk them may call themselves."""

MOST_OBJECTS = 1_000_000
"""Objects of a file, where one that is held twice counts twice."""

CONTAINERS = (dict, list, tuple, set, frozenset)


class Unpickler:
    """The machine; one for all pickles of a file. `position` is where it reads in `data`."""

    def __init__(self, data: memoryview, objects: Objects) -> None:
        self.data = data
        self.objects = objects
        self.position = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read one pickle, from `position` on. Raises `Unreadable` for everything that is wrong with it."""
        self._stack, self._marked, self._memo = [], [], {}
        start = self.position
        spend = self.objects.budget.spend
        try:
            while True:
                spend(1)
                operation = self.data[self.position]
                self.position += 1
                if operation == STOP:
                    break
                OPERATIONS[operation](self)
            (value,) = self._stack
        # Whatever Python and torch make of damaged arguments:
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
            struct.error,
        ) as error:
            raise Unreadable(f"as a pickle, it makes no sense at byte {self.position - start}") from error
        _check_nesting(value)
        return value

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes, without a copy. Raises `Unreadable` when there are less."""
        start = self.position
        self.position += size
        if self.position > len(self.data):
            raise Unreadable(f"it ends after {len(self.data) - start} of {size} bytes")
        return self.data[start : self.position]

    # Arguments of operations, which stand behind them in the file.

    def _byte(self) -> int:
        value = self.data[self.position]
        self.position += 1
        return value

    def _unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def _signed(self, size: int) -> int:
        if size > LONGEST_NUMBER:
            raise Unreadable(f"it has a number of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def _float(self) -> float:
        (number,) = struct.unpack(">d", self.take(8))
        return float(number)

    def _line(self) -> bytes:
        size = 256
        while True:
            chunk = bytes(self.data[self.position : self.position + size])
            end = chunk.find(b"\n")
            if end >= 0:
                self.position += end + 1
                return chunk[:end]
            if len(chunk) < size:
                raise Unreadable("it ends within a line")
            size *= 16

    def _number_line(self) -> int | bool:
        line = self._line()
        if len(line) > LONGEST_NUMBER:
            raise Unreadable(f"it has a number of {len(line)} digits")
        return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))

    def _string_line(self) -> str | memoryview:
        line = self._line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise Unreadable("it has a string without quotes")
        return _python2(memoryview(codecs.escape_decode(line[1:-1])[0]))

    def _text(self, size: int) -> str:
        return str(self.take(size), "utf-8", "surrogatepass")

    def _bytes(self, size: int) -> bytes | memoryview:
        raw = self.take(size)
        return raw if size >= LONG else bytes(raw)

    # What operations do with the stack.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_empty(self, container: Any) -> None:
        # It takes up to 216 bytes, for one of the file.
        self.objects.budget.spend(3)
        self._stack.append(container)

    def _last(self, count: int) -> tuple[Any, ...]:
        if count > len(self._stack):
            raise Unreadable("it uses values that it lacks")
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        return values

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        values = self._stack
        self._stack = self._marked.pop()
        return values

    def _pop(self) -> None:
        # A pickler that finds a tuple within itself drops what it has of it, with the mark.
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _memorise(self, index: int) -> None:
        value = self._memo[index] = self._stack[-1]
        if isinstance(value, UnfilledArray):
            value.memorised.append(index)

    def _append(self, values: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, StandIn):
            raise TypeError

    def _set_items(self, values: list[Any] | tuple[Any, ...]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[self.objects.key(key)] = value
        elif not isinstance(target, StandIn):
            raise TypeError

    def _new_dict(self) -> None:
        values = self._since_mark()
        self._push({})
        self._set_items(values)

    def _add(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, set):
            target.update(map(self.objects.key, values))
        elif not isinstance(target, StandIn):
            raise TypeError

    def _name_lines(self) -> Any:
        return self.objects.name(self._line().decode(), self._line().decode())

    def _instance(self) -> None:
        made = self._name_lines()
        self._push(self.objects.call(made, tuple(self._since_mark())))

    def _instance_of_stack(self) -> None:
        made, *arguments = self._since_mark()
        self._push(self.objects.call(made, tuple(arguments)))

    def _build(self) -> None:
        target, state = self._last(2)
        built = self.objects.build(target, state)
        if built is not target:
            self._memo.update(dict.fromkeys(target.memorised, built))
        self._push(built)


def _python2(raw: memoryview) -> str | memoryview:
    """Return a string of Python 2, which may be text or bytes: a long one stays bytes."""
    return raw if len(raw) >= LONG else str(raw, "latin1")


def _check_nesting(value: Any) -> None:
    """Raise `Unreadable` where containers hold themselves, or so many others that no walk through them would end."""
    # Of each container that was walked through: how deep it is, and how many objects it is when written out.
    known: dict[int, tuple[int, int]] = {}
    path: list[tuple[int, Iterator[Any]]] = [(0, iter((value,)))]
    measures = [(0, 0)]
    while path:
        identity, inside = path[-1]
        depth, count = measures[-1]
        for inner in inside:
            if not isinstance(inner, CONTAINERS):
                count += 1
                continue
            if id(inner) not in known:
                # Until it was walked through, it is as deep as no other: within itself, it is refused.
                known[id(inner)] = (DEEPEST, 0)
                measures[-1] = (depth, count)
                path.append((id(inner), iter(inner.values() if isinstance(inner, dict) else inner)))
                measures.append((0, 1))
                break
            depth = max(depth, known[id(inner)][0] + 1)
            count += known[id(inner)][1]
        else:
            path.pop()
            measures.pop()
            known[identity] = (depth, count)
            if path:
                outer_depth, outer_count = measures[-1]
                measures[-1] = (max(outer_depth, depth + 1), outer_count + count)
        if max(depth, len(path)) > DEEPEST or count > MOST_OBJECTS:
            raise Unreadable("its containers hold themselves, or too many others", HOSTILE)


STOP = ord(pickle.STOP)

OPERATIONS: dict[int, Callable[[Unpickler], object]] = {
    ord(code): operation
    for code, operation in (
        # Frames only say how much to read at once.
        (pickle.PROTO, lambda machine: machine.take(1)),
        (pickle.FRAME, lambda machine: machine.take(8)),
        # Numbers.
        (pickle.NONE, lambda machine: machine._push(None)),
        (pickle.NEWTRUE, lambda machine: machine._push(True)),
        (pickle.NEWFALSE, lambda machine: machine._push(False)),
        (pickle.BININT, lambda machine: machine._push(machine._signed(4))),
        (pickle.BININT1, lambda machine: machine._push(machine._byte())),
        (pickle.BININT2, lambda machine: machine._push(machine._unsigned(2))),
        (pickle.LONG1, lambda machine: machine._push(machine._signed(machine._byte()))),
        (pickle.LONG4, lambda machine: machine._push(machine._signed(machine._unsigned(4)))),
        (pickle.INT, lambda machine: machine._push(machine._number_line())),
        (pickle.LONG, lambda machine: machine._push(machine._number_line())),
        (pickle.FLOAT, lambda machine: machine._push(float(machine._line()))),
        (pickle.BINFLOAT, lambda machine: machine._push(machine._float())),
        # Texts and bytes; those of Python 2 are both.
        (pickle.UNICODE, lambda machine: machine._push(str(machine._line(), "raw-unicode-escape"))),
        (pickle.BINUNICODE, lambda machine: machine._push(machine._text(machine._unsigned(4)))),
        (pickle.BINUNICODE8, lambda machine: machine._push(machine._text(machine._unsigned(8)))),
        (pickle.SHORT_BINUNICODE, lambda machine: machine._push(machine._text(machine._byte()))),
        (pickle.BINBYTES, lambda machine: machine._push(machine._bytes(machine._unsigned(4)))),
        (pickle.BINBYTES8, lambda machine: machine._push(machine._bytes(machine._unsigned(8)))),
        (pickle.SHORT_BINBYTES, lambda machine: machine._push(machine._bytes(machine._byte()))),
        (pickle.BYTEARRAY8, lambda machine: machine._push(machine._bytes(machine._unsigned(8)))),
        (pickle.STRING, lambda machine: machine._push(machine._string_line())),
        (pickle.BINSTRING, lambda machine: machine._push(_python2(machine.take(machine._unsigned(4))))),
        (pickle.SHORT_BINSTRING, lambda machine: machine._push(_python2(machine.take(machine._byte())))),
        # Containers.
        (pickle.EMPTY_TUPLE, lambda machine: machine._push(())),
        (pickle.TUPLE1, lambda machine: machine._push(machine._last(1))),
        (pickle.TUPLE2, lambda machine: machine._push(machine._last(2))),
        (pickle.TUPLE3, lambda machine: machine._push(machine._last(3))),
        (pickle.TUPLE, lambda machine: machine._push(tuple(machine._since_mark()))),
        (pickle.EMPTY_LIST, lambda machine: machine._push_empty([])),
        (pickle.LIST, lambda machine: machine._push(machine._since_mark())),
        (pickle.APPEND, lambda machine: machine._append(machine._last(1))),
        (pickle.APPENDS, lambda machine: machine._append(machine._since_mark())),
        (pickle.EMPTY_DICT, lambda machine: machine._push_empty({})),
        (pickle.DICT, Unpickler._new_dict),
        (pickle.SETITEM, lambda machine: machine._set_items(machine._last(2))),
        (pickle.SETITEMS, lambda machine: machine._set_items(machine._since_mark())),
        (pickle.EMPTY_SET, lambda machine: machine._push_empty(set())),
        (pickle.ADDITEMS, lambda machine: machine._add(machine._since_mark())),
        (pickle.FROZENSET, lambda machine: machine._push(machine.objects.frozenset(machine._since_mark()))),
        # The stack and the memo.
        (pickle.MARK, Unpickler._mark),
        (pickle.POP, Unpickler._pop),
        (pickle.POP_MARK, Unpickler._since_mark),
        (pickle.DUP, lambda machine: machine._push(machine._stack[-1])),
        (pickle.GET, lambda machine: machine._push(machine._memo[machine._number_line()])),
        (pickle.BINGET, lambda machine: machine._push(machine._memo[machine._byte()])),
        (pickle.LONG_BINGET, lambda machine: machine._push(machine._memo[machine._unsigned(4)])),
        (pickle.PUT, lambda machine: machine._memorise(machine._number_line())),
        (pickle.BINPUT, lambda machine: machine._memorise(machine._byte())),
        (pickle.LONG_BINPUT, lambda machine: machine._memorise(machine._unsigned(4))),
        (pickle.MEMOIZE, lambda machine: machine._memorise(len(machine._memo))),
        # Names, and objects of them.
        (pickle.GLOBAL, lambda machine: machine._push(machine._name_lines())),
        (pickle.STACK_GLOBAL, lambda machine: machine._push(machine.objects.name(*machine._last(2)))),
        (pickle.REDUCE, lambda machine: machine._push(machine.objects.call(*machine._last(2)))),
        (pickle.NEWOBJ, lambda machine: machine._push(machine.objects.new(*machine._last(2)))),
        (pickle.NEWOBJ_EX, lambda machine: machine._push(machine.objects.new_of_names(*machine._last(3)))),
        (pickle.INST, Unpickler._instance),
        (pickle.OBJ, Unpickler._instance_of_stack),
        (pickle.BUILD, Unpickler._build),
        (pickle.BINPERSID, lambda machine: machine._push(machine.objects.persistent(*machine._last(1)))),
    )
}
"""What each operation does.

Left out, and so refused: PERSID, which PyTorch does not write; EXT1, EXT2 and EXT4, numbers for names that only the
writer knows; NEXT_BUFFER and READONLY_BUFFER, data outside of the file.
"""
