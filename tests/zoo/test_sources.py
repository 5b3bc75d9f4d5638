"""What the published rows say of each other: a cell that was read wrongly contradicts one beside it."""

import re

import pytest

from detcli.zoo.rows import Figure, rows, source

EARLY = ("detectron2", "detectron", "mmdet-v0")
MEASURE = {
    "detection": {"box_AP", "box_AP50"},
    "instance": {"mask_AP"},
    "proposals": {"prop_AR"},
    "keypoints": {"keypoint_AP"},
    "panoptic": {"PQ"},
}


def weights(row):
    return [file for file in row.files if file.kind == "weights"]


def schedule(row):
    return (row.schedule.unit, row.schedule.length, row.schedule.drops, row.schedule.batch) if row.schedule else None


@pytest.mark.parametrize("name", EARLY)
def test_every_row_says_what_it_measured(name):
    for row in rows([name]):
        assert row.name, row.id
        assert row.method, row.id
        assert row.backbone, row.id
        assert row.figures, row.id
        if row.section[:1] != ("Comparison with Detectron",):
            assert MEASURE[row.task] & set(row.figures), row.id


@pytest.mark.parametrize("name", EARLY)
def test_ids_are_unique_and_begin_with_the_source(name):
    ids = [row.id for row in rows([name])]
    assert len(set(ids)) == len(ids)
    assert all(id.startswith(f"{name}/") for id in ids)


def test_detectron2_names_folders_and_files_after_the_config():
    for row in rows(["detectron2"]):
        if not row.config:
            assert "test-time" in row.name
            continue
        folder = f"/detectron2/{row.config.removesuffix('.yaml')}/{row.model_id}/"
        assert all(folder in file.url for file in row.files), row.id
        assert [file.kind for file in row.files] == ["weights", "metrics"], row.id
        assert row.files[0].url.endswith(f"_{row.files[0].hash}.pkl"), row.id
        assert (len(row.files[0].hash), row.files[0].hash_kind) == (6, "md5"), row.id
        assert not row.sched or f"_{row.sched}" in row.config, row.id
        depth = re.search(r"_([RX])_(\d+(?:_32x8d)?)", row.config)
        assert row.backbone == depth[1].lower() + depth[2], row.id


def test_detectron2_prints_the_same_figures_wherever_it_repeats_a_config():
    first = {}
    for row in rows(["detectron2"]):
        if row.config:
            again = first.setdefault(row.config, row)
            assert (row.figures, row.files) == (again.figures, again.files), row.id
    assert len(first) == 49


def test_detectron2_schedules_are_iterations():
    by_id = {row.id: row for row in rows(["detectron2"])}
    assert schedule(by_id["detectron2/faster_rcnn_R_50_FPN_1x"]) == ("iter", 90_000, (60_000, 80_000), 16)
    assert schedule(by_id["detectron2/faster_rcnn_R_50_FPN_3x"]) == ("iter", 270_000, (210_000, 250_000), 16)
    assert schedule(by_id["detectron2/scratch_mask_rcnn_R_50_FPN_9x_gn"]) == ("iter", 202_500, (187_500, 197_500), 64)
    assert schedule(by_id["detectron2/mask_rcnn_R_50_FPN"]) == ("iter", 24_000, (18_000,), 8)
    assert schedule(by_id["detectron2/faster_rcnn_R_50_C4"]) == ("iter", 18_000, (12_000, 16_000), 16)


def test_detectron_trains_for_as_long_as_its_iterations_take():
    """To the last printed digit of both: an iteration in milliseconds, the total in tenths of an hour."""
    timed = [row for row in rows(["detectron"]) if "train_time_total" in row.figures]
    assert len(timed) == 74
    for row in timed:
        hours = row.schedule.length / 3600
        total = row.figures["train_time_total"].value
        assert total == pytest.approx(row.figures["train_speed"].value * hours, abs=0.0005 * hours + 0.051), row.id
        assert row.schedule.batch == 8 * row.figures["im_per_gpu"].value, row.id


