"""From another code base's names to ours: rules that say for every tensor what it is called here and how it changes.

A rule never guesses: a name that no rule matches is an error, and a tensor that is dropped has a written reason. What
was done is kept as a report, one entry a tensor.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detcli.errors import DetcliError

COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to the values of a tensor; `name` is what a report calls it."""

    name: str
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a tensor whose whole name matches `pattern` is called here, and how it changes.

    `name` is a template of `re.Match.expand`. Without one, the tensor is dropped, and `why` says why.
    """

    pattern: str
    name: str | None
    change: Change | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.name is None and not self.why:
            raise ValueError(f"the rule that drops {self.pattern!r} must say why")


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one tensor: its name there ("": it was added here), and here (none: it was dropped)."""

    theirs: str
    ours: str | None
    change: str = ""
    why: str = ""


@dataclass(slots=True)
class Report:
    """What became of every tensor of a file, in the file's order."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def renamed(self) -> list[Entry]:
        """Those that have another name here."""
        return [entry for entry in self.entries if entry.theirs and entry.ours not in (None, entry.theirs)]

    @property
    def dropped(self) -> list[Entry]:
        """Those that are not here."""
        return [entry for entry in self.entries if entry.ours is None]

    @property
    def transformed(self) -> list[Entry]:
        """Those whose values are not the file's."""
        return [entry for entry in self.entries if entry.change]

    @property
    def added(self) -> list[Entry]:
        """Those that the file lacks."""
        return [entry for entry in self.entries if not entry.theirs]


@dataclass(slots=True)
class Unwrapped:
    """The weights of a file, and what else is known from it.

    `dropped` is what the file has beside them; `made` are names among `tensors` that it lacks, and why they are there.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    dropped: list[Entry] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)


def rename(
    tensors: Mapping[str, Tensor], rules: Sequence[Rule], origin: str, made: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], Report]:
    """Return `tensors` under our names, and what became of each of them; the first rule that matches a name wins.

    `made` are those that are not of the file, and why they were added; a batch norm without a counter gets one. A
    tensor that does not change is returned as it is, not copied. Raises `DetcliError` that lists names without a rule,
    and names that become the same one.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    renamed: dict[str, Tensor] = {}
    report = Report()
    sources = defaultdict(list)
    unknown = []
    for theirs, tensor in tensors.items():
        found = _first(compiled, theirs)
        if found is None:
            unknown.append(theirs)
            continue
        rule, match = found
        if rule.name is None:
            report.entries.append(Entry(theirs, None, why=rule.why))
            continue
        ours = match.expand(rule.name)
        sources[ours].append(theirs)
        renamed[ours] = rule.change.apply(tensor) if rule.change else tensor
        change = rule.change.name if rule.change else ""
        if made and theirs in made:
            report.entries.append(Entry("", ours, change, made[theirs]))
        else:
            report.entries.append(Entry(theirs, ours, change, rule.why))
    problems = [f"{name} has no place in it" for name in unknown]
    problems += [f"{' and '.join(names)} are both {ours}" for ours, names in sources.items() if len(names) > 1]
    if problems:
        raise DetcliError(f"{origin}: {listed(problems)}.")
    for ours in [name for name in renamed if name.endswith(".running_var")]:
        counter = f"{ours.removesuffix('running_var')}{COUNTER}"
        if counter not in renamed:
            renamed[counter] = torch.tensor(0)
            report.entries.append(Entry("", counter, why="the file has no count of batches"))
    return renamed, report


def listed(problems: Sequence[str], most: int = 4) -> str:
    """Return up to `most` of the problems as one text, and how many more there are."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def only_tensors(values: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """Return `values` as a dict of tensors by name.

    Raises `DetcliError` that lists what is something else.
    """
    strange = [
        f"{name} is {type(value).__name__}, not a tensor" if isinstance(name, str) else f"{name!r} is not a name"
        for name, value in values.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise DetcliError(f"{origin}: {listed(strange)}.")
    return dict(values)


def background_last(tensor: Tensor) -> Tensor:
    """Return rows [classes,...] with the first one at the end."""
    return tensor.roll(-1, 0)


def drop_background(rows: int, anchors: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a function that takes the `rows` rows of class 0 out of each of `anchors` equal parts of a tensor."""

    def drop(tensor: Tensor) -> Tensor:
        parts = tensor.reshape(anchors, -1, *tensor.shape[1:])
        return parts[:, rows:].flatten(0, 1)

    return drop


BACKGROUND_LAST = Change("background last", background_last)
WITHOUT_BACKGROUND = Change("without the background", drop_background(1))
BOXES_WITHOUT_BACKGROUND = Change("without the background's box", drop_background(4))


def _first(compiled: Iterable[tuple[re.Pattern[str], Rule]], name: str) -> tuple[Rule, re.Match[str]] | None:
    """Return the first rule that matches the whole of `name`, and how."""
    for pattern, rule in compiled:
        match = pattern.fullmatch(name)
        if match:
            return rule, match
    return None
