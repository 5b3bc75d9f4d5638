"""``detcli zoo download``, ``verify``, ``cache``, ``bundle`` and ``import``: the files of published rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from detcli.errors import DetcliError
    from detcli.zoo.store import Wanted

cache = typer.Typer(help="See and clear what was downloaded.", no_args_is_help=True)

Names = Annotated[
    list[str],
    typer.Argument(help="Ids, configs, model ids or short names: see `detcli zoo search`.", metavar="NAME..."),
]
All = Annotated[bool, typer.Option("--all", help="Logs and metrics, too, not only weights.")]
Mirror = Annotated[
    list[str] | None,
    typer.Option(metavar="PREFIX=URL", help="What to put before URLs that begin with PREFIX, tried first."),
]
Jobs = Annotated[int, typer.Option(help="Files at a time.", min=1, max=32)]
Offline = Annotated[bool, typer.Option("--offline", help="Take only what is in the cache.")]


def download(
    names: Names,
    every: All = False,
    dest: Annotated[Path | None, typer.Option(help="A folder to which the files are copied.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other files in --dest.")] = False,
    mirror: Mirror = None,
    jobs: Jobs = 4,
    offline: Offline = False,
) -> None:
    """Download weights, check their hashes and print where they are.

    A download that was stopped is continued. DETCLI_CACHE moves the cache.

    Proxies are those of the environment. DETCLI_TIMEOUT: the seconds that a server may stall.

    detcli zoo download mask_rcnn_r50_fpn_3x --dest weights
    """
    from detcli.zoo.store import place

    files, errors = _obtain(names, every, mirror, jobs, offline)
    paths = place(files, dest, overwrite) if dest else [path for _, path in files]
    for path in paths:
        typer.echo(path)
    _raise(errors, len(files) + len(errors))


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Rows or files; all without.", metavar="[NAME]...")] = None,
) -> None:
    """Hash what is in the cache again and name what is damaged.

    detcli zoo verify
    """
    from detcli.errors import DetcliError
    from detcli.zoo.store import entries, named_entries
    from detcli.zoo.store import verify as run

    count, damaged = 0, []
    for verdict in run(named_entries(names) if names else entries()):
        count += 1
        typer.echo(f"{verdict.state:<7}  {verdict.entry.place}{f': {verdict.reason}' if verdict.reason else ''}")
        if verdict.state == "damaged":
            damaged.append(verdict.entry)
    if damaged:
        verb = "files is" if len(damaged) == 1 else "files are"
        raise DetcliError(
            f"{len(damaged)} of {count} {verb} damaged. "
            f"Run `detcli zoo cache remove {damaged[0].place}`, and download it again."
        )


@cache.command()
def path() -> None:
    """Print the folder of the cache; DETCLI_CACHE moves it.

    detcli zoo cache path
    """
    from detcli.download import cache_folder

    typer.echo(cache_folder())


@cache.command("list")
def list_files() -> None:
    """Show the files in the cache, their sizes and whose they are.

    detcli zoo cache list
    """
    from detcli.cli.text import aligned
    from detcli.zoo.store import entries

    lines = [
        (
            _size(entry.size),
            entry.wanted.row.id if entry.wanted else "",
            f"{entry.place}{' (unfinished)' if entry.unfinished else ''}",
        )
        for entry in entries()
    ]
    if lines:
        for line in aligned(("size", "row", "file"), lines, [0]):
            typer.echo(line)


@cache.command()
def size() -> None:
    """Print how much the files in the cache take.

    detcli zoo cache size
    """
    from detcli.zoo.store import entries

    sizes = [entry.size for entry in entries()]
    typer.echo(f"{_size(sum(sizes))} in {len(sizes)} file{'' if len(sizes) == 1 else 's'}")


@cache.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="Rows, or files as `cache list` shows them.", metavar="NAME...")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove files from the cache, after asking.

    detcli zoo cache remove mask_rcnn_r50_fpn_3x
    """
    from detcli.zoo.store import named_entries
    from detcli.zoo.store import remove as run

    chosen = named_entries(names)
    if not yes:
        for entry in chosen:
            typer.echo(f"{entry.place}  {_size(entry.size)}")
        typer.confirm(f"Remove {'it' if len(chosen) == 1 else f'these {len(chosen)} files'}?", abort=True)
    for entry in chosen:
        run(entry)
        typer.echo(f"removed {entry.place}")


def bundle(
    names: Names,
    out: Annotated[Path, typer.Option("--out", "-o", help="The tar file to write.")],
    every: All = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that -o names.")] = False,
    mirror: Mirror = None,
    jobs: Jobs = 4,
    offline: Offline = False,
) -> None:
    """Write weights to one file, for a machine without a network.

    What the cache lacks is downloaded.

    detcli zoo bundle mask_rcnn_r50_fpn_3x retinanet_r50_fpn_3x -o models.tar
    """
    from detcli.errors import DetcliError
    from detcli.zoo.bundle import write_bundle

    if out.exists() and not overwrite:
        raise DetcliError(f"{out} is there already. Choose another -o, or replace it with --overwrite.")
    files, errors = _obtain(names, every, mirror, jobs, offline)
    _raise(errors, len(files) + len(errors))
    write_bundle(files, out)
    typer.echo(f"{out}: {len(files)} file{'' if len(files) == 1 else 's'}. Read it with `detcli zoo import {out}`.")


def import_(file: Annotated[Path, typer.Argument(help="What `detcli zoo bundle` wrote.", metavar="FILE")]) -> None:
    """Put the files of a bundle into the cache, their hashes checked.

    detcli zoo import models.tar
    """
    from detcli.errors import DetcliError
    from detcli.zoo.bundle import import_bundle

    count, errors = 0, []
    for member, outcome in import_bundle(file):
        count += 1
        if isinstance(outcome, DetcliError):
            errors.append(outcome)
        else:
            typer.echo(f"{'imported' if outcome else 'was there'}  {member.url}")
    _raise(errors, count)


def _obtain(
    names: Sequence[str], every: bool, mirror: Sequence[str] | None, jobs: int, offline: bool
) -> tuple[list[tuple[Wanted, Path]], list[DetcliError]]:
    """Return the files that are in the cache now, with their paths, and the errors of the others."""
    from detcli.errors import DetcliError
    from detcli.zoo.store import obtain, parse_mirror, wanted

    files = wanted(names, every, [parse_mirror(text) for text in mirror or ()])
    outcomes = obtain(files, jobs, offline)
    there = [(file, path) for file, path in zip(files, outcomes, strict=True) if isinstance(path, Path)]
    return there, [error for error in outcomes if isinstance(error, DetcliError)]


def _raise(errors: Sequence[DetcliError], count: int) -> None:
    """Raise the only one of `errors`, or name each and raise that there were several; nothing without any."""
    from detcli.errors import DetcliError

    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise DetcliError(f"{len(errors)} of {count} files could not be had.")


def _size(count: int) -> str:
    """Return a number of bytes as 1.2 kB, MB or GB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
