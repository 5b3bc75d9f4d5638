"""What the rows of MMDetection v2 say of each other: a cell that was read wrongly contradicts one beside it."""

import re
from datetime import date, timedelta
from urllib.parse import unquote

import pytest

from detcli.zoo.rows import rows

FIGURES = {
    "Mem (GB)": "mem",
    "Train Mem (GB)": "mem",
    "Inf time (fps)": "inference_fps",
    "Inf speed (fps)": "inference_fps",
    "Train time (s/iter)": "train_speed",
    "AR 1000": "prop_AR",
    "AR1000": "prop_AR",
    "box AP": "box_AP",
    "Box AP": "box_AP",
    "box AP (val)": "box_AP",
    "AP (val)": "box_AP",
    "V2.0 box AP": "box_AP",
    "mask AP": "mask_AP",
    "Mask AP": "mask_AP",
    "V2.0 mask AP": "mask_AP",
    "TTA mask AP": "mask_AP_tta",
    "box AP (test-dev)": "box_AP_test_dev",
    "AP75 (val)": "box_AP75",
}
MODELS_WITH_MASKS = {"mask_rcnn", "cascade_mask_rcnn", "htc", "scnet", "ms_rcnn", "point_rend", "yolact"}

ROWS = rows(["mmdet-v2"])
BY_ID = {row.id.removeprefix("mmdet-v2/"): row for row in ROWS}


def name(file):
    return unquote(file.url.rsplit("/", 1)[1])


def day(file):
    found = re.search(r"(20\d\d)([01]\d)([0-3]\d)", name(file))
    return date(*map(int, found.groups())) if found else None


def wrong(row):
    return {erratum.field: erratum for erratum in row.errata}


def numbers(schedule):
    return schedule.length, schedule.drops, schedule.warmup_iters, schedule.batch


def test_ids_are_unique_and_the_shortest_is_of_the_methods_own_tables():
    assert len(BY_ID) == len(ROWS) == 423
    for id in ("faster_rcnn_r50_fpn_1x_coco", "mask_rcnn_r50_fpn_1x_coco", "retinanet_r50_fpn_1x_coco"):
        assert BY_ID[id].section[1] == "Results and models"
        assert BY_ID[f"{id}.2"].files == BY_ID[id].files


def test_figures_are_the_numbers_in_the_cells():
    compared = 0
    for row in ROWS:
        for column, cell in zip(row.columns, row.cells, strict=False):
            if column not in FIGURES or not re.match(r"\d", cell or "") or column in wrong(row):
                continue
            field = "box_AP50" if row.dataset == "voc" and column == "box AP" else FIGURES[column]
            assert row.figures[field].value == float(cell.split()[0]), (row.id, column)
            compared += 1
    assert compared == 1031


def test_every_row_is_of_a_task_that_its_model_has():
    for row in ROWS:
        assert (row.task == "instance") == (row.model in MODELS_WITH_MASKS), row.id
        assert (row.task == "proposals") == (row.model == "rpn"), row.id
        assert row.task == "instance" or "mask_AP" not in row.figures, row.id
        assert row.task == "proposals" or "prop_AR" not in row.figures, row.id


def test_weights_carry_their_hash_and_drive_links_have_none():
    weights = [file for row in ROWS for file in row.files if file.kind == "weights"]
    for file in weights:
        if "drive.google.com" in file.url:
            assert (file.hash, file.hash_kind) == ("", "")
        else:
            assert re.fullmatch(r"[0-9a-f]{8}", file.hash)
            assert (name(file).endswith(f"-{file.hash}.pth"), file.hash_kind) == (True, "sha256")
    assert len({file.url for file in weights}) == 377


def test_the_log_is_of_the_run_that_made_the_weights():
    compared = 0
    for row in ROWS:
        if len(row.files) < 2 or not all(map(day, row.files)):
            continue
        assert abs(day(row.files[0]) - day(row.files[1])) <= timedelta(days=1), row.id
        compared += 1
    assert compared == 299


