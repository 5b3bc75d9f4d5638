"""Tables of published rows and of one's own runs, and the documents' own tables."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

from detcli.errors import DetcliError, UsageError, unknown
from detcli.zoo.formats import DOWNLOAD, PrintedRow, PrintedTable
from detcli.zoo.names import distinct
from detcli.zoo.query import as_text, select
from detcli.zoo.rows import Link, Row, rows, source

LABELS = {
    "lr_sched": "lr sched",
    "train_speed": "train time (s/iter)",
    "inference_speed": "inference time (s/im)",
    "inference_fps": "inference (img/s)",
    "mem": "train mem (GB)",
    "train_time_total": "train time total (h)",
    "im_per_gpu": "images a GPU",
    "params": "parameters (M)",
    "flops": "operations (G)",
    "box_AP": "box AP",
    "box_AP50": "box AP50",
    "box_AP75": "box AP75",
    "box_APs": "box APs",
    "box_APm": "box APm",
    "box_APl": "box APl",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP50",
    "mask_AP75": "mask AP75",
    "keypoint_AP": "kp. AP",
    "prop_AR": "prop. AR",
    "PQ": "PQ",
    "semantic_mIoU": "mIoU",
}
"""Fields with the headers of their columns where no document has one for all rows; units as in the rows."""

TEXTS = (
    "id",
    "source",
    "name",
    "method",
    "model",
    "backbone",
    "neck",
    "style",
    "dataset",
    "task",
    "config",
    "model_id",
)
"""Fields of a row that are texts."""

ACCURACY = re.compile(r"AP|AR|PQ|mIoU")
"""Fields that say how good a model is, on the data that it was measured on."""

MAIN = ("box_AP", "mask_AP", "keypoint_AP", "prop_AR", "PQ")
"""What is shown of rows where no field is asked for."""

SPEED = ("train_speed", "inference_speed", "inference_fps", "mem")
"""What is shown of runs besides."""

HEADERS = {
    "lrsched": "lr_sched",
    "lrschd": "lr_sched",
    "schedule": "lr_sched",
    "trainingschedule": "lr_sched",
    "traintimesiter": "train_speed",
    "inferencetimesim": "inference_speed",
    "inftimefps": "inference_fps",
    "infspeedfps": "inference_fps",
    "fps": "inference_fps",
    "memgb": "mem",
    "trainmemgb": "mem",
    "traintimetotalhr": "train_time_total",
    "imgpu": "im_per_gpu",
    "params": "params",
    "gflops": "flops",
    "boxap": "box_AP",
    "boxap50": "box_AP50",
    "boxapval": "box_AP",
    "apval": "box_AP",
    "ap50val": "box_AP50",
    "ap75val": "box_AP75",
    "maskap": "mask_AP",
    "kpap": "keypoint_AP",
    "propar": "prop_AR",
    "ar1000": "prop_AR",
    "pq": "PQ",
}
"""What columns hold, by their header without case, spaces and signs."""

CONFIG_EXTENSIONS = (".yaml", ".yml", ".py")
KINDS = {"weights": "model"}
"""What the link to a file of a kind is called, where it is not called as the kind."""

NUMBER = re.compile(r"\d+(?:\.\d+)?")
NOT_MEASURED = -1


@dataclass(frozen=True, slots=True)
class Run:
    """A run of one's own: its folder, what was trained, and what was measured, by field.

    `drawn` says that the data were the built-in scenes, whose AP is none of the published rows'.
    """

    folder: str
    recipe: str
    model: str
    backbone: str
    style: str
    neck: str
    sched: str
    drawn: bool
    figures: Mapping[str, float]


def document(name: str) -> list[PrintedTable]:
    """Return every table of the document as it is printed. Raises `UsageError` when there is no such document."""
    return [
        PrintedTable(table.columns, tuple(PrintedRow(row.cells, row.links) for row in table.rows), table.section)
        for table in source(name).tables
    ]


def table(
    *,
    configs: Sequence[str] = (),
    sources: Sequence[str] = (),
    methods: Sequence[str] = (),
    runs: Sequence[str] = (),
    fields: Sequence[str] = (),
    names: Sequence[str] = (),
    sort: str = "",
) -> PrintedTable:
    """Return the table that `detcli table` writes with these options.

    With `configs` it is `generated`, else `overview` of the rows that have one of the fields. With `runs` and nothing
    else that selects rows, there are only the rows of the models that were run.

    Raises `UsageError` for what is unknown, `DetcliError` when no row is left.
    """
    among = select(rows(), {"source": sources, "method": methods})
    found = read_runs(runs) if runs else None
    if configs:
        among = by_config(configs, among)
    elif found is not None and not sources and not methods:
        among = [row for row in among if measured(row, found)]
    fields = fields or main_fields(among, found or ())
    check_fields([*fields, sort] if sort else fields, among, found or ())
    if not configs:
        among = [row for row in among if any(value_of(row, name) != "" for name in fields)]
    if not among and not found:
        raise DetcliError(f"no row has {' or '.join(fields or MAIN)}. See `detcli zoo list` for what there is.")
    if names:
        among = with_names(among, names)
    if sort:
        among = ordered(among, sort)
    return generated(among, fields, found) if configs else overview(among, fields, found)


def overview(among: Sequence[Row], fields: Sequence[str], found: Sequence[Run] | None = None) -> PrintedTable:
    """Return a table of rows from anywhere: where each comes from and what it is, then its `fields`.

    With runs, a row stands once for each run of the same model, with a column for what the run measured and one for the
    difference; a run that belongs to no row has one of its own.
    """
    columns = [
        _text_column("Source", "source"),
        _text_column("Method", "method"),
        _name_column(),
        _text_column("Backbone", "backbone"),
        _text_column("Sched", "sched"),
    ]
    return _table(among, columns, fields, found)


def generated(among: Sequence[Row], fields: Sequence[str], found: Sequence[Run] | None = None) -> PrintedTable:
    """Return a table as Detectron2's generator writes it: name, `fields`, model id and download, if any row has them.

    Runs are added as in `overview`.
    """
    last = []
    if any(row.model_id for row in among):
        last.append(_text_column("model id", "model_id"))
    if any(row.files for row in among):
        last.append(_Column(DOWNLOAD, _download))
    return _table(among, [_name_column()], fields, found, last)


def by_config(patterns: Sequence[str], among: Sequence[Row]) -> list[Row]:
    """Return the rows whose config's path matches, for each pattern in turn, sorted by path; each model once a pattern.

    Patterns are a shell's: braces are expanded first, in order; ``*``, ``?`` and ``[...]`` stay within a folder. They
    are held to the path without its extension, or with it; one without a folder is held to the file's name. Raises
    `UsageError` for a pattern that matches nothing.
    """
    chosen: list[Row] = []
    for pattern in (expanded for given in patterns for expanded in expand_braces(given)):
        matching = [row for row in among if row.config and _matches(pattern.removeprefix("configs/"), row.config)]
        if not matching:
            raise unknown("config", pattern, {_without_extension(row.config) for row in among}, "detcli zoo list")
        chosen += sorted(distinct(matching), key=lambda row: row.config)
    return chosen


def with_names(among: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows called by `names`, one each, in order. Raises `UsageError` when there are more or fewer names."""
    if len(names) != len(among):
        listed = ", ".join(row.name for row in among[:12]) + (", ..." if len(among) > 12 else "")
        raise UsageError(f"--name gives {len(names)} to {len(among)} rows ({listed}).")
    return [replace(row, name=name) for row, name in zip(among, names, strict=True)]


