"""Reads a builder's arguments from its source, so that a config is checked without importing torch.

A builder's signature is its schema: keyword-only, annotated, defaults that are literals. What its
surroundings alone can give it has no default, and may be of any type.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import EllipsisType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from detcli import plugin
from detcli.errors import DetcliError

REQUIRED: Final = ...
"""The default of an argument that has none: the surroundings give it."""

_SLOT_ALIASES = {name: alias for name, alias in vars(plugin).items() if get_origin(alias) is Annotated}
_NAMES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, tuple, list, dict)},
    **_SLOT_ALIASES,
    "PartConfig": plugin.PartConfig,
    "Literal": Literal,
    "Any": Any,
    "__builtins__": {},
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a builder; `slot` is where its part comes from, when it takes one."""

    name: str
    annotation: Any
    default: Any | EllipsisType
    slot: str | None


@cache
def read(ref: str) -> tuple[Parameter, ...]:
    """Return the arguments of the builder at ``"module:function"``, in order.

    Only the packages around the module are imported. Raises `DetcliError` when the function is not there or
    is not keyword-only and annotated with literal defaults.
    """
    module, _, name = ref.partition(":")
    for node in _parse(module, ref).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            break
    else:
        raise DetcliError(f"{ref} is not there: {module} defines no function {name!r}.")
    arguments = node.args
    if arguments.posonlyargs or arguments.args or arguments.vararg or arguments.kwarg:
        raise DetcliError(f"{ref} must take keyword-only arguments and no **kwargs: write `def {name}(*, ...)`.")
    return tuple(
        _parameter(ref, argument, default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    )


def _parse(module: str, ref: str) -> ast.Module:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError as error:
        raise DetcliError(f"{ref} can't be read: {error}.") from error
    if spec is None or spec.origin is None:
        raise DetcliError(f"{ref} is not there: no module {module!r}.")
    try:
        return ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    except (OSError, SyntaxError) as error:
        raise DetcliError(f"{ref} can't be read: {error}.") from error


def _parameter(ref: str, argument: ast.arg, default: ast.expr | None) -> Parameter:
    if argument.annotation is None:
        raise DetcliError(f"{ref}: argument {argument.arg!r} has no type.")
    written = ast.unparse(argument.annotation)
    try:
        annotation = eval(written, _NAMES)
    except Exception as error:
        if default is None:
            return Parameter(argument.arg, Any, REQUIRED, None)
        raise DetcliError(
            f"{ref}: the type {written} of {argument.arg!r} is not one of bool, int, float, str, "
            f"tuple, list, dict, Literal, a union of them, or a part of detcli.plugin ({error})."
        ) from error
    try:
        value = REQUIRED if default is None else ast.literal_eval(default)
    except ValueError:
        raise DetcliError(
            f"{ref}: the default {ast.unparse(default or argument)} of {argument.arg!r} is no literal."
        ) from None
    return Parameter(argument.arg, annotation, value, _slot(annotation))


def _slot(annotation: Any) -> str | None:
    """Return the slot of ``Alias`` or ``Alias | None``."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((option.__metadata__[0] for option in options if get_origin(option) is Annotated), None)
