"""``detcli zoo``: list, search and show, and the commands of `detcli.cli.zoo_files` and `detcli.cli.zoo_report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from detcli.cli.zoo_files import bundle, cache, download, import_, verify
from detcli.cli.zoo_report import errata, parity, summary

if TYPE_CHECKING:
    from detcli.zoo.rows import File, Row

app = typer.Typer(help="Find what the model zoos published, and download it.", no_args_is_help=True)

SHORTEST_ID = 60
"""Columns are left out rather than ids shown in fewer characters than this."""

PAGE = "drive.google.com"
"""Serves pages that ask for a click, not files."""

AsJson = Annotated[bool, typer.Option("--json", help="Write every field as JSON.")]


@app.command("list")
def list_rows(
    source: Annotated[list[str] | None, typer.Option(help="detectron2, detectron, mmdet-v0 or mmdet-v2.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="The paper, as atss.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="The detector, as mask_rcnn.")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="As r50 or x101_32x4d.")] = None,
    sched: Annotated[list[str] | None, typer.Option(help="As printed: 1x, 20e, ...")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="As coco or lvis_v1.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="As detection or instance.")] = None,
    min_box_ap: Annotated[float | None, typer.Option("--min-box-ap", help="The lowest box AP, 0 to 100.")] = None,
    status: Annotated[str, typer.Option(help="builds, converts or verified: rows that are so far, or further.")] = "",
    sort: Annotated[str, typer.Option(help="A figure or another field; the best first.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the published rows, all or some.

    An option that is given again adds what it chooses.

    detcli zoo list --method mask_rcnn --backbone r50 --sort box_AP
    """
    from detcli.zoo.query import select
    from detcli.zoo.rows import rows
    from detcli.zoo.tables import check_fields, ordered

    wanted = {
        "source": source,
        "method": method,
        "model": model,
        "backbone": backbone,
        "sched": sched,
        "dataset": dataset,
        "task": task,
    }
    every = rows()
    found = select(every, {field: values for field, values in wanted.items() if values}, min_box_ap)
    if status:
        from detcli.zoo.status import reached

        found = [row for row in found if reached(row, status)]
    if sort:
        check_fields([sort], every)
        found = ordered(found, sort)
    _write(found, as_json, sort, with_status=bool(status))
    typer.echo(f"{len(found)} of {len(every)} rows", err=True)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="What a row has to have, all of it.", metavar="WORDS")],
    as_json: AsJson = False,
) -> None:
    """Find rows by words, the best first.

    All words have to be in a row's names, section, fields or notes.

    detcli zoo search cascade mask 101
    """
    from detcli.zoo.query import search as run
    from detcli.zoo.rows import rows

    found = run(rows(), words)
    _write(found, as_json)
    typer.echo(f"{len(found)} rows", err=True)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An id, a config, a model id or a short name.", metavar="ID")],
    as_json: AsJson = False,
) -> None:
    """Show a row, how far detcli is with it, and how to download, evaluate and train its model.

    detcli zoo show mask_rcnn_r50_fpn_3x
    """
    from detcli.zoo.names import resolve

    row = resolve(name)
    if as_json:
        import json

        from detcli.zoo.query import record

        typer.echo(json.dumps(record(row), indent=2, ensure_ascii=False))
        return
    for line in _described(row):
        typer.echo(line)


app.command()(download)
app.command()(verify)
app.add_typer(cache, name="cache")
app.command()(bundle)
app.command("import")(import_)
app.command()(summary)
app.command()(errata)
app.command()(parity)


def _write(found: Sequence[Row], as_json: bool, sort: str = "", with_status: bool = False) -> None:
    """Write rows as JSON, a line each, or as a table."""
    statuses: Sequence[str] = ()
    if with_status:
        from detcli.zoo.status import status

        statuses = [status(row) for row in found]
    if as_json:
        import json

        from detcli.zoo.query import record

        records = [record(row) for row in found]
        for values, text in zip(records, statuses, strict=False):
            values["status"] = text
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = ",\n".join(map(encode, records))
        typer.echo(f"[\n{lines}\n]" if found else "[]")
    elif found:
        from detcli.cli.text import terminal_width

        for line in _table(found, sort, terminal_width(), statuses):
            typer.echo(line)