def check_fields(fields: Sequence[str], among: Sequence[Row], found: Sequence[Run] = ()) -> None:
    """Raise `UsageError` for a field that no row can have; warn of one that none of the rows and runs has."""
    valid = {
        *LABELS,
        *TEXTS,
        *(name for row in rows() for name in row.figures),
        *(name for run in found for name in run.figures),
    }
    for name in fields:
        if name not in valid:
            raise unknown("field", name, valid, "detcli table --help")
        if not any(value_of(row, name) != "" for row in among) and not any(name in run.figures for run in found):
            warnings.warn(f"no row has {name}", stacklevel=2)


def main_fields(among: Sequence[Row], found: Sequence[Run] = ()) -> list[str]:
    """Return the main figures that one of the runs has, or without runs one of the rows."""
    if found:
        return [name for name in (*MAIN, *SPEED) if any(name in run.figures for run in found)]
    return [name for name in MAIN if any(name in row.figures for row in among)]


def value_of(row: Row, name: str) -> float | str:
    """Return what the row has in the field: a number, a text, or an empty text."""
    if name == "lr_sched":
        return row.sched
    if name in TEXTS:
        return str(getattr(row, name))
    return row.figures[name].value if name in row.figures else ""


def ordered(among: Sequence[Row], name: str) -> list[Row]:
    """Return the rows that have the field, best first (highest AP or img/s, else lowest), and then the others."""
    have = [row for row in among if value_of(row, name) != ""]
    best_first = bool(ACCURACY.search(name)) or name == "inference_fps"

    def value(row: Row) -> Any:
        return value_of(row, name)

    return sorted(have, key=value, reverse=best_first) + [row for row in among if value(row) == ""]


