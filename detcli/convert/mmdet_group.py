"""A config of another code base that is read key by key, so that nothing in it is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detcli.errors import DetcliError

LARGEST = 2**31 - 1
"""The largest number of anything that a config is believed."""


class Group:
    """A dict of a config that is read key by key.

    What nobody has asked for by the time of `check` is an error, since it could change numbers. `where` is its dotted
    place in the config. The readers take a default for a key that is absent; without one it must be there. All raise
    `DetcliError` for a value of another kind.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise DetcliError(f"its config has {_brief(values)} as {where or 'a whole'}, where settings should be.")
        self.values = values
        self.where = where
        self.children: dict[str, Group] = {}
        self.read: set[str] = {"type"}

    @property
    def kind(self) -> str:
        """The type that it names, without its module or scope."""
        return self.text("type").rpartition(".")[2]

    def has(self, key: str) -> bool:
        """Return whether the key is there and is not None; an absent or None key counts as read."""
        if self.values.get(key) is None:
            self.read.add(key)
            return False
        return True

    def take(self, key: str, default: Any = None) -> Any:
        """Return any value, also None; the default when it is absent."""
        self.read.add(key)
        return self.values.get(key, default)

    def group(self, key: str) -> Group:
        """Return the settings under a key."""
        if key not in self.children:
            self.children[key] = Group(self.take(key), self.place(key))
        return self.children[key]

    def groups(self, key: str) -> list[Group]:
        """Return the settings in the list under a key; `check` looks at none of them."""
        items = self.take(key)
        if not isinstance(items, list | tuple):
            raise self.wrong(key, "a list of settings")
        return [Group(item, self.place(f"{key}.{index}")) for index, item in enumerate(items)]

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number."""
        value = self.take(key, default)
        if not _is_number(value):
            raise self.wrong(key, "a number")
        return float(value)

    def integer(self, key: str, default: int | None = None, least: int = 0, most: int = LARGEST) -> int:
        """Return a whole number from `least` to `most`."""
        value = self.take(key, default)
        if type(value) is not int:
            raise self.wrong(key, "a whole number")
        if not least <= value <= most:
            raise self.wrong(key, f"a number from {least} to {most}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return True or False."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "True or False")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def numbers(self, key: str, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """Return numbers."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
            raise self.wrong(key, "a list of numbers")
        return tuple(float(item) for item in value)

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return whole numbers."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(type(item) is int and _is_number(item) for item in value):
            raise self.wrong(key, "a list of whole numbers")
        return tuple(value)

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse a value of `key` that is none of the `allowed` ones; it may be absent."""
        if key in self.values and self.take(key) not in allowed:
            raise self.unsupported(key)

    def ignore(self, *keys: str) -> None:
        """Count keys as read: they change no number here."""
        self.read.update(keys)

    def check(self) -> None:
        """Raise `DetcliError` for the first key, here or below, that nobody has read."""
        for key in self.values:
            if key not in self.read:
                raise self.unsupported(key)
        for child in self.children.values():
            child.check()

    def place(self, key: str) -> str:
        """Return the dotted place of a key."""
        return f"{self.where}.{key}" if self.where else key

    def unsupported(self, key: str) -> DetcliError:
        """Return the error for a value that has no counterpart here."""
        return DetcliError(f"its config sets {self.place(key)} to {_brief(self.values.get(key))}: not supported.")

    def wrong(self, key: str, wanted: str) -> DetcliError:
        """Return the error for a value that is not of the `wanted` kind."""
        if key not in self.values:
            return DetcliError(f"its config has no {self.place(key)}.")
        return DetcliError(f"its config sets {self.place(key)} to {_brief(self.values[key])}, which is not {wanted}.")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST
