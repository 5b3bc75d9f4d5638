"""From another code base's names to ours: rules that say for every tensor what it is called here and how it changes.

A rule never guesses: a name that no rule matches is an error, and a tensor that is dropped has a written reason. What
was done is kept as a report, one entry a tensor.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from detcli.errors import DetcliError
from detcli.registry import find, names, resolve


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to the values of a tensor; `name` is what a report calls it.

    `apply` returns the tensor itself where nothing has to change.
    """

    name: str
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Added:
    """A tensor that is made beside another one, because we have it and the file does not; `why` says why.

    `name` is a template as that of the rule, `make` gets the tensor of the rule as it is here.
    """

    name: str
    make: Callable[[Tensor], Tensor]
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What a tensor whose whole name matches `pattern` is called here, and how it changes.

    `name` is a template of `re.Match.expand`. Without one, the tensor is dropped, and `why` says why.
    """

    pattern: str
    name: str | None
    change: Change | None = None
    why: str = ""
    adds: tuple[Added, ...] = ()

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
    """The weights of a file, by its own names; what is known from the rest, and what of it is left out."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    dropped: list[Entry] = field(default_factory=list)


def rename(tensors: Mapping[str, Tensor], rules: Sequence[Rule], origin: str) -> tuple[dict[str, Tensor], Report]:
    """Return `tensors` under our names, and what became of each of them; the first rule that matches a name wins.

    A tensor that does not change is returned as it is, not copied. Raises `DetcliError` that lists names without a
    rule, and names that become the same one.
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
        changed = rule.change.apply(tensor) if rule.change else tensor
        change = rule.change.name if rule.change and changed is not tensor else ""
        renamed[ours] = changed
        sources[ours].append(theirs)
        report.entries.append(Entry(theirs, ours, change, rule.why))
        for added in rule.adds:
            name = match.expand(added.name)
            renamed[name] = added.make(changed)
            sources[name].append(f"what is added to {theirs}")
            report.entries.append(Entry("", name, why=added.why))
    problems = [f"{name} has no place in it" for name in unknown]
    problems += [f"{' and '.join(given)} are both {ours}" for ours, given in sources.items() if len(given) > 1]
    if problems:
        raise DetcliError(f"{origin}: {listed(problems)}.")
    return renamed, report


def plugin_rules(source: str, model: str) -> tuple[Rule, ...]:
    """Return the rules that the plugin of `model` brings for its own layers in files of `source`."""
    key = f"{source}/{model}"
    if key not in names("converters"):
        return ()
    rules: tuple[Rule, ...] = resolve(find("converters", key).ref)
    return rules


def listed(problems: Sequence[str], most: int = 4) -> str:
    """Return up to `most` of the problems as one text, and how many more there are."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def only_tensors(values: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """Return the weights in `values`, all of which must be tensors with names.

    Raises `DetcliError` that lists what is something else.
    """
    strange = [
        f"{name} is {type(value).__name__}, not a tensor" if isinstance(name, str) else f"{name!r} is not a name"
        for name, value in values.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if strange:
        raise DetcliError(f"the weights of {origin}: {listed(strange)}.")
    return dict(values)


def is_weights(value: Any) -> bool:
    """Return whether `value` holds tensors by name, one or more, and nothing else."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def left_out(content: Mapping[Any, Any], used: Sequence[str], reasons: Mapping[str, str], origin: str) -> list[Entry]:
    """Return an entry for what a file has beside what is `used`, with the reason of each.

    Raises `DetcliError` for tensors that are there without a reason to leave them out.
    """
    rest = {str(key): value for key, value in content.items() if key not in used}
    strange = [key for key, value in rest.items() if key not in reasons and _has_tensors(value)]
    if strange:
        raise DetcliError(
            f"a file of {origin} has tensors under {', '.join(strange)}, and no rule says what becomes of them: if "
            "they are not of the model, save the file without them."
        )
    return [Entry(key, None, why=reasons.get(key, "it holds no weights")) for key in rest]


def _has_tensors(value: Any) -> bool:
    """Return whether there is a tensor at any depth of dicts, lists and tuples."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            return True
        # What is in several places is looked at once, however often it is named.
        if id(item) not in seen and isinstance(item, Mapping | list | tuple):
            seen.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item
    return False


def background_last(tensor: Tensor, anchors: int = 1) -> Tensor:
    """Return rows [anchors * classes,...] with the first class of each anchor as its last one."""
    return tensor.reshape(anchors, -1, *tensor.shape[1:]).roll(-1, 1).flatten(0, 1)


def drop_background(tensor: Tensor, rows: int = 1, anchors: int = 1) -> Tensor:
    """Return rows [anchors * classes * rows,...] without the `rows` of each anchor's first class.

    A tensor that has no more than the rows of one class does not depend on the class, and is returned as it is.
    """
    if len(tensor) == anchors * rows:
        return tensor
    return tensor.reshape(anchors, -1, *tensor.shape[1:])[:, rows:].flatten(0, 1)


BACKGROUND_LAST = Change("background last", background_last)
WITHOUT_BACKGROUND = Change("without the background", drop_background)
BOXES_WITHOUT_BACKGROUND = Change("without the background's box", partial(drop_background, rows=4))


def _first(compiled: Sequence[tuple[re.Pattern[str], Rule]], name: str) -> tuple[Rule, re.Match[str]] | None:
    """Return the first rule that matches the whole of `name`, and how."""
    for pattern, rule in compiled:
        match = pattern.fullmatch(name)
        if match:
            return rule, match
    return None
