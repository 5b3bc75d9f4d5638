"""From a checkpoint of another code base to one of ours: which model it holds, its names here, its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detcli.config import RunConfig, load, resolve, revise
from detcli.convert import mmdet_config
from detcli.convert.reader import read
from detcli.convert.rules import Entry, Report, plugin_rules, rename
from detcli.data.classes import CLASSES, numbered, with_ids
from detcli.download import Request, cache_path, compare, digests
from detcli.engine.checkpoint import save_backbone, save_checkpoint
from detcli.engine.model import build_model
from detcli.errors import DetcliError, UsageError, nearest, unknown
from detcli.nn.weights import COUNTER, check_fit
from detcli.registry import names
from detcli.structures import ClassMap
from detcli.zoo.names import distinct, matches
from detcli.zoo.names import resolve as find_row
from detcli.zoo.rows import File, Row, rows
from detcli.zoo.training import training

SOURCES = {
    "mmdet": "MMDetection 2 and 3 (.pth)",
    "legacy-v1": "MMDetection 0.x and 1.x (.pth)",
    "detectron2": "Detectron2 (.pkl, .pth)",
    "detectron": "Detectron, and its ImageNet backbones (.pkl)",
    "torchvision": "torchvision's detectors, ResNets and ResNeXts (.pth)",
    "pycls": "pycls' RegNets, backbones only (.pyth)",
}
"""What files can come from; each is a module of this package, with ``_`` for ``-``."""

HASHES = ("sha256", "md5")
"""The kinds of hashes in the names of published files."""

V1_NOTE = (
    "anchors, box coding and RoIAlign work as in MMDetection 1.x; its overlaps, NMS and clipping, which count a box's "
    "last pixel as part of it, do not: boxes and scores can differ a little from what it gave"
)

DETECTRON_NOTE = (
    "the config follows Detectron's code, whose boxes contain their last pixel; there were no outputs of that code to "
    "compare with"
)

DETECTRON_RETINANET_NOTE = "boxes of the highest level need a score of 0.05, as those of others; Detectron keeps all"


@dataclass(slots=True)
class Converted:
    """A converted checkpoint: its tensors by our names, and all that the file says about itself.

    Without a `config` it is a backbone alone. `origin` says where it is from, `notes` what is not as it was there.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, str]
    report: Report
    config: RunConfig | None = None
    classes: ClassMap = field(default_factory=lambda: ClassMap((), ()))
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Model:
    """What a file holds: a run config, where it was found, and the row of the zoo that it is."""

    config: RunConfig
    found_by: str
    row: Row | None = None


def convert(
    source: str,
    path: Path,
    *,
    as_id: str | None = None,
    classes: ClassMap | None = None,
    settings: Sequence[str] = (),
) -> Converted:
    """Return the checkpoint in the file at `path`, which is of `source` (one of `SOURCES`, or "auto").

    The model is the row or recipe `as_id`, or what the file's meta, name or hash says. `classes` are what its labels
    mean, where the file and the row don't say. `settings` (``"a.b=c"``) change its config.

    Raises `UsageError` for a `source`, id or setting that is not known; `DetcliError` when the file can't be read, is
    of another source, names no model that is known here, or does not fit the model in every tensor.
    """
    if source != "auto" and source not in SOURCES:
        raise unknown("source of checkpoints", source, [*SOURCES, "auto"], "detcli convert --help")
    if not path.is_file():
        raise DetcliError(f"there is no file {path}.")
    content = read(path)
    source = _checked_source(source, content, path)
    module = _module(source)
    unwrapped = module.unwrap(content)
    tensors, meta = unwrapped.tensors, unwrapped.meta
    del content, unwrapped.tensors
    origin = {"source": source, "file": path.name}
    rules = module.rules(tensors, meta)
    if module.is_backbone(tensors):
        renamed, report = rename(tensors, rules, str(path))
        report.entries[:0] = unwrapped.dropped
        return Converted(renamed, origin, report)
    notes: list[str] = []
    model = _find_model(source, path, meta, as_id, notes)
    if settings:
        model.config = revise(model.config, settings=settings)
    own = plugin_rules(source, model.config.model["name"])
    renamed, report = rename(tensors, (*own, *rules), str(path))
    report.entries[:0] = unwrapped.dropped
    known = classes or _classes(meta, model.row, source)
    known = _as_many(known, _count_classes(model.config, renamed, path), given=classes is not None)
    with torch.device("meta"):
        fitting = build_model(model.config, len(known)).state_dict()
    _add_counters(fitting, renamed, report)
    check_fit(fitting, renamed, f"{path}, {model.found_by},")
    if model.row is not None:
        origin["row"] = model.row.id
    notes += _notes(source, model.config.model["name"], known)
    return Converted(renamed, origin, report, model.config, known, notes)


