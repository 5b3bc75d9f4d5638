"""How far detcli is with the published rows."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from detcli.cli.zoo import list_rows, show
from detcli.config import revise
from detcli.engine.model import build_model
from detcli.errors import UsageError
from detcli.zoo import status as statuses
from detcli.zoo.names import resolve
from detcli.zoo.report import parity as parity_table
from detcli.zoo.rows import rows
from detcli.zoo.status import STATUSES, digest, reached, status
from detcli.zoo.training import training


@pytest.fixture
def parity(tmp_path, monkeypatch):
    """Return a function that puts other outcomes of reference cases, by config, in the place of the published ones."""

    def write(outcomes):
        path = tmp_path / "parity.json"
        path.write_text(json.dumps({f"case {n}": {"config": c, "passes": p} for n, (c, p) in enumerate(outcomes)}))
        monkeypatch.setattr(statuses, "PARITY", path)
        statuses._passed.cache_clear()

    yield write
    statuses._passed.cache_clear()


def test_every_row_that_builds_is_a_model_with_nothing_allocated():
    built = {}
    for row in rows():
        found = training(row)
        if status(row) == "listed":
            assert not (found.config and found.exact)
            continue
        key = digest(found.config)
        if key not in built:
            with torch.device("meta"):
                built[key] = build_model(found.config, 80)
        if row.model == "classifier":
            assert found.config.model["backbone"]["name"] == row.backbone
        else:
            assert found.config.model["name"] == row.model
        assert all(tensor.is_meta for tensor in built[key].state_dict().values())
    assert len(built) > 20


def test_a_row_that_compares_backbones_builds_with_the_backbone():
    """The documents' sizes, in millions, are with the layer that tells ImageNet's classes apart."""
    classes = 2048 * 1000 + 1000
    compared = [row for row in rows() if row.task == "classification"]
    built = [row for row in compared if status(row) == "builds"]
    assert {row.backbone for row in built} == {"r101", "x101_64x4d", "res2net101"}
    for row in built:
        with torch.device("meta"):
            model = build_model(training(row).config, 80)
        size = sum(parameter.numel() for parameter in model.backbone.parameters()) + classes
        assert size / 1e6 == pytest.approx(row.figures["params"].value, abs=0.1)
    assert {status(row) for row in compared if row not in built} == {"listed"}


def without_plugin():
    return next(row for row in rows() if training(row).missing == f"there is no plugin for {row.method} yet")


def test_a_row_is_listed_where_something_of_its_model_is_missing():
    assert status(without_plugin()) == "listed"
    row = resolve("mmdet-v2/faster_rcnn_r50_fpn_bounded_iou_1x_coco")
    assert status(row) == "converts"
    other_loss = replace(row, config="configs/faster_rcnn/faster_rcnn_r50_fpn_ciou_1x_coco.py")
    assert status(other_loss) == "listed"
    assert status(resolve("fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn_1x_coco")) == "listed"


def test_a_row_without_weights_only_builds():
    row = resolve("mmdet-v2/pisa-1-1")
    assert training(row).exact
    assert status(row) == "builds"


def test_what_differs_in_training_alone_is_the_same_model():
    plain, multi_scale = (
        training(resolve(f"mmdet-v2/{name}"))
        for name in ("mask_rcnn_r50_caffe_fpn_1x_coco", "mask_rcnn_r50_caffe_fpn_mstrain-poly_3x_coco")
    )
    assert plain.exact
    assert multi_scale.exact
    assert digest(plain.config) == digest(multi_scale.config)


def test_a_row_is_verified_by_a_case_of_the_same_model_and_input_that_passes(parity):
    row = resolve("mmdet-v2/atss_r50_fpn_1x_coco")
    config = training(row).config
    for outcomes, expected in (
        ([], "converts"),
        ([(digest(config), True)], "verified"),
        ([(digest(config), False)], "converts"),
        ([(digest(revise(config, settings=["train.batch=3"])), True)], "verified"),
        ([(digest(revise(config, settings=["model.nms_threshold=0.61"])), True)], "converts"),
        ([(digest(revise(config, settings=["input.channels=bgr"])), True)], "converts"),
    ):
        parity(outcomes)
        assert status(row) == expected


def test_an_argument_that_is_as_its_default_changes_no_digest():
    config = training(resolve("mmdet-v2/atss_r50_fpn_1x_coco")).config
    model = {key: value for key, value in config.model.items() if key != "nms_threshold"}
    del (backbone := dict(model["backbone"]))["norm_eval"]
    older = config.model_copy(update={"model": {**model, "backbone": backbone}})
    assert digest(older) == digest(config)
    del (backbone := dict(backbone))["depth"]
    preset = config.model_copy(update={"model": {**model, "backbone": backbone}})
    assert digest(preset) == digest(config)


def test_a_status_counts_for_those_before_it(parity):
    row = resolve("mmdet-v2/atss_r50_fpn_1x_coco")
    parity([])
    assert [reached(row, wanted) for wanted in STATUSES] == [True, True, True, False]
    with pytest.raises(UsageError, match="unknown status 'verify': did you mean 'verified'"):
        reached(row, "verify")


def test_list_chooses_by_status_and_says_it(parity, capsys):
    config = training(resolve("mmdet-v2/atss_r50_fpn_1x_coco")).config
    parity([(digest(config), True)])
    list_rows(status="verified", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert {(row["id"], row["status"]) for row in found} == {("mmdet-v2/atss_r50_fpn_1x_coco", "verified")}
    list_rows(status="builds", method=["atss"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["status", "verified", "converts"]
    with pytest.raises(UsageError, match="unknown status 'buids': did you mean 'builds'"):
        list_rows(status="buids")


def test_show_says_how_to_evaluate_what_converts(capsys):
    show("mmdet-v2/atss_r50_fpn_1x_coco")
    text = capsys.readouterr().out
    assert re.search(r"\n  status      (converts|verified)\n", text)
    assert (
        "  evaluate    detcli zoo download mmdet-v2/atss_r50_fpn_1x_coco --dest weights\n"
        "              detcli convert auto weights/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth "
        "atss_r50_fpn_1x_coco.safetensors\n"
        "              detcli eval atss_r50_fpn_1x_coco.safetensors --data path/to/coco\n"
    ) in text
    show(without_plugin().id)
    text = capsys.readouterr().out
    assert "\n  status      listed\n" in text
    assert "evaluate" not in text


def test_statuses_of_all_rows_take_no_torch_and_no_two_seconds(timed):
    code = (
        "import sys; from detcli.cli import main; sys.argv[1:] = ['zoo', 'list', '--status', 'verified']\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    spent = []
    for _ in range(2):
        done, seconds = timed([sys.executable, "-c", code])
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "set()")
        spent.append(seconds)
    assert min(spent) < 2


def test_outcomes_of_cases_are_a_table():
    measured = {"weights": "3 tensors", "features": "1e-06"}
    cases = {
        "mmdet/a": {"passes": True, "same_as": "", "measured": measured, "wrong": []},
        "mmdet/b": {"passes": True, "same_as": "mmdet/a", "measured": {}, "wrong": []},
        "mmdet/c": {"passes": False, "same_as": "", "measured": {}, "wrong": ["no plugin", "no weights", "nothing"]},
    }
    assert parity_table(cases) == (
        ("case", "weights", "features", "result"),
        [
            ("mmdet/a", "3 tensors", "1e-06", "passes"),
            ("mmdet/b", "", "", "as mmdet/a"),
            ("mmdet/c", "", "", "fails: no plugin and 2 more"),
        ],
    )
    assert parity_table({}) == (("case", "result"), [])
