"""Errors that a user can act on: one line that names the thing, the nearest valid name and the next command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DetcliError(Exception):
    """A mistake or a condition outside the program; the command line prints it as one line, without a traceback."""

    exit_code = 1


class UsageError(DetcliError):
    """The command was given something it does not know."""

    exit_code = 2


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `valid` names that look most like `name`, best first."""
    by_folded = {candidate.lower(): candidate for candidate in valid}
    return [by_folded[match] for match in difflib.get_close_matches(name.lower(), by_folded, count, 0.5)]


def unknown(kind: str, name: str, valid: Iterable[str], see: str = "") -> UsageError:
    """Return the error for a `name` that is none of the `valid` ones; `see` is the command that lists them."""
    valid = sorted(valid)
    matches = nearest(name, valid)
    if matches:
        hint = f"did you mean {' or '.join(repr(match) for match in matches)}?"
    elif valid and len(valid) <= 12:
        hint = f"there is {', '.join(valid)}."
    else:
        hint = ""
    parts = [f"unknown {kind} {name!r}" + (f": {hint}" if hint else "."), f"See `{see}`." if see else ""]
    return UsageError(" ".join(part for part in parts if part))