def expand_braces(pattern: str) -> list[str]:
    """Return what a shell makes of ``{a,b}`` in a pattern, in its order."""
    start = pattern.find("{")
    while start >= 0:
        cuts = _brace_cuts(pattern, start)
        if len(cuts) > 2:
            parts = [pattern[before + 1 : after] for before, after in pairwise(cuts)]
            ends = expand_braces(pattern[cuts[-1] + 1 :])
            return [pattern[:start] + part + end for given in parts for part in expand_braces(given) for end in ends]
        start = pattern.find("{", start + 1)
    return [pattern]


def read_runs(patterns: Sequence[str]) -> list[Run]:
    """Return the runs in the folders that the patterns match; a folder that holds none is named in a warning.

    A run's folder has config.json and metrics.json, as `detcli train` and `detcli bench` write them. Raises
    `UsageError` for a pattern that matches nothing, `DetcliError` when there is no run at all.
    """
    folders: dict[Path, None] = {}
    for pattern in (expanded for given in patterns for expanded in expand_braces(given)):
        matching = [Path(path) for path in sorted(glob(str(Path(pattern).expanduser()))) if Path(path).is_dir()]
        if not matching:
            raise UsageError(
                f"no folder matches {pattern!r}: --runs takes what `detcli train` and `detcli bench` wrote."
            )
        folders |= dict.fromkeys(matching)
    found = []
    for folder in folders:
        try:
            found.append(_run(folder))
        except FileNotFoundError as error:
            warnings.warn(f"{folder}: skipped, no {Path(error.filename).name}", stacklevel=2)
        except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
            warnings.warn(f"{folder}: skipped, {type(error).__name__}: {error}", stacklevel=2)
    if not found:
        raise DetcliError(f"no run in {' '.join(patterns)}: `detcli train` writes metrics.json when it ends.")
    return found


def measured(row: Row, found: Iterable[Run]) -> list[Run]:
    """Return the runs that trained the row's model: same detector, method, backbone, neck and schedule, on COCO."""
    return [run for run in found if _is_same(row, run)]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its header, and what gives a row's text and the links in it, each (text, URL)."""

    header: str
    cell: Callable[[Row], tuple[str, Sequence[tuple[str, str]]]]


def _table(
    among: Sequence[Row],
    first: Sequence[_Column],
    fields: Sequence[str],
    found: Sequence[Run] | None,
    last: Sequence[_Column] = (),
) -> PrintedTable:
    lines = _beside(among, found or ())
    first = [column for column in first if any(column.cell(row)[0] for row, _ in lines)]
    columns = [column.header for column in first]
    if found is not None:
        columns.append("Run")
    for name in fields:
        header = _header(name, among)
        columns += (
            [header, f"{header} (run)", f"{header} (diff.)"] if found is not None and _is_figure(name) else [header]
        )
    columns += [column.header for column in last]
    return PrintedTable(tuple(columns), tuple(_line(row, run, first, fields, found, last) for row, run in lines))


def _line(
    row: Row,
    run: Run | None,
    first: Sequence[_Column],
    fields: Sequence[str],
    found: Sequence[Run] | None,
    last: Sequence[_Column],
) -> PrintedRow:
    cells: list[str] = []
    links: list[Link] = []
    values: dict[str, Any] = {}

    def add(column: _Column) -> None:
        text, linked = column.cell(row)
        links.extend(Link(len(cells), label, url) for label, url in linked)
        cells.append(text)

    for column in first:
        add(column)
    if found is not None:
        cells.append(run.folder if run else "")
        values["run"] = run.folder if run else ""
    for name in fields:
        cells.append(_text(row, name))
        values[name] = value_of(row, name)
        if found is not None and _is_figure(name):
            here, difference = _compared(row, run, name)
            cells += [_formatted(name, here), _formatted(name, difference, "+")]
            values |= {f"{name}_run": here, f"{name}_difference": difference}
    for column in last:
        add(column)
    return PrintedRow(
        tuple(cells), tuple(links), row.id, {name: None if value == "" else value for name, value in values.items()}
    )


def _beside(among: Sequence[Row], found: Sequence[Run]) -> list[tuple[Row, Run | None]]:
    """Return each row with each run of its model, or with none, and then the runs that belong to no row."""
    lines: list[tuple[Row, Run | None]] = []
    belonging: set[str] = set()
    for row in among:
        here = measured(row, found)
        belonging |= {run.folder for run in here}
        lines += [(row, run) for run in here] or [(row, None)]
    return lines + [(_row_of(run), run) for run in found if run.folder not in belonging]