def write(converted: Converted, out: Path) -> None:
    """Write a converted checkpoint to `out`, in one step; raises `DetcliError` when that can't be done."""
    origin = {**converted.origin, "notes": converted.notes}
    if converted.config is None:
        save_backbone(out, converted.tensors, origin)
    else:
        save_checkpoint(out, converted.tensors, converted.config, converted.classes, origin=origin)


def _module(source: str) -> Any:
    return import_module(f"detcli.convert.{source.replace('-', '_')}")


def _checked_source(source: str, content: Any, path: Path) -> str:
    """Return the source that `content` is of; raises `DetcliError` when it is none, or another than was said."""
    if source != "auto" and _module(source).recognises(content, path):
        return source
    found = [name for name in SOURCES if _module(name).recognises(content, path)]
    if source == "auto":
        if not found:
            raise DetcliError(
                f"{path} is of no source that is known: {', '.join(SOURCES)}. If it is of one of them, name it: "
                "`detcli convert SOURCE IN OUT`."
            )
        return found[0]
    if found:
        raise DetcliError(f"{path} looks like a file of {found[0]}: `detcli convert {found[0]} {path} OUT`.")
    return source


def _find_model(source: str, path: Path, meta: Mapping[str, Any], as_id: str | None, notes: list[str]) -> _Model:
    """Return the model that a file holds: as the user says, or else its meta, its name or its hash."""
    if as_id:
        return _named(source, as_id)
    if builder := _torchvision_builder(source, path.stem):
        return builder
    row = _row_called(path)
    text = meta.get("config")
    problem: DetcliError | None = None
    if isinstance(text, str) and text.strip():
        try:
            found = mmdet_config.translate(mmdet_config.parse(text), notes, legacy=source == "legacy-v1")
            return _Model(load({"recipe": found["model"]["name"], **found}), "read by the config in it", row)
        except DetcliError as error:
            problem = error
    row = row or _row_hashed(path)
    if row is None and problem is None and meta.get("name"):
        experiment = distinct(matches(Path(str(meta["name"])).stem, rows()))
        row = experiment[0] if len(experiment) == 1 else None
    if problem and (row is None or not training(row).exact):
        raise DetcliError(f"{path}: {problem} If it is a model of the zoo, name it with --as ID.") from problem
    if row is None:
        raise DetcliError(
            f"{path} does not say which model it holds, and neither its name nor its hash is one of the zoo's. Name a "
            "row (`detcli zoo search WORDS`) or a recipe (`detcli list recipes`) with --as ID."
        )
    return _of_row(row, f"read as {row.id}")


def _named(source: str, as_id: str) -> _Model:
    if builder := _torchvision_builder(source, as_id):
        return builder
    if as_id in names("recipes"):
        return _Model(resolve(as_id).config, f"read as recipe {as_id}")
    try:
        row = find_row(as_id)
    except UsageError as error:
        close = nearest(as_id, names("recipes"))
        hint = f" Or the recipe {close[0]!r}?" if close else ""
        raise UsageError(f"{error}{hint}") from None
    return _of_row(row, f"read as {row.id}")


def _of_row(row: Row, found_by: str) -> _Model:
    plan = training(row)
    if plan.config is None:
        raise DetcliError(f"{row.id} can't be converted: {plan.missing}.")
    if not plan.exact:
        raise DetcliError(
            f"{row.id} can't be converted as it is: {'; '.join(plan.differs)}. Name the recipe that it is with --as "
            "and its arguments with --set."
        )
    return _Model(plan.config, found_by, row)


