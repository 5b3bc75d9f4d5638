"""The Python text of an MMDetection config, read as data: nothing in it is run."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from detcli.errors import DetcliError

MAX_TEXT = 2**21
MAX_SIZE = 2**20
"""The most values, and characters of texts, that a config may have once it is read."""
MAX_INTEGER = 2**63


def parse(text: str) -> dict[str, Any]:
    """Return the top-level names of a config's Python text, and their values.

    Nothing is run: a value is a literal, an earlier name, ``dict(...)``, ``range(...)``, or numbers, texts and lists
    joined by ``+ - * /``. Raises `DetcliError`, naming the line, for anything else, and when it is too large.
    """
    if len(text) > MAX_TEXT:
        raise DetcliError(f"its config is {len(text)} characters long; {MAX_TEXT} are the most that is read.")
    # MMDetection 1.x puts the config's path before its text.
    lines = ["" if re.fullmatch(r"\s*[^\s=#]+\.py\s*", line) else line for line in text.split("\n")]
    try:
        body = ast.parse("\n".join(lines)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise DetcliError(
            f"its config is no Python text that can be read{f' (line {line})' if line else ''}."
        ) from None
    reader = _Reader()
    for statement in body:
        try:
            reader.run(statement)
        except RecursionError:
            raise DetcliError(f"line {statement.lineno} of its config is nested too deeply.") from None
    return reader.values


OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class _Reader:
    """Evaluates assignments, with a limit on the size of all that it makes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.room = MAX_SIZE

    def run(self, statement: ast.stmt) -> None:
        """Take in one statement, an assignment or a text that stands alone."""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return
        if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
            value = self._value(statement.value)
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                self.values[target.id] = value
            return
        raise _unreadable(statement, "only assignments of values are read")

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return self._counted(value, node)
            case ast.Tuple(elts=items):
                return self._counted(tuple(self._items(items)), node)
            case ast.List(elts=items):
                return self._counted(self._items(items), node)
            case ast.Dict(keys=keys, values=values):
                return self._counted(self._dict(zip(keys, values, strict=True)), node)
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                pairs = ((ast.Constant(word.arg) if word.arg else None, word.value) for word in keywords)
                return self._counted(self._dict(pairs), node)
            case ast.Call(func=ast.Name(id="range"), args=[*bounds], keywords=[]) if 1 <= len(bounds) <= 2:
                return self._range([self._value(bound) for bound in bounds], node)
            case ast.Name(id=name) if name in self.values:
                return self._copy(self.values[name], node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return self._joined(self._value(left), op, self._value(right), node)
        what = f"{node.id!r} is not a name that it defined before" if isinstance(node, ast.Name) else "this is no value"
        raise _unreadable(node, what)

    def _items(self, nodes: Sequence[ast.expr]) -> list[Any]:
        return [self._value(node) for node in nodes]

    def _dict(self, pairs: Any) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, node in pairs:
            value = self._value(node)
            if key is not None:
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str | int):
                    raise _unreadable(node, "keys must be texts or numbers")
                result[key.value] = value
            elif isinstance(value, dict):
                result |= value
            else:
                raise _unreadable(node, "** needs a dict")
        return result

    def _range(self, bounds: list[Any], node: ast.expr) -> list[int]:
        if not all(isinstance(bound, int) and abs(bound) < MAX_SIZE for bound in bounds):
            raise _unreadable(node, "range needs small whole numbers")
        values = range(*bounds)
        self._take(len(values), node)
        return list(values)

    def _number(self, node: ast.expr) -> int | float:
        value = self._value(node)
        if not isinstance(value, int | float):
            raise _unreadable(node, "only numbers can be negated")
        return value

    def _joined(self, left: Any, op: ast.operator, right: Any, node: ast.expr) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if not numbers and isinstance(op, ast.Mult):
            # The size is known before anything is made.
            items, times = (left, right) if isinstance(right, int) else (right, left)
            if not isinstance(items, str | list | tuple) or not isinstance(times, int):
                raise _unreadable(node, "these can't be multiplied")
            self._take(_size(items) * max(times, 0), node)
        elif not numbers and not (
            isinstance(op, ast.Add) and type(left) is type(right) and isinstance(left, str | list | tuple)
        ):
            raise _unreadable(node, "these can't be joined")
        try:
            result = OPERATORS[type(op)](left, right)
        except (ZeroDivisionError, OverflowError):
            raise _unreadable(node, "this has no finite value") from None
        return self._counted(result, node)

    def _copy(self, value: Any, node: ast.expr) -> Any:
        """Return a value of its own, so that names within names can't grow without being counted."""
        if isinstance(value, dict):
            value = {key: self._copy(item, node) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            value = type(value)(self._copy(item, node) for item in value)
        return self._counted(value, node)

    def _counted(self, value: Any, node: ast.expr) -> Any:
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise _unreadable(node, "the number is too large")
        self._take(1 + (len(value) if isinstance(value, str | list | tuple | dict) else 0), node)
        return value

    def _take(self, size: int, node: ast.expr) -> None:
        self.room -= size
        if self.room < 0:
            raise _unreadable(node, "the config is too large")


def _size(value: Any) -> int:
    if isinstance(value, list | tuple):
        return 1 + sum(map(_size, value))
    return 1 + (len(value) if isinstance(value, str | dict) else 0)


def _unreadable(node: ast.stmt | ast.expr, reason: str) -> DetcliError:
    return DetcliError(f"line {node.lineno} of its config can't be read: {reason}.")
