"""Commands in the documents, the cards and the help are commands that there are."""

import re
import shlex
from pathlib import Path

import pytest

from detcli import cli
from detcli.config import resolve

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
COMMAND = re.compile(r"(?P<before>^ *|`|&& )(?P<text>detcli (?:[^`\n&]|\\\n)*)", re.MULTILINE)
STANDS_FOR_ANY = re.compile(r"[A-Z]*|my_\w+")
"""Names of recipes that are not to be taken literally."""


@pytest.fixture
def parse():
    """Return a function that reads a command line as `detcli` does, and returns the command's name and arguments."""
    parsed = []
    group = cli._command()
    for command in commands(group):
        command.callback = lambda name=command.name, **arguments: parsed.append((name, arguments))

    def read(text):
        words = shlex.split(text.replace("\\\n", " "), comments=True)
        group.main(words[1:], "detcli", standalone_mode=False)
        return parsed.pop() if parsed else (None, {})

    return read


def commands(command):
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)
    if not hasattr(command, "commands"):
        yield command


def check(name, arguments):
    """Raise when a command that trains names a recipe, a part or a setting that there is not."""
    if name in ("train", "config") and not STANDS_FOR_ANY.fullmatch(arguments["model"]):
        parts = {key: arguments[key] or None for key in ("backbone", "neck", "sched")}
        assert resolve(arguments["model"], **parts, overlays=arguments["overlays"], settings=arguments["settings"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_documents_are_there(path, parse):
    for found in COMMAND.finditer(path.read_text(encoding="utf-8")):
        try:
            name, arguments = parse(found["text"])
        except cli.CLICK_ERROR as error:
            # Within a sentence, a command may be named without what it is called with.
            if found["before"] != "`" or type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):
                error.add_note(found["text"])
                raise
        else:
            check(name, arguments)


def test_examples_in_help_are_there(parse):
    examples = {command.name: COMMAND.findall(command.help) for command in commands(cli._command())}
    assert [name for name, found in examples.items() if not found] == []
    for before, text in (example for found in examples.values() for example in found):
        if before != "`":
            check(*parse(text))