def _torchvision_builder(source: str, name: str) -> _Model | None:
    """Return the model of torchvision's builder that a file is named after."""
    if source != "torchvision":
        return None
    from detcli.convert import torchvision

    builder = next((builder for builder in torchvision.SOURCES if name.startswith(builder)), None)
    if builder is None:
        return None
    config = load({"recipe": torchvision.SOURCES[builder].model["name"], **torchvision.config(builder)})
    return _Model(config, f"read as torchvision's {builder}")


def _row_called(path: Path) -> Row | None:
    """Return the row whose weights the file at `path` is, by its name or its place in the cache.

    Raises `DetcliError` when it has the name of a published file, and another hash.
    """
    named = distinct(matches(path.name, rows()))
    if len(named) > 1:
        place = path.resolve()
        named = [row for row in named for file in row.files if cache_path(file.url).resolve() == place]
    for row in named:
        for file in row.files:
            if file.kind == "weights" and file.hash and file.url.endswith(f"/{path.name}"):
                _check_hash(path, file, row)
    return named[0] if len(named) == 1 else None


def _check_hash(path: Path, published: File, row: Row) -> None:
    problem, _ = compare(path, Request(published.url, hash=published.hash, hash_kind=published.hash_kind), None)
    if problem:
        raise DetcliError(
            f"{path} has the name of a published file and is another: {problem}. Download it again "
            f"(`detcli zoo download {row.id}`), or rename it."
        )


def _row_hashed(path: Path) -> Row | None:
    """Return the row whose weights the file at `path` is, by its hash."""
    found, _ = digests(path, HASHES)
    for row in rows():
        for file in row.files:
            if file.kind == "weights" and file.hash and found.get(file.hash_kind, "").startswith(file.hash):
                return row
    return None


def _classes(meta: Mapping[str, Any], row: Row | None, source: str) -> ClassMap | None:
    """Return what labels mean: the file's own classes, or those of the row's dataset; COCO's for what is published."""
    own = meta.get("classes")
    if own:
        return with_ids(tuple(str(name) for name in own))
    if source == "torchvision":
        from detcli.convert import torchvision

        return torchvision.CLASS_MAP
    if row is None:
        return CLASSES["coco"]
    return CLASSES.get(f"{row.dataset}_panoptic" if row.task == "panoptic" else row.dataset)


def _count_classes(config: RunConfig, tensors: Mapping[str, Tensor], path: Path) -> int | None:
    """Return how many classes the tensors are for, from those whose shapes depend on it; None when none does."""
    with torch.device("meta"):
        two, three = (build_model(config, count).state_dict() for count in (2, 3))
    counts = set()
    for name, value in two.items():
        for before, after, side in zip(value.shape, three[name].shape, _shape(tensors, name), strict=False):
            if before != after:
                counts.add(2 + (side - before) / (after - before))
    if not counts:
        return None
    count = min(counts)
    if len(counts) > 1 or count < 1 or count != int(count):
        listed = ", ".join(f"{found:g}" for found in sorted(counts))
        raise DetcliError(f"{path} does not fit model {config.model['name']}: its layers are for {listed} classes.")
    return int(count)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()


def _as_many(known: ClassMap | None, count: int | None, *, given: bool) -> ClassMap:
    """Return `known` classes, or numbered ones where the tensors are for another number."""
    if known is not None and count in (None, len(known)):
        return known
    if given and known is not None:
        raise DetcliError(f"the data have {len(known)} classes, and the checkpoint is for {count}.")
    return numbered(count or 1)


def _add_counters(own: Mapping[str, Tensor], tensors: dict[str, Tensor], report: Report) -> None:
    """Add the counters of batches that norms have here, and that files from before PyTorch 0.4.1 lack."""
    for name in own:
        if name.endswith(COUNTER) and name not in tensors:
            tensors[name] = torch.zeros((), dtype=torch.int64)
            report.entries.append(Entry("", name, why="a counter of batches, which the file does not have"))


def _notes(source: str, model: str, classes: ClassMap) -> Iterator[str]:
    """Yield what is not as it was in `source`, and what the user should know of a converted `model`."""
    if source == "legacy-v1":
        yield V1_NOTE
    if source == "detectron":
        yield DETECTRON_NOTE
    if source == "detectron" and model == "retinanet":
        yield DETECTRON_RETINANET_NOTE
    if classes.names[:1] == ("class 1",):
        yield "the file does not name its classes: they are numbered; --data takes names and ids from data"
