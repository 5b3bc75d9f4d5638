from typing import Any, Literal

import pytest

from detcli import signature
from detcli.errors import DetcliError
from detcli.plugin import Backbone, Loss

SOURCE = """
raise RuntimeError("this module must not be imported")

def good(
    *,
    num: int,
    around: Trunk,
    body: Backbone = "r50",
    loss: Loss | None = None,
    mode: Literal["a", "b"] = "a",
    sides: tuple[int, ...] = (1, -2),
    table: dict[str, float] = {"x": 1.5},
    either: int | float = 0.5,
): ...

def positional(a: int, *, b: int = 1): ...
def open_ended(*, a: int = 1, **kwargs): ...
def untyped(*, a=1): ...
def foreign(*, a: Tensor = 1): ...
def computed(*, a: int = 1 + BASE): ...
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "never_imported"
    signature.read.cache_clear()


def test_arguments_are_read_without_importing_the_module(source):
    read = signature.read(f"{source}:good")
    assert [(each.name, each.annotation, each.default, each.slot) for each in read] == [
        ("num", int, signature.REQUIRED, None),
        ("around", Any, signature.REQUIRED, None),
        ("body", Backbone, "r50", "backbones"),
        ("loss", Loss | None, None, "losses"),
        ("mode", Literal["a", "b"], "a", None),
        ("sides", tuple[int, ...], (1, -2), None),
        ("table", dict[str, float], {"x": 1.5}, None),
        ("either", int | float, 0.5, None),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("positional", "must take keyword-only arguments"),
        ("open_ended", r"must take keyword-only arguments and no \*\*kwargs"),
        ("untyped", "argument 'a' has no type"),
        ("foreign", "the type Tensor of 'a' is not one of"),
        ("computed", r"the default 1 \+ BASE of 'a' is no literal"),
        ("absent", "defines no function 'absent'"),
    ],
)
def test_what_is_no_builder_is_named(source, name, message):
    with pytest.raises(DetcliError, match=f"never_imported:{name}.*{message}"):
        signature.read(f"{source}:{name}")


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(DetcliError, match="no module 'not_there_at_all'"):
        signature.read("not_there_at_all:x")
    with pytest.raises(DetcliError, match=r"not_there_at_all\.sub:x can't be read"):
        signature.read("not_there_at_all.sub:x")