def _table(found: Sequence[Row], sort: str, width: int | None, statuses: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table of at most `width` characters, of any with None."""
    from detcli.cli.text import GAP, aligned, column_widths, shortened
    from detcli.zoo.query import as_text
    from detcli.zoo.tables import LABELS, TEXTS, main_fields

    texts = ["id", "method", "backbone", "sched", *(["dataset"] if any(row.dataset != "coco" for row in found) else [])]
    figures = main_fields(found)
    if sort and sort not in (*texts, *figures, "lr_sched"):
        (texts if sort in TEXTS else figures).append(sort)
    columns: list[list[str]] = [[text, *(getattr(row, text) for row in found)] for text in texts]
    for name in figures:
        cells = (as_text(row.figures[name]) if name in row.figures else "" for row in found)
        columns.append([LABELS.get(name, name), *cells])
    shown = dict(zip([*texts, *figures], columns, strict=True))
    if statuses:
        shown["status"] = ["status", *statuses]
    for name in ("PQ", "keypoint_AP", "prop_AR", "method", "backbone", "dataset", "sched"):
        header, *rows = zip(*shown.values(), strict=True)
        first, *others = column_widths(header, rows)
        left = (width or 10**6) - sum(len(GAP) + other for other in others)
        if left >= min(first, SHORTEST_ID):
            break
        if name != sort:
            shown.pop(name, None)
    header, *rows = zip(*shown.values(), strict=True)
    left = (width or 10**6) - sum(len(GAP) + other for other in column_widths(header, rows)[1:])
    cut = [(shortened(first, max(left, 3)), *others) for first, *others in rows]
    return aligned(header, cut, [column for column, name in enumerate(shown) if name in figures])


def _described(row: Row) -> Iterator[str]:
    """Yield the lines that say all of `row`."""
    from dataclasses import asdict

    from detcli.cli.text import schedule
    from detcli.zoo.query import as_text
    from detcli.zoo.rows import source
    from detcli.zoo.tables import LABELS

    document = source(row.source)
    yield row.id
    yield from _entry("document", [f"{document.title} ({row.source})"])
    yield from _entry("section", [" > ".join(row.section)] if row.section else [])
    yield from _entry("place", [f"table {row.table + 1}, row {row.position + 1}"])
    for label in ("name", "config", "model_id", "method", "model", "backbone", "neck", "style", "dataset", "task"):
        value = getattr(row, label)
        yield from _entry(label.replace("_", " "), [value] if value else [])
    numbers = ""
    if row.schedule:
        numbers = schedule(asdict(row.schedule))
        numbers += f"; {row.schedule.warmup_iters} iterations of warm-up" if row.schedule.warmup_iters else ""
        numbers += f"; {row.schedule.batch} images a step" if row.schedule.batch else ""
    yield from _entry("schedule", [": ".join(filter(None, (row.sched, numbers)))] if row.sched or numbers else [])
    yield from _entry("figures", [f"{LABELS.get(name, name)}: {as_text(value)}" for name, value in row.figures.items()])
    others = [(tool, name, value) for tool, figures in row.others.items() for name, value in figures.items()]
    yield from _entry("others", [f"{tool}, {LABELS.get(name, name)}: {as_text(value)}" for tool, name, value in others])
    cells = zip(row.columns, row.cells, strict=False)
    more = [cell for cell in row.cells[len(row.columns) :] if cell is not None]
    yield from _entry("as printed", [f"{name}: {cell}" for name, cell in cells if cell is not None] + more)
    yield from _entry("files", [line for file in row.files for line in _file(file, document.mirrors)])
    known = {file.url for file in row.files}
    yield from _entry("links", [f"{link.text}: {link.url}" for link in row.links if link.url not in known])
    yield from _entry(
        "errata",
        [f"{wrong.field}: printed {wrong.printed}, correct {wrong.correct}: {wrong.why}" for wrong in row.errata],
    )
    yield from _entry("notes", row.notes)
    yield from _commands(row)


def _entry(label: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield lines with `label` before the first; nothing where there are none."""
    for number, line in enumerate(lines):
        yield f"  {'' if number else label:<10}  {line}"


def _file(file: File, mirrors: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a file's kind, URL and hash, then its mirrors."""
    if file.hash_kind == "md5sum":
        checked = f" (MD5 in {file.url}.md5sum)"
    else:
        checked = f" ({file.hash_kind} {file.hash}…)" if file.hash else ""
    yield f"{file.kind}: {file.url}{checked}"
    for prefix, mirror in mirrors:
        if file.url.startswith(prefix):
            yield f"  mirror: {mirror}{file.url.removeprefix(prefix)}"


def _commands(row: Row) -> Iterator[str]:
    from pathlib import PurePosixPath
    from shlex import quote
    from urllib.parse import unquote

    from detcli.zoo.names import short_name, weights_url
    from detcli.zoo.status import reached, status
    from detcli.zoo.training import training

    yield from _entry("status", [status(row)])
    url = weights_url(row)
    by_hand = url.partition("/")[0] == PAGE
    command = f"by hand, with a browser: https://{url}" if by_hand else f"detcli zoo download {row.id}"
    yield from _entry("download", [command if url else "no weights are linked"])
    if reached(row, "converts"):
        file = "FILE" if by_hand else quote(f"weights/{unquote(PurePosixPath(url).name)}")
        out = quote(f"{short_name(row)}.safetensors")
        yield from _entry(
            "evaluate",
            [
                *([] if by_hand else [f"{command} --dest weights"]),
                f"detcli convert auto {file} {out}",
                f"detcli eval {out} --data path/to/{row.dataset}",
            ],
        )
    found = training(row)
    yield from _entry("train", [found.command or found.missing, *(f"but {text}" for text in found.differs)])
