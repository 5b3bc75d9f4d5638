"""The command line: one module a command, imported with nothing heavier than typer."""

from __future__ import annotations

import os
import sys
import warnings
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from detcli import __version__
from detcli.cli.bench import bench
from detcli.cli.config import config
from detcli.cli.convert import convert
from detcli.cli.data import app as data
from detcli.cli.eval import eval
from detcli.cli.list import list_names
from detcli.cli.new import app as new
from detcli.cli.predict import predict
from detcli.cli.table import SeveralValues, table
from detcli.cli.train import train
from detcli.cli.zoo import app as zoo
from detcli.errors import DetcliError

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # click's own, which newer typers carry inside them
INTERRUPTED = 130
LAUNCHERS_FILE = "TORCHELASTIC_ERROR_FILE"
"""Names the file where the launcher of this process, if there is one, looks for its error."""

app = typer.Typer(name="detcli", rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("train")(train)
app.command("eval")(eval)
app.command("predict")(predict)
app.command("bench")(bench)
app.command("convert")(convert)
app.command("config")(config)
app.command("list")(list_names)
app.command("table", cls=SeveralValues)(table)
app.add_typer(data, name="data")
app.add_typer(new, name="new")
app.add_typer(zoo, name="zoo")


@app.callback(invoke_without_command=True)
def detcli(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """The classic results of object detection from one command line."""
    if version:
        typer.echo(f"detcli {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and exit with its status; an error is one line on stderr.

    The status is 0, that of the `DetcliError`, 2 for a wrong command, or 130 when it was interrupted.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        status = _command(*arguments[:1]).main(arguments, "detcli", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python exits
        status = 1
    except Exception as error:
        if debug:
            raise
        status = _report(error)
    if status == INTERRUPTED:
        typer.secho("interrupted", fg=typer.colors.RED, err=True)
    sys.exit(status)


def _command(name: str = "") -> Any:
    """Return the command, with the one called `name` alone, since each takes its time, or with all without such a one.

    Groups have plain help and commands panels, since rich is slow to import.
    """
    chosen = copy(app)
    chosen.registered_commands = [info for info in app.registered_commands if info.name == name]
    chosen.registered_groups = [info for info in app.registered_groups if info.name == name]
    found = chosen.registered_commands or chosen.registered_groups
    group: Any = get_command(chosen if found else app)
    waiting = [group]
    while waiting:
        command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += command.commands.values()
        else:
            command.rich_markup_mode = "rich"
    return group


def _report(error: Exception) -> int:
    """Print `error` in one line and return the exit status."""
    if isinstance(error, CLICK_ERROR):
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return 2
        see = f" See `{context.command_path} --help`." if context else ""
        message, status = f"{error.format_message()}{see}", 2
    elif isinstance(error, DetcliError):
        message, status = str(error), error.exit_code
    elif isinstance(error, OSError):
        message, status = str(error), 1
    else:
        message = f"{type(error).__name__}: {error}. This is a mistake in detcli; --debug shows where."
        status = 1
    line = " ".join(message.split())
    if path := os.environ.get(LAUNCHERS_FILE):
        from detcli.engine.launch import report_to_launcher

        report_to_launcher(Path(path), line)
    else:
        typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)
    return status