def test_detectron_keeps_the_row_without_test_time_augmentation_under_its_figures():
    (row,) = (row for row in rows(["detectron"]) if "im_per_gpu" not in row.figures)
    assert row.cells[:4] == ("[above without test-time aug.]", "0.325 + 0.018", "45.2", "39.7")
    assert row.cells[6:] == (None,) * 8
    assert row.figures == {
        "inference_speed": Figure((0.325, 0.018), "+"),
        "box_AP": Figure((45.2,)),
        "mask_AP": Figure((39.7,)),
    }
    assert {erratum.field for erratum in row.errata} == {"inference time (s/im)", "box AP", "mask AP"}


def test_mmdet_v0_files_are_of_their_rows_method_backbone_and_schedule():
    files = [(row, file) for row in rows(["mmdet-v0"]) for file in weights(row)]
    assert len({file.url for _, file in files}) == len(files) == 79
    for row, file in files:
        name = re.search(r"/([^/]+)_\d{8}-([0-9a-f]{8})\.pth$", file.url)
        assert (file.hash, file.hash_kind) == (name[2], "sha256"), row.id
        assert f"_{row.backbone}_" in name[1], row.id
        assert row.model in name[1], row.id
        wrong = {erratum.printed: erratum.correct for erratum in row.errata}
        assert wrong.get(name[1], name[1]).endswith(f"_{row.sched}"), row.id


def test_mmdet_v0_lists_what_its_document_has_wrong():
    wrong = {row.id.split("/")[1]: [erratum.field for erratum in row.errata] for row in rows(["mmdet-v0"])}
    assert wrong["mask_rcnn_x101_32x4d_fpn_2x"] == wrong["mask_rcnn_x101_64x4d_fpn_1x"] == ["Backbone"]
    assert wrong["cascade_rcnn_x101_32x4d_fpn_20e"] == wrong["cascade_rcnn_x101_64x4d_fpn_20e"] == ["Download"]
    assert sum(map(bool, wrong.values())) == 12


def test_mmdet_v0_compares_the_figures_of_its_own_tables_with_those_of_detectron():
    own = {
        (row.model, "pre-computed proposals" in row.notes, row.style, row.sched): row.figures
        for table in source("mmdet-v0").tables
        for row in table.rows
        if table.section[0] == "Baselines" and row.backbone == "r50" and row.method == row.model
    }
    detectron = {
        (row.model, "pre-computed proposals" in row.notes, row.sched): row.figures
        for row in rows(["detectron"])
        if (row.backbone, row.neck, row.dataset) == ("r50", "fpn", "coco")
    }
    compared = 0
    for row in rows(["mmdet-v0"]):
        if row.section[0] == "Baselines":
            continue
        what = (row.model, "pre-computed proposals" in row.notes)
        sched = row.sched or "1x"
        styles = ("pytorch", "caffe") if row.sched else ("pytorch",)
        for field, figure in row.figures.items():
            for style, part in zip(styles, figure.parts, strict=False):
                assert own[*what, style, sched][field].value == part, row.id
                compared += 1
        for field, figure in row.others.get("Detectron", {}).items():
            theirs = detectron[*what, sched]
            if field == "inference_fps":
                assert figure.value == pytest.approx(1 / theirs["inference_speed"].value, abs=0.051), row.id
            else:
                assert theirs[field] == figure, row.id
            compared += 1
    assert compared == 54


def test_mmdet_v0_schedules_are_epochs():
    sched = {row.sched: schedule(row) for row in rows(["mmdet-v0"]) if row.sched}
    assert sched == {
        "1x": ("epoch", 12, (8, 11), 16),
        "2x": ("epoch", 24, (16, 22), 16),
        "20e": ("epoch", 20, (16, 19), 16),
        "3x": ("epoch", 36, (28, 34), 16),
        "120e": ("epoch", 120, (80, 110), 64),
        "240e": None,
    }


def test_mmdet_v0_has_a_mirror_for_every_file():
    ((prefix, mirror),) = source("mmdet-v0").mirrors
    assert all(file.url.startswith(f"{prefix}/") for row in rows(["mmdet-v0"]) for file in row.files)
    assert "aliyuncs" in mirror