def test_files_backbone_and_schedule_are_those_of_the_config():
    """But for files that were named before the config was, or only by their date."""
    others = set()
    for row in ROWS:
        stem = row.config.rpartition("/")[2].removesuffix(".py")
        if not stem:
            continue
        assert row.id.removeprefix("mmdet-v2/").startswith(stem), row.id
        # One digit before the x: 8x2 and 32x4d are no schedules.
        sched = re.search(r"_(\dx|\d+e)(?=_|$)", stem)
        if row.method != "paa" and sched and "-" not in row.sched:
            assert row.sched == sched[1], row.id
        backbone = re.search(r"_(r\d+|hrnetv2p_w\d+|x\d+_\d+x\d+d)(?=_)", stem)
        if backbone and row.method != "ld" and "r2_101" not in stem:
            assert row.backbone == backbone[1], row.id
        named = [name(file) for file in row.files if re.match(r"[a-z]", name(file)) and "drive.google" not in file.url]
        if not all(file.startswith(stem) for file in named):
            others.add(row.method)
    assert others == {"lvis", "scratch", "autoassign", "atss", "legacy_1_x", "dynamic_rcnn", "faster_rcnn"}


def test_a_names_numbers_are_those_of_its_table():
    assert numbers(BY_ID["retinanet_r50_fpn_1x_coco"].schedule) == (12, (8, 11), 500, 16)
    assert numbers(BY_ID["retinanet_r50_fpn_2x_coco"].schedule) == (24, (16, 22), 500, 16)
    assert numbers(BY_ID["htc_r50_fpn_20e_coco"].schedule) == (20, (16, 19), 500, 16)
    assert numbers(BY_ID["faster_rcnn_r50_fpn_1x_cityscapes"].schedule) == (64, (56,), 500, 8)
    assert numbers(BY_ID["faster_rcnn_r50_fpn_1x_voc0712"].schedule)[:2] == (12, (9,))
    assert numbers(BY_ID["mask_rcnn_r50_fpn_gn-all_3x_coco"].schedule) == (36, (28, 34), 500, 16)
    assert numbers(BY_ID["grid_rcnn_r50_fpn_gn-head_2x_coco"].schedule) == (25, (17, 23), 3665, 16)
    assert numbers(BY_ID["mask_rcnn_r50_fpn_gn_ws-all_20_23_24e_coco"].schedule) == (24, (20, 23), 500, 16)
    assert numbers(BY_ID["yolof_r50_c5_8x8_1x_coco"].schedule) == (12, (8, 11), 1500, 64)
    assert numbers(BY_ID["cornernet_hourglass104_mstest_8x6_210e_coco"].schedule) == (210, (180,), 500, 48)
    assert numbers(BY_ID["ld_r18_gflv1_r101_fpn_coco_1x"].schedule) == (12, (8, 11), 500, 6)
    assert BY_ID["mask_rcnn_r50_fpn_instaboost_4x_coco"].schedule.length == 48
    assert BY_ID["tridentnet_r50_caffe_mstrain_3x_coco"].schedule is None


def test_errata_quote_what_is_printed():
    for row in ROWS:
        urls = [unquote(link.url) for link in row.links]
        for erratum in row.errata:
            if erratum.field == "config":
                assert any(url.endswith(erratum.printed.rpartition("/")[2]) for url in urls), row.id
                assert row.config == erratum.correct
            elif erratum.field == "Download":
                assert erratum.printed in [link.url for link in row.links], row.id
                logs = [file.url for file in row.files if file.kind == "log"]
                assert logs == [erratum.correct] * bool(erratum.correct), row.id
            else:
                assert row.cells[row.columns.index(erratum.field)] == erratum.printed, row.id
    assert sum(map(bool, (row.errata for row in ROWS))) == 21


@pytest.mark.parametrize(
    ("id", "field", "value"),
    [
        ("ms_rcnn_x101_32x4d_fpn_1x_coco", "sched", "1x"),
        ("pisa_ssd512_coco", "sched", "120e"),
        ("autoassign_r50_fpn_8x2_1x_coco", "style", "caffe"),
        ("cascade_mask_rcnn_r50_fpn_instaboost_4x_coco", "backbone", "r50"),
        ("cascade_mask_rcnn_r50_fpn_instaboost_4x_coco", "model", "cascade_mask_rcnn"),
        ("fcos_hrnetv2p_w40_gn-head_mstrain_640-800_4x4_2x_coco", "backbone", "hrnetv2p_w40"),
    ],
)
def test_fields_hold_what_is_right(id, field, value):
    assert BY_ID[id].errata
    assert getattr(BY_ID[id], field) == value


def test_figures_are_those_that_the_weights_are_named_after():
    compared = 0
    for row in ROWS:
        for part, field in (("bbox", "box_AP"), ("segm", "mask_AP")):
            if row.files and (found := re.search(rf"{part}_mAP-0\.(\d+)", row.files[0].url)):
                assert row.figures[field].value == pytest.approx(float(f"0.{found[1]}") * 100), row.id
                compared += 1
    assert compared == 45