def _compared(row: Row, run: Run | None, name: str) -> tuple[float | None, float | None]:
    """Return what the run measured, and how much more than the row that is; None where it means nothing."""
    here = run.figures.get(name) if run else None
    published = row.figures.get(name)
    if run is None or here is None or published is None or (run.drawn and ACCURACY.search(name)):
        return here, None
    return here, here - published.value


def _text_column(header: str, name: str) -> _Column:
    return _Column(header, lambda row: (str(getattr(row, name)), ()))


def _name_column() -> _Column:
    def cell(row: Row) -> tuple[str, Sequence[tuple[str, str]]]:
        config = next((link.url for link in row.links if row.config and link.url.endswith(f"configs/{row.config}")), "")
        return row.name, [(row.name, config)] if config else []

    return _Column("Name", cell)


def _download(row: Row) -> tuple[str, Sequence[tuple[str, str]]]:
    links = [(KINDS.get(file.kind, file.kind), file.url) for file in row.files]
    return " | ".join(label for label, _ in links), links


def _header(name: str, among: Sequence[Row]) -> str:
    """Return the documents' own header of the field where they have one and agree, or else its label."""
    headers = {row.columns[column] for row in among if (column := _column_of(row, name)) is not None}
    return headers.pop() if len(headers) == 1 else LABELS.get(name, name.replace("_", " "))


def _column_of(row: Row, name: str) -> int | None:
    """Return the column of the row's table that holds the field."""
    for column, header in enumerate(row.columns):
        if HEADERS.get(re.sub(r"[^a-z0-9]", "", header.casefold())) == name:
            return column
    return None


def _text(row: Row, name: str) -> str:
    """Return the field as the document prints it; a figure that errata correct as it should be."""
    if not _is_figure(name):
        return str(value_of(row, name))
    column = _column_of(row, name)
    printed = (row.cells[column] or "") if column is not None and column < len(row.cells) else ""
    figure = row.figures.get(name)
    numbers = [float(number) for number in NUMBER.findall(printed)]
    if figure is None:
        return "" if numbers else printed
    return printed if numbers[: len(figure.parts)] == list(figure.parts) else as_text(figure)


def _is_figure(name: str) -> bool:
    return name != "lr_sched" and name not in TEXTS


def _formatted(name: str, value: float | None, sign: str = "") -> str:
    digits = 3 if name in ("train_speed", "inference_speed") else 1
    return "" if value is None else f"{value:{sign}.{digits}f}"


def _matches(pattern: str, config: str) -> bool:
    """Return whether a pattern without braces matches the config's path, as a shell would match it."""
    if "/" not in pattern:
        config = config.rpartition("/")[2]
    wanted = pattern.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for parts in (path.split("/") for path in (config, _without_extension(config)))
    )


def _without_extension(config: str) -> str:
    for extension in CONFIG_EXTENSIONS:
        config = config.removesuffix(extension)
    return config


def _brace_cuts(pattern: str, start: int) -> list[int]:
    """Return where the brace at `start`, its own commas and its closing brace are; nothing when it is not closed."""
    depth, cuts = 0, [start]
    for position in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[position], 0)
        if depth == 0:
            return [*cuts, position]
        if depth == 1 and pattern[position] == ",":
            cuts.append(position)
    return []


def _run(folder: Path) -> Run:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    backbone, neck = (_part(config["model"].get(slot)) for slot in ("backbone", "neck"))
    name = str(backbone.get("name", ""))
    return Run(
        folder=str(folder),
        recipe=config["recipe"],
        model=config["model"]["name"],
        backbone=name.removesuffix("_caffe").removesuffix("_detectron"),
        style=str(backbone.get("style", "")),
        neck=str(neck.get("name", "")),
        sched=config.get("sched_name", ""),
        drawn=config.get("data", {}).get("source") == "shapes",
        figures={
            key: value
            for key, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and value != NOT_MEASURED
        },
    )


def _part(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {"name": given or ""}


def _is_same(row: Row, run: Run) -> bool:
    return (
        (row.model, row.backbone, row.sched, row.dataset) == (run.model, run.backbone, run.sched, "coco")
        and row.neck in ("", run.neck)
        and row.style in ("", run.style)
        and (row.method == row.model or run.recipe.startswith(row.method))
    )


def _row_of(run: Run) -> Row:
    """Return a row for a run that belongs to none: what was trained, and no figures."""
    return Row(
        id="",
        source="",
        section=(),
        table=0,
        position=0,
        columns=(),
        cells=(),
        links=(),
        name=run.recipe,
        method=run.model,
        model=run.model,
        dataset="",
        task="",
        backbone=run.backbone,
        neck=run.neck,
        style=run.style,
        sched=run.sched,
    )
